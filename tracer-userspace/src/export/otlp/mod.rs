//! Spans and metrics out by OTLP: gRPC, HTTP/protobuf or HTTP/JSON, through `opentelemetry-otlp`.
//!
//! In: [`FinishedSpan`]s from the pipeline's thread, which never waits, and the reading end of the meters. Out: requests
//! of one resource each, over one connection. One task sends spans and one reads and sends metrics; no thread belongs to
//! a service. What a Collector does not take is kept within bounds, then dropped and counted.

#![forbid(unsafe_code)]

mod queue;
mod transport;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashlink::LruCache;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use self::queue::{Batch, Queue};
use self::transport::Transport;
pub use self::transport::TransportError;
use super::settings::{Batching, Collection, Settings};
use crate::telemetry::metrics::MetricSources;
use crate::telemetry::semconv::{self, metric};
use crate::telemetry::{FinishedSpan, HealthSnapshot, ResourceKey};

/// Services whose exporters are kept.
const MAX_EXPORTERS: usize = 1_000;
/// Requests on their way at a time.
const MAX_IN_FLIGHT: usize = 8;

/// Meters that can be read.
pub trait MetricSource: Send + Sync + std::fmt::Debug {
    /// Reads them and hands them over, one resource a call.
    fn collect(&self, each: &mut dyn FnMut(&ResourceMetrics));
}

impl MetricSource for MetricSources {
    fn collect(&self, each: &mut dyn FnMut(&ResourceMetrics)) {
        self.collect(each);
    }
}

/// Exports spans and metrics by OTLP until it is shut down.
#[derive(Debug)]
pub struct Otlp {
    shared: Arc<Shared>,
    runtime: Runtime,
    done: Vec<std::sync::mpsc::Receiver<()>>,
}

/// What was left when the exporter was shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flushed {
    /// Everything was delivered or refused within the deadline.
    pub clean: bool,
    /// Spans that were not delivered.
    pub unsent_spans: u64,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Notify,
    /// Woken once, for the task that sends metrics.
    wake_metrics: Notify,
    closing: AtomicBool,
    counters: Counters,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

/// What became of spans, requests and readings of meters. Each span that came in is in one of the span counters, in the
/// queue, or on its way.
#[derive(Debug, Default)]
struct Counters {
    accepted_spans: AtomicU64,
    sent_spans: AtomicU64,
    full_spans: AtomicU64,
    refused_spans: AtomicU64,
    given_up_spans: AtomicU64,
    good_requests: AtomicU64,
    failed_requests: AtomicU64,
    sent_metrics: AtomicU64,
    failed_metrics: AtomicU64,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
}

impl Otlp {
    /// Starts to export what `settings` send by OTLP; `None` when they send nothing that way.
    pub fn start(settings: &Settings, metrics: Vec<Box<dyn MetricSource>>) -> Result<Option<Self>, TransportError> {
        if settings.traces.otlp.is_none() && settings.metrics.otlp.is_none() {
            return Ok(None);
        }
        let batching = settings.batching;
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::new(batching.max_queue_spans, batching.max_queue_bytes, batching.max_batch_spans)),
            wake: Notify::new(),
            wake_metrics: Notify::new(),
            closing: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            // Names are looked up there, and metrics are read there.
            .max_blocking_threads(4)
            .thread_name("export")
            .enable_all()
            .build()
            .map_err(TransportError::Runtime)?;
        let entered = runtime.enter();
        let mut done = Vec::new();
        let mut traces_transport = None;
        if let Some(endpoint) = &settings.traces.otlp {
            let transport = Transport::new(endpoint.clone())?;
            // A configuration that makes no exporter is an error now and not at the first span.
            transport.span_exporter()?;
            traces_transport = Some(transport.clone());
            let (finished, receiver) = std::sync::mpsc::channel();
            done.push(receiver);
            let sender = SpanSender {
                shared: Arc::clone(&shared),
                link: Link::new(transport, "spans"),
                batching,
                exporters: LruCache::new(MAX_EXPORTERS),
            };
            runtime.spawn(async move {
                sender.run().await;
                drop(finished);
            });
        }
        if let Some(endpoint) = &settings.metrics.otlp {
            let transport = match &traces_transport {
                Some(transport) => transport.shared_or_new(endpoint.clone())?,
                None => Transport::new(endpoint.clone())?,
            };
            let collection = settings.collection;
            let exporter = transport.metric_exporter(collection.temporality)?;
            let (finished, receiver) = std::sync::mpsc::channel();
            done.push(receiver);
            let sender =
                MetricSender { shared: Arc::clone(&shared), link: Link::new(transport, "metrics"), collection, exporter, sources: metrics };
            runtime.spawn(async move {
                sender.run().await;
                drop(finished);
            });
        }
        drop(entered);
        Ok(Some(Self { shared, runtime, done }))
    }

    /// Takes a span; never waits. A span for which there is no room is dropped and counted.
    pub fn export(&self, span: FinishedSpan) {
        let counters = &self.shared.counters;
        counters.accepted_spans.fetch_add(1, Ordering::Relaxed);
        match self.shared.queue().push(span) {
            Ok(false) => {}
            Ok(true) => self.shared.wake.notify_one(),
            Err(()) => drop(counters.full_spans.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Spans that wait now.
    pub fn waiting(&self) -> usize {
        self.shared.queue().len()
    }

    /// Adds what was counted to what the tracer says of its own health.
    pub fn report(&self, health: &mut HealthSnapshot) {
        let counters = &self.shared.counters;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, result, counter) in [
            (metric::EXPORT_SPANS, "sent", &counters.sent_spans),
            (metric::EXPORT_SPANS, "queue_full", &counters.full_spans),
            (metric::EXPORT_SPANS, "refused", &counters.refused_spans),
            (metric::EXPORT_SPANS, "given_up", &counters.given_up_spans),
            (metric::EXPORT_REQUESTS, "sent", &counters.good_requests),
            (metric::EXPORT_REQUESTS, "failed", &counters.failed_requests),
            (metric::EXPORT_METRICS, "sent", &counters.sent_metrics),
            (metric::EXPORT_METRICS, "failed", &counters.failed_metrics),
        ] {
            health.add_by(name, semconv::RESULT, result, value(counter));
        }
    }

    /// Sends what waits, reads the meters a last time, and ends; whatever is not out by `deadline` is lost and told.
    pub fn shutdown(self, deadline: Duration) -> Flushed {
        let end = Instant::now() + deadline;
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.notify_one();
        self.shared.wake_metrics.notify_one();
        let mut clean = true;
        for done in &self.done {
            let left = end.saturating_duration_since(Instant::now());
            clean &= !matches!(done.recv_timeout(left), Err(std::sync::mpsc::RecvTimeoutError::Timeout));
        }
        self.runtime.shutdown_background();
        let counters = &self.shared.counters;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let settled =
            value(&counters.sent_spans) + value(&counters.full_spans) + value(&counters.refused_spans) + value(&counters.given_up_spans);
        let unsent_spans = value(&counters.accepted_spans).saturating_sub(settled);
        Flushed { clean: clean && unsent_spans == 0, unsent_spans }
    }
}

/// How sending failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// Nobody there, or not able now: the same may work later.
    Away,
    /// Not taken, and it would not be taken later.
    Refused,
}

/// The exporter's crate tells failures apart only in its words, and retries by itself what is worth it at once.
fn failure(error: &OTelSdkError) -> Failure {
    let text = match error {
        OTelSdkError::InternalFailure(text) => text.as_str(),
        OTelSdkError::Timeout(_) => return Failure::Away,
        OTelSdkError::AlreadyShutdown => return Failure::Refused,
    };
    if let Some((_, status)) = text.split_once("status code: ") {
        return if matches!(status, "408" | "429" | "502" | "503" | "504") { Failure::Away } else { Failure::Refused };
    }
    if let Some((_, code)) = text.split_once("gRPC code: ") {
        let code = code.split(':').next().unwrap_or(code);
        let refused =
            ["InvalidArgument", "NotFound", "AlreadyExists", "PermissionDenied", "FailedPrecondition", "Unimplemented", "Unauthenticated"]
                .contains(&code);
        return if refused { Failure::Refused } else { Failure::Away };
    }
    if text.contains("network error") { Failure::Away } else { Failure::Refused }
}

/// The way to the endpoint of one signal, and whether it is open.
#[derive(Debug)]
struct Link {
    transport: Transport,
    signal: &'static str,
    /// Since when nothing gets through.
    failing_since: Option<Instant>,
}

impl Link {
    const fn new(transport: Transport, signal: &'static str) -> Self {
        Self { transport, signal, failing_since: None }
    }

    const fn failing(&self) -> bool {
        self.failing_since.is_some()
    }

    fn failed(&mut self, error: &OTelSdkError, failure: Failure) {
        let cause = self.transport.take_cause();
        if self.failing_since.is_some() {
            return;
        }
        self.failing_since = Some(Instant::now());
        let (endpoint, signal) = (self.transport.endpoint(), self.signal);
        let error = match (error, cause) {
            (OTelSdkError::InternalFailure(text), Some(cause)) if text.contains("network error") => cause,
            (OTelSdkError::InternalFailure(text), _) => text.clone(),
            (other, _) => other.to_string(),
        };
        match failure {
            Failure::Away => {
                warn!(%endpoint, signal, error, "The OTLP endpoint cannot be reached; the tracer goes on, keeps what fits its queue, and tries again.");
            }
            Failure::Refused => {
                warn!(%endpoint, signal, error, "The OTLP endpoint refuses what it is sent, which is lost; check endpoint, protocol and headers.");
            }
        }
    }

    fn worked(&mut self) {
        if let Some(since) = self.failing_since.take() {
            let (endpoint, signal) = (self.transport.endpoint(), self.signal);
            info!(%endpoint, signal, away_seconds = since.elapsed().as_secs(), "The OTLP endpoint takes telemetry again.");
        }
    }
}

/// Sends spans.
struct SpanSender {
    shared: Arc<Shared>,
    link: Link,
    batching: Batching,
    exporters: LruCache<ResourceKey, Arc<SpanExporter>>,
}

impl SpanSender {
    async fn run(mut self) {
        let mut tick = interval(self.batching.delay);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            let whole = tokio::select! {
                _ = tick.tick() => false,
                () = self.shared.wake.notified() => true,
            };
            let closing = self.shared.closing();
            // While nothing gets through, one batch at each tick finds out whether it does again.
            if whole && self.link.failing() && !closing {
                continue;
            }
            self.send_waiting(whole && !closing).await;
            if closing && (self.link.failing() || self.shared.queue().len() == 0) {
                return;
            }
        }
    }

    async fn send_waiting(&mut self, whole: bool) {
        loop {
            let limit = if self.link.failing() { 1 } else { MAX_IN_FLIGHT };
            let batches = self.shared.queue().take(limit, whole);
            if batches.is_empty() {
                return;
            }
            let mut requests = JoinSet::new();
            for batch in batches {
                match self.exporter(&batch.resource) {
                    Ok(exporter) => drop(requests.spawn(send(exporter, batch, self.batching.export_timeout))),
                    Err(error) => {
                        self.link.failed(&OTelSdkError::InternalFailure(error.to_string()), Failure::Refused);
                        add(&self.shared.counters.refused_spans, batch.spans.len());
                    }
                }
            }
            let mut away = false;
            while let Some(finished) = requests.join_next().await {
                // A request's task does not panic by anything that is known; what it held would be lost and uncounted.
                let Ok((batch, result)) = finished else { continue };
                away |= self.settle(batch, result);
            }
            if away {
                return;
            }
        }
    }

    /// Counts what became of a batch; true when it is to be tried again later.
    fn settle(&mut self, batch: Batch, result: Result<(), OTelSdkError>) -> bool {
        let counters = &self.shared.counters;
        let Err(error) = result else {
            self.link.worked();
            add(&counters.sent_spans, batch.spans.len());
            add(&counters.good_requests, 1);
            self.shared.queue().forgive(&batch.resource);
            return false;
        };
        add(&counters.failed_requests, 1);
        let failure = failure(&error);
        self.link.failed(&error, failure);
        match failure {
            Failure::Refused => add(&counters.refused_spans, batch.spans.len()),
            Failure::Away => add(&counters.given_up_spans, self.shared.queue().put_back(batch)),
        }
        failure == Failure::Away
    }

    fn exporter(&mut self, resource: &ResourceKey) -> Result<Arc<SpanExporter>, TransportError> {
        if let Some(exporter) = self.exporters.get(resource) {
            return Ok(Arc::clone(exporter));
        }
        let mut exporter = self.link.transport.span_exporter()?;
        exporter.set_resource(&resource.to_resource());
        let exporter = Arc::new(exporter);
        self.exporters.insert(resource.clone(), Arc::clone(&exporter));
        Ok(exporter)
    }
}

async fn send(exporter: Arc<SpanExporter>, batch: Batch, limit: Duration) -> (Batch, Result<(), OTelSdkError>) {
    // The exporter takes the spans; those that do not get through are needed again.
    let result = timeout(limit, exporter.export(batch.spans.clone())).await.unwrap_or(Err(OTelSdkError::Timeout(limit)));
    (batch, result)
}

/// Reads and sends metrics.
struct MetricSender {
    shared: Arc<Shared>,
    link: Link,
    collection: Collection,
    exporter: opentelemetry_otlp::MetricExporter,
    sources: Vec<Box<dyn MetricSource>>,
}

impl MetricSender {
    async fn run(mut self) {
        let mut tick = interval(self.collection.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.shared.wake_metrics.notified() => {}
            }
            // Read before the last look, so that nothing counted before the end is left out.
            let closing = self.shared.closing();
            let Ok(sender) = tokio::task::spawn_blocking(move || self.send_all()).await else { return };
            self = sender;
            if closing {
                return;
            }
        }
    }

    /// Runs where waiting is allowed: the meters hand out their values one service at a time, to be sent at once.
    fn send_all(mut self) -> Self {
        let Self { shared, link, collection, exporter, sources } = &mut self;
        let mut away = false;
        let mut each = |metrics: &ResourceMetrics| {
            if away {
                add(&shared.counters.failed_metrics, 1);
                return;
            }
            let limit = collection.timeout;
            let result = Handle::current()
                .block_on(async { timeout(limit, exporter.export(metrics)).await.unwrap_or(Err(OTelSdkError::Timeout(limit))) });
            match result {
                Ok(()) => {
                    link.worked();
                    add(&shared.counters.sent_metrics, 1);
                    add(&shared.counters.good_requests, 1);
                }
                Err(error) => {
                    let failure = failure(&error);
                    link.failed(&error, failure);
                    away = failure == Failure::Away;
                    add(&shared.counters.failed_metrics, 1);
                    add(&shared.counters.failed_requests, 1);
                }
            }
        };
        for source in sources {
            source.collect(&mut each);
        }
        self
    }
}

#[cfg(test)]
pub(crate) mod tests;
