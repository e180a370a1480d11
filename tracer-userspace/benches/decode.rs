//! How fast batches are walked: `cargo bench --package tracer-userspace --bench decode`.
//!
//! Inputs are made once. In each round every contender goes over the same bytes, one after another, and the table shows
//! medians of the rounds in processor time, so that the ratios hold whatever else the machine does: against a plain copy of the same bytes, and
//! against decoding by the crate `kafka-protocol` with its own decompressors (lz4 and zstd are C).
//!
//! "walk" is batches, headers and every record; "contexts" also looks for a trace context in every record. "inflate" is the
//! part of it that is decompression. "auto" is "contexts" over the batches of a topic whose records carry no context, which the default
//! (`headers: auto`) leaves compressed but for one in 64. Of lz4, "in C" is the same by the library that the crate uses, and "follow" what it takes to
//! go from one sequence of a block to the next without writing a byte of output: where a record begins is not known with less.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says so")]

mod data;

use std::hint::black_box;
use std::time::Duration;

use data::{compressed, next, order, varint};
use kafka_protocol::records::RecordBatchDecoder;
use rustix::time::{ClockId, clock_gettime};
use tracer_userspace::kafka::compression::Decompressor;
use tracer_userspace::kafka::context::Propagators;
use tracer_userspace::kafka::records::{Item, Limits, Origin, Scratch, batches};
use tracer_userspace::kafka::wire::Payload;
use tracer_userspace::observe::Codec;

const ROUNDS: usize = 15;
/// Larger than a core's caches, as the bytes of a connection are that nobody has touched yet.
const TOTAL_BYTES: usize = 32 << 20;
/// Records of one batch: what a producer with 16 KiB of `batch.size`, or 1 MiB for large records, makes of them.
const BATCH_BYTES: usize = 64 << 10;
/// Of the compressed batches of a topic without contexts, one in so many is looked into.
const LEFT_COMPRESSED: usize = 64;
const TRACEPARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test --all-targets` only wants to know that it builds
    }
    println!("{TOTAL_BYTES} bytes of records, batches of about {BATCH_BYTES}, median of {ROUNDS} rounds, ns and ratios per record");
    println!(
        "{:<32} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>12}",
        "input",
        "shrinks",
        "walk",
        "contexts",
        "auto",
        "inflate",
        "in C",
        "follow",
        "crate",
        "GB/s",
        "/ memcpy",
        "crate / us",
        "crate / auto"
    );
    for value_bytes in [100, 1_024, 10_240] {
        for traced in [false, true] {
            measure(value_bytes, Values::Half, traced, 0);
        }
    }
    for (value_bytes, values, traced) in [(1_024, Values::Json, false), (100, Values::Json, true), (1_024, Values::Random, false)] {
        for codec in 1..=4 {
            measure(value_bytes, values, traced, codec);
        }
    }
}

/// What values are made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    /// Eight random bytes, eight that are always the same, and so on.
    Half,
    /// Orders as JSON: the same fields again and again, with names, numbers and times that differ.
    Json,
    /// Random bytes: encrypted, or compressed by the application.
    Random,
}

fn measure(value_bytes: usize, values: Values, traced: bool, codec: u8) {
    let input = Input::new(value_bytes, values, traced, codec);
    let mut scratch = Scratch::default();
    let propagators = Propagators::default();
    let mut copy = vec![0_u8; input.bytes.len()];
    let (mut walks, mut contexts, mut autos, mut copies, mut crates) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        walks.push(timed(|| assert_eq!(walk(&input.bytes, &mut scratch, None, 1), input.records)));
        contexts.push(timed(|| assert_eq!(walk(&input.bytes, &mut scratch, Some(&propagators), 1), input.records)));
        if codec > 0 && !traced {
            autos.push(timed(|| assert!(walk(&input.bytes, &mut scratch, Some(&propagators), LEFT_COMPRESSED) > 0)));
        }
        copies.push(timed(|| black_box(&mut copy[..]).copy_from_slice(black_box(&input.bytes))));
    }
    let bytes = bytes::Bytes::copy_from_slice(&input.bytes);
    for _ in 0..ROUNDS.min(5) {
        crates.push(timed(|| assert_eq!(decode_by_the_crate(bytes.clone()), input.records)));
    }
    let (mut inflates, mut follows) = (vec![], vec![]);
    if codec > 0 {
        let mut decompressor = Decompressor::default();
        for _ in 0..ROUNDS {
            inflates.push(timed(|| inflate(&input.bytes, &mut decompressor)));
        }
    }
    let mut in_c = vec![];
    if codec == 3 {
        let mut room = vec![0; 1 << 20];
        for _ in 0..ROUNDS {
            in_c.push(timed(|| inflate_in_c(&input.bytes, &mut room)));
            follows.push(timed(|| follow(&input.bytes)));
        }
    }
    let (walk, contexts, copy, other) = (median(walks), median(contexts), median(copies), median(crates));
    #[expect(clippy::cast_precision_loss, reason = "figures to look at")]
    let (records, plain_bytes, bytes) = (input.records as f64, input.plain_bytes as f64, input.bytes.len() as f64);
    let each = |times: Vec<Duration>| if times.is_empty() { "-".to_owned() } else { format!("{:.1}", median(times) * 1e9 / records) };
    let of_auto = if autos.is_empty() { "-".to_owned() } else { format!("{:.1}", other / median(autos.clone())) };
    println!(
        "{:<32} {:>8.2} {:>8.1} {:>8.1} {:>8} {:>8} {:>8} {:>8} {:>8.1} {:>8.2} {:>8.2} {:>10.1} {:>12}",
        input.name,
        plain_bytes / bytes,
        walk * 1e9 / records,
        contexts * 1e9 / records,
        each(autos),
        each(inflates),
        each(in_c),
        each(follows),
        other * 1e9 / records,
        plain_bytes / contexts / 1e9,
        walk / copy,
        other / contexts,
        of_auto,
    );
}

/// The bodies of the batches.
fn bodies(bytes: &[u8]) -> impl Iterator<Item = (i16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes(*rest.get(8..)?.first_chunk()?);
        let (batch, behind) = rest.split_at_checked(12 + usize::try_from(length).ok()?)?;
        rest = behind;
        Some((i16::from_be_bytes(*batch.get(21..)?.first_chunk()?), batch.get(61..)?))
    })
}

/// Decompresses all batches and looks at nothing.
fn inflate(bytes: &[u8], decompressor: &mut Decompressor) {
    for (attributes, body) in bodies(bytes) {
        let codec = match attributes {
            1 => Codec::Gzip,
            2 => Codec::Snappy,
            3 => Codec::Lz4,
            _ => Codec::Zstd,
        };
        black_box(decompressor.decompress(codec, black_box(body), 32 << 20).unwrap());
    }
}

/// The lz4 blocks of all batches that are compressed.
fn blocks(bytes: &[u8], mut each: impl FnMut(&[u8])) {
    for (_, body) in bodies(bytes) {
        let mut frame = body.get(7..).unwrap();
        loop {
            let (size, rest) = frame.split_first_chunk::<4>().unwrap();
            let size = u32::from_le_bytes(*size);
            if size == 0 {
                break;
            }
            let (block, rest) = rest.split_at(usize::try_from(size & 0x7fff_ffff).unwrap());
            frame = rest;
            if size & 0x8000_0000 == 0 {
                each(block);
            }
        }
    }
}

/// Decompresses all lz4 blocks with the library in C, into memory that is there.
fn inflate_in_c(bytes: &[u8], room: &mut [u8]) {
    let size = i32::try_from(room.len()).unwrap();
    blocks(bytes, |block| {
        black_box(lz4::block::decompress_to_buffer(block, Some(size), room).unwrap());
    });
}

/// Goes from sequence to sequence through all lz4 blocks, as any decompressor must to find where a record begins: each length
/// is known only when the one before it was read.
fn follow(bytes: &[u8]) {
    blocks(bytes, |block| {
        black_box(sequences(block));
    });
}

/// How many bytes a block's sequences make.
fn sequences(block: &[u8]) -> usize {
    let (mut position, mut output) = (0, 0);
    while let Some(&token) = block.get(position) {
        position += 1;
        let literals = length(block, &mut position, token >> 4);
        position += literals;
        output += literals;
        if position + 2 > block.len() {
            break;
        }
        position += 2;
        output += length(block, &mut position, token & 15) + 4;
    }
    output
}

/// A length that begins with four bits and goes on in bytes.
fn length(block: &[u8], position: &mut usize, bits: u8) -> usize {
    let mut length = usize::from(bits);
    if bits == 15 {
        while let Some(&byte) = block.get(*position) {
            *position += 1;
            length += usize::from(byte);
            if byte < 0xff {
                break;
            }
        }
    }
    length
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

/// Walks all records of one in so many batches, with their contexts where propagators are given; returns how many there were.
fn walk(bytes: &[u8], scratch: &mut Scratch, propagators: Option<&Propagators>, one_in: usize) -> usize {
    let mut count = 0;
    for (index, item) in batches(Payload::whole(black_box(bytes)), Origin::Fetch).enumerate() {
        let Item::Batch(batch) = item else { panic!("{item:?}") };
        black_box(&batch);
        if !index.is_multiple_of(one_in) {
            continue;
        }
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
        let records = RecordBatchDecoder::decode(&mut bytes).unwrap();
        count += records.records.len();
        black_box(&records);
    }
    count
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
            match values {
                Values::Half => "",
                Values::Json => ", JSON",
                Values::Random => ", random",
            }
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

/// A record with a key, a value half of which compresses, and perhaps a trace context.
fn record(out: &mut Vec<u8>, delta: usize, (value_bytes, values): (usize, Values), traced: bool, random: &mut u64) {
    let mut body = vec![0];
    varint(&mut body, delta * 3);
    varint(&mut body, delta);
    varint(&mut body, 10);
    body.extend(format!("key-{:06}", delta * 7919 % 1_000_000).as_bytes());
    varint(&mut body, value_bytes);
    let end = body.len() + value_bytes;
    if values == Values::Json {
        order(&mut body, end, random);
    }
    while body.len() < end {
        body.extend(next(random).to_be_bytes());
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
    let records = compressed(codec, plain);
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
