//! Bytes that leave a socket in other ways than into a program's memory: each is a hole of the right length that is counted, and what follows is
//! in its place, whatever the thread did with the socket before.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tracer_userspace::source::Direction;
use tracer_userspace::source::ebpf::{LiveSource, SocketSource, SourceConfig};
use tracer_userspace::source::features::KernelVersion;

use crate::harness::{self, Connection, Recorder, kafka_request, pseudo_random};
use crate::with_each;

/// From here on there is no table of what lies where, since all kernels describe their types.
const DESCRIBED_SINCE: KernelVersion = KernelVersion::new(6, 4);

/// One thing that is done with a connection, with as many bytes.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The client sends the next bytes, which arrive.
    Give(usize),
    /// The server takes them into its memory.
    Receive(usize),
    /// Likewise, in one call that waits for all.
    ReceiveAll(usize),
    /// It looks at them.
    Peek(usize),
    /// It asks for them, and there are none.
    FindNothing(usize),
    /// It takes them into a pipe.
    Splice(usize),
    /// It throws them away.
    Throw(usize),
    /// It has what came acknowledged at once, for which the kernel calls the function that is probed.
    Acknowledge,
}
use Step::{Acknowledge, FindNothing, Give, Peek, Receive, ReceiveAll, Splice, Throw};

/// What is done after the request is there; the first step takes enough of it that it is known for one.
const CASES: [&[Step]; 14] = [
    &[Give(9_000), Receive(3_000), Splice(2_500), Receive(3_500)],
    &[Give(9_000), Receive(1_000), Splice(1_000), Receive(1_000), Splice(2_000), Splice(1_000), Receive(3_000)],
    &[Give(9_000), Receive(2_000), Splice(4_000), Receive(3_000)],
    &[Give(9_000), Receive(8_000), Splice(1), Receive(999)],
    &[Give(9_000), Receive(100), Splice(1), Splice(1), Receive(1), Splice(1), Receive(8_896)],
    &[Give(9_000), Receive(8_000), Acknowledge, Receive(500), Acknowledge, Acknowledge, Receive(500)],
    &[Give(9_000), Receive(8_000), Acknowledge, Splice(1), Acknowledge, Receive(999)],
    &[Give(9_000), Receive(4_000), Peek(3_000), Splice(3_000), Peek(1_000), Receive(2_000)],
    &[Give(9_000), Receive(4_000), Peek(5_000), Splice(100), Peek(4_900), Receive(4_900)],
    &[Give(5_000), Receive(5_000), FindNothing(4_000), Give(8_000), Splice(4_000), Receive(4_000)],
    &[Give(5_000), Receive(5_000), FindNothing(4_000), Give(8_000), Splice(3_000), Splice(1_000), Receive(4_000)],
    &[Give(9_000), Receive(3_000), Throw(2_500), Receive(1_000), Splice(500), Throw(1_000), Receive(1_000)],
    &[Give(9_000), Receive(3_000), Throw(2_500), Splice(2_500), Receive(1_000)],
    &[Give(3_000), Receive(20), ReceiveAll(2_980), Give(2_000), Splice(1_500), ReceiveAll(500)],
];

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn what_leaves_a_socket_in_other_ways_is_a_counted_hole_in_its_place() {
    with_each(|start| play_all(start(SourceConfig::default())));
}

fn play_all(mut recorder: Recorder<SocketSource>) {
    let mut lost = 0;
    for steps in CASES {
        let connection = Connection::over("127.0.0.1:0");
        let whole = kafka_request(steps.iter().map(|step| if let Give(len) = step { *len } else { 0 }).sum());
        let (holes, done) = play(&connection, &whole, steps);
        assert_eq!(done, whole.len(), "{steps:?} takes all");
        lost += expect_with_holes(&mut recorder, connection.addresses(), &whole, &holes, &format!("{steps:?}"));
        expect_lost(&recorder, lost);
    }
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn so_it_is_where_the_kernel_does_not_describe_its_types() {
    let kernel = KernelVersion::running().unwrap();
    if kernel >= DESCRIBED_SINCE {
        eprintln!("not on {kernel}: it has to describe its types");
        return;
    }
    let _turn = harness::turn();
    for perf_buffers in [false, true] {
        let started = std::thread::spawn(move || {
            use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
            // SAFETY: what is mounted is nobody else's from now on; nothing else is shared less than before.
            #[expect(unsafe_code, reason = "a thread that shares less than others")]
            unsafe {
                rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS).unwrap();
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount("tmpfs", "/sys/kernel/btf", "tmpfs", MountFlags::RDONLY, None).unwrap();
            SocketSource::start(&SourceConfig { ring_bytes: 64 << 20, perf_buffers, ..SourceConfig::default() }).unwrap()
        });
        play_all(Recorder::of(started.join().unwrap()));
    }
}

/// Does it. Returns what went elsewhere than into memory, and how much was taken in all.
fn play(connection: &Connection, whole: &[u8], steps: &[Step]) -> (Vec<Range<usize>>, usize) {
    let (client, server) = (&connection.client, &connection.server);
    client.set_nodelay(true).unwrap();
    let (mut out, into) = std::io::pipe().unwrap();
    let (mut given, mut at, mut holes) = (0, 0, Vec::new());
    for step in steps {
        match *step {
            Give(len) => {
                (&mut &*client).write_all(&whole[given..given + len]).unwrap();
                given += len;
                arrived(server, given - at);
            }
            Receive(len) => {
                let mut got = vec![0; len];
                (&mut &*server).read_exact(&mut got).unwrap();
                assert!(got == whole[at..at + len], "the connection itself is broken");
                at += len;
            }
            ReceiveAll(len) => {
                let mut got = vec![0; len];
                assert_eq!(recv(server, &mut got[..], RecvFlags::WAITALL).unwrap().0, len);
                assert!(got == whole[at..at + len], "the connection itself is broken");
                at += len;
            }
            Peek(len) => assert_eq!(recv(server, &mut vec![0; len][..], RecvFlags::PEEK).unwrap().0, len),
            FindNothing(len) => {
                assert_eq!(recv(server, &mut vec![0; len][..], RecvFlags::DONTWAIT), Err(rustix::io::Errno::AGAIN));
            }
            Splice(len) => {
                let mut got = vec![0; len];
                let mut done = 0;
                while done < len {
                    let moved = splice(server, &into, len - done);
                    out.read_exact(&mut got[done..done + moved]).unwrap();
                    done += moved;
                }
                assert!(got == whole[at..at + len], "the pipe itself is broken");
                holes.push(at..at + len);
                at += len;
            }
            Throw(len) => {
                let (_, thrown) = recv(server, &mut vec![0; len][..], RecvFlags::TRUNC | RecvFlags::WAITALL).unwrap();
                assert_eq!(thrown, len);
                holes.push(at..at + len);
                at += len;
            }
            Acknowledge => rustix::net::sockopt::set_tcp_quickack(server, true).unwrap(),
        }
    }
    (holes, at)
}

/// Waits until so many bytes can be taken.
fn arrived(socket: &TcpStream, len: usize) {
    let deadline = Instant::now() + harness::DEADLINE;
    while rustix::io::ioctl_fionread(socket).unwrap() < len as u64 {
        assert!(Instant::now() < deadline, "{len} bytes do not arrive");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Moves up to `len` bytes from one to the other, one of which is a pipe.
fn splice(from: &impl AsFd, to: &impl AsFd, len: usize) -> usize {
    let (from, to, nowhere) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd(), std::ptr::null_mut());
    // SAFETY: both are open, and no place within a file is named.
    #[expect(unsafe_code, reason = "a system call")]
    let moved = unsafe { libc::splice(from, nowhere, to, nowhere, len, 0) };
    usize::try_from(moved).unwrap_or_else(|_| panic!("{}", std::io::Error::last_os_error()))
}

/// A stream with holes, as the server received it: the bytes that were read are those at their places, and all that passed is accounted for.
/// Returns how much was not read.
fn expect_with_holes(
    recorder: &mut Recorder<SocketSource>,
    [client, server]: [SocketAddr; 2],
    whole: &[u8],
    holes: &[Range<usize>],
    what: &str,
) -> u64 {
    let hole: usize = holes.iter().map(Range::len).sum();
    let is_it = |local: SocketAddr, peer: SocketAddr| (local, peer) == (server, client);
    let done = recorder.until(|seen| {
        seen.sockets.iter_mut().any(|(key, socket)| {
            let stream = socket.way(Direction::Received);
            let read = stream.bytes_seen();
            is_it(key.local, key.peer) && read + usize::try_from(stream.missing).unwrap() >= whole.len()
        })
    });
    let counts = recorder.source.counts().unwrap();
    let (_, socket) = recorder.socket(server, client).unwrap();
    let stream = &socket.received;
    assert!(done, "{what}: all {} bytes are accounted for: {stream:?}, {} missing; {counts:?}", whole.len(), stream.missing);
    assert_eq!((stream.first, usize::try_from(stream.missing)), (Some(0), Ok(hole)), "{what}: {stream:?}");
    for (position, bytes) in &stream.pieces {
        let at = usize::try_from(*position).unwrap();
        if bytes.is_empty() {
            assert!(holes.iter().any(|hole| hole.contains(&at)), "{what}: no hole is at {at}: {stream:?}");
        } else {
            assert!(whole.get(at..at + bytes.len()) == Some(&bytes[..]), "{what}: other bytes at {at}: {stream:?}");
            assert!(
                !holes.iter().any(|hole| at < hole.end && hole.start < at + bytes.len()),
                "{what}: bytes of a hole at {at}: {stream:?}"
            );
        }
    }
    hole as u64
}

/// Sends all, and that nothing follows, both of which the server has then; what is in the place of the client is no part of the connection.
fn end_after(connection: Connection, whole: &[u8], is_reset: bool) -> Connection {
    let Connection { mut client, server } = connection;
    if is_reset {
        client.write_all(whole).unwrap();
        arrived(&server, whole.len());
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    } else {
        // The end comes with the last bytes.
        rustix::net::sockopt::set_tcp_cork(&client, true).unwrap();
        client.write_all(whole).unwrap();
    }
    drop(client);
    let (gone, is_gone) = if is_reset { (PollFlags::HUP, "reset") } else { (PollFlags::RDHUP, "ended") };
    let deadline = Instant::now() + harness::DEADLINE;
    loop {
        let mut ready = [PollFd::new(&server, PollFlags::RDHUP)];
        poll(&mut ready, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
        if ready[0].revents().contains(gone) {
            break;
        }
        assert!(Instant::now() < deadline, "the connection is not {is_gone}");
    }
    arrived(&server, whole.len());
    Connection { client: server.try_clone().unwrap(), server }
}

/// What was counted as lost is this, and nothing else.
fn expect_lost(recorder: &Recorder<SocketSource>, bytes: u64) {
    let counts = recorder.source.counts().unwrap();
    assert!(counts.lost_bytes.contains(&("unreadable", bytes)), "{bytes}: {counts:?}");
    assert_eq!(recorder.lost(), bytes, "{counts:?}");
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn what_is_spliced_before_the_first_request_is_known_keeps_its_place() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        for hidden in [1, 700] {
            let connection = Connection::over("127.0.0.1:0");
            let [client, server] = connection.addresses();
            let whole = [pseudo_random(hidden), kafka_request(300)].concat();
            play(&connection, &whole, &[Give(whole.len()), Splice(hidden), Receive(300)]);
            assert!(
                recorder.until(|seen| seen.sockets.iter().any(|(key, socket)| key.local == server && !socket.received.pieces.is_empty()))
            );
            let (_, socket) = recorder.socket(server, client).unwrap();
            assert_eq!(socket.received.first, Some(0));
            assert!(socket.received.pieces == [(u32::try_from(hidden).unwrap(), whole[hidden..].to_vec())], "{:?}", socket.received);
        }
        expect_lost(&recorder, 0);
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn the_end_of_a_stream_is_no_byte_of_it() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let mut lost = 0;
        for is_reset in [false, true] {
            let cases: [&[Step]; 5] = [
                &[Receive(900)],
                &[Receive(500), Receive(399), Receive(1)],
                &[Receive(500), Splice(399), Splice(1)],
                &[Receive(500), Splice(100), Receive(300), Acknowledge],
                &[Receive(500), Splice(1), Acknowledge, Receive(399)],
            ];
            for steps in cases {
                let what = format!("{steps:?}, reset: {is_reset}");
                let connection = Connection::over("127.0.0.1:0");
                let [client, server] = connection.addresses();
                let whole = kafka_request(900);
                let mut connection = end_after(connection, &whole, is_reset);
                let (holes, done) = play(&connection, &whole, steps);
                assert_eq!(done, whole.len(), "{what}");
                assert!(matches!(connection.server.read(&mut [0; 10]), Ok(0) | Err(_)), "{what}: nothing follows");
                let _ = rustix::net::sockopt::set_tcp_quickack(&connection.server, true);
                lost += expect_with_holes(&mut recorder, [client, server], &whole, &holes, &what);
                drop(connection);
                assert!(recorder.until(|seen| {
                    seen.sockets.iter().any(|(key, socket)| (key.local, key.peer) == (server, client) && socket.received.end.is_some())
                }));
                let (_, socket) = recorder.socket(server, client).unwrap();
                assert_eq!(socket.received.end, Some(900), "{what}");
                expect_lost(&recorder, lost);
            }
        }
    });
}

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn threads_that_take_turns_at_a_socket_are_all_seen() {
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let connection = Connection::over("127.0.0.1:0");
        let [client, server] = connection.addresses();
        connection.client.set_nodelay(true).unwrap();
        let whole = kafka_request(40_000);
        // Whoever gets the lock takes what is there, up to what it wants: some wait for all of that, some for any.
        let left = std::sync::atomic::AtomicUsize::new(whole.len());
        std::thread::scope(|scope| {
            for (want, flags) in [(70, RecvFlags::WAITALL), (300, RecvFlags::empty()), (1_000, RecvFlags::WAITALL), (7, RecvFlags::empty())]
            {
                let (receiver, left) = (&connection.server, &left);
                scope.spawn(move || {
                    let mut room = vec![0; want];
                    while let (len @ 1.., _) = recv(receiver, &mut room[..], flags).unwrap() {
                        left.fetch_sub(len, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
            for piece in whole.chunks(777) {
                (&connection.client).write_all(piece).unwrap();
            }
            connection.client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        assert_eq!(left.into_inner(), 0);
        recorder.expect_stream(server, client, Direction::Received, &whole);
        assert_eq!(recorder.lost(), 0, "{:?}", recorder.source.counts());
    });
}

/// `struct tcp_zerocopy_receive` as it began, and the option's number (Linux 4.18).
#[repr(C)]
struct Mapped {
    address: u64,
    length: u32,
    skip_hint: u32,
}
const TCP_ZEROCOPY_RECEIVE: libc::c_int = 35;

/// `MSG_ZEROCOPY` and `SO_ZEROCOPY` (Linux 4.14).
const ZEROCOPY: u32 = 0x0400_0000;
const SO_ZEROCOPY: libc::c_int = 60;

/// Pages that are sent, and taken by being mapped.
const PAGES: usize = 16;

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn pages_that_are_mapped_out_of_a_socket_are_a_counted_hole() {
    let len = PAGES * rustix::param::page_size();
    with_each(|start| {
        let mut recorder = start(SourceConfig::default());
        let connection = Connection::over("127.0.0.1:0");
        let whole = [kafka_request(3_000), pseudo_random(len), b"the end".to_vec()].concat();
        play(&connection, &whole[..3_000], &[Give(3_000), Receive(3_000)]);
        // Sent without a copy, whole pages arrive as pages of their own.
        let pages = Pages::new(len, None);
        pages.fill(&whole[3_000..3_000 + len]);
        let on: libc::c_int = 1;
        // SAFETY: the option is a number, and is given as one.
        #[expect(unsafe_code, reason = "an option that no crate has")]
        let result = unsafe {
            let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
            libc::setsockopt(connection.client.as_raw_fd(), libc::SOL_SOCKET, SO_ZEROCOPY, (&raw const on).cast(), size)
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        let mut sent = 0;
        while sent < len {
            sent += send(&connection.client, &pages.bytes()[sent..], SendFlags::from_bits_retain(ZEROCOPY)).unwrap();
        }
        arrived(&connection.server, len);
        let place = Pages::new(len, Some(&connection.server));
        let mut mapped = Mapped { address: place.start as u64, length: u32::try_from(len).unwrap(), skip_hint: 0 };
        let mut size = libc::socklen_t::try_from(size_of::<Mapped>()).unwrap();
        // SAFETY: the structure is the option's, and as long as it says; the kernel writes into the mapping that it names.
        #[expect(unsafe_code, reason = "an option that no crate has")]
        let result = unsafe {
            let server = connection.server.as_raw_fd();
            libc::getsockopt(server, libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, (&raw mut mapped).cast(), &raw mut size)
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        let taken = usize::try_from(mapped.length).unwrap();
        assert!(taken > 0, "no page was mapped");
        (&connection.server).read_exact(&mut vec![0; len - taken]).unwrap();
        play(&connection, b"the end", &[Give(7), Receive(7)]);
        let hole = 3_000..3_000 + taken;
        let lost = expect_with_holes(&mut recorder, connection.addresses(), &whole, &[hole], &format!("{taken} of {len} bytes mapped"));
        expect_lost(&recorder, lost);
    });
}

/// Mapped memory.
struct Pages {
    start: *mut u8,
    len: usize,
}

impl Pages {
    /// Of nothing, or of what arrives at a socket.
    fn new(len: usize, socket: Option<&TcpStream>) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
        let nowhere = std::ptr::null_mut();
        // SAFETY: a new mapping, wherever the kernel has room.
        #[expect(unsafe_code, reason = "memory is mapped")]
        let start = unsafe {
            match socket {
                Some(socket) => mmap(nowhere, len, ProtFlags::READ, MapFlags::SHARED, socket, 0),
                None => mmap_anonymous(nowhere, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE),
            }
        };
        Self { start: start.unwrap().cast(), len }
    }

    fn fill(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        // SAFETY: so much is mapped, and nobody else has it.
        #[expect(unsafe_code, reason = "mapped memory is written")]
        unsafe {
            self.start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: so much is mapped and written, for as long as this lives.
        #[expect(unsafe_code, reason = "mapped memory is read")]
        unsafe {
            std::slice::from_raw_parts(self.start, self.len)
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped with this size, and no reference into it is left.
        #[expect(unsafe_code, reason = "memory is given back")]
        unsafe {
            rustix::mm::munmap(self.start.cast(), self.len).unwrap();
        }
    }
}
