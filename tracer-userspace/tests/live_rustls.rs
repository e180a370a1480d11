//! Sessions of rustls in this process, seen into on this host's own kernel. Needs root; run by `cargo xtask test`.
#![cfg(feature = "live")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on stops")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, ServerConfig, ServerConnection, Stream, StreamOwned};
use tracer_userspace::source::ebpf::{LiveSource, Pacer, SourceCounts, TlsConfig, TlsSource};
use tracer_userspace::source::{CaptureEvent, Direction, EventKind};

/// Threads that connect at once.
const CLIENTS: u16 = 3;

/// Connections of each, one after another: each session lies where the one before lay.
const ROUNDS: u16 = 20;

/// Messages of each second connection before it is moved to another place: a client that says who it is before it hands the stream on.
const BEFORE_MOVE: usize = 2;

/// How a message is handed to rustls: the sizes of the pieces that each call is given.
const MESSAGES: [&[usize]; 10] = [
    &[60],
    &[61],
    &[62],
    &[4, 13, 500],
    // More than the library keeps: it takes a part, and is given the rest.
    &[100_000],
    &[4, 0, 1, 20_000, 3],
    &[16_384],
    // More pieces than one program copies.
    &[37; 41],
    &[70_000, 30_000, 9],
    // A request's head in as many pieces as are looked at.
    &[1, 2, 0, 1, 3, 4, 0, 60],
];

/// Which of them a connection says first: of a session whose socket is not known yet, the first bytes have to be taken for Kafka's, in pieces too.
const FIRST: [usize; 5] = [0, 3, 5, 7, 9];

/// Bytes of a message that say how long it is and whose, as requests of Kafka have it: Produce, version 9.
fn message(len: usize, correlation: i32) -> Vec<u8> {
    let mut bytes = i32::try_from(len - 4).unwrap().to_be_bytes().to_vec();
    bytes.extend([0, 0, 0, 9]);
    bytes.extend(correlation.to_be_bytes());
    bytes.extend([0, 4]);
    bytes.extend(b"test");
    bytes.extend((0..251_u8).cycle().skip(bytes.len()).take(len - bytes.len()));
    bytes
}

/// Writes pieces of these sizes, and what was not taken again.
fn write(mut stream: impl Write, bytes: &[u8], sizes: &[usize]) {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    for size in sizes {
        let (piece, behind) = rest.split_at(*size);
        pieces.push(IoSlice::new(piece));
        rest = behind;
    }
    let mut pieces = pieces.as_mut_slice();
    while !pieces.is_empty() {
        let taken = stream.write_vectored(pieces).unwrap();
        IoSlice::advance_slices(&mut pieces, taken);
    }
    stream.flush().unwrap();
}

type Client = StreamOwned<ClientConnection, TcpStream>;

/// What a connection moved, both ways, by the client's port.
type Streams = BTreeMap<u16, [Vec<u8>; 2]>;

/// Answers each message with one of the same size, in the same pieces, until the other end leaves.
fn serve(mut stream: StreamOwned<ServerConnection, TcpStream>) {
    let mut size = [0; 4];
    while stream.read_exact(&mut size).is_ok() {
        let len = usize::try_from(i32::from_be_bytes(size)).unwrap();
        stream.read_exact(&mut vec![0; len]).unwrap();
        let sizes = MESSAGES.iter().find(|sizes| sizes.iter().sum::<usize>() == len + 4).unwrap();
        write(Stream::new(&mut stream.conn, &mut stream.sock), &answer(len + 4), sizes);
    }
}

fn answer(len: usize) -> Vec<u8> {
    let mut bytes = message(len, 7);
    bytes.reverse();
    bytes
}

/// What a connection moved is known by its port: none gets one that another had, as the kernel would give it over loopback a second after the
/// other was closed (`net.ipv4.tcp_tw_reuse`).
fn connect_from_a_new_port(port: u16) -> (TcpStream, u16) {
    static PORTS: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let local = socket.local_addr().unwrap().port();
        if PORTS.lock().unwrap().insert(local) {
            return (socket, local);
        }
    }
}

/// One connection that says all messages, from one of [`FIRST`] on; in each second round it is moved to another place behind the first so many, and
/// in the later half of them each piece is written by a call of its own. Returns its port and what was moved.
fn connect(slot: &mut Option<Box<Client>>, port: u16, config: &Arc<ClientConfig>, round: u16) -> (u16, [Vec<u8>; 2]) {
    let (mut socket, local) = connect_from_a_new_port(port);
    socket.set_nodelay(true).unwrap();
    let mut session = ClientConnection::new(Arc::clone(config), "localhost".try_into().unwrap()).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut socket).unwrap();
    }
    // Hands were shaken elsewhere than where it stays.
    let mut stream = StreamOwned::new(session, socket);
    let mut moved = [Vec::new(), Vec::new()];
    let first = FIRST[usize::from(round / 2) % FIRST.len()];
    let mut messages = (0..).zip(MESSAGES.into_iter().cycle().skip(first).take(MESSAGES.len()));
    let before_move = if round.is_multiple_of(2) { 0 } else { BEFORE_MOVE };
    let by_piece = round >= ROUNDS / 2;
    say(&mut stream, messages.by_ref().take(before_move), by_piece, &mut moved);
    say(slot.insert(Box::new(stream)), messages, by_piece, &mut moved);
    *slot = None;
    (local, moved)
}

fn say(stream: &mut Client, messages: impl Iterator<Item = (i32, &'static [usize])>, by_piece: bool, moved: &mut [Vec<u8>; 2]) {
    for (number, sizes) in messages {
        let sent = message(sizes.iter().sum(), number);
        if by_piece {
            // It hands on the first of several pieces alone.
            write(&mut *stream, &sent, sizes);
        } else {
            write(Stream::new(&mut stream.conn, &mut stream.sock), &sent, sizes);
        }
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).unwrap();
        assert_eq!(received, answer(sent.len()));
        moved[0].extend(sent);
        moved[1].extend(received);
    }
}

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    (Arc::new(client.with_root_certificates(roots).with_no_client_auth()), Arc::new(server))
}

/// What the source says of one end's sessions.
#[derive(Default)]
struct Said {
    streams: Streams,
    /// Where in a stream the bytes of a session begin: it is another one once it was moved.
    begins: BTreeMap<(u64, bool), usize>,
    /// How often one began that connected, and one that accepted.
    begun: [u64; 2],
    ends: u64,
}

impl Said {
    fn take(&mut self, client: u16, event: &CaptureEvent<'_>) {
        match event.kind {
            EventKind::Open { direction: Direction::Sent, initiator, .. } => self.begun[usize::from(!initiator)] += 1,
            EventKind::Open { .. } => {}
            EventKind::Data { direction, position, bytes, missing_bytes } => {
                assert_eq!(missing_bytes, 0);
                let is_received = direction == Direction::Received;
                let stream = &mut self.streams.entry(client).or_default()[usize::from(is_received)];
                let begin = *self.begins.entry((event.socket.scope, is_received)).or_insert(stream.len());
                assert_eq!(stream.len(), begin + position as usize, "port {client}");
                stream.extend(bytes);
            }
            EventKind::Close { .. } => self.ends += 1,
        }
    }
}

/// Sees into this process.
fn start(port: u16, unseen_after: Duration) -> TlsSource {
    let libraries = vec![std::env::current_exe().unwrap()];
    let (ports, exclude_ports) = (vec![port], vec![]);
    TlsSource::start(TlsConfig { ports, exclude_ports, libraries, brokers: false, ring_bytes: 32 << 20, cgroup_root: None, unseen_after })
        .unwrap()
}

/// Held by a test while it runs: each sees into this process, with all of its sessions.
static TURN: Mutex<()> = Mutex::new(());

#[test]
#[ignore = "needs root and uprobes: `cargo xtask test`"]
fn all_that_sessions_of_rustls_move_is_seen_in_order_and_at_the_right_socket() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (client, server) = configs();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming().map(Result::unwrap) {
            let server = Arc::clone(&server);
            thread::spawn(move || serve(StreamOwned::new(ServerConnection::new(server).unwrap(), socket)));
        }
    });
    let mut source = start(port, TlsConfig::UNSEEN_AFTER);
    let mut pacer = Pacer::new(32 << 20);
    let (mut clients, mut servers) = (Said::default(), Said::default());
    let mut take = |event: CaptureEvent<'_>| {
        if event.socket.peer.port() == port {
            clients.take(event.socket.local.port(), &event);
        } else {
            servers.take(event.socket.peer.port(), &event);
        }
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    // Programs are attached by a thread of the source.
    while source.counts().unwrap().sessions == 0 {
        assert!(Instant::now() < deadline, "nothing is seen");
        connect(&mut None, port, &client, 0);
        pacer.poll(&mut [&mut source], Duration::from_millis(20), &mut |_| ()).unwrap();
    }
    thread::sleep(Duration::from_millis(200));
    pacer.poll(&mut [&mut source], Duration::from_millis(20), &mut |_| ()).unwrap();
    let before = source.counts().unwrap();
    let threads: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let client = Arc::clone(&client);
            thread::spawn(move || {
                let mut slot = None;
                (0..ROUNDS).map(|round| connect(&mut slot, port, &client, round)).collect::<Vec<_>>()
            })
        })
        .collect();
    while !threads.iter().all(thread::JoinHandle::is_finished) {
        assert!(Instant::now() < deadline, "the connections do not end");
        pacer.poll(&mut [&mut source], Duration::from_millis(20), &mut take).unwrap();
    }
    thread::sleep(Duration::from_millis(200));
    pacer.poll(&mut [&mut source], Duration::from_millis(20), &mut take).unwrap();
    let streams: Streams = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    source.finish();
    let counts = source.counts().unwrap();
    println!("{counts:?}");
    let (connections, moves) = (u64::from(CLIENTS * ROUNDS), u64::from(CLIENTS * ROUNDS / 2));
    assert_eq!(streams.len() as u64, connections, "each has a port of its own");
    for (port, [sent, received]) in &streams {
        let [seen_sent, seen_received] = &clients.streams[port];
        assert!(sent == seen_sent && received == seen_received, "the client at {port}: {} {} bytes", seen_sent.len(), seen_received.len());
        let [seen_sent, seen_received] = &servers.streams[port];
        assert!(received == seen_sent && sent == seen_received, "the server of {port}: {} {} bytes", seen_sent.len(), seen_received.len());
    }
    assert_eq!((clients.ends, servers.ends), (2 * (connections + moves), 2 * connections), "sockets that were closed, and moves");
    assert_eq!((clients.begun, servers.begun), ([connections, 0], [0, connections]), "which end connected");
    // Each has its socket, those that were moved once more.
    assert_eq!((counts.sessions - before.sessions, counts.joined_sessions), (2 * connections, before.joined_sessions + moves));
    for (reason, count) in counts.lost_bytes.iter().chain(&counts.lost_events) {
        assert_eq!(*count, 0, "{reason}");
    }
}

/// A session that says one message, which goes to no socket.
fn say_to_nobody() -> ClientConnection {
    let (client, server) = configs();
    let mut client = ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let (mut asked, mut answered) = (Vec::new(), Vec::new());
        client.write_tls(&mut asked).unwrap();
        server.write_tls(&mut answered).unwrap();
        while !asked.is_empty() && server.read_tls(&mut asked.as_slice()).unwrap() != asked.len() {}
        while !answered.is_empty() && client.read_tls(&mut answered.as_slice()).unwrap() != answered.len() {}
        server.process_new_packets().unwrap();
        client.process_new_packets().unwrap();
    }
    client.writer().write_all(&message(60, 1)).unwrap();
    client
}

/// Takes what a source says until something holds.
fn poll_until(source: &mut TlsSource, what: &str, mut holds: impl FnMut(&SourceCounts) -> bool) {
    let mut pacer = Pacer::new(32 << 20);
    let deadline = Instant::now() + Duration::from_mins(1);
    while !holds(&source.counts().unwrap()) {
        assert!(Instant::now() < deadline, "{what}: {:?}", source.counts().unwrap());
        pacer.poll(&mut [source], Duration::from_millis(20), &mut |_| ()).unwrap();
    }
}

fn unseen(counts: &SourceCounts) -> u64 {
    counts.opaque.iter().find(|(reason, _)| *reason == "unseen").map_or(0, |(_, count)| *count)
}

#[test]
#[ignore = "needs root and uprobes: `cargo xtask test`"]
fn a_connection_of_which_nothing_is_seen_is_counted_unless_a_session_without_a_socket_may_be_its_own() {
    const UNSEEN_AFTER: Duration = Duration::from_secs(2);
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = || (TcpStream::connect(("127.0.0.1", port)).unwrap(), listener.accept().unwrap());
    let mut source = start(port, UNSEEN_AFTER);
    let _first = connect();
    poll_until(&mut source, "the first connection", |counts| unseen(counts) == 1);
    let _session = say_to_nobody();
    poll_until(&mut source, "the session", |counts| counts.events > 0);
    let (_second, _third) = (connect(), connect());
    let begun = Instant::now();
    poll_until(&mut source, "one of the others", |counts| unseen(counts) > 1);
    // Sockets are listed once a second.
    poll_until(&mut source, "time goes on", |_| begun.elapsed() > 2 * UNSEEN_AFTER + Duration::from_secs(1));
    let counts = source.counts().unwrap();
    println!("{counts:?}");
    assert_eq!(unseen(&counts), 2, "the session may be one of them");
}
