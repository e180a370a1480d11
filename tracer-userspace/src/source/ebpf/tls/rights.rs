//! Whether this thread may make uprobes. Linux 5.8 gave that to `CAP_PERFMON`, and 6.16 took it back (`perf_uprobe_event_init` in
//! kernel/events/core.c, CVE-2025-38466), as did 6.12.39, 6.6.99, 6.1.146, 5.15.189 and 5.10.240. Kernels of distributions follow none of these
//! numbers, so the kernel is asked.

use std::ffi::CStr;
use std::fs;
use std::io;

use crate::source::ebpf::probe::Support;

/// No file has this name: the kernel looks for it once it has decided that the caller may.
const NO_FILE: &CStr = c"/proc/self/no-such-file";

/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// `struct perf_event_attr` in its second form (`linux/perf_event.h`, `PERF_ATTR_SIZE_VER1`).
#[repr(C)]
#[derive(Default)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    uprobe_path: u64,
    probe_offset: u64,
}
const ATTRIBUTE_BYTES: u32 = 72;
const _: () = assert!(size_of::<EventAttributes>() == ATTRIBUTE_BYTES as usize);

/// Asks for a uprobe that cannot be, so that none is made.
pub(crate) fn may_attach() -> Support {
    let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").map_err(|error| error.to_string());
    let kind = kind.and_then(|text| text.trim().parse().map_err(|_| "the kernel's number for uprobes is none".to_owned()));
    let kind = match kind {
        Ok(kind) => kind,
        Err(why) => return Support::Unknown(why),
    };
    let attributes = EventAttributes { kind, size: ATTRIBUTE_BYTES, uprobe_path: NO_FILE.as_ptr() as u64, ..Default::default() };
    let (this_process, any_cpu, no_group) = (0, -1, -1);
    // SAFETY: the attributes are as large as they say, and the path that they point to ends with a zero; both outlive the call.
    #[expect(unsafe_code, reason = "a system call")]
    let result = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, this_process, any_cpu, no_group, CLOSE_ON_EXEC) };
    if result >= 0 {
        return Support::Unknown("the kernel made a probe in a file that is not there".to_owned());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Support::Yes,
        Some(libc::EACCES | libc::EPERM) => Support::No,
        _ => Support::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::CapabilitySet;

    use super::*;
    use crate::privileges::{effective, keep_only};

    #[test]
    fn whoever_may_do_everything_may_make_probes_and_whoever_may_nothing_may_not() {
        if !effective().contains(CapabilitySet::SYS_ADMIN) {
            assert_ne!(may_attach(), Support::Yes);
            return;
        }
        assert_eq!(may_attach(), Support::Yes);
        let without = std::thread::spawn(|| {
            keep_only(CapabilitySet::empty()).unwrap();
            may_attach()
        });
        assert_eq!(without.join().unwrap(), Support::No);
    }
}
