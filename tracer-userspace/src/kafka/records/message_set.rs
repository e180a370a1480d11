//! Message sets: formats 0 (Kafka 0.8) and 1 (0.10, KIP-31 and KIP-32). A run of plain messages, or one compressed wrapper
//! with the messages inside it, stands for a batch.

#![forbid(unsafe_code)]

use super::batch::{Batch, LOG_OVERHEAD, codec_of, decompress, read_start};
use super::walk::{MessageWalk, Offsets, Records};
use super::{Item, Limits, Origin, RecordsError, Scratch};
use crate::kafka::wire::{DecodeError, LengthKind, Payload, Reader};
use crate::observe::{BatchHeader, Codec};

/// Where the part that a message's CRC covers begins.
const CRC_FROM: usize = 16;

/// What a message of format `magic` counts at least in its length: CRC, magic, attributes, timestamp, two lengths.
pub(super) const fn least_length(magic: i8) -> usize {
    if magic == 0 { 14 } else { 22 }
}

/// What stands before a message's key.
#[derive(Clone, Copy, Debug)]
struct Start {
    offset: i64,
    /// Bytes of the message, offset and length included.
    total: usize,
    magic: i8,
    crc: u32,
    codec: Codec,
    log_append_time: bool,
    timestamp_ms: Option<i64>,
}

/// Reads a message up to its key.
fn start(reader: &mut Reader<'_>) -> Result<Start, DecodeError> {
    let mut ahead = reader.clone();
    let (offset, length, magic) = read_start(&mut ahead)?;
    reader.field("crc");
    reader.skip(LOG_OVERHEAD)?;
    let crc = reader.u32()?;
    reader.field("magic");
    reader.skip(1)?;
    if !matches!(magic, 0 | 1) {
        return Err(reader.invalid("another format inside a message set"));
    }
    reader.field("attributes");
    let attributes = i16::from(reader.i8()?);
    reader.field("timestamp");
    let timestamp_ms = if magic == 0 { None } else { Some(reader.i64()?) };
    reader.field("message_size");
    let total = usize::try_from(length)
        .ok()
        .filter(|&length| length >= least_length(magic))
        .map(|length| length + LOG_OVERHEAD)
        .ok_or_else(|| reader.invalid("a message shorter than its own header"))?;
    let log_append_time = magic == 1 && attributes & 1 << 3 != 0;
    Ok(Start { offset, total, magic, crc, codec: codec_of(attributes), log_append_time, timestamp_ms })
}

/// Reads the wrapper or the run of plain messages at `position`; the first message's length was found to fit.
pub(super) fn next(payload: Payload<'_>, position: usize, origin: Origin, magic: i8) -> (Item<'_>, usize) {
    let mut reader = Reader::at(payload, position);
    let left = reader.left();
    let first = match start(&mut reader) {
        Ok(first) => first,
        Err(reason) => {
            // Its length is good, so only the message is lost.
            let total = read_start(&mut Reader::at(payload, position))
                .map_or(left, |(_, length, _)| usize::try_from(length).unwrap_or(0).saturating_add(LOG_OVERHEAD).min(left));
            return (Item::Damaged { reason, bytes: total }, total);
        }
    };
    let mut header = BatchHeader {
        magic,
        base_offset: first.offset,
        last_offset_delta: 0,
        base_timestamp_ms: first.timestamp_ms,
        max_timestamp_ms: first.timestamp_ms,
        record_count: 1,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        size_bytes: 0,
        crc: first.crc,
        codec: first.codec,
        log_append_time: first.log_append_time,
        transactional: false,
        control: false,
        delete_horizon: false,
    };
    let mut total = first.total;
    if first.codec == Codec::None {
        let mut last_offset = first.offset;
        while let Some(message) = following(payload, position + total, &first) {
            last_offset = message.offset;
            header.record_count = header.record_count.saturating_add(1);
            header.max_timestamp_ms = header.max_timestamp_ms.max(message.timestamp_ms);
            total += message.total;
        }
        if origin == Origin::Produce {
            header.base_offset = 0;
            header.last_offset_delta = header.record_count - 1;
        } else {
            header.last_offset_delta = delta(first.offset, last_offset);
        }
    } else {
        header.record_count = -1;
    }
    header.size_bytes = u32::try_from(total).unwrap_or(u32::MAX);
    (Item::Batch(Batch { header, whole: payload.part(position, total), origin }), total)
}

/// The message at `position`, if it is whole in its length and continues the run that `first` began.
fn following(payload: Payload<'_>, position: usize, first: &Start) -> Option<Start> {
    let mut reader = Reader::at(payload, position);
    let left = reader.left();
    let message = start(&mut reader).ok()?;
    let continues = message.total <= left
        && message.magic == first.magic
        && message.codec == Codec::None
        && message.log_append_time == first.log_append_time;
    continues.then_some(message)
}

fn delta(first: i64, last: i64) -> i32 {
    i32::try_from(last.saturating_sub(first)).unwrap_or(i32::MAX)
}

/// Whether every message's CRC in `bytes` is right (for a wrapper, its own).
pub(super) fn crc_ok(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Some((_, rest)) = bytes.split_first_chunk::<8>() else { return false };
        let Some(length) = rest.first_chunk::<4>().map(|length| u32::from_be_bytes(*length)) else { return false };
        let total = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(LOG_OVERHEAD);
        let Some((message, rest)) = bytes.split_at_checked(total) else { return false };
        let written = message.get(LOG_OVERHEAD..CRC_FROM).and_then(|crc| crc.first_chunk());
        let (Some(written), Some(covered)) = (written, message.get(CRC_FROM..)) else { return false };
        let mut crc = flate2::Crc::new();
        crc.update(covered);
        if crc.sum() != u32::from_be_bytes(*written) {
            return false;
        }
        bytes = rest;
    }
    true
}

/// Opens message sets.
pub(super) enum MessageSet {}

impl MessageSet {
    pub(super) fn open<'a: 'r, 'r>(batch: &Batch<'a>, scratch: &'r mut Scratch, limits: Limits) -> Result<Records<'r>, RecordsError> {
        let mut header = batch.header.clone();
        if header.codec == Codec::None {
            let offsets = match batch.origin {
                Origin::Produce => Offsets::Counted,
                Origin::Fetch => Offsets::Written { first: header.base_offset },
            };
            return Ok(Records::of_messages(header, MessageWalk::new(batch.whole, offsets, None)));
        }
        let mut reader = Reader::new(batch.whole);
        let wrapper = start(&mut reader)?;
        reader.field("key");
        let key_bytes = reader.length(LengthKind::Int32)?.unwrap_or(0);
        reader.skip(key_bytes)?;
        reader.field("value");
        let value_bytes = reader.length(LengthKind::Int32)?.ok_or_else(|| reader.invalid("a wrapper without messages"))?;
        let body = reader.part(value_bytes)?;
        let inner = Payload::whole(decompress(body, header.codec, scratch, limits)?);
        let fixed_timestamp_ms = if wrapper.log_append_time { Some(wrapper.timestamp_ms.unwrap_or(-1)) } else { None };

        let mut seen: Option<(Start, i64, i32)> = None;
        let mut position = 0;
        while position < inner.declared_bytes {
            let mut reader = Reader::at(inner, position);
            let left = reader.left();
            let Ok(message) = start(&mut reader) else { break };
            if message.total > left {
                break;
            }
            seen = Some(match seen {
                None => (message, message.offset, 1),
                Some((first, _, count)) => (first, message.offset, count.saturating_add(1)),
            });
            position += message.total;
        }
        let Some((first, last_offset, count)) = seen else { return Err(reader.invalid("a wrapper without messages").into()) };
        header.record_count = count;
        header.base_timestamp_ms = fixed_timestamp_ms.or(first.timestamp_ms);
        let offsets = match batch.origin {
            Origin::Produce => {
                header.base_offset = 0;
                header.last_offset_delta = count - 1;
                Offsets::Counted
            }
            Origin::Fetch => {
                header.last_offset_delta = delta(first.offset, last_offset);
                // Format 1: the wrapper has the last message's offset, those inside are relative (KIP-31). Format 0: absolute.
                header.base_offset =
                    if header.magic == 1 { wrapper.offset.wrapping_sub(last_offset).wrapping_add(first.offset) } else { first.offset };
                Offsets::Written { first: first.offset }
            }
        };
        // What a cut leaves behind the last whole message is no message.
        Ok(Records::of_messages(header, MessageWalk::new(inner.part(0, position), offsets, fixed_timestamp_ms)))
    }
}
