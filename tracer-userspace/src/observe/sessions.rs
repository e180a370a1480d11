//! Fetch sessions (KIP-227): a request of a session names only what changed, so its partitions are remembered.
//!
//! In: Fetch requests, in the order in which they were answered. Out: the fetch offset of each partition, and what a broker
//! said last of those that its answers leave out because nothing changed.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use hashlink::LruCache;

use super::{Told, Topic};
use crate::time::Timestamp;

/// Sessions remembered over all brokers; a broker's own default cache holds 1,000.
const MAX_SESSIONS: usize = 16_384;
/// Partitions remembered over all sessions.
const MAX_PARTITIONS: usize = 262_144;

/// How often partitions are listed of which answers say nothing.
const LISTED_EVERY: Duration = Duration::from_secs(5);

/// One partition of a topic, as the request names it.
pub(super) type PartitionKey = (Topic, i32);

/// One partition of a session.
#[derive(Clone, Copy, Debug)]
struct Watched {
    fetch_offset: i64,
    /// What the broker said last; `None` from an answer on that was not seen until it says it again.
    told: Option<Told>,
}

/// What a session's requests have asked for so far.
#[derive(Debug, Default)]
pub(super) struct Session {
    partitions: HashMap<PartitionKey, Watched>,
    last_epoch: i32,
    listed_at: Timestamp,
}

impl Session {
    /// An answer was not seen, or not all of it: what it said of any partition is not known.
    fn doubt(&mut self) {
        for watched in self.partitions.values_mut() {
            watched.told = None;
        }
    }

    fn ask(&mut self, asked: impl Iterator<Item = (PartitionKey, i64)>) {
        for (partition, fetch_offset) in asked {
            self.partitions.entry(partition).or_insert(Watched { fetch_offset, told: None }).fetch_offset = fetch_offset;
        }
    }
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
    /// -1 = no session wanted (and the old one ends), 0 = a new one; `None` when the request was not seen.
    pub(super) epoch: Option<i32>,
}

impl Sessions {
    /// Takes in what a request asks for, and the session id of its answer (0 = none). Returns the state that the answer
    /// is about; partitions that the client no longer reads go to `left`.
    pub(super) fn answered(
        &mut self,
        request: SessionRequest,
        response_session_id: i32,
        asked: impl Iterator<Item = (PartitionKey, i64)>,
        forgotten: impl Iterator<Item = PartitionKey>,
        left: &mut Vec<PartitionKey>,
    ) -> SessionView<'_> {
        let full = request.epoch.is_some_and(|epoch| epoch <= 0);
        let mut before = Session::default();
        if full || response_session_id == 0 {
            before = self.end(request.broker, request.session_id).unwrap_or_default();
        }
        if response_session_id == 0 || self.partitions >= MAX_PARTITIONS {
            let asked: HashMap<_, _> = asked.collect();
            // A session that the broker ended goes on as another.
            if full {
                left.extend(before.partitions.into_keys().filter(|partition| !asked.contains_key(partition)));
            }
            return SessionView::Alone(asked);
        }
        let key = (request.broker, response_session_id);
        let known = self.sessions.contains_key(&key);
        if !known || full {
            self.end(request.broker, response_session_id);
            if self.sessions.len() >= MAX_SESSIONS
                && let Some((_, oldest)) = self.sessions.remove_lru()
            {
                self.partitions -= oldest.partitions.len();
            }
        }
        let session = self.sessions.entry(key).or_insert_with(Session::default);
        let count_before = session.partitions.len();
        let expected = if session.last_epoch == i32::MAX { 1 } else { session.last_epoch + 1 };
        // Seen at both ends, each answer comes twice.
        if !full && request.epoch != Some(expected) && request.epoch != Some(session.last_epoch) {
            session.doubt();
        }
        // A request that was not seen had the next one.
        session.last_epoch = request.epoch.unwrap_or(expected).max(0);
        for partition in forgotten {
            session.partitions.remove(&partition);
            left.push(partition);
        }
        session.ask(asked);
        left.extend(before.partitions.into_keys().filter(|partition| !session.partitions.contains_key(partition)));
        self.partitions = self.partitions + session.partitions.len() - count_before;
        SessionView::Session(session)
    }

    fn end(&mut self, broker: SocketAddr, session_id: i32) -> Option<Session> {
        let ended = self.sessions.remove(&(broker, session_id)).filter(|_| session_id != 0)?;
        self.partitions -= ended.partitions.len();
        Some(ended)
    }
}

/// The partitions that one answer is about.
#[derive(Debug)]
pub(super) enum SessionView<'s> {
    /// The request alone says them.
    Alone(HashMap<PartitionKey, i64>),
    /// A session's.
    Session(&'s mut Session),
}

impl SessionView<'_> {
    /// The offset that was asked for.
    pub(super) fn fetch_offset(&self, partition: &PartitionKey) -> Option<i64> {
        match self {
            Self::Alone(offsets) => offsets.get(partition).copied(),
            Self::Session(session) => session.partitions.get(partition).map(|watched| watched.fetch_offset),
        }
    }

    /// The answer says this of a partition; `None` when it says that there is an error.
    pub(super) fn told(&mut self, partition: &PartitionKey, told: Option<Told>) {
        if let Self::Session(session) = self
            && let Some(watched) = session.partitions.get_mut(partition)
        {
            watched.told = told;
        }
    }

    /// The answer was not read to its end.
    pub(super) fn doubt(&mut self) {
        if let Self::Session(session) = self {
            session.doubt();
        }
    }

    /// Partitions of which what the broker said before still holds, with their fetch offsets; nothing when they were listed a moment ago.
    pub(super) fn unchanged(&mut self, now: Timestamp) -> impl Iterator<Item = (&PartitionKey, i64, Told)> {
        let session = match self {
            Self::Session(session) if session.listed_at == Timestamp::ZERO || now.since(session.listed_at) >= LISTED_EVERY => {
                session.listed_at = now;
                Some(session)
            }
            Self::Session(_) | Self::Alone(_) => None,
        };
        let partitions = session.into_iter().flat_map(|session| &session.partitions);
        partitions.filter_map(|(partition, watched)| Some((partition, watched.fetch_offset, watched.told?)))
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
        SessionRequest { broker: SocketAddr::from(([127, 0, 0, 1], 9092)), session_id, epoch: Some(epoch) }
    }

    // thomhurst/Dekaf#815: epoch 1 adds, epoch 2 is empty, epoch 3 forgets.
    #[test]
    fn an_empty_request_means_what_the_session_holds_and_forgotten_partitions_are_gone() {
        let mut sessions = Sessions::default();
        let a = partition("a", 0);
        sessions.answered(request(0, 0), 5, [(a.clone(), 10)].into_iter(), empty(), &mut vec![]);
        assert_eq!(sessions.answered(request(5, 1), 5, empty(), empty(), &mut vec![]).fetch_offset(&a), Some(10));
        assert_eq!(sessions.answered(request(5, 2), 5, [(a.clone(), 12)].into_iter(), empty(), &mut vec![]).fetch_offset(&a), Some(12));
        let mut left = Vec::new();
        assert_eq!(sessions.answered(request(5, 3), 5, empty(), [a.clone()].into_iter(), &mut left).fetch_offset(&a), None);
        assert_eq!(left, [a]);
        assert_eq!(sessions.partitions, 0);
    }

    #[test]
    fn a_new_session_replaces_the_old_one() {
        let mut sessions = Sessions::default();
        sessions.answered(request(0, 0), 5, [(partition("a", 0), 1), (partition("b", 0), 2)].into_iter(), empty(), &mut vec![]);
        let mut left = Vec::new();
        let view = sessions.answered(request(5, 0), 6, [(partition("a", 0), 3)].into_iter(), empty(), &mut left);
        assert_eq!(view.fetch_offset(&partition("a", 0)), Some(3));
        assert_eq!(view.fetch_offset(&partition("b", 0)), None);
        assert_eq!((sessions.sessions.len(), sessions.partitions), (1, 1));
        assert_eq!(left, [partition("b", 0)]);
        sessions.answered(request(6, -1), 0, empty(), empty(), &mut left);
        assert_eq!((sessions.sessions.len(), sessions.partitions), (0, 0));
        assert_eq!(left, [partition("b", 0), partition("a", 0)]);
    }

    #[test]
    fn what_an_answer_leaves_out_is_as_it_was_unless_one_was_not_seen() {
        let (a, b) = (partition("a", 0), partition("b", 0));
        let told = |offset| Some(Told { high_watermark: Some(offset), ..Told::default() });
        let at = |seconds: u64| Timestamp::from_unix_ns(1_700_000_000_000_000_000 + seconds * 1_000_000_000);
        let mut sessions = Sessions::default();
        let mut answer = |epoch: Option<i32>, says: &[(&PartitionKey, i64)], seconds: u64| {
            let asked = if epoch == Some(0) { vec![(a.clone(), 10), (b.clone(), 20)] } else { vec![] };
            let request = SessionRequest { epoch, ..request(if epoch == Some(0) { 0 } else { 5 }, 0) };
            let mut view = sessions.answered(request, 5, asked.into_iter(), empty(), &mut vec![]);
            for (partition, offset) in says {
                view.told(partition, told(*offset));
            }
            let mut unchanged: Vec<_> =
                view.unchanged(at(seconds)).map(|(key, from, told)| (key.0.name.clone().unwrap(), from, told.high_watermark)).collect();
            unchanged.sort();
            unchanged
        };
        let listed = |name: &str, from, end| (Arc::from(name), from, Some(end));
        assert_eq!(answer(Some(0), &[(&a, 12), (&b, 20)], 0), [listed("a", 10, 12), listed("b", 20, 20)]);
        assert_eq!(answer(Some(1), &[(&a, 13)], 1), [], "a moment ago");
        assert_eq!(answer(Some(2), &[], 6), [listed("a", 10, 13), listed("b", 20, 20)]);
        assert_eq!(answer(Some(2), &[], 12), [listed("a", 10, 13), listed("b", 20, 20)], "the same, seen at the other end");
        assert_eq!(answer(Some(4), &[(&b, 21)], 20), [listed("b", 20, 21)], "the third was not seen");
        assert_eq!(answer(None, &[], 30), []);
        assert_eq!(answer(Some(6), &[(&a, 15)], 40), [listed("a", 10, 15)]);
    }

    #[test]
    fn sessions_of_random_ids_stay_bounded() {
        let mut sessions = Sessions::default();
        for id in 1..=40_000 {
            sessions.answered(request(0, 0), id, [(partition("a", 0), 1)].into_iter(), empty(), &mut vec![]);
        }
        assert_eq!((sessions.sessions.len(), sessions.partitions), (MAX_SESSIONS, MAX_SESSIONS));
    }
}
