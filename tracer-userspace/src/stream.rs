//! One direction of one connection, put in order: segments in, pieces of the stream out, with its holes as values.
//!
//! In: positions and bytes as a source saw them. Out: [`Piece`]s to `frame`, in order, each byte once.
//!
//! Choices:
//! - What comes in order is handed on at once, as the slice it came as. Only what comes before its turn is copied.
//! - Of two versions of a byte the first that was seen counts, except that bytes in order go before held ones.
//! - A stream that is picked up in the middle begins at the first segment that is seen, without waiting whether an earlier
//!   one turns up: its reader has to search for a frame anyway, and waiting would delay every stream for the few that are
//!   reordered in just that moment. What turns up later from before that place is dropped and counted (`early_bytes`).

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
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
    progress: Option<Progress>,
    /// What came before its turn, by place; the pieces do not overlap, and the first lies behind `next`.
    held: BTreeMap<u64, Held>,
    /// Memory of `held`.
    held_bytes: usize,
    /// Since when nothing has come at `next` although there is something behind it.
    waiting_since: Timestamp,
    /// Where a segment would begin that follows the last one that fitted nowhere.
    stray: Option<u32>,
    counters: StreamCounters,
}

/// Places are positions widened to 64 bits, so that they do not wrap; the low half is the position.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// Where the stream began, or was picked up.
    origin: u64,
    /// Place of the next byte to hand on.
    next: u64,
    /// Where it ends, once a FIN told.
    end: Option<u64>,
    /// The origin is known from a SYN.
    opened: bool,
}

/// A piece before its turn.
#[derive(Debug)]
struct Held {
    time: Timestamp,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    /// Known to have been there, and not kept by the source.
    Missing(u64),
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Missing(bytes) => *bytes,
        }
    }

    fn cost(&self) -> usize {
        HELD_OVERHEAD_BYTES
            + match self {
                Self::Bytes(bytes) => bytes.len(),
                Self::Missing(_) => 0,
            }
    }
}

/// What a held piece costs beside its bytes: its place in the tree and its allocation, generously.
const HELD_OVERHEAD_BYTES: usize = 96;

/// No window reaches further (RFC 7323, 2.3): what lies further ahead is no part of this stream.
const FURTHEST_AHEAD_BYTES: u64 = 1 << 30;

/// No retransmission of this stream lies further back, in practice: senders keep what is not acknowledged in their send
/// buffer, and those are smaller (`tcp_wmem` of Linux: 4 MiB).
const FURTHEST_BEHIND_BYTES: u64 = 64 << 20;

impl Stream {
    /// A stream of which nothing is known yet.
    pub fn new(limits: StreamLimits) -> Self {
        Self {
            limits,
            progress: None,
            held: BTreeMap::new(),
            held_bytes: 0,
            waiting_since: Timestamp::ZERO,
            stray: None,
            counters: StreamCounters::default(),
        }
    }

    /// A SYN was seen: the first byte has this position.
    pub fn open(&mut self, first_position: u32) -> Opened {
        let known = Progress::begin(first_position, true);
        match &mut self.progress {
            Some(progress) if position_of(progress.origin) == first_position => {
                progress.opened = true;
                Opened::Again
            }
            Some(progress) if progress.next != progress.origin || !self.held.is_empty() => Opened::Other,
            progress => {
                *progress = Some(known);
                Opened::First
            }
        }
    }

    /// True when the stream's first byte is known from a SYN: what comes out begins at the beginning (or with a
    /// [`Piece::Gap`] that does). False when it was picked up in the middle.
    pub fn begins_at_open(&self) -> bool {
        self.progress.is_some_and(|progress| progress.opened)
    }

    /// A segment was seen: `bytes` at `position`, and `missing_bytes` behind them that nobody kept.
    pub fn push(&mut self, position: u32, bytes: &[u8], missing_bytes: u32, time: Timestamp, sink: &mut impl FnMut(Piece<'_>)) {
        let all_bytes = bytes.len() as u64 + u64::from(missing_bytes);
        if all_bytes == 0 {
            return;
        }
        let progress = *self.progress.get_or_insert_with(|| Progress::begin(position, false));
        let begin = progress.place_of(position);
        let end = begin + all_bytes;
        let is_far = end + FURTHEST_BEHIND_BYTES < progress.next || begin > progress.next + FURTHEST_AHEAD_BYTES;
        if is_far && !self.begin_anew(position, end, time, sink) {
            return;
        }
        let Some(Progress { origin, next, opened, .. }) = self.progress else { return };
        let (begin, end) = if is_far { (next, next + all_bytes) } else { (begin, end) };

        let seen_bytes = next.saturating_sub(begin);
        if !opened && end <= origin {
            self.counters.early_bytes += all_bytes;
            return;
        }
        self.counters.duplicate_bytes += seen_bytes.min(all_bytes);
        if seen_bytes >= all_bytes {
            return;
        }
        let kept = usize::try_from(seen_bytes).ok().and_then(|seen| bytes.get(seen..)).unwrap_or_default();
        let missing_begin = next.max(begin + bytes.len() as u64);
        let missing = end - missing_begin;

        if begin <= next {
            if !kept.is_empty() {
                self.hand_on(Piece::Bytes { time, bytes: kept }, sink);
            }
            if self.held.is_empty() {
                if missing > 0 {
                    self.hand_on(Piece::Gap { time, bytes: missing }, sink);
                }
                return;
            }
            self.waiting_since = time;
            self.hold(missing_begin, missing, None, time);
            self.drain(sink);
        } else {
            if self.held.is_empty() {
                self.waiting_since = time;
            }
            self.counters.reordered_segments += 1;
            self.hold(begin, kept.len() as u64, Some(kept), time);
            self.hold(missing_begin, missing, None, time);
        }
        while self.held_bytes > self.limits.reorder_bytes {
            self.give_up_hole(time, sink);
        }
        self.tick(time, sink);
    }

    /// A FIN was seen: the stream ends before `position`. Not for a RST, whose position is not to be trusted.
    pub fn close(&mut self, position: u32) {
        // Where nothing was seen before, it begins and ends here.
        let progress = self.progress.get_or_insert_with(|| Progress::begin(position, false));
        let end = progress.place_of(position);
        if end >= progress.next && end - progress.next <= FURTHEST_AHEAD_BYTES {
            progress.end = Some(end);
        }
    }

    /// A RST was seen at this position. It ends the stream only when nothing before it is missing: unlike a FIN it says
    /// nothing of what was sent.
    pub fn reset(&mut self, position: u32) {
        if let Some(progress) = &mut self.progress
            && progress.place_of(position) == progress.next
        {
            progress.end.get_or_insert(progress.next);
        }
    }

    /// True when a FIN or RST was seen and every byte before it was handed on or given up.
    pub fn is_finished(&self) -> bool {
        self.progress.is_some_and(|progress| progress.end.is_some_and(|end| progress.next >= end))
    }

    /// True while data waits behind a hole. An answer that pairs with nothing while the other direction waits proves
    /// that the hole is ours (the peer has read past it): `flush` that direction, and look again.
    pub fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    /// Gives up every hole, hands on all that was held, and (after [`Self::close`]) reports a missing end.
    pub fn flush(&mut self, time: Timestamp, sink: &mut impl FnMut(Piece<'_>)) {
        while !self.held.is_empty() {
            self.give_up_hole(time, sink);
        }
        if let Some(Progress { next, end: Some(end), .. }) = self.progress
            && end > next
        {
            self.hand_on(Piece::Gap { time, bytes: end - next }, sink);
        }
    }

    /// Gives up holes that data has waited behind for longer than the limit.
    pub fn tick(&mut self, now: Timestamp, sink: &mut impl FnMut(Piece<'_>)) {
        while !self.held.is_empty() && now.since(self.waiting_since) >= self.limits.hole_delay {
            self.give_up_hole(now, sink);
        }
    }

    /// Memory that held segments take, book-keeping included.
    pub fn buffered_bytes(&self) -> usize {
        self.held_bytes
    }

    /// What was seen so far.
    pub fn counters(&self) -> StreamCounters {
        self.counters
    }

    /// A segment fits nowhere. Once a second one follows it, it is another stream: begins anew there, and says so.
    fn begin_anew(&mut self, position: u32, end: u64, time: Timestamp, sink: &mut impl FnMut(Piece<'_>)) -> bool {
        if self.stray != Some(position) {
            self.stray = Some(position_of(end));
            return false;
        }
        self.flush(time, sink);
        self.stray = None;
        self.progress = Some(Progress::begin(position, false));
        self.counters.restarts += 1;
        sink(Piece::Restart { time });
        true
    }

    /// Hands a piece on, and moves on by its length.
    fn hand_on(&mut self, piece: Piece<'_>, sink: &mut impl FnMut(Piece<'_>)) {
        let length = match piece {
            Piece::Bytes { bytes, .. } => {
                self.counters.bytes += bytes.len() as u64;
                bytes.len() as u64
            }
            Piece::Gap { bytes, .. } => {
                self.counters.gaps += 1;
                self.counters.gap_bytes += bytes;
                bytes
            }
            Piece::Restart { .. } => 0,
        };
        if let Some(progress) = &mut self.progress {
            progress.next += length;
        }
        sink(piece);
    }

    /// Keeps of the `length` bytes at `begin` what is not held yet. `bytes` are these bytes, or `None` when missing.
    fn hold(&mut self, begin: u64, length: u64, bytes: Option<&[u8]>, time: Timestamp) {
        let end = begin + length;
        let mut from = begin;
        while from < end {
            let covered = self.held.range(..=from).next_back().map_or(0, |(place, held)| place + held.content.len());
            if covered > from {
                self.counters.duplicate_bytes += covered.min(end) - from;
                from = covered;
                continue;
            }
            let to = self.held.range(from..end).next().map_or(end, |(place, _)| *place);
            let content = match bytes {
                None => Some(Content::Missing(to - from)),
                Some(bytes) => slice(bytes, from - begin, to - begin).map(|bytes| Content::Bytes(bytes.to_vec())),
            };
            let Some(content) = content else { return };
            self.held_bytes += content.cost();
            self.held.insert(from, Held { time, content });
            from = to;
        }
    }

    /// Hands on what is held and is now in order.
    fn drain(&mut self, sink: &mut impl FnMut(Piece<'_>)) {
        while let Some(Progress { next, .. }) = self.progress
            && let Some(entry) = self.held.first_entry()
            && *entry.key() <= next
        {
            let (begin, Held { time, content }) = entry.remove_entry();
            self.held_bytes -= content.cost();
            let seen_bytes = next - begin;
            self.counters.duplicate_bytes += seen_bytes.min(content.len());
            match content {
                Content::Bytes(bytes) => {
                    if let Some(bytes) = slice(&bytes, seen_bytes, bytes.len() as u64)
                        && !bytes.is_empty()
                    {
                        self.hand_on(Piece::Bytes { time, bytes }, sink);
                    }
                }
                Content::Missing(bytes) => {
                    if bytes > seen_bytes {
                        self.hand_on(Piece::Gap { time, bytes: bytes - seen_bytes }, sink);
                    }
                }
            }
        }
    }

    /// Gives up what lies before the first held piece.
    fn give_up_hole(&mut self, time: Timestamp, sink: &mut impl FnMut(Piece<'_>)) {
        let (Some(Progress { next, .. }), Some((&place, _))) = (self.progress, self.held.first_key_value()) else { return };
        if place > next {
            self.hand_on(Piece::Gap { time, bytes: place - next }, sink);
        }
        self.drain(sink);
        // What is behind the next hole has waited since it came, not since now.
        if let Some((_, held)) = self.held.first_key_value() {
            self.waiting_since = held.time;
        }
    }
}

impl Progress {
    fn begin(position: u32, opened: bool) -> Self {
        // One lap ahead, so that places before the origin exist.
        let origin = (1 << 32) | u64::from(position);
        Self { origin, next: origin, end: None, opened }
    }

    /// The place nearest to `next` that has this position.
    fn place_of(&self, position: u32) -> u64 {
        let distance = position.wrapping_sub(position_of(self.next)).cast_signed();
        self.next.saturating_add_signed(i64::from(distance))
    }
}

/// The position of a place: its low half.
fn position_of(place: u64) -> u32 {
    u32::try_from(place & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

/// `bytes[from..to]`, where there is such a part.
fn slice(bytes: &[u8], from: u64, to: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a stream handed on, joined: `Some` is a byte, `None` one that was not seen.
    #[derive(Default, Debug)]
    struct Seen {
        bytes: Vec<Option<u8>>,
        /// Where in `bytes` the stream began anew.
        restarts: Vec<usize>,
    }

    impl Seen {
        fn take(&mut self, piece: Piece<'_>) {
            match piece {
                Piece::Bytes { bytes, .. } => {
                    assert!(!bytes.is_empty());
                    self.bytes.extend(bytes.iter().map(|byte| Some(*byte)));
                }
                Piece::Gap { bytes, .. } => {
                    assert!(bytes > 0);
                    self.bytes.extend((0..bytes).map(|_| None));
                }
                Piece::Restart { .. } => self.restarts.push(self.bytes.len()),
            }
        }

        /// Bytes as text, holes as dots, beginnings as bars.
        fn text(&self) -> String {
            let mut text = String::new();
            for (i, byte) in self.bytes.iter().enumerate() {
                text.extend(self.restarts.iter().filter(|at| **at == i).map(|_| '|'));
                text.push(byte.map_or('.', char::from));
            }
            text
        }
    }

    const LIMITS: StreamLimits = StreamLimits { reorder_bytes: 4096, hole_delay: Duration::from_millis(500) };

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_unix_ns(ms * 1_000_000)
    }

    /// What happens to a stream: at a position, text, missing bytes.
    type Step = (u32, &'static str, u32);

    fn run(open: Option<u32>, steps: &[Step]) -> (Stream, Seen) {
        let (mut stream, mut seen) = (Stream::new(LIMITS), Seen::default());
        if let Some(position) = open {
            assert_eq!(stream.open(position), Opened::First);
        }
        for (position, text, missing) in steps {
            stream.push(*position, text.as_bytes(), *missing, at(1), &mut |piece| seen.take(piece));
        }
        (stream, seen)
    }

    #[test]
    fn segments_come_out_in_order_and_each_byte_once() {
        const WRAP: u32 = u32::MAX - 2;
        let table: &[(&str, Option<u32>, &[Step], &str)] = &[
            ("in order", Some(100), &[(100, "ab", 0), (102, "cd", 0)], "abcd"),
            ("before its turn", Some(100), &[(102, "cd", 0), (100, "ab", 0), (104, "e", 0)], "abcde"),
            ("three turned round", Some(100), &[(104, "ef", 0), (102, "cd", 0), (100, "ab", 0)], "abcdef"),
            ("sent again", Some(100), &[(100, "ab", 0), (100, "ab", 0), (102, "cd", 0)], "abcd"),
            ("sent again, cut differently", Some(100), &[(100, "ab", 0), (102, "cd", 0), (101, "bcde", 0)], "abcde"),
            ("overlaps what is held", Some(100), &[(103, "de", 0), (101, "bcdef", 0), (100, "a", 0)], "abcdef"),
            ("held pieces joined by one over both", Some(100), &[(101, "b", 0), (103, "d", 0), (100, "abcdef", 0)], "abcdef"),
            ("keep-alive: a byte of garbage before the next", Some(100), &[(100, "ab", 0), (101, "\0", 0), (102, "c", 0)], "abc"),
            ("window probe: the next byte, then all of it", Some(100), &[(100, "a", 0), (101, "b", 0), (101, "bcd", 0)], "abcd"),
            ("positions wrap", Some(WRAP), &[(WRAP, "ab", 0), (1, "ef", 0), (WRAP + 2, "cd", 0)], "abcdef"),
            ("data in the SYN, and again", Some(100), &[(100, "ab", 0), (100, "abcd", 0)], "abcd"),
            ("the first segment is the second", Some(100), &[(103, "d", 0), (100, "abc", 0)], "abcd"),
            ("picked up in the middle", None, &[(500, "ab", 0), (502, "cd", 0)], "abcd"),
            ("what lies before that place is dropped", None, &[(500, "cd", 0), (498, "ab", 0), (502, "ef", 0)], "cdef"),
            ("what lies across that place is cut", None, &[(500, "c", 0), (498, "abcd", 0)], "cd"),
            ("bytes nobody kept", Some(100), &[(100, "ab", 3), (105, "fg", 0)], "ab...fg"),
            ("none of them kept", Some(100), &[(100, "", 3), (103, "d", 0)], "...d"),
            ("bytes nobody kept, before their turn", Some(100), &[(102, "c", 2), (105, "f", 0), (100, "ab", 0)], "abc..f"),
            ("bytes nobody kept, seen before", Some(100), &[(100, "abcde", 0), (100, "a", 3), (105, "f", 0)], "abcdef"),
            ("bytes nobody kept, of which some were seen", Some(100), &[(100, "abc", 0), (100, "a", 4), (105, "f", 0)], "abc..f"),
            ("bytes nobody kept, but held", Some(100), &[(102, "cd", 0), (100, "a", 3), (104, "e", 0)], "a.cde"),
            ("an empty segment", Some(100), &[(100, "", 0), (100, "ab", 0)], "ab"),
            ("a hole that nothing filled yet", Some(100), &[(100, "ab", 0), (104, "ef", 0)], "ab"),
            ("one stray segment far back", Some(0x9000_0000), &[(0x9000_0000, "ab", 0), (0x1000_0000, "x", 0)], "ab"),
            ("two of them that follow: another stream", None, &[(9, "ab", 0), (0x9100_0000, "x", 0), (0x9100_0001, "y", 0)], "ab|y"),
            ("far ahead alike", Some(9), &[(9, "ab", 0), (0x7000_0000, "xx", 0), (0x7000_0002, "yz", 1), (0x7000_0005, "u", 0)], "ab|yz.u"),
        ];
        for (name, open, steps, expected) in table {
            let (_, seen) = run(*open, steps);
            assert_eq!(&seen.text(), expected, "{name}");
        }
    }

    #[test]
    fn bytes_in_order_are_not_copied() {
        let mut stream = Stream::new(LIMITS);
        let bytes = *b"abcd";
        let mut same = false;
        stream.push(7, &bytes, 0, at(1), &mut |piece| {
            same = matches!(piece, Piece::Bytes { bytes: out, .. } if std::ptr::eq(out.as_ptr(), bytes.as_ptr()));
        });
        assert!(same);
        assert_eq!(stream.buffered_bytes(), 0);
    }

    #[test]
    fn each_piece_has_the_time_of_its_own_segment() {
        let mut stream = Stream::new(LIMITS);
        stream.open(100);
        let mut times = Vec::new();
        for (position, bytes, ms) in [(102, b"cd", 5), (104, b"ef", 6), (100, b"ab", 9)] {
            stream.push(position, bytes, 0, at(ms), &mut |piece| {
                if let Piece::Bytes { time, bytes } = piece {
                    times.push((bytes.to_vec(), time));
                }
            });
        }
        assert_eq!(times, [(b"ab".to_vec(), at(9)), (b"cd".to_vec(), at(5)), (b"ef".to_vec(), at(6))]);
    }

    #[test]
    fn a_hole_is_given_up_when_data_has_waited_behind_it_long_enough() {
        let (mut stream, mut seen) = (Stream::new(LIMITS), Seen::default());
        let sink = &mut |piece: Piece<'_>| seen.take(piece);
        stream.open(100);
        stream.push(102, b"cd", 0, at(1000), sink);
        stream.push(106, b"gh", 0, at(1100), sink);
        stream.tick(at(1499), sink);
        assert!(stream.is_waiting());
        assert_eq!(stream.counters().bytes, 0);
        // The second hole's data came 100 ms later, and has that much more time.
        stream.tick(at(1500), sink);
        assert_eq!(stream.counters(), StreamCounters { bytes: 2, gaps: 1, gap_bytes: 2, reordered_segments: 2, ..Default::default() });
        stream.push(104, b"ef", 0, at(1550), sink);
        assert!(!stream.is_waiting());
        assert_eq!(seen.text(), "..cdefgh");
    }

    #[test]
    fn a_hole_is_not_given_up_while_bytes_still_come_before_it() {
        let (mut stream, mut seen) = (Stream::new(LIMITS), Seen::default());
        let sink = &mut |piece: Piece<'_>| seen.take(piece);
        stream.open(100);
        stream.push(108, b"i", 0, at(0), sink);
        for (i, position) in (100..108).enumerate() {
            stream.push(position, &[b'a' + u8::try_from(i).unwrap()], 0, at(400 * (1 + i as u64)), sink);
        }
        assert_eq!(seen.text(), "abcdefghi");
    }

    #[test]
    fn what_is_seen_again_does_not_keep_a_hole_waiting() {
        let (mut stream, mut seen) = (Stream::new(LIMITS), Seen::default());
        let sink = &mut |piece: Piece<'_>| seen.take(piece);
        stream.open(100);
        stream.push(100, b"ab", 0, at(0), sink);
        stream.push(104, b"ef", 0, at(0), sink);
        for ms in [300, 499, 501] {
            stream.push(100, b"ab", 0, at(ms), sink);
        }
        stream.tick(at(501), sink);
        assert_eq!(seen.text(), "ab..ef");
    }

    #[test]
    fn what_was_dropped_is_counted_by_reason() {
        let counted = |(stream, _): (Stream, Seen)| {
            let counters = stream.counters();
            (counters.bytes, counters.duplicate_bytes, counters.early_bytes, counters.gap_bytes)
        };
        assert_eq!(counted(run(Some(100), &[(100, "abcd", 0), (100, "abcd", 0), (102, "cdef", 0), (103, "", 2)])), (6, 8, 0, 0));
        // Held twice, overtaken by what was in order, and there where the source kept nothing.
        assert_eq!(counted(run(Some(100), &[(102, "cd", 0), (101, "bcde", 0), (100, "abc", 1)])), (5, 5, 0, 0));
        assert_eq!(counted(run(None, &[(100, "abcd", 0), (96, "wxyz", 0), (98, "yzab", 0)])), (4, 4, 4, 0));
    }

    #[test]
    fn more_than_the_limit_behind_a_hole_gives_the_hole_up() {
        let (mut stream, mut seen) = (Stream::new(LIMITS), Seen::default());
        let sink = &mut |piece: Piece<'_>| seen.take(piece);
        stream.open(100);
        for i in 0..40_u32 {
            stream.push(101 + i * 100, &[b'x'; 100], 0, at(1), sink);
            assert!(stream.buffered_bytes() <= LIMITS.reorder_bytes);
        }
        assert_eq!(stream.counters().gaps, 1);
        assert_eq!((seen.bytes.len(), seen.bytes.first()), (4001, Some(&None)));
    }

    #[test]
    fn tiny_segments_cost_more_than_their_bytes() {
        let mut stream = Stream::new(LIMITS);
        stream.open(100);
        for i in 0..10_000_u32 {
            stream.push(101 + i * 2, b"x", 0, at(1), &mut |_| ());
            assert!(stream.buffered_bytes() <= LIMITS.reorder_bytes && stream.held.len() <= 43);
        }
    }

    #[test]
    fn the_end_is_reached_once_all_before_the_fin_has_come_or_was_given_up() {
        let (mut stream, mut seen) = run(Some(100), &[(102, "cd", 0)]);
        stream.close(105);
        assert!(!stream.is_finished());
        stream.flush(at(2), &mut |piece| seen.take(piece));
        assert!(stream.is_finished());
        assert_eq!(seen.text(), "..cd.");
        assert_eq!(stream.buffered_bytes(), 0);
    }

    #[test]
    fn a_stream_of_which_only_the_fin_is_seen_is_finished() {
        let mut stream = Stream::new(LIMITS);
        stream.close(77);
        assert!(stream.is_finished() && !stream.begins_at_open());
        stream.flush(at(1), &mut |piece| panic!("{piece:?}"));
    }

    #[test]
    fn a_syn_begins_repeats_or_belongs_to_another_connection() {
        let mut stream = Stream::new(LIMITS);
        assert_eq!(stream.open(7), Opened::First);
        assert_eq!(stream.open(7), Opened::Again);
        // Refused, and tried again: nothing had been seen of the first try.
        assert_eq!(stream.open(9), Opened::First);
        stream.push(9, b"ab", 0, at(1), &mut |_| ());
        assert_eq!((stream.open(9), stream.open(500)), (Opened::Again, Opened::Other));
        assert!(stream.begins_at_open());

        let mut midway = run(None, &[(9, "ab", 0)]).0;
        assert!(!midway.begins_at_open());
        assert_eq!((midway.open(9), midway.begins_at_open()), (Opened::Again, true));
    }

    /// A byte that its place tells.
    fn byte_at(place: usize) -> u8 {
        u8::try_from((place * 31 + place / 251) % 256).unwrap()
    }

    prop_compose! {
        /// Segments that cover `length` bytes at least once: (place, length, of which missing), in any order.
        fn covering_segments()(cuts in prop::collection::vec(1_usize..40, 1..30), more in prop::collection::vec((0_usize..600, 1_usize..80), 0..20))
            (order in Just((cuts.clone(), more)).prop_map(|(cuts, more)| {
                let mut place = 0;
                let mut segments: Vec<(usize, usize)> = cuts.iter().map(|length| { place += length; (place - length, *length) }).collect();
                let extra = more.into_iter().map(|(from, length)| (from % place, length)).map(|(from, length)| (from, length.min(place - from)));
                segments.extend(extra);
                segments
            }).prop_shuffle(), length in Just(cuts.iter().sum::<usize>())) -> (usize, Vec<(usize, usize)>) {
            (length, order)
        }
    }

    fn push_all(stream: &mut Stream, origin: u32, segments: &[(usize, usize)], seen: &mut Seen) {
        for (place, length) in segments {
            let bytes: Vec<u8> = (*place..place + length).map(byte_at).collect();
            let position = origin.wrapping_add(u32::try_from(*place).unwrap());
            stream.push(position, &bytes, 0, at(1), &mut |piece| seen.take(piece));
        }
    }

    proptest! {
        #[test]
        fn any_cutting_order_and_repetition_gives_the_same_bytes(origin: u32, (length, segments) in covering_segments()) {
            let (mut stream, mut seen) = (Stream::new(StreamLimits::default()), Seen::default());
            stream.open(origin);
            push_all(&mut stream, origin, &segments, &mut seen);
            prop_assert_eq!(seen.bytes, (0..length).map(|place| Some(byte_at(place))).collect::<Vec<_>>());
            prop_assert_eq!((stream.buffered_bytes(), stream.counters().gaps), (0, 0));
        }

        #[test]
        fn a_hole_costs_only_what_lay_in_it(origin: u32, (length, mut segments) in covering_segments(), lost in prop::collection::vec(any::<prop::sample::Index>(), 1..6)) {
            for index in lost {
                if !segments.is_empty() { segments.remove(index.index(segments.len())); }
            }
            let (mut stream, mut seen) = (Stream::new(StreamLimits::default()), Seen::default());
            stream.open(origin);
            push_all(&mut stream, origin, &segments, &mut seen);
            stream.close(origin.wrapping_add(u32::try_from(length).unwrap()));
            stream.flush(at(2), &mut |piece| seen.take(piece));
            let covered = |place: usize| segments.iter().any(|(from, length)| (*from..from + length).contains(&place));
            prop_assert_eq!(seen.bytes, (0..length).map(|place| covered(place).then(|| byte_at(place))).collect::<Vec<_>>());
            prop_assert_eq!(stream.buffered_bytes(), 0);
        }

        #[test]
        fn within_any_limit_each_byte_that_comes_out_is_in_its_place(origin: u32, (length, segments) in covering_segments(), reorder_bytes in 0_usize..600) {
            let (mut stream, mut seen) = (Stream::new(StreamLimits { reorder_bytes, ..LIMITS }), Seen::default());
            stream.open(origin);
            push_all(&mut stream, origin, &segments, &mut seen);
            prop_assert!(stream.buffered_bytes() <= reorder_bytes);
            stream.close(origin.wrapping_add(u32::try_from(length).unwrap()));
            stream.flush(at(2), &mut |piece| seen.take(piece));
            prop_assert_eq!(seen.bytes.len(), length);
            for (place, byte) in seen.bytes.iter().enumerate() {
                prop_assert!(byte.is_none_or(|byte| byte == byte_at(place)), "at {}", place);
            }
        }

        #[test]
        fn no_input_makes_it_hold_more_than_allowed(steps in prop::collection::vec((any::<u32>(), 0_usize..300, 0_u32..9, 0_u64..2000, 0_u8..9), 0..200)) {
            let mut stream = Stream::new(LIMITS);
            for (position, length, missing, ms, action) in steps {
                let position = if ms % 2 == 0 { position % 4096 } else { position };
                match action {
                    0 => { stream.open(position); }
                    1 => stream.close(position),
                    2 => stream.tick(at(ms), &mut |_| ()),
                    _ => stream.push(position, &vec![0; length], missing, at(ms), &mut |_| ()),
                }
                prop_assert!(stream.buffered_bytes() <= LIMITS.reorder_bytes);
                let held: usize = stream.held.values().map(|held| held.content.cost()).sum();
                prop_assert_eq!(held, stream.buffered_bytes());
            }
        }
    }
}
