//! The two file formats: a file's bytes in, packets out.
//!
//! pcap: <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html>; pcapng:
//! <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html>. Memory grows with what has been read, never with
//! what a length field claims.

#![forbid(unsafe_code)]

use std::io::{self, BufRead, BufReader, Read};

use super::PcapError;
use crate::time::Timestamp;

/// A packet as the file has it.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    /// What its first header is, as tcpdump.org numbers it.
    pub(super) link_type: u32,
    /// When it was captured.
    pub(super) time: Timestamp,
    /// How long it was on the wire, at least `bytes.len()`.
    pub(super) wire_bytes: usize,
    /// What the file holds of it.
    pub(super) bytes: &'a [u8],
}

/// Longest packet that is believed. The longest real ones are about 300 kB (BIG TCP on loopback).
const MAX_PACKET_BYTES: u32 = 16 << 20;

/// Interfaces of one pcapng section that are remembered.
const MAX_INTERFACES: usize = 1 << 16;

/// Reads packets one after another.
#[derive(Debug)]
pub(super) struct PacketReader<R> {
    input: Input<R>,
    format: Format,
    /// Time of the last packet, for those that have none.
    last_time: Timestamp,
}

#[derive(Debug)]
enum Format {
    Pcap { order: Order, link_type: u32, fraction_ns: u64 },
    PcapNg(Section),
}

#[derive(Debug)]
struct Section {
    order: Order,
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link_type: u32,
    snap_bytes: u32,
    resolution: Resolution,
    offset_seconds: i64,
}

/// Unit of a pcapng time.
#[derive(Clone, Copy, Debug)]
enum Resolution {
    /// Seconds divided by ten to this power.
    Decimal(u32),
    /// Seconds divided by two to this power.
    Binary(u32),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    Little,
    Big,
}

const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

impl<R: Read> PacketReader<R> {
    /// Reads the file's first header.
    pub(super) fn open(reader: R) -> Result<Self, PcapError> {
        let mut input = Input { reader: BufReader::with_capacity(1 << 16, reader), position: 0, buffer: Vec::new() };
        if input.is_at_end()? {
            return Err(PcapError::Empty);
        }
        let magic: [u8; 4] = match input.read(4, "file header", 0) {
            Ok(bytes) => fixed(bytes, 0),
            Err(PcapError::Cut { .. }) => return Err(not_a_capture(&input.buffer)),
            Err(error) => return Err(error),
        };
        let format = match magic {
            [0xd4, 0xc3, 0xb2, 0xa1] => input.pcap_header(Order::Little, 1000)?,
            [0x4d, 0x3c, 0xb2, 0xa1] => input.pcap_header(Order::Little, 1)?,
            [0xa1, 0xb2, 0xc3, 0xd4] => input.pcap_header(Order::Big, 1000)?,
            [0xa1, 0xb2, 0x3c, 0x4d] => input.pcap_header(Order::Big, 1)?,
            SECTION_HEADER => {
                let length = fixed(input.read(4, "section header", 0)?, 0);
                Format::PcapNg(input.section_header(length, 0)?)
            }
            other => return Err(not_a_capture(&other)),
        };
        Ok(Self { input, format, last_time: Timestamp::ZERO })
    }

    /// The link type of all packets, where the format has one for all.
    pub(super) fn link_type(&self) -> Option<u32> {
        match self.format {
            Format::Pcap { link_type, .. } => Some(link_type),
            Format::PcapNg(_) => None,
        }
    }

    /// The next packet; `None` at the end.
    pub(super) fn next_packet(&mut self) -> Result<Option<Packet<'_>>, PcapError> {
        let Self { input, format, last_time } = self;
        let found = match format {
            Format::Pcap { order, link_type, fraction_ns } => input.pcap_packet(*order, *link_type, *fraction_ns)?,
            Format::PcapNg(section) => input.ng_packet(section, *last_time)?,
        };
        let Some(Found { link_type, time, wire_bytes, from, captured_bytes }) = found else { return Ok(None) };
        *last_time = time;
        let bytes = input.buffer.get(from..from + captured_bytes).unwrap_or_default();
        let wire_bytes = usize::try_from(wire_bytes).unwrap_or(usize::MAX).max(bytes.len());
        Ok(Some(Packet { link_type, time, wire_bytes, bytes }))
    }
}

fn not_a_capture(first: &[u8]) -> PcapError {
    let hint = match first {
        [0x1f, 0x8b, ..] => "; it is compressed with gzip, decompress it first",
        [0x28, 0xb5, 0x2f, 0xfd] => "; it is compressed with zstd, decompress it first",
        [0xfd, b'7', b'z', b'X'] => "; it is compressed with xz, decompress it first",
        [0x34, 0xcd, 0xb2, 0xa1] => "; it is a modified pcap, rewrite it with `editcap -F pcapng`",
        _ => "",
    };
    PcapError::NotACapture { first: first.to_vec(), hint }
}

/// A packet in the buffer.
struct Found {
    link_type: u32,
    time: Timestamp,
    wire_bytes: u32,
    from: usize,
    captured_bytes: usize,
}

/// The file, with the position in it and what was read last.
#[derive(Debug)]
struct Input<R> {
    reader: BufReader<R>,
    position: u64,
    buffer: Vec<u8>,
}

impl<R: Read> Input<R> {
    fn is_at_end(&mut self) -> Result<bool, PcapError> {
        loop {
            match self.reader.fill_buf() {
                Ok(bytes) => return Ok(bytes.is_empty()),
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(PcapError::Read { at: self.position, source }),
            }
        }
    }

    /// Reads `length` bytes into the buffer, of the `what` that begins at `begin`.
    fn read(&mut self, length: u32, what: &'static str, begin: u64) -> Result<&[u8], PcapError> {
        self.buffer.clear();
        let read = self.reader.by_ref().take(length.into()).read_to_end(&mut self.buffer);
        self.position += self.buffer.len() as u64;
        read.map_err(|source| PcapError::Read { at: self.position, source })?;
        if (self.buffer.len() as u64) < u64::from(length) {
            return Err(PcapError::Cut { what, begin, end: self.position });
        }
        Ok(&self.buffer)
    }

    fn skip(&mut self, length: u32, what: &'static str, begin: u64) -> Result<(), PcapError> {
        let skipped = io::copy(&mut self.reader.by_ref().take(length.into()), &mut io::sink())
            .map_err(|source| PcapError::Read { at: self.position, source })?;
        self.position += skipped;
        if skipped < u64::from(length) { Err(PcapError::Cut { what, begin, end: self.position }) } else { Ok(()) }
    }

    fn pcap_header(&mut self, order: Order, fraction_ns: u64) -> Result<Format, PcapError> {
        // Version, time zone, accuracy and snap length say nothing that is needed. Behind the low half of the link type
        // there may be the length of a frame check sequence, which is cut off with the rest behind the IP packet.
        let header = self.read(20, "file header", 0)?;
        Ok(Format::Pcap { order, link_type: order.u32(header, 16) & 0xffff, fraction_ns })
    }

    fn pcap_packet(&mut self, order: Order, link_type: u32, fraction_ns: u64) -> Result<Option<Found>, PcapError> {
        if self.is_at_end()? {
            return Ok(None);
        }
        let begin = self.position;
        let header = self.read(16, "packet", begin)?;
        let (seconds, fraction) = (order.u32(header, 0), order.u32(header, 4));
        let (captured_bytes, wire_bytes) = (order.u32(header, 8), order.u32(header, 12));
        if captured_bytes > MAX_PACKET_BYTES {
            return Err(PcapError::Damaged { at: begin + 8, what: "the length of a packet", value: captured_bytes.into() });
        }
        let captured_bytes = self.read(captured_bytes, "packet", begin)?.len();
        let time = Timestamp::from_unix_ns(u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * fraction_ns);
        Ok(Some(Found { link_type, time, wire_bytes, from: 0, captured_bytes }))
    }

    /// The rest of a section header, of which type and length were read.
    fn section_header(&mut self, length: [u8; 4], begin: u64) -> Result<Section, PcapError> {
        let order = match fixed(self.read(4, "section header", begin)?, 0) {
            [0x4d, 0x3c, 0x2b, 0x1a] => Order::Little,
            [0x1a, 0x2b, 0x3c, 0x4d] => Order::Big,
            other => {
                let value = u32::from_be_bytes(other).into();
                return Err(PcapError::Damaged { at: begin + 8, what: "the byte order of a section", value });
            }
        };
        let length = order.u32(&length, 0);
        let Some(rest) = length.checked_sub(28).filter(|rest| rest % 4 == 0) else {
            return Err(block_length(begin, length));
        };
        // Version, section length and options say nothing that is needed.
        self.skip(16 - 4 + rest, "section header", begin)?;
        self.block_end(order, length, "section header", begin)?;
        Ok(Section { order, interfaces: Vec::new() })
    }

    /// The length at a block's end, which must be the one at its beginning.
    fn block_end(&mut self, order: Order, length: u32, what: &'static str, begin: u64) -> Result<(), PcapError> {
        let at = self.position;
        let mut end = [0; 4];
        // Not through the buffer, which may hold a packet.
        let read = read_up_to(&mut self.reader, &mut end).map_err(|source| PcapError::Read { at, source })?;
        self.position += read as u64;
        if read < end.len() {
            return Err(PcapError::Cut { what, begin, end: self.position });
        }
        let value = order.u32(&end, 0);
        if value == length { Ok(()) } else { Err(PcapError::Damaged { at, what: "the length at the end of a block", value: value.into() }) }
    }

    fn ng_packet(&mut self, section: &mut Section, last_time: Timestamp) -> Result<Option<Found>, PcapError> {
        while !self.is_at_end()? {
            let begin = self.position;
            let header = self.read(8, "block", begin)?;
            let (kind, length): ([u8; 4], [u8; 4]) = (fixed(header, 0), fixed(header, 4));
            if kind == SECTION_HEADER {
                *section = self.section_header(length, begin)?;
                continue;
            }
            let order = section.order;
            let (kind, length) = (order.u32(&kind, 0), order.u32(&length, 0));
            let Some(body_bytes) = length.checked_sub(12).filter(|body| body % 4 == 0) else {
                return Err(block_length(begin, length));
            };
            if !matches!(kind, INTERFACE_DESCRIPTION | OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET) {
                self.skip(body_bytes, "block", begin)?;
                self.block_end(order, length, "block", begin)?;
                continue;
            }
            if body_bytes > MAX_PACKET_BYTES {
                return Err(block_length(begin, length));
            }
            self.read(body_bytes, "block", begin)?;
            self.block_end(order, length, "block", begin)?;
            let found = match kind {
                INTERFACE_DESCRIPTION => {
                    section.add_interface(&self.buffer, begin)?;
                    continue;
                }
                SIMPLE_PACKET => section.simple_packet(&self.buffer, last_time, begin)?,
                _ => section.packet(&self.buffer, kind == OBSOLETE_PACKET, begin)?,
            };
            return Ok(Some(found));
        }
        Ok(None)
    }
}

/// Like `read_exact`, but tells how much there was.
fn read_up_to(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

fn block_length(begin: u64, length: u32) -> PcapError {
    PcapError::Damaged { at: begin + 4, what: "the length of a block", value: length.into() }
}

impl Section {
    fn add_interface(&mut self, body: &[u8], begin: u64) -> Result<(), PcapError> {
        if body.len() < 8 {
            return Err(PcapError::Damaged { at: begin, what: "the length of an interface description", value: body.len() as u64 });
        }
        if self.interfaces.len() >= MAX_INTERFACES {
            return Err(PcapError::Damaged { at: begin, what: "the number of interfaces", value: 1 + MAX_INTERFACES as u64 });
        }
        let order = self.order;
        let mut interface = Interface {
            link_type: order.u16(body, 0).into(),
            snap_bytes: order.u32(body, 4),
            resolution: Resolution::Decimal(6),
            offset_seconds: 0,
        };
        let mut options = body.get(8..).unwrap_or_default();
        while options.len() >= 4 {
            let (code, length) = (order.u16(options, 0), usize::from(order.u16(options, 2)));
            let Some(value) = options.get(4..4 + length) else { break };
            match (code, value) {
                (0, _) => break,
                (9, [resolution]) if resolution & 0x80 == 0 => interface.resolution = Resolution::Decimal((*resolution).into()),
                (9, [resolution]) => interface.resolution = Resolution::Binary((resolution & 0x7f).into()),
                (14, value) if value.len() == 8 => interface.offset_seconds = order.u64(value, 0).cast_signed(),
                _ => {}
            }
            options = options.get(4 + length.next_multiple_of(4)..).unwrap_or_default();
        }
        self.interfaces.push(interface);
        Ok(())
    }

    fn interface(&self, index: u32, begin: u64) -> Result<Interface, PcapError> {
        let interface = usize::try_from(index).ok().and_then(|index| self.interfaces.get(index)).copied();
        interface.ok_or(PcapError::Damaged { at: begin + 8, what: "the interface of a packet", value: index.into() })
    }

    /// An enhanced packet block, or the obsolete one, which has its fields at the same places.
    fn packet(&self, body: &[u8], obsolete: bool, begin: u64) -> Result<Found, PcapError> {
        let order = self.order;
        if body.len() < 20 {
            return Err(PcapError::Damaged { at: begin, what: "the length of a packet block", value: body.len() as u64 });
        }
        let index = if obsolete { order.u16(body, 0).into() } else { order.u32(body, 0) };
        let interface = self.interface(index, begin)?;
        let units = u64::from(order.u32(body, 4)) << 32 | u64::from(order.u32(body, 8));
        let (captured, wire_bytes) = (order.u32(body, 12), order.u32(body, 16));
        let captured_bytes = usize::try_from(captured).unwrap_or(usize::MAX);
        if captured_bytes > body.len() - 20 {
            return Err(PcapError::Damaged { at: begin + 20, what: "the length of a packet", value: captured.into() });
        }
        Ok(Found { link_type: interface.link_type, time: interface.time(units), wire_bytes, from: 20, captured_bytes })
    }

    /// A simple packet block: of interface 0, and without a time.
    fn simple_packet(&self, body: &[u8], time: Timestamp, begin: u64) -> Result<Found, PcapError> {
        let interface = self.interface(0, begin)?;
        if body.len() < 4 {
            return Err(PcapError::Damaged { at: begin, what: "the length of a packet block", value: body.len() as u64 });
        }
        let wire_bytes = self.order.u32(body, 0);
        let snapped = if interface.snap_bytes == 0 { wire_bytes } else { wire_bytes.min(interface.snap_bytes) };
        let captured_bytes = usize::try_from(snapped).unwrap_or(usize::MAX).min(body.len() - 4);
        Ok(Found { link_type: interface.link_type, time, wire_bytes, from: 4, captured_bytes })
    }
}

impl Interface {
    fn time(&self, units: u64) -> Timestamp {
        let units = u128::from(units);
        let ns = match self.resolution {
            Resolution::Decimal(digits @ 0..=9) => units * 10_u128.pow(9 - digits),
            Resolution::Decimal(digits) => 10_u128.checked_pow(digits - 9).map_or(0, |divisor| units / divisor),
            Resolution::Binary(bits) => (units * 1_000_000_000).checked_shr(bits).unwrap_or(0),
        };
        let ns = i128::try_from(ns).unwrap_or(i128::MAX).saturating_add(i128::from(self.offset_seconds) * 1_000_000_000);
        Timestamp::from_unix_ns(u64::try_from(ns.max(0)).unwrap_or(u64::MAX))
    }
}

/// `N` bytes at `at`, zero where there are none: callers have checked the length.
fn fixed<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; N])
}

impl Order {
    fn u16(self, bytes: &[u8], at: usize) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(fixed(bytes, at)),
            Self::Big => u16::from_be_bytes(fixed(bytes, at)),
        }
    }

    fn u32(self, bytes: &[u8], at: usize) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(fixed(bytes, at)),
            Self::Big => u32::from_be_bytes(fixed(bytes, at)),
        }
    }

    fn u64(self, bytes: &[u8], at: usize) -> u64 {
        match self {
            Self::Little => u64::from_le_bytes(fixed(bytes, at)),
            Self::Big => u64::from_be_bytes(fixed(bytes, at)),
        }
    }
}
