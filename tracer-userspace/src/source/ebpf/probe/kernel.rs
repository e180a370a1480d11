//! What the kernel can do, found out by trying it.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use aya::maps::{Array, MapType};
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use rustix::thread::CapabilitySet;

use crate::source::ebpf::socket;
use crate::source::features::{Feature, KernelVersion, Row, TABLE};

/// Why most things cannot be tried.
pub(super) const NOT_ALLOWED: &str = "trying it is not allowed without CAP_BPF";

/// Whether something is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It was tried and works.
    Yes,
    /// It was tried and does not.
    No,
    /// It could not be tried; why.
    Unknown(String),
}

impl From<bool> for Support {
    fn from(supported: bool) -> Self {
        if supported { Self::Yes } else { Self::No }
    }
}

/// Tries each feature of the table.
pub(super) fn features() -> Vec<(&'static Row, Support)> {
    TABLE.iter().map(|row| (row, feature(row.feature))).collect()
}

fn feature(feature: Feature) -> Support {
    match feature {
        Feature::Kprobes => probe_kind("kprobe", "kprobe_events", ProgramType::KProbe),
        Feature::Uprobes => probe_kind("uprobe", "uprobe_events", ProgramType::KProbe),
        Feature::LruMaps => map(MapType::LruHash),
        Feature::TailCalls => map(MapType::ProgramArray),
        Feature::PerfBuffer => map(MapType::PerfEventArray),
        Feature::CgroupPackets => program(ProgramType::CgroupSkb),
        Feature::ProbeEvents => Path::new("/sys/bus/event_source/devices/uprobe/type").exists().into(),
        Feature::CgroupConnect => program(ProgramType::CgroupSockAddr),
        Feature::SocketStorage => map(MapType::SkStorage),
        Feature::KernelTypes => Path::new("/sys/kernel/btf/vmlinux").exists().into(),
        Feature::TypedReads => helper(ProgramType::KProbe, BpfHelper::BPF_FUNC_probe_read_user),
        Feature::CgroupLinks => super::holders::has_links(),
        Feature::CgroupPeerName => super::objects::peer_name(),
        Feature::RingBuffer => map(MapType::RingBuf),
        Feature::BootClock => helper(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_ktime_get_boot_ns),
        Feature::OwnCapabilities => last_capability().map_or_else(unknown_file, |last| (last >= 39).into()),
        // The kernel has no word for it; this helper came with it, which is how libbpf tells (`probe_memcg_account`).
        Feature::CgroupMemory => helper(ProgramType::SocketFilter, BpfHelper::BPF_FUNC_ktime_get_coarse_ns),
        Feature::HeldMaps => held_maps(),
        Feature::SocketLengths => socket_lengths().map_or_else(unknown_file, Support::from),
    }
}

/// Whether the kernel has the tracepoints, by the function that each of them is compiled into: no file system but /proc has to be mounted for it.
fn socket_lengths() -> io::Result<bool> {
    const FUNCTION: &str = "__traceiter_sock_recv_length";
    let symbols = BufReader::new(File::open("/proc/kallsyms")?);
    for line in symbols.lines() {
        if line?.split_whitespace().nth(2) == Some(FUNCTION) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn map(kind: MapType) -> Support {
    is_map_supported(kind).map_or_else(|error| refused(&error.io_error), Support::from)
}

fn program(kind: ProgramType) -> Support {
    of_program(is_program_supported(kind))
}

fn helper(kind: ProgramType, helper: BpfHelper) -> Support {
    of_program(is_helper_supported(kind, helper))
}

fn of_program(result: Result<bool, aya::programs::ProgramError>) -> Support {
    match result {
        Ok(supported) => supported.into(),
        Err(aya::programs::ProgramError::SyscallError(error)) => refused(&error.io_error),
        Err(error) => Support::Unknown(crate::source::ebpf::load::chain(&error)),
    }
}

/// Probes of one kind: programs for them load, and there is a way to attach them.
fn probe_kind(device: &str, events: &str, kind: ProgramType) -> Support {
    let devices = Path::new("/sys/bus/event_source/devices");
    if !devices.join(device).exists() {
        let has_devices = KernelVersion::running().is_some_and(|kernel| kernel >= Feature::ProbeEvents.row().since);
        if has_devices && devices.exists() {
            return Support::No;
        }
        match socket::place_of(events) {
            Ok(Some(_)) => {}
            Err(error) => return Support::Unknown(format!("tracefs cannot be read: {error}")),
            // The source mounts it for itself.
            Ok(None) => match socket::can_be_mounted(events) {
                Ok(true) => {}
                Ok(false) => return Support::No,
                Err(error) => return Support::Unknown(format!("tracefs is not mounted, and cannot be: {error}")),
            },
        }
    }
    program(kind)
}

fn refused(error: &io::Error) -> Support {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Support::Unknown(NOT_ALLOWED.to_owned()),
        _ => Support::Unknown(error.to_string()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as an argument of map_or_else")]
fn unknown_file(error: io::Error) -> Support {
    Support::Unknown(error.to_string())
}

fn last_capability() -> io::Result<u32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?;
    text.trim().parse().map_err(|_| io::Error::other("/proc/sys/kernel/cap_last_cap holds no number"))
}

/// Whether a map that is held can be read without the right to make it: tried in a thread of its own, since rights belong to threads.
pub(in crate::source::ebpf) fn held_maps() -> Support {
    // Older kernels ask for rights, or let everybody in as long as a setting says so, which can change while the tracer runs.
    let is_older = KernelVersion::running().is_some_and(|kernel| kernel < Feature::HeldMaps.row().since);
    let lets_in = std::fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled");
    if is_older && lets_in.is_ok_and(|setting| setting.trim() == "0") {
        return Support::No;
    }
    let try_it = || {
        let array = Array::<_, u32>::create(1, 0).map_err(|error| match error {
            aya::maps::MapError::CreateError { io_error, .. } => io_error,
            error => io::Error::other(error.to_string()),
        })?;
        let mut sets = rustix::thread::capabilities(None)?;
        sets.effective.remove(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN);
        rustix::thread::set_capabilities(None, sets)?;
        Ok::<_, io::Error>(array.get(&0, 0).is_ok())
    };
    let tried = std::thread::scope(|scope| scope.spawn(try_it).join());
    match tried {
        Ok(Ok(readable)) => readable.into(),
        Ok(Err(error)) => refused(&error),
        Err(_) => Support::Unknown("the thread that tried it ended".to_owned()),
    }
}
