//! `OffsetFetch`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{TopicRef};
use super::message::message;

message! {
    /// `OffsetFetch`, the request.
    pub struct OffsetFetchRequest<'a> {
        group_id: &'a str, 0..=7;
        topics: Option<Vec<OffsetFetchRequestTopic<'a>>>, 0..=7;
        groups: Vec<OffsetFetchRequestGroup<'a>>, 8..;
        require_stable: bool, 7..;
    }
}

message! {
    /// `OffsetFetch`, the answer.
    pub struct OffsetFetchResponse<'a> {
        throttle_time_ms: i32, 3..;
        topics: Vec<OffsetFetchResponseTopic<'a>>, 0..=7;
        error_code: i16, 2..=7;
        groups: Vec<OffsetFetchResponseGroup<'a>>, 8..;
    }
}

message! {
    /// Part of `OffsetFetch`.
    pub struct OffsetFetchRequestTopic<'a> {
        name: &'a str, 0..=7;
        partition_indexes: Vec<i32>, 0..=7;
    }
}

message! {
    /// Part of `OffsetFetch`.
    pub struct OffsetFetchRequestTopics<'a> {
        topic: TopicRef<'a>, 8..;
        partition_indexes: Vec<i32>, 8..;
    }
}

message! {
    /// Part of `OffsetFetch`.
    pub struct OffsetFetchRequestGroup<'a> {
        group_id: &'a str, 8..;
        member_id: Option<&'a str>, 9..;
        member_epoch: i32 = -1, 9..;
        topics: Option<Vec<OffsetFetchRequestTopics<'a>>>, 8..;
    }
}

message! {
    /// Part of `OffsetFetch`.
    pub struct OffsetFetchResponsePartition<'a> {
        partition_index: i32, 0..=7;
        committed_offset: i64, 0..=7;
        committed_leader_epoch: i32 = -1, 5..=7;
        metadata: Option<&'a str>, 0..=7;
        error_code: i16, 0..=7;
    }
}

message! {
    /// Part of `OffsetFetch`.
    pub struct OffsetFetchResponseTopic<'a> {
        name: &'a str, 0..=7;
        partitions: Vec<OffsetFetchResponsePartition<'a>>, 0..=7;
    }
}

message! {
    /// Part of `OffsetFetch`.
    pub struct OffsetFetchResponsePartitions<'a> {
        partition_index: i32, 8..;
        committed_offset: i64, 8..;
        committed_leader_epoch: i32 = -1, 8..;
        metadata: Option<&'a str>, 8..;
        error_code: i16, 8..;
    }
}

message! {
    /// Part of `OffsetFetch`.
    pub struct OffsetFetchResponseTopics<'a> {
        topic: TopicRef<'a>, 8..;
        partitions: Vec<OffsetFetchResponsePartitions<'a>>, 8..;
    }
}

message! {
    /// Part of `OffsetFetch`.
    pub struct OffsetFetchResponseGroup<'a> {
        group_id: &'a str, 8..;
        topics: Vec<OffsetFetchResponseTopics<'a>>, 8..;
        error_code: i16, 8..;
    }
}
