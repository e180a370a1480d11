//! Network namespaces of the tests' own, a rough line between two of them, and socket options that the standard library lacks.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with loopback, which goes when this is dropped.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let name = format!("kt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` in here.
    pub(crate) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    /// Runs a function in here. Sockets that it makes stay here.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace was just made");
                    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
                        .expect("root may enter a network namespace");
                    f()
                })
                .join()
                .expect("the thread in the namespace ends")
        })
    }

    /// Joins it to another one by a pair of devices, with addresses 10.77.0.1 and 10.77.0.2 (`fd77::1` and `fd77::2`).
    pub(crate) fn join(&self, other: &Self) {
        ip(&format!("link add kt0 netns {} type veth peer name kt0 netns {}", self.name, other.name));
        for (namespace, number) in [(self, 1), (other, 2)] {
            namespace.ip(&format!("addr add 10.77.0.{number}/24 dev kt0"));
            namespace.ip(&format!("addr add fd77::{number}/64 dev kt0 nodad"));
            namespace.ip("link set kt0 up");
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("the live tests need `ip` (package iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A line between two namespaces that loses, repeats and reorders packets, as a bad network does. (The kernel's own `netem` is a module that
/// many hosts do not have.)
pub(crate) struct RoughLine {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Packets lost, repeated, and held back behind later ones.
    pub(crate) lost: Arc<AtomicU64>,
    pub(crate) repeated: Arc<AtomicU64>,
    pub(crate) delayed: Arc<AtomicU64>,
}

impl RoughLine {
    /// Makes it, with the addresses of [`Namespace::join`].
    pub(crate) fn between(one: &Namespace, other: &Namespace) -> Self {
        let ends = [(one, 1), (other, 2)].map(|(namespace, number)| {
            let tun = namespace.run(open_tun);
            namespace.ip(&format!("addr add 10.77.0.{number}/24 dev kt0"));
            namespace.ip("link set kt0 up");
            File::from(tun)
        });
        let [a, b] = ends;
        let (a2, b2) = (a.try_clone().unwrap(), b.try_clone().unwrap());
        let mut line =
            Self { stop: Arc::default(), threads: Vec::new(), lost: Arc::default(), repeated: Arc::default(), delayed: Arc::default() };
        line.threads = [(a, b, 1), (b2, a2, 2)].map(|(from, to, seed)| line.forward(from, to, seed)).into();
        line
    }

    fn forward(&self, mut from: File, mut to: File, mut state: u64) -> JoinHandle<()> {
        let (stop, lost, repeated, delayed) = (self.stop.clone(), self.lost.clone(), self.repeated.clone(), self.delayed.clone());
        std::thread::spawn(move || {
            let mut packet = vec![0; 65_536];
            let mut held: Option<Vec<u8>> = None;
            while !stop.load(Ordering::Relaxed) {
                let mut ready = [rustix::event::PollFd::new(&from, rustix::event::PollFlags::IN)];
                let time = rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
                if rustix::event::poll(&mut ready, Some(&time)).unwrap_or(0) == 0 {
                    // Nothing follows: what was held back goes.
                    if let Some(held) = held.take() {
                        let _ = to.write_all(&held);
                    }
                    continue;
                }
                let Ok(len) = from.read(&mut packet) else { continue };
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let dice = state >> 33;
                let packet = &packet[..len];
                if dice.is_multiple_of(50) {
                    lost.fetch_add(1, Ordering::Relaxed);
                } else if dice % 50 < 6 && held.is_none() {
                    delayed.fetch_add(1, Ordering::Relaxed);
                    held = Some(packet.to_vec());
                } else {
                    let _ = to.write_all(packet);
                    if dice % 50 == 7 {
                        repeated.fetch_add(1, Ordering::Relaxed);
                        let _ = to.write_all(packet);
                    }
                    if dice.is_multiple_of(3)
                        && let Some(held) = held.take()
                    {
                        let _ = to.write_all(&held);
                    }
                }
            }
        })
    }
}

impl Drop for RoughLine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A device `kt0` of the thread's namespace whose packets come to, and from, the descriptor.
fn open_tun() -> OwnedFd {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("the rough line needs /dev/net/tun");
    // `struct ifreq`: name, then the flags IFF_TUN | IFF_NO_PI.
    let mut request = [0u8; 40];
    request[..3].copy_from_slice(b"kt0");
    request[16..18].copy_from_slice(&0x1001u16.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq` of 40 bytes.
    #[expect(unsafe_code, reason = "no safe call exists")]
    let failed = unsafe { libc::ioctl(file.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) };
    assert_eq!(failed, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file.into()
}

/// Sets a number among the options of a TCP socket.
pub(crate) fn set_tcp_option(socket: &impl AsRawFd, name: i32, value: i32) {
    // SAFETY: the option is a number, and its size is given.
    #[expect(unsafe_code, reason = "the standard library does not know these options")]
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            (&raw const value).cast(),
            libc::socklen_t::try_from(size_of::<i32>()).unwrap(),
        )
    };
    assert_eq!(failed, 0, "option {name}: {}", std::io::Error::last_os_error());
}

/// Puts the thread into a mount namespace of its own, in which nothing of a kind is mounted.
pub(crate) fn without_mounts_of(kind: &str) {
    // SAFETY: only this thread, which shares its file system state with no other after this, sees another world.
    #[expect(unsafe_code, reason = "descriptors and paths of other threads stay as they are")]
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.expect("root may have its own mounts");
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).expect("mounts can be made private");
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
    for line in mounts.lines().filter(|line| line.split(' ').nth(2) == Some(kind)) {
        rustix::mount::unmount(line.split(' ').nth(1).unwrap(), rustix::mount::UnmountFlags::DETACH).expect("it can be unmounted here");
    }
}

/// Accepts without asking for the peer's address, as some servers do.
pub(crate) fn accept_silently(listener: &TcpListener) -> TcpStream {
    // SAFETY: null for both means that the address is not wanted.
    #[expect(unsafe_code, reason = "the standard library always asks for the address")]
    let fd = unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
    assert!(fd >= 0, "accept: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else owns.
    #[expect(unsafe_code, reason = "takes the descriptor")]
    unsafe {
        TcpStream::from_raw_fd(fd)
    }
}

/// A client socket that is not connected yet, bound to a port (0: any).
pub(crate) fn unconnected(local: SocketAddr) -> TcpStream {
    let family = if local.is_ipv4() { rustix::net::AddressFamily::INET } else { rustix::net::AddressFamily::INET6 };
    let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    rustix::net::bind(&socket, &local).unwrap();
    TcpStream::from(socket)
}

/// Waits for a condition.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program at the cgroup root of the host that lets no other of its kind in (attached without `BPF_F_ALLOW_MULTI`), until it is dropped.
pub(crate) struct ExclusiveProgram {
    root: File,
    program: OwnedFd,
}

impl ExclusiveProgram {
    const CONNECT6: u32 = 11;

    /// Waits for its turn: where another tracer runs, the place is taken.
    pub(crate) fn hold(deadline: Duration) -> Self {
        const PROG_LOAD: libc::c_long = 5;
        const CGROUP_SOCK_ADDR: u32 = 18;
        // r0 = 1; exit: every connect is let through.
        let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
        let mut load = [0_u32; 18];
        let place = |pointer: usize| [u32::try_from(pointer & 0xffff_ffff).unwrap(), u32::try_from(pointer >> 32).unwrap()];
        load[..2].copy_from_slice(&[CGROUP_SOCK_ADDR, 2]);
        load[2..4].copy_from_slice(&place(code.as_ptr().addr()));
        load[4..6].copy_from_slice(&place(c"GPL".as_ptr().addr()));
        load[17] = Self::CONNECT6;
        let program = bpf(PROG_LOAD, &load).expect("the kernel takes a program of two instructions");
        #[expect(unsafe_code, reason = "the kernel gave it to us a moment ago")]
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let root = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = root.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup v2 is mounted");
        let held = Self { root: File::open(root.split(' ').nth(1).unwrap()).unwrap(), program };
        let begin = Instant::now();
        while let Err(error) = held.command(8) {
            assert!(begin.elapsed() < deadline, "the place of connect6 at the cgroup root is taken: {error}");
            std::thread::sleep(Duration::from_millis(20));
        }
        held
    }

    /// Attaches (8) or detaches (9).
    fn command(&self, command: libc::c_long) -> std::io::Result<i32> {
        let descriptor = |descriptor: i32| u32::try_from(descriptor).unwrap();
        bpf(command, &[descriptor(self.root.as_raw_fd()), descriptor(self.program.as_raw_fd()), Self::CONNECT6, 0])
    }
}

impl Drop for ExclusiveProgram {
    fn drop(&mut self) {
        self.command(9).expect("what was attached can be detached");
    }
}

fn bpf(command: libc::c_long, attributes: &[u32]) -> std::io::Result<i32> {
    #[expect(unsafe_code, reason = "no safe call attaches exclusively")]
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap()) }
}
