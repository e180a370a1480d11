//! Goes through the memory of a call: gathers its first bytes, and copies all of them into events.

use core::ffi::c_void;
use core::hint::black_box;

use aya_ebpf::programs::ProbeContext;
use tracer_common::call::{CALL_EVENT_BYTES, CALL_HEADER_BYTES, CHUNK_BYTES, Call, CallEvent, CallSocket, Layout, Walk, flag, place};
use tracer_common::counter::Counter;
use tracer_common::event::{Head, Kind, OPENING_BYTES, Opening, direction, opening};
use tracer_common::limits::HEAD_BYTES;
use tracer_common::socket::State;

use super::filter::{self, Judgement};
use super::{memory, times};
use crate::counts::{Counts, count};
use crate::maps::{CONFIG, EVENT, PROGRAMS, WALK};
use crate::transport::emit;

/// `sizeof(struct iovec)` and `sizeof(struct bio_vec)`.
pub(crate) const SEGMENT_BYTES: u64 = 16;

/// Bits of a page's size, less those of the size of `struct page`, which is 64 bytes: what lies between two of one lies between two of the
/// other this many times doubled.
const PAGE_SHIFT: u32 = 12 - 6;

/// This CPU's walk.
#[inline(always)]
pub(crate) fn of_this_cpu<'a>() -> Option<&'a mut Walk> {
    let walk = WALK.get_ptr_mut(0)?;
    // SAFETY: the map gave the pointer, and it lives as long as the program, which nothing else on this CPU interrupts.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    Some(unsafe { &mut *walk })
}

/// This CPU's event.
#[inline(always)]
fn event() -> Option<*mut CallEvent> {
    EVENT.get_ptr_mut(0)
}

/// Sets out for the bytes of a call that follow the first `done` ones.
#[inline(always)]
pub(crate) fn start(walk: &mut Walk, call: &Call, done: u64, layout: &Layout) {
    walk.kind = call.kind;
    walk.segments = call.segments;
    walk.nr_segs = call.nr_segs;
    walk.current = 0;
    walk.in_segment = 0;
    walk.skip = done.wrapping_add(call.iov_offset);
    if call.kind == place::BUFFER {
        walk.nr_segs = 0;
        walk.current = call.segments;
        walk.in_segment = call.iov_offset.wrapping_add(call.count);
    }
    if call.kind == place::PAGES {
        find_pages(walk, layout);
    }
}

/// Sets out for bytes that cannot be read.
#[inline(always)]
pub(crate) fn start_nowhere(walk: &mut Walk) {
    walk.kind = place::ELSEWHERE;
    walk.nr_segs = 0;
    walk.in_segment = 0;
    walk.skip = 0;
}

/// Sets out for the kernel's own memory.
#[inline(always)]
pub(crate) fn start_kernel(walk: &mut Walk, address: u64, bytes: u32) {
    start_nowhere(walk);
    walk.kind = place::PAGES;
    walk.current = address;
    walk.in_segment = u64::from(bytes);
}

/// Sets out for a part of one page.
#[inline(always)]
pub(crate) fn start_page(walk: &mut Walk, page: u64, offset: u64, bytes: u64, layout: &Layout) {
    start_nowhere(walk);
    if layout.reads_pages != 0 {
        walk.kind = place::PAGES;
        find_pages(walk, layout);
        walk.current = address_of(walk, page).wrapping_add(offset);
        walk.in_segment = bytes;
    }
}

/// Where the kernel maps all memory, and where its table of pages is: variables where their places are random.
#[inline(always)]
fn find_pages(walk: &mut Walk, layout: &Layout) {
    if layout.reads_pages == 0 {
        walk.kind = place::ELSEWHERE;
        return;
    }
    let value = |at: u64, constant: u64| if at == 0 { constant } else { memory::kernel(at).unwrap_or(constant) };
    walk.page_offset = value(layout.page_offset_at, layout.page_offset);
    walk.vmemmap = value(layout.vmemmap_at, layout.vmemmap);
}

#[inline(always)]
fn address_of(walk: &Walk, page: u64) -> u64 {
    (page.wrapping_sub(walk.vmemmap) << PAGE_SHIFT).wrapping_add(walk.page_offset)
}

/// Goes into the next segment. False when there is none, or it cannot be read.
#[inline(always)]
fn next_segment(walk: &mut Walk) -> bool {
    if walk.nr_segs == 0 {
        return false;
    }
    let Some([base, len]) = memory::kernel::<[u64; 2]>(walk.segments) else { return false };
    walk.segments += SEGMENT_BYTES;
    walk.nr_segs -= 1;
    if walk.kind == place::PAGES {
        walk.current = address_of(walk, base).wrapping_add(len >> 32);
        walk.in_segment = len & 0xffff_ffff;
    } else {
        walk.current = base;
        walk.in_segment = len;
    }
    true
}

/// Passes over what is to be passed over in the present segment.
#[inline(always)]
fn pass_over(walk: &mut Walk) {
    let skip = if walk.skip < walk.in_segment { walk.skip } else { walk.in_segment };
    walk.skip -= skip;
    walk.current = walk.current.wrapping_add(skip);
    walk.in_segment -= skip;
}

/// Gathers the first bytes of the call: a whole head, or all of a shorter call, or nothing when they cannot be had. Leaves the walk as it was.
#[inline(always)]
fn gather(walk: &mut Walk, bytes: u32) {
    let (segments, nr_segs, current, in_segment, skip) = (walk.segments, walk.nr_segs, walk.current, walk.in_segment, walk.skip);
    walk.first_len = 0;
    let wanted = if bytes < HEAD_BYTES { bytes } else { HEAD_BYTES };
    if walk.kind != place::ELSEWHERE {
        gather_pieces(walk, wanted);
    }
    if walk.first_len < wanted {
        walk.first_len = 0;
    }
    walk.segments = segments;
    walk.nr_segs = nr_segs;
    walk.current = current;
    walk.in_segment = in_segment;
    walk.skip = skip;
}

#[inline(always)]
fn gather_pieces(walk: &mut Walk, wanted: u32) {
    times!({
        if walk.first_len >= wanted {
            return;
        }
        if walk.in_segment == 0 && !next_segment(walk) {
            return;
        }
        pass_over(walk);
        if walk.in_segment != 0 {
            let room = wanted - walk.first_len;
            let len = if walk.in_segment < u64::from(room) { walk.in_segment as u32 } else { room };
            let at = black_box(walk.first_len) & 15;
            let size = (black_box(len).wrapping_sub(1) & 15) + 1;
            // SAFETY: `at + size` is at most 31.
            #[expect(unsafe_code, reason = "a place in a map value")]
            let to: *mut c_void = unsafe { walk.first.as_mut_ptr().add(at as usize) }.cast();
            let failed = if walk.kind == place::PAGES {
                memory::kernel_into(to, size, walk.current)
            } else {
                memory::user_into(to, size, walk.current)
            };
            if failed != 0 {
                return;
            }
            walk.first_len = at + size;
            walk.in_segment = 0;
        }
    }; a b c d e f g h);
}

/// Bytes went through a socket: judges them if need be, and copies them if they are wanted. The walk is set out for them. `unseen` other bytes
/// went before them, nobody knows from where or to where.
#[inline(always)]
pub(crate) fn see(ctx: &ProbeContext, walk: &mut Walk, socket: &mut CallSocket, unseen: u32, bytes: u32, sent: bool, time_ns: u64) {
    let Some(config) = CONFIG.get(0) else { return };
    if socket.tgid == 0 {
        socket.tgid = (memory::thread() >> 32) as u32;
    }
    filter::take_verdict(socket, config);
    let is_older = socket.flags & flag::BORN == 0;
    let way = if sent { &mut socket.sent } else { &mut socket.received };
    let before = way.position;
    let position = before.wrapping_add(unseen);
    way.position = position.wrapping_add(bytes);
    if unseen != 0 {
        // What is gathered does not go on here.
        way.len = 0;
    }
    if socket.state == State::Ignored as u32 {
        return;
    }
    let mut is_new = false;
    if socket.state == State::Unknown as u32 {
        if bytes == 0 {
            return;
        }
        walk.head = Head::default();
        let judgement = filter::before_judging(socket, config, sent);
        if judgement == Some(Judgement::Other) {
            return;
        }
        if judgement.is_none() {
            gather(walk, bytes);
            let way = if sent { &mut socket.sent } else { &mut socket.received };
            if !filter::judge(way, walk, is_older, bytes) {
                return;
            }
        }
        socket.state = State::Candidate as u32;
        is_new = true;
    }
    let Some(event) = event() else { return };
    describe(event, socket, time_ns);
    // SAFETY: the map gave the pointer, and it lives as long as the program.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        (*event).header.direction = if sent { direction::SENT } else { direction::RECEIVED };
        (*event).header.position = position;
        if is_new {
            open(ctx, event, socket, walk, position);
        }
        (*event).header.kind = Kind::Data as u8;
    }
    // What passed before a socket was judged is nobody's loss.
    if unseen != 0 && !is_new {
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "a map value is reached by pointer")]
        unsafe {
            (*event).header.position = before;
        }
        count(Counter::Bytes, u64::from(unseen));
        walk.left = u64::from(unseen);
        give_up(ctx, event, walk, Counter::LostUnreadableBytes);
        if bytes == 0 {
            return;
        }
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "a map value is reached by pointer")]
        unsafe {
            (*event).header.position = position;
            (*event).header.missing = 0;
        }
    }
    count(Counter::Bytes, u64::from(bytes));
    walk.left = u64::from(bytes);
    if walk.kind != place::ELSEWHERE {
        // SAFETY: the map holds a program of this type, or nothing: then the call fails.
        #[expect(unsafe_code, reason = "a helper")]
        unsafe {
            PROGRAMS.tail_call(ctx, 0);
        }
    }
    give_up(ctx, event, walk, Counter::LostUnreadableBytes);
}

/// What is the same in all events of a socket for one call.
#[inline(always)]
fn describe(event: *mut CallEvent, socket: &CallSocket, time_ns: u64) {
    // SAFETY: the map gave the pointer, and it lives as long as the program.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    let header = unsafe { &mut (*event).header };
    header.time_ns = time_ns;
    header.emitted_ns = memory::now();
    header.id = socket.id;
    header.local = socket.local;
    header.peer = socket.peer;
    header.local_port = filter::local_port(socket);
    header.peer_port = filter::peer_port(socket);
    header.pid = socket.tgid;
    header.len = 0;
    header.missing = 0;
    header.reserved = 0;
    header.state = socket.state as u8;
}

/// Says that the socket became a candidate, with the bytes that its judgement rests on and that passed before this call.
#[inline(always)]
fn open(ctx: &ProbeContext, event: *mut CallEvent, socket: &CallSocket, walk: &Walk, position: u32) {
    count(Counter::Candidates, 1);
    let mut flags = 0;
    if socket.flags & flag::BORN != 0 {
        flags = opening::SENT_FIRST | opening::RECEIVED_FIRST;
    }
    if socket.flags & flag::INITIATOR != 0 {
        flags |= opening::INITIATOR;
    }
    // SAFETY: the map gave the pointer; an opening fits where payload lies, at a multiple of eight.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        (*event).header.kind = Kind::Open as u8;
        let place = (&raw mut (*event).data).cast::<Opening>();
        (*place).flags = flags;
        (*place).sent_first = 0;
        (*place).received_first = 0;
        (*place).reserved = 0;
        (*place).head.position = position.wrapping_sub(walk.head.len);
        (*place).head.len = walk.head.len;
        (*place).head.bytes = walk.head.bytes;
    }
    emit(ctx.regs.cast(), event, (CALL_HEADER_BYTES + OPENING_BYTES) as u64, 0);
}

/// Says that the rest of the call was not read.
#[inline(always)]
fn give_up(ctx: &ProbeContext, event: *mut CallEvent, walk: &mut Walk, why: Counter) {
    count(why, walk.left);
    count(Counter::Events, 1);
    // SAFETY: the map gave the pointer, and it lives as long as the program.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        (*event).header.len = 0;
        (*event).header.missing = walk.left as u32;
        (*event).header.emitted_ns = memory::now();
    }
    walk.left = 0;
    emit(ctx.regs.cast(), event, CALL_HEADER_BYTES as u64, 0);
}

/// Says that both directions of a socket ended.
#[inline(always)]
pub(crate) fn close(ctx: &ProbeContext, socket: &CallSocket) {
    let Some(event) = event() else { return };
    describe(event, socket, memory::now());
    // SAFETY: the map gave the pointer, and it lives as long as the program.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        (*event).header.kind = Kind::Close as u8;
        (*event).header.direction = direction::SENT;
        (*event).header.position = socket.sent.position;
    }
    emit(ctx.regs.cast(), event, CALL_HEADER_BYTES as u64, 0);
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        (*event).header.direction = direction::RECEIVED;
        (*event).header.position = socket.received.position;
    }
    emit(ctx.regs.cast(), event, CALL_HEADER_BYTES as u64, 0);
}

/// The copying program: as many pieces as it has room for, then itself again.
#[inline(always)]
pub(crate) fn copy(ctx: &ProbeContext) {
    let (Some(walk), Some(event), Some(counts)) = (of_this_cpu(), event(), Counts::of_this_cpu()) else { return };
    let mut is_stuck = false;
    copy_pieces(ctx, walk, event, counts, &mut is_stuck);
    if walk.left == 0 {
        return;
    }
    if is_stuck {
        give_up(ctx, event, walk, Counter::LostUnreadableBytes);
        return;
    }
    // SAFETY: the map holds this program.
    #[expect(unsafe_code, reason = "a helper")]
    unsafe {
        PROGRAMS.tail_call(ctx, 0);
    }
    // The kernel allows no more.
    give_up(ctx, event, walk, Counter::LostTooLongBytes);
}

#[inline(always)]
fn copy_pieces(ctx: &ProbeContext, walk: &mut Walk, event: *mut CallEvent, counts: Counts, is_stuck: &mut bool) {
    // As many as `PIECES_PER_RUN`.
    times!({
        if walk.left == 0 {
            return;
        }
        if walk.in_segment == 0 && !next_segment(walk) {
            *is_stuck = true;
            return;
        }
        pass_over(walk);
        piece(ctx, walk, event, counts);
    }; a b c d e f g h i j k l m n o p);
}

/// One event with what the present segment has, up to a chunk.
#[inline(always)]
fn piece(ctx: &ProbeContext, walk: &mut Walk, event: *mut CallEvent, counts: Counts) {
    let mut len = if walk.in_segment < walk.left { walk.in_segment } else { walk.left };
    if len > u64::from(CHUNK_BYTES) {
        len = u64::from(CHUNK_BYTES);
    }
    if len == 0 {
        return;
    }
    // The verifier wants to see 1..=CHUNK_BYTES; the compiler, which knows `len`, would leave the mask out.
    let size = (black_box(len).wrapping_sub(1) & u64::from(CHUNK_BYTES - 1)) + 1;
    // SAFETY: the map gave the pointer, and it lives as long as the program.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    let to: *mut c_void = unsafe { (&raw mut (*event).data).cast() };
    let failed = if walk.kind == place::PAGES {
        memory::kernel_into(to, size as u32, walk.current)
    } else {
        memory::user_into(to, size as u32, walk.current)
    };
    // All ones after a failure, which is a negative number: fewer branches for the verifier.
    let mask = (failed >> 63).cast_unsigned();
    let unread = len & mask;
    let header = CALL_HEADER_BYTES as u64;
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        (*event).header.len = (len - unread) as u32;
        (*event).header.missing = unread as u32;
        (*event).header.emitted_ns = memory::now();
    }
    counts.add(Counter::Events, 1);
    counts.add(Counter::LostUnreadableBytes, unread);
    // Looked at anew: what the verifier knew of the size is lost when the compiler keeps it on the stack meanwhile (up to 5.9).
    let whole = (black_box((size & !mask) + header).wrapping_sub(1) & (CALL_EVENT_BYTES as u64 - 1)) + 1;
    emit(ctx.regs.cast(), event, whole, len as u32);
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        (*event).header.position = (*event).header.position.wrapping_add(len as u32);
    }
    walk.current = walk.current.wrapping_add(len);
    walk.in_segment -= len;
    walk.left -= len;
}
