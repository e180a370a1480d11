//! The records of one batch, as far as somebody asks for them.
//!
//! In: a batch of a records field, and the rule by which its records reach the client. Out: its header, the records that
//! are wanted, and how many reach whom.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use hashlink::LruCache;

use super::{BatchHeader, Codec, Delivered, HeaderReading, ObserveSettings, RecordDetail, RecordFact, RecordsRead, Skipped, Topic};
use crate::counters::Counters;
use crate::kafka::api::share_fetch::AcquiredRecords;
use crate::kafka::context::Propagators;
use crate::kafka::records::{Batch, Limits, Record, Scratch};
use crate::time::Timestamp;

/// Records of one batch that are listed, unless all are wanted. Far more than any span may show.
const MAX_LISTED: usize = 65_536;
/// Topics whose compressed batches are watched for contexts.
const MAX_TOPICS: usize = 65_536;
/// Batches and time without a context after which a compressed topic is left compressed.
const QUIET_BATCHES: u32 = 1_000;
const QUIET_TIME: Duration = Duration::from_mins(10);
/// Then one batch in so many is looked into all the same.
const PROBE: u32 = 64;

/// What becomes of a fetched batch's records.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule<'a> {
    /// A Fetch: those below the offset that was asked for are dropped by the client, and `skipped` ones are for another reason.
    Fetch {
        /// The offset that was asked for.
        fetch_offset: Option<i64>,
        /// All are dropped for this reason.
        skipped: Option<Skipped>,
    },
    /// A share group: only what the member was given.
    Acquired(&'a [AcquiredRecords]),
}

impl Rule<'_> {
    /// Why the client drops the record at this offset, if it does, and how often the share group was given it.
    fn of(&self, offset: i64) -> (Option<Skipped>, Option<i16>) {
        match self {
            Self::Fetch { fetch_offset, skipped } => {
                let below = fetch_offset.is_some_and(|asked| offset < asked);
                (if below { Some(Skipped::BelowFetchOffset) } else { *skipped }, None)
            }
            Self::Acquired(ranges) => {
                // Ranges are sorted as the broker writes them; when they are not, a record in none of them is "not acquired".
                let at = ranges.partition_point(|range| range.last_offset < offset);
                match ranges.get(at).filter(|range| range.first_offset <= offset) {
                    Some(range) => (None, Some(range.delivery_count)),
                    None => (Some(Skipped::NotAcquired), None),
                }
            }
        }
    }
}

/// A batch that was read.
#[derive(Debug)]
pub(super) struct ReadBatch {
    /// Its header, right for formats 0 and 1 too.
    pub(super) header: BatchHeader,
    /// The records that were wanted.
    pub(super) records: Vec<RecordFact>,
    /// How far they were read.
    pub(super) records_read: RecordsRead,
    /// Number of records, walked or as the header says.
    pub(super) record_count: u32,
    /// Bytes of the records after decompression.
    pub(super) uncompressed_bytes: Option<u64>,
    /// Who gets them.
    pub(super) delivered: Delivered,
    /// Highest offset that the client gets.
    pub(super) last_delivered: Option<i64>,
    /// Highest delivery count of a share group.
    pub(super) delivery_count: i16,
}

impl ReadBatch {
    /// A control batch: none of its records is anybody's.
    pub(super) fn control(header: &BatchHeader) -> Self {
        Self {
            header: header.clone(),
            records: Vec::new(),
            records_read: RecordsRead::All,
            record_count: 0,
            uncompressed_bytes: None,
            delivered: Delivered::default(),
            last_delivered: None,
            delivery_count: 0,
        }
    }
}

/// A compressed topic's record of contexts.
#[derive(Clone, Copy, Debug)]
struct Watch {
    quiet_batches: u32,
    quiet_since: Timestamp,
}

/// Reads batches.
#[derive(Debug)]
pub(super) struct BatchReader {
    detail: RecordDetail,
    propagators: Propagators,
    keys: bool,
    headers: HeaderReading,
    limits: Limits,
    scratch: Scratch,
    topics: LruCache<Topic, Watch>,
}

impl BatchReader {
    /// With nothing watched yet.
    pub(super) fn new(settings: &ObserveSettings) -> Self {
        Self {
            detail: settings.detail,
            propagators: settings.propagators.clone(),
            keys: settings.keys,
            headers: settings.headers,
            limits: Limits::default(),
            scratch: Scratch::default(),
            topics: LruCache::new(MAX_TOPICS),
        }
    }

    /// Reads a batch. `rule` is for fetched ones.
    pub(super) fn read(
        &mut self,
        batch: &Batch<'_>,
        topic: &Topic,
        at: Timestamp,
        rule: Option<Rule<'_>>,
        counters: &mut Counters,
    ) -> ReadBatch {
        let compressed = batch.header().codec != Codec::None;
        if !self.is_wanted(compressed, batch.header().magic, topic, at) {
            return from_header(batch.header(), rule);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let read = self.walk(batch, &mut scratch, rule, counters);
        self.scratch = scratch;
        if compressed {
            self.watch(topic, at, read.records.iter().any(|record| record.context.is_some()));
        }
        read
    }

    /// Uncompressed batches are always walked. Formats 0 and 1 have no headers, but their counts are inside.
    fn is_wanted(&mut self, compressed: bool, magic: i8, topic: &Topic, at: Timestamp) -> bool {
        if self.detail == RecordDetail::All || magic < 2 {
            return true;
        }
        match self.headers {
            HeaderReading::All => true,
            HeaderReading::Off if self.detail == RecordDetail::Each => !compressed,
            HeaderReading::Off => false,
            HeaderReading::Auto if !compressed || self.detail == RecordDetail::Each => true,
            HeaderReading::Auto => self.topics.get_mut(topic).is_none_or(|watch| {
                let quiet = watch.quiet_batches >= QUIET_BATCHES && at.since(watch.quiet_since) >= QUIET_TIME;
                if quiet {
                    watch.quiet_batches = watch.quiet_batches.saturating_add(1);
                }
                !quiet || watch.quiet_batches.is_multiple_of(PROBE)
            }),
        }
    }

    fn watch(&mut self, topic: &Topic, at: Timestamp, context_seen: bool) {
        if self.headers != HeaderReading::Auto || self.detail != RecordDetail::Contexts {
            return;
        }
        let fresh = Watch { quiet_batches: 0, quiet_since: at };
        match self.topics.get_mut(topic) {
            Some(watch) if context_seen => *watch = fresh,
            Some(watch) => watch.quiet_batches = watch.quiet_batches.saturating_add(1),
            None => {
                self.topics.insert(topic.clone(), fresh);
            }
        }
    }

    fn walk(&self, batch: &Batch<'_>, scratch: &mut Scratch, rule: Option<Rule<'_>>, counters: &mut Counters) -> ReadBatch {
        let mut walked = match batch.records(scratch, self.limits) {
            Ok(records) => records,
            Err(error) => {
                counters.batch(error.reason());
                let mut read = from_header(batch.header(), rule);
                counters.record("not_read", u64::from(read.record_count));
                read.records_read = RecordsRead::Partly;
                return read;
            }
        };
        let header = walked.header().clone();
        let mut read = ReadBatch {
            record_count: 0,
            uncompressed_bytes: (header.codec != Codec::None).then(|| walked.uncompressed_bytes() as u64),
            records: Vec::new(),
            records_read: RecordsRead::All,
            delivered: Delivered::default(),
            last_delivered: None,
            delivery_count: 0,
            header,
        };
        let mut damage = None;
        for record in &mut walked {
            match record {
                Ok(record) => self.take(&record, rule, &mut read, counters),
                // What follows is still walked where its place is known.
                Err(error) => damage = damage.or(Some(error)),
            }
        }
        if let Some(damage) = damage {
            counters.batch(damage.kind().name());
            let claimed = u32::try_from(read.header.record_count).unwrap_or(0);
            counters.record("not_read", u64::from(claimed.saturating_sub(read.record_count)));
            read.records_read = RecordsRead::Partly;
            // The header's count is what was sent, whatever could be read of it.
            count_rest(&mut read, claimed, rule);
        }
        read
    }

    fn take(&self, record: &Record<'_>, rule: Option<Rule<'_>>, read: &mut ReadBatch, counters: &mut Counters) {
        read.record_count += 1;
        let offset = read.header.base_offset.saturating_add(record.offset_delta);
        let (skipped, delivery_count) = rule.map_or((None, None), |rule| rule.of(offset));
        count(read, skipped, 1);
        if skipped.is_none() {
            read.last_delivered = read.last_delivered.max(Some(offset));
            read.delivery_count = read.delivery_count.max(delivery_count.unwrap_or(0));
        }
        let extracted = self.propagators.extract(&record.headers);
        counters.malformed_contexts += u64::from(extracted.malformed);
        counters.repeated_contexts += u64::from(extracted.repeated);
        counters.unseen_contexts += u64::from(!record.headers.is_captured());
        counters.damaged_headers += u64::from(extracted.damaged);
        let wanted = match self.detail {
            RecordDetail::All => true,
            RecordDetail::Each => read.records.len() < MAX_LISTED,
            RecordDetail::Contexts => extracted.context.is_some() && read.records.len() < MAX_LISTED,
        };
        if wanted {
            read.records.push(RecordFact {
                offset_delta: record.offset_delta,
                timestamp_ms: record.timestamp_ms,
                key: if self.keys { record.key.map(|key| Arc::from(String::from_utf8_lossy(key))) } else { None },
                value_bytes: record.value_bytes,
                context: extracted.context,
                skipped,
                delivery_count,
            });
        }
    }
}

const fn count(read: &mut ReadBatch, skipped: Option<Skipped>, records: u32) {
    let delivered = &mut read.delivered;
    let counter = match skipped {
        None => &mut delivered.delivered,
        Some(Skipped::BelowFetchOffset) => &mut delivered.below_fetch_offset,
        Some(Skipped::Aborted) => &mut delivered.aborted,
        Some(Skipped::NotAcquired) => &mut delivered.not_acquired,
    };
    *counter = counter.saturating_add(records);
}

/// Records that could not be read are still records that were sent, and fetched unless all are dropped.
fn count_rest(read: &mut ReadBatch, claimed: u32, rule: Option<Rule<'_>>) {
    let rest = claimed.saturating_sub(read.record_count);
    read.record_count = read.record_count.max(claimed);
    let skipped = if let Some(Rule::Fetch { skipped, .. }) = rule { skipped } else { None };
    count(read, skipped, rest);
}

/// A batch whose records are not looked at: offsets are taken to be without gaps, which is so unless it was compacted.
fn from_header(header: &BatchHeader, rule: Option<Rule<'_>>) -> ReadBatch {
    let record_count = u32::try_from(header.record_count).unwrap_or(0);
    let mut read = ReadBatch {
        header: header.clone(),
        records: Vec::new(),
        records_read: RecordsRead::NotRead,
        record_count,
        uncompressed_bytes: None,
        delivered: Delivered::default(),
        last_delivered: None,
        delivery_count: 0,
    };
    let first = header.base_offset;
    let last = first.saturating_add(i64::from(header.last_offset_delta.max(0)));
    match rule {
        None => {}
        Some(Rule::Fetch { fetch_offset, skipped }) => {
            let below = fetch_offset.map_or(0, |asked| asked.saturating_sub(first).clamp(0, i64::from(record_count)));
            let below = u32::try_from(below).unwrap_or(0);
            count(&mut read, Some(Skipped::BelowFetchOffset), below);
            count(&mut read, skipped, record_count - below);
            if skipped.is_none() && below < record_count {
                read.last_delivered = Some(last);
            }
        }
        Some(Rule::Acquired(ranges)) => {
            let mut given = 0_i64;
            for range in ranges {
                let (from, to) = (range.first_offset.max(first), range.last_offset.min(last));
                if from <= to {
                    given = given.saturating_add(to - from + 1);
                    read.last_delivered = read.last_delivered.max(Some(to));
                    read.delivery_count = read.delivery_count.max(range.delivery_count);
                }
            }
            let given = u32::try_from(given).unwrap_or(u32::MAX).min(record_count);
            count(&mut read, None, given);
            count(&mut read, Some(Skipped::NotAcquired), record_count - given);
        }
    }
    read
}
