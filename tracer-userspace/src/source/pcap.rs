//! Capture files: pcap and pcapng, from anything that can be read, also a pipe.
//!
//! In: a file's bytes. Out: [`CaptureEvent`]s to `connection`, in the file's order.
//!
//! Own code: the formats are small, and what is wanted of them (memory that grows only with what was read, the byte at
//! which a file is cut, packets whose IP length is 0) is what the crates at hand refuse or do not tell.

#![forbid(unsafe_code)]

mod file;
mod packet;

use std::io::{self, Read};
use std::net::SocketAddr;

use hashlink::LruCache;

use self::file::PacketReader;
use self::packet::{ACK, FIN, Link, RST, SYN, Segment, Unusable};
use super::{CaptureEvent, Direction, EventKind, SocketKey};
use crate::time::Timestamp;

/// Why a capture file could not be read, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PcapError {
    /// Nothing in it.
    #[error("the file is empty")]
    Empty,
    /// Neither pcap nor pcapng.
    #[error("not a pcap or pcapng file: it begins with {first:02x?}{hint}")]
    NotACapture {
        /// Its first bytes, at most four.
        first: Vec<u8>,
        /// What it might be instead, and what to do.
        hint: &'static str,
    },
    /// Packets of a kind that this program cannot look into.
    #[error("link type {link_type} is not supported (supported: Ethernet, Linux cooked, raw IP, loopback)")]
    LinkType {
        /// The number, as tcpdump.org lists it.
        link_type: u32,
    },
    /// The file ends in the middle of something.
    #[error("the file is cut: it ends at byte {end}, in the middle of the {what} that begins at byte {begin}")]
    Cut {
        /// What was begun.
        what: &'static str,
        /// Where it begins.
        begin: u64,
        /// Where the file ends.
        end: u64,
    },
    /// The file says something that cannot be.
    #[error("the file is damaged at byte {at}: {what} is {value}")]
    Damaged {
        /// Where.
        at: u64,
        /// What is said there.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// Reading failed.
    #[error("reading failed at byte {at}")]
    Read {
        /// Where.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was in a capture file so far. All of it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PcapCounters {
    /// Packets.
    pub packets: u64,
    /// Bytes of them that are in the file.
    pub bytes: u64,
    /// Packets that are TCP, and were handed on.
    pub tcp: u64,
    /// Packets that are something else.
    pub not_tcp: u64,
    /// Fragments of IP packets; they are not put together.
    pub fragments: u64,
    /// Packets cut before their TCP header ended.
    pub header_cut: u64,
    /// Packets whose headers contradict themselves.
    pub malformed: u64,
    /// Packets of an interface whose link type is not supported.
    pub link_type: u64,
}

/// A capture file.
pub struct PcapSource<R> {
    packets: PacketReader<R>,
    connectors: Connectors,
    counters: PcapCounters,
    time: Timestamp,
    /// Nothing more is to be read.
    ended: bool,
}

impl<R: Read> PcapSource<R> {
    /// Reads the beginning of the file.
    ///
    /// # Errors
    /// When it is no capture, or one of a link type that is not supported.
    pub fn open(reader: R) -> Result<Self, PcapError> {
        let packets = PacketReader::open(reader)?;
        if let Some(link_type) = packets.link_type()
            && Link::from_number(link_type).is_none()
        {
            return Err(PcapError::LinkType { link_type });
        }
        Ok(Self { packets, connectors: Connectors::default(), counters: PcapCounters::default(), time: Timestamp::ZERO, ended: false })
    }

    /// Reads one packet and hands on what it says, which may be nothing. False at the end of the file.
    ///
    /// # Errors
    /// When the file is cut or damaged there, or cannot be read; nothing more is read then.
    pub fn next_packet(&mut self, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Result<bool, PcapError> {
        if self.ended {
            return Ok(false);
        }
        // Until proven otherwise: neither the end nor an error has anything behind it.
        self.ended = true;
        let Some(packet) = self.packets.next_packet()? else { return Ok(false) };
        self.ended = false;
        self.time = packet.time;
        self.counters.packets += 1;
        self.counters.bytes += packet.bytes.len() as u64;
        match packet::find_segment(packet.link_type, packet.bytes, packet.wire_bytes) {
            Ok(segment) => {
                self.counters.tcp += 1;
                hand_on(&segment, packet.time, &mut self.connectors, sink);
            }
            Err(Unusable::NotTcp) => self.counters.not_tcp += 1,
            Err(Unusable::Fragment) => self.counters.fragments += 1,
            Err(Unusable::HeaderCut) => self.counters.header_cut += 1,
            Err(Unusable::Malformed) => self.counters.malformed += 1,
            Err(Unusable::LinkType) => self.counters.link_type += 1,
        }
        Ok(true)
    }

    /// What was in the file so far.
    pub fn counters(&self) -> PcapCounters {
        self.counters
    }

    /// Time of the packet that was read last.
    pub fn time(&self) -> Timestamp {
        self.time
    }
}

impl<R> std::fmt::Debug for PcapSource<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PcapSource").field("counters", &self.counters).field("time", &self.time).finish_non_exhaustive()
    }
}

/// Hands on the events of a segment.
fn hand_on(segment: &Segment<'_>, time: Timestamp, connectors: &mut Connectors, sink: &mut dyn FnMut(CaptureEvent<'_>)) {
    let Segment { source, destination, sequence, flags, payload, missing_bytes } = *segment;
    let initiator = flags & ACK == 0;
    if flags & SYN != 0 {
        let (connector, acceptor) = if initiator { (source, destination) } else { (destination, source) };
        connectors.connected(connector, acceptor);
    }
    let (local, peer) = connectors.local_and_peer(source, destination);
    let direction = if local == source { Direction::Sent } else { Direction::Received };
    let mut event = |kind| sink(CaptureEvent { socket: SocketKey { scope: 0, local, peer }, time, pid: None, kind });

    let mut position = sequence;
    if flags & RST != 0 {
        // What follows may be a text for people (RFC 9293, 3.5.3), but no part of the stream.
        event(EventKind::Close { direction, position, reset: true });
        return;
    }
    if flags & SYN != 0 {
        position = position.wrapping_add(1);
        event(EventKind::Open { direction, initiator, first_position: position });
    }
    if !payload.is_empty() || missing_bytes > 0 {
        event(EventKind::Data { direction, position, bytes: payload, missing_bytes });
    }
    if flags & FIN != 0 {
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        position = position.wrapping_add(payload_bytes).wrapping_add(missing_bytes);
        event(EventKind::Close { direction, position, reset: false });
    }
}

/// Which end of a pair of addresses connected. Without a SYN the smaller address counts as that end, so only pairs where
/// it was the larger one are remembered.
struct Connectors {
    /// (smaller, larger) where the larger connected.
    larger: LruCache<(SocketAddr, SocketAddr), ()>,
}

/// Pairs that are remembered. Beyond it, connections of the pair that was used longest ago are taken for new ones.
const MAX_PAIRS: usize = 1 << 16;

impl Default for Connectors {
    fn default() -> Self {
        Self { larger: LruCache::new(MAX_PAIRS) }
    }
}

impl Connectors {
    fn connected(&mut self, connector: SocketAddr, acceptor: SocketAddr) {
        if connector > acceptor {
            self.larger.insert((acceptor, connector), ());
        } else {
            self.larger.remove(&(connector, acceptor));
        }
    }

    fn local_and_peer(&mut self, one: SocketAddr, other: SocketAddr) -> (SocketAddr, SocketAddr) {
        let pair @ (smaller, larger) = if one < other { (one, other) } else { (other, one) };
        if self.larger.get(&pair).is_some() { (larger, smaller) } else { pair }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// What an event said, without its addresses.
    fn text(event: &CaptureEvent<'_>) -> String {
        let arrow = |direction| if direction == Direction::Sent { ">" } else { "<" };
        match event.kind {
            EventKind::Open { direction, initiator, first_position } => {
                format!("{} open {first_position}{}", arrow(direction), if initiator { " first" } else { "" })
            }
            EventKind::Data { direction, position, bytes, missing_bytes } => {
                format!("{} {position} {} +{missing_bytes}", arrow(direction), String::from_utf8_lossy(bytes))
            }
            EventKind::Close { direction, position, reset } => {
                format!("{} close {position}{}", arrow(direction), if reset { " reset" } else { "" })
            }
        }
    }

    /// A raw IPv4 packet between hosts 1 and 2 of 10.0.0.0/24.
    fn packet(from: u8, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let total_bytes = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![0x45, 0, total_bytes[0], total_bytes[1], 0, 0, 0, 0, 64, 6, 0, 0];
        bytes.extend([10, 0, 0, from, 10, 0, 0, 3 - from]);
        let port = |host: u8| if host == 1 { [0x04, 0xd2] } else { [0x23, 0x84] };
        bytes.extend([port(from), port(3 - from)].concat());
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        bytes.extend(payload);
        bytes
    }

    /// Numbers in one byte order or the other.
    #[derive(Clone, Copy)]
    struct Order {
        big: bool,
    }

    impl Order {
        fn u16(self, n: u16) -> [u8; 2] {
            if self.big { n.to_be_bytes() } else { n.to_le_bytes() }
        }

        fn u32(self, n: u32) -> [u8; 4] {
            if self.big { n.to_be_bytes() } else { n.to_le_bytes() }
        }

        fn pcap(self, nanoseconds: bool, link_type: u32, packets: &[(u64, Vec<u8>)]) -> Vec<u8> {
            let magic = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
            let mut file =
                [self.u32(magic), self.u32(0x0004_0002), self.u32(0), self.u32(0), self.u32(65535), self.u32(link_type)].concat();
            for (ns, bytes) in packets {
                let unit = if nanoseconds { 1 } else { 1000 };
                let length = u32::try_from(bytes.len()).unwrap();
                for n in [u32::try_from(ns / 1_000_000_000).unwrap(), u32::try_from(ns % 1_000_000_000 / unit).unwrap(), length, length] {
                    file.extend(self.u32(n));
                }
                file.extend(bytes);
            }
            file
        }

        fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
            let padding = body.len().next_multiple_of(4) - body.len();
            let length = self.u32(u32::try_from(12 + body.len() + padding).unwrap());
            [&self.u32(kind)[..], &length, body, &[0; 3][..padding], &length].concat()
        }

        fn section(self) -> Vec<u8> {
            self.block(0x0a0d_0d0a, &[&self.u32(0x1a2b_3c4d)[..], &self.u16(1), &self.u16(0), &[0xff; 8]].concat())
        }

        fn interface(self, link_type: u16, snap_bytes: u32, options: &[u8]) -> Vec<u8> {
            self.block(1, &[&self.u16(link_type)[..], &[0, 0], &self.u32(snap_bytes), options].concat())
        }

        fn enhanced(self, interface: u32, units: u64, bytes: &[u8], wire_bytes: usize) -> Vec<u8> {
            let numbers = [interface, u32::try_from(units >> 32).unwrap(), u32::try_from(units & 0xffff_ffff).unwrap()];
            let lengths = [bytes.len(), wire_bytes].map(|length| self.u32(u32::try_from(length).unwrap())).concat();
            self.block(6, &[&numbers.map(|n| self.u32(n)).concat(), &lengths, bytes].concat())
        }
    }

    const LITTLE: Order = Order { big: false };
    const BIG: Order = Order { big: true };

    #[test]
    fn the_end_lies_behind_what_the_capture_cut() {
        let fin = packet(1, 100, 0x19, b"the end");
        let file = [LITTLE.section(), LITTLE.interface(101, 0, &[]), LITTLE.enhanced(0, 0, &fin[..43], fin.len())].concat();
        let texts = |file: &[u8]| read(file).0.into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(texts(&file), ["> 100 the +4", "> close 107"]);
        // Some tools write a length on the wire of 0.
        let fin = packet(1, 100, 0x19, b"the end");
        let file = [LITTLE.section(), LITTLE.interface(101, 0, &[]), LITTLE.enhanced(0, 0, &fin, 0)].concat();
        assert_eq!(texts(&file), ["> 100 the end +0", "> close 107"]);
    }

    /// Everything a file says: (nanoseconds, event), and how it ended.
    fn read(file: &[u8]) -> (Vec<(u64, String)>, Result<PcapCounters, PcapError>) {
        let mut events = Vec::new();
        let mut source = match PcapSource::open(file) {
            Ok(source) => source,
            Err(error) => return (events, Err(error)),
        };
        loop {
            match source.next_packet(&mut |event| events.push((event.time.unix_ns(), text(&event)))) {
                Ok(true) => {}
                Ok(false) => return (events, Ok(source.counters())),
                Err(error) => {
                    assert!(matches!(source.next_packet(&mut |_| ()), Ok(false)), "nothing is read behind an error");
                    return (events, Err(error));
                }
            }
        }
    }

    fn two_packets() -> Vec<(u64, Vec<u8>)> {
        vec![(1_700_000_000_000 * MS + 1000, packet(1, 100, 0x18, b"ask")), (1_700_000_000_001 * MS, packet(2, 900, 0x18, b"answer"))]
    }

    fn two_events() -> Vec<(u64, String)> {
        vec![(1_700_000_000_000 * MS + 1000, "> 100 ask +0".to_owned()), (1_700_000_000_001 * MS, "< 900 answer +0".to_owned())]
    }

    #[test]
    fn both_byte_orders_and_both_units_of_time_are_read() {
        for order in [LITTLE, BIG] {
            for nanoseconds in [false, true] {
                // Link type with a frame check sequence's length above it.
                let (events, end) = read(&order.pcap(nanoseconds, 0x2400_0065, &two_packets()));
                assert_eq!(events, two_events());
                let counters = PcapCounters { packets: 2, bytes: 89, tcp: 2, ..Default::default() };
                assert_eq!(end.unwrap(), counters);
            }
        }
    }

    #[test]
    fn pcapng_sections_interfaces_and_units_are_read() {
        const SECOND: u64 = 1_700_000_000;
        let ask = packet(1, 100, 0x18, b"ask");
        let cooked = [&[0; 14][..], &[8, 0], &packet(2, 900, 0x18, b"answer")].concat();
        let resolution = |value: u8, order: Order| [&order.u16(9)[..], &order.u16(1), &[value, 0, 0, 0], &[0; 4]].concat();
        let offset = |order: Order| {
            let seconds = if order.big { SECOND.to_be_bytes() } else { SECOND.to_le_bytes() };
            [&order.u16(2)[..], &order.u16(3), b"lo\0\0", &order.u16(14), &order.u16(8), &seconds].concat()
        };
        for (first, second) in [(LITTLE, BIG), (BIG, LITTLE)] {
            let file = [
                first.section(),
                first.interface(101, 0, &resolution(9, first)),
                first.interface(113, 65535, &[]),
                first.interface(101, 0, &resolution(0x8a, first)),
                first.block(5, b"statistics, passed over"),
                first.enhanced(0, SECOND * 1_000_000_000 + 7, &ask, ask.len()),
                first.enhanced(1, SECOND * 1_000_000 + 8, &cooked, cooked.len()),
                first.enhanced(2, SECOND * 1024 + 512, &ask[..41], 100),
                second.section(),
                second.interface(101, 42, &offset(second)),
                second.block(0x0bad, b""),
                second.enhanced(0, 9, &ask, ask.len()),
                second.block(3, &[&second.u32(43)[..], &ask[..42]].concat()),
            ];
            let (events, end) = read(&file.concat());
            let expected = [
                (7, "> 100 ask +0"),
                (8_000, "< 900 answer +0"),
                (500_000_000, "> 100 a +2"),
                (9_000, "> 100 ask +0"),
                (9_000, "> 100 as +1"),
            ];
            assert_eq!(events, expected.map(|(ns, text)| (SECOND * 1_000_000_000 + ns, text.to_owned())));
            assert_eq!(end.unwrap().packets, 5);
        }
    }

    #[test]
    fn every_cut_of_a_file_yields_what_was_whole_and_the_place_of_the_cut() {
        let pcap = LITTLE.pcap(true, 101, &two_packets());
        let packets = two_packets();
        let ng = [
            LITTLE.section(),
            LITTLE.interface(101, 0, &[&LITTLE.u16(9)[..], &LITTLE.u16(1), &[9, 0, 0, 0]].concat()),
            LITTLE.enhanced(0, packets[0].0, &packets[0].1, packets[0].1.len()),
            LITTLE.enhanced(0, packets[1].0, &packets[1].1, packets[1].1.len()),
        ];
        let ends_of = |parts: &[usize]| {
            parts
                .iter()
                .scan(0, |sum, part| {
                    Some({
                        *sum += part;
                        *sum
                    })
                })
                .collect::<Vec<_>>()
        };
        let borders = [ends_of(&[24, 16 + packets[0].1.len(), 16 + packets[1].1.len()]), ends_of(&ng.each_ref().map(Vec::len))];
        for (file, borders, packet_borders) in [(pcap, &borders[0], &borders[0][1..]), (ng.concat(), &borders[1], &borders[1][2..])] {
            assert_eq!(borders.last(), Some(&file.len()));
            for cut in 0..=file.len() {
                let (events, end) = read(&file[..cut]);
                let whole = packet_borders.iter().filter(|border| **border <= cut).count();
                assert_eq!(events, two_events()[..whole], "cut at {cut}");
                match end {
                    Ok(_) => assert!(borders.contains(&cut), "cut at {cut}"),
                    Err(PcapError::Empty) => assert_eq!(cut, 0),
                    Err(PcapError::NotACapture { first, .. }) => assert!(cut < 4 && first.len() == cut),
                    Err(PcapError::Cut { begin, end, .. }) => {
                        let last = borders.iter().rfind(|border| **border <= cut).copied().unwrap_or(0);
                        assert_eq!((begin, end), (last as u64, cut as u64));
                    }
                    Err(error) => panic!("cut at {cut}: {error}"),
                }
            }
        }
    }

    #[test]
    fn what_is_no_capture_or_damaged_is_said_with_its_place() {
        let damaged = |at: usize, value: [u8; 4]| {
            let mut file = LITTLE.pcap(true, 101, &two_packets());
            file[at..at + 4].copy_from_slice(&value);
            file
        };
        let ng_damaged = |at: usize, value: u8| {
            let mut file = [LITTLE.section(), LITTLE.interface(101, 0, &[]), LITTLE.enhanced(0, 0, b"1234", 4)].concat();
            file[at] = value;
            file
        };
        let table: Vec<(Vec<u8>, &str)> = vec![
            (Vec::new(), "the file is empty"),
            (b"hello, world".to_vec(), "not a pcap or pcapng file: it begins with [68, 65, 6c, 6c]"),
            (b"x".to_vec(), "not a pcap or pcapng file: it begins with [78]"),
            (
                vec![0x1f, 0x8b, 8, 0],
                "not a pcap or pcapng file: it begins with [1f, 8b, 08, 00]; it is compressed with gzip, decompress it first",
            ),
            (LITTLE.pcap(true, 147, &[]), "link type 147 is not supported (supported: Ethernet, Linux cooked, raw IP, loopback)"),
            (damaged(32, [0, 0, 0, 0x70]), "the file is damaged at byte 32: the length of a packet is 1879048192"),
            (ng_damaged(8, 0), "the file is damaged at byte 8: the byte order of a section is 3943194"),
            (ng_damaged(4, 9), "the file is damaged at byte 4: the length of a block is 9"),
            (ng_damaged(28 + 4, 10), "the file is damaged at byte 32: the length of a block is 10"),
            (ng_damaged(48 + 8, 3), "the file is damaged at byte 56: the interface of a packet is 3"),
            (ng_damaged(48 + 20, 5), "the file is damaged at byte 68: the length of a packet is 5"),
            (ng_damaged(48 + 32, 1), "the file is damaged at byte 80: the length at the end of a block is 1"),
        ];
        for (file, expected) in table {
            assert_eq!(read(&file).1.map(|counters| counters.packets).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_failing_reader_is_an_error_and_not_an_end() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("no more"))
            }
        }
        let file = LITTLE.pcap(true, 101, &two_packets());
        let mut source = PcapSource::open(file.as_slice().chain(Failing)).unwrap();
        assert!(source.next_packet(&mut |_| ()).unwrap());
        assert!(source.next_packet(&mut |_| ()).unwrap());
        assert_eq!(source.next_packet(&mut |_| ()).unwrap_err().to_string(), format!("reading failed at byte {}", file.len()));
    }

    #[test]
    fn the_end_that_connected_is_local_and_without_a_syn_the_smaller_address() {
        // Host 1 has the smaller address. (from, flags, payload) => expected local host and event.
        type Step = (u8, u8, &'static [u8], u8, &'static [&'static str]);
        let table: &[(&str, &[Step])] = &[
            ("no SYN", &[(2, 0x18, b"x", 1, &["< 7 x +0"]), (1, 0x18, b"y", 1, &["> 7 y +0"])]),
            ("the smaller connects", &[(1, 0x02, b"", 1, &["> open 8 first"]), (2, 0x12, b"", 1, &["< open 8"])]),
            (
                "the larger connects",
                &[(2, 0x02, b"", 2, &["> open 8 first"]), (1, 0x12, b"", 2, &["< open 8"]), (1, 0x18, b"y", 2, &["< 7 y +0"])],
            ),
            ("only the answer to the SYN was seen", &[(1, 0x12, b"", 2, &["< open 8"]), (2, 0x18, b"x", 2, &["> 7 x +0"])]),
            (
                "the pair is used again, the other way round",
                &[(2, 0x02, b"", 2, &["> open 8 first"]), (1, 0x02, b"", 1, &["> open 8 first"]), (2, 0x18, b"x", 1, &["< 7 x +0"])],
            ),
            (
                "data in the SYN and a FIN with data",
                &[(1, 0x02, b"fast", 1, &["> open 8 first", "> 8 fast +0"]), (1, 0x11, b"end", 1, &["> 7 end +0", "> close 10"])],
            ),
            ("a FIN alone, a RST with a text", &[(1, 0x11, b"", 1, &["> close 7"]), (2, 0x14, b"go away", 1, &["< close 7 reset"])]),
            ("a bare ACK says nothing", &[(1, 0x10, b"", 1, &[])]),
        ];
        for (name, steps) in table {
            let packets: Vec<_> = steps.iter().map(|(from, flags, payload, ..)| (0, packet(*from, 7, *flags, payload))).collect();
            let file = LITTLE.pcap(true, 101, &packets);
            let mut source = PcapSource::open(file.as_slice()).unwrap();
            for (_, _, _, local, expected) in *steps {
                let mut events = Vec::new();
                let more = source.next_packet(&mut |event| {
                    let (local, peer) = (event.socket.local.ip().to_string(), event.socket.peer.ip().to_string());
                    assert_ne!(local, peer);
                    events.push((local, text(&event)));
                });
                assert!(more.unwrap());
                let expected: Vec<_> = expected.iter().map(|text| (format!("10.0.0.{local}"), (*text).to_owned())).collect();
                assert_eq!(events, expected, "{name}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(start in 0_usize..6, changes in proptest::collection::vec((0_usize..400, 0_u8..), 0..12), rest in proptest::collection::vec(0_u8.., 0..64)) {
            let ng = |order: Order| [order.section(), order.interface(1, 0, &[0; 8]), order.enhanced(0, 1, &packet(1, 1, 2, b"x"), 99)].concat();
            let mut file = match start {
                0 => LITTLE.pcap(false, 1, &two_packets()),
                1 => BIG.pcap(true, 113, &two_packets()),
                2 => LITTLE.pcap(true, 101, &two_packets()),
                3 => ng(LITTLE),
                4 => ng(BIG),
                _ => Vec::new(),
            };
            for (at, value) in changes {
                if let Some(byte) = file.get_mut(at) { *byte = value; }
            }
            file.extend(rest);
            let _ = read(&file);
        }
    }
}
