//! Finds the root of cgroup v2, where the programs are attached: everything that runs on the host is below it.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::source::ebpf::StartError;

/// Inode of the root directory of the whole hierarchy. The root of a cgroup namespace looks the same but for this.
const ROOT_INODE: u64 = 1;

/// `CGROUP2_SUPER_MAGIC` (`linux/magic.h`).
const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// The open root directory, and where it was found.
pub(in crate::source::ebpf) struct Root {
    pub(in crate::source::ebpf) directory: OwnedFd,
    pub(in crate::source::ebpf) path: PathBuf,
}

/// Opens the configured root, or the one that is mounted, or one that is mounted for nobody else to see (hosts with cgroup v1 only).
pub(in crate::source::ebpf) fn open_root(configured: Option<&Path>) -> Result<Root, StartError> {
    if let Some(path) = configured {
        let fail = |source| StartError::CgroupRoot { path: path.to_owned(), source };
        let directory: OwnedFd = File::open(path).map_err(fail)?.into();
        if rustix::fs::fstatfs(&directory).map_err(|error| fail(error.into()))?.f_type != CGROUP2_MAGIC {
            return Err(fail(io::Error::other("it is no directory of cgroup v2")));
        }
        let inode = inode(&directory).map_err(fail)?;
        return root_of(directory, path.to_owned(), inode);
    }
    let mounts =
        std::fs::read("/proc/thread-self/mounts").map_err(|source| StartError::System { what: "read /proc/thread-self/mounts", source })?;
    let mut foreign = None;
    for path in cgroup2_mounts(&mounts) {
        let Ok(directory) = File::open(&path).map(OwnedFd::from) else { continue };
        match inode(&directory) {
            Ok(ROOT_INODE) => return Ok(Root { directory, path }),
            Ok(inode) => foreign = foreign.or(Some((path, inode))),
            Err(_) => {}
        }
    }
    if let Some((path, inode)) = foreign {
        return Err(StartError::CgroupNamespace { path, inode });
    }
    let directory = mount_privately().map_err(|source| StartError::NoCgroup2 { source })?;
    let inode = inode(&directory).map_err(|source| StartError::NoCgroup2 { source })?;
    root_of(directory, PathBuf::from("(cgroup2, mounted privately)"), inode)
}

fn root_of(directory: OwnedFd, path: PathBuf, inode: u64) -> Result<Root, StartError> {
    if inode == ROOT_INODE { Ok(Root { directory, path }) } else { Err(StartError::CgroupNamespace { path, inode }) }
}

fn inode(directory: &OwnedFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(directory)?.st_ino)
}

/// A mount that no path leads to. The attachments outlive it.
fn mount_privately() -> io::Result<OwnedFd> {
    let filesystem = rustix::mount::fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(filesystem.as_fd())?;
    let mount = rustix::mount::fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(rustix::fs::openat(&mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Where `/proc/self/mounts` says that cgroup v2 is mounted, in its order.
pub(in crate::source::ebpf) fn cgroup2_mounts(mounts: &[u8]) -> Vec<PathBuf> {
    mounts
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == b"cgroup2").then(|| PathBuf::from(OsString::from_vec(unescape(place))))
        })
        .collect()
}

/// Undoes the octal escapes of blanks, tabs, newlines and backslashes in a mount's place.
fn unescape(place: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(place.len());
    let mut rest = place;
    while let Some((&byte, behind)) = rest.split_first() {
        let code = behind.first_chunk().copied().filter(|_| byte == b'\\').and_then(octal);
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { behind.get(3..).unwrap_or_default() } else { behind };
    }
    plain
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |code, digit| match digit {
        b'0'..=b'7' => code.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_where_the_system_put_it() {
        for (name, mounts, wanted) in [
            ("systemd", "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n", vec!["/sys/fs/cgroup"]),
            (
                "hybrid",
                "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
                vec!["/sys/fs/cgroup/unified"],
            ),
            ("v1 only", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", vec![]),
            ("a blank in the path", "none /mnt/c\\040g cgroup2 rw 0 0\n", vec!["/mnt/c g"]),
            ("a file system that is named like it", "cgroup2 /mnt/x ext4 rw 0 0\n", vec![]),
            ("a line that is cut", "cgroup2 /sys/fs", vec![]),
        ] {
            assert_eq!(cgroup2_mounts(mounts.as_bytes()), wanted.into_iter().map(PathBuf::from).collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"/a\\134b\\09"), b"/a\\b\\09");
        assert_eq!(unescape(b"\\777\\+12\\04"), b"\\777\\+12\\04", "no byte, no digit, too short");
        assert_eq!(unescape(b"/caf\xe9\\040"), b"/caf\xe9 ", "a path is bytes");
    }

    #[test]
    fn a_configured_root_that_is_no_cgroup_is_refused() {
        for path in ["/nonexistent", "/proc", "/"] {
            assert!(matches!(open_root(Some(Path::new(path))), Err(StartError::CgroupRoot { .. })), "{path}");
        }
    }

    #[test]
    #[ignore = "needs root: `cargo xtask test`"]
    fn the_hierarchy_can_be_mounted_for_nobody_else_to_see() {
        let directory = mount_privately().expect("root may mount cgroup v2");
        assert_eq!(inode(&directory).unwrap(), ROOT_INODE, "tests run outside of cgroup namespaces");
    }
}
