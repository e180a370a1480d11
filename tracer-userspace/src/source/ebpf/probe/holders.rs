//! Who is attached to the root of cgroup v2 already, and whether there is room beside it. Asks the kernel by bpf(2) itself: aya has no way to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::kernel::Support;

/// `BPF_PROG_QUERY` and `BPF_LINK_CREATE` (`enum bpf_cmd`, `linux/bpf.h`).
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;

/// `BPF_F_ALLOW_MULTI`.
const ALLOW_MULTI: u32 = 2;

/// Programs that are asked for of one hook.
const MOST_PROGRAMS: u32 = 64;

/// A hook of a cgroup: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) name: &'static str,
    attach_type: u32,
}

/// The hooks that the packet source attaches to.
pub(super) const HOOKS: [Hook; 6] = [
    Hook { name: "ingress", attach_type: 0 },
    Hook { name: "egress", attach_type: 1 },
    Hook { name: "connect4", attach_type: 10 },
    Hook { name: "connect6", attach_type: 11 },
    Hook { name: "getpeername4", attach_type: 29 },
    Hook { name: "getpeername6", attach_type: 30 },
];

/// What is attached to one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) hook: Hook,
    pub(super) programs: Vec<u32>,
    /// Nobody can attach beside them.
    pub(super) is_exclusive: bool,
}

/// `struct { target_fd, ... } query` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}
const _: () = assert!(size_of::<QueryAttributes>() == 32);

/// `struct { prog_fd, ... } link_create` of `union bpf_attr`.
#[repr(C)]
struct LinkAttributes {
    prog_fd: i32,
    target_fd: i32,
    attach_type: u32,
    flags: u32,
}
const _: () = assert!(size_of::<LinkAttributes>() == 16);

/// What is attached to the cgroup itself.
pub(super) fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Vec<Attached>> {
    let mut found = Vec::new();
    for hook in HOOKS {
        match query(cgroup, hook) {
            Ok(attached) => found.push(attached),
            // The kernel is older than the hook.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn query(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Attached> {
    let mut ids = [0u32; MOST_PROGRAMS as usize];
    let mut attributes = QueryAttributes {
        target_fd: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        attach_type: hook.attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MOST_PROGRAMS,
        ..QueryAttributes::default()
    };
    // SAFETY: the attributes are those of the command, and `prog_ids` has room for the `prog_cnt` numbers that the kernel writes at most.
    #[expect(unsafe_code, reason = "a system call")]
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut attributes, size_of::<QueryAttributes>()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        // More programs than there was room for: the first ones are there.
        if error.raw_os_error() != Some(libc::ENOSPC) {
            return Err(error);
        }
    }
    let count = attributes.prog_cnt.min(MOST_PROGRAMS) as usize;
    let programs: Vec<u32> = ids.iter().copied().take(count).collect();
    let is_exclusive = !programs.is_empty() && attributes.attach_flags & ALLOW_MULTI == 0;
    Ok(Attached { hook, programs, is_exclusive })
}

/// Whether attachments can be links: a kernel that knows the command says what is wrong with a descriptor that is none.
pub(super) fn has_links() -> Support {
    let attributes = LinkAttributes { prog_fd: -1, target_fd: -1, attach_type: 0, flags: 0 };
    // SAFETY: the attributes are those of the command; it cannot succeed without a program.
    #[expect(unsafe_code, reason = "a system call")]
    let result = unsafe { libc::syscall(libc::SYS_bpf, LINK_CREATE, &raw const attributes, size_of::<LinkAttributes>()) };
    if result >= 0 {
        return Support::Unknown("the kernel made a link out of nothing".to_owned());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EBADF) => Support::Yes,
        Some(libc::EINVAL) => Support::No,
        Some(libc::EPERM | libc::EACCES) => Support::Unknown(super::kernel::NOT_ALLOWED.to_owned()),
        _ => Support::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    use aya::EbpfLoader;
    use aya::programs::CgroupSkb;

    use super::*;
    use crate::source::ebpf::packet;

    /// `BPF_PROG_ATTACH`.
    const PROG_ATTACH: libc::c_long = 8;

    struct Child(PathBuf);

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    /// Attaches as programs did before there were links: it stays until the cgroup goes.
    fn attach(cgroup: &File, program: BorrowedFd<'_>, flags: u32) {
        let attributes = [cgroup.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned(), 1, flags];
        // SAFETY: the attributes are those of the command.
        #[expect(unsafe_code, reason = "a system call")]
        let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attributes.as_ptr(), size_of_val(&attributes)) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    #[test]
    #[ignore = "needs root: `cargo xtask test`"]
    fn who_lets_nobody_else_in_is_told_from_who_does() {
        let root = packet::open_cgroup_root(None).unwrap().path;
        let mut ebpf = EbpfLoader::new().btf(None).load(packet::object().bytes).unwrap();
        let program: &mut CgroupSkb = ebpf.program_mut("packet_egress").unwrap().try_into().unwrap();
        program.load().unwrap();
        let program = program.fd().unwrap().as_fd();
        for (flags, exclusive) in [(0, true), (ALLOW_MULTI, false)] {
            let child = Child(root.join(format!("kafka-tracer-held-{}-{flags}", std::process::id())));
            fs::create_dir(&child.0).unwrap();
            let cgroup = File::open(&child.0).unwrap();
            assert!(attached(cgroup.as_fd()).unwrap().iter().all(|attached| attached.programs.is_empty()));
            attach(&cgroup, program, flags);
            let found = attached(cgroup.as_fd()).unwrap();
            assert_eq!(found.len(), HOOKS.len());
            let of = |name| found.iter().find(|attached| attached.hook.name == name).unwrap();
            assert_eq!((of("egress").programs.len(), of("egress").is_exclusive), (1, exclusive), "flags {flags}");
            assert_eq!((of("ingress").programs.len(), of("ingress").is_exclusive), (0, false));
        }
    }
}
