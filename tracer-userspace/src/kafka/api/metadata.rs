//! `Metadata`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::Int32Count;
use super::message::message;
use crate::observe::TopicId;

message! {
    /// `Metadata`, the request.
    pub struct MetadataRequest<'a> {
        topics: Option<Vec<MetadataRequestTopic<'a>>>, 0..;
        allow_auto_topic_creation: bool = true, 4..;
        include_cluster_authorized_operations: bool, 8..=10;
        include_topic_authorized_operations: bool, 8..;
    }
}

message! {
    /// `Metadata`, the answer.
    pub struct MetadataResponse<'a> {
        throttle_time_ms: i32, 3..;
        brokers: Vec<MetadataResponseBroker<'a>>, 0..;
        cluster_id: Option<&'a str>, 2..;
        controller_id: i32 = -1, 1..;
        topics: Vec<MetadataResponseTopic<'a>>, 0..;
        cluster_authorized_operations: i32 = i32::MIN, 8..=10;
        error_code: i16, 13..;
    }
}

message! {
    /// Part of `Metadata`.
    pub struct MetadataRequestTopic<'a> {
        topic_id: Option<TopicId>, 10..;
        name: Option<&'a str>, 0..;
    }
}

message! {
    /// Part of `Metadata`.
    pub struct MetadataResponseBroker<'a> {
        node_id: i32, 0..;
        host: &'a str, 0..;
        port: i32, 0..;
        rack: Option<&'a str>, 1..;
    }
}

message! {
    /// Part of `Metadata`.
    pub struct MetadataResponsePartition {
        error_code: i16, 0..;
        partition_index: i32, 0..;
        leader_id: i32, 0..;
        leader_epoch: i32 = -1, 7..;
        replica_nodes: Int32Count, 0..;
        isr_nodes: Int32Count, 0..;
        offline_replicas: Int32Count, 5..;
    }
}

message! {
    /// Part of `Metadata`.
    pub struct MetadataResponseTopic<'a> {
        error_code: i16, 0..;
        name: Option<&'a str>, 0..;
        topic_id: Option<TopicId>, 10..;
        is_internal: bool, 1..;
        partitions: Vec<MetadataResponsePartition>, 0..;
        topic_authorized_operations: i32 = i32::MIN, 8..;
    }
}
