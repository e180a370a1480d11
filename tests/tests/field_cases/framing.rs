//! Framing, reads and writes.

use kafka_protocol::messages::{ApiKey, MetadataResponse};
use tests::capture::Capture;
use tests::flow::Recorder;
use tests::kafka::{Message, Topic, api_versions, batch, fetch, fetched, frame, messages, metadata, produce, produced, response};
use tests::observe::{observe, settings};
use tests::replay::{corpus, corpus_names};
use tracer_userspace::frame::FrameLimits;
use tracer_userspace::observe::Outcome;

use crate::{ORDERS, Pair, conversation, listing, summary, talk, talked, untimed};

/// open-telemetry/opentelemetry-ebpf-instrumentation#432: the Java client since 2.8 writes the size and the rest apart.
#[test]
fn obi_432_size_and_body_in_two_writes_say_the_same_from_the_first_byte_on() {
    let whole = listing(&talked(&conversation(), &[]));
    assert_eq!(whole.len(), 6);
    let apart = talked(&conversation(), &[4]);
    assert_eq!(untimed(listing(&apart)), untimed(whole));
    let seen = observe(&apart, settings()).unwrap();
    let begins: Vec<u64> = seen.exchanges().map(|exchange| exchange.operation.request_first.unix_ns()).collect();
    // Each request's size is a segment of its own.
    let sizes: Vec<u64> = apart
        .segments
        .iter()
        .filter(|segment| segment.payload.len() == 4 && segment.destination.port() == 9092)
        .map(|segment| segment.time_ns)
        .collect();
    assert_eq!(begins, sizes);
}

/// open-telemetry/opentelemetry-ebpf-instrumentation#2656: librdkafka reads eight bytes, then the body, and the topic stays
/// unknown.
#[test]
fn obi_2656_metadata_read_as_eight_bytes_and_body_teaches_the_name() {
    let client = Some("rdkafka");
    for more_topics in [0, 40, 4_000] {
        let names: Vec<String> = (0..more_topics).map(|i| format!("another-topic-{i}")).collect();
        let mut topics = vec![("orders", ORDERS)];
        topics.extend(names.iter().zip(1_u128..).map(|(name, id)| (name.as_str(), uuid::Uuid::from_u128(id))));
        let fetch_pair = conversation().remove(3);
        let pairs = [api_versions(3, 1, client).unwrap(), metadata(12, 2, client, &topics).unwrap(), fetch_pair];
        let lines = listing(&talked(&pairs, &[8]));
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line["topic"] == "orders" && !line["topic_id"].is_null()), "{lines:?}");
    }
}

/// DataDog/datadog-agent pkg/network/ebpf/c/protocols/kafka/kafka-parsing.h (comment): reads have client-specific shapes.
#[test]
fn datadog_kafka_parsing_every_shape_of_reads_gives_the_same_records() {
    let whole = untimed(listing(&talked(&conversation(), &[])));
    let every_byte: Vec<usize> = (1..2_000).collect();
    for (client, cuts) in [("franz-go", &[4][..]), ("librdkafka", &[8]), ("kafka-go", &[4, 8]), ("one byte at a time", &every_byte)] {
        assert_eq!(untimed(listing(&talked(&conversation(), cuts))), whole, "{client}");
    }
}

/// dpkp/kafka-python#60: decoding fails only if the answer's size lies around a buffer's limit.
#[test]
fn kafka_python_60_answers_around_the_limit_are_whole_or_counted_and_the_next_is_intact() {
    const LIMIT: u32 = 4096;
    let client = Some("client");
    let fetch_answer = |id: i32, value_bytes: usize| {
        let message = Message { value: Some(vec![b'v'; value_bytes]), ..messages(1).remove(0) };
        fetched(12, id, 0, &[(Topic::Name("orders"), 0, batch(i64::from(id), &[message]).unwrap())]).unwrap()
    };
    let overhead = u32::try_from(fetch_answer(2, 3_900).len() - 3_900).unwrap();
    for payload_bytes in LIMIT - 3..=LIMIT + 6 {
        let answer = fetch_answer(2, usize::try_from(payload_bytes + 4 - overhead).unwrap());
        assert_eq!(answer.len(), usize::try_from(payload_bytes + 4).unwrap());
        let pairs: [Pair; 3] = [
            api_versions(3, 1, client).unwrap(),
            (fetch(12, 2, client, (0, -1), &[(Topic::Name("orders"), 2)]).unwrap(), answer),
            (fetch(12, 3, client, (0, -1), &[(Topic::Name("orders"), 3)]).unwrap(), fetch_answer(3, 9)),
        ];
        for cuts in [&[][..], &[1_000, 4_090, 4_097, 4_100]] {
            let mut settings = settings();
            settings.connection.frame = FrameLimits { max_frame_bytes: LIMIT, ..FrameLimits::default() };
            let seen = observe(&talked(&pairs, cuts), settings).unwrap();
            let fetched: Vec<i64> =
                seen.fetched().filter(|batch| !batch.records.is_empty()).map(|batch| batch.header.base_offset).collect();
            let fits = payload_bytes <= LIMIT;
            // What was cut off is all or part of the record's end, or the tags behind it.
            assert_eq!(seen.frames("truncated"), u64::from(!fits), "{payload_bytes}");
            assert!(fetched == [2, 3] || (!fits && fetched == [3]), "{payload_bytes}: {fetched:?}");
            assert_eq!((seen.exchanges().count(), seen.counters.lost_sync), (3, 0), "{payload_bytes}");
        }
    }
}

/// open-telemetry/opentelemetry-ebpf-instrumentation#3201: a topic was "decoded" from beyond the frame.
#[test]
fn obi_3201_a_session_fetch_without_topics_ends_where_its_frame_ends() {
    let client = Some("c");
    let empty = [
        &[0, 0, 0, 0x29, 0, 1, 0, 12, 0, 0, 0, 7, 0, 1, 0x63, 0][..],
        &[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0xf4, 0, 0, 0, 1, 3, 0x20, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 1, 1, 1, 0],
    ]
    .concat();
    let first = fetch(12, 6, client, (0, 0), &[(Topic::Name("orders"), 100)]).unwrap();
    let second = fetch(12, 8, client, (5, 3), &[]).unwrap();
    assert_eq!(second.len(), empty.len(), "the same request, as another encoder writes it");
    let records = |offset: i64| [(Topic::Name("orders"), 0, batch(offset, &messages(1)).unwrap())];
    let mut recorder = Recorder::default();
    let mut flow = recorder.connect();
    recorder.ask(&mut flow, &first);
    recorder.answer(&mut flow, &fetched(12, 6, 5, &records(100)).unwrap());
    recorder.ask(&mut flow, &[empty, second].concat());
    recorder.answer(&mut flow, &fetched(12, 7, 5, &[]).unwrap());
    recorder.answer(&mut flow, &fetched(12, 8, 5, &records(101)).unwrap());
    let capture = recorder.capture();
    let lines = listing(&capture);
    let offsets: Vec<_> = lines.iter().map(|line| (line["topic"].as_str().unwrap(), line["offset"].as_i64().unwrap())).collect();
    assert_eq!(offsets, [("orders", 100), ("orders", 101)]);
    let summary = summary(&capture);
    assert_eq!(summary["exchanges"]["Fetch"], 3);
    assert_eq!(summary["frames"]["malformed"], serde_json::Value::Null);
}

/// pixie-io/pixie#2138: a whole service was missing because of one version above the table.
#[test]
fn pixie_2138_an_unknown_version_costs_its_own_frame_only() {
    let client = Some("client");
    let sent = |id: i32| produce(10, id, client, -1, Topic::Name("orders"), &messages(2)).unwrap();
    let answered = |id: i32| produced(10, id, Topic::Name("orders"), i64::from(id) * 10, 0).unwrap();
    let mut unknown = sent(3);
    unknown[7] = 14;
    let pairs = [api_versions(3, 1, client).unwrap(), (sent(2), answered(2)), (unknown, answered(3)), (sent(4), answered(4))];
    let capture = talked(&pairs, &[]);
    let offsets: Vec<_> = listing(&capture).iter().map(|line| line["offset"].as_i64()).collect();
    assert_eq!(offsets, [Some(20), Some(21), Some(40), Some(41)]);
    let summary = summary(&capture);
    assert!(summary["frames"]["unknown_version"].as_u64() >= Some(1), "{}", summary["frames"]);
    assert_eq!((&summary["streams"]["lost_sync"], &summary["exchanges"]["Produce"]), (&0.into(), &3.into()));
}

/// allegro/hermes#819 (KAFKA-4669), apache/kafka#7251, dpkp/kafka-python#1499: one answer lost, all later pairs off.
#[test]
fn kafka_4669_lost_answers_do_not_shift_the_pairs_behind_them() {
    let client = Some("client");
    let sent = |id: i32| produce(9, id, client, -1, Topic::Name("orders"), &messages(1)).unwrap();
    let answered = |id: i32| produced(9, id, Topic::Name("orders"), i64::from(id), 0).unwrap();
    let mut recorder = Recorder::default();
    let mut flow = recorder.connect();
    talk(&mut recorder, &mut flow, &[api_versions(3, 4696, client).unwrap()], &[]);
    for id in 4697..=4703 {
        recorder.ask(&mut flow, &sent(id));
    }
    for id in 4697..4702 {
        recorder.answer_unseen(&mut flow, &answered(id));
    }
    recorder.answer(&mut flow, &answered(4702));
    recorder.answer(&mut flow, &answered(4703));
    let seen = observe(&recorder.capture(), settings()).unwrap();
    let mut outcomes: Vec<_> = seen.sent().map(|batch| (batch.operation.request_first, batch.outcome, batch.base_offset)).collect();
    outcomes.sort_by_key(|(first, ..)| *first);
    let outcomes: Vec<_> = outcomes.into_iter().map(|(_, outcome, offset)| (outcome, offset)).collect();
    let mut expected = vec![(Outcome::AnswerNotSeen, None); 5];
    expected.extend([(Outcome::Success, Some(4702)), (Outcome::Success, Some(4703))]);
    assert_eq!(outcomes, expected);
}

/// DataDog/datadog-agent `kernel_telemetry.go` (`produce_no_required_acks`): acks=0 never answers.
#[test]
fn datadog_no_required_acks_a_thousand_sends_end_when_they_are_written() {
    let client = Some("client");
    let mut recorder = Recorder::default();
    let mut flow = recorder.connect();
    talk(&mut recorder, &mut flow, &[api_versions(3, 1, client).unwrap(), metadata(12, 2, client, &[("orders", ORDERS)]).unwrap()], &[]);
    let mut written = Vec::new();
    for id in 0..1000 {
        written.push(recorder.now_ns());
        recorder.ask(&mut flow, &produce(9, 10 + id, client, 0, Topic::Name("orders"), &messages(1)).unwrap());
    }
    let after_sends = recorder.now_ns();
    let fetch_pair = (
        fetch(12, 2000, client, (0, -1), &[(Topic::Name("orders"), 5)]).unwrap(),
        fetched(12, 2000, 0, &[(Topic::Name("orders"), 0, batch(5, &messages(1)).unwrap())]).unwrap(),
    );
    talk(&mut recorder, &mut flow, &[fetch_pair], &[]);
    recorder.close(&mut flow);
    let seen = observe(&recorder.capture(), settings()).unwrap();
    let sent: Vec<_> = seen.sent().collect();
    assert_eq!(sent.len(), 1000);
    for (batch, written) in sent.iter().zip(&written) {
        assert_eq!((batch.outcome, batch.base_offset, batch.acks), (Outcome::Unacknowledged, None, 0));
        assert_eq!((batch.operation.request_last.unix_ns(), batch.operation.response), (*written, None));
    }
    assert!(after_sends > written[999]);
    assert_eq!(seen.fetched().count(), 1);
}

/// Requests with their answers, from recorded captures of several clients: as (request, answer).
fn golden_pairs() -> Vec<Pair> {
    let names = corpus_names().unwrap();
    let mut pairs = Vec::new();
    for name in ["java-basic", "confluent-txn", "sarama-basic", "java-txn", "java-kip848", "oldjava-v1"] {
        if names.iter().all(|known| known != name) {
            continue;
        }
        let capture = Capture::read(&corpus().join(format!("{name}.pcap"))).unwrap();
        pairs.extend(tests::framing::pairs(&capture));
    }
    pairs.retain(|(request, answer)| request.len() < 400 && answer.len() < 1_000);
    pairs
}

/// deepflowio/deepflow#4687: the agent panics in the Kafka parser. Every prefix of valid frames, and sizes that cannot be.
#[test]
fn deepflow_4687_every_prefix_of_a_frame_is_counted_and_nothing_else() {
    let pairs = golden_pairs();
    assert!(pairs.len() > 50, "{}", pairs.len());
    for (request, answer) in &pairs {
        for cut in 1..request.len() {
            let mut recorder = Recorder::default();
            let mut flow = recorder.connect();
            recorder.ask(&mut flow, &request[..cut]);
            recorder.close(&mut flow);
            let seen = observe(&recorder.capture(), settings()).unwrap();
            assert_eq!(seen.counters.unframed_bytes.get("unfinished"), Some(&(cut as u64)));
            assert_eq!((seen.sent().count(), seen.exchanges().count()), (0, 0));
        }
        // The answer's bytes stop, and those of the next stand where they should be.
        for cut in (1..answer.len()).step_by(3) {
            let mut damaged = answer.clone();
            damaged.truncate(cut);
            damaged.resize(answer.len(), 0xff);
            for bytes in [&answer[..cut], &damaged] {
                let mut recorder = Recorder::default();
                let mut flow = recorder.connect();
                recorder.ask(&mut flow, request);
                recorder.answer(&mut flow, bytes);
                recorder.close(&mut flow);
                observe(&recorder.capture(), settings()).unwrap();
            }
        }
    }
}

#[test]
fn deepflow_4687_sizes_that_cannot_be_end_nothing_but_the_search_for_frames() {
    let client = Some("client");
    let sent = produce(9, 5, client, -1, Topic::Name("orders"), &messages(2)).unwrap();
    let answered = produced(9, 5, Topic::Name("orders"), 50, 0).unwrap();
    for size in [-1, 0, 1, 3, i32::MAX, i32::MIN] {
        let mut recorder = Recorder::default();
        let mut flow = recorder.connect();
        talk(&mut recorder, &mut flow, &[api_versions(3, 1, client).unwrap()], &[]);
        recorder.ask(&mut flow, &size.to_be_bytes());
        recorder.answer(&mut flow, &size.to_be_bytes());
        talk(&mut recorder, &mut flow, &[(sent.clone(), answered.clone())], &[]);
        let capture = recorder.capture();
        let offsets: Vec<_> = listing(&capture).iter().map(|line| line["offset"].as_i64()).collect();
        assert_eq!(offsets, [Some(50), Some(51)], "size {size}");
        assert_eq!(summary(&capture)["streams"]["lost_sync"], 2, "size {size}");
    }
}

/// A frame that claims more than any buffer holds, and then another connection's traffic.
#[test]
fn a_claimed_size_holds_no_memory() {
    let mut recorder = Recorder::default();
    let mut flow = recorder.connect();
    talk(&mut recorder, &mut flow, &[api_versions(3, 1, Some("client")).unwrap()], &[]);
    recorder.ask(&mut flow, &(200_i32 << 20).to_be_bytes());
    let answer = response(ApiKey::Metadata, 12, 9, &MetadataResponse::default()).unwrap();
    recorder.answer(&mut flow, &answer);
    recorder.answer(&mut flow, &frame(&[0; 8]));
    let seen = observe(&recorder.capture(), settings()).unwrap();
    assert_eq!(seen.frames("unmatched_answer"), 2);
    assert_eq!(seen.counters.unframed_bytes.get("unfinished"), Some(&4));
}
