//! `Heartbeat`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `Heartbeat`, the request.
    pub struct HeartbeatRequest<'a> {
        group_id: &'a str, 0..;
        generation_id: i32, 0..;
        member_id: &'a str, 0..;
        group_instance_id: Option<&'a str>, 3..;
    }
}

message! {
    /// `Heartbeat`, the answer.
    pub struct HeartbeatResponse {
        throttle_time_ms: i32, 1..;
        error_code: i16, 0..;
    }
}
