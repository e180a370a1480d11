//! The targets.

mod binary;
mod compression;
mod frame;
mod judge;
mod line;
#[cfg(feature = "live")]
mod lists;
mod message;
mod pcap;
mod process;
mod records;
mod settings;
#[cfg(feature = "live")]
mod sources;

use crate::Target;

/// Targets of the live sources.
#[cfg(feature = "live")]
pub const LIVE_TARGETS: [Target; 4] = [
    Target { name: "events", max_bytes: 8 << 10, run: sources::events, seeds: sources::events_seeds },
    Target { name: "btf", max_bytes: 8 << 10, run: sources::btf, seeds: sources::btf_seeds },
    Target { name: "sockets", max_bytes: 1 << 10, run: sources::sockets, seeds: sources::sockets_seeds },
    Target { name: "lists", max_bytes: 1 << 10, run: lists::run, seeds: lists::seeds },
];
/// Targets of the live sources, which are not in this build.
#[cfg(not(feature = "live"))]
pub const LIVE_TARGETS: [Target; 0] = [];

/// All others.
pub const TARGETS: [Target; 10] = [
    Target { name: "pcap", max_bytes: 16 << 10, run: pcap::run, seeds: pcap::seeds },
    Target { name: "frame", max_bytes: 4 << 10, run: frame::run, seeds: frame::seeds },
    Target { name: "line", max_bytes: 16 << 10, run: line::run, seeds: line::seeds },
    Target { name: "message", max_bytes: 8 << 10, run: message::run, seeds: message::seeds },
    Target { name: "records", max_bytes: 16 << 10, run: records::run, seeds: records::seeds },
    Target { name: "compression", max_bytes: 16 << 10, run: compression::run, seeds: compression::seeds },
    Target { name: "judge", max_bytes: 64, run: judge::run, seeds: judge::seeds },
    Target { name: "settings", max_bytes: 4 << 10, run: settings::run, seeds: settings::seeds },
    Target { name: "binary", max_bytes: 4 << 10, run: binary::run, seeds: binary::seeds },
    Target { name: "process", max_bytes: 4 << 10, run: process::run, seeds: process::seeds },
];
