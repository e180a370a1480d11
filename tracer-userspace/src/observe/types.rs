//! What happened, in Kafka's terms: the values that `observe` hands to `telemetry` and to the record listing.

#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::kafka::context::CarriedContext;
use crate::time::Timestamp;

/// A topic's id (KIP-516): 16 bytes, shown as URL-safe base64 without padding. All zero means "none" and is never one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId([u8; 16]);

impl TopicId {
    /// `KRaft`'s own log, `__cluster_metadata` (`Uuid.METADATA_TOPIC_ID`): controllers and brokers read it, nobody else.
    pub const CLUSTER_METADATA: Option<Self> = Some(Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));

    /// The id, unless it is all zero ("no topic").
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// Its bytes, as on the wire.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let n = u128::from_be_bytes(self.0);
        // 128 bits: 21 characters of six bits, and one of two bits with four zero bits behind.
        for i in 0..22_u32 {
            let six = if i < 21 { n >> (122 - 6 * i) } else { n << 4 } & 63;
            let c = ALPHABET.get(usize::try_from(six).unwrap_or(0)).copied().unwrap_or(b'A');
            write!(f, "{}", char::from(c))?;
        }
        Ok(())
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

/// A topic as far as it is known: at least one of the two is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Topic {
    /// Its name, once seen.
    pub name: Option<Arc<str>>,
    /// Its id, where the request named it so or Metadata told it.
    pub id: Option<TopicId>,
}

/// From which end the bytes were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// At the client's socket, or in a capture file.
    Client,
    /// At the broker's socket.
    Broker,
}

/// Which ends' sockets are observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sides {
    /// The clients': each request is seen once, by who made it.
    #[default]
    Client,
    /// The brokers'.
    Broker,
    /// Both.
    Both,
}

impl Sides {
    /// Is this end wanted?
    pub const fn wants(self, side: Side) -> bool {
        matches!((self, side), (Self::Both, _) | (Self::Client, Side::Client) | (Self::Broker, Side::Broker))
    }
}

/// The process that owns the socket, as `enrich` described it. Telemetry of the connection carries its resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Resource attributes, `service.name` among them, in the order they are to be shown.
    pub resource: Vec<(Arc<str>, ResourceValue)>,
}

/// A value of a resource attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResourceValue {
    /// Text.
    Text(Arc<str>),
    /// A whole number.
    Integer(i64),
}

/// One connection between a client and a broker.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Counts up from 1 within one run.
    pub id: u64,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The broker's address and port.
    pub broker: SocketAddr,
    /// Which end's socket this is.
    pub side: Side,
    /// Who owns the observed socket, where known.
    pub process: Option<Arc<Process>>,
}

/// One request and its answer, as far as every API has them. Shared by what the request's topic-partitions yield.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The connection.
    pub connection: Arc<Connection>,
    /// Kafka's number of the API.
    pub api_key: i16,
    /// Version of the request.
    pub api_version: i16,
    /// The request's client id; `None` when null on the wire.
    pub client_id: Option<Arc<str>>,
    /// Cluster the broker belongs to, once learnt.
    pub cluster_id: Option<Arc<str>>,
    /// Advertised host and port of the broker, once Metadata (or a coordinator's or leader's hint) told it.
    pub server: Option<(Arc<str>, u16)>,
    /// When the request's first byte was seen.
    pub request_first: Timestamp,
    /// When its last byte was seen.
    pub request_last: Timestamp,
    /// When the answer's first and last byte were seen; `None` when there was none or it was not seen.
    pub response: Option<(Timestamp, Timestamp)>,
    /// The answer's throttle time; zero when none.
    pub throttle_ms: i32,
    /// Bytes of the request and of the answer, length fields included.
    pub request_bytes: u64,
    /// Bytes of the answer.
    pub response_bytes: u64,
}

/// How one topic-partition of a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered without error.
    Success,
    /// The broker's error code (Kafka's number; `kafka::errors::name` has the name).
    Error(i16),
    /// acks=0: no answer is ever sent.
    Unacknowledged,
    /// The connection ended with the request open.
    ConnectionClosed,
    /// The deadline passed, and neither hole nor close explains the silence.
    NoResponse,
    /// No answer was seen, and a hole, a late start or an early end of what we saw explains that.
    AnswerNotSeen,
}

/// How a batch is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// snappy, raw or in xerial's framing.
    Snappy,
    /// lz4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
    /// A number that no Kafka version defines.
    Unknown(u8),
}

impl Codec {
    /// Kafka's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// What a stored batch's header says (for message sets of format 0 and 1: what stands in for it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// 2 for record batches; 0 or 1 for message sets, where one wrapper or a run of plain messages is "the batch".
    pub magic: i8,
    /// Offset of the first record as written in the bytes (in a Produce request usually 0: see `SentBatch::base_offset`).
    pub base_offset: i64,
    /// Last offset minus base offset.
    pub last_offset_delta: i32,
    /// Timestamp of the first record in milliseconds; -1 or (format 0) `None` = none.
    pub base_timestamp_ms: Option<i64>,
    /// Largest timestamp.
    pub max_timestamp_ms: Option<i64>,
    /// Number of records that the header claims (format 0 and 1: that were counted).
    pub record_count: i32,
    /// The producer's id; -1 = none.
    pub producer_id: i64,
    /// The producer's epoch; -1 = none.
    pub producer_epoch: i16,
    /// Sequence number of the first record; -1 = none.
    pub base_sequence: i32,
    /// Bytes of the batch as stored, header included.
    pub size_bytes: u32,
    /// CRC as written.
    pub crc: u32,
    /// How it is compressed.
    pub codec: Codec,
    /// Timestamps were set by the broker (`LogAppendTime`).
    pub log_append_time: bool,
    /// Part of a transaction.
    pub transactional: bool,
    /// Markers of the broker, no messages.
    pub control: bool,
    /// Attribute bit 6: the base timestamp is a delete horizon (compaction has been here).
    pub delete_horizon: bool,
}

impl BatchHeader {
    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// The offset behind the last record.
    pub fn end_offset(&self) -> i64 {
        self.last_offset().saturating_add(1)
    }
}

/// One record of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFact {
    /// Offset minus the batch's base offset.
    pub offset_delta: i64,
    /// Timestamp in milliseconds; `None` for format 0 and for -1.
    pub timestamp_ms: Option<i64>,
    /// The key, lossy UTF-8; only where keys are captured.
    pub key: Option<Arc<str>>,
    /// Bytes of the value; `None` for a tombstone.
    pub value_bytes: Option<u32>,
    /// The trace context in its headers.
    pub context: Option<CarriedContext>,
    /// Why the client drops this record, on fetched batches.
    pub skipped: Option<Skipped>,
    /// How often a share group was given it (1 = first time); `None` outside share groups.
    pub delivery_count: Option<i16>,
}

/// Why a record that was fetched is not handed to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skipped {
    /// It lies before the offset that was asked for (whole batches are sent).
    BelowFetchOffset,
    /// Its transaction was aborted, and the reader is `read_committed`.
    Aborted,
    /// A share group's member was not given it.
    NotAcquired,
}

impl Skipped {
    /// As in the record listing.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BelowFetchOffset => "below_fetch_offset",
            Self::Aborted => "aborted",
            Self::NotAcquired => "not_acquired",
        }
    }
}

/// How far a batch's records were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordsRead {
    /// All of them were walked; `records` holds every one that was asked for.
    All,
    /// Not looked for (`headers: auto` or `off` on a compressed batch).
    NotRead,
    /// Walked as far as the bytes were good; the rest is counted with its reason.
    Partly,
}

/// How many records of a fetched batch the client drops, and how many it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Handed to the application.
    pub delivered: u32,
    /// Below the fetch offset.
    pub below_fetch_offset: u32,
    /// Of aborted transactions.
    pub aborted: u32,
    /// Not acquired by this member of a share group.
    pub not_acquired: u32,
}

/// One batch of one topic-partition in a Produce request, with what became of it.
#[derive(Clone, Debug)]
pub struct SentBatch {
    /// The request.
    pub operation: Arc<Operation>,
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: i32,
    /// The batch's header.
    pub header: BatchHeader,
    /// Offset the broker gave the first record; `None` without a good answer.
    pub base_offset: Option<i64>,
    /// Time the broker stamped the batch with (`LogAppendTime`), in milliseconds.
    pub log_append_time_ms: Option<i64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Records the broker named as the reason of its refusal (index in the batch).
    pub refused_records: Vec<i32>,
    /// Id of the broker that leads the partition now, where a refusal says so (KIP-951).
    pub current_leader: Option<i32>,
    /// The records that were asked for: all in `RecordDetail::All`, else those with a context.
    pub records: Vec<RecordFact>,
    /// How far they were read.
    pub records_read: RecordsRead,
    /// Records in the batch as counted by walking it, else as the header says.
    pub record_count: u32,
    /// Bytes of the records section after decompression; `None` when it was not decompressed.
    pub uncompressed_bytes: Option<u64>,
    /// The request's acks: -1, 0 or 1.
    pub acks: i16,
    /// The request's transactional id.
    pub transactional_id: Option<Arc<str>>,
    /// The same batch was sent before (same sequence, or same bytes after a failure).
    pub retry: bool,
}

impl SentBatch {
    /// The offset behind its last record, once the broker has stored it.
    pub fn end_offset(&self) -> Option<i64> {
        let base_offset = self.base_offset.filter(|_| self.outcome == Outcome::Success)?;
        Some(base_offset.saturating_add(i64::from(self.header.last_offset_delta)).saturating_add(1))
    }
}

/// One stored batch of one topic-partition in a Fetch or `ShareFetch` answer.
#[derive(Clone, Debug)]
pub struct FetchedBatch {
    /// The request.
    pub operation: Arc<Operation>,
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: i32,
    /// The batch's header, with its true base offset.
    pub header: BatchHeader,
    /// The consumer group, when certain.
    pub group: Option<Arc<str>>,
    /// The client is in several groups: whose the fetch is cannot be told, now or later.
    pub several_groups: bool,
    /// Offset that the client asked for on this partition; `None` when that was not seen.
    pub fetch_offset: Option<i64>,
    /// The partition's high watermark in this answer.
    pub high_watermark: Option<i64>,
    /// The partition's last stable offset in this answer.
    pub last_stable_offset: Option<i64>,
    /// The partition's log start offset in this answer.
    pub log_start_offset: Option<i64>,
    /// 0 = `read_uncommitted`, 1 = `read_committed`; `None` when the request was not seen.
    pub isolation_level: Option<i8>,
    /// The records that were asked for: all in `RecordDetail::All`, else those with a context.
    pub records: Vec<RecordFact>,
    /// How far they were read.
    pub records_read: RecordsRead,
    /// What became of the batch's records.
    pub delivered: Delivered,
    /// Bytes of the records section after decompression; `None` when it was not decompressed.
    pub uncompressed_bytes: Option<u64>,
    /// A share group's fetch.
    pub share: bool,
    /// This group was given these offsets before.
    pub redelivered: bool,
}

/// One topic-partition of a Fetch answer that failed, or of a commit.
#[derive(Clone, Debug)]
pub struct FetchFailure {
    /// The request.
    pub operation: Arc<Operation>,
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: i32,
    /// The consumer group, when certain.
    pub group: Option<Arc<str>>,
    /// What the broker said.
    pub outcome: Outcome,
    /// Id of the broker that leads the partition now, where the broker says so (KIP-951).
    pub current_leader: Option<i32>,
}

/// How far a consumer has come, by one answer of Fetch, whether there were records in it or not.
#[derive(Clone, Debug)]
pub struct Poll {
    /// The request.
    pub operation: Arc<Operation>,
    /// The consumer group, when certain.
    pub group: Option<Arc<str>>,
    /// The client is in several groups: whose the fetch is cannot be told, now or later.
    pub several_groups: bool,
    /// 0 = `read_uncommitted`, 1 = `read_committed`; `None` when the request was not seen.
    pub isolation_level: Option<i8>,
    /// Partitions that were answered without error; now and then also those of the fetch session that the answer leaves out, since
    /// nothing changed with them.
    pub partitions: Vec<PolledPartition>,
    /// Partitions that the consumer reads on this connection no longer.
    pub left: Vec<(Topic, i32)>,
}

/// A partition in [`Poll`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolledPartition {
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: i32,
    /// The offset that the consumer will ask for next; `None` when what it asked for was not seen.
    pub position: Option<i64>,
    /// What the broker said of the partition.
    pub told: Told,
}

/// Where a partition begins and ends, as a broker tells its readers; `None` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The high watermark.
    pub high_watermark: Option<i64>,
    /// The last stable offset: before it no transaction is open.
    pub last_stable_offset: Option<i64>,
    /// The oldest offset.
    pub log_start_offset: Option<i64>,
}

/// Something that a member of a group did.
#[derive(Clone, Debug)]
pub struct GroupEvent {
    /// The request.
    pub operation: Arc<Operation>,
    /// The group.
    pub group: Arc<str>,
    /// The member's id; `None` until the coordinator gave it one.
    pub member: Option<Arc<str>>,
    /// What it did.
    pub kind: GroupEventKind,
}

/// What a member of a group did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupEventKind {
    /// `JoinGroup` was answered: with the generation that begins, or with an error after which it is tried again.
    Joining {
        /// The generation.
        generation: Option<i32>,
    },
    /// It is a member of a group of KIP-848 or later, which has no second step.
    Joined {
        /// Its epoch.
        generation: i32,
    },
    /// `SyncGroup` was answered well: it has its partitions.
    Synced {
        /// The generation.
        generation: i32,
    },
    /// A heartbeat was answered well.
    Alive {
        /// The generation; for the groups of KIP-848 and later the member's epoch.
        generation: i32,
    },
    /// It left.
    Left,
}

/// A transaction was to be ended.
#[derive(Clone, Debug)]
pub struct TransactionEnd {
    /// The request.
    pub operation: Arc<Operation>,
    /// The transactional id.
    pub transactional_id: Arc<str>,
    /// To be committed, else aborted.
    pub committed: bool,
    /// How the request ended.
    pub outcome: Outcome,
}

/// One topic-partition of `OffsetCommit`, `TxnOffsetCommit` or of a share group's acknowledgement.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The request.
    pub operation: Arc<Operation>,
    /// The group.
    pub group: Arc<str>,
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: i32,
    /// The next offset to read; for a share group the last acknowledged offset + 1.
    pub offset: i64,
    /// False when the group had committed this offset already.
    pub moves: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// The acknowledged range and its type (`accept`, `release`, `reject`, `renew`, `gap`), for share groups.
    pub acknowledged: Option<(i64, i64, &'static str)>,
}

/// Any request and its answer.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The request.
    pub operation: Arc<Operation>,
    /// How it ended, at the level of the whole request (partition errors are with the partitions).
    pub outcome: Outcome,
    /// Replication or another request between brokers: nobody's consumption.
    pub inter_broker: bool,
}

/// Something that happened to a connection.
#[derive(Clone, Debug)]
pub struct ConnectionEvent {
    /// The connection.
    pub connection: Arc<Connection>,
    /// As its last request said.
    pub client_id: Option<Arc<str>>,
    /// When the first of it was seen: what it said before is not known.
    pub seen_from: Timestamp,
    /// It said nothing before: its SYN was seen.
    pub from_its_start: bool,
    /// When.
    pub time: Timestamp,
    /// What.
    pub kind: ConnectionEventKind,
}

/// What happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEventKind {
    /// First pair of request and answer: it speaks Kafka.
    Confirmed,
    /// It ended, and none of its requests was seen to be answered: nothing of it is told.
    NeverConfirmed,
    /// It ended.
    Closed {
        /// By RST.
        reset: bool,
    },
    /// SASL succeeded.
    Authenticated {
        /// The mechanism.
        mechanism: Arc<str>,
    },
    /// SASL failed.
    AuthenticationFailed {
        /// The mechanism.
        mechanism: Arc<str>,
        /// Kafka's error code.
        error: i16,
    },
    /// It is encrypted, and its bytes say nothing.
    Encrypted,
    /// A hole covered a length field: frames are searched for.
    LostSync,
    /// And found again.
    RegainedSync,
}

/// Everything that `observe` says.
#[derive(Clone, Debug)]
pub enum Observation {
    /// A batch was sent.
    Sent(SentBatch),
    /// A batch was fetched.
    Fetched(FetchedBatch),
    /// A partition of a fetch failed.
    FetchFailed(FetchFailure),
    /// A Fetch was answered.
    Poll(Poll),
    /// An offset was committed.
    Commit(Commit),
    /// A member of a group joined, left, or is alive.
    Group(GroupEvent),
    /// A transaction was ended.
    Transaction(TransactionEnd),
    /// A request and its answer.
    Exchange(Exchange),
    /// Something happened to a connection.
    Connection(ConnectionEvent),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_ids_print_as_kafka_prints_them() {
        // org.apache.kafka.common.Uuid.toString() of the bytes 0..=15.
        let id = TopicId::new(std::array::from_fn(|i| u8::try_from(i).unwrap())).unwrap();
        assert_eq!(id.to_string(), "AAECAwQFBgcICQoLDA0ODw");
        assert_eq!(TopicId::new([255; 16]).unwrap().to_string(), "_____________________w");
        assert!(TopicId::new([0; 16]).is_none());
    }
}
