//! `ShareAcknowledge`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{LeaderIdAndEpoch, NodeEndpoint, TopicRef};
use super::message::message;

message! {
    /// `ShareAcknowledge`, the request.
    pub struct ShareAcknowledgeRequest<'a> {
        group_id: Option<&'a str>, 0..;
        member_id: Option<&'a str>, 0..;
        share_session_epoch: i32, 0..;
        is_renew_ack: bool, 2..;
        topics: Vec<AcknowledgeTopic<'a>>, 0..;
    }
}

message! {
    /// `ShareAcknowledge`, the answer.
    pub struct ShareAcknowledgeResponse<'a> {
        throttle_time_ms: i32, 0..;
        error_code: i16, 0..;
        error_message: Option<&'a str>, 0..;
        acquisition_lock_timeout_ms: i32, 2..;
        responses: Vec<ShareAcknowledgeTopicResponse<'a>>, 0..;
        node_endpoints: Vec<NodeEndpoint<'a>>, 0..;
    }
}

message! {
    /// Part of `ShareAcknowledge`.
    pub struct AcknowledgementBatch {
        first_offset: i64, 0..;
        last_offset: i64, 0..;
        acknowledge_types: Vec<i8>, 0..;
    }
}

message! {
    /// Part of `ShareAcknowledge`.
    pub struct AcknowledgePartition {
        partition_index: i32, 0..;
        acknowledgement_batches: Vec<AcknowledgementBatch>, 0..;
    }
}

message! {
    /// Part of `ShareAcknowledge`.
    pub struct AcknowledgeTopic<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<AcknowledgePartition>, 0..;
    }
}

message! {
    /// Part of `ShareAcknowledge`.
    pub struct PartitionData<'a> {
        partition_index: i32, 0..;
        error_code: i16, 0..;
        error_message: Option<&'a str>, 0..;
        current_leader: LeaderIdAndEpoch, 0..;
    }
}

message! {
    /// Part of `ShareAcknowledge`.
    pub struct ShareAcknowledgeTopicResponse<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<PartitionData<'a>>, 0..;
    }
}
