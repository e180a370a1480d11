//! One batch: its header, and the way to its records.

#![forbid(unsafe_code)]

use super::message_set::{self, MessageSet};
use super::walk::Records;
use super::{Item, Limits, Origin, RecordsError, Scratch};
use crate::kafka::wire::{DecodeError, Payload, Reader};
use crate::observe::{BatchHeader, Codec};

/// Offset and length, before what the length counts.
pub(super) const LOG_OVERHEAD: usize = 12;
/// Where the magic byte is in every format.
const MAGIC_AT: usize = 16;
/// Header of a record batch of format 2.
const BATCH_OVERHEAD: usize = 61;
/// Where the part that the CRC covers begins.
const CRC_FROM: usize = 21;

/// A batch whose header was read.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    pub(super) header: BatchHeader,
    /// The whole of it.
    pub(super) whole: Payload<'a>,
    pub(super) origin: Origin,
}

/// What a control batch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// The transaction is aborted.
    Abort,
    /// The transaction is committed.
    Commit,
    /// Another kind, of `KRaft`'s own log.
    Other(i16),
    /// Its record was not captured, or is none: a marker all the same, and no message.
    Unreadable,
}

impl<'a> Batch<'a> {
    /// What the header says. Of a compressed wrapper of format 0 or 1 the inner messages are not known yet: `base_offset` is
    /// the wrapper's own (its last message's), `last_offset_delta` 0 and `record_count` -1; [`Records::header`] has them right.
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// True when all of its bytes were captured.
    pub fn is_whole(&self) -> bool {
        self.whole.is_whole()
    }

    /// Whether the checksum is right; `None` when not all bytes are there to say. For a run of plain messages: of all of them.
    pub fn crc_ok(&self) -> Option<bool> {
        if !self.whole.is_whole() {
            return None;
        }
        if self.header.magic < 2 {
            return Some(message_set::crc_ok(self.whole.bytes));
        }
        Some(crc32c::crc32c(self.whole.bytes.get(CRC_FROM..)?) == self.header.crc)
    }

    /// What a control batch says; `None` for a batch of messages.
    pub fn control_kind(&self) -> Option<ControlKind> {
        if !self.header.control || self.header.magic < 2 {
            return None;
        }
        Some(self.control_type().map_or(ControlKind::Unreadable, |kind| match kind {
            0 => ControlKind::Abort,
            1 => ControlKind::Commit,
            other => ControlKind::Other(other),
        }))
    }

    /// The type in the key of a control batch's record, behind its version.
    fn control_type(&self) -> Option<i16> {
        // Control batches are never compressed: there is nothing to gain.
        let mut records = Records::of_batch(self.header.clone(), self.whole.part(BATCH_OVERHEAD, self.body_bytes()));
        let key = records.next()?.ok()?.key?;
        let (_version, kind) = key.split_first_chunk::<2>()?;
        Some(i16::from_be_bytes(*kind.first_chunk()?))
    }

    /// Bytes of the records as stored, compressed or not.
    pub fn body_bytes(&self) -> usize {
        self.whole.declared_bytes.saturating_sub(if self.header.magic < 2 { 0 } else { BATCH_OVERHEAD })
    }

    /// Its records. Uncompressed ones are read where they lie; compressed ones are decompressed into `scratch`.
    ///
    /// # Errors
    /// When they are compressed and cannot be decompressed: cut, damaged, or larger than `limits` allow.
    pub fn records<'r>(&self, scratch: &'r mut Scratch, limits: Limits) -> Result<Records<'r>, RecordsError>
    where
        'a: 'r,
    {
        if self.header.magic < 2 {
            return MessageSet::open(self, scratch, limits);
        }
        let body = self.whole.part(BATCH_OVERHEAD, self.body_bytes());
        if self.header.codec == Codec::None {
            return Ok(Records::of_batch(self.header.clone(), body));
        }
        let plain = decompress(body, self.header.codec, scratch, limits)?;
        Ok(Records::of_batch(self.header.clone(), Payload::whole(plain)))
    }
}

/// Decompresses a whole payload; one with a gap is not guessed at.
pub(super) fn decompress<'r>(body: Payload<'r>, codec: Codec, scratch: &'r mut Scratch, limits: Limits) -> Result<&'r [u8], RecordsError> {
    if !body.is_whole() {
        let bytes = body.declared_bytes;
        return Err(RecordsError::NotCaptured { bytes, missing_bytes: bytes.saturating_sub(body.good_bytes()) });
    }
    Ok(scratch.decompressor.decompress(codec, body.bytes, limits.max_uncompressed_bytes)?)
}

/// The codec in a batch's or message's attributes.
pub(super) fn codec_of(attributes: i16) -> Codec {
    match attributes & 7 {
        0 => Codec::None,
        1 => Codec::Gzip,
        2 => Codec::Snappy,
        3 => Codec::Lz4,
        4 => Codec::Zstd,
        other => Codec::Unknown(u8::try_from(other).unwrap_or(u8::MAX)),
    }
}

/// Reads what begins at `position`, where `left` bytes are left; also says how many bytes it takes.
pub(super) fn next(payload: Payload<'_>, position: usize, left: usize, origin: Origin) -> (Item<'_>, usize) {
    let damaged = |reason, bytes| (Item::Damaged { reason, bytes }, bytes);
    let partial = |reason| match origin {
        Origin::Fetch => (Item::PartialTail { bytes: left }, left),
        Origin::Produce => (Item::Damaged { reason, bytes: left }, left),
    };
    let mut reader = Reader::at(payload, position);
    reader.field("records");
    if left <= MAGIC_AT {
        return partial(reader.beyond(MAGIC_AT + 1));
    }
    let (base_offset, length, magic) = match read_start(&mut reader) {
        Ok(start) => start,
        Err(reason) => return damaged(reason, left),
    };
    let least = if magic < 2 { message_set::least_length(magic) } else { BATCH_OVERHEAD - LOG_OVERHEAD };
    reader.field("length");
    let Some(total) = usize::try_from(length).ok().filter(|&length| length >= least).map(|length| length + LOG_OVERHEAD) else {
        return damaged(reader.invalid("a batch shorter than its own header"), left);
    };
    if total > left {
        return partial(Reader::at(payload, position).beyond(total));
    }
    match magic {
        0 | 1 => message_set::next(payload, position, origin, magic),
        2 => match read_header(&mut reader, base_offset, total) {
            Ok(header) => (Item::Batch(Batch { header, whole: payload.part(position, total), origin }), total),
            Err(reason) => damaged(reason, total),
        },
        _ => damaged(reader.invalid("a format that no Kafka knows"), total),
    }
}

/// Offset, length and magic of a batch or message; the reader stays behind the magic.
pub(super) fn read_start(reader: &mut Reader<'_>) -> Result<(i64, i32, i8), DecodeError> {
    reader.field("base_offset");
    let base_offset = reader.i64()?;
    reader.field("batch_length");
    let length = reader.i32()?;
    reader.field("partition_leader_epoch");
    reader.skip(4)?;
    reader.field("magic");
    Ok((base_offset, length, reader.i8()?))
}

/// The rest of a header of format 2.
fn read_header(reader: &mut Reader<'_>, base_offset: i64, total: usize) -> Result<BatchHeader, DecodeError> {
    reader.field("batch_header");
    let crc = reader.u32()?;
    let attributes = reader.i16()?;
    let last_offset_delta = reader.i32()?;
    let base_timestamp_ms = Some(reader.i64()?);
    let max_timestamp_ms = Some(reader.i64()?);
    let producer_id = reader.i64()?;
    let producer_epoch = reader.i16()?;
    let base_sequence = reader.i32()?;
    reader.field("records_count");
    let record_count = reader.i32()?;
    if record_count < 0 {
        return Err(reader.invalid("a negative count"));
    }
    Ok(BatchHeader {
        magic: 2,
        base_offset,
        last_offset_delta,
        base_timestamp_ms,
        max_timestamp_ms,
        record_count,
        producer_id,
        producer_epoch,
        base_sequence,
        size_bytes: u32::try_from(total).unwrap_or(u32::MAX),
        crc,
        codec: codec_of(attributes),
        log_append_time: attributes & 1 << 3 != 0,
        transactional: attributes & 1 << 4 != 0,
        control: attributes & 1 << 5 != 0,
        delete_horizon: attributes & 1 << 6 != 0,
    })
}
