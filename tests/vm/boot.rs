//! What an init does: file systems, the loopback interface.

#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use xtask::vm::plan::Cgroups;

/// Controllers of cgroup v1 that a host mounts, each in a place of its own. Kernels leave out some.
const V1_CONTROLLERS: [&str; 8] = ["cpu,cpuacct", "blkio", "memory", "devices", "freezer", "net_cls,net_prio", "perf_event", "pids"];

/// Makes a machine that a daemon feels at home on.
pub(crate) fn prepare(cgroups: Cgroups) -> Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
        ("bpf", "/sys/fs/bpf"),
        ("tmpfs", "/tmp"),
    ] {
        mount_at(kind, kind, at, "")?;
    }
    // A second file system with pages of its own: files of the first lie in the archive's.
    fs::create_dir_all("/mnt/ramfs")?;
    mount_at("ramfs", "ramfs", "/mnt/ramfs", "")?;
    mount_cgroups(cgroups)?;
    // Of its log nothing may be left out.
    fs::write("/proc/sys/kernel/printk_ratelimit", "0").context("cannot have the kernel log everything")?;
    loopback_up().context("cannot bring the loopback interface up")
}

fn mount_at(source: &str, kind: &str, at: &str, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options)?;
    mount(source, at, kind, MountFlags::empty(), options.as_c_str()).with_context(|| format!("cannot mount {kind} at {at}"))
}

fn mount_cgroups(cgroups: Cgroups) -> Result<()> {
    const ROOT: &str = "/sys/fs/cgroup";
    if cgroups == Cgroups::V2 {
        return mount_at("cgroup2", "cgroup2", ROOT, "");
    }
    mount_at("tmpfs", "tmpfs", ROOT, "mode=755")?;
    let systemd = format!("{ROOT}/systemd");
    fs::create_dir(&systemd)?;
    mount_at("cgroup", "cgroup", &systemd, "none,name=systemd")?;
    for controllers in V1_CONTROLLERS {
        let at = format!("{ROOT}/{controllers}");
        fs::create_dir(&at)?;
        // Newer kernels have no memory controller of version 1, and some no net_cls.
        if mount_at("cgroup", "cgroup", &at, controllers).is_err() {
            fs::remove_dir(&at)?;
        }
    }
    if cgroups == Cgroups::Hybrid {
        let unified = format!("{ROOT}/unified");
        fs::create_dir(&unified)?;
        mount_at("cgroup2", "cgroup2", &unified, "")?;
    }
    Ok(())
}

/// `RTM_NEWLINK` for interface 1, flag `IFF_UP` set (`linux/rtnetlink.h`): addresses come by themselves.
fn loopback_up() -> Result<()> {
    const LENGTH: u32 = 32;
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_WITH_ANSWER: u16 = 1 | 4;
    const UP: u32 = 1;
    let mut message = LENGTH.to_ne_bytes().to_vec();
    message.extend([RTM_NEWLINK, REQUEST_WITH_ANSWER].map(u16::to_ne_bytes).concat());
    message.extend([0; 8]);
    // Family and type unspecified, interface 1, flags, which of them to change.
    message.extend([[0; 4], 1_u32.to_ne_bytes(), UP.to_ne_bytes(), UP.to_ne_bytes()].concat());
    // Protocol 0 is `NETLINK_ROUTE`.
    let socket: OwnedFd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&socket, &message)?;
    let mut answer = [0; 64];
    let length = rustix::io::read(&socket, &mut answer)?;
    // An error message with code 0 says that it was done.
    let code = answer.get(16..20).filter(|_| length >= 20).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        code => anyhow::bail!("netlink answers {code:?}"),
    }
}
