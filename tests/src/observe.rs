//! Runs a capture through the whole line and keeps what came out, for tests that look at more than the listing.

use anyhow::Result;
use tracer_userspace::counters::Counters;
use tracer_userspace::export::records::write_records;
use tracer_userspace::observe::{Exchange, FetchedBatch, HeaderReading, Observation, ObserveSettings, RecordDetail, SentBatch};
use tracer_userspace::pipeline::{Pipeline, PipelineSettings, Sink};
use tracer_userspace::source::pcap::PcapSource;
use tracer_userspace::source::{CaptureEvent, Direction, EventKind, SocketKey};
use tracer_userspace::telemetry::{FinishedSpan, SpanSettings, Telemetry};
use tracer_userspace::time::Timestamp;

use crate::capture::{ACK, Capture, FIN, RST, SYN};

/// What came out of the line.
#[derive(Debug)]
pub struct Seen {
    /// Observations, in their order.
    pub observations: Vec<Observation>,
    /// What was counted.
    pub counters: Counters,
}

/// Keeps everything.
#[derive(Default)]
struct Keep(Vec<Observation>);

impl Sink for Keep {
    fn observation(&mut self, observation: Observation) {
        self.0.push(observation);
    }
}

/// Settings that list every record and read every header.
pub fn settings() -> PipelineSettings {
    let observe = ObserveSettings {
        detail: RecordDetail::All,
        keys: true,
        headers: HeaderReading::All,
        propagators: "tracecontext,b3,b3multi,jaeger".parse().unwrap_or_default(),
        ..ObserveSettings::default()
    };
    PipelineSettings { observe, ..PipelineSettings::default() }
}

/// Runs a capture through the line.
///
/// # Errors
/// When the capture's file cannot be read.
pub fn observe(capture: &Capture, settings: PipelineSettings) -> Result<Seen> {
    let file = capture.to_pcap();
    let mut source = PcapSource::open(file.as_slice())?;
    let mut pipeline = Pipeline::new(settings);
    let mut kept = Keep::default();
    while source.next_packet(&mut |event| pipeline.push(&event, &mut kept))? {}
    pipeline.finish(&mut kept);
    Ok(Seen { observations: kept.0, counters: pipeline.counters() })
}

/// Runs a capture through the line as a host sees it on which both ends live: two sockets for each connection, each with
/// its own cookie, that see the same bytes.
pub fn observe_both_ends(capture: &Capture, settings: PipelineSettings) -> Seen {
    let mut pipeline = Pipeline::new(PipelineSettings { live: true, ..settings });
    let mut kept = Keep::default();
    for segment in &capture.segments {
        let time = Timestamp::from_unix_ns(segment.time_ns);
        for direction in [Direction::Sent, Direction::Received] {
            let (local, peer) = match direction {
                Direction::Sent => (segment.source, segment.destination),
                Direction::Received => (segment.destination, segment.source),
            };
            let scope = u64::from(local.port()) << 16 | u64::from(peer.port());
            let mut event =
                |kind| pipeline.push(&CaptureEvent { socket: SocketKey { scope, local, peer }, time, pid: None, kind }, &mut kept);
            let mut position = segment.sequence;
            if segment.flags & RST != 0 {
                event(EventKind::Close { direction, position, reset: true });
                continue;
            }
            if segment.flags & SYN != 0 {
                position = position.wrapping_add(1);
                event(EventKind::Open { direction, initiator: segment.flags & ACK == 0, first_position: position });
            }
            // In blocks, as the kernel hands them over.
            for bytes in segment.payload.chunks(16_384) {
                event(EventKind::Data { direction, position, bytes, missing_bytes: 0 });
                position = position.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0));
            }
            if segment.flags & FIN != 0 {
                event(EventKind::Close { direction, position, reset: false });
            }
        }
    }
    pipeline.finish(&mut kept);
    Seen { observations: kept.0, counters: pipeline.counters() }
}

impl Seen {
    /// The record listing.
    ///
    /// # Errors
    /// When it is no text.
    pub fn listing(&self) -> Result<String> {
        let mut out = Vec::new();
        for observation in &self.observations {
            write_records(observation, &mut out)?;
        }
        Ok(String::from_utf8(out)?)
    }

    /// The spans that are made of it.
    pub fn spans(&self, settings: SpanSettings) -> Vec<FinishedSpan> {
        let mut telemetry = Telemetry::new(settings);
        let mut spans = Vec::new();
        for observation in &self.observations {
            telemetry.observe(observation, &mut |span| spans.push(span));
        }
        spans
    }

    /// All exchanges.
    pub fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.observations.iter().filter_map(|observation| if let Observation::Exchange(it) = observation { Some(it) } else { None })
    }

    /// All batches that were sent.
    pub fn sent(&self) -> impl Iterator<Item = &SentBatch> {
        self.observations.iter().filter_map(|observation| if let Observation::Sent(it) = observation { Some(it) } else { None })
    }

    /// All batches that were fetched.
    pub fn fetched(&self) -> impl Iterator<Item = &FetchedBatch> {
        self.observations.iter().filter_map(|observation| if let Observation::Fetched(it) = observation { Some(it) } else { None })
    }

    /// How many frames had this end.
    pub fn frames(&self, result: &str) -> u64 {
        self.counters.frames.get(result).copied().unwrap_or(0)
    }
}
