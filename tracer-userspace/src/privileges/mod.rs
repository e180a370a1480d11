//! What the daemon may do: which capabilities it uses and gives up, and which system calls it makes once it captures.

#![forbid(unsafe_code)]

mod capabilities;
#[cfg(feature = "live")]
mod filter;

pub use capabilities::{CAPABILITIES, Capability, Kept, Need, OBSERVING, effective, has, keep_only, threads_with_more_than};
#[cfg(feature = "live")]
pub use filter::{Extra, FilterError, Refusal, restrict};
