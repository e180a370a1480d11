//! `DescribeTopicPartitions`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::Int32Count;
use super::message::message;
use crate::observe::TopicId;

message! {
    /// `DescribeTopicPartitions`, the request.
    pub struct DescribeTopicPartitionsRequest<'a> {
        topics: Vec<TopicRequest<'a>>, 0..;
        response_partition_limit: i32 = 2000, 0..;
        cursor: Option<Cursor<'a>>, 0..;
    }
}

message! {
    /// `DescribeTopicPartitions`, the answer.
    pub struct DescribeTopicPartitionsResponse<'a> {
        throttle_time_ms: i32, 0..;
        topics: Vec<DescribeTopicPartitionsResponseTopic<'a>>, 0..;
        next_cursor: Option<Cursor<'a>>, 0..;
    }
}

message! {
    /// Part of `DescribeTopicPartitions`.
    pub struct TopicRequest<'a> {
        name: &'a str, 0..;
    }
}

message! {
    /// Part of `DescribeTopicPartitions`.
    pub struct Cursor<'a> {
        topic_name: &'a str, 0..;
        partition_index: i32, 0..;
    }
}

message! {
    /// Part of `DescribeTopicPartitions`.
    pub struct DescribeTopicPartitionsResponsePartition {
        error_code: i16, 0..;
        partition_index: i32, 0..;
        leader_id: i32, 0..;
        leader_epoch: i32 = -1, 0..;
        replica_nodes: Int32Count, 0..;
        isr_nodes: Int32Count, 0..;
        eligible_leader_replicas: Int32Count, 0..;
        last_known_elr: Int32Count, 0..;
        offline_replicas: Int32Count, 0..;
    }
}

message! {
    /// Part of `DescribeTopicPartitions`.
    pub struct DescribeTopicPartitionsResponseTopic<'a> {
        error_code: i16, 0..;
        name: Option<&'a str>, 0..;
        topic_id: Option<TopicId>, 0..;
        is_internal: bool, 0..;
        partitions: Vec<DescribeTopicPartitionsResponsePartition>, 0..;
        topic_authorized_operations: i32 = i32::MIN, 0..;
    }
}
