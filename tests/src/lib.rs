//! What the tests that need more than one crate share.

#![expect(clippy::indexing_slicing, reason = "test support: a panic is a failed test")]

pub mod capture;
pub mod flow;
pub mod framing;
pub mod kafka;
pub mod observe;
pub mod replay;
pub mod script;
pub mod truth;
