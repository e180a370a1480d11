//! Ids that both ends of the log compute alike, or not at all.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry::SpanId;
use opentelemetry::trace::SpanKind;
use tests::replay::corpus_names;
use tracer_userspace::observe::Outcome;
use tracer_userspace::telemetry::OperationName::{Commit, Fetch, Send};
use tracer_userspace::telemetry::{FinishedSpan, Joined, Scope};

use crate::told::{Told, attribute, capture, told, told_of};

/// The client end and the consumer end of a capture, as two hosts would see them.
fn two_hosts(name: &str, producers: &[&str]) -> (Told, Told) {
    let whole = capture(name);
    let all = told_of(&whole, Scope::Batch);
    let of_producers: BTreeSet<_> = all
        .exchanges()
        .filter(|exchange| producers.contains(&exchange.operation.client_id.as_deref().unwrap_or_default()))
        .map(|exchange| exchange.operation.connection.client)
        .collect();
    assert!(!of_producers.is_empty());
    let part = |of_producer: bool| {
        let mut part = whole.clone();
        part.segments.retain(|s| (of_producers.contains(&s.source) || of_producers.contains(&s.destination)) == of_producer);
        told_of(&part, Scope::Batch)
    };
    (part(true), part(false))
}

fn ids(span: &FinishedSpan) -> (String, String) {
    (span.data.span_context.trace_id().to_string(), span.data.span_context.span_id().to_string())
}

fn parent(span: &FinishedSpan) -> (String, String) {
    (span.data.span_context.trace_id().to_string(), span.data.parent_span_id.to_string())
}

/// Every fetch on one host has the send on the other host for its parent.
pub(crate) fn agree(name: &str, producers: &[&str], topics: &[&str]) {
    let (producer, consumer) = two_hosts(name, producers);
    for topic in topics {
        let sends: BTreeSet<_> = producer.spans(Send, topic).into_iter().map(ids).collect();
        let fetches = consumer.spans(Fetch, topic);
        assert!(!fetches.is_empty() && consumer.spans(Send, topic).is_empty());
        for fetch in fetches {
            assert_eq!(fetch.summary.joined, Joined::Coordinates);
            assert!(sends.contains(&parent(fetch)), "{name}: {topic} {:?}", fetch.summary.offsets);
        }
    }
    told(name).parents_are_there();
}

#[test]
fn batches_that_the_broker_stamps_are_the_same_at_both_ends() {
    agree("coord-log-append-time", &["append-producer"], &["append-plain", "append-gzip"]);
}

#[test]
fn batches_that_the_broker_compresses_anew_are_the_same_at_both_ends() {
    agree("coord-recompressed", &["recompressed-producer", "rdkafka"], &["recompressed-java", "recompressed-confluent"]);
}

#[test]
fn a_batch_whose_first_record_is_not_its_oldest_is_joined_though_the_broker_changed_its_base_timestamp() {
    let told = told("coord-recompressed-kafkajs");
    let (sent, fetched) = (told.sent().next().unwrap(), told.fetched().next().unwrap());
    assert_ne!(sent.header.base_timestamp_ms, fetched.header.base_timestamp_ms);
    assert_eq!(told.spans(Fetch, "recompressed-kafkajs")[0].summary.joined, Joined::Seen);
    told.parents_are_there();
}

#[test]
fn transactions_are_joined_and_what_was_aborted_is_fetched_by_nobody_who_reads_committed() {
    agree("coord-transactions", &["txn-a", "txn-b", "txn-plain"], &["interleaved"]);
    let told = told("coord-transactions");
    let aborted: Vec<_> = told.fetched().filter(|f| f.delivered.aborted > 0).map(|f| (f.isolation_level, f.header.base_offset)).collect();
    assert_eq!(aborted, [(Some(1), 2), (Some(1), 7)]);
    // The last committed offset lies behind the marker that ends the transaction: the commit is still the last batch's.
    for commit in told.spans(Commit, "interleaved") {
        let last = told.spans(Fetch, "interleaved").into_iter().rfind(|f| f.summary.group == commit.summary.group).unwrap();
        assert_eq!(parent(commit), ids(last));
    }
}

#[test]
fn a_retry_that_the_broker_knew_is_one_batch_and_the_first_attempt_failed() {
    let told = told("coord-retry-duplicate");
    let attempts: Vec<_> = told.sent().map(|sent| (sent.header.base_sequence, sent.outcome, sent.retry, sent.base_offset)).collect();
    let expected = [
        (0, Outcome::Success, false, Some(0)),
        (3, Outcome::ConnectionClosed, false, None),
        (3, Outcome::Success, true, Some(3)),
        (6, Outcome::Success, false, Some(6)),
    ];
    assert_eq!(attempts, expected);
    let why: Vec<_> =
        told.spans(Send, "retry-duplicate").iter().map(|s| (s.summary.error, attribute(s, "kafka_tracer.coordinates"))).collect();
    assert_eq!(why[1], (Some("connection_closed"), Some("unacknowledged".to_owned())));
    assert_eq!(why.iter().filter(|(error, _)| error.is_some()).count(), 1);
    told.parents_are_there();
    agree("coord-retry-duplicate", &["retry-producer"], &["retry-duplicate"]);
}

#[test]
fn a_retry_that_the_broker_did_not_know_is_two_batches_each_with_its_own_send() {
    let told = told("coord-retry-twice-stored");
    let attempts: Vec<_> = told.sent().map(|sent| (sent.outcome, sent.retry, sent.base_offset)).collect();
    let expected = [
        (Outcome::Success, false, Some(0)),
        (Outcome::ConnectionClosed, false, None),
        (Outcome::Success, true, Some(6)),
        (Outcome::Success, false, Some(9)),
    ];
    assert_eq!(attempts, expected);
    let parents: BTreeSet<_> = told.spans(Fetch, "retry-twice-stored").into_iter().map(parent).collect();
    assert_eq!(parents.len(), 4, "four batches were stored and fetched, of four attempts");
    told.parents_are_there();
}

#[test]
fn a_batch_that_comes_again_too_late_is_a_refused_retry_and_nobody_is_joined_with_it() {
    let told = told("coord-retry-late-duplicate");
    let refused: Vec<_> =
        told.sent().filter(|sent| sent.outcome != Outcome::Success).map(|s| (s.outcome, s.retry, s.base_offset)).collect();
    assert_eq!(refused, [(Outcome::Error(45), true, None)]);
    assert_eq!(told.sent().filter(|sent| sent.retry).count(), 1);
    assert_eq!(told.spans(Fetch, "retry-late-duplicate").len(), 8);
    assert!(told.spans(Fetch, "retry-late-duplicate").iter().all(|fetch| fetch.data.parent_span_id != SpanId::INVALID));
    told.parents_are_there();
}

#[test]
fn batches_of_old_clients_have_no_coordinates_and_are_joined_where_both_ends_are_seen() {
    let told = told("coord-converted");
    let magic: Vec<_> = told.sent().map(|s| s.header.magic).chain(told.fetched().map(|f| f.header.magic)).collect();
    assert_eq!(magic, [1, 2, 2, 1], "sent up, sent down, fetched up, fetched down");
    let why = |operation, topic| attribute(told.spans(operation, topic)[0], "kafka_tracer.coordinates");
    assert_eq!(why(Send, "converted-up").as_deref(), Some("rewritten"));
    assert_eq!(why(Fetch, "converted-down").as_deref(), Some("rewritten"));
    assert_eq!(told.spans(Fetch, "converted-up")[0].summary.joined, Joined::Seen);
    assert_eq!(told.spans(Fetch, "converted-down")[0].data.parent_span_id, SpanId::INVALID);
    told.parents_are_there();
}

#[test]
fn what_compaction_changed_has_no_coordinates_and_what_it_left_has() {
    let (producer, consumer) = two_hosts("coord-compacted", &["compact-producer"]);
    let sends: BTreeSet<_> = producer.spans(Send, "compacted").into_iter().map(ids).collect();
    let mut rewritten = 0;
    for fetch in consumer.spans(Fetch, "compacted") {
        match attribute(fetch, "kafka_tracer.coordinates").as_deref() {
            None => assert!(sends.contains(&parent(fetch)), "{:?}", fetch.summary.offsets),
            Some("rewritten") => {
                assert_eq!(fetch.data.parent_span_id, SpanId::INVALID);
                rewritten += 1;
            }
            Some(other) => panic!("{other}"),
        }
    }
    assert!(rewritten > 0);
    let horizon: Vec<_> = consumer.fetched().filter(|fetched| fetched.header.delete_horizon).collect();
    assert!(!horizon.is_empty() && horizon.iter().all(|fetched| fetched.header.base_offset == 5), "the tombstone's batch");
}

#[test]
fn a_topic_made_anew_is_another_topic() {
    let told = told("coord-recreated");
    let topics: BTreeSet<_> = told.sent().map(|sent| sent.topic.id.unwrap()).collect();
    assert_eq!(topics.len(), 2);
    assert!(told.fetched().all(|fetched| !fetched.redelivered), "equal offsets of another topic");
    let sends: BTreeSet<_> = told.spans(Send, "made-anew").into_iter().map(ids).collect();
    assert_eq!(sends.len(), 2, "no id twice, though all coordinates are equal");
    let why: Vec<_> = told.spans(Send, "made-anew").iter().map(|span| attribute(span, "kafka_tracer.coordinates")).collect();
    assert_eq!(why, [None, Some("taken".to_owned())]);
    for (send, fetch) in told.spans(Send, "made-anew").into_iter().zip(told.spans(Fetch, "made-anew")) {
        assert_eq!(parent(fetch), ids(send), "each is the child of its own topic's");
    }
    let commits: Vec<_> = told.commits().map(|commit| (commit.offset, commit.moves)).collect();
    assert_eq!(commits, [(3, true), (3, true)], "the group began again");
}

#[test]
fn the_same_batch_in_two_clusters_is_two_batches() {
    let told = told("coord-mirrored");
    let clusters: BTreeSet<_> = told.sent().map(|sent| sent.operation.cluster_id.clone().unwrap()).collect();
    assert_eq!(clusters.len(), 2);
    let headers: BTreeSet<_> = told.sent().map(|sent| (sent.base_offset, sent.header.base_timestamp_ms, sent.record_count)).collect();
    assert_eq!(headers.len(), 1, "equal in all but the cluster");
    assert!(told.sent().all(|sent| !sent.retry) && told.fetched().all(|fetched| !fetched.redelivered));
    assert!(told.commits().all(|commit| commit.moves) && told.commits().count() == 2);
    for (send, fetch) in told.spans(Send, "mirrored").into_iter().zip(told.spans(Fetch, "mirrored")) {
        assert_eq!(parent(fetch), ids(send));
    }
    told.parents_are_there();
}

#[test]
fn without_the_cluster_there_are_no_coordinates_and_no_parent_is_claimed() {
    const METADATA: i16 = 3;
    let mut late = capture("coord-log-append-time");
    let all = told_of(&late, Scope::Batch);
    // The consumer's host, whose tracer was started after the last Metadata: the topic's id stays without a name, too.
    let last = all.exchanges().filter(|e| e.operation.api_key == METADATA).map(|e| e.operation.response.unwrap().1).max().unwrap();
    late.segments.retain(|segment| segment.time_ns > last.unix_ns());
    let told = told_of(&late, Scope::Batch);
    let fetches: Vec<_> = told.spans.iter().filter(|span| span.summary.operation == Fetch).collect();
    assert!(!fetches.is_empty());
    for fetch in fetches {
        assert_eq!(fetch.data.parent_span_id, SpanId::INVALID);
        let why = attribute(fetch, "kafka_tracer.coordinates");
        assert!(matches!(why.as_deref(), Some("unknown_cluster" | "unknown_topic")), "{why:?}");
    }
}

#[test]
fn a_producer_span_is_one_whose_ids_can_be_computed() {
    for name in ["coord-retry-duplicate", "coord-recreated", "coord-compacted"] {
        for span in told(name).spans.iter().filter(|span| span.summary.operation == Send) {
            let random = attribute(span, "kafka_tracer.coordinates").is_some();
            assert!(!(random && span.data.span_kind == SpanKind::Producer), "{name}: {:?}", span.summary);
        }
    }
}

/// Where a batch lies, as both ends would call it.
type Place = (Option<String>, Option<String>, i32, Option<(i64, i64)>);

fn place(span: &FinishedSpan) -> Place {
    let topic = span.summary.topic.name.as_deref().map(str::to_owned);
    (attribute(span, "messaging.kafka.cluster.id"), topic, span.summary.partition, span.summary.offsets)
}

/// A capture of which the broker's compression changed the base timestamp: the known limit that `docs/signals.md` names.
const CHANGED_BY_THE_BROKER: &str = "coord-recompressed-kafkajs";

/// Each capture is cut in two by connection, as hosts of producers and of consumers would see it: for every batch that both
/// see, they come to the same ids, or one of them says why it has none; and equal ids are the same batch.
#[test]
fn the_two_ends_of_every_recorded_capture_agree_or_say_why_not() {
    let (mut agreed, mut absent) = (0, 0);
    for name in corpus_names().unwrap() {
        let whole = capture(&name);
        let producers: BTreeSet<_> =
            told_of(&whole, Scope::Batch).sent().map(|sent| (sent.operation.connection.client, sent.operation.connection.broker)).collect();
        let part = |of_producer: bool| {
            let mut part = whole.clone();
            part.segments.retain(|segment| {
                let ways = [(segment.source, segment.destination), (segment.destination, segment.source)];
                ways.iter().any(|way| producers.contains(way)) == of_producer
            });
            told_of(&part, Scope::Batch)
        };
        let (producer, consumer) = (part(true), part(false));
        let mut computed: BTreeMap<(String, String), Place> = BTreeMap::new();
        let mut sent: BTreeMap<Place, bool> = BTreeMap::new();
        for span in producer.spans.iter().filter(|span| span.summary.operation == Send && span.summary.offsets.is_some()) {
            let has_coordinates = attribute(span, "kafka_tracer.coordinates").is_none();
            *sent.entry(place(span)).or_default() |= has_coordinates;
            if has_coordinates {
                // Only spans of one attempt have the computed ids; no other place may have them.
                let before = computed.insert(ids(span), place(span));
                assert!(before.is_none_or(|before| before == place(span)), "{name}: {:?}", place(span));
            }
        }
        for span in consumer.spans.iter().filter(|span| span.summary.operation == Fetch && span.summary.offsets.is_some()) {
            let claimed = match (span.summary.joined, attribute(span, "kafka_tracer.coordinates")) {
                (Joined::Coordinates, None) if span.data.parent_span_id != SpanId::INVALID => parent(span),
                (Joined::Coordinates, None) => {
                    // Too old to be a child: a root with a link.
                    let link = &span.data.links.iter().next().unwrap().span_context;
                    (link.trace_id().to_string(), link.span_id().to_string())
                }
                (Joined::Coordinates | Joined::No, Some(_)) => {
                    absent += u32::from(sent.contains_key(&place(span)));
                    continue;
                }
                other => panic!("{name}: {other:?} without a send or a context to join with"),
            };
            match computed.get(&claimed) {
                Some(found) => {
                    assert_eq!(*found, place(span), "{name}: the same ids for another batch");
                    agreed += 1;
                }
                // No such send on the other host, or it says that it has no coordinates.
                None if sent.get(&place(span)) != Some(&true) => absent += u32::from(sent.contains_key(&place(span))),
                None => assert_eq!(name, CHANGED_BY_THE_BROKER, "{:?}: both have coordinates, and other ids", place(span)),
            }
        }
    }
    assert!(agreed > 50 && absent > 0, "{agreed} agreed, {absent} declared absent");
}
