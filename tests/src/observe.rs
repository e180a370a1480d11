//! Runs a capture through the whole line and keeps what came out, for tests that look at more than the listing.

use anyhow::Result;
use tracer_userspace::counters::Counters;
use tracer_userspace::observe::{Exchange, FetchedBatch, HeaderReading, Observation, ObserveSettings, RecordDetail, SentBatch};
use tracer_userspace::pipeline::{Pipeline, PipelineSettings, Sink};
use tracer_userspace::source::pcap::PcapSource;

use crate::capture::Capture;

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

impl Seen {
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
