//! Kafka's protocol: a pure decoder that borrows, is bounded, and never trusts a count.
//!
//! In: the bytes of one frame as far as they were captured ([`wire::Payload`]); for an answer the version of its request.
//! Out: headers and bodies ([`api`]), stored batches and their records ([`records`]), and what records carry ([`context`]).

#![forbid(unsafe_code)]

pub mod api;
pub mod compression;
pub mod context;
pub mod errors;
pub mod records;
pub mod versions;
pub mod wire;
