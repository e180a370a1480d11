//! The programs on this host's own kernel: every byte, at both ends, whatever the traffic looks like. Needs root; run by `cargo xtask test`.
#![cfg(feature = "live")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on stops")]

#[path = "live/harness.rs"]
mod harness;
#[path = "live/net.rs"]
mod net;
#[path = "live/packet.rs"]
mod packet;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Connection, exchange, kafka_request, pseudo_random};
use net::{ExclusiveProgram, Namespace, RoughLine, accept_silently, set_tcp_option, unconnected, wait_until};
use tracer_common::counter::Counter;
use tracer_userspace::source::ebpf::{LiveSource, PacketSource, SourceConfig, StartError};
use tracer_userspace::source::{Direction, Verdict};

type Recorder = harness::Recorder<PacketSource>;

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn a_stream_over_loopback_is_seen_whole_at_both_ends() {
    let _turn = harness::turn();
    for address in LOOPBACKS {
        let mut recorder = Recorder::start();
        let connection = Connection::over(address);
        let mut up = kafka_request(3_000_000);
        up.extend(kafka_request(100));
        recorder.expect_exchange(connection, &up, &pseudo_random(2_000_000));
        assert_eq!(recorder.lost(), 0);
    }
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn packets_beyond_64_kib_are_whole_though_their_length_fields_are_0() {
    let _turn = harness::turn();
    for address in LOOPBACKS {
        let mut recorder = Recorder::start();
        let connection = Connection::over(address);
        recorder.expect_exchange(connection, &kafka_request(20_000_000), &pseudo_random(10));
        let largest = recorder.largest_packet();
        // Older kernels cut loopback's packets below 64 KiB; what came was whole all the same.
        assert!(largest > 65_536 || !packet::kernel_is_at_least(6, 3), "the largest packet had {largest} bytes");
    }
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn the_first_request_is_whole_however_it_is_cut() {
    let _turn = harness::turn();
    let cuts: [(&str, &[usize]); 7] = [
        ("whole", &[]),
        ("4 + rest", &[4]),
        ("13 + rest", &[13]),
        ("14 + rest", &[14]),
        ("4 + 4 + rest", &[4, 8]),
        ("1 + 12 + rest", &[1, 13]),
        ("byte by byte", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]),
    ];
    let mut recorder = Recorder::start();
    for address in LOOPBACKS {
        for (name, cuts) in cuts {
            let mut connection = Connection::over(address);
            connection.client.set_nodelay(true).unwrap();
            let request = kafka_request(400);
            let mut start = 0;
            for end in cuts.iter().copied().chain([request.len()]) {
                connection.client.write_all(&request[start..end]).unwrap();
                // The next segment only after this one has arrived: else they would be sent as one.
                let mut arrived = vec![0; end - start];
                connection.server.read_exact(&mut arrived).unwrap();
                start = end;
            }
            connection.server.write_all(&pseudo_random(50)).unwrap();
            let [client, server] = connection.addresses();
            println!("{name} over {client}");
            recorder.expect_stream(client, server, Direction::Sent, &request);
            recorder.expect_stream(server, client, Direction::Received, &request);
            recorder.expect_stream(server, client, Direction::Sent, &pseudo_random(50));
        }
    }
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn many_connections_at_once_lose_and_mix_nothing() {
    let _turn = harness::turn();
    let (one, other) = (Namespace::new(), Namespace::new());
    one.join(&other);
    let mut recorder = Recorder::start();
    let connections: Vec<Connection> = ["10.77.0.2:0", "[fd77::2]:0", "10.77.0.2:0", "[fd77::2]:0"]
        .into_iter()
        .map(|address| {
            let listener = other.run(|| TcpListener::bind(address).unwrap());
            Connection::to(&listener, || one.run(|| TcpStream::connect(listener.local_addr().unwrap())).unwrap())
        })
        .collect();
    // Both ways at full speed: the program of one direction interrupts that of the other in the middle of a copy.
    let transfers: Vec<_> = connections
        .into_iter()
        .enumerate()
        .map(|(index, connection)| {
            let (up, down) = (kafka_request(5_000_000 + index), pseudo_random(5_000_000 - index));
            (connection.addresses(), up.clone(), down.clone(), std::thread::spawn(move || exchange(connection, &up, &down)))
        })
        .collect();
    for ([client, server], up, down, transfer) in transfers {
        recorder.until(|_| transfer.is_finished());
        transfer.join().unwrap();
        recorder.expect_both_ends(client, server, &up, &down);
    }
    assert_eq!(recorder.lost(), 0);
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn data_that_comes_before_accept_belongs_to_the_accepted_socket() {
    let _turn = harness::turn();
    // The same addresses in two namespaces at the same time: only the listeners tell them apart.
    let namespaces = [Namespace::new(), Namespace::new()];
    let mut recorder = Recorder::start();
    let connections: Vec<_> = namespaces
        .iter()
        .enumerate()
        .map(|(index, namespace)| {
            namespace.run(|| {
                let listener = TcpListener::bind("127.0.0.1:9092").unwrap();
                set_tcp_option(&listener, libc::TCP_DEFER_ACCEPT, 5);
                let client = unconnected("127.0.0.1:40001".parse().unwrap());
                rustix::net::connect(&client, &listener.local_addr().unwrap()).unwrap();
                let request = kafka_request(500 + index);
                (&client).write_all(&request).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                let mut got = vec![0; request.len()];
                server.read_exact(&mut got).unwrap();
                let answer = pseudo_random(700 + index);
                server.write_all(&answer).unwrap();
                (client, server, request, answer)
            })
        })
        .collect();
    assert!(recorder.until(|seen| {
        seen.sockets
            .iter_mut()
            .filter(|(key, _)| [key.local.port(), key.peer.port()].contains(&40001))
            .filter(|(_, socket)| socket.received.whole().len() >= 500 && socket.sent.whole().len() >= 500)
            .count()
            >= 4
    }));
    let early = recorder.source.counters().unwrap().value(Counter::BeforeAccept);
    assert!(early >= 2, "{early} segments came before accept");
    let mut seen: Vec<_> = recorder
        .seen
        .sockets
        .iter()
        .filter(|(key, _)| key.local.port() == 9092 && key.peer.port() == 40001)
        .map(|(_, socket)| (socket.received.whole(), socket.sent.whole()))
        .collect();
    seen.sort();
    let mut expected: Vec<_> = connections.iter().map(|(_, _, request, answer)| (request.clone(), answer.clone())).collect();
    expected.sort();
    assert!(seen == expected, "{:?}", seen.iter().map(|(up, down)| (up.len(), down.len())).collect::<Vec<_>>());
    assert_eq!(recorder.source.early_counters().given_up, 0);
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn data_in_the_syn_of_fast_open_is_the_first_of_the_stream() {
    let _turn = harness::turn();
    let namespace = Namespace::new();
    let mut recorder = Recorder::start();
    let (client, server, request) = namespace.run(|| {
        // Client and server without cookies.
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1543").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_tcp_option(&listener, libc::TCP_FASTOPEN, 16);
        let client = unconnected("127.0.0.1:0".parse().unwrap());
        set_tcp_option(&client, 30, 1); // TCP_FASTOPEN_CONNECT
        rustix::net::connect(&client, &listener.local_addr().unwrap()).unwrap();
        let request = kafka_request(900);
        (&client).write_all(&request).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut got = vec![0; request.len()];
        server.read_exact(&mut got).unwrap();
        server.write_all(&kafka_request(40)).unwrap();
        (client, server, request)
    });
    let [client_address, server_address] = [client.local_addr().unwrap(), server.local_addr().unwrap()];
    recorder.expect_stream(client_address, server_address, Direction::Sent, &request);
    recorder.expect_stream(server_address, client_address, Direction::Received, &request);
    recorder.expect_stream(server_address, client_address, Direction::Sent, &kafka_request(40));
    let early = recorder.source.counters().unwrap().value(Counter::BeforeAccept);
    assert!(early >= 1, "the kernel did not put the data into the SYN");
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn loss_repetition_and_reordering_on_the_line_change_no_byte() {
    let _turn = harness::turn();
    let (one, other) = (Namespace::new(), Namespace::new());
    let line = RoughLine::between(&one, &other);
    let mut recorder = Recorder::start();
    let listener = other.run(|| TcpListener::bind("10.77.0.2:0").unwrap());
    let connect = || Connection::to(&listener, || one.run(|| TcpStream::connect(listener.local_addr().unwrap())).unwrap());
    for round in 0..4 {
        recorder.expect_exchange(connect(), &kafka_request(150_000 + round), &pseudo_random(150_000 - round));
    }
    // Many beginnings: the first segment of each can be lost or overtaken.
    for round in 0..24 {
        recorder.expect_exchange(connect(), &kafka_request(9_000 + round), &pseudo_random(100));
    }
    let counts = [&line.lost, &line.repeated, &line.delayed].map(|count| count.load(std::sync::atomic::Ordering::Relaxed));
    assert!(counts.iter().all(|count| *count > 0), "the line was not rough: {counts:?}");
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn bytes_of_sendfile_are_seen() {
    let _turn = harness::turn();
    let mut recorder = Recorder::start();
    let mut connection = Connection::over("127.0.0.1:0");
    let content = pseudo_random(3_000_123);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    file.rewind().unwrap();
    let request = kafka_request(60);
    connection.client.write_all(&request).unwrap();
    let mut got = vec![0; request.len()];
    connection.server.read_exact(&mut got).unwrap();
    let [client, server] = connection.addresses();
    let (len, to) = (content.len(), connection.server.try_clone().unwrap());
    let sender = std::thread::spawn(move || {
        let mut left = len;
        while left > 0 {
            left -= rustix::fs::sendfile(&to, &file, None, left).unwrap();
        }
    });
    let mut got = vec![0; len];
    connection.client.read_exact(&mut got).unwrap();
    sender.join().unwrap();
    recorder.expect_stream(server, client, Direction::Sent, &content);
    recorder.expect_stream(client, server, Direction::Received, &content);
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn a_connection_that_is_older_than_the_tracer_is_picked_up_at_its_next_request() {
    let _turn = harness::turn();
    let mut connection = Connection::over("127.0.0.1:0");
    let [client, server] = connection.addresses();
    connection.round_trip(&kafka_request(100), &pseudo_random(100));
    let mut recorder = Recorder::start();
    let request = kafka_request(70_000);
    connection.round_trip(&request, &pseudo_random(300));
    recorder.expect_stream(client, server, Direction::Sent, &request);
    recorder.expect_stream(server, client, Direction::Received, &request);
    recorder.expect_stream(client, server, Direction::Received, &pseudo_random(300));
    let (key, socket) = recorder.socket(client, server).unwrap();
    assert_eq!((socket.sent.first, socket.received.first), (None, None), "nobody saw how it began");
    // Nothing told whose it is: that has to be looked for.
    let key = *key;
    let owner = |recorder: &Recorder| recorder.source.owner(key);
    let deadline = Instant::now() + harness::DEADLINE;
    while owner(&recorder).is_none() && Instant::now() < deadline {
        recorder.run_for(Duration::from_millis(20));
    }
    assert_eq!(owner(&recorder), Some(std::process::id()));
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn an_answer_that_fills_a_segment_reveals_an_older_connection() {
    let _turn = harness::turn();
    let mut connection = Connection::over("127.0.0.1:0");
    let [client, server] = connection.addresses();
    connection.round_trip(&kafka_request(100), &pseudo_random(100));
    let mut recorder = Recorder::start();
    let mut answer = 296u32.to_be_bytes().to_vec();
    answer.extend(7u32.to_be_bytes());
    answer.extend(pseudo_random(292));
    connection.server.write_all(&answer).unwrap();
    recorder.expect_stream(client, server, Direction::Received, &answer);
    recorder.expect_stream(server, client, Direction::Sent, &answer);
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn both_ends_carry_the_process_that_owns_them() {
    let _turn = harness::turn();
    let mut recorder = Recorder::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for accepts_silently in [false, true] {
        let mut child = shell_client(address);
        let server = if accepts_silently { accept_silently(&listener) } else { listener.accept().unwrap().0 };
        let peer = server.peer_addr().unwrap();
        let mut got = vec![0; 22];
        (&server).read_exact(&mut got).unwrap();
        (&server).write_all(b"\n").unwrap();
        recorder.expect_stream(peer, address, Direction::Sent, SHELL_REQUEST);
        recorder.expect_stream(address, peer, Direction::Received, SHELL_REQUEST);
        let (client_key, client) = recorder.socket(peer, address).unwrap();
        assert_eq!(client.pid, Some(child.id()), "the client said so when it connected");
        assert_eq!(recorder.source.owner(*client_key), Some(child.id()));
        let server_key = *recorder.socket(address, peer).unwrap().0;
        let deadline = Instant::now() + harness::DEADLINE;
        while recorder.source.owner(server_key).is_none() && Instant::now() < deadline {
            recorder.run_for(Duration::from_millis(20));
        }
        assert_eq!(recorder.source.owner(server_key), Some(std::process::id()), "accepted silently: {accepts_silently}");
        drop(server);
        child.wait().unwrap();
    }
}

/// A Metadata request, and a program that is not this one to send it: `bash`, which ends after the first line of the answer.
const SHELL_REQUEST: &[u8] = b"\0\0\0\x12\0\x03\0\x09\0\0\0\x01\0\x04live\0\0\0\0";

fn shell_client(address: SocketAddr) -> std::process::Child {
    let escaped = SHELL_REQUEST.iter().fold(String::new(), |text, byte| text + &format!("\\x{byte:02x}"));
    let script = format!("exec 3<>/dev/tcp/{}/{}; printf '{escaped}' >&3; read -r -u 3 answer", address.ip(), address.port());
    Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("the live tests need bash")
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn a_dismissed_socket_is_copied_no_more() {
    let _turn = harness::turn();
    let mut recorder = Recorder::start();
    for confirmed_first in [false, true] {
        let mut connection = Connection::over("127.0.0.1:0");
        let [client, server] = connection.addresses();
        let request = kafka_request(200);
        connection.round_trip(&request, &pseudo_random(10));
        recorder.expect_stream(client, server, Direction::Sent, &request);
        let key = *recorder.socket(client, server).unwrap().0;
        if confirmed_first {
            recorder.source.verdict(key, Verdict::Capture).unwrap();
            connection.round_trip(&request, &pseudo_random(10));
            recorder.expect_stream(client, server, Direction::Sent, &[request.clone(), request.clone()].concat());
        }
        recorder.source.verdict(key, Verdict::Ignore).unwrap();
        let before = recorder.seen.sockets[&key].sent.bytes_seen();
        connection.round_trip(&request, &pseudo_random(10));
        connection.round_trip(&request, &pseudo_random(10));
        // The other end is still copied: when its bytes are there, this end's would be.
        let whole: Vec<u8> = std::iter::repeat_n(request.clone(), if confirmed_first { 4 } else { 3 }).flatten().collect();
        recorder.expect_stream(server, client, Direction::Received, &whole);
        assert_eq!(recorder.seen.sockets[&key].sent.bytes_seen(), before, "confirmed first: {confirmed_first}");
        // And back again.
        recorder.source.verdict(key, Verdict::Capture).unwrap();
        connection.round_trip(&request, &pseudo_random(10));
        assert!(recorder.until(|seen| seen.sockets[&key].sent.bytes_seen() == before + request.len()));
    }
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn other_protocols_are_not_copied() {
    let _turn = harness::turn();
    let mut recorder = Recorder::start();
    let mut connections = Vec::new();
    for (name, greeting, answer) in [
        ("HTTP/1", &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..]),
        (
            "HTTP/2",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\x04\0\x10\0\0\0\x06\0\0\x40\0",
            b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\x04\0\x10\0\0\0\x06\0\0\x40\0",
        ),
        ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\x11\x22\x33\x44\x55", b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03\x11\x22\x33\x44"),
        ("Redis", b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n", b"+OK\r\n"),
        ("Postgres", b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0test\0\0\0", b"R\0\0\0\x08\0\0\0\0S\0\0\0\x16"),
        ("MySQL", b"\x21\0\0\0\x03select @@version_comment", b"\x4a\0\0\0\x0a8.0.36\0\x0b\0\0\0"),
    ] {
        let mut connection = Connection::over("127.0.0.1:0");
        for _ in 0..60 {
            connection.round_trip(greeting, answer);
        }
        connections.push((name, connection));
    }
    // What is sent after all of them is Kafka: when it is there, they would be.
    let kafka = Connection::over("127.0.0.1:0");
    let [client, server] = kafka.addresses();
    let request = kafka_request(100);
    (&kafka.client).write_all(&request).unwrap();
    recorder.expect_stream(client, server, Direction::Sent, &request);
    for (name, connection) in &connections {
        let [client, server] = connection.addresses();
        assert!(recorder.socket(client, server).is_none() && recorder.socket(server, client).is_none(), "{name}");
    }
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn ports_can_be_forced_and_excluded() {
    let _turn = harness::turn();
    let (forced, excluded) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let mut recorder = Recorder::start_with(SourceConfig {
        force_ports: vec![port(&forced), port(&excluded)],
        exclude_ports: vec![port(&excluded)],
        ..SourceConfig::default()
    });
    let mut left_out = Connection::to(&excluded, || TcpStream::connect(excluded.local_addr().unwrap()).unwrap());
    left_out.round_trip(&kafka_request(100), &pseudo_random(20));
    let mut taken = Connection::to(&forced, || TcpStream::connect(forced.local_addr().unwrap()).unwrap());
    taken.round_trip(b"hello, broker", b"hello, client");
    let [client, server] = taken.addresses();
    recorder.expect_stream(client, server, Direction::Sent, b"hello, broker");
    recorder.expect_stream(server, client, Direction::Received, b"hello, broker");
    recorder.expect_stream(client, server, Direction::Received, b"hello, client");
    let [client, server] = left_out.addresses();
    assert!(recorder.socket(client, server).is_none() && recorder.socket(server, client).is_none());
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn the_end_of_a_connection_is_seen() {
    let _turn = harness::turn();
    let mut recorder = Recorder::start();
    let mut connection = Connection::over("127.0.0.1:0");
    let [client, server] = connection.addresses();
    let request = kafka_request(100);
    connection.round_trip(&request, b"answer");
    recorder.expect_stream(client, server, Direction::Sent, &request);
    drop(connection);
    assert!(recorder.until(|seen| {
        let mut ends = seen.sockets.iter().filter(|(key, _)| (key.local, key.peer) == (client, server));
        ends.any(|(_, socket)| socket.sent.end.is_some() && socket.received.end.is_some())
    }));
    let (_, socket) = recorder.socket(client, server).unwrap();
    let first = socket.sent.first.unwrap();
    assert_eq!(socket.sent.end, Some(first.wrapping_add(100)), "the end is behind the last byte");
    assert_eq!(socket.initiator, Some(Direction::Sent));
    assert_eq!(recorder.socket(server, client).unwrap().1.initiator, Some(Direction::Received));
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn two_tracers_see_the_same() {
    let _turn = harness::turn();
    let (mut one, mut other) = (Recorder::start(), Recorder::start());
    let connection = Connection::over("127.0.0.1:0");
    let [client, server] = connection.addresses();
    let (up, down) = (kafka_request(2_000_000), pseudo_random(500_000));
    one.expect_exchange(connection, &up, &down);
    other.expect_both_ends(client, server, &up, &down);
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn a_sleeping_reader_is_woken_by_the_first_event() {
    let _turn = harness::turn();
    let mut recorder = Recorder::start();
    let mut connection = Connection::over("127.0.0.1:0");
    let mut delays = Vec::new();
    for round in 0..8 {
        // Longer than the reader looks in vain before it lies down.
        recorder.run_for(Duration::from_millis(120));
        recorder.seen.delays.clear();
        let events = recorder.seen.events;
        let sender = std::thread::spawn(move || {
            // In the middle of the reader's sleep.
            std::thread::sleep(Duration::from_millis(60 + round * 5));
            connection.round_trip(&kafka_request(100), b"answer");
            connection
        });
        assert!(recorder.until(|seen| seen.events > events));
        connection = sender.join().unwrap();
        delays.push(*recorder.seen.delays.first().unwrap());
    }
    delays.sort();
    // The longest sleep is 500 ms: a reader that was not woken shows it. The first event is the one that wakes.
    assert!(delays[4] < Duration::from_millis(20), "{delays:?}");
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn nothing_is_left_after_sigkill() {
    let _turn = harness::turn();
    if std::env::var_os(VICTIM).is_some() {
        let mut recorder = Recorder::start();
        println!("capturing");
        std::io::stdout().flush().unwrap();
        recorder.run_for(Duration::from_mins(1));
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "nothing_is_left_after_sigkill", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("capturing"))), "the other process did not start");
    let (programs, maps) = (held_by(child.id(), "prog_id"), held_by(child.id(), "map_id"));
    assert!(programs.len() >= 6 && maps.len() >= 6, "{programs:?} {maps:?}");
    assert!(programs.is_subset(&loaded_programs()) && maps.is_subset(&loaded_maps()));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the end of the programs", || loaded_programs().is_disjoint(&programs));
    wait_until("the end of the maps", || loaded_maps().is_disjoint(&maps));
}

/// Set in the process that captures until it is killed: this test program, started again.
const VICTIM: &str = "KAFKA_TRACER_TEST_VICTIM";

/// Numbers of the programs or maps that a process has descriptors of.
fn held_by(pid: u32, kind: &str) -> BTreeSet<u32> {
    let infos =
        std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    infos.filter_map(|info| info.lines().find_map(|line| line.strip_prefix(kind)?.trim_start_matches(':').trim().parse().ok())).collect()
}

fn loaded_programs() -> BTreeSet<u32> {
    aya::programs::loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect()
}

fn loaded_maps() -> BTreeSet<u32> {
    aya::maps::loaded_maps().filter_map(Result::ok).map(|map| map.id()).collect()
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn without_rights_it_says_which_are_missing() {
    let _turn = harness::turn();
    let error = std::thread::spawn(|| {
        use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
        let none =
            CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
        set_capabilities(None, none).unwrap();
        PacketSource::start(SourceConfig::default()).err()
    });
    let error = error.join().unwrap().expect("refused without rights");
    assert!(matches!(error, StartError::NoRights { .. }), "{error}");
    let text = error.to_string();
    assert!(["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "root"].iter().all(|word| text.contains(word)), "{text}");
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn a_root_that_is_not_the_hosts_is_refused() {
    let _turn = harness::turn();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .and_then(|line| line.split(' ').nth(1))
        .expect("cgroup v2 is mounted");
    let child = std::path::Path::new(root).join(format!("kafka-tracer-test-{}", std::process::id()));
    std::fs::create_dir(&child).unwrap();
    let error = PacketSource::start(SourceConfig { cgroup_root: Some(child.clone()), ..SourceConfig::default() }).err();
    std::fs::remove_dir(&child).unwrap();
    assert!(matches!(error, Some(StartError::CgroupNamespace { inode: 2.., .. })), "{error:?}");
    let error = PacketSource::start(SourceConfig { cgroup_root: Some("/tmp".into()), ..SourceConfig::default() }).err();
    assert!(matches!(error, Some(StartError::CgroupRoot { .. })), "{error:?}");
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn a_host_without_cgroup_v2_gets_a_mount_of_our_own() {
    let _turn = harness::turn();
    let started = std::thread::spawn(|| {
        net::without_mounts_of("cgroup2");
        Recorder::start()
    });
    let mut recorder = started.join().unwrap();
    recorder.expect_exchange(Connection::over("127.0.0.1:0"), &kafka_request(100_000), &pseudo_random(1000));
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn a_ring_that_is_too_small_loses_and_says_so() {
    let _turn = harness::turn();
    let mut recorder = Recorder::start_with(SourceConfig { ring_bytes: 256 << 10, ..SourceConfig::default() });
    let connection = Connection::over("127.0.0.1:0");
    let [client, server] = connection.addresses();
    // Nobody reads while it is sent.
    exchange(connection, &kafka_request(3_000_000), &pseudo_random(100));
    let lost = recorder.source.counters().unwrap().value(Counter::LostRingFullBytes);
    assert!(lost > 1_000_000, "{lost}");
    recorder.run_for(Duration::from_millis(100));
    let seen: usize = [(client, server), (server, client)]
        .iter()
        .filter_map(|(local, peer)| recorder.socket(*local, *peer))
        .map(|(_, socket)| socket.sent.bytes_seen() + socket.received.bytes_seen())
        .sum();
    assert!(seen as u64 + lost >= 2 * 3_000_100, "{seen} bytes were seen, {lost} counted as lost");
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn the_time_of_an_event_is_wall_time() {
    let _turn = harness::turn();
    let mut recorder = Recorder::start();
    let mut connection = Connection::over("127.0.0.1:0");
    connection.round_trip(&kafka_request(100), b"answer");
    assert!(recorder.until(|seen| seen.events > 0));
    let delay = recorder.seen.delays[0];
    assert!(delay < Duration::from_secs(2), "{delay:?}");
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn the_verifier_needs_a_fraction_of_what_it_allows() {
    let _turn = harness::turn();
    let started = Instant::now();
    let _recorder = Recorder::start();
    let took = started.elapsed();
    let ours = held_by(std::process::id(), "prog_id");
    let counts: Vec<_> = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| ours.contains(&program.id()))
        .filter_map(|program| Some((program.name_as_str()?.to_owned(), program.verified_instruction_count()?)))
        .collect();
    println!("started in {took:?}: {counts:?}");
    // It gives up at a million; before that, a busy host waits for seconds.
    assert!(counts.iter().all(|(_, instructions)| *instructions < 100_000), "{counts:?}");
}

/// coroot/coroot-node-agent#335, #205: one program that the kernel does not take stops the whole agent.
#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn coroot_335_a_program_that_the_kernel_refuses_is_off_and_capture_goes_on() {
    let _turn = harness::turn();
    let mut recorder = {
        let _held = ExclusiveProgram::hold(harness::DEADLINE);
        Recorder::start()
    };
    assert_eq!(recorder.source.counts().unwrap().programs_off, ["owner_connect6"]);
    for address in LOOPBACKS {
        recorder.expect_exchange(Connection::over(address), &kafka_request(300_000), &pseudo_random(200_000));
        let mut connection = Connection::over(address);
        let [client, server] = connection.addresses();
        connection.round_trip(&kafka_request(100), &pseudo_random(100));
        // Whose it is is found out in another way where the program is missing.
        let begin = Instant::now();
        while begin.elapsed() < harness::DEADLINE && recorder.owner(client, server) != Some(std::process::id()) {
            recorder.run_for(Duration::from_millis(50));
        }
        assert_eq!(recorder.owner(client, server), Some(std::process::id()), "{address}");
    }
    drop(recorder);
    assert_eq!(Recorder::start().source.counts().unwrap().programs_off, Vec::<&str>::new());
}
