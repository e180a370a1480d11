//! What a batch costs on its way from captured segments to spans and metrics, without the kernel and without sending anything.
//!
//! Batches are as Kafka's own producer makes them (16 KiB, one to a request), and each is another one, so that tables fill up as
//! they do in life. The clock of the events runs as at 100 MB/s, which is what the ceiling of spans per second sees.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says so")]

#[expect(dead_code, reason = "the other benchmarks use the rest of it")]
mod data;
mod feed;

use std::time::{Duration, Instant};

use data::varint;
use feed::{Feed, Pace, produce_answer, produce_request, stored};
use tracer_userspace::observe::Observation;
use tracer_userspace::pipeline::{Pipeline, PipelineSettings, Sink};
use tracer_userspace::telemetry::metrics::{MetricSettings, Metrics};
use tracer_userspace::telemetry::{FinishedSpan, SpanSettings, Telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
/// As at 100 MB/s.
const PACE: Pace = Pace { segment_bytes: 16 << 10, event_ns: 0, byte_ns: 1_000_000_000 / BYTES_PER_SECOND };
const RECORD_BYTES: usize = 1024;
const RECORDS_PER_BATCH: i32 = 15;
const PARTITIONS: i32 = 3;
const BATCHES: i64 = 60_000;
const BYTES_PER_SECOND: u64 = 100_000_000;

/// What is done with observations.
struct Told {
    metrics: Option<Metrics>,
    telemetry: Option<Telemetry>,
    records: u64,
    spans: u64,
}

impl Sink for Told {
    fn observation(&mut self, observation: Observation) {
        if let Observation::Sent(batch) = &observation {
            self.records += u64::from(batch.record_count);
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.observe(&observation);
        }
        if let Some(telemetry) = &mut self.telemetry {
            let spans = &mut self.spans;
            telemetry.observe(&observation, &mut |_: FinishedSpan| *spans += 1);
        }
    }
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test --all-targets` only wants to know that it builds
    }
    println!("{:<44} {:>12} {:>22} {:>10}", "batches of 16 KiB, one core", "us a batch", "of a core, at 100 MB/s", "spans");
    for (name, metrics, spans) in [
        ("to observations", false, false),
        ("to observations and metrics", true, false),
        ("to observations and spans", false, true),
        ("to observations, metrics and spans", true, true),
    ] {
        measure(name, metrics, spans);
    }
}

fn measure(name: &str, metrics: bool, spans: bool) {
    let mut best = Duration::MAX;
    let (mut bytes, mut made) = (0_u64, 0);
    for _ in 0..ROUNDS {
        let mut told = Told {
            metrics: metrics.then(|| Metrics::new(MetricSettings::default())),
            telemetry: spans.then(|| Telemetry::new(SpanSettings::live())),
            records: 0,
            spans: 0,
        };
        let mut pipeline = Pipeline::new(PipelineSettings::default());
        let mut feed = Feed::new(&mut pipeline, &mut told, PACE);
        let mut batch = Batch::new();
        let mut took = Duration::ZERO;
        bytes = 0;
        for number in 0..BATCHES {
            batch.set(number);
            let started = Instant::now();
            feed.send(&batch.request);
            feed.receive(&batch.answer);
            took += started.elapsed();
            bytes += batch.request.len() as u64;
        }
        pipeline.finish(&mut told);
        assert_eq!(i64::try_from(told.records).unwrap_or(0), BATCHES * i64::from(RECORDS_PER_BATCH), "every record is observed");
        best = best.min(took);
        made = told.spans;
    }
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (per_batch, share) = (best.as_secs_f64() / BATCHES as f64, best.as_secs_f64() / (bytes as f64 / BYTES_PER_SECOND as f64));
    println!("{name:<44} {:>12.2} {:>21.2}% {made:>10}", per_batch * 1e6, share * 100.0);
}

/// A request with one batch and its answer, with the places of what differs from batch to batch.
struct Batch {
    request: Vec<u8>,
    answer: Vec<u8>,
    head_at: usize,
}

impl Batch {
    fn new() -> Self {
        let batch = batch();
        let request = produce_request(&batch);
        Self { head_at: request.len() - batch.len(), request, answer: Vec::new() }
    }

    /// Makes it the batch of this number.
    fn set(&mut self, number: i64) {
        let partition = i32::try_from(number).unwrap_or(0) % PARTITIONS;
        let sequence = number / i64::from(PARTITIONS) * i64::from(RECORDS_PER_BATCH);
        let timestamp = 1_700_000_000_000 + number / 6;
        write(&mut self.request, self.head_at - 8, &partition.to_be_bytes());
        write(&mut self.request, self.head_at + 17, &u32::try_from(number).unwrap_or(0).to_be_bytes()); // crc
        write(&mut self.request, self.head_at + 27, &timestamp.to_be_bytes());
        write(&mut self.request, self.head_at + 35, &timestamp.to_be_bytes());
        write(&mut self.request, self.head_at + 43, &4_711_i64.to_be_bytes()); // producer id
        write(&mut self.request, self.head_at + 51, &0_i16.to_be_bytes());
        write(&mut self.request, self.head_at + 53, &i32::try_from(sequence).unwrap_or(0).to_be_bytes());
        self.answer = produce_answer(partition, sequence);
    }
}

fn write(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// A batch of format 2.
fn batch() -> Vec<u8> {
    let mut records = Vec::new();
    for number in 0..RECORDS_PER_BATCH {
        let mut record = vec![0, 0]; // attributes, timestamp delta
        varint(&mut record, usize::try_from(number).unwrap_or(0));
        record.push(1); // no key
        varint(&mut record, RECORD_BYTES);
        record.resize(record.len() + RECORD_BYTES, b'v');
        varint(&mut record, 0); // no headers
        varint(&mut records, record.len());
        records.extend_from_slice(&record);
    }
    stored(0, RECORDS_PER_BATCH, &records)
}
