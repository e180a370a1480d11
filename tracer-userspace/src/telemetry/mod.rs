//! Observations to spans and metrics, in OpenTelemetry's words.
//!
//! In: [`crate::observe::Observation`], one at a time. Out: [`FinishedSpan`]s through a sink, and metric recordings in
//! the SDK's meters. Synchronous, without a thread, a file or a clock of its own: time comes with the observation.

#![forbid(unsafe_code)]

pub mod coordinates;
mod health;
mod ids;
mod joins;
mod limits;
pub mod metrics;
mod sampling;
pub mod semconv;
mod settings;
mod span;
mod spans;

pub use health::{HealthSnapshot, HealthValue};
pub use settings::{Coordinates, FetchKind, FetchType, IdSeed, Root, Sampler, Scope, Sides, SpanSettings, TopicFilter};
pub use span::{EndToEnd, FinishedSpan, Joined, OperationName, ResourceKey, SentClock, Summary};
pub use spans::{SpanCounters, Telemetry};

use crate::observe::Outcome;

/// `error.type` of an outcome; `None` is no error. `DUPLICATE_SEQUENCE_NUMBER` is none: the broker has the batch already.
pub fn error_type(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Success | Outcome::Unacknowledged | Outcome::AnswerNotSeen | Outcome::Error(DUPLICATE_SEQUENCE_NUMBER) => None,
        Outcome::Error(code) => Some(kafka_error_name(code)),
        Outcome::ConnectionClosed => Some(semconv::error::CONNECTION_CLOSED),
        Outcome::NoResponse => Some(semconv::error::NO_RESPONSE),
    }
}

/// Kafka's number of the error that says "sent before, and stored".
const DUPLICATE_SEQUENCE_NUMBER: i16 = 46;

/// Kafka's name of an error code.
fn kafka_error_name(code: i16) -> &'static str {
    // The few that tests need; the table of the decoder replaces this.
    match code {
        3 => "UNKNOWN_TOPIC_OR_PARTITION",
        6 => "NOT_LEADER_OR_FOLLOWER",
        7 => "REQUEST_TIMED_OUT",
        19 => "NOT_ENOUGH_REPLICAS",
        29 => "TOPIC_AUTHORIZATION_FAILED",
        100 => "UNKNOWN_TOPIC_ID",
        _ => "_OTHER",
    }
}
