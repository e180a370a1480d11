//! How often the kernel left a program on a probe out, since another one, or a system call for a map, was at work on that CPU
//! (`bpf_prog_active`, `kernel/trace/bpf_trace.c`). What such a program would have seen is missing, and nothing else tells.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use aya::Ebpf;

/// What the kernel says of each program (Linux 5.12). Opened at the start, when that is allowed for certain.
pub(super) struct Missed(Vec<File>);

impl Missed {
    /// Of all loaded programs of an object.
    pub(super) fn of(ebpf: &Ebpf) -> Self {
        let descriptors = ebpf.programs().filter_map(|(_, program)| program.fd().ok());
        let open = descriptors.filter_map(|fd| File::open(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok());
        Self(open.collect())
    }

    /// How often, over all programs and CPUs. 0 on kernels that do not count it.
    pub(super) fn count(&self) -> u64 {
        let mut text = [0; 1024];
        let of_one = |file: &File| {
            let read = file.read_at(&mut text, 0).ok()?;
            count(str::from_utf8(text.get(..read)?).ok()?)
        };
        self.0.iter().filter_map(of_one).sum()
    }
}

fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn the_kernels_words_are_read() {
        let text = "pos:\t0\nflags:\t02000002\nprog_type:\t2\nrun_cnt:\t0\nrecursion_misses:\t17\nverified_insns:\t9\n";
        assert_eq!(count(text), Some(17));
        assert_eq!(count("prog_type:\t2\n"), None);
        assert_eq!(count("recursion_misses:\tmany\n"), None);
    }
}
