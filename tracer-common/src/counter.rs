//! Counters that the kernel programs keep, one slot per CPU each. The programs interrupt each other, so a count can miss a few: they are
//! statistics. Proof of loss is a hole in the positions of a stream.

/// Index of a counter in the programs' counter map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counter {
    /// Events with payload. The programs count what is meant to be handed over, once for a packet; the daemon takes off what was lost.
    Events = 0,
    /// Payload bytes, likewise.
    Bytes = 1,
    /// Sockets that became candidates.
    Candidates = 2,
    /// Events that found no room in the ring: the reader was slower than the traffic.
    LostRingFull = 3,
    /// Payload bytes of those events.
    LostRingFullBytes = 4,
    /// Payload bytes that the kernel could not read (memory of a device, damaged packet).
    LostUnreadableBytes = 5,
    /// Payload bytes beyond the longest packet that is copied.
    LostTooLongBytes = 6,
    /// Packets with headers that could not be read or followed to TCP.
    SkippedHeaders = 7,
    /// Packets of sockets that no state could be kept for (out of memory).
    LostNoState = 8,
    /// Segments that arrived for a connection whose socket did not exist yet (deferred accept, fast open, a lost handshake packet).
    BeforeAccept = 9,
    /// Segments that overtook the first of their connection.
    Overtook = 10,
    /// Calls of probed functions of which no beginning was seen, or too many at once.
    LostCalls = 11,
    /// Events of a CPU that has no perf buffer: it came online after the tracer started.
    LostNoBuffer = 12,
}

/// How many counters there are.
pub const COUNTERS: u32 = 13;

impl Counter {
    /// All counters in the order of their indices.
    pub const ALL: [Self; COUNTERS as usize] = [
        Self::Events,
        Self::Bytes,
        Self::Candidates,
        Self::LostRingFull,
        Self::LostRingFullBytes,
        Self::LostUnreadableBytes,
        Self::LostTooLongBytes,
        Self::SkippedHeaders,
        Self::LostNoState,
        Self::BeforeAccept,
        Self::Overtook,
        Self::LostCalls,
        Self::LostNoBuffer,
    ];

    /// Name for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Bytes => "bytes",
            Self::Candidates => "candidates",
            Self::LostRingFull => "ring_full",
            Self::LostRingFullBytes => "ring_full_bytes",
            Self::LostUnreadableBytes => "unreadable_bytes",
            Self::LostTooLongBytes => "too_long_bytes",
            Self::SkippedHeaders => "headers",
            Self::LostNoState => "no_state",
            Self::BeforeAccept => "before_accept",
            Self::Overtook => "overtook",
            Self::LostCalls => "calls",
            Self::LostNoBuffer => "no_buffer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_counters_is_in_the_order_of_the_indices() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
        }
    }
}
