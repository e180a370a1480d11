//! Observations and the metrics they give.

use std::fmt::Write;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics, ScopeMetrics};

use super::*;
use crate::counters::Counters;
use crate::observe::{BatchHeader, Codec, Delivered, GroupEventKind, PolledPartition, SentBatch};
use crate::telemetry::fixtures::{T0, at, commit, connection, fetch_failure, fetched, operation, sent, topic};

/// One line a data point, of all services: metric, value, attributes in alphabetical order.
fn lines(sources: &MetricSources) -> Vec<String> {
    let mut lines = Vec::new();
    sources.collect(&mut |metrics| lines.extend(show(metrics)));
    lines.sort();
    lines
}

fn show(metrics: &ResourceMetrics) -> Vec<String> {
    let mut lines = Vec::new();
    for metric in metrics.scope_metrics().flat_map(ScopeMetrics::metrics) {
        let head = format!("{} [{}]", metric.name(), metric.unit());
        let known = metric::SERVICE.iter().chain(metric::HEALTH).find(|(name, ..)| *name == metric.name()).unwrap();
        assert_eq!((metric.unit(), metric.description()), (known.1, known.2));
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                assert!(sum.is_monotonic());
                lines.extend(sum.data_points().map(|point| format!("{head} {}{}", point.value(), attributes(point.attributes()))));
            }
            AggregatedMetrics::I64(MetricData::Gauge(gauge)) => {
                lines.extend(gauge.data_points().map(|point| format!("{head} {}{}", point.value(), attributes(point.attributes()))));
            }
            AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                lines.extend(gauge.data_points().map(|point| format!("{head} {}{}", point.value(), attributes(point.attributes()))));
            }
            AggregatedMetrics::F64(MetricData::Sum(sum)) => {
                assert!(sum.is_monotonic());
                lines.extend(sum.data_points().map(|point| format!("{head} {}{}", point.value(), attributes(point.attributes()))));
            }
            AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
                lines.extend(gauge.data_points().map(|point| format!("{head} {}{}", point.value(), attributes(point.attributes()))));
            }
            AggregatedMetrics::U64(MetricData::Histogram(histogram)) => lines.extend(
                histogram.data_points().map(|point| format!("{head} x{} {}{}", point.count(), point.sum(), attributes(point.attributes()))),
            ),
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => lines.extend(histogram.data_points().map(|point| {
                if metric.name() == metric::CLIENT_OPERATION_DURATION {
                    assert_eq!(point.bounds().collect::<Vec<_>>(), DURATION_BOUNDS);
                }
                format!("{head} x{} {}{}", point.count(), point.sum(), attributes(point.attributes()))
            })),
            AggregatedMetrics::F64(MetricData::ExponentialHistogram(histogram)) => lines.extend(
                histogram
                    .data_points()
                    .map(|point| format!("{head} exponential x{} {}{}", point.count(), point.sum(), attributes(point.attributes()))),
            ),
            AggregatedMetrics::U64(MetricData::ExponentialHistogram(histogram)) => {
                lines.extend(histogram.data_points().map(|point| format!("{head} exponential x{}", point.count())));
            }
            other => panic!("not expected: {other:?}"),
        }
    }
    lines
}

fn attributes<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> String {
    let mut all: Vec<_> = attributes
        .filter(|kv| !["messaging.system", "server.address", "server.port"].contains(&kv.key.as_str()))
        .map(|kv| format!("{}={}", kv.key.as_str().trim_start_matches("messaging."), kv.value))
        .collect();
    all.sort();
    all.iter().fold(String::new(), |mut text, kv| {
        let _ = write!(text, " {kv}");
        text
    })
}

/// Lines of the metrics whose name begins so.
fn only(sources: &MetricSources, prefix: &str) -> Vec<String> {
    lines(sources).into_iter().filter(|line| line.starts_with(prefix)).collect()
}

/// Lines of the `messaging.*` metrics.
fn counted(observations: &[Observation]) -> Vec<String> {
    let mut metrics = Metrics::new(MetricSettings::default());
    for observation in observations {
        metrics.observe(observation);
    }
    only(&metrics.sources(), "messaging.")
}

#[test]
fn messages_and_operations_are_counted_as_the_conventions_name_them() {
    let failed = SentBatch { base_offset: None, outcome: Outcome::Error(29), ..sent(5, Vec::new()) };
    let lines = counted(&[
        Observation::Sent(sent(5, Vec::new())),
        Observation::Sent(sent(7, Vec::new())),
        Observation::Sent(failed),
        Observation::Fetched(fetched(5, Vec::new())),
        Observation::FetchFailed(fetch_failure(1, Outcome::Error(6))),
        Observation::Commit(commit(1005)),
    ]);
    assert_eq!(
        lines,
        [
            "messaging.client.consumed.messages [{message}] 5 consumer.group.name=billing destination.name=orders operation.name=fetch operation.type=receive",
            "messaging.client.operation.duration [s] x1 0.001 consumer.group.name=billing destination.name=orders error.type=NOT_LEADER_OR_FOLLOWER operation.name=fetch operation.type=receive",
            "messaging.client.operation.duration [s] x1 0.001 consumer.group.name=billing destination.name=orders operation.name=fetch operation.type=receive",
            "messaging.client.operation.duration [s] x1 0.006 consumer.group.name=billing destination.name=orders operation.name=commit operation.type=settle",
            "messaging.client.operation.duration [s] x1 0.006 destination.name=orders error.type=TOPIC_AUTHORIZATION_FAILED operation.name=send operation.type=send",
            "messaging.client.operation.duration [s] x2 0.012 destination.name=orders operation.name=send operation.type=send",
            "messaging.client.sent.messages [{message}] 12 destination.name=orders operation.name=send operation.type=send",
            "messaging.client.sent.messages [{message}] 5 destination.name=orders error.type=TOPIC_AUTHORIZATION_FAILED operation.name=send operation.type=send",
        ]
    );
}

#[test]
fn several_batches_of_a_partition_are_one_operation() {
    let one = fetched(5, Vec::new());
    let mut next = one.clone();
    next.header = BatchHeader { base_offset: 1005, ..next.header };
    let mut other_partition = one.clone();
    other_partition.partition = 4;
    let mut aborted = one.clone();
    aborted.delivered = Delivered { aborted: 5, ..Delivered::default() };
    let lines = counted(&[one, next, aborted, other_partition].map(Observation::Fetched));
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("messaging.client.consumed.messages [{message}] 15 "), "{lines:?}");
    assert!(lines[1].starts_with("messaging.client.operation.duration [s] x2 "), "{lines:?}");
    let one = sent(5, Vec::new());
    let lines = counted(&[one.clone(), one].map(Observation::Sent));
    assert!(lines[0].starts_with("messaging.client.operation.duration [s] x1 "), "{lines:?}");
    assert!(lines[1].starts_with("messaging.client.sent.messages [{message}] 10 "), "{lines:?}");
}

#[test]
fn only_the_clients_side_counts_and_unseen_answers_have_no_duration() {
    let mut at_broker = sent(5, Vec::new());
    at_broker.operation = Arc::new(Operation { connection: connection("10.0.0.7:50001", Side::Broker), ..operation(0, "shop", 10) });
    let unseen = SentBatch { base_offset: None, outcome: Outcome::AnswerNotSeen, ..sent(5, Vec::new()) };
    let lines = counted(&[Observation::Sent(at_broker), Observation::Sent(unseen)]);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("messaging.client.sent.messages [{message}] 5 "), "{lines:?}");
    let off = MetricSettings { messaging: false, ..MetricSettings::default() };
    let mut metrics = Metrics::new(off);
    metrics.observe(&Observation::Sent(sent(5, Vec::new())));
    assert!(only(&metrics.sources(), "messaging.").is_empty());
}

#[test]
fn partitions_and_exponential_histograms_are_settings() {
    let settings = MetricSettings { partition: true, exponential_histograms: true, ..MetricSettings::default() };
    let mut metrics = Metrics::new(settings);
    metrics.observe(&Observation::Sent(sent(5, Vec::new())));
    let lines = only(&metrics.sources(), "messaging.");
    assert!(lines[0].contains("exponential x1"), "{lines:?}");
    assert!(lines[1].contains(" destination.partition.id=3 "), "{lines:?}");
}

#[test]
fn series_beyond_the_bound_go_to_the_overflow() {
    let mut metrics = Metrics::new(MetricSettings { max_series: 4, ..MetricSettings::default() });
    for i in 0..20 {
        let mut batch = sent(1, Vec::new());
        batch.topic.name = Some(format!("t{i}").into());
        metrics.observe(&Observation::Sent(batch));
    }
    let lines = lines(&metrics.sources());
    let sent: Vec<_> = lines.iter().filter(|line| line.starts_with(metric::CLIENT_SENT_MESSAGES)).collect();
    assert_eq!(sent.len(), 5, "{sent:?}");
    assert!(sent.iter().any(|line| line.ends_with("{message}] 16 otel.metric.overflow=true")), "{sent:?}");
}

#[test]
fn each_service_has_its_resource_and_forgotten_ones_a_last_reading() {
    let from = |client: &str, ms| {
        let mut batch = sent(1, Vec::new());
        batch.operation = Arc::new(Operation { connection: connection(client, Side::Client), ..operation(0, "shop", ms) });
        Observation::Sent(batch)
    };
    let mut metrics = Metrics::new(MetricSettings { max_services: 2, ..MetricSettings::default() });
    for client in ["10.0.1.1:1", "10.0.1.2:1", "10.0.1.3:1", "10.0.1.2:2"] {
        metrics.observe(&from(client, 10));
    }
    let read = |metrics: &Metrics| {
        let mut instances = Vec::new();
        metrics.sources().collect(&mut |read| {
            assert_eq!(read.scope_metrics().next().unwrap().scope().name(), "kafka-tracer");
            instances.push(read.resource().get(&"service.instance.id".into()).unwrap().to_string());
        });
        instances.sort();
        instances
    };
    assert_eq!(read(&metrics), ["10.0.1.1", "10.0.1.2", "10.0.1.3"], "the third took the first's place, which is read once more");
    assert_eq!(read(&metrics), ["10.0.1.2", "10.0.1.3"]);
    metrics.tick(at(16).plus(IDLE));
    assert_eq!(read(&metrics), ["10.0.1.2", "10.0.1.3"], "once more");
    assert!(read(&metrics).is_empty());
    let mut health = HealthSnapshot::default();
    metrics.report(&mut health);
    assert_eq!(health.values.iter().map(|lost| lost.value).collect::<Vec<_>>(), [0, 0, 0]);
}

#[test]
fn health_counters_show_what_was_published_last() {
    let resource = Resource::builder_empty().with_service_name("kafka-tracer").build();
    let mut meter = HealthMeter::new(resource, &MetricSettings::default());
    for factor in [1, 10] {
        let mut health = HealthSnapshot::default();
        health.add(metric::STREAM_GAPS, 2 * factor);
        health.add_by(metric::CAPTURE_LOST, semconv::REASON, "ring_full", 3 * factor);
        health.add_by(metric::CAPTURE_LOST, semconv::REASON, format!("cut_{}", 1), 4 * factor);
        let counters = Counters { understood_bytes: 30, lost_bytes: [("hole", 10 * factor)].into(), ..Counters::default() };
        health.add_counters(&counters);
        health.values.retain(|value| value.value > 0);
        health.read(metric::CPU, Vec::new(), 2.5);
        meter.publish(health);
    }
    let mut metrics = ResourceMetrics::default();
    meter.collect(&mut metrics).unwrap();
    let mut lines = show(&metrics);
    lines.sort();
    assert_eq!(
        lines,
        [
            "kafka_tracer.capture.lost [By] 30 reason=ring_full",
            "kafka_tracer.capture.lost [By] 40 reason=cut_1",
            "kafka_tracer.coverage.ratio [1] 0.23076923076923078 result=understood",
            "kafka_tracer.coverage.ratio [1] 0.7692307692307693 result=hole",
            "kafka_tracer.cpu [s] 2.5",
            "kafka_tracer.stream.gaps [{gap}] 20",
        ]
    );
    assert_eq!(metrics.resource().get(&"service.name".into()), Some("kafka-tracer".into()));
}

fn exchange(api_key: i16, side: Side, outcome: Outcome) -> Observation {
    let of = Operation { connection: connection("10.0.0.8:50002", side), ..operation(api_key, "billing-1", 2) };
    Observation::Exchange(Exchange { operation: Arc::new(of), outcome, inter_broker: false })
}

#[test]
fn a_groups_lag_is_the_newest_end_seen_minus_what_it_committed() {
    let mut metrics = Metrics::new(MetricSettings::default());
    let read = |metrics: &Metrics| only(&metrics.sources(), "kafka.consumer_group.");
    // Committed, but the partition's end is not known.
    metrics.observe(&Observation::Commit(commit(1001)));
    let offset = "kafka.consumer_group.offset [1] 1001 group=billing partition=3 topic=orders";
    assert_eq!(read(&metrics), [offset]);
    // A Produce answer tells it, and a follower that knows less does not lower it.
    metrics.observe(&Observation::Sent(sent(5, Vec::new())));
    let lag = |lag: i64| format!("kafka.consumer_group.lag [1] {lag} group=billing partition=3 topic=orders");
    assert_eq!(read(&metrics), [lag(4), offset.to_owned()]);
    let mut behind = fetched(5, Vec::new());
    behind.high_watermark = Some(1002);
    metrics.observe(&Observation::Fetched(behind.clone()));
    assert_eq!(read(&metrics)[0], lag(4));
    behind.high_watermark = Some(1042);
    metrics.observe(&Observation::Fetched(behind));
    assert_eq!(read(&metrics)[0], lag(41));
    // Another process took the partition over: it shows the group now, once.
    let mut taken_over = commit(1042);
    taken_over.operation = Arc::new(Operation { connection: connection("10.0.0.9:1", Side::Client), ..operation(8, "billing-2", 60) });
    metrics.observe(&Observation::Commit(taken_over));
    assert_eq!(read(&metrics), [lag(0), offset.replace("1001", "1042")]);
    // What was seen a minute ago says nothing of now.
    metrics.tick(at(31).plus(Duration::from_mins(1)));
    assert_eq!(read(&metrics).len(), 2);
    metrics.tick(at(32).plus(Duration::from_mins(1)));
    assert_eq!(read(&metrics), [offset.replace("1001", "1042")]);
}

#[test]
fn failed_commits_and_acknowledgements_move_no_group() {
    let mut metrics = Metrics::new(MetricSettings::default());
    metrics.observe(&Observation::Commit(Commit { outcome: Outcome::Error(25), ..commit(1001) }));
    metrics.observe(&Observation::Commit(Commit { acknowledged: Some((1000, 1004, "accept")), ..commit(1005) }));
    assert!(only(&metrics.sources(), "kafka.").is_empty());
}

#[test]
fn a_topic_made_anew_begins_with_its_own_end() {
    let mut metrics = Metrics::new(MetricSettings::default());
    metrics.observe(&Observation::Sent(sent(5, Vec::new())));
    let mut anew = SentBatch { base_offset: Some(0), ..sent(5, Vec::new()) };
    anew.topic.id = crate::observe::TopicId::new([9; 16]);
    metrics.observe(&Observation::Sent(anew));
    metrics.observe(&Observation::Commit(commit(2)));
    assert!(only(&metrics.sources(), metric::GROUP_LAG)[0].contains("] 3 "));
}

#[test]
fn the_time_from_end_to_end_names_its_clock_and_is_never_clamped() {
    let mut create = fetched(5, Vec::new());
    let mut append = create.clone();
    append.header.log_append_time = true;
    let mut early = create.clone();
    early.header.base_timestamp_ms = Some(T0 + 41);
    let again = FetchedBatch { redelivered: true, ..create.clone() };
    let nothing = FetchedBatch { delivered: Delivered::default(), ..create.clone() };
    create.group = None;
    let mut metrics = Metrics::new(MetricSettings::default());
    for batch in [create.clone(), append, early, again, nothing] {
        metrics.observe(&Observation::Fetched(batch));
    }
    metrics.observe(&Observation::Sent(sent(5, Vec::new())));
    metrics.observe(&Observation::Fetched(create));
    assert_eq!(
        only(&metrics.sources(), "kafka_tracer.end_to_end"),
        [
            "kafka_tracer.end_to_end.duration [s] exponential x1 0.021 destination.name=orders kafka_tracer.clock=host",
            "kafka_tracer.end_to_end.duration [s] exponential x1 0.027 consumer.group.name=billing destination.name=orders kafka_tracer.clock=append",
            "kafka_tracer.end_to_end.duration [s] exponential x1 0.031 destination.name=orders kafka_tracer.clock=create",
            "kafka_tracer.end_to_end.negative [{batch}] 1 consumer.group.name=billing destination.name=orders kafka_tracer.clock=create",
        ]
    );
}

#[test]
fn waits_requests_and_throttling_are_told_apart() {
    let mut metrics = Metrics::new(MetricSettings::default());
    let mut throttled = operation(0, "shop", 10);
    throttled.throttle_ms = 250;
    let unanswered = Operation { response: None, ..operation(0, "shop", 10) };
    for observation in [
        exchange(1, Side::Client, Outcome::Success),
        exchange(1, Side::Broker, Outcome::Success),
        exchange(3, Side::Client, Outcome::Error(35)),
        Observation::Exchange(Exchange { operation: Arc::new(throttled), outcome: Outcome::Success, inter_broker: false }),
        Observation::Exchange(Exchange { operation: Arc::new(unanswered), outcome: Outcome::AnswerNotSeen, inter_broker: false }),
    ] {
        metrics.observe(&observation);
    }
    assert_eq!(
        only(&metrics.sources(), "kafka_tracer."),
        [
            "kafka_tracer.fetch.wait [s] x1 0.004",
            "kafka_tracer.request.duration [s] x1 0.006 error.type=UNSUPPORTED_VERSION kafka_tracer.api.name=Metadata kafka_tracer.side=client",
            "kafka_tracer.request.duration [s] x1 0.006 kafka_tracer.api.name=Fetch kafka_tracer.side=broker",
            "kafka_tracer.request.duration [s] x1 0.006 kafka_tracer.api.name=Fetch kafka_tracer.side=client",
            "kafka_tracer.request.duration [s] x1 0.006 kafka_tracer.api.name=Produce kafka_tracer.side=client",
            "kafka_tracer.throttle [s] x1 0.25 kafka_tracer.api.name=Produce",
        ]
    );
}

#[test]
fn a_commits_delay_counts_from_the_fetch_of_the_last_offset_before_it() {
    let mut metrics = Metrics::new(MetricSettings::default());
    metrics.observe(&Observation::Fetched(fetched(5, Vec::new())));
    metrics.observe(&Observation::Commit(commit(1005)));
    metrics.observe(&Observation::Commit(Commit { moves: false, ..commit(1005) }));
    metrics.observe(&Observation::Commit(commit(2000)));
    let delays = only(&metrics.sources(), metric::COMMIT_DELAY);
    assert_eq!(delays, ["kafka_tracer.commit.delay [s] x1 0.019 consumer.group.name=billing destination.name=orders"]);
}

#[test]
fn sent_batches_have_sizes() {
    let mut metrics = Metrics::new(MetricSettings::default());
    metrics.observe(&Observation::Sent(sent(5, Vec::new())));
    let mut plain = sent(2, Vec::new());
    plain.header.codec = Codec::None;
    metrics.observe(&Observation::Sent(plain));
    assert_eq!(
        only(&metrics.sources(), "kafka_tracer.batch"),
        [
            "kafka_tracer.batch.compression_ratio [1] x1 1.9937694704049844 destination.name=orders kafka_tracer.batch.codec=lz4",
            "kafka_tracer.batch.records [{record}] x1 2 destination.name=orders kafka_tracer.batch.codec=none",
            "kafka_tracer.batch.records [{record}] x1 5 destination.name=orders kafka_tracer.batch.codec=lz4",
            "kafka_tracer.batch.size [By] x1 321 destination.name=orders kafka_tracer.batch.codec=lz4",
            "kafka_tracer.batch.size [By] x1 321 destination.name=orders kafka_tracer.batch.codec=none",
        ]
    );
}

/// Group `billing` polls partition 3 of `orders` on a connection, at `ms`.
fn poll(connection_id: u64, ms: u64, position: i64, (end, stable): (i64, i64)) -> Poll {
    let mut of = operation(1, "billing-1", ms);
    of.connection = Arc::new(Connection { id: connection_id, ..(*of.connection).clone() });
    let told = Told { high_watermark: Some(end), last_stable_offset: Some(stable), log_start_offset: Some(7) };
    Poll {
        operation: Arc::new(of),
        group: Some("billing".into()),
        several_groups: false,
        isolation_level: Some(0),
        partitions: vec![PolledPartition { topic: topic(), partition: 3, position: Some(position), told }],
        left: Vec::new(),
    }
}

/// Lines of a gauge, without the unit.
fn gauge(metrics: &Metrics, name: &str) -> Vec<String> {
    let lines = only(&metrics.sources(), &format!("{name} ["));
    lines.iter().map(|line| line.split_once("] ").unwrap().1.to_owned()).collect()
}

#[test]
fn a_consumer_is_behind_by_what_it_has_not_fetched_yet_and_may() {
    let mut metrics = Metrics::new(MetricSettings::default());
    let of = "group=billing partition=3 topic=orders";
    metrics.observe(&Observation::Poll(poll(2, 0, 1000, (1010, 1004))));
    assert_eq!(gauge(&metrics, metric::CONSUMER_LAG), [format!("10 {of}")]);
    metrics.observe(&Observation::Poll(Poll { isolation_level: Some(1), ..poll(2, 10, 1000, (1010, 1004)) }));
    assert_eq!(gauge(&metrics, metric::CONSUMER_LAG), [format!("4 {of}")], "what is behind the open transaction is not to be had");
    assert_eq!(gauge(&metrics, metric::PARTITION_CURRENT_OFFSET), ["1010 partition=3 topic=orders"]);
    assert_eq!(gauge(&metrics, metric::PARTITION_LAST_STABLE_OFFSET), ["1004 partition=3 topic=orders"]);
    assert_eq!(gauge(&metrics, metric::PARTITION_OLDEST_OFFSET), ["7 partition=3 topic=orders"]);
    // It stops fetching, and others send: the lag grows, and the age of its last fetch.
    metrics.observe(&Observation::Poll(poll(2, 20, 1010, (1010, 1010))));
    let sent_then = SentBatch { base_offset: Some(1010), operation: Arc::new(operation(0, "shop", 4_020)), ..sent(5, Vec::new()) };
    metrics.observe(&Observation::Sent(sent_then));
    assert_eq!(gauge(&metrics, metric::CONSUMER_LAG), [format!("5 {of}")]);
    assert_eq!(gauge(&metrics, metric::LAST_FETCH_AGE), [format!("4 {of}")]);
    assert_eq!(gauge(&metrics, metric::LAST_SEEN_AGE), ["0 partition=3 topic=orders"]);
    // What was told a minute ago says nothing of now; that nobody fetched does.
    metrics.tick(at(4_027).plus(Duration::from_mins(1)));
    assert_eq!(gauge(&metrics, metric::CONSUMER_LAG), Vec::<String>::new());
    assert_eq!(gauge(&metrics, metric::LAST_FETCH_AGE), [format!("64.001 {of}")]);
}

#[test]
fn a_consumer_that_reads_a_partition_no_longer_is_not_behind() {
    let closed = |id: u64| {
        let connection = Arc::new(Connection { id, ..(*connection("10.0.0.8:50002", Side::Client)).clone() });
        let kind = ConnectionEventKind::Closed { reset: false };
        Observation::Connection(ConnectionEvent { connection, client_id: None, seen_from: at(0), from_its_start: true, time: at(9), kind })
    };
    let left = |poll: Poll| Poll { partitions: Vec::new(), left: vec![(topic(), 3)], ..poll };
    let leaves = GroupEvent { member: Some("m".into()), ..joined(GroupEventKind::Left, 9) };
    for (name, ends) in [
        ("its session forgets the partition", Observation::Poll(left(poll(2, 9, 0, (0, 0))))),
        ("its connection ends", closed(2)),
        ("it leaves", Observation::Group(leaves)),
        ("its group divides its partitions anew", Observation::Group(joined(GroupEventKind::Joining { generation: Some(5) }, 9))),
    ] {
        let mut metrics = Metrics::new(MetricSettings::default());
        metrics.observe(&Observation::Poll(poll(1, 0, 1000, (1010, 1010))));
        // Its leader changed: another connection, the same reader.
        metrics.observe(&Observation::Poll(poll(2, 1, 1000, (1010, 1010))));
        metrics.observe(&closed(1));
        assert_eq!(gauge(&metrics, metric::LAST_FETCH_AGE).len(), 1, "{name}");
        metrics.observe(&ends);
        assert_eq!(gauge(&metrics, metric::LAST_FETCH_AGE).len(), 0, "{name}");
        metrics.observe(&Observation::Poll(poll(2, 10, 1000, (1010, 1010))));
        assert_eq!(gauge(&metrics, metric::LAST_FETCH_AGE).len(), 1, "{name}, and comes back");
    }
}

#[test]
fn a_reader_whose_group_is_learnt_is_shown_once_and_one_of_several_groups_not_at_all() {
    let mut metrics = Metrics::new(MetricSettings::default());
    metrics.observe(&Observation::Poll(Poll { group: None, ..poll(2, 0, 1000, (1010, 1010)) }));
    assert_eq!(gauge(&metrics, metric::CONSUMER_LAG), ["10 partition=3 topic=orders"]);
    metrics.observe(&Observation::Poll(poll(2, 1, 1000, (1010, 1010))));
    assert_eq!(gauge(&metrics, metric::CONSUMER_LAG), ["10 group=billing partition=3 topic=orders"]);
    let mut metrics = Metrics::new(MetricSettings::default());
    metrics.observe(&Observation::Poll(Poll { group: None, several_groups: true, ..poll(2, 0, 1000, (1010, 1010)) }));
    assert!(gauge(&metrics, metric::CONSUMER_LAG).is_empty());
    assert_eq!(gauge(&metrics, metric::PARTITION_CURRENT_OFFSET).len(), 1);
}

#[test]
fn gauges_beyond_the_bound_are_dropped_and_counted() {
    let mut metrics = Metrics::new(MetricSettings { max_series: 4, ..MetricSettings::default() });
    for partition in 0..20 {
        let mut polled = poll(2, 0, 1000, (1010, 1010));
        polled.partitions[0].partition = partition;
        metrics.observe(&Observation::Poll(polled));
        metrics.observe(&Observation::Commit(Commit { partition, ..commit(1001) }));
    }
    for name in [metric::CONSUMER_LAG, metric::GROUP_LAG, metric::GROUP_OFFSET, metric::PARTITION_CURRENT_OFFSET, metric::LAST_COMMIT_AGE] {
        let lines = gauge(&metrics, name);
        assert_eq!(lines.len(), 4, "{name}: {lines:?}");
        assert!(!lines.iter().any(|line| line.contains("overflow")), "{name}: {lines:?}");
    }
    let mut health = HealthSnapshot::default();
    metrics.report(&mut health);
    assert_eq!(health.values.iter().map(|lost| lost.value).collect::<Vec<_>>(), [0, 3 * 16, 0]);
}

/// A member of `billing` does something at `ms`, and is answered 6 ms later.
fn joined(kind: GroupEventKind, ms: u64) -> GroupEvent {
    GroupEvent { operation: Arc::new(operation(11, "billing-1", ms)), group: "billing".into(), member: Some("m".into()), kind }
}

#[test]
fn rebalances_are_counted_once_for_each_generation_and_last_until_the_member_has_its_partitions() {
    let mut metrics = Metrics::new(MetricSettings::default());
    let join = |generation| GroupEventKind::Joining { generation };
    for (kind, member, ms) in [
        (join(None), "m", 0),
        (join(Some(1)), "m", 10),
        (GroupEventKind::Synced { generation: 1 }, "m", 2_244),
        (GroupEventKind::Alive { generation: 1 }, "m", 3_000),
        // Another one joins, and the first joins again.
        (join(Some(2)), "n", 4_000),
        (join(Some(2)), "m", 4_001),
        (GroupEventKind::Synced { generation: 2 }, "m", 4_494),
    ] {
        metrics.observe(&Observation::Group(GroupEvent { member: Some(member.into()), ..joined(kind, ms) }));
    }
    assert_eq!(
        only(&metrics.sources(), "kafka_tracer.group"),
        [
            "kafka_tracer.group.members [{member}] 2 group=billing",
            "kafka_tracer.group.rebalance.duration [s] x2 2.75 consumer.group.name=billing",
            "kafka_tracer.group.rebalances [{rebalance}] 2 consumer.group.name=billing",
        ]
    );
    metrics.observe(&Observation::Group(GroupEvent { member: Some("n".into()), ..joined(GroupEventKind::Left, 5_000) }));
    assert_eq!(gauge(&metrics, metric::GROUP_MEMBERS), ["1 group=billing"]);
    metrics.tick(at(4_501).plus(Duration::from_mins(1)));
    assert!(gauge(&metrics, metric::GROUP_MEMBERS).is_empty(), "not heard of for a minute");
}

#[test]
fn members_without_a_second_step_rebalance_when_their_epoch_grows() {
    let mut metrics = Metrics::new(MetricSettings::default());
    let alive = |generation| GroupEventKind::Alive { generation };
    for kind in [alive(7), alive(7), alive(8), alive(7), alive(8), GroupEventKind::Joined { generation: 9 }, alive(9)] {
        metrics.observe(&Observation::Group(joined(kind, 0)));
    }
    let lines = only(&metrics.sources(), "kafka_tracer.group.rebalance");
    assert_eq!(lines, ["kafka_tracer.group.rebalances [{rebalance}] 2 consumer.group.name=billing"]);
}

#[test]
fn retries_redeliveries_transactions_and_refused_authentications_are_counted() {
    let mut metrics = Metrics::new(MetricSettings::default());
    let ended = |committed, outcome| {
        Observation::Transaction(TransactionEnd {
            operation: Arc::new(operation(26, "shop", 0)),
            transactional_id: "t".into(),
            committed,
            outcome,
        })
    };
    let kind = ConnectionEventKind::AuthenticationFailed { mechanism: "SCRAM-SHA-256".into(), error: 58 };
    let connection = connection("10.0.0.8:50002", Side::Client);
    for observation in [
        Observation::Sent(SentBatch { retry: true, ..sent(5, Vec::new()) }),
        Observation::Sent(sent(5, Vec::new())),
        Observation::Fetched(FetchedBatch { redelivered: true, ..fetched(5, Vec::new()) }),
        ended(true, Outcome::Success),
        ended(true, Outcome::Error(51)),
        ended(false, Outcome::Success),
        Observation::Connection(ConnectionEvent { connection, client_id: None, seen_from: at(0), from_its_start: true, time: at(9), kind }),
    ] {
        metrics.observe(&observation);
    }
    let counted = |name: &str| only(&metrics.sources(), name);
    assert_eq!(counted(metric::SEND_RETRIES), ["kafka_tracer.send.retries [{batch}] 1 destination.name=orders"]);
    assert_eq!(
        counted(metric::REDELIVERED),
        ["kafka_tracer.redelivered [{message}] 5 consumer.group.name=billing destination.name=orders"]
    );
    assert_eq!(
        counted(metric::TRANSACTIONS),
        [
            "kafka_tracer.transactions [{transaction}] 1 error.type=CONCURRENT_TRANSACTIONS kafka_tracer.transaction.outcome=committed",
            "kafka_tracer.transactions [{transaction}] 1 kafka_tracer.transaction.outcome=aborted",
            "kafka_tracer.transactions [{transaction}] 1 kafka_tracer.transaction.outcome=committed",
        ]
    );
    assert_eq!(
        counted(metric::AUTHENTICATION_FAILURES),
        [
            "kafka_tracer.authentication.failures [{failure}] 1 error.type=SASL_AUTHENTICATION_FAILED kafka_tracer.sasl.mechanism=SCRAM-SHA-256"
        ]
    );
}

#[test]
fn names_longer_than_names_are_take_no_memory() {
    let long: Arc<str> = "x".repeat(256).into();
    let mut batch = sent(5, Vec::new());
    batch.topic.name = Some(Arc::clone(&long));
    let mut metrics = Metrics::new(MetricSettings::default());
    for observation in [
        Observation::Sent(batch),
        Observation::Commit(Commit { group: Arc::clone(&long), ..commit(1005) }),
        Observation::Poll(Poll { group: Some(Arc::clone(&long)), ..poll(2, 0, 1000, (1010, 1010)) }),
        Observation::Group(GroupEvent { group: long, ..joined(GroupEventKind::Synced { generation: 1 }, 0) }),
    ] {
        metrics.observe(&observation);
    }
    assert!(lines(&metrics.sources()).is_empty());
    let mut health = HealthSnapshot::default();
    metrics.report(&mut health);
    assert_eq!(health.values.iter().map(|lost| lost.value).sum::<u64>(), 4);
}
