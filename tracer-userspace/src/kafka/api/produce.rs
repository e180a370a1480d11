//! `Produce`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{LeaderIdAndEpoch, NodeEndpoint, TopicRef};
use super::message::message;
use crate::kafka::wire::Payload;

message! {
    /// `Produce`, the request.
    pub struct ProduceRequest<'a> {
        transactional_id: Option<&'a str>, 3..;
        acks: i16, 0..;
        timeout_ms: i32, 0..;
        topic_data: Vec<TopicProduceData<'a>>, 0..;
    }
}

message! {
    /// `Produce`, the answer.
    pub struct ProduceResponse<'a> {
        responses: Vec<TopicProduceResponse<'a>>, 0..;
        throttle_time_ms: i32, 1..;
    } tagged {
        0 node_endpoints: Vec<NodeEndpoint<'a>>, 10..;
    }
}

message! {
    /// Part of `Produce`.
    pub struct PartitionProduceData<'a> {
        index: i32, 0..;
        records: Option<Payload<'a>>, 0..;
    } keep |it| it.records.is_some()
}

message! {
    /// Part of `Produce`.
    pub struct TopicProduceData<'a> {
        topic: TopicRef<'a>, 0..;
        partition_data: Vec<PartitionProduceData<'a>>, 0..;
    } keep |it| !it.partition_data.is_empty()
}

message! {
    /// Part of `Produce`.
    pub struct BatchIndexAndErrorMessage<'a> {
        batch_index: i32, 8..;
        batch_index_error_message: Option<&'a str>, 8..;
    }
}

message! {
    /// Part of `Produce`.
    pub struct PartitionProduceResponse<'a> {
        index: i32, 0..;
        error_code: i16, 0..;
        base_offset: i64, 0..;
        log_append_time_ms: i64 = -1, 2..;
        log_start_offset: i64 = -1, 5..;
        record_errors: Vec<BatchIndexAndErrorMessage<'a>>, 8..;
        error_message: Option<&'a str>, 8..;
    } tagged {
        0 current_leader: LeaderIdAndEpoch, 10..;
    }
}

message! {
    /// Part of `Produce`.
    pub struct TopicProduceResponse<'a> {
        topic: TopicRef<'a>, 0..;
        partition_responses: Vec<PartitionProduceResponse<'a>>, 0..;
    } keep |it| !it.partition_responses.is_empty()
}
