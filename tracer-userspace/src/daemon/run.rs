//! The running daemon: one thread captures and drives the line, one task listens for signals, the exporters have theirs.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use rustix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, error, info, warn};

use super::args::{RunArgs, SidesArg, SourceArg, TlsArg};
use super::lines::Lines;
use super::log;
use super::rights;
use super::settings::{Settings, SettingsError};
use super::teller::{Console, SharedHealth, Teller};
use crate::connection::Followed;
use crate::counters::Counters;
use crate::enrich::Enricher;
use crate::export::Otlp;
use crate::export::otlp::{Flushed, MetricSource, TransportError};
use crate::export::text::{Text, may_colour};
use crate::pipeline::Pipeline;
use crate::source::ebpf::{BESIDE, Polled, SourceConfig, SourceCounts, SourceError, SourceRights, Sources, StartError, TlsConfig};
use crate::source::{CaptureEvent, SocketKey, Verdict};
use crate::telemetry::metrics::{HealthMeter, Metrics};
use crate::telemetry::semconv::{self, metric};
use crate::telemetry::{HealthSnapshot, ResourceKey, Telemetry};
use crate::time::Timestamp;

/// How long one look at the source may wait: a signal is obeyed within this time.
const POLL: Duration = Duration::from_millis(50);
/// Signals this close together are one: `timeout`, `sudo` and shells send it to the process and to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);
/// A look that takes longer than this is told at level debug: the ring fills meanwhile.
const HELD_UP: Duration = Duration::from_millis(250);
/// How often the tracer's health is put on its meter.
const HEALTH: Duration = Duration::from_secs(5);
/// How long the last look for what the kernel had handed over may take.
const LAST_LOOK: Duration = Duration::from_millis(500);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// A setting makes no sense.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Live capture cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// An exporter cannot start.
    #[error(transparent)]
    Export(#[from] TransportError),
    /// A thread cannot be started, or signals not be received.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// How the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Asked to, with everything delivered.
    Clean,
    /// Asked to, but not all was delivered in time.
    Unsent,
    /// Capture failed.
    Failed,
}

/// Runs until a signal, the set duration or a failure ends it.
///
/// # Errors
/// When it cannot start. What fails later is logged, and told by the result.
pub fn run(args: &RunArgs) -> Result<Ended, DaemonError> {
    let complaint = log::start(&args.log_level);
    let settings = Settings::new(args, &|name| args.variable(name))?;
    for warning in complaint.iter().chain(&settings.warnings) {
        warn!("{warning}");
    }
    rights::begin();
    let mut enricher = Enricher::new(settings.enrich.clone());
    let own = own_resource(&mut enricher);
    let metrics = Metrics::new(settings.metrics.clone());
    let health = Arc::new(Mutex::new(HealthMeter::new(own, &settings.metrics)));
    // Rights belong to threads, and threads have those of the one that starts them: this one starts capture, which needs them, first, and gives up its
    // own before it starts the others.
    let (hand_over, parts) = channel();
    let capture = Capture::start(&settings, args, parts)?;
    rights::none();
    let stop = Arc::new(AtomicBool::new(false));
    listen(Arc::clone(&stop))?;
    let sources: Vec<Box<dyn MetricSource>> = vec![Box::new(metrics.sources()), Box::new(SharedHealth(Arc::clone(&health)))];
    let otlp = Otlp::start(&settings.export, sources)?;
    let console = console(&settings)?;
    let teller = Teller::new(Telemetry::new(settings.spans.clone()), metrics, health, enricher, otlp, console);
    // Capture last: once it runs, all is there to take what it sees.
    let _ = hand_over.send(Parts { teller, stop });
    let started = capture.started.recv().unwrap_or(Err(None));
    match started {
        Ok(rights) => {
            announce(args, &settings);
            rights::end(args.seccomp, &rights);
        }
        Err(Some(error)) => return Err(error.into()),
        Err(None) => {}
    }
    Ok(capture.thread.join().unwrap_or_else(|_| {
        error!("The capturing thread ended by a defect of the tracer; nothing more is captured. Please report it.");
        Ended::Failed
    }))
}

/// What the capturing thread is given once all is ready.
struct Parts {
    teller: Teller,
    stop: Arc<AtomicBool>,
}

/// The capturing thread, the only one that holds rights.
struct Capture {
    thread: JoinHandle<Ended>,
    /// What its sources need from now on, or why they do not start; None when the thread ended otherwise.
    started: Receiver<Result<SourceRights, Option<StartError>>>,
}

impl Capture {
    /// Starts it; its sources start when `parts` come.
    fn start(settings: &Settings, args: &RunArgs, parts: Receiver<Parts>) -> Result<Self, DaemonError> {
        let config = SourceConfig {
            ring_bytes: settings.ring_bytes,
            force_ports: args.ports.clone(),
            exclude_ports: args.exclude_ports.clone(),
            cgroup_root: args.cgroup.clone(),
            main: args.source.into(),
            perf_buffers: args.source == SourceArg::SocketPerf,
            ..SourceConfig::default()
        };
        let tls = (args.tls == TlsArg::Auto).then(|| TlsConfig {
            ports: args.tls_ports.clone(),
            exclude_ports: args.exclude_ports.clone(),
            libraries: args.tls_libraries.clone(),
            brokers: args.sides != SidesArg::Client,
            ring_bytes: settings.tls_ring_bytes,
            cgroup_root: args.cgroup.clone(),
            unseen_after: TlsConfig::UNSEEN_AFTER,
        });
        let (deadline, nice, duration) = (settings.shutdown_timeout, settings.nice, settings.duration);
        let pipeline = settings.pipeline.clone();
        let own_pid = args.exclude_self.then(std::process::id);
        let (tell, started) = channel();
        let thread = std::thread::Builder::new().name("capture".to_owned()).spawn(move || {
            // Something else does not start: then nothing does.
            let Ok(Parts { teller, stop }) = parts.recv() else { return Ended::Failed };
            let sources = match Sources::start(&config, tls) {
                Ok(sources) => sources,
                Err(error) => {
                    let _ = tell.send(Err(Some(error)));
                    return Ended::Failed;
                }
            };
            prefer(nice);
            let rights = sources.rights();
            rights::keep(&rights);
            let _ = tell.send(Ok(rights));
            let daemon = Daemon {
                sources,
                pipeline: Pipeline::new(pipeline),
                teller,
                stop,
                end: duration.map(|duration| Instant::now() + duration),
                own_pid,
                last_health: Instant::now(),
                lost_events: 0,
            };
            daemon.run(deadline)
        });
        let thread = thread.map_err(|source| DaemonError::System { what: "start the capturing thread", source })?;
        Ok(Self { thread, started })
    }
}

/// Sets the priority of this thread, where that is allowed.
fn prefer(nice: i32) {
    if nice == 0 {
        return;
    }
    // Linux keeps it by thread, and takes a thread's id for a process's.
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice) {
        debug!(nice, %error, "The capturing thread keeps its priority.");
    }
}

fn console(settings: &Settings) -> Result<Option<Console>, DaemonError> {
    use std::io::IsTerminal;
    if !settings.records && !settings.export.traces.console {
        return Ok(None);
    }
    let (lines, writer) = Lines::start(io::stdout()).map_err(|source| DaemonError::System { what: "start the printing thread", source })?;
    if settings.records {
        return Ok(Some(Console::Records(lines, writer)));
    }
    let colour = may_colour(io::stdout().is_terminal(), &|name| std::env::var(name).ok());
    Ok(Some(Console::Text(Text::new(lines, colour, settings.counted), writer)))
}

/// Ends the daemon in order at the first SIGTERM or SIGINT, and at once at the second.
fn listen(stop: Arc<AtomicBool>) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::System { what: "listen for signals", source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate()).map_err(failed)?, signal(SignalKind::interrupt()).map_err(failed)?)
    };
    let listening = move || {
        runtime.block_on(async move {
            let mut first: Option<Instant> = None;
            loop {
                let number = tokio::select! {
                    _ = terminate.recv() => SignalKind::terminate(),
                    _ = interrupt.recv() => SignalKind::interrupt(),
                };
                stop.store(true, Ordering::Release);
                let since = first.get_or_insert_with(Instant::now).elapsed();
                if since >= SAME_SIGNAL {
                    // As a shell reports a program that a signal ended.
                    std::process::exit(128 + number.as_raw_value());
                }
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listening).map(drop).map_err(failed)
}

/// The tracer's own resource, found as any process's is: its own environment decides.
fn own_resource(enricher: &mut Enricher) -> Resource {
    let process = enricher.process(std::process::id(), now());
    let resource = ResourceKey::Process(process).to_resource();
    let attributes = resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    Resource::builder_empty().with_schema_url(attributes.chain([version]), semconv::SCHEMA_URL).build()
}

fn announce(args: &RunArgs, settings: &Settings) {
    let traces = &settings.export.traces;
    let otlp = traces.otlp.as_ref().map(ToString::to_string);
    let metrics = settings.export.metrics.otlp.as_ref().map(ToString::to_string);
    let spans_to = match (&otlp, traces.console) {
        (Some(otlp), true) => format!("{otlp} and standard output"),
        (Some(otlp), false) => otlp.clone(),
        (None, true) => "standard output".to_owned(),
        (None, false) => "nowhere".to_owned(),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        sides = ?args.sides,
        spans_to,
        metrics_to = metrics.as_deref().unwrap_or("nowhere"),
        "Capturing the Kafka connections of this host; end it with Ctrl-C or SIGTERM."
    );
}

struct Daemon {
    sources: Sources,
    pipeline: Pipeline,
    teller: Teller,
    stop: Arc<AtomicBool>,
    end: Option<Instant>,
    own_pid: Option<u32>,
    last_health: Instant,
    /// Events that found no room in the ring, as told last.
    lost_events: u64,
}

impl Daemon {
    fn run(mut self, deadline: Duration) -> Ended {
        // A defect of the line must not cost what waits to be sent.
        let result = catch_unwind(AssertUnwindSafe(|| self.capture()));
        let failed = match result {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                error!(%error, "Capture failed; nothing more is seen.");
                true
            }
            Err(_) => {
                error!("The line ended by a defect of the tracer; nothing more is captured. Please report it.");
                true
            }
        };
        let Self { mut sources, mut pipeline, mut teller, .. } = self;
        sources.finish();
        let counts = sources.counts();
        debug!(?counts, "What the sources handed over and lost.");
        // Detach first: the host pays no longer than it must. What of it takes long must not keep from the Collector what was seen.
        let detaching = sources.detach();
        let finished = catch_unwind(AssertUnwindSafe(|| pipeline.finish(&mut teller)));
        if finished.is_err() {
            error!("Ending the line met a defect of the tracer. Please report it.");
        }
        teller.tick(now());
        let counters = pipeline.counters();
        let mut health = teller.snapshot(&counters);
        health.values.extend(source_health(counts.as_ref().ok()).values);
        teller.publish(health.clone());
        let Flushed { clean, unsent_spans } = teller.finish(&health, deadline);
        if unsent_spans > 0 {
            warn!(unsent_spans, "The end came before these spans were delivered.");
        } else if !clean {
            warn!("The end came before everything was delivered.");
        }
        drop(detaching);
        match (failed || finished.is_err(), clean) {
            (true, _) => Ended::Failed,
            (false, true) => Ended::Clean,
            (false, false) => Ended::Unsent,
        }
    }

    fn capture(&mut self) -> Result<(), SourceError> {
        while !self.stop.load(Ordering::Acquire) && self.end.is_none_or(|end| Instant::now() < end) {
            let begun = Instant::now();
            let events = self.look(POLL)?.events;
            let took = begun.elapsed();
            if took > HELD_UP {
                debug!(events, milliseconds = took.as_millis(), "One look at the source took long.");
            }
            if self.last_health.elapsed() >= HEALTH {
                self.last_health = Instant::now();
                if self.teller.is_unheard() {
                    break;
                }
                let counts = self.sources.counts().ok();
                if let Some(counts) = &counts {
                    self.warn_of_loss(counts);
                }
                let health = self.health(counts.as_ref());
                debug!(connections = self.pipeline.connections(), buffered_bytes = self.pipeline.buffered_bytes(), "Health.");
                self.teller.publish(health);
            }
        }
        info!("Ending: detaching, then sending what is left.");
        // What the kernel had handed over by now.
        let end = Instant::now() + LAST_LOOK;
        loop {
            let polled = self.look(Duration::ZERO)?;
            if polled.events == 0 && !polled.holds_back || Instant::now() >= end {
                return Ok(());
            }
        }
    }

    /// Takes what the sources have.
    fn look(&mut self, timeout: Duration) -> Result<Polled, SourceError> {
        let Self { sources, pipeline, teller, own_pid, .. } = self;
        teller.tick(now());
        let mut own: Vec<SocketKey> = Vec::new();
        let polled = sources.poll(timeout, &mut |event: CaptureEvent<'_>| {
            if own_pid.is_some() && event.pid == *own_pid {
                own.push(event.socket);
                return;
            }
            pipeline.push(&event, teller);
        })?;
        if polled.events == 0 {
            pipeline.tick(now(), teller);
        }
        own.dedup();
        for socket in own {
            sources.verdict(socket, Verdict::Ignore)?;
        }
        for (socket, verdict) in teller.take_verdicts() {
            sources.verdict(socket, verdict)?;
        }
        Ok(polled)
    }

    /// A word each time that the ring overflowed since the last look, with what to do about it.
    fn warn_of_loss(&mut self, counts: &SourceCounts) {
        let (events, bytes) = counts.ring_full();
        if events > self.lost_events {
            let since_last = events - self.lost_events;
            self.lost_events = events;
            warn!(
                lost_events = since_last,
                lost_bytes_in_total = bytes,
                "The ring between kernel and tracer was full; --ring-bytes makes it larger, a CPU with time for the tracer drains it faster."
            );
        }
    }

    fn health(&self, counts: Option<&SourceCounts>) -> HealthSnapshot {
        let counters: Counters = self.pipeline.counters();
        let mut health = self.teller.snapshot(&counters);
        health.values.extend(source_health(counts).values);
        self.add_connections(&mut health);
        add_usage(&mut health);
        health
    }

    /// Adds the connections that are open, by what protects them and whose end was seen.
    fn add_connections(&self, health: &mut HealthSnapshot) {
        let mut open: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for Followed { side, authenticated, socket } in self.pipeline.followed() {
            let state = match (socket.scope & BESIDE != 0, authenticated) {
                (true, _) => "tls_visible",
                (false, true) => "sasl",
                (false, false) => "plaintext",
            };
            *open.entry((state, semconv::side(side))).or_default() += 1;
        }
        for ((state, role), count) in open {
            let attributes = vec![(semconv::STATE, state.to_owned().into()), (semconv::ROLE, role.to_owned().into())];
            health.read(metric::CONNECTIONS, attributes, f64::from(count));
        }
    }
}

/// Adds what this process takes of the host.
fn add_usage(health: &mut HealthSnapshot) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = Duration::try_from(cpu).unwrap_or_default();
    health.read(metric::CPU, Vec::new(), cpu.as_secs_f64());
    if let Some(bytes) = resident_bytes() {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
        health.read(metric::MEMORY, Vec::new(), bytes as f64);
    }
}

/// Memory of this process that is resident: the second number of `/proc/self/statm`, in pages.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(procfs::page_size())
}

/// What the sources counted, in the tracer's words.
fn source_health(counts: Option<&SourceCounts>) -> HealthSnapshot {
    let mut health = HealthSnapshot::default();
    let Some(counts) = counts else { return health };
    health.add(metric::CAPTURE_EVENTS, counts.events);
    health.add(metric::CAPTURE_BYTES, counts.bytes);
    for (reason, value) in &counts.lost_bytes {
        health.add_by(metric::CAPTURE_LOST, semconv::REASON, *reason, *value);
    }
    for (reason, value) in &counts.lost_events {
        health.add_by(metric::CAPTURE_LOST_EVENTS, semconv::REASON, *reason, *value);
    }
    for (result, value) in [("from_start", counts.sessions), ("in_the_middle", counts.joined_sessions)] {
        health.add_by(metric::TLS_SESSIONS, semconv::RESULT, result, value);
    }
    for (reason, value) in &counts.opaque {
        health.add_by(metric::TLS_OPAQUE, semconv::REASON, *reason, *value);
    }
    for program in &counts.programs_off {
        health.add_by(metric::CAPTURE_PROGRAMS_OFF, semconv::PROGRAM, *program, 1);
    }
    health
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ns(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
