//! Where bytes come from. Every source yields the same [`CaptureEvent`]: which socket, which direction, where in the
//! stream, when, which bytes, and how many more there were that nobody kept.
//!
//! In: packets of a capture file (`pcap`) or events of the kernel programs (`ebpf`, feature `live`).
//! Out: [`CaptureEvent`] to `connection`.

#![cfg_attr(not(feature = "live"), forbid(unsafe_code))]

#[cfg(feature = "binaries")]
pub mod binary;
pub mod features;
pub mod pcap;

#[cfg(feature = "live")]
pub mod ebpf;

use std::net::SocketAddr;

use crate::time::Timestamp;

/// Which socket saw the bytes. Live, each end of a local connection is a socket of its own (`local` and `peer` swapped);
/// in a capture file there is one key per connection, with `local` the end that connected, where the SYN was seen, and
/// the smaller address else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey {
    /// What keeps equal addresses apart: the socket's cookie live, 0 in a capture file.
    pub scope: u64,
    /// The socket's own address and port.
    pub local: SocketAddr,
    /// The other end's.
    pub peer: SocketAddr,
}

/// Which way bytes go, seen from the socket of the [`SocketKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From `local` to `peer`.
    Sent,
    /// From `peer` to `local`.
    Received,
}

impl Direction {
    /// The other way.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Sent => Self::Received,
            Self::Received => Self::Sent,
        }
    }
}

/// One thing that was seen on a socket.
#[derive(Clone, Copy, Debug)]
pub struct CaptureEvent<'a> {
    /// The socket.
    pub socket: SocketKey,
    /// When it was seen.
    pub time: Timestamp,
    /// Process that owns the socket (pid of the initial namespace), once known; never in a capture file.
    pub pid: Option<u32>,
    /// What was seen.
    pub kind: EventKind<'a>,
}

/// What was seen on a socket.
#[derive(Clone, Copy, Debug)]
pub enum EventKind<'a> {
    /// A SYN (or SYN-ACK) went `direction`; the first byte that way has position `first_position`.
    Open {
        /// Which way the SYN went.
        direction: Direction,
        /// False for a SYN-ACK. The sender of the plain SYN is who connected.
        initiator: bool,
        /// Position of the first byte of this direction (the SYN's sequence number + 1).
        first_position: u32,
    },
    /// Bytes of the stream.
    Data {
        /// Which way.
        direction: Direction,
        /// Position of `bytes[0]` in the direction's stream: the TCP sequence number, or a running count. Wraps.
        position: u32,
        /// The bytes.
        bytes: &'a [u8],
        /// How many bytes of the segment followed and were not kept (snap length, unreadable pages).
        missing_bytes: u32,
    },
    /// The direction ended: FIN or RST. Bytes before `position` may still arrive when packets were reordered.
    Close {
        /// Which way.
        direction: Direction,
        /// Position after the last byte; not to be trusted on a reset.
        position: u32,
        /// True for RST: the whole connection ended.
        reset: bool,
    },
}

/// What user space tells the kernel about a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Kafka, and wanted: go on copying, stop asking.
    Capture,
    /// Not Kafka, or not wanted: copy nothing more.
    Ignore,
}
