//! The walk over the records of one batch.

#![forbid(unsafe_code)]

use super::batch::{LOG_OVERHEAD, codec_of, read_start};
use crate::kafka::wire::{DecodeError, LengthKind, Payload, Reader};
use crate::observe::{BatchHeader, Codec};

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
pub struct Record<'r> {
    /// Offset minus the batch's base offset.
    pub offset_delta: i64,
    /// Timestamp in milliseconds; `None` for format 0 and for -1.
    pub timestamp_ms: Option<i64>,
    /// The key.
    pub key: Option<&'r [u8]>,
    /// Bytes of the value; `None` for a tombstone.
    pub value_bytes: Option<u32>,
    /// Its headers; none before format 2.
    pub headers: Headers<'r>,
}

/// The records of a batch in their order. A damaged record is an error; what comes after it is still walked where its
/// length is known.
#[derive(Clone, Debug)]
pub struct Records<'r> {
    header: BatchHeader,
    walk: Walk<'r>,
    walked: u32,
}

#[derive(Clone, Debug)]
enum Walk<'r> {
    Batch(BatchWalk<'r>),
    Messages(MessageWalk<'r>),
}

impl<'r> Records<'r> {
    pub(super) fn of_batch(header: BatchHeader, body: Payload<'r>) -> Self {
        let walk = BatchWalk {
            body,
            is_whole: body.is_whole(),
            position: 0,
            left: u32::try_from(header.record_count).unwrap_or(0),
            base_timestamp_ms: header.base_timestamp_ms.unwrap_or(-1),
            fixed_timestamp_ms: if header.log_append_time { Some(header.max_timestamp_ms.unwrap_or(-1)) } else { None },
        };
        Self { header, walk: Walk::Batch(walk), walked: 0 }
    }

    pub(super) const fn of_messages(header: BatchHeader, walk: MessageWalk<'r>) -> Self {
        Self { header, walk: Walk::Messages(walk), walked: 0 }
    }

    /// The batch's header; of a compressed wrapper with what the messages in it told.
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Good records so far.
    pub const fn walked(&self) -> u32 {
        self.walked
    }

    /// Bytes of the records section, after decompression where it was compressed.
    pub const fn uncompressed_bytes(&self) -> usize {
        match &self.walk {
            Walk::Batch(walk) => walk.body.declared_bytes,
            Walk::Messages(walk) => walk.messages.declared_bytes,
        }
    }
}

impl<'r> Iterator for Records<'r> {
    type Item = Result<Record<'r>, DecodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let record = match &mut self.walk {
            Walk::Batch(walk) => walk.next(),
            Walk::Messages(walk) => walk.next(),
        };
        if let Some(Ok(_)) = record {
            self.walked = self.walked.saturating_add(1);
        }
        record
    }
}

/// Records of format 2.
#[derive(Clone, Debug)]
struct BatchWalk<'r> {
    body: Payload<'r>,
    is_whole: bool,
    position: usize,
    left: u32,
    base_timestamp_ms: i64,
    /// The one timestamp of all records, where the broker set it.
    fixed_timestamp_ms: Option<i64>,
}

/// Why a varint or what it measures is not there.
#[derive(Clone, Copy)]
enum Lack {
    /// The bytes end before it does.
    Short(&'static str),
    /// It says something impossible.
    Invalid(&'static str, &'static str),
}

impl<'r> BatchWalk<'r> {
    #[inline]
    fn next(&mut self) -> Option<Result<Record<'r>, DecodeError>> {
        if self.left == 0 {
            return self.end();
        }
        self.left -= 1;
        let start = self.position;
        let mut cursor = Cursor { bytes: self.body.bytes, position: start };
        let length = match cursor.varint("record_length") {
            Ok(length) if length >= 0 => usize::try_from(length).unwrap_or(0),
            Ok(_) => return Some(Err(self.stop(Lack::Invalid("record_length", "a negative length")))),
            Err(lack) => return Some(Err(self.stop(lack))),
        };
        let record_start = cursor.position;
        let end = record_start.saturating_add(length);
        if end > self.body.declared_bytes {
            return Some(Err(self.stop(Lack::Short("record"))));
        }
        if !self.is_whole && !self.was_captured(start, record_start) {
            return Some(Err(self.stop(Lack::Short("record_length"))));
        }
        self.position = end;
        let captured_end = end.min(self.body.bytes.len());
        let bytes = self.body.bytes.get(record_start..captured_end).unwrap_or_default();
        match self.record(bytes, length) {
            Ok((record, prefix_bytes)) if self.is_whole || self.was_captured(record_start, record_start + prefix_bytes) => Some(Ok(record)),
            Ok(_) => Some(Err(self.error(record_start, length, Lack::Short("record")))),
            Err(lack) => {
                let error = self.error(record_start, length, lack);
                if !matches!(error, DecodeError::Truncated { .. } | DecodeError::Hole { .. }) {
                    self.left = 0; // bytes that are no record: what follows is none either
                    self.position = self.body.declared_bytes;
                }
                Some(Err(error))
            }
        }
    }

    /// Reads a record of `length` bytes of which `bytes` were captured; also how many of them were needed, headers aside.
    #[inline]
    fn record(&self, bytes: &'r [u8], length: usize) -> Result<(Record<'r>, usize), Lack> {
        let mut cursor = Cursor { bytes, position: 1 }; // attributes are not used
        let timestamp_delta = cursor.varlong("timestamp_delta")?;
        let offset_delta = cursor.varint("offset_delta")?;
        let key = match cursor.varint("key_length")? {
            -1 => None,
            count => Some(cursor.take(count, "key")?),
        };
        let value_length = cursor.varint("value_length")?;
        let prefix_bytes = cursor.position;
        let value_bytes = match value_length {
            -1 => None,
            count => Some(u32::try_from(count).map_err(|_| Lack::Invalid("value_length", "a negative length"))?),
        };
        let headers_at = usize::try_from(value_bytes.unwrap_or(0)).unwrap_or(usize::MAX).saturating_add(prefix_bytes);
        if headers_at >= length {
            return Err(Lack::Invalid("value", "it reaches over the record's end"));
        }
        let timestamp_ms = match self.fixed_timestamp_ms {
            Some(fixed) => fixed,
            None => self.base_timestamp_ms.wrapping_add(timestamp_delta),
        };
        let headers_start = self.position.saturating_sub(length).saturating_add(headers_at);
        let headers = if self.is_whole || self.was_captured(headers_start, self.position) {
            Headers { bytes: bytes.get(headers_at..).unwrap_or_default(), is_captured: true }
        } else {
            Headers { bytes: &[], is_captured: false }
        };
        let record = Record { offset_delta: i64::from(offset_delta), timestamp_ms: known(timestamp_ms), key, value_bytes, headers };
        Ok((record, prefix_bytes))
    }

    /// After the last record: bytes that are left over are an error, once.
    #[cold]
    fn end(&mut self) -> Option<Result<Record<'r>, DecodeError>> {
        let left = self.body.declared_bytes.saturating_sub(self.position);
        if left == 0 {
            return None;
        }
        let at = self.body.start.saturating_add(self.position);
        self.position = self.body.declared_bytes;
        Some(Err(DecodeError::LeftOver { at, left }))
    }

    fn was_captured(&self, from: usize, to: usize) -> bool {
        self.body.part(from, to.saturating_sub(from)).is_whole()
    }

    /// The walk cannot go on: where the next record begins is not known.
    #[cold]
    fn stop(&mut self, lack: Lack) -> DecodeError {
        let rest = self.body.declared_bytes.saturating_sub(self.position);
        let error = self.error(self.position, rest, lack);
        self.left = 0;
        self.position = self.body.declared_bytes;
        error
    }

    /// Says what is wrong with the `length` bytes from `from` on: a gap if one lies in them, else the bytes themselves.
    #[cold]
    fn error(&self, from: usize, length: usize, lack: Lack) -> DecodeError {
        let at = self.body.start.saturating_add(from);
        let part = self.body.part(from, length);
        let (Lack::Short(what) | Lack::Invalid(what, _)) = lack;
        if let Some(left) = part.first_hole() {
            return DecodeError::Hole { what, at, needed: length, left };
        }
        if part.bytes.len() < part.declared_bytes {
            return DecodeError::Truncated { what, at, needed: length, left: part.bytes.len() };
        }
        match lack {
            Lack::Short(what) => DecodeError::Beyond { what, at, needed: length.saturating_add(1), left: length },
            Lack::Invalid(what, why) => DecodeError::Invalid { what, at, why },
        }
    }
}

/// Takes varints and bytes off a slice.
#[derive(Clone, Copy)]
struct Cursor<'r> {
    bytes: &'r [u8],
    position: usize,
}

impl<'r> Cursor<'r> {
    /// A signed varint of 32 bits.
    #[inline]
    fn varint(&mut self, what: &'static str) -> Result<i32, Lack> {
        let &first = self.bytes.get(self.position).ok_or(Lack::Short(what))?;
        self.position += 1;
        if first < 0x80 {
            return Ok(i32::from(first >> 1) ^ -i32::from(first & 1));
        }
        if let Some(value) = self.short(first) {
            return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
        let value = self.long(first, what, 28)?;
        let value = u32::try_from(value).map_err(|_| Lack::Invalid(what, "a varint of more than 32 bits"))?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A signed varint of 64 bits.
    #[inline]
    fn varlong(&mut self, what: &'static str) -> Result<i64, Lack> {
        let &first = self.bytes.get(self.position).ok_or(Lack::Short(what))?;
        self.position += 1;
        if first < 0x80 {
            return Ok(i64::from(first >> 1) ^ -i64::from(first & 1));
        }
        if let Some(value) = self.short(first) {
            return Ok(i64::from((value >> 1).cast_signed()) ^ -i64::from(value & 1));
        }
        let value = self.long(first, what, 63)?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A varint of two bytes, as most lengths are.
    #[inline]
    fn short(&mut self, first: u8) -> Option<u32> {
        let second = self.bytes.get(self.position).copied().filter(|&second| second < 0x80)?;
        self.position += 1;
        Some(u32::from(first & 0x7f) | u32::from(second) << 7)
    }

    /// The rest of a varint whose first byte says that it goes on, up to the byte that is shifted by `last_shift`.
    #[cold]
    fn long(&mut self, first: u8, what: &'static str, last_shift: u32) -> Result<u64, Lack> {
        let mut value = u64::from(first & 0x7f);
        let mut shift = 7;
        while shift <= last_shift {
            let &byte = self.bytes.get(self.position).ok_or(Lack::Short(what))?;
            self.position += 1;
            let bits = u64::from(byte & 0x7f);
            value |= bits << shift;
            if byte < 0x80 {
                return if shift == 63 && bits > 1 { Err(Lack::Invalid(what, "a varint of more than 64 bits")) } else { Ok(value) };
            }
            shift += 7;
        }
        Err(Lack::Invalid(what, "a varint that does not end"))
    }

    #[inline]
    fn take(&mut self, count: i32, what: &'static str) -> Result<&'r [u8], Lack> {
        let count = usize::try_from(count).map_err(|_| Lack::Invalid(what, "a negative length"))?;
        let end = self.position.saturating_add(count);
        let bytes = self.bytes.get(self.position..end).ok_or(Lack::Short(what))?;
        self.position = end;
        Ok(bytes)
    }
}

/// The headers of a record, read as they are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'r> {
    /// A count and the headers.
    bytes: &'r [u8],
    is_captured: bool,
}

/// A header: its name, which may be empty and need not be UTF-8, and its value, which may be null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'r> {
    /// The name.
    pub name: &'r [u8],
    /// The value.
    pub value: Option<&'r [u8]>,
}

impl<'r> Headers<'r> {
    /// Of a record that has none.
    pub const NONE: Self = Self { bytes: &[], is_captured: true };

    /// False when a gap lies where the headers are: whether there were any is not known.
    pub const fn is_captured(&self) -> bool {
        self.is_captured
    }

    /// True when the record has no headers, or none were captured.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        matches!(self.bytes, [] | [0])
    }

    /// Walks them. An error ends the walk.
    pub fn iter(&self) -> HeaderIter<'r> {
        HeaderIter { cursor: Cursor { bytes: self.bytes, position: 0 }, left: None }
    }
}

impl<'r> IntoIterator for &Headers<'r> {
    type Item = Result<Header<'r>, DecodeError>;
    type IntoIter = HeaderIter<'r>;

    fn into_iter(self) -> HeaderIter<'r> {
        self.iter()
    }
}

/// Walks headers. See [`Headers::iter`].
#[derive(Clone)]
pub struct HeaderIter<'r> {
    cursor: Cursor<'r>,
    /// Headers that are left; `None` before the count was read.
    left: Option<i32>,
}

impl std::fmt::Debug for HeaderIter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeaderIter").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'r> HeaderIter<'r> {
    fn step(&mut self) -> Result<Option<Header<'r>>, Lack> {
        let left = match self.left {
            Some(left) => left,
            None if self.cursor.bytes.is_empty() => 0,
            None => self.cursor.varint("header_count")?,
        };
        if left == 0 {
            self.left = Some(0);
            return if self.cursor.position == self.cursor.bytes.len() {
                Ok(None)
            } else {
                Err(Lack::Invalid("headers", "bytes are left over"))
            };
        }
        if left < 0 {
            return Err(Lack::Invalid("header_count", "a negative count"));
        }
        self.left = Some(left - 1);
        let length = self.cursor.varint("header_key_length")?;
        let name = self.cursor.take(length, "header_key")?;
        let value = match self.cursor.varint("header_value_length")? {
            -1 => None,
            count => Some(self.cursor.take(count, "header_value")?),
        };
        Ok(Some(Header { name, value }))
    }
}

impl<'r> Iterator for HeaderIter<'r> {
    type Item = Result<Header<'r>, DecodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self.step() {
            Ok(header) => header.map(Ok),
            Err(lack) => {
                let at = self.cursor.position;
                self.left = Some(0);
                self.cursor.position = self.cursor.bytes.len();
                Some(Err(match lack {
                    Lack::Short(what) => DecodeError::Beyond { what, at, needed: 1, left: 0 },
                    Lack::Invalid(what, why) => DecodeError::Invalid { what, at, why },
                }))
            }
        }
    }
}

/// Where a message's place in its batch comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Offsets {
    /// Its offset minus that of the first.
    Written {
        /// Offset of the first message, as written.
        first: i64,
    },
    /// Its place: what producers write means nothing.
    Counted,
}

/// Messages of format 0 and 1.
#[derive(Clone, Debug)]
pub(super) struct MessageWalk<'r> {
    messages: Payload<'r>,
    offsets: Offsets,
    fixed_timestamp_ms: Option<i64>,
    position: usize,
    count: i64,
}

impl<'r> MessageWalk<'r> {
    pub(super) const fn new(messages: Payload<'r>, offsets: Offsets, fixed_timestamp_ms: Option<i64>) -> Self {
        Self { messages, offsets, fixed_timestamp_ms, position: 0, count: 0 }
    }

    fn next(&mut self) -> Option<Result<Record<'r>, DecodeError>> {
        if self.position >= self.messages.declared_bytes {
            return None;
        }
        let start = self.position;
        let mut reader = Reader::at(self.messages, start);
        let total = match read_start(&mut reader) {
            Ok((_, length, _)) => usize::try_from(length).unwrap_or(0).saturating_add(LOG_OVERHEAD),
            Err(error) => {
                self.position = self.messages.declared_bytes;
                return Some(Err(error));
            }
        };
        self.position = start.saturating_add(total);
        let delta = self.count;
        self.count += 1;
        Some(message(self.messages.part(start, total)).map(|(offset, timestamp_ms, key, value_bytes)| Record {
            offset_delta: match self.offsets {
                Offsets::Written { first } => offset.wrapping_sub(first),
                Offsets::Counted => delta,
            },
            timestamp_ms: known(self.fixed_timestamp_ms.unwrap_or(timestamp_ms)),
            key,
            value_bytes,
            headers: Headers::NONE,
        }))
    }
}

/// -1 is Kafka's way of saying that there is no timestamp.
fn known(timestamp_ms: i64) -> Option<i64> {
    (timestamp_ms != -1).then_some(timestamp_ms)
}

type Message<'r> = (i64, i64, Option<&'r [u8]>, Option<u32>);

/// Offset, timestamp, key and length of the value of the message that fills `message`.
fn message(message: Payload<'_>) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new(message);
    let (offset, _, magic) = read_start(&mut reader)?;
    reader.field("attributes");
    if codec_of(i16::from(reader.i8()?)) != Codec::None {
        return Err(reader.invalid("a wrapper inside a wrapper"));
    }
    reader.field("timestamp");
    let timestamp_ms = if magic == 0 { -1 } else { reader.i64()? };
    reader.field("key");
    let key = match reader.length(LengthKind::Int32)? {
        None => None,
        Some(length) => Some(reader.take(length)?),
    };
    reader.field("value");
    let value_bytes = match reader.length(LengthKind::Int32)? {
        None => None,
        Some(length) => {
            reader.skip(length)?;
            Some(u32::try_from(length).unwrap_or(u32::MAX))
        }
    };
    match reader.left() {
        0 => Ok((offset, timestamp_ms, key, value_bytes)),
        left => Err(reader.left_over(left)),
    }
}
