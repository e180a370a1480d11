//! What went wrong in other tracers and clients, as small captures: each test is named after the place where it was seen.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod classification;
mod framing;
mod index;
mod outcomes;
mod records;
mod transactions;
mod versions;

use serde_json::Value;
use tests::capture::Capture;
use tests::flow::{Flow, Recorder};
use tests::kafka::{Message, Topic, api_versions, batch, fetch, fetched, messages, metadata, produce, produced};
use tests::replay::{RECORDS, replay_bytes};
use tests::truth::lines;
use uuid::Uuid;

/// Id of the topic `orders`.
const ORDERS: Uuid = Uuid::from_bytes([7; 16]);

/// A request and its answer.
type Pair = (Vec<u8>, Vec<u8>);

/// Learns names, sends three records by name, fetches them by id: six lines.
fn conversation() -> Vec<Pair> {
    let client = Some("client");
    let sent = messages(3);
    vec![
        api_versions(3, 1, client).unwrap(),
        metadata(12, 2, client, &[("orders", ORDERS)]).unwrap(),
        (produce(9, 3, client, -1, Topic::Name("orders"), &sent).unwrap(), produced(9, 3, Topic::Name("orders"), 100, 0).unwrap()),
        (
            fetch(13, 4, client, (0, -1), &[(Topic::Id(ORDERS), 100)]).unwrap(),
            fetched(13, 4, 0, &[(Topic::Id(ORDERS), 0, batch(100, &sent).unwrap())]).unwrap(),
        ),
    ]
}

/// Records a conversation, each side cut at the same places.
fn talk(recorder: &mut Recorder, flow: &mut Flow, pairs: &[Pair], cuts: &[usize]) {
    for (request, answer) in pairs {
        recorder.ask_cut(flow, request, cuts);
        recorder.answer_cut(flow, answer, cuts);
    }
}

fn talked(pairs: &[Pair], cuts: &[usize]) -> Capture {
    let mut recorder = Recorder::default();
    let mut flow = recorder.connect();
    talk(&mut recorder, &mut flow, pairs, cuts);
    recorder.capture()
}

/// The lines of a capture's listing.
fn listing(capture: &Capture) -> Vec<Value> {
    let replayed = replay_bytes(&RECORDS, &capture.to_pcap()).unwrap();
    assert_ne!(replayed.status, 1, "{}", replayed.message);
    lines(&replayed.output).unwrap()
}

/// Lines without their times.
fn untimed(mut lines: Vec<Value>) -> Vec<Value> {
    for line in &mut lines {
        line["time"].take();
    }
    lines
}

/// What `--format summary` counts.
fn summary(capture: &Capture) -> Value {
    let replayed = replay_bytes(&["--format", "summary"], &capture.to_pcap()).unwrap();
    serde_json::from_str(&replayed.output).unwrap()
}

/// A record with these headers.
fn with_headers(headers: &[(&'static str, Option<&'static str>)]) -> Message {
    Message { headers: headers.to_vec(), ..messages(1).remove(0) }
}
