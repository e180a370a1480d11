//! The instruments of one service, and the attribute sets in use with them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashlink::LruCache;
use opentelemetry::metrics::{BoundCounter, BoundHistogram, Counter, Histogram, Meter};
use opentelemetry::{KeyValue, StringValue};
use opentelemetry_sdk::metrics::Temporality;

use super::members::Members;
use super::positions::{Positions, ServiceId};
use super::source::Source;
use super::{DURATION_BOUNDS, MetricSettings};
use crate::observe::{Operation, Side};
use crate::telemetry::semconv::{self, metric};
use crate::telemetry::{OperationName, ResourceKey, SentClock};
use crate::time::Timestamp;

/// Buckets of durations that reach from an exchange in memory to a long poll, in seconds.
const WAIT_BOUNDS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Buckets of delays that reach to minutes, in seconds.
const DELAY_BOUNDS: [f64; 12] = [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];
const BYTES_BOUNDS: [f64; 11] =
    [128.0, 512.0, 1_024.0, 4_096.0, 16_384.0, 32_768.0, 65_536.0, 131_072.0, 262_144.0, 524_288.0, 1_048_576.0];
const RECORDS_BOUNDS: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0];
const RATIO_BOUNDS: [f64; 10] = [0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0];

/// How long instruments stay bound, with delta temporality.
const BOUND_FOR: Duration = Duration::from_mins(1);

/// The broker, as metrics name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Server {
    Advertised(Arc<str>, u16),
    Address(IpAddr, u16),
}

impl Server {
    pub(super) fn of(operation: &Operation) -> Self {
        let broker = operation.connection.broker;
        match &operation.server {
            Some((name, port)) => Self::Advertised(Arc::clone(name), *port),
            None => Self::Address(broker.ip().to_canonical(), broker.port()),
        }
    }

    fn say(&self, attributes: &mut Vec<KeyValue>) {
        let (address, port) = match self {
            Self::Advertised(name, port) => (StringValue::from(Arc::clone(name)), *port),
            Self::Address(address, port) => (StringValue::from(address.to_string()), *port),
        };
        attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, address));
        attributes.push(KeyValue::new(semconv::SERVER_PORT, i64::from(port)));
    }
}

/// What makes one series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Series {
    /// Of the `messaging.*` metrics.
    Messaging {
        operation: OperationName,
        topic: Option<Arc<str>>,
        partition: Option<i32>,
        group: Option<Arc<str>>,
        server: Server,
        error: Option<&'static str>,
    },
    EndToEnd {
        topic: Option<Arc<str>>,
        group: Option<Arc<str>>,
        clock: SentClock,
    },
    CommitDelay {
        topic: Option<Arc<str>>,
        group: Arc<str>,
    },
    FetchWait {
        server: Server,
    },
    Throttle {
        api: &'static str,
    },
    Request {
        api: &'static str,
        error: Option<&'static str>,
        server: Server,
        side: Side,
    },
    Batch {
        topic: Option<Arc<str>>,
        codec: &'static str,
    },
    /// Batches that were sent again.
    Retry {
        topic: Option<Arc<str>>,
    },
    /// Messages that were given to a group again.
    Redelivery {
        topic: Option<Arc<str>>,
        group: Option<Arc<str>>,
    },
    Transaction {
        committed: bool,
        error: Option<&'static str>,
    },
    Rebalance {
        group: Arc<str>,
    },
    Authentication {
        mechanism: Arc<str>,
        error: &'static str,
    },
}

fn text(attributes: &mut Vec<KeyValue>, key: &'static str, value: Option<&Arc<str>>) {
    attributes.extend(value.map(|value| KeyValue::new(key, StringValue::from(Arc::clone(value)))));
}

impl Series {
    fn attributes(&self) -> Vec<KeyValue> {
        let mut all = Vec::with_capacity(9);
        match self {
            Self::Messaging { operation, topic, partition, group, server, error } => {
                all.push(KeyValue::new(semconv::MESSAGING_SYSTEM, semconv::MESSAGING_SYSTEM_KAFKA));
                all.push(KeyValue::new(semconv::MESSAGING_OPERATION_NAME, operation.name()));
                all.push(KeyValue::new(semconv::MESSAGING_OPERATION_TYPE, operation.operation_type()));
                text(&mut all, semconv::MESSAGING_DESTINATION_NAME, topic.as_ref());
                all.extend(partition.map(|partition| KeyValue::new(semconv::MESSAGING_DESTINATION_PARTITION_ID, partition.to_string())));
                text(&mut all, semconv::MESSAGING_CONSUMER_GROUP_NAME, group.as_ref());
                server.say(&mut all);
                all.extend(error.map(|error| KeyValue::new(semconv::ERROR_TYPE, error)));
            }
            Self::EndToEnd { topic, group, clock } => {
                text(&mut all, semconv::MESSAGING_DESTINATION_NAME, topic.as_ref());
                text(&mut all, semconv::MESSAGING_CONSUMER_GROUP_NAME, group.as_ref());
                all.push(KeyValue::new(semconv::CLOCK, clock.name()));
            }
            Self::CommitDelay { topic, group } => {
                text(&mut all, semconv::MESSAGING_DESTINATION_NAME, topic.as_ref());
                text(&mut all, semconv::MESSAGING_CONSUMER_GROUP_NAME, Some(group));
            }
            Self::FetchWait { server } => server.say(&mut all),
            Self::Throttle { api } => all.push(KeyValue::new(semconv::API_NAME, *api)),
            Self::Request { api, error, server, side } => {
                all.push(KeyValue::new(semconv::API_NAME, *api));
                all.extend(error.map(|error| KeyValue::new(semconv::ERROR_TYPE, error)));
                server.say(&mut all);
                all.push(KeyValue::new(semconv::SIDE, semconv::side(*side)));
            }
            Self::Batch { topic, codec } => {
                text(&mut all, semconv::MESSAGING_DESTINATION_NAME, topic.as_ref());
                all.push(KeyValue::new(semconv::BATCH_CODEC, *codec));
            }
            Self::Retry { topic } => text(&mut all, semconv::MESSAGING_DESTINATION_NAME, topic.as_ref()),
            Self::Redelivery { topic, group } => {
                text(&mut all, semconv::MESSAGING_DESTINATION_NAME, topic.as_ref());
                text(&mut all, semconv::MESSAGING_CONSUMER_GROUP_NAME, group.as_ref());
            }
            Self::Transaction { committed, error } => {
                all.push(KeyValue::new(semconv::TRANSACTION_OUTCOME, if *committed { "committed" } else { "aborted" }));
                all.extend(error.map(|error| KeyValue::new(semconv::ERROR_TYPE, error)));
            }
            Self::Rebalance { group } => text(&mut all, semconv::MESSAGING_CONSUMER_GROUP_NAME, Some(group)),
            Self::Authentication { mechanism, error } => {
                text(&mut all, semconv::SASL_MECHANISM, Some(mechanism));
                all.push(KeyValue::new(semconv::ERROR_TYPE, *error));
            }
        }
        all
    }
}

/// The instruments of one service, made when they are first used: the SDK keeps room in each for as many series as there may be.
#[derive(Debug)]
struct Instruments {
    meter: Meter,
    values: HashMap<&'static str, Histogram<f64>>,
    counts: HashMap<&'static str, Counter<u64>>,
    sizes: Option<(Histogram<u64>, Histogram<u64>)>,
}

impl Instruments {
    fn new(meter: Meter) -> Self {
        Self { meter, values: HashMap::new(), counts: HashMap::new(), sizes: None }
    }

    /// What [`Recorder::value`] of a series goes to; those of which nothing is measured have none.
    fn value_of(&mut self, series: &Series) -> Option<&Histogram<f64>> {
        let (name, bounds) = match series {
            Series::Messaging { .. } => (metric::CLIENT_OPERATION_DURATION, &DURATION_BOUNDS[..]),
            Series::EndToEnd { .. } => (metric::END_TO_END_DURATION, &DELAY_BOUNDS[..]),
            Series::CommitDelay { .. } => (metric::COMMIT_DELAY, &DELAY_BOUNDS[..]),
            Series::FetchWait { .. } => (metric::FETCH_WAIT, &WAIT_BOUNDS[..]),
            Series::Throttle { .. } => (metric::THROTTLE, &WAIT_BOUNDS[..]),
            Series::Request { .. } => (metric::REQUEST_DURATION, &WAIT_BOUNDS[..]),
            Series::Batch { .. } => (metric::BATCH_COMPRESSION_RATIO, &RATIO_BOUNDS[..]),
            Series::Rebalance { .. } => (metric::GROUP_REBALANCE_DURATION, &DELAY_BOUNDS[..]),
            Series::Retry { .. } | Series::Redelivery { .. } | Series::Transaction { .. } | Series::Authentication { .. } => return None,
        };
        let Self { meter, values, .. } = self;
        Some(values.entry(name).or_insert_with(|| histogram(meter, name, bounds)))
    }

    /// What [`Recorder::count`] of a series goes to; those of which nothing is counted have none.
    fn count_of(&mut self, series: &Series) -> Option<&Counter<u64>> {
        let name = match series {
            Series::Messaging { operation: OperationName::Send, .. } => metric::CLIENT_SENT_MESSAGES,
            Series::Messaging { .. } => metric::CLIENT_CONSUMED_MESSAGES,
            Series::EndToEnd { .. } => metric::END_TO_END_NEGATIVE,
            Series::Retry { .. } => metric::SEND_RETRIES,
            Series::Redelivery { .. } => metric::REDELIVERED,
            Series::Transaction { .. } => metric::TRANSACTIONS,
            Series::Rebalance { .. } => metric::GROUP_REBALANCES,
            Series::Authentication { .. } => metric::AUTHENTICATION_FAILURES,
            Series::CommitDelay { .. }
            | Series::FetchWait { .. }
            | Series::Throttle { .. }
            | Series::Request { .. }
            | Series::Batch { .. } => return None,
        };
        let Self { meter, counts, .. } = self;
        Some(counts.entry(name).or_insert_with(|| counter(meter, name)))
    }

    /// What [`Recorder::batch`] goes to.
    fn sizes(&mut self) -> &(Histogram<u64>, Histogram<u64>) {
        let Self { meter, sizes: made, .. } = self;
        made.get_or_insert_with(|| (sizes(meter, metric::BATCH_SIZE, &BYTES_BOUNDS), sizes(meter, metric::BATCH_RECORDS, &RECORDS_BOUNDS)))
    }
}

/// The instruments of one series, each bound to its attributes when it is first used: what was never recorded has no point.
#[derive(Debug)]
struct Bound {
    attributes: Vec<KeyValue>,
    value: Option<BoundHistogram<f64>>,
    count: Option<BoundCounter<u64>>,
    sizes: Option<(BoundHistogram<u64>, BoundHistogram<u64>)>,
}

/// Records in one series.
pub(super) struct Recorder<'a> {
    instruments: &'a mut Instruments,
    series: Series,
    bound: &'a mut Bound,
}

impl Recorder<'_> {
    /// A duration in seconds, or a batch's compression ratio.
    pub(super) fn value(&mut self, value: f64) {
        let Self { instruments, series, bound: Bound { attributes, value: bound, .. } } = self;
        if bound.is_none() {
            *bound = instruments.value_of(series).map(|histogram| histogram.bind(attributes));
        }
        if let Some(bound) = bound {
            bound.record(value);
        }
    }

    /// Messages that were sent, consumed or given again, batches that came before they were sent or were sent again, transactions, rebalances,
    /// failures.
    pub(super) fn count(&mut self, count: u64) {
        let Self { instruments, series, bound: Bound { attributes, count: bound, .. } } = self;
        if bound.is_none() {
            *bound = instruments.count_of(series).map(|counter| counter.bind(attributes));
        }
        if let Some(bound) = bound {
            bound.add(count);
        }
    }

    /// How large a batch is on the wire, and how many records it has.
    pub(super) fn batch(&mut self, bytes: u64, records: u64) {
        let Self { instruments, bound: Bound { attributes, sizes: bound, .. }, .. } = self;
        let (by_bytes, by_records) = bound.get_or_insert_with(|| {
            let (bytes, records) = instruments.sizes();
            (bytes.bind(attributes), records.bind(attributes))
        });
        by_bytes.record(bytes);
        by_records.record(records);
    }
}

/// Gauges that are shown together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gauges {
    /// What groups committed.
    Committed,
    /// How far consumers have read.
    Readings,
    /// Where partitions begin and end.
    Partitions,
    /// Members of groups.
    Members,
}

/// A service: what is counted of it.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) source: Arc<Source>,
    pub(super) id: ServiceId,
    pub(super) last_used: Timestamp,
    instruments: Instruments,
    positions: Positions,
    members: Members,
    /// Those that are shown.
    gauges: Vec<Gauges>,
    /// So that a recording makes no string, and looks nothing up in the SDK.
    series: LruCache<Series, Bound>,
    is_delta: bool,
    bound_at: Timestamp,
}

impl Service {
    pub(super) fn new(key: &ResourceKey, id: ServiceId, (positions, members): (&Positions, &Members), settings: &MetricSettings) -> Self {
        let source = Arc::new(Source::new(key.to_resource(), settings));
        Self {
            instruments: Instruments::new(source.meter()),
            positions: positions.clone(),
            members: members.clone(),
            gauges: Vec::new(),
            series: LruCache::new(settings.max_series.clamp(1, 4_096)),
            is_delta: settings.temporality == Temporality::Delta,
            bound_at: Timestamp::ZERO,
            last_used: Timestamp::ZERO,
            id,
            source,
        }
    }

    /// Shows gauges from now on. They are there only where there is something to show.
    pub(super) fn show(&mut self, gauges: Gauges) {
        if self.gauges.contains(&gauges) {
            return;
        }
        self.gauges.push(gauges);
        let (id, meter) = (self.id, &self.instruments.meter);
        match gauges {
            Gauges::Committed => self.positions.show_committed(id, meter),
            Gauges::Readings => self.positions.show_readings(id, meter),
            Gauges::Partitions => self.positions.show_partitions(id, meter),
            Gauges::Members => self.members.show(id, meter),
        }
    }

    /// The recorder of a series.
    pub(super) fn of(&mut self, series: Series) -> Recorder<'_> {
        let Self { instruments, series: all, .. } = self;
        // `entry` leaves room for one more than there may be.
        while all.len() >= all.capacity() && !all.contains_key(&series) {
            all.remove_lru();
        }
        let new = || Bound { attributes: series.attributes(), value: None, count: None, sizes: None };
        let bound = all.entry(series.clone()).or_insert_with(new);
        Recorder { instruments, series, bound }
    }

    /// Lets time pass. With delta temporality the SDK forgets a series of which nothing came, but not one that is bound; and one that was
    /// bound when there was no room stays among the overflow. So all are bound anew now and then.
    pub(super) fn tick(&mut self, now: Timestamp) {
        if self.is_delta && now.since(self.bound_at) > BOUND_FOR {
            self.bound_at = now;
            self.series.clear();
        }
    }
}

fn histogram(meter: &Meter, name: &'static str, bounds: &[f64]) -> Histogram<f64> {
    let (unit, meaning) = metric::described(name);
    meter.f64_histogram(name).with_unit(unit).with_description(meaning).with_boundaries(bounds.to_vec()).build()
}

fn sizes(meter: &Meter, name: &'static str, bounds: &[f64]) -> Histogram<u64> {
    let (unit, meaning) = metric::described(name);
    meter.u64_histogram(name).with_unit(unit).with_description(meaning).with_boundaries(bounds.to_vec()).build()
}

fn counter(meter: &Meter, name: &'static str) -> Counter<u64> {
    let (unit, meaning) = metric::described(name);
    meter.u64_counter(name).with_unit(unit).with_description(meaning).build()
}
