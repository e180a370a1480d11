//! Uprobes on the methods of Go's `crypto/tls.Conn`.
//!
//! Go passes arguments and results in registers of its own choice (`ABIInternal`, `cmd/compile/abi-internal.md`): from Go 1.17 on with x86-64,
//! from 1.18 on with `AArch64`; the current goroutine is in a register, too. Its stacks move, so that no return address may be replaced:
//! instead of return probes there is a probe on each return instruction. Entries are seen behind the check for room on the stack, which
//! starts the function again after the stack was moved.

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_common::counter::Counter;
use tracer_common::event::direction;
use tracer_common::tls::{Call, CallKey, Kind, Told, flag};

use crate::counts::count;
use crate::maps::CALLS;
use crate::{copy, descriptor, session};

/// `recordTypeApplicationData`: other records are the protocol's own.
const APPLICATION_DATA: u8 = 23;

/// No call moves more.
const MAX_BYTES: u64 = 0x7fff_ffff;

/// `g.stack.hi`, behind `g.stack.lo`: where the goroutine's stack begins.
const STACK_BEGIN: u64 = 8;

/// `func (c *Conn) Read(b []byte) (int, error)`.
#[uprobe]
pub(crate) fn go_read(ctx: ProbeContext) -> u32 {
    let Some(key) = call_key(&ctx) else { return 0 };
    let call = call(&ctx, [0, 1, 2], direction::RECEIVED);
    if CALLS.insert(key, call, 0).is_err() {
        count(Counter::LostCalls, 1);
    }
    0
}

/// A return of [`go_read`]'s function.
#[uprobe]
pub(crate) fn go_return(ctx: ProbeContext) -> u32 {
    let Some(key) = call_key(&ctx) else { return 0 };
    let Some(call) = CALLS.get_ptr(key) else {
        // Entered before the tracer came.
        count(Counter::LostCalls, 1);
        return 0;
    };
    // SAFETY: the map gave the pointer; only this goroutine writes the value. It stays until its next call from the same depth.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    let call = unsafe { &*call };
    // Whatever the error beside it: what was read was read.
    let moved = word(&ctx, 0);
    if moved != 0 && moved <= call.bytes && moved <= MAX_BYTES {
        copy::moved(&ctx, call, moved as u32);
    }
    0
}

/// `func (c *Conn) writeRecordLocked(typ recordType, data []byte) (int, error)`: all that `Write` was given, under the lock that puts
/// writers in order, and before anybody can answer it. A write that fails is the connection's last.
#[uprobe]
pub(crate) fn go_write(ctx: ProbeContext) -> u32 {
    let call = call(&ctx, [0, 2, 3], direction::SENT);
    if word(&ctx, 1) as u8 == APPLICATION_DATA && call.bytes != 0 && call.bytes <= MAX_BYTES {
        copy::moved(&ctx, &call, call.bytes as u32);
    }
    0
}

/// `func (c *Conn) clientHandshake(ctx context.Context) error`: the session begins, at the end that connects. It is called once, but for
/// renegotiation, which brokers do not offer.
#[uprobe]
pub(crate) fn go_client(ctx: ProbeContext) -> u32 {
    session::begin(&session::key(word(&ctx, 0)), flag::BEGUN | flag::INITIATOR);
    0
}

/// `func (c *Conn) serverHandshake(ctx context.Context) error`: the session begins, at the end that accepts.
#[uprobe]
pub(crate) fn go_server(ctx: ProbeContext) -> u32 {
    session::begin(&session::key(word(&ctx, 0)), flag::BEGUN);
    0
}

/// `func (c *Conn) Close() error`.
#[uprobe]
pub(crate) fn go_close(ctx: ProbeContext) -> u32 {
    session::end(&session::key(word(&ctx, 0)));
    0
}

/// A call of the arguments at these places: connection, buffer, its length.
#[inline(always)]
fn call(ctx: &ProbeContext, [session, buffer, bytes]: [usize; 3], direction: u8) -> Call {
    Call {
        session: word(ctx, session),
        buffer: word(ctx, buffer),
        bytes: word(ctx, bytes),
        out: 0,
        entry_ns: session::now(),
        direction: u32::from(direction),
        told: Told::Long as u32,
        kind: Kind::Go as u32,
        has_returned: 0,
    }
}

/// The goroutine, and how deep in its stack it is: that stays, whichever thread it runs in and wherever the stack is moved to.
#[inline(always)]
fn call_key(ctx: &ProbeContext) -> Option<CallKey> {
    // SAFETY: the kernel's registers of the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    let (goroutine, stack) = unsafe { (goroutine(ctx.regs), stack(ctx.regs)) };
    let begin: u64 = descriptor::user(goroutine.wrapping_add(STACK_BEGIN))?;
    let depth = begin.wrapping_sub(stack) as u32;
    Some(CallKey { thread: u64::from(session::tgid()) << 32 | u64::from(depth), stack: goroutine })
}

/// An argument's or result's word, by its place.
#[inline(always)]
fn word(ctx: &ProbeContext, place: usize) -> u64 {
    // SAFETY: the kernel's registers of the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    unsafe {
        registers(ctx.regs, place)
    }
}

/// RAX, RBX, RCX, RDI: the first four of nine.
///
/// # Safety
/// `regs` is the program's context.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer")]
unsafe fn registers(regs: *const pt_regs, place: usize) -> u64 {
    // SAFETY: promised by the caller.
    unsafe {
        match place {
            0 => (*regs).rax,
            1 => (*regs).rbx,
            2 => (*regs).rcx,
            _ => (*regs).rdi,
        }
    }
}

/// X0 and what follows.
///
/// # Safety
/// `regs` is the program's context.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer")]
unsafe fn registers(regs: *const pt_regs, place: usize) -> u64 {
    // SAFETY: promised by the caller; the user's registers come first.
    let [first, second, third, fourth, ..] = unsafe { (*regs.cast::<aya_ebpf::bindings::user_pt_regs>()).regs };
    match place {
        0 => first,
        1 => second,
        2 => third,
        _ => fourth,
    }
}

#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer")]
unsafe fn goroutine(regs: *const pt_regs) -> u64 {
    // SAFETY: promised by the caller.
    unsafe { (*regs).r14 }
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer")]
unsafe fn goroutine(regs: *const pt_regs) -> u64 {
    // SAFETY: promised by the caller; the user's registers come first.
    unsafe { (*regs.cast::<aya_ebpf::bindings::user_pt_regs>()).regs[28] }
}

#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer")]
unsafe fn stack(regs: *const pt_regs) -> u64 {
    // SAFETY: promised by the caller.
    unsafe { (*regs).rsp }
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
#[expect(unsafe_code, reason = "the context is a pointer")]
unsafe fn stack(regs: *const pt_regs) -> u64 {
    // SAFETY: promised by the caller; the user's registers come first.
    unsafe { (*regs.cast::<aya_ebpf::bindings::user_pt_regs>()).sp }
}
