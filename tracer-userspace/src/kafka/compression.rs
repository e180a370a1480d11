//! Decompression of what batches hold: one function, four codecs in all the framings that Kafka's clients write, and a cap on
//! the output that no input gets around.
//!
//! In: the compressed bytes of one batch or wrapper. Out: the plain bytes, in a buffer that is used again.

#![forbid(unsafe_code)]

use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::DCtx;

use crate::observe::Codec;

/// Why a batch could not be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompressionError {
    /// The plain bytes are more than the cap allows.
    #[error("{codec} data of {compressed_bytes} bytes grows beyond {max_bytes} bytes")]
    TooLarge {
        /// The codec.
        codec: &'static str,
        /// How many bytes there were.
        compressed_bytes: usize,
        /// The cap.
        max_bytes: usize,
    },
    /// They are not what the codec writes.
    #[error("{codec} data is damaged at byte {at}: {why}")]
    Malformed {
        /// The codec.
        codec: &'static str,
        /// How far it was good.
        at: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The codec's number is none that Kafka knows.
    #[error("codec {0} is not known")]
    UnknownCodec(u8),
}

impl CompressionError {
    /// The reason as counters name it.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "decompression_limit",
            Self::Malformed { .. } => "decompression_failed",
            Self::UnknownCodec(_) => "unknown_codec",
        }
    }
}

/// The buffer and the decoders' states, kept from batch to batch so that none of it is allocated again.
#[derive(Default)]
pub struct Decompressor {
    plain: Plain,
    snappy: snap::raw::Decoder,
    inflate: Option<Decompress>,
    zstd: Option<DCtx<'static>>,
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor").field("buffer_bytes", &self.plain.bytes.len()).finish_non_exhaustive()
    }
}

/// Above this, the buffer's memory is given back before the next batch.
const KEPT_BYTES: usize = 4 << 20;
/// gzip members or zstd frames that one batch may consist of. Writers make one; setting up a decoder for each of a few bytes
/// would cost far more than those bytes are worth.
const MAX_STREAMS: u32 = 64;

impl Decompressor {
    /// The plain bytes of `compressed`, at most `max_bytes` of them. Memory grows with the output, never with a length that
    /// is only claimed.
    ///
    /// # Errors
    /// When the output would be larger than `max_bytes` or the input is not what `codec` writes.
    pub fn decompress<'r>(&'r mut self, codec: Codec, compressed: &'r [u8], max_bytes: usize) -> Result<&'r [u8], CompressionError> {
        self.plain.start(max_bytes);
        let stored = match codec {
            Codec::None => Some(compressed),
            Codec::Lz4 => lz4_stored(compressed),
            Codec::Gzip | Codec::Snappy | Codec::Zstd | Codec::Unknown(_) => None,
        };
        if let Some(stored) = stored.filter(|stored| stored.len() <= max_bytes) {
            return Ok(stored);
        }
        let done = match codec {
            Codec::None => Err(Fault::TooLarge),
            Codec::Gzip => self.gzip(compressed),
            Codec::Snappy => self.snappy(compressed),
            Codec::Lz4 => lz4(compressed, &mut self.plain),
            Codec::Zstd => self.zstd(compressed),
            Codec::Unknown(number) => return Err(CompressionError::UnknownCodec(number)),
        };
        match done {
            Ok(()) if self.plain.used <= max_bytes => Ok(self.plain.filled()),
            Ok(()) | Err(Fault::TooLarge) => {
                Err(CompressionError::TooLarge { codec: codec.name(), compressed_bytes: compressed.len(), max_bytes })
            }
            Err(Fault::Malformed(at, why)) => Err(CompressionError::Malformed { codec: codec.name(), at, why }),
        }
    }

    /// Bytes that the buffer holds on to.
    pub fn buffer_bytes(&self) -> usize {
        self.plain.bytes.capacity()
    }

    fn gzip(&mut self, compressed: &[u8]) -> Result<(), Fault> {
        let mut input = compressed;
        // Members may follow each other, as `gzip` itself has it.
        for _ in 0..MAX_STREAMS {
            if input.is_empty() {
                return Ok(());
            }
            input = match skip_gzip_header(input) {
                Some(rest) => rest,
                None if input.len() == compressed.len() => return Err(Fault::Malformed(0, "no gzip header")),
                None => return Ok(()), // what Java's reader passes over behind a member
            };
            let inflate = self.inflate.get_or_insert_with(|| Decompress::new(false));
            inflate.reset(false);
            loop {
                let at = compressed.len() - input.len();
                // Deflate grows its input 1,032 times at the most.
                let room = self.plain.room(input.len().saturating_mul(4).clamp(1 << 12, 1 << 20))?;
                let (taken_before, given_before) = (inflate.total_in(), inflate.total_out());
                let status = inflate.decompress(input, room, FlushDecompress::None);
                let taken = usize::try_from(inflate.total_in() - taken_before).unwrap_or(usize::MAX);
                let given = usize::try_from(inflate.total_out() - given_before).unwrap_or(0);
                input = input.get(taken..).unwrap_or_default();
                self.plain.advance(given);
                match status {
                    Ok(Status::StreamEnd) => break,
                    Ok(Status::Ok | Status::BufError) if taken > 0 || given > 0 => {}
                    Ok(Status::Ok | Status::BufError) => return Err(Fault::Malformed(at, "it ends too early")),
                    Err(_) => return Err(Fault::Malformed(at, "no deflate stream")),
                }
            }
            // CRC and length; the batch has a CRC of its own.
            input = input.get(8..).ok_or(Fault::Malformed(compressed.len(), "it ends before its checksum"))?;
        }
        none_left(input, compressed)
    }

    fn snappy(&mut self, compressed: &[u8]) -> Result<(), Fault> {
        // Java's clients write blocks in the framing of the xerial library, most others one block as it is.
        const XERIAL: &[u8] = b"\x82SNAPPY\x00";
        let Some(framed) = compressed.strip_prefix(XERIAL) else { return self.snappy_block(compressed, 0) };
        let mut input = framed.get(8..).ok_or(Fault::Malformed(compressed.len(), "its framing has no version"))?;
        while let Some((size, rest)) = input.split_first_chunk::<4>() {
            let at = compressed.len() - input.len();
            // Writers that append to one stream repeat the header, which xerial's reader passes over.
            if size == b"\x82SNA"
                && let Some(rest) = input.strip_prefix(XERIAL)
            {
                input = rest.get(8..).ok_or(Fault::Malformed(at, "its framing has no version"))?;
                continue;
            }
            let size = usize::try_from(u32::from_be_bytes(*size)).unwrap_or(usize::MAX);
            let (block, rest) = rest.split_at_checked(size).ok_or(Fault::Malformed(at, "a block reaches over the end"))?;
            self.snappy_block(block, at)?;
            input = rest;
        }
        if input.is_empty() { Ok(()) } else { Err(Fault::Malformed(compressed.len(), "bytes are left over")) }
    }

    fn snappy_block(&mut self, block: &[u8], at: usize) -> Result<(), Fault> {
        let length = snap::raw::decompress_len(block).map_err(|_| Fault::Malformed(at, "no length of a block"))?;
        if length > self.plain.left() {
            return Err(Fault::TooLarge);
        }
        // A copy of up to 64 bytes takes three; whatever claims more than that has no data behind it.
        if length > block.len().saturating_mul(64) {
            return Err(Fault::Malformed(at, "a block claims more than it can hold"));
        }
        let room = self.plain.room_for(length)?;
        let given = self.snappy.decompress(block, room).map_err(|_| Fault::Malformed(at, "no snappy block"))?;
        self.plain.advance(given);
        Ok(())
    }

    fn zstd(&mut self, compressed: &[u8]) -> Result<(), Fault> {
        let mut input = compressed;
        for _ in 0..MAX_STREAMS {
            if input.is_empty() {
                return Ok(());
            }
            let at = compressed.len() - input.len();
            if let Some(rest) = skip_zstd_skippable(input) {
                input = rest;
                continue;
            }
            let (frame, rest, most_bytes) = zstd_frame(input).ok_or(Fault::Malformed(at, "no zstd frame"))?;
            let decoder = self.zstd.get_or_insert_with(DCtx::create);
            zstd_content(decoder, frame, most_bytes, &mut self.plain)
                .map_err(|fault| if let Fault::Malformed(_, why) = fault { Fault::Malformed(at, why) } else { fault })?;
            input = rest;
        }
        none_left(input, compressed)
    }
}

/// After the last stream that is allowed.
fn none_left(input: &[u8], compressed: &[u8]) -> Result<(), Fault> {
    match input.len() {
        0 => Ok(()),
        left => Err(Fault::Malformed(compressed.len() - left, "more streams than a writer makes")),
    }
}

/// What stopped a codec: at which byte and why, or the cap.
enum Fault {
    TooLarge,
    Malformed(usize, &'static str),
}

/// The output: a buffer whose used part is counted apart, so that using it again does not fill it with zeros again.
#[derive(Default)]
struct Plain {
    bytes: Vec<u8>,
    used: usize,
    max_bytes: usize,
}

impl Plain {
    fn start(&mut self, max_bytes: usize) {
        if self.bytes.len() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        self.used = 0;
        // One more than the cap: an output of exactly the cap may still have to say that it ends.
        self.max_bytes = max_bytes.saturating_add(1);
    }

    const fn left(&self) -> usize {
        self.max_bytes.saturating_sub(self.used)
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    /// Room for at least one and at most `wanted` bytes.
    fn room(&mut self, wanted: usize) -> Result<&mut [u8], Fault> {
        match wanted.min(self.left()) {
            0 => Err(Fault::TooLarge),
            count => self.room_for(count),
        }
    }

    /// Room for exactly `count` bytes.
    fn room_for(&mut self, count: usize) -> Result<&mut [u8], Fault> {
        if count > self.left() {
            return Err(Fault::TooLarge);
        }
        let end = self.used + count;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(self.used..end).ok_or(Fault::TooLarge)
    }

    fn advance(&mut self, count: usize) {
        self.used = self.used.saturating_add(count).min(self.bytes.len());
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.room_for(bytes.len())?.copy_from_slice(bytes);
        self.advance(bytes.len());
        Ok(())
    }
}

/// Passes over the header of a gzip member (RFC 1952).
fn skip_gzip_header(input: &[u8]) -> Option<&[u8]> {
    const HEADER_CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let (&[0x1f, 0x8b, 8, flags, ..], mut rest) = input.split_first_chunk::<10>()? else { return None };
    if flags & EXTRA != 0 {
        let (length, behind) = rest.split_first_chunk::<2>()?;
        rest = behind.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for flag in [NAME, COMMENT] {
        if flags & flag != 0 {
            let end = rest.iter().position(|&byte| byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & HEADER_CRC != 0 { rest.get(2..) } else { Some(rest) }
}

/// What begins an lz4 frame.
struct Lz4Header {
    flags: u8,
    /// The most that a block may hold.
    block_bytes: usize,
}

impl Lz4Header {
    const CONTENT_CHECKSUM: u8 = 1 << 2;
    const BLOCK_CHECKSUM: u8 = 1 << 4;
    const INDEPENDENT: u8 = 1 << 5;

    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The header, and what follows it; else why it is none.
    fn read(input: &[u8]) -> Result<(Self, &[u8]), &'static str> {
        const FRAME: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
        const CONTENT_SIZE: u8 = 1 << 3;
        const DICTIONARY_ID: u8 = 1;
        const EARLY: &str = "it ends too early";
        let (&[magic @ .., flags, blocks], rest) = input.split_first_chunk::<6>().ok_or(EARLY)?;
        if magic != FRAME || flags >> 6 != 1 {
            return Err("no lz4 frame");
        }
        let block_bytes = match blocks >> 4 & 7 {
            4 => 64 << 10,
            5 => 256 << 10,
            6 => 1 << 20,
            7 => 4 << 20,
            _ => return Err("no lz4 block size"),
        };
        let optional = if flags & CONTENT_SIZE == 0 { 0 } else { 8 } + if flags & DICTIONARY_ID == 0 { 0 } else { 4 };
        Ok((Self { flags, block_bytes }, rest.get(optional + 1..).ok_or(EARLY)?))
    }
}

/// The content of an lz4 frame that is one block which did not compress: it lies there as it is. Batches of encrypted or
/// already compressed values are such frames.
fn lz4_stored(compressed: &[u8]) -> Option<&[u8]> {
    let (header, rest) = Lz4Header::read(compressed).ok()?;
    let (size, rest) = rest.split_first_chunk::<4>()?;
    let size = u32::from_le_bytes(*size);
    let (block, rest) = rest.split_at_checked(usize::try_from(size & 0x7fff_ffff).ok()?)?;
    let checksums = if header.has(Lz4Header::BLOCK_CHECKSUM) { 4 } else { 0 } + if header.has(Lz4Header::CONTENT_CHECKSUM) { 4 } else { 0 };
    let is_alone = size & 0x8000_0000 != 0 && block.len() <= header.block_bytes && rest.len() == 4 + checksums;
    let end_mark = rest.get(if header.has(Lz4Header::BLOCK_CHECKSUM) { 4..8 } else { 0..4 })?;
    (is_alone && end_mark == [0; 4]).then_some(block)
}

/// lz4 frames, one after another. The header's checksum is not looked at: Java's clients up to 0.9 compute it over the wrong
/// bytes (KAFKA-3160), and a batch has a CRC of its own. Blocks may refer to the ones before.
fn lz4(compressed: &[u8], plain: &mut Plain) -> Result<(), Fault> {
    let mut input = compressed;
    while !input.is_empty() {
        let at = compressed.len() - input.len();
        let (header, rest) = Lz4Header::read(input).map_err(|why| Fault::Malformed(at, why))?;
        input = rest;
        let frame_start = plain.used;
        loop {
            let at = compressed.len() - input.len();
            let early = || Fault::Malformed(at, "it ends too early");
            let (size, rest) = input.split_first_chunk::<4>().ok_or_else(early)?;
            let size = u32::from_le_bytes(*size);
            if size == 0 {
                input = rest.get(if header.has(Lz4Header::CONTENT_CHECKSUM) { 4 } else { 0 }..).ok_or_else(early)?;
                break;
            }
            let stored = usize::try_from(size & 0x7fff_ffff).map_err(|_| early())?;
            let (block, rest) = rest.split_at_checked(stored).ok_or_else(early)?;
            input = rest.get(if header.has(Lz4Header::BLOCK_CHECKSUM) { 4 } else { 0 }..).ok_or_else(early)?;
            if size & 0x8000_0000 != 0 {
                if stored > header.block_bytes {
                    return Err(Fault::Malformed(at, "a block is larger than its frame allows"));
                }
                plain.push(block)?;
            } else {
                let history = if header.has(Lz4Header::INDEPENDENT) { 0 } else { plain.used - frame_start };
                lz4_block(block, header.block_bytes, history, plain, at)?;
            }
        }
    }
    Ok(())
}

fn lz4_block(block: &[u8], block_bytes: usize, history: usize, plain: &mut Plain, at: usize) -> Result<(), Fault> {
    const HISTORY_BYTES: usize = 64 << 10;
    // A byte of input makes at most 255 of output.
    let wanted = block_bytes.min(block.len().saturating_mul(255));
    let is_capped = wanted > plain.left();
    plain.room(wanted)?;
    let end = plain.used + wanted.min(plain.left());
    let (before, room) = plain.bytes.split_at_mut_checked(plain.used).ok_or(Fault::TooLarge)?;
    let room = room.get_mut(..end - plain.used).ok_or(Fault::TooLarge)?;
    let given = if history == 0 {
        lz4_flex::block::decompress_into(block, room)
    } else {
        let history = history.min(HISTORY_BYTES).min(before.len());
        let dictionary = before.get(before.len() - history..).unwrap_or_default();
        lz4_flex::block::decompress_into_with_dict(block, room, dictionary)
    };
    match given {
        Ok(given) => {
            plain.advance(given);
            Ok(())
        }
        Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if is_capped => Err(Fault::TooLarge),
        Err(_) => Err(Fault::Malformed(at, "no lz4 block")),
    }
}

/// What follows a frame that zstd's readers pass over; `None` when `input` does not begin with one.
fn skip_zstd_skippable(input: &[u8]) -> Option<&[u8]> {
    let (magic, rest) = input.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*magic) & 0xffff_fff0 != 0x184D_2A50 {
        return None;
    }
    let (size, rest) = rest.split_first_chunk::<4>()?;
    rest.get(usize::try_from(u32::from_le_bytes(*size)).ok()?..)
}

/// The zstd frame that `input` begins with (RFC 8878, 3.1.1), what follows it, and the most that it can hold: the sum of what
/// its blocks can, not what its header claims.
fn zstd_frame(input: &[u8]) -> Option<(&[u8], &[u8], usize)> {
    const FRAME: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
    const BLOCK_BYTES: usize = 128 << 10;
    let (&[magic @ .., descriptor], rest) = input.split_first_chunk::<5>()?;
    if magic != FRAME {
        return None;
    }
    let single_segment = descriptor & 0x20 != 0;
    let window_bytes = usize::from(!single_segment);
    let dictionary_bytes = [0, 1, 2, 4].get(usize::from(descriptor & 3))?;
    let size_bytes = match descriptor >> 6 {
        0 => usize::from(single_segment),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let mut rest = rest.get(window_bytes + dictionary_bytes + size_bytes..)?;
    let mut most_bytes = 0_usize;
    loop {
        let (&[low, middle, high], blocks) = rest.split_first_chunk::<3>()?;
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let size = usize::try_from(header >> 3).ok()?;
        let (stored, holds) = match header >> 1 & 3 {
            0 => (size, size), // as it is
            1 => (1, size),    // one byte, so many times
            2 => (size, BLOCK_BYTES),
            _ => return None,
        };
        most_bytes = most_bytes.saturating_add(holds.min(BLOCK_BYTES));
        rest = blocks.get(stored..)?;
        if header & 1 != 0 {
            break;
        }
    }
    let checksum_bytes = if descriptor & 4 == 0 { 0 } else { 4 };
    let rest = rest.get(checksum_bytes..)?;
    Some((input.get(..input.len() - rest.len())?, rest, most_bytes))
}

/// Decompresses one frame in one go: its window is the output itself, and nothing is reserved for it.
fn zstd_content(decoder: &mut DCtx<'_>, frame: &[u8], most_bytes: usize, plain: &mut Plain) -> Result<(), Fault> {
    /// `ZSTD_error_dstSize_tooSmall` (`zstd_errors.h`; the numbers are stable since 1.3.1), as zstd's functions return it.
    const TOO_SMALL: usize = 70_usize.wrapping_neg();
    // Records seldom shrink to less than a sixteenth. Where they did, it is done again with four times the room: a third more
    // work at the most.
    let mut wanted = frame.len().saturating_mul(16).max(64 << 10);
    loop {
        let room = plain.room(wanted.min(most_bytes).max(1))?;
        let is_capped = room.len() < most_bytes;
        match decoder.decompress(room, frame) {
            Ok(given) => {
                plain.advance(given);
                return Ok(());
            }
            Err(TOO_SMALL) if is_capped && wanted <= plain.left() => wanted = wanted.saturating_mul(4),
            Err(TOO_SMALL) if is_capped => return Err(Fault::TooLarge),
            Err(_) => return Err(Fault::Malformed(0, "no zstd block")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_countless_streams_is_refused() {
        let member = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00";
        let frame = b"\x28\xb5\x2f\xfd\x00\x68\x01\x00\x00";
        let mut decompressor = Decompressor::default();
        for (codec, stream) in [(Codec::Gzip, &member[..]), (Codec::Zstd, &frame[..])] {
            assert_eq!(decompressor.decompress(codec, &stream.repeat(64), 9), Ok(&[][..]), "{codec:?}");
            let error = decompressor.decompress(codec, &stream.repeat(65), 9).unwrap_err();
            let at = stream.len() * 64;
            assert_eq!(error, CompressionError::Malformed { codec: codec.name(), at, why: "more streams than a writer makes" });
        }
    }

    #[test]
    fn what_did_not_compress_is_not_copied() {
        let noise: Vec<u8> = (0..=255).collect();
        let mut frame = vec![0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82];
        frame.extend((256_u32 | 1 << 31).to_le_bytes());
        frame.extend(&noise);
        frame.extend([0; 4]);
        let mut decompressor = Decompressor::default();
        let plain = decompressor.decompress(Codec::Lz4, &frame, 256).unwrap();
        assert_eq!((plain, plain.as_ptr()), (&noise[..], frame[11..].as_ptr()));
        assert_eq!(decompressor.buffer_bytes(), 0);
        let error = decompressor.decompress(Codec::Lz4, &frame, 255).unwrap_err();
        assert_eq!(error, CompressionError::TooLarge { codec: "lz4", compressed_bytes: frame.len(), max_bytes: 255 });
        for end in 0..frame.len() {
            let cut = decompressor.decompress(Codec::Lz4, &frame[..end], 256);
            assert!(end == 0 || matches!(cut, Err(CompressionError::Malformed { .. })), "{end}: {cut:?}");
        }
    }
}
