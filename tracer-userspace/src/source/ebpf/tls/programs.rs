//! Loads the programs, and attaches them to the functions of libraries and to the root of cgroup v2. Nothing is pinned.

use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{Array, ProgramArray};
use aya::programs::kprobe::KProbeLink;
use aya::programs::links::CgroupAttachMode;
use aya::programs::raw_trace_point::RawTracePointLink;
use aya::programs::uprobe::{UProbeLink, UProbeLinkId, UProbeScope};
use aya::programs::{CgroupSockAddr, KProbe, ProgramError, RawTracePoint, UProbe};
use aya::{Ebpf, EbpfError, EbpfLoader};
use tracer_common::tls::TlsConfig;

use crate::source::ebpf::btf::Btf;
use crate::source::ebpf::cells::possible_cpus;
use crate::source::ebpf::error::StartError;
use crate::source::ebpf::load::{self, chain};
use crate::source::ebpf::probe::Object;
use crate::source::features::SourceKind;

/// The object that `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KAFKA_TRACER_TLS_OBJECT"));

/// Where the kernel describes its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// A program for a function of a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Probe {
    Read,
    Write,
    ReadEx,
    WriteEx,
    Return,
    Connect,
    Accept,
    Free,
    GnuTlsRead,
    GnuTlsWrite,
    GnuTlsFlush,
    GnuTlsNew,
    GnuTlsMade,
    GoRead,
    GoReturn,
    GoWrite,
    GoClient,
    GoServer,
    GoClose,
    RustlsRead,
    RustlsWrite,
    RustlsWriteSlice,
    RustlsReturn,
    RustlsClient,
    RustlsServer,
}

impl Probe {
    const ALL: [Self; 25] = [
        Self::Read,
        Self::Write,
        Self::ReadEx,
        Self::WriteEx,
        Self::Return,
        Self::Connect,
        Self::Accept,
        Self::Free,
        Self::GnuTlsRead,
        Self::GnuTlsWrite,
        Self::GnuTlsFlush,
        Self::GnuTlsNew,
        Self::GnuTlsMade,
        Self::GoRead,
        Self::GoReturn,
        Self::GoWrite,
        Self::GoClient,
        Self::GoServer,
        Self::GoClose,
        Self::RustlsRead,
        Self::RustlsWrite,
        Self::RustlsWriteSlice,
        Self::RustlsReturn,
        Self::RustlsClient,
        Self::RustlsServer,
    ];

    const fn program(self) -> &'static str {
        match self {
            Self::Read => "tls_read",
            Self::Write => "tls_write",
            Self::ReadEx => "tls_read_ex",
            Self::WriteEx => "tls_write_ex",
            Self::Return => "tls_return",
            Self::Connect => "tls_connect",
            Self::Accept => "tls_accept",
            Self::Free => "tls_free",
            Self::GnuTlsRead => "gnutls_read",
            Self::GnuTlsWrite => "gnutls_write",
            Self::GnuTlsFlush => "gnutls_flush",
            Self::GnuTlsNew => "gnutls_new",
            Self::GnuTlsMade => "gnutls_made",
            Self::GoRead => "go_read",
            Self::GoReturn => "go_return",
            Self::GoWrite => "go_write",
            Self::GoClient => "go_client",
            Self::GoServer => "go_server",
            Self::GoClose => "go_close",
            Self::RustlsRead => "rustls_read",
            Self::RustlsWrite => "rustls_write",
            Self::RustlsWriteSlice => "rustls_write_slice",
            Self::RustlsReturn => "rustls_return",
            Self::RustlsClient => "rustls_client",
            Self::RustlsServer => "rustls_server",
        }
    }
}

/// The program that others go on with.
const GO_ON: &str = "tls_go_on";

/// Programs that see what threads do with sockets, and the kernel's places for them (Linux 6.3).
const SOCKET_PROGRAMS: [(&str, &str); 2] = [("tls_socket_received", "sock_recv_length"), ("tls_socket_sent", "sock_send_length")];

/// The program that sees sockets close, and the kernel's place for it.
const CLOSED_PROGRAM: (&str, &str) = ("tls_socket_closed", "inet_sock_set_state");

/// What takes their place before, and the kernel's functions for it: of each the first that there is.
const TCP_PROGRAMS: [(&str, &[&str]); 2] =
    [("tls_tcp_received", &["__tcp_cleanup_rbuf", "tcp_cleanup_rbuf"]), ("tls_tcp_sent", &["tcp_sendmsg"])];

/// Programs that say who connects.
const CONNECT_PROGRAMS: [&str; 2] = ["tls_connect4", "tls_connect6"];

/// What one attachment is called when it is to be undone.
#[derive(Debug)]
pub(super) struct Link {
    probe: Probe,
    id: UProbeLinkId,
}

/// What can be done without: connections are found by listing sockets, too, and most sessions say theirs.
const OPTIONAL: [&str; 7] = [
    CONNECT_PROGRAMS[0],
    CONNECT_PROGRAMS[1],
    SOCKET_PROGRAMS[0].0,
    SOCKET_PROGRAMS[1].0,
    TCP_PROGRAMS[0].0,
    TCP_PROGRAMS[1].0,
    CLOSED_PROGRAM.0,
];

/// The compiled-in object.
pub(crate) fn object() -> Object {
    Object { name: "tls", source: SourceKind::Tls, bytes: OBJECT, optional: &OPTIONAL }
}

/// Names of all programs.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let of_libraries = Probe::ALL.into_iter().map(Probe::program).chain([GO_ON]);
    let of_sockets = SOCKET_PROGRAMS.map(|(name, _)| name).into_iter().chain(TCP_PROGRAMS.map(|(name, _)| name)).chain([CLOSED_PROGRAM.0]);
    of_libraries.chain(CONNECT_PROGRAMS).chain(of_sockets)
}

/// Loads the object, its maps as configured, and all programs. None is attached yet.
pub(super) fn load(wanted_ring_bytes: u32) -> Result<Ebpf, StartError> {
    load::raise_locked_memory();
    let loaded = EbpfLoader::new()
        .btf(None)
        .map_max_entries("RING", load::ring_bytes(wanted_ring_bytes))
        .map_max_entries("COUNTS", possible_cpus()?)
        .load(OBJECT);
    let mut ebpf = loaded.map_err(|error| match error {
        EbpfError::MapError(error) => StartError::Map { map: "of the object", reason: chain(&error) },
        error => StartError::Refused { program: "object", reason: chain(&error) },
    })?;
    let mut places: Array<_, [u32; 10]> = load::take_map(&mut ebpf, "TLS_CONFIG")?;
    let layout = std::fs::read(BTF).ok().as_deref().and_then(layout).unwrap_or_default();
    places.set(0, layout.to_words(), 0).map_err(|error| StartError::Map { map: "TLS_CONFIG", reason: chain(&error) })?;
    for name in Probe::ALL.into_iter().map(Probe::program).chain([GO_ON]) {
        uprobe(&mut ebpf, name)?.load().map_err(|error| load::refused(name, error))?;
    }
    // What is refused is told when it is to be attached.
    let told = |name, error| tracing::debug!(error = chain(&load::refused(name, error)), "What threads do with sockets is not seen so.");
    for (name, _) in SOCKET_PROGRAMS.into_iter().chain([CLOSED_PROGRAM]) {
        tracepoint(&mut ebpf, name)?.load().unwrap_or_else(|error| told(name, error));
    }
    for (name, _) in TCP_PROGRAMS {
        kprobe(&mut ebpf, name)?.load().unwrap_or_else(|error| told(name, error));
    }
    let go_on = uprobe(&mut ebpf, GO_ON)?.fd().map_err(|error| load::refused(GO_ON, error))?.try_clone();
    let go_on = go_on.map_err(|source| StartError::System { what: "copy a program's descriptor", source })?;
    // Borrowed, not taken: the kernel empties the map when its last descriptor is closed.
    let map = ebpf.map_mut("GO_ON").ok_or(StartError::Object { what: "GO_ON" })?;
    ProgramArray::try_from(map)
        .and_then(|mut map| map.set(0, &go_on, 0))
        .map_err(|error| StartError::Map { map: "GO_ON", reason: chain(&error) })?;
    Ok(ebpf)
}

/// Where the programs find the socket of a descriptor.
fn layout(description: &[u8]) -> Option<TlsConfig> {
    let btf = Btf::parse(description).ok()?;
    Some(TlsConfig {
        task_files: btf.member_offset("task_struct", "files")?,
        files_table: btf.member_offset("files_struct", "fdt")?,
        table_array: btf.member_offset("fdtable", "fd")?,
        table_max: btf.member_offset("fdtable", "max_fds")?,
        file_private: btf.member_offset("file", "private_data")?,
        socket_file: btf.member_offset("socket", "file")?,
        socket_sock: btf.member_offset("socket", "sk")?,
        has_layout: 1,
        sock_protocol: btf.member_offset("sock", "sk_protocol").unwrap_or(0),
        sock_source_port: btf.member_offset("inet_sock", "inet_sport").unwrap_or(0),
    })
}

/// Attaches the programs that say who connects.
pub(super) fn attach_connects(ebpf: &mut Ebpf, root: impl AsFd) -> Result<(), StartError> {
    for name in CONNECT_PROGRAMS {
        let program: &mut CgroupSockAddr =
            ebpf.program_mut(name).ok_or(StartError::Object { what: name })?.try_into().map_err(|_| StartError::Object { what: name })?;
        program.load().map_err(|error| load::refused(name, error))?;
        program.attach(&root, CgroupAttachMode::Single).map_err(|error| load::refused(name, error))?;
    }
    Ok(())
}

/// Attaches a program to a place of a file, for one process or for all.
pub(super) fn attach(ebpf: &mut Ebpf, probe: Probe, file: &File, offset: u64, pid: Option<NonZeroU32>) -> Result<Link, StartError> {
    use std::os::fd::AsRawFd;
    // By its descriptor: the file may have another name by now, or none.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let scope = pid.map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
    let name = probe.program();
    let attached = uprobe(ebpf, name)?.attach(offset, Path::new(&path), scope);
    Ok(Link { probe, id: attached.map_err(|error| load::refused(name, error))? })
}

/// What sees what threads do with sockets: taken off when this is dropped.
#[derive(Debug)]
pub(super) enum SocketLinks {
    Tracepoints(#[expect(dead_code, reason = "dropped to detach")] Vec<RawTracePointLink>),
    Kprobes(#[expect(dead_code, reason = "dropped to detach")] Vec<KProbeLink>),
}

/// Attaches the programs that see what threads do with sockets: to tracepoints, and where the kernel has none (before 6.3), to functions.
pub(super) fn attach_sockets(ebpf: &mut Ebpf) -> Result<SocketLinks, StartError> {
    match attach_tracepoints(ebpf) {
        Ok(links) => Ok(SocketLinks::Tracepoints(links)),
        Err(error) => {
            tracing::debug!(error = chain(&error), "No tracepoints show what threads do with sockets; kprobes may.");
            attach_kprobes(ebpf).map(SocketLinks::Kprobes)
        }
    }
}

/// Attaches the program that sees sockets close, for as long as all programs are there.
pub(super) fn attach_closed(ebpf: &mut Ebpf) -> Result<(), StartError> {
    let (name, place) = CLOSED_PROGRAM;
    tracepoint(ebpf, name)?.attach(place).map(drop).map_err(|error| load::refused(name, error))
}

fn attach_tracepoints(ebpf: &mut Ebpf) -> Result<Vec<RawTracePointLink>, StartError> {
    let mut links = Vec::new();
    for (name, place) in SOCKET_PROGRAMS {
        let program = tracepoint(ebpf, name)?;
        let link = program.attach(place).and_then(|id| program.take_link(id));
        links.push(link.map_err(|error| load::refused(name, error))?);
    }
    Ok(links)
}

fn attach_kprobes(ebpf: &mut Ebpf) -> Result<Vec<KProbeLink>, StartError> {
    let mut links = Vec::new();
    for (name, functions) in TCP_PROGRAMS {
        let program = kprobe(ebpf, name)?;
        let mut attached = Err(ProgramError::NotAttached);
        for function in functions {
            attached = program.attach(*function, 0).and_then(|id| program.take_link(id));
            if attached.is_ok() {
                break;
            }
        }
        links.push(attached.map_err(|error| load::refused(name, error))?);
    }
    Ok(links)
}

/// Takes an attachment out, to be undone by dropping it.
pub(super) fn take(ebpf: &mut Ebpf, link: Link) -> Option<UProbeLink> {
    uprobe(ebpf, link.probe.program()).ok()?.take_link(link.id).ok()
}

fn uprobe<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut UProbe, StartError> {
    ebpf.program_mut(name).ok_or(StartError::Object { what: name })?.try_into().map_err(|_| StartError::Object { what: name })
}

fn kprobe<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut KProbe, StartError> {
    ebpf.program_mut(name).ok_or(StartError::Object { what: name })?.try_into().map_err(|_| StartError::Object { what: name })
}

fn tracepoint<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut RawTracePoint, StartError> {
    ebpf.program_mut(name).ok_or(StartError::Object { what: name })?.try_into().map_err(|_| StartError::Object { what: name })
}
