//! Recorded captures are the judge: their listing agrees with the truth, however the capture was made.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod conformance;
mod corpus;
mod damage;
mod laws;
