//! Out of the tracer: finished spans and collected metrics leave by OTLP, as text for people, or as lines of OTLP/JSON.
//!
//! In: [`crate::telemetry::FinishedSpan`] and the reading end of the meters. Out: requests to a Collector, or lines.
//! The only step with a runtime and sockets of its own.

#![forbid(unsafe_code)]

pub mod otlp;
pub mod otlp_json;
pub mod records;
pub mod settings;
pub mod text;

pub use otlp::Otlp;
pub use otlp_json::OtlpJson;
pub use settings::{Settings, SettingsError};
pub use text::Text;
