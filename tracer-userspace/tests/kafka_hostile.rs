//! Hostile bytes: whatever comes, the decoder does not panic, does not hang, and takes no more memory than a small multiple of
//! what it was given (or the cap it was told).
//!
//! The seeds are fixed, so a failure comes again. In the release profile 2,000,000 mutated frames and batches are decoded, in
//! the dev profile fewer; `KAFKA_TRACER_MUTATIONS` sets another number.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test panics with a message when it is wrong itself")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::time::{Duration, Instant};

use tracer_userspace::kafka::api::{Request, Response, correlation_id, decode_request, decode_response, plausible_request, request_header};
use tracer_userspace::kafka::context::Propagators;
use tracer_userspace::kafka::records::{Item, Limits, Origin, Scratch, batches};
use tracer_userspace::kafka::versions;
use tracer_userspace::kafka::wire::Payload;

/// Counts what each thread has allocated, and the most it had at once.
struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(taken: usize, given: usize) {
    let live = LIVE.get().saturating_add(taken).saturating_sub(given);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait; this one only counts")]
// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Both may be there while the bytes move.
        count(new_size, 0);
        count(0, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` had allocated at once, beyond what was there before.
fn peak_bytes(work: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    work();
    PEAK.get().saturating_sub(before)
}

/// Small and fast, the same numbers for the same seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % end.max(1)
    }

    /// One of the values that go wrong.
    fn number(&mut self) -> [u8; 4] {
        match self.below(8) {
            0 => [0xff; 4],
            1 => [0x7f, 0xff, 0xff, 0xff],
            2 => [0x80, 0, 0, 0],
            3 => [0; 4],
            4 => [0xff, 0xff, 0xff, 0x0f],
            5 => [0, 0, 0xff, 0xff],
            _ => u32::try_from(self.next() >> 32).unwrap().to_be_bytes(),
        }
    }
}

/// A frame as Kafka wrote it, and of which API and version it is.
struct Frame {
    api_key: i16,
    api_version: i16,
    is_request: bool,
    bytes: Vec<u8>,
}

fn frames() -> Vec<Frame> {
    let lines = include_str!("data/kafka-messages.txt");
    let mut frames = Vec::new();
    for line in lines.lines() {
        let mut words = line.splitn(5, ' ');
        let api_key: i16 = words.next().unwrap().parse().unwrap();
        let api_version: i16 = words.next().unwrap().parse().unwrap();
        let is_request = words.next() == Some("request");
        let hex = words.next().unwrap();
        let row = versions::lookup(api_key).unwrap();
        let mut bytes = Vec::new();
        if is_request {
            bytes.extend(api_key.to_be_bytes());
            bytes.extend(api_version.to_be_bytes());
            bytes.extend([0, 0, 0, 9, 0, 2, b'i', b'd']);
            bytes.extend(vec![0; usize::from(row.request_header_version(api_version) == 2)]);
        } else {
            bytes.extend([0, 0, 0, 9]);
            bytes.extend(vec![0; usize::from(row.response_header_version(api_version) == 1)]);
        }
        bytes.extend((0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()));
        frames.push(Frame { api_key, api_version, is_request, bytes });
    }
    frames
}

/// Decodes as the tracer would, records and their contexts too. Returns the bytes of records that were decompressed.
fn decode(frame: &Frame, payload: Payload<'_>, scratch: &mut Scratch, propagators: &Propagators) {
    let mut walk_field = |records: Option<Payload<'_>>, origin| {
        if let Some(records) = records {
            walk(records, origin, scratch, propagators);
        }
    };
    if frame.is_request {
        plausible_request(i32::try_from(payload.declared_bytes).unwrap_or(i32::MAX), payload.bytes);
        let Ok(header) = request_header(payload) else { return };
        if let Request::Produce(produce) = decode_request(&header, payload).value {
            let partitions = produce.topic_data.iter().flat_map(|topic| &topic.partition_data);
            partitions.for_each(|partition| walk_field(partition.records, Origin::Produce));
        }
        return;
    }
    let _ = correlation_id(payload);
    let decoded = decode_response(frame.api_key, frame.api_version, payload);
    let _ = (decoded.value.throttle_time_ms(), decoded.value.error_code());
    match decoded.value {
        Response::Fetch(fetch) => {
            let partitions = fetch.responses.iter().flat_map(|topic| &topic.partitions);
            partitions.for_each(|partition| walk_field(partition.records, Origin::Fetch));
        }
        Response::ShareFetch(fetch) => {
            let partitions = fetch.responses.iter().flat_map(|topic| &topic.partitions);
            partitions.for_each(|partition| walk_field(partition.records, Origin::Fetch));
        }
        _ => {}
    }
}

const CAP_BYTES: usize = 256 << 10;

/// Walks every batch and record; returns how many there were.
fn walk(records: Payload<'_>, origin: Origin, scratch: &mut Scratch, propagators: &Propagators) -> usize {
    let mut count = 0;
    for item in batches(records, origin) {
        let Item::Batch(batch) = item else { continue };
        let _ = (batch.crc_ok(), batch.control_kind());
        let Ok(records) = batch.records(scratch, Limits { max_uncompressed_bytes: CAP_BYTES }) else { continue };
        for record in records {
            let Ok(record) = record else { continue };
            count += 1;
            let _ = propagators.extract(&record.headers);
        }
    }
    count
}

fn propagators() -> Propagators {
    "tracecontext,b3,b3multi,jaeger,xray".parse().unwrap()
}

fn mutations() -> usize {
    let set = std::env::var("KAFKA_TRACER_MUTATIONS").ok().and_then(|count| count.parse().ok());
    set.unwrap_or(if cfg!(debug_assertions) { 60_000 } else { 2_000_000 })
}

/// Changes bytes here and there: bits, whole numbers, pieces left out, doubled or from elsewhere.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = u8::try_from(random.next() >> 56).unwrap(),
            2 => {
                let number = random.number();
                let end = (at + 1 + random.below(4)).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            3 => bytes.truncate(at),
            4 => {
                let end = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                let end = (at + random.below(64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => bytes.splice(at..at, random.number()).for_each(drop),
        }
    }
}

/// What a frame of `bytes` bytes may take at the most: elements, the array that grows from one size to twice that, and the
/// scratch buffer's cap.
fn allowance(bytes: usize) -> usize {
    48 * bytes + (256 << 10)
}

#[test]
fn mutated_frames_neither_panic_nor_take_memory() {
    let frames = frames();
    let propagators = propagators();
    let mut random = Random(0x00c0_ffee_1234_5678);
    for round in 0..mutations() / 2 {
        let frame = &frames[random.below(frames.len())];
        let mut bytes = frame.bytes.clone();
        mutate(&mut bytes, &mut random);
        // The whole, a cut one, or one with a hole.
        let declared = bytes.len() + if random.below(3) == 0 { random.below(1 << 20) } else { 0 };
        let start = random.below(bytes.len());
        let hole = start..(start + 1 + random.below(40)).min(bytes.len().max(start + 1));
        let holes = if random.below(4) == 0 { std::slice::from_ref(&hole) } else { &[] };
        let payload = Payload::new(&bytes, holes, declared);
        let mut scratch = Scratch::default();
        let peak = peak_bytes(|| decode(frame, payload, &mut scratch, &propagators));
        let allowed = allowance(bytes.len()) + CAP_BYTES * 3;
        assert!(peak <= allowed, "round {round}: {peak} bytes for {} bytes of {}", bytes.len(), versions::name(frame.api_key));
    }
}

/// Records of format 2 with headers, about `count` of them, uncompressed.
fn plain_records(count: usize, random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..count {
        let mut body = vec![0, u8::try_from(i % 50).unwrap() * 2, u8::try_from(i % 60).unwrap() * 2];
        let value = vec![b'v'; random.below(60)];
        body.extend([6, b'k', b'e', b'y', u8::try_from(value.len()).unwrap() * 2]);
        body.extend(value);
        body.extend([2, 22]);
        body.extend(b"traceparent");
        body.extend([110]);
        body.extend(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let mut length = body.len() * 2;
        while length >= 0x80 {
            out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        out.push(u8::try_from(length).unwrap());
        out.extend(body);
    }
    out
}

fn batch(attributes: i16, count: i32, records: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 61];
    bytes[16] = 2;
    bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
    bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    bytes[57..61].copy_from_slice(&count.to_be_bytes());
    bytes.extend(records);
    repair(&mut bytes);
    bytes
}

/// Makes length and CRC right again, so that damage further in is reached.
fn repair(bytes: &mut [u8]) {
    if bytes.len() < 61 {
        return;
    }
    let length = i32::try_from(bytes.len() - 12).unwrap();
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    if bytes[16] == 2 {
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    } else {
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.sum().to_be_bytes());
    }
}

/// A message of format 0 or 1 around `value`.
fn message(magic: u8, attributes: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes.extend([magic, attributes]);
    bytes.extend(vec![0; if magic == 1 { 8 } else { 0 }]);
    bytes.extend([0xff; 4]);
    bytes.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
    bytes.extend(value);
    let length = i32::try_from(bytes.len() - 12).unwrap();
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn compressed(codec: u8, plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    match codec {
        0 => plain.to_vec(),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        2 => {
            let mut framed = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01".to_vec();
            for block in plain.chunks(300) {
                let block = snap::raw::Encoder::new().compress_vec(block).unwrap();
                framed.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
                framed.extend(block);
            }
            framed
        }
        3 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        _ => {
            let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
            zstd_safe::compress(&mut out, plain, 3).unwrap();
            out
        }
    }
}

#[test]
fn mutated_batches_with_repaired_checksums_neither_panic_nor_take_memory() {
    let mut random = Random(0xdead_beef_0bad_cafe);
    let propagators = propagators();
    let mut seeds = Vec::new();
    for codec in 0..5_u8 {
        let records = compressed(codec, &plain_records(12, &mut random));
        seeds.push(batch(i16::from(codec), 12, &records));
        seeds.push(batch(i16::from(codec) | 0x30, 12, &records));
        for magic in [0, 1] {
            let set: Vec<u8> = (0..5_u8).flat_map(|i| message(magic, 0, &[i; 30])).collect();
            seeds.push(message(magic, codec, &compressed(codec, &set)));
            seeds.push(if codec == 0 { set } else { message(magic, codec | 8, &compressed(codec, &set)) });
        }
    }
    seeds.push(batch(2, 12, &snap::raw::Encoder::new().compress_vec(&plain_records(12, &mut random)).unwrap()));
    // Reused from batch to batch, as the tracer does: its buffers may grow to the cap and stay.
    let mut scratch = Scratch::default();
    let mut walked = 0;
    for round in 0..mutations() / 2 {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        mutate(&mut bytes, &mut random);
        if random.below(4) > 0 {
            repair(&mut bytes);
        }
        if round % 64 == 0 {
            scratch = Scratch::default();
        }
        let origin = if random.below(2) == 0 { Origin::Fetch } else { Origin::Produce };
        let peak = peak_bytes(|| walked += walk(Payload::whole(&bytes), origin, &mut scratch, &propagators));
        assert!(peak <= CAP_BYTES * 4, "round {round}: {peak} bytes for a batch of {} bytes", bytes.len());
    }
    assert!(walked > mutations() / 4, "the mutations left nothing to walk: {walked}");
}

/// The crate `kafka-protocol` asks for 154 GB on one of these, and the process aborts.
#[test]
fn tiny_frames_with_huge_counts_take_nothing() {
    let mut tried = 0;
    for row in versions::all() {
        for api_version in *row.versions.start()..=*row.versions.end() + 1 {
            for fill in
                [[0x7f, 0xff, 0xff, 0xff], [0xff; 4], [0xff, 0xff, 0xff, 0x0f], [0x80, 0, 0, 0], [0, 0, 0, 4], [0xfe, 0xff, 0xff, 0x7f]]
            {
                for padding in 0..6 {
                    let mut request = row.api_key.to_be_bytes().to_vec();
                    request.extend(api_version.to_be_bytes());
                    request.extend([0, 0, 0, 1, 0xff, 0xff, 0]);
                    request.extend(vec![0; padding]);
                    let mut response = vec![0, 0, 0, 1, 0];
                    response.extend(vec![0; padding]);
                    for (is_request, mut bytes) in [(true, request), (false, response)] {
                        bytes.extend(fill);
                        let frame = Frame { api_key: row.api_key, api_version, is_request, bytes };
                        for declared in [frame.bytes.len(), i32::MAX as usize] {
                            let payload = Payload::new(&frame.bytes, &[], declared);
                            let peak = peak_bytes(|| decode(&frame, payload, &mut Scratch::default(), &Propagators::default()));
                            assert!(peak <= 4 << 10, "{} v{api_version}: {peak} bytes for {:?}", row.name, frame.bytes);
                            tried += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(tried > 20_000);
}

/// The most elements that fit into the fewest bytes.
#[test]
fn arrays_of_the_smallest_elements_take_a_bounded_multiple_of_the_frame() {
    for row in versions::all() {
        for api_version in row.versions.clone() {
            for (is_request, head) in [(true, 11), (false, 4)] {
                for fill in [0, 1, 2] {
                    let mut bytes = vec![fill; 1 << 16];
                    bytes[..head].fill(0);
                    bytes[..2].copy_from_slice(&row.api_key.to_be_bytes());
                    bytes[2..4].copy_from_slice(&api_version.to_be_bytes());
                    let count = u32::try_from(bytes.len()).unwrap() / 2;
                    for place in head..head + 12 {
                        let mut bytes = bytes.clone();
                        bytes[place..place + 4].copy_from_slice(&count.to_be_bytes());
                        // A compact count of 16,256, too.
                        bytes[place + 5..place + 7].copy_from_slice(&[0x80, 0x7f]);
                        let frame = Frame { api_key: row.api_key, api_version, is_request, bytes };
                        let payload = Payload::whole(&frame.bytes);
                        let peak = peak_bytes(|| decode(&frame, payload, &mut Scratch::default(), &Propagators::default()));
                        let allowed = allowance(frame.bytes.len());
                        assert!(peak <= allowed, "{} v{api_version}: {peak} bytes", row.name);
                    }
                }
            }
        }
    }
}

/// Each of these is some megabytes, made to be slow for whoever goes over the same bytes twice; all of them together have a
/// minute, which is a hundred times what they need.
#[test]
fn time_is_linear_in_the_bytes() {
    let started = Instant::now();
    let bytes = 4 << 20;
    let propagators = propagators();
    let mut scratch = Scratch::default();
    // A batch of the smallest records; one of headers only; message sets of the smallest messages, in one run and with the
    // format changing at each; batches of no records.
    let tiny = batch(0, i32::MAX, &[12, 0, 0, 0, 1, 1, 0].repeat(bytes / 7));
    let mut header_record = vec![0, 0, 0, 1, 1];
    let headers = bytes / 3;
    let mut zigzag = headers * 2;
    while zigzag >= 0x80 {
        header_record.push(u8::try_from(zigzag & 0x7f).unwrap() | 0x80);
        zigzag >>= 7;
    }
    header_record.push(u8::try_from(zigzag).unwrap());
    header_record.extend([4, b'b', b'3', 1].repeat(headers));
    let mut headers_only = Vec::new();
    let mut zigzag = header_record.len() * 2;
    while zigzag >= 0x80 {
        headers_only.push(u8::try_from(zigzag & 0x7f).unwrap() | 0x80);
        zigzag >>= 7;
    }
    headers_only.push(u8::try_from(zigzag).unwrap());
    headers_only.extend(header_record);
    let run = message(0, 0, &[]).repeat(bytes / 26);
    let alternating = [message(0, 0, &[]), message(1, 0, &[])].concat().repeat(bytes / 60);
    for records in
        [tiny, batch(0, 1, &headers_only), run, alternating, batch(0, 0, &[]).repeat(bytes / 61), vec![0xff; bytes], vec![0; bytes]]
    {
        for origin in [Origin::Produce, Origin::Fetch] {
            walk(Payload::whole(&records), origin, &mut scratch, &propagators);
            // A hole of one byte in every 512.
            let holes: Vec<Range<usize>> = (0..records.len() / 512).map(|i| i * 512 + 300..i * 512 + 301).collect();
            walk(Payload::new(&records, &holes, records.len()), origin, &mut scratch, &propagators);
        }
    }
    for frame in frames().iter().step_by(2) {
        let mut long = Frame { bytes: frame.bytes.clone(), ..*frame };
        long.bytes.resize(256 << 10, 1);
        decode(&long, Payload::whole(&long.bytes), &mut scratch, &propagators);
    }
    assert!(started.elapsed() < Duration::from_mins(1), "{:?}", started.elapsed());
}
