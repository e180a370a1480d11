//! From the programs' events to [`CaptureEvent`]s: a session's addresses, its owner, and its end when its process ends without a word.
//!
//! In: raw events of the ring. Out: events for `connection`, and who connects where. Pure but for one look-up: where the programs do not
//! know the kernel's structures, the addresses of a descriptor are read from `/proc`.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::SocketAddr;

use hashlink::LruCache;
use tracer_common::event::{EventHeader, Kind, Opening, flag, opening};

use super::proc;
use crate::source::ebpf::clock::Offset;
use crate::source::ebpf::out::{Out, address, way};
use crate::source::{CaptureEvent, Direction, EventKind, SocketKey};

/// Sessions that are remembered, least recently seen forgotten first.
const MAX_SESSIONS: usize = 16_384;

/// Bytes of sessions whose socket is not known, together.
const MAX_WAITING_BYTES: usize = 8 << 20;

/// How long they wait.
const WAIT_NS: u64 = 30_000_000_000;

/// What the translator saw on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Sessions with addresses.
    pub(super) sessions: u64,
    /// Those of them whose first bytes were not seen.
    pub(super) joined: u64,
    /// Sessions whose socket was not found: what waited for it was dropped.
    pub(super) untied: u64,
    /// Events that no program of this version writes.
    pub(super) malformed: u64,
}

impl Seen {
    fn count(&mut self, is_whole: bool) {
        self.sessions += 1;
        self.joined += u64::from(!is_whole);
    }
}

/// What an event says apart from a session's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// Nothing.
    None,
    /// A process connects to an address.
    Connects(u32, SocketAddr),
    /// A session's socket is known now.
    Tied(SocketAddr, SocketAddr),
    /// A session of this process is new, and its socket is not known.
    Untied(u32),
}

/// State between events.
pub(super) struct Translator {
    sessions: LruCache<u64, Session>,
    waiting_bytes: usize,
    seen: Seen,
}

/// A session.
#[derive(Default)]
struct Session {
    pid: u32,
    /// None while its socket is not known.
    key: Option<SocketKey>,
    waiting: Vec<Held>,
    /// It waited in vain: what comes is dropped while its socket is not known.
    is_given_up: bool,
    /// Its first bytes were seen.
    is_whole: bool,
    first_ns: u64,
    /// Position after the last byte of each direction.
    sent: u32,
    received: u32,
}

/// An event that waits for its session's socket.
struct Held {
    header: EventHeader,
    opening: Option<Opening>,
    bytes: Vec<u8>,
}

impl Translator {
    pub(super) fn new() -> Self {
        Self { sessions: LruCache::new(MAX_SESSIONS), waiting_bytes: 0, seen: Seen::default() }
    }

    pub(super) const fn seen(&self) -> Seen {
        self.seen
    }

    /// Bytes that wait for their session's socket, as they are counted, and as they are.
    pub(super) fn waiting_bytes(&self) -> (usize, usize) {
        (self.waiting_bytes, self.sessions.iter().map(|(_, session)| session.waiting_bytes()).sum())
    }

    /// How many sessions each process has whose socket is not known, given up or not.
    pub(super) fn untied(&self) -> HashMap<u32, usize> {
        let mut untied = HashMap::new();
        for (_, session) in self.sessions.iter().filter(|(_, session)| session.key.is_none()) {
            *untied.entry(session.pid).or_default() += 1;
        }
        untied
    }

    /// The process that has a session.
    pub(super) fn owner(&self, id: u64) -> Option<u32> {
        self.sessions.peek(&id).map(|session| session.pid)
    }

    /// Takes one event of the ring and hands on what it means. Returns the payload bytes in it, and what else it says.
    pub(super) fn push(&mut self, event: &[u8], offset: Offset, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> (u64, Note) {
        let Some((header, rest)) = EventHeader::parse(event) else {
            self.seen.malformed += 1;
            return (0, Note::None);
        };
        let mut out = Out { offset, sink };
        match header.kind() {
            Some(Kind::Data) => {
                let Some(bytes) = usize::try_from(header.len).ok().and_then(|len| rest.get(..len)) else {
                    self.seen.malformed += 1;
                    return (0, Note::None);
                };
                let note = self.take(&header, None, bytes, &mut out);
                (u64::from(header.len), note)
            }
            Some(Kind::Open) => {
                let Some(opening) = Opening::parse(rest) else {
                    self.seen.malformed += 1;
                    return (0, Note::None);
                };
                (0, self.take(&header, Some(opening), &[], &mut out))
            }
            Some(Kind::Close) => (0, self.close(&header, &mut out)),
            Some(Kind::Connect) => (0, Note::Connects(header.pid, address(header.peer, header.peer_port))),
            None => {
                self.seen.malformed += 1;
                (0, Note::None)
            }
        }
    }

    /// Processes that are gone: their sessions ended.
    pub(super) fn end_of(&mut self, pids: &[u32], boot_ns: u64, offset: Offset, sink: &mut dyn FnMut(CaptureEvent<'_>)) {
        let over: Vec<u64> = self.sessions.iter().filter(|(_, session)| pids.contains(&session.pid)).map(|(id, _)| *id).collect();
        for id in over {
            let Some(session) = self.sessions.remove(&id) else { continue };
            self.waiting_bytes -= session.waiting_bytes();
            let Some(key) = session.key else {
                self.seen.untied += u64::from(!session.is_given_up);
                continue;
            };
            let mut out = Out { offset, sink: &mut *sink };
            for (direction, position) in [(Direction::Sent, session.sent), (Direction::Received, session.received)] {
                out.emit(key, Some(session.pid), boot_ns, EventKind::Close { direction, position, reset: false });
            }
        }
    }

    /// Drops what has waited too long. `boot_ns` is now.
    pub(super) fn expire(&mut self, boot_ns: u64) {
        self.give_up_those(|session| session.first_ns.saturating_add(WAIT_NS) <= boot_ns);
    }

    /// Drops all that waits: nothing more will come.
    pub(super) fn give_up_all(&mut self) {
        self.give_up_those(|_| true);
    }

    fn give_up_those(&mut self, is_over: impl Fn(&Session) -> bool) {
        let waiting = self.sessions.iter().filter(|(_, session)| session.is_waiting());
        let over: Vec<u64> = waiting.filter(|(_, session)| is_over(session)).map(|(id, _)| *id).collect();
        for id in over {
            self.give_up(id);
        }
    }

    fn take(&mut self, header: &EventHeader, opening: Option<Opening>, bytes: &[u8], out: &mut Out<'_>) -> Note {
        let is_whole = opening.is_some_and(|opening| opening.flags & opening::SENT_FIRST != 0);
        let note = self.know(header, is_whole, out);
        let Some(session) = self.sessions.get_mut(&header.cookie) else { return note };
        let end = header.position.wrapping_add(header.len).wrapping_add(header.missing);
        if opening.is_none() {
            match way(header) {
                Direction::Sent => session.sent = end,
                Direction::Received => session.received = end,
            }
        }
        if let Some(key) = session.key {
            hand_on(key, session.pid, header, opening, bytes, out);
            return note;
        }
        if session.is_given_up {
            return note;
        }
        self.waiting_bytes += bytes.len() + HELD_BYTES;
        session.waiting.push(Held { header: *header, opening, bytes: bytes.to_vec() });
        while self.waiting_bytes > MAX_WAITING_BYTES {
            let Some(oldest) = self.sessions.iter().find(|(_, session)| session.is_waiting()).map(|(id, _)| *id) else { break };
            self.give_up(oldest);
        }
        note
    }

    /// Puts the session down when it is new.
    fn know(&mut self, header: &EventHeader, is_whole: bool, out: &mut Out<'_>) -> Note {
        match self.sessions.get(&header.cookie) {
            Some(session) if session.key.is_some() => Note::None,
            Some(_) if header.flags & flag::UNTIED != 0 => Note::None,
            // What could not be tied before can be now.
            Some(_) => self.tie(header, out),
            None => {
                let key = addresses(header).map(|(local, peer)| SocketKey { scope: header.cookie, local, peer });
                let session = Session { pid: header.pid, key, first_ns: header.boot_ns, is_whole, ..Session::default() };
                self.forget_oldest_for_room();
                self.sessions.insert(header.cookie, session);
                let Some(key) = key else { return Note::Untied(header.pid) };
                self.seen.count(is_whole);
                Note::Tied(key.local, key.peer)
            }
        }
    }

    /// What waits for the socket of a session that is forgotten waits for nothing.
    fn forget_oldest_for_room(&mut self) {
        if self.sessions.len() >= MAX_SESSIONS
            && let Some((_, forgotten)) = self.sessions.remove_lru()
        {
            self.waiting_bytes -= forgotten.waiting_bytes();
            self.seen.untied += u64::from(forgotten.is_waiting());
        }
    }

    /// A session's socket is known: what waited for it goes on.
    fn tie(&mut self, header: &EventHeader, out: &mut Out<'_>) -> Note {
        let Some(session) = self.sessions.get_mut(&header.cookie).filter(|session| session.key.is_none()) else { return Note::None };
        let key = SocketKey {
            scope: header.cookie,
            local: address(header.local, header.local_port),
            peer: address(header.peer, header.peer_port),
        };
        session.key = Some(key);
        self.seen.count(session.is_whole);
        self.waiting_bytes -= session.waiting_bytes();
        for held in std::mem::take(&mut session.waiting) {
            hand_on(key, session.pid, &held.header, held.opening, &held.bytes, out);
        }
        Note::Tied(key.local, key.peer)
    }

    fn close(&mut self, header: &EventHeader, out: &mut Out<'_>) -> Note {
        // A short session's socket may be known with its end alone.
        let note = if header.flags & flag::UNTIED == 0 { self.tie(header, out) } else { Note::None };
        let Some(session) = self.sessions.get(&header.cookie) else { return note };
        let direction = way(header);
        match session.key {
            Some(key) => {
                out.emit(key, Some(session.pid), header.boot_ns, EventKind::Close { direction, position: header.position, reset: false });
            }
            None => self.give_up(header.cookie),
        }
        // Both directions end together, this one last.
        if direction == Direction::Received {
            self.sessions.remove(&header.cookie);
        }
        note
    }

    /// Drops what waits for a session's socket, and what will come before it is known.
    fn give_up(&mut self, id: u64) {
        let Some(session) = self.sessions.peek_mut(&id) else { return };
        self.waiting_bytes -= session.waiting_bytes();
        self.seen.untied += u64::from(!session.is_given_up);
        session.is_given_up = true;
        session.waiting = Vec::new();
    }
}

/// What an event that waits takes beside its bytes.
const HELD_BYTES: usize = size_of::<Held>();

impl Session {
    fn is_waiting(&self) -> bool {
        self.key.is_none() && !self.is_given_up
    }

    fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(|held| held.bytes.len() + HELD_BYTES).sum()
    }
}

/// The addresses of an event, from the programs or from its descriptor.
fn addresses(header: &EventHeader) -> Option<(SocketAddr, SocketAddr)> {
    if header.flags & flag::UNTIED == 0 {
        return Some((address(header.local, header.local_port), address(header.peer, header.peer_port)));
    }
    proc::addresses(header.pid, u32::try_from(header.origin).ok()?.checked_sub(1)?)
}

fn hand_on(key: SocketKey, pid: u32, header: &EventHeader, opening: Option<Opening>, bytes: &[u8], out: &mut Out<'_>) {
    let Some(begin) = opening else {
        out.data(key, Some(pid), header, bytes);
        return;
    };
    let initiator = begin.flags & opening::INITIATOR != 0;
    let mut first = |bit, direction, initiator, first_position| {
        if begin.flags & bit != 0 {
            out.emit(key, Some(pid), header.boot_ns, EventKind::Open { direction, initiator, first_position });
        }
    };
    first(opening::SENT_FIRST, Direction::Sent, initiator, begin.sent_first);
    first(opening::RECEIVED_FIRST, Direction::Received, !initiator, begin.received_first);
    let gathered = begin.head.gathered();
    if !gathered.is_empty() {
        let kind = EventKind::Data { direction: way(header), position: begin.head.position, bytes: gathered, missing_bytes: 0 };
        out.emit(key, Some(pid), header.boot_ns, kind);
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::event::{HEADER_BYTES, direction};

    use super::*;

    const SESSION: u64 = 1 << 63 | 5;
    const LOCAL: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];

    fn header(kind: Kind, position: u32, flags: u8) -> EventHeader {
        EventHeader {
            boot_ns: 1,
            cookie: SESSION,
            local: LOCAL,
            peer: LOCAL,
            local_port: 40_000,
            peer_port: 9093,
            pid: 7,
            position,
            kind: kind as u8,
            direction: direction::SENT,
            flags,
            ..EventHeader::default()
        }
    }

    fn raw(header: &EventHeader, rest: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(header.boot_ns.to_ne_bytes());
        bytes.extend(header.cookie.to_ne_bytes());
        bytes.extend(header.origin.to_ne_bytes());
        bytes.extend(header.local);
        bytes.extend(header.peer);
        bytes.extend(header.local_port.to_ne_bytes());
        bytes.extend(header.peer_port.to_ne_bytes());
        for number in [header.pid, header.position, header.len, header.missing] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend([header.kind, header.direction, header.flags, header.state]);
        assert_eq!(bytes.len(), HEADER_BYTES);
        bytes.extend(rest);
        bytes
    }

    fn data(position: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
        raw(&EventHeader { len: u32::try_from(bytes.len()).unwrap(), ..header(Kind::Data, position, flags) }, bytes)
    }

    fn open(flags: u8) -> Vec<u8> {
        let mut rest = [0u8; 40];
        rest[..4].copy_from_slice(&(opening::INITIATOR | opening::SENT_FIRST | opening::RECEIVED_FIRST).to_ne_bytes());
        raw(&header(Kind::Open, 0, flags), &rest)
    }

    fn push(translator: &mut Translator, event: &[u8]) -> (Vec<String>, Note) {
        let mut said = Vec::new();
        let (_, note) = translator.push(event, Offset::measure(), &mut |event| said.push(text(&event)));
        (said, note)
    }

    fn text(event: &CaptureEvent<'_>) -> String {
        assert_eq!((event.socket.scope, event.pid, event.socket.peer.port()), (SESSION, Some(7), 9093));
        match event.kind {
            EventKind::Open { direction, initiator, first_position } => format!("open {direction:?} {initiator} {first_position}"),
            EventKind::Data { direction, position, bytes, missing_bytes } => {
                format!("{direction:?} {position} {} +{missing_bytes}", String::from_utf8_lossy(bytes))
            }
            EventKind::Close { direction, position, reset } => format!("close {direction:?} {position} {reset}"),
        }
    }

    #[test]
    fn a_session_with_addresses_goes_through() {
        let mut translator = Translator::new();
        let (said, note) = push(&mut translator, &open(0));
        assert_eq!(said, ["open Sent true 0", "open Received false 0"]);
        assert_eq!(note, Note::Tied("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:9093".parse().unwrap()));
        assert_eq!(push(&mut translator, &data(0, 0, b"abc")), (vec!["Sent 0 abc +0".to_owned()], Note::None));
        assert_eq!(translator.owner(SESSION), Some(7));
        assert_eq!(push(&mut translator, &raw(&header(Kind::Close, 3, 0), b"")).0, ["close Sent 3 false"]);
        let received = EventHeader { direction: direction::RECEIVED, ..header(Kind::Close, 9, 0) };
        assert_eq!(push(&mut translator, &raw(&received, b"")).0, ["close Received 9 false"]);
        assert_eq!((translator.owner(SESSION), translator.seen().sessions, translator.seen().joined), (None, 1, 0));
    }

    #[test]
    fn what_was_gathered_before_a_session_was_taken_for_kafkas_comes_first() {
        let mut translator = Translator::new();
        let mut begin = open(0);
        // Behind four numbers: position, length, and the bytes.
        let head = begin.get_mut(HEADER_BYTES + 16..).unwrap();
        head[4..8].copy_from_slice(&3_u32.to_ne_bytes());
        head[8..11].copy_from_slice(b"abc");
        assert_eq!(push(&mut translator, &begin).0, ["open Sent true 0", "open Received false 0", "Sent 0 abc +0"]);
        assert_eq!(push(&mut translator, &data(3, 0, b"d")).0, ["Sent 3 d +0"]);
    }

    #[test]
    fn a_session_without_a_socket_waits_for_it() {
        let mut translator = Translator::new();
        for (event, note) in
            [(open(flag::UNTIED), Note::Untied(7)), (data(0, flag::UNTIED, b"ab"), Note::None), (data(2, flag::UNTIED, b"c"), Note::None)]
        {
            assert_eq!(push(&mut translator, &event), (vec![], note));
        }
        let (said, note) = push(&mut translator, &data(3, 0, b"d"));
        assert_eq!(said, ["open Sent true 0", "open Received false 0", "Sent 0 ab +0", "Sent 2 c +0", "Sent 3 d +0"]);
        assert!(matches!(note, Note::Tied(..)));
        assert_eq!(translator.waiting_bytes, 0);
        assert_eq!(push(&mut translator, &data(4, flag::UNTIED, b"e")).0, ["Sent 4 e +0"]);
    }

    #[test]
    fn a_short_session_may_be_tied_by_its_end() {
        let mut translator = Translator::new();
        push(&mut translator, &data(0, flag::UNTIED, b"ab"));
        let (said, note) = push(&mut translator, &raw(&header(Kind::Close, 2, 0), b""));
        assert_eq!(said, ["Sent 0 ab +0", "close Sent 2 false"]);
        assert!(matches!(note, Note::Tied(..)));
        assert_eq!((translator.seen().sessions, translator.seen().joined), (1, 1), "nobody saw it begin");
        assert_eq!((translator.seen().untied, translator.waiting_bytes), (0, 0));
    }

    #[test]
    fn what_waits_is_bounded_and_given_up() {
        let mut translator = Translator::new();
        push(&mut translator, &data(0, flag::UNTIED, b"ab"));
        translator.expire(1 + WAIT_NS);
        assert_eq!((translator.seen().untied, translator.waiting_bytes), (1, 0));
        push(&mut translator, &data(2, flag::UNTIED, b"c"));
        translator.expire(1 + 2 * WAIT_NS);
        assert_eq!((translator.seen().untied, translator.waiting_bytes), (1, 0), "a session is given up once");
        assert_eq!(push(&mut translator, &data(3, 0, b"d")).0, ["Sent 3 d +0"], "and goes on from where its socket is known");
        let mut translator = Translator::new();
        for position in 0..3000 {
            push(&mut translator, &data(position, flag::UNTIED, &[7; 4096]));
            assert!(translator.waiting_bytes <= MAX_WAITING_BYTES);
        }
        assert_eq!(translator.seen().untied, 1);
    }

    #[test]
    fn a_session_without_a_socket_is_its_process_s_until_it_is_tied_or_ends() {
        let mut translator = Translator::new();
        let mut untied_after = |event: &[u8]| {
            push(&mut translator, event);
            translator.expire(1 + WAIT_NS);
            translator.untied().get(&7).copied().unwrap_or(0)
        };
        assert_eq!(untied_after(&data(0, flag::UNTIED, b"ab")), 1, "given up, and there still");
        assert_eq!(untied_after(&data(2, 0, b"c")), 0);
        let another = |event| EventHeader { cookie: SESSION + 1, len: 0, direction: direction::RECEIVED, ..event };
        assert_eq!(untied_after(&raw(&another(header(Kind::Data, 0, flag::UNTIED)), b"")), 1);
        assert_eq!(untied_after(&raw(&another(header(Kind::Close, 0, flag::UNTIED)), b"")), 0);
    }

    #[test]
    fn what_waits_at_the_end_is_counted_once() {
        let mut translator = Translator::new();
        push(&mut translator, &data(0, flag::UNTIED, b"ab"));
        translator.give_up_all();
        translator.give_up_all();
        assert_eq!((translator.seen().untied, translator.waiting_bytes), (1, 0));
    }

    #[test]
    fn what_waited_for_a_forgotten_session_is_given_up_with_it() {
        let mut translator = Translator::new();
        for number in 0..u64::try_from(MAX_SESSIONS).unwrap() + 5 {
            let header = EventHeader { cookie: number, len: 2, ..header(Kind::Data, 0, flag::UNTIED) };
            translator.push(&raw(&header, b"ab"), Offset::ZERO, &mut |_| ());
        }
        let (counted, waiting) = translator.waiting_bytes();
        assert_eq!((counted, translator.seen().untied), (waiting, 5));
    }

    #[test]
    fn the_sessions_of_a_process_end_with_it() {
        let mut translator = Translator::new();
        push(&mut translator, &data(0, 0, b"abc"));
        let mut said = Vec::new();
        translator.end_of(&[8], 9, Offset::measure(), &mut |event| said.push(text(&event)));
        assert!(said.is_empty());
        translator.end_of(&[7], 9, Offset::measure(), &mut |event| said.push(text(&event)));
        assert_eq!(said, ["close Sent 3 false", "close Received 0 false"]);
    }

    #[test]
    fn who_connects_is_handed_on() {
        let mut translator = Translator::new();
        let (said, note) = push(&mut translator, &raw(&header(Kind::Connect, 0, 0), b""));
        assert_eq!((said, note), (vec![], Note::Connects(7, "127.0.0.1:9093".parse().unwrap())));
    }

    #[test]
    fn events_of_no_known_form_are_counted() {
        let mut translator = Translator::new();
        let whole = open(0);
        for len in 0..whole.len() {
            assert!(push(&mut translator, &whole[..len]).0.is_empty());
        }
        assert_eq!(translator.seen().malformed, u64::try_from(whole.len()).unwrap());
    }
}
