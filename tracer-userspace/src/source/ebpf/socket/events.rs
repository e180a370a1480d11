//! Lines that aya leaves in the kernel's lists of probes before Linux 4.17, where a probe is made by writing one: it removes its own while the
//! probe is still in use, which the kernel refuses. Ours go when the source ends, and those of processes that were killed when one starts.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

/// Where the lists can be found (the second where only debugfs is mounted).
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The lists.
const LISTS: [&str; 2] = ["kprobe_events", "uprobe_events"];

/// Where the lists are, for a process that can see them.
pub(super) fn place() -> Option<PathBuf> {
    place_of(LISTS[0]).ok().flatten()
}

/// Where a list is, if it is mounted in one of the places in which it is looked for.
///
/// # Errors
/// If this process may not look there.
pub(in crate::source::ebpf) fn place_of(list: &str) -> io::Result<Option<PathBuf>> {
    let mut refused = None;
    for place in PLACES.map(Path::new) {
        match place.join(list).try_exists() {
            Ok(true) => return Ok(Some(place.to_owned())),
            Ok(false) => {}
            Err(error) => refused = Some(error),
        }
    }
    refused.map_or(Ok(None), Err)
}

/// Whether a list can be had by mounting it privately, tried in a thread of its own.
///
/// # Errors
/// If mounting is not allowed, or the kernel has no such lists.
pub(in crate::source::ebpf) fn can_be_mounted(list: &str) -> io::Result<bool> {
    let tried = std::thread::scope(|scope| {
        let trying = scope.spawn(|| -> io::Result<bool> {
            mount_privately()?;
            Path::new(PLACES[0]).join(list).try_exists()
        });
        trying.join()
    });
    tried.unwrap_or_else(|_| Err(io::Error::other("the thread that tried it ended")))
}

/// Mounts the lists for the calling thread and what it starts, and for nobody else.
///
/// # Errors
/// If that is not allowed, or the kernel has no such lists.
pub(super) fn mount_privately() -> io::Result<()> {
    // SAFETY: the thread gets mounts of its own; descriptors stay shared.
    #[expect(unsafe_code, reason = "other flags than this one would take descriptors apart")]
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)?;
    }
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::mount::mount("tracefs", PLACES[0], "tracefs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
    Ok(())
}

/// The open lists: reached without a path from then on.
pub(super) struct Lists<F = File>(Vec<F>);

impl Lists {
    /// Opens what is there.
    pub(super) fn open(place: &Path) -> Self {
        // Not to be truncated: that would remove the probes of everybody.
        let open = |list: &&str| OpenOptions::new().read(true).append(true).open(place.join(list)).ok();
        Self(LISTS.iter().filter_map(open).collect())
    }
}

impl<F: Read + Write + Seek> Lists<F> {
    /// Removes the probes of processes that `is_gone` says are no more. Returns how many.
    pub(super) fn remove(&mut self, is_gone: impl Fn(u32) -> bool) -> usize {
        let mut removed = 0;
        for list in &mut self.0 {
            let mut text = Vec::new();
            if list.rewind().and_then(|()| list.read_to_end(&mut text)).is_err() {
                continue;
            }
            for probe in probes(&String::from_utf8_lossy(&text), &is_gone) {
                // One that is in use after all stays.
                removed += usize::from(list.write_all(format!("-:{probe}\n").as_bytes()).is_ok());
            }
        }
        removed
    }
}

/// Group and name of each probe that aya made for a process that is gone: `p:kprobes/aya_1234_p_tcp_sendmsg_0x0_0 tcp_sendmsg+0`.
pub(in crate::source::ebpf) fn probes(list: &str, is_gone: &impl Fn(u32) -> bool) -> Vec<String> {
    let of_line = |line: &str| {
        let probe = line.split_once(':')?.1.split_whitespace().next()?;
        let pid = probe.split_once('/')?.1.strip_prefix("aya_")?.split('_').next()?.parse().ok()?;
        is_gone(pid).then(|| probe.to_owned())
    };
    list.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "p:kprobes/aya_100_p_tcp_sendmsg_0x0_0 tcp_sendmsg+0\n\
                        r:kprobes/myretprobe do_sys_open $retval\n\
                        p:uprobes/aya_200_p_SSL_write_0x0_3 /usr/lib/libssl.so.3:0x0000000000036a10\n\
                        p:kprobes/aya_x_p_tcp_sendmsg_0x0_0 tcp_sendmsg+0\n\
                        p:kprobes/aya_100\n\
                        garbage\n:\np:/\n";

    #[test]
    fn probes_of_the_dead_are_told_from_all_others() {
        assert_eq!(probes(LIST, &|pid| pid == 100), ["kprobes/aya_100_p_tcp_sendmsg_0x0_0", "kprobes/aya_100"]);
        assert_eq!(probes(LIST, &|pid| pid == 200), ["uprobes/aya_200_p_SSL_write_0x0_3"]);
        assert!(probes(LIST, &|_| false).is_empty());
    }

    #[test]
    fn a_list_is_read_and_written_to() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(LIST.as_bytes()).unwrap();
        let mut lists = Lists(vec![file]);
        assert_eq!(lists.remove(|pid| pid == 200), 1);
        let mut text = String::new();
        lists.0[0].rewind().unwrap();
        lists.0[0].read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{LIST}-:uprobes/aya_200_p_SSL_write_0x0_3\n"));
    }
}
