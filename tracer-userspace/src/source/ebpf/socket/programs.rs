//! Loads the programs and attaches them to the kernel's functions.

use std::path::Path;

use aya::maps::ProgramArray;
use aya::programs::{KProbe, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};

use super::events::{self, Lists};
use crate::source::ebpf::cells::possible_cpus;
use crate::source::ebpf::load::{self, chain, refused, ring_bytes};
use crate::source::ebpf::missed::Missed;
use crate::source::ebpf::probe::Object;
use crate::source::ebpf::{SourceConfig, StartError};
use crate::source::features::{KernelVersion, OLDEST_KERNEL, SourceKind};

/// The objects that `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KAFKA_TRACER_SOCKET_OBJECT"));
static OBJECT_RING: &[u8] = aya::include_bytes_aligned!(env!("KAFKA_TRACER_SOCKET_RING_OBJECT"));

/// The first kernel with a ring for all CPUs, and the first whose probes are made without writing to a list.
const RING_SINCE: KernelVersion = KernelVersion::new(5, 8);
const PROBE_EVENTS_SINCE: KernelVersion = KernelVersion::new(4, 17);

/// The program that others go on with.
const COPY_PROGRAM: &str = "call_copy";

/// The program for pages of files, and the function that they went through up to Linux 6.4.
const PAGE_PROGRAM: &str = "call_page";

/// Programs with the function that each is attached to, or the first of these that the kernel has. Those that see calls come last: from then
/// on events come.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("call_state", &["tcp_set_state"]),
    ("call_close", &["tcp_close"]),
    ("call_sent", &["release_sock"]),
    // From 6.1 on the second calls the first, and can be compiled into its callers.
    ("call_received", &["__tcp_cleanup_rbuf", "tcp_cleanup_rbuf"]),
    (PAGE_PROGRAM, &["tcp_sendpage"]),
    ("call_send", &["tcp_sendmsg"]),
    ("call_receive", &["tcp_recvmsg"]),
];

/// The objects, as they are probed.
pub(in crate::source::ebpf) fn objects() -> [Object; 2] {
    [("socket", OBJECT), ("socket_ring", OBJECT_RING)].map(|(name, bytes)| Object {
        name,
        source: SourceKind::Socket,
        bytes,
        optional: &[PAGE_PROGRAM],
    })
}

/// Names of all programs.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PROGRAMS.into_iter().map(|(name, _)| name).chain([COPY_PROGRAM])
}

/// Whether the running kernel is at least this version. One whose name says nothing is taken for a new one.
fn is_at_least(version: KernelVersion) -> bool {
    KernelVersion::running().is_none_or(|running| running >= version)
}

/// Whether this kernel has a ring for all CPUs.
pub(super) fn has_ring() -> bool {
    is_at_least(RING_SINCE)
}

/// Whether probes are made by writing to lists that aya finds in a file system, which may have to be mounted.
pub(super) fn needs_lists() -> bool {
    !is_at_least(PROBE_EVENTS_SINCE)
}

/// Refuses what can be known before anything is loaded.
pub(super) fn check_host() -> Result<(), StartError> {
    if !is_at_least(OLDEST_KERNEL) {
        return Err(StartError::TooOldForAll { found: rustix::system::uname().release().to_string_lossy().into_owned() });
    }
    let missing: Vec<&str> = load::missing_capabilities().into_iter().filter(|name| *name != "CAP_NET_ADMIN").collect();
    if missing.is_empty() {
        return Ok(());
    }
    let source = std::io::ErrorKind::PermissionDenied.into();
    Err(StartError::NoRights { what: "load eBPF programs", missing: missing.join(", "), source })
}

/// The loaded programs. When this goes, they go, with the lines that they left in the kernel's lists.
pub(super) struct Programs {
    pub(super) ebpf: Option<Ebpf>,
    /// Programs that the kernel refused and capture goes on without.
    pub(super) off: Vec<&'static str>,
    /// How often the kernel left programs out.
    pub(super) missed: Option<Missed>,
    lists: Option<Lists>,
}

impl Programs {
    /// Loads an object, its maps as configured. No program is loaded yet.
    pub(super) fn load(config: &SourceConfig, with_ring: bool) -> Result<Self, StartError> {
        load::raise_locked_memory();
        let mut loader = EbpfLoader::new();
        // Nothing is relocated against the kernel's own types: they are looked up by hand.
        loader.btf(None);
        loader.map_max_entries("COUNTS", possible_cpus()?);
        if with_ring {
            loader.map_max_entries("RING", ring_bytes(config.ring_bytes));
        }
        let ebpf = loader.load(if with_ring { OBJECT_RING } else { OBJECT }).map_err(|error| match error {
            EbpfError::MapError(error) => StartError::Map { map: "of the object", reason: chain(&error) },
            error => StartError::Refused { program: "object", reason: chain(&error) },
        })?;
        Ok(Self { ebpf: Some(ebpf), off: Vec::new(), missed: None, lists: None })
    }

    /// Loads the programs into the kernel and attaches them.
    pub(super) fn attach(&mut self) -> Result<(), StartError> {
        if needs_lists() {
            let place = events::place().ok_or(StartError::Object { what: "list of probes" })?;
            let mut lists = Lists::open(&place);
            let removed = lists.remove(|pid| !Path::new(&format!("/proc/{pid}")).exists());
            if removed > 0 {
                tracing::info!(removed, "Removed probes that a killed tracer left.");
            }
            self.lists = Some(lists);
        }
        let ebpf = self.ebpf.as_mut().ok_or(StartError::Object { what: "program" })?;
        for name in names() {
            match program(ebpf, name)?.load().map_err(|error| refused(name, error)) {
                Ok(()) => {}
                Err(error) if name == PAGE_PROGRAM => {
                    tracing::warn!(%error, "Bytes that programs send straight from files are not seen.");
                    self.off.push(name);
                }
                Err(error) => return Err(error),
            }
        }
        self.missed = Some(Missed::of(ebpf));
        let copy = program(ebpf, COPY_PROGRAM)?.fd().map_err(|error| refused(COPY_PROGRAM, error))?.try_clone();
        let copy = copy.map_err(|source| StartError::System { what: "copy a program's descriptor", source })?;
        // Borrowed, not taken: the kernel empties the map when its last descriptor is closed.
        let map = ebpf.map_mut("PROGRAMS").ok_or(StartError::Object { what: "PROGRAMS" })?;
        ProgramArray::try_from(map)
            .and_then(|mut map| map.set(0, &copy, 0))
            .map_err(|error| StartError::Map { map: "PROGRAMS", reason: chain(&error) })?;
        for (name, functions) in PROGRAMS {
            if self.off.contains(&name) {
                continue;
            }
            match attach_to_first(program(ebpf, name)?, functions) {
                Ok(()) => {}
                // Gone in 6.5: pages come with `tcp_sendmsg` from then on.
                Err(error) if name == PAGE_PROGRAM => {
                    tracing::debug!(error = chain(&error), "This kernel gives pages to sockets in another way.");
                }
                Err(error) => {
                    let function = functions.last().copied().unwrap_or_default();
                    return Err(StartError::NoProbe { program: name, function, reason: chain(&error) });
                }
            }
        }
        Ok(())
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        // Closes what is attached; only then can the lines be removed.
        drop(self.ebpf.take());
        if let Some(lists) = &mut self.lists {
            let own = std::process::id();
            lists.remove(|pid| pid == own);
        }
    }
}

fn attach_to_first(program: &mut KProbe, functions: &[&str]) -> Result<(), ProgramError> {
    let mut result = Ok(());
    for function in functions {
        result = program.attach(*function, 0).map(drop);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut KProbe, StartError> {
    let program = ebpf.program_mut(name).ok_or(StartError::Object { what: name })?;
    program.try_into().map_err(|_| StartError::Object { what: name })
}
