//! Where partitions begin and end, what groups committed, and how far consumers have read: the newest of what was seen here.
//!
//! In: commits, answers of Fetch and Produce. Out: observable gauges in the meter of the service that each is of.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashlink::LruCache;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use opentelemetry::{KeyValue, StringValue};

use crate::observe::{Commit, Operation, Poll, Told, Topic, TopicId};
use crate::telemetry::joins::TopicKey;
use crate::telemetry::semconv::{self, metric};
use crate::time::Timestamp;

/// What a broker said longer ago says nothing of now.
const MAX_AGE: Duration = Duration::from_mins(1);
/// A partition without a record for this long is no longer told of.
const MAX_SILENCE: Duration = Duration::from_hours(1);
/// Partitions whose ends are remembered.
const MAX_PARTITIONS: usize = 65_536;
/// `read_committed` (`IsolationLevel`).
const READ_COMMITTED: i8 = 1;

/// A service, by the order of its coming.
pub(super) type ServiceId = u64;

type Partition = (Option<Arc<str>>, TopicKey, i32);

/// An offset, and when it was seen last.
#[derive(Clone, Copy, Debug)]
struct Mark {
    offset: i64,
    seen_at: Timestamp,
}

impl Mark {
    /// Offsets of a partition only grow, whatever a follower that knows less says.
    fn raise(mark: &mut Option<Self>, offset: Option<i64>, seen_at: Timestamp) {
        let Some(offset) = offset else { return };
        let known = mark.get_or_insert(Self { offset, seen_at });
        known.offset = known.offset.max(offset);
        known.seen_at = known.seen_at.max(seen_at);
    }

    fn fresh(self, now: Timestamp) -> Option<i64> {
        (now.since(self.seen_at) <= MAX_AGE).then_some(self.offset)
    }
}

/// What is known of a partition.
#[derive(Debug, Default)]
struct Known {
    topic_id: Option<TopicId>,
    end: Option<Mark>,
    stable: Option<Mark>,
    oldest: Option<Mark>,
    last_record_at: Option<Timestamp>,
    /// The service that shows it, and when that was told of it last: another takes over once it is no longer told.
    shown_by: Option<(ServiceId, Timestamp)>,
}

/// What a group committed on a partition.
#[derive(Debug)]
struct Committed {
    offset: i64,
    at: Timestamp,
    attributes: Arc<[KeyValue]>,
}

/// How far a consumer has read a partition.
#[derive(Debug)]
struct Reading {
    connection: u64,
    position: Option<i64>,
    read_committed: bool,
    at: Timestamp,
    attributes: Arc<[KeyValue]>,
}

/// Values to show, with their attributes.
type Values<V> = Vec<(V, Arc<[KeyValue]>)>;

type GroupPartition = (Arc<str>, Partition);
type Reader = (Option<Arc<str>>, Partition);

/// What one service shows.
#[derive(Debug, Default)]
struct Shown {
    committed: HashMap<GroupPartition, Committed>,
    readings: HashMap<Reader, Reading>,
    partitions: HashMap<Partition, Arc<[KeyValue]>>,
}

#[derive(Debug)]
struct Table {
    now: Timestamp,
    partitions: LruCache<Partition, Known>,
    services: HashMap<ServiceId, Shown>,
    /// Through which service a group committed last.
    committers: HashMap<GroupPartition, ServiceId>,
    /// Which partitions are read on a connection.
    readers: HashMap<u64, HashSet<(ServiceId, Reader)>>,
    readings: usize,
    /// Most rows of commits, and of readings.
    max_rows: usize,
    /// Most rows of a kind in one service: a gauge has no overflow that would mean anything.
    max_shown: usize,
    dropped: u64,
}

/// Shared by the line, which writes, and the meters' readers.
#[derive(Clone, Debug)]
pub(super) struct Positions(Arc<Mutex<Table>>);

/// A partition that an answer speaks of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) operation: &'a Operation,
    pub(super) topic: &'a Topic,
    pub(super) partition: i32,
}

impl Place<'_> {
    fn key(&self) -> Option<Partition> {
        TopicKey::of(self.topic).map(|topic| (self.operation.cluster_id.clone(), topic, self.partition))
    }
}

impl Positions {
    /// Remembers so many commits and so many readings, and shows so many of each in one service.
    pub(super) fn new(max_rows: usize, max_shown: usize) -> Self {
        Self(Arc::new(Mutex::new(Table {
            now: Timestamp::ZERO,
            partitions: LruCache::new(MAX_PARTITIONS),
            services: HashMap::new(),
            committers: HashMap::new(),
            readers: HashMap::new(),
            readings: 0,
            max_rows,
            max_shown,
            dropped: 0,
        })))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Times that a commit, a reading or a partition was not shown because there are more than are kept.
    pub(super) fn dropped(&self) -> u64 {
        self.table().dropped
    }

    /// The time is `now`.
    pub(super) fn tick(&self, now: Timestamp) {
        let mut table = self.table();
        table.now = table.now.max(now);
    }

    /// A partition begins and ends so, as a service was told (`None`: its broker's side was seen). `has_records`: by an answer to records.
    pub(super) fn told(&self, service: Option<ServiceId>, place: &Place<'_>, told: Told, has_records: bool, at: Timestamp) {
        if let Some(key) = place.key() {
            self.table().told((service, &key), place.topic.id, told, has_records, at);
        }
    }

    /// A consumer has read so far.
    pub(super) fn polled(&self, service: ServiceId, poll: &Poll, at: Timestamp) {
        let mut table = self.table();
        let operation = &*poll.operation;
        let read_committed = poll.isolation_level == Some(READ_COMMITTED);
        for polled in &poll.partitions {
            let place = Place { operation, topic: &polled.topic, partition: polled.partition };
            let Some(key) = place.key() else { continue };
            table.told((Some(service), &key), polled.topic.id, polled.told, false, at);
            // A topic without a name will have one in a moment.
            if !poll.several_groups && polled.topic.name.is_some() {
                let reader = (poll.group.clone(), key);
                table.read(service, reader, (operation.connection.id, polled.position, read_committed), at);
            }
        }
        for (topic, partition) in &poll.left {
            if let Some(key) = (Place { operation, topic, partition: *partition }).key() {
                table.unread(service, &(poll.group.clone(), key));
            }
        }
    }

    /// A connection ended: nobody reads on it.
    pub(super) fn closed(&self, connection: u64) {
        let mut table = self.table();
        for (service, reader) in table.readers.remove(&connection).unwrap_or_default() {
            table.forget_reading(service, &reader);
        }
    }

    /// A group divides its partitions anew: what a service's members still read they fetch again in a moment.
    pub(super) fn rebalanced(&self, service: ServiceId, group: &str) {
        let mut table = self.table();
        let Some(shown) = table.services.get(&service) else { return };
        let readers: Vec<_> = shown.readings.keys().filter(|(of, _)| of.as_deref() == Some(group)).cloned().collect();
        for reader in readers {
            table.unread(service, &reader);
        }
    }

    /// A group has committed.
    pub(super) fn committed(&self, service: ServiceId, commit: &Commit, at: Timestamp) {
        let place = Place { operation: &commit.operation, topic: &commit.topic, partition: commit.partition };
        let Some(partition) = place.key() else { return };
        let key = (Arc::clone(&commit.group), partition);
        let mut table = self.table();
        table.now = table.now.max(at);
        let known = table.committers.get(&key).copied().and_then(|of| table.services.get_mut(&of)?.committed.remove(&key));
        let is_full = known.is_none() && table.committers.len() >= table.max_rows;
        let max_shown = table.max_shown;
        let shown = table.services.entry(service).or_default();
        if is_full || shown.committed.len() >= max_shown {
            table.committers.remove(&key);
            table.dropped += 1;
            return;
        }
        let attributes = known.map_or_else(|| attributes(Some(&commit.group), &key.1), |known| known.attributes);
        shown.committed.insert(key.clone(), Committed { offset: commit.offset, at, attributes });
        table.committers.insert(key, service);
    }

    /// The service is forgotten, and with it what it shows.
    pub(super) fn forget(&self, service: ServiceId) {
        let mut table = self.table();
        let Some(shown) = table.services.remove(&service) else { return };
        for key in shown.committed.keys() {
            table.committers.remove(key);
        }
        table.readings -= shown.readings.len();
        for (reader, reading) in shown.readings {
            table.forget_reader(reading.connection, &(service, reader));
        }
    }

    /// Shows what groups committed through a service in its meter.
    pub(super) fn show_committed(&self, service: ServiceId, meter: &Meter) {
        self.gauge(service, meter, metric::GROUP_OFFSET, |row| row.committed(|row, _| Some(row.offset)));
        self.gauge(service, meter, metric::GROUP_LAG, |row| row.committed(|row, end| Some((end?.saturating_sub(row.offset)).max(0))));
        self.age(service, meter, metric::LAST_COMMIT_AGE, |row| row.committed(|row, _| Some(row.at)));
    }

    /// Shows how far a service's consumers have read.
    pub(super) fn show_readings(&self, service: ServiceId, meter: &Meter) {
        self.gauge(service, meter, metric::CONSUMER_LAG, |row| row.readings(|row, end| Some((end?.saturating_sub(row.position?)).max(0))));
        self.age(service, meter, metric::LAST_FETCH_AGE, |row| row.readings(|row, _| Some(row.at)));
    }

    /// Shows what a service was told of partitions.
    pub(super) fn show_partitions(&self, service: ServiceId, meter: &Meter) {
        self.gauge(service, meter, metric::PARTITION_CURRENT_OFFSET, |row| row.partitions(|known, now| known.end?.fresh(now)));
        self.gauge(service, meter, metric::PARTITION_OLDEST_OFFSET, |row| row.partitions(|known, now| known.oldest?.fresh(now)));
        self.gauge(service, meter, metric::PARTITION_LAST_STABLE_OFFSET, |row| row.partitions(|known, now| known.stable?.fresh(now)));
        self.age(service, meter, metric::LAST_SEEN_AGE, |row| {
            row.partitions(|known, now| known.last_record_at.filter(|at| now.since(*at) <= MAX_SILENCE))
        });
    }

    fn gauge(&self, service: ServiceId, meter: &Meter, name: &'static str, rows: fn(&Rows<'_>) -> Values<i64>) {
        let all = self.clone();
        let (unit, meaning) = metric::described(name);
        let gauge = meter.i64_observable_gauge(name).with_unit(unit).with_description(meaning);
        let show = move |observer: &dyn AsyncInstrument<i64>| {
            for (value, attributes) in all.rows(service, rows) {
                observer.observe(value, &attributes);
            }
        };
        // The SDK keeps the callbacks; the handles are of no more use.
        let _ = gauge.with_callback(show).build();
    }

    fn age(&self, service: ServiceId, meter: &Meter, name: &'static str, rows: fn(&Rows<'_>) -> Values<Timestamp>) {
        let all = self.clone();
        let (unit, meaning) = metric::described(name);
        let gauge = meter.f64_observable_gauge(name).with_unit(unit).with_description(meaning);
        let show = move |observer: &dyn AsyncInstrument<f64>| {
            let now = all.table().now;
            for (at, attributes) in all.rows(service, rows) {
                observer.observe(now.since(at).as_secs_f64(), &attributes);
            }
        };
        let _ = gauge.with_callback(show).build();
    }

    /// Copied, so that the line does not wait while the SDK takes them in.
    fn rows<V>(&self, service: ServiceId, rows: fn(&Rows<'_>) -> Values<V>) -> Values<V> {
        let table = self.table();
        table.services.get(&service).map(|shown| rows(&Rows { table: &table, shown })).unwrap_or_default()
    }
}

/// What a service shows, beside what is known of the partitions.
struct Rows<'a> {
    table: &'a Table,
    shown: &'a Shown,
}

impl Rows<'_> {
    /// The newest end of a partition that is known, while it is fresh; for who reads what is committed, the last stable offset.
    fn end(&self, partition: &Partition, read_committed: bool) -> Option<i64> {
        let known = self.table.partitions.peek(partition)?;
        let mark = if read_committed { known.stable.or(known.end) } else { known.end };
        mark?.fresh(self.table.now)
    }

    fn committed<V>(&self, value: impl Fn(&Committed, Option<i64>) -> Option<V>) -> Values<V> {
        let rows = self.shown.committed.iter();
        rows.filter_map(|((_, partition), row)| Some((value(row, self.end(partition, false))?, Arc::clone(&row.attributes)))).collect()
    }

    fn readings<V>(&self, value: impl Fn(&Reading, Option<i64>) -> Option<V>) -> Values<V> {
        let rows = self.shown.readings.iter();
        rows.filter_map(|((_, partition), row)| Some((value(row, self.end(partition, row.read_committed))?, Arc::clone(&row.attributes))))
            .collect()
    }

    fn partitions<V>(&self, value: impl Fn(&Known, Timestamp) -> Option<V>) -> Values<V> {
        let known = |partition| self.table.partitions.peek(partition);
        let rows = self.shown.partitions.iter();
        rows.filter_map(|(partition, attributes)| Some((value(known(partition)?, self.table.now)?, Arc::clone(attributes)))).collect()
    }
}

impl Table {
    fn told(
        &mut self,
        (service, key): (Option<ServiceId>, &Partition),
        topic_id: Option<TopicId>,
        told: Told,
        has_records: bool,
        at: Timestamp,
    ) {
        self.now = self.now.max(at);
        if self.partitions.get_mut(key).is_none() {
            self.make_room();
            self.partitions.insert(key.clone(), Known::default());
        }
        let Self { partitions, services, max_shown, dropped, .. } = self;
        let Some(known) = partitions.peek_mut(key) else { return };
        // A topic made anew begins anew.
        if matches!((known.topic_id, topic_id), (Some(one), Some(other)) if one != other) {
            *known = Known { shown_by: known.shown_by, ..Known::default() };
        }
        known.topic_id = topic_id.or(known.topic_id);
        Mark::raise(&mut known.end, told.high_watermark, at);
        Mark::raise(&mut known.stable, told.last_stable_offset, at);
        Mark::raise(&mut known.oldest, told.log_start_offset, at);
        if has_records {
            known.last_record_at = known.last_record_at.max(Some(at));
        }
        let Some(service) = service else { return };
        match &mut known.shown_by {
            Some((by, last)) if *by == service => *last = at.max(*last),
            Some((_, last)) if at.since(*last) <= MAX_AGE => {}
            shown_by => {
                let before = shown_by.take();
                let shown = before.and_then(|(before, _)| services.get_mut(&before)?.partitions.remove(key));
                let rows = &mut services.entry(service).or_default().partitions;
                if rows.len() >= *max_shown {
                    *dropped += 1;
                    return;
                }
                *shown_by = Some((service, at));
                rows.insert(key.clone(), shown.unwrap_or_else(|| attributes(None, key)));
            }
        }
    }

    /// Forgets the partition that was told of longest ago, where there are too many.
    fn make_room(&mut self) {
        if self.partitions.len() >= self.partitions.capacity()
            && let Some((oldest, known)) = self.partitions.remove_lru()
            && let Some(shown) = known.shown_by.and_then(|(service, _)| self.services.get_mut(&service))
        {
            shown.partitions.remove(&oldest);
        }
    }

    fn read(
        &mut self,
        service: ServiceId,
        reader: Reader,
        (connection, position, read_committed): (u64, Option<i64>, bool),
        at: Timestamp,
    ) {
        let shown = self.services.entry(service).or_default();
        if let Some(reading) = shown.readings.get_mut(&reader) {
            let before = reading.connection;
            (reading.connection, reading.position, reading.read_committed) = (connection, position, read_committed);
            reading.at = reading.at.max(at);
            if before != connection {
                self.forget_reader(before, &(service, reader.clone()));
                self.readers.entry(connection).or_default().insert((service, reader));
            }
            return;
        }
        if self.readings >= self.max_rows || shown.readings.len() >= self.max_shown {
            self.dropped += 1;
            return;
        }
        if reader.0.is_some() {
            // Its group was not known yet.
            let nameless = (None, reader.1.clone());
            self.unread(service, &nameless);
        }
        let shown = self.services.entry(service).or_default();
        let attributes = attributes(reader.0.as_ref(), &reader.1);
        shown.readings.insert(reader.clone(), Reading { connection, position, read_committed, at, attributes });
        self.readings += 1;
        self.readers.entry(connection).or_default().insert((service, reader));
    }

    fn unread(&mut self, service: ServiceId, reader: &Reader) {
        if let Some(connection) = self.forget_reading(service, reader) {
            self.forget_reader(connection, &(service, reader.clone()));
        }
    }

    fn forget_reading(&mut self, service: ServiceId, reader: &Reader) -> Option<u64> {
        let reading = self.services.get_mut(&service)?.readings.remove(reader)?;
        self.readings -= 1;
        Some(reading.connection)
    }

    fn forget_reader(&mut self, connection: u64, reader: &(ServiceId, Reader)) {
        if let Some(readers) = self.readers.get_mut(&connection) {
            readers.remove(reader);
            if readers.is_empty() {
                self.readers.remove(&connection);
            }
        }
    }
}

fn attributes(group: Option<&Arc<str>>, (_, topic, partition): &Partition) -> Arc<[KeyValue]> {
    let topic = match topic {
        TopicKey::Name(name) => KeyValue::new(semconv::TOPIC, StringValue::from(Arc::clone(name))),
        TopicKey::Id(id) => KeyValue::new(semconv::TOPIC_ID, id.to_string()),
    };
    let group = group.map(|group| KeyValue::new(semconv::GROUP, StringValue::from(Arc::clone(group))));
    group.into_iter().chain([topic, KeyValue::new(semconv::PARTITION, i64::from(*partition))]).collect()
}
