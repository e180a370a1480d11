//! `PushTelemetry`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{Opaque};
use super::message::message;
use crate::observe::TopicId;

message! {
    /// `PushTelemetry`, the request.
    pub struct PushTelemetryRequest {
        client_instance_id: Option<TopicId>, 0..;
        subscription_id: i32, 0..;
        terminating: bool, 0..;
        compression_type: i8, 0..;
        metrics: Opaque, 0..;
    }
}

message! {
    /// `PushTelemetry`, the answer.
    pub struct PushTelemetryResponse {
        throttle_time_ms: i32, 0..;
        error_code: i16, 0..;
    }
}
