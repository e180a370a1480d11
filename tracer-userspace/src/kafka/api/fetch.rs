//! `Fetch`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{LeaderIdAndEpoch, NodeEndpoint, TopicRef};
use super::message::message;
use crate::kafka::wire::Payload;
use crate::observe::TopicId;

message! {
    /// `Fetch`, the request.
    pub struct FetchRequest<'a> {
        replica_id: i32 = -1, 0..=14;
        max_wait_ms: i32, 0..;
        min_bytes: i32, 0..;
        max_bytes: i32 = i32::MAX, 3..;
        isolation_level: i8, 4..;
        session_id: i32, 7..;
        session_epoch: i32 = -1, 7..;
        topics: Vec<FetchTopic<'a>>, 0..;
        forgotten_topics_data: Vec<ForgottenTopic<'a>>, 7..;
        rack_id: &'a str, 11..;
    } tagged {
        0 cluster_id: Option<&'a str>, 12..;
        1 replica_state: ReplicaState, 15..;
    }
}

message! {
    /// `Fetch`, the answer.
    pub struct FetchResponse<'a> {
        throttle_time_ms: i32, 1..;
        error_code: i16, 7..;
        session_id: i32, 7..;
        responses: Vec<FetchableTopicResponse<'a>>, 0..;
    } tagged {
        0 node_endpoints: Vec<NodeEndpoint<'a>>, 16..;
    }
}

message! {
    /// Part of `Fetch`.
    pub struct ReplicaState {
        replica_id: i32 = -1, 15..;
        replica_epoch: i64 = -1, 15..;
    }
}

message! {
    /// Part of `Fetch`.
    pub struct FetchPartition {
        partition: i32, 0..;
        current_leader_epoch: i32 = -1, 9..;
        fetch_offset: i64, 0..;
        last_fetched_epoch: i32 = -1, 12..;
        log_start_offset: i64 = -1, 5..;
        partition_max_bytes: i32, 0..;
    } tagged {
        0 replica_directory_id: Option<TopicId>, 17..;
        1 high_watermark: i64 = i64::MAX, 18..;
    }
}

message! {
    /// Part of `Fetch`.
    pub struct FetchTopic<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<FetchPartition>, 0..;
    }
}

message! {
    /// Part of `Fetch`.
    pub struct ForgottenTopic<'a> {
        topic: TopicRef<'a>, 7..;
        partitions: Vec<i32>, 7..;
    }
}

message! {
    /// Part of `Fetch`.
    pub struct EpochEndOffset {
        epoch: i32 = -1, 12..;
        end_offset: i64 = -1, 12..;
    }
}

message! {
    /// Part of `Fetch`.
    pub struct SnapshotId {
        end_offset: i64 = -1, 0..;
        epoch: i32 = -1, 0..;
    }
}

message! {
    /// Part of `Fetch`.
    pub struct AbortedTransaction {
        producer_id: i64, 4..;
        first_offset: i64, 4..;
    }
}

message! {
    /// Part of `Fetch`.
    pub struct PartitionData<'a> {
        partition_index: i32, 0..;
        error_code: i16, 0..;
        high_watermark: i64, 0..;
        last_stable_offset: i64 = -1, 4..;
        log_start_offset: i64 = -1, 5..;
        aborted_transactions: Vec<AbortedTransaction>, 4..;
        preferred_read_replica: i32 = -1, 11..;
        records: Option<Payload<'a>>, 0..;
    } tagged {
        0 diverging_epoch: EpochEndOffset, 12..;
        1 current_leader: LeaderIdAndEpoch, 12..;
        2 snapshot_id: SnapshotId, 12..;
    } keep |it| it.records.is_some()
}

message! {
    /// Part of `Fetch`.
    pub struct FetchableTopicResponse<'a> {
        topic: TopicRef<'a>, 0..;
        partitions: Vec<PartitionData<'a>>, 0..;
    } keep |it| !it.partitions.is_empty()
}
