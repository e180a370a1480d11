//! From events of calls to [`CaptureEvent`]s: addresses, wall time, owners, and the holes that lost events leave.
//!
//! In: raw events, each socket's in order. Out: events for `connection`. Pure: no kernel is needed to test it.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use hashlink::LruCache;
use tracer_common::call::{CallHeader, MAX_SOCKETS};
use tracer_common::event::{Kind, Opening, direction, opening};

use crate::source::ebpf::clock::Offset;
use crate::source::{CaptureEvent, Direction, EventKind, SocketKey, Verdict};

/// State between events.
pub(super) struct Translator {
    sockets: LruCache<u64, Known>,
    /// Events that no program of this version writes.
    pub(super) malformed: u64,
    /// Bytes between two events of a direction that were in no event.
    pub(super) holes_bytes: u64,
}

/// A captured socket.
struct Known {
    key: SocketKey,
    pid: Option<u32>,
    verdict: Option<Verdict>,
    is_opened: bool,
    /// Position after the last byte of each direction, once one was seen.
    next: [Option<u32>; 2],
}

impl Translator {
    pub(super) fn new() -> Self {
        let capacity = usize::try_from(MAX_SOCKETS).unwrap_or(usize::MAX);
        Self { sockets: LruCache::new(capacity), malformed: 0, holes_bytes: 0 }
    }

    /// Takes one event and hands on what it means. Returns the payload bytes in it.
    pub(super) fn push(&mut self, event: &[u8], offset: Offset, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> u64 {
        let Some((header, rest)) = CallHeader::parse(event) else {
            self.malformed += 1;
            return 0;
        };
        let Some(kind) = header.kind() else {
            self.malformed += 1;
            return 0;
        };
        let known = self.sockets.entry(header.id).or_insert_with(|| Known {
            key: SocketKey {
                scope: header.id,
                local: address(header.local, header.local_port),
                peer: address(header.peer, header.peer_port),
            },
            pid: None,
            verdict: None,
            is_opened: false,
            next: [None; 2],
        });
        if known.pid.is_none() && header.pid != 0 {
            known.pid = Some(header.pid);
        }
        let (socket, pid, time) = (known.key, known.pid, offset.wall(header.time_ns));
        let mut emit = |kind| sink(CaptureEvent { socket, time, pid, kind });
        let way = if header.direction == direction::SENT { Direction::Sent } else { Direction::Received };
        match kind {
            Kind::Data => {
                let Some(bytes) = usize::try_from(header.len).ok().and_then(|len| rest.get(..len)) else {
                    self.malformed += 1;
                    return 0;
                };
                let [sent, received] = &mut known.next;
                let next = if way == Direction::Sent { sent } else { received };
                let ahead = next.map_or(0, |next| header.position.wrapping_sub(next));
                // Behind is a repetition: a page that the socket did not take whole.
                if ahead.cast_signed() > 0 {
                    self.holes_bytes += u64::from(ahead);
                }
                *next = Some(header.position.wrapping_add(header.len).wrapping_add(header.missing));
                emit(EventKind::Data { direction: way, position: header.position, bytes, missing_bytes: header.missing });
                u64::from(header.len)
            }
            Kind::Open => {
                let Some(opening) = Opening::parse(rest) else {
                    self.malformed += 1;
                    return 0;
                };
                let initiator = opening.flags & opening::INITIATOR != 0;
                if !std::mem::replace(&mut known.is_opened, true) {
                    for (bit, direction, initiator, first_position) in [
                        (opening::SENT_FIRST, Direction::Sent, initiator, opening.sent_first),
                        (opening::RECEIVED_FIRST, Direction::Received, !initiator, opening.received_first),
                    ] {
                        if opening.flags & bit != 0 {
                            emit(EventKind::Open { direction, initiator, first_position });
                        }
                    }
                }
                let gathered = opening.head.gathered();
                if !gathered.is_empty() {
                    emit(EventKind::Data { direction: way, position: opening.head.position, bytes: gathered, missing_bytes: 0 });
                }
                0
            }
            Kind::Close => {
                emit(EventKind::Close { direction: way, position: header.position, reset: false });
                0
            }
            // No program of this source says so.
            Kind::Connect => {
                self.malformed += 1;
                0
            }
        }
    }

    /// Remembers a verdict. True when the kernel has to be told to look again, since the socket is not waiting for its first verdict.
    pub(super) fn verdict(&mut self, id: u64, verdict: Verdict) -> bool {
        match self.sockets.get_mut(&id) {
            Some(known) => known.verdict.replace(verdict).is_some_and(|before| before != verdict),
            None => true,
        }
    }

    /// The process that owns a socket, as far as known.
    pub(super) fn owner(&self, id: u64) -> Option<u32> {
        self.sockets.peek(&id).and_then(|known| known.pid)
    }
}

/// IPv4 comes in IPv6's form.
fn address(bytes: [u8; 16], port: u16) -> SocketAddr {
    let address = Ipv6Addr::from(bytes);
    SocketAddr::new(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4), port)
}

#[cfg(test)]
mod tests {
    use tracer_common::event::Head;

    use super::*;

    const LOCAL: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    const PEER: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

    fn header(kind: Kind, id: u64, direction: u8, position: u32) -> CallHeader {
        CallHeader {
            time_ns: 1,
            id,
            local: LOCAL,
            peer: PEER,
            local_port: 40_000,
            peer_port: 9092,
            pid: 7,
            position,
            kind: kind as u8,
            direction,
            ..CallHeader::default()
        }
    }

    fn raw(header: CallHeader, rest: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend([header.time_ns, header.emitted_ns, header.id].iter().flat_map(|number| number.to_ne_bytes()));
        bytes.extend(header.local);
        bytes.extend(header.peer);
        bytes.extend(header.local_port.to_ne_bytes());
        bytes.extend(header.peer_port.to_ne_bytes());
        bytes.extend([header.pid, header.position, header.len, header.missing].iter().flat_map(|number| number.to_ne_bytes()));
        bytes.extend([header.kind, header.direction, header.reserved, header.state]);
        bytes.extend(rest);
        bytes
    }

    fn data(id: u64, direction: u8, position: u32, bytes: &[u8], missing: u32) -> Vec<u8> {
        let header = CallHeader { len: u32::try_from(bytes.len()).unwrap(), missing, ..header(Kind::Data, id, direction, position) };
        // A perf buffer rounds up to multiples of eight.
        raw(header, &[bytes, &[0xee; 7]].concat())
    }

    fn open(id: u64, opening: Opening) -> Vec<u8> {
        let numbers = [opening.flags, opening.sent_first, opening.received_first, 0, opening.head.position, opening.head.len];
        let mut rest: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        rest.extend(opening.head.bytes);
        raw(header(Kind::Open, id, direction::SENT, 0), &rest)
    }

    /// What comes out, in words.
    fn push(translator: &mut Translator, event: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        translator.push(event, Offset::measure_monotonic(), &mut |event| {
            out.push(match event.kind {
                EventKind::Open { direction, initiator, first_position } => format!("open {direction:?} {initiator} {first_position}"),
                EventKind::Data { direction, position, bytes, missing_bytes } => {
                    format!("{direction:?} {position} {} +{missing_bytes}", String::from_utf8_lossy(bytes))
                }
                EventKind::Close { direction, position, reset } => format!("close {direction:?} {position} {reset}"),
            });
        });
        out
    }

    #[test]
    fn an_opening_comes_once_with_what_passed_before() {
        let mut translator = Translator::new();
        let mut head = Head { position: 0, len: 4, bytes: [0; 16] };
        head.bytes[..4].copy_from_slice(b"size");
        let opening = Opening { flags: opening::INITIATOR | opening::SENT_FIRST | opening::RECEIVED_FIRST, head, ..Opening::default() };
        assert_eq!(push(&mut translator, &open(1, opening)), ["open Sent true 0", "open Received false 0", "Sent 0 size +0"]);
        assert_eq!(push(&mut translator, &open(1, opening)), ["Sent 0 size +0"]);
        assert_eq!(push(&mut translator, &open(2, Opening::default())), Vec::<String>::new(), "of an older socket nothing is known");
    }

    #[test]
    fn sockets_have_the_addresses_that_people_write_and_an_owner() {
        let mut translator = Translator::new();
        let mut key = None;
        let event = data(3, direction::SENT, 0, b"x", 0);
        translator.push(&event, Offset::measure_monotonic(), &mut |event| key = Some((event.socket, event.pid)));
        let (key, pid) = key.unwrap();
        assert_eq!((key.scope, key.local.to_string(), key.peer.to_string()), (3, "10.0.0.1:40000".to_owned(), "[fd00::9]:9092".to_owned()));
        assert_eq!((pid, translator.owner(3), translator.owner(4)), (Some(7), Some(7), None));
    }

    #[test]
    fn lost_events_are_holes_and_repetitions_are_not() {
        let mut translator = Translator::new();
        assert_eq!(push(&mut translator, &data(1, direction::SENT, u32::MAX - 1, b"abcd", 0)), ["Sent 4294967294 abcd +0"]);
        assert_eq!(push(&mut translator, &data(1, direction::SENT, 2, b"", 10)), ["Sent 2  +10"]);
        assert_eq!(translator.holes_bytes, 0, "unreadable bytes are told of");
        push(&mut translator, &data(1, direction::SENT, 112, b"e", 0));
        assert_eq!(translator.holes_bytes, 100);
        push(&mut translator, &data(1, direction::SENT, 60, b"page", 0));
        push(&mut translator, &data(1, direction::RECEIVED, 1000, b"x", 0));
        assert_eq!(translator.holes_bytes, 100);
    }

    #[test]
    fn both_ends_of_a_connection_are_told() {
        let mut translator = Translator::new();
        assert_eq!(push(&mut translator, &raw(header(Kind::Close, 1, direction::SENT, 9), b"")), ["close Sent 9 false"]);
        assert_eq!(push(&mut translator, &raw(header(Kind::Close, 1, direction::RECEIVED, 8), b"")), ["close Received 8 false"]);
    }

    #[test]
    fn a_changed_verdict_makes_the_kernel_look_again() {
        let mut translator = Translator::new();
        push(&mut translator, &data(1, direction::SENT, 0, b"x", 0));
        assert!(!translator.verdict(1, Verdict::Capture), "a candidate looks by itself");
        assert!(!translator.verdict(1, Verdict::Capture));
        assert!(translator.verdict(1, Verdict::Ignore));
        assert!(translator.verdict(99, Verdict::Ignore), "of a forgotten socket nobody knows what it does");
    }

    #[test]
    fn events_of_no_known_form_are_counted() {
        let mut translator = Translator::new();
        let whole = open(1, Opening::default());
        for len in 0..whole.len() {
            assert!(push(&mut translator, &whole[..len]).is_empty());
        }
        let mut too_long = data(1, direction::SENT, 0, b"x", 0);
        too_long[68..72].copy_from_slice(&1000u32.to_ne_bytes());
        assert!(push(&mut translator, &too_long).is_empty());
        assert!(push(&mut translator, &raw(CallHeader { kind: 9, ..CallHeader::default() }, b"")).is_empty());
        assert_eq!(translator.malformed, u64::try_from(whole.len()).unwrap() + 2);
    }

    proptest::proptest! {
        #[test]
        fn no_events_make_it_panic(events in proptest::collection::vec((0_usize..4, proptest::collection::vec((0_usize..140, 0_u8..), 0..6), 0_usize..400), 0..20)) {
            let mut translator = Translator::new();
            for (kind, changes, length) in events {
                let mut event = match kind {
                    0 => data(1, direction::SENT, 1, b"bytes", 0),
                    1 => data(1, direction::RECEIVED, 5, b"more", 3),
                    2 => open(1, Opening::default()),
                    _ => raw(header(Kind::Close, 1, direction::SENT, 9), b""),
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
