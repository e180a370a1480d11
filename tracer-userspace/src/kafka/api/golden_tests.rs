//! Every version of every API that is read here, held against what Kafka's own serializers wrote.
//!
//! `tests/data/kafka-messages.txt` was made by filling each message schema of `kafka-clients` 4.4.0 (and of 3.9.1 the
//! versions that 4.x dropped) with random values and writing them through that jar's `JsonConverter` and message classes:
//! one line each of API key, version, direction, bytes in hex, and the values as JSON.

#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use super::*;
use crate::kafka::wire::DamageKind;

const LINES: &str = include_str!("../../../tests/data/kafka-messages.txt");

struct Golden {
    api_key: i16,
    api_version: i16,
    is_request: bool,
    /// The frame after the size, header included.
    frame: Vec<u8>,
    body_start: usize,
    values: Value,
}

fn golden() -> impl Iterator<Item = Golden> {
    LINES.lines().map(|line| {
        let mut fields = line.splitn(5, ' ');
        let mut next = || fields.next().unwrap();
        let (api_key, api_version) = (next().parse().unwrap(), next().parse().unwrap());
        let is_request = next() == "request";
        let hex = next();
        let body: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        Golden { values: serde_json::from_str(next()).unwrap(), ..Golden::with_body(api_key, api_version, is_request, &body) }
    })
}

impl Golden {
    fn with_body(api_key: i16, api_version: i16, is_request: bool, body: &[u8]) -> Self {
        let row = versions::lookup(api_key).unwrap();
        let mut frame = Vec::new();
        if is_request {
            frame.extend_from_slice(&api_key.to_be_bytes());
            frame.extend_from_slice(&i16::to_be_bytes(api_version));
            frame.extend_from_slice(&[0, 0, 0, 9, 0, 2, b'i', b'd']);
            frame.extend_from_slice(if row.request_header_version(api_version) == 2 { &[0] } else { &[] });
        } else {
            frame.extend_from_slice(&[0, 0, 0, 9]);
            frame.extend_from_slice(if row.response_header_version(api_version) == 1 { &[0] } else { &[] });
        }
        let body_start = frame.len();
        frame.extend_from_slice(body);
        Self { api_key, api_version, is_request, frame, body_start, values: Value::Null }
    }

    fn name(&self) -> String {
        let direction = if self.is_request { "request" } else { "response" };
        format!("{} v{} {direction}", versions::name(self.api_key), self.api_version)
    }

    /// What the decoder shows of `payload`, as JSON, and the damage.
    fn decode(&self, payload: Payload<'_>) -> (Value, Option<DecodeError>) {
        let shape = shape(versions::lookup(self.api_key).unwrap(), self.api_version);
        if self.is_request {
            let header = RequestHeader {
                api_key: self.api_key,
                api_version: self.api_version,
                correlation_id: 9,
                client_id: Some("id"),
                body_start: self.body_start,
            };
            let decoded = decode_request(&header, payload);
            (decoded.value.show(shape), decoded.damage)
        } else {
            let decoded = decode_response(self.api_key, self.api_version, payload);
            (decoded.value.show(shape), decoded.damage)
        }
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    let letters: Vec<char> = name.chars().collect();
    for (i, &letter) in letters.iter().enumerate() {
        let after_lower = i > 0 && !letters[i - 1].is_uppercase();
        let before_lower = i > 0 && letters[i - 1].is_uppercase() && letters.get(i + 1).is_some_and(|next| next.is_lowercase());
        if letter.is_uppercase() && (after_lower || before_lower) {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// Lengths of base64 text and arrays stand in where only those are kept.
fn agrees(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => objects_agree(ours, theirs),
        (Value::Array(ours), Value::String(base64)) => {
            ours.iter().map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).eq(base64_bytes(base64))
        }
        (Value::Array(ours), Value::Array(theirs)) => ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| agrees(a, b)),
        (Value::Array(ours), Value::Null) => ours.is_empty(),
        (Value::Number(count), Value::Null) => count.as_u64() == Some(0),
        (Value::Number(count), Value::String(base64)) => count.as_u64() == Some(base64_bytes(base64).count() as u64),
        (Value::Number(count), Value::Array(array)) => count.as_u64() == Some(array.len() as u64),
        _ => ours == theirs,
    }
}

fn objects_agree(ours: &Map<String, Value>, theirs: &Map<String, Value>) -> bool {
    let theirs: Map<String, Value> = theirs.iter().map(|(name, value)| (snake_case(name), value.clone())).collect();
    let stands_for = |name: &str, their_name: &str| {
        name == their_name || (name == "topic" && !theirs.contains_key("topic") && (their_name == "name" || their_name == "topic_id"))
    };
    ours.iter().all(|(name, value)| theirs.iter().any(|(their_name, theirs)| stands_for(name, their_name) && agrees(value, theirs)))
        && theirs.keys().all(|their_name| {
            ours.keys().any(|name| stands_for(name, their_name)) || theirs.get(their_name).is_some_and(is_default_of_a_tagged_field)
        })
}

/// A tagged field that has its default value is not shown.
fn is_default_of_a_tagged_field(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => matches!(value.as_i64(), Some(-1 | 0 | i64::MAX)),
        Value::String(value) => value == "AAAAAAAAAAAAAAAAAAAAAA",
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(is_default_of_a_tagged_field),
    }
}

fn base64_bytes(text: &str) -> impl Iterator<Item = u8> {
    let digits: Vec<u32> = text
        .bytes()
        .filter(|&byte| byte != b'=')
        .map(|byte| {
            u32::from(match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                _ => 63,
            })
        })
        .collect();
    (0..digits.len() * 6 / 8).map(move |i| {
        let bit = i * 8;
        let at = |i: usize| digits.get(i).copied().unwrap_or(0);
        let window = at(bit / 6) << 6 | at(bit / 6 + 1);
        u8::try_from(window >> (4 - bit % 6) & 0xff).unwrap()
    })
}

#[test]
fn every_version_reads_as_kafka_wrote_it() {
    let mut count = 0;
    for golden in golden() {
        let (ours, damage) = golden.decode(Payload::whole(&golden.frame));
        assert_eq!(damage, None, "{}", golden.name());
        assert!(agrees(&ours, &golden.values), "{}\nours   {ours}\ntheirs {}", golden.name(), golden.values);
        count += 1;
    }
    assert_eq!(count, 772);
}

type Encode = Box<dyn Fn(&mut bytes::BytesMut, i16) -> bool>;

/// The crate `kafka-protocol` as encoder: what it reads out of Kafka's bytes, written in every version it can.
#[test]
fn what_another_encoder_writes_reads_without_damage() {
    use kafka_protocol::messages::{ApiKey, RequestKind, ResponseKind};
    let mut written = std::collections::HashSet::new();
    let mut possible = std::collections::HashSet::new();
    for golden in golden() {
        let Ok(api_key) = ApiKey::try_from(golden.api_key) else { continue };
        let range = api_key.valid_versions();
        possible.extend((range.min..=range.max).map(|version| (golden.api_key, version, golden.is_request)));
        if !(range.min..=range.max).contains(&golden.api_version) {
            continue;
        }
        let mut body = bytes::Bytes::copy_from_slice(&golden.frame[golden.body_start..]);
        let encode: Encode = if golden.is_request {
            let Ok(theirs) = RequestKind::decode(api_key, &mut body, golden.api_version) else { continue };
            Box::new(move |out, version| theirs.encode(out, version).is_ok())
        } else {
            let Ok(theirs) = ResponseKind::decode(api_key, &mut body, golden.api_version) else { continue };
            Box::new(move |out, version| theirs.encode(out, version).is_ok())
        };
        for api_version in range.min..=range.max {
            let mut out = bytes::BytesMut::new();
            if !encode(&mut out, api_version) {
                continue; // a field is set that this version does not have
            }
            let other = Golden { api_version, ..Golden::with_body(golden.api_key, api_version, golden.is_request, &out) };
            let (ours, damage) = other.decode(Payload::whole(&other.frame));
            assert_eq!(damage, None, "{} out of v{}", other.name(), golden.api_version);
            if api_version == golden.api_version {
                assert!(agrees(&ours, &golden.values), "{}\nours   {ours}\ntheirs {}", golden.name(), golden.values);
            }
            written.insert((golden.api_key, api_version, golden.is_request));
        }
    }
    let mut missing: Vec<_> = possible.difference(&written).collect();
    missing.sort_unstable();
    // It counts these among its versions, but has no code for them.
    let without_code = [(8, 10, true), (9, 10, true), (22, 6, true)];
    assert_eq!(missing, without_code.each_ref());
    // Whatever else of the table it did not write is a version that it does not have: Kafka 4 dropped it, or it is newer than
    // the schemas of 4.1 that it was made of. All of these are held against Kafka's own bytes above.
    for row in versions::all().iter().filter(|row| has_body(row.api_key)) {
        let range = ApiKey::try_from(row.api_key).map(|key| key.valid_versions());
        for version in row.versions.clone() {
            for is_request in [true, false] {
                let it = (row.api_key, version, is_request);
                let has_it = range.as_ref().is_ok_and(|range| (range.min..=range.max).contains(&version));
                assert_eq!(written.contains(&it), has_it && !without_code.contains(&it), "{} v{version}", row.name);
            }
        }
    }
}

#[test]
fn every_version_in_the_table_of_an_api_with_a_body_is_covered() {
    let covered: std::collections::HashSet<_> = golden().map(|it| (it.api_key, it.api_version, it.is_request)).collect();
    for row in versions::all().iter().filter(|row| has_body(row.api_key)) {
        for version in row.versions.clone() {
            for is_request in [true, false] {
                assert!(covered.contains(&(row.api_key, version, is_request)), "{} v{version}", row.name);
            }
        }
    }
}

#[test]
fn a_frame_cut_anywhere_is_truncated_and_never_misread() {
    for golden in golden().step_by(2) {
        for end in golden.body_start..golden.frame.len() {
            let (_, damage) = golden.decode(Payload::new(&golden.frame[..end], &[], golden.frame.len()));
            // Opaque bytes at the very end are stepped over, whether they are there or not.
            let kind = damage.map(|damage| damage.kind());
            assert!(matches!(kind, Some(DamageKind::Truncated) | None), "{} cut at {end}: {damage:?}", golden.name());
        }
    }
}

#[test]
fn a_hole_anywhere_is_a_hole_or_lies_in_bytes_that_nobody_reads() {
    for golden in golden().step_by(2) {
        let (whole, _) = golden.decode(Payload::whole(&golden.frame));
        for start in golden.body_start..golden.frame.len() {
            let hole = start..(start + 3).min(golden.frame.len());
            let mut frame = golden.frame.clone();
            frame[hole.clone()].fill(0xa5);
            let payload = Payload::new(&frame, std::slice::from_ref(&hole), frame.len());
            let (ours, damage) = golden.decode(payload);
            match damage.map(|damage| damage.kind()) {
                Some(DamageKind::Hole) => {}
                None => assert!(without_bytes(&ours) == without_bytes(&whole), "{} hole {hole:?}", golden.name()),
                other => panic!("{} hole {hole:?}: {other:?}", golden.name()),
            }
        }
    }
}

/// Records are handed on with their holes: here only how long they are counts.
fn without_bytes(value: &Value) -> Value {
    match value {
        Value::Array(values) if values.iter().all(|value| value.as_u64().is_some_and(|byte| byte < 256)) => values.len().into(),
        Value::Array(values) => values.iter().map(without_bytes).collect(),
        Value::Object(fields) => Value::Object(fields.iter().map(|(name, value)| (name.clone(), without_bytes(value))).collect()),
        other => other.clone(),
    }
}

#[test]
fn a_frame_that_ends_too_early_or_too_late_is_malformed() {
    for golden in golden() {
        if golden.frame.len() == golden.body_start {
            continue; // no body at all: nothing to cut
        }
        let short = &golden.frame[..golden.frame.len() - 1];
        let (_, damage) = golden.decode(Payload::whole(short));
        assert_eq!(damage.map(|damage| damage.kind()), Some(DamageKind::Malformed), "{} short", golden.name());
        let long = [&golden.frame[..], &[0]].concat();
        let (_, damage) = golden.decode(Payload::whole(&long));
        assert!(matches!(damage, Some(DecodeError::LeftOver { left: 1, .. })), "{} long: {damage:?}", golden.name());
    }
}

#[test]
fn a_version_above_the_newest_is_believed_only_when_it_ends_with_the_frame() {
    for golden in golden() {
        let row = versions::lookup(golden.api_key).unwrap();
        let newer = row.versions.end() + 1;
        if golden.api_version != *row.versions.end() || row.is_flexible(newer) != row.is_flexible(golden.api_version) {
            continue;
        }
        let newer = Golden { api_version: newer, ..golden };
        let (ours, damage) = newer.decode(Payload::whole(&newer.frame));
        assert_eq!(damage, None, "{}", newer.name());
        assert!(agrees(&ours, &newer.values), "{}", newer.name());
        let long = [&newer.frame[..], &[1, 2, 3]].concat();
        let (ours, damage) = newer.decode(Payload::whole(&long));
        assert_eq!(damage.map(|damage| damage.kind()), Some(DamageKind::UnknownVersion), "{}", newer.name());
        assert_eq!(ours, Value::Null, "{}", newer.name());
    }
}
