//! The programs on calls of the kernel's own functions for TCP: every byte, at both ends, however programs give and take them. Needs a kernel
//! with kprobes and root: built with feature `kprobes`, and handed to `cargo xtask vm -- PROGRAM` (`docs/development.md`).
#![cfg(feature = "kprobes")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on stops")]

#[path = "live/harness.rs"]
mod harness;
#[path = "live/odd_calls.rs"]
mod odd_calls;
#[path = "live/taken.rs"]
mod taken;
#[path = "live/tls_memory.rs"]
mod tls_memory;

use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Connection, Recorder, exchange, kafka_request, pseudo_random};
use rustix::net::{RecvFlags, recv, recvmsg};
use tracer_userspace::source::ebpf::{LiveSource, SocketSource, SourceConfig};
use tracer_userspace::source::{Direction, Verdict};

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// Runs a test with each way in which events come: the ring where this kernel has one, and perf buffers.
fn with_each(test: impl Fn(&mut dyn FnMut(SourceConfig) -> Recorder<SocketSource>)) {
    let _turn = harness::turn();
    for perf_buffers in [false, true] {
        test(&mut |config| {
            let config = SourceConfig { ring_bytes: 64 << 20, perf_buffers, ..config };
            match SocketSource::start(&config) {
                Ok(source) => Recorder::of(source),
                Err(error) => panic!("the socket source has to start, perf buffers: {perf_buffers}: {error}"),
            }
        });
    }
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn a_stream_over_loopback_is_seen_whole_at_both_ends() {
    with_each(|start| {
        for address in LOOPBACKS {
            let mut recorder = start(SourceConfig::default());
            let connection = Connection::over(address);
            let [client, server] = connection.addresses();
            let mut up = kafka_request(3_000_000);
            up.extend(kafka_request(100));
            recorder.expect_exchange(connection, &up, &pseudo_random(2_000_000));
            assert_eq!(recorder.lost(), 0, "{:?}", recorder.source.counts());
            let (_, at_client) = recorder.socket(client, server).unwrap();
            assert_eq!((at_client.initiator, at_client.sent.first, at_client.received.first), (Some(Direction::Sent), Some(0), Some(0)));
            let (_, at_server) = recorder.socket(server, client).unwrap();
            assert_eq!(at_server.initiator, Some(Direction::Received));
            assert_eq!(
                (recorder.owner(client, server), recorder.owner(server, client)),
                (Some(std::process::id()), Some(std::process::id()))
            );
            assert!(recorder.until(|seen| seen.sockets.values().all(|socket| socket.sent.end.is_some() && socket.received.end.is_some())));
        }
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn the_first_request_is_whole_however_it_is_given_and_taken() {
    let cuts: [&[usize]; 8] = [&[], &[4], &[8], &[13], &[14], &[4, 4], &[4, 9], &[1; 60]];
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        for address in LOOPBACKS {
            for given in cuts {
                for taken in cuts {
                    let Connection { mut client, mut server } = Connection::over(address);
                    let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
                    let request = [kafka_request(60), kafka_request(300)].concat();
                    client.set_nodelay(true).unwrap();
                    for piece in pieces(&request, given) {
                        client.write_all(piece).unwrap();
                    }
                    let mut got = vec![0; request.len()];
                    for piece in pieces_mut(&mut got, taken) {
                        server.read_exact(piece).unwrap();
                    }
                    assert!(got == request);
                    recorder.expect_stream(addresses[0], addresses[1], Direction::Sent, &request);
                    recorder.expect_stream(addresses[1], addresses[0], Direction::Received, &request);
                }
            }
        }
        assert_eq!(recorder.lost(), 0, "{:?}", recorder.source.counts());
    });
}

/// Takes the second CPU off, or back.
fn switch_second_cpu(on: bool) {
    std::fs::write("/sys/devices/system/cpu/cpu1/online", if on { "1" } else { "0" }).expect("the second CPU can be switched");
}

#[test]
#[ignore = "needs root, kprobes and two CPUs: `cargo xtask vm`"]
fn what_a_cpu_does_that_came_online_later_is_counted() {
    let _turn = harness::turn();
    let config = || SourceConfig { ring_bytes: 64 << 20, perf_buffers: true, ..SourceConfig::default() };
    for is_on_at_the_start in [true, false] {
        if !is_on_at_the_start {
            switch_second_cpu(false);
        }
        let mut recorder = Recorder::of(SocketSource::start(&config()).unwrap());
        switch_second_cpu(false);
        switch_second_cpu(true);
        let on_cpu = |cpu| {
            std::thread::spawn(move || {
                let mut cpus = rustix::thread::CpuSet::new();
                cpus.set(cpu);
                rustix::thread::sched_setaffinity(None, &cpus).unwrap();
                let Connection { mut client, mut server } = Connection::over("127.0.0.1:0");
                let request = kafka_request(3_000);
                client.write_all(&request).unwrap();
                server.read_exact(&mut vec![0; request.len()]).unwrap();
                (client, server, request)
            })
            .join()
            .unwrap()
        };
        let unseen = on_cpu(1);
        let lost = recorder.source.counts().unwrap().lost_events.iter().find(|(reason, _)| *reason == "no_buffer").unwrap().1;
        assert!(lost >= 2, "{lost} events are counted, on at the start: {is_on_at_the_start}");
        let (client, server, request) = on_cpu(0);
        let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        recorder.expect_stream(addresses[0], addresses[1], Direction::Sent, &request);
        recorder.expect_stream(addresses[1], addresses[0], Direction::Received, &request);
        let [client, server] = [&unseen.0, &unseen.1].map(|socket| socket.local_addr().unwrap());
        assert!(recorder.socket(client, server).is_none(), "the second CPU has no buffer");
    }
}

/// Whether a thread can lose its CPU while it is in the kernel.
fn can_be_preempted() -> bool {
    let modes = std::fs::read_to_string("/sys/kernel/debug/sched/preempt").unwrap_or_default();
    ["(full)", "(lazy)"].iter().any(|mode| modes.contains(mode))
}

fn stay_on_first_cpu() {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(0);
    rustix::thread::sched_setaffinity(None, &cpus).unwrap();
}

/// From now on the calling thread takes the CPU from others as soon as it can go on.
fn go_first() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure is there; 0 is the calling thread.
    #[expect(unsafe_code, reason = "a system call that no crate has")]
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn what_the_kernel_runs_no_program_for_is_counted_and_what_follows_is_seen() {
    const ROUNDS: usize = 100;
    const LEN: usize = 256 << 10;
    static VALUE: [u8; LEN] = [7; LEN];
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let left_out = |recorder: &Recorder<SocketSource>| {
            let counts = recorder.source.counts().unwrap();
            counts.lost_events.iter().find(|(reason, _)| *reason == "program_left_out").unwrap().1
        };
        // A map that takes long to write. While it is written no program runs on that CPU, whoever has it.
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                stay_on_first_cpu();
                let mut map = aya::maps::Array::<_, [u8; LEN]>::create(1, 0).unwrap();
                while !is_done.load(Ordering::Relaxed) {
                    map.set(0, VALUE, 0).unwrap();
                }
            });
            let Connection { mut client, mut server } = Connection::over("127.0.0.1:0");
            let serving = scope.spawn(move || {
                stay_on_first_cpu();
                go_first();
                let mut request = vec![0; 300];
                for _ in 0..ROUNDS {
                    server.read_exact(&mut request).unwrap();
                    server.write_all(&request).unwrap();
                }
            });
            let request = kafka_request(300);
            for _ in 0..ROUNDS {
                client.write_all(&request).unwrap();
                client.read_exact(&mut vec![0; request.len()]).unwrap();
            }
            serving.join().unwrap();
            is_done.store(true, Ordering::Relaxed);
            writing.join().unwrap();
        });
        recorder.run_for(Duration::from_millis(50));
        let count = left_out(&recorder);
        eprintln!("programs were left out {count} times");
        assert!(count > 0 || !can_be_preempted(), "a thread that lost its CPU within a call for a map kept programs from running");
        recorder.expect_exchange(Connection::over("127.0.0.1:0"), &kafka_request(3_000), &pseudo_random(2_000));
        assert_eq!(left_out(&recorder), count);
    });
}

/// Cuts after so many bytes, and so many more.
fn pieces<'a>(mut bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for cut in cuts {
        let (piece, rest) = bytes.split_at(*cut);
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

fn pieces_mut<'a>(mut bytes: &'a mut [u8], cuts: &[usize]) -> Vec<&'a mut [u8]> {
    let mut pieces = Vec::new();
    for cut in cuts {
        let (piece, rest) = bytes.split_at_mut(*cut);
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn vectors_are_whole_across_their_segments() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let Connection { client, server } = Connection::over("127.0.0.1:0");
        let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        let request = kafka_request(200_000);
        let cuts = [3, 0, 5, 1, 0, 0, 40_000, 7, 100_000, 1, 1, 1];
        let sending = {
            let request = request.clone();
            std::thread::spawn(move || {
                let slices: Vec<IoSlice<'_>> = pieces(&request, &cuts).into_iter().map(IoSlice::new).collect();
                let mut sent = (&client).write_vectored(&slices).unwrap();
                while sent < request.len() {
                    sent += (&client).write(&request[sent..]).unwrap();
                }
                client
            })
        };
        let mut got = vec![0; request.len()];
        let mut done = 0;
        while done < got.len() {
            let left = got.len() - done;
            let cuts = [left.min(10), left.min(1_000) - left.min(10), 0, left.min(30_000) - left.min(1_000)];
            let mut slices: Vec<IoSliceMut<'_>> = pieces_mut(&mut got[done..], &cuts).into_iter().map(IoSliceMut::new).collect();
            done += (&server).read_vectored(&mut slices).unwrap();
        }
        assert!(got == request);
        sending.join().unwrap();
        recorder.expect_stream(addresses[0], addresses[1], Direction::Sent, &request);
        recorder.expect_stream(addresses[1], addresses[0], Direction::Received, &request);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn a_receive_that_waits_for_all_is_whole_across_its_segments() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let Connection { mut client, server } = Connection::over("127.0.0.1:0");
        let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        client.set_nodelay(true).unwrap();
        let request = kafka_request(60_000);
        let sending = {
            let request = request.clone();
            std::thread::spawn(move || {
                // Each piece is seen by its own: some end within a segment of the receiver, some reach over several.
                for piece in pieces(&request, &[2, 3, 9, 20, 5_000, 1, 40_000]) {
                    client.write_all(piece).unwrap();
                    std::thread::sleep(Duration::from_millis(30));
                }
                client
            })
        };
        let mut got = vec![0; request.len()];
        {
            let mut slices: Vec<IoSliceMut<'_>> =
                pieces_mut(&mut got, &[1, 6, 0, 11, 13, 2_000, 30_000]).into_iter().map(IoSliceMut::new).collect();
            let message = recvmsg(&server, &mut slices, &mut rustix::net::RecvAncillaryBuffer::default(), RecvFlags::WAITALL).unwrap();
            assert_eq!(message.bytes, request.len());
        }
        assert!(got == request);
        sending.join().unwrap();
        recorder.expect_stream(addresses[1], addresses[0], Direction::Received, &request);
        recorder.expect_stream(addresses[0], addresses[1], Direction::Sent, &request);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn what_is_only_looked_at_is_seen_once() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let Connection { mut client, mut server } = Connection::over("127.0.0.1:0");
        let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        let request = kafka_request(500);
        client.write_all(&request).unwrap();
        let mut look = [0; 100];
        for _ in 0..3 {
            let (len, _) = recv(&server, &mut look[..], RecvFlags::PEEK).unwrap();
            assert_eq!((&look[..len], len), (&request[..100], 100));
        }
        let mut got = vec![0; 200];
        server.read_exact(&mut got).unwrap();
        let _ = recv(&server, &mut look[..], RecvFlags::PEEK).unwrap();
        let mut rest = vec![0; 300];
        server.read_exact(&mut rest).unwrap();
        recorder.expect_stream(addresses[1], addresses[0], Direction::Received, &request);
        assert_eq!(recorder.lost(), 0);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn a_hundred_readers_that_wait_are_all_seen() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let mut connections: Vec<_> = (0..100).map(|_| Connection::over("127.0.0.1:0")).collect();
        let readers: Vec<_> = connections
            .iter()
            .map(|connection| {
                let mut server = connection.server.try_clone().unwrap();
                std::thread::spawn(move || {
                    let mut got = vec![0; 400];
                    server.read_exact(&mut got).unwrap();
                    got
                })
            })
            .collect();
        recorder.run_for(Duration::from_millis(300));
        let request = kafka_request(400);
        for connection in &mut connections {
            connection.client.write_all(&request).unwrap();
        }
        for reader in readers {
            assert!(reader.join().unwrap() == request);
        }
        for connection in &connections {
            let [client, server] = connection.addresses();
            recorder.expect_stream(server, client, Direction::Received, &request);
        }
        assert_eq!(recorder.lost(), 0);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn a_socket_that_takes_a_part_is_given_the_rest_and_no_byte_is_seen_twice() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let Connection { client, mut server } = Connection::over("127.0.0.1:0");
        let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        client.set_nonblocking(true).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&client, 40_000).unwrap();
        let request = kafka_request(5_000_000);
        let content = pseudo_random(2_000_123);
        let (mut parts, mut refused) = (0, 0);
        let reading = std::thread::spawn(move || {
            let mut got = vec![0; 7_000_123];
            server.read_exact(&mut got).unwrap();
            (got, server)
        });
        let mut sent = 0;
        while sent < request.len() {
            match (&client).write(&request[sent..]) {
                Ok(len) => {
                    parts += 1;
                    sent += len;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    refused += 1;
                    recorder.run_for(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        // And pages of a file, which are given again from where the socket stopped.
        let file = file_of(&content);
        let mut offset = 0;
        while usize::try_from(offset).unwrap() < content.len() {
            match rustix::fs::sendfile(&client, &file, Some(&mut offset), content.len()) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    refused += 1;
                    recorder.run_for(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        let (got, _server) = reading.join().unwrap();
        let whole = [request, content].concat();
        assert!(got == whole, "the connection itself is broken");
        assert!(parts > 1 && refused > 0, "the socket took all at once");
        recorder.expect_stream(addresses[1], addresses[0], Direction::Received, &whole);
        recorder.expect_stream(addresses[0], addresses[1], Direction::Sent, &whole);
        assert_eq!(recorder.lost(), 0, "{:?}", recorder.source.counts());
    });
}

fn file_of(content: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn bytes_of_sendfile_are_seen() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let mut connection = Connection::over("127.0.0.1:0");
        let content = pseudo_random(3_000_123);
        let file = file_of(&content);
        let request = kafka_request(60);
        connection.client.write_all(&request).unwrap();
        let mut got = vec![0; request.len()];
        connection.server.read_exact(&mut got).unwrap();
        let [client, server] = connection.addresses();
        let to = connection.server.try_clone().unwrap();
        let len = content.len();
        // Two answers of the same bytes, each behind its own header, as a broker sends them.
        let sender = std::thread::spawn(move || {
            for _ in 0..2 {
                (&to).write_all(b"head").unwrap();
                let mut offset = 0;
                while usize::try_from(offset).unwrap() < len {
                    rustix::fs::sendfile(&to, &file, Some(&mut offset), len).unwrap();
                }
            }
        });
        let mut got = vec![0; 2 * (len + 4)];
        connection.client.read_exact(&mut got).unwrap();
        sender.join().unwrap();
        let answers = [&b"head"[..], &content, b"head", &content].concat();
        assert!(got == answers);
        recorder.expect_stream(client, server, Direction::Received, &answers);
        recorder.expect_stream(server, client, Direction::Sent, &answers);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn memory_that_nobody_touched_is_read_once_the_kernel_has_it() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let Connection { mut client, mut server } = Connection::over("127.0.0.1:0");
        let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        let request = kafka_request(70_000);
        // A file that is mapped and not yet read: its pages come as the kernel sends them.
        let file = file_of(&request);
        client.write_all(&request).unwrap();
        server.read_exact(&mut vec![0; request.len()]).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let zeros = untouched(300_000);
        client.write_all(&zeros).unwrap();
        let mut got = untouched(300_000);
        server.read_exact(&mut got).unwrap();
        let whole = [request, got.clone()].concat();
        recorder.expect_stream(addresses[0], addresses[1], Direction::Sent, &whole);
        recorder.expect_stream(addresses[1], addresses[0], Direction::Received, &whole);
        assert_eq!(recorder.lost(), 0);
    });
}

/// Memory that the allocator takes from the kernel and nobody writes: it has no pages yet.
fn untouched(len: usize) -> Vec<u8> {
    vec![0; len]
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn a_call_that_is_too_long_is_cut_and_what_follows_is_in_its_place() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let Connection { mut client, mut server } = Connection::over("127.0.0.1:0");
        let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        rustix::net::sockopt::set_socket_send_buffer_size_force(&client, 64 << 20).unwrap();
        let request = kafka_request(12 << 20);
        let reading = std::thread::spawn(move || {
            let mut got = vec![0; (12 << 20) + 100];
            server.read_exact(&mut got).unwrap();
        });
        client.write_all(&request).unwrap();
        client.write_all(&kafka_request(100)).unwrap();
        assert!(recorder.until(|_| reading.is_finished()));
        reading.join().unwrap();
        assert!(recorder.until(|seen| {
            let sent = seen.sockets.iter().find(|(key, _)| (key.local, key.peer) == (addresses[0], addresses[1]));
            sent.is_some_and(|(_, socket)| socket.sent.pieces.iter().any(|(position, _)| *position == 12 << 20))
        }));
        let (_, socket) = recorder.socket(addresses[0], addresses[1]).unwrap();
        // A call that waits for room is seen in parts; the receiver's own calls take what is there.
        let (seen, missing) = (u64::try_from(socket.sent.bytes_seen()).unwrap(), socket.sent.missing);
        assert_eq!(seen + missing, (12 << 20) + 100);
        assert!(seen >= 4 << 20, "{seen}");
        // The other end's calls can be as long.
        recorder.run_for(Duration::from_millis(200));
        let of_both: u64 = recorder.seen.sockets.values().map(|socket| socket.sent.missing + socket.received.missing).sum();
        let counts = recorder.source.counts().unwrap();
        assert!(counts.lost_bytes.contains(&("too_long", of_both)), "{of_both}: {counts:?}");
        let (_, socket) = recorder.socket(addresses[0], addresses[1]).unwrap();
        assert!(request.starts_with(&socket.sent.whole()[..4 << 20]));
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn sockets_at_one_address_in_the_kernel_are_told_apart() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut expected = Vec::new();
        for round in 0..300 {
            let connection = Connection::to(&listener, || TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let addresses = connection.addresses();
            let request = kafka_request(40 + round);
            exchange(connection, &request, b"answer");
            expected.push((addresses, request));
            recorder.run_for(Duration::ZERO);
        }
        for ([client, server], request) in expected {
            recorder.expect_stream(client, server, Direction::Sent, &request);
            recorder.expect_stream(server, client, Direction::Received, &request);
            recorder.expect_stream(client, server, Direction::Received, b"answer");
        }
        assert_eq!((recorder.seen.sockets.len(), recorder.lost()), (600, 0));
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn a_connection_that_is_older_than_the_tracer_is_picked_up() {
    with_each(|start| {
        let mut connection = Connection::over("127.0.0.1:0");
        let mut other = Connection::over("127.0.0.1:0");
        connection.round_trip(&kafka_request(100), &pseudo_random(100));
        let mut recorder = start(SourceConfig::default());
        let [client, server] = connection.addresses();
        let request = kafka_request(70_000);
        connection.round_trip(&request, &pseudo_random(300));
        recorder.expect_both_ends(client, server, &request, &pseudo_random(300));
        let (_, socket) = recorder.socket(client, server).unwrap();
        assert_eq!((socket.sent.first, socket.received.first), (None, None), "nobody saw how it began");
        // And by an answer that is one call.
        let [client, server] = other.addresses();
        let mut answer = 296u32.to_be_bytes().to_vec();
        answer.extend(7u32.to_be_bytes());
        answer.extend(pseudo_random(292));
        other.server.write_all(&answer).unwrap();
        other.client.read_exact(&mut vec![0; 300]).unwrap();
        recorder.expect_stream(server, client, Direction::Sent, &answer);
        recorder.expect_stream(client, server, Direction::Received, &answer);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn a_dismissed_socket_is_copied_no_more_and_begins_anew_if_wanted_again() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let mut connection = Connection::over("127.0.0.1:0");
        let [client, server] = connection.addresses();
        let request = kafka_request(200);
        connection.round_trip(&request, &pseudo_random(10));
        recorder.expect_stream(client, server, Direction::Sent, &request);
        let key = *recorder.socket(client, server).unwrap().0;
        recorder.source.verdict(key, Verdict::Capture).unwrap();
        connection.round_trip(&request, &pseudo_random(10));
        recorder.expect_stream(client, server, Direction::Sent, &request.repeat(2));
        recorder.source.verdict(key, Verdict::Ignore).unwrap();
        connection.round_trip(&request, &pseudo_random(10));
        connection.round_trip(&request, &pseudo_random(10));
        // The other end is still copied: when its bytes are there, this end's would be.
        recorder.expect_stream(server, client, Direction::Received, &request.repeat(4));
        let before = recorder.seen.sockets.get(&key).unwrap().sent.bytes_seen();
        assert_eq!(before, 2 * request.len());
        recorder.source.verdict(key, Verdict::Capture).unwrap();
        connection.round_trip(&request, &pseudo_random(10));
        let is_anew = |local: SocketAddr, scope| local == client && scope != key.scope;
        assert!(recorder.until(|seen| {
            let anew = seen.sockets.iter().find(|(other, _)| is_anew(other.local, other.scope));
            anew.is_some_and(|(_, socket)| socket.sent.bytes_seen() == request.len())
        }));
        assert_eq!(recorder.seen.sockets.get(&key).unwrap().sent.bytes_seen(), before);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn other_protocols_are_not_copied_and_ports_have_their_rules() {
    with_each(|start| {
        let [forced, excluded, judged] = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let mut recorder =
            start(SourceConfig { force_ports: vec![port(&forced)], exclude_ports: vec![port(&excluded)], ..SourceConfig::default() });
        let to = |listener: &TcpListener| Connection::to(listener, || TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let http = b"GET / HTTP/1.1\r\nHost: kafka.example\r\n\r\n";
        let mut connections = Vec::new();
        for _ in 0..60 {
            let mut connection = to(&judged);
            for _ in 0..3 {
                connection.round_trip(http, b"HTTP/1.1 200 OK\r\n\r\n");
            }
            connections.push(connection);
        }
        to(&excluded).round_trip(&kafka_request(100), b"answer");
        let mut connection = to(&forced);
        connection.round_trip(http, b"something");
        let [client, server] = connection.addresses();
        recorder.expect_both_ends(client, server, http, b"something");
        assert_eq!(recorder.seen.sockets.len(), 2, "{:?}", recorder.seen.sockets);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn two_tracers_see_the_same() {
    with_each(|start| {
        let (mut one, mut other) = (start(SourceConfig::default()), start(SourceConfig::default()));
        let connection = Connection::over("127.0.0.1:0");
        let [client, server] = connection.addresses();
        let (up, down) = (kafka_request(300_000), pseudo_random(200_000));
        one.expect_exchange(connection, &up, &down);
        other.expect_both_ends(client, server, &up, &down);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn times_are_wall_times_and_a_sleeping_reader_is_woken() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        recorder.run_for(Duration::from_millis(300));
        let mut connection = Connection::over("127.0.0.1:0");
        let sending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            connection.round_trip(&kafka_request(100), b"answer");
            connection
        });
        assert!(recorder.until(|seen| seen.sockets.len() == 2));
        sending.join().unwrap();
        let late = recorder.seen.delays.iter().max().copied().unwrap();
        assert!(late < Duration::from_millis(400), "{late:?}");
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn nothing_is_left_when_it_ends() {
    with_each(|start| {
        let ids = || {
            let programs = aya::programs::loaded_programs().filter_map(Result::ok).count();
            let maps = aya::maps::loaded_maps().filter_map(Result::ok).count();
            let lines = ["kprobe_events", "uprobe_events"]
                .map(|list| std::fs::read_to_string(format!("/sys/kernel/tracing/{list}")).unwrap_or_default().lines().count());
            (programs, maps, lines)
        };
        // What other tests had goes a little after them.
        let mut before = ids();
        std::thread::sleep(Duration::from_millis(500));
        while before != ids() {
            before = ids();
            std::thread::sleep(Duration::from_millis(500));
        }
        for _ in 0..3 {
            drop(start(SourceConfig::default()));
        }
        let deadline = std::time::Instant::now() + harness::DEADLINE;
        while ids() != before && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(ids(), before);
    });
}
