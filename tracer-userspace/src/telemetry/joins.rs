//! What is remembered to join with later: sent batches for the fetch, fetched spans for the commit. Bounded.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashlink::{DefaultHashBuilder, LruCache};
use opentelemetry::trace::SpanContext;
use opentelemetry::{SpanId, TraceId};

use crate::observe::{BatchHeader, Operation, SentBatch, Side, Topic, TopicId};
use crate::recent::Recent;
use crate::time::Timestamp;

/// A topic by its name, or by its id as long as it has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum TopicKey {
    Name(Arc<str>),
    Id(TopicId),
}

impl TopicKey {
    /// `None` when nothing is known of it.
    pub(super) fn of(topic: &Topic) -> Option<Self> {
        match (&topic.name, topic.id) {
            (Some(name), _) => Some(Self::Name(Arc::clone(name))),
            (None, Some(id)) => Some(Self::Id(id)),
            (None, None) => None,
        }
    }
}

/// What a batch looks like at both ends of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint {
    topic: TopicKey,
    partition: i32,
    base_timestamp_ms: i64,
    record_count: i32,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl Fingerprint {
    pub(super) fn of(topic: TopicKey, partition: i32, header: &BatchHeader) -> Self {
        Self {
            topic,
            partition,
            base_timestamp_ms: header.base_timestamp_ms.unwrap_or(-1),
            record_count: header.record_count,
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
        }
    }

    /// At one place of one topic: the same batch, whose base timestamp the broker may have chosen anew.
    fn same_but_for_time(&self, other: &Self) -> bool {
        *self == Self { topic: self.topic.clone(), base_timestamp_ms: self.base_timestamp_ms, ..other.clone() }
    }
}

/// A batch that was sent before our eyes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SeenSend {
    /// First byte of the request.
    pub(super) sent_at: Timestamp,
    /// Ids of its batch span. In scope `record` those of the batch, from which its records' are derived.
    pub(super) ids: (TraceId, SpanId),
    /// Its batch span stands for at least one record.
    pub(super) has_batch_span: bool,
    /// Its ids are the computed ones.
    pub(super) computed: bool,
    /// As the producer wrote it.
    pub(super) base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    topic: TopicInstance,
    /// Two different batches look like this: nothing can be joined with it.
    ambiguous: bool,
}

impl SeenSend {
    pub(super) fn new(sent: &SentBatch, ids: (TraceId, SpanId), has_batch_span: bool, computed: bool) -> Self {
        let (operation, topic) = (&*sent.operation, &sent.topic);
        Self {
            sent_at: operation.request_first,
            base_timestamp_ms: sent.header.base_timestamp_ms.unwrap_or(-1),
            max_timestamp_ms: sent.header.max_timestamp_ms.unwrap_or(-1),
            ids,
            has_batch_span,
            computed,
            topic: TopicInstance::of(operation, topic),
            ambiguous: false,
        }
    }
}

impl SeenSend {
    /// A broker that writes the batch anew begins with the first record's timestamp where the producer wrote the smallest one.
    /// It keeps the largest, unless it stamps the records itself.
    fn has_times_of(&self, stored: &BatchHeader) -> bool {
        let (Some(base_ms), Some(max_ms)) = (stored.base_timestamp_ms, stored.max_timestamp_ms) else { return false };
        (self.base_timestamp_ms..=self.max_timestamp_ms).contains(&base_ms) && (stored.log_append_time || max_ms == self.max_timestamp_ms)
    }
}

/// What tells topics of one name apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TopicInstance {
    cluster_id: Option<Arc<str>>,
    topic_id: Option<TopicId>,
}

impl TopicInstance {
    pub(super) fn of(operation: &Operation, topic: &Topic) -> Self {
        Self { cluster_id: operation.cluster_id.clone(), topic_id: topic.id }
    }

    /// A topic that was created anew under the same name is another topic, and so is its mirror in another cluster.
    fn may_be(&self, other: &Self) -> bool {
        !matches!((self.topic_id, other.topic_id), (Some(one), Some(other)) if one != other)
            && !matches!((&self.cluster_id, &other.cluster_id), (Some(one), Some(other)) if one != other)
    }
}

/// A batch whose place in the log is known.
#[derive(Debug)]
struct Stored {
    print: Fingerprint,
    base_offset: i64,
    seen: SeenSend,
}

impl Stored {
    fn is_at(&self, topic: &TopicKey, partition: i32, base_offset: i64) -> bool {
        self.base_offset == base_offset && self.print.partition == partition && self.print.topic == *topic
    }

    fn looks_like(&self, print: &Fingerprint, base_offset: i64) -> bool {
        self.base_offset == base_offset && self.print == *print
    }
}

/// What an answered batch is to the one that was remembered with its looks and at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// There is none, or it is of another cluster.
    Nothing,
    /// Another attempt of the same batch, answered before.
    SameBatch,
    /// A batch of a topic of the same cluster and name that is no more. The computed ids are that one's.
    OldTopic,
}

/// Sent batches: those whose offset is known, and those whose answer is not. Each sent batch comes here, and few are ever looked for.
#[derive(Debug)]
pub(super) struct SentBatches {
    hashes: DefaultHashBuilder,
    /// By topic, partition and offset; not by fingerprint: a broker that compresses anew may change the base timestamp.
    stored: Recent<Stored>,
    unacknowledged: LruCache<Fingerprint, SeenSend>,
}

impl SentBatches {
    pub(super) fn new(max: usize) -> Self {
        Self { hashes: DefaultHashBuilder::default(), stored: Recent::new(max), unacknowledged: LruCache::new(max.max(1)) }
    }

    fn place(&self, topic: &TopicKey, partition: i32, base_offset: i64) -> u64 {
        self.hashes.hash_one((topic, partition, base_offset))
    }

    fn with_print(&self, print: &Fingerprint, base_offset: i64) -> Option<&SeenSend> {
        let place = self.place(&print.topic, print.partition, base_offset);
        self.stored.latest(place, |stored| stored.looks_like(print, base_offset)).map(|stored| &stored.seen)
    }

    /// What was remembered of such a batch before.
    pub(super) fn before(&self, print: &Fingerprint, base_offset: i64, operation: &Operation, topic: &Topic) -> Before {
        let instance = TopicInstance::of(operation, topic);
        match self.with_print(print, base_offset) {
            Some(seen) if seen.topic.may_be(&instance) => Before::SameBatch,
            Some(seen) if seen.topic.cluster_id == operation.cluster_id => Before::OldTopic,
            Some(_) | None => Before::Nothing,
        }
    }

    pub(super) fn insert_stored(&mut self, print: Fingerprint, base_offset: i64, seen: SeenSend) {
        let place = self.place(&print.topic, print.partition, base_offset);
        let stored = Stored { print, base_offset, seen };
        self.stored.put(place, stored, |known, stored| known.looks_like(&stored.print, base_offset));
    }

    /// Remembers a batch that may have been stored without our knowing where.
    pub(super) fn insert_unacknowledged(&mut self, print: Fingerprint, mut seen: SeenSend, retry: bool) {
        // Another attempt of the same batch takes its place; another batch that looks the same makes both useless.
        // `peek`: the order stays that of insertion, which is that of time.
        seen.ambiguous = self.unacknowledged.peek(&print).is_some_and(|before| !retry || before.ambiguous);
        self.unacknowledged.insert(print, seen);
    }

    /// What a fetched batch was when it was sent, if that was seen here.
    pub(super) fn find(&self, print: &Fingerprint, header: &BatchHeader, operation: &Operation, topic: &Topic) -> Option<&SeenSend> {
        let base_offset = header.base_offset;
        let fetched_at = operation.response.map_or(operation.request_last, |(_, last)| last);
        let instance = TopicInstance::of(operation, topic);
        self.with_print(print, base_offset)
            .filter(|seen| seen.topic.may_be(&instance))
            .or_else(|| {
                let place = self.place(&print.topic, print.partition, base_offset);
                let sent = self.stored.latest(place, |stored| stored.is_at(&print.topic, print.partition, base_offset))?;
                let same = sent.print.same_but_for_time(print) && sent.seen.topic.may_be(&instance) && sent.seen.has_times_of(header);
                same.then_some(&sent.seen)
            })
            .or_else(|| self.unacknowledged.peek(print).filter(|seen| !seen.ambiguous && seen.topic.may_be(&instance)))
            .filter(|seen| seen.sent_at <= fetched_at)
    }

    /// Forgets what was sent more than `age` ago.
    pub(super) fn forget(&mut self, now: Timestamp, age: Duration) {
        while self.stored.oldest().is_some_and(|stored| now.since(stored.seen.sent_at) > age) {
            self.stored.forget_oldest();
        }
        while self.unacknowledged.iter().next().is_some_and(|(_, seen)| now.since(seen.sent_at) > age) {
            self.unacknowledged.remove_lru();
        }
    }
}

/// Who fetches: a group where it is known, else the client. What was seen at the broker's end is kept apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reader {
    Group(Side, Arc<str>),
    Client(Side, IpAddr, Option<Arc<str>>),
}

impl Reader {
    pub(super) fn of(group: Option<&Arc<str>>, operation: &Operation) -> Self {
        match group {
            Some(group) => Self::Group(operation.connection.side, Arc::clone(group)),
            None => Self::client(operation),
        }
    }

    pub(super) fn client(operation: &Operation) -> Self {
        Self::Client(operation.connection.side, operation.connection.client.ip(), operation.client_id.clone())
    }
}

/// What became of a fetched batch's span.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum BatchSpan {
    Made(SpanContext),
    /// The sampler left it out.
    SampledOut,
    /// There is none: all records have their own, or the ceiling was reached.
    None,
}

/// The spans of one fetched batch.
#[derive(Clone, Debug)]
pub(super) struct FetchedSpans {
    pub(super) topic: TopicInstance,
    pub(super) first_offset: i64,
    pub(super) last_offset: i64,
    /// The reader has got past this offset with nothing handed on since: markers, and aborted records.
    pub(super) read_to: i64,
    pub(super) fetched_at: Timestamp,
    pub(super) batch: BatchSpan,
    /// Records with a span of their own, by offset; those that were not kept without one.
    pub(super) records: Box<[(i64, Option<SpanContext>)]>,
}

impl FetchedSpans {
    fn weight(&self) -> usize {
        1 + self.records.len()
    }
}

/// Fetched batches of each reader and partition.
#[derive(Debug)]
pub(super) struct Fetches {
    max: usize,
    total: usize,
    partitions: LruCache<(Reader, TopicKey, i32), VecDeque<FetchedSpans>>,
}

/// How many batches of one partition are remembered.
const MAX_PER_PARTITION: usize = 64;

impl Fetches {
    pub(super) fn new(max: usize) -> Self {
        Self { max, total: 0, partitions: LruCache::new_unbounded() }
    }

    pub(super) fn insert(&mut self, key: (Reader, TopicKey, i32), spans: FetchedSpans) {
        let weight = spans.weight();
        if weight > self.max {
            return;
        }
        self.total += weight;
        let batches = self.partitions.entry(key).or_insert_with(VecDeque::new);
        batches.push_back(spans);
        if batches.len() > MAX_PER_PARTITION {
            self.total -= batches.pop_front().map_or(0, |spans| spans.weight());
        }
        while self.total > self.max {
            let Some((_, batches)) = self.partitions.remove_lru() else { return };
            self.total -= batches.iter().map(FetchedSpans::weight).sum::<usize>();
        }
    }

    /// What follows the batch that was fetched last is read, and none of it is handed to the application.
    pub(super) fn read_past(&mut self, key: &(Reader, TopicKey, i32), (first_offset, last_offset): (i64, i64)) {
        let last = self.partitions.peek_mut(key).and_then(VecDeque::back_mut);
        if let Some(spans) = last.filter(|spans| spans.read_to.checked_add(1) == Some(first_offset)) {
            spans.read_to = last_offset;
        }
    }

    /// The latest fetch of the batch that holds an offset, or is the last one handed on before it.
    pub(super) fn find(&self, key: &(Reader, TopicKey, i32), topic: &TopicInstance, offset: i64) -> Option<&FetchedSpans> {
        let batches = self.partitions.peek(key)?;
        batches.iter().rev().find(|spans| (spans.first_offset..=spans.read_to).contains(&offset) && spans.topic.may_be(topic))
    }

    /// Forgets partitions of which nothing was fetched for `age`.
    pub(super) fn forget(&mut self, now: Timestamp, age: Duration) {
        while self.partitions.iter().next().is_some_and(|(_, batches)| batches.back().is_none_or(|spans| now.since(spans.fetched_at) > age))
        {
            let Some((_, batches)) = self.partitions.remove_lru() else { return };
            self.total -= batches.iter().map(FetchedSpans::weight).sum::<usize>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fixtures::{fetched, sent, topic};

    fn batch(base_offset: i64, topic_id: u8) -> (Fingerprint, SeenSend, BatchHeader, Topic) {
        let mut batch = sent(1, Vec::new());
        batch.topic = Topic { id: TopicId::new([topic_id; 16]), ..topic() };
        batch.header.base_sequence = i32::try_from(base_offset).unwrap();
        let print = Fingerprint::of(TopicKey::of(&batch.topic).unwrap(), batch.partition, &batch.header);
        let seen = SeenSend::new(&batch, (TraceId::INVALID, SpanId::INVALID), true, true);
        (print, seen, BatchHeader { base_offset, ..batch.header }, batch.topic)
    }

    #[test]
    fn the_latest_sends_are_found_and_older_ones_are_forgotten() {
        let operation = fetched(1, Vec::new()).operation;
        let mut table = SentBatches::new(4);
        for offset in 0..100 {
            let (print, seen, _, _) = batch(offset, 7);
            table.insert_stored(print, offset, seen);
        }
        for offset in 0..100 {
            let (print, _, header, topic) = batch(offset, 7);
            assert_eq!(table.find(&print, &header, &operation, &topic).is_some(), offset >= 96, "{offset}");
            // Compressed anew, by a broker that takes the first record's timestamp for the base.
            let anew = BatchHeader { base_timestamp_ms: header.base_timestamp_ms.map(|ms| ms + 1), ..header };
            let print = Fingerprint::of(TopicKey::of(&topic).unwrap(), 3, &anew);
            assert_eq!(table.find(&print, &anew, &operation, &topic).is_some(), offset >= 96, "{offset}");
        }
    }

    #[test]
    fn a_batch_of_a_topic_made_anew_takes_the_place_of_the_old_ones() {
        let operation = fetched(1, Vec::new()).operation;
        let mut table = SentBatches::new(4);
        for (offset, topic_id) in [(0, 7), (0, 8), (1, 8), (2, 8), (3, 8)] {
            let (print, seen, _, _) = batch(offset, topic_id);
            table.insert_stored(print, offset, seen);
        }
        // The first is forgotten by now; its table entries had become the second's.
        let (print, _, header, topic) = batch(0, 8);
        assert!(table.find(&print, &header, &operation, &topic).is_some());
        let (print, _, header, topic) = batch(0, 7);
        assert!(table.find(&print, &header, &operation, &topic).is_none());
        assert_eq!(table.before(&print, 0, &operation, &topic), Before::OldTopic);
        table.forget(crate::telemetry::fixtures::at(60_000), Duration::from_secs(1));
        assert!(table.stored.oldest().is_none());
    }
}
