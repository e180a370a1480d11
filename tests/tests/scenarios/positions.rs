//! How far consumers have come, by every answer they get, and what their groups and transactions do.

use std::collections::{BTreeSet, HashMap};

use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ScopeMetrics};
use tests::replay::corpus_names;
use tracer_userspace::observe::{Observation, Poll};
use tracer_userspace::telemetry::Scope;
use tracer_userspace::telemetry::metrics::{MetricSettings, Metrics};
use tracer_userspace::telemetry::semconv::metric;

use crate::told::{Told, capture, told, told_of};

fn polls(told: &Told) -> impl Iterator<Item = &Poll> {
    told.observations.iter().filter_map(|o| if let Observation::Poll(poll) = o { Some(poll) } else { None })
}

/// Sums of a counter, or counts of a histogram, by the attribute's value (none: an empty one).
fn counted(told: &Told, name: &str, by: &str) -> Vec<(String, u64)> {
    let mut metrics = Metrics::new(MetricSettings::default());
    for observation in &told.observations {
        metrics.observe(observation);
    }
    let mut sums: HashMap<String, u64> = HashMap::new();
    metrics.sources().collect(&mut |read| {
        for metric in read.scope_metrics().flat_map(ScopeMetrics::metrics).filter(|metric| metric.name() == name) {
            let points: Vec<(String, u64)> = match metric.data() {
                AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                    sum.data_points().map(|point| (value_of(point.attributes(), by), point.value())).collect()
                }
                AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                    histogram.data_points().map(|point| (value_of(point.attributes(), by), point.count())).collect()
                }
                other => panic!("{other:?}"),
            };
            for (value, count) in points {
                *sums.entry(value).or_default() += count;
            }
        }
    });
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort();
    sums
}

fn value_of<'a>(attributes: impl Iterator<Item = &'a opentelemetry::KeyValue>, by: &str) -> String {
    attributes.filter(|attribute| attribute.key.as_str() == by).map(|attribute| attribute.value.to_string()).collect()
}

#[test]
fn the_position_is_what_each_consumer_asks_for_next() {
    let (mut compared, mut others) = (0, BTreeSet::new());
    for name in corpus_names().unwrap() {
        let told = told_of(&capture(&name), Scope::Batch);
        let mut positions = HashMap::new();
        for observation in &told.observations {
            match observation {
                Observation::Poll(poll) => {
                    for polled in &poll.partitions {
                        let place = (poll.operation.connection.id, polled.topic.name.clone(), polled.partition);
                        positions.insert(place, (poll.operation.response, polled.position));
                    }
                }
                Observation::Fetched(fetched) if !fetched.share => {
                    let place = (fetched.operation.connection.id, fetched.topic.name.clone(), fetched.partition);
                    let Some((Some((_, told_at)), Some(position))) = positions.get(&place) else { continue };
                    // A batch may be held back, and come after what its own answer says of the position.
                    if let Some(asked) = fetched.fetch_offset.filter(|_| fetched.operation.request_first > *told_at) {
                        compared += 1;
                        if *position != asked {
                            others.insert((name.clone(), *position, asked));
                        }
                    }
                }
                _ => {}
            }
        }
    }
    // By seek, after an aborted transaction, and after a rebalance without a commit before it.
    let went_back =
        [("coord-compacted", 11, 0), ("group-consume-transform-produce", 6, 3), ("java-rebalance", 8, 0), ("java-rebalance", 11, 0)];
    assert_eq!(others, went_back.map(|(name, position, asked)| (name.to_owned(), position, asked)).into());
    assert!(compared > 20, "{compared} positions were compared with what was asked for next");
}

#[test]
fn what_is_said_of_a_partition_holds_while_its_session_leaves_it_out() {
    let told = told("java-idle-session");
    let last = polls(&told).last().unwrap();
    assert!(polls(&told).count() >= 2);
    assert!(last.partitions.iter().all(|polled| polled.position == polled.told.high_watermark), "{last:?}");
    // The consumer ends its session: it reads none of them any more.
    let left: usize = polls(&told).map(|poll| poll.left.len()).sum();
    assert_eq!(left, 3);
}

#[test]
fn each_generation_of_a_group_is_a_rebalance() {
    let classic = told("java-rebalance");
    assert_eq!(counted(&classic, metric::GROUP_REBALANCES, "messaging.consumer.group.name"), [("grp-rebal".to_owned(), 3)]);
    assert_eq!(counted(&classic, metric::GROUP_REBALANCE_DURATION, "messaging.consumer.group.name"), [("grp-rebal".to_owned(), 4)]);
    let of_epochs = counted(&told("java-kip848"), metric::GROUP_REBALANCES, "messaging.consumer.group.name");
    assert_eq!(of_epochs.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1], "{of_epochs:?}");
}

#[test]
fn transactions_and_refused_passwords_are_counted() {
    let outcomes = counted(&told("java-txn"), metric::TRANSACTIONS, "kafka_tracer.transaction.outcome");
    assert_eq!(outcomes, [("aborted".to_owned(), 1), ("committed".to_owned(), 2)]);
    let refused = counted(&told("java-sasl-bad"), metric::AUTHENTICATION_FAILURES, "kafka_tracer.sasl.mechanism");
    assert_eq!(refused, [("PLAIN".to_owned(), 1)]);
}
