//! Which capabilities the daemon uses, what for, and how long.

#![forbid(unsafe_code)]

use std::io;

use rustix::thread::CapabilitySet;

/// How much depends on a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Live capture cannot start without it.
    Required,
    /// It starts, and sees less.
    Wanted,
    /// Only old kernels or odd hosts ask for it.
    Special,
}

/// How long a capability is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Given up when capture has started.
    Start,
    /// Given up when capture has started, where the kernel lets maps be used without it (Linux 5.19 and newer).
    WhileMapsNeedIt,
    /// Kept by the threads that look at processes; all others give it up.
    Always,
    /// Given up when capture has started, but by the thread that attaches programs to processes that come later.
    ToAttach,
}

/// A capability that the daemon uses.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    /// As the kernel's headers call it.
    pub name: &'static str,
    /// Its bit.
    pub bit: CapabilitySet,
    /// How much depends on it.
    pub need: Need,
    /// How long it is kept.
    pub kept: Kept,
    /// What it is used for.
    pub reason: &'static str,
    /// What happens without it.
    pub without: &'static str,
}

/// All of them. Those that are not [`Need::Special`] are the list of `deploy/kubernetes/daemonset.yaml`.
pub static CAPABILITIES: [Capability; 9] = [
    Capability {
        name: "CAP_BPF",
        bit: CapabilitySet::BPF,
        need: Need::Required,
        kept: Kept::WhileMapsNeedIt,
        reason: "create maps and load programs",
        without: "live capture cannot start (before Linux 5.8, CAP_SYS_ADMIN stands for it)",
    },
    Capability {
        name: "CAP_PERFMON",
        bit: CapabilitySet::PERFMON,
        need: Need::Required,
        kept: Kept::Start,
        reason: "let the verifier accept what programs do with pointers, and make probes",
        without: "live capture cannot start (before Linux 5.8, CAP_SYS_ADMIN stands for it)",
    },
    Capability {
        name: "CAP_NET_ADMIN",
        bit: CapabilitySet::NET_ADMIN,
        need: Need::Required,
        kept: Kept::Start,
        reason: "attach programs that see packets to the root of cgroup v2",
        without: "`packet` cannot start",
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        bit: CapabilitySet::SYS_PTRACE,
        need: Need::Wanted,
        kept: Kept::Always,
        reason: "look at other processes in /proc: whose socket, which service, which TLS library",
        without: "connections that are older than the tracer belong to nobody, and services are named by their program alone",
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        bit: CapabilitySet::DAC_READ_SEARCH,
        need: Need::Wanted,
        kept: Kept::Always,
        reason: "read files in /proc of other users' processes",
        without: "the same, for processes of other users",
    },
    Capability {
        name: "CAP_SYS_NICE",
        bit: CapabilitySet::SYS_NICE,
        need: Need::Special,
        kept: Kept::Start,
        reason: "let the capturing thread go first on a busy host (`--nice`)",
        without: "it waits for its turn, and the ring between kernel and daemon is full sooner",
    },
    Capability {
        name: "CAP_SYS_RESOURCE",
        bit: CapabilitySet::SYS_RESOURCE,
        need: Need::Special,
        kept: Kept::Start,
        reason: "raise the limit of locked memory, which maps count against before Linux 5.11",
        without: "before Linux 5.11 maps may be refused, unless the limit is high already",
    },
    Capability {
        name: "CAP_SYSLOG",
        bit: CapabilitySet::SYSLOG,
        need: Need::Special,
        kept: Kept::Start,
        reason: "learn from /proc/kallsyms where the kernel maps memory, so that `socket` sees bytes that programs send straight from files",
        without: "`socket` counts these bytes and shows nothing of them; `packet` sees them all the same",
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        bit: CapabilitySet::SYS_ADMIN,
        need: Need::Special,
        kept: Kept::ToAttach,
        reason: "make probes in programs for `--tls auto` on most kernels; stand for CAP_BPF and CAP_PERFMON before Linux 5.8; mount cgroup v2 where nobody has",
        without: "`--tls auto` sees into no encrypted connection; nothing else is lost from Linux 5.8 on where cgroup v2 is mounted",
    },
];

/// What threads keep that look at other processes.
pub const OBSERVING: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// What this thread may do now.
pub fn effective() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// Whether this thread has a capability, or the one that stands for it.
pub fn has(effective: CapabilitySet, capability: &Capability) -> bool {
    let stands_for_it = CapabilitySet::BPF | CapabilitySet::PERFMON;
    effective.contains(capability.bit) || stands_for_it.contains(capability.bit) && effective.contains(CapabilitySet::SYS_ADMIN)
}

/// Gives up all capabilities but these, for the calling thread and for the threads that it starts from now on. They cannot be had again.
///
/// # Errors
/// If the kernel refuses, which it has no reason to.
pub fn keep_only(keep: CapabilitySet) -> io::Result<()> {
    // What is inheritable or ambient would come back with another program: the daemon starts none.
    let _ = rustix::thread::clear_ambient_capability_set();
    let has = rustix::thread::capabilities(None)?;
    let left = has.permitted & keep;
    let sets = rustix::thread::CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Threads of this process that may do more than `allowed`, by name: none, unless the tracer has a defect.
pub fn threads_with_more_than(allowed: CapabilitySet) -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(Result::ok);
    let statuses = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok());
    statuses
        .filter_map(|status| {
            let field = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).map(str::trim);
            let permitted = CapabilitySet::from_bits_retain(u64::from_str_radix(field("CapPrm:")?, 16).ok()?);
            (!allowed.contains(permitted)).then(|| field("Name:").unwrap_or_default().to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cap_sys_admin_stands_for_those_that_were_split_from_it() {
        let missing = |effective| {
            let required = CAPABILITIES.iter().filter(|capability| capability.need == Need::Required);
            required.filter(|capability| !has(effective, capability)).map(|capability| capability.name).collect::<Vec<_>>()
        };
        assert_eq!(missing(CapabilitySet::all()), Vec::<&str>::new());
        assert_eq!(missing(CapabilitySet::empty()), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(missing(CapabilitySet::SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert_eq!(missing(CapabilitySet::NET_ADMIN | CapabilitySet::BPF), ["CAP_PERFMON"]);
    }

    #[test]
    fn what_a_thread_gives_up_is_gone_for_it_and_its_children_alone() {
        let before = effective();
        let keep = CapabilitySet::SYS_PTRACE;
        let (own, childs) = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    keep_only(keep).unwrap();
                    (rustix::thread::capabilities(None).unwrap().permitted, std::thread::spawn(effective).join().unwrap())
                })
                .join()
                .unwrap()
        });
        assert_eq!((own, childs), (before & keep, before & keep));
        assert_eq!(effective(), before);
    }

    #[test]
    fn a_thread_with_more_rights_than_it_should_have_is_named() {
        assert!(threads_with_more_than(CapabilitySet::all()).is_empty());
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("may-do-nothing".to_owned()).spawn(move || {
            keep_only(CapabilitySet::empty()).unwrap();
            ready.send(()).unwrap();
            let _ = wait.recv();
        });
        is_ready.recv().unwrap();
        let named = threads_with_more_than(CapabilitySet::empty());
        drop(done);
        thread.unwrap().join().unwrap();
        assert!(!named.contains(&"may-do-nothing".to_owned()), "{named:?}");
        assert_eq!(named.is_empty(), effective().is_empty(), "{named:?}");
    }
}
