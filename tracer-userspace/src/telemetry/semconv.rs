//! Every name that leaves the tracer, once. OpenTelemetry's names are those of semantic conventions 1.44.0; what the
//! conventions have no word for is under `kafka_tracer.`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the names are described in docs/signals.md; the constants repeat them")]

use crate::observe::Side;

/// Schema URL of the conventions obeyed.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";
/// Name of the instrumentation scope.
pub const SCOPE_NAME: &str = "kafka-tracer";

pub const SERVICE_NAME: &str = "service.name";
pub const SERVICE_INSTANCE_ID: &str = "service.instance.id";

pub const MESSAGING_SYSTEM: &str = "messaging.system";
pub const MESSAGING_SYSTEM_KAFKA: &str = "kafka";
pub const MESSAGING_OPERATION_NAME: &str = "messaging.operation.name";
pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
pub const MESSAGING_DESTINATION_NAME: &str = "messaging.destination.name";
pub const MESSAGING_DESTINATION_PARTITION_ID: &str = "messaging.destination.partition.id";
pub const MESSAGING_BATCH_MESSAGE_COUNT: &str = "messaging.batch.message_count";
pub const MESSAGING_CLIENT_ID: &str = "messaging.client.id";
pub const MESSAGING_CONSUMER_GROUP_NAME: &str = "messaging.consumer.group.name";
pub const MESSAGING_KAFKA_CLUSTER_ID: &str = "messaging.kafka.cluster.id";
pub const MESSAGING_KAFKA_OFFSET: &str = "messaging.kafka.offset";
pub const MESSAGING_KAFKA_MESSAGE_KEY: &str = "messaging.kafka.message.key";
pub const MESSAGING_KAFKA_MESSAGE_TOMBSTONE: &str = "messaging.kafka.message.tombstone";
pub const SERVER_ADDRESS: &str = "server.address";
pub const SERVER_PORT: &str = "server.port";
pub const NETWORK_PEER_ADDRESS: &str = "network.peer.address";
pub const NETWORK_PEER_PORT: &str = "network.peer.port";
pub const ERROR_TYPE: &str = "error.type";

pub const SIDE: &str = "kafka_tracer.side";
pub const API_VERSION: &str = "kafka_tracer.api.version";
pub const API_NAME: &str = "kafka_tracer.api.name";
pub const TOPIC_ID: &str = "kafka_tracer.topic.id";
pub const COORDINATES: &str = "kafka_tracer.coordinates";
pub const BATCH_BASE_OFFSET: &str = "kafka_tracer.batch.base_offset";
pub const BATCH_LAST_OFFSET: &str = "kafka_tracer.batch.last_offset";
pub const BATCH_CODEC: &str = "kafka_tracer.batch.codec";
pub const BATCH_SIZE: &str = "kafka_tracer.batch.size";
pub const BATCH_UNCOMPRESSED_SIZE: &str = "kafka_tracer.batch.uncompressed_size";
pub const ACKS: &str = "kafka_tracer.acks";
pub const PRODUCER_ID: &str = "kafka_tracer.producer.id";
pub const PRODUCER_EPOCH: &str = "kafka_tracer.producer.epoch";
pub const PRODUCER_SEQUENCE: &str = "kafka_tracer.producer.sequence";
pub const TRANSACTIONAL_ID: &str = "kafka_tracer.transactional_id";
pub const RETRY: &str = "kafka_tracer.retry";
pub const REFUSED_RECORDS: &str = "kafka_tracer.refused_records";
pub const CURRENT_LEADER: &str = "kafka_tracer.current_leader";
pub const THROTTLE: &str = "kafka_tracer.throttle";
pub const FETCH_WAIT: &str = "kafka_tracer.fetch.wait";
pub const FETCH_HIGH_WATERMARK: &str = "kafka_tracer.fetch.high_watermark";
pub const FETCH_ISOLATION_LEVEL: &str = "kafka_tracer.fetch.isolation_level";
pub const END_TO_END: &str = "kafka_tracer.end_to_end";
pub const CLOCK: &str = "kafka_tracer.clock";
pub const REDELIVERED: &str = "kafka_tracer.redelivered";
pub const DELIVERY_COUNT: &str = "kafka_tracer.delivery_count";
pub const HEADERS: &str = "kafka_tracer.headers";
pub const COMMIT_OFFSET: &str = "kafka_tracer.commit.offset";
pub const COMMIT_DELAY: &str = "kafka_tracer.commit.delay";
pub const TRANSACTION_OUTCOME: &str = "kafka_tracer.transaction.outcome";
pub const SASL_MECHANISM: &str = "kafka_tracer.sasl.mechanism";
pub const ACKNOWLEDGE_TYPE: &str = "kafka_tracer.acknowledge.type";
pub const ACKNOWLEDGE_FIRST_OFFSET: &str = "kafka_tracer.acknowledge.first_offset";
pub const ACKNOWLEDGE_LAST_OFFSET: &str = "kafka_tracer.acknowledge.last_offset";

/// Attributes of the `kafka.*` gauges, named as the Collector's Kafka receiver does.
pub const GROUP: &str = "group";
pub const TOPIC: &str = "topic";
pub const PARTITION: &str = "partition";

/// Value of [`SIDE`].
pub const fn side(side: Side) -> &'static str {
    match side {
        Side::Client => "client",
        Side::Broker => "broker",
    }
}

/// Attribute of the health counters: what became of it.
pub const RESULT: &str = "result";
/// Attribute of the health counters: why it was lost.
pub const REASON: &str = "reason";
pub const PROGRAM: &str = "program";
/// Attributes of the tracer's connections: how they are encrypted or authenticated, and whose end was seen.
pub const STATE: &str = "state";
pub const ROLE: &str = "role";

/// Values of `error.type` that are not Kafka's names.
pub mod error {
    /// The connection ended before the answer.
    pub const CONNECTION_CLOSED: &str = "connection_closed";
    /// No answer came, and nothing explains that.
    pub const NO_RESPONSE: &str = "no_response";
}

/// Names of metrics.
pub mod metric {
    pub const CLIENT_OPERATION_DURATION: &str = "messaging.client.operation.duration";
    pub const CLIENT_SENT_MESSAGES: &str = "messaging.client.sent.messages";
    pub const CLIENT_CONSUMED_MESSAGES: &str = "messaging.client.consumed.messages";

    pub const GROUP_LAG: &str = "kafka.consumer_group.lag";
    pub const GROUP_OFFSET: &str = "kafka.consumer_group.offset";
    pub const CONSUMER_LAG: &str = "kafka_tracer.consumer.lag";
    pub const LAST_FETCH_AGE: &str = "kafka_tracer.consumer.last_fetch.age";
    pub const LAST_COMMIT_AGE: &str = "kafka_tracer.group.last_commit.age";
    pub const LAST_SEEN_AGE: &str = "kafka_tracer.topic.last_seen.age";
    pub const PARTITION_CURRENT_OFFSET: &str = "kafka.partition.current_offset";
    pub const PARTITION_OLDEST_OFFSET: &str = "kafka.partition.oldest_offset";
    pub const PARTITION_LAST_STABLE_OFFSET: &str = "kafka_tracer.partition.last_stable_offset";
    pub const GROUP_MEMBERS: &str = "kafka_tracer.group.members";
    pub const GROUP_REBALANCES: &str = "kafka_tracer.group.rebalances";
    pub const GROUP_REBALANCE_DURATION: &str = "kafka_tracer.group.rebalance.duration";
    pub const SEND_RETRIES: &str = "kafka_tracer.send.retries";
    pub const REDELIVERED: &str = super::REDELIVERED;
    pub const TRANSACTIONS: &str = "kafka_tracer.transactions";
    pub const AUTHENTICATION_FAILURES: &str = "kafka_tracer.authentication.failures";
    pub const END_TO_END_DURATION: &str = "kafka_tracer.end_to_end.duration";
    pub const END_TO_END_NEGATIVE: &str = "kafka_tracer.end_to_end.negative";
    pub const COMMIT_DELAY: &str = super::COMMIT_DELAY;
    pub const FETCH_WAIT: &str = super::FETCH_WAIT;
    pub const THROTTLE: &str = super::THROTTLE;
    pub const REQUEST_DURATION: &str = "kafka_tracer.request.duration";
    pub const BATCH_SIZE: &str = super::BATCH_SIZE;
    pub const BATCH_RECORDS: &str = "kafka_tracer.batch.records";
    pub const BATCH_COMPRESSION_RATIO: &str = "kafka_tracer.batch.compression_ratio";

    pub const CAPTURE_BYTES: &str = "kafka_tracer.capture.bytes";
    pub const CAPTURE_EVENTS: &str = "kafka_tracer.capture.events";
    pub const CAPTURE_LOST: &str = "kafka_tracer.capture.lost";
    pub const CAPTURE_LOST_EVENTS: &str = "kafka_tracer.capture.lost_events";
    pub const CAPTURE_PROGRAMS_OFF: &str = "kafka_tracer.capture.programs_off";
    pub const TLS_SESSIONS: &str = "kafka_tracer.tls.sessions";
    pub const TLS_OPAQUE: &str = "kafka_tracer.tls.opaque";
    pub const STREAM_GAPS: &str = "kafka_tracer.stream.gaps";
    pub const STREAM_LOST: &str = "kafka_tracer.stream.lost";
    pub const FRAMES: &str = "kafka_tracer.frames";
    pub const BATCHES: &str = "kafka_tracer.batches";
    pub const CONTEXTS: &str = "kafka_tracer.contexts";
    pub const CONNECTIONS_SEEN: &str = "kafka_tracer.connections.seen";
    pub const COVERAGE_RATIO: &str = "kafka_tracer.coverage.ratio";
    pub const CONNECTIONS: &str = "kafka_tracer.connections";
    pub const MEMORY: &str = "kafka_tracer.memory";
    pub const CPU: &str = "kafka_tracer.cpu";
    pub const OBSERVATIONS_UNNAMED: &str = "kafka_tracer.observations.unnamed";
    pub const RECORDS: &str = "kafka_tracer.records";
    pub const SPANS: &str = "kafka_tracer.spans";
    pub const METRICS_LOST: &str = "kafka_tracer.metrics.lost";
    pub const EXPORT_SPANS: &str = "kafka_tracer.export.spans";
    pub const EXPORT_LINES: &str = "kafka_tracer.export.lines";
    pub const EXPORT_REQUESTS: &str = "kafka_tracer.export.requests";
    pub const EXPORT_METRICS: &str = "kafka_tracer.export.metrics";

    /// The metrics of services: name, unit, meaning.
    pub const SERVICE: &[(&str, &str, &str)] = &[
        (CLIENT_OPERATION_DURATION, "s", "Duration of a messaging operation initiated by a producer or consumer client."),
        (CLIENT_SENT_MESSAGES, "{message}", "Number of messages a producer attempted to send to the broker."),
        (CLIENT_CONSUMED_MESSAGES, "{message}", "Number of messages that were delivered to the application."),
        (GROUP_LAG, "1", "How many messages the group's committed offset is behind the newest end of the partition that was seen."),
        (GROUP_OFFSET, "1", "Offset that the group has committed."),
        (
            CONSUMER_LAG,
            "{message}",
            "How many messages the consumer's position is behind the newest end of the partition that it may read.",
        ),
        (LAST_FETCH_AGE, "s", "Time since the consumer's last Fetch of the partition was answered."),
        (LAST_COMMIT_AGE, "s", "Time since the group committed an offset of the partition."),
        (LAST_SEEN_AGE, "s", "Time since a record of the partition was sent or fetched."),
        (PARTITION_CURRENT_OFFSET, "1", "Newest end of the partition that was seen."),
        (PARTITION_OLDEST_OFFSET, "1", "Oldest offset of the partition."),
        (PARTITION_LAST_STABLE_OFFSET, "1", "Offset of the partition before which no transaction is open."),
        (GROUP_MEMBERS, "{member}", "Members of the group that this service has."),
        (GROUP_REBALANCES, "{rebalance}", "Generations of the group that began with members of this service."),
        (GROUP_REBALANCE_DURATION, "s", "From a member's asking to join to its having partitions."),
        (SEND_RETRIES, "{batch}", "Batches that were sent again."),
        (REDELIVERED, "{message}", "Messages that were given to the group again."),
        (TRANSACTIONS, "{transaction}", "Requests to end a transaction."),
        (AUTHENTICATION_FAILURES, "{failure}", "SASL authentications that the broker refused."),
        (END_TO_END_DURATION, "s", "From being sent to being fetched, of the first record of each fetched batch."),
        (END_TO_END_NEGATIVE, "{batch}", "Batches that were fetched before they were sent, as their clocks have it."),
        (COMMIT_DELAY, "s", "From the fetch of the last offset before the committed one to the commit."),
        (FETCH_WAIT, "s", "From the last byte of a Fetch to the first of its answer."),
        (THROTTLE, "s", "How long the broker asked a client to hold back."),
        (REQUEST_DURATION, "s", "From the first byte of a request to the last of its answer."),
        (BATCH_SIZE, "By", "Size of the batches that were sent, as sent."),
        (BATCH_RECORDS, "{record}", "Records in the batches that were sent."),
        (BATCH_COMPRESSION_RATIO, "1", "Records' bytes over the batch's, of compressed batches that were decompressed."),
    ];

    /// Unit and meaning of a metric.
    pub fn described(name: &str) -> (&'static str, &'static str) {
        let known = SERVICE.iter().chain(HEALTH).find(|(known, ..)| *known == name);
        known.map_or(("1", ""), |(_, unit, meaning)| (*unit, *meaning))
    }

    /// The health counters: name, unit, meaning.
    pub const HEALTH: &[(&str, &str, &str)] = &[
        (CAPTURE_BYTES, "By", "Bytes of sockets that were captured."),
        (CAPTURE_EVENTS, "{event}", "Events that the source handed over."),
        (CAPTURE_LOST, "By", "Bytes that were seen and not captured, by reason."),
        (CAPTURE_LOST_EVENTS, "{event}", "Events of the kernel that were lost or could not be told, by reason."),
        (CAPTURE_PROGRAMS_OFF, "{program}", "Programs that the kernel refused and capture goes on without."),
        (TLS_SESSIONS, "{session}", "TLS sessions that were seen into."),
        (TLS_OPAQUE, "{connection}", "Encrypted connections of which nothing is told, by reason."),
        (STREAM_GAPS, "{gap}", "Holes in observed streams."),
        (STREAM_LOST, "By", "Bytes of observed streams that are in no frame, by reason."),
        (BATCHES, "{batch}", "Batches that were not read to their end, by reason."),
        (
            CONTEXTS,
            "{context}",
            "Trace contexts in record headers that are malformed or there more than once, and headers not captured or damaged.",
        ),
        (CONNECTIONS_SEEN, "{connection}", "Connections, by what they turned out to be."),
        (
            OBSERVATIONS_UNNAMED,
            "{observation}",
            "Observations that were given out without a topic's or cluster's name, after waiting for it.",
        ),
        (COVERAGE_RATIO, "1", "Share of the bytes of Kafka connections that was understood, and what the rest was lost by."),
        (CONNECTIONS, "{connection}", "Connections that are open and speak Kafka."),
        (MEMORY, "By", "Memory of the tracer that is resident."),
        (CPU, "s", "Processor time that the tracer has taken."),
        (FRAMES, "{frame}", "Frames, by what became of them."),
        (RECORDS, "{record}", "Records, by what became of them."),
        (SPANS, "{span}", "Spans, by what became of them."),
        (METRICS_LOST, "{series}", "Metrics that were given up because there were more than are kept apart."),
        (EXPORT_SPANS, "{span}", "Spans given to the exporter, by what became of them."),
        (EXPORT_LINES, "{line}", "Lines of text that were not printed, because printing was too slow."),
        (EXPORT_REQUESTS, "{request}", "Requests of the exporter, by how they ended."),
        (EXPORT_METRICS, "{data_point}", "Metric data points given to the exporter, by what became of them."),
    ];
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/signals.md");

    /// Names under the tracer's and the conventions' prefixes that stand in backquotes on the page.
    fn on_the_page() -> BTreeSet<&'static str> {
        let prefixes = ["messaging.", "kafka_tracer.", "kafka.", "server.", "network.", "error."];
        PAGE.split('`').skip(1).step_by(2).filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix) && name != prefix)).collect()
    }

    #[test]
    fn the_page_of_signals_names_what_exists_and_nothing_else() {
        // Constants of this file, as written.
        let source = include_str!("semconv.rs");
        let defined: BTreeSet<&str> = source
            .lines()
            .filter(|line| line.trim_start().starts_with("pub const ") && line.contains(": &str = \""))
            .filter_map(|line| line.split('"').nth(1))
            .filter(|name| name.contains('.') && !name.contains('/') && !name.starts_with("service."))
            .collect();
        let page = on_the_page();
        assert_eq!(defined.difference(&page).collect::<Vec<_>>(), Vec::<&&str>::new(), "not on the page");
        assert_eq!(page.difference(&defined).collect::<Vec<_>>(), Vec::<&&str>::new(), "only on the page");
        assert!(PAGE.contains(SCHEMA_URL) && PAGE.contains(SCOPE_NAME));
    }

    #[test]
    fn health_counters_have_a_unit_and_a_meaning_once() {
        let all: Vec<_> = metric::HEALTH.iter().chain(metric::SERVICE).collect();
        let names: BTreeSet<_> = all.iter().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|(_, unit, meaning)| !unit.is_empty() && meaning.ends_with('.')));
    }
}
