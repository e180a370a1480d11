//! Takes frames out of a stream's pieces, and searches for the next one where its place is not known.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::mem;
use std::ops::Range;

use super::{Candidate, DesyncReason, Frame, FrameEvent, FrameLimits, FrameOwner, HEAD_BYTES, LostReason, Next, Plausible};
use crate::stream::Piece;
use crate::time::Timestamp;

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
