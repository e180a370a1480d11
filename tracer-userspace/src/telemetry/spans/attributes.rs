//! Attributes that spans have in common. Strings are shared, not copied: a batch's record spans differ in little.

use std::sync::Arc;

use opentelemetry::{KeyValue, StringValue, Value};

use super::super::OperationName;
use super::super::semconv;
use crate::observe::{BatchHeader, Operation, Topic};

/// Seconds of milliseconds.
pub(super) fn seconds(ms: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a few millennia are exact in a double")]
    let ms = ms as f64;
    ms / 1_000.0
}

/// A counted size, as attributes have it.
pub(super) fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

pub(super) fn text(key: &'static str, value: &Arc<str>) -> KeyValue {
    KeyValue::new(key, Value::String(StringValue::from(Arc::clone(value))))
}

fn shared(value: String) -> StringValue {
    StringValue::from(Arc::<str>::from(value))
}

/// What every span of an operation says.
pub(super) fn common(name: OperationName, with_type: bool, operation: &Operation, topic: &Topic, partition: i32) -> Vec<KeyValue> {
    let broker = operation.connection.broker;
    let address = shared(broker.ip().to_canonical().to_string());
    let mut attributes = Vec::with_capacity(32);
    attributes.push(KeyValue::new(semconv::MESSAGING_SYSTEM, semconv::MESSAGING_SYSTEM_KAFKA));
    attributes.push(KeyValue::new(semconv::MESSAGING_OPERATION_NAME, name.name()));
    if with_type {
        attributes.push(KeyValue::new(semconv::MESSAGING_OPERATION_TYPE, name.operation_type()));
    }
    match (&topic.name, topic.id) {
        (Some(name), _) => attributes.push(text(semconv::MESSAGING_DESTINATION_NAME, name)),
        (None, Some(id)) => attributes.push(KeyValue::new(semconv::TOPIC_ID, shared(id.to_string()))),
        (None, None) => {}
    }
    attributes.push(KeyValue::new(semconv::MESSAGING_DESTINATION_PARTITION_ID, shared(partition.to_string())));
    if let Some(client_id) = &operation.client_id {
        attributes.push(text(semconv::MESSAGING_CLIENT_ID, client_id));
    }
    if let Some(cluster_id) = &operation.cluster_id {
        attributes.push(text(semconv::MESSAGING_KAFKA_CLUSTER_ID, cluster_id));
    }
    let (server, server_port) = match &operation.server {
        Some((host, port)) => (StringValue::from(Arc::clone(host)), *port),
        None => (address.clone(), broker.port()),
    };
    attributes.push(KeyValue::new(semconv::SERVER_ADDRESS, server));
    attributes.push(KeyValue::new(semconv::SERVER_PORT, i64::from(server_port)));
    attributes.push(KeyValue::new(semconv::NETWORK_PEER_ADDRESS, address));
    attributes.push(KeyValue::new(semconv::NETWORK_PEER_PORT, i64::from(broker.port())));
    attributes.push(KeyValue::new(semconv::SIDE, semconv::side(operation.connection.side)));
    attributes.push(KeyValue::new(semconv::API_VERSION, i64::from(operation.api_version)));
    attributes
}

/// Who leads the partition, where an answer says that it is another broker.
pub(super) fn current_leader(leader: Option<i32>) -> Option<KeyValue> {
    leader.map(|id| KeyValue::new(semconv::CURRENT_LEADER, i64::from(id)))
}

/// What send and fetch say of the batch and of the broker's throttling.
pub(super) fn batch(attributes: &mut Vec<KeyValue>, operation: &Operation, header: &BatchHeader, uncompressed_bytes: Option<u64>) {
    attributes.push(KeyValue::new(semconv::BATCH_CODEC, header.codec.name()));
    attributes.push(KeyValue::new(semconv::BATCH_SIZE, i64::from(header.size_bytes)));
    if let Some(bytes) = uncompressed_bytes {
        attributes.push(KeyValue::new(semconv::BATCH_UNCOMPRESSED_SIZE, size(bytes)));
    }
    if operation.throttle_ms > 0 {
        attributes.push(KeyValue::new(semconv::THROTTLE, seconds(i64::from(operation.throttle_ms))));
    }
}
