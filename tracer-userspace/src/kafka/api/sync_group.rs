//! `SyncGroup`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{Opaque};
use super::message::message;

message! {
    /// `SyncGroup`, the request.
    pub struct SyncGroupRequest<'a> {
        group_id: &'a str, 0..;
        generation_id: i32, 0..;
        member_id: &'a str, 0..;
        group_instance_id: Option<&'a str>, 3..;
        protocol_type: Option<&'a str>, 5..;
        protocol_name: Option<&'a str>, 5..;
        assignments: Vec<SyncGroupRequestAssignment<'a>>, 0..;
    }
}

message! {
    /// `SyncGroup`, the answer.
    pub struct SyncGroupResponse<'a> {
        throttle_time_ms: i32, 1..;
        error_code: i16, 0..;
        protocol_type: Option<&'a str>, 5..;
        protocol_name: Option<&'a str>, 5..;
        assignment: Opaque, 0..;
    }
}

message! {
    /// Part of `SyncGroup`.
    pub struct SyncGroupRequestAssignment<'a> {
        member_id: &'a str, 0..;
        assignment: Opaque, 0..;
    }
}
