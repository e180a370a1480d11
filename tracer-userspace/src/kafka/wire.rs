//! The bytes of one frame, and a cursor over them that cannot leave them.
//!
//! In: [`Payload`] from `frame`: what was captured of one frame, and where it was not. Out: values, or a [`DecodeError`]
//! that says what was wanted, where, and how much was there.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::observe::TopicId;

/// The bytes of one frame after its four-byte size, or a part of them (a records field), as far as they were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The bytes; shorter than `declared_bytes` when the rest was not captured.
    pub bytes: &'a [u8],
    /// Sorted ranges, none empty, that were not captured and are filled with anything, counted from the frame's first byte: the
    /// first of `bytes` has the number `start`.
    pub holes: &'a [Range<usize>],
    /// How many bytes there were, as the frame's size (or the field's length) says.
    pub declared_bytes: usize,
    /// Number of `bytes[0]` within its frame; 0 for the frame itself.
    pub start: usize,
}

impl<'a> Payload<'a> {
    /// All bytes of a frame.
    pub const fn whole(bytes: &'a [u8]) -> Self {
        Self { bytes, holes: &[], declared_bytes: bytes.len(), start: 0 }
    }

    /// What was captured of a frame of `declared_bytes`; `holes` are sorted ranges of `bytes` that were not.
    pub const fn new(bytes: &'a [u8], holes: &'a [Range<usize>], declared_bytes: usize) -> Self {
        Self { bytes, holes, declared_bytes, start: 0 }
    }

    /// True when every declared byte was captured.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() >= self.declared_bytes && self.first_hole().is_none()
    }

    /// Position in `bytes` of the first byte that was not captured, if a hole lies in them.
    pub fn first_hole(&self) -> Option<usize> {
        let end = self.start.saturating_add(self.bytes.len());
        let hole = self.holes.get(self.holes.partition_point(|hole| hole.end <= self.start))?;
        (hole.start < end).then(|| hole.start.saturating_sub(self.start))
    }

    /// How many bytes at the front were captured without a hole.
    pub fn good_bytes(&self) -> usize {
        self.first_hole().unwrap_or(self.bytes.len()).min(self.bytes.len())
    }

    /// The part of `declared_bytes` bytes from `from` on; it may reach over holes and over the captured end.
    #[must_use]
    pub fn part(&self, from: usize, declared_bytes: usize) -> Self {
        let from_captured = from.min(self.bytes.len());
        let to = from.saturating_add(declared_bytes).min(self.bytes.len()).max(from_captured);
        let bytes = self.bytes.get(from_captured..to).unwrap_or_default();
        let start = self.start.saturating_add(from);
        let holes = match self.holes {
            [] => self.holes,
            holes => holes.get(holes.partition_point(|hole| hole.end <= start)..).unwrap_or_default(),
        };
        Self { bytes, holes, declared_bytes, start }
    }
}

/// Why bytes could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The frame goes on, but nobody captured it.
    #[error("`{what}` at byte {at} needs {needed} bytes, {left} were captured")]
    Truncated {
        /// The field.
        what: &'static str,
        /// First byte of it, counted from the frame's first after the size.
        at: usize,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// A hole lies in it.
    #[error("`{what}` at byte {at} needs {needed} bytes, a hole lies {left} bytes behind its start")]
    Hole {
        /// The field.
        what: &'static str,
        /// First byte of it.
        at: usize,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are before the hole.
        left: usize,
    },
    /// It reaches over the end of what holds it.
    #[error("`{what}` at byte {at} needs {needed} bytes, {left} are left")]
    Beyond {
        /// The field.
        what: &'static str,
        /// First byte of it.
        at: usize,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are before the end.
        left: usize,
    },
    /// The value is none that Kafka writes.
    #[error("`{what}` at byte {at}: {why}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// First byte of it.
        at: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The message ended before its frame did.
    #[error("the message ends at byte {at}, {left} bytes before its frame")]
    LeftOver {
        /// Where it ended.
        at: usize,
        /// Bytes that are left over.
        left: usize,
    },
    /// The version is newer than this program, and the newest known shape does not fit.
    #[error("version {api_version} of API {api_key} is not known")]
    UnknownVersion {
        /// Kafka's number of the API.
        api_key: i16,
        /// Version of the request.
        api_version: i16,
    },
}

/// The kinds of damage, as counters name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DamageKind {
    /// The capture ends before the frame.
    Truncated,
    /// A hole in the capture.
    Hole,
    /// Bytes that no Kafka writes.
    Malformed,
    /// A version newer than this program.
    UnknownVersion,
}

impl DamageKind {
    /// Its name on counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Hole => "hole",
            Self::Malformed => "malformed",
            Self::UnknownVersion => "unknown_version",
        }
    }
}

impl DecodeError {
    /// Which kind of damage it is.
    pub const fn kind(&self) -> DamageKind {
        match self {
            Self::Truncated { .. } => DamageKind::Truncated,
            Self::Hole { .. } => DamageKind::Hole,
            Self::Beyond { .. } | Self::Invalid { .. } | Self::LeftOver { .. } => DamageKind::Malformed,
            Self::UnknownVersion { .. } => DamageKind::UnknownVersion,
        }
    }
}

/// A cursor over a [`Payload`]. Every take is held against the bytes that are there; nothing is ever read out of a hole.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    payload: Payload<'a>,
    /// Next byte, counted from the payload's first. May lie behind the captured end after a skip.
    position: usize,
    /// Where reading ends: the declared end, or the end of the tagged field that is being read.
    end: usize,
    /// Up to here nothing is missing: takes below it need one comparison.
    good: usize,
    /// Memory that elements of arrays may still take.
    budget_bytes: usize,
    what: &'static str,
}

/// Memory that the elements of a frame's arrays may take, per captured byte. What clients and brokers write stays below 8;
/// arrays of the smallest elements there are would come to 64.
const BUDGET_PER_BYTE: usize = 16;
/// And for the frame itself.
const BUDGET_BASE_BYTES: usize = 64 << 10;

impl<'a> Reader<'a> {
    /// At the payload's first byte.
    pub fn new(payload: Payload<'a>) -> Self {
        let good = payload.good_bytes().min(payload.declared_bytes);
        let budget_bytes = payload.bytes.len().saturating_mul(BUDGET_PER_BYTE).saturating_add(BUDGET_BASE_BYTES);
        Self { payload, position: 0, end: payload.declared_bytes, good, budget_bytes, what: "frame" }
    }

    /// The same, at `position`.
    pub fn at(payload: Payload<'a>, position: usize) -> Self {
        Self { position, ..Self::new(payload) }
    }

    /// Names the field that is read next, for errors.
    pub const fn field(&mut self, what: &'static str) {
        self.what = what;
    }

    /// Position of the next byte, counted from the payload's first.
    pub const fn position(&self) -> usize {
        self.position
    }

    /// Declared bytes that are left, captured or not.
    pub const fn left(&self) -> usize {
        self.end.saturating_sub(self.position)
    }

    /// An error about the field at hand.
    pub const fn invalid(&self, why: &'static str) -> DecodeError {
        DecodeError::Invalid { what: self.what, at: self.payload.start.saturating_add(self.position), why }
    }

    /// Accounts for `bytes` of memory that an element takes.
    pub(crate) fn spend(&mut self, bytes: usize) -> Result<(), DecodeError> {
        match self.budget_bytes.checked_sub(bytes) {
            Some(left) => {
                self.budget_bytes = left;
                Ok(())
            }
            None => Err(self.invalid("more elements than any client or broker would write in so few bytes")),
        }
    }

    /// The message ended here, with `left` bytes of its frame to go.
    pub(crate) const fn left_over(&self, left: usize) -> DecodeError {
        DecodeError::LeftOver { at: self.payload.start.saturating_add(self.position), left }
    }

    /// An error that says that the field at hand needs `needed` bytes, which are not there.
    pub(crate) const fn beyond(&self, needed: usize) -> DecodeError {
        DecodeError::Beyond { what: self.what, at: self.payload.start.saturating_add(self.position), needed, left: self.left() }
    }

    /// Exactly `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.position.saturating_add(count);
        if end <= self.good
            && let Some(bytes) = self.payload.bytes.get(self.position..end)
        {
            self.position = end;
            return Ok(bytes);
        }
        self.take_slowly(count)
    }

    #[cold]
    fn take_slowly(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (what, at) = (self.what, self.payload.start.saturating_add(self.position));
        let end = self.position.saturating_add(count);
        if end > self.end {
            return Err(DecodeError::Beyond { what, at, needed: count, left: self.left() });
        }
        let wanted = self.payload.part(self.position, count);
        if let Some(left) = wanted.first_hole() {
            return Err(DecodeError::Hole { what, at, needed: count, left });
        }
        if wanted.bytes.len() < count {
            return Err(DecodeError::Truncated { what, at, needed: count, left: wanted.bytes.len() });
        }
        self.position = end;
        Ok(wanted.bytes)
    }

    /// Passes over `count` bytes, whether they were captured or not.
    pub fn skip(&mut self, count: usize) -> Result<(), DecodeError> {
        let end = self.position.saturating_add(count);
        if end > self.end {
            let at = self.payload.start.saturating_add(self.position);
            return Err(DecodeError::Beyond { what: self.what, at, needed: count, left: self.left() });
        }
        self.position = end;
        Ok(())
    }

    /// The next `count` bytes as a payload of their own, holes, cuts and all.
    pub fn part(&mut self, count: usize) -> Result<Payload<'a>, DecodeError> {
        let from = self.position;
        self.skip(count)?;
        Ok(self.payload.part(from, count))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(N)?;
        <[u8; N]>::try_from(bytes).map_err(|_| self.invalid("wrong length"))
    }

    /// A signed byte.
    pub fn i8(&mut self) -> Result<i8, DecodeError> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    /// A byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// A 16-bit number.
    pub fn i16(&mut self) -> Result<i16, DecodeError> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    /// An unsigned 16-bit number.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// A 32-bit number.
    pub fn i32(&mut self) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// An unsigned 32-bit number.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// A 64-bit number.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A topic's id; all zero is none.
    pub fn topic_id(&mut self) -> Result<Option<TopicId>, DecodeError> {
        Ok(TopicId::new(self.array()?))
    }

    /// An unsigned varint of at most five bytes, as flexible versions write lengths and tags.
    pub fn unsigned_varint(&mut self) -> Result<u32, DecodeError> {
        let mut value = 0_u32;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8()?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0x0f {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.invalid("a varint of more than 32 bits"))
    }

    /// A length or count, 16 or 32 bits wide or compact: `None` for null. It is at most what is left (a declared byte each).
    pub fn length(&mut self, kind: LengthKind) -> Result<Option<usize>, DecodeError> {
        let written = match kind {
            LengthKind::Compact => i64::from(self.unsigned_varint()?) - 1,
            LengthKind::Int16 => i64::from(self.i16()?),
            LengthKind::Int32 => i64::from(self.i32()?),
        };
        if written == -1 {
            return Ok(None);
        }
        let Ok(length) = usize::try_from(written) else { return Err(self.invalid("a negative length")) };
        if length > self.left() {
            let at = self.payload.start.saturating_add(self.position);
            return Err(DecodeError::Beyond { what: self.what, at, needed: length, left: self.left() });
        }
        Ok(Some(length))
    }

    /// UTF-8 text of a length written as `kind`; `None` for null.
    pub fn text(&mut self, kind: LengthKind) -> Result<Option<&'a str>, DecodeError> {
        let Some(length) = self.length(kind)? else { return Ok(None) };
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map(Some).map_err(|_| self.invalid("not UTF-8"))
    }

    /// Runs `read` on the next `count` bytes, which it has to use up (a tagged field).
    pub(crate) fn within<T>(&mut self, count: usize, read: impl FnOnce(&mut Self) -> Result<T, DecodeError>) -> Result<T, DecodeError> {
        let inner_end = self.position.saturating_add(count);
        if inner_end > self.end {
            return self.skip(count).and(Err(self.invalid("unreachable")));
        }
        let outer_end = std::mem::replace(&mut self.end, inner_end);
        let outer_good = self.good;
        self.good = outer_good.min(inner_end);
        let value = read(self);
        let used_up = self.position == inner_end;
        self.end = outer_end;
        self.good = outer_good;
        let value = value?;
        if used_up { Ok(value) } else { Err(self.invalid("a tagged field that is longer than its content")) }
    }

    /// Passes over the tagged fields at the end of a structure of a flexible version, handing each to `known`, which
    /// says whether it read it.
    pub(crate) fn tagged_fields(&mut self, mut known: impl FnMut(&mut Self, u32) -> Result<bool, DecodeError>) -> Result<(), DecodeError> {
        self.what = "tagged_fields";
        let count = self.unsigned_varint()?;
        for _ in 0..count {
            self.what = "tagged_fields";
            let tag = self.unsigned_varint()?;
            let size = usize::try_from(self.unsigned_varint()?).unwrap_or(usize::MAX);
            let from = self.position;
            self.within(size, |reader| if known(reader, tag)? { Ok(()) } else { reader.skip((from + size) - reader.position) })?;
        }
        Ok(())
    }
}

/// How a length is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthKind {
    /// 16 bits, -1 for null: strings of inflexible versions.
    Int16,
    /// 32 bits, -1 for null: bytes and arrays of inflexible versions.
    Int32,
    /// Unsigned varint of length + 1, 0 for null: everything of flexible versions.
    Compact,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_read_up_to_32_bits_and_no_further() {
        for (bytes, expected) in [
            (&[0][..], Some(0)),
            (&[0x7f], Some(127)),
            (&[0x80, 0x01], Some(128)),
            (&[0x80, 0x00], Some(0)),
            (&[0xff, 0xff, 0xff, 0xff, 0x0f], Some(u32::MAX)),
            (&[0xff, 0xff, 0xff, 0xff, 0x1f], None),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0x01], None),
            (&[0x80], None),
            (&[], None),
        ] {
            assert_eq!(Reader::new(Payload::whole(bytes)).unsigned_varint().ok(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn lengths_are_held_against_what_is_left() {
        let length = |bytes: &[u8], kind| Reader::new(Payload::whole(bytes)).length(kind);
        assert_eq!(length(&[0xff, 0xff], LengthKind::Int16), Ok(None));
        assert_eq!(length(&[0xff, 0xff, 0xff, 0xff], LengthKind::Int32), Ok(None));
        assert_eq!(length(&[0], LengthKind::Compact), Ok(None));
        assert_eq!(length(&[0, 2, 7, 7], LengthKind::Int16), Ok(Some(2)));
        assert_eq!(length(&[3, 7, 7], LengthKind::Compact), Ok(Some(2)));
        for (bytes, kind) in [
            (&[0, 2, 7][..], LengthKind::Int16),
            (&[0xff, 0xfe], LengthKind::Int16),
            (&[0x7f, 0xff, 0xff, 0xff, 0], LengthKind::Int32),
            (&[0x80, 0, 0, 0], LengthKind::Int32),
            (&[3, 7], LengthKind::Compact),
            (&[0xff, 0xff, 0xff, 0xff, 0x0f], LengthKind::Compact),
        ] {
            assert_eq!(length(bytes, kind).unwrap_err().kind(), DamageKind::Malformed, "{bytes:?}");
        }
    }

    #[test]
    fn every_kind_of_lack_has_its_own_error() {
        let bytes = [1, 2, 3, 4, 5, 6];
        let hole = 2..3;
        let payload = Payload::new(&bytes, std::slice::from_ref(&hole), 10);
        let error = |at, count| {
            let mut reader = Reader::at(payload, at);
            reader.field("topics");
            reader.take(count).unwrap_err().to_string()
        };
        assert_eq!(error(0, 4), "`topics` at byte 0 needs 4 bytes, a hole lies 2 bytes behind its start");
        assert_eq!(error(3, 5), "`topics` at byte 3 needs 5 bytes, 3 were captured");
        assert_eq!(error(4, 9), "`topics` at byte 4 needs 9 bytes, 6 are left");
        let mut reader = Reader::new(payload);
        assert_eq!(reader.take(2), Ok(&[1, 2][..]));
        assert_eq!(reader.skip(1), Ok(()));
        assert_eq!(reader.take(3), Ok(&[4, 5, 6][..]), "behind the hole");
        assert_eq!(reader.take(0), Ok(&[][..]));
        assert_eq!((reader.left(), reader.skip(4), reader.left()), (4, Ok(()), 0));
    }

    #[test]
    fn parts_know_their_place_their_holes_and_what_was_cut() {
        let bytes: Vec<u8> = (0..20).collect();
        let holes = [3..5, 10..12];
        let payload = Payload::new(&bytes, &holes, 30);
        let shown = |part: Payload<'_>| (part.start, part.bytes.len(), part.declared_bytes, part.first_hole(), part.is_whole());
        assert_eq!(shown(payload), (0, 20, 30, Some(3), false));
        assert_eq!(shown(payload.part(0, 3)), (0, 3, 3, None, true));
        assert_eq!(shown(payload.part(4, 2)), (4, 2, 2, Some(0), false));
        assert_eq!(shown(payload.part(5, 6)), (5, 6, 6, Some(5), false));
        assert_eq!(shown(payload.part(12, 18)), (12, 8, 18, None, false));
        assert_eq!(shown(payload.part(25, 5)), (25, 0, 5, None, false));
        let nested = payload.part(5, 20).part(4, 4);
        assert_eq!(shown(nested), (9, 4, 4, Some(1), false));
        assert_eq!(nested.bytes, [9, 10, 11, 12]);
        assert_eq!(nested.good_bytes(), 1);
    }

    /// KIP-482: an unknown tagged field is passed over, a known one has to use up its size.
    #[test]
    fn tagged_fields_are_bounded_by_their_own_sizes() {
        let read = |bytes: &[u8]| {
            let mut seen = Vec::new();
            let mut reader = Reader::new(Payload::whole(bytes));
            let done = reader.tagged_fields(|reader, tag| {
                if tag == 1 {
                    seen.push(reader.i16()?);
                }
                Ok(tag == 1)
            });
            (done.map(|()| reader.left()), seen)
        };
        assert_eq!(read(&[0, 9]), (Ok(1), vec![]));
        assert_eq!(read(&[2, 0, 3, 7, 7, 7, 1, 2, 1, 1]), (Ok(0), vec![257]));
        assert_eq!(read(&[1, 1, 3, 1, 1, 1]).0.unwrap_err().kind(), DamageKind::Malformed, "longer than its content");
        assert_eq!(read(&[1, 1, 1, 1, 1]).0.unwrap_err().kind(), DamageKind::Malformed, "shorter than its content");
        assert_eq!(read(&[1, 0, 9, 1]).0.unwrap_err().kind(), DamageKind::Malformed, "longer than the message");
        assert_eq!(read(&[9, 0, 0]).0.unwrap_err().kind(), DamageKind::Malformed, "fewer than counted");
    }
}
