//! What is remembered to join with later: sent batches for the fetch, fetched spans for the commit. Bounded.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashlink::LruCache;
use opentelemetry::trace::SpanContext;
use opentelemetry::{SpanId, TraceId};

use crate::observe::{BatchHeader, Operation, Side, Topic, TopicId};
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
    cluster_id: Option<Arc<str>>,
    topic_id: Option<TopicId>,
    /// Two different batches look like this: nothing can be joined with it.
    ambiguous: bool,
}

impl SeenSend {
    pub(super) fn new(operation: &Operation, topic: &Topic, ids: (TraceId, SpanId), has_batch_span: bool, computed: bool) -> Self {
        Self {
            sent_at: operation.request_first,
            ids,
            has_batch_span,
            computed,
            cluster_id: operation.cluster_id.clone(),
            topic_id: topic.id,
            ambiguous: false,
        }
    }

    /// A topic that was created anew under the same name is another topic, and so is its mirror in another cluster.
    fn same_topic(&self, operation: &Operation, topic: &Topic) -> bool {
        let clusters = (&self.cluster_id, &operation.cluster_id);
        !matches!((self.topic_id, topic.id), (Some(one), Some(other)) if one != other)
            && !matches!(clusters, (Some(one), Some(other)) if one != other)
    }
}

/// Sent batches: those whose offset is known, and those whose answer is not.
#[derive(Debug)]
pub(super) struct SentBatches {
    stored: LruCache<(Fingerprint, i64), SeenSend>,
    unacknowledged: LruCache<Fingerprint, SeenSend>,
}

impl SentBatches {
    pub(super) fn new(max: usize) -> Self {
        Self { stored: LruCache::new(max.max(1)), unacknowledged: LruCache::new(max.max(1)) }
    }

    /// The first answered attempt of this batch, if there was one before.
    pub(super) fn stored(&self, print: &Fingerprint, base_offset: i64, operation: &Operation, topic: &Topic) -> Option<&SeenSend> {
        // `peek`: the order stays that of insertion, which is that of time.
        self.stored.peek(&(print.clone(), base_offset)).filter(|seen| seen.same_topic(operation, topic))
    }

    pub(super) fn insert_stored(&mut self, print: Fingerprint, base_offset: i64, seen: SeenSend) {
        self.stored.insert((print, base_offset), seen);
    }

    /// Remembers a batch that may have been stored without our knowing where.
    pub(super) fn insert_unacknowledged(&mut self, print: Fingerprint, mut seen: SeenSend, retry: bool) {
        // Another attempt of the same batch takes its place; another batch that looks the same makes both useless.
        seen.ambiguous = self.unacknowledged.peek(&print).is_some_and(|before| !retry || before.ambiguous);
        self.unacknowledged.insert(print, seen);
    }

    /// What a fetched batch was when it was sent, if that was seen here.
    pub(super) fn find(&self, print: &Fingerprint, base_offset: i64, operation: &Operation, topic: &Topic) -> Option<&SeenSend> {
        let fetched_at = operation.response.map_or(operation.request_last, |(_, last)| last);
        self.stored(print, base_offset, operation, topic)
            .or_else(|| self.unacknowledged.peek(print).filter(|seen| !seen.ambiguous && seen.same_topic(operation, topic)))
            .filter(|seen| seen.sent_at <= fetched_at)
    }

    /// Forgets what was sent more than `age` ago.
    pub(super) fn forget(&mut self, now: Timestamp, age: Duration) {
        while self.stored.iter().next().is_some_and(|(_, seen)| now.since(seen.sent_at) > age) {
            self.stored.remove_lru();
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
    pub(super) first_offset: i64,
    pub(super) last_offset: i64,
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

    /// The latest fetch of the batch that holds an offset.
    pub(super) fn find(&self, key: &(Reader, TopicKey, i32), offset: i64) -> Option<&FetchedSpans> {
        let batches = self.partitions.peek(key)?;
        batches.iter().rev().find(|spans| (spans.first_offset..=spans.last_offset).contains(&offset))
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
