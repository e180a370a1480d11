//! Why live capture cannot start or go on, each with what to do about it.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

/// Why live capture cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The kernel is older than what the programs that see packets need.
    #[error(
        "this kernel is {found}; seeing packets needs Linux 5.8 or newer (ring buffer, socket storage). Capture files can still be read with `kafka-tracer replay`"
    )]
    KernelTooOld {
        /// Release as `uname -r` says it.
        found: String,
    },
    /// The kernel is older than what any program needs.
    #[error("this kernel is {found}; live capture needs Linux 4.14 or newer. Capture files can still be read with `kafka-tracer replay`")]
    TooOldForAll {
        /// Release as `uname -r` says it.
        found: String,
    },
    /// Where the kernel's structures hold what is read is not known.
    #[error("the kernel's structures are not known well enough to read them: {reason}")]
    Layout {
        /// What is not known, or what a trial showed.
        reason: String,
    },
    /// A program cannot be attached to a function of the kernel.
    #[error(
        "the program {program} cannot be attached to the kernel's function {function}: {reason}. The kernel has to be built with CONFIG_KPROBES and CONFIG_KPROBE_EVENTS"
    )]
    NoProbe {
        /// Our program.
        program: &'static str,
        /// The function.
        function: &'static str,
        /// The kernel's or the loader's words.
        reason: String,
    },
    /// Neither source can run.
    #[error("packets cannot be seen: {packet}. Nor can connections at their sockets: {socket}")]
    Neither {
        /// Why packets cannot be seen.
        packet: Box<Self>,
        /// Why calls on sockets cannot be seen.
        socket: Box<Self>,
    },
    /// Not enough rights.
    #[error(
        "live capture is not allowed to {what} ({source}); it lacks {missing}. Run it as root, or give it the capabilities CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (CAP_SYS_ADMIN for the first two on kernels that do not know them), and CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH to name the processes of connections; `kafka-tracer check` tells more"
    )]
    NoRights {
        /// What was refused.
        what: &'static str,
        /// Capabilities that are not effective.
        missing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No cgroup v2 hierarchy is mounted, and none could be mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted, and mounting one failed ({source}). Mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`), or pass the host's `/sys/fs/cgroup` into the container"
    )]
    NoCgroup2 {
        /// The kernel's answer to the attempt to mount one.
        source: io::Error,
    },
    /// The only cgroup v2 root that can be seen is that of a cgroup namespace.
    #[error(
        "{} is the root of a cgroup namespace, not of the host (its inode is {inode}, the host's is 1): only this container's own connections would be seen. Start the container with the host's cgroup namespace (`--cgroupns=host`), or pass the host's `/sys/fs/cgroup` in and name it as cgroup root",
        path.display()
    )]
    CgroupNamespace {
        /// Where it is mounted.
        path: PathBuf,
        /// Inode of the root directory.
        inode: u64,
    },
    /// The configured cgroup root cannot be used.
    #[error("the cgroup root {} cannot be used: {source}", path.display())]
    CgroupRoot {
        /// The configured path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another program is attached to the cgroup root in a way that lets nobody else in.
    #[error(
        "another program holds the cgroup root {} exclusively (attached without BPF_F_ALLOW_MULTI): the kernel refused to attach {program} beside it, though the rights are there. `bpftool cgroup show {}` names the holder",
        path.display(), path.display()
    )]
    CgroupHeld {
        /// The cgroup root.
        path: PathBuf,
        /// Our program.
        program: &'static str,
    },
    /// The kernel refused a program.
    #[error("the kernel refused the program {program}: {reason}")]
    Refused {
        /// The program's name.
        program: &'static str,
        /// The kernel's or the loader's words, with the end of the verifier's log.
        reason: String,
    },
    /// The compiled-in object is not what this daemon expects: a build mistake.
    #[error("the compiled-in eBPF object has no {what}: build it again with `cargo xtask build`")]
    Object {
        /// The missing program or map.
        what: &'static str,
    },
    /// A map could not be made or read.
    #[error("the kernel's map {map} failed: {reason}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// The kernel's or the loader's words.
        reason: String,
    },
    /// Anything else the system refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why live capture cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A map could not be read or written.
    #[error("the kernel's map {map} failed: {reason}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// The kernel's or the loader's words.
        reason: String,
    },
    /// Waiting for events failed.
    #[error("waiting for events failed: {0}")]
    Wait(#[source] io::Error),
}
