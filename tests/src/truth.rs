//! The truth of a recorded capture, and whether a record listing agrees with it.
//!
//! The truth files hold what the client application itself reported: what it sent and what it was handed. Both directions
//! are exact: every record of the truth has one line of its own with the right fields, and every line has its record (a
//! record handed to the application twice has two). The order of the lines does not matter.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Fields that every line has.
const FIELDS: [&str; 12] = [
    "operation",
    "client_id",
    "topic",
    "topic_id",
    "partition",
    "offset",
    "timestamp_ms",
    "key",
    "value_bytes",
    "context",
    "error",
    "time",
];

/// How a replay ended and what it printed.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub output: String,
    /// What was said on standard error.
    pub message: String,
}

/// What is wrong with a replay of a capture that was recorded between the two times; empty when it agrees with the truth.
///
/// # Errors
/// When the truth or the listing cannot be read.
pub fn differences(truth: &Value, replayed: &Replayed, times_ns: (u64, u64)) -> Result<Vec<String>> {
    let no_kafka = truth["pcap_observed"]["requests"] == 0;
    if replayed.status != 0 && !(no_kafka && (1..=100).contains(&replayed.status)) {
        return Ok(vec![format!("exit status {}: {}", replayed.status, replayed.message)]);
    }
    let lines = lines(&replayed.output)?;
    let mut bad = Vec::new();
    for line in &lines {
        bad.extend(shape(line, times_ns).into_iter().map(|what| format!("line {}: {what}", name_of(line))));
        bad.extend(topic_id(truth, line));
    }
    if truth["opaque"] == true {
        if !lines.is_empty() {
            bad.push(format!("{} lines out of bytes that nobody can read", lines.len()));
        }
        return Ok(bad);
    }
    compare_sent(truth, &lines, &mut bad)?;
    compare_fetched(truth, &lines, &mut bad);
    Ok(bad)
}

/// The lines of a listing.
///
/// # Errors
/// When one is not JSON, or its context is not whole.
pub fn lines(output: &str) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    for text in output.lines().filter(|line| !line.trim().is_empty()) {
        let line: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
        let context = &line["context"];
        if context.is_object() && !(context["trace_id"].is_string() && context["span_id"].is_string()) {
            bail!("a context without ids: {text}");
        }
        lines.push(line);
    }
    Ok(lines)
}

/// A line's operation, topic, partition and offset, to name it by.
pub fn name_of(line: &Value) -> String {
    format!("{} {}-{}@{}", line["operation"], line["topic"], line["partition"], line["offset"])
}

/// What is wrong with a line on its own.
fn shape(line: &Value, (first_ns, last_ns): (u64, u64)) -> Vec<String> {
    let mut bad = Vec::new();
    let is_fetch = line["operation"] == "fetch";
    let more: &[&str] = if is_fetch { &["group", "skipped"] } else { &[] };
    for field in FIELDS.iter().chain(more) {
        if line.get(field).is_none() {
            bad.push(format!("no field {field}"));
        }
    }
    if !is_fetch && line["operation"] != "send" {
        bad.push(format!("operation {}", line["operation"]));
    }
    if !line["error"].is_null() && (is_fetch || !line["offset"].is_null()) {
        bad.push(format!("error {} and offset {} do not go together", line["error"], line["offset"]));
    }
    if line["operation"] == "send" && !(line["group"].is_null() && line["skipped"].is_null()) {
        bad.push("group or skipped on a send".to_owned());
    }
    match line["time"].as_str().and_then(unix_ns) {
        None => bad.push(format!("time {}", line["time"])),
        Some(ns) if !(i128::from(first_ns)..=i128::from(last_ns)).contains(&ns) => {
            bad.push(format!("time {} lies outside the capture", line["time"]));
        }
        Some(_) => {}
    }
    bad
}

/// Nanoseconds since the epoch of an RFC 3339 time with exactly nine digits of fraction.
pub fn unix_ns(text: &str) -> Option<i128> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let separators = [(4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":"), (19, ".")];
    if !separators.iter().all(|(at, separator)| text.get(*at..*at + 1) == Some(separator)) {
        return None;
    }
    let offset_minutes = match text.get(29..)? {
        "Z" => 0,
        zone if zone.len() == 6 && zone.get(3..4) == Some(":") => {
            let minutes = number(30, 32)? * 60 + number(33, 35)?;
            match zone.get(..1)? {
                "+" => minutes,
                "-" => -minutes,
                _ => return None,
            }
        }
        _ => return None,
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !((1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60) {
        return None;
    }
    // Days since 1970-01-01, counted from 1 March so that the leap day comes last.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute - offset_minutes) * 60 + second;
    Some(i128::from(seconds) * 1_000_000_000 + i128::from(number(20, 29)?))
}

/// Whether the topic id is the right one, and there where the wire has nothing else.
fn topic_id(truth: &Value, line: &Value) -> Vec<String> {
    let mut bad = Vec::new();
    let topics = truth["topics"].as_object();
    let topic = line["topic"].as_str().and_then(|name| topics?.get(name)).unwrap_or(&Value::Null);
    let (known, given) = (topic["topic_id"].as_str().map(topic_id_bytes), line["topic_id"].as_str());
    if let (Some(known), Some(given)) = (known, given)
        && known != topic_id_bytes(given)
    {
        bad.push(format!("topic id {given} of {}", line["topic"]));
    }
    let api = match line["operation"].as_str() {
        Some("send") => "Produce",
        Some("fetch") => "Fetch",
        _ => return bad,
    };
    let versions = truth["pcap_observed"]["api_versions"][api].as_object();
    let by_id = versions.is_some_and(|versions| versions.keys().all(|version| version.parse().is_ok_and(|v: u16| v >= 13)));
    if by_id && line["topic_id"].is_null() {
        bad.push(format!("{}: no topic id, and the wire has nothing else", name_of(line)));
    }
    bad
}

/// The bytes of a topic id in either base64 alphabet, with or without padding; `None` when it is no base64.
fn topic_id_bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

/// What a field must be.
#[derive(Clone, Debug)]
enum Want {
    /// The truth does not say.
    Any,
    /// One of these.
    OneOf(Vec<Value>),
}

impl Want {
    fn is(value: impl Into<Value>) -> Self {
        Self::OneOf(vec![value.into()])
    }
}

/// A record that must have a line.
struct Expected {
    /// To name it by.
    name: String,
    /// What tells its lines from others'.
    identity: Vec<Value>,
    /// What the line must say.
    fields: BTreeMap<&'static str, Want>,
}

/// Trace id, span id, sampled and propagator as carried by the headers. Names match without case, the last one wins.
fn context_of(headers: &Value) -> Value {
    let mut last: BTreeMap<String, &str> = BTreeMap::new();
    for header in headers.as_array().into_iter().flatten() {
        if let Some(name) = header[0].as_str() {
            match header[1].as_str() {
                Some(value) => last.insert(name.to_lowercase(), value),
                None => last.remove(&name.to_lowercase()),
            };
        }
    }
    let header = |name: &str| last.get(name).copied().filter(|value| !value.is_empty());
    let context = |trace: &str, span: &str, sampled: bool, format: &str| {
        Value::from(vec![Value::from(format!("{trace:0>32}")), span.into(), sampled.into(), format.into()])
    };
    if let Some((trace, span, flags)) = header("traceparent").and_then(traceparent) {
        return context(trace, span, flags & 1 == 1, "tracecontext");
    }
    if let Some(b3) = header("b3") {
        let parts: Vec<&str> = b3.split('-').collect();
        if let [trace, span, rest @ ..] = &parts[..]
            && are_ids(trace, span)
        {
            return context(trace, span, matches!(rest.first(), Some(&"1" | &"d")), "b3");
        }
    }
    if let (Some(trace), Some(span)) = (header("x-b3-traceid"), header("x-b3-spanid"))
        && are_ids(trace, span)
    {
        let sampled = matches!(header("x-b3-sampled"), Some("1" | "true")) || header("x-b3-flags") == Some("1");
        return context(trace, span, sampled, "b3multi");
    }
    if let Some(uber) = header("uber-trace-id") {
        let uber = uber.replace("%3A", ":");
        if let [trace, span, _, flags] = uber.split(':').collect::<Vec<_>>()[..] {
            let (trace, span) = (format!("{trace:0>32}"), format!("{span:0>16}"));
            if matches!(flags.len(), 1 | 2) && is_hex(flags) && are_ids(&trace, &span) {
                let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
                return context(&trace, &span, sampled, "jaeger");
            }
        }
    }
    Value::Null
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn are_ids(trace: &str, span: &str) -> bool {
    let is_id = |text: &str| is_hex(text) && text.bytes().any(|byte| byte != b'0');
    matches!(trace.len(), 16 | 32) && span.len() == 16 && is_id(trace) && is_id(span)
}

/// Trace id, span id and flags of a valid `traceparent`.
fn traceparent(text: &str) -> Option<(&str, &str, u8)> {
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let [version, trace, span, flags, rest @ ..] = &parts[..] else { return None };
    let lengths = [version.len(), trace.len(), span.len(), flags.len()] == [2, 32, 16, 2];
    let hex = is_hex(version) && is_hex(flags) && are_ids(trace, span);
    let version_allows = *version != "ff" && (*version != "00" || rest.is_empty());
    if lengths && hex && version_allows { Some((trace, span, u8::from_str_radix(flags, 16).ok()?)) } else { None }
}

/// A line's context in the shape of [`context_of`].
fn line_context(line: &Value) -> Value {
    let context = &line["context"];
    if context.is_null() {
        return Value::Null;
    }
    let sampled = context["sampled"] == true;
    vec![context["trace_id"].clone(), context["span_id"].clone(), sampled.into(), context["format"].clone()].into()
}

/// The content of a record: what both the sender's and the receiver's line say.
fn content(record: &Value, timestamp: Want) -> BTreeMap<&'static str, Want> {
    let value_bytes = match record["value_len"].as_i64() {
        None => Want::Any,
        Some(length) if length < 0 => Want::is(Value::Null),
        Some(length) => Want::is(length),
    };
    BTreeMap::from([
        ("client_id", Want::is(record["client_id"].clone())),
        ("key", Want::is(record["key"].clone())),
        ("timestamp_ms", timestamp),
        ("context", Want::is(context_of(&record["headers"]))),
        ("value_bytes", value_bytes),
    ])
}

fn compare_sent(truth: &Value, lines: &[Value], bad: &mut Vec<String>) -> Result<()> {
    let acks = &truth["settings"]["acks"];
    let acks_0 = acks == "0" || acks == 0;
    let place = |record: &Value| vec![record["topic"].clone(), record["partition"].clone(), record["offset"].clone()];
    let read_back: BTreeMap<String, i64> = records(truth, "consumed")
        .iter()
        .filter(|_| !acks_0)
        .filter_map(|record| Some((key_of(&place(record)), record["timestamp"].as_i64()?)))
        .collect();
    let (mut accepted, mut unanswered, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for record in records(truth, "produced") {
        if record["never_sent"] == true {
            continue;
        }
        let name = format!("produced #{} {}", record["i"], record["key"]);
        // Where the client does not say, what was read back does.
        let timestamp = record["timestamp"].as_i64().filter(|ms| *ms > 0).or_else(|| read_back.get(&key_of(&place(record))).copied());
        let timestamp = match timestamp {
            _ if truth["no_wire_timestamps"] == true => Want::is(Value::Null),
            Some(ms) if ms > 0 => Want::is(ms),
            _ => Want::Any,
        };
        let mut fields = content(record, timestamp);
        fields.insert("topic", Want::is(record["topic"].clone()));
        let topic = record["topic"].as_str().map_or(&Value::Null, |name| &truth["topics"][name]);
        let partition = match (&record["partition"], topic["partitions"] == 1) {
            (Value::Null, true) => Want::is(0),
            (Value::Null, false) => Want::Any,
            (partition, _) => Want::is(partition.clone()),
        };
        fields.insert("partition", partition);
        if !record["error"].is_null() {
            fields.insert("error", Want::is(error_name(&record["error"])?));
            if let Some(id) = record["topic_id"].as_str() {
                fields.insert("topic_id", Want::is(id));
            }
            refused.push(Expected { name: name + " (refused)", identity: Vec::new(), fields });
        } else if acks_0 || record["unanswered"] == true {
            unanswered.push(Expected { name: name + " (unanswered)", identity: Vec::new(), fields });
        } else {
            accepted.push(Expected { name: format!("{name} {}", key_of(&place(record))), identity: place(record), fields });
        }
    }
    let sent = |is_refused: bool, is_placed: bool| {
        let of_this_kind = move |line: &&Value| {
            line["operation"] == "send" && line["error"].is_null() != is_refused && (is_refused || line["offset"].is_null() != is_placed)
        };
        lines.iter().filter(of_this_kind).collect::<Vec<_>>()
    };
    let extra = "never produced, or listed twice";
    give_lines(&accepted, &sent(false, true), place, bad, extra);
    give_lines(&unanswered, &sent(false, false), |_| Vec::new(), bad, extra);
    give_lines(&refused, &sent(true, false), |_| Vec::new(), bad, "nothing was refused, or listed twice");
    Ok(())
}

/// What clients call a refusal, as the broker's error.
fn error_name(error: &Value) -> Result<&'static str> {
    Ok(match (error.as_i64(), error.as_str()) {
        (Some(2), _) => "CORRUPT_MESSAGE",
        (Some(3), _) => "UNKNOWN_TOPIC_OR_PARTITION",
        (Some(6), _) => "NOT_LEADER_OR_FOLLOWER",
        (Some(45), _) => "OUT_OF_ORDER_SEQUENCE_NUMBER",
        (Some(21), _) => "INVALID_REQUIRED_ACKS",
        (Some(100), _) => "UNKNOWN_TOPIC_ID",
        (_, Some("RecordTooLargeException" | "MSG_SIZE_TOO_LARGE")) => "MESSAGE_TOO_LARGE",
        (_, Some("InvalidRecordException" | "INVALID_RECORD")) => "INVALID_RECORD",
        _ => bail!("the truth has an error without a name: {error}"),
    })
}

fn compare_fetched(truth: &Value, lines: &[Value], bad: &mut Vec<String>) {
    let late = truth["group_seen_late"] == true;
    let place = |record: &Value| vec![record["topic"].clone(), record["partition"].clone(), record["offset"].clone()];
    // Two groups may share a client id: the group is part of what tells lines apart, unless the capture shows it late.
    let identity = |record: &Value| {
        let group = if late { Value::Null } else { record["group"].clone() };
        [vec![group, record["client_id"].clone()], place(record)].concat()
    };
    let expect = |record: &Value, skipped: Value, timestamp: Want| {
        let mut fields = content(record, timestamp);
        fields.remove("client_id");
        let group = record["group"].clone();
        fields.insert("group", if late { Want::OneOf(vec![Value::Null, group]) } else { Want::is(group) });
        fields.insert("skipped", Want::is(skipped));
        let name = format!("fetched {}", key_of(&[vec![record["group"].clone(), record["client_id"].clone()], place(record)].concat()));
        Expected { name, identity: identity(record), fields }
    };
    let timestamp_of = |record: &Value| match record["timestamp"].as_i64() {
        None => Want::Any,
        Some(ms) if ms > 0 => Want::is(ms),
        Some(_) => Want::is(Value::Null),
    };
    let fetched = |is_skipped: bool| {
        let of_this_kind = move |line: &&Value| line["operation"] == "fetch" && line["skipped"].is_null() != is_skipped;
        lines.iter().filter(of_this_kind).collect::<Vec<_>>()
    };

    let consumed: Vec<_> = records(truth, "consumed").iter().map(|record| expect(record, Value::Null, timestamp_of(record))).collect();
    give_lines(&consumed, &fetched(false), identity, bad, "the application never got it (or not that often), and it is not marked skipped");

    let sent: BTreeMap<String, &Value> = records(truth, "produced")
        .iter()
        .filter(|record| !record["offset"].is_null())
        .map(|record| (key_of(&place(record)), record))
        .collect();
    let mut skipped = Vec::new();
    for record in records(truth, "skipped") {
        let as_sent = sent.get(&key_of(&place(record)));
        let mut whole = as_sent.map_or_else(|| Value::Object(serde_json::Map::new()), |sent| (*sent).clone());
        if let (Some(whole), Some(record)) = (whole.as_object_mut(), record.as_object()) {
            whole.extend(record.clone());
        }
        let mut expected = expect(&whole, record["why"].clone(), timestamp_of(&whole));
        expected.name += " (skipped)";
        if as_sent.is_none() {
            for field in ["value_bytes", "context", "timestamp_ms"] {
                expected.fields.insert(field, Want::Any);
            }
        }
        skipped.push(expected);
    }
    give_lines(&skipped, &fetched(true), identity, bad, "is marked skipped, and nothing says so");
}

fn records<'a>(truth: &'a Value, of: &str) -> &'a [Value] {
    truth[of].as_array().map_or(&[], Vec::as_slice)
}

fn key_of(identity: &[Value]) -> String {
    Value::from(identity.to_vec()).to_string()
}

/// Gives each expected record a line of its own among those with the same identity; reports what differs, lacks, is left.
fn give_lines(expected: &[Expected], lines: &[&Value], identity: impl Fn(&Value) -> Vec<Value>, bad: &mut Vec<String>, extra: &str) {
    let mut pool: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for line in lines {
        pool.entry(key_of(&identity(line))).or_default().push(line);
    }
    for record in expected {
        let have = pool.entry(key_of(&record.identity)).or_default();
        let all = have.iter().map(|line| line_differences(line, &record.fields)).enumerate();
        let Some((best, differences)) = all.min_by_key(|(_, differences)| differences.len()) else {
            bad.push(format!("{}: missing", record.name));
            continue;
        };
        have.remove(best);
        if !differences.is_empty() {
            bad.push(format!("{}: {}", record.name, differences.join("; ")));
        }
    }
    for line in pool.into_values().flatten() {
        bad.push(format!("{} key {}: {extra}", name_of(line), line["key"]));
    }
}

fn line_differences(line: &Value, fields: &BTreeMap<&'static str, Want>) -> Vec<String> {
    let mut out = Vec::new();
    for (field, want) in fields {
        let got = if *field == "context" { line_context(line) } else { line[*field].clone() };
        if let Want::OneOf(values) = want
            && !values.contains(&got)
        {
            out.push(format!("{field} {got}, expected {values:?}"));
        }
    }
    out
}

/// How many different records the truth has as handed to an application, and how often again.
pub fn consumed_again(truth: &Value) -> (usize, usize) {
    let all = records(truth, "consumed");
    let different: HashSet<String> =
        all.iter().map(|record| key_of(&["group", "topic", "partition", "offset"].map(|field| record[field].clone()))).collect();
    (different.len(), all.len() - different.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TIMES: (u64, u64) = (1_700_000_000_000_000_000, 1_700_000_001_000_000_000);

    fn truth() -> Value {
        let headers = json!([["traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]]);
        let sent = |i: i64, offset: Value, error: Value| {
            json!({"i": i, "client_id": "p", "topic": "t", "partition": 0, "offset": offset, "key": format!("k{i}"), "value_len": 9,
                   "timestamp": 1000 + i, "headers": headers, "error": error})
        };
        let got = |i: i64, group: &str| {
            json!({"group": group, "client_id": "c", "topic": "t", "partition": 0, "offset": i, "key": format!("k{i}"), "value_len": 9,
                   "timestamp": 1000 + i, "headers": headers})
        };
        json!({
            "topics": {"t": {"topic_id": "/7+bT4A2S46aSNBN7euJbA", "partitions": 1}},
            "produced": [sent(0, json!(0), Value::Null), sent(1, json!(1), Value::Null), sent(2, Value::Null, json!("INVALID_RECORD")),
                         {"i": 3, "never_sent": true, "topic": "t", "key": "k3"}],
            "consumed": [got(0, "g"), got(0, "g"), got(0, "h")],
            "skipped": [{"group": "g", "client_id": "c", "topic": "t", "partition": 0, "offset": 1, "why": "aborted"}],
            "pcap_observed": {"requests": 9, "api_versions": {"Produce": {"13": 1}, "Fetch": {"12": 1, "13": 1}}},
            "settings": {"acks": "all"},
        })
    }

    /// The listing that the truth asks for.
    fn listing() -> Vec<Value> {
        let line = |operation: &str, i: i64| {
            json!({"operation": operation, "client_id": if operation == "send" { "p" } else { "c" }, "topic": "t",
                   "topic_id": "_7-bT4A2S46aSNBN7euJbA", "partition": 0, "offset": i, "timestamp_ms": 1000 + i, "key": format!("k{i}"), "value_bytes": 9,
                   "context": {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "sampled": true, "format": "tracecontext"},
                   "error": null, "time": "2023-11-14T22:13:20.500000000Z"})
        };
        let fetch = |i: i64, group: &str, skipped: Value| {
            let mut line = line("fetch", i);
            line["group"] = group.into();
            line["skipped"] = skipped;
            line
        };
        let mut refused = line("send", 2);
        refused["offset"] = Value::Null;
        refused["error"] = "INVALID_RECORD".into();
        let null = Value::Null;
        vec![
            line("send", 0),
            line("send", 1),
            refused,
            fetch(0, "g", null.clone()),
            fetch(0, "g", null.clone()),
            fetch(0, "h", null),
            fetch(1, "g", json!("aborted")),
        ]
    }

    fn judge(truth: &Value, lines: &[Value], status: i32) -> Vec<String> {
        let output = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        differences(truth, &Replayed { status, output, message: String::new() }, TIMES).unwrap()
    }

    #[test]
    fn the_listing_that_the_truth_asks_for_agrees_in_any_order() {
        let mut lines = listing();
        assert_eq!(judge(&truth(), &lines, 0), Vec::<String>::new());
        lines.reverse();
        assert_eq!(judge(&truth(), &lines, 0), Vec::<String>::new());
        assert_eq!(consumed_again(&truth()), (2, 1));
    }

    #[test]
    fn a_line_too_few_or_too_many_is_found() {
        for i in 0..listing().len() {
            let mut lines = listing();
            lines.remove(i);
            assert_eq!(judge(&truth(), &lines, 0).len(), 1, "without line {i}");
            let mut lines = listing();
            lines.push(lines[i].clone());
            assert_eq!(judge(&truth(), &lines, 0).len(), 1, "line {i} twice");
        }
    }

    #[test]
    fn every_wrong_field_of_every_line_is_found() {
        let wrong = [
            ("operation", json!("commit")),
            ("client_id", json!("x")),
            ("client_id", Value::Null),
            ("topic", json!("x")),
            ("topic", Value::Null),
            ("topic_id", json!("_8-bT4A2S46aSNBN7euJbA")),
            ("partition", json!(1)),
            ("offset", json!(77)),
            ("timestamp_ms", json!(7)),
            ("timestamp_ms", Value::Null),
            ("key", json!("x")),
            ("key", Value::Null),
            ("value_bytes", json!(8)),
            ("value_bytes", Value::Null),
            ("context", Value::Null),
            (
                "context",
                json!({"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "sampled": false, "format": "tracecontext"}),
            ),
            (
                "context",
                json!({"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "sampled": true, "format": "b3"}),
            ),
            (
                "context",
                json!({"trace_id": "1af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "sampled": true, "format": "tracecontext"}),
            ),
            ("error", json!("CORRUPT_MESSAGE")),
            ("time", json!("2023-11-14T22:13:19.999999999Z")),
            ("time", json!("2023-11-14T22:13:21.000000001Z")),
            ("time", json!("2023-11-14T22:13:20.5Z")),
            ("time", json!(1)),
        ];
        let wrong_fetches = [("group", json!("x")), ("group", Value::Null), ("skipped", json!("below_fetch_offset"))];
        for i in 0..listing().len() {
            let is_fetch = listing()[i]["operation"] == "fetch";
            for (field, value) in wrong.iter().chain(wrong_fetches.iter().filter(|_| is_fetch)) {
                let mut lines = listing();
                lines[i][*field] = value.clone();
                assert!(!judge(&truth(), &lines, 0).is_empty(), "{field} {value} in line {i}");
            }
            let fields: Vec<String> = listing()[i].as_object().unwrap().keys().cloned().collect();
            for field in fields {
                let mut lines = listing();
                lines[i].as_object_mut().unwrap().remove(&field);
                assert!(!judge(&truth(), &lines, 0).is_empty(), "without {field} in line {i}");
            }
            if !is_fetch {
                for field in ["group", "skipped"] {
                    let mut lines = listing();
                    lines[i][field] = "x".into();
                    assert!(!judge(&truth(), &lines, 0).is_empty(), "{field} in line {i}");
                }
            }
        }
    }

    #[test]
    fn a_produce_by_topic_id_must_have_one() {
        let mut lines = listing();
        lines[0]["topic_id"] = Value::Null;
        assert_eq!(judge(&truth(), &lines, 0).len(), 1);
        // Fetch of this capture is by name too.
        let mut lines = listing();
        lines[3]["topic_id"] = Value::Null;
        assert_eq!(judge(&truth(), &lines, 0), Vec::<String>::new());
    }

    #[test]
    fn a_failed_replay_is_only_right_where_there_is_no_kafka() {
        for status in [1, 2, 101, 134, -1] {
            assert_eq!(judge(&truth(), &listing(), status).len(), 1, "{status}");
        }
        let opaque = json!({"pcap_observed": {"requests": 0}, "opaque": true});
        assert!(judge(&opaque, &[], 2).is_empty() && judge(&opaque, &[], 0).is_empty());
        assert_eq!(judge(&opaque, &[], 101).len(), 1);
        assert_eq!(judge(&opaque, &listing()[..2], 0).len(), 1);
    }

    #[test]
    fn unanswered_sends_have_no_offset() {
        let mut truth = truth();
        truth["settings"]["acks"] = "0".into();
        let mut lines = listing();
        for line in &mut lines[..2] {
            line["offset"] = Value::Null;
        }
        assert_eq!(judge(&truth, &lines, 0), Vec::<String>::new());
        assert!(!judge(&truth, &listing(), 0).is_empty());
    }

    #[test]
    fn what_the_truth_leaves_open_is_left_open() {
        let mut late = truth();
        late["group_seen_late"] = true.into();
        let mut lines = listing();
        lines[3]["group"] = Value::Null;
        assert!(judge(&late, &lines, 0).is_empty());
        lines[3]["group"] = "x".into();
        assert_eq!(judge(&late, &lines, 0).len(), 1);

        let mut untimed = truth();
        untimed["no_wire_timestamps"] = true.into();
        let mut lines = listing();
        for line in &mut lines[..3] {
            line["timestamp_ms"] = Value::Null;
        }
        assert!(judge(&untimed, &lines, 0).is_empty());
        assert_eq!(judge(&untimed, &listing(), 0).len(), 3);
    }

    #[test]
    fn contexts_are_read_from_headers_as_the_propagators_say() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let short = "00000000000000008448eb211c80319c";
        let table = [
            (json!([["traceparent", format!("00-{trace}-{span}-01")]]), json!([trace, span, true, "tracecontext"])),
            (
                json!([["TraceParent", "x"], ["traceparent", format!("cc-{trace}-{span}-00-more")]]),
                json!([trace, span, false, "tracecontext"]),
            ),
            (json!([["traceparent", format!("00-{trace}-{span}-01")], ["traceparent", null]]), Value::Null),
            (json!([["traceparent", format!("00-{trace}-{span}-01-more")]]), Value::Null),
            (json!([["traceparent", format!("ff-{trace}-{span}-01")]]), Value::Null),
            (json!([["traceparent", format!("00-{trace}-0000000000000000-01")]]), Value::Null),
            (json!([["b3", format!("8448eb211c80319c-{span}-d")]]), json!([short, span, true, "b3"])),
            (json!([["b3", "0"]]), Value::Null),
            (json!([["X-B3-TraceId", trace], ["X-B3-SpanId", span], ["X-B3-Flags", "1"]]), json!([trace, span, true, "b3multi"])),
            (json!([["uber-trace-id", "8448eb211c80319c%3A7169203331%3A0%3A3"]]), json!([short, "0000007169203331", true, "jaeger"])),
            (json!([["uber-trace-id", "0:1:0:1"]]), Value::Null),
            (Value::Null, Value::Null),
        ];
        for (headers, expected) in table {
            assert_eq!(context_of(&headers), expected, "{headers}");
        }
    }

    #[test]
    fn times_are_read_to_the_nanosecond() {
        for (text, expected) in [
            ("1970-01-01T00:00:00.000000001Z", Some(1)),
            ("2000-02-29T12:00:00.000000000+01:30", Some(951_820_200_000_000_000)),
            ("2026-11-24T16:44:49.980726001Z", Some(1_795_538_689_980_726_001)),
            ("2026-11-24 16:44:49.980726001Z", None),
            ("2026-11-24T16:44:49.98072600Z", None),
            ("2026-11-24T16:44:49.980726001", None),
        ] {
            assert_eq!(unix_ns(text), expected, "{text}");
        }
    }
}
