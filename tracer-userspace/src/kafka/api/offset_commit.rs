//! `OffsetCommit`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{TopicRef};
use super::message::message;

message! {
    /// `OffsetCommit`, the request.
    pub struct OffsetCommitRequest<'a> {
        group_id: &'a str, 0..;
        generation_id_or_member_epoch: i32 = -1, 1..;
        member_id: &'a str, 1..;
        group_instance_id: Option<&'a str>, 7..;
        retention_time_ms: i64 = -1, 2..=4;
        topics: Vec<OffsetCommitRequestTopic<'a>>, 0..;
    }
}

message! {
    /// `OffsetCommit`, the answer.
    pub struct OffsetCommitResponse<'a> {
        throttle_time_ms: i32, 3..;
        topics: Vec<OffsetCommitResponseTopic<'a>>, 0..;
    }
}

message! {
    /// Part of `OffsetCommit`.
    pub struct OffsetCommitRequestPartition<'a> {
        partition_index: i32, 0..;
        committed_offset: i64, 0..;
        committed_leader_epoch: i32 = -1, 6..;
        commit_timestamp: i64 = -1, 1..=1;
        committed_metadata: Option<&'a str>, 0..;
    }
}

message! {
    /// Part of `OffsetCommit`.
    pub struct OffsetCommitRequestTopic<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<OffsetCommitRequestPartition<'a>>, 0..;
    }
}

message! {
    /// Part of `OffsetCommit`.
    pub struct OffsetCommitResponsePartition {
        partition_index: i32, 0..;
        error_code: i16, 0..;
    }
}

message! {
    /// Part of `OffsetCommit`.
    pub struct OffsetCommitResponseTopic<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<OffsetCommitResponsePartition>, 0..;
    }
}
