//! What loading programs has in common for all sources.

use std::io;

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::ProgramError;

use super::RunTime;
use super::error::StartError;
use crate::privileges::{CAPABILITIES, Need, effective, has};

/// Smallest and largest ring.
const RING_BYTES: std::ops::RangeInclusive<u32> = 256 << 10..=1 << 30;

/// Before Linux 5.11 maps count against the limit of locked memory. Refused without `CAP_SYS_RESOURCE`, and then mostly not needed.
pub(super) fn raise_locked_memory() {
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
}

/// Takes a map out of the object.
pub(super) fn take_map<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, StartError>
where
    T::Error: std::error::Error,
{
    let map = ebpf.take_map(name).ok_or(StartError::Object { what: name })?;
    T::try_from(map).map_err(|error| StartError::Map { map: name, reason: chain(&error) })
}

/// An error and what it comes from, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// What the kernel or the loader says of a program that it does not take.
pub(super) fn refused(program: &'static str, error: ProgramError) -> StartError {
    match error {
        ProgramError::LoadError { io_error, .. }
            if io_error.kind() == io::ErrorKind::PermissionDenied && !missing_capabilities().is_empty() =>
        {
            StartError::NoRights { what: "load eBPF programs", missing: missing_capabilities().join(", "), source: io_error }
        }
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let end: Vec<&str> = log.trim_end().lines().rev().take(12).collect();
            let end: Vec<&str> = end.into_iter().rev().collect();
            StartError::Refused { program, reason: format!("{io_error}\n{}", end.join("\n")) }
        }
        error => StartError::Refused { program, reason: chain(&error) },
    }
}

/// The size that a ring gets.
pub(super) fn ring_bytes(wanted: u32) -> u32 {
    wanted.clamp(*RING_BYTES.start(), *RING_BYTES.end()).next_power_of_two()
}

/// Which of the needed capabilities this thread does not have: a service can have dropped those of others.
pub(super) fn missing_capabilities() -> Vec<&'static str> {
    let effective = effective();
    let required = CAPABILITIES.iter().filter(|capability| capability.need == Need::Required);
    required.filter(|capability| !has(effective, capability)).map(|capability| capability.name).collect()
}

/// How long programs ran, while that is counted.
pub(super) fn run_time(ebpf: &Ebpf, names: impl Iterator<Item = &'static str>) -> Vec<RunTime> {
    names
        .filter_map(|program| {
            let info = ebpf.program(program)?.info().ok()?;
            Some(RunTime { program, time: info.run_time(), runs: info.run_count() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_a_power_of_two_within_bounds() {
        assert_eq!(
            (ring_bytes(0), ring_bytes(1 << 20), ring_bytes((1 << 20) + 1), ring_bytes(u32::MAX)),
            (256 << 10, 1 << 20, 2 << 20, 1 << 30)
        );
    }
}
