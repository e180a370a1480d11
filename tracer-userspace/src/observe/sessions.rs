//! Fetch sessions (KIP-227): a request of a session names only what changed, so its partitions are remembered.
//!
//! In: Fetch requests, in the order in which they were answered. Out: the fetch offset of each partition.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::SocketAddr;

use hashlink::LruCache;

use super::Topic;

/// Sessions remembered over all brokers; a broker's own default cache holds 1,000.
const MAX_SESSIONS: usize = 16_384;
/// Partitions remembered over all sessions.
const MAX_PARTITIONS: usize = 262_144;

/// One partition of a topic, as the request names it.
pub(super) type PartitionKey = (Topic, i32);

/// What a session's requests have asked for so far.
#[derive(Debug, Default)]
pub(super) struct Session {
    offsets: HashMap<PartitionKey, i64>,
}

/// All sessions of all brokers.
#[derive(Debug)]
pub(super) struct Sessions {
    sessions: LruCache<(SocketAddr, i32), Session>,
    partitions: usize,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { sessions: LruCache::new(MAX_SESSIONS), partitions: 0 }
    }
}

/// One Fetch request's part of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionRequest {
    /// The broker.
    pub(super) broker: SocketAddr,
    /// 0 = no session yet.
    pub(super) session_id: i32,
    /// -1 = no session wanted (and the old one ends), 0 = a new one.
    pub(super) epoch: i32,
}

impl Sessions {
    /// Takes in what a request asks for, and the session id of its answer (0 = none). Returns the state that the answer
    /// is about; `None` when the session began before we looked, and the request does not say.
    pub(super) fn answered(
        &mut self,
        request: SessionRequest,
        response_session_id: i32,
        asked: impl Iterator<Item = (PartitionKey, i64)>,
        forgotten: impl Iterator<Item = PartitionKey>,
    ) -> SessionView<'_> {
        let full = request.epoch <= 0;
        if full || response_session_id == 0 {
            self.end(request.broker, request.session_id);
        }
        if response_session_id == 0 || self.partitions >= MAX_PARTITIONS {
            return SessionView::Alone(asked.collect());
        }
        let key = (request.broker, response_session_id);
        let known = self.sessions.contains_key(&key);
        if !known || full {
            self.end(request.broker, response_session_id);
            if self.sessions.len() >= MAX_SESSIONS
                && let Some((_, oldest)) = self.sessions.remove_lru()
            {
                self.partitions -= oldest.offsets.len();
            }
        }
        let session = self.sessions.entry(key).or_insert_with(Session::default);
        let before = session.offsets.len();
        for partition in forgotten {
            session.offsets.remove(&partition);
        }
        session.offsets.extend(asked);
        self.partitions = self.partitions + session.offsets.len() - before;
        SessionView::Session(session)
    }

    fn end(&mut self, broker: SocketAddr, session_id: i32) {
        if session_id != 0
            && let Some(ended) = self.sessions.remove(&(broker, session_id))
        {
            self.partitions -= ended.offsets.len();
        }
    }
}

/// The partitions that one answer is about.
#[derive(Debug)]
pub(super) enum SessionView<'s> {
    /// The request alone says them.
    Alone(HashMap<PartitionKey, i64>),
    /// A session's.
    Session(&'s Session),
}

impl SessionView<'_> {
    /// The offset that was asked for.
    pub(super) fn fetch_offset(&self, partition: &PartitionKey) -> Option<i64> {
        match self {
            Self::Alone(offsets) => offsets.get(partition).copied(),
            Self::Session(session) => session.offsets.get(partition).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter::empty;
    use std::sync::Arc;

    use super::*;

    fn partition(name: &str, index: i32) -> PartitionKey {
        (Topic { name: Some(Arc::from(name)), id: None }, index)
    }

    fn request(session_id: i32, epoch: i32) -> SessionRequest {
        SessionRequest { broker: SocketAddr::from(([127, 0, 0, 1], 9092)), session_id, epoch }
    }

    // thomhurst/Dekaf#815: epoch 1 adds, epoch 2 is empty, epoch 3 forgets.
    #[test]
    fn an_empty_request_means_what_the_session_holds_and_forgotten_partitions_are_gone() {
        let mut sessions = Sessions::default();
        let a = partition("a", 0);
        sessions.answered(request(0, 0), 5, [(a.clone(), 10)].into_iter(), empty());
        assert_eq!(sessions.answered(request(5, 1), 5, empty(), empty()).fetch_offset(&a), Some(10));
        assert_eq!(sessions.answered(request(5, 2), 5, [(a.clone(), 12)].into_iter(), empty()).fetch_offset(&a), Some(12));
        assert_eq!(sessions.answered(request(5, 3), 5, empty(), [a.clone()].into_iter()).fetch_offset(&a), None);
        assert_eq!(sessions.partitions, 0);
    }

    #[test]
    fn a_new_session_replaces_the_old_one() {
        let mut sessions = Sessions::default();
        sessions.answered(request(0, 0), 5, [(partition("a", 0), 1), (partition("b", 0), 2)].into_iter(), empty());
        let view = sessions.answered(request(5, 0), 6, [(partition("a", 0), 3)].into_iter(), empty());
        assert_eq!(view.fetch_offset(&partition("a", 0)), Some(3));
        assert_eq!(view.fetch_offset(&partition("b", 0)), None);
        assert_eq!((sessions.sessions.len(), sessions.partitions), (1, 1));
        sessions.answered(request(6, -1), 0, empty(), empty());
        assert_eq!((sessions.sessions.len(), sessions.partitions), (0, 0));
    }

    #[test]
    fn sessions_of_random_ids_stay_bounded() {
        let mut sessions = Sessions::default();
        for id in 1..=40_000 {
            sessions.answered(request(0, 0), id, [(partition("a", 0), 1)].into_iter(), empty());
        }
        assert_eq!((sessions.sessions.len(), sessions.partitions), (MAX_SESSIONS, MAX_SESSIONS));
    }
}
