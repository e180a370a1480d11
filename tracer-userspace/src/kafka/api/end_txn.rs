//! `EndTxn`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `EndTxn`, the request.
    pub struct EndTxnRequest<'a> {
        transactional_id: &'a str, 0..;
        producer_id: i64, 0..;
        producer_epoch: i16, 0..;
        committed: bool, 0..;
    }
}

message! {
    /// `EndTxn`, the answer.
    pub struct EndTxnResponse {
        throttle_time_ms: i32, 0..;
        error_code: i16, 0..;
        producer_id: i64 = -1, 5..;
        producer_epoch: i16 = -1, 5..;
    }
}
