//! Observations to metrics, through the SDK's meter: one provider per observed service, read on demand by whoever
//! exports. Counted before sampling and whatever the spans' scope; of both ends of a connection, the client's only,
//! except for the duration of requests, which says which end it was.

#![forbid(unsafe_code)]

mod members;
mod positions;
mod service;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use hashlink::LruCache;
use opentelemetry::{SpanId, TraceId};
use opentelemetry_sdk::metrics::Temporality;

use self::members::{Members, Rebalance};
use self::positions::{Place, Positions, ServiceId};
use self::service::{Gauges, Series, Server, Service};
pub use self::source::{HealthMeter, MetricSources, scope};
use super::joins::{BatchSpan, Before, FetchedSpans, Fetches, Fingerprint, Reader, SeenSend, SentBatches, TopicInstance, TopicKey};
use super::semconv::{self, metric};
use super::{HealthSnapshot, OperationName, ResourceKey, SentClock, error_type, is_fetch_failure};
use crate::kafka::{errors, versions};
use crate::observe::{
    Commit, Connection, ConnectionEvent, ConnectionEventKind, Exchange, FetchFailure, FetchedBatch, GroupEvent, MAX_REMEMBERED_BYTES,
    Observation, Operation, Outcome, Poll, SentBatch, Side, Told, Topic, TransactionEnd,
};
use crate::time::Timestamp;

/// Buckets of `messaging.client.operation.duration`, in seconds: the conventions'.
pub const DURATION_BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// A service that was not heard of for this long is read once more and then forgotten.
const IDLE: Duration = Duration::from_mins(30);
/// What was sent or fetched is remembered for this long.
const JOIN_AGE: Duration = Duration::from_hours(1);
/// How many sent batches are remembered, for the time from end to end.
const MAX_SENT_BATCHES: usize = 32_768;
/// How many fetched batches are remembered, for the delay of commits.
const MAX_FETCHED_BATCHES: usize = 32_768;
/// How many partitions' commits of all groups are shown, and how many positions of consumers.
const MAX_POSITIONS: usize = 20_000;

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

/// Counts observations in the meters of the services they belong to.
#[derive(Debug)]
pub struct Metrics {
    settings: MetricSettings,
    sources: MetricSources,
    services: LruCache<ResourceKey, Service>,
    next_service: ServiceId,
    /// The exchange and partition whose duration was recorded last: a partition's batches come one after another.
    last_exchange: Option<(Arc<Operation>, Topic, i32)>,
    positions: Positions,
    members: Members,
    sent: SentBatches,
    fetches: Fetches,
    forgotten_services: u64,
    long_names: u64,
}

impl Metrics {
    /// Without any service yet.
    pub fn new(settings: MetricSettings) -> Self {
        Self {
            services: LruCache::new(settings.max_services.max(1)),
            sources: MetricSources::default(),
            next_service: 1,
            last_exchange: None,
            positions: Positions::new(MAX_POSITIONS, settings.max_series.max(1)),
            members: Members::new(),
            sent: SentBatches::new(MAX_SENT_BATCHES),
            fetches: Fetches::new(MAX_FETCHED_BATCHES),
            forgotten_services: 0,
            long_names: 0,
            settings,
        }
    }

    /// The reading end.
    pub fn sources(&self) -> MetricSources {
        self.sources.clone()
    }

    /// Adds what was given up to what the tracer says of its own health.
    pub fn report(&self, health: &mut HealthSnapshot) {
        health.add_by(metric::METRICS_LOST, semconv::REASON, "services", self.forgotten_services);
        health.add_by(metric::METRICS_LOST, semconv::REASON, "positions", self.positions.dropped());
        health.add_by(metric::METRICS_LOST, semconv::REASON, "long_names", self.long_names);
    }

    /// Counts one observation. Those with names that nobody has but to fill memory are left out.
    pub fn observe(&mut self, observation: &Observation) {
        if has_long_name(observation) {
            self.long_names += 1;
            return;
        }
        match observation {
            Observation::Sent(sent) => self.observe_sent(sent),
            Observation::Fetched(fetched) => self.observe_fetched(fetched),
            Observation::FetchFailed(failure) => self.observe_failure(failure),
            Observation::Commit(commit) => self.observe_commit(commit),
            Observation::Exchange(exchange) => self.observe_exchange(exchange),
            Observation::Poll(poll) => self.observe_poll(poll),
            Observation::Group(event) => self.observe_group(event),
            Observation::Transaction(end) => self.observe_transaction(end),
            Observation::Connection(event) => self.observe_connection(event),
        }
    }

    /// Lets time pass: services that fell silent are read once more and forgotten.
    pub fn tick(&mut self, now: Timestamp) {
        self.positions.tick(now);
        self.members.tick(now);
        self.sent.forget(now, JOIN_AGE);
        self.fetches.forget(now, JOIN_AGE);
        for (_, service) in &mut self.services {
            service.tick(now);
        }
        while let Some((_, service)) = self.services.iter().next() {
            if now.since(service.last_used) < IDLE {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, service)) = self.services.remove_lru() {
            self.positions.forget(service.id);
            self.forgotten_services += u64::from(!self.sources.retire(&service.source));
        }
    }

    /// The service of an operation, made when it is new.
    fn service(&mut self, operation: &Operation) -> Option<&mut Service> {
        self.service_of(&operation.connection, ended_at(operation))
    }

    fn service_of(&mut self, connection: &Connection, at: Timestamp) -> Option<&mut Service> {
        let key = ResourceKey::of(connection);
        if self.services.get(&key).is_none() {
            if self.services.len() >= self.services.capacity() {
                self.forget_oldest();
            }
            let service = Service::new(&key, self.next_service, (&self.positions, &self.members), &self.settings);
            self.next_service += 1;
            self.sources.add(Arc::clone(&service.source));
            self.services.insert(key.clone(), service);
        }
        let service = self.services.get_mut(&key)?;
        service.last_used = service.last_used.max(at);
        Some(service)
    }

    fn observe_sent(&mut self, sent: &SentBatch) {
        let operation = &*sent.operation;
        let base_offset = sent.base_offset.filter(|_| sent.outcome == Outcome::Success);
        let place = Place { operation, topic: &sent.topic, partition: sent.partition };
        let told = Told { high_watermark: sent.end_offset(), ..Told::default() };
        if sent.header.control || operation.connection.side != Side::Client {
            self.positions.told(None, &place, told, false, ended_at(operation));
            return;
        }
        if let Some(topic) = TopicKey::of(&sent.topic) {
            let print = Fingerprint::of(topic, sent.partition, &sent.header);
            let seen = SeenSend::new(sent, (TraceId::INVALID, SpanId::INVALID), false, false);
            match base_offset {
                Some(base) if self.sent.before(&print, base, operation, &sent.topic) == Before::SameBatch => {}
                Some(base) => self.sent.insert_stored(print, base, seen),
                None if matches!(sent.outcome, Outcome::Error(_)) => {}
                None => self.sent.insert_unacknowledged(print, seen, sent.retry),
            }
        }
        let first = self.first_of_exchange(&sent.operation, &sent.topic, sent.partition);
        let series = self.messaging(OperationName::Send, operation, &sent.topic, sent.partition, None, sent.outcome);
        let took = duration(OperationName::Send, operation, sent.outcome).filter(|_| first);
        let batch = Series::Batch { topic: sent.topic.name.clone(), codec: sent.header.codec.name() };
        let size = u64::from(sent.header.size_bytes);
        let Some(service) = self.service(operation) else { return };
        if let Some(series) = series {
            let mut of = service.of(series);
            if let Some(took) = took {
                of.value(took.as_secs_f64());
            }
            of.count(u64::from(sent.record_count));
        }
        if sent.retry {
            service.of(Series::Retry { topic: sent.topic.name.clone() }).count(1);
        }
        let mut of = service.of(batch);
        of.batch(size, u64::from(sent.record_count));
        if let (Some(uncompressed), false) = (sent.uncompressed_bytes, sent.header.codec == crate::observe::Codec::None)
            && size > 0
        {
            #[expect(clippy::cast_precision_loss, reason = "a ratio")]
            of.value(uncompressed as f64 / size as f64);
        }
        service.show(Gauges::Partitions);
        let id = service.id;
        if sent.outcome == Outcome::Success || sent.outcome == Outcome::Unacknowledged {
            self.positions.told(Some(id), &place, told, true, ended_at(operation));
        }
    }

    fn observe_fetched(&mut self, fetched: &FetchedBatch) {
        let operation = &*fetched.operation;
        let place = Place { operation, topic: &fetched.topic, partition: fetched.partition };
        let told = Told {
            high_watermark: fetched.high_watermark.filter(|end| *end >= 0),
            last_stable_offset: fetched.last_stable_offset,
            log_start_offset: fetched.log_start_offset,
        };
        if operation.connection.side != Side::Client {
            self.positions.told(None, &place, told, false, ended_at(operation));
            return;
        }
        let delivered = if fetched.header.control { 0 } else { fetched.delivered.delivered };
        let first = self.first_of_exchange(&fetched.operation, &fetched.topic, fetched.partition);
        let group = fetched.group.clone();
        let series = self.messaging(OperationName::Fetch, operation, &fetched.topic, fetched.partition, group, Outcome::Success);
        let took = duration(OperationName::Fetch, operation, Outcome::Success).filter(|_| first);
        let end_to_end = if delivered == 0 || fetched.redelivered { None } else { self.end_to_end(fetched) };
        if let Some(topic) = TopicKey::of(&fetched.topic).filter(|_| !fetched.several_groups) {
            let first_offset = fetched.header.base_offset;
            let last_offset = fetched.header.last_offset();
            let (fetched_at, batch, records) = (ended_at(operation), BatchSpan::None, Box::default());
            let instance = TopicInstance::of(operation, &fetched.topic);
            let spans = FetchedSpans { topic: instance, first_offset, last_offset, read_to: last_offset, fetched_at, batch, records };
            self.fetches.insert((Reader::of(fetched.group.as_ref(), operation), topic, fetched.partition), spans);
        }
        let Some(service) = self.service(operation) else { return };
        if let Some(series) = series {
            let mut of = service.of(series);
            if let Some(took) = took {
                of.value(took.as_secs_f64());
            }
            if delivered > 0 {
                of.count(u64::from(delivered));
            }
        }
        if fetched.redelivered && delivered > 0 {
            let again = Series::Redelivery { topic: fetched.topic.name.clone(), group: fetched.group.clone() };
            service.of(again).count(u64::from(delivered));
        }
        if let Some((seconds, clock)) = end_to_end {
            let mut of = service.of(Series::EndToEnd { topic: fetched.topic.name.clone(), group: fetched.group.clone(), clock });
            if seconds < 0.0 {
                of.count(1);
            } else {
                of.value(seconds);
            }
        }
        service.show(Gauges::Partitions);
        let id = service.id;
        self.positions.told(Some(id), &place, told, !fetched.header.control, ended_at(operation));
    }

    fn observe_poll(&mut self, poll: &Poll) {
        let operation = &*poll.operation;
        if operation.connection.side == Side::Client
            && let Some(service) = self.service(operation)
        {
            service.show(Gauges::Partitions);
            service.show(Gauges::Readings);
            let id = service.id;
            self.positions.polled(id, poll, ended_at(operation));
        }
    }

    fn observe_group(&mut self, event: &GroupEvent) {
        let operation = &*event.operation;
        if operation.connection.side != Side::Client {
            return;
        }
        let Some(service) = self.service(operation) else { return };
        service.show(Gauges::Members);
        let id = service.id;
        let Rebalance { begun, revokes, took } = self.members.event(id, event, ended_at(operation));
        if revokes {
            self.positions.rebalanced(id, &event.group);
        }
        if let Some(service) = self.service(operation).filter(|_| begun || took.is_some()) {
            let mut of = service.of(Series::Rebalance { group: Arc::clone(&event.group) });
            if begun {
                of.count(1);
            }
            if let Some(took) = took {
                of.value(took.as_secs_f64());
            }
        }
    }

    fn observe_transaction(&mut self, end: &TransactionEnd) {
        let operation = &*end.operation;
        if operation.connection.side != Side::Client {
            return;
        }
        let series = Series::Transaction { committed: end.committed, error: error_type(end.outcome) };
        if let Some(service) = self.service(operation) {
            service.of(series).count(1);
        }
    }

    fn observe_connection(&mut self, event: &ConnectionEvent) {
        if event.connection.side != Side::Client {
            return;
        }
        match &event.kind {
            ConnectionEventKind::Closed { .. } => self.positions.closed(event.connection.id),
            ConnectionEventKind::AuthenticationFailed { mechanism, error } => {
                let series = Series::Authentication { mechanism: Arc::clone(mechanism), error: errors::name(*error) };
                if let Some(service) = self.service_of(&event.connection, event.time) {
                    service.of(series).count(1);
                }
            }
            ConnectionEventKind::Confirmed
            | ConnectionEventKind::NeverConfirmed
            | ConnectionEventKind::Authenticated { .. }
            | ConnectionEventKind::Encrypted
            | ConnectionEventKind::LostSync
            | ConnectionEventKind::RegainedSync => {}
        }
    }

    /// From the first record's being sent to its being fetched, in seconds.
    fn end_to_end(&self, fetched: &FetchedBatch) -> Option<(f64, SentClock)> {
        let (operation, header) = (&*fetched.operation, &fetched.header);
        let seen = TopicKey::of(&fetched.topic).and_then(|topic| {
            let print = Fingerprint::of(topic, fetched.partition, header);
            self.sent.find(&print, header, operation, &fetched.topic)
        });
        let (from_ns, clock) = match (seen, header.log_append_time) {
            (Some(seen), _) => (i128::from(seen.sent_at.unix_ns()), SentClock::Host),
            (None, true) => (i128::from(header.max_timestamp_ms.filter(|ms| *ms >= 0)?) * 1_000_000, SentClock::Append),
            (None, false) => (i128::from(header.base_timestamp_ms.filter(|ms| *ms >= 0)?) * 1_000_000, SentClock::Create),
        };
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a century are good to a microsecond in a double")]
        let seconds = (i128::from(ended_at(operation).unix_ns()) - from_ns) as f64 / 1e9;
        Some((seconds, clock))
    }

    fn observe_failure(&mut self, failure: &FetchFailure) {
        let operation = &*failure.operation;
        if operation.connection.side != Side::Client || !is_fetch_failure(failure.outcome) {
            return;
        }
        let group = failure.group.clone();
        let series = self.messaging(OperationName::Fetch, operation, &failure.topic, failure.partition, group, failure.outcome);
        let took = duration(OperationName::Fetch, operation, failure.outcome);
        self.record_duration(operation, series, took);
    }

    fn observe_commit(&mut self, commit: &Commit) {
        let operation = &*commit.operation;
        if operation.connection.side != Side::Client {
            return;
        }
        let group = Some(Arc::clone(&commit.group));
        let series = self.messaging(OperationName::Commit, operation, &commit.topic, commit.partition, group, commit.outcome);
        let took = duration(OperationName::Commit, operation, commit.outcome);
        self.record_duration(operation, series, took);
        if commit.outcome != Outcome::Success {
            return;
        }
        let delay = self.fetched_at(commit).map(|fetched_at| operation.request_first.since(fetched_at)).filter(|_| commit.moves);
        let delayed = Series::CommitDelay { topic: commit.topic.name.clone(), group: Arc::clone(&commit.group) };
        let Some(service) = self.service(operation) else { return };
        if let Some(delay) = delay {
            service.of(delayed).value(delay.as_secs_f64());
        }
        let id = service.id;
        // A share group has no position to be behind of.
        if commit.acknowledged.is_none() {
            service.show(Gauges::Committed);
            self.positions.committed(id, commit, ended_at(operation));
        }
    }

    /// When the last offset before the committed one was fetched.
    fn fetched_at(&self, commit: &Commit) -> Option<Timestamp> {
        let (topic, last_read) = (TopicKey::of(&commit.topic)?, commit.offset.saturating_sub(1));
        let instance = TopicInstance::of(&commit.operation, &commit.topic);
        let group = (Reader::of(Some(&commit.group), &commit.operation), topic, commit.partition);
        let spans = self.fetches.find(&group, &instance, last_read).or_else(|| {
            let client = (Reader::client(&commit.operation), group.1, group.2);
            self.fetches.find(&client, &instance, last_read)
        });
        spans.map(|spans| spans.fetched_at)
    }

    fn observe_exchange(&mut self, exchange: &Exchange) {
        /// Kafka's numbers of Fetch and `ShareFetch`.
        const FETCHES: [i16; 2] = [1, 78];
        let operation = &*exchange.operation;
        let api = versions::name(operation.api_key);
        let side = operation.connection.side;
        let waits = FETCHES.contains(&operation.api_key) && !exchange.inter_broker && side == Side::Client;
        let server = Server::of(operation);
        let Some((first, last)) = operation.response else { return };
        let Some(service) = self.service(operation) else { return };
        if waits {
            service.of(Series::FetchWait { server: server.clone() }).value(first.since(operation.request_last).as_secs_f64());
        }
        if operation.throttle_ms > 0 && side == Side::Client {
            service.of(Series::Throttle { api }).value(f64::from(operation.throttle_ms) / 1_000.0);
        }
        let request = Series::Request { api, error: error_type(exchange.outcome), server, side };
        service.of(request).value(last.since(operation.request_first).as_secs_f64());
    }

    fn record_duration(&mut self, operation: &Operation, series: Option<Series>, took: Option<Duration>) {
        if let (Some(series), Some(took)) = (series, took)
            && let Some(service) = self.service(operation)
        {
            service.of(series).value(took.as_secs_f64());
        }
    }

    fn messaging(
        &self,
        operation: OperationName,
        of: &Operation,
        topic: &Topic,
        partition: i32,
        group: Option<Arc<str>>,
        outcome: Outcome,
    ) -> Option<Series> {
        self.settings.messaging.then(|| Series::Messaging {
            operation,
            topic: topic.name.clone(),
            partition: self.settings.partition.then_some(partition),
            group,
            server: Server::of(of),
            error: error_type(outcome),
        })
    }

    /// Whether this is the first batch of its partition in its exchange.
    fn first_of_exchange(&mut self, operation: &Arc<Operation>, topic: &Topic, partition: i32) -> bool {
        let again =
            self.last_exchange.as_ref().is_some_and(|(last, of, at)| Arc::ptr_eq(last, operation) && *at == partition && of == topic);
        if !again {
            self.last_exchange = Some((Arc::clone(operation), topic.clone(), partition));
        }
        !again
    }
}

/// Whether a name would be remembered that is longer than names are.
fn has_long_name(observation: &Observation) -> bool {
    let is_long = |name: Option<&Arc<str>>| name.is_some_and(|name| name.len() > MAX_REMEMBERED_BYTES);
    match observation {
        Observation::Sent(sent) => is_long(sent.topic.name.as_ref()),
        Observation::Fetched(fetched) => is_long(fetched.topic.name.as_ref()) || is_long(fetched.group.as_ref()),
        Observation::FetchFailed(failure) => is_long(failure.topic.name.as_ref()) || is_long(failure.group.as_ref()),
        Observation::Poll(poll) => is_long(poll.group.as_ref()) || poll.partitions.iter().any(|polled| is_long(polled.topic.name.as_ref())),
        Observation::Commit(commit) => is_long(commit.topic.name.as_ref()) || is_long(Some(&commit.group)),
        Observation::Group(event) => is_long(Some(&event.group)),
        Observation::Connection(event) => match &event.kind {
            ConnectionEventKind::AuthenticationFailed { mechanism, .. } => is_long(Some(mechanism)),
            _ => false,
        },
        Observation::Transaction(_) | Observation::Exchange(_) => false,
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

fn ended_at(operation: &Operation) -> Timestamp {
    operation.response.map_or(operation.request_last, |(_, last)| last)
}
