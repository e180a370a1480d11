//! Three brokers in one capture.

use std::collections::BTreeSet;

use tracer_userspace::observe::{Outcome, Side};
use tracer_userspace::telemetry::OperationName::{Fetch, Send};

use crate::coordinates::agree;
use crate::told::{Told, told};

const FETCH: i16 = 1;

/// Offsets that were handed to applications, by topic and partition, each as often as it was.
fn delivered(told: &Told) -> Vec<(String, i32, i64)> {
    let mut offsets = Vec::new();
    for batch in told.fetched() {
        let first = batch.header.base_offset + i64::from(batch.delivered.below_fetch_offset);
        for offset in first..first + i64::from(batch.delivered.delivered) {
            offsets.push((batch.topic.name.as_deref().unwrap_or_default().to_owned(), batch.partition, offset));
        }
    }
    offsets
}

fn each_once(told: &Told, records: usize) {
    let offsets = delivered(told);
    assert_eq!(offsets.len(), records);
    assert_eq!(offsets.iter().collect::<BTreeSet<_>>().len(), records, "nothing is counted twice: {offsets:?}");
}

#[test]
fn replication_is_exchanges_only() {
    let told = told("cluster-replication");
    each_once(&told, 12);
    let fetches = || told.exchanges().filter(|exchange| exchange.operation.api_key == FETCH);
    let replication = fetches().filter(|exchange| exchange.inter_broker).count();
    assert!(replication > 20, "followers and voters fetch all the time: {replication}");
    let consumers: BTreeSet<_> =
        fetches().filter(|e| !e.inter_broker).map(|e| e.operation.client_id.as_deref().unwrap_or_default()).collect();
    assert_eq!(consumers, BTreeSet::from(["cluster-consumer"]));
    let topics: BTreeSet<_> = told.spans.iter().filter_map(|span| span.summary.topic.name.as_deref()).collect();
    assert_eq!(topics, BTreeSet::from(["cluster-replication"]), "KRaft's and the groups' own topics are nobody's");
    assert!(told.spans.iter().all(|span| span.summary.client_id.as_deref().is_some_and(|id| id.starts_with("cluster-"))));
    // All connections but those of this capture were there before: that is no damage.
    assert_eq!(told.counters.frames.get("malformed"), None);
    assert!(told.sent().all(|sent| sent.operation.connection.side == Side::Client));
    told.parents_are_there();
}

#[test]
fn a_consumer_that_reads_from_a_follower_is_joined_with_the_send_at_the_leader() {
    let told = told("cluster-follower");
    each_once(&told, 12);
    let leaders: BTreeSet<_> = told.sent().map(|sent| sent.operation.connection.broker.to_string()).collect();
    let read_from: Vec<_> = told.fetched().map(|fetched| fetched.operation.connection.broker.to_string()).collect();
    assert_eq!(leaders, BTreeSet::from(["127.0.1.1:9092".to_owned()]));
    assert_eq!(read_from.last().map(String::as_str), Some("127.0.1.3:9092"));
    for fetch in told.spans(Fetch, "cluster-follower") {
        assert!(fetch.data.parent_span_is_remote);
    }
    told.parents_are_there();
    agree("cluster-follower", &["cluster-producer"], &["cluster-follower"]);
}

#[test]
fn a_leader_that_goes_away_costs_no_record_and_counts_none_twice() {
    let told = told("cluster-failover");
    each_once(&told, 10);
    let brokers: BTreeSet<_> = told.sent().map(|sent| sent.operation.connection.broker).collect();
    assert_eq!(brokers.len(), 2, "the second lot went to another leader");
    assert!(told.sent().all(|sent| sent.outcome == Outcome::Success && !sent.retry));
    assert!(told.fetched().all(|fetched| !fetched.redelivered));
    told.parents_are_there();
}

#[test]
fn an_attempt_at_a_former_leader_is_an_error_and_the_next_one_its_retry() {
    let told = told("cluster-reassign");
    each_once(&told, 10);
    let attempts: Vec<_> =
        told.sent().map(|sent| (sent.operation.connection.broker.to_string(), sent.outcome, sent.retry, sent.base_offset)).collect();
    assert_eq!(
        attempts,
        [
            ("127.0.1.1:9092".to_owned(), Outcome::Success, false, Some(0)),
            ("127.0.1.1:9092".to_owned(), Outcome::Error(6), false, None),
            ("127.0.1.3:9092".to_owned(), Outcome::Success, true, Some(5)),
        ]
    );
    let errors: Vec<_> = told.spans(Send, "cluster-reassign").iter().map(|span| span.summary.error).collect();
    assert_eq!(errors, [None, Some("NOT_LEADER_OR_FOLLOWER"), None]);
    let read = told.spans(Fetch, "cluster-reassign");
    assert!(read.iter().any(|span| span.summary.error == Some("NOT_LEADER_OR_FOLLOWER") && span.summary.messages == 0));
    told.parents_are_there();
}

#[test]
fn refused_records_that_come_again_in_another_batch_are_an_error_and_a_success_and_no_retry() {
    let told = told("cluster-rebatched");
    each_once(&told, 60);
    let messages = |refused: bool| -> u32 {
        let of_kind = told.sent().filter(|sent| (sent.outcome == Outcome::Error(6)) == refused);
        of_kind.map(|sent| sent.record_count).sum()
    };
    let (refused, stored) = (messages(true), messages(false));
    assert_eq!(stored, 60, "sends that succeeded are what is stored, each record once");
    assert!(refused > 0);
    let after = |told: &Told| {
        let mut later = told.sent().skip_while(|sent| sent.outcome == Outcome::Success).filter(|sent| sent.outcome == Outcome::Success);
        later.next().map(|sent| (sent.record_count, sent.base_offset))
    };
    let (count, base) = after(&told).unwrap();
    assert!(count > refused && base == Some(20), "the library put {refused} refused records into a batch of {count}, at {base:?}");
    assert!(told.sent().all(|sent| !sent.retry), "that batch was never sent before");
    told.parents_are_there();
}
