//! Tables of observations and the spans they give.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceId};
use opentelemetry::{Key, Value};
use proptest::prelude::*;

use super::Telemetry;
use crate::kafka::context::{CarriedContext, Propagator};
use crate::observe::{
    BatchHeader, Codec, Commit, Delivered, FetchedBatch, Observation, Operation, Outcome, Process, RecordFact, RecordsRead, ResourceValue,
    SentBatch, Side, Skipped, Topic, TopicId,
};
use crate::telemetry::fixtures::{T0, at, commit, connection, context, fetch_failure, fetched, header, operation, record, sent};
use crate::telemetry::{
    Coordinates, FetchKind, FetchType, FinishedSpan, IdSeed, Joined, OperationName, ResourceKey, Root, Sampler, Scope, Sides, SpanSettings,
    TopicFilter,
};

/// Ids of the published vectors: 5 records at offset 1000.
const TRACE: &str = "586b9a0e9ce789ab5c72d5f0b0ff4010";
const SPAN: &str = "eb4496bea25c15ec";
const RECORD_2: &str = "c861b1aabe787c5c";

fn settings() -> SpanSettings {
    SpanSettings::replay(IdSeed::from_capture(b"tests"))
}

fn engine() -> Telemetry {
    Telemetry::new(settings())
}

fn observe(engine: &mut Telemetry, observation: &Observation) -> Vec<FinishedSpan> {
    let mut spans = Vec::new();
    engine.observe(observation, &mut |span| spans.push(span));
    spans
}

fn send(engine: &mut Telemetry, sent: SentBatch) -> Vec<FinishedSpan> {
    observe(engine, &Observation::Sent(sent))
}

fn fetch(engine: &mut Telemetry, fetched: FetchedBatch) -> Vec<FinishedSpan> {
    observe(engine, &Observation::Fetched(fetched))
}

fn settle(engine: &mut Telemetry, commit: Commit) -> Vec<FinishedSpan> {
    observe(engine, &Observation::Commit(commit))
}

fn only(mut spans: Vec<FinishedSpan>) -> FinishedSpan {
    assert_eq!(spans.len(), 1, "{spans:#?}");
    spans.remove(0)
}

fn attribute<'a>(span: &'a FinishedSpan, key: &str) -> Option<&'a Value> {
    span.data.attributes.iter().find(|kv| kv.key == Key::from(key.to_owned())).map(|kv| &kv.value)
}

fn says(span: &FinishedSpan, key: &str) -> Option<String> {
    attribute(span, key).map(ToString::to_string)
}

fn ids(span: &FinishedSpan) -> (TraceId, SpanId) {
    (span.data.span_context.trace_id(), span.data.span_context.span_id())
}

fn parent(span: &FinishedSpan) -> Option<SpanId> {
    Some(span.data.parent_span_id).filter(|id| *id != SpanId::INVALID)
}

fn link_ids(span: &FinishedSpan) -> Vec<(TraceId, SpanId)> {
    span.data.links.iter().map(|link| (link.span_context.trace_id(), link.span_context.span_id())).collect()
}

fn ids_of(context: &CarriedContext) -> (TraceId, SpanId) {
    (TraceId::from_bytes(context.trace_id), SpanId::from_bytes(context.span_id))
}

/// One line a span: name, kind, count, parent, links; ids of applications as `app1`, computed ones as `batch`, `record2`.
fn tree(spans: &[FinishedSpan]) -> String {
    let mut names: HashMap<SpanId, String> = (1..=20).map(|n| (ids_of(&context(n, true)).1, format!("app{n}"))).collect();
    names.insert(SpanId::from_hex(SPAN).unwrap(), "batch".into());
    names.insert(SpanId::from_hex(RECORD_2).unwrap(), "record2".into());
    let mut text = String::new();
    for span in spans {
        let data = &span.data;
        let name = |id: SpanId| names.get(&id).cloned().unwrap_or_else(|| "random".into());
        write!(text, "{} {:?} {} x{}", data.name, data.span_kind, name(data.span_context.span_id()), span.summary.messages).unwrap();
        if let Some(offset) = attribute(span, "messaging.kafka.offset") {
            write!(text, " @{offset}").unwrap();
        }
        if let Some(parent) = parent(span) {
            write!(text, " < {}", name(parent)).unwrap();
        }
        for link in data.links.iter() {
            write!(text, " ~ {}", name(link.span_context.span_id())).unwrap();
        }
        if data.links.dropped_count > 0 {
            write!(text, " (+{})", data.links.dropped_count).unwrap();
        }
        text.push('\n');
    }
    text
}

fn all_attributes(span: &FinishedSpan) -> String {
    span.data.attributes.iter().fold(String::new(), |mut text, kv| {
        writeln!(text, "{}={}", kv.key, kv.value).unwrap();
        text
    })
}

/// Offsets 0 and 3 in a trace, 2 in an unsampled one, 1 and 4 in none.
fn mixed() -> Vec<RecordFact> {
    vec![
        record(0, Some(context(1, true))),
        record(1, None),
        record(2, Some(context(2, false))),
        record(3, Some(context(3, true))),
        record(4, None),
    ]
}

#[test]
fn records_with_a_sampled_context_get_spans_in_its_trace_and_the_rest_shares_one() {
    let mut engine = engine();
    let sends = send(&mut engine, sent(5, mixed()));
    assert_eq!(
        tree(&sends),
        "send orders Client batch x3 ~ app2\n\
         send orders Client random x1 @1000 < app1 ~ app1\n\
         send orders Client random x1 @1003 < app3 ~ app3\n"
    );
    let fetches = fetch(&mut engine, fetched(5, mixed()));
    assert_eq!(
        tree(&fetches),
        "fetch orders Consumer random x3 < batch ~ app2\n\
         fetch orders Consumer random x1 @1000 < app1 ~ app1\n\
         fetch orders Consumer random x1 @1003 < app3 ~ app3\n"
    );
    assert_eq!(ids(&sends[0]), (TraceId::from_hex(TRACE).unwrap(), SpanId::from_hex(SPAN).unwrap()));
    assert_eq!(ids(&fetches[0]).0, ids(&sends[0]).0);
    for (span, app) in [(&sends[1], 1), (&sends[2], 3), (&fetches[1], 1), (&fetches[2], 3)] {
        assert_eq!(ids(span).0, ids_of(&context(app, true)).0);
        assert!(span.data.parent_span_is_remote);
    }
    assert_eq!(engine.counters().made, 6);
}

#[test]
fn a_batch_without_contexts_is_one_producer_span_that_its_fetch_is_the_child_of() {
    let mut engine = engine();
    assert_eq!(tree(&send(&mut engine, sent(5, Vec::new()))), "send orders Producer batch x5\n");
    assert_eq!(tree(&fetch(&mut engine, fetched(5, Vec::new()))), "fetch orders Consumer random x5 < batch\n");
}

#[test]
fn a_batch_of_contexts_only_has_no_batch_span_on_either_side() {
    let records: Vec<_> = (0..5).map(|i| record(i, Some(context(1 + u8::try_from(i).unwrap(), true)))).collect();
    let mut engine = engine();
    let (sends, fetches) = (send(&mut engine, sent(5, records.clone())), fetch(&mut engine, fetched(5, records)));
    assert!(sends.iter().chain(&fetches).all(|span| span.summary.single_record && span.data.parent_span_id != SpanId::INVALID));
    assert_eq!((sends.len(), fetches.len()), (5, 5));
    let commit = only(settle(&mut engine, commit(1003)));
    assert_eq!(parent(&commit), None, "a commit after a record's span is a root");
    assert_eq!(link_ids(&commit), [ids(&fetches[2])]);
}

#[test]
fn the_send_of_a_batch_says_all_that_is_known() {
    let mut batch = sent(5, Vec::new());
    batch.transactional_id = Some("tx".into());
    batch.retry = true;
    batch.operation = Arc::new(Operation { throttle_ms: 250, ..operation(0, "shop", 10) });
    let span = only(send(&mut engine(), batch));
    assert_eq!(
        all_attributes(&span),
        "messaging.system=kafka\n\
         messaging.operation.name=send\n\
         messaging.operation.type=send\n\
         messaging.destination.name=orders\n\
         messaging.destination.partition.id=3\n\
         messaging.client.id=shop\n\
         messaging.kafka.cluster.id=MkU3OEVBNTcwNTJENDM2Qk\n\
         server.address=broker-1.example\n\
         server.port=9093\n\
         network.peer.address=10.0.0.1\n\
         network.peer.port=9092\n\
         kafka_tracer.side=client\n\
         kafka_tracer.api.version=12\n\
         kafka_tracer.batch.codec=lz4\n\
         kafka_tracer.batch.size=321\n\
         kafka_tracer.batch.uncompressed_size=640\n\
         kafka_tracer.throttle=0.25\n\
         kafka_tracer.acks=-1\n\
         kafka_tracer.producer.id=7\n\
         kafka_tracer.producer.epoch=0\n\
         kafka_tracer.producer.sequence=20\n\
         kafka_tracer.transactional_id=tx\n\
         kafka_tracer.retry=true\n\
         messaging.batch.message_count=5\n\
         kafka_tracer.batch.base_offset=1000\n\
         kafka_tracer.batch.last_offset=1004\n"
    );
    assert!(matches!(attribute(&span, "messaging.destination.partition.id"), Some(Value::String(_))));
    assert_eq!((span.data.start_time, span.data.end_time), (at(10).to_system_time(), at(16).to_system_time()));
    assert_eq!(span.data.status, Status::Unset);
    assert_eq!(span.data.span_context.trace_flags().to_u8(), 3);
    assert_eq!(span.data.instrumentation_scope.name(), "kafka-tracer");
    assert_eq!(span.data.instrumentation_scope.schema_url(), Some("https://opentelemetry.io/schemas/1.44.0"));
    assert_eq!(span.summary.duration(), Duration::from_millis(6));
}

#[test]
fn the_fetch_of_a_batch_and_of_a_record_say_all_that_is_known() {
    let mut engine = Telemetry::new(SpanSettings { capture_keys: true, ..settings() });
    let mut records = vec![record(2, Some(context(1, true)))];
    records[0].value_bytes = None;
    let spans = fetch(&mut engine, fetched(5, records));
    let common = "messaging.system=kafka\n\
         messaging.operation.name=fetch\n\
         messaging.operation.type=receive\n\
         messaging.destination.name=orders\n\
         messaging.destination.partition.id=3\n\
         messaging.client.id=billing-1\n\
         messaging.kafka.cluster.id=MkU3OEVBNTcwNTJENDM2Qk\n\
         server.address=broker-1.example\n\
         server.port=9093\n\
         network.peer.address=10.0.0.1\n\
         network.peer.port=9092\n\
         kafka_tracer.side=client\n\
         kafka_tracer.api.version=12\n\
         kafka_tracer.batch.codec=lz4\n\
         kafka_tracer.batch.size=321\n\
         kafka_tracer.batch.uncompressed_size=640\n\
         messaging.consumer.group.name=billing\n\
         kafka_tracer.fetch.wait=0.027\n\
         kafka_tracer.fetch.high_watermark=1005\n\
         kafka_tracer.fetch.isolation_level=read_committed\n";
    assert_eq!(
        all_attributes(&spans[0]),
        format!(
            "{common}messaging.batch.message_count=4\n\
             kafka_tracer.batch.base_offset=1000\n\
             kafka_tracer.batch.last_offset=1004\n\
             kafka_tracer.end_to_end=0.031\n\
             kafka_tracer.clock=create\n"
        )
    );
    assert_eq!(
        all_attributes(&spans[1]),
        format!(
            "{common}messaging.kafka.offset=1002\n\
             messaging.kafka.message.key=key-2\n\
             messaging.kafka.message.tombstone=true\n\
             kafka_tracer.end_to_end=0.029\n\
             kafka_tracer.clock=create\n"
        )
    );
    for span in &spans {
        assert_eq!((span.data.start_time, span.data.end_time), (at(30).to_system_time(), at(31).to_system_time()), "the wait is no part");
    }
}

#[test]
fn a_commit_is_the_child_of_the_batch_that_holds_the_last_offset_read() {
    let mut engine = engine();
    let batch = only(fetch(&mut engine, fetched(5, Vec::new())));
    let span = only(settle(&mut engine, commit(1005)));
    assert_eq!((parent(&span), ids(&span).0), (Some(ids(&batch).1), ids(&batch).0));
    assert!(!span.data.parent_span_is_remote);
    assert_eq!((span.data.name.as_ref(), span.data.span_kind.clone()), ("commit orders", SpanKind::Client));
    for (key, value) in [
        ("messaging.operation.name", "commit"),
        ("messaging.operation.type", "settle"),
        ("messaging.consumer.group.name", "billing"),
        ("kafka_tracer.commit.offset", "1005"),
        ("kafka_tracer.commit.delay", "0.019"),
    ] {
        assert_eq!(says(&span, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(says(&span, "messaging.kafka.offset"), None, "the committed offset is the next one, no record's");
    // Offsets that no fetched batch holds, and another group's: a root.
    for other in [commit(1000), commit(1006), Commit { group: "audit".into(), ..commit(1005) }] {
        let span = only(settle(&mut engine, other));
        assert_eq!((parent(&span), span.data.links.len(), says(&span, "kafka_tracer.commit.delay")), (None, 0, None));
    }
    assert!(settle(&mut engine, Commit { moves: false, ..commit(1005) }).is_empty(), "a commit that moves nothing");
}

#[test]
fn a_commit_finds_what_its_client_fetched_before_its_group_was_known() {
    let mut engine = engine();
    let batch = only(fetch(&mut engine, FetchedBatch { group: None, ..fetched(5, Vec::new()) }));
    assert_eq!(says(&batch, "messaging.consumer.group.name"), None);
    assert_eq!(parent(&only(settle(&mut engine, commit(1005)))), Some(ids(&batch).1));
}

#[test]
fn an_acknowledgement_names_its_range_and_type() {
    let mut engine = engine();
    let batch = only(fetch(&mut engine, FetchedBatch { share: true, ..fetched(5, Vec::new()) }));
    let span = only(settle(&mut engine, Commit { acknowledged: Some((1001, 1003, "release")), ..commit(1004) }));
    assert_eq!(parent(&span), Some(ids(&batch).1));
    for (key, value) in [("type", "release"), ("first_offset", "1001"), ("last_offset", "1003")] {
        assert_eq!(says(&span, &format!("kafka_tracer.acknowledge.{key}")).as_deref(), Some(value));
    }
    assert_eq!(says(&span, "kafka_tracer.commit.offset"), None);
}

#[test]
fn two_hosts_that_see_one_end_each_come_to_the_same_ids() {
    for scope in [Scope::Auto, Scope::Batch, Scope::Record] {
        let host = |seed: &[u8]| Telemetry::new(SpanSettings { scope, seed: IdSeed::from_capture(seed), ..settings() });
        let (mut producers, mut consumers) = (host(b"one host"), host(b"another"));
        let sends = send(&mut producers, sent(5, mixed()));
        let made: HashSet<_> = sends.iter().map(ids).collect();
        let fetches = fetch(&mut consumers, fetched(5, mixed()));
        assert_eq!(sends.len(), fetches.len(), "{scope:?}");
        for span in &fetches {
            let parent = parent(span).expect("each fetch has a parent here");
            let carried = span.summary.joined == Joined::Context;
            assert!(carried || made.contains(&(ids(span).0, parent)), "{scope:?}: {parent:?} is no send's");
            assert_eq!(carried, scope != Scope::Batch && [1, 3].contains(&(ids(span).0.to_bytes()[0])), "{scope:?}");
            assert!(carried || span.summary.joined == Joined::Coordinates);
            assert!(!made.contains(&ids(span)), "a fetch has an id of its own");
        }
    }
}

#[test]
fn scope_record_gives_each_record_a_span_in_its_batchs_trace() {
    let mut engine = Telemetry::new(SpanSettings { scope: Scope::Record, ..settings() });
    let records = vec![record(0, Some(context(1, true))), record(1, None), record(2, None)];
    let mut batch = sent(5, records.clone());
    batch.records_read = RecordsRead::Partly;
    let spans = send(&mut engine, batch);
    assert_eq!(
        tree(&spans),
        "send orders Producer batch x2\n\
         send orders Client random x1 @1000 < app1 ~ app1\n\
         send orders Producer random x1 @1001\n\
         send orders Producer record2 x1 @1002\n",
        "what could not be read shares the batch's span"
    );
    assert_eq!(ids(&spans[3]).0, ids(&spans[0]).0);
    // An unsampled context never gets a span in the application's trace; always_on makes one beside it.
    let sampler = Sampler { parent_based: false, root: Root::AlwaysOn };
    let mut engine = Telemetry::new(SpanSettings { scope: Scope::Record, sampler, ..settings() });
    let spans = send(&mut engine, sent(1, vec![record(0, Some(context(1, false)))]));
    assert_eq!(tree(&spans), "send orders Client random x1 @1000 ~ app1\n");
    assert_ne!(ids(&spans[0]).0, ids_of(&context(1, false)).0);
}

#[test]
fn scope_record_joins_records_of_unacknowledged_batches_too() {
    let mut engine = Telemetry::new(SpanSettings { scope: Scope::Record, ..settings() });
    let records: Vec<_> = (0..3).map(|i| record(i, None)).collect();
    let mut batch = sent(3, records.clone());
    (batch.base_offset, batch.outcome, batch.acks) = (None, Outcome::Unacknowledged, 0);
    let (sends, fetches) = (send(&mut engine, batch), fetch(&mut engine, fetched(3, records)));
    assert_eq!((sends.len(), fetches.len()), (3, 3));
    for (sent, fetched) in sends.iter().zip(&fetches) {
        assert_eq!((ids(fetched).0, parent(fetched)), (ids(sent).0, Some(ids(sent).1)));
    }
}

#[test]
fn one_span_has_a_computed_id_and_later_attempts_link_to_it() {
    // Field case 48: a duplicate of a stored batch is answered with the same offset.
    let mut engine = engine();
    let failed = SentBatch { base_offset: None, outcome: Outcome::Error(6), ..sent(5, Vec::new()) };
    let refused = only(send(&mut engine, failed));
    assert_eq!(says(&refused, "kafka_tracer.coordinates").as_deref(), Some("unacknowledged"));
    let first = only(send(&mut engine, SentBatch { retry: true, ..sent(5, Vec::new()) }));
    assert_eq!((ids(&first).1, first.data.span_kind.clone()), (SpanId::from_hex(SPAN).unwrap(), SpanKind::Producer), "the first answered");
    let again = only(send(&mut engine, SentBatch { retry: true, ..sent(5, Vec::new()) }));
    assert_eq!((parent(&again), link_ids(&again), again.data.span_kind.clone()), (None, vec![ids(&first)], SpanKind::Client));
    assert_ne!(ids(&again).0, ids(&first).0);
    assert_eq!(says(&again, "kafka_tracer.coordinates"), None);
    let duplicate = SentBatch { base_offset: None, outcome: Outcome::Error(46), retry: true, ..sent(5, Vec::new()) };
    let duplicate = only(send(&mut engine, duplicate));
    assert_eq!((duplicate.data.status.clone(), says(&duplicate, "error.type")), (Status::Unset, None), "success without offset");
    assert_eq!(says(&duplicate, "kafka_tracer.batch.base_offset"), None);
    assert_eq!(parent(&only(fetch(&mut engine, fetched(5, Vec::new())))), Some(ids(&first).1));
}

#[test]
fn ids_that_cannot_be_computed_say_why() {
    type Change = fn(&mut SentBatch, &mut FetchedBatch);
    let cases: [(&str, Change, bool); 7] = [
        ("unknown_cluster", |s, f| (s.operation, f.operation) = (without_cluster(&s.operation), without_cluster(&f.operation)), true),
        ("unknown_topic", |s, f| (s.topic.name, f.topic.name) = (None, None), true),
        ("rewritten", |s, f| (s.header.magic, f.header.magic) = (1, 1), false),
        ("rewritten", |s, f| (s.header.delete_horizon, f.header.delete_horizon) = (true, true), false),
        ("rewritten", |s, f| (s.header.record_count, f.header.record_count) = (4, 4), false),
        ("unacknowledged", |s, _| (s.base_offset, s.outcome) = (None, Outcome::Unacknowledged), true),
        ("unacknowledged", |s, _| (s.base_offset, s.outcome) = (None, Outcome::NoResponse), true),
    ];
    for (reason, change, joins_here) in cases {
        let (mut batch, mut read) = (sent(5, Vec::new()), fetched(5, Vec::new()));
        change(&mut batch, &mut read);
        let mut engine = engine();
        let sent_span = only(send(&mut engine, batch));
        assert_eq!(says(&sent_span, "kafka_tracer.coordinates").as_deref(), Some(reason));
        assert_eq!((parent(&sent_span), sent_span.data.span_kind.clone()), (None, SpanKind::Client), "{reason}");
        assert_ne!(ids(&sent_span).0.to_string(), TRACE);
        let here = only(fetch(&mut engine, read.clone()));
        if joins_here {
            assert_eq!((parent(&here), ids(&here).0), (Some(ids(&sent_span).1), ids(&sent_span).0), "{reason}");
            assert_eq!((here.summary.joined, says(&here, "kafka_tracer.coordinates")), (Joined::Seen, None));
        }
        let elsewhere = only(fetch(&mut self::engine(), read));
        if reason == "unacknowledged" {
            assert_eq!(
                parent(&elsewhere).map(|id| id.to_string()).as_deref(),
                Some(SPAN),
                "elsewhere nobody knows that it was not acknowledged"
            );
        } else {
            for span in [&here, &elsewhere].into_iter().filter(|span| !(joins_here && span.summary.joined == Joined::Seen)) {
                assert_eq!((parent(span), says(span, "kafka_tracer.coordinates").as_deref()), (None, Some(reason)));
            }
        }
    }
}

fn without_cluster(operation: &Operation) -> Arc<Operation> {
    Arc::new(Operation { cluster_id: None, ..operation.clone() })
}

#[test]
fn an_unknown_topic_shows_its_id_and_never_a_guess() {
    let mut batch = fetched(5, Vec::new());
    batch.topic.name = None;
    let span = only(fetch(&mut engine(), batch));
    assert_eq!(span.data.name, "fetch");
    assert_eq!(says(&span, "messaging.destination.name"), None);
    assert_eq!(says(&span, "kafka_tracer.topic.id"), TopicId::new([7; 16]).map(|id| id.to_string()));
    let mut batch = sent(5, Vec::new());
    batch.topic = Topic::default();
    let span = only(send(&mut engine(), batch));
    assert_eq!((span.data.name.as_ref(), says(&span, "kafka_tracer.topic.id")), ("send", None));
}

#[test]
fn batches_that_look_alike_are_joined_with_none() {
    // A producer without idempotence and with constant timestamps.
    let alike = || SentBatch {
        base_offset: None,
        outcome: Outcome::Unacknowledged,
        header: BatchHeader { producer_id: -1, producer_epoch: -1, base_sequence: -1, ..header(5) },
        ..sent(5, Vec::new())
    };
    let read = |engine: &mut Telemetry| {
        let mut batch = fetched(5, Vec::new());
        (batch.header.producer_id, batch.header.producer_epoch, batch.header.base_sequence) = (-1, -1, -1);
        only(fetch(engine, batch))
    };
    let mut engine = engine();
    let first = only(send(&mut engine, alike()));
    assert_eq!(parent(&read(&mut engine)), Some(ids(&first).1));
    let second = only(send(&mut engine, alike()));
    let joined = read(&mut engine);
    assert!(![ids(&first).1, ids(&second).1].contains(&parent(&joined).unwrap()), "two sends fit: neither is taken");
    assert_eq!(joined.summary.joined, Joined::Coordinates);
}

#[test]
fn a_topic_made_anew_under_its_old_name_is_another_topic() {
    // Field case 27.
    let mut engine = engine();
    let unacknowledged = SentBatch { base_offset: None, outcome: Outcome::Unacknowledged, ..sent(5, Vec::new()) };
    let span = only(send(&mut engine, unacknowledged));
    let mut batch = fetched(5, Vec::new());
    batch.topic.id = TopicId::new([8; 16]);
    assert_ne!(parent(&only(fetch(&mut engine, batch))), Some(ids(&span).1));
}

#[test]
fn a_send_after_the_fetch_is_not_its_send() {
    let mut engine = engine();
    let mut late = SentBatch { base_offset: None, outcome: Outcome::Unacknowledged, ..sent(5, Vec::new()) };
    late.operation = Arc::new(operation(0, "shop", 32));
    send(&mut engine, late);
    assert_eq!(only(fetch(&mut engine, fetched(5, Vec::new()))).summary.joined, Joined::Coordinates);
}

#[test]
fn no_parent_is_claimed_that_the_producers_side_did_not_make() {
    // All records have their own spans there; here the shared context had its share, so one is in the batch's span.
    let records: Vec<_> = (0..2).map(|i| record(i, Some(context(1, true)))).collect();
    let spans = fetch(&mut Telemetry::new(SpanSettings { max_per_context: 1, ..settings() }), fetched(2, records.clone()));
    assert_eq!(tree(&spans), "fetch orders Consumer random x1 ~ app1\nfetch orders Consumer random x1 @1000 < app1 ~ app1\n");
    // Where the send was seen to have a batch span, it is the parent all the same.
    let mut engine = Telemetry::new(SpanSettings { max_per_context: 1, ..settings() });
    let sends = send(&mut engine, sent(2, records.clone()));
    let spans = fetch(&mut engine, fetched(2, records));
    assert_eq!(parent(&spans[0]), Some(ids(&sends[0]).1));
}

#[test]
fn a_batch_the_broker_refused_is_not_what_was_fetched() {
    let mut engine = engine();
    let refused = SentBatch { base_offset: None, outcome: Outcome::Error(29), ..sent(5, Vec::new()) };
    let span = only(send(&mut engine, refused));
    assert_ne!(parent(&only(fetch(&mut engine, fetched(5, Vec::new())))), Some(ids(&span).1));
}

#[test]
fn coordinates_can_be_a_link_or_off() {
    let mut engine = Telemetry::new(SpanSettings { coordinates: Coordinates::Link, ..settings() });
    let sent_span = only(send(&mut engine, sent(5, Vec::new())));
    let span = only(fetch(&mut engine, fetched(5, Vec::new())));
    assert_eq!((ids(&span).0, parent(&span), link_ids(&span)), (ids(&sent_span).0, None, vec![ids(&sent_span)]));

    let mut engine = Telemetry::new(SpanSettings { coordinates: Coordinates::Off, ..settings() });
    let sent_span = only(send(&mut engine, sent(5, Vec::new())));
    let span = only(fetch(&mut engine, fetched(5, Vec::new())));
    assert_ne!(ids(&sent_span).0.to_string(), TRACE);
    assert_ne!(ids(&span).0, ids(&sent_span).0);
    assert_eq!((parent(&span), span.data.links.len(), says(&span, "kafka_tracer.coordinates")), (None, 0, None));
    assert_eq!(says(&span, "kafka_tracer.clock").as_deref(), Some("host"), "the time is measured all the same");
}

#[test]
fn a_key_changes_all_computed_ids_alike() {
    let keyed = || Telemetry::new(SpanSettings { coordinates_key: Some(Arc::from(&b"k"[..])), ..settings() });
    let sent_span = only(send(&mut keyed(), sent(5, Vec::new())));
    assert_ne!(ids(&sent_span).0.to_string(), TRACE);
    assert_eq!(parent(&only(fetch(&mut keyed(), fetched(5, Vec::new())))), Some(ids(&sent_span).1));
}

#[test]
fn the_end_to_end_time_says_which_clock_it_started_on() {
    let told = |span: &FinishedSpan| (says(span, "kafka_tracer.end_to_end"), says(span, "kafka_tracer.clock"));
    let mut engine = engine();
    send(&mut engine, sent(5, Vec::new()));
    let span = only(fetch(&mut engine, fetched(5, Vec::new())));
    assert_eq!(told(&span), (Some("0.021".into()), Some("host".into())));
    assert_eq!(span.summary.joined, Joined::Seen);

    let mut batch = fetched(5, Vec::new());
    batch.header.log_append_time = true;
    assert_eq!(told(&only(fetch(&mut self::engine(), batch))), (Some("0.027".into()), Some("append".into())));

    let mut batch = fetched(5, Vec::new());
    batch.header.base_timestamp_ms = Some(T0 + 41);
    let (seconds, clock) = told(&only(fetch(&mut self::engine(), batch)));
    assert_eq!((seconds.as_deref(), clock.as_deref()), (Some("-0.01"), Some("create")), "never clamped");

    // None, and Go's zero time.
    for none in [None, Some(-1), Some(-62_135_596_800_000)] {
        let mut batch = fetched(5, Vec::new());
        (batch.header.base_timestamp_ms, batch.header.max_timestamp_ms) = (none, none);
        let span = only(fetch(&mut self::engine(), batch));
        assert_eq!((told(&span), parent(&span).is_some()), ((None, None), true), "{none:?} is no age");
    }
}

#[test]
fn old_and_redelivered_messages_are_roots_with_a_link() {
    let hour = 3_600_000;
    let mut cases = Vec::new();
    for (late, expected_apart) in [(hour - 31, false), (hour + 1, true)] {
        let mut batch = fetched(5, mixed());
        batch.operation = Arc::new(Operation { response: Some((at(late), at(late + 4))), ..(*batch.operation).clone() });
        cases.push((batch, expected_apart, false));
    }
    cases.push((FetchedBatch { redelivered: true, ..fetched(5, mixed()) }, true, true));
    for (batch, apart, redelivered) in cases {
        let spans = fetch(&mut engine(), batch);
        for (span, app) in spans[1..].iter().zip([1, 3]) {
            let carried = ids_of(&context(app, true));
            assert_eq!((parent(span).is_none(), link_ids(span)), (apart, vec![carried]));
            assert_eq!(ids(span).0 == carried.0, !apart);
        }
        let batch_send = (TraceId::from_hex(TRACE).unwrap(), SpanId::from_hex(SPAN).unwrap());
        assert_eq!(parent(&spans[0]).is_none(), apart);
        assert_eq!(link_ids(&spans[0]).contains(&batch_send), apart);
        assert!(spans.iter().all(|span| (says(span, "kafka_tracer.redelivered").as_deref() == Some("true")) == redelivered));
    }
}

#[test]
fn a_share_groups_second_delivery_is_a_redelivery() {
    let mut records = vec![record(0, Some(context(1, true))), record(1, Some(context(2, true)))];
    (records[0].delivery_count, records[1].delivery_count) = (Some(1), Some(2));
    let spans = fetch(&mut engine(), FetchedBatch { share: true, ..fetched(2, records) });
    assert_eq!(tree(&spans), "fetch orders Consumer random x1 @1000 < app1 ~ app1\nfetch orders Consumer random x1 @1001 ~ app2\n");
    assert_eq!(says(&spans[1], "kafka_tracer.delivery_count").as_deref(), Some("2"));
    assert_eq!((says(&spans[0], "kafka_tracer.redelivered"), says(&spans[1], "kafka_tracer.redelivered")), (None, Some("true".into())));
}

#[test]
fn skipped_records_are_in_no_fetch_span() {
    // Field case 35, and a fetch that starts in the middle of a batch.
    let mut records = mixed();
    records[0].skipped = Some(Skipped::BelowFetchOffset);
    records[1].skipped = Some(Skipped::BelowFetchOffset);
    let spans = fetch(&mut engine(), fetched(5, records));
    assert_eq!(tree(&spans), "fetch orders Consumer random x2 < batch ~ app2\nfetch orders Consumer random x1 @1003 < app3 ~ app3\n");
    let aborted: Vec<_> = (0..5).map(|i| RecordFact { skipped: Some(Skipped::Aborted), ..record(i, None) }).collect();
    assert!(fetch(&mut engine(), fetched(5, aborted)).is_empty(), "nothing is delivered");
    // Field case 34: markers are no messages.
    let mut marker = fetched(1, Vec::new());
    marker.header.control = true;
    assert!(fetch(&mut engine(), marker).is_empty());
}

#[test]
fn the_first_128_records_with_a_context_have_spans_and_the_rest_links() {
    let many = |n: u32| -> Vec<_> {
        (0..i64::from(n))
            .map(|i| record(i, Some(CarriedContext { trace_id: (i128::from(i) + 1).to_be_bytes(), ..context(9, true) })))
            .collect()
    };
    for settings in [settings(), SpanSettings { scope: Scope::Batch, ..settings() }] {
        let own = if settings.scope == Scope::Auto { 128 } else { 0 };
        let mut engine = Telemetry::new(settings);
        for spans in [send(&mut engine, sent(300, many(300))), fetch(&mut engine, fetched(300, many(300)))] {
            assert_eq!(spans.len(), 1 + own);
            assert_eq!(spans.iter().map(|span| span.summary.messages).sum::<u32>(), 300);
            assert_eq!(spans[0].data.links.len(), 128);
            assert_eq!(spans[0].data.links.dropped_count as usize, 300 - own - 128);
            let records: Vec<_> = spans[1..].iter().map(|span| span.summary.offsets.unwrap().0).collect();
            assert_eq!(records, (1000..1000 + i64::try_from(own).unwrap()).collect::<Vec<_>>(), "the first by offset");
        }
    }
}

#[test]
fn a_context_that_all_records_share_gets_100_spans_and_one_link() {
    let records: Vec<_> = (0..120).map(|i| record(i, Some(context(1, true)))).collect();
    let mut engine = engine();
    let spans = send(&mut engine, sent(120, records));
    assert_eq!(spans.len(), 101);
    assert_eq!((spans[0].summary.messages, link_ids(&spans[0])), (20, vec![ids_of(&context(1, true))]), "the rest is in the batch's span");
    assert_eq!(engine.counters().per_context, 20);
}

#[test]
fn the_ceiling_per_second_cuts_and_counts_and_lets_errors_pass() {
    let mut engine = Telemetry::new(SpanSettings { max_per_second: Some(20), ..settings() });
    let mut made = 0;
    for i in 0..100 {
        made += send(&mut engine, SentBatch { base_offset: Some(2000 + i), ..sent(5, Vec::new()) }).len();
    }
    assert_eq!((made, engine.counters().rate), (20, 80));
    let failed = || SentBatch { base_offset: None, outcome: Outcome::Error(29), ..sent(5, Vec::new()) };
    assert_eq!((0..5).map(|_| send(&mut engine, failed()).len()).sum::<usize>(), 2, "a tenth more for errors");
}

#[test]
fn errors_are_kafkas_names_for_each_partition() {
    // Field cases 50 and 51.
    let mut engine = engine();
    for (partition, code, name) in [(1, 3, "UNKNOWN_TOPIC_OR_PARTITION"), (2, 6, "NOT_LEADER_OR_FOLLOWER")] {
        let span = only(observe(&mut engine, &Observation::FetchFailed(fetch_failure(partition, Outcome::Error(code)))));
        assert_eq!((says(&span, "error.type").as_deref(), span.data.name.as_ref()), (Some(name), "fetch orders"));
        assert_eq!(span.data.status, Status::Error { description: "".into() });
        assert_eq!(says(&span, "messaging.destination.partition.id"), Some(partition.to_string()));
    }
    let good = only(fetch(&mut engine, fetched(5, Vec::new())));
    assert_eq!((good.data.status.clone(), says(&good, "error.type")), (Status::Unset, None));
    for (outcome, name) in [
        (Outcome::Error(19), "NOT_ENOUGH_REPLICAS"),
        (Outcome::Error(29), "TOPIC_AUTHORIZATION_FAILED"),
        (Outcome::ConnectionClosed, "connection_closed"),
        (Outcome::NoResponse, "no_response"),
    ] {
        // -1 stands where the broker has no offset to give.
        let span = only(send(&mut engine, SentBatch { base_offset: Some(-1), outcome, ..sent(5, Vec::new()) }));
        assert_eq!(says(&span, "error.type").as_deref(), Some(name));
        assert_eq!(says(&span, "kafka_tracer.batch.base_offset"), None, "never an offset on failure");
        assert_eq!((span.summary.error, span.summary.offsets), (Some(name), None));
    }
    let records = vec![record(0, Some(context(1, true)))];
    let span = only(send(&mut engine, SentBatch { base_offset: None, outcome: Outcome::Error(29), ..sent(1, records) }));
    assert_eq!((says(&span, "messaging.kafka.offset"), parent(&span)), (None, Some(ids_of(&context(1, true)).1)));
}

#[test]
fn silence_that_is_explained_is_no_error_but_counted() {
    // Field cases 9 and 10.
    let mut engine = engine();
    let unanswered = |outcome| {
        let mut batch = SentBatch { base_offset: None, outcome, ..sent(5, Vec::new()) };
        batch.operation = Arc::new(Operation { response: None, ..(*batch.operation).clone() });
        batch
    };
    for (outcome, counted) in [(Outcome::Unacknowledged, 0), (Outcome::AnswerNotSeen, 1)] {
        let span = only(send(&mut engine, unanswered(outcome)));
        assert_eq!((says(&span, "error.type"), engine.counters().answer_not_seen), (None, counted));
        assert_eq!(span.data.end_time, at(11).to_system_time(), "ends with the last byte of the request");
        assert_eq!(says(&span, "kafka_tracer.coordinates").as_deref(), Some("unacknowledged"));
        assert_eq!(says(&span, "messaging.batch.message_count").as_deref(), Some("5"));
    }
    for nothing in [Outcome::ConnectionClosed, Outcome::AnswerNotSeen, Outcome::Error(70), Outcome::Error(71), Outcome::Success] {
        assert!(observe(&mut engine, &Observation::FetchFailed(fetch_failure(0, nothing))).is_empty(), "{nothing:?}");
    }
}

#[test]
fn flags_and_tracestate_of_the_application_are_kept() {
    // Field case 41: 03 is sampled and random; unknown flags are not passed on.
    for (flags, expected) in [(1, 1), (3, 3), (0xff, 3)] {
        let carried = CarriedContext { flags, tracestate: Some("vendor=1,ot=th:0".into()), ..context(1, true) };
        let span = only(send(&mut engine(), sent(1, vec![record(0, Some(carried))])));
        assert_eq!(span.data.span_context.trace_flags().to_u8(), expected);
        assert_eq!(span.data.span_context.trace_state().header(), "vendor=1,ot=th:0");
        assert_eq!(span.data.links[0].span_context.trace_state().header(), "vendor=1,ot=th:0");
    }
    // Field case 43: any propagator's context counts alike.
    let b3 = CarriedContext { propagator: Propagator::B3Multi, trace_id: *b"\0\0\0\0\0\0\0\0abcdefgh", ..context(1, true) };
    let span = only(send(&mut engine(), sent(1, vec![record(0, Some(b3.clone()))])));
    assert_eq!((ids(&span).0, link_ids(&span)), (ids_of(&b3).0, vec![ids_of(&b3)]));
}

#[test]
fn contexts_nobody_looked_for_are_said_to_be_so() {
    // Field cases 47 and 56: no context is invented, the batch's facts stay.
    for read in [RecordsRead::NotRead, RecordsRead::Partly] {
        let span = only(fetch(&mut engine(), FetchedBatch { records_read: read, ..fetched(5, Vec::new()) }));
        assert_eq!(says(&span, "kafka_tracer.headers").is_some(), read == RecordsRead::NotRead);
        assert_eq!((span.summary.messages, span.data.links.len(), parent(&span).is_some()), (5, 0, true));
    }
}

#[test]
fn three_traces_in_one_fetch_are_three_links_in_scope_batch() {
    // Field case 46.
    let records: Vec<_> = (1..=3).map(|n| record(i64::from(n) - 1, Some(context(n, true)))).collect();
    let mut engine = Telemetry::new(SpanSettings { scope: Scope::Batch, coordinates: Coordinates::Off, ..settings() });
    let spans = fetch(&mut engine, fetched(3, records));
    assert_eq!(tree(&spans), "fetch orders Consumer random x3 ~ app1 ~ app2 ~ app3\n");
}

#[test]
fn kinds_and_types_follow_the_settings() {
    // Field case 53: never `process`.
    let mut engine = Telemetry::new(SpanSettings { fetch_kind: FetchKind::Client, fetch_type: FetchType::Omit, ..settings() });
    let span = only(fetch(&mut engine, fetched(5, Vec::new())));
    assert_eq!((span.data.span_kind.clone(), says(&span, "messaging.operation.type")), (SpanKind::Client, None));
    let mut all = send(&mut engine, sent(5, mixed()));
    all.extend(settle(&mut engine, commit(1005)));
    for span in &all {
        assert!(["send", "fetch", "commit"].contains(&says(span, "messaging.operation.name").unwrap().as_str()));
        assert!(matches!(span.data.span_kind, SpanKind::Producer | SpanKind::Client));
    }
}

#[test]
fn the_brokers_side_is_its_own_attribute_and_a_child_of_the_clients() {
    // Field case 54.
    let at_broker = |mut batch: SentBatch| {
        batch.operation = Arc::new(Operation { connection: connection("10.0.0.7:50001", Side::Broker), ..(*batch.operation).clone() });
        batch
    };
    assert!(send(&mut engine(), at_broker(sent(5, Vec::new()))).is_empty());
    let mut both = Telemetry::new(SpanSettings { sides: Sides::Both, ..settings() });
    let broker = only(send(&mut both, at_broker(sent(5, Vec::new()))));
    let client = only(send(&mut both, sent(5, Vec::new())));
    assert_eq!((parent(&broker), ids(&broker).0), (Some(ids(&client).1), ids(&client).0));
    assert_eq!(ids(&client).1.to_string(), SPAN);
    assert_eq!((says(&broker, "kafka_tracer.side"), says(&client, "kafka_tracer.side")), (Some("broker".into()), Some("client".into())));
    let mut only_broker = Telemetry::new(SpanSettings { sides: Sides::Broker, ..settings() });
    assert!(send(&mut only_broker, sent(5, Vec::new())).is_empty());
    let broker = only(send(&mut only_broker, at_broker(sent(5, Vec::new()))));
    assert_eq!((ids(&broker).1.to_string().as_str(), broker.data.span_kind.clone()), (SPAN, SpanKind::Producer));
}

#[test]
fn a_commit_is_below_the_fetch_of_its_own_end() {
    let mut both = Telemetry::new(SpanSettings { sides: Sides::Both, ..settings() });
    let client = only(fetch(&mut both, fetched(5, Vec::new())));
    let mut batch = fetched(5, Vec::new());
    batch.operation = Arc::new(Operation { connection: connection("10.0.0.8:50002", Side::Broker), ..(*batch.operation).clone() });
    let broker = only(fetch(&mut both, batch));
    assert_eq!(says(&broker, "kafka_tracer.side").as_deref(), Some("broker"));
    assert_eq!(parent(&only(settle(&mut both, commit(1005)))), Some(ids(&client).1));
}

#[test]
fn sampling_decides_alike_at_both_ends() {
    let sampler = Sampler { parent_based: true, root: Root::Ratio(0.25) };
    let host = |seed: &[u8]| Telemetry::new(SpanSettings { sampler, seed: IdSeed::from_capture(seed), ..settings() });
    let (mut producers, mut consumers) = (host(b"one"), host(b"two"));
    let (mut kept, n) = (0, 400);
    for i in 0..n {
        let sends = send(&mut producers, SentBatch { base_offset: Some(i), ..sent(5, Vec::new()) });
        let mut batch = fetched(5, Vec::new());
        batch.header.base_offset = i;
        let fetches = fetch(&mut consumers, batch);
        assert_eq!(sends.len(), fetches.len());
        for span in sends.iter().chain(&fetches) {
            assert_eq!(span.data.span_context.trace_state().header(), "ot=th:c");
        }
        let commits = settle(&mut consumers, commit(i + 5));
        assert_eq!(commits.len(), fetches.len(), "a commit follows its fetch");
        assert!(commits.iter().all(|span| span.data.span_context.trace_state().header() == "ot=th:c" && parent(span).is_some()));
        kept += sends.len();
    }
    assert!((60..140).contains(&kept), "{kept} of {n}");
    assert_eq!(producers.counters().sampled_out, u64::try_from(n).unwrap() - u64::try_from(kept).unwrap());
    // A carried decision is followed, whatever the ratio of roots.
    let off = Sampler { parent_based: true, root: Root::AlwaysOff };
    let mut engine = Telemetry::new(SpanSettings { sampler: off, ..settings() });
    assert_eq!(tree(&send(&mut engine, sent(5, mixed()))).lines().count(), 2);
    let none = Sampler { parent_based: false, root: Root::AlwaysOff };
    let mut engine = Telemetry::new(SpanSettings { sampler: none, ..settings() });
    assert!(send(&mut engine, sent(5, mixed())).is_empty());
}

#[test]
fn a_batch_of_unsampled_contexts_follows_them() {
    let records: Vec<_> = (0..5).map(|i| record(i, Some(context(1, false)))).collect();
    let mut engine = engine();
    assert!(send(&mut engine, sent(5, records.clone())).is_empty());
    assert_eq!(engine.counters().sampled_out, 1);
    let always = Sampler { parent_based: false, root: Root::AlwaysOn };
    let spans = send(&mut Telemetry::new(SpanSettings { sampler: always, ..settings() }), sent(5, records));
    assert_eq!(tree(&spans), "send orders Client batch x5 ~ app1\n");
}

#[test]
fn topics_are_left_out_as_set() {
    let internal = || {
        let mut batch = fetched(5, Vec::new());
        batch.topic.name = Some("__consumer_offsets".into());
        batch
    };
    assert!(fetch(&mut engine(), internal()).is_empty());
    let topics = TopicFilter { internal: true, ..TopicFilter::default() };
    assert_eq!(fetch(&mut Telemetry::new(SpanSettings { topics, ..settings() }), internal()).len(), 1);
}

#[test]
fn a_span_is_its_clients() {
    let process = Arc::new(Process {
        pid: 7,
        resource: vec![("service.name".into(), ResourceValue::Text("shop".into())), ("process.pid".into(), ResourceValue::Integer(7))],
    });
    let mut batch = sent(5, Vec::new());
    let mut owned = (*connection("10.0.0.7:50001", Side::Client)).clone();
    owned.process = Some(Arc::clone(&process));
    batch.operation = Arc::new(Operation { connection: Arc::new(owned), ..(*batch.operation).clone() });
    let span = only(send(&mut engine(), batch));
    assert_eq!(span.resource, ResourceKey::Process(process));
    let resource = span.resource.to_resource();
    assert_eq!(resource.get(&Key::from("service.name")), Some(Value::from("shop")));
    assert_eq!(resource.get(&Key::from("process.pid")), Some(Value::I64(7)));
    assert_eq!(resource.schema_url(), Some("https://opentelemetry.io/schemas/1.44.0"));
    let far = only(send(&mut engine(), sent(5, Vec::new()))).resource.to_resource();
    assert_eq!(far.get(&Key::from("service.name")), Some(Value::from("unknown_service")));
    assert_eq!(far.get(&Key::from("service.instance.id")), Some(Value::from("10.0.0.7")));
}

#[test]
fn time_makes_it_forget() {
    let mut engine = engine();
    let unacknowledged = SentBatch { base_offset: None, outcome: Outcome::Unacknowledged, ..sent(5, Vec::new()) };
    send(&mut engine, unacknowledged);
    fetch(&mut engine, fetched(5, Vec::new()));
    engine.tick(at(3_600_000));
    assert!(parent(&only(settle(&mut engine, commit(1005)))).is_some());
    engine.tick(at(3_600_032));
    assert!(parent(&only(settle(&mut engine, commit(1005)))).is_none());
    assert_eq!(only(fetch(&mut engine, fetched(5, Vec::new()))).summary.joined, Joined::Coordinates);
}

#[test]
fn tables_stay_within_their_bounds() {
    let mut engine = Telemetry::new(SpanSettings { max_sent_batches: 8, max_fetched_spans: 8, ..settings() });
    for i in 0..100 {
        send(&mut engine, SentBatch { base_offset: Some(i), ..sent(5, Vec::new()) });
        let mut batch = fetched(2, vec![record(0, Some(context(1, true)))]);
        (batch.header.base_offset, batch.partition) = (i, i32::try_from(i % 7).unwrap());
        fetch(&mut engine, batch);
    }
    // The latest are still there, the first are not.
    let mut read = |base: i64| {
        let mut batch = fetched(5, Vec::new());
        batch.header.base_offset = base;
        only(fetch(&mut engine, batch)).summary.joined
    };
    assert_eq!((read(0), read(99)), (Joined::Coordinates, Joined::Seen));
}

fn any_record() -> impl Strategy<Value = (Option<(u8, bool)>, Option<Skipped>)> {
    let skipped = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Skipped::BelowFetchOffset)),
        1 => Just(Some(Skipped::Aborted)),
        1 => Just(Some(Skipped::NotAcquired)),
    ];
    (proptest::option::of((1_u8..200, any::<bool>())), skipped)
}

fn any_settings() -> impl Strategy<Value = SpanSettings> {
    let scope = prop_oneof![Just(Scope::Auto), Just(Scope::Batch), Just(Scope::Record)];
    let coordinates = prop_oneof![Just(Coordinates::Parent), Just(Coordinates::Link), Just(Coordinates::Off)];
    (scope, coordinates, 0_usize..140, 0_usize..130, 0_u32..5).prop_map(|(scope, coordinates, records, links, per_context)| SpanSettings {
        scope,
        coordinates,
        max_records_per_batch: records,
        max_links: links,
        max_per_context: per_context,
        // Nothing is sampled out, so that all is accounted for.
        sampler: Sampler { parent_based: false, root: Root::AlwaysOn },
        ..settings()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Sets are disjoint and add up, links stay within their bound, ids are unique, and whatever is read or not.
    #[test]
    fn every_message_is_accounted_for_once(
        settings in any_settings(),
        batches in proptest::collection::vec((proptest::collection::vec(any_record(), 1..300), any::<bool>(), any::<bool>(), 0_u8..6), 1..6),
    ) {
        let max_links = settings.max_links;
        let mut engine = Telemetry::new(settings);
        let mut seen = HashSet::new();
        for (index, (records, all, only_contexts, outcome)) in batches.into_iter().enumerate() {
            let count = u32::try_from(records.len()).unwrap();
            let facts: Vec<RecordFact> = records
                .iter()
                .enumerate()
                .map(|(i, (carried, skipped))| RecordFact {
                    skipped: *skipped,
                    ..record(i64::try_from(i).unwrap(), carried.map(|(n, sampled)| context(n, sampled)))
                })
                .collect();
            let delivered = u32::try_from(facts.iter().filter(|fact| fact.skipped.is_none()).count()).unwrap();
            let (base, outcome) = match outcome {
                0 => (None, Outcome::Unacknowledged),
                1 => (None, Outcome::Error(29)),
                2 => (None, Outcome::AnswerNotSeen),
                _ => (Some(i64::try_from(index).unwrap() * 1000), Outcome::Success),
            };
            let known: Vec<_> = facts.into_iter().filter(|fact| all && (!only_contexts || fact.context.is_some())).collect();
            let read = if all { RecordsRead::All } else { RecordsRead::NotRead };
            let unskipped = known.iter().map(|fact| RecordFact { skipped: None, ..fact.clone() }).collect();
            let attempt = SentBatch { base_offset: base, outcome, records_read: read, ..sent(count, unskipped) };
            let mut batch = fetched(count, known);
            batch.header.base_offset = base.unwrap_or(500);
            batch.records_read = read;
            batch.delivered = Delivered { delivered, ..Delivered::default() };

            // The second attempt and the second group are sets of their own.
            for (observation, expected, operation) in [
                (Observation::Sent(attempt.clone()), count, OperationName::Send),
                (Observation::Sent(SentBatch { retry: true, ..attempt }), count, OperationName::Send),
                (Observation::Fetched(batch.clone()), delivered, OperationName::Fetch),
                (Observation::Fetched(FetchedBatch { group: Some("other".into()), ..batch }), delivered, OperationName::Fetch),
            ] {
                let spans = observe(&mut engine, &observation);
                prop_assert_eq!(spans.iter().map(|span| span.summary.messages).sum::<u32>(), expected);
                let mut offsets = HashSet::new();
                for span in &spans {
                    prop_assert_eq!(span.summary.operation, operation);
                    prop_assert!(span.data.links.len() <= max_links);
                    prop_assert!(seen.insert(ids(span)), "an id was given twice");
                    prop_assert!(ids(span).0 != TraceId::INVALID && ids(span).1 != SpanId::INVALID);
                    prop_assert!(parent(span) != Some(ids(span).1));
                    if span.summary.single_record && let Some((offset, _)) = span.summary.offsets {
                        prop_assert!(offsets.insert(offset), "a record lies in two spans");
                    } else if !span.summary.single_record {
                        let said = says(span, "messaging.batch.message_count");
                        prop_assert_eq!(said, Some(span.summary.messages.to_string()));
                    }
                }
            }
        }
    }

    /// Two runs over the same observations print the same bytes.
    #[test]
    fn a_seed_makes_two_runs_equal(records in proptest::collection::vec(any_record(), 1..50)) {
        let run = || {
            let mut engine = engine();
            let facts: Vec<_> = records
                .iter()
                .enumerate()
                .map(|(i, (carried, _))| record(i64::try_from(i).unwrap(), carried.map(|(n, sampled)| context(n, sampled))))
                .collect();
            let count = u32::try_from(facts.len()).unwrap();
            let mut spans = send(&mut engine, sent(count, facts.clone()));
            spans.extend(fetch(&mut engine, fetched(count, facts)));
            spans.extend(settle(&mut engine, commit(1000 + i64::from(count))));
            spans.into_iter().map(|span| span.data).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn span_contexts_are_local_and_links_remote() {
    let spans = send(&mut engine(), sent(5, mixed()));
    let contexts: Vec<&SpanContext> = spans.iter().map(|span| &span.data.span_context).collect();
    assert!(contexts.iter().all(|context| context.is_valid() && !context.is_remote()));
    assert!(spans.iter().flat_map(|span| span.data.links.iter()).all(|link| link.span_context.is_remote()));
    let codec = says(&spans[0], "kafka_tracer.batch.codec");
    assert_eq!(codec.as_deref(), Some(Codec::Lz4.name()));
}
