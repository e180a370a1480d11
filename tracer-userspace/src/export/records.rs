//! The record listing of `replay --format records`: one JSON object a line for each record on the wire.
//!
//! In: observations. Out: lines. Every field is present, null when unknown.

#![forbid(unsafe_code)]

use std::io::{self, Write};

use serde::Serialize;

use crate::kafka::errors;
use crate::observe::{FetchedBatch, Observation, Outcome, RecordFact, SentBatch, Skipped, Topic};

/// Lines of both operations, in the order of their fields; what `fetch` lines have in addition is in [`OfFetch`].
#[derive(Serialize)]
struct Line<'a> {
    operation: &'static str,
    client_id: Option<&'a str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    fetch: Option<OfFetch<'a>>,
    topic: Option<&'a str>,
    topic_id: Option<String>,
    partition: i32,
    offset: Option<i64>,
    timestamp_ms: Option<i64>,
    key: Option<&'a str>,
    value_bytes: Option<u32>,
    context: Option<Context>,
    error: Option<&'static str>,
    time: String,
}

#[derive(Serialize)]
struct OfFetch<'a> {
    group: Option<&'a str>,
    skipped: Option<&'static str>,
}

#[derive(Serialize)]
struct Context {
    trace_id: String,
    span_id: String,
    sampled: bool,
    format: &'static str,
}

/// Writes the records of an observation, if it holds any.
///
/// # Errors
/// What the writer says.
pub fn write_records(observation: &Observation, out: &mut impl Write) -> io::Result<()> {
    match observation {
        Observation::Sent(batch) => batch.records.iter().try_for_each(|record| write_line(&sent(batch, record), out)),
        Observation::Fetched(batch) => batch.records.iter().try_for_each(|record| write_line(&fetched(batch, record), out)),
        Observation::FetchFailed(_)
        | Observation::Poll(_)
        | Observation::Commit(_)
        | Observation::Group(_)
        | Observation::Transaction(_)
        | Observation::Exchange(_)
        | Observation::Connection(_) => Ok(()),
    }
}

fn write_line(line: &Line<'_>, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn sent<'a>(batch: &'a SentBatch, record: &'a RecordFact) -> Line<'a> {
    let error = match batch.outcome {
        Outcome::Error(code) => Some(errors::name(code)),
        Outcome::Success | Outcome::Unacknowledged | Outcome::ConnectionClosed | Outcome::NoResponse | Outcome::AnswerNotSeen => None,
    };
    Line {
        operation: "send",
        client_id: batch.operation.client_id.as_deref(),
        fetch: None,
        topic: batch.topic.name.as_deref(),
        topic_id: topic_id(&batch.topic),
        partition: batch.partition,
        offset: batch.base_offset.map(|base| base.saturating_add(record.offset_delta)),
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref(),
        value_bytes: record.value_bytes,
        context: context(record),
        error,
        time: batch.operation.request_last.to_string(),
    }
}

fn fetched<'a>(batch: &'a FetchedBatch, record: &'a RecordFact) -> Line<'a> {
    Line {
        operation: "fetch",
        client_id: batch.operation.client_id.as_deref(),
        fetch: Some(OfFetch { group: batch.group.as_deref(), skipped: record.skipped.map(Skipped::name) }),
        topic: batch.topic.name.as_deref(),
        topic_id: topic_id(&batch.topic),
        partition: batch.partition,
        offset: Some(batch.header.base_offset.saturating_add(record.offset_delta)),
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref(),
        value_bytes: record.value_bytes,
        context: context(record),
        error: None,
        time: batch.operation.response.map_or(batch.operation.request_last, |(_, last)| last).to_string(),
    }
}

fn topic_id(topic: &Topic) -> Option<String> {
    topic.id.map(|id| id.to_string())
}

fn context(record: &RecordFact) -> Option<Context> {
    let context = record.context.as_ref()?;
    Some(Context {
        trace_id: hex(&context.trace_id),
        span_id: hex(&context.span_id),
        sampled: context.sampled(),
        format: context.propagator.name(),
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
