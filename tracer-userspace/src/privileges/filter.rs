//! The filter of system calls under which the daemon runs once it captures: what it does not need then is refused with EPERM.
//!
//! It is not the kernel that is kept from the daemon, but whoever might come to speak through it: no other program can be started, no file written,
//! no process touched, no eBPF program loaded.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter_all_threads,
};

/// What becomes of a system call that the daemon does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is refused with EPERM.
    Refuse,
    /// It is made, and the kernel writes it to its log.
    Log,
}

/// What the running sources do beyond reading what the kernel hands over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// They load and attach programs later, too: libraries of new processes.
    pub attaches_later: bool,
    /// They take away at the end what they wrote to tracefs.
    pub writes_tracefs: bool,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(String);

/// System calls that need no look at their arguments.
const ALLOWED: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads and time. Without execve a new process is this program again, under this filter.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // What is told of this process and its host.
    libc::SYS_capget,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getuid,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Files: opening them is looked at below.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_faccessat,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    // The network: making sockets is looked at below.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
];

/// Those that newer machines do without.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_epoll_wait,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// Commands of bpf(2) on maps, and what tells of programs (`enum bpf_cmd`: lookup, update, delete, next key, info by descriptor).
const BPF_USES: [u64; 5] = [1, 2, 3, 4, 15];

/// Commands that make maps, programs and attachments (create map, load program, load types, raw tracepoint, create link, and what aya tries).
const BPF_MAKES: [u64; 7] = [0, 5, 8, 9, 17, 18, 28];

/// `PR_SET_NAME`, and `PR_SET_VMA` by which allocators name their memory.
const PRCTL: [u64; 2] = [15, 0x5356_4d41];

/// Families of sockets: local, IPv4, IPv6, and the kernel itself, which resolvers ask for this host's addresses.
const FAMILIES: [u64; 4] = [1, 2, 10, 16];

/// Refuses what the daemon does not need, for all threads there are and will be. It cannot be undone.
///
/// # Errors
/// If the kernel has no filters, or a thread has one of its own. Nothing is filtered then.
pub fn restrict(refusal: Refusal, extra: Extra) -> Result<(), FilterError> {
    let program = program(refusal, extra)?;
    apply_filter_all_threads(&program).map_err(|error| FilterError(error.to_string()))
}

fn program(refusal: Refusal, extra: Extra) -> Result<BpfProgram, FilterError> {
    let fail = |error: seccompiler::BackendError| FilterError(error.to_string());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    let mut one_of = |call: i64, argument: u8, values: &[u64]| -> Result<(), FilterError> {
        let rule = |value: &u64| {
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value)?;
            SeccompRule::new(vec![condition])
        };
        rules.insert(call, values.iter().map(rule).collect::<Result<_, _>>().map_err(fail)?);
        Ok(())
    };
    one_of(libc::SYS_socket, 0, &FAMILIES)?;
    one_of(libc::SYS_prctl, 0, &PRCTL)?;
    if extra.attaches_later {
        one_of(libc::SYS_bpf, 0, &[&BPF_USES[..], &BPF_MAKES].concat())?;
        rules.insert(libc::SYS_perf_event_open, Vec::new());
    } else {
        one_of(libc::SYS_bpf, 0, &BPF_USES)?;
    }
    // Reading only: neither writing nor making files (`O_ACCMODE`, `O_CREAT`, `O_TRUNC`).
    let writing = u64::from((libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC).cast_unsigned());
    let opens: &[(i64, u8)] = &[
        (libc::SYS_openat, 2),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, 1),
    ];
    for (call, argument) in opens {
        let reading = SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(writing), 0).map_err(fail)?;
        let rule = SeccompRule::new(vec![reading]).map_err(fail)?;
        rules.insert(*call, if extra.writes_tracefs { Vec::new() } else { vec![rule] });
    }
    let otherwise = match refusal {
        Refusal::Refuse => SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        Refusal::Log => SeccompAction::Log,
    };
    let arch = std::env::consts::ARCH.try_into().map_err(fail)?;
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch).map_err(fail)?.try_into().map_err(fail)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;

    use super::*;

    /// Runs a function in a thread under the filter.
    fn under_the_filter<T: Send>(extra: Extra, f: impl FnOnce() -> T + Send) -> T {
        let program = program(Refusal::Refuse, extra).unwrap();
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    seccompiler::apply_filter(&program).unwrap();
                    f()
                })
                .join()
                .unwrap()
        })
    }

    #[test]
    fn what_the_daemon_does_is_let_through() {
        under_the_filter(Extra::default(), || {
            let mut text = String::new();
            File::open("/proc/thread-self/status").unwrap().read_to_string(&mut text).unwrap();
            assert!(text.contains("NoNewPrivs:\t1"), "{text}");
            assert!(fs::read_dir("/proc").unwrap().count() > 0);
            fs::read_link("/proc/self/exe").unwrap();
            let listener = TcpListener::bind("127.0.0.1:0");
            // Serving comes before the filter: the daemon opens no port later.
            assert_eq!(listener.unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(TcpStream::connect("127.0.0.1:1").unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(std::thread::spawn(|| vec![1_u8; 64 << 20].len()).join().unwrap(), 64 << 20);
        });
    }

    #[test]
    fn what_the_daemon_does_not_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let (new, old) = (scratch.path().join("new"), scratch.path().join("old"));
        fs::write(&old, "old").unwrap();
        under_the_filter(Extra::default(), || {
            let refused = |what: &str, result: std::io::Result<()>| {
                assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied), "{what}");
            };
            refused("making a file", File::create(&new).map(drop));
            refused("writing a file", OpenOptions::new().write(true).open(&old).map(drop));
            refused("removing a file", fs::remove_file(&old));
            refused("making a folder", fs::create_dir(&new));
            refused("starting a program", Command::new("/bin/true").spawn().map(drop));
            let raw = rustix::net::socket(rustix::net::AddressFamily::PACKET, rustix::net::SocketType::RAW, None);
            refused("seeing raw packets", raw.map(drop).map_err(Into::into));
            refused(
                "entering a namespace",
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&File::open("/proc/self/ns/net").unwrap()), None)
                    .map_err(Into::into),
            );
            refused("mounting", rustix::mount::unmount("/nonexistent", rustix::mount::UnmountFlags::empty()).map_err(Into::into));
            let own = rustix::process::getpid();
            refused("signalling a process", rustix::process::test_kill_process(own).map_err(Into::into));
        });
        assert_eq!(fs::read_to_string(&old).unwrap(), "old");
        under_the_filter(Extra { writes_tracefs: true, ..Extra::default() }, || File::create(&new).map(drop)).unwrap();
    }

    #[test]
    fn nothing_is_allowed_twice() {
        let mut calls: Vec<i64> = ALLOWED.iter().chain(ALLOWED_HERE).copied().collect();
        calls.extend([libc::SYS_bpf, libc::SYS_openat, libc::SYS_prctl, libc::SYS_socket]);
        let count = calls.len();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), count);
    }
}
