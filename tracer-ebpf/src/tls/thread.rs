//! What threads do with sockets between their calls into TLS libraries: it tells the socket of a session whose object does not say it.
//!
//! A thread receives from a socket and then, or within the call, a session of it gives plaintext; a session takes plaintext and then, or
//! within the call, the thread sends. Sockets on ports that are not known for Kafka do not count. What two sockets could explain explains
//! nothing.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::config::PortRule;
use tracer_common::event::direction;
use tracer_common::tls::{Call, Kind, Moved, Thread, Watched};

use crate::maps::{THREADS, TLS_CONFIG, WATCHED};
use crate::{descriptor, session};

/// Most that encryption adds to a record: header, explicit vector, hash and padding of the suites with the longest of them.
const MAX_RECORD_EXTRA: u32 = 96;

/// The current process has a session whose object does not say its socket.
#[inline(always)]
pub(crate) fn watch() {
    if !is_watched() {
        let _ = WATCHED.insert(session::tgid(), Watched::default(), 0);
    }
}

#[inline(always)]
fn is_watched() -> bool {
    WATCHED.get_ptr(session::tgid()).is_some()
}

/// What is known of the current process, if it is looked at.
#[inline(always)]
pub(crate) fn watched<'a>() -> Option<&'a mut Watched> {
    let watched = WATCHED.get_ptr_mut(session::tgid())?;
    // SAFETY: the map gave the pointer, and the value stays readable while the program runs. Its words only ever change from 0.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        Some(&mut *watched)
    }
}

/// The current thread has shaken hands for a session that is yet to be seen.
#[inline(always)]
pub(crate) fn shook_hands(flags: u32) {
    watch();
    if let Some(thread) = current() {
        thread.begun = flags;
    }
}

/// Flags of a session that is new to the current thread.
#[inline(always)]
pub(crate) fn take_begun() -> u32 {
    if !is_watched() {
        return 0;
    }
    current().map_or(0, |thread| core::mem::take(&mut thread.begun))
}

/// A call begins: what was sent since the last writing call was that call's.
#[inline(always)]
pub(crate) fn call_begins(call: &Call) {
    if call.kind == Kind::Go as u32 || !is_watched() {
        return;
    }
    let Some(thread) = current() else { return };
    let (writer, wrote, sent, unsent) = (thread.writer, thread.wrote, thread.sent, thread.unsent);
    let is_sent = call.direction == u32::from(direction::SENT);
    thread.writer = if is_sent { call.session } else { 0 };
    thread.wrote = if call.bytes > u64::from(u32::MAX / 2) { u32::MAX / 2 } else { call.bytes as u32 };
    thread.sent = Moved::default();
    if writer == 0 {
        return;
    }
    thread.unsent = if sent.sockets == 0 { writer } else { 0 };
    let most = wrote.wrapping_add(wrote >> 3).wrapping_add(MAX_RECORD_EXTRA);
    if sent.sockets == 1 && sent.bytes > wrote && sent.bytes <= most && (unsent == 0 || unsent == writer) {
        session::witness(&session::key(writer), sent.socket, true);
    }
}

/// A call returns, with as many plaintext bytes; not more than 0 when there are none.
#[inline(always)]
pub(crate) fn call_returns(call: &Call, bytes: i64) {
    if call.direction != u32::from(direction::RECEIVED) || call.kind == Kind::Go as u32 || !is_watched() {
        return;
    }
    let Some(thread) = current() else { return };
    let received = thread.received;
    thread.received = Moved::default();
    if bytes > 0 && received.sockets == 1 && i64::from(received.bytes) > bytes {
        session::witness(&session::key(call.session), received.socket, false);
    }
}

/// The current thread moved bytes on a socket.
#[inline(always)]
pub(crate) fn moved(socket: u64, bytes: i32, is_sent: bool) {
    if bytes <= 0 || !is_watched() {
        return;
    }
    let Some(places) = TLS_CONFIG.get(0) else { return };
    if places.sock_protocol == 0 {
        return;
    }
    let Some((local, peer)) = descriptor::tcp_ports(socket, places) else { return };
    if !matches!(session::rules(local, peer), Some(PortRule::Force)) {
        return;
    }
    let (Some(thread), Some(watched)) = (current(), watched()) else { return };
    if watched.socket == 0 {
        watched.socket = socket;
    } else if watched.socket != socket {
        watched.has_several = 1;
    }
    let moved = if is_sent { &mut thread.sent } else { &mut thread.received };
    let bytes = bytes.cast_unsigned();
    if moved.sockets == 0 {
        *moved = Moved { socket, bytes, sockets: 1 };
    } else if moved.socket == socket {
        moved.bytes = moved.bytes.saturating_add(bytes);
    } else {
        moved.sockets = 2;
    }
}

/// The current thread's place.
#[inline(always)]
fn current<'a>() -> Option<&'a mut Thread> {
    let key = bpf_get_current_pid_tgid();
    let thread = THREADS.get_ptr_mut(key).or_else(|| {
        let _ = THREADS.insert(key, Thread::default(), 0);
        THREADS.get_ptr_mut(key)
    })?;
    // SAFETY: the map gave the pointer, and the value stays readable while the program runs; only this thread writes it.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        Some(&mut *thread)
    }
}
