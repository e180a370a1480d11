//! What the host's own files say: how the kernel runs, which namespaces this process lives in, what it may do.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use super::{Finding, State, Support};
use crate::source::ebpf::{socket, tls};
use crate::source::features::{Feature, KernelVersion};

/// Inodes of the namespaces that the kernel starts with (`include/linux/proc_ns.h`).
const FIRST_CGROUP_NAMESPACE: u64 = 0xefff_fffb;
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// The list in tracefs through which kprobes are made where the kernel has no other way.
const KPROBES: &str = "kprobe_events";

/// All of it.
pub(super) fn findings(kernel: Option<KernelVersion>) -> Vec<Finding> {
    vec![
        kernel_version(kernel),
        lockdown(),
        jit(),
        trace_file_system(kernel),
        locked_memory(kernel),
        paranoia(),
        uprobes(),
        pids(),
        own_filter(),
    ]
}

fn kernel_version(kernel: Option<KernelVersion>) -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let finding = Finding::ok("kernel", "kernel", format!("Linux {release}, {}", std::env::consts::ARCH));
    match kernel {
        Some(version) if version < crate::source::features::OLDEST_KERNEL => finding.but(
            State::Missing,
            "the tracer is made for Linux 4.14 and newer",
            "use a newer kernel; `kafka-tracer replay` reads capture files on any",
        ),
        Some(_) => finding,
        None => finding.but(State::Unknown, "its version cannot be read from its name", ""),
    }
}

fn lockdown() -> Finding {
    let read = fs::read_to_string("/sys/kernel/security/lockdown");
    let mode = read.as_deref().ok().and_then(|text| text.split_once('[')?.1.split_once(']')).map(|(mode, _)| mode);
    match mode {
        Some("confidentiality") => Finding::ok("lockdown", "lockdown", "confidentiality").but(
            State::Limited,
            "programs may not read the kernel's memory: `socket` and `tls` see nothing; `packet` is not affected",
            "boot with `lockdown=integrity` or without",
        ),
        Some(mode) => Finding::ok("lockdown", "lockdown", mode),
        None => Finding::ok("lockdown", "lockdown", "not known: securityfs is not mounted or not readable").but(State::Unknown, "", ""),
    }
}

fn jit() -> Finding {
    match number("/proc/sys/net/core/bpf_jit_enable") {
        Ok(0) => Finding::ok("jit", "JIT compiler", "off").but(
            State::Limited,
            "programs are interpreted: each packet costs several times more",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Ok(_) => Finding::ok("jit", "JIT compiler", "on"),
        Err(error) => Finding::ok("jit", "JIT compiler", format!("not known: {error}")).but(State::Unknown, "", ""),
    }
}

fn trace_file_system(kernel: Option<KernelVersion>) -> Finding {
    let needed = kernel.is_some_and(|version| version < Feature::ProbeEvents.row().since);
    let finding = |found: String| Finding::ok("tracefs", "tracefs", found);
    let effect = "before Linux 4.17 probes are made through it: `socket` cannot run";
    match (socket::place_of(KPROBES), needed) {
        (Ok(Some(place)), _) => finding(place.display().to_string()),
        (Err(error), true) => finding(format!("not known: {error}")).but(State::Unknown, effect, ""),
        (Err(_) | Ok(None), false) => finding("not seen, and not needed from Linux 4.17 on".to_owned()),
        (Ok(None), true) => match socket::can_be_mounted(KPROBES) {
            Ok(true) => finding("not mounted; `socket` mounts it for itself".to_owned()),
            Ok(false) => {
                let remedy = "use a kernel that was built with CONFIG_KPROBE_EVENTS";
                finding("it has no list of kprobes".to_owned()).but(State::Missing, effect, remedy)
            }
            Err(error) => {
                let remedy = "mount -t tracefs tracefs /sys/kernel/tracing";
                finding(format!("not mounted, and cannot be: {error}")).but(State::Missing, effect, remedy)
            }
        },
    }
}

fn locked_memory(kernel: Option<KernelVersion>) -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let words = limit.map_or_else(|| "no limit".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
    let counts = kernel.is_some_and(|version| version < Feature::CgroupMemory.row().since);
    let may_raise = super::effective().contains(rustix::thread::CapabilitySet::SYS_RESOURCE);
    if counts && limit.is_some_and(|bytes| bytes < 128 << 20) && !may_raise {
        return Finding::ok("memlock", "locked memory", words).but(
            State::Missing,
            "before Linux 5.11 maps count against this limit: with less than 128 MiB they may be refused",
            "give it CAP_SYS_RESOURCE, or start it with `ulimit -l unlimited` (systemd: LimitMEMLOCK=infinity)",
        );
    }
    let words = if counts { words } else { format!("{words}; maps do not count against it from Linux 5.11 on") };
    Finding::ok("memlock", "locked memory", words)
}

/// Who may measure, and make probes by measuring: with `CAP_PERFMON` (before Linux 5.8 `CAP_SYS_ADMIN`) it does not matter.
fn paranoia() -> Finding {
    let effective = super::effective();
    let may = effective.intersects(rustix::thread::CapabilitySet::PERFMON | rustix::thread::CapabilitySet::SYS_ADMIN);
    match number("/proc/sys/kernel/perf_event_paranoid") {
        Ok(level) if may => Finding::ok("perf_event_paranoid", "perf_event_paranoid", format!("{level}, which CAP_PERFMON overrides")),
        Ok(level) => Finding::ok("perf_event_paranoid", "perf_event_paranoid", level.to_string()).but(
            State::Limited,
            "probes need CAP_PERFMON: without it neither `socket` nor `tls` can run",
            "",
        ),
        Err(error) => Finding::ok("perf_event_paranoid", "perf_event_paranoid", format!("not known: {error}")).but(State::Unknown, "", ""),
    }
}

/// Who may make probes in programs differs between releases of the same kernel.
fn uprobes() -> Finding {
    let finding = |found: String| Finding::ok(super::UPROBES, "probes in programs", found);
    match tls::may_attach() {
        Support::Yes => finding("this process may make them".to_owned()),
        Support::No => finding("not without CAP_SYS_ADMIN".to_owned()).but(
            State::Limited,
            "`--tls auto` sees into no encrypted connection",
            "where that is wanted: add CAP_SYS_ADMIN (Kubernetes: deploy/kubernetes/daemonset-tls.yaml)",
        ),
        Support::Unknown(why) => finding(format!("not known: {why}")).but(State::Unknown, "", ""),
    }
}

fn pids() -> Finding {
    match namespace("pid") {
        Some(FIRST_PID_NAMESPACE) => Finding::ok("pid_namespace", "process ids", "the host's"),
        Some(_) => Finding::ok("pid_namespace", "process ids", "a container's own").but(
            State::Limited,
            "the kernel names processes by the host's ids: services get wrong names or none",
            "start the container with the host's pid namespace (Kubernetes: `hostPID: true`, Docker: `--pid host`)",
        ),
        None => Finding::ok("pid_namespace", "process ids", "not known: /proc is not mounted").but(
            State::Unknown,
            "processes of connections cannot be named",
            "mount -t proc proc /proc",
        ),
    }
}

/// Whether this process lives in the cgroup namespace that the kernel started with.
pub(super) fn has_first_cgroup_namespace() -> Option<bool> {
    namespace("cgroup").map(|inode| inode == FIRST_CGROUP_NAMESPACE)
}

fn own_filter() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim);
    match mode {
        Some("2") => Finding::ok("seccomp", "system call filter", "this process was started under one").but(
            State::Limited,
            "it may refuse bpf(2), which looks like a missing right",
            "where programs are refused below: run it without (Kubernetes: `seccompProfile: Unconfined`, Docker: `--security-opt seccomp=unconfined`); the tracer brings its own",
        ),
        Some(_) => Finding::ok("seccomp", "system call filter", "none from outside"),
        None => Finding::ok("seccomp", "system call filter", "not known: /proc is not mounted").but(State::Unknown, "", ""),
    }
}

/// The inode of a namespace of this process.
fn namespace(kind: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
    link.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

fn number(path: &str) -> std::io::Result<i64> {
    fs::read_to_string(Path::new(path))?.trim().parse().map_err(|_| std::io::Error::other("no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_namespaces_are_those_of_the_kernels_headers() {
        assert_eq!((FIRST_CGROUP_NAMESPACE, FIRST_PID_NAMESPACE), (4_026_531_835, 4_026_531_836));
    }
}
