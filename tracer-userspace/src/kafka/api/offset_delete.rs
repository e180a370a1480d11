//! `OffsetDelete`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `OffsetDelete`, the request.
    pub struct OffsetDeleteRequest<'a> {
        group_id: &'a str, 0..;
        topics: Vec<OffsetDeleteRequestTopic<'a>>, 0..;
    }
}

message! {
    /// `OffsetDelete`, the answer.
    pub struct OffsetDeleteResponse<'a> {
        error_code: i16, 0..;
        throttle_time_ms: i32, 0..;
        topics: Vec<OffsetDeleteResponseTopic<'a>>, 0..;
    }
}

message! {
    /// Part of `OffsetDelete`.
    pub struct OffsetDeleteRequestPartition {
        partition_index: i32, 0..;
    }
}

message! {
    /// Part of `OffsetDelete`.
    pub struct OffsetDeleteRequestTopic<'a> {
        name: &'a str, 0..;
        partitions: Vec<OffsetDeleteRequestPartition>, 0..;
    }
}

message! {
    /// Part of `OffsetDelete`.
    pub struct OffsetDeleteResponsePartition {
        partition_index: i32, 0..;
        error_code: i16, 0..;
    }
}

message! {
    /// Part of `OffsetDelete`.
    pub struct OffsetDeleteResponseTopic<'a> {
        name: &'a str, 0..;
        partitions: Vec<OffsetDeleteResponsePartition>, 0..;
    }
}
