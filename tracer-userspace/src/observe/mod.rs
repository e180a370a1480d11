//! What happened, in Kafka's terms.

#![forbid(unsafe_code)]

mod types;

pub use types::*;
