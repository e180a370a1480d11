//! What a record listing cannot say of recorded scenarios: whose requests are nobody's consumption, which ids both ends
//! agree on, what was tried again, given again, committed, and why something failed.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod cluster;
mod coordinates;
mod groups;
mod libraries;
mod positions;
mod repeated;
mod sasl;
mod told;
