//! Kprobes on what a program's calls on a TCP socket go through in the kernel. No return probes: the kernel keeps few places for calls that
//! have not returned yet, and any program that waits in a read takes one.
//!
//! `tcp_sendmsg(sk, msg, size)`, `tcp_recvmsg(sk, msg, len, [nonblock,] flags, ...)` (net/ipv4/tcp.c): the call's arguments are kept by
//! thread. `release_sock(sk)` (net/core/sock.c) is the last thing that `tcp_sendmsg` does, and what it does whenever it waits for room, still
//! under the socket's lock: the iterator then says how much the socket really took. `tcp_cleanup_rbuf(sk, copied)` runs within `tcp_recvmsg`, under the lock too, each time that bytes were
//! taken; `copied` is the sum of the call so far. By then all bytes are in the program's memory, and that memory is there to be read.
//!
//! Others call `tcp_cleanup_rbuf` as well: splice(2) and all that reads through `tcp_read_sock`, `TCP_ZEROCOPY_RECEIVE`, and without having taken
//! anything `MSG_PEEK` and `TCP_QUICKACK`. How many bytes left the socket is therefore taken from the socket's own count (`tcp_sock.copied_seq`),
//! and the thread's call says no more than where in its memory they are, if it is this call that took them.

use core::hint::black_box;

use aya_ebpf::macros::kprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_common::call::{Call, CallSocket, Layout, SAMPLE_BYTES, flag, place};
use tracer_common::counter::Counter;
use tracer_common::event::direction;
use tracer_common::socket::State;

use crate::call::filter::{self, Identity};
use crate::call::walk::SEGMENT_BYTES;
use crate::call::{memory, walk};
use crate::counts::count;
use crate::maps::{CALLS, LAYOUT, SOCKETS};

/// Values of `skc_state` (`include/net/tcp_states.h`).
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;

/// Flags of a receiving call (`include/linux/socket.h`): `MSG_PEEK`, `MSG_ERRQUEUE`; `MSG_TRUNC` throws the bytes away.
const PEEK: u32 = 2;
const ERRQUEUE: u32 = 0x2000;
const TRUNC: u32 = 0x20;

/// What `release_sock` returns to this close behind the start of `tcp_sendmsg` is its end: the waits call it from net/core. With
/// `tcp_sendmsg_locked` compiled into it the function has about 4 KiB.
const FUNCTION_BYTES: u64 = 8192;

/// A program gives bytes to a socket.
#[kprobe]
#[inline(always)]
pub(crate) fn call_send(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(msg)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) {
        keep(&ctx, sk, msg, direction::SENT, 0);
    }
    0
}

/// A program wants bytes from a socket.
#[kprobe]
#[inline(always)]
pub(crate) fn call_receive(ctx: ProbeContext) -> u32 {
    let (Some(sk), Some(msg), Some(third), Some(fourth)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(3), ctx.arg::<u64>(4))
    else {
        return 0;
    };
    // Both are read first: a choice of the register would be a computed address into the context, which the verifier refuses.
    let (third, fourth) = (black_box(third), black_box(fourth));
    if let Some(layout) = LAYOUT.get(0) {
        let flags = if layout.recv_has_nonblock != 0 { fourth } else { third };
        keep(&ctx, sk, msg, direction::RECEIVED, flags as u32);
    }
    0
}

/// Keeps a call of this thread.
#[inline(always)]
fn keep(ctx: &ProbeContext, sk: u64, msg: u64, direction: u8, flags: u32) {
    if filter::is_ignored(sk) {
        return;
    }
    let Some(layout) = LAYOUT.get(0) else { return };
    let iter = msg + layout.msg_iter;
    let word = |at: u64| memory::kernel::<u64>(iter + at).unwrap_or(0);
    let kind = memory::kernel::<u32>(iter + layout.iter_type).map_or(place::ELSEWHERE, |kind| place_of(kind, layout));
    let mut call = Call {
        sk,
        iter,
        segments: word(layout.iter_segments),
        nr_segs: word(layout.iter_nr_segs),
        iov_offset: word(layout.iter_iov_offset),
        count: word(layout.iter_count),
        begun_ns: memory::now(),
        function: function(ctx),
        kind,
        direction: u32::from(direction),
        done: 0,
    };
    if flags & TRUNC != 0 {
        call.kind = place::ELSEWHERE;
    }
    if flags & (PEEK | ERRQUEUE) != 0 {
        call.kind = place::PEEKED;
    }
    let thread = memory::thread();
    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would be on the small stack twice")]
    if CALLS.insert(thread, &call, 0).is_err() {
        count(Counter::LostCalls, 1);
    }
}

#[inline(always)]
fn place_of(iter_type: u32, layout: &Layout) -> u32 {
    let kind = u64::from(iter_type) & layout.iter_type_mask;
    if kind == layout.iovec {
        return place::SEGMENTS;
    }
    if kind == layout.ubuf {
        return place::BUFFER;
    }
    if kind == layout.bvec {
        return place::PAGES;
    }
    place::ELSEWHERE
}

/// The end of `tcp_sendmsg` and its waits, among much else.
#[kprobe]
#[inline(always)]
pub(crate) fn call_sent(ctx: ProbeContext) -> u32 {
    sent(&ctx);
    0
}

#[inline(always)]
fn sent(ctx: &ProbeContext) {
    let Some(sk) = ctx.arg::<u64>(0) else { return };
    let thread = memory::thread();
    let Some(call) = CALLS.get_ptr_mut(thread) else { return };
    // SAFETY: the map gave the pointer, and it lives as long as the program; it is this thread's own.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    let call = unsafe { &mut *call };
    if call.sk != sk || call.direction != u32::from(direction::SENT) {
        return;
    }
    let (Some(layout), Some(walk)) = (LAYOUT.get(0), walk::of_this_cpu()) else { return };
    let Some(left) = memory::kernel::<u64>(call.iter + layout.iter_count) else { return };
    let given = call.count.wrapping_sub(left);
    let done = call.done;
    // A call that waited goes on now, and not when it began.
    let time_ns = if done == 0 { call.begun_ns } else { memory::now() };
    call.done = given;
    walk::start(walk, call, done, layout);
    if left == 0 || returns_to(ctx).wrapping_sub(call.function) < FUNCTION_BYTES {
        let _ = CALLS.remove(thread);
    }
    let bytes = given.wrapping_sub(done);
    if bytes == 0 || bytes >> 31 != 0 {
        return;
    }
    let Some(identity) = Identity::of(sk) else { return };
    let Some(socket) = filter::socket_of(sk, identity, layout, layout.copied_seq) else { return };
    socket.page_bytes = 0;
    walk::see(ctx, walk, socket, 0, bytes as u32, true, time_ns);
}

/// A program got bytes from a socket.
#[kprobe]
#[inline(always)]
pub(crate) fn call_received(ctx: ProbeContext) -> u32 {
    received(&ctx);
    0
}

#[inline(always)]
fn received(ctx: &ProbeContext) {
    let (Some(sk), Some(copied)) = (ctx.arg::<u64>(0), ctx.arg::<i32>(1)) else { return };
    if copied <= 0 || filter::is_ignored(sk) {
        return;
    }
    let copied = copied.cast_unsigned();
    let (Some(layout), Some(walk)) = (LAYOUT.get(0), walk::of_this_cpu()) else { return };
    walk::start_nowhere(walk);
    // What `copied` means when no call of the thread explains it. One byte is also what `TCP_QUICKACK` says, which takes none.
    let mut told = if copied == 1 { 0 } else { copied };
    let mut bytes = 0;
    if let Some(call) = CALLS.get_ptr_mut(memory::thread()) {
        // SAFETY: the map gave the pointer, and it lives as long as the program; it is this thread's own.
        #[expect(unsafe_code, reason = "a map value is reached by pointer")]
        let call = unsafe { &mut *call };
        if call.sk == sk && call.direction == u32::from(direction::RECEIVED) && is_at_work(call, u64::from(copied), layout) {
            told = 0;
            if call.kind != place::PEEKED {
                told = copied.wrapping_sub(call.done as u32);
                bytes = told;
                walk::start(walk, call, call.done, layout);
                call.done = u64::from(copied);
            }
        }
    }
    if bytes == 0 && filter::known(sk).is_none() {
        return;
    }
    let Some(identity) = Identity::of(sk) else { return };
    let Some(socket) = filter::socket_of(sk, identity, layout, 0) else { return };
    let moved = moved(sk, identity, socket, told, layout);
    if moved == 0 || moved >> 31 != 0 {
        return;
    }
    if bytes > moved {
        bytes = 0;
    }
    let mut unseen = moved - bytes;
    if layout.sampled_port != 0 && layout.sampled_port == u64::from(filter::local_port(socket)) {
        walk::start_kernel(walk, sk, SAMPLE_BYTES);
        unseen = 0;
        bytes = SAMPLE_BYTES;
    }
    walk::see(ctx, walk, socket, unseen, bytes, false, memory::now());
}

/// Whether it is this call that has taken `copied` bytes by now, and not one that came after it and was not kept: then the call's iterator has
/// moved as far. That of a call that is over lies where other things are by now.
#[inline(always)]
fn is_at_work(call: &Call, copied: u64, layout: &Layout) -> bool {
    if call.kind == place::PEEKED {
        return true;
    }
    if call.done > copied {
        return false;
    }
    if call.kind == place::ELSEWHERE {
        return true;
    }
    let (Some(left), Some(segments)) =
        (memory::kernel::<u64>(call.iter + layout.iter_count), memory::kernel::<u64>(call.iter + layout.iter_segments))
    else {
        return false;
    };
    // A buffer's address stays, segments are passed one by one.
    call.count.wrapping_sub(left) == copied && segments.wrapping_sub(call.segments) <= call.nr_segs.wrapping_mul(SEGMENT_BYTES)
}

/// How many bytes left the socket since it was looked at last, by its own count; where that is not known, as many as the call said.
#[inline(always)]
fn moved(sk: u64, identity: Identity, socket: &mut CallSocket, told: u32, layout: &Layout) -> u32 {
    if layout.copied_seq == 0 {
        return told;
    }
    let Some(sequence) = memory::kernel::<u32>(sk + layout.copied_seq) else { return told };
    let before = socket.received.sequence;
    // Of a dismissed socket nothing was counted.
    let is_known = socket.flags & flag::SEQUENCED != 0 && socket.state != State::Ignored as u32;
    socket.received.sequence = sequence;
    socket.flags |= flag::SEQUENCED;
    if !is_known {
        return told;
    }
    let moved = sequence.wrapping_sub(before);
    // That the other end sends no more has a number as a byte has, and is the last that is taken. A connection that was reset has none.
    let has_one_more = moved != 0 && (told == 0 || moved == told.wrapping_add(1)) && socket.flags & flag::CUT == 0;
    if has_one_more && identity.is_past_end() && memory::kernel::<u32>(sk + layout.rcv_nxt) == Some(sequence) {
        return moved - 1;
    }
    moved
}

#[inline(always)]
fn is_copied(state: u32) -> bool {
    state == State::Candidate as u32 || state == State::Capture as u32
}

/// `tcp_sendpage(sk, page, offset, size, flags)`, up to Linux 6.4: one page of a file on its way to a socket. How much of it the socket takes
/// is not known before the next call: if that begins within the same page, it begins with what was not taken.
#[kprobe]
#[inline(always)]
pub(crate) fn call_page(ctx: ProbeContext) -> u32 {
    page(&ctx);
    0
}

#[inline(always)]
fn page(ctx: &ProbeContext) {
    let (Some(sk), Some(page), Some(offset), Some(bytes)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u32>(2), ctx.arg::<u64>(3))
    else {
        return;
    };
    if filter::is_ignored(sk) || bytes == 0 || bytes >> 31 != 0 {
        return;
    }
    let (Some(layout), Some(walk)) = (LAYOUT.get(0), walk::of_this_cpu()) else { return };
    let Some(identity) = Identity::of(sk) else { return };
    let Some(socket) = filter::socket_of(sk, identity, layout, layout.copied_seq) else { return };
    let within = offset.wrapping_sub(socket.page_offset);
    if socket.page == page && within < socket.page_bytes {
        socket.sent.position = socket.page_position.wrapping_add(within);
    }
    socket.page = page;
    socket.page_offset = offset;
    socket.page_bytes = bytes as u32;
    socket.page_position = socket.sent.position;
    walk::start_page(walk, page, u64::from(offset), bytes, layout);
    walk::see(ctx, walk, socket, 0, bytes as u32, true, memory::now());
}

/// `tcp_set_state(sk, state)`: connections begin and end.
#[kprobe]
#[inline(always)]
pub(crate) fn call_state(ctx: ProbeContext) -> u32 {
    state(&ctx);
    0
}

#[inline(always)]
fn state(ctx: &ProbeContext) {
    let (Some(sk), Some(state)) = (ctx.arg::<u64>(0), ctx.arg::<u32>(1)) else { return };
    if state == CLOSE {
        if let (Some(socket), Some(identity)) = (filter::known(sk), Identity::of(sk)) {
            let cut = if identity.state() == ESTABLISHED { flag::CUT } else { 0 };
            socket.flags |= flag::CLOSED | cut;
        }
        return;
    }
    if state != ESTABLISHED {
        return;
    }
    let (Some(layout), Some(identity)) = (LAYOUT.get(0), Identity::of(sk)) else { return };
    if let Some(socket) = filter::known(sk)
        && socket.flags & flag::CLOSED == 0
        && identity.is(socket)
    {
        // Data came with the handshake (fast open).
        return;
    }
    let initiator = if identity.state() == SYN_SENT { flag::INITIATOR } else { 0 };
    filter::begin(sk, identity, flag::BORN | initiator, layout, layout.copied_seq);
}

/// `tcp_close(sk, timeout)`: no program has the socket any more.
#[kprobe]
#[inline(always)]
pub(crate) fn call_close(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg::<u64>(0)
        && let Some(socket) = filter::known(sk)
    {
        if is_copied(socket.state) {
            walk::close(&ctx, socket);
        }
        let _ = SOCKETS.remove(sk);
    }
    0
}

/// Copies what another program set out for. Not attached: the others go on with it.
#[kprobe]
#[inline(always)]
pub(crate) fn call_copy(ctx: ProbeContext) -> u32 {
    walk::copy(&ctx);
    0
}

/// Address of the function that the probe is on.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn function(ctx: &ProbeContext) -> u64 {
    // SAFETY: the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    unsafe {
        (*ctx.regs).rip
    }
}

/// Where the function that the probe is on returns to: its caller's address is what the processor put on the stack last.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn returns_to(ctx: &ProbeContext) -> u64 {
    // SAFETY: the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    let stack = unsafe { (*ctx.regs).rsp };
    memory::kernel(stack).unwrap_or(0)
}

/// Address of the function that the probe is on.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn function(ctx: &ProbeContext) -> u64 {
    // SAFETY: the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    unsafe {
        (*ctx.regs).pc
    }
}

/// Where the function that the probe is on returns to: register 30.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn returns_to(ctx: &ProbeContext) -> u64 {
    // SAFETY: the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    unsafe {
        let [.., link] = (*ctx.regs).regs;
        link
    }
}
