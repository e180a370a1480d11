//! Length-prefixed frames of one direction of one connection.
//!
//! In: [`crate::stream::Piece`]s. Out: [`FrameEvent`]s to the connection, which decodes and pairs them.
//!
//! A frame that lies within one piece is handed out as a slice of it; others are put together in a buffer that grows with
//! what arrives. A hole inside a frame costs its bytes only. When a hole covers a size field, or a size cannot be, the next
//! frame is searched for: at each piece's beginning and at each byte, judged by the [`FrameOwner`], who knows what a frame
//! looks like and which answers are outstanding.

#![forbid(unsafe_code)]

mod framer;

use std::ops::Range;

pub use framer::Framer;

use crate::time::Timestamp;

/// How long frames may be, and how much of one is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Bytes of a frame that are kept; of a longer one only this prefix is handed out.
    pub max_frame_bytes: u32,
    /// Smallest declared size that is believed: 4 for answers, 8 for requests.
    pub min_declared_bytes: u32,
    /// Largest declared size that is believed.
    pub max_declared_bytes: u32,
}

impl Default for FrameLimits {
    fn default() -> Self {
        // The first four bytes of TLS (16 03 01 ..) read as 352 MiB and more: no frame.
        // `fetch.max.bytes` of Java's consumer is 50 MiB.
        Self { max_frame_bytes: 64 << 20, min_declared_bytes: 4, max_declared_bytes: 256 << 20 }
    }
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What follows the four size bytes, zero where it was not seen. Shorter than `declared_bytes` when the frame is
    /// longer than the limit, or when its end was not seen.
    pub payload: &'a [u8],
    /// Which bytes of the declared payload were not seen: ascending, apart, not empty; the last may reach beyond `payload`.
    pub holes: &'a [Range<usize>],
    /// The size field: bytes of the whole payload.
    pub declared_bytes: u32,
    /// When the first of its bytes (size field included) was seen.
    pub first_time: Timestamp,
    /// When the last of its bytes was seen, in time and not in place: when it was complete.
    pub last_time: Timestamp,
}

impl Frame<'_> {
    /// True when every byte is there.
    pub fn is_whole(&self) -> bool {
        self.holes.is_empty() && u32::try_from(self.payload.len()) == Ok(self.declared_bytes)
    }

    /// Its bytes, size field included, whether they were seen or not.
    pub fn bytes(&self) -> u64 {
        u64::from(self.declared_bytes) + 4
    }

    /// Bytes of the declared payload that were not seen.
    pub fn missing_bytes(&self) -> u64 {
        self.holes.iter().map(|hole| hole.len() as u64).sum()
    }
}

/// Why bytes are in no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// They were not seen, and how they were framed is not known either.
    Hole,
    /// They were seen, but where a frame begins was not known.
    Unframed,
    /// The stream ended (or began anew) in the middle of a frame, of which this much had been seen.
    Unfinished,
}

/// Why the next frame's place is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DesyncReason {
    /// A hole covers a size field.
    Hole,
    /// A size field says what no frame can be long.
    Size(i32),
    /// The stream began anew.
    Restart,
    /// The owner said so, see [`Next::Resynchronise`].
    Owner,
}

/// What comes out of a [`Framer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameEvent<'a> {
    /// A frame is complete, as far as it will ever be.
    Frame(Frame<'a>),
    /// Bytes that are in no frame.
    Lost {
        /// How many.
        bytes: u64,
        /// Why.
        reason: LostReason,
        /// When that was known.
        time: Timestamp,
    },
    /// From here on the place of the next frame is not known. Frames may be missing without a trace.
    LostSync {
        /// Why.
        reason: DesyncReason,
        /// When that was known.
        time: Timestamp,
    },
    /// It is known again: a frame begins at the byte seen at `time`.
    Resumed {
        /// When that byte was seen.
        time: Timestamp,
    },
}

/// A place where a frame might begin, to be judged by the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The size field, within the limits.
    pub declared_bytes: u32,
    /// What follows it, as far as it is there, at most [`HEAD_BYTES`].
    pub head: &'a [u8],
    /// A segment begins here, which most frames' first bytes do. Elsewhere the judge should be harder to please.
    pub at_piece_start: bool,
}

/// Bytes of a [`Candidate`] that its judge is shown at most.
pub const HEAD_BYTES: usize = 512;

/// A judgement on a [`Candidate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plausible {
    /// A frame begins here.
    Yes,
    /// None does.
    No,
    /// More bytes are needed to tell. With [`HEAD_BYTES`] or the whole frame shown, the same as `No`.
    NeedMore,
}

/// What the owner wants done after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The usual.
    Continue,
    /// After a frame that was none: search for a place where one begins, from here on. After other events the same as
    /// `Continue`.
    Resynchronise,
    /// Nothing more of this stream is wanted, see [`Framer::set_opaque`].
    Ignore,
}

/// Who gets the frames, and knows what one looks like.
pub trait FrameOwner {
    /// Whether a frame plausibly begins at this place. Asked only while it is not known where one does.
    fn judge(&self, candidate: Candidate<'_>) -> Plausible;

    /// Frames below the smallest size may come now, the empty one included: bare SASL tokens (KIP-43) are any bytes.
    fn expects_short_frames(&self) -> bool {
        false
    }

    /// Something was found out.
    fn on_frame_event(&mut self, event: FrameEvent<'_>) -> Next;
}
