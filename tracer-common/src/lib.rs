//! What crosses the border between the kernel programs and the daemon: events, configuration, counters, and the rules and limits
//! that both sides obey. Everything here is plain data or a pure function, so the rules are tested without a kernel.
#![no_std]
#![forbid(unsafe_code)]

pub mod call;
pub mod config;
pub mod counter;
pub mod event;
pub mod judge;
pub mod limits;
pub mod socket;
pub mod tls;
pub mod verdict;
