//! Feeds the line with one connection of a producer whose cluster is known.

use std::net::SocketAddr;

use tracer_userspace::pipeline::{Pipeline, Sink};
use tracer_userspace::source::{CaptureEvent, Direction, EventKind, SocketKey};
use tracer_userspace::time::Timestamp;

/// How the connection's bytes come.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// Bytes of a segment, at most.
    pub(crate) segment_bytes: usize,
    /// How far the clock goes with each event.
    pub(crate) event_ns: u64,
    /// And with each byte.
    pub(crate) byte_ns: u64,
}

pub(crate) struct Feed<'a, S: Sink> {
    pipeline: &'a mut Pipeline,
    sink: &'a mut S,
    pace: Pace,
    socket: SocketKey,
    positions: (u32, u32),
    pub(crate) time_ns: u64,
}

impl<'a, S: Sink> Feed<'a, S> {
    pub(crate) fn new(pipeline: &'a mut Pipeline, sink: &'a mut S, pace: Pace) -> Self {
        let socket =
            SocketKey { scope: 0, local: SocketAddr::from(([10, 0, 0, 1], 50_000)), peer: SocketAddr::from(([10, 0, 0, 2], 9_092)) };
        let mut feed = Self { pipeline, sink, pace, socket, positions: (1, 1), time_ns: 1_700_000_000_000_000_000 };
        feed.event(EventKind::Open { direction: Direction::Sent, initiator: true, first_position: 1 }, 0);
        feed.event(EventKind::Open { direction: Direction::Received, initiator: false, first_position: 1 }, 0);
        // Metadata v2, so that the cluster is known: nothing is held back.
        let mut metadata = header(3, 2);
        metadata.extend_from_slice(&0_i32.to_be_bytes());
        feed.send(&framed(&metadata));
        let mut told = 7_i32.to_be_bytes().to_vec();
        told.extend_from_slice(&0_i32.to_be_bytes()); // brokers
        string(&mut told, "MkU3OEVBNTcwNTJENDM2Qk");
        told.extend_from_slice(&1_i32.to_be_bytes()); // controller
        told.extend_from_slice(&0_i32.to_be_bytes()); // topics
        feed.receive(&framed(&told));
        feed
    }

    fn event(&mut self, kind: EventKind<'_>, bytes: usize) {
        self.time_ns += self.pace.event_ns + self.pace.byte_ns * bytes as u64;
        let event = CaptureEvent { socket: self.socket, time: Timestamp::from_unix_ns(self.time_ns), pid: None, kind };
        self.pipeline.push(&event, self.sink);
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        for segment in bytes.chunks(self.pace.segment_bytes) {
            let position = self.positions.0;
            self.event(EventKind::Data { direction: Direction::Sent, position, bytes: segment, missing_bytes: 0 }, segment.len());
            self.positions.0 = position.wrapping_add(u32::try_from(segment.len()).unwrap_or(0));
        }
    }

    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        let position = self.positions.1;
        self.event(EventKind::Data { direction: Direction::Received, position, bytes, missing_bytes: 0 }, bytes.len());
        self.positions.1 = position.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0));
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes().to_vec();
    frame.extend_from_slice(payload);
    frame
}

fn header(api_key: i16, api_version: i16) -> Vec<u8> {
    let mut out = api_key.to_be_bytes().to_vec();
    out.extend_from_slice(&api_version.to_be_bytes());
    out.extend_from_slice(&7_i32.to_be_bytes());
    string(&mut out, "bench-producer");
    out
}

/// Produce v7 with one batch of one partition. The batch is its end, with its length and the partition's number in the eight bytes before it.
pub(crate) fn produce_request(batch: &[u8]) -> Vec<u8> {
    let mut out = header(0, 7);
    out.extend_from_slice(&(-1_i16).to_be_bytes()); // transactional id
    out.extend_from_slice(&(-1_i16).to_be_bytes()); // acks
    out.extend_from_slice(&30_000_i32.to_be_bytes());
    out.extend_from_slice(&1_i32.to_be_bytes());
    string(&mut out, "bench-topic");
    out.extend_from_slice(&1_i32.to_be_bytes());
    out.extend_from_slice(&0_i32.to_be_bytes());
    out.extend_from_slice(&u32::try_from(batch.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(batch);
    framed(&out)
}

/// Its answer: stored on this partition at this offset.
pub(crate) fn produce_answer(partition: i32, base_offset: i64) -> Vec<u8> {
    let mut out = 7_i32.to_be_bytes().to_vec();
    out.extend_from_slice(&1_i32.to_be_bytes());
    string(&mut out, "bench-topic");
    out.extend_from_slice(&1_i32.to_be_bytes());
    out.extend_from_slice(&partition.to_be_bytes());
    out.extend_from_slice(&0_i16.to_be_bytes()); // error
    out.extend_from_slice(&base_offset.to_be_bytes());
    out.extend_from_slice(&(-1_i64).to_be_bytes()); // log append time
    out.extend_from_slice(&0_i64.to_be_bytes()); // log start offset
    out.extend_from_slice(&0_i32.to_be_bytes()); // throttle
    framed(&out)
}

/// A batch of format 2 around these bytes. Its CRC is not looked at by what is measured.
pub(crate) fn stored(codec: u8, count: i32, records: &[u8]) -> Vec<u8> {
    let mut out = 0_i64.to_be_bytes().to_vec();
    out.extend_from_slice(&u32::try_from(records.len() + 49).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&0_i32.to_be_bytes()); // leader epoch
    out.push(2);
    out.extend_from_slice(&0_u32.to_be_bytes()); // crc
    out.extend_from_slice(&i16::from(codec).to_be_bytes()); // attributes
    out.extend_from_slice(&(count - 1).to_be_bytes());
    out.extend_from_slice(&1_700_000_000_000_i64.to_be_bytes());
    out.extend_from_slice(&1_700_000_000_000_i64.to_be_bytes());
    out.extend_from_slice(&(-1_i64).to_be_bytes()); // producer id
    out.extend_from_slice(&(-1_i16).to_be_bytes());
    out.extend_from_slice(&(-1_i32).to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(records);
    out
}
