//! Where observations become what is told: spans and metrics, on their way to the exporters.
//!
//! In: observations from the pipeline, and the time. Out: spans to OTLP and text, recordings in the meters, the tracer's
//! own health, verdicts for the source.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::debug;

use super::lines::{Lines, Writer};
use crate::counters::Counters;
use crate::enrich::Enricher;
use crate::export::otlp::{Flushed, MetricSource};
use crate::export::records::write_records;
use crate::export::{Otlp, Text};
use crate::observe::{ConnectionEvent, ConnectionEventKind, Observation, Process};
use crate::pipeline::Sink;
use crate::source::{SocketKey, Verdict};
use crate::telemetry::metrics::{HealthMeter, Metrics};
use crate::telemetry::{FinishedSpan, HealthSnapshot, Telemetry};
use crate::time::Timestamp;

/// Verdicts that wait for the source at most; a socket without one asks again.
const MAX_VERDICTS: usize = 65_536;
/// How often old joins and silent services are forgotten.
const TICK: Duration = Duration::from_secs(1);

/// Takes what the pipeline gives out.
#[derive(Debug)]
pub(super) struct Teller {
    telemetry: Telemetry,
    metrics: Metrics,
    health: Arc<Mutex<HealthMeter>>,
    enricher: Enricher,
    otlp: Option<Otlp>,
    console: Option<Console>,
    verdicts: Vec<(SocketKey, Verdict)>,
    now: Timestamp,
    last_tick: Timestamp,
}

/// What is printed on standard output.
#[derive(Debug)]
pub(super) enum Console {
    /// Spans, for people.
    Text(Text<Lines>, Writer),
    /// Records, one JSON object a line.
    Records(Lines, Writer),
}

impl Console {
    fn writer(&self) -> &Writer {
        match self {
            Self::Text(_, writer) | Self::Records(_, writer) => writer,
        }
    }
}

/// The meter of the tracer's own health, read by the exporter.
#[derive(Clone, Debug)]
pub(super) struct SharedHealth(pub(super) Arc<Mutex<HealthMeter>>);

impl MetricSource for SharedHealth {
    fn collect(&self, each: &mut dyn FnMut(&opentelemetry_sdk::metrics::data::ResourceMetrics)) {
        let mut metrics = opentelemetry_sdk::metrics::data::ResourceMetrics::default();
        let collected = self.0.lock().unwrap_or_else(PoisonError::into_inner).collect(&mut metrics);
        if collected.is_ok() && metrics.scope_metrics().next().is_some() {
            each(&metrics);
        }
    }
}

impl Teller {
    pub(super) fn new(
        telemetry: Telemetry,
        metrics: Metrics,
        health: Arc<Mutex<HealthMeter>>,
        enricher: Enricher,
        otlp: Option<Otlp>,
        console: Option<Console>,
    ) -> Self {
        Self { telemetry, metrics, health, enricher, otlp, console, verdicts: Vec::new(), now: Timestamp::ZERO, last_tick: Timestamp::ZERO }
    }

    /// True when all that was to be told goes to a reader that went away.
    pub(super) fn is_unheard(&self) -> bool {
        self.otlp.is_none() && self.console.as_ref().is_some_and(|console| console.writer().is_unread())
    }

    /// What the source is to be told since the last call.
    pub(super) fn take_verdicts(&mut self) -> Vec<(SocketKey, Verdict)> {
        std::mem::take(&mut self.verdicts)
    }

    /// The time is `now`; printed lines go out.
    pub(super) fn tick(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        // Hands over to another thread, which cannot fail.
        let _ = match &mut self.console {
            Some(Console::Text(text, _)) => text.flush(),
            Some(Console::Records(lines, _)) => lines.flush(),
            None => Ok(()),
        };
        if self.now.since(self.last_tick) >= TICK {
            self.last_tick = self.now;
            self.telemetry.tick(self.now);
            self.metrics.tick(self.now);
        }
    }

    /// Shows the tracer's health on its own meter.
    pub(super) fn publish(&self, snapshot: HealthSnapshot) {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).publish(snapshot);
    }

    /// What is counted here and along the line.
    pub(super) fn snapshot(&self, counters: &Counters) -> HealthSnapshot {
        let mut health = HealthSnapshot::default();
        health.add_counters(counters);
        self.telemetry.counters().report(&mut health);
        self.metrics.report(&mut health);
        if let Some(otlp) = &self.otlp {
            otlp.report(&mut health);
        }
        if let Some(console) = &self.console {
            let dropped = console.writer().dropped();
            health.add_by(crate::telemetry::semconv::metric::EXPORT_LINES, crate::telemetry::semconv::RESULT, "dropped", dropped);
        }
        health
    }

    /// Sends what waits, prints the summary, and ends.
    pub(super) fn finish(self, health: &HealthSnapshot, deadline: Duration) -> Flushed {
        let flushed = self.otlp.map_or(Flushed { clean: true, unsent_spans: 0 }, |otlp| otlp.shutdown(deadline));
        let printed = match self.console {
            Some(Console::Text(text, writer)) => text.finish(health).ok().map(|lines| (lines, writer)),
            Some(Console::Records(lines, writer)) => Some((lines, writer)),
            None => None,
        };
        if let Some((lines, writer)) = printed {
            lines.finish(writer, deadline.min(Duration::from_secs(5)));
        }
        flushed
    }
}

/// What became of a connection, and from when on it was seen: whoever misses something can look it up.
fn list(event: &ConnectionEvent) {
    let kind = match &event.kind {
        ConnectionEventKind::Confirmed => "followed",
        ConnectionEventKind::NeverConfirmed => "never_followed",
        ConnectionEventKind::Closed { reset: false } => "closed",
        ConnectionEventKind::Closed { reset: true } => "reset",
        ConnectionEventKind::Authenticated { .. } => "authenticated",
        ConnectionEventKind::AuthenticationFailed { .. } => "authentication_failed",
        ConnectionEventKind::Encrypted => "encrypted",
        ConnectionEventKind::LostSync => "lost_sync",
        ConnectionEventKind::RegainedSync => "regained_sync",
    };
    let connection = &event.connection;
    let client_id = event.client_id.as_deref().unwrap_or_default();
    let (time_ns, seen_from_ns, from_its_start) = (event.time.unix_ns(), event.seen_from.unix_ns(), event.from_its_start);
    debug!(kind, client = %connection.client, broker = %connection.broker, client_id, time_ns, seen_from_ns, from_its_start, "Connection.");
}

impl Sink for Teller {
    fn observation(&mut self, observation: Observation) {
        let Self { telemetry, metrics, otlp, console, .. } = self;
        if let Observation::Connection(event) = &observation {
            list(event);
        }
        metrics.observe(&observation);
        match console {
            Some(Console::Text(text, _)) => text.observe(&observation),
            Some(Console::Records(lines, _)) => {
                let _ = write_records(&observation, lines);
            }
            None => {}
        }
        telemetry.observe(&observation, &mut |span: FinishedSpan| {
            if let Some(Console::Text(text, _)) = console {
                let _ = text.span(&span);
            }
            if let Some(otlp) = otlp {
                otlp.export(span);
            }
        });
    }

    fn verdict(&mut self, socket: SocketKey, verdict: Verdict) {
        if self.verdicts.len() < MAX_VERDICTS {
            self.verdicts.push((socket, verdict));
        }
    }

    fn process(&mut self, pid: u32) -> Option<Arc<Process>> {
        Some(self.enricher.process(pid, self.now))
    }
}
