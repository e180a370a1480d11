//! What the live tests share: a running source whose events are put together to streams, and bytes to send.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracer_userspace::source::ebpf::{LiveSource, Pacer};
use tracer_userspace::source::{CaptureEvent, Direction, EventKind, SocketKey};

/// How long a test waits for what must come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Tests run one after another: each sees the whole host's traffic, and some count what is loaded.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running source, and what it saw.
pub(crate) struct Recorder<S> {
    pub(crate) source: S,
    pacer: Pacer,
    pub(crate) seen: Seen,
}

/// Streams by socket and direction.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) sockets: HashMap<SocketKey, SeenSocket>,
    pub(crate) events: u64,
    /// Delay from the kernel's time stamp to the sink.
    pub(crate) delays: Vec<Duration>,
}

/// What was seen on one socket.
#[derive(Default, Debug)]
pub(crate) struct SeenSocket {
    pub(crate) sent: Stream,
    pub(crate) received: Stream,
    pub(crate) pid: Option<u32>,
    pub(crate) initiator: Option<Direction>,
}

/// One direction, put together by position.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) first: Option<u32>,
    pub(crate) pieces: Vec<(u32, Vec<u8>)>,
    /// Bytes that passed and could not be read.
    pub(crate) missing: u64,
    /// Bytes of the pieces by the time of their packet.
    pub(crate) packets: HashMap<u64, usize>,
    pub(crate) end: Option<u32>,
    pub(crate) reset: bool,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pieces: Vec<_> = self.pieces.iter().map(|(position, bytes)| (position, bytes.len())).take(6).collect();
        write!(f, "first {:?}, end {:?}, {} pieces {pieces:?}", self.first, self.end, self.pieces.len())
    }
}

impl Stream {
    pub(crate) fn bytes_seen(&self) -> usize {
        self.pieces.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// The bytes from the first position on (of the SYN, else the lowest seen) as far as there is no hole.
    pub(crate) fn whole(&self) -> Vec<u8> {
        let Some(anchor) = self.first.or_else(|| self.pieces.first().map(|(position, _)| *position)) else { return Vec::new() };
        // Offsets from the anchor; without a SYN the first piece need not be the lowest.
        let mut pieces: Vec<(i64, &[u8])> = self
            .pieces
            .iter()
            .map(|(position, bytes)| (i64::from(position.wrapping_sub(anchor).cast_signed()), bytes.as_slice()))
            .collect();
        pieces.sort_by_key(|(offset, _)| *offset);
        let mut next = if self.first.is_some() { 0 } else { pieces.first().map_or(0, |(offset, _)| *offset) };
        let mut whole = Vec::new();
        for (offset, bytes) in pieces {
            if offset > next {
                break;
            }
            let skip = usize::try_from(next - offset).unwrap();
            if let Some(new) = bytes.get(skip..) {
                whole.extend_from_slice(new);
                next += i64::try_from(new.len()).unwrap();
            }
        }
        whole
    }
}

impl Seen {
    fn take(&mut self, event: CaptureEvent<'_>) {
        self.events += 1;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        self.delays.push(now.saturating_sub(Duration::from_nanos(event.time.unix_ns())));
        let socket = self.sockets.entry(event.socket).or_default();
        socket.pid = socket.pid.or(event.pid);
        match event.kind {
            EventKind::Open { direction, initiator, first_position } => {
                if initiator {
                    socket.initiator = Some(direction);
                }
                socket.way(direction).first = Some(first_position);
            }
            EventKind::Data { direction, position, bytes, missing_bytes } => {
                let stream = socket.way(direction);
                stream.missing += u64::from(missing_bytes);
                stream.pieces.push((position, bytes.to_vec()));
                *stream.packets.entry(event.time.unix_ns()).or_default() += bytes.len();
            }
            EventKind::Close { direction, position, reset } => {
                let stream = socket.way(direction);
                stream.end = Some(position);
                stream.reset |= reset;
            }
        }
    }
}

impl SeenSocket {
    pub(crate) fn way(&mut self, direction: Direction) -> &mut Stream {
        match direction {
            Direction::Sent => &mut self.sent,
            Direction::Received => &mut self.received,
        }
    }
}

impl<S: LiveSource> Recorder<S> {
    /// Records what this source sees.
    pub(crate) fn of(source: S) -> Self {
        Self { source, pacer: Pacer::new(tracer_common::limits::DEFAULT_RING_BYTES), seen: Seen::default() }
    }

    /// Takes what comes until `done` or the deadline. Says whether it was done.
    pub(crate) fn until(&mut self, mut done: impl FnMut(&mut Seen) -> bool) -> bool {
        let deadline = Instant::now() + DEADLINE;
        while !done(&mut self.seen) {
            if Instant::now() > deadline {
                return false;
            }
            let seen = &mut self.seen;
            self.pacer.poll(&mut [&mut self.source], Duration::from_millis(50), &mut |event| seen.take(event)).unwrap();
        }
        true
    }

    /// Takes what comes for a while.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            let seen = &mut self.seen;
            self.pacer.poll(&mut [&mut self.source], Duration::from_millis(20), &mut |event| seen.take(event)).unwrap();
        }
    }

    pub(crate) fn socket(&self, local: SocketAddr, peer: SocketAddr) -> Option<(&SocketKey, &SeenSocket)> {
        self.seen.sockets.iter().find(|(key, _)| (key.local, key.peer) == (local, peer))
    }

    /// Who owns a socket, as an event said or as was found out since.
    pub(crate) fn owner(&self, local: SocketAddr, peer: SocketAddr) -> Option<u32> {
        let (key, socket) = self.socket(local, peer)?;
        socket.pid.or_else(|| self.source.owner(*key))
    }

    /// Sends both ways at the same time while reading events, and compares all four streams.
    pub(crate) fn expect_exchange(&mut self, connection: Connection, up: &[u8], down: &[u8]) {
        let [client, server] = connection.addresses();
        let transfer = {
            let (up, down) = (up.to_vec(), down.to_vec());
            std::thread::spawn(move || exchange(connection, &up, &down))
        };
        assert!(self.until(|_| transfer.is_finished()), "the transfer takes too long");
        transfer.join().unwrap();
        self.expect_both_ends(client, server, up, down);
    }

    pub(crate) fn expect_both_ends(&mut self, client: SocketAddr, server: SocketAddr, up: &[u8], down: &[u8]) {
        self.expect_stream(client, server, Direction::Sent, up);
        self.expect_stream(server, client, Direction::Received, up);
        self.expect_stream(client, server, Direction::Received, down);
        self.expect_stream(server, client, Direction::Sent, down);
    }

    /// Events and bytes that were lost, whatever the reason.
    pub(crate) fn lost(&self) -> u64 {
        let counts = self.source.counts().unwrap();
        counts.lost_bytes.iter().chain(&counts.lost_events).map(|(_, count)| count).sum()
    }

    /// Waits until a direction of a socket was seen whole, and compares it.
    pub(crate) fn expect_stream(&mut self, local: SocketAddr, peer: SocketAddr, direction: Direction, expected: &[u8]) {
        let len = expected.len();
        let done = self.until(|seen| {
            seen.sockets.iter_mut().any(|(key, socket)| {
                (key.local, key.peer) == (local, peer)
                    && socket.way(direction).bytes_seen() >= len
                    && socket.way(direction).whole().len() >= len
            })
        });
        let counts = self.source.counts().unwrap();
        let sockets: Vec<_> = self.seen.sockets.keys().copied().filter(|key| (key.local, key.peer) == (local, peer)).collect();
        let Some((_, socket)) = self.seen.sockets.iter_mut().find(|(key, _)| (key.local, key.peer) == (local, peer)) else {
            panic!("nothing was seen of {local} -> {peer}; {counts:?}");
        };
        assert_eq!(sockets.len(), 1, "one connection, one socket: {sockets:?}");
        let stream = socket.way(direction);
        assert_eq!(stream.missing, 0, "all bytes can be read");
        let got = stream.whole();
        if !done || got != expected {
            let differs = got.iter().zip(expected).position(|(got, expected)| got != expected);
            panic!(
                "{direction:?} of {local} -> {peer}: {} of {len} bytes, first difference at {differs:?}; {stream:?}; {counts:?}",
                got.len()
            );
        }
    }
}

/// Both ends of a connection.
pub(crate) struct Connection {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
}

impl Connection {
    /// A connection through a listener of its own.
    pub(crate) fn over(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        Self::to(&listener, || TcpStream::connect(listener.local_addr().unwrap()).unwrap())
    }

    pub(crate) fn to(listener: &TcpListener, connect: impl FnOnce() -> TcpStream) -> Self {
        let client = connect();
        let (server, _) = listener.accept().unwrap();
        Self { client, server }
    }

    /// The client's address, and the server's.
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        [self.client.local_addr().unwrap(), self.server.local_addr().unwrap()]
    }

    /// Sends a request and its answer.
    pub(crate) fn round_trip(&mut self, request: &[u8], answer: &[u8]) {
        self.client.write_all(request).unwrap();
        self.server.read_exact(&mut vec![0; request.len()]).unwrap();
        self.server.write_all(answer).unwrap();
        self.client.read_exact(&mut vec![0; answer.len()]).unwrap();
    }
}

/// Sends both ways at the same time, checks what arrives, and closes. As with Kafka, the client speaks first.
pub(crate) fn exchange(connection: Connection, up: &[u8], down: &[u8]) {
    let Connection { client, server } = connection;
    std::thread::scope(|scope| {
        scope.spawn(|| (&client).write_all(up).unwrap());
        let mut start = [0; 14];
        (&server).read_exact(&mut start).unwrap();
        scope.spawn(|| (&server).write_all(down).unwrap());
        for (mut socket, got, wanted) in [(&client, 0, down), (&server, start.len(), up)] {
            scope.spawn(move || {
                let mut rest = vec![0; wanted.len() - got];
                socket.read_exact(&mut rest).unwrap();
                assert!(rest == wanted[got..], "the connection itself is broken");
            });
        }
    });
}

/// A Metadata request of `len` bytes in all, behind its header random bytes.
pub(crate) fn kafka_request(len: usize) -> Vec<u8> {
    assert!(len >= 18);
    let mut request = Vec::with_capacity(len);
    request.extend_from_slice(&u32::try_from(len - 4).unwrap().to_be_bytes());
    request.extend_from_slice(b"\0\x03\0\x09\0\0\0\x01\0\x04live");
    request.extend(pseudo_random(len - request.len()));
    request
}

/// Bytes that repeat nowhere near.
pub(crate) fn pseudo_random(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
