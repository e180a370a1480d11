//! How far groups are behind: what they committed, against the newest end of the partition that was seen here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashlink::LruCache;
use opentelemetry::metrics::Meter;
use opentelemetry::{KeyValue, StringValue};

use crate::observe::{Commit, Operation, Topic, TopicId};
use crate::telemetry::joins::TopicKey;
use crate::telemetry::semconv::{self, metric};
use crate::time::Timestamp;

/// A watermark older than this says nothing of the lag now.
const MAX_AGE: Duration = Duration::from_mins(1);
/// Partitions whose end is remembered.
const MAX_PARTITIONS: usize = 65_536;

/// A service, by the order of its coming.
pub(super) type ServiceId = u64;

type Partition = (Option<Arc<str>>, TopicKey, i32);

#[derive(Clone, Debug)]
struct Watermark {
    offset: i64,
    seen_at: Timestamp,
    topic_id: Option<TopicId>,
}

/// What a group committed on a partition, and through which service last.
#[derive(Clone, Debug)]
struct Committed {
    service: ServiceId,
    offset: i64,
    attributes: Arc<[KeyValue]>,
}

#[derive(Debug)]
struct Table {
    now: Timestamp,
    watermarks: LruCache<Partition, Watermark>,
    committed: LruCache<(Arc<str>, Partition), Committed>,
    max_committed: usize,
    dropped: u64,
}

/// Shared by the line, which writes, and the meters' readers.
#[derive(Clone, Debug)]
pub(super) struct Lag(Arc<Mutex<Table>>);

impl Lag {
    /// Remembers so many groups' partitions.
    pub(super) fn new(max_committed: usize) -> Self {
        Self(Arc::new(Mutex::new(Table {
            now: Timestamp::ZERO,
            watermarks: LruCache::new(MAX_PARTITIONS),
            committed: LruCache::new_unbounded(),
            max_committed,
            dropped: 0,
        })))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits that are not shown because there are more groups' partitions than are kept.
    pub(super) fn dropped(&self) -> u64 {
        self.table().dropped
    }

    /// The time is `now`.
    pub(super) fn tick(&self, now: Timestamp) {
        let mut table = self.table();
        table.now = table.now.max(now);
    }

    /// A partition reaches to `offset`, the offset that its next record will have.
    pub(super) fn reaches(&self, operation: &Operation, topic: &Topic, partition: i32, offset: i64, seen_at: Timestamp) {
        let Some(key) = TopicKey::of(topic).map(|key| (operation.cluster_id.clone(), key, partition)) else { return };
        let mut table = self.table();
        table.now = table.now.max(seen_at);
        match table.watermarks.get_mut(&key) {
            // A follower may know less than the leader did. A topic made anew begins anew.
            Some(known) if !matches!((known.topic_id, topic.id), (Some(one), Some(other)) if one != other) => {
                known.offset = known.offset.max(offset);
                known.seen_at = known.seen_at.max(seen_at);
                known.topic_id = known.topic_id.or(topic.id);
            }
            _ => {
                table.watermarks.insert(key, Watermark { offset, seen_at, topic_id: topic.id });
            }
        }
    }

    /// A group has committed.
    pub(super) fn committed(&self, service: ServiceId, commit: &Commit, at: Timestamp) {
        let Some(topic) = TopicKey::of(&commit.topic) else { return };
        let key = (Arc::clone(&commit.group), (commit.operation.cluster_id.clone(), topic, commit.partition));
        let mut table = self.table();
        table.now = table.now.max(at);
        if let Some(known) = table.committed.get_mut(&key) {
            (known.service, known.offset) = (service, commit.offset);
            return;
        }
        if table.committed.len() >= table.max_committed {
            table.dropped += 1;
            return;
        }
        let topic = match &key.1.1 {
            TopicKey::Name(name) => KeyValue::new(semconv::TOPIC, StringValue::from(Arc::clone(name))),
            TopicKey::Id(id) => KeyValue::new(semconv::TOPIC_ID, id.to_string()),
        };
        let group = KeyValue::new(semconv::GROUP, StringValue::from(Arc::clone(&commit.group)));
        let attributes = [group, topic, KeyValue::new(semconv::PARTITION, i64::from(commit.partition))].into();
        table.committed.insert(key, Committed { service, offset: commit.offset, attributes });
    }

    /// The service is forgotten, and with it what it committed last.
    pub(super) fn forget(&self, service: ServiceId) {
        self.table().committed.retain(|_, committed| committed.service != service);
    }

    /// Shows what was committed through a service in its meter.
    pub(super) fn show(&self, service: ServiceId, meter: &Meter) {
        let rows = self.clone();
        let (unit, meaning) = metric::described(metric::GROUP_OFFSET);
        let offsets = meter.i64_observable_gauge(metric::GROUP_OFFSET).with_unit(unit).with_description(meaning);
        // The SDK keeps the callbacks; the handles are of no more use.
        let _ = offsets.with_callback(move |observer| rows.each(service, |row, _| observer.observe(row.offset, &row.attributes))).build();
        let rows = self.clone();
        let (unit, meaning) = metric::described(metric::GROUP_LAG);
        let lags = meter.i64_observable_gauge(metric::GROUP_LAG).with_unit(unit).with_description(meaning);
        let show = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<i64>| {
            rows.each(service, |row, end| {
                if let Some(end) = end {
                    observer.observe((end - row.offset).max(0), &row.attributes);
                }
            });
        };
        let _ = lags.with_callback(show).build();
    }

    /// Hands over what was committed through a service, with the partition's end where that is known and fresh.
    fn each(&self, service: ServiceId, mut row: impl FnMut(&Committed, Option<i64>)) {
        let table = self.table();
        for ((_, partition), committed) in table.committed.iter().filter(|(_, committed)| committed.service == service) {
            let end = table.watermarks.peek(partition).filter(|watermark| table.now.since(watermark.seen_at) <= MAX_AGE);
            row(committed, end.map(|watermark| watermark.offset));
        }
    }
}
