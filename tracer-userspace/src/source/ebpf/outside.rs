//! What takes bytes of others here, each as a function of any bytes, for the fuzz targets: nothing of the kernel is needed.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;

use super::btf::Btf;
use super::{owner, packet, socket, tls};
use crate::source::CaptureEvent;

/// Whose events they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// Of the packet source.
    Packet,
    /// Of the socket source.
    Socket,
    /// Of the TLS source.
    Tls,
}

/// What came of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Payload bytes that they hold.
    pub bytes: u64,
    /// Those of no known form.
    pub malformed: u64,
    /// Bytes that wait for their socket in the end, as they were counted, and as they are.
    pub waiting_bytes: (usize, usize),
}

/// Gives events to a source's translator, one after another.
pub fn translate<'e>(programs: Programs, events: impl Iterator<Item = &'e [u8]>, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Taken {
    match programs {
        Programs::Packet => packet::translate(events, sink),
        Programs::Socket => socket::translate(events, sink),
        Programs::Tls => tls::translate(events, sink),
    }
}

/// Reads a kernel's description of its types and looks for things in it. False when it cannot be read.
pub fn btf(bytes: &[u8]) -> bool {
    let Ok(btf) = Btf::parse(bytes) else { return false };
    for (structure, member) in [("iov_iter", "count"), ("msghdr", "msg_iter"), ("sock_common", "skc_dport"), ("s", "x")] {
        let _ = (btf.member_offset(structure, member), btf.size_of(structure));
    }
    let _ = (btf.constant("ITER_IOVEC"), btf.has_parameter("tcp_recvmsg", "flags"));
    true
}

/// A line of the kernel's tables of TCP sockets: both addresses, and the inode.
pub fn socket_line(line: &str) -> Option<(SocketAddr, SocketAddr, u64)> {
    owner::read_line(line).map(|((local, peer), inode)| (local, peer, inode))
}

/// The inode that the link of a descriptor names.
pub fn socket_inode(target: &str) -> Option<u64> {
    owner::socket_inode(target)
}

/// A line of what a process has mapped: inode and path of a file with code, and the last part of the path.
pub fn mapped(line: &str) -> Option<(u64, &str, &str)> {
    tls::Mapped::parse(line).map(|mapped| (mapped.inode, mapped.path, mapped.name()))
}

/// Why nothing can be seen of a process's encrypted connections, as far as what it has mapped tells.
pub fn opaque_reason(maps: &str) -> Option<&'static str> {
    tls::by_libraries(maps)
}

/// When a process began, of its `/proc/PID/stat`.
pub fn process_start(stat: &str) -> Option<u64> {
    tls::started_of(stat)
}

/// Where a list of mounts has cgroup v2.
pub fn cgroup2_mounts(mounts: &[u8]) -> Vec<PathBuf> {
    packet::cgroup::cgroup2_mounts(mounts)
}

/// The probes of dead processes in a kernel's list of probes.
pub fn stale_probes(list: &str) -> Vec<String> {
    socket::stale_probes(list, &|_| true)
}

/// The number at a place of an event, as far as it goes.
pub(super) fn word(event: &[u8], at: usize) -> u64 {
    event.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}
