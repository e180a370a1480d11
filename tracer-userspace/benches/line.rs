//! The whole line in memory: captured segments in, observations out, on one core.
//!
//! Inputs are made once. Each figure is the best of several rounds of the same run, beside a copy (`memcpy`) of the same bytes, so
//! that what is compared is a ratio. Allocations are counted: there must be none per record.

#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait; it only adds numbers")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tracer_userspace::observe::Observation;
use tracer_userspace::pipeline::{Pipeline, PipelineSettings, Sink};
use tracer_userspace::source::{CaptureEvent, Direction, EventKind, SocketKey};
use tracer_userspace::time::Timestamp;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: usize = 7;
const SEGMENT_BYTES: usize = 64 << 10;
/// Bytes of records in one request: what a producer with a large `batch.size` sends.
const BATCH_BYTES: usize = 512 << 10;
const TOTAL_BYTES: usize = 256 << 20;

struct Count {
    batches: u64,
    records: u64,
}

impl Sink for Count {
    fn observation(&mut self, observation: Observation) {
        if let Observation::Sent(batch) = observation {
            self.batches += 1;
            self.records += u64::from(batch.record_count);
        }
    }
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test --all-targets` only wants to know that it builds
    }
    println!(
        "{:<44} {:>9} {:>12} {:>10} {:>12}",
        "captured segments to observations, one core", "GB/s", "records/s", "memcpy x", "allocs/record"
    );
    for (name, record_bytes, context_every) in [
        ("1 KiB records, no context", 1024, 0),
        ("100-byte records, no context", 100, 0),
        ("1 KiB records, every 10th with traceparent", 1024, 10),
        ("100-byte records, all with traceparent", 100, 1),
    ] {
        measure(name, record_bytes, context_every);
    }
}

fn measure(name: &str, record_bytes: usize, context_every: usize) {
    let request = produce_request(record_bytes, context_every);
    let answer = produce_answer();
    let requests = TOTAL_BYTES / request.len();
    let mut copied = vec![0; request.len()];
    let (mut line, mut copy) = (Duration::MAX, Duration::MAX);
    let (mut records, mut allocations) = (0, 0);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..requests {
            copied.copy_from_slice(black_box(&request));
            black_box(&mut copied);
        }
        copy = copy.min(started.elapsed());

        let mut pipeline = Pipeline::new(PipelineSettings::default());
        let mut count = Count { batches: 0, records: 0 };
        let mut feed = Feed::new(&mut pipeline, &mut count);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let started = Instant::now();
        for _ in 0..requests {
            feed.send(&request);
            feed.receive(&answer);
        }
        line = line.min(started.elapsed());
        allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        pipeline.finish(&mut count);
        assert_eq!(count.batches, u64::try_from(requests).unwrap_or(0), "every batch is observed");
        records = count.records;
    }
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (bytes, records, allocations) = ((requests * request.len()) as f64, records as f64, allocations as f64);
    println!(
        "{name:<44} {:>9.2} {:>12.0} {:>10.2} {:>12.4}",
        bytes / line.as_secs_f64() / 1e9,
        records / line.as_secs_f64(),
        line.as_secs_f64() / copy.as_secs_f64(),
        allocations / records,
    );
}

struct Feed<'a> {
    pipeline: &'a mut Pipeline,
    sink: &'a mut Count,
    socket: SocketKey,
    positions: (u32, u32),
    time_ns: u64,
}

impl<'a> Feed<'a> {
    fn new(pipeline: &'a mut Pipeline, sink: &'a mut Count) -> Self {
        let socket =
            SocketKey { scope: 0, local: SocketAddr::from(([10, 0, 0, 1], 50_000)), peer: SocketAddr::from(([10, 0, 0, 2], 9_092)) };
        let mut feed = Self { pipeline, sink, socket, positions: (1, 1), time_ns: 1_700_000_000_000_000_000 };
        feed.event(EventKind::Open { direction: Direction::Sent, initiator: true, first_position: 1 });
        feed.event(EventKind::Open { direction: Direction::Received, initiator: false, first_position: 1 });
        // Metadata v2, so that the cluster is known: nothing is held back.
        let mut metadata = header(3, 2);
        metadata.extend_from_slice(&0_i32.to_be_bytes());
        feed.send(&framed(&metadata));
        let mut told = 7_i32.to_be_bytes().to_vec();
        told.extend_from_slice(&0_i32.to_be_bytes()); // brokers
        string(&mut told, "cluster");
        told.extend_from_slice(&1_i32.to_be_bytes()); // controller
        told.extend_from_slice(&0_i32.to_be_bytes()); // topics
        feed.receive(&framed(&told));
        feed
    }

    fn event(&mut self, kind: EventKind<'_>) {
        self.time_ns += 1_000;
        let event = CaptureEvent { socket: self.socket, time: Timestamp::from_unix_ns(self.time_ns), pid: None, kind };
        self.pipeline.push(&event, self.sink);
    }

    fn send(&mut self, bytes: &[u8]) {
        for segment in bytes.chunks(SEGMENT_BYTES) {
            let position = self.positions.0;
            self.event(EventKind::Data { direction: Direction::Sent, position, bytes: segment, missing_bytes: 0 });
            self.positions.0 = position.wrapping_add(u32::try_from(segment.len()).unwrap_or(0));
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let position = self.positions.1;
        self.event(EventKind::Data { direction: Direction::Received, position, bytes, missing_bytes: 0 });
        self.positions.1 = position.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0));
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

/// Produce v7 with one batch of one partition.
fn produce_request(record_bytes: usize, context_every: usize) -> Vec<u8> {
    let batch = batch(record_bytes, context_every);
    let mut out = header(0, 7);
    out.extend_from_slice(&(-1_i16).to_be_bytes()); // transactional id
    out.extend_from_slice(&(-1_i16).to_be_bytes()); // acks
    out.extend_from_slice(&30_000_i32.to_be_bytes());
    out.extend_from_slice(&1_i32.to_be_bytes());
    string(&mut out, "bench-topic");
    out.extend_from_slice(&1_i32.to_be_bytes());
    out.extend_from_slice(&0_i32.to_be_bytes());
    out.extend_from_slice(&u32::try_from(batch.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&batch);
    framed(&out)
}

fn produce_answer() -> Vec<u8> {
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

/// A batch of format 2. Its CRC is not looked at by what is measured.
fn batch(record_bytes: usize, context_every: usize) -> Vec<u8> {
    let mut records = Vec::new();
    let mut count = 0_i32;
    while records.len() < BATCH_BYTES {
        let traced = context_every > 0 && usize::try_from(count).unwrap_or(0).is_multiple_of(context_every);
        let mut record = vec![0]; // attributes
        varint(&mut record, 0); // timestamp delta
        varint(&mut record, i64::from(count));
        varint(&mut record, -1); // no key
        varint(&mut record, i64::try_from(record_bytes).unwrap_or(0));
        record.resize(record.len() + record_bytes, b'v');
        if traced {
            varint(&mut record, 1);
            varint(&mut record, 11);
            record.extend_from_slice(b"traceparent");
            let value = format!("00-{:032x}-{:016x}-01", count + 1, count + 1);
            varint(&mut record, i64::try_from(value.len()).unwrap_or(0));
            record.extend_from_slice(value.as_bytes());
        } else {
            varint(&mut record, 0);
        }
        varint(&mut records, i64::try_from(record.len()).unwrap_or(0));
        records.extend_from_slice(&record);
        count += 1;
    }
    let mut out = 0_i64.to_be_bytes().to_vec();
    out.extend_from_slice(&u32::try_from(records.len() + 49).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&0_i32.to_be_bytes()); // leader epoch
    out.push(2);
    out.extend_from_slice(&0_u32.to_be_bytes()); // crc
    out.extend_from_slice(&0_i16.to_be_bytes()); // attributes
    out.extend_from_slice(&(count - 1).to_be_bytes());
    out.extend_from_slice(&1_700_000_000_000_i64.to_be_bytes());
    out.extend_from_slice(&1_700_000_000_000_i64.to_be_bytes());
    out.extend_from_slice(&(-1_i64).to_be_bytes()); // producer id
    out.extend_from_slice(&(-1_i16).to_be_bytes());
    out.extend_from_slice(&(-1_i32).to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
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
