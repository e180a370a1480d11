//! Requests paired with their answers, within one connection.
//!
//! In: request headers as they are seen, and the correlation ids of answers. Out: the request that an answer belongs to.
//! A broker answers in order, so the first open request with the answer's correlation id is the right one, whatever ids a
//! client chooses (repeated, negative, all zero). Requests whose answer was lost stay behind until their deadline.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::time::Timestamp;

/// Requests of one connection that may be open at once; a client has 5 in flight, the broker's own limit is the socket
/// buffer. Beyond it the oldest is given up and counted.
pub const MAX_OPEN_REQUESTS: usize = 4096;

/// How long an answer is waited for. Longest ordinary wait is a `JoinGroup` during a rebalance (`max.poll.interval.ms`, 5 min).
pub const ANSWER_DEADLINE: Duration = Duration::from_mins(10);

/// What every request's header says, with its times.
#[derive(Clone, Debug)]
pub struct RequestFacts {
    /// Kafka's number of the API.
    pub api_key: i16,
    /// Version of the request and its answer.
    pub api_version: i16,
    /// The client's number of the request, not unique.
    pub correlation_id: i32,
    /// `None` when null on the wire.
    pub client_id: Option<Arc<str>>,
    /// When the first byte was seen.
    pub first: Timestamp,
    /// When the last byte was seen.
    pub last: Timestamp,
    /// Bytes on the wire, length field included.
    pub bytes: u64,
}

/// What is kept of a request takes memory, which is counted.
pub trait Kept {
    /// Bytes beyond the value itself.
    fn kept_bytes(&self) -> usize;
}

/// A request that waits for its answer; `S` is what `observe` keeps of it.
#[derive(Debug)]
pub struct OpenRequest<S> {
    /// The header and times.
    pub facts: RequestFacts,
    /// A hole in the answering direction was seen since: silence proves nothing.
    pub answer_may_be_lost: bool,
    /// What the request said.
    pub state: S,
}

/// The open requests of one connection, oldest first.
#[derive(Debug)]
pub struct OpenRequests<S> {
    queue: VecDeque<OpenRequest<S>>,
    kept_bytes: usize,
}

impl<S> Default for OpenRequests<S> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), kept_bytes: 0 }
    }
}

impl<S: Kept> OpenRequests<S> {
    /// Adds a request. Returns the oldest one when there are too many: it is given up.
    pub fn push(&mut self, facts: RequestFacts, state: S) -> Option<OpenRequest<S>> {
        let given_up = if self.queue.len() >= MAX_OPEN_REQUESTS { self.take_at(0) } else { None };
        self.kept_bytes += state.kept_bytes();
        self.queue.push_back(OpenRequest { facts, answer_may_be_lost: false, state });
        given_up
    }

    /// The oldest open request with this correlation id, if there is one; it stays open.
    pub fn find(&self, correlation_id: i32) -> Option<&OpenRequest<S>> {
        self.queue.iter().find(|r| r.facts.correlation_id == correlation_id)
    }

    /// Takes the oldest open request with this correlation id.
    pub fn take(&mut self, correlation_id: i32) -> Option<OpenRequest<S>> {
        let index = self.queue.iter().position(|r| r.facts.correlation_id == correlation_id)?;
        self.take_at(index)
    }

    fn take_at(&mut self, index: usize) -> Option<OpenRequest<S>> {
        let taken = self.queue.remove(index)?;
        self.kept_bytes = self.kept_bytes.saturating_sub(taken.state.kept_bytes());
        Some(taken)
    }

    /// A hole was seen where answers go: every request that is open now may have been answered in it.
    pub fn answers_may_be_lost(&mut self) {
        for request in &mut self.queue {
            request.answer_may_be_lost = true;
        }
    }

    /// Takes the oldest request if its deadline has passed.
    pub fn take_expired(&mut self, now: Timestamp) -> Option<OpenRequest<S>> {
        let oldest = self.queue.front()?;
        (now.since(oldest.facts.last) > ANSWER_DEADLINE).then(|| self.take_at(0)).flatten()
    }

    /// Takes all that is open, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = OpenRequest<S>> + '_ {
        self.kept_bytes = 0;
        self.queue.drain(..)
    }

    /// Memory that the open requests take.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes + self.queue.capacity() * size_of::<OpenRequest<S>>()
    }

    /// Number of open requests.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Is none open?
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Kept for i32 {
        fn kept_bytes(&self) -> usize {
            3
        }
    }

    impl Kept for &str {
        fn kept_bytes(&self) -> usize {
            self.len()
        }
    }

    fn facts(correlation_id: i32, at_ns: u64) -> RequestFacts {
        let time = Timestamp::from_unix_ns(at_ns);
        RequestFacts { api_key: 0, api_version: 9, correlation_id, client_id: None, first: time, last: time, bytes: 20 }
    }

    #[test]
    fn equal_ids_pair_first_in_first_out() {
        let mut open = OpenRequests::default();
        for (id, name) in [(7, "a"), (-1, "b"), (7, "c"), (0, "d"), (7, "e")] {
            assert!(open.push(facts(id, 0), name).is_none());
        }
        let order: Vec<_> = [7, 7, 0, -1, 7].into_iter().filter_map(|id| open.take(id)).map(|r| r.state).collect();
        assert_eq!(order, ["a", "c", "d", "b", "e"]);
        assert!(open.take(7).is_none());
    }

    // allegro/hermes#819 (KAFKA-4669): one lost answer must not shift all later pairs.
    #[test]
    fn a_lost_answer_shifts_nothing() {
        let mut open = OpenRequests::default();
        for id in 4697..=4702 {
            open.push(facts(id, 1), id);
        }
        assert_eq!(open.take(4702).unwrap().state, 4702);
        let late = Timestamp::from_unix_ns(2).plus(ANSWER_DEADLINE);
        let expired: Vec<_> = std::iter::from_fn(|| open.take_expired(late)).map(|r| r.state).collect();
        assert_eq!(expired, [4697, 4698, 4699, 4700, 4701]);
    }

    #[test]
    fn too_many_open_requests_give_up_the_oldest() {
        let mut open = OpenRequests::default();
        let given_up: Vec<_> = (0..5000).filter_map(|id| open.push(facts(id, 1), id)).map(|r| r.state).collect();
        assert_eq!(open.len(), MAX_OPEN_REQUESTS);
        assert_eq!(given_up.len(), 5000 - MAX_OPEN_REQUESTS);
        assert_eq!(given_up.first(), Some(&0));
        assert_eq!(open.kept_bytes, 3 * MAX_OPEN_REQUESTS);
        assert_eq!(open.drain().count(), MAX_OPEN_REQUESTS);
        assert_eq!(open.kept_bytes, 0);
    }
}
