//! What crosses the border for the objects that see socket calls (`socket`, `socket_ring`): events, the state of a socket and of a call, and
//! where the kernel's structures hold what is read.
//!
//! Everything obeys Linux 4.14: events lie in a per-CPU scratch before they are handed over (programs on kprobes never interrupt each other
//! on one CPU, the kernel passes over the second), and positions are a running count from the first byte that was seen.

use crate::event::Head;

/// Bytes of one event of a call's payload. With its header it fits a per-CPU value, which has at most 32 KiB.
pub const CHUNK_BYTES: u32 = 1 << 14;

/// Pieces that one run of the copying program takes. Each is at most [`CHUNK_BYTES`] long and ends with its segment.
pub const PIECES_PER_RUN: u32 = 16;

/// Runs of the copying program for one call: what the kernel allows of tail calls.
pub const RUNS: u32 = 32;
const _: () = assert!(RUNS * PIECES_PER_RUN * CHUNK_BYTES >= 4 << 20, "a call can hand over megabytes at once");

/// Sockets that state is kept for; the least recently used go first.
pub const MAX_SOCKETS: u32 = 65_536;

/// Threads that can be within a call; the least recently used go first.
pub const MAX_CALLS: u32 = 32_768;

/// What every event of a call starts with. Its kinds and directions are those of [`crate::event`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallHeader {
    /// When the bytes were given or taken: nanoseconds of the kernel's monotonic clock.
    pub time_ns: u64,
    /// When the event was handed over, likewise. Grows on each CPU.
    pub emitted_ns: u64,
    /// The socket's number: never 0, and never used again.
    pub id: u64,
    /// The socket's address, network byte order; IPv4 as `::ffff:a.b.c.d`.
    pub local: [u8; 16],
    /// The other end's address, likewise.
    pub peer: [u8; 16],
    /// The socket's port.
    pub local_port: u16,
    /// The other end's port.
    pub peer_port: u16,
    /// Process that was first seen using the socket, in the initial pid namespace; 0 while none was.
    pub pid: u32,
    /// Bytes of this direction before the first of this event; of a close, all of them. Wraps.
    pub position: u32,
    /// Payload bytes that follow.
    pub len: u32,
    /// Payload bytes that could not be read and do not follow.
    pub missing: u32,
    /// A [`crate::event::Kind`].
    pub kind: u8,
    /// A value of [`crate::event::direction`].
    pub direction: u8,
    /// Always 0.
    pub reserved: u8,
    /// The [`crate::socket::State`] that the socket had.
    pub state: u8,
}

/// Bytes of a [`CallHeader`].
pub const CALL_HEADER_BYTES: usize = 80;
const _: () = assert!(size_of::<CallHeader>() == CALL_HEADER_BYTES);

/// Bytes of a [`CallEvent`]: what a per-CPU value has at most, and a power of two, which is how a program proves that a length is within.
pub const CALL_EVENT_BYTES: usize = 1 << 15;

/// An event of a call, with room for a whole chunk. An event of kind open has [`crate::event::Opening`] in place of payload.
#[repr(C)]
pub struct CallEvent {
    /// The header.
    pub header: CallHeader,
    /// The payload; only [`CallHeader::len`] bytes are meant, and no more than [`CHUNK_BYTES`].
    pub data: [u8; CALL_EVENT_BYTES - CALL_HEADER_BYTES],
}
const _: () = assert!(size_of::<CallEvent>() == CALL_EVENT_BYTES);
const _: () = assert!(CALL_HEADER_BYTES + CHUNK_BYTES as usize <= CALL_EVENT_BYTES);

impl CallHeader {
    /// Reads a header from the start of an event and gives what follows it. None when the event is too short to be one.
    #[must_use]
    pub fn parse(event: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, rest) = event.split_first_chunk::<CALL_HEADER_BYTES>()?;
        let mut bytes = crate::event::Take(bytes);
        let header = Self {
            time_ns: u64::from_ne_bytes(bytes.array()?),
            emitted_ns: u64::from_ne_bytes(bytes.array()?),
            id: u64::from_ne_bytes(bytes.array()?),
            local: bytes.array()?,
            peer: bytes.array()?,
            local_port: u16::from_ne_bytes(bytes.array()?),
            peer_port: u16::from_ne_bytes(bytes.array()?),
            pid: bytes.u32()?,
            position: bytes.u32()?,
            len: bytes.u32()?,
            missing: bytes.u32()?,
            kind: bytes.u8()?,
            direction: bytes.u8()?,
            reserved: bytes.u8()?,
            state: bytes.u8()?,
        };
        Some((header, rest))
    }

    /// What the event is; None for a number that no program of this version writes.
    #[must_use]
    pub const fn kind(&self) -> Option<crate::event::Kind> {
        crate::event::Kind::from_number(self.kind)
    }
}

/// Bits of [`CallSocket::flags`].
pub mod flag {
    /// The socket connected.
    pub const INITIATOR: u32 = 1;
    /// The connection began after the tracer: positions count from its first byte.
    pub const BORN: u32 = 2;
    /// The port rules were looked up.
    pub const PORTS_CHECKED: u32 = 4;
    /// The connection is closed; what was received before can still be read.
    pub const CLOSED: u32 = 8;
    /// [`super::Way::sequence`] of what is received is known.
    pub const SEQUENCED: u32 = 16;
    /// The connection is gone, and the other end did not say before that it sends no more.
    pub const CUT: u32 = 32;
}

/// One direction of a socket. Written under the socket's own lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Bytes so far.
    pub position: u32,
    /// How many bytes are gathered.
    pub len: u32,
    /// Calls judged so far.
    pub judged: u32,
    /// Of bytes that came, the kernel's own number of the next one to be taken (`tcp_sock.copied_seq`), as it was at [`Self::position`]. Of
    /// bytes that left, always 0.
    pub sequence: u32,
    /// The last bytes, fewer than a request's head; only the first 14 are ever used. The verifier wants room for what could follow them.
    pub bytes: [u8; 32],
}
const _: () = assert!(size_of::<Way>() == 48);

/// What is kept for a socket, by its address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallSocket {
    /// Its number.
    pub id: u64,
    /// Its address as in [`CallHeader::local`].
    pub local: [u8; 16],
    /// The other end's.
    pub peer: [u8; 16],
    /// `skc_dport` and `skc_num` as they lie in the kernel: a socket with others is another one, at the same address.
    pub ports: u32,
    /// Process that was first seen using it.
    pub tgid: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// The configuration's epoch when a verdict was last looked for.
    pub epoch: u32,
    /// A [`crate::socket::State`].
    pub state: u32,
    /// Where in the page the bytes of the last page began that the socket was given.
    pub page_offset: u32,
    /// How many they were; 0 when something else was sent since.
    pub page_bytes: u32,
    /// Position of the first of them.
    pub page_position: u32,
    /// That page.
    pub page: u64,
    /// Bytes that left.
    pub sent: Way,
    /// Bytes that came.
    pub received: Way,
}
const _: () = assert!(size_of::<CallSocket>() == 176);

/// Values of [`Call::kind`]: where the bytes of a call lie.
pub mod place {
    /// Somewhere that is not read: they are counted.
    pub const ELSEWHERE: u32 = 0;
    /// In segments of the process's memory (`struct iovec`).
    pub const SEGMENTS: u32 = 1;
    /// In one piece of the process's memory.
    pub const BUFFER: u32 = 2;
    /// In pages (`struct bio_vec`).
    pub const PAGES: u32 = 3;
    /// Nowhere: the call only looks at what another will take.
    pub const PEEKED: u32 = 4;
}

/// A call that a thread is in, by that thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The socket.
    pub sk: u64,
    /// `struct iov_iter` of the call.
    pub iter: u64,
    /// Its segments, or its buffer.
    pub segments: u64,
    /// How many segments.
    pub nr_segs: u64,
    /// Where in the first the bytes begin.
    pub iov_offset: u64,
    /// Bytes that the call is about.
    pub count: u64,
    /// When it began, nanoseconds of the monotonic clock.
    pub begun_ns: u64,
    /// Address of the function that was called.
    pub function: u64,
    /// A value of [`place`].
    pub kind: u32,
    /// A value of [`crate::event::direction`].
    pub direction: u32,
    /// Bytes of it that were handed over.
    pub done: u64,
}
const _: () = assert!(size_of::<Call>() == 80);

/// Where a call's bytes are copied from, from run to run of the copying program. One per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// The next segment.
    pub segments: u64,
    /// How many there are.
    pub nr_segs: u64,
    /// Address of the next byte in the present segment.
    pub current: u64,
    /// Bytes in the present segment.
    pub in_segment: u64,
    /// Bytes to pass over first.
    pub skip: u64,
    /// Bytes to copy.
    pub left: u64,
    /// A value of [`place`].
    pub kind: u32,
    /// How many of the first bytes are in `first`.
    pub first_len: u32,
    /// Start of the kernel's mapping of all memory, and of its table of pages.
    pub page_offset: u64,
    /// See `page_offset`.
    pub vmemmap: u64,
    /// The first bytes.
    pub first: [u8; 32],
    /// The bytes that a judgement rests on.
    pub head: Head,
}
const _: () = assert!(size_of::<Walk>() == 128);

/// Where the kernel's structures hold what is read: offsets in bytes, and numbers. From the kernel's own types where it has them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `msghdr.msg_iter`.
    pub msg_iter: u64,
    /// `iov_iter.iter_type`, before 5.14 `iov_iter.type`.
    pub iter_type: u64,
    /// Which bits of the four bytes there say what kind of iterator it is.
    pub iter_type_mask: u64,
    /// `iov_iter.iov_offset`.
    pub iter_iov_offset: u64,
    /// `iov_iter.count`.
    pub iter_count: u64,
    /// `iov_iter.iov`, `.__iov`, `.bvec` and `.ubuf`, which lie at one place.
    pub iter_segments: u64,
    /// `iov_iter.nr_segs`.
    pub iter_nr_segs: u64,
    /// `ITER_IOVEC`.
    pub iovec: u64,
    /// `ITER_UBUF`; [`NONE`] before 6.0.
    pub ubuf: u64,
    /// `ITER_BVEC`.
    pub bvec: u64,
    /// 1 when the flags of `tcp_recvmsg` are its argument 4 (counted from 0, up to 5.18), 0 when they are argument 3.
    pub recv_has_nonblock: u64,
    /// `sock_common.skc_v6_daddr`.
    pub v6_daddr: u64,
    /// `sock_common.skc_v6_rcv_saddr`.
    pub v6_rcv_saddr: u64,
    /// 1 when the bytes of pages are read.
    pub reads_pages: u64,
    /// Address of the variable `page_offset_base`; 0 where there is none.
    pub page_offset_at: u64,
    /// Its value where there is none.
    pub page_offset: u64,
    /// Address of the variable `vmemmap_base`; 0 where there is none.
    pub vmemmap_at: u64,
    /// Its value where there is none.
    pub vmemmap: u64,
    /// `tcp_sock.copied_seq`; 0 where it is not known.
    pub copied_seq: u64,
    /// `tcp_sock.rcv_nxt`; known where `copied_seq` is.
    pub rcv_nxt: u64,
    /// Sockets of this port show the first [`SAMPLE_BYTES`] of themselves each time that bytes were taken, in place of those; 0 for none. It is
    /// how the two above are found on a kernel that does not describe its types.
    pub sampled_port: u64,
}

/// Words of a [`Layout`].
pub const LAYOUT_WORDS: usize = 21;
const _: () = assert!(size_of::<Layout>() == LAYOUT_WORDS * 8);

/// Bytes of a `struct tcp_sock` that are looked through: no more than all kernels that have to be looked through have in it.
pub const SAMPLE_BYTES: u32 = 2048;
const _: () = assert!(SAMPLE_BYTES <= CHUNK_BYTES);

/// A number that no kernel uses for an iterator.
pub const NONE: u64 = u32::MAX as u64;

impl Layout {
    /// The value as the map holds it.
    #[must_use]
    pub const fn to_words(self) -> [u64; LAYOUT_WORDS] {
        [
            self.msg_iter,
            self.iter_type,
            self.iter_type_mask,
            self.iter_iov_offset,
            self.iter_count,
            self.iter_segments,
            self.iter_nr_segs,
            self.iovec,
            self.ubuf,
            self.bvec,
            self.recv_has_nonblock,
            self.v6_daddr,
            self.v6_rcv_saddr,
            self.reads_pages,
            self.page_offset_at,
            self.page_offset,
            self.vmemmap_at,
            self.vmemmap,
            self.copied_seq,
            self.rcv_nxt,
            self.sampled_port,
        ]
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;
    use crate::event::{Kind, direction};

    #[test]
    fn the_reader_takes_each_field_from_where_the_program_puts_it() {
        let mut event = [0u8; CALL_HEADER_BYTES + 2];
        let mut put = |offset: usize, bytes: &[u8]| event[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(offset_of!(CallHeader, time_ns), &1u64.to_ne_bytes());
        put(offset_of!(CallHeader, emitted_ns), &2u64.to_ne_bytes());
        put(offset_of!(CallHeader, id), &3u64.to_ne_bytes());
        put(offset_of!(CallHeader, local), &[4; 16]);
        put(offset_of!(CallHeader, peer), &[5; 16]);
        put(offset_of!(CallHeader, local_port), &6u16.to_ne_bytes());
        put(offset_of!(CallHeader, peer_port), &7u16.to_ne_bytes());
        put(offset_of!(CallHeader, pid), &8u32.to_ne_bytes());
        put(offset_of!(CallHeader, position), &9u32.to_ne_bytes());
        put(offset_of!(CallHeader, len), &10u32.to_ne_bytes());
        put(offset_of!(CallHeader, missing), &11u32.to_ne_bytes());
        put(offset_of!(CallHeader, kind), &[3]);
        put(offset_of!(CallHeader, direction), &[1]);
        put(offset_of!(CallHeader, reserved), &[7]);
        put(offset_of!(CallHeader, state), &[2]);
        put(CALL_HEADER_BYTES, b"ab");
        let wanted = CallHeader {
            time_ns: 1,
            emitted_ns: 2,
            id: 3,
            local: [4; 16],
            peer: [5; 16],
            local_port: 6,
            peer_port: 7,
            pid: 8,
            position: 9,
            len: 10,
            missing: 11,
            kind: 3,
            direction: direction::RECEIVED,
            reserved: 7,
            state: 2,
        };
        assert_eq!(CallHeader::parse(&event), Some((wanted, &b"ab"[..])));
        assert_eq!(wanted.kind(), Some(Kind::Close));
        for short in 0..CALL_HEADER_BYTES {
            assert_eq!(CallHeader::parse(&event[..short]), None);
        }
    }

    #[test]
    fn the_words_of_a_layout_are_in_the_order_of_its_fields() {
        let words = core::array::from_fn(|i| i as u64);
        let [
            msg_iter,
            iter_type,
            iter_type_mask,
            iter_iov_offset,
            iter_count,
            iter_segments,
            iter_nr_segs,
            iovec,
            ubuf,
            bvec,
            recv_has_nonblock,
            v6_daddr,
            v6_rcv_saddr,
            reads_pages,
            page_offset_at,
            page_offset,
            vmemmap_at,
            vmemmap,
            copied_seq,
            rcv_nxt,
            sampled_port,
        ] = words;
        let layout = Layout {
            msg_iter,
            iter_type,
            iter_type_mask,
            iter_iov_offset,
            iter_count,
            iter_segments,
            iter_nr_segs,
            iovec,
            ubuf,
            bvec,
            recv_has_nonblock,
            v6_daddr,
            v6_rcv_saddr,
            reads_pages,
            page_offset_at,
            page_offset,
            vmemmap_at,
            vmemmap,
            copied_seq,
            rcv_nxt,
            sampled_port,
        };
        assert_eq!(layout.to_words(), words);
        for (offset, word) in [
            (offset_of!(Layout, iter_count), 4),
            (offset_of!(Layout, recv_has_nonblock), 10),
            (offset_of!(Layout, reads_pages), 13),
            (offset_of!(Layout, vmemmap), 17),
            (offset_of!(Layout, sampled_port), 20),
        ] {
            assert_eq!(offset, word * 8);
        }
    }
}
