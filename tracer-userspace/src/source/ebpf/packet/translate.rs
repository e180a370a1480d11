//! From the kernel's events to [`CaptureEvent`]s: addresses, wall time, owners, and data that came to a listener before its connection had a
//! socket, which is put to the socket that shows up for the same addresses.
//!
//! In: raw events of the ring. Out: events for `connection`. Pure: no kernel is needed to test it.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use hashlink::{LinkedHashMap, LruCache};
use tracer_common::event::{EventHeader, Kind, Opening, flag, opening};

use crate::source::ebpf::clock::Offset;
use crate::source::ebpf::out::{Out, address, way};
use crate::source::ebpf::owner::Ends;
use crate::source::{CaptureEvent, Direction, EventKind, SocketKey, Verdict};

/// Sockets that are remembered, least recently seen forgotten first.
const MAX_SOCKETS: usize = 65_536;

/// Connections whose data waits for their socket.
const MAX_WAITING: usize = 1024;

/// Bytes of such data, together.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// How long it waits: longer than a handshake's packets are repeated.
const WAIT_NS: u64 = 30_000_000_000;

/// Captured sockets without an owner that are asked for.
const MAX_OWNERLESS: usize = 4096;

/// How often a socket's owner is asked for before it is taken for a socket that no process holds.
const MAX_QUESTIONS: u8 = 5;

/// What came of data that was seen before its socket, or before the first data of its socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EarlyCounters {
    /// Segments that found their socket.
    pub joined: u64,
    /// Segments dropped because no socket showed up, or too much waited.
    pub given_up: u64,
    /// Events that no program of this version writes.
    pub malformed: u64,
}

/// State between events.
pub(super) struct Translator {
    sockets: LruCache<u64, Known>,
    accepted: LruCache<Place, u64>,
    waiting: LinkedHashMap<Place, Vec<Held>>,
    waiting_bytes: usize,
    ownerless: HashSet<u64>,
    counters: EarlyCounters,
}

/// A captured socket.
struct Known {
    key: SocketKey,
    pid: Option<u32>,
    verdict: Option<Verdict>,
    is_opened: bool,
    ended: [bool; 2],
    questions: u8,
}

/// A connection as its listener sees it. The listener's cookie keeps equal addresses of two network namespaces apart. Of data that overtook
/// the first of its connection it is the socket's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    listener: u64,
    local: SocketAddr,
    peer: SocketAddr,
}

/// One early segment.
struct Held {
    header: EventHeader,
    bytes: Vec<u8>,
}

impl Translator {
    pub(super) fn new() -> Self {
        Self {
            sockets: LruCache::new(MAX_SOCKETS),
            accepted: LruCache::new(MAX_SOCKETS),
            waiting: LinkedHashMap::new(),
            waiting_bytes: 0,
            ownerless: HashSet::new(),
            counters: EarlyCounters::default(),
        }
    }

    pub(super) const fn counters(&self) -> EarlyCounters {
        self.counters
    }

    /// Takes one event of the ring and hands on what it means. Returns the payload bytes in it.
    pub(super) fn push(&mut self, event: &[u8], offset: Offset, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> u64 {
        let Some((header, rest)) = EventHeader::parse(event) else {
            self.counters.malformed += 1;
            return 0;
        };
        let place = Place {
            listener: header.origin,
            local: address(header.local, header.local_port),
            peer: address(header.peer, header.peer_port),
        };
        let mut out = Out { offset, sink };
        match header.kind() {
            Some(Kind::Data) => {
                let Some(bytes) = usize::try_from(header.len).ok().and_then(|len| rest.get(..len)) else {
                    self.counters.malformed += 1;
                    return 0;
                };
                if header.flags & flag::LISTENER != 0 {
                    let anywhere = Place { listener: 0, ..place };
                    let cookie = self.accepted.get(&place).copied().or_else(|| self.accepted.get(&anywhere).copied());
                    self.early(&header, place, cookie, bytes, &mut out);
                } else if header.flags & flag::OVERTOOK != 0 {
                    // Waits for its own socket to become a candidate.
                    let own = Place { listener: header.cookie, ..place };
                    self.early(&header, own, Some(header.cookie), bytes, &mut out);
                } else {
                    let (key, pid) = self.socket(&header, place, &mut out);
                    out.data(key, pid, &header, bytes);
                }
                u64::from(header.len)
            }
            Some(Kind::Open) => {
                match Opening::parse(rest) {
                    Some(opening) => self.open(&header, place, &opening, &mut out),
                    None => self.counters.malformed += 1,
                }
                0
            }
            Some(Kind::Close) => {
                let (key, pid) = self.socket(&header, place, &mut out);
                let is_reset = header.flags & flag::RESET != 0;
                out.emit(
                    key,
                    pid,
                    header.boot_ns,
                    EventKind::Close { direction: way(&header), position: header.position, reset: is_reset },
                );
                self.end(header.cookie, way(&header), is_reset);
                0
            }
            Some(Kind::Connect) | None => {
                self.counters.malformed += 1;
                0
            }
        }
    }

    /// Drops early data that waited too long for its socket. `boot_ns` is now.
    pub(super) fn expire(&mut self, boot_ns: u64) {
        while let Some((_, held)) = self.waiting.front() {
            if held.first().is_some_and(|first| first.header.boot_ns.saturating_add(WAIT_NS) > boot_ns) {
                break;
            }
            self.give_up_oldest();
        }
    }

    /// Bytes that wait for their socket, as they are counted, and as they are.
    pub(super) fn waiting_bytes(&self) -> (usize, usize) {
        (self.waiting_bytes, self.waiting.values().flatten().map(|held| held.bytes.len()).sum())
    }

    /// Remembers a verdict. True when the kernel has to be told to look again, since the socket is not waiting for its first verdict.
    pub(super) fn verdict(&mut self, cookie: u64, verdict: Verdict) -> bool {
        if verdict == Verdict::Ignore {
            self.ownerless.remove(&cookie);
        }
        match self.sockets.get_mut(&cookie) {
            Some(known) => known.verdict.replace(verdict).is_some_and(|before| before != verdict),
            None => true,
        }
    }

    /// The process that owns a socket, as far as known.
    pub(super) fn owner(&self, cookie: u64) -> Option<u32> {
        self.sockets.peek(&cookie).and_then(|known| known.pid)
    }

    /// Whether there are captured sockets whose owner is worth looking for.
    pub(super) fn has_ownerless(&self) -> bool {
        !self.ownerless.is_empty()
    }

    /// Those sockets, by cookie, with their addresses.
    pub(super) fn ownerless(&self) -> HashMap<u64, Ends> {
        let ends = |cookie: &u64| self.sockets.peek(cookie).map(|known| (*cookie, (known.key.local, known.key.peer)));
        self.ownerless.iter().filter_map(ends).collect()
    }

    /// Takes what was found for the sockets that were asked for.
    pub(super) fn learn_owners(&mut self, found: &HashMap<u64, u32>) {
        let sockets = &mut self.sockets;
        self.ownerless.retain(|cookie| {
            let Some(known) = sockets.get_mut(cookie) else { return false };
            known.questions += 1;
            known.pid = known.pid.or_else(|| found.get(cookie).copied());
            known.pid.is_none() && known.questions < MAX_QUESTIONS
        });
    }

    fn open(&mut self, header: &EventHeader, place: Place, opening: &Opening, out: &mut Out<'_>) {
        let initiator = opening.flags & opening::INITIATOR != 0;
        let (key, pid, is_new) = self.known(header, place);
        if !self.sockets.get_mut(&header.cookie).is_some_and(|known| std::mem::replace(&mut known.is_opened, true)) {
            let mut first = |bit, direction, initiator, first_position| {
                if opening.flags & bit != 0 {
                    out.emit(key, pid, header.boot_ns, EventKind::Open { direction, initiator, first_position });
                }
            };
            first(opening::SENT_FIRST, Direction::Sent, initiator, opening.sent_first);
            first(opening::RECEIVED_FIRST, Direction::Received, !initiator, opening.received_first);
        }
        if is_new {
            self.release(header.cookie, place, key, pid, out);
        }
        let gathered = opening.head.gathered();
        if !gathered.is_empty() {
            let kind = EventKind::Data { direction: way(header), position: opening.head.position, bytes: gathered, missing_bytes: 0 };
            out.emit(key, pid, header.boot_ns, kind);
        }
    }

    /// The socket of an event, which is put down when it is new.
    fn socket(&mut self, header: &EventHeader, place: Place, out: &mut Out<'_>) -> (SocketKey, Option<u32>) {
        let (key, pid, is_new) = self.known(header, place);
        if is_new {
            self.release(header.cookie, place, key, pid, out);
        }
        (key, pid)
    }

    fn known(&mut self, header: &EventHeader, place: Place) -> (SocketKey, Option<u32>, bool) {
        let pid = (header.pid != 0).then_some(header.pid);
        if let Some(known) = self.sockets.get_mut(&header.cookie) {
            if known.pid.is_none() && pid.is_some() {
                known.pid = pid;
                self.ownerless.remove(&header.cookie);
            }
            return (known.key, known.pid, false);
        }
        let key = SocketKey { scope: header.cookie, local: place.local, peer: place.peer };
        self.sockets.insert(header.cookie, Known { key, pid, verdict: None, is_opened: false, ended: [false; 2], questions: 0 });
        if pid.is_none() && self.ownerless.len() < MAX_OWNERLESS {
            self.ownerless.insert(header.cookie);
        }
        (key, pid, true)
    }

    /// Data that came to a listener, or before what would tell what it is: goes to the connection's socket if that is known, and waits for
    /// it else.
    fn early(&mut self, header: &EventHeader, place: Place, cookie: Option<u64>, bytes: &[u8], out: &mut Out<'_>) {
        if let Some(known) = cookie.and_then(|cookie| self.sockets.get(&cookie)) {
            self.counters.joined += 1;
            out.data(known.key, known.pid, header, bytes);
            return;
        }
        if bytes.len() > MAX_WAITING_BYTES {
            self.counters.given_up += 1;
            return;
        }
        self.waiting_bytes += bytes.len();
        // An entry keeps its place in the order: it is as old as its first segment.
        self.waiting.entry(place).or_insert_with(Vec::new).push(Held { header: *header, bytes: bytes.to_vec() });
        while self.waiting_bytes > MAX_WAITING_BYTES || self.waiting.len() > MAX_WAITING {
            self.give_up_oldest();
        }
    }

    /// Hands on what waited for this socket.
    fn release(&mut self, cookie: u64, place: Place, key: SocketKey, pid: Option<u32>, out: &mut Out<'_>) {
        self.accepted.insert(place, cookie);
        let held = self.waiting.remove(&place).or_else(|| {
            // A socket that does not know its listener: one that the tracer came to between its SYN and its first data.
            let found = if place.listener == 0 {
                self.waiting.keys().find(|other| (other.local, other.peer) == (place.local, place.peer))
            } else {
                None
            };
            found.copied().and_then(|found| self.waiting.remove(&found))
        });
        let overtook = self.waiting.remove(&Place { listener: cookie, ..place });
        for held in held.into_iter().chain(overtook).flatten() {
            self.waiting_bytes -= held.bytes.len();
            self.counters.joined += 1;
            out.data(key, pid, &held.header, &held.bytes);
        }
    }

    fn give_up_oldest(&mut self) {
        for held in self.waiting.pop_front().into_iter().flat_map(|(_, held)| held) {
            self.waiting_bytes -= held.bytes.len();
            self.counters.given_up += 1;
        }
    }

    fn end(&mut self, cookie: u64, direction: Direction, is_reset: bool) {
        let Some(known) = self.sockets.get_mut(&cookie) else { return };
        let [sent, received] = &mut known.ended;
        match direction {
            Direction::Sent => *sent = true,
            Direction::Received => *received = true,
        }
        if is_reset || (*sent && *received) {
            self.ownerless.remove(&cookie);
        }
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::event::{Head, direction};

    use super::*;

    const LISTENER: u64 = 10;
    const CHILD: u64 = 20;
    const SERVER: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    const CLIENT: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

    fn header(kind: Kind, cookie: u64, origin: u64, position: u32) -> EventHeader {
        EventHeader {
            boot_ns: 1,
            cookie,
            origin,
            local: SERVER,
            peer: CLIENT,
            local_port: 9092,
            peer_port: 40_000,
            position,
            kind: kind as u8,
            direction: direction::RECEIVED,
            ..EventHeader::default()
        }
    }

    /// An event as it lies in the ring.
    fn raw(header: EventHeader, rest: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(header.boot_ns.to_ne_bytes());
        bytes.extend(header.cookie.to_ne_bytes());
        bytes.extend(header.origin.to_ne_bytes());
        bytes.extend(header.local);
        bytes.extend(header.peer);
        bytes.extend(header.local_port.to_ne_bytes());
        bytes.extend(header.peer_port.to_ne_bytes());
        bytes.extend([header.pid, header.position, header.len, header.missing].iter().flat_map(|number| number.to_ne_bytes()));
        bytes.extend([header.kind, header.direction, header.flags, header.state]);
        bytes.extend(rest);
        bytes
    }

    fn data(cookie: u64, origin: u64, position: u32, bytes: &[u8]) -> Vec<u8> {
        let header = EventHeader { len: u32::try_from(bytes.len()).unwrap(), ..header(Kind::Data, cookie, origin, position) };
        // The room in the ring is larger than what is in it.
        raw(header, &[bytes, &[0xee; 40]].concat())
    }

    fn early(position: u32, bytes: &[u8]) -> Vec<u8> {
        let mut event = data(LISTENER, LISTENER, position, bytes);
        event[78] = flag::LISTENER;
        event
    }

    fn open(cookie: u64, origin: u64, opening: Opening) -> Vec<u8> {
        let numbers = [opening.flags, opening.sent_first, opening.received_first, 0, opening.head.position, opening.head.len];
        let mut rest: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        rest.extend(opening.head.bytes);
        raw(header(Kind::Open, cookie, origin, 0), &rest)
    }

    /// What comes out, in words: scope, then what.
    fn push(translator: &mut Translator, event: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        translator.push(event, Offset::measure(), &mut |event| {
            let what = match event.kind {
                EventKind::Open { direction, initiator, first_position } => format!("open {direction:?} {initiator} {first_position}"),
                EventKind::Data { direction, position, bytes, .. } => {
                    format!("{direction:?} {position} {}", String::from_utf8_lossy(bytes))
                }
                EventKind::Close { direction, position, reset } => format!("close {direction:?} {position} {reset}"),
            };
            out.push(format!("{} {what}", event.socket.scope));
        });
        out
    }

    #[test]
    fn addresses_are_those_that_people_write() {
        let mut translator = Translator::new();
        let mut key = None;
        translator.push(&data(CHILD, 0, 1, b"x"), Offset::measure(), &mut |event| key = Some(event.socket));
        let key = key.unwrap();
        assert_eq!((key.local.to_string(), key.peer.to_string()), ("10.0.0.1:9092".to_owned(), "[fd00::9]:40000".to_owned()));
    }

    #[test]
    fn early_data_waits_for_the_socket_of_its_listener_and_addresses() {
        let mut translator = Translator::new();
        assert!(push(&mut translator, &early(100, b"abc")).is_empty());
        assert!(push(&mut translator, &early(103, b"de")).is_empty());
        let other_listener = push(&mut translator, &data(99, 98, 500, b"other"));
        assert_eq!(other_listener, ["99 Received 500 other"], "equal addresses in another namespace");
        let opening =
            Opening { flags: opening::SENT_FIRST | opening::RECEIVED_FIRST, sent_first: 7, received_first: 100, ..Opening::default() };
        assert_eq!(
            push(&mut translator, &open(CHILD, LISTENER, opening)),
            ["20 open Sent false 7", "20 open Received true 100", "20 Received 100 abc", "20 Received 103 de"]
        );
        assert_eq!(push(&mut translator, &early(105, b"f")), ["20 Received 105 f"], "what comes even later goes through at once");
        assert_eq!(translator.counters(), EarlyCounters { joined: 3, given_up: 0, malformed: 0 });
        assert_eq!(translator.waiting_bytes, 0);
    }

    #[test]
    fn a_socket_that_does_not_know_its_listener_is_joined_by_addresses() {
        let mut translator = Translator::new();
        assert!(push(&mut translator, &early(100, b"abc")).is_empty());
        assert_eq!(push(&mut translator, &data(CHILD, 0, 103, b"d")), ["20 Received 100 abc", "20 Received 103 d"]);
        assert_eq!(push(&mut translator, &early(104, b"e")), ["20 Received 104 e"]);
    }

    #[test]
    fn early_data_without_a_socket_is_given_up() {
        let mut translator = Translator::new();
        push(&mut translator, &early(1, b"abc"));
        translator.expire(1 + WAIT_NS - 1);
        assert_eq!(translator.counters().given_up, 0);
        translator.expire(1 + WAIT_NS);
        assert_eq!((translator.counters().given_up, translator.waiting_bytes), (1, 0));
    }

    #[test]
    fn data_that_overtook_the_first_waits_for_it() {
        let mut translator = Translator::new();
        let overtook = |position, bytes: &[u8]| {
            let mut event = data(CHILD, LISTENER, position, bytes);
            event[78] = flag::OVERTOOK;
            event
        };
        assert!(push(&mut translator, &overtook(103, b"second")).is_empty());
        assert!(push(&mut translator, &early(95, b"zeroth")).is_empty());
        let opening = Opening { flags: opening::RECEIVED_FIRST, received_first: 95, ..Opening::default() };
        assert_eq!(
            push(&mut translator, &open(CHILD, LISTENER, opening)),
            ["20 open Received true 95", "20 Received 95 zeroth", "20 Received 103 second"]
        );
        assert_eq!(push(&mut translator, &overtook(109, b"third")), ["20 Received 109 third"]);
    }

    #[test]
    fn early_data_is_bounded() {
        let mut translator = Translator::new();
        for port in 0..3000u16 {
            let mut event = early(1, &[7; 4096]);
            event[58..60].copy_from_slice(&port.to_ne_bytes());
            push(&mut translator, &event);
            assert!(translator.waiting_bytes <= MAX_WAITING_BYTES && translator.waiting.len() <= MAX_WAITING);
        }
        assert_eq!(translator.counters().given_up, 3000 - 1024);
        // One connection that sends without end: its oldest goes with it.
        for position in 0..2000 {
            push(&mut translator, &early(position, &[7; 4096]));
            assert!(translator.waiting_bytes <= MAX_WAITING_BYTES);
        }
        assert!(translator.counters().given_up > 3000);
    }

    #[test]
    fn gathered_bytes_come_before_the_segment_that_was_judged() {
        let mut translator = Translator::new();
        let mut head = Head { position: 50, len: 4, bytes: [0; 16] };
        head.bytes[..4].copy_from_slice(b"head");
        let opening = Opening { flags: opening::INITIATOR | opening::SENT_FIRST, sent_first: 50, head, ..Opening::default() };
        assert_eq!(push(&mut translator, &open(CHILD, 0, opening)), ["20 open Sent true 50", "20 Received 50 head"]);
        assert_eq!(push(&mut translator, &open(CHILD, 0, opening)), ["20 Received 50 head"], "two CPUs found it at the same time");
        assert_eq!(push(&mut translator, &data(CHILD, 0, 54, b"rest")), ["20 Received 54 rest"]);
    }

    #[test]
    fn ends_are_handed_on() {
        let mut translator = Translator::new();
        assert_eq!(push(&mut translator, &raw(header(Kind::Close, CHILD, 0, 77), b"")), ["20 close Received 77 false"]);
        let reset = EventHeader { flags: flag::RESET, ..header(Kind::Close, CHILD, 0, 78) };
        assert_eq!(push(&mut translator, &raw(reset, b"")), ["20 close Received 78 true"]);
    }

    #[test]
    fn the_owner_is_who_said_so_or_who_was_found() {
        let mut translator = Translator::new();
        push(&mut translator, &data(CHILD, 0, 1, b"x"));
        assert_eq!((translator.owner(CHILD), translator.ownerless().len()), (None, 1));
        translator.learn_owners(&HashMap::from([(CHILD, 42)]));
        assert_eq!((translator.owner(CHILD), translator.ownerless().len()), (Some(42), 0));
        let said = EventHeader { pid: 43, ..header(Kind::Close, 21, 0, 1) };
        push(&mut translator, &raw(said, b""));
        assert_eq!((translator.owner(21), translator.ownerless().len()), (Some(43), 0));
        // A socket that nobody holds is not asked for without end.
        push(&mut translator, &data(22, 0, 1, b"x"));
        for _ in 0..MAX_QUESTIONS {
            assert_eq!(translator.ownerless().len(), 1);
            translator.learn_owners(&HashMap::new());
        }
        assert!(translator.ownerless().is_empty());
        // Nor one that was dismissed, or that ended.
        for cookie in [23, 24] {
            push(&mut translator, &data(cookie, 0, 1, b"x"));
        }
        translator.verdict(23, Verdict::Ignore);
        push(&mut translator, &raw(EventHeader { flags: flag::RESET, ..header(Kind::Close, 24, 0, 1) }, b""));
        assert!(translator.ownerless().is_empty());
    }

    #[test]
    fn a_changed_verdict_makes_the_kernel_look_again() {
        let mut translator = Translator::new();
        push(&mut translator, &data(CHILD, 0, 1, b"x"));
        assert!(!translator.verdict(CHILD, Verdict::Capture), "a candidate looks by itself");
        assert!(!translator.verdict(CHILD, Verdict::Capture));
        assert!(translator.verdict(CHILD, Verdict::Ignore));
        assert!(translator.verdict(99, Verdict::Ignore), "of a forgotten socket nobody knows what it does");
    }

    #[test]
    fn events_of_no_known_form_are_counted() {
        let mut translator = Translator::new();
        let whole = open(CHILD, 0, Opening::default());
        for len in 0..whole.len() {
            assert!(push(&mut translator, &whole[..len]).is_empty());
        }
        let mut too_long = data(CHILD, 0, 1, b"x");
        too_long[68..72].copy_from_slice(&1000u32.to_ne_bytes());
        assert!(push(&mut translator, &too_long).is_empty());
        assert!(push(&mut translator, &raw(EventHeader { kind: 9, ..EventHeader::default() }, b"")).is_empty());
        assert_eq!(translator.counters().malformed, u64::try_from(whole.len()).unwrap() + 2);
    }

    proptest::proptest! {
        #[test]
        fn no_events_make_it_panic(events in proptest::collection::vec((0_usize..4, proptest::collection::vec((0_usize..140, 0_u8..), 0..6), 0_usize..400), 0..20)) {
            let mut translator = Translator::new();
            for (kind, changes, length) in events {
                let mut event = match kind {
                    0 => data(CHILD, 0, 1, b"bytes"),
                    1 => early(5, b"early"),
                    2 => open(CHILD, LISTENER, Opening::default()),
                    _ => raw(header(Kind::Close, CHILD, 0, 9), b""),
                };
                for (at, value) in changes {
                    if let Some(byte) = event.get_mut(at) {
                        *byte = value;
                    }
                }
                event.truncate(length);
                push(&mut translator, &event);
            }
        }
    }
}
