//! What most of these tests begin with: a broker, a Collector, a directory for files, and the daemon.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::{Access, Broker, Collector, Distribution, Produce, Protocol, Scratch, Span, Tracer, wait_for};

use crate::{daemon, unique};

/// All but the daemon and the clients.
pub(crate) struct Stage {
    pub(crate) broker: Broker,
    pub(crate) collector: Collector,
    pub(crate) scratch: Scratch,
}

/// Every record has its span, as the accounts of a test ask for.
const ALL_SPANS: [(&str, &str); 2] = [("KAFKA_TRACER_MAX_SPANS_PER_SECOND", "0"), ("OTEL_TRACES_SAMPLER", "always_on")];

/// How long the daemon may take to end.
const LIMIT: Duration = Duration::from_secs(20);

impl Stage {
    /// Starts a broker, and a Collector.
    pub(crate) fn start(label: &str) -> Result<Self> {
        Self::with(label, Broker::start(&Distribution::ensure(Distribution::NEWEST)?)?)
    }

    /// Starts a broker that listens for encrypted connections, too, and a Collector.
    pub(crate) fn secure(label: &str) -> Result<Self> {
        Self::with(label, Broker::start_secure(&Distribution::ensure(Distribution::NEWEST)?)?)
    }

    fn with(label: &str, broker: Broker) -> Result<Self> {
        let scratch = Scratch::new(label)?;
        let collector = Collector::start(scratch.path())?;
        Ok(Self { broker, collector, scratch })
    }

    /// Starts the daemon.
    pub(crate) fn tracer(&self, settings: &[(&str, &str)]) -> Result<Tracer> {
        Tracer::start(&daemon(), self.scratch.path(), &self.collector, Protocol::Grpc, settings)
    }

    /// Starts the daemon, seeing into encrypted connections to the broker, with a span for every record.
    pub(crate) fn tls_tracer(&self, settings: &[(&str, &str)]) -> Result<Tracer> {
        let ports = [Access::MutualTls, Access::PasswordOverTls].map(|access| self.broker.port_for(access));
        let [mutual, password] = ports;
        let ports = format!("{},{}", mutual?, password?);
        let always = [("KAFKA_TRACER_TLS", "auto"), ("KAFKA_TRACER_TLS_PORTS", ports.as_str())];
        // What comes later counts.
        let all: Vec<(&str, &str)> = ALL_SPANS.into_iter().chain(always).chain(settings.iter().copied()).collect();
        let mut tracer = self.tracer(&all)?;
        // The programs for TLS libraries come after those that a start waits for.
        wait_for("the daemon to see into TLS libraries", Duration::from_secs(30), || {
            tracer.process().alive()?;
            Ok(tracer.process().log().contains("Capturing the Kafka connections").then_some(()))
        })?;
        Ok(tracer)
    }

    /// Waits for a span of this kind.
    pub(crate) fn wait_for_span(&self, what: &str, tracer: &mut Tracer, is_wanted: impl Fn(&Span) -> bool) -> Result<()> {
        let waited = wait_for(what, Duration::from_secs(40), || {
            tracer.process().alive()?;
            Ok(self.collector.spans()?.iter().any(&is_wanted).then_some(()))
        });
        waited.with_context(|| tracer.process().log())
    }

    /// Ends the daemon and then the Collector. All spans, and what the daemon said.
    pub(crate) fn end(&mut self, mut tracer: Tracer) -> Result<(Vec<Span>, String)> {
        let log = end(&mut tracer)?;
        self.collector.stop()?;
        Ok((self.collector.spans()?, log))
    }
}

/// Ends the daemon, which has to say that all went well. What it said before.
pub(crate) fn end(tracer: &mut Tracer) -> Result<String> {
    let status = tracer.process().terminate(LIMIT)?;
    let log = tracer.process().log();
    ensure!(status.success(), "SIGTERM ended the daemon with {status}:\n{log}");
    Ok(log)
}

/// A producer that never ends by itself.
pub(crate) fn endless(topic: &str, rate: usize) -> Produce<'_> {
    Produce { records: 1_000_000, rate, ..few(topic, 0) }
}

/// A producer of records without contexts, as fast as it goes.
pub(crate) fn few(topic: &str, records: usize) -> Produce<'_> {
    Produce { topic, records, codec: "none", context_every: 0, unsampled_every: 0, rate: 0, value_bytes: 50, linger_ms: 5 }
}

/// A topic of this run, with one partition.
pub(crate) fn topic(broker: &Broker, name: &str) -> Result<String> {
    let topic = unique(name);
    broker.create_topic(&topic, 1)?;
    Ok(topic)
}
