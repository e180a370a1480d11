//! Observations that wait, for a short and bounded time, for a name that another answer may still tell.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::learn::{ClientKey, Learnt};
use super::{Observation, Operation, Topic};
use crate::time::Timestamp;

/// Observations held at once; beyond it the oldest goes out as it is.
const MAX_HELD: usize = 8_192;

#[derive(Debug)]
struct Held {
    until: Timestamp,
    observation: Observation,
}

/// What waits, oldest first.
#[derive(Debug)]
pub(super) struct Hold {
    time: Duration,
    queue: VecDeque<Held>,
}

impl Hold {
    /// Each observation waits for at most `time` (in time of events).
    pub(super) fn new(time: Duration) -> Self {
        Self { time, queue: VecDeque::new() }
    }

    /// Lets an observation wait. Returns what has to go for it.
    pub(super) fn add(&mut self, observation: Observation, now: Timestamp) -> Option<Observation> {
        if self.time.is_zero() {
            return Some(observation);
        }
        let oldest = if self.queue.len() >= MAX_HELD { self.queue.pop_front().map(|held| held.observation) } else { None };
        self.queue.push_back(Held { until: now.plus(self.time), observation });
        oldest
    }

    /// Something was learnt: gives out what lacks nothing any more.
    pub(super) fn release_completed(&mut self, learnt: &mut Learnt, sink: &mut dyn FnMut(Observation)) {
        for mut held in std::mem::take(&mut self.queue) {
            if complete(&mut held.observation, learnt) {
                sink(held.observation);
            } else {
                self.queue.push_back(held);
            }
        }
    }

    /// Gives out what has waited long enough. Returns how much.
    pub(super) fn release_expired(&mut self, now: Timestamp, sink: &mut dyn FnMut(Observation)) -> u64 {
        let mut count = 0;
        while self.queue.front().is_some_and(|held| held.until <= now)
            && let Some(held) = self.queue.pop_front()
        {
            count += 1;
            sink(held.observation);
        }
        count
    }

    /// Gives out everything. Returns how much.
    pub(super) fn release_all(&mut self, sink: &mut dyn FnMut(Observation)) -> u64 {
        let mut count = 0;
        for held in self.queue.drain(..) {
            count += 1;
            sink(held.observation);
        }
        count
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}

/// Fills in the names that are known by now. True when none is lacking that may still come.
pub(super) fn complete(observation: &mut Observation, learnt: &mut Learnt) -> bool {
    match observation {
        Observation::Sent(sent) => complete_both(&mut sent.operation, &mut sent.topic, learnt),
        Observation::Fetched(fetched) => complete_both(&mut fetched.operation, &mut fetched.topic, learnt),
        Observation::FetchFailed(failure) => complete_both(&mut failure.operation, &mut failure.topic, learnt),
        Observation::Commit(commit) => complete_both(&mut commit.operation, &mut commit.topic, learnt),
        Observation::Exchange(_) | Observation::Connection(_) => true,
    }
}

fn complete_both(operation: &mut Arc<Operation>, topic: &mut Topic, learnt: &mut Learnt) -> bool {
    if topic.name.is_none()
        && let Some(id) = topic.id
    {
        topic.name = learnt.topic_name(id);
    }
    if operation.cluster_id.is_none() {
        let client = ClientKey { host: operation.connection.client.ip(), client_id: operation.client_id.clone() };
        if let Some(cluster_id) = learnt.cluster_of(operation.connection.broker, &client) {
            Arc::make_mut(operation).cluster_id = Some(cluster_id);
        }
    }
    topic.name.is_some() && operation.cluster_id.is_some()
}
