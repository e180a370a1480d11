//! What the daemon may do: which capabilities it uses and gives up.

#![forbid(unsafe_code)]

mod capabilities;

pub use capabilities::{CAPABILITIES, Capability, Kept, Need, effective, has, keep_only};
