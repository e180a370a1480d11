//! Results by partition, kinds and ids of spans, and what a broker's own end shows.

use kafka_protocol::messages::{ApiKey, BrokerId, FetchResponse, ProduceResponse, TopicName, fetch_response, produce_response};
use kafka_protocol::protocol::StrBytes;
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{Key, SpanId, Value};
use tests::capture::Capture;
use tests::flow::Recorder;
use tests::kafka::{
    Topic, Writing, api_versions, batch, batch_as, fetch, fetched, messages, metadata, produce, produce_records, produced, response,
};
use tests::observe::{Seen, observe, observe_both_ends, settings};
use tests::replay::{corpus, corpus_names, replay_file};
use tracer_userspace::observe::{Outcome, Sides};
use tracer_userspace::pipeline::PipelineSettings;
use tracer_userspace::telemetry::{Coordinates, FinishedSpan, IdSeed, Joined, OperationName, Scope, SpanSettings};

use crate::{ORDERS, Pair, conversation, listing, summary, talk, talked, with_headers};

fn span_settings() -> SpanSettings {
    SpanSettings::replay(IdSeed::from_capture(b"outcomes"))
}

fn attribute<'a>(span: &'a FinishedSpan, key: &'static str) -> Option<&'a Value> {
    let key = Key::from_static_str(key);
    span.data.attributes.iter().find(|attribute| attribute.key == key).map(|attribute| &attribute.value)
}

fn text(span: &FinishedSpan, key: &'static str) -> Option<String> {
    attribute(span, key).map(Value::to_string)
}

fn spans_of(seen: &Seen, operation: OperationName) -> Vec<FinishedSpan> {
    let mut spans = seen.spans(span_settings());
    spans.retain(|span| span.summary.operation == operation);
    spans
}

/// open-telemetry/opentelemetry-java-instrumentation#4854, #5074, #3529, #2531: one trace is expected of a batch whose records
/// belong to several.
#[test]
fn otel_java_4854_a_batch_of_three_traces_has_three_links_and_each_record_its_own_parent() {
    let contexts = [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203332-01",
        "00-2af7651916cd43dd8448eb211c80319c-b7ad6b7169203333-01",
    ];
    for count in [3, 1] {
        let sent: Vec<_> = contexts.iter().take(count).map(|context| with_headers(&[("traceparent", Some(context))])).collect();
        let pairs = [
            api_versions(3, 1, Some("client")).unwrap(),
            (
                fetch(12, 2, Some("client"), (0, -1), &[(Topic::Name("orders"), 10)]).unwrap(),
                fetched(12, 2, 0, &[(Topic::Name("orders"), 0, batch(10, &sent).unwrap())]).unwrap(),
            ),
        ];
        let seen = observe(&talked(&pairs, &[]), settings()).unwrap();
        // One span for the batch is nobody's child.
        let spans = seen.spans(SpanSettings { scope: Scope::Batch, coordinates: Coordinates::Off, ..span_settings() });
        assert_eq!(spans.len(), 1);
        assert_eq!((spans[0].data.parent_span_id, spans[0].data.links.len()), (SpanId::INVALID, count));
        // With the default scope each record's span lies in the trace of its own context, and is linked to it as well.
        let spans = seen.spans(span_settings());
        assert_eq!(spans.len(), count);
        for (span, context) in spans.iter().zip(contexts) {
            let ids = format!("00-{}-{}-01", span.data.span_context.trace_id(), span.data.parent_span_id);
            assert_eq!((ids.as_str(), span.data.links.len(), span.summary.joined), (context, 1, Joined::Context));
        }
    }
}

/// Learns `orders`, then this.
fn host(pairs: Vec<Pair>) -> Seen {
    let client = Some("client");
    let known = vec![api_versions(3, 1, client).unwrap(), metadata(12, 2, client, &[("orders", ORDERS)]).unwrap()];
    observe(&talked(&[known, pairs].concat(), &[]), settings()).unwrap()
}

/// open-telemetry/opentelemetry-ebpf-instrumentation#527: does a trace survive from A over the broker to B, on three nodes?
#[test]
fn obi_527_producer_and_consumer_on_other_hosts_come_to_the_same_ids() {
    let client = Some("client");
    for (produce_version, fetch_version, topic) in
        [(13, 13, Topic::Id(ORDERS)), (9, 12, Topic::Name("orders")), (3, 4, Topic::Name("orders"))]
    {
        for codec in [Writing::default(), Writing { producer: (7, 0, 40), ..Writing::default() }] {
            let sent = batch_as(0, &messages(3), codec).unwrap();
            let stored = batch_as(100, &messages(3), codec).unwrap();
            let attempt = |id: i32, base_offset: i64, error: i16| {
                (
                    produce_records(produce_version, id, client, -1, topic, sent.clone()).unwrap(),
                    produced(produce_version, id, topic, base_offset, error).unwrap(),
                )
            };
            // Not enough replicas, after it was appended; then the broker knows it; then it says so.
            let attempts = vec![attempt(3, -1, 20), attempt(4, 100, 0), attempt(5, -1, 46)];
            let producer = host(attempts.clone());
            let consumer = host(vec![(
                fetch(fetch_version, 6, client, (0, -1), &[(topic, 100)]).unwrap(),
                fetched(fetch_version, 6, 0, &[(topic, 0, stored)]).unwrap(),
            )]);
            let sends = spans_of(&producer, OperationName::Send);
            let fetches = spans_of(&consumer, OperationName::Fetch);
            assert_eq!((sends.len(), fetches.len()), (3, 1));
            assert_eq!(fetches[0].summary.joined, Joined::Coordinates);
            let wanted = (fetches[0].data.span_context.trace_id(), fetches[0].data.parent_span_id);
            let ids: Vec<_> = sends.iter().map(|span| (span.data.span_context.trace_id(), span.data.span_context.span_id())).collect();
            assert_eq!(ids.iter().filter(|ids| **ids == wanted).count(), 1, "one context, however often it was sent");
            assert_eq!(ids[1], wanted);
            let offsets: Vec<_> = sends.iter().map(|span| span.summary.offsets).collect();
            assert_eq!(offsets, [None, Some((100, 102)), None]);
            // The broker's host sees the same connections from their other end, and adds nothing.
            let known = vec![api_versions(3, 1, client).unwrap(), metadata(12, 2, client, &[("orders", ORDERS)]).unwrap()];
            let on_the_host = talked(&[known, attempts].concat(), &[]);
            let both = observe_both_ends(&on_the_host, PipelineSettings { sides: Sides::Client, ..settings() });
            assert_eq!(both.sent().count(), 3);
        }
    }
}

/// DataDog/datadog-agent#25929: what a refusal says besides its number. Since Kafka 2.4 which records it is for (KIP-467), since 3.7
/// who leads the partition and where that broker is (KIP-951).
#[test]
fn datadog_25929_a_refusal_names_its_records_and_the_leader() {
    let client = Some("client");
    let leader = produce_response::LeaderIdAndEpoch::default().with_leader_id(BrokerId(7)).with_leader_epoch(3);
    let record_error = |index: i32| produce_response::BatchIndexAndErrorMessage::default().with_batch_index(index);
    let partition = produce_response::PartitionProduceResponse::default()
        .with_error_code(6)
        .with_base_offset(-1)
        .with_record_errors(vec![record_error(0), record_error(2)])
        .with_current_leader(leader);
    let topic = produce_response::TopicProduceResponse::default()
        .with_name(TopicName(StrBytes::from_static_str("orders")))
        .with_partition_responses(vec![partition]);
    let endpoint = produce_response::NodeEndpoint::default()
        .with_node_id(BrokerId(7))
        .with_host(StrBytes::from_static_str("10.0.0.1"))
        .with_port(9092);
    let answer = ProduceResponse::default().with_responses(vec![topic]).with_node_endpoints(vec![endpoint]);
    let fetch_leader = fetch_response::LeaderIdAndEpoch::default().with_leader_id(BrokerId(7));
    let partition = fetch_response::PartitionData::default().with_error_code(6).with_current_leader(fetch_leader);
    let topic = fetch_response::FetchableTopicResponse::default()
        .with_topic(TopicName(StrBytes::from_static_str("orders")))
        .with_partitions(vec![partition]);
    let fetch_answer = FetchResponse::default().with_responses(vec![topic]);
    let pairs = [
        api_versions(3, 1, client).unwrap(),
        (produce(10, 2, client, -1, Topic::Name("orders"), &messages(3)).unwrap(), response(ApiKey::Produce, 10, 2, &answer).unwrap()),
        (fetch(12, 3, client, (0, -1), &[(Topic::Name("orders"), 5)]).unwrap(), response(ApiKey::Fetch, 12, 3, &fetch_answer).unwrap()),
    ];
    let seen = observe(&talked(&pairs, &[]), settings()).unwrap();
    assert_eq!(seen.sent().map(|batch| batch.refused_records.clone()).collect::<Vec<_>>(), [vec![0, 2]]);
    let spans = seen.spans(span_settings());
    let said: Vec<_> =
        spans.iter().map(|span| (text(span, "kafka_tracer.refused_records"), text(span, "kafka_tracer.current_leader"))).collect();
    assert_eq!(said, [(Some("2".to_owned()), Some("7".to_owned())), (None, Some("7".to_owned()))]);
    // Where it listens is known from then on.
    let servers: Vec<_> =
        seen.exchanges().map(|exchange| exchange.operation.server.as_ref().map(|(host, port)| (host.to_string(), *port))).collect();
    assert_eq!(servers.last(), Some(&Some(("10.0.0.1".to_owned(), 9092))));
    assert_eq!(servers.first(), Some(&None));
}

/// open-telemetry/opentelemetry-java-instrumentation#18289, smallrye/smallrye-reactive-messaging#3494: a span that ends before
/// the broker has answered says offset 0 and no error.
#[test]
fn otel_java_18289_a_refused_send_is_an_error_without_an_offset() {
    let client = Some("client");
    for version in 3..=13 {
        let topic = if version < 13 { Topic::Name("orders") } else { Topic::Id(ORDERS) };
        for (base_offset, code, name) in [
            (-1, 29, "TOPIC_AUTHORIZATION_FAILED"),
            (0, 29, "TOPIC_AUTHORIZATION_FAILED"),
            (-1, 10, "MESSAGE_TOO_LARGE"),
            (-1, -1, "UNKNOWN_SERVER_ERROR"),
        ] {
            let seen = host(vec![(
                produce(version, 3, client, -1, topic, &messages(2)).unwrap(),
                produced(version, 3, topic, base_offset, code).unwrap(),
            )]);
            let spans = spans_of(&seen, OperationName::Send);
            assert_eq!(spans.len(), 1, "v{version}");
            let span = &spans[0];
            assert!(matches!(span.data.status, Status::Error { .. }), "v{version}");
            assert_eq!(text(span, "error.type").as_deref(), Some(name), "v{version}");
            for key in ["messaging.kafka.offset", "kafka_tracer.batch.base_offset", "kafka_tracer.batch.last_offset"] {
                assert_eq!(attribute(span, key), None, "v{version} {key}");
            }
            // It lasts until the answer.
            let sent = seen.sent().next().unwrap();
            assert_eq!(span.data.end_time, sent.operation.response.unwrap().1.to_system_time(), "v{version}");
            assert_eq!(sent.outcome, Outcome::Error(code));
        }
    }
}

/// open-telemetry/opentelemetry-ebpf-instrumentation#2299, #2306: a producer is shown as a consumer.
#[test]
fn obi_2299_what_is_sent_is_a_send_in_every_recorded_capture() {
    let (mut sends, mut others) = (0, 0);
    for name in corpus_names().unwrap() {
        let replayed = replay_file(&["--format", "otlp-json"], &corpus().join(format!("{name}.pcap"))).unwrap();
        for line in replayed.output.lines() {
            let data: serde_json::Value = serde_json::from_str(line).unwrap();
            let scopes = data["resourceSpans"].as_array().unwrap().iter().flat_map(|it| it["scopeSpans"].as_array().unwrap());
            for span in scopes.flat_map(|it| it["spans"].as_array().unwrap()) {
                let value = |key: &str| {
                    let attributes = span["attributes"].as_array().unwrap();
                    let found = attributes.iter().find(|attribute| attribute["key"] == key).map(|it| &it["value"]["stringValue"]);
                    found.and_then(|value| value.as_str()).unwrap_or_default().to_owned()
                };
                let operation = value("messaging.operation.name");
                let kind = span["kind"].as_i64().unwrap();
                // CLIENT is 3, PRODUCER 4, CONSUMER 5.
                let (kinds, operation_type): (&[i64], _) = match operation.as_str() {
                    "send" => (&[3, 4], "send"),
                    "fetch" => (&[5], "receive"),
                    "commit" => (&[3], "settle"),
                    other => panic!("{name}: {other}"),
                };
                assert!(kinds.contains(&kind) && value("messaging.operation.type") == operation_type, "{name}: {span}");
                assert_eq!(span["name"].as_str().unwrap().split(' ').next(), Some(operation.as_str()), "{name}");
                if operation == "send" { sends += 1 } else { others += 1 }
            }
        }
    }
    assert!(sends > 100 && others > 100, "{sends} sends, {others} others");
}

/// open-telemetry/opentelemetry-ebpf-instrumentation#3306: what is captured at the broker is exported as a server's.
#[test]
fn obi_3306_the_brokers_end_has_the_same_kinds_and_says_whose_end_it_is() {
    let capture = talked(&conversation(), &[]);
    let told = |sides: Sides| {
        let seen = observe_both_ends(&capture, PipelineSettings { sides, ..settings() });
        seen.spans(SpanSettings { sides, ..span_settings() })
    };
    let (client, broker) = (told(Sides::Client), told(Sides::Broker));
    let shown =
        |spans: &[FinishedSpan]| -> Vec<_> { spans.iter().map(|span| (span.data.name.to_string(), span.data.span_kind.clone())).collect() };
    assert_eq!(shown(&client), [("send orders".to_owned(), SpanKind::Producer), ("fetch orders".to_owned(), SpanKind::Consumer)]);
    assert_eq!(shown(&broker), shown(&client));
    for (spans, side) in [(&client, "client"), (&broker, "broker")] {
        assert!(spans.iter().all(|span| text(span, "kafka_tracer.side").as_deref() == Some(side)), "{side}");
    }
    let both = told(Sides::Both);
    assert_eq!(both.len(), 4);
    assert!(both.iter().all(|span| matches!(span.data.span_kind, SpanKind::Producer | SpanKind::Consumer | SpanKind::Client)));
}

/// pixie `message_set.cc` (comment), apache/kafka#12052: a broker hands the records of a fetch to the kernel with `sendfile`, and
/// only what stands before them passes through a buffer.
#[test]
fn pixie_message_set_records_that_pass_by_unseen_cost_the_records_and_nothing_else() {
    let client = Some("client");
    let stored = batch(5, &messages(4)).unwrap();
    let large = batch(5, &[tests::kafka::Message { value: Some(vec![b'v'; 1 << 20]), ..messages(1).remove(0) }]).unwrap();
    for records in [stored, large] {
        let whole = fetched(12, 2, 0, &[(Topic::Name("orders"), 0, records.clone())]).unwrap();
        let header_bytes = whole.windows(records.len()).position(|window| window == records).unwrap();
        let mut recorder = Recorder::default();
        let mut flow = recorder.connect();
        talk(&mut recorder, &mut flow, &[api_versions(3, 1, client).unwrap()], &[]);
        recorder.ask(&mut flow, &fetch(12, 2, client, (0, -1), &[(Topic::Name("orders"), 5)]).unwrap());
        recorder.answer(&mut flow, &whole[..header_bytes]);
        recorder.answer_unseen(&mut flow, &whole[header_bytes..header_bytes + records.len()]);
        recorder.answer(&mut flow, &whole[header_bytes + records.len()..]);
        let next = (
            fetch(12, 3, client, (0, -1), &[(Topic::Name("orders"), 9)]).unwrap(),
            fetched(12, 3, 0, &[(Topic::Name("orders"), 0, batch(9, &messages(1)).unwrap())]).unwrap(),
        );
        talk(&mut recorder, &mut flow, &[next], &[]);
        recorder.close(&mut flow);
        let capture: Capture = recorder.capture();
        let seen = observe(&capture, settings()).unwrap();
        // Both fetches are timed and counted, with all their bytes; the next one's records are there.
        let bytes: Vec<u64> = seen.exchanges().skip(1).map(|exchange| exchange.operation.response_bytes).collect();
        assert_eq!((bytes.len(), bytes[0], seen.counters.lost_sync), (2, whole.len() as u64, 0));
        assert!(seen.exchanges().all(|exchange| exchange.outcome == Outcome::Success));
        assert_eq!(listing(&capture).iter().map(|line| line["offset"].as_i64()).collect::<Vec<_>>(), [Some(9)]);
        let summary = summary(&capture);
        assert_eq!(summary["streams"]["gap_bytes"], records.len());
        assert_eq!(summary["batches_not_read"]["hole"], 1, "{}", summary["batches_not_read"]);
    }
}
