//! What takes outside bytes, each as a function of any bytes: it comes back, and what it says makes sense. A target panics where
//! it does not.
//!
//! `cargo xtask fuzz` gives them to libFuzzer; `cargo test` feeds them the seeds, every prefix of the frames among them, and
//! some thousand changes of both.

#![expect(clippy::indexing_slicing, reason = "test support: a panic is a failed test")]

pub mod seeds;
mod targets;

use seeds::Recorded;
pub use targets::{LIVE_TARGETS, TARGETS};

/// Something that takes outside bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// The longest input that is worth trying.
    pub max_bytes: usize,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    seeds: fn(&Recorded) -> Vec<Vec<u8>>,
}

impl Target {
    /// Good inputs to begin with, made of the recorded captures.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        let mut seeds = (self.seeds)(seeds::recorded());
        seeds.retain(|seed| seed.len() <= self.max_bytes);
        seeds
    }
}
