//! Copies the plaintext of a call into events: whole blocks, then the rest in the smallest class that holds it. What one program has no
//! room for is left to programs that follow it.

use core::hint::black_box;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};
use tracer_common::counter::Counter;
use tracer_common::event::{DataEvent, Kind, direction};
use tracer_common::limits::{BLOCK_BYTES, BLOCK_SHIFT, CALL_BLOCKS, MAX_WALKS, WALK_BLOCKS};
use tracer_common::tls::{Call, PIECE_BYTES, Told, Walk};

use crate::maps::{GO_ON, WALKS};
use crate::transport::{Way, emit};
use crate::{descriptor, session};

/// A call of a session moved `bytes` bytes of plaintext, at least one. Returns only if nothing is left to copy.
#[inline(always)]
pub(crate) fn moved(ctx: &impl EbpfContext, call: &Call, bytes: u32) {
    let Some(session) = session::get_or_make(&session::key(call.session), 0) else { return };
    session::tie(session, call);
    let wanted = session::is_wanted(session, call, bytes);
    let is_sent = call.direction == u32::from(direction::SENT);
    if !wanted {
        let position = if is_sent { &mut session.sent } else { &mut session.received };
        *position = position.wrapping_add(bytes);
        return;
    }
    let Some(way) = Way::now() else { return };
    let mut walk = Walk { buffer: call.buffer, left: bytes, ..Walk::default() };
    walk.header.direction = call.direction as u8;
    // What is written may be answered before the call returns; what is read is there when it does.
    session::describe(&mut walk.header, session, if is_sent { call.entry_ns } else { session::now() });
    session::open(session, &walk.header, way);
    let position = if is_sent { &mut session.sent } else { &mut session.received };
    walk.header.position = *position;
    *position = position.wrapping_add(bytes);
    walk.header.kind = Kind::Data as u8;
    way.counts.add(Counter::Bytes, u64::from(bytes));
    if call.told == Told::Pieces as u32 {
        (walk.piece, walk.behind, walk.left) = (call.buffer, bytes, 0);
    } else {
        way.counts.add(Counter::Events, events(bytes));
        times!({ if !block(&mut walk, way) { return; } }; a b c d);
    }
    go_on(ctx, &walk, way);
}

/// How many events a piece takes.
#[inline(always)]
fn events(bytes: u32) -> u64 {
    u64::from(bytes.wrapping_add(BLOCK_BYTES - 1) >> BLOCK_SHIFT)
}

/// Copies what the programs before this one left.
#[inline(always)]
pub(crate) fn walk(ctx: &impl EbpfContext) {
    let thread = bpf_get_current_pid_tgid();
    let (Some(kept), Some(way)) = (WALKS.get_ptr(thread), Way::now()) else { return };
    // SAFETY: the map gave the pointer; only this thread writes the value.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    let mut walk = unsafe { *kept };
    let _ = WALKS.remove(thread);
    times!({ if !step(&mut walk, way) { return; } }; a b c d e f g h i j k l m n o p);
    walk.rounds += 1;
    go_on(ctx, &walk, way);
}

const _: () = assert!(CALL_BLOCKS == 4 && WALK_BLOCKS == 16, "as many as the macro is told above");

#[inline(always)]
fn go_on(ctx: &impl EbpfContext, walk: &Walk, way: Way) {
    if walk.left == 0 && walk.behind == 0 {
        return;
    }
    if walk.rounds < MAX_WALKS && WALKS.insert(bpf_get_current_pid_tgid(), walk, 0).is_ok() {
        // SAFETY: the map holds a program of this type, or nothing: then the call fails, and what is left is counted.
        #[expect(unsafe_code, reason = "a helper")]
        unsafe {
            GO_ON.tail_call(ctx, 0);
        }
    }
    way.counts.add(Counter::LostTooLongBytes, u64::from(walk.left) + u64::from(walk.behind));
}

/// Copies the next block, of the next piece if this one is at its end. False when nothing is left then.
#[inline(always)]
fn step(walk: &mut Walk, way: Way) -> bool {
    if walk.left == 0 {
        begin_piece(walk, way);
    }
    if walk.left != 0 && block(walk, way) {
        return true;
    }
    walk.behind != 0
}

/// Looks where the next piece is. What cannot be found is counted.
#[inline(always)]
fn begin_piece(walk: &mut Walk, way: Way) {
    let Some([buffer, bytes]) = descriptor::user::<[u64; 2]>(walk.piece) else {
        way.counts.add(Counter::LostUnreadableBytes, u64::from(walk.behind));
        walk.behind = 0;
        return;
    };
    // The last may be taken in part.
    walk.left = if bytes < u64::from(walk.behind) { bytes as u32 } else { walk.behind };
    walk.behind = walk.behind.wrapping_sub(walk.left);
    walk.buffer = buffer;
    walk.piece = walk.piece.wrapping_add(PIECE_BYTES);
    way.counts.add(Counter::Events, events(walk.left));
}

/// Copies the next block, or what is left when that is less. False when nothing is left then.
#[inline(always)]
fn block(walk: &mut Walk, way: Way) -> bool {
    if walk.left >= BLOCK_BYTES {
        piece::<{ BLOCK_BYTES as usize }>(walk, BLOCK_BYTES, way);
        walk.left -= BLOCK_BYTES;
        walk.buffer = walk.buffer.wrapping_add(u64::from(BLOCK_BYTES));
        walk.header.position = walk.header.position.wrapping_add(BLOCK_BYTES);
        return walk.left != 0;
    }
    let rest = walk.left;
    walk.left = 0;
    if rest <= 256 {
        piece::<256>(walk, rest, way);
    } else if rest <= 1024 {
        piece::<1024>(walk, rest, way);
    } else if rest <= 4096 {
        piece::<4096>(walk, rest, way);
    } else {
        piece::<{ BLOCK_BYTES as usize }>(walk, rest, way);
    }
    walk.header.position = walk.header.position.wrapping_add(rest);
    false
}

/// One event with `len` bytes of 1..=`N`.
#[inline(always)]
fn piece<const N: usize>(walk: &Walk, len: u32, way: Way) {
    emit::<DataEvent<N>>(way, len, |event| {
        // SAFETY: `event` is reserved room of its size.
        #[expect(unsafe_code, reason = "ring memory is reached by pointer")]
        let room = unsafe {
            (*event).header = walk.header;
            &raw mut (*event).data
        };
        // The verifier wants to see 1..=N; the compiler, which knows `len`, would leave the mask out.
        let bounded = (black_box(len).wrapping_sub(1) & (N as u32 - 1)) + 1;
        // SAFETY: `bounded` bytes fit the room.
        #[expect(unsafe_code, reason = "a helper")]
        let failed = unsafe { generated::bpf_probe_read_user(room.cast(), bounded, walk.buffer as *const _) };
        // All ones after a failure, which is a negative number.
        let unread = (failed >> 63).cast_unsigned() as u32 & len;
        way.counts.add(Counter::LostUnreadableBytes, u64::from(unread));
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "ring memory is reached by pointer")]
        unsafe {
            (*event).header.len = len - unread;
            (*event).header.missing = unread;
        }
    });
}
