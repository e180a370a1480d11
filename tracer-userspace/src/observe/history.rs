//! What was sent, delivered and committed before: what tells a retry, a redelivery and a commit that moves nothing.

#![forbid(unsafe_code)]

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use hashlink::LruCache;

use super::names::MAX_REMEMBERED_BYTES;
use super::{BatchHeader, TopicId};
use crate::recent::Recent;
use crate::time::Timestamp;

const MAX_SENT: usize = 65_536;
const MAX_POSITIONS: usize = 131_072;

/// What makes two batches on the wire the same batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SameBatch {
    /// An idempotent producer numbers its batches.
    Sequence { producer_id: i64, producer_epoch: i16, base_sequence: i32 },
    /// Else equal bytes, after a failure.
    Bytes { crc: u32, base_timestamp_ms: Option<i64>, record_count: i32, size_bytes: u32 },
}

impl SameBatch {
    fn of(header: &BatchHeader) -> Self {
        if header.producer_id >= 0 && header.base_sequence >= 0 {
            return Self::Sequence {
                producer_id: header.producer_id,
                producer_epoch: header.producer_epoch,
                base_sequence: header.base_sequence,
            };
        }
        Self::Bytes {
            crc: header.crc,
            base_timestamp_ms: header.base_timestamp_ms,
            record_count: header.record_count,
            size_bytes: header.size_bytes,
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Answered well, or never to be answered.
    Done,
    /// Refused, or no answer came.
    Failed,
}

/// A topic as itself: one that was created anew under its name is another, and so is one of that name in another cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum TopicIdentity {
    /// Ids are never used twice.
    Id(TopicId),
    /// The cluster, as far as it is known, and the name.
    Name(Option<Arc<str>>, Option<Arc<str>>),
}

impl TopicIdentity {
    /// Its name is longer than any that is remembered.
    pub(super) fn is_long(&self) -> bool {
        let long = |name: &Option<Arc<str>>| name.as_ref().is_some_and(|name| name.len() > MAX_REMEMBERED_BYTES);
        matches!(self, Self::Name(cluster_id, name) if long(cluster_id) || long(name))
    }
}

/// A topic as it is known now, and what it was remembered as before its id or its cluster was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownTopic {
    pub(super) now: TopicIdentity,
    pub(super) before: [Option<TopicIdentity>; 2],
}

impl KnownTopic {
    /// One that has no other name.
    #[cfg(test)]
    pub(super) const fn only(now: TopicIdentity) -> Self {
        Self { now, before: [None, None] }
    }

    /// The entry of this topic in a table, taken over from what it was known as before.
    fn entry<'a, K: Hash + Eq, V>(&self, table: &'a mut LruCache<K, V>, key: impl Fn(TopicIdentity) -> K) -> (K, Option<&'a mut V>) {
        let now = key(self.now.clone());
        if !table.contains_key(&now)
            && let Some(value) = self.before.iter().flatten().find_map(|before| table.remove(&key(before.clone())))
        {
            table.insert(key(self.now.clone()), value);
        }
        let value = table.get_mut(&now);
        (now, value)
    }
}

/// A batch, what became of it, and when it was first sent.
#[derive(Clone, Copy, Debug)]
struct LastAttempt {
    /// Hash of topic and partition.
    place: u64,
    batch: SameBatch,
    attempt: Attempt,
    first_sent: Timestamp,
}

/// Batches that were sent. Of topic and partition only their hash is kept, whose key nobody knows: one in 2^64 is taken for another.
#[derive(Debug)]
struct SentBefore {
    hashes: RandomState,
    batches: Recent<LastAttempt>,
    /// Batches since one of a topic whose id was not known: after so many as there is room for, none of those is left.
    since_named: usize,
}

impl SentBefore {
    fn place(&self, topic: &TopicIdentity, partition: i32) -> u64 {
        self.hashes.hash_one((topic, partition))
    }

    fn put(&mut self, topic: &TopicIdentity, attempt: LastAttempt) {
        self.since_named = if matches!(topic, TopicIdentity::Id(_)) { self.since_named.saturating_add(1) } else { 0 };
        let same = |known: &LastAttempt, attempt: &LastAttempt| known.place == attempt.place && known.batch == attempt.batch;
        self.batches.put(self.hashes.hash_one((attempt.place, attempt.batch)), attempt, same);
    }

    /// What is remembered of a batch, under the topic's name of today or, once, under those from before.
    fn find(&mut self, topic: &KnownTopic, partition: i32, place: u64, batch: SameBatch) -> Option<LastAttempt> {
        let is = |place: u64| move |known: &LastAttempt| known.place == place && known.batch == batch;
        if let Some(found) = self.batches.latest(self.hashes.hash_one((place, batch)), is(place)) {
            return Some(*found);
        }
        if self.since_named > MAX_SENT {
            return None;
        }
        topic.before.iter().flatten().find_map(|before| {
            let place = self.hashes.hash_one((before, partition));
            self.batches.take(self.hashes.hash_one((place, batch)), is(place)).copied()
        })
    }
}

/// The three tables, each bounded: what falls out is taken for new.
#[derive(Debug)]
pub(super) struct History {
    sent: SentBefore,
    /// By group, topic and partition.
    delivered: LruCache<(Arc<str>, TopicIdentity, i32), i64>,
    committed: LruCache<(Arc<str>, TopicIdentity, i32), i64>,
}

impl Default for History {
    fn default() -> Self {
        let sent = SentBefore { hashes: RandomState::new(), batches: Recent::new(MAX_SENT), since_named: usize::MAX };
        Self { sent, delivered: LruCache::new(MAX_POSITIONS), committed: LruCache::new(MAX_POSITIONS) }
    }
}

impl History {
    /// A batch was sent at a time, with this end. True when it was a retry: the same sequence again, or the same bytes after a
    /// failure (equal bytes without one are two messages that are equal). Ends may be told in another order than the batches
    /// were sent in.
    pub(super) fn sent(&mut self, topic: &KnownTopic, partition: i32, header: &BatchHeader, attempt: Attempt, at: Timestamp) -> bool {
        if topic.now.is_long() {
            return false;
        }
        let batch = SameBatch::of(header);
        let place = self.sent.place(&topic.now, partition);
        let last = self.sent.find(topic, partition, place, batch);
        let first_sent = last.map_or(at, |last| last.first_sent.min(at));
        self.sent.put(&topic.now, LastAttempt { place, batch, attempt, first_sent });
        let numbered = matches!(batch, SameBatch::Sequence { .. });
        last.is_some_and(|last| at > last.first_sent && (numbered || last.attempt == Attempt::Failed))
    }

    /// Offsets up to `last` are delivered to a group. True when it was given all of them before.
    pub(super) fn delivering(&mut self, group: &Arc<str>, topic: &KnownTopic, partition: i32, last: i64) -> bool {
        if group.len() > MAX_REMEMBERED_BYTES || topic.now.is_long() {
            return false;
        }
        let (key, highest) = topic.entry(&mut self.delivered, |topic| (Arc::clone(group), topic, partition));
        let Some(highest) = highest else {
            self.delivered.insert(key, last.max(-1));
            return last <= -1;
        };
        let again = last <= *highest;
        *highest = last.max(*highest);
        again
    }

    /// A group commits. False when it had committed this very offset already.
    pub(super) fn committing(&mut self, group: &Arc<str>, topic: &KnownTopic, partition: i32, offset: i64) -> bool {
        if group.len() > MAX_REMEMBERED_BYTES || topic.now.is_long() {
            return true;
        }
        let (key, committed) = topic.entry(&mut self.committed, |topic| (Arc::clone(group), topic, partition));
        let moves = committed.is_none_or(|committed| *committed != offset);
        self.committed.insert(key, offset);
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Codec;

    fn header(producer_id: i64, base_sequence: i32, crc: u32) -> BatchHeader {
        BatchHeader {
            magic: 2,
            base_offset: 0,
            last_offset_delta: 0,
            base_timestamp_ms: Some(1),
            max_timestamp_ms: Some(1),
            record_count: 1,
            producer_id,
            producer_epoch: 0,
            base_sequence,
            size_bytes: 70,
            crc,
            codec: Codec::None,
            log_append_time: false,
            transactional: false,
            control: false,
            delete_horizon: false,
        }
    }

    fn named(cluster_id: Option<&str>) -> TopicIdentity {
        TopicIdentity::Name(cluster_id.map(Arc::from), Some(Arc::from("t")))
    }

    fn topic() -> KnownTopic {
        KnownTopic::only(named(Some("A")))
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_unix_ns(ms * 1_000_000)
    }

    #[test]
    fn a_sequence_that_comes_again_is_a_retry_whatever_became_of_it() {
        let mut history = History::default();
        assert!(!history.sent(&topic(), 0, &header(7, 5, 1), Attempt::Done, at(1)));
        assert!(history.sent(&topic(), 0, &header(7, 5, 1), Attempt::Done, at(2)));
        assert!(!history.sent(&topic(), 0, &header(7, 6, 1), Attempt::Done, at(3)));
        assert!(!history.sent(&topic(), 1, &header(7, 5, 1), Attempt::Done, at(4)));
    }

    #[test]
    fn the_first_attempt_is_no_retry_though_its_end_is_told_last() {
        let mut history = History::default();
        assert!(!history.sent(&topic(), 0, &header(7, 5, 1), Attempt::Done, at(2)));
        assert!(!history.sent(&topic(), 0, &header(7, 5, 1), Attempt::Failed, at(1)));
        assert!(history.sent(&topic(), 0, &header(7, 5, 1), Attempt::Done, at(3)));
    }

    #[test]
    fn producer_ids_of_another_cluster_are_another_producers() {
        let mut history = History::default();
        let other = KnownTopic::only(named(Some("B")));
        assert!(!history.sent(&topic(), 0, &header(7, 5, 1), Attempt::Done, at(1)));
        assert!(!history.sent(&other, 0, &header(7, 5, 1), Attempt::Done, at(2)));
    }

    #[test]
    fn equal_bytes_without_a_number_are_a_retry_only_after_a_failure() {
        let mut history = History::default();
        assert!(!history.sent(&topic(), 0, &header(-1, -1, 9), Attempt::Done, at(1)));
        assert!(!history.sent(&topic(), 0, &header(-1, -1, 9), Attempt::Failed, at(2)));
        assert!(history.sent(&topic(), 0, &header(-1, -1, 9), Attempt::Done, at(3)));
        assert!(!history.sent(&topic(), 0, &header(-1, -1, 9), Attempt::Done, at(4)));
    }

    #[test]
    fn offsets_given_before_are_a_redelivery_and_equal_commits_move_nothing() {
        let mut history = History::default();
        let group = Arc::from("g");
        assert!(!history.delivering(&group, &topic(), 0, 9));
        assert!(history.delivering(&group, &topic(), 0, 4));
        assert!(history.delivering(&group, &topic(), 0, 9));
        assert!(!history.delivering(&group, &topic(), 0, 10));
        assert!(history.committing(&group, &topic(), 0, 10));
        assert!(!history.committing(&group, &topic(), 0, 10));
        assert!(history.committing(&group, &topic(), 0, 4));
    }

    #[test]
    fn a_topic_whose_id_is_told_late_keeps_its_history() {
        let mut history = History::default();
        let group = Arc::from("g");
        let id = TopicIdentity::Id(TopicId::new([7; 16]).unwrap());
        let told = KnownTopic { now: id, before: [Some(named(Some("A"))), Some(named(None))] };
        let nameless = KnownTopic::only(named(None));
        assert!(!history.delivering(&group, &nameless, 0, 9));
        assert!(history.committing(&group, &nameless, 0, 10));
        assert!(!history.sent(&nameless, 0, &header(7, 5, 1), Attempt::Failed, at(1)));
        assert!(history.delivering(&group, &told, 0, 9));
        assert!(!history.committing(&group, &told, 0, 10));
        assert!(history.sent(&told, 0, &header(7, 5, 1), Attempt::Done, at(2)));
        // What is made anew under that name begins anew.
        let other = TopicIdentity::Id(TopicId::new([8; 16]).unwrap());
        let other = KnownTopic { now: other, ..told };
        assert!(!history.delivering(&group, &other, 0, 9));
        assert!(history.committing(&group, &other, 0, 10));
    }
}
