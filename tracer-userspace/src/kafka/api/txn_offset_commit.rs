//! `TxnOffsetCommit`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{TopicRef};
use super::message::message;

message! {
    /// `TxnOffsetCommit`, the request.
    pub struct TxnOffsetCommitRequest<'a> {
        transactional_id: &'a str, 0..;
        group_id: &'a str, 0..;
        producer_id: i64, 0..;
        producer_epoch: i16, 0..;
        generation_id_or_member_epoch: i32 = -1, 3..;
        member_id: &'a str, 3..;
        group_instance_id: Option<&'a str>, 3..;
        topics: Vec<TxnOffsetCommitRequestTopic<'a>>, 0..;
    }
}

message! {
    /// `TxnOffsetCommit`, the answer.
    pub struct TxnOffsetCommitResponse<'a> {
        throttle_time_ms: i32, 0..;
        topics: Vec<TxnOffsetCommitResponseTopic<'a>>, 0..;
    }
}

message! {
    /// Part of `TxnOffsetCommit`.
    pub struct TxnOffsetCommitRequestPartition<'a> {
        partition_index: i32, 0..;
        committed_offset: i64, 0..;
        committed_leader_epoch: i32 = -1, 2..;
        committed_metadata: Option<&'a str>, 0..;
    }
}

message! {
    /// Part of `TxnOffsetCommit`.
    pub struct TxnOffsetCommitRequestTopic<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<TxnOffsetCommitRequestPartition<'a>>, 0..;
    }
}

message! {
    /// Part of `TxnOffsetCommit`.
    pub struct TxnOffsetCommitResponsePartition {
        partition_index: i32, 0..;
        error_code: i16, 0..;
    }
}

message! {
    /// Part of `TxnOffsetCommit`.
    pub struct TxnOffsetCommitResponseTopic<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<TxnOffsetCommitResponsePartition>, 0..;
    }
}
