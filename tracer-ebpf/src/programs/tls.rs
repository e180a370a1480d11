//! Uprobes on the functions of TLS libraries, `cgroup/connect4` and `connect6` for who connects to Kafka's ports, and tracepoints for what
//! threads do with sockets.
//!
//! Each relies on the C prototype beside it, which is part of the library's binary interface. Uprobe programs run in the thread that calls,
//! and can be preempted by another thread's: nothing is kept by CPU.

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{cgroup_sock_addr, kprobe, raw_tracepoint, uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext, RetProbeContext, SockAddrContext};
use tracer_common::config::PortRule;
use tracer_common::counter::Counter;
use tracer_common::event::{EventHeader, Kind as EventKind, direction};
use tracer_common::tls::{Call, CallKey, Kind, Told, flag};

use crate::counts::count;
use crate::maps::{CALLS, PORTS, TLS_CONFIG};
use crate::transport::{Way, emit};
use crate::{copy, descriptor, session, thread};

/// `SOCK_STREAM`.
const STREAM: u32 = 1;

/// `MSG_PEEK`.
const PEEK: i32 = 2;

/// Of the flags of `gnutls_init`: the session is that of the end that connects.
const GNUTLS_CLIENT: u64 = 2;

/// The largest size that is counted as it is.
const MAX_SIZE: u64 = i32::MAX as u64;

/// `TCP_CLOSE`.
const CLOSE: i32 = 7;

/// What the kernel is told: go on.
const GO_ON: i32 = 1;

/// `int SSL_read(SSL *ssl, void *buf, int num)`.
#[uprobe]
pub(crate) fn tls_read(ctx: ProbeContext) -> u32 {
    enter(&ctx, direction::RECEIVED, Told::Int, Kind::OpenSsl)
}

/// `int SSL_write(SSL *ssl, const void *buf, int num)`.
#[uprobe]
pub(crate) fn tls_write(ctx: ProbeContext) -> u32 {
    enter(&ctx, direction::SENT, Told::Int, Kind::OpenSsl)
}

/// `int SSL_read_ex(SSL *ssl, void *buf, size_t num, size_t *readbytes)`.
#[uprobe]
pub(crate) fn tls_read_ex(ctx: ProbeContext) -> u32 {
    enter(&ctx, direction::RECEIVED, Told::Out, Kind::OpenSsl)
}

/// `int SSL_write_ex(SSL *ssl, const void *buf, size_t num, size_t *written)`.
#[uprobe]
pub(crate) fn tls_write_ex(ctx: ProbeContext) -> u32 {
    enter(&ctx, direction::SENT, Told::Out, Kind::OpenSsl)
}

/// `ssize_t gnutls_record_recv(gnutls_session_t session, void *data, size_t data_size)`.
#[uprobe]
pub(crate) fn gnutls_read(ctx: ProbeContext) -> u32 {
    enter(&ctx, direction::RECEIVED, Told::Long, Kind::GnuTls)
}

/// `ssize_t gnutls_record_send2(gnutls_session_t session, const void *data, size_t data_size, size_t pad, unsigned flags)`, which
/// `gnutls_record_send` jumps to; before 3.6.3 that one itself, which begins alike.
#[uprobe]
pub(crate) fn gnutls_write(ctx: ProbeContext) -> u32 {
    if let Some(address) = ctx.arg::<u64>(0)
        && session::get(&session::key(address)).is_some_and(|session| session.flags & flag::FLUSHING != 0)
    {
        return 0;
    }
    enter(&ctx, direction::SENT, Told::Long, Kind::GnuTls)
}

/// `int gnutls_record_uncork(gnutls_session_t session, unsigned int flags)`: sends what [`gnutls_write`] took while the session was corked,
/// by the same function.
#[uprobe]
pub(crate) fn gnutls_flush(ctx: ProbeContext) -> u32 {
    let Some(address) = ctx.arg::<u64>(0) else { return 0 };
    let Some(session) = session::get(&session::key(address)) else { return 0 };
    session.flags |= flag::FLUSHING;
    keep(&ctx, Call { session: address, told: Told::Flush as u32, kind: Kind::GnuTls as u32, ..Call::default() })
}

/// `int gnutls_init(gnutls_session_t *session, unsigned int flags)`.
#[uprobe]
pub(crate) fn gnutls_new(ctx: ProbeContext) -> u32 {
    let (Some(buffer), Some(bytes)) = (ctx.arg(0), ctx.arg(1)) else { return 0 };
    keep(&ctx, Call { buffer, bytes, told: Told::Nothing as u32, kind: Kind::GnuTls as u32, ..Call::default() })
}

/// The return of `gnutls_init`: the new session's address is where its first argument points to.
#[uretprobe]
pub(crate) fn gnutls_made(ctx: RetProbeContext) -> u32 {
    let Some(call) = returned(&ctx) else { return 0 };
    if ctx.ret::<i32>() == 0
        && let Some(address) = descriptor::user::<u64>(call.buffer)
    {
        let initiator = if call.bytes & GNUTLS_CLIENT == 0 { 0 } else { flag::INITIATOR };
        session::begin(&session::key(address), flag::BEGUN | initiator);
    }
    0
}

/// The call that returns.
#[inline(always)]
pub(crate) fn returned<'a>(ctx: &RetProbeContext) -> Option<&'a Call> {
    // SAFETY: the kernel's registers of the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    let key = unsafe { call_key(ctx.regs, true) };
    let Some(call) = CALLS.get_ptr_mut(key) else {
        // Entered before the tracer came.
        count(Counter::LostCalls, 1);
        return None;
    };
    // SAFETY: the map gave the pointer; only this thread writes the value. It stays until the thread's next call from the same place.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    let call = unsafe { &mut *call };
    // Before Linux 6.13 a return is told once for each process that has a probe there, whichever process it is in (`uretprobe_dispatcher` of
    // kernel/trace/trace_uprobe.c asks no filter).
    if call.has_returned != 0 {
        return None;
    }
    call.has_returned = 1;
    Some(call)
}

/// The return of any other of these functions.
#[uretprobe]
pub(crate) fn tls_return(ctx: RetProbeContext) -> u32 {
    let Some(call) = returned(&ctx) else { return 0 };
    if call.told == Told::Flush as u32 {
        if let Some(session) = session::get(&session::key(call.session)) {
            session.flags &= !flag::FLUSHING;
        }
        return 0;
    }
    let moved: i64 = if call.told == Told::Long as u32 {
        ctx.ret()
    } else if call.told == Told::Int as u32 {
        // The upper half of the register is not part of an `int`.
        i64::from(ctx.ret::<i32>())
    } else if ctx.ret::<i32>() == 1 {
        descriptor::user::<i64>(call.out).unwrap_or(0)
    } else {
        0
    };
    thread::call_returns(call, moved);
    if moved > 0 && moved <= i64::from(i32::MAX) {
        copy::moved(&ctx, call, moved.cast_unsigned() as u32);
    }
    0
}

/// Goes on where [`tls_return`] had no room left.
#[uprobe]
pub(crate) fn tls_go_on(ctx: ProbeContext) -> u32 {
    copy::walk(&ctx);
    0
}

/// `int SSL_connect(SSL *ssl)`, `void SSL_set_connect_state(SSL *ssl)`: the session begins, at the end that connects.
#[uprobe]
pub(crate) fn tls_connect(ctx: ProbeContext) -> u32 {
    begin(&ctx, flag::BEGUN | flag::INITIATOR)
}

/// `int SSL_accept(SSL *ssl)`, `void SSL_set_accept_state(SSL *ssl)`: the session begins, at the end that accepts.
#[uprobe]
pub(crate) fn tls_accept(ctx: ProbeContext) -> u32 {
    begin(&ctx, flag::BEGUN)
}

/// `void SSL_free(SSL *ssl)`: the session ends. With a counted reference left it begins again, in the middle.
#[uprobe]
pub(crate) fn tls_free(ctx: ProbeContext) -> u32 {
    if let Some(address) = ctx.arg::<u64>(0) {
        session::end(&session::key(address));
    }
    0
}

/// `sock_recv_length(struct sock *sk, int ret, int flags)`, since Linux 6.3: a call received from a socket, or failed.
#[raw_tracepoint(tracepoint = "sock_recv_length")]
pub(crate) fn tls_socket_received(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<i32>(2) & PEEK == 0 {
        thread::moved(ctx.arg(0), ctx.arg(1), false);
    }
    0
}

/// `sock_send_length(struct sock *sk, int ret, int flags)`, since Linux 6.3: a call sent on a socket, or failed.
#[raw_tracepoint(tracepoint = "sock_send_length")]
pub(crate) fn tls_socket_sent(ctx: RawTracePointContext) -> i32 {
    thread::moved(ctx.arg(0), ctx.arg(1), true);
    0
}

/// `inet_sock_set_state(const struct sock *sk, int oldstate, int newstate)`, since Linux 4.16: a socket was closed, by both ends.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub(crate) fn tls_socket_closed(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<i32>(2) == CLOSE
        && let Some(places) = TLS_CONFIG.get(0)
        && places.sock_source_port != 0
        && let Some(ports) = descriptor::ports_that_were(ctx.arg(0), places)
    {
        session::end_with_socket(ctx.arg(0), ports);
    }
    0
}

/// `tcp_cleanup_rbuf(struct sock *sk, int copied)`: a call received from a socket. In place of [`tls_socket_received`] before Linux 6.3. What is
/// only looked at counts too, and a call that waits for all counts again what it had: no bytes of another socket, and more than a session needs
/// say as much as those that it needs.
#[kprobe]
pub(crate) fn tls_tcp_received(ctx: ProbeContext) -> u32 {
    if let (Some(socket), Some(copied)) = (ctx.arg::<u64>(0), ctx.arg::<i32>(1)) {
        thread::moved(socket, copied, false);
    }
    0
}

/// `tcp_sendmsg(struct sock *sk, struct msghdr *msg, size_t size)`: a program gives bytes to a socket. In place of [`tls_socket_sent`] before Linux
/// 6.3. What the socket does not take is given again and counts again: then what was sent is more than what was written explains, and says nothing.
#[kprobe]
pub(crate) fn tls_tcp_sent(ctx: ProbeContext) -> u32 {
    if let (Some(socket), Some(size)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(2)) {
        thread::moved(socket, if size > MAX_SIZE { i32::MAX } else { size as i32 }, true);
    }
    0
}

/// A socket connects to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub(crate) fn tls_connect4(ctx: SockAddrContext) -> i32 {
    connects(&ctx, true)
}

/// A socket connects to an IPv6 address.
#[cgroup_sock_addr(connect6)]
pub(crate) fn tls_connect6(ctx: SockAddrContext) -> i32 {
    connects(&ctx, false)
}

/// Says that the current process connects to a port that is known for Kafka: the daemon looks at its libraries while hands are shaken.
#[inline(always)]
fn connects(ctx: &SockAddrContext, is_ipv4: bool) -> i32 {
    // SAFETY: the kernel's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    let (kind, port) = unsafe { ((*ctx.sock_addr).type_, u16::from_be((*ctx.sock_addr).user_port as u16)) };
    // SAFETY: the value is a plain number, read once.
    #[expect(unsafe_code, reason = "a map lookup")]
    let rule = unsafe { PORTS.get(u32::from(port)).copied() };
    if kind == STREAM
        && rule == Some(PortRule::Force as u32)
        && let Some(way) = Way::now()
    {
        let mut header = EventHeader {
            boot_ns: session::now(),
            pid: session::tgid(),
            peer_port: port,
            kind: EventKind::Connect as u8,
            ..EventHeader::default()
        };
        peer(&mut header, ctx, is_ipv4);
        emit::<EventHeader>(way, 0, |event| {
            // SAFETY: `event` is reserved room of its size.
            #[expect(unsafe_code, reason = "ring memory is reached by pointer")]
            unsafe {
                *event = header;
            }
        });
    }
    GO_ON
}

/// The address that is connected to; IPv4 in IPv6's form.
#[inline(always)]
fn peer(header: &mut EventHeader, ctx: &SockAddrContext, is_ipv4: bool) {
    let words = core::ptr::from_mut(&mut header.peer).cast::<u32>();
    // SAFETY: the kernel's context; four words, which lie at multiples of four in the header.
    #[expect(unsafe_code, reason = "the context is a pointer; written by words: the verifier's stack slots are those")]
    unsafe {
        if is_ipv4 {
            words.add(2).write(u32::from_ne_bytes([0, 0, 0xff, 0xff]));
            words.add(3).write((*ctx.sock_addr).user_ip4);
        } else {
            let [a, b, c, d] = [0, 1, 2, 3].map(|index| (&raw const (*ctx.sock_addr).user_ip6).cast::<u32>().add(index).read_volatile());
            words.write(a);
            words.add(1).write(b);
            words.add(2).write(c);
            words.add(3).write(d);
        }
    }
}

#[inline(always)]
fn enter(ctx: &ProbeContext, direction: u8, told: Told, kind: Kind) -> u32 {
    let (Some(session), Some(buffer), Some(bytes)) = (ctx.arg(0), ctx.arg(1), ctx.arg(2)) else { return 0 };
    let out = if matches!(told, Told::Out) { ctx.arg(3).unwrap_or(0) } else { 0 };
    let call = Call {
        session,
        buffer,
        bytes,
        out,
        entry_ns: session::now(),
        direction: u32::from(direction),
        told: told as u32,
        kind: kind as u32,
        has_returned: 0,
    };
    thread::call_begins(&call);
    keep(ctx, call)
}

/// Until it returns.
#[inline(always)]
pub(crate) fn keep(ctx: &ProbeContext, call: Call) -> u32 {
    // SAFETY: the kernel's registers of the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    let key = unsafe { call_key(ctx.regs, false) };
    if CALLS.insert(key, call, 0).is_err() {
        count(Counter::LostCalls, 1);
    }
    0
}

#[inline(always)]
fn begin(ctx: &ProbeContext, flags: u32) -> u32 {
    if let Some(address) = ctx.arg::<u64>(0) {
        session::begin_unless_known(&session::key(address), flags);
    }
    0
}

/// The thread, and where its caller's stack ends: the same at entry and return of one call.
///
/// # Safety
/// `regs` is the program's context.
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer")]
unsafe fn call_key(regs: *const pt_regs, returned: bool) -> CallKey {
    // SAFETY: promised by the caller.
    let stack = unsafe { stack(regs, returned) };
    CallKey { thread: bpf_get_current_pid_tgid(), stack }
}

/// x86-64: the return address lies on the stack while the function runs.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer")]
unsafe fn stack(regs: *const pt_regs, returned: bool) -> u64 {
    // SAFETY: promised by the caller.
    let stack = unsafe { (*regs).rsp };
    if returned { stack } else { stack.wrapping_add(8) }
}

/// `AArch64`: the return address is in a register.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer")]
unsafe fn stack(regs: *const pt_regs, _returned: bool) -> u64 {
    // SAFETY: promised by the caller; the user's registers come first.
    unsafe { (*regs.cast::<aya_ebpf::bindings::user_pt_regs>()).sp }
}
