//! What the daemon may do, step by step: what it names at the start, gives up by thread, and shuts behind itself.

#![forbid(unsafe_code)]

use rustix::thread::CapabilitySet;
use tracing::{debug, warn};

use super::args::SeccompArg;
use crate::privileges::{self, CAPABILITIES, Need, OBSERVING, Refusal};
use crate::source::ebpf::SourceRights;

/// Names what is missing and not fatal, and gives up what the daemon never uses. Called while there is one thread.
pub(super) fn begin() {
    let effective = privileges::effective();
    for capability in &CAPABILITIES {
        if capability.need == Need::Wanted && !privileges::has(effective, capability) {
            warn!(capability = capability.name, without = capability.without, "A capability is missing; the daemon starts without it.");
        }
    }
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        warn!(%error, "The daemon could start programs with more rights than its own.");
    }
    give_up_all_but(CAPABILITIES.iter().fold(CapabilitySet::empty(), |all, capability| all | capability.bit));
}

/// Gives up everything: for the thread that starts all others but the capturing one.
pub(super) fn none() {
    give_up_all_but(CapabilitySet::empty());
}

/// Gives up what the sources needed to start only: for the capturing thread.
pub(super) fn keep(rights: &SourceRights) {
    give_up_all_but(rights.capabilities);
}

fn give_up_all_but(keep: CapabilitySet) {
    if let Err(error) = privileges::keep_only(keep) {
        warn!(%error, "The daemon keeps rights that it does not need.");
    }
}

/// Once capture runs: makes sure that nobody holds more than it should, and sets the filter of system calls.
pub(super) fn end(seccomp: SeccompArg, rights: &SourceRights) {
    let threads = privileges::threads_with_more_than(rights.capabilities | rights.attaching | OBSERVING);
    if !threads.is_empty() {
        warn!(threads = threads.join(", "), "Threads hold rights that they do not need. Please report it.");
    }
    let refusal = match seccomp {
        SeccompArg::On => Refusal::Refuse,
        SeccompArg::Log => Refusal::Log,
        SeccompArg::Off => return,
    };
    match privileges::restrict(refusal, rights.extra) {
        Ok(()) => debug!(capabilities = ?rights.capabilities, "Rights that only the start needed are given up."),
        Err(error) => warn!(%error, "The daemon runs without a filter of system calls; --seccomp off says that it may."),
    }
}
