//! Versions, headers and topic ids.

use std::time::Duration;

use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, FetchRequest, TopicName, fetch_request};
use kafka_protocol::protocol::StrBytes;
use tests::flow::Recorder;
use tests::kafka::{Topic, api_versions, batch, fetch, fetched, frame, messages, metadata, produce, produced, request};
use tests::observe::{observe, settings};
use tracer_userspace::observe::Outcome;
use uuid::Uuid;

use crate::{ORDERS, listing, summary, talk, talked};

/// kafka-protocol-rs/kafka-protocol-rs#122, platformatic/kafka#343, thomhurst/Dekaf#2229: an older broker answers `ApiVersions`
/// v4 in the shape of v0.
#[test]
fn kafka_protocol_rs_122_a_refused_api_versions_is_read_as_version_0() {
    let client = Some("client");
    let ask = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str("x"))
        .with_client_software_version(StrBytes::from_static_str("1"));
    let refused = frame(&[0, 0, 0, 1, 0, 0x23, 0, 0, 0, 1, 0, 0x12, 0, 0, 0, 3]);
    let pairs = [(request(ApiKey::ApiVersions, 4, 1, client, &ask).unwrap(), refused), api_versions(3, 2, client).unwrap()];
    let seen = observe(&talked(&pairs, &[]), settings()).unwrap();
    let outcomes: Vec<_> = seen.exchanges().map(|exchange| (exchange.operation.api_version, exchange.outcome)).collect();
    assert_eq!(outcomes, [(4, Outcome::Error(35)), (3, Outcome::Success)]);
    assert_eq!(seen.frames("malformed"), 0);
}

/// open-telemetry/opentelemetry-ebpf-instrumentation#431: topic `*`. A name that comes later is given to what is seen later,
/// and to what still waits for it.
#[test]
fn obi_431_a_fetch_by_id_has_no_name_before_metadata_and_has_one_after() {
    let client = Some("client");
    let fetch_at = |id: i32, offset: i64| {
        (
            fetch(13, id, client, (0, -1), &[(Topic::Id(ORDERS), offset)]).unwrap(),
            fetched(13, id, 0, &[(Topic::Id(ORDERS), 0, batch(offset, &messages(1)).unwrap())]).unwrap(),
        )
    };
    let mut recorder = Recorder::default();
    let mut flow = recorder.connect();
    talk(&mut recorder, &mut flow, &[api_versions(3, 1, client).unwrap(), fetch_at(2, 10)], &[]);
    recorder.wait(Duration::from_secs(30));
    // Waits half a second for its name.
    talk(&mut recorder, &mut flow, &[fetch_at(3, 11)], &[]);
    recorder.wait(Duration::from_millis(500));
    talk(&mut recorder, &mut flow, &[metadata(12, 4, client, &[("orders", ORDERS)]).unwrap(), fetch_at(5, 12)], &[]);
    let capture = recorder.capture();
    let mut named: Vec<_> = listing(&capture)
        .into_iter()
        .map(|line| {
            assert_eq!(line["topic_id"], "BwcHBwcHBwcHBwcHBwcHBw");
            (line["offset"].as_i64().unwrap(), line["topic"].as_str().map(str::to_owned))
        })
        .collect();
    named.sort();
    let orders = || Some("orders".to_owned());
    assert_eq!(named, [(10, None), (11, orders()), (12, orders())]);
    // The observation, and the record in it.
    assert!(summary(&capture)["observations_unnamed"].as_u64() >= Some(1));
}

/// open-telemetry/opentelemetry-ebpf-instrumentation#1798: Produce v13 names its topic by id.
#[test]
fn obi_1798_a_produce_by_id_gets_its_name_and_its_partitions_status() {
    let client = Some("client");
    let pairs = [
        api_versions(3, 1, client).unwrap(),
        metadata(12, 2, client, &[("orders", ORDERS)]).unwrap(),
        (produce(13, 3, client, -1, Topic::Id(ORDERS), &messages(1)).unwrap(), produced(13, 3, Topic::Id(ORDERS), 70, 0).unwrap()),
        (produce(13, 4, client, -1, Topic::Id(ORDERS), &messages(1)).unwrap(), produced(13, 4, Topic::Id(ORDERS), -1, 29).unwrap()),
    ];
    let lines = listing(&talked(&pairs, &[]));
    let said: Vec<_> = lines.iter().map(|line| (line["topic"].as_str(), line["offset"].as_i64(), line["error"].as_str())).collect();
    // OBI #1798, and open-telemetry/opentelemetry-java-instrumentation#18289: an offset of -1 is none.
    assert_eq!(said, [(Some("orders"), Some(70), None), (Some("orders"), None, Some("TOPIC_AUTHORIZATION_FAILED"))]);
}

/// apache/kafka#10952 (KAFKA-12257), #19964 (KAFKA-19397): a topic that is deleted and made again is another topic.
#[test]
fn kafka_12257_a_topic_made_again_has_the_same_name_and_another_id() {
    let client = Some("client");
    let again = Uuid::from_bytes([8; 16]);
    let by = |id: i32, topic: Uuid, error: i16| {
        let records = if error == 0 { batch(0, &messages(1)).unwrap() } else { bytes::Bytes::new() };
        (
            fetch(13, id, client, (0, -1), &[(Topic::Id(topic), 0)]).unwrap(),
            fetched(13, id, 0, &[(Topic::Id(topic), error, records)]).unwrap(),
        )
    };
    let pairs = [
        api_versions(3, 1, client).unwrap(),
        metadata(12, 2, client, &[("orders", ORDERS)]).unwrap(),
        by(3, ORDERS, 0),
        metadata(12, 4, client, &[("orders", again)]).unwrap(),
        by(5, ORDERS, 100),
        by(6, again, 0),
    ];
    let capture = talked(&pairs, &[]);
    let lines = listing(&capture);
    let said: Vec<_> = lines.iter().map(|line| (line["topic"].as_str().unwrap(), line["topic_id"].as_str().unwrap())).collect();
    assert_eq!(said, [("orders", "BwcHBwcHBwcHBwcHBwcHBw"), ("orders", "CAgICAgICAgICAgICAgICA")]);
    let seen = observe(&capture, settings()).unwrap();
    let failed: Vec<_> = seen
        .observations
        .iter()
        .filter_map(|observation| match observation {
            tracer_userspace::observe::Observation::FetchFailed(failed) => Some((failed.topic.name.as_deref(), failed.outcome)),
            _ => None,
        })
        .collect();
    assert_eq!(failed, [(Some("orders"), Outcome::Error(100))]);
}

/// thomhurst/Dekaf#815, apache/kafka#11331 (KAFKA-13111): an all-zero id among the forgotten topics; sessions by id.
#[test]
fn dekaf_815_a_session_remembers_its_topics_and_the_zero_id_is_none() {
    let client = Some("client");
    let forget = |topic_id: Uuid| {
        fetch_request::ForgottenTopic::default().with_topic(TopicName::default()).with_topic_id(topic_id).with_partitions(vec![0])
    };
    let third = FetchRequest::default()
        .with_session_id(5)
        .with_session_epoch(3)
        .with_forgotten_topics_data(vec![forget(ORDERS), forget(Uuid::nil())]);
    let records = |offset: i64| [(Topic::Id(ORDERS), 0, batch(offset, &messages(1)).unwrap())];
    let pairs = [
        api_versions(3, 1, client).unwrap(),
        metadata(12, 2, client, &[("orders", ORDERS)]).unwrap(),
        (fetch(13, 3, client, (0, 0), &[(Topic::Id(ORDERS), 40)]).unwrap(), fetched(13, 3, 5, &records(40)).unwrap()),
        // Nothing new is asked: the session knows.
        (fetch(13, 4, client, (5, 1), &[]).unwrap(), fetched(13, 4, 5, &records(41)).unwrap()),
        (request(ApiKey::Fetch, 13, 5, client, &third).unwrap(), fetched(13, 5, 5, &[]).unwrap()),
        // The whole batch is sent again from its start when the fetch begins in its middle.
        (
            fetch(13, 6, client, (5, 4), &[(Topic::Id(ORDERS), 43)]).unwrap(),
            fetched(13, 6, 5, &[(Topic::Id(ORDERS), 0, batch(42, &messages(2)).unwrap())]).unwrap(),
        ),
    ];
    let capture = talked(&pairs, &[8]);
    let said: Vec<_> = listing(&capture)
        .iter()
        .map(|line| {
            (line["topic"].as_str().unwrap().to_owned(), line["offset"].as_i64().unwrap(), line["skipped"].as_str().map(str::to_owned))
        })
        .collect();
    let line = |offset: i64, skipped: Option<&str>| ("orders".to_owned(), offset, skipped.map(str::to_owned));
    assert_eq!(said, [line(40, None), line(41, None), line(42, Some("below_fetch_offset")), line(43, None)]);
    assert_eq!(summary(&capture)["frames"]["malformed"], serde_json::Value::Null);
}

/// DataDog/datadog-agent defs.h, OBI common.go: a null client id refused, topics over 48 or 80 bytes cut.
#[test]
fn datadog_defs_a_null_client_id_and_the_longest_topic_are_taken_whole() {
    let topic = "t".repeat(249);
    let pairs = [
        (frame(&[0, 0x12, 0, 0, 0, 0, 0, 1, 0xff, 0xff]), api_versions(0, 1, None).unwrap().1),
        (produce(9, 2, None, -1, Topic::Name(&topic), &messages(1)).unwrap(), produced(9, 2, Topic::Name(&topic), 5, 0).unwrap()),
        (produce(9, 3, Some(""), -1, Topic::Name(&topic), &messages(1)).unwrap(), produced(9, 3, Topic::Name(&topic), 6, 0).unwrap()),
    ];
    let lines = listing(&talked(&pairs, &[]));
    let said: Vec<_> = lines.iter().map(|line| (line["client_id"].as_str(), line["topic"].as_str(), line["offset"].as_i64())).collect();
    // Null and empty are different.
    assert_eq!(said, [(None, Some(topic.as_str()), Some(5)), (Some(""), Some(topic.as_str()), Some(6))]);
}
