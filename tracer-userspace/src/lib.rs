//! kafka-tracer: what happens to Kafka messages on a host, seen from the kernel and told in OpenTelemetry's words.
//!
//! The line from byte to span, one module a step: [`source`] -> `connection` -> `stream` -> `frame` -> [`kafka`] and
//! `correlate` -> [`observe`] -> [`telemetry`] -> `export`.

pub mod connection;
pub mod correlate;
pub mod counters;
pub mod daemon;
pub mod enrich;
pub mod export;
pub mod frame;
pub mod kafka;
pub mod observe;
pub mod pipeline;
pub mod privileges;
mod recent;
pub mod replay;
pub mod source;
pub mod stream;
pub mod telemetry;
pub mod time;
