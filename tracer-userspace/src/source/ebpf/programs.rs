//! Loads the programs and attaches them. Nothing is pinned: links, programs and maps go with the process, however it ends.

use std::io;

use aya::maps::{Map, ProgramArray};
use aya::programs::links::CgroupAttachMode;
use aya::programs::{CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::cgroup::Root;
use super::config::SourceConfig;
use super::error::StartError;

/// The object that `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KAFKA_TRACER_PACKET_OBJECT"));

/// The oldest kernel with all that the programs use.
const OLDEST_KERNEL: (u32, u32) = (5, 8);

/// Programs that see packets.
const PACKET_PROGRAMS: [(&str, CgroupSkbAttachType); 2] =
    [("packet_egress", CgroupSkbAttachType::Egress), ("packet_ingress", CgroupSkbAttachType::Ingress)];

/// The program that `packet_ingress` goes on with for packets of listeners.
const EARLY_PROGRAM: &str = "packet_early";

/// Programs that tell who owns a socket. Attached first, so that no connection comes before its owner.
const OWNER_PROGRAMS: [&str; 4] = ["owner_connect4", "owner_connect6", "owner_peer4", "owner_peer6"];

/// Capabilities that live capture needs, with their bits.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// Bit of the capability that stands for them all.
const CAP_SYS_ADMIN: u32 = 21;

/// Smallest and largest ring.
const RING_BYTES: std::ops::RangeInclusive<u32> = 256 << 10..=1 << 30;

/// Refuses what can be known before anything is loaded.
pub(super) fn check_host() -> Result<(), StartError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if kernel_version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
        return Err(StartError::KernelTooOld { found: release });
    }
    let missing = missing_capabilities();
    if missing.is_empty() {
        return Ok(());
    }
    Err(StartError::NoRights { what: "load eBPF programs", missing: missing.join(", "), source: io::ErrorKind::PermissionDenied.into() })
}

/// Loads the object, its maps as configured. No program is loaded yet.
pub(super) fn load(config: &SourceConfig) -> Result<Ebpf, StartError> {
    // Before Linux 5.11 maps count against the limit of locked memory. Refused without CAP_SYS_RESOURCE, and then mostly not needed.
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
    // Nothing is relocated against the kernel's own types, and reading them takes longer than all the rest.
    EbpfLoader::new().btf(None).map_max_entries("RING", ring_bytes(config.ring_bytes)).load(OBJECT).map_err(|error| match error {
        EbpfError::MapError(error) => StartError::Map { map: "of the object", reason: chain(&error) },
        error => StartError::Refused { program: "object", reason: chain(&error) },
    })
}

/// Loads the programs into the kernel and attaches them, the packet programs last: from then on events come.
pub(super) fn attach(ebpf: &mut Ebpf, root: &Root) -> Result<(), StartError> {
    // All are loaded before the first is attached: verifying takes long on a busy host, and until the last is attached only a part is seen.
    for name in OWNER_PROGRAMS {
        owner_program(ebpf, name)?.load().map_err(|error| refused(name, error))?;
    }
    for (name, _) in PACKET_PROGRAMS {
        packet_program(ebpf, name)?.load().map_err(|error| refused(name, error))?;
    }
    packet_program(ebpf, EARLY_PROGRAM)?.load().map_err(|error| refused(EARLY_PROGRAM, error))?;
    let early = packet_program(ebpf, EARLY_PROGRAM)?.fd().map_err(|error| refused(EARLY_PROGRAM, error))?.try_clone();
    let early = early.map_err(|source| StartError::System { what: "copy a program's descriptor", source })?;
    // Borrowed, not taken: the kernel empties the map when its last descriptor is closed.
    let map = ebpf.map_mut("EARLY").ok_or(StartError::Object { what: "EARLY" })?;
    ProgramArray::try_from(map)
        .and_then(|mut map| map.set(0, &early, 0))
        .map_err(|error| StartError::Map { map: "EARLY", reason: chain(&error) })?;
    for name in OWNER_PROGRAMS {
        let attached = owner_program(ebpf, name)?.attach(&root.directory, CgroupAttachMode::Single);
        attached.map_err(|error| not_attached(name, root, error))?;
    }
    for (name, way) in PACKET_PROGRAMS {
        let attached = packet_program(ebpf, name)?.attach(&root.directory, way, CgroupAttachMode::Single);
        attached.map_err(|error| not_attached(name, root, error))?;
    }
    Ok(())
}

fn owner_program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, StartError> {
    find(ebpf, name)?.try_into().map_err(|_| StartError::Object { what: name })
}

fn packet_program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSkb, StartError> {
    find(ebpf, name)?.try_into().map_err(|_| StartError::Object { what: name })
}

/// Takes a map out of the object.
pub(super) fn take_map<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, StartError>
where
    T::Error: std::error::Error,
{
    let map = ebpf.take_map(name).ok_or(StartError::Object { what: name })?;
    T::try_from(map).map_err(|error| StartError::Map { map: name, reason: chain(&error) })
}

/// Names of all programs of the object.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OWNER_PROGRAMS.into_iter().chain(PACKET_PROGRAMS.into_iter().map(|(name, _)| name)).chain([EARLY_PROGRAM])
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

fn find<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, StartError> {
    ebpf.program_mut(name).ok_or(StartError::Object { what: name })
}

fn refused(program: &'static str, error: ProgramError) -> StartError {
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

/// The kernel says EPERM both when rights are missing and when the root is held exclusively. The rights were there to load.
fn not_attached(program: &'static str, root: &Root, error: ProgramError) -> StartError {
    match error {
        ProgramError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::PermissionDenied => {
            StartError::CgroupHeld { path: root.path.clone(), program }
        }
        error => StartError::Refused { program, reason: chain(&error) },
    }
}

fn ring_bytes(wanted: u32) -> u32 {
    wanted.clamp(*RING_BYTES.start(), *RING_BYTES.end()).next_power_of_two()
}

/// Major and minor number of a release; None for a name without numbers.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Which of the needed capabilities this thread does not have.
fn missing_capabilities() -> Vec<&'static str> {
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
    use aya::sys::SyscallError;

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
        assert!((5, 7) < OLDEST_KERNEL && (5, 10) > OLDEST_KERNEL && (4, 20) < OLDEST_KERNEL);
    }

    #[test]
    fn a_root_that_another_program_holds_is_told_from_missing_rights() {
        let root = Root { directory: std::fs::File::open("/").unwrap().into(), path: "/sys/fs/cgroup".into() };
        let refused =
            |number| ProgramError::SyscallError(SyscallError { call: "bpf_link_create", io_error: io::Error::from_raw_os_error(number) });
        let held = not_attached("packet_egress", &root, refused(1));
        assert!(matches!(held, StartError::CgroupHeld { .. }), "{held}");
        let text = held.to_string();
        assert!(text.contains("exclusively") && text.contains("bpftool cgroup show /sys/fs/cgroup"), "{text}");
        assert!(matches!(not_attached("packet_egress", &root, refused(22)), StartError::Refused { .. }));
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
