//! `ShareFetch`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{LeaderIdAndEpoch, NodeEndpoint, TopicRef};
use super::message::message;
use crate::kafka::wire::Payload;

message! {
    /// `ShareFetch`, the request.
    pub struct ShareFetchRequest<'a> {
        group_id: Option<&'a str>, 0..;
        member_id: Option<&'a str>, 0..;
        share_session_epoch: i32, 0..;
        max_wait_ms: i32, 0..;
        min_bytes: i32, 0..;
        max_bytes: i32 = i32::MAX, 0..;
        max_records: i32, 1..;
        batch_size: i32, 1..;
        share_acquire_mode: i8, 2..;
        is_renew_ack: bool, 2..;
        topics: Vec<FetchTopic<'a>>, 0..;
        forgotten_topics_data: Vec<ForgottenTopic<'a>>, 0..;
    }
}

message! {
    /// `ShareFetch`, the answer.
    pub struct ShareFetchResponse<'a> {
        throttle_time_ms: i32, 0..;
        error_code: i16, 0..;
        error_message: Option<&'a str>, 0..;
        acquisition_lock_timeout_ms: i32, 1..;
        responses: Vec<ShareFetchableTopicResponse<'a>>, 0..;
        node_endpoints: Vec<NodeEndpoint<'a>>, 0..;
    }
}

message! {
    /// Part of `ShareFetch`.
    pub struct AcknowledgementBatch {
        first_offset: i64, 0..;
        last_offset: i64, 0..;
        acknowledge_types: Vec<i8>, 0..;
    }
}

message! {
    /// Part of `ShareFetch`.
    pub struct FetchPartition {
        partition_index: i32, 0..;
        partition_max_bytes: i32, 0..=0;
        acknowledgement_batches: Vec<AcknowledgementBatch>, 0..;
    }
}

message! {
    /// Part of `ShareFetch`.
    pub struct FetchTopic<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<FetchPartition>, 0..;
    }
}

message! {
    /// Part of `ShareFetch`.
    pub struct ForgottenTopic<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<i32>, 0..;
    }
}

message! {
    /// Part of `ShareFetch`.
    pub struct AcquiredRecords {
        first_offset: i64, 0..;
        last_offset: i64, 0..;
        delivery_count: i16, 0..;
    }
}

message! {
    /// Part of `ShareFetch`.
    pub struct PartitionData<'a> {
        partition_index: i32, 0..;
        error_code: i16, 0..;
        error_message: Option<&'a str>, 0..;
        acknowledge_error_code: i16, 0..;
        acknowledge_error_message: Option<&'a str>, 0..;
        current_leader: LeaderIdAndEpoch, 0..;
        records: Option<Payload<'a>>, 0..;
        acquired_records: Vec<AcquiredRecords>, 0..;
    } keep |it| it.records.is_some()
}

message! {
    /// Part of `ShareFetch`.
    pub struct ShareFetchableTopicResponse<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<PartitionData<'a>>, 0..;
    } keep |it| !it.partitions.is_empty()
}
