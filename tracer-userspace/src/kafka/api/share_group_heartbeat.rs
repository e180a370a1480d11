//! `ShareGroupHeartbeat`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;
use crate::observe::TopicId;

message! {
    /// `ShareGroupHeartbeat`, the request.
    pub struct ShareGroupHeartbeatRequest<'a> {
        group_id: &'a str, 0..;
        member_id: &'a str, 0..;
        member_epoch: i32, 0..;
        rack_id: Option<&'a str>, 0..;
        subscribed_topic_names: Option<Vec<&'a str>>, 0..;
    }
}

message! {
    /// `ShareGroupHeartbeat`, the answer.
    pub struct ShareGroupHeartbeatResponse<'a> {
        throttle_time_ms: i32, 0..;
        error_code: i16, 0..;
        error_message: Option<&'a str>, 0..;
        member_id: Option<&'a str>, 0..;
        member_epoch: i32, 0..;
        heartbeat_interval_ms: i32, 0..;
        assignment: Option<Assignment>, 0..;
    }
}

message! {
    /// Part of `ShareGroupHeartbeat`.
    pub struct TopicPartitions {
        topic_id: Option<TopicId>, 0..;
        partitions: Vec<i32>, 0..;
    }
}

message! {
    /// Part of `ShareGroupHeartbeat`.
    pub struct Assignment {
        topic_partitions: Vec<TopicPartitions>, 0..;
    }
}
