//! Observations to metrics, through the SDK's meter: one provider per observed service, read on demand by whoever
//! exports. Counted before sampling and whatever the spans' scope; of both ends of a connection, the client's only.

#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use hashlink::LruCache;
use opentelemetry::metrics::{Counter, Histogram, MeterProvider};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Stream, Temporality};

use super::semconv::{self, metric};
use super::{HealthSnapshot, OperationName, ResourceKey, error_type};
use crate::observe::{Observation, Operation, Outcome, Side, Topic};
use crate::time::Timestamp;

/// Buckets of `messaging.client.operation.duration`, in seconds: the conventions'.
pub const DURATION_BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// A service that was not heard of for this long is read once more and then forgotten.
const IDLE: Duration = Duration::from_mins(30);
/// How many forgotten services wait for their last reading.
const MAX_RETIRED: usize = 1_000;
/// How many exchanges are remembered, so that several batches of one partition count as one operation.
const MAX_EXCHANGES: usize = 1_024;

/// What can be set about metrics.
#[derive(Clone, Debug)]
pub struct MetricSettings {
    /// Make the `messaging.*` metrics.
    pub messaging: bool,
    /// Split them by partition.
    pub partition: bool,
    /// Cumulative unless the back end wants otherwise.
    pub temporality: Temporality,
    /// Histograms in base-2 exponential form instead of the conventions' buckets.
    pub exponential_histograms: bool,
    /// How many services are told apart at a time.
    pub max_services: usize,
    /// How many series one metric of one service has; what is beyond goes to `otel.metric.overflow=true`.
    pub max_series: usize,
}

impl Default for MetricSettings {
    fn default() -> Self {
        Self {
            messaging: true,
            partition: false,
            temporality: Temporality::Cumulative,
            exponential_histograms: false,
            max_services: 1_000,
            max_series: 2_000,
        }
    }
}

/// A reader that the provider and the exporter share.
#[derive(Clone, Debug)]
struct SharedReader(Arc<ManualReader>);

impl MetricReader for SharedReader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

/// One resource's meter provider and its reader.
#[derive(Debug)]
struct Source {
    provider: SdkMeterProvider,
    reader: SharedReader,
}

impl Source {
    fn new(resource: Resource, settings: &MetricSettings) -> Self {
        let reader = SharedReader(Arc::new(ManualReader::builder().with_temporality(settings.temporality).build()));
        let (limit, exponential) = (settings.max_series.max(1), settings.exponential_histograms);
        let view = move |instrument: &Instrument| {
            let mut stream = Stream::builder().with_cardinality_limit(limit);
            if exponential && instrument.kind() == InstrumentKind::Histogram {
                // The specification's defaults of this aggregation.
                stream =
                    stream.with_aggregation(Aggregation::Base2ExponentialHistogram { max_size: 160, max_scale: 20, record_min_max: true });
            }
            stream.build().ok()
        };
        let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(reader.clone()).with_view(view).build();
        Self { provider, reader }
    }

    fn meter(&self) -> opentelemetry::metrics::Meter {
        self.provider.meter_with_scope(scope())
    }
}

/// The instrumentation scope of everything that the tracer makes.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(semconv::SCOPE_NAME).with_version(env!("CARGO_PKG_VERSION")).with_schema_url(semconv::SCHEMA_URL).build()
}

#[derive(Debug, Default)]
struct Registry {
    live: Vec<Arc<Source>>,
    retired: Vec<Arc<Source>>,
}

/// The reading end: hands out what the meters of all services hold. Cheap to clone, for another thread or task.
#[derive(Clone, Debug, Default)]
pub struct MetricSources(Arc<Mutex<Registry>>);

impl MetricSources {
    /// Reads every service's metrics and hands them over, one resource a call. Services without any are left out.
    pub fn collect(&self, each: &mut dyn FnMut(&ResourceMetrics)) {
        let (live, retired) = {
            let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (registry.live.clone(), std::mem::take(&mut registry.retired))
        };
        let mut metrics = ResourceMetrics::default();
        for source in live.iter().chain(&retired) {
            if source.reader.collect(&mut metrics).is_ok() && metrics.scope_metrics().next().is_some() {
                each(&metrics);
            }
        }
    }

    fn add(&self, source: Arc<Source>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).live.push(source);
    }

    /// False when there was no room for its last reading.
    fn retire(&self, source: &Arc<Source>) -> bool {
        let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        registry.live.retain(|other| !Arc::ptr_eq(other, source));
        if registry.retired.len() >= MAX_RETIRED {
            return false;
        }
        registry.retired.push(Arc::clone(source));
        true
    }
}

/// What makes one series of the `messaging.*` metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Series {
    operation: OperationName,
    topic: Option<Arc<str>>,
    partition: Option<i32>,
    group: Option<Arc<str>>,
    server: Server,
    error: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Server {
    Advertised(Arc<str>, u16),
    Address(IpAddr, u16),
}

impl Series {
    fn attributes(&self) -> Arc<[KeyValue]> {
        let mut attributes = vec![
            KeyValue::new(semconv::MESSAGING_SYSTEM, semconv::MESSAGING_SYSTEM_KAFKA),
            KeyValue::new(semconv::MESSAGING_OPERATION_NAME, self.operation.name()),
            KeyValue::new(semconv::MESSAGING_OPERATION_TYPE, self.operation.operation_type()),
        ];
        if let Some(topic) = &self.topic {
            attributes.push(KeyValue::new(semconv::MESSAGING_DESTINATION_NAME, StringValue::from(Arc::clone(topic))));
        }
        if let Some(partition) = self.partition {
            attributes.push(KeyValue::new(semconv::MESSAGING_DESTINATION_PARTITION_ID, partition.to_string()));
        }
        if let Some(group) = &self.group {
            attributes.push(KeyValue::new(semconv::MESSAGING_CONSUMER_GROUP_NAME, StringValue::from(Arc::clone(group))));
        }
        let (address, port) = match &self.server {
            Server::Advertised(name, port) => (StringValue::from(Arc::clone(name)), *port),
            Server::Address(address, port) => (StringValue::from(address.to_string()), *port),
        };
        attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, address));
        attributes.push(KeyValue::new(semconv::SERVER_PORT, i64::from(port)));
        if let Some(error) = self.error {
            attributes.push(KeyValue::new(semconv::ERROR_TYPE, error));
        }
        attributes.into()
    }
}

/// The instruments of one service.
#[derive(Debug)]
struct Service {
    source: Arc<Source>,
    duration: Histogram<f64>,
    sent: Counter<u64>,
    consumed: Counter<u64>,
    /// Attribute sets in use, so that a recording makes no string.
    series: LruCache<Series, Arc<[KeyValue]>>,
    last_used: Timestamp,
}

impl Service {
    fn new(key: &ResourceKey, settings: &MetricSettings) -> Self {
        let source = Arc::new(Source::new(key.to_resource(), settings));
        let meter = source.meter();
        Self {
            duration: meter
                .f64_histogram(metric::CLIENT_OPERATION_DURATION)
                .with_unit("s")
                .with_description("Duration of a messaging operation initiated by a producer or consumer client.")
                .with_boundaries(DURATION_BOUNDS.to_vec())
                .build(),
            sent: meter
                .u64_counter(metric::CLIENT_SENT_MESSAGES)
                .with_unit("{message}")
                .with_description("Number of messages a producer attempted to send to the broker.")
                .build(),
            consumed: meter
                .u64_counter(metric::CLIENT_CONSUMED_MESSAGES)
                .with_unit("{message}")
                .with_description("Number of messages that were delivered to the application.")
                .build(),
            source,
            series: LruCache::new(settings.max_series.clamp(1, 4_096)),
            last_used: Timestamp::ZERO,
        }
    }

    fn attributes(&mut self, series: Series) -> Arc<[KeyValue]> {
        if let Some(attributes) = self.series.get(&series) {
            return Arc::clone(attributes);
        }
        let attributes = series.attributes();
        self.series.insert(series, Arc::clone(&attributes));
        attributes
    }
}

/// Counts observations in the meters of the services they belong to.
#[derive(Debug)]
pub struct Metrics {
    settings: MetricSettings,
    sources: MetricSources,
    services: LruCache<ResourceKey, Service>,
    /// Exchanges whose duration was recorded, by partition. The operation is kept so that its address stays its own.
    exchanges: LruCache<(usize, Topic, i32), Arc<Operation>>,
    forgotten_services: u64,
}

impl Metrics {
    /// Without any service yet.
    pub fn new(settings: MetricSettings) -> Self {
        Self {
            services: LruCache::new(settings.max_services.max(1)),
            settings,
            sources: MetricSources::default(),
            exchanges: LruCache::new(MAX_EXCHANGES),
            forgotten_services: 0,
        }
    }

    /// The reading end.
    pub fn sources(&self) -> MetricSources {
        self.sources.clone()
    }

    /// Services whose metrics were given up without a last reading, because there were more than can be told apart.
    pub const fn forgotten_services(&self) -> u64 {
        self.forgotten_services
    }

    /// Counts one observation.
    pub fn observe(&mut self, observation: &Observation) {
        if !self.settings.messaging {
            return;
        }
        match observation {
            Observation::Sent(sent) => {
                if sent.header.control {
                    return;
                }
                let series = self.series(OperationName::Send, &sent.operation, &sent.topic, sent.partition, None, sent.outcome);
                let (duration, messages) = (duration(OperationName::Send, &sent.operation, sent.outcome), u64::from(sent.record_count));
                let first = self.first_of_exchange(&sent.operation, &sent.topic, sent.partition);
                self.record(&sent.operation, series, duration.filter(|_| first), messages);
            }
            Observation::Fetched(fetched) => {
                let group = fetched.group.clone();
                let series =
                    self.series(OperationName::Fetch, &fetched.operation, &fetched.topic, fetched.partition, group, Outcome::Success);
                let duration = duration(OperationName::Fetch, &fetched.operation, Outcome::Success);
                let first = self.first_of_exchange(&fetched.operation, &fetched.topic, fetched.partition);
                let messages = if fetched.header.control { 0 } else { u64::from(fetched.delivered.delivered) };
                self.record(&fetched.operation, series, duration.filter(|_| first), messages);
            }
            Observation::FetchFailed(failed) => {
                if matches!(failed.outcome, Outcome::ConnectionClosed | Outcome::AnswerNotSeen) {
                    return;
                }
                let group = failed.group.clone();
                let series = self.series(OperationName::Fetch, &failed.operation, &failed.topic, failed.partition, group, failed.outcome);
                self.record(&failed.operation, series, duration(OperationName::Fetch, &failed.operation, failed.outcome), 0);
            }
            Observation::Commit(commit) => {
                let group = Some(Arc::clone(&commit.group));
                let series = self.series(OperationName::Commit, &commit.operation, &commit.topic, commit.partition, group, commit.outcome);
                self.record(&commit.operation, series, duration(OperationName::Commit, &commit.operation, commit.outcome), 0);
            }
            Observation::Exchange(_) | Observation::Connection(_) => {}
        }
    }

    /// Lets time pass: services that fell silent are read once more and forgotten.
    pub fn tick(&mut self, now: Timestamp) {
        while let Some((_, service)) = self.services.iter().next() {
            if now.since(service.last_used) < IDLE {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, service)) = self.services.remove_lru()
            && !self.sources.retire(&service.source)
        {
            self.forgotten_services += 1;
        }
    }

    fn series(
        &self,
        operation: OperationName,
        of: &Operation,
        topic: &Topic,
        partition: i32,
        group: Option<Arc<str>>,
        outcome: Outcome,
    ) -> Series {
        let broker = of.connection.broker;
        Series {
            operation,
            topic: topic.name.clone(),
            partition: self.settings.partition.then_some(partition),
            group,
            server: match &of.server {
                Some((name, port)) => Server::Advertised(Arc::clone(name), *port),
                None => Server::Address(broker.ip().to_canonical(), broker.port()),
            },
            error: error_type(outcome),
        }
    }

    /// Whether this is the first batch of its partition in its exchange.
    fn first_of_exchange(&mut self, operation: &Arc<Operation>, topic: &Topic, partition: i32) -> bool {
        let key = (Arc::as_ptr(operation).addr(), topic.clone(), partition);
        self.exchanges.insert(key, Arc::clone(operation)).is_none()
    }

    fn record(&mut self, operation: &Operation, series: Series, duration: Option<Duration>, messages: u64) {
        if operation.connection.side != Side::Client {
            return;
        }
        let key = ResourceKey::of(&operation.connection);
        if self.services.get(&key).is_none() {
            if self.services.len() >= self.services.capacity() {
                self.forget_oldest();
            }
            let service = Service::new(&key, &self.settings);
            self.sources.add(Arc::clone(&service.source));
            self.services.insert(key.clone(), service);
        }
        let Some(service) = self.services.get_mut(&key) else { return };
        let name = series.operation;
        service.last_used = service.last_used.max(operation.response.map_or(operation.request_last, |(_, last)| last));
        let attributes = service.attributes(series);
        if let Some(duration) = duration {
            service.duration.record(duration.as_secs_f64(), &attributes);
        }
        match name {
            OperationName::Send => service.sent.add(messages, &attributes),
            OperationName::Fetch if messages > 0 => service.consumed.add(messages, &attributes),
            OperationName::Fetch | OperationName::Commit => {}
        }
    }
}

/// How long an operation took, as its span says. Nothing when the answer was there but not seen.
fn duration(operation: OperationName, of: &Operation, outcome: Outcome) -> Option<Duration> {
    match (of.response, outcome) {
        (_, Outcome::AnswerNotSeen) => None,
        (Some((first, last)), _) if operation == OperationName::Fetch => Some(last.since(first)),
        (Some((_, last)), _) => Some(last.since(of.request_first)),
        (None, _) => Some(of.request_last.since(of.request_first)),
    }
}

/// The tracer's own meter: its health, on its own resource.
#[derive(Debug)]
pub struct HealthMeter {
    source: Source,
    snapshot: Arc<Mutex<HealthSnapshot>>,
    names: Vec<&'static str>,
}

impl HealthMeter {
    /// With the tracer's own resource.
    pub fn new(resource: Resource, settings: &MetricSettings) -> Self {
        Self { source: Source::new(resource, settings), snapshot: Arc::default(), names: Vec::new() }
    }

    /// Replaces what is shown.
    pub fn publish(&mut self, snapshot: HealthSnapshot) {
        for value in &snapshot.values {
            if !self.names.contains(&value.name) {
                self.names.push(value.name);
                self.show(value.name);
            }
        }
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// Reads it.
    ///
    /// # Errors
    /// Those of the SDK: the provider was shut down.
    pub fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.source.reader.collect(metrics)
    }

    fn show(&self, name: &'static str) {
        let snapshot = Arc::clone(&self.snapshot);
        let (unit, description) =
            metric::HEALTH.iter().find(|(known, ..)| *known == name).map_or(("1", ""), |(_, unit, description)| (*unit, *description));
        // The SDK keeps the callback; the handle itself is of no more use.
        let _ = self
            .source
            .meter()
            .u64_observable_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |observer| {
                for value in &snapshot.lock().unwrap_or_else(PoisonError::into_inner).values {
                    if value.name == name {
                        let attributes: Vec<KeyValue> =
                            value.attributes.iter().map(|(key, by)| KeyValue::new(*key, StringValue::from(by.clone()))).collect();
                        observer.observe(value.value, &attributes);
                    }
                }
            })
            .build();
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ScopeMetrics};

    use super::*;
    use crate::observe::{BatchHeader, Delivered, SentBatch};
    use crate::telemetry::fixtures::{at, commit, connection, fetch_failure, fetched, operation, sent};

    /// One line a data point, of all services: metric, value, attributes in alphabetical order.
    fn lines(sources: &MetricSources) -> Vec<String> {
        let mut lines = Vec::new();
        sources.collect(&mut |metrics| lines.extend(show(metrics)));
        lines.sort();
        lines
    }

    fn show(metrics: &ResourceMetrics) -> Vec<String> {
        let mut lines = Vec::new();
        for metric in metrics.scope_metrics().flat_map(ScopeMetrics::metrics) {
            let head = format!("{} [{}]", metric.name(), metric.unit());
            match metric.data() {
                AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                    assert!(sum.is_monotonic());
                    lines.extend(sum.data_points().map(|point| format!("{head} {}{}", point.value(), attributes(point.attributes()))));
                }
                AggregatedMetrics::F64(MetricData::Histogram(histogram)) => lines.extend(histogram.data_points().map(|point| {
                    assert_eq!(point.bounds().collect::<Vec<_>>(), DURATION_BOUNDS);
                    format!("{head} x{} {}{}", point.count(), point.sum(), attributes(point.attributes()))
                })),
                AggregatedMetrics::F64(MetricData::ExponentialHistogram(histogram)) => {
                    lines.extend(histogram.data_points().map(|point| format!("{head} exponential x{}", point.count())));
                }
                other => panic!("not expected: {other:?}"),
            }
        }
        lines
    }

    fn attributes<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> String {
        let mut all: Vec<_> = attributes
            .filter(|kv| !["messaging.system", "server.address", "server.port"].contains(&kv.key.as_str()))
            .map(|kv| format!("{}={}", kv.key.as_str().trim_start_matches("messaging."), kv.value))
            .collect();
        all.sort();
        all.iter().fold(String::new(), |mut text, kv| {
            let _ = write!(text, " {kv}");
            text
        })
    }

    fn counted(observations: &[Observation]) -> Vec<String> {
        let mut metrics = Metrics::new(MetricSettings::default());
        for observation in observations {
            metrics.observe(observation);
        }
        lines(&metrics.sources())
    }

    #[test]
    fn messages_and_operations_are_counted_as_the_conventions_name_them() {
        let failed = SentBatch { base_offset: None, outcome: Outcome::Error(29), ..sent(5, Vec::new()) };
        let lines = counted(&[
            Observation::Sent(sent(5, Vec::new())),
            Observation::Sent(sent(7, Vec::new())),
            Observation::Sent(failed),
            Observation::Fetched(fetched(5, Vec::new())),
            Observation::FetchFailed(fetch_failure(1, Outcome::Error(6))),
            Observation::Commit(commit(1005)),
        ]);
        assert_eq!(
            lines,
            [
                "messaging.client.consumed.messages [{message}] 5 consumer.group.name=billing destination.name=orders operation.name=fetch operation.type=receive",
                "messaging.client.operation.duration [s] x1 0.001 consumer.group.name=billing destination.name=orders error.type=NOT_LEADER_OR_FOLLOWER operation.name=fetch operation.type=receive",
                "messaging.client.operation.duration [s] x1 0.001 consumer.group.name=billing destination.name=orders operation.name=fetch operation.type=receive",
                "messaging.client.operation.duration [s] x1 0.006 consumer.group.name=billing destination.name=orders operation.name=commit operation.type=settle",
                "messaging.client.operation.duration [s] x1 0.006 destination.name=orders error.type=TOPIC_AUTHORIZATION_FAILED operation.name=send operation.type=send",
                "messaging.client.operation.duration [s] x2 0.012 destination.name=orders operation.name=send operation.type=send",
                "messaging.client.sent.messages [{message}] 12 destination.name=orders operation.name=send operation.type=send",
                "messaging.client.sent.messages [{message}] 5 destination.name=orders error.type=TOPIC_AUTHORIZATION_FAILED operation.name=send operation.type=send",
            ]
        );
    }

    #[test]
    fn several_batches_of_a_partition_are_one_operation() {
        let one = fetched(5, Vec::new());
        let mut next = one.clone();
        next.header = BatchHeader { base_offset: 1005, ..next.header };
        let mut other_partition = one.clone();
        other_partition.partition = 4;
        let mut aborted = one.clone();
        aborted.delivered = Delivered { aborted: 5, ..Delivered::default() };
        let lines = counted(&[one, next, other_partition, aborted].map(Observation::Fetched));
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("messaging.client.consumed.messages [{message}] 15 "), "{lines:?}");
        assert!(lines[1].starts_with("messaging.client.operation.duration [s] x2 "), "{lines:?}");
        let one = sent(5, Vec::new());
        let lines = counted(&[one.clone(), one].map(Observation::Sent));
        assert!(lines[0].starts_with("messaging.client.operation.duration [s] x1 "), "{lines:?}");
        assert!(lines[1].starts_with("messaging.client.sent.messages [{message}] 10 "), "{lines:?}");
    }

    #[test]
    fn only_the_clients_side_counts_and_unseen_answers_have_no_duration() {
        let mut at_broker = sent(5, Vec::new());
        at_broker.operation = Arc::new(Operation { connection: connection("10.0.0.7:50001", Side::Broker), ..operation(0, "shop", 10) });
        let unseen = SentBatch { base_offset: None, outcome: Outcome::AnswerNotSeen, ..sent(5, Vec::new()) };
        let lines = counted(&[Observation::Sent(at_broker), Observation::Sent(unseen)]);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("messaging.client.sent.messages [{message}] 5 "), "{lines:?}");
        let off = MetricSettings { messaging: false, ..MetricSettings::default() };
        let mut metrics = Metrics::new(off);
        metrics.observe(&Observation::Sent(sent(5, Vec::new())));
        assert!(self::lines(&metrics.sources()).is_empty());
    }

    #[test]
    fn partitions_and_exponential_histograms_are_settings() {
        let settings = MetricSettings { partition: true, exponential_histograms: true, ..MetricSettings::default() };
        let mut metrics = Metrics::new(settings);
        metrics.observe(&Observation::Sent(sent(5, Vec::new())));
        let lines = lines(&metrics.sources());
        assert!(lines[0].contains("exponential x1"), "{lines:?}");
        assert!(lines[1].contains(" destination.partition.id=3 "), "{lines:?}");
    }

    #[test]
    fn series_beyond_the_bound_go_to_the_overflow() {
        let mut metrics = Metrics::new(MetricSettings { max_series: 4, ..MetricSettings::default() });
        for i in 0..20 {
            let mut batch = sent(1, Vec::new());
            batch.topic.name = Some(format!("t{i}").into());
            metrics.observe(&Observation::Sent(batch));
        }
        let lines = lines(&metrics.sources());
        let sent: Vec<_> = lines.iter().filter(|line| line.starts_with(metric::CLIENT_SENT_MESSAGES)).collect();
        assert_eq!(sent.len(), 5, "{sent:?}");
        assert!(sent.iter().any(|line| line.ends_with("{message}] 16 otel.metric.overflow=true")), "{sent:?}");
    }

    #[test]
    fn each_service_has_its_resource_and_forgotten_ones_a_last_reading() {
        let from = |client: &str, ms| {
            let mut batch = sent(1, Vec::new());
            batch.operation = Arc::new(Operation { connection: connection(client, Side::Client), ..operation(0, "shop", ms) });
            Observation::Sent(batch)
        };
        let mut metrics = Metrics::new(MetricSettings { max_services: 2, ..MetricSettings::default() });
        for client in ["10.0.1.1:1", "10.0.1.2:1", "10.0.1.3:1", "10.0.1.2:2"] {
            metrics.observe(&from(client, 10));
        }
        let read = |metrics: &Metrics| {
            let mut instances = Vec::new();
            metrics.sources().collect(&mut |read| {
                assert_eq!(read.scope_metrics().next().unwrap().scope().name(), "kafka-tracer");
                instances.push(read.resource().get(&"service.instance.id".into()).unwrap().to_string());
            });
            instances.sort();
            instances
        };
        assert_eq!(read(&metrics), ["10.0.1.1", "10.0.1.2", "10.0.1.3"], "the third took the first's place, which is read once more");
        assert_eq!(read(&metrics), ["10.0.1.2", "10.0.1.3"]);
        metrics.tick(at(16).plus(IDLE));
        assert_eq!(read(&metrics), ["10.0.1.2", "10.0.1.3"], "once more");
        assert!(read(&metrics).is_empty());
        assert_eq!(metrics.forgotten_services(), 0);
    }

    #[test]
    fn health_counters_show_what_was_published_last() {
        let resource = Resource::builder_empty().with_service_name("kafka-tracer").build();
        let mut meter = HealthMeter::new(resource, &MetricSettings::default());
        for factor in [1, 10] {
            let mut health = HealthSnapshot::default();
            health.add(metric::STREAM_GAPS, 2 * factor);
            health.add_by(metric::CAPTURE_LOST, semconv::REASON, "ring_full", 3 * factor);
            health.add_by(metric::CAPTURE_LOST, semconv::REASON, format!("cut_{}", 1), 4 * factor);
            meter.publish(health);
        }
        let mut metrics = ResourceMetrics::default();
        meter.collect(&mut metrics).unwrap();
        let mut lines = show(&metrics);
        lines.sort();
        assert_eq!(
            lines,
            [
                "kafka_tracer.capture.lost [By] 30 reason=ring_full",
                "kafka_tracer.capture.lost [By] 40 reason=cut_1",
                "kafka_tracer.stream.gaps [{gap}] 20",
            ]
        );
        assert_eq!(metrics.resource().get(&"service.name".into()), Some("kafka-tracer".into()));
    }
}
