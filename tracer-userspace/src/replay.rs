//! `kafka-tracer replay`: the same line as the daemon's, over capture files.
//!
//! In: pcap and pcapng files, or standard input. Out: text, record listing, OTLP/JSON or a summary.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::counters::Counters;
use crate::export::otlp_json::OtlpJson;
use crate::export::records::write_records;
use crate::export::text::{Text, may_colour};
use crate::kafka::context::Propagators;
use crate::observe::{HeaderReading, Observation, ObserveSettings, RecordDetail, Side};
use crate::pipeline::{Pipeline, PipelineSettings, Sink};
use crate::source::pcap::{PcapCounters, PcapError, PcapSource};
use crate::source::{CaptureEvent, SocketKey};
use crate::telemetry::{HealthSnapshot, IdSeed, Scope, SpanSettings, Telemetry};

/// What `replay` was asked for.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Capture files (pcap or pcapng), in the order of their packets; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Which records get a span of their own
    #[arg(long, value_enum, default_value_t = ScopeArg::Auto)]
    pub scope: ScopeArg,
    /// Print records' keys too (they may be personal data)
    #[arg(long)]
    pub keys: bool,
    /// Whose trace contexts to read from record headers, the first valid one wins: tracecontext, b3, b3multi, jaeger, xray
    #[arg(long, value_name = "LIST", env = "OTEL_PROPAGATORS", default_value = "tracecontext,baggage")]
    pub propagators: Propagators,
    /// The listing goes to a terminal, and may be coloured
    #[arg(skip)]
    pub terminal: bool,
}

/// Which records get a span of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ScopeArg {
    /// Those that carry a sampled trace context; the rest of a batch shares one
    #[default]
    Auto,
    /// None: one span per batch
    Batch,
    /// All
    Record,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::Auto => Self::Auto,
            ScopeArg::Batch => Self::Batch,
            ScopeArg::Record => Self::Record,
        }
    }
}

/// What `replay` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for people, one per span, and a summary by topic
    Text,
    /// One JSON object per record on the wire
    Records,
    /// OTLP/JSON traces, one request per line, as the Collector's file exporter writes them
    OtlpJson,
    /// One JSON object that counts everything seen, and everything not seen by reason
    Summary,
}

/// How `replay` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayStatus {
    /// Kafka was decoded.
    Decoded,
    /// The captures hold none.
    NoKafka,
}

/// Why `replay` stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A file cannot be opened.
    #[error("cannot open {file}")]
    Open {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read as a capture, or not to its end. What was good before was printed.
    #[error("{file}")]
    Capture {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: PcapError,
    },
    /// The listing cannot be written.
    #[error("cannot write the listing")]
    Write(#[source] io::Error),
}

/// Replays captures. Messages for people that are not part of the listing are the caller's to print.
///
/// # Errors
/// When a file cannot be read as a capture; what was good before the damage is listed all the same.
pub fn replay(args: &ReplayArgs, out: impl Write) -> Result<ReplayStatus, ReplayError> {
    let mut run = Run::new(args, out);
    let mut failed = None;
    for file in &args.files {
        if let Err(error) = run.file(file) {
            failed = Some(error);
            break;
        }
    }
    let status = run.finish()?;
    failed.map_or(Ok(status), Err)
}

struct Run<W: Write> {
    pipeline: Pipeline,
    printer: Printer<W>,
    packets: PcapCounters,
}

impl<W: Write> Run<W> {
    fn new(args: &ReplayArgs, out: W) -> Self {
        let detail = match (args.format, args.scope) {
            (Format::Records, _) | (_, ScopeArg::Record) => RecordDetail::All,
            (Format::Text | Format::OtlpJson | Format::Summary, ScopeArg::Auto | ScopeArg::Batch) => RecordDetail::Contexts,
        };
        let settings = PipelineSettings {
            observe: ObserveSettings {
                detail,
                propagators: args.propagators.clone(),
                keys: args.keys,
                headers: HeaderReading::All,
                ..ObserveSettings::default()
            },
            ..PipelineSettings::default()
        };
        Self { pipeline: Pipeline::new(settings), printer: Printer::new(args, out), packets: PcapCounters::default() }
    }

    fn file(&mut self, path: &PathBuf) -> Result<(), ReplayError> {
        let name = path.display().to_string();
        let reader: Box<dyn Read> = if path.as_os_str() == "-" {
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(path).map_err(|source| ReplayError::Open { file: name.clone(), source })?)
        };
        let mut source = PcapSource::open(BufReader::with_capacity(1 << 18, reader))
            .map_err(|source| ReplayError::Capture { file: name.clone(), source })?;
        let read = loop {
            let Self { pipeline, printer, .. } = self;
            let more = source.next_packet(&mut |event| {
                printer.begin(&event);
                pipeline.push(&event, printer);
            });
            match more {
                Ok(true) if self.printer.error.is_none() => {}
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        add(&mut self.packets, &source.counters());
        read.map_err(|source| ReplayError::Capture { file: name, source })
    }

    fn finish(mut self) -> Result<ReplayStatus, ReplayError> {
        self.pipeline.finish(&mut self.printer);
        let counters = self.pipeline.counters();
        self.printer.finish(&self.packets, &counters).map_err(ReplayError::Write)?;
        Ok(if counters.connections_kafka > 0 { ReplayStatus::Decoded } else { ReplayStatus::NoKafka })
    }
}

fn add(sum: &mut PcapCounters, file: &PcapCounters) {
    sum.packets += file.packets;
    sum.bytes += file.bytes;
    sum.tcp += file.tcp;
    sum.not_tcp += file.not_tcp;
    sum.fragments += file.fragments;
    sum.header_cut += file.header_cut;
    sum.malformed += file.malformed;
    sum.link_type += file.link_type;
}

struct Printer<W: Write> {
    listing: Listing<W>,
    spans: SpanSettings,
    /// Made at the first packet, whose bytes seed its ids.
    telemetry: Option<Telemetry>,
    error: Option<io::Error>,
}

enum Listing<W: Write> {
    Text(Text<W>),
    Records(W),
    OtlpJson(OtlpJson<W>),
    Summary(W, Listed),
    /// Finished.
    Done,
}

/// Records by topic and operation, for the summary.
#[derive(Default)]
struct Listed {
    sent: BTreeMap<String, u64>,
    fetched: BTreeMap<String, u64>,
}

impl<W: Write> Sink for Printer<W> {
    fn observation(&mut self, observation: Observation) {
        let Self { listing, telemetry, error, .. } = self;
        if error.is_some() {
            return;
        }
        let mut note = |result: io::Result<()>| {
            if let Err(failed) = result {
                error.get_or_insert(failed);
            }
        };
        match listing {
            Listing::Records(out) => note(write_records(&observation, out)),
            Listing::Summary(_, listed) => listed.take(&observation),
            Listing::Text(text) => {
                text.observe(&observation);
                if let Some(telemetry) = telemetry {
                    telemetry.observe(&observation, &mut |span| note(text.span(&span)));
                }
            }
            Listing::OtlpJson(json) => {
                if let Some(telemetry) = telemetry {
                    telemetry.observe(&observation, &mut |span| note(json.export(span)));
                }
            }
            Listing::Done => {}
        }
    }
}

impl Listed {
    fn take(&mut self, observation: &Observation) {
        let (table, topic, count) = match observation {
            Observation::Sent(batch) => (&mut self.sent, &batch.topic, batch.record_count),
            Observation::Fetched(batch) => (&mut self.fetched, &batch.topic, batch.delivered.delivered),
            Observation::FetchFailed(_)
            | Observation::Poll(_)
            | Observation::Commit(_)
            | Observation::Group(_)
            | Observation::Transaction(_)
            | Observation::Exchange(_)
            | Observation::Connection(_) => return,
        };
        let name = match (&topic.name, topic.id) {
            (Some(name), _) => name.to_string(),
            (None, Some(id)) => id.to_string(),
            (None, None) => String::new(),
        };
        *table.entry(name).or_default() += u64::from(count);
    }
}

impl<W: Write> Printer<W> {
    fn new(args: &ReplayArgs, out: W) -> Self {
        let listing = match args.format {
            Format::Text => {
                let colour = may_colour(args.terminal, &|name| std::env::var(name).ok());
                Listing::Text(Text::new(out, colour, Side::Client))
            }
            Format::Records => Listing::Records(out),
            Format::OtlpJson => Listing::OtlpJson(OtlpJson::new(out)),
            Format::Summary => Listing::Summary(out, Listed::default()),
        };
        let spans = SpanSettings { scope: args.scope.into(), capture_keys: args.keys, ..SpanSettings::replay(IdSeed::from_capture(b"")) };
        Self { listing, spans, telemetry: None, error: None }
    }

    fn begin(&mut self, event: &CaptureEvent<'_>) {
        if self.telemetry.is_none() {
            let SocketKey { local, peer, .. } = event.socket;
            let seed = IdSeed::from_capture(format!("{} {local} {peer}", event.time).as_bytes());
            self.telemetry = Some(Telemetry::new(SpanSettings { seed, ..self.spans.clone() }));
        }
    }

    fn finish(&mut self, packets: &PcapCounters, counters: &Counters) -> io::Result<()> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        match std::mem::replace(&mut self.listing, Listing::Done) {
            Listing::Text(text) => {
                let mut health = HealthSnapshot::default();
                health.add_counters(counters);
                if let Some(telemetry) = &self.telemetry {
                    telemetry.counters().report(&mut health);
                }
                text.finish(&health).map(drop)
            }
            Listing::Records(mut out) => out.flush(),
            Listing::OtlpJson(json) => json.finish().map(drop),
            Listing::Summary(mut out, listed) => {
                serde_json::to_writer_pretty(&mut out, &summary(packets, counters, &listed))?;
                out.write_all(b"\n")?;
                out.flush()
            }
            Listing::Done => Ok(()),
        }
    }
}

fn summary(packets: &PcapCounters, counters: &Counters, listed: &Listed) -> serde_json::Value {
    json!({
        "packets": {
            "read": packets.packets, "bytes": packets.bytes, "tcp": packets.tcp, "not_tcp": packets.not_tcp,
            "fragments": packets.fragments, "header_cut": packets.header_cut, "malformed": packets.malformed,
            "link_type_unsupported": packets.link_type,
        },
        "connections": {
            "seen": counters.connections, "kafka": counters.connections_kafka,
            "encrypted": counters.connections_encrypted, "other": counters.connections_other,
            "evicted": counters.connections_evicted,
        },
        "streams": {
            "bytes": counters.stream_bytes, "gaps": counters.stream_gaps, "gap_bytes": counters.stream_gap_bytes,
            "duplicate_bytes": counters.duplicate_bytes, "unframed_bytes": counters.unframed_bytes,
            "lost_sync": counters.lost_sync,
        },
        "kafka_bytes": { "understood": counters.understood_bytes, "lost": counters.lost_bytes },
        "frames": counters.frames,
        "exchanges": counters.exchanges,
        "records": { "sent": listed.sent, "fetched": listed.fetched, "not_delivered": counters.records },
        "batches_not_read": counters.batches,
        "contexts": {
            "malformed": counters.malformed_contexts, "repeated": counters.repeated_contexts,
            "not_seen": counters.unseen_contexts, "damaged": counters.damaged_headers,
        },
        "observations_unnamed": counters.held_too_long,
    })
}
