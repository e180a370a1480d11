//! Settings of the live source, handed in by value.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use tracer_common::limits;

/// How the programs judge and how much room they get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// Size of the ring between kernel and daemon. Rounded up to a power of two, at least 256 KiB, at most 1 GiB.
    pub ring_bytes: u32,
    /// Segments with payload that are judged in one direction of a socket before the kernel stops looking for Kafka in it.
    pub judged_segments: u32,
    /// Connections with one of these ports at either end are taken for Kafka without judging.
    pub force_ports: Vec<u16>,
    /// Connections with one of these ports at either end are never looked at. Wins over `force_ports`.
    pub exclude_ports: Vec<u16>,
    /// Which source sees the connections.
    pub main: MainSource,
    /// Whether the socket source uses a perf buffer for each CPU also where the kernel has a ring for all of them (5.8 and newer).
    pub perf_buffers: bool,
    /// Root of the cgroup v2 hierarchy; None finds it in `/proc/self/mounts`.
    pub cgroup_root: Option<PathBuf>,
}

/// Which source sees the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MainSource {
    /// Packets where that works, else calls.
    #[default]
    Auto,
    /// Packets at the root of cgroup v2.
    Packet,
    /// Calls of the kernel's functions for TCP.
    Socket,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            ring_bytes: limits::DEFAULT_RING_BYTES,
            judged_segments: limits::DEFAULT_JUDGED_SEGMENTS,
            force_ports: Vec::new(),
            exclude_ports: Vec::new(),
            main: MainSource::Auto,
            perf_buffers: false,
            cgroup_root: None,
        }
    }
}
