//! What is Kafka and what is not, who asks and who answers, and connections picked up in the middle.

use std::net::SocketAddr;

use kafka_protocol::messages::{ApiKey, SaslHandshakeRequest, SaslHandshakeResponse};
use kafka_protocol::protocol::StrBytes;
use serde_json::Value;
use tests::flow::Recorder;
use tests::kafka::{Topic, api_versions, batch, fetch, fetched, frame, messages, metadata, produce, produced, request, response};
use tests::observe::{observe, settings};
use tests::replay::{RECORDS, replay_bytes};
use tracer_userspace::observe::{ConnectionEventKind, Observation, Outcome};

use crate::{ORDERS, Pair, conversation, listing, summary, talk, talked, untimed, with_headers};

/// deepflowio/deepflow#520, coroot/coroot-node-agent#329: another protocol shown as Kafka because its first bytes look like it.
#[test]
fn deepflow_520_coroot_329_nothing_is_kafka_before_an_answer_pairs() {
    let sent = produce(9, 7, Some("client"), -1, Topic::Name("orders"), &messages(2)).unwrap();
    let answered = produced(9, 7, Topic::Name("orders"), 50, 0).unwrap();
    let other_id = produced(9, 8, Topic::Name("orders"), 50, 0).unwrap();
    let mut no_end = sent.clone();
    no_end[3] = no_end[3].wrapping_add(9);
    let table: [(&str, Vec<Pair>); 6] = [
        ("no answer", vec![(sent.clone(), Vec::new())]),
        ("an answer to something else", vec![(sent.clone(), other_id)]),
        ("an answer that is none", vec![(sent.clone(), b"HTTP/1.1 200 OK\r\n\r\n".to_vec())]),
        ("the frame does not end where it says", vec![(no_end, answered)]),
        (
            "ClickHouse's hello",
            vec![(b"\0\x0bClickHouse \x15\x06\xb2\xa9\x03\0\x07default\0".to_vec(), b"\0\x0aClickHouse\x15\x06\xb2\xa9\x03".to_vec())],
        ),
        ("ZooKeeper's connect request", vec![([&[0, 0, 0, 0x2d][..], &[0; 45]].concat(), [&[0, 0, 0, 0x25][..], &[0; 37]].concat())]),
    ];
    for (name, pairs) in table {
        let capture = talked(&pairs, &[]);
        let replayed = replay_bytes(&RECORDS, &capture.to_pcap()).unwrap();
        assert_eq!((replayed.status, replayed.output.as_str()), (2, ""), "{name}");
        let seen = observe(&capture, settings()).unwrap();
        assert_eq!((seen.exchanges().count(), seen.counters.connections_kafka), (0, 0), "{name}");
    }
}

/// deepflowio/deepflow#699, #7644: request and answer swapped after an attach in mid-stream.
#[test]
fn deepflow_699_7644_roles_come_from_content_whoever_is_seen_first() {
    let unseen_fetch = fetch(12, 70, Some("client"), (0, -1), &[(Topic::Name("orders"), 5)]).unwrap();
    let its_answer = fetched(12, 70, 0, &[(Topic::Name("orders"), 0, batch(5, &messages(4)).unwrap())]).unwrap();
    // An answer first, 439 bytes long there.
    for first in [&its_answer[..], &its_answer[100..], &[][..]] {
        let mut recorder = Recorder::default();
        let mut flow = recorder.connected_before();
        if !first.is_empty() {
            recorder.ask_unseen(&mut flow, &unseen_fetch);
            recorder.answer(&mut flow, first);
        }
        talk(&mut recorder, &mut flow, &conversation(), &[]);
        let seen = observe(&recorder.capture(), settings()).unwrap();
        assert_eq!((seen.exchanges().count(), seen.sent().count(), seen.fetched().count()), (4, 1, 1));
        for exchange in seen.exchanges() {
            assert_eq!(exchange.operation.connection.client.ip(), SocketAddr::from(([10, 0, 0, 9], 1)).ip());
            assert_eq!(exchange.operation.connection.broker, SocketAddr::from(([10, 0, 0, 1], 9092)));
            assert_eq!(exchange.outcome, Outcome::Success);
        }
    }
}

/// The end of a share group's answer, seen alone in a segment, looks like a request of 32 MiB without a client id; and a
/// request that comes byte by byte looks like others that begin within it. Nothing may be swallowed by what is none.
#[test]
fn small_numbers_at_a_segments_start_are_no_request() {
    let whole = untimed(listing(&talked(&conversation(), &[])));
    let tail = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1, 0, 0, 0, 1, 0];
    for (begun, cuts) in [(&tail[..], &[][..]), (&tail[4..], &[]), (&[0; 40], &[]), (&tail, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])] {
        let mut recorder = Recorder::default();
        let mut flow = recorder.connected_before();
        recorder.answer_cut(&mut flow, begun, cuts);
        talk(&mut recorder, &mut flow, &conversation(), cuts);
        assert_eq!(untimed(listing(&recorder.capture())), whole);
    }
}

/// DataDog/datadog-agent#38786: Metadata alone is too sparse to classify.
#[test]
fn datadog_38786_the_first_pair_confirms_and_the_second_teaches_topic_ids() {
    let client = Some("client");
    let pairs = [
        api_versions(3, 1, client).unwrap(),
        metadata(12, 2, client, &[("orders", ORDERS)]).unwrap(),
        (
            fetch(13, 3, client, (0, -1), &[(Topic::Id(ORDERS), 9)]).unwrap(),
            fetched(13, 3, 0, &[(Topic::Id(ORDERS), 0, batch(9, &messages(1)).unwrap())]).unwrap(),
        ),
    ];
    let capture = talked(&pairs, &[]);
    let seen = observe(&capture, settings()).unwrap();
    let confirmed: Vec<u64> = seen
        .observations
        .iter()
        .filter_map(|observation| match observation {
            Observation::Connection(event) if event.kind == ConnectionEventKind::Confirmed => Some(event.time.unix_ns()),
            _ => None,
        })
        .collect();
    // SYN, SYN-ACK, ACK, request, answer.
    assert_eq!(confirmed, [capture.segments[4].time_ns]);
    assert_eq!(seen.fetched().next().unwrap().topic.name.as_deref(), Some("orders"));
}

/// Name, kind and attributes of a span.
type Span = (Value, Value, Vec<(String, Value)>);

/// Attributes of each span of an OTLP/JSON listing, with its name and kind, without what tells spans apart.
fn spans(capture: &tests::capture::Capture) -> Vec<Span> {
    const OWN: [&str; 6] = [
        "messaging.client.id",
        "kafka_tracer.batch.base_offset",
        "kafka_tracer.batch.last_offset",
        "messaging.kafka.offset",
        "network.peer.port",
        "kafka_tracer.batch.age",
    ];
    let replayed = replay_bytes(&["--format", "otlp-json"], &capture.to_pcap()).unwrap();
    let mut spans = Vec::new();
    for line in replayed.output.lines() {
        let data: Value = serde_json::from_str(line).unwrap();
        for span in data["resourceSpans"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|it| it["scopeSpans"].as_array().unwrap())
            .flat_map(|it| it["spans"].as_array().unwrap())
        {
            let attributes = span["attributes"].as_array().unwrap().iter();
            let mut attributes: Vec<_> = attributes
                .map(|it| (it["key"].as_str().unwrap().to_owned(), it["value"].clone()))
                .filter(|(key, _)| !OWN.contains(&key.as_str()))
                .collect();
            attributes.sort_by(|one, other| one.0.cmp(&other.0));
            spans.push((span["name"].clone(), span["kind"].clone(), attributes));
        }
    }
    spans
}

/// grafana/beyla#1703: one library invisible, another's ids empty, kinds that differ by library.
#[test]
fn beyla_1703_the_same_send_by_three_libraries_gives_equal_spans() {
    let mut recorder = Recorder::default();
    for (i, (client, cuts)) in [("sarama", &[][..]), ("kafka-go", &[4, 8]), ("rdkafka", &[8])].into_iter().enumerate() {
        let offset = i64::try_from(i).unwrap() * 3;
        let mut flow = recorder.connect();
        let pairs = [
            api_versions(3, 1, Some(client)).unwrap(),
            metadata(9, 2, Some(client), &[("orders", ORDERS)]).unwrap(),
            (
                produce(8, 3, Some(client), -1, Topic::Name("orders"), &messages(3)).unwrap(),
                produced(8, 3, Topic::Name("orders"), offset, 0).unwrap(),
            ),
        ];
        talk(&mut recorder, &mut flow, &pairs, cuts);
    }
    let spans = spans(&recorder.capture());
    assert_eq!(spans.len(), 3);
    assert_eq!(spans[0].0, "send orders");
    assert!(!spans[0].2.is_empty());
    assert_eq!(spans[0], spans[1]);
    assert_eq!(spans[0], spans[2]);
}

/// twmb/franz-go#1224, kroxylicious/kroxylicious#3012: a raw GSSAPI token as first packet, and an API key of 24706 is guessed.
#[test]
fn franz_go_1224_raw_gssapi_tokens_are_no_requests_and_kafka_begins_behind_them() {
    let token = |fill: u8| frame(&[&[0x60, 0x82, 2, 0x9c][..], &[fill; 300]].concat());
    let mut recorder = Recorder::default();
    let mut flow = recorder.connect();
    talk(
        &mut recorder,
        &mut flow,
        &[(token(1), token(2)), (token(3), frame(&[5, 4, 1, 0xff])), (frame(&[5, 4, 0, 0xff, 7]), frame(&[]))],
        &[],
    );
    talk(&mut recorder, &mut flow, &conversation(), &[]);
    let capture = recorder.capture();
    assert_eq!(untimed(listing(&capture)), untimed(listing(&talked(&conversation(), &[]))));
    let seen = observe(&capture, settings()).unwrap();
    assert_eq!((seen.frames("malformed"), seen.frames("sasl_token"), seen.counters.lost_sync), (0, 6, 0));
    assert!(seen.exchanges().all(|exchange| (0..=92).contains(&exchange.operation.api_key)));
    assert_eq!(seen.exchanges().count(), 4);
}

/// shotover/shotover-proxy#1574, kroxylicious/kroxylicious#2988, streamnative/kop#667: after `SaslHandshake` v0 the token has
/// no Kafka header.
#[test]
fn shotover_1574_the_token_after_sasl_handshake_v0_is_neither_decoded_nor_kept() {
    let client = Some("client");
    let ask = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str("PLAIN"));
    let agreed = SaslHandshakeResponse::default().with_mechanisms(vec![StrBytes::from_static_str("PLAIN")]);
    let handshake = (request(ApiKey::SaslHandshake, 0, 1, client, &ask).unwrap(), response(ApiKey::SaslHandshake, 0, 1, &agreed).unwrap());
    let tokens: [&[u8]; 5] = [
        b"\0user\0pass",
        // Looks like a request: ApiVersions v0 with a null client id.
        &[0, 18, 0, 0, 0, 0, 0, 9, 0xff, 0xff],
        b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
        b"x",
        b"",
    ];
    for (i, token) in tokens.into_iter().enumerate() {
        for cuts in [&[][..], &[1, 3, 4]] {
            let mut pairs = vec![handshake.clone(), (frame(token), frame(&[]))];
            pairs.extend(conversation());
            let capture = talked(&pairs, cuts);
            let whole = untimed(listing(&talked(&conversation(), &[])));
            assert_eq!(untimed(listing(&capture)), whole, "token {i}");
            let seen = observe(&capture, settings()).unwrap();
            // No mechanism writes the second token. It is taken for the request that it looks like, and costs a search.
            assert_eq!((seen.frames("malformed"), seen.counters.lost_sync), (0, u64::from(i == 1)), "token {i}");
            assert_eq!(seen.exchanges().filter(|exchange| exchange.outcome == Outcome::Success).count(), 5, "token {i}");
            let said = format!("{:?}", seen.observations);
            assert!(!said.contains("pass") && !said.contains("fyko"), "token {i}");
        }
    }
}

/// thomhurst/Dekaf#3063 and others: what looks like a trace context and is none makes no link, and costs nothing else.
#[test]
fn dekaf_3063_malformed_contexts_are_counted_and_the_record_listed() {
    let bad = [
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
    ];
    let good = [
        ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra", true),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", true),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02", false),
    ];
    let mut sent: Vec<_> = bad.iter().map(|value| with_headers(&[("traceparent", Some(value))])).collect();
    sent.extend(good.iter().map(|(value, _)| with_headers(&[("traceparent", Some(value))])));
    sent.push(with_headers(&[("traceparent", None), ("a", None), ("", Some(""))]));
    let pairs = [
        api_versions(3, 1, Some("client")).unwrap(),
        (produce(9, 2, Some("client"), -1, Topic::Name("orders"), &sent).unwrap(), produced(9, 2, Topic::Name("orders"), 0, 0).unwrap()),
    ];
    let capture = talked(&pairs, &[]);
    let contexts: Vec<_> = listing(&capture).iter().map(|line| line["context"]["sampled"].as_bool()).collect();
    let expected: Vec<_> = bad.iter().map(|_| None).chain(good.iter().map(|(_, sampled)| Some(*sampled))).chain([None]).collect();
    assert_eq!(contexts, expected);
    assert!(summary(&capture)["contexts"]["malformed"].as_u64() >= Some(6));
}
