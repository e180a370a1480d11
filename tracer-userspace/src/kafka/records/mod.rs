//! Stored batches and their records, as they lie in `Produce` requests and in `Fetch` answers: record batches (format 2) and
//! message sets (formats 0 and 1).
//!
//! In: a records field ([`Payload`]). Out: [`Batch`] by [`Batch`], and of each its [`Records`] when somebody asks for them. What
//! the walk needs is read, the rest is stepped over: no allocation per record, values are never touched.

#![forbid(unsafe_code)]

mod batch;
mod message_set;
#[cfg(test)]
mod tests;
mod walk;

pub use batch::{Batch, ControlKind};
pub use walk::{Header, Headers, Record, Records};

use crate::kafka::compression::{CompressionError, Decompressor};
use crate::kafka::wire::{DecodeError, Payload};

/// Which way the bytes went: offsets inside a `Produce` request are relative, and nothing in it may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a `Produce` request.
    Produce,
    /// In a `Fetch` or `ShareFetch` answer.
    Fetch,
}

/// What may be spent on one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of its records after decompression.
    pub max_uncompressed_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_uncompressed_bytes: 32 << 20 }
    }
}

/// Memory that is used from batch to batch.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) decompressor: Decompressor,
}

impl Scratch {
    /// Bytes that it holds on to between batches.
    pub fn buffer_bytes(&self) -> usize {
        self.decompressor.buffer_bytes()
    }
}

/// Why the records of a batch could not be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// They are compressed, and not all of the compressed bytes were captured.
    #[error("{missing_bytes} of {bytes} compressed bytes were not captured")]
    NotCaptured {
        /// Compressed bytes.
        bytes: usize,
        /// How many of them lie behind the first gap.
        missing_bytes: usize,
    },
    /// They could not be decompressed.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// What is there is not what Kafka writes.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl RecordsError {
    /// The reason as counters name it.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotCaptured { .. } => "not_captured",
            Self::Compression(error) => error.reason(),
            Self::Decode(error) => error.kind().name(),
        }
    }
}

/// What lies in a records field.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    /// A batch with its header; its body may be damaged.
    Batch(Batch<'a>),
    /// The last batch of a fetched partition, cut by the byte limit of the fetch (KIP-74): a reader drops it.
    PartialTail {
        /// Bytes of it that were sent.
        bytes: usize,
    },
    /// A batch whose header cannot be read.
    Damaged {
        /// Why.
        reason: DecodeError,
        /// How many bytes are lost with it.
        bytes: usize,
    },
}

/// The batches of a records field, in order. Use [`batches`].
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    payload: Payload<'a>,
    origin: Origin,
    position: usize,
}

/// Walks the batches in `records`.
pub const fn batches(records: Payload<'_>, origin: Origin) -> Batches<'_> {
    Batches { payload: records, origin, position: 0 }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        let left = self.payload.declared_bytes.saturating_sub(self.position);
        if left == 0 {
            return None;
        }
        let (item, bytes) = batch::next(self.payload, self.position, left, self.origin);
        self.position = self.position.saturating_add(bytes.clamp(1, left));
        Some(item)
    }
}
