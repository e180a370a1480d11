//! Kafka's protocol: a pure decoder that borrows, is bounded, and never trusts a count.

#![forbid(unsafe_code)]

pub mod context;
