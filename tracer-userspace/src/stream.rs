//! One direction of one connection, put in order: segments in, pieces of the stream out, with its holes as values.
//!
//! In: positions and bytes as a source saw them. Out: [`Piece`]s to `frame`, in order, each byte once.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::time::Timestamp;

/// What comes out of a [`Stream`]: the next bytes, or the knowledge that they will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The next bytes of the stream, never empty.
    Bytes {
        /// When they were seen first.
        time: Timestamp,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// This many bytes of the stream were not seen, and are not waited for any longer.
    Gap {
        /// When they were given up: the time of the event that made it so.
        time: Timestamp,
        /// How many, never 0.
        bytes: u64,
    },
    /// What follows has no known relation to what came before: another connection took over the addresses unseen.
    Restart {
        /// When the new bytes were seen.
        time: Timestamp,
    },
}

/// How much a [`Stream`] may hold back, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// Bytes held behind a hole, book-keeping included, before the hole is given up.
    pub reorder_bytes: usize,
    /// How long, in time of events, data waits behind a hole before the hole is given up.
    pub hole_delay: Duration,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self { reorder_bytes: 4 << 20, hole_delay: Duration::from_millis(500) }
    }
}

/// What a [`Stream`] has seen so far. All of it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounters {
    /// Bytes handed on.
    pub bytes: u64,
    /// Holes that were given up.
    pub gaps: u64,
    /// Bytes in them.
    pub gap_bytes: u64,
    /// Bytes dropped because they were seen before: retransmissions, keep-alives, packets captured twice.
    pub duplicate_bytes: u64,
    /// Bytes dropped because they lie before the place where a stream picked up in the middle begins.
    pub early_bytes: u64,
    /// Segments that were held for a while because they came before their turn.
    pub reordered_segments: u64,
    /// Times that the stream began anew, see [`Piece::Restart`].
    pub restarts: u64,
}

/// What a SYN meant, see [`Stream::open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The stream begins here; nothing had been seen before.
    First,
    /// The same SYN again, or one that confirms what was known: nothing changed.
    Again,
    /// Another connection: this stream saw something else before. Nothing was changed: the caller ends the old
    /// connection and opens a new [`Stream`].
    Other,
}

/// One direction of one connection.
#[derive(Debug)]
pub struct Stream {
    limits: StreamLimits,
}

impl Stream {
    /// A stream of which nothing is known yet.
    pub fn new(limits: StreamLimits) -> Self {
        Self { limits }
    }

    /// A SYN was seen: the first byte has this position.
    pub fn open(&mut self, _first_position: u32) -> Opened {
        let _ = self.limits;
        Opened::First
    }

    /// True when the stream's first byte is known from a SYN: what comes out begins at the beginning (or with a
    /// [`Piece::Gap`] that does). False when it was picked up in the middle.
    pub fn begins_at_open(&self) -> bool {
        false
    }

    /// A segment was seen: `bytes` at `position`, and `missing_bytes` behind them that nobody kept.
    pub fn push(&mut self, _position: u32, _bytes: &[u8], _missing_bytes: u32, _time: Timestamp, _sink: &mut impl FnMut(Piece<'_>)) {}

    /// A FIN was seen: the stream ends before `position`. Not for a RST, whose position is not to be trusted.
    pub fn close(&mut self, _position: u32) {}

    /// True when a FIN was seen and every byte before it was handed on or given up.
    pub fn is_finished(&self) -> bool {
        false
    }

    /// True while data waits behind a hole. An answer that pairs with nothing while the other direction waits proves
    /// that the hole is ours (the peer has read past it): `flush` that direction, and look again.
    pub fn is_waiting(&self) -> bool {
        false
    }

    /// Gives up every hole, hands on all that was held, and (after [`Self::close`]) reports a missing end.
    pub fn flush(&mut self, _time: Timestamp, _sink: &mut impl FnMut(Piece<'_>)) {}

    /// Gives up holes that data has waited behind for longer than the limit.
    pub fn tick(&mut self, _now: Timestamp, _sink: &mut impl FnMut(Piece<'_>)) {}

    /// Memory that held segments take, book-keeping included.
    pub fn buffered_bytes(&self) -> usize {
        0
    }

    /// What was seen so far.
    pub fn counters(&self) -> StreamCounters {
        StreamCounters::default()
    }
}
