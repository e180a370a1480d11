//! `ListOffsets`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `ListOffsets`, the request.
    pub struct ListOffsetsRequest<'a> {
        replica_id: i32, 0..;
        isolation_level: i8, 2..;
        topics: Vec<ListOffsetsTopic<'a>>, 0..;
        timeout_ms: i32, 10..;
    }
}

message! {
    /// `ListOffsets`, the answer.
    pub struct ListOffsetsResponse<'a> {
        throttle_time_ms: i32, 2..;
        topics: Vec<ListOffsetsTopicResponse<'a>>, 0..;
    }
}

message! {
    /// Part of `ListOffsets`.
    pub struct ListOffsetsPartition {
        partition_index: i32, 0..;
        current_leader_epoch: i32 = -1, 4..;
        timestamp: i64, 0..;
        max_num_offsets: i32 = 1, 0..=0;
    }
}

message! {
    /// Part of `ListOffsets`.
    pub struct ListOffsetsTopic<'a> {
        name: &'a str, 0..;
        partitions: Vec<ListOffsetsPartition>, 0..;
    }
}

message! {
    /// Part of `ListOffsets`.
    pub struct ListOffsetsPartitionResponse {
        partition_index: i32, 0..;
        error_code: i16, 0..;
        old_style_offsets: Vec<i64>, 0..=0;
        timestamp: i64 = -1, 1..;
        offset: i64 = -1, 1..;
        leader_epoch: i32 = -1, 4..;
    }
}

message! {
    /// Part of `ListOffsets`.
    pub struct ListOffsetsTopicResponse<'a> {
        name: &'a str, 0..;
        partitions: Vec<ListOffsetsPartitionResponse>, 0..;
    }
}
