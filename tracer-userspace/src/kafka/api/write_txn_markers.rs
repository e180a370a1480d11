//! `WriteTxnMarkers`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `WriteTxnMarkers`, the request.
    pub struct WriteTxnMarkersRequest<'a> {
        markers: Vec<WritableTxnMarker<'a>>, 0..;
    }
}

message! {
    /// `WriteTxnMarkers`, the answer.
    pub struct WriteTxnMarkersResponse<'a> {
        markers: Vec<WritableTxnMarkerResult<'a>>, 0..;
    }
}

message! {
    /// Part of `WriteTxnMarkers`.
    pub struct WritableTxnMarkerTopic<'a> {
        name: &'a str, 0..;
        partition_indexes: Vec<i32>, 0..;
    }
}

message! {
    /// Part of `WriteTxnMarkers`.
    pub struct WritableTxnMarker<'a> {
        producer_id: i64, 0..;
        producer_epoch: i16, 0..;
        transaction_result: bool, 0..;
        topics: Vec<WritableTxnMarkerTopic<'a>>, 0..;
        coordinator_epoch: i32, 0..;
        transaction_version: i8, 2..;
    }
}

message! {
    /// Part of `WriteTxnMarkers`.
    pub struct WritableTxnMarkerPartitionResult {
        partition_index: i32, 0..;
        error_code: i16, 0..;
    }
}

message! {
    /// Part of `WriteTxnMarkers`.
    pub struct WritableTxnMarkerTopicResult<'a> {
        name: &'a str, 0..;
        partitions: Vec<WritableTxnMarkerPartitionResult>, 0..;
    }
}

message! {
    /// Part of `WriteTxnMarkers`.
    pub struct WritableTxnMarkerResult<'a> {
        producer_id: i64, 0..;
        topics: Vec<WritableTxnMarkerTopicResult<'a>>, 0..;
    }
}
