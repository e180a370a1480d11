//! Every way of losing something between the source and the observations, counted.
//!
//! In: the steps' own counts. Out: plain numbers for the health metrics and for `replay --format summary`.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// Counts of the line, from connection to observation. All of it only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were looked at.
    pub connections: u64,
    /// Those that proved to speak Kafka.
    pub connections_kafka: u64,
    /// Those that are encrypted.
    pub connections_encrypted: u64,
    /// Those that speak something else.
    pub connections_other: u64,
    /// Those that were forgotten because there were too many.
    pub connections_evicted: u64,
    /// Times that a connection gave up what it held because memory was short.
    pub relieved: u64,
    /// Payload bytes of the streams that were handed on, each once.
    pub stream_bytes: u64,
    /// Holes in streams.
    pub stream_gaps: u64,
    /// Bytes in them.
    pub stream_gap_bytes: u64,
    /// Bytes that were seen again and dropped.
    pub duplicate_bytes: u64,
    /// Bytes that are in no frame, by reason.
    pub unframed_bytes: BTreeMap<&'static str, u64>,
    /// Bytes of frames of Kafka connections that were read to their end.
    pub understood_bytes: u64,
    /// Bytes of Kafka connections that were not, by reason.
    pub lost_bytes: BTreeMap<&'static str, u64>,
    /// Frames, by what became of them.
    pub frames: BTreeMap<&'static str, u64>,
    /// Answered (or unanswerable) requests, by API name.
    pub exchanges: BTreeMap<&'static str, u64>,
    /// Records, by what became of them.
    pub records: BTreeMap<&'static str, u64>,
    /// Batches that were not read to their end, by reason.
    pub batches: BTreeMap<&'static str, u64>,
    /// Times that a connection's frames had to be searched for.
    pub lost_sync: u64,
    /// Record headers that look like a trace context and are none.
    pub malformed_contexts: u64,
    /// Records with more than one header of a propagator's name.
    pub repeated_contexts: u64,
    /// Records whose headers were not captured: whether they carry a context is not known.
    pub unseen_contexts: u64,
    /// Records whose headers could not be read to their end.
    pub damaged_headers: u64,
    /// Observations that were given out without a name they lacked, because the holding time was over or the hold full.
    pub held_too_long: u64,
}

impl Counters {
    /// One more frame of this kind.
    pub fn frame(&mut self, result: &'static str) {
        *self.frames.entry(result).or_default() += 1;
    }

    /// So many more records of this kind.
    pub fn record(&mut self, result: &'static str, count: u64) {
        if count > 0 {
            *self.records.entry(result).or_default() += count;
        }
    }

    /// One more batch that was not read to its end.
    pub fn batch(&mut self, reason: &'static str) {
        *self.batches.entry(reason).or_default() += 1;
    }

    /// So many more bytes of a Kafka connection, of a frame that was read to its end (no reason), or not.
    pub fn kafka_bytes(&mut self, bytes: u64, lost: Option<&'static str>) {
        match lost {
            None => self.understood_bytes += bytes,
            Some(reason) => *self.lost_bytes.entry(reason).or_default() += bytes,
        }
    }

    /// So many more bytes that are in no frame.
    pub fn unframed(&mut self, reason: &'static str, bytes: u64) {
        *self.unframed_bytes.entry(reason).or_default() += bytes;
    }
}
