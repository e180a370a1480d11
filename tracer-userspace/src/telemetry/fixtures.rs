//! Observations to test with: one batch of the topic `orders` at the place of the published vectors.

use std::sync::Arc;

use crate::kafka::context::{CarriedContext, Propagator};
use crate::observe::{
    BatchHeader, Codec, Commit, Connection, Delivered, FetchFailure, FetchedBatch, Operation, Outcome, RecordFact, RecordsRead, SentBatch,
    Side, Skipped, Topic, TopicId,
};
use crate::time::Timestamp;

/// Timestamp of the batch's first record, milliseconds.
pub(crate) const T0: i64 = 1_700_000_000_000;
pub(crate) const CLUSTER: &str = "MkU3OEVBNTcwNTJENDM2Qk";

/// So many milliseconds after [`T0`].
pub(crate) fn at(ms: u64) -> Timestamp {
    Timestamp::from_unix_ns((1_700_000_000_000 + ms) * 1_000_000)
}

pub(crate) fn connection(client: &str, side: Side) -> Arc<Connection> {
    let (client, broker) = (client.parse().unwrap(), "10.0.0.1:9092".parse().unwrap());
    Arc::new(Connection { id: 1, client, broker, side, process: None })
}

/// A request at `ms`, written in 1 ms, answered from 5 to 6 ms.
pub(crate) fn operation(api_key: i16, client_id: &str, ms: u64) -> Operation {
    Operation {
        connection: connection(if api_key == 0 { "10.0.0.7:50001" } else { "10.0.0.8:50002" }, Side::Client),
        api_key,
        api_version: 12,
        client_id: Some(client_id.into()),
        cluster_id: Some(CLUSTER.into()),
        server: Some(("broker-1.example".into(), 9093)),
        request_first: at(ms),
        request_last: at(ms + 1),
        response: Some((at(ms + 5), at(ms + 6))),
        throttle_ms: 0,
        request_bytes: 500,
        response_bytes: 60,
    }
}

pub(crate) fn topic() -> Topic {
    Topic { name: Some("orders".into()), id: TopicId::new([7; 16]) }
}

/// The header of `count` records at the place of the published vectors.
pub(crate) fn header(count: i32) -> BatchHeader {
    BatchHeader {
        magic: 2,
        base_offset: 0,
        last_offset_delta: count - 1,
        base_timestamp_ms: Some(T0),
        max_timestamp_ms: Some(T0 + 4),
        record_count: count,
        producer_id: 7,
        producer_epoch: 0,
        base_sequence: 20,
        size_bytes: 321,
        crc: 0xabcd,
        codec: Codec::Lz4,
        log_append_time: false,
        transactional: false,
        control: false,
        delete_horizon: false,
    }
}

/// A context of the application number `n`.
pub(crate) fn context(n: u8, sampled: bool) -> CarriedContext {
    CarriedContext { trace_id: [n; 16], span_id: [n; 8], flags: u8::from(sampled), propagator: Propagator::TraceContext, tracestate: None }
}

pub(crate) fn record(offset_delta: i64, context: Option<CarriedContext>) -> RecordFact {
    RecordFact {
        offset_delta,
        timestamp_ms: Some(T0 + offset_delta),
        key: Some(format!("key-{offset_delta}").into()),
        value_bytes: Some(10),
        context,
        skipped: None,
        delivery_count: None,
    }
}

/// `count` records sent at 10 ms, stored at offset 1000 of partition 3.
pub(crate) fn sent(count: u32, records: Vec<RecordFact>) -> SentBatch {
    SentBatch {
        operation: Arc::new(operation(0, "shop", 10)),
        topic: topic(),
        partition: 3,
        header: header(i32::try_from(count).unwrap()),
        base_offset: Some(1000),
        log_append_time_ms: None,
        outcome: Outcome::Success,
        refused_records: Vec::new(),
        current_leader: None,
        records,
        records_read: RecordsRead::All,
        record_count: count,
        uncompressed_bytes: Some(640),
        acks: -1,
        transactional_id: None,
        retry: false,
    }
}

/// The same batch, fetched by group `billing` with a request at 2 ms that was answered from 30 to 31 ms.
pub(crate) fn fetched(count: u32, records: Vec<RecordFact>) -> FetchedBatch {
    let skipped = |why| u32::try_from(records.iter().filter(|record| record.skipped == Some(why)).count()).unwrap();
    let (below, aborted, not_acquired) = (skipped(Skipped::BelowFetchOffset), skipped(Skipped::Aborted), skipped(Skipped::NotAcquired));
    FetchedBatch {
        operation: Arc::new(Operation { response: Some((at(30), at(31))), ..operation(1, "billing-1", 2) }),
        topic: topic(),
        partition: 3,
        header: BatchHeader { base_offset: 1000, ..header(i32::try_from(count).unwrap()) },
        group: Some("billing".into()),
        fetch_offset: Some(1000),
        high_watermark: Some(1000 + i64::from(count)),
        last_stable_offset: Some(1000 + i64::from(count)),
        log_start_offset: Some(0),
        isolation_level: Some(1),
        delivered: Delivered { delivered: count - below - aborted - not_acquired, below_fetch_offset: below, aborted, not_acquired },
        records,
        records_read: RecordsRead::All,
        uncompressed_bytes: Some(640),
        share: false,
        several_groups: false,
        redelivered: false,
    }
}

pub(crate) fn fetch_failure(partition: i32, outcome: Outcome) -> FetchFailure {
    let operation = Arc::new(operation(1, "billing-1", 2));
    FetchFailure { operation, topic: topic(), partition, group: Some("billing".into()), outcome, current_leader: None }
}

/// Group `billing` commits at 50 ms.
pub(crate) fn commit(offset: i64) -> Commit {
    Commit {
        operation: Arc::new(operation(8, "billing-1", 50)),
        group: "billing".into(),
        topic: topic(),
        partition: 3,
        offset,
        moves: true,
        outcome: Outcome::Success,
        acknowledged: None,
    }
}
