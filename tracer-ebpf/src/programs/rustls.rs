//! Uprobes on functions of rustls (0.20 to 0.23), which are no library's interface: they are found by symbols alone, and their arguments are
//! where Rust's compiler puts them. What does not look like such is counted, and left.
//!
//! Sessions of rustls move no bytes on sockets: their programs do that, in the thread that calls.

use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_common::counter::Counter;
use tracer_common::event::direction;
use tracer_common::tls::{Call, Kind, Told, flag};

use crate::counts::count;
use crate::{copy, descriptor, programs, session, thread};

/// No process has memory below (`vm.mmap_min_addr`), and no record has room for as many bytes.
const LEAST_ADDRESS: u64 = 0x1_0000;

/// A process has no memory above.
const ADDRESS_BITS: u32 = 56;

/// No call moves more.
const MAX_BYTES: u64 = 0x7fff_ffff;

/// The most plaintext of a record.
const MAX_RECORD: u64 = 1 << 14;

/// `fn CommonState::take_received_plaintext(&mut self, bytes: Payload<'_>)`: a record was decrypted.
#[uprobe]
pub(crate) fn rustls_read(ctx: ProbeContext) -> u32 {
    let (Some(session), Some(payload)) = (ctx.arg(0), ctx.arg::<u64>(1)) else { return 0 };
    let Some([first, second, bytes]) = descriptor::user::<[u64; 3]>(payload) else { return lost() };
    // A `Vec`: a capacity or, of borrowed bytes, what no capacity is; an address; a length. Older compilers put the address first.
    let buffer = if first >= LEAST_ADDRESS && first >> 63 == 0 { first } else { second };
    if bytes > MAX_RECORD {
        return lost();
    }
    if bytes == 0 {
        return 0;
    }
    let call = call(session, buffer, bytes, direction::RECEIVED, Told::Long);
    session::make_if_new(&session::key(call.session));
    thread::call_begins(&call);
    thread::call_returns(&call, bytes.cast_signed());
    copy::moved(&ctx, &call, bytes as u32);
    0
}

/// `fn CommonState::send_appdata_encrypt(&mut self, payload: OutboundChunks<'_>, ..) -> usize`: what is sent, and how much of it was taken
/// (0.23).
#[uprobe]
pub(crate) fn rustls_write(ctx: ProbeContext) -> u32 {
    let (Some(session), Some(chunks)) = (ctx.arg(0), ctx.arg::<u64>(1)) else { return 0 };
    let Some([pieces, first, second, end]) = descriptor::user::<[u64; 4]>(chunks) else { return lost() };
    if pieces == 0 {
        // `OutboundChunks::Single`.
        return begin(&ctx, &call(session, first, second, direction::SENT, Told::Long));
    }
    // `OutboundChunks::Multiple`, with the range of its bytes that is meant: all.
    if pieces >= LEAST_ADDRESS && pieces >> ADDRESS_BITS == 0 && second == 0 {
        return begin(&ctx, &call(session, pieces, end, direction::SENT, Told::Pieces));
    }
    // A program may have an older library inside, too. Then its third argument is a length, where it is a word of 0 or 1 else.
    match ctx.arg::<u64>(2) {
        Some(2..=MAX_BYTES) => slice(&ctx),
        _ => lost(),
    }
}

/// `fn CommonState::send_appdata_encrypt(&mut self, payload: &[u8], ..) -> usize` (0.20 to 0.22).
#[uprobe]
pub(crate) fn rustls_write_slice(ctx: ProbeContext) -> u32 {
    slice(&ctx)
}

#[inline(always)]
fn slice(ctx: &ProbeContext) -> u32 {
    let (Some(session), Some(buffer), Some(bytes)) = (ctx.arg(0), ctx.arg(1), ctx.arg(2)) else { return 0 };
    begin(ctx, &call(session, buffer, bytes, direction::SENT, Told::Long))
}

/// The return of `send_appdata_encrypt`: how much was taken.
#[uretprobe]
pub(crate) fn rustls_return(ctx: RetProbeContext) -> u32 {
    let Some(call) = programs::returned(&ctx) else { return 0 };
    let moved: u64 = ctx.ret();
    if moved > call.bytes || moved > MAX_BYTES {
        // That was another function.
        return lost();
    }
    if moved != 0 {
        copy::moved(&ctx, call, moved as u32);
    }
    0
}

/// `ExpectFinished::handle` of a client: the other end's last word of the handshake is there.
#[uprobe]
pub(crate) fn rustls_client(_ctx: ProbeContext) -> u32 {
    thread::shook_hands(flag::BEGUN | flag::INITIATOR);
    0
}

/// `ExpectFinished::handle` of a server.
#[uprobe]
pub(crate) fn rustls_server(_ctx: ProbeContext) -> u32 {
    thread::shook_hands(flag::BEGUN);
    0
}

#[inline(always)]
fn call(session: u64, buffer: u64, bytes: u64, direction: u8, told: Told) -> Call {
    Call {
        session,
        buffer,
        bytes,
        out: 0,
        entry_ns: session::now(),
        direction: u32::from(direction),
        told: told as u32,
        kind: Kind::Rustls as u32,
        has_returned: 0,
    }
}

#[inline(always)]
fn begin(ctx: &ProbeContext, call: &Call) -> u32 {
    session::make_if_new(&session::key(call.session));
    thread::call_begins(call);
    programs::keep(ctx, *call)
}

#[inline(always)]
fn lost() -> u32 {
    count(Counter::LostCalls, 1);
    0
}
