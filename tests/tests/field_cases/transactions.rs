//! Transactions as a fetch shows them: markers, and what was aborted.

use bytes::Bytes;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{ApiKey, FetchRequest, FetchResponse, ProducerId, TopicName, fetch_request};
use kafka_protocol::protocol::StrBytes;
use tests::kafka::{Message, Writing, api_versions, batch, batch_as, messages, request, response};
use tests::observe::{Seen, observe, settings};
use tracer_userspace::telemetry::{IdSeed, SpanSettings};

use crate::{Pair, listing, talked};

/// A fetch of `orders` from its start, and its answer with these batches and this list of aborted transactions.
fn fetch_of(isolation_level: i8, aborted: Option<&[(i64, i64)]>, batches: &[Bytes]) -> Pair {
    let name = || TopicName(StrBytes::from_static_str("orders"));
    let partition = fetch_request::FetchPartition::default().with_partition(0).with_fetch_offset(0).with_partition_max_bytes(1 << 20);
    let ask = FetchRequest::default()
        .with_isolation_level(isolation_level)
        .with_session_epoch(-1)
        .with_topics(vec![fetch_request::FetchTopic::default().with_topic(name()).with_partitions(vec![partition])]);
    let aborted = aborted.map(|list| {
        let each = |&(producer_id, first_offset): &(i64, i64)| {
            AbortedTransaction::default().with_producer_id(ProducerId(producer_id)).with_first_offset(first_offset)
        };
        list.iter().map(each).collect()
    });
    let partition = PartitionData::default()
        .with_partition_index(0)
        .with_high_watermark(100)
        .with_last_stable_offset(100)
        .with_aborted_transactions(aborted)
        .with_records(Some(Bytes::from(batches.concat())));
    let answer = FetchResponse::default()
        .with_responses(vec![FetchableTopicResponse::default().with_topic(name()).with_partitions(vec![partition])]);
    (request(ApiKey::Fetch, 12, 2, Some("client"), &ask).unwrap(), response(ApiKey::Fetch, 12, 2, &answer).unwrap())
}

/// The marker that ends a transaction of this producer.
fn marker(offset: i64, producer_id: i64, key: &'static str) -> Bytes {
    let record = Message { key: Some(key), value: Some(vec![0; 6]), headers: Vec::new() };
    batch_as(offset, &[record], Writing { producer: (producer_id, 0, -1), transactional: true, control: true, ..Writing::default() })
        .unwrap()
}

const ABORT: &str = "\0\0\0\0";
const COMMIT: &str = "\0\0\0\u{1}";

fn transactional(offset: i64, producer_id: i64, count: usize) -> Bytes {
    batch_as(offset, &messages(count), Writing { producer: (producer_id, 0, 0), transactional: true, ..Writing::default() }).unwrap()
}

fn seen(pair: Pair) -> (Seen, Vec<(i64, Option<String>)>) {
    let capture = talked(&[api_versions(3, 1, Some("client")).unwrap(), pair], &[]);
    let lines = listing(&capture);
    let lines = lines.iter().map(|line| (line["offset"].as_i64().unwrap(), line["skipped"].as_str().map(str::to_owned)));
    (observe(&capture, settings()).unwrap(), lines.collect())
}

/// tulios/kafkajs#1256 (#403), `kafkaex/kafka_ex`#557, platformatic/kafka#391: markers are handed on as messages, or a reader
/// stumbles over an abort marker that no listed range belongs to.
#[test]
fn kafkajs_1256_a_marker_is_no_message_whatever_is_listed_as_aborted() {
    let lists: [Option<&[(i64, i64)]>; 4] = [None, Some(&[]), Some(&[(9, 0)]), Some(&[(7, 50)])];
    for key in [ABORT, COMMIT, "\0\0\0\u{2}", "\0\u{1}\0\u{1}more", "\0"] {
        for aborted in lists {
            for isolation_level in [0, 1] {
                let batches = [batch(0, &messages(2)).unwrap(), marker(2, 7, key), batch(3, &messages(1)).unwrap()];
                let (seen, lines) = seen(fetch_of(isolation_level, aborted, &batches));
                let case = format!("{key:?}, {aborted:?}, isolation level {isolation_level}");
                assert_eq!(lines, [(0, None), (1, None), (3, None)], "{case}");
                assert_eq!(seen.counters.records.get("control"), Some(&1), "{case}");
                // The reader gets past it all the same.
                let markers: Vec<_> = seen.fetched().filter(|batch| batch.header.control).collect();
                assert_eq!((markers.len(), markers[0].header.base_offset, markers[0].delivered.delivered), (1, 2, 0), "{case}");
                let spans = seen.spans(SpanSettings::replay(IdSeed::from_capture(b"markers")));
                let counted: Vec<_> =
                    spans.iter().map(|span| (span.summary.offsets, span.summary.messages, span.data.links.len())).collect();
                assert_eq!(counted, [(Some((0, 1)), 2, 0), (Some((3, 3)), 1, 0)], "{case}");
            }
        }
    }
}

/// Batches, what is listed as aborted, and what a reader of committed records makes of them.
type Case<'a> = (&'a [Bytes], &'a [(i64, i64)], Vec<(i64, Option<String>)>);

/// confluentinc/librdkafka#3020, #3369: aborted records are consumed, and an abort marker that nobody waits for undoes what
/// comes after it.
#[test]
fn librdkafka_3020_what_was_aborted_ends_at_its_own_marker() {
    let aborted = |offset: i64| (offset, Some("aborted".to_owned()));
    let given = |offset: i64| (offset, None);
    // Aborted up to the marker, and the same producer's next transaction is not.
    let again = [transactional(0, 7, 4), marker(4, 7, ABORT), transactional(5, 7, 1), marker(6, 7, COMMIT)];
    // Another producer's marker, and one of a transaction that began before the fetch, end nothing of this one's.
    let unsolicited = [transactional(0, 7, 1), marker(1, 8, ABORT), transactional(2, 7, 1), marker(3, 7, ABORT), transactional(4, 7, 1)];
    let interleaved = [
        transactional(0, 7, 1),
        transactional(1, 8, 1),
        batch(2, &messages(1)).unwrap(),
        marker(3, 8, COMMIT),
        transactional(4, 7, 1),
        marker(5, 7, ABORT),
        transactional(6, 8, 1),
    ];
    let twice = [transactional(0, 7, 1), marker(1, 7, ABORT), transactional(2, 7, 1), marker(3, 7, ABORT), transactional(4, 7, 1)];
    let table: [Case<'_>; 5] = [
        (&again, &[(7, 0)], vec![aborted(0), aborted(1), aborted(2), aborted(3), given(5)]),
        (&unsolicited, &[(7, 0)], vec![aborted(0), aborted(2), given(4)]),
        (&interleaved, &[(7, 0)], vec![aborted(0), given(1), given(2), aborted(4), given(6)]),
        (&twice, &[(7, 2), (7, 0)], vec![aborted(0), aborted(2), given(4)]),
        // A range that lies behind what was fetched.
        (&again, &[(7, 5)], vec![given(0), given(1), given(2), given(3), aborted(5)]),
    ];
    for (batches, list, expected) in table {
        let (committed, lines) = seen(fetch_of(1, Some(list), batches));
        assert_eq!(lines, expected);
        let dropped = u32::try_from(expected.iter().filter(|(_, skipped)| skipped.is_some()).count()).unwrap();
        assert_eq!(committed.fetched().map(|batch| batch.delivered.aborted).sum::<u32>(), dropped);
        let given_on = u32::try_from(expected.len()).unwrap() - dropped;
        assert_eq!(committed.fetched().map(|batch| batch.delivered.delivered).sum::<u32>(), given_on);
        // Who reads uncommitted gets all of them.
        let (_, lines) = seen(fetch_of(0, Some(list), batches));
        assert!(lines.iter().all(|(_, skipped)| skipped.is_none()));
    }
}
