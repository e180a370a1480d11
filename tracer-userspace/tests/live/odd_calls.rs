//! Calls that give bytes in other ways than from a program's own memory, or take them nowhere: each is exact, or a hole of the right length that
//! is counted. What follows is in its place in any case.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tracer_userspace::source::Direction;
use tracer_userspace::source::ebpf::{LiveSource, SocketSource, SourceConfig};

use crate::harness::{Connection, Recorder, kafka_request, pseudo_random};
use crate::{file_of, with_each};

/// `MSG_ZEROCOPY`, `SO_ZEROCOPY` (Linux 4.14).
const ZEROCOPY: u32 = 0x0400_0000;
const SO_ZEROCOPY: libc::c_int = 60;

/// A stream with holes: the bytes that were read are those at their places, and all that passed is accounted for.
fn expect_with_hole(recorder: &mut Recorder<SocketSource>, connection: &Connection, whole: &[u8], hole: std::ops::Range<usize>) {
    let [client, server] = connection.addresses();
    let (all, len) = (whole.len(), hole.len());
    let done = recorder.until(|seen| {
        seen.sockets.iter_mut().any(|(key, socket)| {
            let stream = socket.way(Direction::Received);
            let read = stream.bytes_seen();
            (key.local, key.peer) == (server, client) && read + usize::try_from(stream.missing).unwrap() >= all
        })
    });
    let counts = recorder.source.counts().unwrap();
    let (_, socket) = recorder.socket(server, client).unwrap();
    let stream = &socket.received;
    assert!(done, "all {all} bytes are accounted for: {stream:?}, {} missing; {counts:?}", stream.missing);
    assert_eq!(usize::try_from(stream.missing).unwrap(), len, "{stream:?}");
    let first = stream.first.unwrap();
    for (position, bytes) in &stream.pieces {
        let at = usize::try_from(position.wrapping_sub(first)).unwrap();
        assert!(whole[at..at + bytes.len()] == bytes[..], "other bytes at {at}: {stream:?}");
        assert!(bytes.is_empty() || at + bytes.len() <= hole.start || at >= hole.end, "bytes of the hole at {at}: {stream:?}");
    }
    let unreadable = counts.lost_bytes.iter().find(|(reason, _)| *reason == "unreadable").map(|(_, bytes)| *bytes);
    assert_eq!(unreadable, Some(len as u64), "{counts:?}");
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn what_is_sent_without_a_copy_is_seen() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let Connection { client, mut server } = Connection::over("127.0.0.1:0");
        let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        allow_zerocopy(&client);
        let whole = [kafka_request(300), pseudo_random(500_000)].concat();
        let reading = std::thread::spawn(move || {
            let mut got = vec![0; 500_300];
            server.read_exact(&mut got).unwrap();
            (got, server)
        });
        let mut sent = 0;
        while sent < whole.len() {
            sent += send(&client, &whole[sent..], SendFlags::from_bits_retain(ZEROCOPY)).unwrap();
        }
        let (got, _server) = reading.join().unwrap();
        assert!(got == whole, "the connection itself is broken");
        // What the kernel says of the pages is taken from the socket, and is none of the stream.
        let mut notice = [0; 64];
        let taken = recv(&client, &mut notice[..], RecvFlags::from_bits_retain(0x2000) | RecvFlags::DONTWAIT);
        assert!(taken.is_ok() || taken == Err(rustix::io::Errno::AGAIN), "{taken:?}");
        recorder.expect_stream(addresses[0], addresses[1], Direction::Sent, &whole);
        recorder.expect_stream(addresses[1], addresses[0], Direction::Received, &whole);
        assert_eq!(recorder.lost(), 0, "{:?}", recorder.source.counts());
    });
}

fn allow_zerocopy(socket: &TcpStream) {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
    // SAFETY: the option is a number, and is given as one.
    #[expect(unsafe_code, reason = "an option that no crate has")]
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_ZEROCOPY, (&raw const on).cast(), len) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Moves up to `len` bytes from one to the other, one of which is a pipe.
fn splice(from: &impl AsFd, to: &impl AsFd, len: usize) -> usize {
    let (from, to, nowhere) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd(), std::ptr::null_mut());
    // SAFETY: both are open, and no place within a file is named.
    #[expect(unsafe_code, reason = "a system call")]
    let moved = unsafe { libc::splice(from, nowhere, to, nowhere, len, 0) };
    usize::try_from(moved).unwrap_or_else(|_| panic!("{}", std::io::Error::last_os_error()))
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn what_is_spliced_into_a_socket_is_seen() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let mut connection = Connection::over("127.0.0.1:0");
        let [client, server] = connection.addresses();
        let whole = [kafka_request(300), pseudo_random(100_000)].concat();
        let file = file_of(&whole[300..]);
        connection.client.write_all(&whole[..300]).unwrap();
        let mut reader = connection.server.try_clone().unwrap();
        let len = whole.len();
        let reading = std::thread::spawn(move || {
            let mut got = vec![0; len];
            reader.read_exact(&mut got).unwrap();
            got
        });
        let (out, into) = std::io::pipe().unwrap();
        let mut left = 100_000;
        while left > 0 {
            let mut filled = splice(&file, &into, left);
            left -= filled;
            while filled > 0 {
                filled -= splice(&out, &connection.client, filled);
            }
        }
        assert!(reading.join().unwrap() == whole, "the connection itself is broken");
        recorder.expect_stream(client, server, Direction::Sent, &whole);
        recorder.expect_stream(server, client, Direction::Received, &whole);
        drop(connection);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn what_a_program_throws_away_is_a_counted_hole() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let mut connection = Connection::over("127.0.0.1:0");
        let request = kafka_request(9_000);
        connection.client.write_all(&request).unwrap();
        connection.server.read_exact(&mut vec![0; 3_000]).unwrap();
        let mut nothing = vec![7; 2_500];
        let (_, thrown) = recv(&connection.server, &mut nothing[..], RecvFlags::TRUNC | RecvFlags::WAITALL).unwrap();
        assert_eq!((thrown, nothing == vec![7; 2_500]), (2_500, true), "the kernel copies what is thrown away");
        connection.server.read_exact(&mut vec![0; 3_500]).unwrap();
        expect_with_hole(&mut recorder, &connection, &request, 3_000..5_500);
    });
}
