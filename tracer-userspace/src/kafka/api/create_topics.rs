//! `CreateTopics`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;
use crate::observe::TopicId;

message! {
    /// `CreateTopics`, the request.
    pub struct CreateTopicsRequest<'a> {
        topics: Vec<CreatableTopic<'a>>, 0..;
        timeout_ms: i32 = 60000, 0..;
        validate_only: bool, 1..;
    }
}

message! {
    /// `CreateTopics`, the answer.
    pub struct CreateTopicsResponse<'a> {
        throttle_time_ms: i32, 2..;
        topics: Vec<CreatableTopicResult<'a>>, 0..;
    }
}

message! {
    /// Part of `CreateTopics`.
    pub struct CreatableReplicaAssignment {
        partition_index: i32, 0..;
        broker_ids: Vec<i32>, 0..;
    }
}

message! {
    /// Part of `CreateTopics`.
    pub struct CreatableTopicConfig<'a> {
        name: &'a str, 0..;
        value: Option<&'a str>, 0..;
    }
}

message! {
    /// Part of `CreateTopics`.
    pub struct CreatableTopic<'a> {
        name: &'a str, 0..;
        num_partitions: i32, 0..;
        replication_factor: i16, 0..;
        assignments: Vec<CreatableReplicaAssignment>, 0..;
        configs: Vec<CreatableTopicConfig<'a>>, 0..;
    }
}

message! {
    /// Part of `CreateTopics`.
    pub struct CreatableTopicConfigs<'a> {
        name: &'a str, 5..;
        value: Option<&'a str>, 5..;
        read_only: bool, 5..;
        config_source: i8 = -1, 5..;
        is_sensitive: bool, 5..;
    }
}

message! {
    /// Part of `CreateTopics`.
    pub struct CreatableTopicResult<'a> {
        name: &'a str, 0..;
        topic_id: Option<TopicId>, 7..;
        error_code: i16, 0..;
        error_message: Option<&'a str>, 1..;
        num_partitions: i32 = -1, 5..;
        replication_factor: i16 = -1, 5..;
        configs: Option<Vec<CreatableTopicConfigs<'a>>>, 5..;
    } tagged {
        0 topic_config_error_code: i16, 5..;
    }
}
