//! The whole line in memory: captured segments in, observations out, on one core.
//!
//! The second table is `headers: auto` beside `all`: what it saves to leave a topic compressed whose records carry no context,
//! one batch in 64 apart. Its requests are 16 KiB before compression, as a producer makes them by default.
//!
//! Inputs are made once. Each figure is the best of several rounds of the same run, beside a copy (`memcpy`) of the same bytes, so
//! that what is compared is a ratio. Allocations are counted: there must be none per record.

#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait; it only adds numbers")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says so")]

mod data;
mod feed;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use data::{compressed, order, varint};
use feed::{Feed, Pace, produce_answer, produce_request, stored};
use tracer_userspace::observe::{HeaderReading, Observation, ObserveSettings};
use tracer_userspace::pipeline::{Pipeline, PipelineSettings, Sink};

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
const PACE: Pace = Pace { segment_bytes: 64 << 10, event_ns: 1_000, byte_ns: 0 };
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
    println!(
        "\n{:<44} {:>9} {:>12} {:>12} {:>12} {:>9}",
        "headers: all and auto, no contexts", "shrinks", "all, ns/rec", "auto, ns/rec", "auto, GB/s", "all/auto"
    );
    for (codec, name) in [(0, "none"), (1, "gzip"), (2, "snappy"), (3, "lz4"), (4, "zstd")] {
        for record_bytes in [1024, 100] {
            compare(name, codec, record_bytes);
        }
    }
}

/// Time for one record with `headers: all` and with `auto`, once the topic has been quiet for long enough.
fn compare(name: &str, codec: u8, record_bytes: usize) {
    const REQUESTS: usize = 2_048;
    const QUIET_BATCHES: usize = 1_000;
    let made: Vec<_> = (0..16).map(|seed| orders(record_bytes, codec, seed + 1)).collect();
    let requests: Vec<Vec<u8>> = made.iter().map(|batch| produce_request(&batch.bytes)).collect();
    let answer = produce_answer(0, 0);
    let records: usize = made.iter().map(|batch| batch.records).sum::<usize>() * REQUESTS / made.len();
    let plain: usize = made.iter().map(|batch| batch.plain_bytes).sum::<usize>() * REQUESTS / made.len();
    let stored: usize = requests.iter().map(Vec::len).sum::<usize>() * REQUESTS / made.len();
    let mut times = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        for (time, headers) in times.iter_mut().zip([HeaderReading::All, HeaderReading::Auto]) {
            let observe = ObserveSettings { headers, ..ObserveSettings::default() };
            let mut pipeline = Pipeline::new(PipelineSettings { observe, ..PipelineSettings::default() });
            let mut count = Count { batches: 0, records: 0 };
            let mut feed = Feed::new(&mut pipeline, &mut count, PACE);
            for index in 0..=QUIET_BATCHES {
                feed.send(requests.get(index % requests.len()).map_or(&[], Vec::as_slice));
                feed.receive(&answer);
            }
            feed.time_ns += 11 * 60 * 1_000_000_000;
            let started = Instant::now();
            for index in 0..REQUESTS {
                feed.send(black_box(requests.get(index % requests.len()).map_or(&[], Vec::as_slice)));
                feed.receive(&answer);
            }
            *time = (*time).min(started.elapsed());
            pipeline.finish(&mut count);
            assert_eq!(count.batches, u64::try_from(REQUESTS + QUIET_BATCHES + 1).unwrap_or(0), "every batch is observed");
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (records, plain, stored) = (records as f64, plain as f64, stored as f64);
    let [all, auto] = times.map(|time| time.as_secs_f64());
    println!(
        "{:<44} {:>9.2} {:>12.1} {:>12.1} {:>12.2} {:>9.1}",
        format!("{name}, {record_bytes}-byte values"),
        plain / stored,
        all * 1e9 / records,
        auto * 1e9 / records,
        plain / auto / 1e9,
        all / auto,
    );
}

fn measure(name: &str, record_bytes: usize, context_every: usize) {
    let request = produce_request(&batch(record_bytes, context_every));
    let answer = produce_answer(0, 0);
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
        let mut feed = Feed::new(&mut pipeline, &mut count, PACE);
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

/// A batch of format 2.
fn batch(record_bytes: usize, context_every: usize) -> Vec<u8> {
    let mut records = Vec::new();
    let mut count = 0_i32;
    while records.len() < BATCH_BYTES {
        let traced = context_every > 0 && usize::try_from(count).unwrap_or(0).is_multiple_of(context_every);
        let mut record = vec![0]; // attributes
        varint(&mut record, 0); // timestamp delta
        varint(&mut record, usize::try_from(count).unwrap_or(0));
        record.push(1); // no key
        varint(&mut record, record_bytes);
        record.resize(record.len() + record_bytes, b'v');
        if traced {
            varint(&mut record, 1);
            varint(&mut record, 11);
            record.extend_from_slice(b"traceparent");
            let value = format!("00-{:032x}-{:016x}-01", count + 1, count + 1);
            varint(&mut record, value.len());
            record.extend_from_slice(value.as_bytes());
        } else {
            varint(&mut record, 0);
        }
        varint(&mut records, record.len());
        records.extend_from_slice(&record);
        count += 1;
    }
    stored(0, count, &records)
}

/// Orders as JSON in one batch of 16 KiB before compression.
struct Orders {
    bytes: Vec<u8>,
    records: usize,
    plain_bytes: usize,
}

fn orders(value_bytes: usize, codec: u8, seed: u64) -> Orders {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
    let mut records = Vec::new();
    let mut count = 0_usize;
    while records.len() + value_bytes < 16 << 10 {
        let mut record = vec![0, 0]; // attributes, timestamp delta
        varint(&mut record, count);
        varint(&mut record, 10);
        record.extend_from_slice(format!("key-{:06}", count * 7_919 % 1_000_000).as_bytes());
        varint(&mut record, value_bytes);
        let end = record.len() + value_bytes;
        order(&mut record, end, &mut random);
        varint(&mut record, 0);
        varint(&mut records, record.len());
        records.extend_from_slice(&record);
        count += 1;
    }
    let bytes = stored(codec, i32::try_from(count).unwrap_or(0), &compressed(codec, &records));
    Orders { bytes, records: count, plain_bytes: records.len() }
}
