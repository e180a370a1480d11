//! `FindCoordinator`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `FindCoordinator`, the request.
    pub struct FindCoordinatorRequest<'a> {
        key: &'a str, 0..=3;
        key_type: i8, 1..;
        coordinator_keys: Vec<&'a str>, 4..;
    }
}

message! {
    /// `FindCoordinator`, the answer.
    pub struct FindCoordinatorResponse<'a> {
        throttle_time_ms: i32, 1..;
        error_code: i16, 0..=3;
        error_message: Option<&'a str>, 1..=3;
        node_id: i32, 0..=3;
        host: &'a str, 0..=3;
        port: i32, 0..=3;
        coordinators: Vec<Coordinator<'a>>, 4..;
    }
}

message! {
    /// Part of `FindCoordinator`.
    pub struct Coordinator<'a> {
        key: &'a str, 4..;
        node_id: i32, 4..;
        host: &'a str, 4..;
        port: i32, 4..;
        error_code: i16, 4..;
        error_message: Option<&'a str>, 4..;
    }
}
