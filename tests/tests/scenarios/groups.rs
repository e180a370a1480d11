//! What groups are given, again, and what they commit.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use opentelemetry::SpanId;
use tracer_userspace::observe::Outcome;
use tracer_userspace::telemetry::OperationName::{Commit, Fetch, Send};
use tracer_userspace::telemetry::Scope;

use crate::told::{capture, told, told_of};

#[test]
fn what_a_share_group_released_is_redelivered_and_each_acknowledgement_says_how() {
    let told = told("share-redelivery");
    let given: Vec<_> = told.fetched().map(|f| (f.share, f.redelivered, f.delivered.delivered, f.delivered.not_acquired)).collect();
    assert_eq!(given, [(true, false, 6, 0), (true, true, 2, 4), (true, true, 1, 5)]);
    let acknowledged: Vec<_> = told.commits().map(|commit| commit.acknowledged.unwrap()).collect();
    let expected = [
        (0, 0, "accept"),
        (1, 1, "release"),
        (2, 2, "reject"),
        (3, 3, "accept"),
        (4, 4, "release"),
        (5, 5, "reject"),
        (1, 1, "release"),
        (4, 4, "accept"),
        (1, 1, "accept"),
    ];
    assert_eq!(acknowledged, expected);
    assert!(told.commits().all(|commit| commit.outcome == Outcome::Success && &*commit.group == "grp-share"));
    // Each acknowledgement belongs to the delivery it answers.
    let fetches: Vec<_> = told.spans(Fetch, "share-redelivery").iter().map(|f| f.data.span_context.span_id()).collect();
    let parents: Vec<_> = told.spans(Commit, "share-redelivery").iter().map(|c| c.data.parent_span_id).collect();
    assert_eq!(parents, [[fetches[0]; 6].as_slice(), &[fetches[1]; 2], &[fetches[2]]].concat());
}

#[test]
fn acknowledgements_that_ride_on_the_next_fetch_belong_to_the_one_before() {
    let told = told("share-implicit");
    let acknowledged: Vec<_> = told.commits().map(|commit| commit.acknowledged.unwrap()).collect();
    assert_eq!(acknowledged, [(0, 2, "accept"), (3, 5, "accept")]);
    let fetches: Vec<_> = told.spans(Fetch, "share-implicit").iter().map(|f| f.data.span_context.span_id()).collect();
    let parents: Vec<_> = told.spans(Commit, "share-implicit").iter().map(|c| c.data.parent_span_id).collect();
    assert_eq!(parents, fetches);
}

#[test]
fn what_a_member_left_uncommitted_is_redelivered_to_the_next() {
    let told = told("group-crash");
    let given: Vec<_> = told.fetched().map(|f| (f.header.base_offset, f.redelivered, f.delivered.delivered)).collect();
    assert_eq!(given, [(0, false, 4), (0, true, 4), (4, false, 2)]);
    let roots: Vec<_> = told.spans(Fetch, "crash").iter().map(|f| f.data.parent_span_id == SpanId::INVALID).collect();
    assert_eq!(roots, [false, true, false], "what was worked on before does not continue the producer's trace");
    told.parents_are_there();
}

#[test]
fn a_streams_group_is_named_like_any_other_and_commits_what_it_handed_on() {
    let told = told_of(&capture("group-streams"), Scope::Auto);
    let of_app = |group: &Option<Arc<str>>| group.as_deref() == Some("grp-streams");
    let given: u32 = told.fetched().filter(|fetched| of_app(&fetched.group)).map(|fetched| fetched.delivered.delivered).sum();
    assert_eq!(given, 6, "all deliveries to Kafka Streams name its group");
    let commits: BTreeSet<_> = told.commits().filter(|commit| &*commit.group == "grp-streams").map(|c| (c.partition, c.offset)).collect();
    assert_eq!(commits, BTreeSet::from([(0, 3), (1, 3)]));
    // What comes out carries the context of what went in, as three records do.
    let of = |operation, topic| told.spans(operation, topic).iter().map(|span| span.data.span_context.trace_id()).collect::<HashSet<_>>();
    assert_eq!(of(Fetch, "streams-in").intersection(&of(Send, "streams-out")).count(), 3);
    told.parents_are_there_or_carried();
}

#[test]
fn members_that_come_back_go_on_where_they_were() {
    for (name, group) in [("group-kip848-static", "grp-kip848"), ("group-classic-static", "grp-static")] {
        let told = told(name);
        assert!(told.fetched().all(|fetched| fetched.group.as_deref() == Some(group) && !fetched.redelivered), "{name}");
        assert_eq!(told.fetched().map(|fetched| fetched.delivered.delivered).sum::<u32>(), 8, "{name}");
        let commits: BTreeSet<_> = told.commits().filter(|c| c.moves).map(|c| (c.partition, c.offset)).collect();
        assert_eq!(commits, BTreeSet::from([(0, 2), (0, 4), (1, 2), (1, 4)]), "{name}");
    }
}

#[test]
fn whose_a_fetch_is_is_not_guessed_when_two_groups_have_one_client_id() {
    let told = told("group-two-of-one-client-id");
    assert_eq!(told.fetched().map(|fetched| fetched.delivered.delivered).collect::<Vec<_>>(), [4, 4]);
    for fetched in told.fetched() {
        assert!(fetched.group.is_none() && fetched.several_groups && !fetched.redelivered);
    }
    for commit in told.spans(Commit, "two-groups") {
        assert_eq!(commit.data.parent_span_id, SpanId::INVALID, "the fetch may be the other's");
    }
    let groups: BTreeSet<_> = told.commits().map(|commit| commit.group.to_string()).collect();
    assert_eq!(groups, BTreeSet::from(["grp-one".to_owned(), "grp-two".to_owned()]));
}

#[test]
fn commits_say_whether_they_move_anything() {
    let told = told("group-commits");
    let commits: Vec<_> = told.commits().map(|commit| (commit.offset, commit.moves, commit.outcome)).collect();
    let expected = [
        (2, true, Outcome::Success),
        (4, true, Outcome::Success),
        (4, false, Outcome::Success),
        (1, true, Outcome::Success),
        (3, true, Outcome::Error(25)),
    ];
    assert_eq!(commits, expected);
    let spans: Vec<_> = told.spans(Commit, "commits").iter().map(|span| span.summary.error).collect();
    assert_eq!(spans, [None, None, None, Some("UNKNOWN_MEMBER_ID")], "what moves nothing has no span");
}

#[test]
fn offsets_of_an_aborted_transaction_are_no_commit() {
    let told = told("group-consume-transform-produce");
    let commits: Vec<_> = told.commits().filter(|c| &*c.group == "grp-eos").map(|c| (c.offset, c.moves)).collect();
    assert_eq!(commits, [(3, true), (6, true)], "the second lot was committed when it was done again");
    // It belongs to the delivery that was worked on again.
    let fetches = told.spans(Fetch, "eos-in");
    let again = fetches.iter().find(|fetch| fetch.summary.redelivered).unwrap();
    let commits = told.spans(Commit, "eos-in");
    assert_eq!(commits[1].data.parent_span_id, again.data.span_context.span_id());
}
