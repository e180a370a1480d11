//! What is known of a session: made when it is first seen, tied to its socket, judged, told.

use core::hint::black_box;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, generated};
use tracer_common::config::PortRule;
use tracer_common::counter::Counter;
use tracer_common::event::{EventHeader, Kind as EventKind, OpenEvent, direction, flag as event_flag, opening};
use tracer_common::judge;
use tracer_common::limits::{
    HEAD_BYTES, HEAD_PIECES, MAX_CONFLICTS, MAX_JUDGED_CALLS, WITNESSES, WITNESSES_IF_MIXED, WITNESSES_OF_SEVERAL,
};
use tracer_common::socket::State;
use tracer_common::tls::{Call, Half, OwnedKey, PIECE_BYTES, Session, SessionKey, Told, flag};
use tracer_common::verdict;

use crate::maps::{OWNERS, PORTS, SESSIONS, TLS_CONFIG, VERDICTS};
use crate::transport::{Way, emit};
use crate::{descriptor, thread};

/// Highest bit of a session's id: no socket's cookie has it.
const BESIDE: u64 = 1 << 63;

/// Nanoseconds of the boot clock.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    #[expect(unsafe_code, reason = "a helper")]
    unsafe {
        generated::bpf_ktime_get_boot_ns()
    }
}

/// The current process.
#[inline(always)]
pub(crate) fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The session of an object of the current process.
#[inline(always)]
pub(crate) fn key(address: u64) -> SessionKey {
    SessionKey { address, tgid: tgid(), reserved: 0 }
}

/// No other session has it: two that are made in the same nanosecond are made on two CPUs.
#[inline(always)]
fn new_id() -> u64 {
    // SAFETY: a helper without arguments.
    #[expect(unsafe_code, reason = "a helper")]
    let cpu = unsafe { bpf_get_smp_processor_id() };
    BESIDE | (now() << 8) | u64::from(cpu & 0xff)
}

/// The session, made if it is new; `flags` are those of a new one.
#[inline(always)]
pub(crate) fn get_or_make<'a>(key: &SessionKey, flags: u32) -> Option<&'a mut Session> {
    if let Some(session) = get(key) {
        return Some(session);
    }
    let session = Session { id: new_id(), flags, ..Session::default() };
    // Whoever reads and whoever writes may come at once: both get what the first of them made.
    let _ = SESSIONS.insert(key, session, u64::from(BPF_NOEXIST));
    get(key)
}

/// Makes the session if it is new, of a library that says neither that one ends nor where its hands were shaken, before it was moved to where
/// it stays: it is over when its socket is closed, and the first that a thread sees after a handshake is the one that shook hands.
#[inline(always)]
pub(crate) fn make_if_new(key: &SessionKey) {
    let known = get(key);
    let is_another = known.as_ref().is_some_and(|session| is_over(session));
    let is_new = is_another || known.is_none();
    let flags = if is_new { thread::take_begun() | flag::ENDS_WITH_SOCKET } else { 0 };
    let Some(session) = known.or_else(|| get_or_make(key, flags)) else { return };
    session.last_ns = now();
    if is_another {
        tell_end(session, key.tgid);
        begin_anew(session, flags);
    }
    if is_new {
        session.first_ns = session.last_ns;
    }
}

/// Whether the socket was closed, as far as it is known.
#[inline(always)]
fn is_over(session: &Session) -> bool {
    let socket = session.socket | session.witnessed;
    let Some(places) = TLS_CONFIG.get(0) else { return false };
    let ports = (session.local_port, session.peer_port);
    socket != 0 && places.sock_protocol != 0 && !descriptor::is_connected(socket, ports, places)
}

/// A session begins at an object, whatever was there before.
#[inline(always)]
pub(crate) fn begin(key: &SessionKey, flags: u32) {
    forget(key);
    let _ = get_or_make(key, flags);
}

/// The session, if it is known.
#[inline(always)]
pub(crate) fn get<'a>(key: &SessionKey) -> Option<&'a mut Session> {
    let session = SESSIONS.get_ptr_mut(key)?;
    // SAFETY: the map gave the pointer, and the value stays readable while the program runs. Libraries do not let two threads into one
    // session and direction at a time.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        Some(&mut *session)
    }
}

/// Whether connections between these ports are known for Kafka. Both rules are put together before one is looked at: kernels before 6.3 refuse
/// a program that carries along the value of a rule that is not there.
#[inline(always)]
pub(crate) fn rules(local_port: u16, peer_port: u16) -> Option<PortRule> {
    let rules = rule(local_port) | rule(peer_port);
    if rules & PortRule::Exclude as u32 != 0 {
        return Some(PortRule::Exclude);
    }
    (rules & PortRule::Force as u32 != 0).then_some(PortRule::Force)
}

#[inline(always)]
fn rule(port: u16) -> u32 {
    // SAFETY: the value is a plain number, read once.
    #[expect(unsafe_code, reason = "a map lookup")]
    match unsafe { PORTS.get(u32::from(port)) } {
        Some(rule) => *rule,
        None => 0,
    }
}

/// Looks for the session's socket. A session whose object stands on another socket than before is another session: its bytes begin anew.
#[inline(always)]
pub(crate) fn tie(session: &mut Session, call: &Call) {
    if session.flags & flag::BY_THREAD != 0 {
        return;
    }
    let Some(descriptor) = descriptor::of(call) else {
        thread::watch();
        return;
    };
    session.descriptor = descriptor.wrapping_add(1);
    let Some(places) = TLS_CONFIG.get(0) else { return };
    if places.has_layout == 0 {
        return;
    }
    let Some(sock) = descriptor::sock(descriptor, places) else { return };
    if sock == 0 || sock == session.socket {
        return;
    }
    if session.flags & flag::TIED != 0 {
        begin_anew(session, 0);
    }
    if descriptor::addresses(sock, session) {
        session.socket = sock;
        session.flags |= flag::TIED;
        let owned = OwnedKey { socket: sock, local_port: session.local_port, peer_port: session.peer_port, reserved: 0 };
        let _ = OWNERS.insert(owned, key(call.session), 0);
    }
}

/// A thread moved the session's bytes on a socket, and nothing else. After enough of that, in both directions and with nothing against it,
/// the socket is the session's, unless it is another's.
#[inline(always)]
pub(crate) fn witness(key: &SessionKey, socket: u64, is_sent: bool) {
    let Some(session) = get_or_make(key, 0) else { return };
    if session.flags & flag::TIED != 0 || session.descriptor != 0 || session.conflicts > MAX_CONFLICTS {
        return;
    }
    let Some(watched) = thread::watched() else { return };
    if session.witnessed != socket {
        if session.witnessed != 0 {
            session.conflicts += 1;
            watched.is_mixed = 1;
        }
        session.witnessed = socket;
        (session.local_port, session.peer_port) =
            TLS_CONFIG.get(0).and_then(|places| descriptor::tcp_ports(socket, places)).unwrap_or((0, 0));
        session.reads_witnessed = 0;
        session.writes_witnessed = 0;
    }
    if is_sent {
        session.writes_witnessed += 1;
    } else {
        session.reads_witnessed += 1;
    }
    let enough = if watched.is_mixed != 0 {
        WITNESSES_IF_MIXED
    } else if watched.has_several != 0 {
        WITNESSES_OF_SEVERAL
    } else {
        WITNESSES
    };
    if is_witnessed(session, enough) {
        settle(session, key);
    }
}

/// Whether threads moved the session's bytes on the same socket in both directions, and `times` in all.
#[inline(always)]
fn is_witnessed(session: &Session, times: u32) -> bool {
    let (reads, writes) = (session.reads_witnessed, session.writes_witnessed);
    reads != 0 && writes != 0 && reads.wrapping_add(writes) >= times
}

/// The witnessed socket is the session's, unless it is another's.
#[inline(always)]
fn settle(session: &mut Session, key: &SessionKey) {
    let socket = session.witnessed;
    if !descriptor::addresses(socket, session) {
        return;
    }
    let owned = OwnedKey { socket, local_port: session.local_port, peer_port: session.peer_port, reserved: 0 };
    if is_anothers(&owned, key, session) {
        session.conflicts = MAX_CONFLICTS + 1;
        return;
    }
    let _ = OWNERS.insert(owned, *key, 0);
    session.socket = socket;
    session.witnessed = 0;
    session.flags |= flag::TIED | flag::BY_THREAD;
    if session.state == State::Ignored as u32 {
        // It was judged without its port. What user space decided is looked up again.
        session.state = State::Unknown as u32;
    }
}

/// Whether a socket belongs to another session that is there. One of rustls that was not called since this one is at another address now: this
/// one goes on from there.
#[inline(always)]
fn is_anothers(place: &OwnedKey, key: &SessionKey, session: &Session) -> bool {
    // SAFETY: the value is read once.
    #[expect(unsafe_code, reason = "a map lookup")]
    let Some(owner) = (unsafe { OWNERS.get(place).copied() }) else { return false };
    if owner.address == key.address && owner.tgid == key.tgid {
        return false;
    }
    let Some(other) = get(&owner).filter(|other| other.socket == place.socket) else { return false };
    let can_move = session.flags & other.flags & flag::ENDS_WITH_SOCKET != 0 && owner.tgid == key.tgid;
    if can_move && other.last_ns < session.first_ns {
        forget(&owner);
        return false;
    }
    true
}

/// A session begins, as its library says. One whose socket was found by what threads did is another one from now on: the object may stand
/// on another socket, and will not say so.
#[inline(always)]
pub(crate) fn begin_unless_known(key: &SessionKey, flags: u32) {
    if let Some(known) = get(key)
        && (known.flags & flag::BY_THREAD != 0 || known.witnessed != 0)
        && known.sent | known.received != 0
    {
        begin_anew(known, flags);
        return;
    }
    let _ = get_or_make(key, flags);
}

/// Makes another session of it.
#[inline(always)]
fn begin_anew(session: &mut Session, flags: u32) {
    session.id = new_id();
    session.socket = 0;
    session.sent = 0;
    session.received = 0;
    session.state = State::Unknown as u32;
    session.judged = 0;
    session.flags = flags;
    session.witnessed = 0;
    session.reads_witnessed = 0;
    session.writes_witnessed = 0;
    session.conflicts = 0;
    let [sent, received] = &mut session.halves;
    (sent.len, received.len) = (0, 0);
}

/// Whether the session's bytes are wanted, `bytes` of them from `call` being the next.
#[inline(always)]
pub(crate) fn is_wanted(session: &mut Session, call: &Call, bytes: u32) -> bool {
    let word = VERDICTS.get(verdict::slot(session.id)).map_or(0, |word| *word);
    if let Some(state) = verdict::state_of(session.id, word) {
        session.state = state;
    }
    if session.state == State::Unknown as u32 {
        judge(session, call, bytes);
    }
    session.state == State::Candidate as u32 || session.state == State::Capture as u32
}

#[inline(always)]
fn judge(session: &mut Session, call: &Call, bytes: u32) {
    if session.flags & flag::TIED != 0 {
        match rules(session.local_port, session.peer_port) {
            Some(PortRule::Exclude) => {
                session.state = State::Ignored as u32;
                return;
            }
            Some(PortRule::Force) => {
                session.state = State::Candidate as u32;
                return;
            }
            None => {}
        }
    }
    session.judged += 1;
    if is_request(session, call, bytes) {
        session.state = State::Candidate as u32;
    } else if session.judged >= MAX_JUDGED_CALLS {
        session.state = State::Ignored as u32;
    }
}

/// Whether a request begins with this call, or with the shorter ones right before it: those are in the half then.
#[inline(always)]
fn is_request(session: &mut Session, call: &Call, bytes: u32) -> bool {
    let is_sent = call.direction == u32::from(direction::SENT);
    let [sent, received] = &mut session.halves;
    let (half, position) = if is_sent { (sent, session.sent) } else { (received, session.received) };
    let before = before(half, position);
    half.len = before;
    half.next = position.wrapping_add(bytes);
    if !gather(half, call, bytes) {
        half.len = 0;
        return false;
    }
    if half.len < HEAD_BYTES {
        return false;
    }
    half.len = before;
    half.next = position;
    if half.bytes.first_chunk().is_some_and(|head| judge::is_request_head(head, before.wrapping_add(bytes))) {
        return true;
    }
    half.len = 0;
    // Not with those before it: with this one. One in pieces is not looked at again.
    before != 0
        && bytes >= HEAD_BYTES
        && call.told != Told::Pieces as u32
        && descriptor::user::<[u8; HEAD_BYTES as usize]>(call.buffer).is_some_and(|head| judge::is_request_head(&head, bytes))
}

/// How many bytes are gathered right before a position.
#[inline(always)]
fn before(half: &Half, position: u32) -> u32 {
    if half.next == position { half.len } else { 0 }
}

/// Puts the first bytes of a call behind those that came before. False when they cannot be read.
#[inline(always)]
fn gather(half: &mut Half, call: &Call, bytes: u32) -> bool {
    if call.told != Told::Pieces as u32 {
        return append(half, call.buffer, bytes);
    }
    let mut piece = call.buffer.wrapping_sub(PIECE_BYTES);
    let mut left = bytes;
    times!({
        if half.len < HEAD_BYTES && left != 0 {
            piece = piece.wrapping_add(PIECE_BYTES);
            let Some([buffer, bytes]) = descriptor::user::<[u64; 2]>(piece) else { return false };
            // The last may be taken in part.
            let bytes = if bytes < u64::from(left) { bytes as u32 } else { left };
            left = left.wrapping_sub(bytes);
            if bytes != 0 && !append(half, buffer, bytes) {
                return false;
            }
        }
    }; a b c d e f g h);
    half.len >= HEAD_BYTES || left == 0
}

/// Copies as many of these bytes, at least one, as the head has room for. False when they cannot be read.
#[inline(always)]
fn append(half: &mut Half, buffer: u64, bytes: u32) -> bool {
    // The masks are the verifier's proof: at most 15 bytes before, at most 16 behind them, in 32. `black_box` keeps the compiler, which
    // knows better, from leaving them out.
    let at = black_box(half.len) & 15;
    let room = HEAD_BYTES.wrapping_sub(at);
    let wanted = if bytes < room { bytes } else { room };
    let len = (black_box(wanted).wrapping_sub(1) & 15) + 1;
    // SAFETY: `at + len` is at most 31.
    #[expect(unsafe_code, reason = "a helper that writes into the map value")]
    let failed = unsafe {
        let to = half.bytes.as_mut_ptr().add(at as usize);
        generated::bpf_probe_read_user(to.cast(), len, buffer as *const _)
    };
    half.len = if failed == 0 { at + len } else { 0 };
    failed == 0
}

const _: () = assert!(HEAD_PIECES == 8, "as many as the macro is told above");

/// Fills the header of an event of the session.
#[inline(always)]
pub(crate) fn describe(header: &mut EventHeader, session: &Session, boot_ns: u64) {
    header.boot_ns = boot_ns;
    header.cookie = session.id;
    header.pid = tgid();
    header.state = session.state as u8;
    header.local = session.local;
    header.peer = session.peer;
    header.local_port = session.local_port;
    header.peer_port = session.peer_port;
    header.origin = u64::from(session.descriptor);
    header.flags = if session.flags & flag::TIED == 0 { event_flag::UNTIED } else { 0 };
}

/// Says that there is a session, once, before its first data.
#[inline(always)]
pub(crate) fn open(session: &mut Session, header: &EventHeader, way: Way) {
    if session.flags & flag::TOLD != 0 {
        return;
    }
    session.flags |= flag::TOLD;
    let [sent, received] = &session.halves;
    let is_sent = header.direction == direction::SENT;
    let (half, position, other) = if is_sent { (sent, session.sent, session.received) } else { (received, session.received, session.sent) };
    let before = before(half, position);
    let from_start = session.flags & flag::BEGUN != 0 && position == before && other == 0;
    let mut flags = if from_start { opening::SENT_FIRST | opening::RECEIVED_FIRST } else { 0 };
    if session.flags & flag::INITIATOR != 0 {
        flags |= opening::INITIATOR;
    }
    way.counts.add(Counter::Candidates, 1);
    way.counts.add(Counter::Bytes, u64::from(before));
    emit::<OpenEvent>(way, 0, |event| {
        // SAFETY: `event` is reserved room of its size.
        #[expect(unsafe_code, reason = "ring memory is reached by pointer")]
        unsafe {
            (*event).header = *header;
            (*event).header.kind = EventKind::Open as u8;
            (*event).opening.flags = flags;
            (*event).opening.sent_first = 0;
            (*event).opening.received_first = 0;
            (*event).opening.reserved = 0;
            (*event).opening.head.position = position.wrapping_sub(before);
            (*event).opening.head.len = before;
            (*event).opening.head.bytes = half.bytes.first_chunk().copied().unwrap_or_default();
        }
    });
}

/// The session ends.
#[inline(always)]
pub(crate) fn end(key: &SessionKey) {
    let Some(session) = get(key) else { return };
    // A short one: nothing spoke against it, and nothing more will come.
    let is_mixed = thread::watched().is_some_and(|watched| watched.is_mixed != 0);
    if session.flags & flag::TIED == 0 && session.conflicts == 0 && !is_mixed && is_witnessed(session, 2) {
        settle(session, key);
    }
    forget(key);
}

/// Says that the session ended, and forgets it.
#[inline(always)]
fn forget(key: &SessionKey) {
    let Some(session) = get(key) else { return };
    tell_end(session, key.tgid);
    let _ = SESSIONS.remove(key);
}

/// The socket of a connection between these ports was closed.
#[inline(always)]
pub(crate) fn end_with_socket(socket: u64, (local_port, peer_port): (u16, u16)) {
    let place = OwnedKey { socket, local_port, peer_port, reserved: 0 };
    // SAFETY: the value is read once.
    #[expect(unsafe_code, reason = "a map lookup")]
    let Some(owner) = (unsafe { OWNERS.get(place).copied() }) else { return };
    if get(&owner).is_some_and(|session| session.socket == socket && session.flags & flag::ENDS_WITH_SOCKET != 0) {
        forget(&owner);
    }
}

/// Says that the session ended, both ways, if anything was said of it.
#[inline(always)]
fn tell_end(session: &Session, pid: u32) {
    if session.flags & flag::TOLD != 0
        && let Some(way) = Way::now()
    {
        close(session, pid, direction::SENT, session.sent, way);
        close(session, pid, direction::RECEIVED, session.received, way);
    }
}

#[inline(always)]
fn close(session: &Session, pid: u32, direction: u8, position: u32, way: Way) {
    emit::<EventHeader>(way, 0, |event| {
        // SAFETY: `event` is reserved room of its size.
        #[expect(unsafe_code, reason = "ring memory is reached by pointer")]
        let header = unsafe {
            *event = EventHeader::default();
            &mut *event
        };
        // In its place: the stack has no room for another header.
        describe(header, session, now());
        (header.kind, header.pid, header.direction, header.position) = (EventKind::Close as u8, pid, direction, position);
    });
}
