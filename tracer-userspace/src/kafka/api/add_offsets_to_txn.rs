//! `AddOffsetsToTxn`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `AddOffsetsToTxn`, the request.
    pub struct AddOffsetsToTxnRequest<'a> {
        transactional_id: &'a str, 0..;
        producer_id: i64, 0..;
        producer_epoch: i16, 0..;
        group_id: &'a str, 0..;
    }
}

message! {
    /// `AddOffsetsToTxn`, the answer.
    pub struct AddOffsetsToTxnResponse {
        throttle_time_ms: i32, 0..;
        error_code: i16, 0..;
    }
}
