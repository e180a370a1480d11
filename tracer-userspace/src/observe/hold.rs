//! Observations that wait, for a short and bounded time: for a name that another answer may still tell, or (a fetched
//! batch) for the answer to the produce that it came from, which on one host is often seen a moment later.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashlink::{LinkedHashMap, LruCache};

use super::learn::{ClientKey, Learnt};
use super::{BatchHeader, FetchedBatch, Observation, Operation, Topic};
use crate::time::Timestamp;

/// Observations held at once in each of the two queues; beyond it the oldest goes out as it is.
const MAX_HELD: usize = 8_192;
/// Batches that are on their way to a broker at once.
const MAX_OPEN_SENDS: usize = 65_536;

/// What both ends see of one batch before the producer was told its offset.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SendKey {
    topic: Arc<str>,
    partition: i32,
    base_timestamp_ms: Option<i64>,
    record_count: i32,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl SendKey {
    /// `None` while the topic has no name.
    pub(super) fn new(topic: &Topic, partition: i32, header: &BatchHeader) -> Option<Self> {
        Some(Self {
            topic: Arc::clone(topic.name.as_ref()?),
            partition,
            base_timestamp_ms: header.base_timestamp_ms,
            record_count: header.record_count,
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
        })
    }
}

#[derive(Debug)]
struct Held {
    until: Timestamp,
    observation: Observation,
}

/// What waits.
#[derive(Debug)]
pub(super) struct Hold {
    time: Duration,
    /// For names, oldest first.
    nameless: VecDeque<Held>,
    /// For answers to produces, oldest first.
    early: LinkedHashMap<SendKey, Vec<Held>>,
    open_sends: LruCache<SendKey, ()>,
}

impl Hold {
    /// Each observation waits for at most `time` (in time of events).
    pub(super) fn new(time: Duration) -> Self {
        Self { time, nameless: VecDeque::new(), early: LinkedHashMap::new(), open_sends: LruCache::new(MAX_OPEN_SENDS) }
    }

    /// A batch is on its way to the broker.
    pub(super) fn sending(&mut self, key: SendKey) {
        self.open_sends.insert(key, ());
    }

    /// It is known what became of it: fetches that waited for that are given out.
    pub(super) fn sent(&mut self, key: &SendKey, learnt: &mut Learnt, sink: &mut dyn FnMut(Observation)) {
        if self.open_sends.remove(key).is_none() {
            return;
        }
        for mut held in self.early.remove(key).into_iter().flatten() {
            // Its names are as known as they will be in the time that is left; they are not waited for a second time.
            complete(&mut held.observation, learnt);
            sink(held.observation);
        }
    }

    /// Gives an observation out, or lets it wait. Returns how many went out before their time for it.
    pub(super) fn give(
        &mut self,
        mut observation: Observation,
        now: Timestamp,
        learnt: &mut Learnt,
        sink: &mut dyn FnMut(Observation),
    ) -> u64 {
        let complete = complete(&mut observation, learnt);
        if self.time.is_zero() {
            sink(observation);
            return u64::from(!complete);
        }
        let until = now.plus(self.time);
        if !complete {
            self.nameless.push_back(Held { until, observation });
            let full = self.nameless.len() > MAX_HELD;
            return self.give_oldest(full, sink);
        }
        if let Observation::Fetched(fetched) = &observation
            && let Some(key) = self.early_key(fetched)
        {
            self.early.entry(key).or_insert_with(Vec::new).push(Held { until, observation });
            if self.early.len() > MAX_HELD
                && let Some((_, oldest)) = self.early.pop_front()
            {
                for held in oldest {
                    sink(held.observation);
                }
            }
            return 0;
        }
        sink(observation);
        0
    }

    /// The key of a batch whose produce was not answered yet.
    fn early_key(&self, fetched: &FetchedBatch) -> Option<SendKey> {
        if self.open_sends.is_empty() {
            return None;
        }
        SendKey::new(&fetched.topic, fetched.partition, &fetched.header).filter(|key| self.open_sends.contains_key(key))
    }

    fn give_oldest(&mut self, full: bool, sink: &mut dyn FnMut(Observation)) -> u64 {
        let oldest = if full { self.nameless.pop_front() } else { None };
        oldest.map_or(0, |held| {
            sink(held.observation);
            1
        })
    }

    /// Names were learnt: gives out what lacks nothing any more.
    pub(super) fn release_completed(&mut self, now: Timestamp, learnt: &mut Learnt, sink: &mut dyn FnMut(Observation)) {
        for mut held in std::mem::take(&mut self.nameless) {
            if complete(&mut held.observation, learnt) {
                self.give(held.observation, now, learnt, sink);
            } else {
                self.nameless.push_back(held);
            }
        }
    }

    /// Gives out what has waited long enough. Returns how much of it lacks a name.
    pub(super) fn release_expired(&mut self, now: Timestamp, sink: &mut dyn FnMut(Observation)) -> u64 {
        let mut count = 0;
        while self.nameless.front().is_some_and(|held| held.until <= now) {
            count += self.give_oldest(true, sink);
        }
        while self.early.front().is_some_and(|(_, held)| held.first().is_none_or(|first| first.until <= now)) {
            for held in self.early.pop_front().into_iter().flat_map(|(_, held)| held) {
                sink(held.observation);
            }
        }
        count
    }

    /// Gives out everything. Returns how much of it lacks a name.
    pub(super) fn release_all(&mut self, sink: &mut dyn FnMut(Observation)) -> u64 {
        let mut count = 0;
        while !self.nameless.is_empty() {
            count += self.give_oldest(true, sink);
        }
        while let Some((_, held)) = self.early.pop_front() {
            for held in held {
                sink(held.observation);
            }
        }
        count
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.nameless.len() + self.early.values().map(Vec::len).sum::<usize>()
    }
}

/// Fills in the names that are known by now. True when none is lacking that may still come.
fn complete(observation: &mut Observation, learnt: &mut Learnt) -> bool {
    match observation {
        Observation::Sent(sent) => complete_both(&mut sent.operation, &mut sent.topic, learnt),
        Observation::Fetched(fetched) => complete_both(&mut fetched.operation, &mut fetched.topic, learnt),
        Observation::FetchFailed(failure) => complete_both(&mut failure.operation, &mut failure.topic, learnt),
        Observation::Commit(commit) => complete_both(&mut commit.operation, &mut commit.topic, learnt),
        // How far a consumer has come is told anew in a moment: it does not wait.
        Observation::Poll(poll) => {
            let left = poll.left.iter_mut().map(|(topic, _)| topic);
            for topic in poll.partitions.iter_mut().map(|partition| &mut partition.topic).chain(left) {
                complete_topic(topic, learnt);
            }
            true
        }
        Observation::Group(_) | Observation::Transaction(_) | Observation::Exchange(_) | Observation::Connection(_) => true,
    }
}

fn complete_topic(topic: &mut Topic, learnt: &mut Learnt) {
    if topic.name.is_none()
        && let Some(id) = topic.id
    {
        topic.name = learnt.topic_name(id);
    }
}

fn complete_both(operation: &mut Arc<Operation>, topic: &mut Topic, learnt: &mut Learnt) -> bool {
    complete_topic(topic, learnt);
    if operation.cluster_id.is_none() {
        let client = ClientKey { host: operation.connection.client.ip(), client_id: operation.client_id.clone() };
        if let Some(cluster_id) = learnt.cluster_of(operation.connection.broker, &client) {
            Arc::make_mut(operation).cluster_id = Some(cluster_id);
        }
    }
    topic.name.is_some() && operation.cluster_id.is_some()
}
