//! Conversations between a client and a broker, put together by hand and recorded as a capture.

use std::net::SocketAddr;
use std::time::Duration;

use crate::capture::{ACK, Capture, FIN, SYN, Segment};

/// Records what happens, a millisecond apart.
#[derive(Debug)]
pub struct Recorder {
    segments: Vec<Segment>,
    now_ns: u64,
    next_port: u16,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Flow {
    client: SocketAddr,
    broker: SocketAddr,
    client_next: u32,
    broker_next: u32,
}

/// A segment holds no more.
const MAX_SEGMENT_BYTES: usize = 60_000;

impl Default for Recorder {
    fn default() -> Self {
        Self { segments: Vec::new(), now_ns: 1_700_000_000_000_000_000, next_port: 40_000 }
    }
}

impl Recorder {
    /// A connection whose handshake is seen.
    pub fn connect(&mut self) -> Flow {
        let mut flow = self.connected_before();
        let (client, broker) = (flow.client_next, flow.broker_next);
        self.record(flow.client, flow.broker, client, SYN, &[]);
        self.record(flow.broker, flow.client, broker, SYN | ACK, &[]);
        flow.client_next = client.wrapping_add(1);
        flow.broker_next = broker.wrapping_add(1);
        self.record(flow.client, flow.broker, flow.client_next, ACK, &[]);
        flow
    }

    /// A connection that existed before anything was seen.
    pub fn connected_before(&mut self) -> Flow {
        self.next_port += 1;
        Flow {
            client: SocketAddr::from(([10, 0, 0, 9], self.next_port)),
            broker: SocketAddr::from(([10, 0, 0, 1], 9092)),
            // Near the wrap, so that every test passes over it.
            client_next: u32::MAX - 50,
            broker_next: u32::MAX - 50,
        }
    }

    /// The client sends bytes in one piece.
    pub fn ask(&mut self, flow: &mut Flow, bytes: &[u8]) {
        for piece in bytes.chunks(MAX_SEGMENT_BYTES) {
            self.record(flow.client, flow.broker, flow.client_next, ACK, piece);
            flow.client_next = advanced(flow.client_next, piece);
        }
    }

    /// The broker sends bytes in one piece.
    pub fn answer(&mut self, flow: &mut Flow, bytes: &[u8]) {
        for piece in bytes.chunks(MAX_SEGMENT_BYTES) {
            self.record(flow.broker, flow.client, flow.broker_next, ACK, piece);
            flow.broker_next = advanced(flow.broker_next, piece);
        }
    }

    /// The client sends bytes cut at these places.
    pub fn ask_cut(&mut self, flow: &mut Flow, bytes: &[u8], cuts: &[usize]) {
        pieces(bytes, cuts).for_each(|piece| self.ask(flow, piece));
    }

    /// The broker sends bytes cut at these places.
    pub fn answer_cut(&mut self, flow: &mut Flow, bytes: &[u8], cuts: &[usize]) {
        pieces(bytes, cuts).for_each(|piece| self.answer(flow, piece));
    }

    /// The client sends bytes that nobody captures.
    pub fn ask_unseen(&mut self, flow: &mut Flow, bytes: &[u8]) {
        self.wait(Duration::from_millis(1));
        flow.client_next = advanced(flow.client_next, bytes);
    }

    /// The broker sends bytes that nobody captures.
    pub fn answer_unseen(&mut self, flow: &mut Flow, bytes: &[u8]) {
        self.wait(Duration::from_millis(1));
        flow.broker_next = advanced(flow.broker_next, bytes);
    }

    /// Both ends close.
    pub fn close(&mut self, flow: &mut Flow) {
        self.record(flow.client, flow.broker, flow.client_next, FIN | ACK, &[]);
        self.record(flow.broker, flow.client, flow.broker_next, FIN | ACK, &[]);
    }

    /// Nothing happens for a while.
    pub fn wait(&mut self, time: Duration) {
        self.now_ns += u64::try_from(time.as_nanos()).unwrap_or(0);
    }

    /// The time of the next segment, nanoseconds since the epoch.
    pub const fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// What was recorded.
    pub fn capture(self) -> Capture {
        Capture { segments: self.segments }
    }

    fn record(&mut self, source: SocketAddr, destination: SocketAddr, sequence: u32, flags: u8, payload: &[u8]) {
        self.segments.push(Segment { time_ns: self.now_ns, source, destination, sequence, flags, payload: payload.to_vec() });
        self.wait(Duration::from_millis(1));
    }
}

fn advanced(position: u32, bytes: &[u8]) -> u32 {
    position.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0))
}

/// The parts of `bytes` between these places; places beyond the end are passed over.
fn pieces<'a>(bytes: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut begin = 0;
    let ends = cuts.iter().copied().filter(|cut| *cut < bytes.len()).chain([bytes.len()]);
    ends.map(move |end| &bytes[std::mem::replace(&mut begin, end)..end])
}
