//! `AddPartitionsToTxn`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `AddPartitionsToTxn`, the request.
    pub struct AddPartitionsToTxnRequest<'a> {
        transactions: Vec<AddPartitionsToTxnTransaction<'a>>, 4..;
        v3_and_below_transactional_id: &'a str, 0..=3;
        v3_and_below_producer_id: i64, 0..=3;
        v3_and_below_producer_epoch: i16, 0..=3;
        v3_and_below_topics: Vec<AddPartitionsToTxnTopic<'a>>, 0..=3;
    }
}

message! {
    /// `AddPartitionsToTxn`, the answer.
    pub struct AddPartitionsToTxnResponse<'a> {
        throttle_time_ms: i32, 0..;
        error_code: i16, 4..;
        results_by_transaction: Vec<AddPartitionsToTxnResult<'a>>, 4..;
        results_by_topic_v3_and_below: Vec<AddPartitionsToTxnTopicResult<'a>>, 0..=3;
    }
}

message! {
    /// Part of `AddPartitionsToTxn`.
    pub struct AddPartitionsToTxnTopic<'a> {
        name: &'a str, 0..;
        partitions: Vec<i32>, 0..;
    }
}

message! {
    /// Part of `AddPartitionsToTxn`.
    pub struct AddPartitionsToTxnTransaction<'a> {
        transactional_id: &'a str, 4..;
        producer_id: i64, 4..;
        producer_epoch: i16, 4..;
        verify_only: bool, 4..;
        topics: Vec<AddPartitionsToTxnTopic<'a>>, 4..;
    }
}

message! {
    /// Part of `AddPartitionsToTxn`.
    pub struct AddPartitionsToTxnPartitionResult {
        partition_index: i32, 0..;
        partition_error_code: i16, 0..;
    }
}

message! {
    /// Part of `AddPartitionsToTxn`.
    pub struct AddPartitionsToTxnTopicResult<'a> {
        name: &'a str, 0..;
        results_by_partition: Vec<AddPartitionsToTxnPartitionResult>, 0..;
    }
}

message! {
    /// Part of `AddPartitionsToTxn`.
    pub struct AddPartitionsToTxnResult<'a> {
        transactional_id: &'a str, 4..;
        topic_results: Vec<AddPartitionsToTxnTopicResult<'a>>, 4..;
    }
}
