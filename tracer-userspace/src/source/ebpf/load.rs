//! What loading programs has in common for all sources.

use std::io;

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::ProgramError;

use super::error::StartError;

/// Capabilities that live capture needs, with their bits.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// Bit of the capability that stands for them all.
const CAP_SYS_ADMIN: u32 = 21;

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

/// Major and minor number of a release; None for a name without numbers.
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Which of the needed capabilities this thread does not have.
pub(super) fn missing_capabilities() -> Vec<&'static str> {
    // Capabilities are the thread's: a service can have dropped those of others.
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective_capabilities(&status).map(missing_of).unwrap_or_default()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing_of(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    // CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, not for CAP_NET_ADMIN.
    CAPABILITIES
        .iter()
        .filter(|&&(name, bit)| !has(bit) && (name == "CAP_NET_ADMIN" || !has(CAP_SYS_ADMIN)))
        .map(|&(name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read_as_distributions_write_them() {
        for (release, wanted) in [
            ("5.8.0", Some((5, 8))),
            ("4.14.67", Some((4, 14))),
            ("6.1.0-25-cloud-amd64", Some((6, 1))),
            ("5.4.0-1.el8.elrepo", Some((5, 4))),
            ("7.3", Some((7, 3))),
            ("linux", None),
        ] {
            assert_eq!(kernel_version(release), wanted, "{release}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_of(u64::MAX), Vec::<&str>::new());
        assert_eq!(missing_of(0), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(missing_of(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_of(1 << 12 | 1 << 39), ["CAP_PERFMON"]);
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn the_ring_is_a_power_of_two_within_bounds() {
        assert_eq!(
            (ring_bytes(0), ring_bytes(1 << 20), ring_bytes((1 << 20) + 1), ring_bytes(u32::MAX)),
            (256 << 10, 1 << 20, 2 << 20, 1 << 30)
        );
    }
}
