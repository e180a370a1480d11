//! From the words of the kernel's events to those of [`CaptureEvent`]s, for all sources.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tracer_common::event::{EventHeader, direction};

use super::clock::Offset;
use crate::source::{CaptureEvent, Direction, EventKind, SocketKey};

/// Where events go, with the clock's offset.
pub(super) struct Out<'a> {
    pub(super) offset: Offset,
    pub(super) sink: &'a mut dyn FnMut(CaptureEvent<'_>),
}

impl Out<'_> {
    pub(super) fn emit(&mut self, socket: SocketKey, pid: Option<u32>, boot_ns: u64, kind: EventKind<'_>) {
        (self.sink)(CaptureEvent { socket, time: self.offset.wall(boot_ns), pid, kind });
    }

    pub(super) fn data(&mut self, socket: SocketKey, pid: Option<u32>, header: &EventHeader, bytes: &[u8]) {
        let kind = EventKind::Data { direction: way(header), position: header.position, bytes, missing_bytes: header.missing };
        self.emit(socket, pid, header.boot_ns, kind);
    }
}

/// Which way an event's bytes went.
pub(super) const fn way(header: &EventHeader) -> Direction {
    if header.direction == direction::SENT { Direction::Sent } else { Direction::Received }
}

/// IPv4 comes in IPv6's form.
pub(super) fn address(bytes: [u8; 16], port: u16) -> SocketAddr {
    let address = Ipv6Addr::from(bytes);
    SocketAddr::new(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4), port)
}
