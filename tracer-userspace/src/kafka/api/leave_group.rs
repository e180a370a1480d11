//! `LeaveGroup`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `LeaveGroup`, the request.
    pub struct LeaveGroupRequest<'a> {
        group_id: &'a str, 0..;
        member_id: &'a str, 0..=2;
        members: Vec<MemberIdentity<'a>>, 3..;
    }
}

message! {
    /// `LeaveGroup`, the answer.
    pub struct LeaveGroupResponse<'a> {
        throttle_time_ms: i32, 1..;
        error_code: i16, 0..;
        members: Vec<MemberResponse<'a>>, 3..;
    }
}

message! {
    /// Part of `LeaveGroup`.
    pub struct MemberIdentity<'a> {
        member_id: &'a str, 3..;
        group_instance_id: Option<&'a str>, 3..;
        reason: Option<&'a str>, 5..;
    }
}

message! {
    /// Part of `LeaveGroup`.
    pub struct MemberResponse<'a> {
        member_id: &'a str, 3..;
        group_instance_id: Option<&'a str>, 3..;
        error_code: i16, 3..;
    }
}
