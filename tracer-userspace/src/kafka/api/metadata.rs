//! `Metadata`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::Int32Count;
use super::header::RequestHeader;
use super::message::{Shape, message};
use crate::kafka::versions;
use crate::kafka::wire::{DecodeError, Payload};
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

/// Where the body begins of a request for all topics by librdkafka, so that it ends with its frame. It writes a count of four bytes, as
/// before compact arrays, where one is right (`rd_kafka_MetadataRequest0`, seen in 2.16.1); brokers do not mind what is left over.
pub(super) fn begins_later(header: &RequestHeader<'_>, payload: Payload<'_>, shape: Shape, damage: Option<DecodeError>) -> Option<usize> {
    const SURPLUS: usize = 3;
    let Some(DecodeError::LeftOver { left: SURPLUS, .. }) = damage else { return None };
    let is_all_topics = payload.bytes.get(header.body_start..)?.starts_with(&[0; SURPLUS + 1]);
    (header.api_key == versions::METADATA && shape.flexible && is_all_topics).then_some(header.body_start + SURPLUS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::api::{Decoded, Request, decode_request, request_header};

    fn decoded(frame: &[u8]) -> Decoded<Request<'_>> {
        let payload = Payload::whole(frame);
        decode_request(&request_header(payload).unwrap(), payload)
    }

    #[test]
    fn librdkafka_asks_for_all_topics_with_a_count_of_four_bytes() {
        // Recorded from 2.16.1: `list_topics()`. Client id `p`.
        let mut frame = [0, 3, 0, 13, 0, 0, 0, 3, 0, 1, 0x70, 0, 0, 0, 0, 0, 1, 0, 0];
        let Decoded { value: Request::Metadata(request), damage: None } = decoded(&frame) else { panic!("{:?}", decoded(&frame)) };
        assert!(request.topics.is_none() && request.allow_auto_topic_creation && !request.include_topic_authorized_operations);
        // Other bytes that are left over are damage.
        frame[14] = 1;
        assert!(decoded(&frame).damage.is_some());
        let longer = [0, 3, 0, 13, 0, 0, 0, 3, 0, 1, 0x70, 0, 0, 0, 0, 0, 0, 1, 0, 0];
        assert!(matches!(decoded(&longer).damage, Some(DecodeError::LeftOver { left: 4, .. })));
    }
}
