use std::sync::Arc;

use opentelemetry::trace::{Link, SpanContext, TraceFlags, TraceId, TraceState};

use super::super::otlp::tests::span_of;
use super::*;
use crate::observe::{
    BatchHeader, Codec, Commit, Connection, Delivered, FetchFailure, FetchedBatch, Operation, Outcome, Poll, PolledPartition, Process,
    RecordsRead, SentBatch, Told, TopicId,
};
use crate::telemetry::{EndToEnd, HealthSnapshot, SentClock, semconv::metric};

const DOCS: &str = include_str!("../../../../docs/reading-the-text.md");
const START: u64 = 1_700_000_000_000_000_000;

fn at(milliseconds: u64) -> Timestamp {
    Timestamp::from_unix_ns(START + milliseconds * 1_000_000)
}

fn process(pid: u32, name: &str) -> ResourceKey {
    ResourceKey::Process(Arc::new(Process { pid, resource: vec![("service.name".into(), ResourceValue::Text(name.into()))] }))
}

fn trace(id: u128) -> SpanContext {
    SpanContext::new(TraceId::from(id), SpanId::from(1), TraceFlags::SAMPLED, false, TraceState::default())
}

/// The story that the documentation shows: a send, its fetch and commit, and a send that fails.
fn story() -> Vec<FinishedSpan> {
    let mut send = span_of(1, "orders");
    send.resource = process(1, "checkout");
    send.data.span_context = trace(0x586b_9a0e_9ce7_89ab_5c72_d5f0_b0ff_4010);
    let summary = &mut send.summary;
    (summary.partition, summary.single_record, summary.messages, summary.offsets) = (1, false, 5, Some((1_000, 1_004)));
    (summary.start, summary.end) = (at(0), at(0).plus(std::time::Duration::from_micros(3_100)));

    let mut fetch = send.clone();
    fetch.resource = process(2, "billing");
    let summary = &mut fetch.summary;
    (summary.operation, summary.group, summary.client_id) =
        (OperationName::Fetch, Some("billing".into()), Some("consumer-billing-1".into()));
    (summary.start, summary.end) = (at(5), at(5).plus(std::time::Duration::from_micros(1_200)));
    (summary.joined, summary.end_to_end) = (Joined::Seen, Some(EndToEnd { seconds: 0.0064, clock: SentClock::Host }));

    let mut commit = fetch.clone();
    commit.data.span_context = trace(0x9c21_d3aa << 96);
    let summary = &mut commit.summary;
    (summary.operation, summary.messages, summary.offsets, summary.joined, summary.end_to_end) =
        (OperationName::Commit, 0, Some((1_005, 1_005)), Joined::No, None);
    (summary.start, summary.end) = (at(20), at(20).plus(std::time::Duration::from_micros(800)));

    let mut failed = send.clone();
    failed.data.span_context = trace(0x11aa_22bb << 96);
    let summary = &mut failed.summary;
    (summary.topic, summary.partition, summary.messages, summary.offsets) = (Topic { name: Some("payments".into()), id: None }, 0, 1, None);
    (summary.error, summary.retry) = (Some("NOT_ENOUGH_REPLICAS"), true);
    (summary.start, summary.end) = (at(30), at(32));
    vec![send, fetch, commit, failed]
}

fn lines(spans: &[FinishedSpan], colour: bool) -> String {
    let mut text = Text::new(Vec::new(), colour, Side::Client);
    for span in spans {
        text.span(span).unwrap();
    }
    String::from_utf8(text.out).unwrap()
}

#[test]
fn the_lines_are_those_of_the_documentation() {
    let lines = lines(&story(), false);
    assert!(DOCS.contains(&format!("```text\n{lines}```")), "\n{lines}");
}

#[test]
fn colour_changes_nothing_but_colour() {
    let (plain, coloured) = (lines(&story(), false), lines(&story(), true));
    assert!(coloured.contains("\x1b[1;31mNOT_ENOUGH_REPLICAS\x1b[0m"), "{coloured}");
    let mut stripped = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        stripped.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    stripped.push_str(rest);
    assert_eq!(stripped, plain);
}

#[test]
fn colour_is_for_terminals_whose_owner_did_not_refuse_it() {
    let with = |variables: &[(&str, &str)], terminal| {
        may_colour(terminal, &|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    };
    assert!(with(&[], true) && with(&[("NO_COLOR", "")], true) && with(&[("TERM", "xterm")], true));
    assert!(!with(&[], false) && !with(&[("NO_COLOR", "1")], true) && !with(&[("TERM", "dumb")], true));
}

#[test]
fn nothing_from_the_wire_commands_the_terminal() {
    let mut span = span_of(1, "x");
    span.summary.topic.name = Some("a\x1b[2Jb\u{202e}c\n".into());
    span.summary.client_id = Some("id\r\x07".into());
    span.resource = process(1, "svc\x1b]0;title\x07");
    let lines = lines(&[span], false);
    assert!(!lines.contains(['\x1b', '\r', '\x07', '\u{202e}']), "{lines:?}");
    assert!(lines.contains("a\u{fffd}[2Jb\u{fffd}c\u{fffd}-0@7"), "{lines}");
    assert_eq!(lines.lines().count(), 3);
}

#[test]
fn what_is_too_wide_keeps_its_end() {
    let mut span = span_of(1, &"t".repeat(200));
    span.resource = process(1, "org.apache.kafka.tools.ProducerPerformance");
    let lines = lines(&[span], false);
    let line = lines.lines().last().unwrap();
    assert!(line.contains(&format!("…{}-0@7 ", "t".repeat(43))), "{line}");
    assert!(line.contains(" …ols.ProducerPerformance "), "{line}");
}

#[test]
fn each_way_of_being_joined_has_its_words() {
    let mut spans = Vec::new();
    for joined in [Joined::Coordinates, Joined::Context, Joined::No] {
        let mut span = story().remove(1);
        span.summary.joined = joined;
        spans.push(span);
    }
    let mut linked = story().remove(1);
    linked.summary.redelivered = true;
    linked.summary.end_to_end = Some(EndToEnd { seconds: -0.5, clock: SentClock::Create });
    linked.data.links.links.push(Link::new(trace(0xabcd_ef01 << 96), vec![], 0));
    spans.push(linked);
    let mut in_trace = story().remove(0);
    in_trace.data.parent_span_id = SpanId::from(5);
    in_trace.summary.topic = Topic { name: None, id: TopicId::new([1; 16]) };
    spans.push(in_trace);
    let lines = lines(&spans, false);
    let notes: Vec<&str> = lines.lines().skip(2).map(|line| line.split("  ").last().unwrap().trim()).collect();
    assert_eq!(
        notes,
        [
            "<- joined with send elsewhere, trace 586b9a0e",
            "<- joined by carried context, trace 586b9a0e",
            "trace 586b9a0e",
            "redelivered, <- joined with send, trace 586b9a0e, linked to abcdef01",
            "<- in the application's trace, trace 586b9a0e",
        ]
    );
    assert!(lines.contains("-500 ms") && lines.contains("AQEBAQEBAQEBAQEBAQEBAQ-1@1000..1004"), "{lines}");
}

#[test]
fn a_new_day_is_announced() {
    let mut spans = story();
    spans[1].summary.start = at(24 * 3_600 * 1_000);
    let lines = lines(&spans[..2], false);
    let days: Vec<&str> = lines.lines().filter(|line| line.contains("times are UTC")).collect();
    assert_eq!(days, ["2023-11-14, times are UTC", "2023-11-15, times are UTC"]);
}

fn operation(side: Side, start: u64) -> Arc<Operation> {
    let connection =
        Connection { id: 1, client: ([10, 0, 0, 1], 50_000).into(), broker: ([10, 0, 0, 9], 9_092).into(), side, process: None };
    Arc::new(Operation {
        connection: Arc::new(connection),
        api_key: 0,
        api_version: 9,
        client_id: None,
        cluster_id: None,
        server: None,
        request_first: at(start),
        request_last: at(start),
        response: Some((at(start + 2), at(start + 3))),
        throttle_ms: 0,
        request_bytes: 1,
        response_bytes: 1,
    })
}

fn header() -> BatchHeader {
    BatchHeader {
        magic: 2,
        base_offset: 0,
        last_offset_delta: 4,
        base_timestamp_ms: None,
        max_timestamp_ms: None,
        record_count: 5,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        size_bytes: 1_500,
        crc: 0,
        codec: Codec::None,
        log_append_time: false,
        transactional: false,
        control: false,
        delete_horizon: false,
    }
}

fn topic(name: &str) -> Topic {
    Topic { name: Some(name.into()), id: None }
}

fn sent(name: &str, side: Side, outcome: Outcome, retry: bool) -> Observation {
    Observation::Sent(SentBatch {
        operation: operation(side, 0),
        topic: topic(name),
        partition: 1,
        header: header(),
        base_offset: Some(1_000),
        log_append_time_ms: None,
        outcome,
        refused_records: vec![],
        current_leader: None,
        records: vec![],
        records_read: RecordsRead::All,
        record_count: 5,
        uncompressed_bytes: None,
        acks: -1,
        transactional_id: None,
        retry,
    })
}

fn fetched(name: &str, group: Option<&str>, redelivered: bool) -> Observation {
    Observation::Fetched(FetchedBatch {
        operation: operation(Side::Client, 1_000),
        topic: topic(name),
        partition: 1,
        header: header(),
        group: group.map(Arc::from),
        fetch_offset: Some(1_000),
        high_watermark: None,
        last_stable_offset: None,
        log_start_offset: None,
        isolation_level: None,
        records: vec![],
        records_read: RecordsRead::All,
        delivered: Delivered { delivered: 5, ..Delivered::default() },
        uncompressed_bytes: None,
        share: false,
        several_groups: false,
        redelivered,
    })
}

fn polled(name: &str, group: &str, position: i64, end: i64) -> Observation {
    let told = Told { high_watermark: Some(end), ..Told::default() };
    Observation::Poll(Poll {
        operation: operation(Side::Client, 2_000),
        group: Some(Arc::from(group)),
        several_groups: false,
        isolation_level: None,
        partitions: vec![PolledPartition { topic: topic(name), partition: 1, position: Some(position), told }],
        left: vec![],
    })
}

fn summary_of(observations: &[Observation], spans: &[FinishedSpan], health: &HealthSnapshot) -> String {
    let mut text = Text::new(Vec::new(), false, Side::Client);
    for observation in observations {
        text.observe(observation);
    }
    for span in spans {
        text.span(span).unwrap();
    }
    let out = String::from_utf8(text.finish(health).unwrap()).unwrap();
    // The lines of the spans come before.
    if spans.is_empty() { out.trim_start().to_owned() } else { out.split_once("\n\n").unwrap().1.to_owned() }
}

#[test]
fn the_summary_tells_by_topic_what_was_sent_and_who_fetched_it() {
    let observations = [
        sent("orders", Side::Client, Outcome::Success, false),
        sent("orders", Side::Client, Outcome::AnswerNotSeen, true),
        sent("orders", Side::Broker, Outcome::Success, false),
        sent("__consumer_offsets", Side::Client, Outcome::Success, false),
        sent("payments", Side::Client, Outcome::Error(19), false),
        fetched("orders", Some("billing"), false),
        fetched("orders", Some("billing"), true),
        fetched("orders", None, false),
        polled("orders", "billing", 1_005, 1_008),
        polled("idle", "billing", 0, 9),
        Observation::FetchFailed(FetchFailure {
            operation: operation(Side::Client, 0),
            topic: topic("orders"),
            partition: 0,
            group: Some("billing".into()),
            outcome: Outcome::Error(6),
            current_leader: None,
        }),
        Observation::Commit(Commit {
            operation: operation(Side::Client, 0),
            group: "billing".into(),
            topic: topic("orders"),
            partition: 1,
            offset: 1_005,
            moves: true,
            outcome: Outcome::Success,
            acknowledged: None,
        }),
    ];
    let mut health = HealthSnapshot::default();
    health.add_by(metric::CAPTURE_LOST, "reason", "ring_full", 12_345);
    health.add_by(metric::SPANS, "result", "made", 7);
    health.add_by(metric::SPANS, "result", "rate", 3);
    health.add(metric::STREAM_GAPS, 0);
    health.add(metric::CAPTURE_BYTES, 99);
    let mut unjoined = story().remove(1);
    (unjoined.summary.joined, unjoined.summary.messages) = (Joined::No, 15);
    unjoined.summary.end_to_end = Some(EndToEnd { seconds: -1.0, clock: SentClock::Create });
    let spans = [story().remove(1), unjoined];
    let summary = summary_of(&observations, &spans, &health);
    assert!(DOCS.contains(&format!("```text\n{summary}```")), "\n{summary}");
}

#[test]
fn with_nothing_seen_the_summary_says_so() {
    let summary = summary_of(&[], &[], &HealthSnapshot::default());
    assert_eq!(
        summary,
        "No messages were sent, fetched or committed.\n\nNothing was lost on the way: no holes, no drops, nothing undecoded.\n"
    );
}

#[test]
fn the_summary_is_bounded() {
    let mut text = Text::new(Vec::new(), false, Side::Client);
    for number in 0..1_500 {
        text.observe(&sent(&format!("topic-{number}"), Side::Client, Outcome::Success, false));
        text.observe(&fetched("topic-1", Some(&format!("group-{number}")), false));
    }
    let out = String::from_utf8(text.finish(&HealthSnapshot::default()).unwrap()).unwrap();
    let line = |start: &str| out.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_default().trim().to_owned();
    assert_eq!(line("fetched by (others)"), "fetched by (others)  7,000 messages, 2.10 MB");
    assert!(out.contains("\n  (others)\n    sent  2,500 messages, 750 kB\n"), "{}", line("(others)"));
}
