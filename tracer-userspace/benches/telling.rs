//! What a batch costs on its way from captured segments to spans and metrics, without the kernel and without sending anything.
//!
//! Batches are as Kafka's own producer makes them (16 KiB, one to a request), and each is another one, so that tables fill up as
//! they do in life. The clock of the events runs as at 100 MB/s, which is what the ceiling of spans per second sees.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracer_userspace::observe::Observation;
use tracer_userspace::pipeline::{Pipeline, PipelineSettings, Sink};
use tracer_userspace::source::{CaptureEvent, Direction, EventKind, SocketKey};
use tracer_userspace::telemetry::metrics::{MetricSettings, Metrics};
use tracer_userspace::telemetry::{FinishedSpan, SpanSettings, Telemetry};
use tracer_userspace::time::Timestamp;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
const SEGMENT_BYTES: usize = 16 << 10;
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
        let mut feed = Feed::new(&mut pipeline, &mut told);
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

struct Feed<'a> {
    pipeline: &'a mut Pipeline,
    sink: &'a mut Told,
    socket: SocketKey,
    positions: (u32, u32),
    time_ns: u64,
}

impl<'a> Feed<'a> {
    fn new(pipeline: &'a mut Pipeline, sink: &'a mut Told) -> Self {
        let socket =
            SocketKey { scope: 0, local: SocketAddr::from(([10, 0, 0, 1], 50_000)), peer: SocketAddr::from(([10, 0, 0, 2], 9_092)) };
        let mut feed = Self { pipeline, sink, socket, positions: (1, 1), time_ns: 1_700_000_000_000_000_000 };
        feed.event(EventKind::Open { direction: Direction::Sent, initiator: true, first_position: 1 }, 0);
        feed.event(EventKind::Open { direction: Direction::Received, initiator: false, first_position: 1 }, 0);
        // Metadata v2, so that the cluster is known: nothing is held back.
        let mut metadata = header(3, 2);
        metadata.extend_from_slice(&0_i32.to_be_bytes());
        feed.send(&framed(&metadata));
        let mut told = 7_i32.to_be_bytes().to_vec();
        told.extend_from_slice(&0_i32.to_be_bytes()); // brokers
        string(&mut told, "MkU3OEVBNTcwNTJENDM2Qk");
        told.extend_from_slice(&1_i32.to_be_bytes()); // controller
        told.extend_from_slice(&0_i32.to_be_bytes()); // topics
        feed.receive(&framed(&told));
        feed
    }

    fn event(&mut self, kind: EventKind<'_>, bytes: usize) {
        self.time_ns += bytes as u64 * 1_000_000_000 / BYTES_PER_SECOND;
        let event = CaptureEvent { socket: self.socket, time: Timestamp::from_unix_ns(self.time_ns), pid: None, kind };
        self.pipeline.push(&event, self.sink);
    }

    fn send(&mut self, bytes: &[u8]) {
        for segment in bytes.chunks(SEGMENT_BYTES) {
            let position = self.positions.0;
            self.event(EventKind::Data { direction: Direction::Sent, position, bytes: segment, missing_bytes: 0 }, segment.len());
            self.positions.0 = position.wrapping_add(u32::try_from(segment.len()).unwrap_or(0));
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let position = self.positions.1;
        self.event(EventKind::Data { direction: Direction::Received, position, bytes, missing_bytes: 0 }, bytes.len());
        self.positions.1 = position.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0));
    }
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
        let mut out = header(0, 7);
        out.extend_from_slice(&(-1_i16).to_be_bytes()); // transactional id
        out.extend_from_slice(&(-1_i16).to_be_bytes()); // acks
        out.extend_from_slice(&30_000_i32.to_be_bytes());
        out.extend_from_slice(&1_i32.to_be_bytes());
        string(&mut out, "bench-topic");
        out.extend_from_slice(&1_i32.to_be_bytes());
        out.extend_from_slice(&0_i32.to_be_bytes());
        out.extend_from_slice(&u32::try_from(batch.len()).unwrap_or(0).to_be_bytes());
        let head_at = 4 + out.len();
        out.extend_from_slice(&batch);
        Self { request: framed(&out), answer: answer(), head_at }
    }

    /// Makes it the batch of this number.
    fn set(&mut self, number: i64) {
        let partition = (i32::try_from(number).unwrap_or(0) % PARTITIONS).to_be_bytes();
        let sequence = number / i64::from(PARTITIONS) * i64::from(RECORDS_PER_BATCH);
        let timestamp = 1_700_000_000_000 + number / 6;
        write(&mut self.request, self.head_at - 8, &partition);
        write(&mut self.request, self.head_at + 17, &u32::try_from(number).unwrap_or(0).to_be_bytes()); // crc
        write(&mut self.request, self.head_at + 27, &timestamp.to_be_bytes());
        write(&mut self.request, self.head_at + 35, &timestamp.to_be_bytes());
        write(&mut self.request, self.head_at + 43, &4_711_i64.to_be_bytes()); // producer id
        write(&mut self.request, self.head_at + 51, &0_i16.to_be_bytes());
        write(&mut self.request, self.head_at + 53, &i32::try_from(sequence).unwrap_or(0).to_be_bytes());
        let partition_at = 4 + 4 + 4 + 2 + "bench-topic".len() + 4;
        write(&mut self.answer, partition_at, &partition);
        write(&mut self.answer, partition_at + 6, &sequence.to_be_bytes()); // base offset
    }
}

fn write(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes().to_vec();
    frame.extend_from_slice(payload);
    frame
}

fn header(api_key: i16, api_version: i16) -> Vec<u8> {
    let mut out = api_key.to_be_bytes().to_vec();
    out.extend_from_slice(&api_version.to_be_bytes());
    out.extend_from_slice(&7_i32.to_be_bytes());
    string(&mut out, "bench-producer");
    out
}

fn answer() -> Vec<u8> {
    let mut out = 7_i32.to_be_bytes().to_vec();
    out.extend_from_slice(&1_i32.to_be_bytes());
    string(&mut out, "bench-topic");
    out.extend_from_slice(&1_i32.to_be_bytes());
    out.extend_from_slice(&0_i32.to_be_bytes()); // partition
    out.extend_from_slice(&0_i16.to_be_bytes()); // error
    out.extend_from_slice(&0_i64.to_be_bytes()); // base offset
    out.extend_from_slice(&(-1_i64).to_be_bytes()); // log append time
    out.extend_from_slice(&0_i64.to_be_bytes()); // log start offset
    out.extend_from_slice(&0_i32.to_be_bytes()); // throttle
    framed(&out)
}

/// A batch of format 2.
fn batch() -> Vec<u8> {
    let mut records = Vec::new();
    for number in 0..RECORDS_PER_BATCH {
        let mut record = vec![0]; // attributes
        varint(&mut record, 0); // timestamp delta
        varint(&mut record, i64::from(number));
        varint(&mut record, -1); // no key
        varint(&mut record, i64::try_from(RECORD_BYTES).unwrap_or(0));
        record.resize(record.len() + RECORD_BYTES, b'v');
        varint(&mut record, 0); // no headers
        varint(&mut records, i64::try_from(record.len()).unwrap_or(0));
        records.extend_from_slice(&record);
    }
    let mut out = 0_i64.to_be_bytes().to_vec();
    out.extend_from_slice(&u32::try_from(records.len() + 49).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&0_i32.to_be_bytes()); // leader epoch
    out.push(2);
    out.extend_from_slice(&0_u32.to_be_bytes()); // crc
    out.extend_from_slice(&0_i16.to_be_bytes()); // attributes
    out.extend_from_slice(&(RECORDS_PER_BATCH - 1).to_be_bytes());
    out.resize(out.len() + 8 + 8 + 8 + 2 + 4, 0); // timestamps and producer: `Batch::set`
    out.extend_from_slice(&RECORDS_PER_BATCH.to_be_bytes());
    out.extend_from_slice(&records);
    out
}

/// Zigzag, as records have it.
fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap_or(0) | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap_or(0));
}
