//! Length-prefixed frames of one direction of one connection.
//!
//! In: [`Piece`]s of `stream`. Out: [`FrameEvent`]s to the connection, which decodes and pairs them.
//!
//! A frame that lies within one piece is handed out as a slice of it; others are put together in a buffer that grows with
//! what arrives. A hole inside a frame costs its bytes only. When a hole covers a size field, or a size cannot be, the next
//! frame is searched for: at each piece's beginning and at each byte, judged by the [`FrameOwner`], who knows what a frame
//! looks like and which answers are outstanding.

#![forbid(unsafe_code)]

use std::mem;
use std::ops::Range;

use crate::stream::Piece;
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

/// One direction of one connection.
#[derive(Debug)]
pub struct Framer {
    limits: FrameLimits,
    state: State,
    /// The frame's bytes so far; while searching, bytes that wait for more.
    buffer: Vec<u8>,
    holes: Vec<Range<usize>>,
}

#[derive(Debug)]
enum State {
    /// Between two frames, or within a size field of which `have` bytes have come.
    Border { size: [u8; 4], have: usize, first_time: Timestamp },
    /// Within a frame.
    Payload(Partial),
    /// Looking for a frame. `marks` tell where the pieces in `buffer` begin.
    Searching { marks: Vec<Mark> },
    /// Nothing is wanted.
    Opaque,
}

/// A frame that has begun.
#[derive(Clone, Copy, Debug)]
struct Partial {
    declared: usize,
    /// Bytes of the payload that have passed, holes included.
    passed: usize,
    /// What lies behind this place is not kept.
    keep_to: usize,
    first_time: Timestamp,
    last_time: Timestamp,
}

/// From `at` on, bytes were seen at `time`.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: usize,
    time: Timestamp,
    begins_piece: bool,
}

const SIZE_BYTES: usize = 4;

/// A buffer that has grown larger is given back after its frame.
const KEPT_CAPACITY_BYTES: usize = 64 << 10;

/// Holes of one frame that are told apart. Of a frame with more, only what lies before the next hole is kept.
const MAX_HOLES: usize = 1024;

impl Framer {
    /// For a stream whose first byte begins a frame.
    pub fn new(limits: FrameLimits) -> Self {
        Self { limits, state: State::BORDER, buffer: Vec::new(), holes: Vec::new() }
    }

    /// For a stream that was picked up in the middle: searches for the first frame.
    pub fn starts_midway(limits: FrameLimits) -> Self {
        Self { limits, state: State::SEARCHING, buffer: Vec::new(), holes: Vec::new() }
    }

    /// Takes the next piece of the stream.
    pub fn push(&mut self, piece: Piece<'_>, owner: &mut impl FrameOwner) {
        match piece {
            Piece::Bytes { time, bytes } => self.take_bytes(bytes, time, true, owner),
            Piece::Gap { time, bytes } => self.take_gap(bytes, time, owner),
            Piece::Restart { time } => {
                self.finish(time, owner);
                self.lose_sync(DesyncReason::Restart, time, owner);
            }
        }
    }

    /// The stream ended: reports what is left over. What comes after that begins like [`Self::new`].
    pub fn finish(&mut self, time: Timestamp, owner: &mut impl FrameOwner) {
        let (bytes, reason) = match &self.state {
            State::Border { have, .. } => (*have, LostReason::Unfinished),
            State::Payload(partial) => {
                let in_holes: usize = self.holes.iter().map(Range::len).sum();
                (SIZE_BYTES + partial.passed - in_holes, LostReason::Unfinished)
            }
            State::Searching { .. } => (self.buffer.len(), LostReason::Unframed),
            State::Opaque => return,
        };
        self.reset();
        self.report_lost(bytes as u64, reason, time, owner);
    }

    /// The smallest declared size, once the role of the direction is known.
    pub fn set_min_declared_bytes(&mut self, bytes: u32) {
        self.limits.min_declared_bytes = bytes;
    }

    /// Forgets everything and begins like [`Self::new`].
    pub fn reset(&mut self) {
        self.state = State::BORDER;
        self.empty_buffer();
    }

    /// From now on does nothing and holds nothing: the connection is not of interest.
    pub fn set_opaque(&mut self) {
        self.state = State::Opaque;
        self.buffer = Vec::new();
        self.holes = Vec::new();
    }

    /// True when the place of the next frame is known.
    pub fn is_synchronised(&self) -> bool {
        !matches!(self.state, State::Searching { .. })
    }

    /// Memory is short: of the frame that is being put together only the head is kept, the rest is passed over, and the
    /// frame is handed out cut.
    pub fn give_up(&mut self) {
        if let State::Payload(partial) = &mut self.state {
            partial.keep_to = partial.keep_to.min(HEAD_BYTES);
            self.buffer.truncate(partial.keep_to);
            self.holes.retain(|hole| hole.start < HEAD_BYTES);
        }
        self.buffer.shrink_to_fit();
        self.holes.shrink_to_fit();
    }

    /// Memory held for a frame that is not complete.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.capacity() + self.holes.capacity() * size_of::<Range<usize>>()
    }

    fn take_bytes(&mut self, bytes: &[u8], time: Timestamp, begins_piece: bool, owner: &mut impl FrameOwner) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.state {
                State::Border { size, have, first_time } => {
                    self.take_size(rest, time, (size, have, if have == 0 { time } else { first_time.min(time) }), owner)
                }
                State::Payload(partial) => self.take_payload(rest, time, partial, owner),
                State::Searching { .. } => self.search(rest, time, begins_piece && rest.len() == bytes.len(), owner),
                State::Opaque => return,
            };
        }
    }

    /// Takes bytes of the size field; returns the rest.
    fn take_size<'p>(
        &mut self,
        piece: &'p [u8],
        time: Timestamp,
        (mut size, had, first_time): ([u8; SIZE_BYTES], usize, Timestamp),
        owner: &mut impl FrameOwner,
    ) -> &'p [u8] {
        let missing = SIZE_BYTES - had;
        let (taken, rest) = piece.split_at_checked(missing).unwrap_or((piece, &[]));
        let have = had + taken.len();
        if let Some(place) = size.get_mut(had..have) {
            place.copy_from_slice(taken);
        }
        if have < SIZE_BYTES {
            self.state = State::Border { size, have, first_time };
            return rest;
        }
        let declared = self.limits.believe(size).or_else(|| self.limits.believe_short(size).filter(|_| owner.expects_short_frames()));
        if let Some(declared) = declared {
            let keep_to = declared.min(usize::try_from(self.limits.max_frame_bytes).unwrap_or(usize::MAX));
            let partial = Partial { declared, passed: 0, keep_to, first_time, last_time: time.max(first_time) };
            self.go_on(partial, time, owner);
            return rest;
        }
        // What the size field was taken for may itself hold the beginning of a frame.
        self.lose_sync(DesyncReason::Size(i32::from_be_bytes(size)), time, owner);
        if let State::Searching { marks } = &mut self.state
            && had > 0
        {
            self.buffer.extend_from_slice(size.get(..had).unwrap_or_default());
            marks.push(Mark { at: 0, time: first_time, begins_piece: false });
        }
        piece
    }

    /// Takes bytes of the payload; returns the rest.
    fn take_payload<'p>(&mut self, piece: &'p [u8], time: Timestamp, mut partial: Partial, owner: &mut impl FrameOwner) -> &'p [u8] {
        let missing = partial.declared - partial.passed;
        let (taken, rest) = piece.split_at_checked(missing).unwrap_or((piece, &[]));
        let kept = taken.get(..partial.keep_to.saturating_sub(partial.passed)).unwrap_or(taken);
        partial.first_time = partial.first_time.min(time);
        partial.last_time = partial.last_time.max(time);
        if partial.passed == 0 && taken.len() == partial.declared {
            self.hand_out(Some(kept), partial, time, owner);
            return rest;
        }
        if !kept.is_empty() {
            // Where there are holes before this, their place is filled.
            self.buffer.resize(partial.passed, 0);
            self.buffer.extend_from_slice(kept);
        }
        partial.passed += taken.len();
        self.go_on(partial, time, owner);
        rest
    }

    fn take_gap(&mut self, bytes: u64, time: Timestamp, owner: &mut impl FrameOwner) {
        let mut bytes = bytes;
        if let State::Payload(mut partial) = self.state {
            let missing = partial.declared - partial.passed;
            let hole = usize::try_from(bytes).unwrap_or(usize::MAX).min(missing);
            bytes -= hole as u64;
            self.add_hole(hole, &mut partial);
            self.go_on(partial, time, owner);
        }
        if bytes == 0 || matches!(self.state, State::Opaque) {
            return;
        }
        let unframed = match &self.state {
            State::Border { have, .. } => *have,
            _ => self.buffer.len(),
        };
        if self.is_synchronised() {
            self.lose_sync(DesyncReason::Hole, time, owner);
        } else {
            self.restart_search();
        }
        self.report_lost(unframed as u64, LostReason::Unframed, time, owner);
        self.report_lost(bytes, LostReason::Hole, time, owner);
    }

    /// `hole` bytes of the payload were not seen.
    fn add_hole(&mut self, hole: usize, partial: &mut Partial) {
        let range = partial.passed..partial.passed + hole;
        let may_add = self.holes.len() < MAX_HOLES;
        match self.holes.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if may_add => self.holes.push(range),
            // Everything from here on is cut off, this hole with it.
            _ => partial.keep_to = partial.keep_to.min(partial.passed),
        }
        partial.passed += hole;
    }

    /// A part of the payload has passed: hands the frame out if that was the last.
    fn go_on(&mut self, partial: Partial, time: Timestamp, owner: &mut impl FrameOwner) {
        if partial.passed == partial.declared {
            self.hand_out(None, partial, time, owner);
        } else {
            self.state = State::Payload(partial);
        }
    }

    /// Hands out a frame, from a piece or from the buffer.
    fn hand_out(&mut self, piece: Option<&[u8]>, partial: Partial, time: Timestamp, owner: &mut impl FrameOwner) {
        self.state = State::BORDER;
        let next = owner.on_frame_event(FrameEvent::Frame(Frame {
            payload: piece.unwrap_or(&self.buffer),
            holes: &self.holes,
            declared_bytes: u32::try_from(partial.declared).unwrap_or(u32::MAX),
            first_time: partial.first_time,
            last_time: partial.last_time,
        }));
        self.empty_buffer();
        match next {
            Next::Continue => {}
            Next::Resynchronise => self.lose_sync(DesyncReason::Owner, time, owner),
            Next::Ignore => self.set_opaque(),
        }
    }

    fn lose_sync(&mut self, reason: DesyncReason, time: Timestamp, owner: &mut impl FrameOwner) {
        if !matches!(self.state, State::Opaque) {
            self.restart_search();
            self.report(FrameEvent::LostSync { reason, time }, owner);
        }
    }

    fn restart_search(&mut self) {
        self.state = State::SEARCHING;
        self.empty_buffer();
    }

    /// Searches for a frame's beginning; returns what is left of the piece, from that beginning on.
    fn search<'p>(&mut self, piece: &'p [u8], time: Timestamp, begins_piece: bool, owner: &mut impl FrameOwner) -> &'p [u8] {
        let mut marks = match &mut self.state {
            State::Searching { marks } => mem::take(marks),
            _ => return piece,
        };
        let mut joined = mem::take(&mut self.buffer);
        let held = joined.len();
        if held > 0 {
            let shown = piece.get(..SIZE_BYTES + HEAD_BYTES).unwrap_or(piece);
            joined.extend_from_slice(shown);
        }
        marks.push(Mark { at: held, time, begins_piece });
        let view = View { joined: &joined, held, piece };
        let mut offset = 0;
        let verdict = loop {
            let at_piece_start = if offset <= held { marks.iter().any(|mark| mark.at == offset && mark.begins_piece) } else { false };
            match view.judge(offset, at_piece_start, &self.limits, owner) {
                Plausible::No => offset += 1,
                verdict => break verdict,
            }
        };
        if verdict == Plausible::NeedMore {
            // Also at the end, where nothing is left. Less than a head is left over, and all of it is in view.
            let rest = view.from(offset).to_vec();
            marks = if rest.is_empty() { Vec::new() } else { after(&marks, offset) };
            self.buffer = rest;
            self.state = State::Searching { marks };
            self.report_lost(offset as u64, LostReason::Unframed, time, owner);
            return &[];
        }
        self.state = State::BORDER;
        self.report_lost(offset as u64, LostReason::Unframed, time, owner);
        let marks = after(&marks, offset);
        let first_time = marks.first().map_or(time, |mark| mark.time);
        self.report(FrameEvent::Resumed { time: first_time }, owner);
        // What was held passes as if it came now, piece by piece.
        let waited = joined.get(offset.min(held)..held).unwrap_or_default();
        for (i, mark) in marks.iter().enumerate() {
            let end = marks.get(i + 1).map_or(waited.len(), |next| next.at.min(waited.len()));
            let part = waited.get(mark.at..end).unwrap_or_default();
            self.take_bytes(part, mark.time, mark.begins_piece, owner);
        }
        piece.get(offset.saturating_sub(held)..).unwrap_or_default()
    }

    fn empty_buffer(&mut self) {
        self.buffer.clear();
        self.holes.clear();
        if self.buffer.capacity() > KEPT_CAPACITY_BYTES {
            self.buffer = Vec::new();
        }
    }

    fn report_lost(&mut self, bytes: u64, reason: LostReason, time: Timestamp, owner: &mut impl FrameOwner) {
        if bytes > 0 {
            self.report(FrameEvent::Lost { bytes, reason, time }, owner);
        }
    }

    fn report(&mut self, event: FrameEvent<'_>, owner: &mut impl FrameOwner) {
        if !matches!(self.state, State::Opaque) && owner.on_frame_event(event) == Next::Ignore {
            self.set_opaque();
        }
    }
}

impl State {
    const BORDER: Self = Self::Border { size: [0; SIZE_BYTES], have: 0, first_time: Timestamp::ZERO };
    const SEARCHING: Self = Self::Searching { marks: Vec::new() };
}

impl FrameLimits {
    /// The declared size, if it is within the limits.
    fn believe(&self, size: [u8; SIZE_BYTES]) -> Option<usize> {
        let declared = u32::from_be_bytes(size);
        let believed = (self.min_declared_bytes..=self.max_declared_bytes).contains(&declared);
        if believed { usize::try_from(declared).ok() } else { None }
    }

    /// The declared size, if it is below the smallest.
    fn believe_short(&self, size: [u8; SIZE_BYTES]) -> Option<usize> {
        let declared = u32::from_be_bytes(size);
        if declared < self.min_declared_bytes { usize::try_from(declared).ok() } else { None }
    }
}

/// What is searched: bytes held from earlier pieces, and the new piece.
struct View<'a> {
    /// The held bytes, and behind them enough of the piece to judge them.
    joined: &'a [u8],
    held: usize,
    piece: &'a [u8],
}

impl<'a> View<'a> {
    /// The bytes from `offset` on; of the piece's not all if `offset` lies in the held ones.
    fn from(&self, offset: usize) -> &'a [u8] {
        match offset.checked_sub(self.held) {
            None => self.joined.get(offset..),
            Some(offset) => self.piece.get(offset..),
        }
        .unwrap_or_default()
    }

    fn judge(&self, offset: usize, at_piece_start: bool, limits: &FrameLimits, owner: &impl FrameOwner) -> Plausible {
        let Some((size, rest)) = self.from(offset).split_first_chunk() else { return Plausible::NeedMore };
        let Some(declared) = limits.believe(*size) else { return Plausible::No };
        let head = rest.get(..declared.min(HEAD_BYTES)).unwrap_or(rest);
        let is_all = head.len() == declared.min(HEAD_BYTES);
        let declared_bytes = u32::from_be_bytes(*size);
        match owner.judge(Candidate { declared_bytes, head, at_piece_start }) {
            Plausible::No => return Plausible::No,
            Plausible::NeedMore => return if is_all { Plausible::No } else { Plausible::NeedMore },
            Plausible::Yes => {}
        }
        // Where the next frame's size is there already, it must be one. (Its content may be unknown to the owner.)
        match self.from(offset + SIZE_BYTES + declared).first_chunk() {
            Some(size) if limits.believe(*size).is_none() => Plausible::No,
            _ => Plausible::Yes,
        }
    }
}

/// The marks of what is left from `offset` on.
fn after(marks: &[Mark], offset: usize) -> Vec<Mark> {
    let first = marks.iter().rposition(|mark| mark.at <= offset).unwrap_or(0);
    let left = marks.get(first..).unwrap_or_default().iter();
    left.map(|mark| Mark { at: mark.at.saturating_sub(offset), begins_piece: mark.begins_piece && mark.at >= offset, ..*mark }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Begins each payload of the tests that search.
    const MARKER: &[u8] = b"\xffKAFKA\xff\xfe";

    /// Takes down what happened. A frame begins, to its mind, with [`MARKER`].
    #[derive(Default)]
    struct Owner {
        log: Vec<String>,
        frames: Vec<(Vec<u8>, Vec<Range<usize>>, u32)>,
        times: Vec<(Timestamp, Timestamp)>,
        slices: Vec<*const u8>,
        lost_bytes: u64,
        /// Frames of any size are expected.
        short: bool,
        /// Answer to the frame with this text.
        answer: Option<(&'static str, Next)>,
        judged: std::cell::RefCell<Vec<(u32, usize, bool)>>,
    }

    impl FrameOwner for Owner {
        fn judge(&self, candidate: Candidate<'_>) -> Plausible {
            self.judged.borrow_mut().push((candidate.declared_bytes, candidate.head.len(), candidate.at_piece_start));
            if candidate.head.starts_with(MARKER) {
                Plausible::Yes
            } else if MARKER.starts_with(candidate.head) {
                Plausible::NeedMore
            } else {
                Plausible::No
            }
        }

        fn expects_short_frames(&self) -> bool {
            self.short
        }

        fn on_frame_event(&mut self, event: FrameEvent<'_>) -> Next {
            let mut text = String::new();
            match event {
                FrameEvent::Frame(frame) => {
                    text = String::from_utf8_lossy(frame.payload.strip_prefix(MARKER).unwrap_or(frame.payload)).into_owned();
                    let cut = if frame.payload.len() == frame.declared_bytes as usize {
                        String::new()
                    } else {
                        format!("/{}", frame.declared_bytes)
                    };
                    let holes = if frame.holes.is_empty() { String::new() } else { format!(" {:?}", frame.holes) };
                    self.log.push(format!("frame {}{cut}{holes}", text.replace('\0', ".")));
                    self.frames.push((frame.payload.to_vec(), frame.holes.to_vec(), frame.declared_bytes));
                    self.times.push((frame.first_time, frame.last_time));
                    self.slices.push(frame.payload.as_ptr());
                    assert_eq!(frame.is_whole(), cut.is_empty() && holes.is_empty());
                }
                FrameEvent::Lost { bytes, reason, .. } => {
                    assert!(bytes > 0);
                    self.lost_bytes += bytes;
                    self.log.push(format!("lost {bytes} {reason:?}"));
                }
                FrameEvent::LostSync { reason, .. } => self.log.push(format!("lost sync {reason:?}")),
                FrameEvent::Resumed { time } => self.log.push(format!("resumed {}", time.unix_ns())),
            }
            match self.answer {
                Some((on, next)) if on == text => next,
                _ => Next::Continue,
            }
        }
    }

    const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 100, min_declared_bytes: 4, max_declared_bytes: 1 << 20 };

    fn framed(payload: &[u8]) -> Vec<u8> {
        [&u32::try_from(payload.len()).unwrap().to_be_bytes()[..], payload].concat()
    }

    fn marked(text: &str) -> Vec<u8> {
        framed(&[MARKER, text.as_bytes()].concat())
    }

    enum Step {
        Bytes(Vec<u8>),
        Gap(u64),
        Restart,
        Finish,
    }
    use Step::{Bytes, Finish, Gap, Restart};

    /// Runs the steps, the n-th at n nanoseconds.
    fn run(mut framer: Framer, owner: &mut Owner, steps: &[Step]) -> Framer {
        for (i, step) in steps.iter().enumerate() {
            let time = Timestamp::from_unix_ns(i as u64);
            match step {
                Bytes(bytes) => framer.push(Piece::Bytes { time, bytes }, owner),
                Gap(bytes) => framer.push(Piece::Gap { time, bytes: *bytes }, owner),
                Restart => framer.push(Piece::Restart { time }, owner),
                Finish => framer.finish(time, owner),
            }
        }
        framer
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn frames_come_out_whole_and_what_is_missing_is_said() {
        let long = |n: usize| "x".repeat(n);
        let join = |parts: &[&[u8]]| Bytes(parts.concat());
        let table: Vec<(&str, Vec<Step>, Vec<String>)> = vec![
            ("two in one piece", vec![join(&[&framed(b"first"), &framed(b"second")])], vec!["frame first".into(), "frame second".into()]),
            (
                "size and the rest apart (Java client since 2.8)",
                vec![Bytes(vec![0, 0, 0, 5]), Bytes(b"first".to_vec())],
                vec!["frame first".into()],
            ),
            (
                "size and correlation id, then the rest (librdkafka)",
                vec![join(&[&[0, 0, 0, 9], b"corr"]), Bytes(b"after".to_vec())],
                vec!["frame corrafter".into()],
            ),
            (
                "longer than the limit",
                vec![Bytes(framed(long(120).as_bytes())), Bytes(framed(b"next"))],
                vec![format!("frame {}/120", long(100)), "frame next".into()],
            ),
            (
                "longer than the limit, in parts",
                vec![join(&[&[0, 0, 0, 120], long(60).as_bytes()]), join(&[long(60).as_bytes(), &framed(b"next")])],
                vec![format!("frame {}/120", long(100)), "frame next".into()],
            ),
            (
                "a hole within a frame",
                vec![join(&[&[0, 0, 0, 8], b"ab"]), Gap(3), join(&[b"fgh", &framed(b"next")])],
                vec!["frame ab...fgh [2..5]".into(), "frame next".into()],
            ),
            (
                "two holes that touch are one",
                vec![Bytes(vec![0, 0, 0, 5]), Gap(1), Gap(2), Bytes(b"de".to_vec())],
                vec!["frame ...de [0..3]".into()],
            ),
            (
                "a hole to the frame's end",
                vec![join(&[&[0, 0, 0, 8], b"ab"]), Gap(6), Bytes(framed(b"next"))],
                vec!["frame ab/8 [2..8]".into(), "frame next".into()],
            ),
            (
                "a hole over a border, then a piece that begins with a frame",
                vec![join(&[&[0, 0, 0, 8], b"ab"]), Gap(16), Bytes(marked("next"))],
                vec!["frame ab/8 [2..8]".into(), "lost sync Hole".into(), "lost 10 Hole".into(), "resumed 2".into(), "frame next".into()],
            ),
            (
                "a hole over a border, then the rest of a frame and another",
                vec![Gap(16), join(&[b"of a frame", &marked("one"), &marked("two")])],
                vec![
                    "lost sync Hole".into(),
                    "lost 16 Hole".into(),
                    "lost 10 Unframed".into(),
                    "resumed 1".into(),
                    "frame one".into(),
                    "frame two".into(),
                ],
            ),
            (
                "a hole in a size field",
                vec![Bytes(vec![0, 0]), Gap(2), join(&[b"abcd", &marked("next")])],
                vec![
                    "lost sync Hole".into(),
                    "lost 2 Unframed".into(),
                    "lost 2 Hole".into(),
                    "lost 4 Unframed".into(),
                    "resumed 2".into(),
                    "frame next".into(),
                ],
            ),
            (
                "a second hole while searching",
                vec![Gap(4), Bytes(b"\0\0\0\x0e\xff".to_vec()), Gap(5), Bytes(marked("next"))],
                vec![
                    "lost sync Hole".into(),
                    "lost 4 Hole".into(),
                    "lost 5 Unframed".into(),
                    "lost 5 Hole".into(),
                    "resumed 3".into(),
                    "frame next".into(),
                ],
            ),
            (
                "size 3",
                vec![join(&[&framed(b"abc"), &marked("next")])],
                vec!["lost sync Size(3)".into(), "lost 7 Unframed".into(), "resumed 0".into(), "frame next".into()],
            ),
            (
                "size -1",
                vec![Bytes([&[0xff; 4][..], &marked("next")].concat())],
                vec!["lost sync Size(-1)".into(), "lost 4 Unframed".into(), "resumed 0".into(), "frame next".into()],
            ),
            (
                "size 2^31-1, in two pieces",
                vec![Bytes(vec![0x7f, 0xff]), join(&[&[0xff, 0xff], &marked("next")])],
                vec!["lost sync Size(2147483647)".into(), "lost 4 Unframed".into(), "resumed 1".into(), "frame next".into()],
            ),
            (
                "what was taken for a size holds the beginning of a frame",
                vec![Bytes(vec![0, 0]), Bytes(vec![0, 0]), Bytes([&[0, 12][..], MARKER, b"next"].concat())],
                vec![
                    "lost sync Size(0)".into(),
                    "lost 1 Unframed".into(),
                    "lost 1 Unframed".into(),
                    "resumed 1".into(),
                    "frame next".into(),
                ],
            ),
            (
                "the stream ends in a frame",
                vec![join(&[&[0, 0, 0, 9], b"abc"]), Gap(2), Bytes(b"de".to_vec()), Finish],
                vec!["lost 9 Unfinished".into()],
            ),
            ("the stream ends in a size field", vec![Bytes(vec![0, 0]), Finish], vec!["lost 2 Unfinished".into()]),
            (
                "another stream takes over",
                vec![join(&[&[0, 0, 0, 9], b"abc"]), Restart, join(&[b"zz", &marked("next")])],
                vec![
                    "lost 7 Unfinished".into(),
                    "lost sync Restart".into(),
                    "lost 2 Unframed".into(),
                    "resumed 2".into(),
                    "frame next".into(),
                ],
            ),
            (
                "a raw SASL token is a frame like any other",
                vec![Bytes(framed(b"\x60\x82token"))],
                vec![format!("frame {}token", String::from_utf8_lossy(b"\x60\x82"))],
            ),
        ];
        for (name, steps, expected) in table {
            let mut owner = Owner::default();
            run(Framer::new(LIMITS), &mut owner, &steps);
            assert_eq!(owner.log, expected, "{name}");
        }
    }

    #[test]
    fn short_and_empty_frames_are_believed_where_the_owner_expects_them() {
        let bytes = [framed(b""), framed(b"abc"), framed(b""), framed(b"whole")].concat();
        for cut in 1..bytes.len() {
            let mut owner = Owner { short: true, ..Owner::default() };
            run(Framer::new(LIMITS), &mut owner, &[Bytes(bytes[..cut].to_vec()), Bytes(bytes[cut..].to_vec()), Finish]);
            assert_eq!(owner.log, ["frame ", "frame abc", "frame ", "frame whole"], "cut at {cut}");
        }
        let mut owner = Owner::default();
        run(Framer::new(LIMITS), &mut owner, &[Bytes(bytes)]);
        assert_eq!(owner.log.first().map(String::as_str), Some("lost sync Size(0)"));
    }

    #[test]
    fn a_stream_picked_up_in_the_middle_begins_at_its_first_frame() {
        let mut owner = Owner::default();
        let bytes = [b"rest of a frame".to_vec(), marked("one"), marked("two")].concat();
        let framer = run(Framer::starts_midway(LIMITS), &mut owner, &[Bytes(bytes)]);
        assert_eq!(owner.log, ["lost 15 Unframed", "resumed 0", "frame one", "frame two"]);
        assert!(framer.is_synchronised());
    }

    #[test]
    fn a_frame_within_one_piece_is_not_copied() {
        let (mut framer, mut owner) = (Framer::new(LIMITS), Owner::default());
        let piece = [framed(b"first"), framed(&[b'x'; 300])].concat();
        framer.push(Piece::Bytes { time: Timestamp::ZERO, bytes: &[0, 0, 0, 5] }, &mut owner);
        framer.push(Piece::Bytes { time: Timestamp::ZERO, bytes: &[b"apart", &piece[..]].concat() }, &mut owner);
        framer.push(Piece::Bytes { time: Timestamp::ZERO, bytes: &piece }, &mut owner);
        assert_eq!(owner.slices[3..], [piece[4..].as_ptr(), piece[13..].as_ptr()]);
        assert_eq!(framer.buffered_bytes(), 0);
    }

    #[test]
    fn a_declared_size_alone_takes_no_memory() {
        let mut owner = Owner::default();
        let limits = FrameLimits { max_frame_bytes: u32::MAX, ..FrameLimits::default() };
        let framer =
            run(Framer::new(limits), &mut owner, &[Bytes((200_u32 << 20).to_be_bytes().to_vec()), Bytes(vec![1; 10]), Gap(100 << 20)]);
        assert!(framer.buffered_bytes() < 100 + 4 * size_of::<Range<usize>>(), "{}", framer.buffered_bytes());
    }

    #[test]
    fn a_frame_with_very_many_holes_keeps_what_lies_before_them() {
        let mut owner = Owner::default();
        let mut steps = vec![Bytes(100_000_u32.to_be_bytes().to_vec())];
        for _ in 0..50_000 {
            steps.extend([Gap(1), Bytes(b"x".to_vec())]);
        }
        let framer = run(Framer::new(FrameLimits { max_frame_bytes: 1 << 20, ..LIMITS }), &mut owner, &steps);
        let (payload, holes, declared) = &owner.frames[0];
        assert_eq!((payload.len(), holes.len(), *declared), (2 * MAX_HOLES, MAX_HOLES, 100_000));
        assert!(framer.buffered_bytes() < 100_000);
    }

    /// Pieces of a frame: where each ends, and when it was seen.
    type Pieces = &'static [(usize, u64)];

    #[test]
    fn times_are_those_of_the_first_and_the_last_byte() {
        let frame = framed(b"payload");
        // (pieces as (end, time)) => (first, last)
        let table: &[(Pieces, (u64, u64))] = &[
            (&[(11, 5)], (5, 5)),
            (&[(2, 5), (4, 6), (11, 7)], (5, 7)),
            (&[(1, 5), (9, 6), (11, 9)], (5, 9)),
            // What comes behind was seen before what fills the hole.
            (&[(4, 8), (11, 3)], (3, 8)),
        ];
        for (pieces, (first, last)) in table {
            let (mut framer, mut owner) = (Framer::new(LIMITS), Owner::default());
            let mut begin = 0;
            for (end, ns) in *pieces {
                framer.push(Piece::Bytes { time: Timestamp::from_unix_ns(*ns), bytes: &frame[begin..*end] }, &mut owner);
                begin = *end;
            }
            assert_eq!(owner.times, [(Timestamp::from_unix_ns(*first), Timestamp::from_unix_ns(*last))]);
        }
    }

    #[test]
    fn the_owner_can_have_the_rest_searched_or_ignored() {
        for (next, expected) in [
            (Next::Resynchronise, &["frame one", "lost sync Owner", "lost 3 Unframed", "resumed 0", "frame two"][..]),
            (Next::Ignore, &["frame one"][..]),
        ] {
            let mut owner = Owner { answer: Some(("one", next)), ..Owner::default() };
            let bytes = [marked("one"), b"zzz".to_vec(), marked("two")].concat();
            let framer = run(Framer::new(LIMITS), &mut owner, &[Bytes(bytes), Finish]);
            assert_eq!(owner.log, expected);
            assert_eq!(matches!(framer.state, State::Opaque), next == Next::Ignore);
        }
        let mut owner = Owner { answer: Some(("", Next::Ignore)), ..Owner::default() };
        run(Framer::new(LIMITS), &mut owner, &[Gap(5), Bytes(marked("one")), Restart, Finish]);
        assert_eq!(owner.log, ["lost sync Hole"]);
    }

    #[test]
    fn a_candidate_is_refused_when_the_next_size_cannot_be() {
        // A payload that contains what looks like a frame.
        let inner = marked("looks like one");
        let mut owner = Owner::default();
        let bytes = [b"zz".to_vec(), inner, vec![0xff; 4], marked("real")].concat();
        run(Framer::starts_midway(LIMITS), &mut owner, &[Bytes(bytes)]);
        assert_eq!(owner.log, ["lost 32 Unframed", "resumed 0", "frame real"]);
    }

    #[test]
    fn the_judge_sees_at_most_a_head_and_knows_where_pieces_begin() {
        let mut owner = Owner::default();
        run(
            Framer::starts_midway(LIMITS),
            &mut owner,
            &[Bytes([&5000_u32.to_be_bytes()[..], &[9; 600]].concat()), Bytes(vec![0, 0, 0]), Bytes(vec![9, 0xee])],
        );
        assert_eq!(*owner.judged.borrow(), [(5000, HEAD_BYTES, true), (9, 1, true), (0x9ee, 0, false)]);
    }

    /// Needs so many bytes of a head, then says yes to what begins with `#` and no to all else.
    struct Slow {
        wanted_bytes: usize,
        lost_bytes: u64,
        frames: Vec<usize>,
        starts: std::cell::RefCell<Vec<bool>>,
    }

    impl FrameOwner for Slow {
        fn judge(&self, candidate: Candidate<'_>) -> Plausible {
            self.starts.borrow_mut().push(candidate.at_piece_start);
            match candidate.head.first() {
                _ if candidate.head.len() < self.wanted_bytes => Plausible::NeedMore,
                Some(b'#') => Plausible::Yes,
                _ => Plausible::No,
            }
        }

        fn on_frame_event(&mut self, event: FrameEvent<'_>) -> Next {
            match event {
                FrameEvent::Frame(frame) => self.frames.push(frame.payload.len()),
                FrameEvent::Lost { bytes, .. } => self.lost_bytes += bytes,
                FrameEvent::LostSync { .. } | FrameEvent::Resumed { .. } => {}
            }
            Next::Continue
        }
    }

    fn slow(wanted_bytes: usize, pieces: &[&[u8]]) -> Slow {
        let mut owner = Slow { wanted_bytes, lost_bytes: 0, frames: Vec::new(), starts: std::cell::RefCell::default() };
        let mut framer = Framer::starts_midway(FrameLimits { max_frame_bytes: 1000, ..LIMITS });
        for bytes in pieces {
            framer.push(Piece::Bytes { time: Timestamp::ZERO, bytes }, &mut owner);
            assert!(framer.is_synchronised() || framer.buffer.len() < SIZE_BYTES + HEAD_BYTES);
        }
        framer.finish(Timestamp::ZERO, &mut owner);
        owner
    }

    #[test]
    fn a_judge_that_never_has_enough_gets_a_head_and_no_more() {
        let pieces = [&[0; 3000][..], &[1, 0, 0, 9, 9, 9], &[0; 3000]];
        let owner = slow(usize::MAX, &pieces);
        assert_eq!((owner.lost_bytes, owner.frames), (6006, vec![]));
    }

    #[test]
    fn a_judge_that_needs_a_long_head_gets_it_over_several_pieces() {
        let frame = framed(&[b'#'; 600]);
        let stream = [b"xy".to_vec(), frame.clone(), frame].concat();
        for cut in 0..stream.len() {
            let owner = slow(400, &[&stream[..cut], &stream[cut..]]);
            assert_eq!((owner.lost_bytes, owner.frames), (2, vec![600, 600]), "cut at {cut}");
        }
    }

    #[test]
    fn what_waits_from_a_pieces_middle_is_no_pieces_start_later() {
        // The byte before the size is dropped; what waits is judged again when there is more.
        let owner = slow(2, &[&[0xff, 0, 0, 0, 9], b"#", b"#"]);
        assert_eq!(*owner.starts.borrow(), [false, false, false]);
        let owner = slow(2, &[&[0xff], &[0, 0, 0, 9], b"#", b"#"]);
        assert_eq!(*owner.starts.borrow(), [true, true, true]);
    }

    /// A frame: text length and fill; what was lost of the stream; where it is cut.
    fn frames() -> impl Strategy<Value = Vec<(usize, u8)>> {
        prop::collection::vec((0_usize..60, b'a'..=b'z'), 1..20)
    }

    fn stream_of(frames: &[(usize, u8)]) -> (Vec<u8>, Vec<Range<usize>>) {
        let (mut stream, mut places) = (Vec::new(), Vec::new());
        for (length, fill) in frames {
            let begin = stream.len();
            stream.extend(framed(&[MARKER, &vec![*fill; *length]].concat()));
            places.push(begin..stream.len());
        }
        (stream, places)
    }

    /// Cuts the stream at the given places and leaves out what is lost.
    fn pieces(stream: &[u8], cuts: &[prop::sample::Index], lost: &[Range<usize>]) -> Vec<Step> {
        let is_lost = |place: usize| lost.iter().any(|range| range.contains(&place));
        let cut_at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        let mut steps: Vec<Step> = Vec::new();
        for (place, byte) in stream.iter().enumerate() {
            match steps.last_mut() {
                Some(Gap(bytes)) if is_lost(place) => *bytes += 1,
                Some(Bytes(bytes)) if !is_lost(place) && !cut_at.contains(&place) => bytes.push(*byte),
                _ if is_lost(place) => steps.push(Gap(1)),
                _ => steps.push(Bytes(vec![*byte])),
            }
        }
        steps
    }

    fn lost_ranges(stream: &[u8], lost: &[(prop::sample::Index, usize)]) -> Vec<Range<usize>> {
        lost.iter()
            .map(|(index, length)| {
                let begin = index.index(stream.len());
                begin..(begin + length).min(stream.len())
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same_frames(frames in frames(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..60), midway: bool, max_frame_bytes in 8_u32..80) {
            let (stream, places) = stream_of(&frames);
            let limits = FrameLimits { max_frame_bytes, ..LIMITS };
            let framer = if midway { Framer::starts_midway(limits) } else { Framer::new(limits) };
            let mut owner = Owner::default();
            run(framer, &mut owner, &pieces(&stream, &cuts, &[]));
            let expected: Vec<_> = places.iter().map(|place| {
                let payload = &stream[place.start + 4..place.end];
                (payload[..payload.len().min(max_frame_bytes as usize)].to_vec(), Vec::new(), u32::try_from(payload.len()).unwrap())
            }).collect();
            prop_assert_eq!(owner.frames, expected);
            prop_assert_eq!(owner.lost_bytes, 0);
        }

        #[test]
        fn a_hole_costs_only_the_frames_it_touches(
            frames in frames(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
            lost in prop::collection::vec((any::<prop::sample::Index>(), 1_usize..70), 0..4),
        ) {
            let (stream, places) = stream_of(&frames);
            let lost = lost_ranges(&stream, &lost);
            let is_lost = |place: usize| lost.iter().any(|range| range.contains(&place));
            let mut owner = Owner::default();
            let mut steps = pieces(&stream, &cuts, &lost);
            steps.push(Finish);
            run(Framer::new(LIMITS), &mut owner, &steps);

            let mut synchronised = true;
            let mut expected = Vec::new();
            for place in &places {
                let mut head = place.start..place.start + 4 + MARKER.len();
                let mut size = place.start..place.start + 4;
                synchronised = !size.any(is_lost) && (synchronised || !head.any(is_lost));
                if synchronised {
                    let payload: Vec<Option<u8>> = (place.start + 4..place.end).map(|at| (!is_lost(at)).then(|| stream[at])).collect();
                    expected.push(payload);
                }
            }
            let seen: Vec<Vec<Option<u8>>> = owner.frames.iter().map(|(payload, holes, declared)| {
                (0..*declared as usize).map(|at| if holes.iter().any(|hole| hole.contains(&at)) { None } else { Some(payload[at]) }).collect()
            }).collect();
            prop_assert_eq!(seen, expected);
            let framed: usize = owner.frames.iter().map(|frame| 4 + frame.2 as usize).sum();
            prop_assert_eq!(framed as u64 + owner.lost_bytes, stream.len() as u64, "each byte is in a frame or lost: {:?}", owner.log);
        }

        #[test]
        fn each_byte_of_anything_is_accounted_for(
            steps in prop::collection::vec((0_u8..12, prop::collection::vec(prop_oneof![Just(0_u8), Just(0), Just(5), any::<u8>()], 1..40)), 0..40),
            midway: bool,
        ) {
            let limits = FrameLimits { max_declared_bytes: 300, ..LIMITS };
            let mut framer = if midway { Framer::starts_midway(limits) } else { Framer::new(limits) };
            let (mut owner, mut all, mut in_holes) = (Owner::default(), 0, 0);
            for (kind, bytes) in &steps {
                let time = Timestamp::ZERO;
                all += bytes.len() as u64;
                match kind {
                    0 => framer.push(Piece::Gap { time, bytes: bytes.len() as u64 }, &mut owner),
                    1 => { framer.push(Piece::Restart { time }, &mut owner); all -= bytes.len() as u64; }
                    _ => framer.push(Piece::Bytes { time, bytes }, &mut owner),
                }
                prop_assert!(framer.buffered_bytes() < 2 * (HEAD_BYTES + 300));
                if *kind == 0 { in_holes += bytes.len() as u64; }
            }
            framer.finish(Timestamp::ZERO, &mut owner);
            let framed: u64 = owner.frames.iter().map(|frame| 4 + u64::from(frame.2)).sum();
            // Holes of frames that never became whole are the only bytes that are in neither.
            prop_assert!((all - in_holes..=all).contains(&(framed + owner.lost_bytes)), "{:?}", owner.log);
        }
    }
}
