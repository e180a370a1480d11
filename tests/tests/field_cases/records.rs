//! Batches, records, and what they carry; results by partition.

use std::io::Write as _;

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ApiKey, ProduceRequest, ProduceResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::Compression;
use tests::flow::Recorder;
use tests::kafka::{
    Compressor, Message, Topic, Writing, api_versions, batch, batch_as, fetch, fetched, messages, produce, produced, request, response,
};
use tests::observe::{observe, settings};
use tracer_userspace::frame::FrameLimits;
use tracer_userspace::observe::{Observation, Outcome, RecordsRead};

use crate::{Pair, listing, summary, talked, untimed, with_headers};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A fetch of `orders` from this offset that is answered with these bytes.
fn fetch_of(id: i32, offset: i64, records: Bytes) -> Pair {
    (
        fetch(12, id, Some("client"), (0, -1), &[(Topic::Name("orders"), offset)]).unwrap(),
        fetched(12, id, 0, &[(Topic::Name("orders"), 0, records)]).unwrap(),
    )
}

fn confirmed(more: Vec<Pair>) -> Vec<Pair> {
    [vec![api_versions(3, 1, Some("client")).unwrap()], more].concat()
}

/// tulios/kafkajs#116, IBM/sarama#998, okapies/finagle-kafka#3, Parsely/pykafka#155: the last batch of a partition is cut.
#[test]
fn kafkajs_116_a_cut_batch_at_a_partitions_end_is_no_damage() {
    let (first, second) = (batch(0, &messages(2)).unwrap(), batch(2, &messages(8)).unwrap());
    let whole_topic = (Topic::Name("payments"), 0, batch(7, &messages(1)).unwrap());
    for left in [1, 4, 12, 60, 61, second.len() - 1] {
        let cut = Bytes::from([&first[..], &second[..left]].concat());
        let answer = fetched(12, 2, 0, &[(Topic::Name("orders"), 0, cut), whole_topic.clone()]).unwrap();
        let ask = fetch(12, 2, Some("client"), (0, -1), &[(Topic::Name("orders"), 0), (Topic::Name("payments"), 7)]).unwrap();
        let capture = talked(&confirmed(vec![(ask, answer)]), &[]);
        let said: Vec<_> = listing(&capture).iter().map(|line| format!("{} {}", line["topic"], line["offset"])).collect();
        assert_eq!(said, ["\"orders\" 0", "\"orders\" 1", "\"payments\" 7"], "{left} bytes left");
        let summary = summary(&capture);
        assert_eq!((&summary["frames"]["malformed"], &summary["batches_not_read"]["partial_tail"]), (&serde_json::Value::Null, &1.into()));
    }
}

/// DataDog/datadog-agent#23937, #24351: messages are under-counted.
#[test]
fn datadog_23937_every_record_of_every_batch_is_counted() {
    let four = |base: i64| Bytes::from((0..4).flat_map(|i| batch(base + i * 5, &messages(5)).unwrap()).collect::<Vec<u8>>());
    let names = ["orders", "payments", "returns"];
    let asked: Vec<_> = names.iter().map(|name| (Topic::Name(name), 100)).collect();
    let answered: Vec<_> = names.iter().map(|name| (Topic::Name(name), 0, four(100))).collect();
    let pairs = confirmed(vec![
        (
            produce(9, 2, Some("client"), -1, Topic::Name("orders"), &messages(5)).unwrap(),
            produced(9, 2, Topic::Name("orders"), 0, 0).unwrap(),
        ),
        (fetch(12, 3, Some("client"), (0, -1), &asked).unwrap(), fetched(12, 3, 0, &answered).unwrap()),
    ]);
    // Over six segments.
    let seen = observe(&talked(&pairs, &[300, 700, 1_100, 1_500, 1_900]), settings()).unwrap();
    assert_eq!(seen.sent().map(|batch| batch.record_count).collect::<Vec<_>>(), [5]);
    assert_eq!(seen.fetched().count(), 12);
    assert_eq!(seen.fetched().map(|batch| batch.delivered.delivered).sum::<u32>(), 60);
}

type Codec = (Compression, Compressor);

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn snappy(plain: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(plain).unwrap()
}

/// What Java's clients write around blocks of snappy.
fn xerial(plain: &[u8], block_bytes: usize) -> Vec<u8> {
    let mut out = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01".to_vec();
    for block in plain.chunks(block_bytes).map(snappy) {
        out.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
        out.extend(block);
    }
    out
}

fn lz4(plain: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    zstd_safe::compress(&mut out, plain, 3).unwrap();
    out
}

const CODECS: [Codec; 4] = [(Compression::Gzip, gzip), (Compression::Snappy, snappy), (Compression::Lz4, lz4), (Compression::Zstd, zstd)];

fn compressed(base_offset: i64, messages: &[Message], codec: Codec) -> Bytes {
    batch_as(base_offset, messages, Writing { codec, ..Writing::default() }).unwrap()
}

/// kafka-protocol-rs/kafka-protocol-rs#79, TrackingSoft/Kafka#38, #18: snappy is read with xerial's framing or without, not both.
#[test]
fn kafka_protocol_rs_79_snappy_reads_the_same_raw_and_in_blocks() {
    // More than the 32 KiB that a block of xerial's holds.
    let large =
        Message { value: Some((0..90_000_u32).map(|i| u8::try_from(i * 7919 / 13 % 251).unwrap()).collect()), ..messages(1).remove(0) };
    let sent = [&messages(3)[..], &[large]].concat();
    let framings: [Compressor; 4] =
        [snappy, |plain| xerial(plain, usize::MAX), |plain| xerial(plain, 32 << 10), |plain| xerial(plain, 100)];
    let plain = untimed(listing(&talked(&confirmed(vec![fetch_of(2, 10, batch(10, &sent).unwrap())]), &[])));
    assert_eq!(plain.len(), 4);
    for framing in framings {
        let records = compressed(10, &sent, (Compression::Snappy, framing));
        let capture = talked(&confirmed(vec![fetch_of(2, 10, records)]), &[]);
        assert_eq!(untimed(listing(&capture)), plain);
        assert_eq!(summary(&capture)["batches_not_read"], serde_json::json!({}));
    }
}

/// osodevops/kafka-backup#152: one record with `traceparent`, in a raw snappy batch as franz-go writes it, stops the reader.
#[test]
fn kafka_backup_152_a_context_in_a_compressed_batch_of_one_record_is_a_link() {
    for codec in CODECS {
        for value_bytes in [0, 1, 400, 100_000] {
            let headers = with_headers(&[("traceparent", Some(TRACEPARENT)), ("user-agent", Some("otel-go/1.0"))]);
            let sent = Message { value: Some(vec![b'v'; value_bytes]), ..headers };
            let capture = talked(&confirmed(vec![fetch_of(2, 10, compressed(10, &[sent], codec))]), &[]);
            let lines = listing(&capture);
            let said: Vec<_> = lines.iter().map(|line| (line["offset"].as_i64(), line["context"]["span_id"].as_str())).collect();
            assert_eq!(said, [(Some(10), Some("b7ad6b7169203331"))], "{:?}, {value_bytes} bytes", codec.0);
        }
    }
}

/// dpkp/kafka-python#695 (KAFKA-3160), tulios/kafkajs#152: lz4 frames whose header has another checksum, or whose end is not
/// there.
#[test]
fn kafka_python_695_lz4_with_a_wrong_header_checksum_is_read_and_a_cut_batch_never_guessed_at() {
    let sent = messages(5);
    let wrong: Codec = (Compression::Lz4, |plain| {
        let mut frame = lz4(plain);
        frame[6] ^= 0x5a;
        frame
    });
    let plain = untimed(listing(&talked(&confirmed(vec![fetch_of(2, 10, batch(10, &sent).unwrap())]), &[])));
    assert_eq!(untimed(listing(&talked(&confirmed(vec![fetch_of(2, 10, compressed(10, &sent, wrong))]), &[]))), plain);
    for codec in CODECS {
        let records = compressed(10, &sent, codec);
        let (ask, answer) = fetch_of(2, 10, records.clone());
        let next = (fetch(12, 3, Some("client"), (0, -1), &[(Topic::Name("orders"), 15)]).unwrap(), fetched(12, 3, 0, &[]).unwrap());
        let pairs = confirmed(vec![(ask, answer.clone()), next]);
        for unseen in 4..answer.len() {
            let mut settings = settings();
            let max_frame_bytes = u32::try_from(answer.len() - 4 - unseen).unwrap();
            if max_frame_bytes < 100 {
                break; // not even the next request's
            }
            settings.connection.frame = FrameLimits { max_frame_bytes, ..FrameLimits::default() };
            let seen = observe(&talked(&pairs, &[]), settings).unwrap();
            let of_the_cut: Vec<_> = seen.fetched().filter(|batch| batch.header.base_offset == 10).collect();
            let case = format!("{:?} without its last {unseen} bytes", codec.0);
            assert!(of_the_cut.len() <= 1, "{case}");
            // What its header says, and nothing of its records.
            for batch in of_the_cut {
                assert_eq!((batch.header.record_count, batch.records.len(), batch.records_read), (5, 0, RecordsRead::Partly), "{case}");
                assert_eq!(seen.counters.batches.get("not_captured"), Some(&1), "{case}");
                assert_eq!(seen.counters.records.get("not_read"), Some(&5), "{case}");
            }
            assert_eq!(seen.exchanges().count(), 3, "{case}");
        }
    }
}

/// dpkp/kafka-python#2004, DataDog/dd-trace-java#1631: a header whose value is null.
#[test]
fn kafka_python_2004_null_headers_are_no_context_and_cost_nothing() {
    let null_header = with_headers(&[("a", None), ("traceparent", None)]);
    let empty_header = with_headers(&[("traceparent", Some("")), ("", None)]);
    let good = with_headers(&[("a", None), ("traceparent", Some(TRACEPARENT))]);
    let sent = [null_header, empty_header, good];
    let lines = listing(&talked(&confirmed(vec![fetch_of(2, 10, batch(10, &sent).unwrap())]), &[]));
    let said: Vec<_> = lines.iter().map(|line| (line["key"].as_str(), line["value_bytes"].as_u64(), !line["context"].is_null())).collect();
    let key = Some("key-0");
    assert_eq!(said, [(key, Some(20), false), (key, Some(20), false), (key, Some(20), true)]);
}

/// `DeepFlow`'s kafka.rs: one null key or tombstone, and no header of the whole batch is read.
#[test]
fn deepflow_kafka_rs_null_keys_and_tombstones_leave_the_headers_of_all_records_readable() {
    let carrying = |key: Option<&'static str>, value: Option<Vec<u8>>| {
        let headers = with_headers(&[("traceparent", Some(TRACEPARENT))]);
        Message { key, value, ..headers }
    };
    let odd = [(None, Some(vec![1; 20])), (Some("k"), None), (None, None), (Some(""), Some(Vec::new()))];
    for codec in [(Compression::None, <[u8]>::to_vec as Compressor), CODECS[2]] {
        for place in 0..3 {
            for (key, value) in &odd {
                let mut sent = vec![carrying(Some("key"), Some(b"value".to_vec())); 3];
                sent[place] = carrying(*key, value.clone());
                let lines = listing(&talked(&confirmed(vec![fetch_of(2, 10, compressed(10, &sent, codec))]), &[]));
                assert_eq!(lines.len(), 3);
                assert!(lines.iter().all(|line| line["context"]["span_id"] == "b7ad6b7169203331"), "{key:?} {value:?} at {place}");
                let said = (lines[place]["key"].as_str(), lines[place]["value_bytes"].as_u64());
                assert_eq!(said, (*key, value.as_ref().map(|value| value.len() as u64)));
            }
        }
    }
}

/// open-telemetry/opentelemetry-ebpf-instrumentation#1381, #1976: a context beyond the captured bytes. Headers come last in a
/// record.
#[test]
fn obi_1381_a_context_behind_the_captured_bytes_is_not_seen_and_none_is_made_up() {
    let large = Message { value: Some(vec![b'v'; 20 << 10]), ..with_headers(&[("traceparent", Some(TRACEPARENT))]) };
    let (ask, answer) = fetch_of(2, 10, batch(10, &[large]).unwrap());
    let (confirming_ask, confirming_answer) = api_versions(3, 1, Some("client")).unwrap();
    for unseen in [0, 100, 4_000] {
        let mut recorder = Recorder::default();
        let mut flow = recorder.connect();
        recorder.ask(&mut flow, &confirming_ask);
        recorder.answer(&mut flow, &confirming_answer);
        recorder.ask(&mut flow, &ask);
        let (seen, rest) = answer.split_at(answer.len() - unseen);
        recorder.answer(&mut flow, seen);
        recorder.answer_unseen(&mut flow, rest);
        recorder.close(&mut flow);
        let capture = recorder.capture();
        let seen = observe(&capture, settings()).unwrap();
        let contexts: usize = seen.fetched().flat_map(|batch| &batch.records).filter(|record| record.context.is_some()).count();
        assert_eq!(contexts, usize::from(unseen == 0), "{unseen} bytes unseen");
        let not_seen = summary(&capture)["contexts"]["not_seen"].as_u64();
        assert_eq!(not_seen, Some(u64::from(unseen > 0)), "{unseen} bytes unseen");
        // The exchange is there, and so are the facts of its batch.
        assert_eq!(seen.exchanges().count(), 2, "{unseen} bytes unseen");
        let counts: Vec<_> = seen.fetched().map(|batch| (batch.header.base_offset, batch.record_count_by_header())).collect();
        assert_eq!(counts, [(10, 1)], "{unseen} bytes unseen");
    }
}

/// The record count as the header has it.
trait RecordCountByHeader {
    fn record_count_by_header(&self) -> i32;
}

impl RecordCountByHeader for tracer_userspace::observe::FetchedBatch {
    fn record_count_by_header(&self) -> i32 {
        self.header.record_count
    }
}

/// knative-extensions/eventing-kafka-broker#725, kamon-io/Kamon#1235: only B3 is in use.
#[test]
fn knative_725_b3_is_read_where_it_is_asked_for() {
    let sent = [
        with_headers(&[("b3", Some("0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"))]),
        with_headers(&[("X-B3-TraceId", Some("8448eb211c80319c")), ("x-b3-spanid", Some("b7ad6b7169203331"))]),
        with_headers(&[("traceparent", Some(TRACEPARENT)), ("b3", Some("8448eb211c80319c-b7ad6b7169203331-1"))]),
    ];
    let capture = talked(&confirmed(vec![fetch_of(2, 10, batch(10, &sent).unwrap())]), &[]);
    let said: Vec<_> =
        listing(&capture).iter().map(|line| (line["context"]["format"].clone(), line["context"]["trace_id"].clone())).collect();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let expected = [("b3", trace), ("b3multi", "00000000000000008448eb211c80319c"), ("tracecontext", trace)];
    assert_eq!(said, expected.map(|(format, trace)| (format.into(), trace.into())));
    let only_w3c = tests::replay::replay_bytes(&["--format", "records", "--propagators", "tracecontext"], &capture.to_pcap()).unwrap();
    let contexts = tests::truth::lines(&only_w3c.output).unwrap();
    assert_eq!(contexts.iter().map(|line| line["context"].is_null()).collect::<Vec<_>>(), [true, true, false]);
}

/// OpenTelemetry Java agent: a record that has a `traceparent` gets a second one. The last wins, and both are counted.
#[test]
fn java_agent_of_two_traceparents_the_last_wins_and_both_are_counted() {
    // What the applications reported, last one first, is held against the listing with the rest of the corpus.
    let capture = tests::capture::Capture::read(&tests::replay::corpus().join("java-headers-mixed.pcap")).unwrap();
    assert!(summary(&capture)["contexts"]["repeated"].as_u64() > Some(0));
}

/// DataDog/datadog-agent#25929, #27533, #28526: one error code for the request hides the partitions'.
#[test]
fn datadog_25929_each_partition_has_its_own_outcome() {
    let names = ["orders", "payments", "returns"];
    let asked: Vec<_> = names.iter().map(|name| (Topic::Name(name), 0)).collect();
    let answered = [
        (Topic::Name(names[0]), 0, batch(0, &messages(5)).unwrap()),
        (Topic::Name(names[1]), 3, Bytes::new()),
        (Topic::Name(names[2]), 6, Bytes::new()),
    ];
    let data = |index: i32| PartitionProduceData::default().with_index(index).with_records(Some(batch(0, &messages(1)).unwrap()));
    let name = || TopicName(StrBytes::from_static_str("orders"));
    let ask = ProduceRequest::default()
        .with_acks(-1)
        .with_topic_data(vec![TopicProduceData::default().with_name(name()).with_partition_data(vec![data(0), data(1)])]);
    let result = |index: i32, error: i16, offset: i64| {
        PartitionProduceResponse::default().with_index(index).with_error_code(error).with_base_offset(offset)
    };
    let answer = ProduceResponse::default().with_responses(vec![
        TopicProduceResponse::default().with_name(name()).with_partition_responses(vec![result(1, 19, -1), result(0, 0, 33)]),
    ]);
    let pairs = confirmed(vec![
        (fetch(12, 2, Some("client"), (0, -1), &asked).unwrap(), fetched(12, 2, 0, &answered).unwrap()),
        (request(ApiKey::Produce, 9, 3, Some("client"), &ask).unwrap(), response(ApiKey::Produce, 9, 3, &answer).unwrap()),
    ]);
    let seen = observe(&talked(&pairs, &[]), settings()).unwrap();
    let failed: Vec<_> = seen
        .observations
        .iter()
        .filter_map(|observation| match observation {
            Observation::FetchFailed(failed) => Some((failed.topic.name.as_deref(), failed.outcome)),
            _ => None,
        })
        .collect();
    assert_eq!(failed, [(Some("payments"), Outcome::Error(3)), (Some("returns"), Outcome::Error(6))]);
    assert_eq!(seen.fetched().map(|batch| batch.topic.name.as_deref()).collect::<Vec<_>>(), [Some("orders")]);
    let mut sent: Vec<_> = seen.sent().map(|batch| (batch.partition, batch.outcome, batch.base_offset)).collect();
    sent.sort_by_key(|(partition, ..)| *partition);
    assert_eq!(sent, [(0, Outcome::Success, Some(33)), (1, Outcome::Error(19), None)]);
}
