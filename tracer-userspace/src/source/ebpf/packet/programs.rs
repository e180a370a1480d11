//! Loads the programs and attaches them. Nothing is pinned: links, programs and maps go with the process, however it ends.

use std::io;

use aya::maps::ProgramArray;
use aya::programs::links::CgroupAttachMode;
use aya::programs::{CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::cgroup::Root;
use crate::source::ebpf::load::{self, chain, missing_capabilities, refused, ring_bytes};
use crate::source::ebpf::probe::Object;
use crate::source::ebpf::{SourceConfig, StartError};
use crate::source::features::{KernelVersion, SourceKind};

/// The object that `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KAFKA_TRACER_PACKET_OBJECT"));

/// The oldest kernel with all that the programs use.
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(5, 8);

/// Programs that see packets.
const PACKET_PROGRAMS: [(&str, CgroupSkbAttachType); 2] =
    [("packet_egress", CgroupSkbAttachType::Egress), ("packet_ingress", CgroupSkbAttachType::Ingress)];

/// The program that `packet_ingress` goes on with for packets of listeners.
const EARLY_PROGRAM: &str = "packet_early";

/// Programs that tell who owns a socket. Attached first, so that no connection comes before its owner.
const OWNER_PROGRAMS: [&str; 4] = ["owner_connect4", "owner_connect6", "owner_peer4", "owner_peer6"];

/// What the source can do without.
const OPTIONAL_PROGRAMS: [&str; 5] = ["owner_connect4", "owner_connect6", "owner_peer4", "owner_peer6", EARLY_PROGRAM];

/// The object, as it is probed.
pub(in crate::source::ebpf) fn object() -> Object {
    Object { name: "packet", source: SourceKind::Packet, bytes: OBJECT, optional: &OPTIONAL_PROGRAMS }
}

/// Refuses what can be known before anything is loaded.
pub(super) fn check_host() -> Result<(), StartError> {
    if KernelVersion::running().is_some_and(|version| version < OLDEST_KERNEL) {
        return Err(StartError::KernelTooOld { found: rustix::system::uname().release().to_string_lossy().into_owned() });
    }
    let missing = missing_capabilities();
    if missing.is_empty() {
        return Ok(());
    }
    Err(StartError::NoRights { what: "load eBPF programs", missing: missing.join(", "), source: io::ErrorKind::PermissionDenied.into() })
}

/// Loads the object, its maps as configured. No program is loaded yet.
pub(super) fn load(config: &SourceConfig) -> Result<Ebpf, StartError> {
    load::raise_locked_memory();
    // Nothing is relocated against the kernel's own types, and reading them takes longer than all the rest.
    EbpfLoader::new().btf(None).map_max_entries("RING", ring_bytes(config.ring_bytes)).load(OBJECT).map_err(|error| match error {
        EbpfError::MapError(error) => StartError::Map { map: "of the object", reason: chain(&error) },
        error => StartError::Refused { program: "object", reason: chain(&error) },
    })
}

/// Loads the programs into the kernel and attaches them, the packet programs last: from then on events come. What the kernel refuses and the
/// source can do without is left out with a word, and returned.
pub(super) fn attach(ebpf: &mut Ebpf, root: &Root) -> Result<Vec<&'static str>, StartError> {
    let mut off = Vec::new();
    let mut do_without = |name: &'static str, error: &StartError, effect: &str| {
        tracing::warn!(%error, "{effect}");
        off.push(name);
    };
    // All are loaded before the first is attached: verifying takes long on a busy host, and until the last is attached only a part is seen.
    let mut owners = Vec::new();
    for name in OWNER_PROGRAMS {
        match owner_program(ebpf, name)?.load() {
            Ok(()) => owners.push(name),
            Err(error) => do_without(name, &refused(name, error), WITHOUT_OWNER),
        }
    }
    for (name, _) in PACKET_PROGRAMS {
        packet_program(ebpf, name)?.load().map_err(|error| refused(name, error))?;
    }
    if let Err(error) = packet_program(ebpf, EARLY_PROGRAM)?.load() {
        do_without(EARLY_PROGRAM, &refused(EARLY_PROGRAM, error), "Bytes that come before a connection is accepted are not seen.");
    } else {
        let early = packet_program(ebpf, EARLY_PROGRAM)?.fd().map_err(|error| refused(EARLY_PROGRAM, error))?.try_clone();
        let early = early.map_err(|source| StartError::System { what: "copy a program's descriptor", source })?;
        // Borrowed, not taken: the kernel empties the map when its last descriptor is closed.
        let map = ebpf.map_mut("EARLY").ok_or(StartError::Object { what: "EARLY" })?;
        ProgramArray::try_from(map)
            .and_then(|mut map| map.set(0, &early, 0))
            .map_err(|error| StartError::Map { map: "EARLY", reason: chain(&error) })?;
    }
    for name in owners {
        let attached = owner_program(ebpf, name)?.attach(&root.directory, CgroupAttachMode::Single);
        if let Err(error) = attached {
            do_without(name, &not_attached(name, root, error), WITHOUT_OWNER);
        }
    }
    for (name, way) in PACKET_PROGRAMS {
        let attached = packet_program(ebpf, name)?.attach(&root.directory, way, CgroupAttachMode::Single);
        attached.map_err(|error| not_attached(name, root, error))?;
    }
    Ok(off)
}

/// What it means that a program of [`OWNER_PROGRAMS`] is missing.
const WITHOUT_OWNER: &str = "Processes of some connections are looked for in /proc, once a second.";

fn owner_program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, StartError> {
    find(ebpf, name)?.try_into().map_err(|_| StartError::Object { what: name })
}

fn packet_program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSkb, StartError> {
    find(ebpf, name)?.try_into().map_err(|_| StartError::Object { what: name })
}

/// Names of all programs of the object.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OWNER_PROGRAMS.into_iter().chain(PACKET_PROGRAMS.into_iter().map(|(name, _)| name)).chain([EARLY_PROGRAM])
}

fn find<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, StartError> {
    ebpf.program_mut(name).ok_or(StartError::Object { what: name })
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

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

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
}
