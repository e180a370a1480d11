//! `ConsumerGroupHeartbeat`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;
use crate::observe::TopicId;

message! {
    /// `ConsumerGroupHeartbeat`, the request.
    pub struct ConsumerGroupHeartbeatRequest<'a> {
        group_id: &'a str, 0..;
        member_id: &'a str, 0..;
        member_epoch: i32, 0..;
        instance_id: Option<&'a str>, 0..;
        rack_id: Option<&'a str>, 0..;
        rebalance_timeout_ms: i32 = -1, 0..;
        subscribed_topic_names: Option<Vec<&'a str>>, 0..;
        subscribed_topic_regex: Option<&'a str>, 1..;
        server_assignor: Option<&'a str>, 0..;
        topic_partitions: Option<Vec<TopicPartitions>>, 0..;
    }
}

message! {
    /// `ConsumerGroupHeartbeat`, the answer.
    pub struct ConsumerGroupHeartbeatResponse<'a> {
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
    /// Part of `ConsumerGroupHeartbeat`.
    pub struct TopicPartitions {
        topic_id: Option<TopicId>, 0..;
        partitions: Vec<i32>, 0..;
    }
}

message! {
    /// Part of `ConsumerGroupHeartbeat`.
    pub struct Assignment {
        topic_partitions: Vec<TopicPartitions>, 0..;
    }
}
