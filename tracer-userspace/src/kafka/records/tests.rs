//! Tables of bytes and what they mean, and a second opinion by another encoder.

#![forbid(unsafe_code)]

use std::io::Write;

use super::*;
use crate::kafka::wire::DamageKind;
use crate::observe::{BatchHeader, Codec};

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut zigzag = (value << 1 ^ value >> 63).cast_unsigned();
    while zigzag >= 0x80 {
        out.push(u8::try_from(zigzag & 0x7f).unwrap() | 0x80);
        zigzag >>= 7;
    }
    out.push(u8::try_from(zigzag).unwrap());
}

fn sized(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => varint(out, -1),
        Some(bytes) => {
            varint(out, i64::try_from(bytes.len()).unwrap());
            out.extend_from_slice(bytes);
        }
    }
}

type TestHeader<'a> = (&'a [u8], Option<&'a [u8]>);

/// A record of format 2, its length before it.
fn record(delta: i64, ms: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[TestHeader<'_>]) -> Vec<u8> {
    let mut body = vec![0];
    varint(&mut body, ms);
    varint(&mut body, delta);
    sized(&mut body, key);
    sized(&mut body, value);
    varint(&mut body, i64::try_from(headers.len()).unwrap());
    for (name, value) in headers {
        sized(&mut body, Some(name));
        sized(&mut body, *value);
    }
    let mut out = Vec::new();
    varint(&mut out, i64::try_from(body.len()).unwrap());
    out.extend(body);
    out
}

/// A batch of format 2 around `records`, compressed or not, with the right CRC.
fn batch(base_offset: i64, attributes: i16, count: i32, records: &[u8]) -> Vec<u8> {
    let mut covered = attributes.to_be_bytes().to_vec();
    covered.extend((count - 1).to_be_bytes());
    covered.extend(1_000_i64.to_be_bytes());
    covered.extend(1_900_i64.to_be_bytes());
    covered.extend(7_i64.to_be_bytes());
    covered.extend(3_i16.to_be_bytes());
    covered.extend(20_i32.to_be_bytes());
    covered.extend(count.to_be_bytes());
    covered.extend(records);
    let mut out = base_offset.to_be_bytes().to_vec();
    out.extend(i32::try_from(covered.len() + 9).unwrap().to_be_bytes());
    out.extend([0, 0, 0, 0, 2]);
    out.extend(crc32c::crc32c(&covered).to_be_bytes());
    out.extend(covered);
    out
}

/// A message of format 0 (`ms` is `None`) or 1.
fn message(offset: i64, ms: Option<i64>, attributes: u8, key: Option<&[u8]>, value: Option<&[u8]>) -> Vec<u8> {
    let mut covered = vec![u8::from(ms.is_some()), attributes];
    covered.extend(ms.map(i64::to_be_bytes).into_iter().flatten());
    for bytes in [key, value] {
        covered.extend(bytes.map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap()).to_be_bytes());
        covered.extend(bytes.unwrap_or_default());
    }
    let mut crc = flate2::Crc::new();
    crc.update(&covered);
    let mut out = offset.to_be_bytes().to_vec();
    out.extend(i32::try_from(covered.len() + 4).unwrap().to_be_bytes());
    out.extend(crc.sum().to_be_bytes());
    out.extend(covered);
    out
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn snappy(plain: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(plain).unwrap()
}

/// The framing of the xerial library, with blocks of at most `block_bytes`.
fn xerial(plain: &[u8], block_bytes: usize) -> Vec<u8> {
    let mut out = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01".to_vec();
    for block in plain.chunks(block_bytes) {
        let block = snappy(block);
        out.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
        out.extend(block);
    }
    out
}

fn lz4(plain: &[u8], configure: impl Fn(&mut lz4_flex::frame::FrameInfo)) -> Vec<u8> {
    let mut info = lz4_flex::frame::FrameInfo::new();
    info.block_size = lz4_flex::frame::BlockSize::Max64KB;
    configure(&mut info);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// A frame of one block that did not compress.
fn lz4_stored(plain: &[u8], checksums: bool) -> Vec<u8> {
    let noise: Vec<u8> = (0..=255).collect();
    let mut frame = lz4(&noise, |info| (info.block_checksums, info.content_checksum) = (checksums, checksums));
    frame.splice(7..11, (u32::try_from(plain.len()).unwrap() | 1 << 31).to_le_bytes());
    frame.splice(11..11 + noise.len(), plain.iter().copied());
    frame
}

fn zstd_at(plain: &[u8], level: i32) -> Vec<u8> {
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    zstd_safe::compress(&mut out, plain, level).unwrap();
    out
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd_at(plain, 3)
}

/// What a test looks at: offsets are the batch's base plus the delta.
type Seen = (i64, Option<i64>, Option<Vec<u8>>, Option<u32>);

fn seen(record: &Record<'_>, header: &BatchHeader) -> Seen {
    (header.base_offset + record.offset_delta, record.timestamp_ms, record.key.map(<[u8]>::to_vec), record.value_bytes)
}

/// All good records of all batches; anything else fails the test.
fn all_records(bytes: &[u8], origin: Origin) -> Vec<Seen> {
    let mut scratch = Scratch::default();
    let mut all = Vec::new();
    for item in batches(Payload::whole(bytes), origin) {
        let Item::Batch(batch) = item else { panic!("{item:?}") };
        assert_eq!(batch.crc_ok(), Some(true));
        let mut records = batch.records(&mut scratch, Limits::default()).unwrap();
        let header = records.header().clone();
        for record in records.by_ref() {
            all.push(seen(&record.unwrap(), &header));
        }
        assert_eq!(Ok(header.record_count), i32::try_from(records.walked()));
    }
    all
}

fn three_records() -> (Vec<u8>, Vec<Seen>) {
    let records = [
        record(0, 0, Some(b"k0"), Some(b"value"), &[]),
        record(1, 900, None, None, &[(b"a", None), (b"", Some(b"x"))]),
        record(2, -2_001, Some(b""), Some(b""), &[]),
    ]
    .concat();
    let expected =
        vec![(40, Some(1_000), Some(b"k0".to_vec()), Some(5)), (41, Some(1_900), None, None), (42, Some(-1_001), Some(vec![]), Some(0))];
    (records, expected)
}

#[test]
fn a_batch_of_format_2_gives_its_header_and_its_records() {
    let (records, expected) = three_records();
    let bytes = batch(40, 0x10, 3, &records);
    let items: Vec<_> = batches(Payload::whole(&bytes), Origin::Fetch).collect();
    let [Item::Batch(first)] = &items[..] else { panic!("{items:?}") };
    let crc = u32::from_be_bytes(*bytes[17..].first_chunk().unwrap());
    let header = BatchHeader {
        magic: 2,
        base_offset: 40,
        last_offset_delta: 2,
        base_timestamp_ms: Some(1_000),
        max_timestamp_ms: Some(1_900),
        record_count: 3,
        producer_id: 7,
        producer_epoch: 3,
        base_sequence: 20,
        size_bytes: u32::try_from(bytes.len()).unwrap(),
        crc,
        codec: Codec::None,
        log_append_time: false,
        transactional: true,
        control: false,
        delete_horizon: false,
    };
    assert_eq!(*first.header(), header);
    assert_eq!(all_records(&bytes, Origin::Fetch), expected);
}

#[test]
fn timestamps_are_the_brokers_under_log_append_time_and_none_for_minus_one() {
    let records = [record(0, 0, None, None, &[]), record(1, -1_001, None, None, &[])].concat();
    let times =
        |attributes| -> Vec<_> { all_records(&batch(0, attributes, 2, &records), Origin::Fetch).into_iter().map(|it| it.1).collect() };
    assert_eq!(times(0), [Some(1_000), None]);
    assert_eq!(times(1 << 3), [Some(1_900), Some(1_900)]);
}

#[test]
fn an_empty_batch_has_a_header_and_no_records() {
    // What compaction leaves of a producer's last batch: no records, but its offsets.
    let mut bytes = batch(7, 0, 0, &[]);
    bytes[23..27].copy_from_slice(&4_i32.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(all_records(&bytes, Origin::Fetch), []);
    let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
    assert_eq!((batch.header().record_count, batch.header().last_offset_delta), (0, 4));
}

/// TrackingSoft/Kafka#38, kafka-protocol-rs#79 (snappy with and without framing), dpkp/kafka-python#695 (lz4 header checksum).
#[test]
fn every_codec_in_every_framing_gives_the_same_records() {
    let (records, expected) = three_records();
    let mut wrong_header_checksum = lz4(&records, |_| {});
    wrong_header_checksum[6] ^= 0x5a;
    let cases = [
        ("gzip", 1, gzip(&records)),
        ("gzip, two members", 1, [gzip(&records[..9]), gzip(&records[9..])].concat()),
        ("gzip with zeros behind it", 1, [&gzip(&records)[..], &[0; 9]].concat()),
        ("snappy raw", 2, snappy(&records)),
        ("snappy xerial", 2, xerial(&records, 1 << 15)),
        ("snappy xerial, blocks of 7", 2, xerial(&records, 7)),
        ("snappy xerial, two streams", 2, [xerial(&records[..9], 99), xerial(&records[9..], 99)].concat()),
        ("lz4", 3, lz4(&records, |_| {})),
        ("lz4 with checksums", 3, lz4(&records, |info| (info.block_checksums, info.content_checksum) = (true, true))),
        ("lz4 with its size", 3, lz4(&records, |info| info.content_size = Some(records.len() as u64))),
        ("lz4 linked", 3, lz4(&records, |info| info.block_mode = lz4_flex::frame::BlockMode::Linked)),
        ("lz4, stored", 3, lz4_stored(&records, false)),
        ("lz4, stored, with checksums", 3, lz4_stored(&records, true)),
        ("lz4, stored twice", 3, [lz4_stored(&records[..9], false), lz4_stored(&records[9..], true)].concat()),
        ("lz4, two frames", 3, [lz4(&records[..9], |_| {}), lz4(&records[9..], |_| {})].concat()),
        ("lz4, wrong header checksum", 3, wrong_header_checksum),
        ("zstd", 4, zstd(&records)),
        ("zstd, two frames", 4, [zstd(&records[..9]), zstd(&records[9..])].concat()),
        ("zstd after a skippable frame", 4, [&b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"[..], &zstd(&records)].concat()),
    ];
    for (name, attributes, compressed) in cases {
        let bytes = batch(40, attributes, 3, &compressed);
        assert_eq!(all_records(&bytes, Origin::Fetch), expected, "{name}");
        assert_eq!(all_records(&bytes, Origin::Produce), expected, "{name}");
    }
}

#[test]
fn several_blocks_of_a_codec_are_one_stream() {
    // 200 KiB, compressible, with matches that reach back over block borders.
    let value: Vec<u8> = (0..200_u64 << 10).map(|i| u8::try_from(i * i / 7919 % 251).unwrap()).collect();
    let plain: Vec<u8> = (0..4).flat_map(|i| record(i, 0, Some(b"key"), Some(&value), &[])).collect();
    let cases = [
        (1, gzip(&plain)),
        (2, xerial(&plain, 32 << 10)),
        (3, lz4(&plain, |_| {})),
        (3, lz4(&plain, |info| info.block_mode = lz4_flex::frame::BlockMode::Linked)),
        (3, lz4(&plain, |info| info.block_size = lz4_flex::frame::BlockSize::Max4MB)),
        (4, zstd(&plain)),
    ];
    for (attributes, compressed) in cases {
        assert!(compressed.len() < plain.len());
        let records = all_records(&batch(0, attributes, 4, &compressed), Origin::Fetch);
        assert_eq!(records.iter().map(|it| it.3).collect::<Vec<_>>(), [Some(200 << 10); 4], "{attributes}");
    }
}

/// tulios/kafkajs#116, IBM/sarama#998, okapies/finagle-kafka#3, Parsely/pykafka#155.
#[test]
fn a_tail_that_the_byte_limit_cut_is_no_damage_on_a_fetch_and_damage_in_a_produce() {
    let (records, _) = three_records();
    let whole = batch(40, 0, 3, &records);
    for tail_bytes in 1..whole.len() {
        let bytes = [&whole[..], &whole[..tail_bytes]].concat();
        let mut items = batches(Payload::whole(&bytes), Origin::Fetch);
        assert!(matches!(items.next(), Some(Item::Batch(_))));
        assert!(matches!(items.next(), Some(Item::PartialTail { bytes }) if bytes == tail_bytes), "{tail_bytes}");
        assert!(items.next().is_none());
        let mut items = batches(Payload::whole(&bytes), Origin::Produce);
        assert!(matches!(items.next(), Some(Item::Batch(_))));
        assert!(matches!(items.next(), Some(Item::Damaged { bytes, .. }) if bytes == tail_bytes), "{tail_bytes}");
        assert!(items.next().is_none());
    }
}

/// tulios/kafkajs#1256, `kafkaex/kafka_ex`#557, platformatic/kafka#391.
#[test]
fn control_batches_say_what_they_are() {
    for (key, expected) in [
        (&[0, 0, 0, 0][..], Some(ControlKind::Abort)),
        (&[0, 0, 0, 1], Some(ControlKind::Commit)),
        (&[0, 1, 0, 1, 9], Some(ControlKind::Commit)),
        (&[0, 0, 0, 2], Some(ControlKind::Other(2))),
        (&[0, 0, 0], Some(ControlKind::Unreadable)),
    ] {
        let bytes = batch(4, 0x30, 1, &record(0, 0, Some(key), Some(b"\0\0\0\0\0\0"), &[]));
        let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
        assert!(batch.header().control && batch.header().transactional);
        assert_eq!(batch.control_kind(), expected);
    }
    let bytes = batch(4, 0x30, 1, &record(0, 0, Some(&[0, 0, 0, 1]), None, &[]));
    for captured in 61..67 {
        let cut = Payload::new(&bytes[..captured], &[], bytes.len());
        let Some(Item::Batch(batch)) = batches(cut, Origin::Fetch).next() else { panic!() };
        assert_eq!(batch.control_kind(), Some(ControlKind::Unreadable), "a marker that was not captured is no message");
    }
    let bytes = batch(4, 0x10, 1, &record(0, 0, Some(&[0, 0, 0, 1]), None, &[]));
    let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
    assert_eq!(batch.control_kind(), None, "a message whose key looks like a marker's");
}

#[test]
fn plain_messages_of_format_0_and_1_are_runs() {
    let set = |ms: Option<i64>| {
        [
            message(10, ms, 0, Some(b"a"), Some(b"1")),
            message(12, ms.map(|ms| ms + 5), 0, None, Some(b"22")),
            message(13, ms.map(|_| -1), 0, Some(b"c"), None),
        ]
        .concat()
    };
    let expected = |ms: Option<i64>, offsets: [i64; 3]| {
        vec![
            (offsets[0], ms, Some(b"a".to_vec()), Some(1)),
            (offsets[1], ms.map(|ms| ms + 5), None, Some(2)),
            (offsets[2], None, Some(b"c".to_vec()), None),
        ]
    };
    for ms in [None, Some(500)] {
        assert_eq!(all_records(&set(ms), Origin::Fetch), expected(ms, [10, 12, 13]));
        assert_eq!(all_records(&set(ms), Origin::Produce), expected(ms, [0, 1, 2]), "what a producer writes means nothing");
        let items: Vec<_> = batches(Payload::whole(&set(ms)), Origin::Fetch).map(|item| format!("{item:?}")).collect();
        assert_eq!(items.len(), 1);
    }
    let bytes = set(Some(500));
    let Some(Item::Batch(run)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
    let header = run.header();
    assert_eq!((header.magic, header.base_offset, header.last_offset_delta, header.record_count), (1, 10, 3, 3));
    assert_eq!((header.base_timestamp_ms, header.max_timestamp_ms), (Some(500), Some(505)));
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (-1, -1, -1));
}

#[test]
fn formats_that_change_within_a_set_make_runs_of_their_own() {
    let set = [
        message(1, None, 0, None, Some(b"old")),
        message(2, Some(7), 0, None, Some(b"new")),
        batch(3, 0, 1, &record(0, 0, None, None, &[])),
    ]
    .concat();
    let magics: Vec<_> = batches(Payload::whole(&set), Origin::Fetch)
        .map(|item| if let Item::Batch(batch) = item { batch.header().magic } else { panic!("{item:?}") })
        .collect();
    assert_eq!(magics, [0, 1, 2]);
    assert_eq!(all_records(&set, Origin::Fetch).iter().map(|it| it.0).collect::<Vec<_>>(), [1, 2, 3]);
}

/// KIP-31: inside a wrapper of format 1 offsets are relative; in format 0 they are absolute.
#[test]
fn wrappers_number_their_messages_from_the_last_one_back() {
    type Compress<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let codecs: [(u8, Compress<'_>); 5] = [
        (1, &gzip),
        (2, &|plain| xerial(plain, 16)),
        (2, &snappy),
        (3, &|plain| lz4(plain, |_| {})),
        (3, &|plain| {
            let mut frame = lz4(plain, |_| {});
            frame[6] = !frame[6];
            frame
        }),
    ];
    for (codec, compress) in codecs {
        let inner1 =
            [message(0, Some(5), 0, Some(b"a"), Some(b"1")), message(1, Some(6), 0, None, None), message(3, Some(7), 0, None, None)]
                .concat();
        let wrapper = message(103, Some(7), codec, None, Some(&compress(&inner1)));
        let offsets: Vec<_> = all_records(&wrapper, Origin::Fetch).iter().map(|it| (it.0, it.1)).collect();
        assert_eq!(offsets, [(100, Some(5)), (101, Some(6)), (103, Some(7))]);
        // A producer may leave the wrapper's offset 0: count.
        let wrapper = message(0, Some(7), codec, None, Some(&compress(&inner1)));
        let offsets: Vec<_> = all_records(&wrapper, Origin::Produce).iter().map(|it| it.0).collect();
        assert_eq!(offsets, [0, 1, 2]);
        // The broker's time is the wrapper's.
        let wrapper = message(103, Some(99), codec | 8, None, Some(&compress(&inner1)));
        let times: Vec<_> = all_records(&wrapper, Origin::Fetch).iter().map(|it| it.1).collect();
        assert_eq!(times, [Some(99); 3]);
        let inner0 = [message(100, None, 0, Some(b"a"), Some(b"1")), message(103, None, 0, None, None)].concat();
        let wrapper = message(103, None, codec, None, Some(&compress(&inner0)));
        let offsets: Vec<_> = all_records(&wrapper, Origin::Fetch).iter().map(|it| (it.0, it.1)).collect();
        assert_eq!(offsets, [(100, None), (103, None)]);
    }
}

#[test]
fn a_wrappers_header_is_made_whole_by_what_is_in_it() {
    let inner = [message(0, Some(5), 0, None, None), message(1, Some(9), 0, None, None)].concat();
    let bytes = [message(41, Some(9), 1, None, Some(&gzip(&inner))), message(42, Some(10), 0, None, None)].concat();
    let items: Vec<_> = batches(Payload::whole(&bytes), Origin::Fetch).collect();
    let [Item::Batch(wrapper), Item::Batch(plain)] = &items[..] else { panic!("{items:?}") };
    assert_eq!((wrapper.header().base_offset, wrapper.header().record_count, wrapper.header().codec), (41, -1, Codec::Gzip));
    let mut scratch = Scratch::default();
    let records = wrapper.records(&mut scratch, Limits::default()).unwrap();
    let header = records.header();
    assert_eq!((header.base_offset, header.last_offset_delta, header.record_count), (40, 1, 2));
    assert_eq!((header.base_timestamp_ms, header.max_timestamp_ms), (Some(5), Some(9)));
    assert_eq!(records.uncompressed_bytes(), inner.len());
    assert_eq!((plain.header().base_offset, plain.header().record_count), (42, 1));
}

#[test]
fn a_cut_tail_inside_a_wrapper_is_no_message() {
    let inner = [message(0, Some(5), 0, None, None), message(1, Some(6), 0, None, Some(b"cut off here"))].concat();
    let wrapper = message(40, Some(6), 1, None, Some(&gzip(&inner[..inner.len() - 3])));
    assert_eq!(all_records(&wrapper, Origin::Fetch), [(40, Some(5), None, None)]);
}

#[test]
fn a_wrong_checksum_is_told_and_does_not_hide_the_records() {
    let mut bytes = batch(0, 0, 1, &record(0, 0, None, Some(b"x"), &[]));
    bytes[17] ^= 1;
    let Some(Item::Batch(damaged)) = batches(Payload::whole(&bytes), Origin::Produce).next() else { panic!() };
    assert_eq!(damaged.crc_ok(), Some(false));
    assert_eq!(damaged.records(&mut Scratch::default(), Limits::default()).unwrap().flatten().count(), 1);
    let mut bytes = [message(0, None, 0, None, None), message(1, None, 0, None, Some(b"x"))].concat();
    *bytes.last_mut().unwrap() ^= 1;
    let Some(Item::Batch(run)) = batches(Payload::whole(&bytes), Origin::Produce).next() else { panic!() };
    assert_eq!(run.crc_ok(), Some(false));
}

/// A hole costs only what lay in it: every hole in a fetch of three batches.
#[test]
fn a_hole_costs_only_the_records_it_lies_in() {
    let header: &[TestHeader<'_>] = &[(b"traceparent", Some(b"00-x"))];
    let one = |i: i64| record(i, i, Some(b"key"), Some(&[b'v'; 20]), header);
    let bytes: Vec<u8> = (0..3).flat_map(|i| batch(i * 3, 0, 3, &[one(0), one(1), one(2)].concat())).collect();
    let batch_bytes = bytes.len() / 3;
    let record_bytes = one(0).len();
    for start in 0..bytes.len() {
        for length in [1, 7, 70] {
            let hole = start..(start + length).min(bytes.len());
            let mut damaged = bytes.clone();
            damaged[hole.clone()].fill(0);
            let holes = [hole.clone()];
            let mut good = Vec::new();
            let mut missing_headers = 0;
            for item in batches(Payload::new(&damaged, &holes, damaged.len()), Origin::Fetch) {
                match item {
                    Item::Batch(batch) => {
                        assert!(batch.is_whole() || batch.crc_ok().is_none());
                        for record in batch.records(&mut Scratch::default(), Limits::default()).unwrap() {
                            match record {
                                Ok(record) => {
                                    assert_eq!((record.key, record.value_bytes), (Some(&b"key"[..]), Some(20)));
                                    good.push(batch.header().base_offset + record.offset_delta);
                                    missing_headers += usize::from(!record.headers.is_captured());
                                }
                                Err(error) => assert_eq!(error.kind(), DamageKind::Hole, "{hole:?}: {error}"),
                            }
                        }
                    }
                    Item::Damaged { reason, .. } => assert_eq!(reason.kind(), DamageKind::Hole, "{hole:?}"),
                    Item::PartialTail { .. } => panic!("{hole:?}"),
                }
            }
            // Which records the hole touches, worked out from the places alone.
            let touched = |from: usize, to: usize| hole.start < to && from < hole.end;
            let mut expected = Vec::new();
            let mut expected_missing = 0;
            'batches: for b in 0..3 {
                let at = b * batch_bytes;
                if touched(at, at + 12) || touched(at + 16, at + 17) {
                    break; // its length or its format is not known: the rest cannot be found
                }
                if touched(at + 17, at + 61) {
                    continue;
                }
                for r in 0..3 {
                    let from = at + 61 + r * record_bytes;
                    if touched(from, from + 1) {
                        continue 'batches;
                    }
                    if !touched(from + 1, from + 9) {
                        expected.push(i64::try_from(b * 3 + r).unwrap());
                        expected_missing += usize::from(touched(from + 29, from + record_bytes));
                    }
                }
            }
            assert_eq!(good, expected, "{hole:?}");
            assert_eq!(missing_headers, expected_missing, "{hole:?}");
        }
    }
}

/// open-telemetry/opentelemetry-ebpf-instrumentation#1381: a context behind what was captured is unknown, not absent.
#[test]
fn a_batch_that_the_capture_cuts_keeps_its_facts() {
    let value = vec![b'v'; 20 << 10];
    let first = record(0, 0, Some(b"k"), Some(&value), &[(b"traceparent", Some(b"x"))]);
    let bytes = batch(5, 0, 2, &[first.clone(), record(1, 0, None, None, &[])].concat());
    let cut = Payload::new(&bytes[..61 + 1_000], &[], bytes.len());
    let items: Vec<_> = batches(cut, Origin::Fetch).collect();
    let [Item::Batch(batch)] = &items[..] else { panic!("{items:?}") };
    assert_eq!((batch.header().record_count, batch.is_whole(), batch.crc_ok()), (2, false, None));
    let mut scratch = Scratch::default();
    let records: Vec<_> = batch.records(&mut scratch, Limits::default()).unwrap().collect();
    let [Ok(seen), Err(lost)] = &records[..] else { panic!("{records:?}") };
    assert_eq!((seen.key, seen.value_bytes, seen.headers.is_captured()), (Some(&b"k"[..]), Some(20 << 10), false));
    assert_eq!(lost.kind(), DamageKind::Truncated);
}

/// dpkp/kafka-python#695, tulios/kafkajs#152: compressed and cut is the header's facts, and never a guess.
#[test]
fn compressed_records_that_were_not_captured_whole_are_not_guessed_at() {
    let (records, _) = three_records();
    for (attributes, compressed) in [(1, gzip(&records)), (2, snappy(&records)), (3, lz4(&records, |_| {})), (4, zstd(&records))] {
        let bytes = batch(40, attributes, 3, &compressed);
        for captured in 61..bytes.len() {
            let cut = Payload::new(&bytes[..captured], &[], bytes.len());
            let Some(Item::Batch(batch)) = batches(cut, Origin::Fetch).next() else { panic!() };
            assert_eq!(batch.header().record_count, 3);
            let error = batch.records(&mut Scratch::default(), Limits::default()).unwrap_err();
            let missing_bytes = bytes.len() - captured;
            assert_eq!(error, RecordsError::NotCaptured { bytes: compressed.len(), missing_bytes }, "{attributes}");
        }
    }
}

#[test]
fn damage_in_a_batch_is_told_and_ends() {
    let good = record(0, 0, None, None, &[]);
    for (name, count, records) in [
        ("a record longer than the batch", 2, [&good[..], &[0x7e, 0, 0]].concat()),
        ("fewer records than the header says", 3, good.clone()),
        ("a negative record length", 2, [&good[..], &[0x03]].concat()),
        ("a record of no bytes", 2, [&good[..], &[0]].concat()),
        ("a value over the record's end", 2, [&good[..], &[0x0c, 0, 0, 0, 1, 0x40, 0]].concat()),
        ("a key of length -2", 2, [&good[..], &[0x0c, 0, 0, 0, 3, 1, 0]].concat()),
        ("a length that does not end", 2, [&good[..], &[0xff; 12]].concat()),
        ("a length of more than 32 bits", 2, [&good[..], &[0xff, 0xff, 0xff, 0xff, 0x7f]].concat()),
        ("bytes left over", 1, [&good[..], &[1, 2, 3]].concat()),
    ] {
        let bytes = batch(0, 0, count, &records);
        let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!("{name}") };
        let mut scratch = Scratch::default();
        let walked: Vec<_> = batch.records(&mut scratch, Limits::default()).unwrap().collect();
        assert!(walked[0].is_ok(), "{name}");
        assert_eq!(walked.iter().filter(|record| record.is_err()).count(), 1, "{name}: {walked:?}");
        assert_eq!(walked.last().unwrap().as_ref().unwrap_err().kind(), DamageKind::Malformed, "{name}: {walked:?}");
    }
}

#[test]
fn damaged_batches_cost_their_own_bytes_where_their_length_is_good() {
    let good = batch(1, 0, 1, &record(0, 0, None, None, &[]));
    let mut bad_magic = good.clone();
    bad_magic[16] = 9;
    let mut bad_count = good.clone();
    bad_count[57] = 0xff;
    for bad in [bad_magic, bad_count] {
        let bytes = [&bad[..], &good].concat();
        let items: Vec<_> = batches(Payload::whole(&bytes), Origin::Fetch).collect();
        assert!(matches!(&items[..], [Item::Damaged { bytes, .. }, Item::Batch(_)] if *bytes == bad.len()), "{items:?}");
    }
    let mut bad_length = good.clone();
    bad_length[8..12].copy_from_slice(&48_i32.to_be_bytes());
    let bytes = [&bad_length[..], &good].concat();
    let items: Vec<_> = batches(Payload::whole(&bytes), Origin::Fetch).collect();
    assert!(matches!(&items[..], [Item::Damaged { bytes: lost, .. }] if *lost == bytes.len()), "{items:?}");
}

/// Headers: names that are empty, repeated or no text, values that are null or empty, and damage.
#[test]
fn headers_are_read_as_they_are_and_damage_ends_them() {
    let headers: &[TestHeader<'_>] = &[(b"", None), (b"a", Some(b"")), (b"a", Some(b"1")), (&[0xff], Some(&[0; 300]))];
    let bytes = batch(0, 0, 2, &[record(0, 0, None, Some(b"v"), headers), record(1, 0, None, None, &[])].concat());
    let Some(Item::Batch(whole)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
    let mut scratch = Scratch::default();
    let records: Vec<_> = whole.records(&mut scratch, Limits::default()).unwrap().map(Result::unwrap).collect();
    let read: Vec<_> = records[0].headers.iter().map(Result::unwrap).map(|it| (it.name, it.value)).collect();
    assert_eq!(read, headers);
    assert!(records[1].headers.is_empty() && records[1].headers.iter().next().is_none());
    for bad in [&[4, 2, b'a', 1][..], &[2, 9, b'a'], &[1, 0], &[2, 2, b'a', 3, 0], &[0, 7], &[2, 1, 0], &[0xfe, 0xff, 0xff, 0xff, 0x0f]] {
        let mut body = vec![0, 0, 0, 1, 1];
        body.extend(bad);
        let mut record = Vec::new();
        varint(&mut record, i64::try_from(body.len()).unwrap());
        record.extend(body);
        let bytes = batch(0, 0, 1, &record);
        let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
        let mut records = batch.records(&mut scratch, Limits::default()).unwrap();
        let headers = records.next().unwrap().unwrap().headers;
        let last = headers.iter().take(9).last().unwrap();
        assert_eq!(last.unwrap_err().kind(), DamageKind::Malformed, "{bad:?}");
    }
}

#[test]
fn a_bomb_is_refused_at_the_cap_and_not_a_byte_later() {
    let plain = vec![0; 1 << 20];
    let limits = |max_uncompressed_bytes| Limits { max_uncompressed_bytes };
    let cases = [
        (1, gzip(&plain)),
        (2, snappy(&plain)),
        (2, xerial(&plain, 32 << 10)),
        (3, lz4(&plain, |_| {})),
        (3, lz4(&plain, |info| info.block_size = lz4_flex::frame::BlockSize::Max4MB)),
        (4, zstd(&plain)),
    ];
    let mut scratch = Scratch::default();
    for (attributes, compressed) in cases {
        let bytes = batch(0, attributes, 1, &compressed);
        let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
        for cap in [0, 1, 1_000, plain.len() - 1] {
            let error = batch.records(&mut scratch, limits(cap)).unwrap_err();
            assert_eq!(error.reason(), "decompression_limit", "{attributes} with a cap of {cap}: {error}");
        }
        assert!(batch.records(&mut scratch, limits(plain.len())).is_ok(), "{attributes}");
    }
}

#[test]
fn compressed_bytes_that_are_none_are_refused_with_the_reason() {
    let (records, _) = three_records();
    for (attributes, compressed) in [(1, gzip(&records)), (2, xerial(&records, 30)), (3, lz4(&records, |_| {})), (4, zstd(&records))] {
        for end in 1..compressed.len() {
            let bytes = batch(0, attributes, 3, &compressed[..end]);
            let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
            let mut scratch = Scratch::default();
            match batch.records(&mut scratch, Limits::default()) {
                Err(error) => assert_eq!(error.reason(), "decompression_failed", "{attributes} cut at {end}"),
                // xerial's framing has no end of its own: a stream cut between blocks is a shorter one.
                Ok(records) => assert!(attributes == 2 && records.filter(Result::is_err).count() == 1, "{attributes} cut at {end}"),
            }
        }
    }
    let bytes = batch(0, 5, 3, &records);
    let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
    assert_eq!(batch.header().codec, Codec::Unknown(5));
    assert_eq!(batch.records(&mut Scratch::default(), Limits::default()).unwrap_err().reason(), "unknown_codec");
}

/// The crate `kafka-protocol` as encoder, for the one format that it writes.
#[test]
fn what_another_encoder_writes_reads_the_same() {
    use kafka_protocol::records::{Compression, Record as Theirs, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
    let theirs: Vec<Theirs> = (0..50_i64)
        .map(|i| Theirs {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: 0,
            producer_id: 9,
            producer_epoch: 1,
            timestamp_type: TimestampType::Creation,
            offset: 100 + i,
            sequence: i32::try_from(i).unwrap(),
            timestamp: 1_700_000_000_000 + i * i,
            key: (i % 3 != 0).then(|| format!("key-{i}").into()),
            value: (i % 5 != 0).then(|| vec![b'v'; usize::try_from(i * i).unwrap()].into()),
            headers: [("h".into(), Some(format!("value-{i}").into())), ("null".into(), None)]
                .into_iter()
                .take(usize::try_from(i % 3).unwrap())
                .collect(),
        })
        .collect();
    let mut bytes = bytes::BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut bytes, &theirs, &options).unwrap();
    let mut scratch = Scratch::default();
    let mut count = 0;
    for item in batches(Payload::whole(&bytes), Origin::Fetch) {
        let Item::Batch(batch) = item else { panic!("{item:?}") };
        assert_eq!(batch.crc_ok(), Some(true));
        let records = batch.records(&mut scratch, Limits::default()).unwrap();
        let header = records.header().clone();
        for record in records {
            let record = record.unwrap();
            let theirs = &theirs[count];
            count += 1;
            assert_eq!(header.base_offset + record.offset_delta, theirs.offset);
            assert_eq!(record.timestamp_ms, (theirs.timestamp != -1).then_some(theirs.timestamp));
            assert_eq!(record.key, theirs.key.as_deref());
            assert_eq!(record.value_bytes.map(usize::try_from), theirs.value.as_ref().map(|value| Ok(value.len())));
            let ours: Vec<_> = record.headers.iter().map(Result::unwrap).map(|it| (it.name, it.value)).collect();
            let headers: Vec<_> = theirs.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref())).collect();
            assert_eq!(ours, headers);
        }
    }
    assert_eq!(count, theirs.len());
}
