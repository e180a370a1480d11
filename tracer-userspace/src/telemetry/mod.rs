//! Observations to spans and metrics, in OpenTelemetry's words.
//!
//! In: [`crate::observe::Observation`], one at a time. Out: [`FinishedSpan`]s through a sink, and metric recordings in
//! the SDK's meters. Synchronous, without a thread, a file or a clock of its own: time comes with the observation.

#![forbid(unsafe_code)]

pub mod coordinates;
#[cfg(test)]
pub(crate) mod fixtures;
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

pub use health::{HealthReading, HealthSnapshot, HealthValue};
pub use settings::{Coordinates, FetchKind, FetchType, IdSeed, Root, Sampler, Scope, Sides, SpanSettings, TopicFilter};
pub use span::{EndToEnd, FinishedSpan, Joined, OperationName, ResourceKey, SentClock, Summary};
pub use spans::{SpanCounters, Telemetry};

use crate::kafka::errors;
use crate::observe::Outcome;

/// `error.type` of an outcome; `None` is no error. `DUPLICATE_SEQUENCE_NUMBER` is none: the broker has the batch already.
pub fn error_type(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Error(code) if code != errors::NONE && code != errors::DUPLICATE_SEQUENCE_NUMBER => Some(errors::name(code)),
        Outcome::ConnectionClosed => Some(semconv::error::CONNECTION_CLOSED),
        Outcome::NoResponse => Some(semconv::error::NO_RESPONSE),
        Outcome::Success | Outcome::Unacknowledged | Outcome::AnswerNotSeen | Outcome::Error(_) => None,
    }
}

/// Whether a partition's failure in a Fetch is one to speak of. Fetch sessions that have to be made anew are the
/// protocol's housekeeping, and a Fetch that is open when its connection ends is how consumers stop.
const fn is_fetch_failure(outcome: Outcome) -> bool {
    match outcome {
        // FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH, FETCH_SESSION_TOPIC_ID_ERROR,
        // SHARE_SESSION_NOT_FOUND, INVALID_SHARE_SESSION_EPOCH, SHARE_SESSION_LIMIT_REACHED.
        Outcome::Error(code) => !matches!(code, errors::NONE | 70 | 71 | 106 | 122 | 123 | 133),
        Outcome::NoResponse => true,
        Outcome::Success | Outcome::Unacknowledged | Outcome::ConnectionClosed | Outcome::AnswerNotSeen => false,
    }
}
