//! What is on the wire more than once, and what it is counted as: put together by hand, since no client does it on demand.

use kafka_protocol::messages::{ApiKey, GroupId, HeartbeatRequest, HeartbeatResponse};
use kafka_protocol::protocol::StrBytes;
use tests::flow::{Flow, Recorder};
use tests::kafka::{Topic, api_versions, batch, fetch, fetched, messages, metadata, produce, produced, request, response};
use tests::observe::{Seen, observe, settings};
use tracer_userspace::observe::Outcome;
use uuid::Uuid;

const ORDERS: Uuid = Uuid::from_bytes([7; 16]);
const CLIENT: Option<&str> = Some("client");
const VERSION: i16 = 13;

/// A connection of a member of a group, which knows the topic.
fn member(recorder: &mut Recorder) -> Flow {
    let mut flow = recorder.connect();
    let beat = HeartbeatRequest::default()
        .with_group_id(GroupId(StrBytes::from_static_str("group")))
        .with_member_id(StrBytes::from_static_str("member"))
        .with_generation_id(1);
    let beats = (
        request(ApiKey::Heartbeat, 4, 3, CLIENT, &beat).unwrap(),
        response(ApiKey::Heartbeat, 4, 3, &HeartbeatResponse::default()).unwrap(),
    );
    for (ask, answer) in [api_versions(3, 1, CLIENT).unwrap(), metadata(12, 2, CLIENT, &[("orders", ORDERS)]).unwrap(), beats] {
        recorder.ask(&mut flow, &ask);
        recorder.answer(&mut flow, &answer);
    }
    flow
}

/// Asks from an offset on, outside of any session.
fn ask(recorder: &mut Recorder, flow: &mut Flow, id: i32, offset: i64) {
    recorder.ask(flow, &fetch(VERSION, id, CLIENT, (0, -1), &[(Topic::Id(ORDERS), offset)]).unwrap());
}

/// Whole batches of as many records each, from an offset on.
fn batches(mut offset: i64, counts: &[usize]) -> bytes::Bytes {
    let mut records = Vec::new();
    for count in counts {
        records.extend(batch(offset, &messages(*count)).unwrap());
        offset += i64::try_from(*count).unwrap();
    }
    records.into()
}

fn give(recorder: &mut Recorder, flow: &mut Flow, id: i32, offset: i64, counts: &[usize]) {
    recorder.answer(flow, &fetched(VERSION, id, 0, &[(Topic::Id(ORDERS), 0, batches(offset, counts))]).unwrap());
}

fn seen(recorder: Recorder) -> Seen {
    observe(&recorder.capture(), settings()).unwrap()
}

/// Base offset, records delivered, records below the fetch offset, and whether they were given before; all to the group.
fn deliveries(seen: &Seen) -> Vec<(i64, u32, u32, bool)> {
    assert!(seen.fetched().all(|fetched| fetched.group.as_deref() == Some("group")));
    let told = |fetched: &tracer_userspace::observe::FetchedBatch| {
        (fetched.header.base_offset, fetched.delivered.delivered, fetched.delivered.below_fetch_offset, fetched.redelivered)
    };
    seen.fetched().map(told).collect()
}

#[test]
fn what_a_client_drops_and_asks_for_again_is_told_again_as_redelivered() {
    let mut recorder = Recorder::default();
    let mut flow = member(&mut recorder);
    ask(&mut recorder, &mut flow, 4, 100);
    give(&mut recorder, &mut flow, 4, 100, &[3, 2]);
    // A rebalance, a pause, a seek: what was fetched ahead is dropped, all of it or what the application had not got yet.
    ask(&mut recorder, &mut flow, 5, 100);
    give(&mut recorder, &mut flow, 5, 100, &[3, 2, 1]);
    ask(&mut recorder, &mut flow, 6, 104);
    give(&mut recorder, &mut flow, 6, 103, &[2, 1, 4]);
    let expected = [
        (100, 3, 0, false),
        (103, 2, 0, false),
        (100, 3, 0, true),
        (103, 2, 0, true),
        (105, 1, 0, false),
        (103, 1, 1, true),
        (105, 1, 0, true),
        (106, 4, 0, false),
    ];
    assert_eq!(deliveries(&seen(recorder)), expected);
}

#[test]
fn two_fetches_of_one_offset_that_are_both_answered_are_a_delivery_and_a_redelivery() {
    // One connection with both in flight, and two: the leader changed, and the former one answers all the same.
    for connections in [1, 2] {
        let mut recorder = Recorder::default();
        let mut flows: Vec<Flow> = (0..connections).map(|_| member(&mut recorder)).collect();
        for id in [4, 5] {
            let at = usize::try_from(id).unwrap() % connections;
            ask(&mut recorder, &mut flows[at], id, 100);
        }
        for id in [4, 5] {
            let at = usize::try_from(id).unwrap() % connections;
            give(&mut recorder, &mut flows[at], id, 100, &[3]);
        }
        assert_eq!(deliveries(&seen(recorder)), [(100, 3, 0, false), (100, 3, 0, true)], "{connections} connections");
    }
}

#[test]
fn an_answer_that_its_connection_did_not_live_to_bring_is_no_delivery() {
    let whole = fetched(VERSION, 4, 0, &[(Topic::Id(ORDERS), 0, batches(100, &[3, 2]))]).unwrap();
    // Nothing of it, its size, its first batch and a bit, all but a byte.
    for there in [0, 4, 250, whole.len() - 1] {
        let mut recorder = Recorder::default();
        let mut flow = member(&mut recorder);
        ask(&mut recorder, &mut flow, 4, 100);
        recorder.answer(&mut flow, &whole[..there]);
        recorder.close(&mut flow);
        let mut flow = member(&mut recorder);
        ask(&mut recorder, &mut flow, 4, 100);
        give(&mut recorder, &mut flow, 4, 100, &[3, 2]);
        assert_eq!(deliveries(&seen(recorder)), [(100, 3, 0, false), (103, 2, 0, false)], "{there} of {} bytes came", whole.len());
    }
}

#[test]
fn a_produce_that_is_sent_again_is_stored_as_often_as_it_is_answered_well() {
    // Without idempotence: the first attempt's answer is lost with its connection, refused, or only late.
    let records = messages(3);
    let send = |id: i32| produce(9, id, CLIENT, -1, Topic::Name("orders"), &records).unwrap();
    let answer = |id: i32, offset: i64, error: i16| produced(9, id, Topic::Name("orders"), offset, error).unwrap();
    let attempts = |recorder: Recorder| -> Vec<(Outcome, Option<i64>, bool)> {
        seen(recorder).sent().map(|sent| (sent.outcome, sent.base_offset, sent.retry)).collect()
    };

    let mut recorder = Recorder::default();
    let mut flow = member(&mut recorder);
    recorder.ask(&mut flow, &send(4));
    recorder.close(&mut flow);
    let mut flow = member(&mut recorder);
    recorder.ask(&mut flow, &send(4));
    recorder.answer(&mut flow, &answer(4, 103, 0));
    assert_eq!(attempts(recorder), [(Outcome::ConnectionClosed, None, false), (Outcome::Success, Some(103), true)]);

    let mut recorder = Recorder::default();
    let mut flow = member(&mut recorder);
    recorder.ask(&mut flow, &send(4));
    recorder.answer(&mut flow, &answer(4, -1, 6));
    recorder.ask(&mut flow, &send(5));
    recorder.answer(&mut flow, &answer(5, 100, 0));
    assert_eq!(attempts(recorder), [(Outcome::Error(6), None, false), (Outcome::Success, Some(100), true)]);

    // Both are stored: two messages that are equal, and no failure that would make the second a retry.
    let mut recorder = Recorder::default();
    let mut flow = member(&mut recorder);
    recorder.ask(&mut flow, &send(4));
    recorder.ask(&mut flow, &send(5));
    recorder.answer(&mut flow, &answer(4, 100, 0));
    recorder.answer(&mut flow, &answer(5, 103, 0));
    assert_eq!(attempts(recorder), [(Outcome::Success, Some(100), false), (Outcome::Success, Some(103), false)]);
}
