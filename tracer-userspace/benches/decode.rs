//! How fast batches are walked: `cargo bench --package tracer-userspace --bench decode`.
//!
//! Inputs are made once. In each round every contender goes over the same bytes, one after another, and the table shows
//! medians of the rounds in processor time, so that the ratios hold whatever else the machine does: against a plain copy of the same bytes, and
//! against decoding by the crate `kafka-protocol` (which gets the same decompressor, since it binds a C library else).
//!
//! "walk" is batches, headers and every record; "contexts" also looks for a trace context in every record.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says so")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::time::Duration;

use kafka_protocol::records::{Compression, RecordBatchDecoder};
use rustix::time::{ClockId, clock_gettime};
use tracer_userspace::kafka::context::Propagators;
use tracer_userspace::kafka::records::{Item, Limits, Origin, Scratch, batches};
use tracer_userspace::kafka::wire::Payload;

const ROUNDS: usize = 15;
/// Larger than a core's caches, as the bytes of a connection are that nobody has touched yet.
const TOTAL_BYTES: usize = 32 << 20;
/// Records of one batch: what a producer with 16 KiB of `batch.size`, or 1 MiB for large records, makes of them.
const BATCH_BYTES: usize = 64 << 10;
const TRACEPARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test --all-targets` only wants to know that it builds
    }
    println!("{TOTAL_BYTES} bytes of records, batches of about {BATCH_BYTES}, median of {ROUNDS} rounds");
    println!("{:<28} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12}", "input", "walk", "contexts", "walk", "contexts", "walk /", "crate /");
    println!("{:<28} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12}", "", "ns/record", "ns/record", "GB/s", "Mrec/s", "memcpy", "contexts");
    for value_bytes in [100, 1_024, 10_240] {
        for traced in [false, true] {
            measure(value_bytes, Values::Half, traced, 0);
        }
    }
    for codec in 1..=4 {
        measure(1_024, Values::Half, false, codec);
    }
    for codec in 1..=4 {
        measure(100, Values::Half, true, codec);
    }
    for codec in 1..=4 {
        measure(1_024, Values::Random, false, codec);
    }
}

/// What values are made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    /// Eight random bytes, eight that are always the same, and so on.
    Half,
    /// Random bytes: encrypted, or compressed by the application.
    Random,
}

fn measure(value_bytes: usize, values: Values, traced: bool, codec: u8) {
    let input = Input::new(value_bytes, values, traced, codec);
    let mut scratch = Scratch::default();
    let propagators = Propagators::default();
    let mut copy = vec![0_u8; input.bytes.len()];
    let (mut walks, mut contexts, mut copies, mut crates) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        walks.push(timed(|| assert_eq!(walk(&input.bytes, &mut scratch, None), input.records)));
        contexts.push(timed(|| assert_eq!(walk(&input.bytes, &mut scratch, Some(&propagators)), input.records)));
        copies.push(timed(|| black_box(&mut copy[..]).copy_from_slice(black_box(&input.bytes))));
    }
    let bytes = bytes::Bytes::copy_from_slice(&input.bytes);
    for _ in 0..ROUNDS.min(5) {
        crates.push(timed(|| assert_eq!(decode_by_the_crate(bytes.clone()), input.records)));
    }
    let (walk, contexts, copy, other) = (median(walks), median(contexts), median(copies), median(crates));
    #[expect(clippy::cast_precision_loss, reason = "figures to look at")]
    let (records, plain_bytes) = (input.records as f64, input.plain_bytes as f64);
    println!(
        "{:<28} {:>10.1} {:>10.1} {:>10.2} {:>10.2} {:>12.2} {:>12.1}",
        input.name,
        walk * 1e9 / records,
        contexts * 1e9 / records,
        plain_bytes / walk / 1e9,
        records / contexts / 1e6,
        walk / copy,
        other / contexts,
    );
}

/// Processor time of this thread, so that other programs' turns do not count.
fn timed(work: impl FnOnce()) -> Duration {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
    };
    let started = now();
    work();
    now().saturating_sub(started)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).unwrap().as_secs_f64()
}

/// Walks all records, with their contexts where propagators are given; returns how many there were.
fn walk(bytes: &[u8], scratch: &mut Scratch, propagators: Option<&Propagators>) -> usize {
    let mut count = 0;
    for item in batches(Payload::whole(black_box(bytes)), Origin::Fetch) {
        let Item::Batch(batch) = item else { panic!("{item:?}") };
        for record in batch.records(scratch, Limits::default()).unwrap() {
            let record = record.unwrap();
            black_box(&record);
            if let Some(propagators) = propagators {
                black_box(propagators.extract(&record.headers));
            }
            count += 1;
        }
    }
    count
}

fn decode_by_the_crate(mut bytes: bytes::Bytes) -> usize {
    let mut count = 0;
    while !bytes.is_empty() {
        let records = RecordBatchDecoder::decode_with_custom_compression(&mut bytes, Some(decompress)).unwrap();
        count += records.records.len();
        black_box(&records);
    }
    count
}

#[expect(clippy::unnecessary_wraps, reason = "the crate's own type of function")]
fn decompress(compressed: &mut bytes::Bytes, codec: Compression) -> Result<bytes::Bytes, anyhow::Error> {
    let mut plain = Vec::new();
    match codec {
        Compression::None => return Ok(compressed.clone()),
        Compression::Gzip => drop(flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut plain).unwrap()),
        Compression::Snappy => plain = snap::raw::Decoder::new().decompress_vec(compressed).unwrap(),
        Compression::Lz4 => drop(lz4_flex::frame::FrameDecoder::new(&compressed[..]).read_to_end(&mut plain).unwrap()),
        Compression::Zstd => {
            let mut decoder = ruzstd::decoding::StreamingDecoder::new(&compressed[..]).unwrap();
            decoder.read_to_end(&mut plain).unwrap();
        }
    }
    Ok(plain.into())
}

struct Input {
    name: String,
    bytes: Vec<u8>,
    records: usize,
    /// Bytes of the records before compression.
    plain_bytes: usize,
}

impl Input {
    fn new(value_bytes: usize, values: Values, traced: bool, codec: u8) -> Self {
        let names = ["none", "gzip", "snappy", "lz4", "zstd"];
        let name = format!(
            "{value_bytes} B, {}{}{}",
            names.get(usize::from(codec)).unwrap(),
            if traced { ", traceparent" } else { "" },
            if values == Values::Random { ", random" } else { "" }
        );
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let per_batch = (BATCH_BYTES / (value_bytes + 40)).max(4);
        let mut input = Self { name, bytes: Vec::new(), records: 0, plain_bytes: 0 };
        // Compressed ones are made few times and repeated: encoders are slow.
        let mut made: Vec<Vec<u8>> = Vec::new();
        for index in 0.. {
            if input.plain_bytes >= TOTAL_BYTES {
                break;
            }
            if made.len() < 16 {
                let mut plain = Vec::new();
                for delta in 0..per_batch {
                    record(&mut plain, delta, (value_bytes, values), traced, &mut random);
                }
                made.push(batch(codec, per_batch, &plain));
            }
            input.bytes.extend(made.get(index % 16).unwrap());
            input.records += per_batch;
            input.plain_bytes += per_batch * (value_bytes + 20);
        }
        input
    }
}

fn varint(out: &mut Vec<u8>, value: usize) {
    let mut zigzag = value * 2;
    while zigzag >= 0x80 {
        out.push(u8::try_from(zigzag & 0x7f).unwrap() | 0x80);
        zigzag >>= 7;
    }
    out.push(u8::try_from(zigzag).unwrap());
}

/// A record with a key, a value half of which compresses, and perhaps a trace context.
fn record(out: &mut Vec<u8>, delta: usize, (value_bytes, values): (usize, Values), traced: bool, random: &mut u64) {
    let mut body = vec![0];
    varint(&mut body, delta * 3);
    varint(&mut body, delta);
    varint(&mut body, 10);
    body.extend(format!("key-{:06}", delta * 7919 % 1_000_000).as_bytes());
    varint(&mut body, value_bytes);
    let end = body.len() + value_bytes;
    while body.len() < end {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        body.extend(random.to_be_bytes());
        if values == Values::Half {
            body.extend(b"\"field\":");
        }
    }
    body.truncate(end);
    varint(&mut body, usize::from(traced));
    if traced {
        varint(&mut body, 11);
        body.extend(b"traceparent");
        varint(&mut body, TRACEPARENT.len());
        body.extend(TRACEPARENT);
    }
    varint(out, body.len());
    out.extend(body);
}

fn batch(codec: u8, count: usize, plain: &[u8]) -> Vec<u8> {
    let records = match codec {
        0 => plain.to_vec(),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        2 => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
        3 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        _ => ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest),
    };
    let count = i32::try_from(count).unwrap();
    let mut covered = i16::from(codec).to_be_bytes().to_vec();
    covered.extend((count - 1).to_be_bytes());
    covered.extend([1_700_000_000_000_i64.to_be_bytes(), 1_700_000_001_000_i64.to_be_bytes(), (-1_i64).to_be_bytes()].concat());
    covered.extend((-1_i16).to_be_bytes());
    covered.extend((-1_i32).to_be_bytes());
    covered.extend(count.to_be_bytes());
    covered.extend(records);
    let mut out = vec![0; 8];
    out.extend(i32::try_from(covered.len() + 9).unwrap().to_be_bytes());
    out.extend([0, 0, 0, 0, 2]);
    out.extend(crc32c::crc32c(&covered).to_be_bytes());
    out.extend(covered);
    out
}
