//! The files with code in them that a process has mapped: `/proc/PID/maps`.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use crate::source::ebpf::procfs::lossy;

/// What a process has mapped, as the kernel lists it.
pub(super) fn list(pid: u32) -> io::Result<String> {
    lossy(format!("/proc/{pid}/maps"))
}

/// A file with code in it that a process has mapped.
pub(in crate::source::ebpf) struct Mapped<'a> {
    /// Where it is mapped, as the kernel names it.
    pub(in crate::source::ebpf) range: &'a str,
    /// Its file system's device.
    pub(in crate::source::ebpf) device: &'a str,
    /// Its inode, never 0.
    pub(in crate::source::ebpf) inode: u64,
    /// Its path as the process sees it.
    pub(in crate::source::ebpf) path: &'a str,
}

impl<'a> Mapped<'a> {
    /// A line of `/proc/PID/maps`: range, rights, offset, device, inode, path.
    pub(in crate::source::ebpf) fn parse(line: &'a str) -> Option<Self> {
        let mut rest = line;
        let mut field = || {
            let (field, after) = rest.trim_start_matches(' ').split_once(' ')?;
            rest = after;
            Some(field)
        };
        let (range, rights, _, device, inode) = (field()?, field()?, field()?, field()?, field()?);
        let path = rest.trim_start_matches(' ');
        let inode = inode.parse().ok().filter(|&inode| inode != 0)?;
        (rights.contains('x') && path.starts_with('/')).then_some(Self { range, device, inode, path })
    }

    /// The last part of its path.
    pub(in crate::source::ebpf) fn name(&self) -> &'a str {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(self.path);
        path.rsplit('/').next().unwrap_or(path)
    }

    /// Opens the file that is mapped, whatever has its name by now; where that is not allowed, what has its name in the process's own
    /// mounts. Was the file replaced, its name ends in a word that no file has.
    pub(super) fn open(&self, pid: u32) -> Option<File> {
        // A device could wait, or do something, when it is opened.
        let regular = |path: PathBuf| fs::metadata(&path).ok().filter(fs::Metadata::is_file).and_then(|_| File::open(path).ok());
        regular(PathBuf::from(format!("/proc/{pid}/map_files/{}", self.range)))
            .or_else(|| regular(PathBuf::from(format!("/proc/{pid}/root{}", self.path))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_code_is_read_from_the_kernels_list() {
        let line = "7f1c2a400000-7f1c2a4a5000 r-xp 0001f000 fe:00 393243                     /usr/lib/x86_64-linux-gnu/libssl.so.3";
        let mapped = Mapped::parse(line).unwrap();
        assert_eq!((mapped.range, mapped.device, mapped.inode), ("7f1c2a400000-7f1c2a4a5000", "fe:00", 393_243));
        assert_eq!((mapped.path, mapped.name()), ("/usr/lib/x86_64-linux-gnu/libssl.so.3", "libssl.so.3"));
        let replaced = Mapped::parse("7f00-7f01 r-xp 0 fe:00 9 /opt/a b/libssl.so.3 (deleted)").unwrap();
        assert_eq!((replaced.path, replaced.name()), ("/opt/a b/libssl.so.3 (deleted)", "libssl.so.3"));
        for other in [
            "7f00-7f01 r--p 00000000 fe:00 393243 /usr/lib/libssl.so.3",
            "7f00-7f01 r-xp 00000000 00:00 0 [vdso]",
            "7f00-7f01 rwxp 00000000 00:00 0 ",
            "",
            "7f00-7f01",
        ] {
            assert!(Mapped::parse(other).is_none(), "{other}");
        }
    }
}
