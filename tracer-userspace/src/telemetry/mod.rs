//! Observations to spans and metrics, in OpenTelemetry's words.
//!
//! In: [`crate::observe::Observation`], one at a time. Out: [`FinishedSpan`]s through a sink, and metric recordings in
//! the SDK's meters. Synchronous, without a thread, a file or a clock of its own: time comes with the observation.

#![forbid(unsafe_code)]

mod health;
pub mod semconv;
mod settings;
mod span;
mod spans;

pub use health::{HealthSnapshot, HealthValue};
pub use settings::{Coordinates, FetchKind, FetchType, IdSeed, Root, Sampler, Scope, Sides, SpanSettings, TopicFilter};
pub use span::{EndToEnd, FinishedSpan, Joined, OperationName, ResourceKey, SentClock, Summary};
pub use spans::{SpanCounters, Telemetry};
