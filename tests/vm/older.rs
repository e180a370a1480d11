//! Runs a program on this kernel as on an older one: what the older one does not know, it is refused with what the older one says.
//!
//! A filter of system calls hands those that matter to a thread of this process before the kernel sees them. It knows system calls by number,
//! bpf(2) by its attributes (commands, kinds and flags of maps, kinds of programs, helpers and instructions, and fields that came later), and
//! gives the older kernel's name to who asks. Files that came later are covered. What cannot be shown this way: the older verifier (the tests on
//! the object files follow that), and where the older kernel keeps what in its structures.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::channel;

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use xtask::vm::plan::Older;

/// What an older kernel knows.
struct Knowledge {
    release: &'static str,
    /// `LINUX_VERSION_CODE`.
    code: u32,
    /// The last system call (`arch/x86/entry/syscalls/syscall_64.tbl`).
    system_calls: u32,
    /// The last command of bpf(2), kind of map, kind of program and helper (`include/uapi/linux/bpf.h`).
    commands: u32,
    maps: u32,
    programs: u32,
    helpers: i32,
    /// Flags of maps; those of arrays.
    map_flags: u32,
    array_flags: u32,
    /// Bytes of the attributes that make a map, and that load a program: those behind them have to be zero.
    map_bytes: usize,
    program_bytes: usize,
    instructions: u32,
    /// It knows jumps that compare 32 bits (5.1), and calls of functions (4.16).
    has_jump_32: bool,
    has_functions: bool,
    /// It asks of programs on kprobes that they name its own version.
    asks_version: bool,
    /// Files that came later, or that this one was built without.
    hidden: &'static [&'static str],
}

const LINUX_4_14: Knowledge = Knowledge {
    release: "4.14.336",
    // The last number is clamped in later releases of the series.
    code: (4 << 16) + (14 << 8) + 255,
    system_calls: 332,
    commands: 15,
    maps: 15,
    programs: 14,
    helpers: 53,
    map_flags: 0b111,
    array_flags: 0b100,
    map_bytes: 28,
    program_bytes: 48,
    instructions: 4096,
    has_jump_32: false,
    has_functions: false,
    asks_version: true,
    hidden: &["/sys/bus/event_source/devices"],
};

const LINUX_5_4: Knowledge = Knowledge {
    release: "5.4.286",
    code: (5 << 16) + (4 << 8) + 255,
    system_calls: 435,
    commands: 23,
    maps: 25,
    programs: 25,
    helpers: 110,
    map_flags: (1 << 10) - 1,
    array_flags: 0b1_1001_1100,
    map_bytes: 60,
    program_bytes: 108,
    instructions: 1_000_000,
    has_jump_32: true,
    has_functions: true,
    asks_version: false,
    // As kernels are that do not describe their types. The table of versions says of 5.4 what is right on 5.10.
    hidden: &["/sys/kernel/btf"],
};

/// Linux 5.10 that refuses rings, as a kernel that was built otherwise may.
const WITHOUT_RING: Knowledge = Knowledge {
    release: "5.10.223",
    code: 0,
    system_calls: u32::MAX,
    commands: u32::MAX,
    maps: 26,
    programs: u32::MAX,
    helpers: i32::MAX,
    map_flags: u32::MAX,
    array_flags: u32::MAX,
    map_bytes: usize::MAX,
    program_bytes: usize::MAX,
    instructions: u32::MAX,
    has_jump_32: true,
    has_functions: true,
    asks_version: false,
    hidden: &[],
};

fn knowledge(older: Older) -> &'static Knowledge {
    match older {
        Older::NoRing => &WITHOUT_RING,
        Older::Linux414 => &LINUX_4_14,
        Older::Linux54 => &LINUX_5_4,
    }
}

/// Where tracefs is in a guest, and what holds another one.
const TRACE: [(&str, &str); 2] = [("debugfs", "/sys/kernel/debug"), ("tracefs", "/sys/kernel/tracing")];

/// What is out of sight, until this is dropped.
#[derive(Default)]
pub(crate) struct Hidden {
    covered: Vec<&'static str>,
    /// Kind and place.
    unmounted: Vec<(&'static str, &'static str)>,
}

impl Hidden {
    /// Covers what the older kernel has not. Where that needs tracefs, it is left, or unmounted, as it is on many hosts.
    pub(crate) fn of(older: Older, has_tracefs: bool) -> Result<Self> {
        let mut hidden = Self::default();
        for path in knowledge(older).hidden.iter().copied().filter(|path| Path::new(path).exists()) {
            mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, None).with_context(|| format!("cannot cover {path}"))?;
            hidden.covered.push(path);
        }
        if older == Older::Linux414 && !has_tracefs {
            for (kind, path) in TRACE {
                match unmount(path, UnmountFlags::DETACH) {
                    Ok(()) => hidden.unmounted.push((kind, path)),
                    // Another daemon runs as on the same kernel.
                    Err(Errno::INVAL) => {}
                    Err(error) => return Err(error).with_context(|| format!("cannot unmount {path}")),
                }
            }
        }
        Ok(hidden)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        for path in &self.covered {
            if let Err(error) = unmount(*path, UnmountFlags::DETACH) {
                eprintln!("{path} stays covered: {error}");
            }
        }
        for (kind, path) in &self.unmounted {
            if let Err(error) = mount(*kind, *path, *kind, MountFlags::empty(), None) {
                eprintln!("{path} stays unmounted: {error}");
            }
        }
    }
}

/// Starts a program on the older kernel.
pub(crate) fn spawn(mut command: Command, older: Older) -> Result<Child> {
    let knowledge = knowledge(older);
    let (send, receive) = channel();
    // The filter is that of a thread and of what it starts; nobody else gets it.
    let started = std::thread::scope(|scope| {
        let starting = scope.spawn(move || -> Result<Child> {
            let listener = filter(knowledge).context("cannot filter system calls")?;
            send.send(listener)?;
            Ok(command.spawn()?)
        });
        if let Ok(listener) = receive.recv() {
            std::thread::spawn(move || answer_all(&listener, knowledge));
        }
        starting.join().map_err(|_| anyhow!("the thread that starts it panicked"))?
    });
    started.context("as on an older kernel")
}

/// Instructions of a filter, and what it can answer (`linux/bpf_common.h`, `linux/seccomp.h`).
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const RETURN: u16 = 0x06;
const NUMBER_AT: u32 = 0;
const REFUSE: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or_default()
}

/// Filters system calls of this thread from now on. What is returned tells of those that are to be answered.
fn filter(knowledge: &Knowledge) -> io::Result<OwnedFd> {
    const NEW_LISTENER: libc::c_long = 1 << 3;
    let listener = set(
        &mut [
            step(LOAD, 0, 0, NUMBER_AT),
            step(IF_GREATER, 4, 0, knowledge.system_calls),
            step(IF_EQUAL, 2, 0, number(libc::SYS_bpf)),
            step(IF_EQUAL, 1, 0, number(libc::SYS_uname)),
            step(RETURN, 0, 0, ALLOW),
            step(RETURN, 0, 0, NOTIFY),
            step(RETURN, 0, 0, REFUSE | libc::ENOSYS.cast_unsigned()),
        ],
        NEW_LISTENER,
    )?;
    // SAFETY: the kernel just made it, and nobody else knows it.
    #[expect(unsafe_code, reason = "a descriptor that the kernel made")]
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// Makes a system call that a filter has the kernel write to its log.
pub(crate) fn make_a_logged_call() -> Result<()> {
    let made = std::thread::spawn(|| -> io::Result<()> {
        let logged = number(libc::SYS_getppid);
        set(&mut [step(LOAD, 0, 0, NUMBER_AT), step(IF_EQUAL, 0, 1, logged), step(RETURN, 0, 0, LOG), step(RETURN, 0, 0, ALLOW)], 0)?;
        let _ = rustix::process::getppid();
        Ok(())
    });
    made.join().map_err(|_| anyhow!("the thread that makes a call panicked"))?.context("cannot filter system calls")
}

fn set(program: &mut [libc::sock_filter], flags: libc::c_long) -> io::Result<i32> {
    let program = libc::sock_fprog { len: u16::try_from(program.len()).unwrap_or_default(), filter: program.as_mut_ptr() };
    // SAFETY: the program is there, and as long as it says.
    #[expect(unsafe_code, reason = "a system call that no crate has")]
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Default)]
struct Call {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    at: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Default)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`: the kernel does what was asked.
const GO_ON: u32 = 1;

/// What becomes of a call.
enum Outcome {
    GoOn,
    Done,
    Refused(i32),
}

/// Answers until nobody is left who could ask.
fn answer_all(listener: &OwnedFd, knowledge: &Knowledge) {
    loop {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut ready, None::<&Timespec>).is_err() || ready.iter().any(|fd| fd.revents().contains(PollFlags::HUP)) {
            return;
        }
        let mut call = Call::default();
        // SAFETY: the structure is the one that the request writes.
        #[expect(unsafe_code, reason = "a system call that no crate has")]
        let received = unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), RECEIVE, &raw mut call) };
        if received != 0 {
            // Who asked is gone.
            continue;
        }
        let outcome = answer(&call, knowledge).unwrap_or_else(|error| {
            eprintln!("an older kernel cannot be shown: {error:#}");
            Outcome::Refused(libc::EFAULT)
        });
        let mut answer = Answer { id: call.id, ..Answer::default() };
        match outcome {
            Outcome::GoOn => answer.flags = GO_ON,
            Outcome::Done => {}
            Outcome::Refused(number) => answer.error = -number,
        }
        // SAFETY: the structure is the one that the request reads.
        #[expect(unsafe_code, reason = "a system call that no crate has")]
        unsafe {
            libc::ioctl(listener.as_fd().as_raw_fd(), SEND, &raw mut answer);
        }
    }
}

fn answer(call: &Call, knowledge: &Knowledge) -> Result<Outcome> {
    let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", call.pid)).context("the caller's memory")?;
    let [first, second, third, ..] = call.arguments;
    if i64::from(call.number) == libc::SYS_uname {
        memory.write_all_at(&names(knowledge), first).context("the kernel's name")?;
        return Ok(Outcome::Done);
    }
    let mut attributes = vec![0; usize::try_from(third).unwrap_or(usize::MAX).min(4096)];
    memory.read_exact_at(&mut attributes, second).context("attributes of bpf(2)")?;
    Ok(knowledge.judge(first, &attributes, |at, bytes| {
        let mut code = vec![0; bytes];
        memory.read_exact_at(&mut code, at).map(|()| code)
    }))
}

/// `struct new_utsname`: six names of 65 bytes.
fn names(knowledge: &Knowledge) -> Vec<u8> {
    let own = rustix::system::uname();
    let names =
        [own.sysname(), own.nodename(), own.release(), own.version(), own.machine(), own.domainname()].map(std::ffi::CStr::to_bytes);
    let mut bytes = Vec::with_capacity(6 * 65);
    for (index, name) in names.into_iter().enumerate() {
        // Release, and what else loaders read a version from: Debian's kernels have theirs behind the day of the build.
        let name = match index {
            2 => knowledge.release.as_bytes(),
            3 => b"#1 SMP",
            _ => name,
        };
        bytes.extend(name.iter().copied().chain(std::iter::repeat(0)).take(65));
    }
    bytes
}

impl Knowledge {
    /// What it says to a command of bpf(2). `read` reads the caller's memory.
    fn judge(&self, command: u64, attributes: &[u8], read: impl Fn(u64, usize) -> io::Result<Vec<u8>>) -> Outcome {
        const MAP_CREATE: u64 = 0;
        const PROGRAM_LOAD: u64 = 5;
        const ARRAY: u32 = 2;
        const KPROBE: u32 = 2;
        let invalid = Outcome::Refused(libc::EINVAL);
        if command > u64::from(self.commands) {
            return invalid;
        }
        let number = |at: usize| attributes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let is_clear_from = |at: usize| attributes.get(at..).unwrap_or_default().iter().all(|byte| *byte == 0);
        match command {
            MAP_CREATE => {
                let (kind, flags) = (number(0), number(16));
                let known = if kind == ARRAY { self.array_flags } else { self.map_flags };
                if kind > self.maps || flags & !known != 0 || !is_clear_from(self.map_bytes) {
                    return invalid;
                }
            }
            PROGRAM_LOAD => {
                let (kind, count) = (number(0), number(4));
                if kind > self.programs || !is_clear_from(self.program_bytes) {
                    return invalid;
                }
                if count > self.instructions {
                    return Outcome::Refused(libc::E2BIG);
                }
                if self.asks_version && kind == KPROBE && number(40) != self.code {
                    return invalid;
                }
                let at = u64::from(number(8)) | u64::from(number(12)) << 32;
                let Ok(code) = read(at, count as usize * 8) else { return Outcome::Refused(libc::EFAULT) };
                if !code.as_chunks::<8>().0.iter().all(|instruction| self.knows(*instruction)) {
                    return invalid;
                }
            }
            _ => {}
        }
        Outcome::GoOn
    }

    fn knows(&self, instruction: [u8; 8]) -> bool {
        const CALL: u8 = 0x85;
        const JUMP_32: u8 = 6;
        let [code, registers, _, _, value @ ..] = instruction;
        if code == CALL {
            let is_function = registers >> 4 != 0;
            return if is_function { self.has_functions } else { i32::from_ne_bytes(value) <= self.helpers };
        }
        self.has_jump_32 || code & 7 != JUMP_32
    }
}
