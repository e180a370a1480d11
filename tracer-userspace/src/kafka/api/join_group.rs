//! `JoinGroup`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{Opaque};
use super::message::message;

message! {
    /// `JoinGroup`, the request.
    pub struct JoinGroupRequest<'a> {
        group_id: &'a str, 0..;
        session_timeout_ms: i32, 0..;
        rebalance_timeout_ms: i32 = -1, 1..;
        member_id: &'a str, 0..;
        group_instance_id: Option<&'a str>, 5..;
        protocol_type: &'a str, 0..;
        protocols: Vec<JoinGroupRequestProtocol<'a>>, 0..;
        reason: Option<&'a str>, 8..;
    }
}

message! {
    /// `JoinGroup`, the answer.
    pub struct JoinGroupResponse<'a> {
        throttle_time_ms: i32, 2..;
        error_code: i16, 0..;
        generation_id: i32 = -1, 0..;
        protocol_type: Option<&'a str>, 7..;
        protocol_name: Option<&'a str>, 0..;
        leader: &'a str, 0..;
        skip_assignment: bool, 9..;
        member_id: &'a str, 0..;
        members: Vec<JoinGroupResponseMember<'a>>, 0..;
    }
}

message! {
    /// Part of `JoinGroup`.
    pub struct JoinGroupRequestProtocol<'a> {
        name: &'a str, 0..;
        metadata: Opaque, 0..;
    }
}

message! {
    /// Part of `JoinGroup`.
    pub struct JoinGroupResponseMember<'a> {
        member_id: &'a str, 0..;
        group_instance_id: Option<&'a str>, 5..;
        metadata: Opaque, 0..;
    }
}
