//! The spans of the recorded captures, held against the semantic conventions 1.44.0 for messaging and Kafka, against the
//! record listing, and against each other. What is allowed beyond the conventions is what `docs/signals.md` lists.

#![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use tests::replay::{corpus, corpus_names, replay_file};

/// Attributes of the conventions that these spans may have: type, whether it is required, operations, and whether it
/// belongs on spans of one message (1), of several (2) or both (3).
const CONVENTIONS: &[(&str, &str, bool, &[&str], u8)] = &[
    ("messaging.system", "stringValue", true, &["send", "fetch", "commit"], 3),
    ("messaging.operation.name", "stringValue", true, &["send", "fetch", "commit"], 3),
    ("messaging.operation.type", "stringValue", true, &["send", "fetch", "commit"], 3),
    ("messaging.destination.name", "stringValue", false, &["send", "fetch", "commit"], 3),
    ("messaging.destination.partition.id", "stringValue", false, &["send", "fetch", "commit"], 3),
    ("messaging.client.id", "stringValue", false, &["send", "fetch", "commit"], 3),
    ("messaging.kafka.cluster.id", "stringValue", false, &["send", "fetch", "commit"], 3),
    ("messaging.consumer.group.name", "stringValue", false, &["fetch", "commit"], 3),
    ("messaging.batch.message_count", "intValue", false, &["send", "fetch"], 2),
    ("messaging.kafka.offset", "intValue", false, &["send", "fetch"], 1),
    ("messaging.kafka.message.tombstone", "boolValue", false, &["send", "fetch"], 1),
    ("server.address", "stringValue", false, &["send", "fetch", "commit"], 3),
    ("server.port", "intValue", false, &["send", "fetch", "commit"], 3),
    ("network.peer.address", "stringValue", false, &["send", "fetch", "commit"], 3),
    ("network.peer.port", "intValue", false, &["send", "fetch", "commit"], 3),
    ("error.type", "stringValue", false, &["send", "fetch", "commit"], 3),
];

const SCHEMA: &str = "https://opentelemetry.io/schemas/1.44.0";
const CLIENT: i64 = 3;
const PRODUCER: i64 = 4;
const CONSUMER: i64 = 5;

/// The page of signals, where it lists how it departs from the conventions.
const DEPARTURES: &str = include_str!("../../../docs/signals.md");

#[derive(Debug)]
struct Span {
    ids: (String, String),
    parent: String,
    name: String,
    kind: i64,
    links: Vec<(String, String)>,
    dropped_links: u64,
    is_error: bool,
    times_ns: (u64, u64),
    attributes: BTreeMap<String, (String, Value)>,
}

impl Span {
    fn text(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).and_then(|(_, value)| value.as_str())
    }

    fn number(&self, key: &str) -> Option<i64> {
        self.text(key).and_then(|digits| digits.parse().ok())
    }

    fn operation(&self) -> &str {
        self.text("messaging.operation.name").unwrap_or_default()
    }

    fn is_batch(&self) -> bool {
        self.attributes.contains_key("messaging.batch.message_count")
    }

    /// Messages that it accounts for.
    fn messages(&self) -> i64 {
        let about_none = self.operation() == "commit" || self.operation() == "fetch" && self.is_error;
        self.number("messaging.batch.message_count").unwrap_or(i64::from(!about_none))
    }
}

fn spans_of(name: &str, scope: &str) -> Vec<Span> {
    let replayed = replay_file(&["--format", "otlp-json", "--scope", scope], &corpus().join(format!("{name}.pcap"))).unwrap();
    let mut spans = Vec::new();
    for line in replayed.output.lines() {
        let request: Value = serde_json::from_str(line).unwrap();
        for resource in request["resourceSpans"].as_array().unwrap() {
            assert_eq!(resource["schemaUrl"], SCHEMA, "{name}");
            assert!(resource["resource"]["attributes"].as_array().unwrap().iter().any(|kv| kv["key"] == "service.name"), "{name}");
            for scope in resource["scopeSpans"].as_array().unwrap() {
                assert_eq!((&scope["scope"]["name"], &scope["schemaUrl"]), (&Value::from("kafka-tracer"), &Value::from(SCHEMA)), "{name}");
                spans.extend(scope["spans"].as_array().unwrap().iter().map(span));
            }
        }
    }
    spans
}

fn span(json: &Value) -> Span {
    let text = |field: &str| json[field].as_str().unwrap().to_owned();
    let ids = |json: &Value| (json["traceId"].as_str().unwrap().to_owned(), json["spanId"].as_str().unwrap().to_owned());
    let mut attributes = BTreeMap::new();
    for kv in json["attributes"].as_array().unwrap() {
        let (kind, value) = kv["value"].as_object().unwrap().iter().next().unwrap();
        let before = attributes.insert(kv["key"].as_str().unwrap().to_owned(), (kind.clone(), value.clone()));
        assert!(before.is_none(), "{} twice", kv["key"]);
    }
    Span {
        ids: ids(json),
        parent: text("parentSpanId"),
        name: text("name"),
        kind: json["kind"].as_i64().unwrap(),
        links: json["links"].as_array().unwrap().iter().map(ids).collect(),
        dropped_links: json["droppedLinksCount"].as_u64().unwrap(),
        is_error: json["status"]["code"] == 2,
        times_ns: (text("startTimeUnixNano").parse().unwrap(), text("endTimeUnixNano").parse().unwrap()),
        attributes,
    }
}

/// What of a span is not as the conventions and the listed departures have it.
fn against_the_conventions(span: &Span) -> Vec<String> {
    let mut bad = Vec::new();
    let operation = span.operation();
    let single = !span.is_batch() && operation != "commit" && !(operation == "fetch" && span.is_error);
    for (key, (kind, value)) in &span.attributes {
        let Some((_, expected, _, operations, on)) = CONVENTIONS.iter().find(|(name, ..)| name == key) else {
            if !key.starts_with("kafka_tracer.") {
                bad.push(format!("{key} is neither the conventions' nor the tracer's"));
            }
            continue;
        };
        if kind != expected || value == "" {
            bad.push(format!("{key} is {kind} {value}"));
        }
        if !operations.contains(&operation) || on & if single { 1 } else { 2 } == 0 {
            bad.push(format!("{key} does not belong on this {operation}"));
        }
    }
    for (key, ..) in CONVENTIONS.iter().filter(|(key, _, required, ..)| *required && !span.attributes.contains_key(*key)) {
        bad.push(format!("{key} is missing"));
    }
    let name = match span.text("messaging.destination.name") {
        Some(topic) => format!("{operation} {topic}"),
        None => operation.to_owned(),
    };
    let kinds: &[i64] = match operation {
        "send" => &[PRODUCER, CLIENT],
        // Departure 3.
        "fetch" => &[CONSUMER],
        _ => &[CLIENT],
    };
    // Departure 2: `receive`.
    let expected_type = HashMap::from([("send", "send"), ("fetch", "receive"), ("commit", "settle")]).get(operation).copied();
    for (holds, what) in [
        (span.text("messaging.system") == Some("kafka"), "system"),
        (span.name == name, "name"),
        (kinds.contains(&span.kind), "kind"),
        (span.text("messaging.operation.type") == expected_type, "type"),
        (span.is_error == span.attributes.contains_key("error.type"), "status and error.type"),
        (span.attributes.contains_key("server.address") == span.attributes.contains_key("server.port"), "server"),
        (span.number("messaging.kafka.offset").is_none_or(|offset| offset >= 0 && !span.is_error), "offset"),
        (span.times_ns.0 <= span.times_ns.1, "times"),
        (span.links.len() <= 128 && (span.dropped_links == 0 || span.links.len() == 128), "links"),
        (span.links.iter().collect::<BTreeSet<_>>().len() == span.links.len(), "one link for each context"),
        // A PRODUCER says that consumers continue from it.
        (span.kind != PRODUCER || span.parent.is_empty() && span.links.is_empty(), "a PRODUCER is the creation context"),
        // Departure 1: a parent, and the link all the same. (A commit's parent and a batch's computed one are no context.)
        (!single || span.parent.is_empty() || span.links.contains(&(span.ids.0.clone(), span.parent.clone())), "parent and link"),
        (span.ids.0.len() == 32 && span.ids.1.len() == 16 && span.parent != span.ids.1, "ids"),
    ] {
        if !holds {
            bad.push(what.to_owned());
        }
    }
    bad
}

#[test]
fn the_spans_of_every_capture_obey_the_conventions_but_for_the_departures_listed() {
    let departures = DEPARTURES.split("## Departures from the conventions\n").nth(1).unwrap();
    assert_eq!(departures.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).count(), 4);
    let mut wrong = BTreeMap::<String, Vec<String>>::new();
    let (mut count, mut operations) = (0, BTreeSet::new());
    for name in corpus_names().unwrap() {
        for scope in ["auto", "batch"] {
            for span in spans_of(&name, scope) {
                count += 1;
                operations.insert((span.operation().to_owned(), span.kind));
                for what in against_the_conventions(&span) {
                    wrong.entry(what).or_default().push(format!("{name}: {}", span.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 2_000, "{count} spans");
    let all = [("send", CLIENT), ("send", PRODUCER), ("fetch", CONSUMER), ("commit", CLIENT)];
    assert_eq!(operations, all.map(|(operation, kind)| (operation.to_owned(), kind)).into());
}

/// What spans account for by: operation, topic, partition, group.
type Account = (String, String, String, String);

#[test]
fn the_messages_of_all_spans_are_the_records_of_the_listing() {
    for name in corpus_names().unwrap() {
        let listing = replay_file(&["--format", "records"], &corpus().join(format!("{name}.pcap"))).unwrap().output;
        let mut expected = BTreeMap::<Account, i64>::new();
        for line in listing.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            if text("topic").starts_with("__") || !line["skipped"].is_null() {
                continue;
            }
            *expected.entry((text("operation"), text("topic"), line["partition"].to_string(), text("group"))).or_default() += 1;
        }
        for scope in ["auto", "batch", "record"] {
            let mut accounted = BTreeMap::<Account, i64>::new();
            let mut ids = BTreeSet::new();
            for span in spans_of(&name, scope) {
                let text = |key: &str| span.text(key).unwrap_or_default().to_owned();
                assert!(ids.insert(span.ids.clone()), "{name} {scope}: {:?} twice", span.ids);
                if span.messages() > 0 {
                    let group = text("messaging.consumer.group.name");
                    let account = (
                        text("messaging.operation.name"),
                        text("messaging.destination.name"),
                        text("messaging.destination.partition.id"),
                        group,
                    );
                    *accounted.entry(account).or_default() += span.messages();
                }
            }
            assert_eq!(accounted, expected, "{name} {scope}");
        }
    }
}

#[test]
fn every_sampled_context_has_its_spans_in_its_trace() {
    let mut found = 0;
    for name in corpus_names().unwrap() {
        let listing = replay_file(&["--format", "records"], &corpus().join(format!("{name}.pcap"))).unwrap().output;
        let spans = spans_of(&name, "auto");
        for line in listing.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let context = &line["context"];
            if context["sampled"] != true || !line["skipped"].is_null() {
                continue;
            }
            let (trace, parent) = (context["trace_id"].as_str().unwrap(), context["span_id"].as_str().unwrap());
            let its: Vec<_> = spans
                .iter()
                .filter(|span| span.operation() == line["operation"] && span.links.contains(&(trace.to_owned(), parent.to_owned())))
                .collect();
            assert!(!its.is_empty(), "{name}: {line}");
            let partition = line["partition"].to_string();
            let is_its_own = |span: &&&Span| {
                span.number("messaging.kafka.offset") == line["offset"].as_i64()
                    && span.text("messaging.destination.partition.id") == Some(&partition)
                    && !span.is_batch()
            };
            let own = its.iter().find(is_its_own).unwrap_or_else(|| panic!("{name}: {line} has no span of its own"));
            if !own.attributes.contains_key("kafka_tracer.redelivered") {
                assert_eq!((own.ids.0.as_str(), own.parent.as_str()), (trace, parent), "{name}: {line}");
                found += 1;
            }
        }
    }
    assert!(found > 1_000, "{found} records in their traces");
}

#[test]
fn the_fetch_of_what_was_sent_in_the_capture_is_the_child_of_its_send() {
    let (mut children, mut roots) = (0, Vec::new());
    for name in corpus_names().unwrap() {
        let spans = spans_of(&name, "batch");
        let sends: BTreeSet<_> = spans.iter().filter(|span| span.operation() == "send").map(|span| &span.ids).collect();
        // Sends by what both ends say of a batch.
        let place = |span: &Span| {
            ["messaging.destination.name", "messaging.destination.partition.id", "kafka_tracer.batch.base_offset"]
                .map(|key| span.text(key).map(str::to_owned))
        };
        let sent: BTreeSet<_> = spans.iter().filter(|span| span.operation() == "send" && !span.is_error).map(place).collect();
        for span in spans.iter().filter(|span| span.operation() == "fetch" && !span.is_error) {
            if sends.contains(&(span.ids.0.clone(), span.parent.clone())) {
                children += 1;
                continue;
            }
            let explained =
                span.attributes.contains_key("kafka_tracer.redelivered") || span.attributes.contains_key("kafka_tracer.coordinates");
            if sent.contains(&place(span)) && !explained {
                roots.push(format!("{name}: {:?}", place(span)));
            }
        }
    }
    assert!(roots.is_empty(), "fetches that lost their send: {roots:#?}");
    assert!(children > 200, "{children}");
}
