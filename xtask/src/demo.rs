//! `demo`: a real broker, two client libraries, the tracer, and the spans that it makes of them, on the terminal.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};

use crate::build::{self, Profile};
use crate::lab::{Broker, Client, Consume, Distribution, KernelObjects, Language, Produce, Receiver, Scratch, Span, wait_for};
use crate::step;

const RECORDS: usize = 6;

/// An application that produces, and one that consumes.
struct Scene {
    language: Language,
    topic: &'static str,
    producer: &'static str,
    consumer: &'static str,
    group: &'static str,
    /// Each how-manieth record carries a trace context; 0: none.
    context_every: usize,
}

const SCENES: [Scene; 2] = [
    Scene { language: Language::Java, topic: "orders", producer: "shop", consumer: "billing", group: "invoices", context_every: 0 },
    Scene { language: Language::Librdkafka, topic: "payments", producer: "till", consumer: "ledger", group: "booking", context_every: 2 },
];

/// Shows the tracer at work.
///
/// # Errors
/// If something cannot be set up, or the producers' spans were not joined with their consumers'.
pub fn run() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo attaches programs to the kernel and needs root: `sudo -E cargo xtask demo`");
    }
    with(&build::daemon(Profile::Debug)?)
}

/// Shows a tracer that is built already.
///
/// # Errors
/// As [`run`].
pub fn with(daemon: &Path) -> Result<()> {
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let clients = SCENES.map(|scene| Client::ensure(scene.language, &distribution));
    let broker = step::step("start a broker", &format!("Apache Kafka {}, one node, on loopback", distribution.version()), || {
        let broker = Broker::start(&distribution)?;
        for scene in SCENES {
            broker.create_topic(scene.topic, 1)?;
        }
        Ok(broker)
    })?;

    step::heading("trace it", "kafka-tracer reads the bytes in the kernel while the clients talk; no client is told");
    // The same spans twice: as text for the reader, and as OTLP for the check at the end.
    let receiver = Receiver::start()?;
    let mut tracer = Command::new(daemon);
    let topics = SCENES.map(|scene| scene.topic).join(",");
    tracer.args(["run", "--format", "text", "--log-level", "warn", "--topics", &topics]).stdin(Stdio::null());
    tracer.env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint()).env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
    tracer.env("OTEL_METRICS_EXPORTER", "none").env("OTEL_BSP_SCHEDULE_DELAY", "200");
    let mut tracer = Ended(tracer.spawn().context("cannot start kafka-tracer")?);
    KernelObjects::wait_attached(tracer.0.id(), || match tracer.0.try_wait()? {
        Some(status) => bail!("kafka-tracer ended with {status}"),
        None => Ok(()),
    })?;

    let scratch = Scratch::new("demo")?;
    let clients = clients.into_iter().collect::<Result<Vec<_>>>()?;
    let mut running = Vec::new();
    for (scene, client) in SCENES.iter().zip(&clients) {
        let consume = Consume { topic: scene.topic, group: scene.group, records: RECORDS };
        running.push(client.of_service(scene.consumer).consume(&broker, scratch.path(), scene.consumer, &consume)?);
    }
    for consumer in &mut running {
        consumer.process().wait_connected(broker.port())?;
    }
    for (scene, client) in SCENES.iter().zip(&clients) {
        let (topic, context_every) = (scene.topic, scene.context_every);
        let produce =
            Produce { topic, records: RECORDS, codec: "none", context_every, unsampled_every: 0, rate: 2, value_bytes: 100, linger_ms: 0 };
        running.push(client.of_service(scene.producer).produce(&broker, scratch.path(), scene.producer, &produce)?);
    }
    for client in running {
        client.records()?;
    }
    let pid = Pid::from_child(&tracer.0);
    rustix::process::kill_process(pid, Signal::TERM).context("kafka-tracer is gone")?;
    let status = wait_for("kafka-tracer to end", Duration::from_secs(20), || Ok(tracer.0.try_wait()?))?;
    ensure!(status.success(), "kafka-tracer ended with {status}");

    // The tracer sees whatever else speaks Kafka on this host; here the demo's own broker counts.
    let port = i64::from(broker.port());
    let spans: Vec<Span> = receiver.spans()?.into_iter().filter(|span| span.int("network.peer.port") == Some(port)).collect();
    explain(&spans)
}

/// Killed when dropped.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Checks that each topic's records were joined, and says what was seen.
fn explain(spans: &[Span]) -> Result<()> {
    let mut lines = Vec::new();
    for Scene { language, topic, producer, consumer, .. } in SCENES {
        let of = |operation: &str| {
            let matching = spans.iter().filter(|span| span.topic() == Some(topic) && span.operation() == Some(operation));
            matching.cloned().collect::<Vec<Span>>()
        };
        let (sends, deliveries) = (of("send"), of("fetch"));
        let count = |spans: &[Span]| spans.iter().map(Span::messages).sum::<i64>();
        let (sent, fetched) = (count(&sends), count(&deliveries));
        let joined: Vec<&Span> = deliveries.iter().filter(|fetch| sends.iter().any(|send| same_messages(send, fetch))).collect();
        let joined_count: i64 = joined.iter().map(|span| span.messages()).sum();
        let mut times: Vec<f64> = joined.iter().filter_map(|span| span.float("kafka_tracer.end_to_end")).collect();
        times.sort_by(f64::total_cmp);
        let name = language.name();
        let expected = i64::try_from(RECORDS)?;
        ensure!(sent == expected, "{sent} of the {expected} records that {name} produced to {topic} are in spans");
        ensure!(fetched == expected, "{fetched} of the {expected} records that {name} consumed from {topic} are in spans");
        ensure!(joined_count == expected, "of {topic}, {joined_count} of {expected} records are in one trace from produce to fetch");
        let median = times.get(times.len() / 2).with_context(|| format!("no fetch of {topic} tells its end-to-end time"))?;
        let library = format!("({name})");
        lines.push(format!(
            "  {topic:<9} {producer:>5} -> {consumer:<8} {library:<13}  {joined_count} of {expected} records joined, {:.1} ms end to end (median)",
            median * 1e3
        ));
    }
    let mut output = std::io::stdout().lock();
    let (bold, plain) = if output.is_terminal() { ("\x1b[1;32m", "\x1b[0m") } else { ("", "") };
    writeln!(output, "\n{bold}Each record's way, from its producer's request to its consumer's answer, in one trace:{plain}")?;
    for line in lines {
        writeln!(output, "{line}")?;
    }
    writeln!(
        output,
        "Records of payments that carry a traceparent header are in the application's own trace; all others are in one that both ends\n\
         compute from the log's own coordinates. No client, message or broker was changed, and nothing is left in the kernel.\n\
         Next: `cargo xtask run`, or with a Collector: OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 cargo xtask run"
    )?;
    Ok(())
}

/// Is `fetch` in the trace of `send`, about the same messages?
fn same_messages(send: &Span, fetch: &Span) -> bool {
    let place = |span: &Span| (span.partition(), span.int("messaging.kafka.offset").or_else(|| span.int("kafka_tracer.batch.base_offset")));
    send.trace_id == fetch.trace_id && place(send) == place(fetch)
}
