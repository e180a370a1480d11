//! Observations and the metrics they give.

use std::fmt::Write;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics, ScopeMetrics};

use super::*;
use crate::observe::{BatchHeader, Codec, Delivered, SentBatch};
use crate::telemetry::fixtures::{T0, at, commit, connection, fetch_failure, fetched, operation, sent};

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
    assert_eq!(health.values.iter().map(|lost| lost.value).collect::<Vec<_>>(), [0, 0]);
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
    let read = |metrics: &Metrics| only(&metrics.sources(), "kafka.");
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
