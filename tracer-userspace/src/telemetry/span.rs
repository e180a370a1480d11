//! What comes out: finished spans, with whose they are and what a person wants to read in one line.

#![forbid(unsafe_code)]

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::{KeyValue, StringValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;

use super::semconv;
use crate::observe::{Connection, Process, ResourceValue, Side, Topic};
use crate::time::Timestamp;

/// Whose telemetry it is. Spans and metrics of one key go out under one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceKey {
    /// The process that owns the observed client socket.
    Process(Arc<Process>),
    /// A client seen only from afar: nothing is known but where it is.
    Remote(IpAddr),
}

/// A process by its pid alone: its attributes are many, and comparing one with itself is quick.
impl Hash for ResourceKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Process(process) => process.pid.hash(state),
            Self::Remote(address) => address.hash(state),
        }
    }
}

impl ResourceKey {
    /// Whose telemetry a connection's is: always the client's, who sends, fetches and commits. On a broker's socket,
    /// and in a capture file, the client's process is unknown.
    pub fn of(connection: &Connection) -> Self {
        match (&connection.process, connection.side) {
            (Some(process), Side::Client) => Self::Process(Arc::clone(process)),
            _ => Self::Remote(connection.client.ip().to_canonical()),
        }
    }

    /// As the SDK's resource.
    pub fn to_resource(&self) -> Resource {
        let attributes: Vec<KeyValue> = match self {
            Self::Process(process) => process
                .resource
                .iter()
                .map(|(key, value)| {
                    let value = match value {
                        ResourceValue::Text(text) => Value::String(StringValue::from(Arc::clone(text))),
                        ResourceValue::Integer(number) => Value::I64(*number),
                    };
                    KeyValue::new(Arc::clone(key), value)
                })
                .collect(),
            Self::Remote(address) => vec![
                KeyValue::new(semconv::SERVICE_NAME, "unknown_service"),
                KeyValue::new(semconv::SERVICE_INSTANCE_ID, address.to_string()),
            ],
        };
        Resource::builder_empty().with_schema_url(attributes, semconv::SCHEMA_URL).build()
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationName {
    /// Produce.
    Send,
    /// Fetch, `ShareFetch`.
    Fetch,
    /// `OffsetCommit`, `TxnOffsetCommit`, a share group's acknowledgement.
    Commit,
}

impl OperationName {
    /// `messaging.operation.name`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Fetch => "fetch",
            Self::Commit => "commit",
        }
    }

    /// `messaging.operation.type`.
    pub const fn operation_type(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Fetch => "receive",
            Self::Commit => "settle",
        }
    }
}

/// Which clock the beginning of an end-to-end time was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SentClock {
    /// This host's: the send was seen here too.
    Host,
    /// The producer's: the timestamp it gave the record.
    Create,
    /// The broker's: the time of its append.
    Append,
}

impl SentClock {
    /// `kafka_tracer.clock`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Create => "create",
            Self::Append => "append",
        }
    }
}

/// From being sent to being fetched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EndToEnd {
    /// Seconds; below zero when two clocks disagree.
    pub seconds: f64,
    /// Where the beginning was read from.
    pub clock: SentClock,
}

/// How a `fetch` span is joined with the send of what it fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Joined {
    /// Not at all.
    #[default]
    No,
    /// By the context that the record carries.
    Context,
    /// By the computed ids; the send was not seen here.
    Coordinates,
    /// With a send that was seen here.
    Seen,
}

/// What a person wants to know of a span, as values.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What was done.
    pub operation: OperationName,
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: i32,
    /// The span is one record's.
    pub single_record: bool,
    /// How many messages it accounts for; 0 for a commit or a failed fetch.
    pub messages: u32,
    /// First and last offset of what it is about; of a commit, the committed (next) offset twice.
    pub offsets: Option<(i64, i64)>,
    /// The consumer group, where known.
    pub group: Option<Arc<str>>,
    /// The client id.
    pub client_id: Option<Arc<str>>,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// From being sent to being fetched, on `fetch`.
    pub end_to_end: Option<EndToEnd>,
    /// Kafka's name of the error, `connection_closed` or `no_response`.
    pub error: Option<&'static str>,
    /// The attempt was a retry, on `send`.
    pub retry: bool,
    /// The group was given it before, on `fetch`.
    pub redelivered: bool,
    /// How a `fetch` is joined with the send of what it fetched.
    pub joined: Joined,
}

impl Summary {
    /// From the span's first to its last moment.
    pub fn duration(&self) -> Duration {
        self.end.since(self.start)
    }
}

/// A span that is done.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// As exporters take it.
    pub data: SpanData,
    /// Whose it is.
    pub resource: ResourceKey,
    /// What a person wants to know of it. Ids, kind and links are in `data`.
    pub summary: Summary,
}
