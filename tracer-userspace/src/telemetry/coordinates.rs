//! Ids computed from a batch's place in the log, which both ends of the log can see: the producer's side and the
//! consumer's side come to the same ids on different hosts, and no byte of a message is touched.

#![forbid(unsafe_code)]

use std::sync::Arc;

use blake3::Hasher;
use opentelemetry::{SpanId, TraceId};

const BATCH_CONTEXT: &str = "kafka-tracer batch v1";
const RECORD_CONTEXT: &str = "kafka-tracer record v1";

/// Where a batch lies in the log, and what it looks like there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Id of the cluster.
    pub cluster_id: &'a str,
    /// Name of the topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// Offset of the first record.
    pub base_offset: i64,
    /// Timestamp of the first record in milliseconds, as in the batch's header.
    pub base_timestamp_ms: i64,
    /// Last offset minus base offset.
    pub last_offset_delta: i32,
    /// The producer's id; -1 = none.
    pub producer_id: i64,
    /// The producer's epoch; -1 = none.
    pub producer_epoch: i16,
    /// Sequence number of the first record; -1 = none.
    pub base_sequence: i32,
}

/// Computes ids. Keeps the prepared hash states.
pub struct Deriver {
    batch: Hasher,
    record: Hasher,
    key: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for Deriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deriver(..)")
    }
}

impl Deriver {
    /// With the key that is hashed in first, where one is set.
    pub fn new(key: Option<Arc<[u8]>>) -> Self {
        Self { batch: Hasher::new_derive_key(BATCH_CONTEXT), record: Hasher::new_derive_key(RECORD_CONTEXT), key }
    }

    /// Trace id and span id of a batch's `send`. `None` when a name is too long to be one of Kafka's.
    pub fn batch(&mut self, place: &Place<'_>) -> Option<(TraceId, SpanId)> {
        let hasher = self.batch.reset();
        feed(hasher, self.key.as_deref(), place)?;
        let mut bytes = [0; 24];
        hasher.finalize_xof().fill(&mut bytes);
        let (trace_id, span_id) = bytes.split_first_chunk::<16>()?;
        Some((TraceId::from_bytes(*trace_id), SpanId::from_bytes(*span_id.first_chunk::<8>()?)))
    }

    /// Span id of the `send` of one record of a batch, in the batch's trace.
    pub fn record(&mut self, place: &Place<'_>, offset_delta: i32) -> Option<SpanId> {
        let hasher = self.record.reset();
        feed(hasher, self.key.as_deref(), place)?;
        hasher.update(&offset_delta.to_be_bytes());
        let mut bytes = [0; 8];
        hasher.finalize_xof().fill(&mut bytes);
        Some(SpanId::from_bytes(bytes))
    }
}

fn feed(hasher: &mut Hasher, key: Option<&[u8]>, place: &Place<'_>) -> Option<()> {
    if let Some(key) = key {
        feed_with_length(hasher, key)?;
    }
    feed_with_length(hasher, place.cluster_id.as_bytes())?;
    feed_with_length(hasher, place.topic.as_bytes())?;
    hasher
        .update(&place.partition.to_be_bytes())
        .update(&place.base_offset.to_be_bytes())
        .update(&place.base_timestamp_ms.to_be_bytes())
        .update(&place.last_offset_delta.to_be_bytes())
        .update(&place.producer_id.to_be_bytes())
        .update(&place.producer_epoch.to_be_bytes())
        .update(&place.base_sequence.to_be_bytes());
    Some(())
}

fn feed_with_length(hasher: &mut Hasher, bytes: &[u8]) -> Option<()> {
    hasher.update(&u16::try_from(bytes.len()).ok()?.to_be_bytes()).update(bytes);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'_> = Place {
        cluster_id: "MkU3OEVBNTcwNTJENDM2Qk",
        topic: "orders",
        partition: 3,
        base_offset: 1000,
        base_timestamp_ms: 1_700_000_000_000,
        last_offset_delta: 4,
        producer_id: 7,
        producer_epoch: 0,
        base_sequence: 20,
    };

    #[test]
    fn the_published_vectors_hold() {
        let mut deriver = Deriver::new(None);
        for _ in 0..2 {
            let (trace_id, span_id) = deriver.batch(&PLACE).unwrap();
            assert_eq!(trace_id.to_string(), "586b9a0e9ce789ab5c72d5f0b0ff4010");
            assert_eq!(span_id.to_string(), "eb4496bea25c15ec");
            assert_eq!(deriver.record(&PLACE, 2).unwrap().to_string(), "c861b1aabe787c5c");
        }
    }

    #[test]
    fn every_field_and_the_key_count() {
        let mut seen = vec![Deriver::new(None).batch(&PLACE).unwrap()];
        for place in [
            Place { cluster_id: "MkU3OEVBNTcwNTJENDM2Ql", ..PLACE },
            Place { topic: "orders2", ..PLACE },
            // The border between two strings is hashed too.
            Place { cluster_id: "MkU3OEVBNTcwNTJENDM2Qko", topic: "rders", ..PLACE },
            Place { partition: 4, ..PLACE },
            Place { base_offset: 1001, ..PLACE },
            Place { base_timestamp_ms: -1, ..PLACE },
            Place { last_offset_delta: 5, ..PLACE },
            Place { producer_id: -1, ..PLACE },
            Place { producer_epoch: -1, ..PLACE },
            Place { base_sequence: 0, ..PLACE },
        ] {
            seen.push(Deriver::new(None).batch(&place).unwrap());
        }
        seen.push(Deriver::new(Some(Arc::from(&b"secret"[..]))).batch(&PLACE).unwrap());
        seen.push(Deriver::new(Some(Arc::from(&b""[..]))).batch(&PLACE).unwrap());
        let distinct: std::collections::HashSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len());
    }

    #[test]
    fn a_name_that_cannot_be_kafkas_has_no_ids() {
        let long = "x".repeat(65_536);
        assert_eq!(Deriver::new(None).batch(&Place { topic: &long, ..PLACE }), None);
        assert_eq!(Deriver::new(None).record(&Place { topic: &long, ..PLACE }, 0), None);
    }
}
