//! What only the tests of the packet source need.

use tracer_userspace::source::ebpf::{PacketSource, SourceConfig};

use crate::harness::Recorder;

impl Recorder<PacketSource> {
    /// Starts with defaults, but for a ring that forgives the slowness of a test build.
    pub(crate) fn start() -> Self {
        Self::start_with(SourceConfig { ring_bytes: 256 << 20, ..SourceConfig::default() })
    }

    pub(crate) fn start_with(config: SourceConfig) -> Self {
        match PacketSource::start(config) {
            Ok(source) => Self::of(source),
            Err(error) => panic!("the live tests need root, Linux 5.8 and cgroup v2: {error}"),
        }
    }

    /// Payload bytes of the largest packet that was seen.
    pub(crate) fn largest_packet(&self) -> usize {
        let streams = self.seen.sockets.values().flat_map(|socket| [&socket.sent, &socket.received]);
        streams.flat_map(|stream| stream.packets.values()).copied().max().unwrap_or(0)
    }
}

pub(crate) fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}
