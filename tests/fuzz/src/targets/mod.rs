//! The targets.

mod compression;
mod frame;
mod judge;
mod line;
mod message;
mod pcap;
mod process;
mod records;

use crate::Target;

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target { name: "pcap", max_bytes: 16 << 10, run: pcap::run, seeds: pcap::seeds },
    Target { name: "frame", max_bytes: 4 << 10, run: frame::run, seeds: frame::seeds },
    Target { name: "line", max_bytes: 16 << 10, run: line::run, seeds: line::seeds },
    Target { name: "message", max_bytes: 8 << 10, run: message::run, seeds: message::seeds },
    Target { name: "records", max_bytes: 16 << 10, run: records::run, seeds: records::seeds },
    Target { name: "compression", max_bytes: 16 << 10, run: compression::run, seeds: compression::seeds },
    Target { name: "judge", max_bytes: 64, run: judge::run, seeds: judge::seeds },
    Target { name: "process", max_bytes: 4 << 10, run: process::run, seeds: process::seeds },
];
