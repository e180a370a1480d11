//! `InitProducerId`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `InitProducerId`, the request.
    pub struct InitProducerIdRequest<'a> {
        transactional_id: Option<&'a str>, 0..;
        transaction_timeout_ms: i32, 0..;
        producer_id: i64 = -1, 3..;
        producer_epoch: i16 = -1, 3..;
        enable2_pc: bool, 6..;
        keep_prepared_txn: bool, 6..;
    }
}

message! {
    /// `InitProducerId`, the answer.
    pub struct InitProducerIdResponse {
        throttle_time_ms: i32, 0..;
        error_code: i16, 0..;
        producer_id: i64 = -1, 0..;
        producer_epoch: i16, 0..;
        ongoing_txn_producer_id: i64 = -1, 6..;
        ongoing_txn_producer_epoch: i16 = -1, 6..;
    }
}
