//! Captures as values: read from the corpus or put together by hand, changed as a network or a capture point would, and
//! written in any of the formats that the tracer reads.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// FIN of [`Segment::flags`].
pub const FIN: u8 = 0x01;
/// SYN of [`Segment::flags`].
pub const SYN: u8 = 0x02;
/// RST of [`Segment::flags`].
pub const RST: u8 = 0x04;
/// ACK of [`Segment::flags`].
pub const ACK: u8 = 0x10;

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// When it was captured, nanoseconds since the epoch.
    pub time_ns: u64,
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Sequence number.
    pub sequence: u32,
    /// TCP flags.
    pub flags: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Segment {
    /// True when it says nothing but "received".
    pub fn is_bare_ack(&self) -> bool {
        self.payload.is_empty() && self.flags & (SYN | FIN | RST) == 0
    }

    /// From whom to whom.
    pub const fn way(&self) -> (SocketAddr, SocketAddr) {
        (self.source, self.destination)
    }

    /// Both addresses, the smaller first: the same for both directions.
    pub fn connection(&self) -> (SocketAddr, SocketAddr) {
        (self.source.min(self.destination), self.source.max(self.destination))
    }

    fn tcp(&self) -> Vec<u8> {
        let mut tcp = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend([0, 0, 0, 0, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(&self.payload);
        tcp
    }

    /// The IP packet.
    fn ip(&self, how: Ip) -> Vec<u8> {
        let tcp = self.tcp();
        match (self.source.ip(), self.destination.ip(), how) {
            (IpAddr::V4(source), IpAddr::V4(destination), Ip::AsIs | Ip::LengthZero | Ip::Options) => {
                let options: &[u8] = if how == Ip::Options { &[1; 8] } else { &[] };
                let header_bytes = 20 + options.len();
                // Above what the field can say: 0, as the kernel writes it.
                let length = if how == Ip::LengthZero { 0 } else { u16::try_from(header_bytes + tcp.len()).unwrap_or(0) };
                let mut ip = vec![0x40 | u8::try_from(header_bytes / 4).unwrap_or(0), 0];
                ip.extend(length.to_be_bytes());
                ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(options);
                ip.extend(tcp);
                ip
            }
            (source, destination, _) => {
                let six = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped(),
                    IpAddr::V6(address) => address,
                };
                let extension: &[u8] = if how == Ip::Six { &[] } else { &[6, 0, 1, 4, 0, 0, 0, 0] };
                let length = u16::try_from(extension.len() + tcp.len()).unwrap_or(0);
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend(length.to_be_bytes());
                ip.extend([if extension.is_empty() { 6 } else { 0 }, 64]);
                ip.extend(six(source).octets());
                ip.extend(six(destination).octets());
                ip.extend(extension);
                ip.extend(tcp);
                ip
            }
        }
    }
}

/// How the IP packet is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    /// By its addresses.
    AsIs,
    /// IPv4 with options.
    Options,
    /// IPv4 with total length 0, as a host that leaves cutting to the card captures itself.
    LengthZero,
    /// IPv6 (with mapped addresses).
    Six,
    /// IPv6 with an extension header.
    SixExtended,
}

/// What stands before the IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Ethernet, short frames padded.
    Ethernet,
    /// Ethernet with an 802.1Q tag.
    Vlan,
    /// Ethernet with two tags.
    QinQ,
    /// Linux cooked.
    CookedV1,
    /// Linux cooked, version 2.
    CookedV2,
    /// Nothing.
    Raw,
    /// The address family of a little-endian BSD.
    NullLittle,
    /// The address family of a big-endian BSD.
    NullBig,
    /// The address family in network order (OpenBSD).
    Loop,
}

impl Link {
    const fn number(self) -> u16 {
        match self {
            Self::Ethernet | Self::Vlan | Self::QinQ => 1,
            Self::CookedV1 => 113,
            Self::CookedV2 => 276,
            Self::Raw => 101,
            Self::NullLittle | Self::NullBig => 0,
            Self::Loop => 108,
        }
    }

    fn frame(self, ip: &[u8]) -> Vec<u8> {
        let is_six = ip.first().is_some_and(|first| first >> 4 == 6);
        let kind: &[u8] = if is_six { &[0x86, 0xdd] } else { &[8, 0] };
        let family: u32 = if is_six { 24 } else { 2 };
        let header = match self {
            Self::Ethernet => [&[2; 12], kind].concat(),
            Self::Vlan => [&[2; 12], &[0x81, 0, 0, 7][..], kind].concat(),
            Self::QinQ => [&[2; 12], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8][..], kind].concat(),
            Self::CookedV1 => [&[0, 4, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0], kind].concat(),
            Self::CookedV2 => [kind, &[0, 0, 0, 0, 0, 1, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
            Self::Raw => Vec::new(),
            Self::NullLittle => family.to_le_bytes().to_vec(),
            Self::NullBig | Self::Loop => family.to_be_bytes().to_vec(),
        };
        let mut frame = [&header, ip].concat();
        if matches!(self, Self::Ethernet) && frame.len() < 60 {
            frame.resize(60, 0);
        }
        frame
    }
}

/// The file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// pcap in microseconds, little-endian.
    Pcap,
    /// pcap in nanoseconds, little-endian.
    PcapNs,
    /// pcap in microseconds, big-endian.
    PcapBig,
    /// pcapng, little-endian, nanoseconds.
    PcapNg,
    /// pcapng, big-endian, a new section for every hundred packets.
    PcapNgBig,
}

/// Segments in the order they were captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// The segments.
    pub segments: Vec<Segment>,
}

impl Capture {
    /// Reads a capture of the corpus: little-endian pcap of Ethernet and IPv4, nothing cut. Own code, so that it is no
    /// mirror of what is tested.
    ///
    /// # Errors
    /// When it is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let file = std::fs::read(path).with_context(|| path.display().to_string())?;
        let mut bytes = Bytes { rest: &file };
        let unit_ns = match bytes.take(4)? {
            [0xd4, 0xc3, 0xb2, 0xa1] => 1000,
            [0x4d, 0x3c, 0xb2, 0xa1] => 1,
            _ => anyhow::bail!("not a little-endian pcap"),
        };
        bytes.take(16)?;
        ensure!(bytes.little()? == 1, "not Ethernet");
        let mut segments = Vec::new();
        while !bytes.rest.is_empty() {
            let time_ns = u64::from(bytes.little()?) * 1_000_000_000 + u64::from(bytes.little()?) * unit_ns;
            let (captured, wire) = (bytes.little()?, bytes.little()?);
            ensure!(captured == wire, "a packet is cut");
            let mut packet = Bytes { rest: bytes.take(captured as usize)? };
            packet.take(12)?;
            ensure!(packet.take(2)? == [8, 0], "not IPv4");
            let ip = packet.take(20)?;
            ensure!(ip[0] == 0x45 && ip[9] == 6, "not plain TCP over IPv4");
            let total_bytes = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
            let mut segment = match total_bytes {
                0 => packet,
                total => Bytes { rest: packet.take(total - 20)? },
            };
            let tcp = segment.take(20)?;
            segment.take(usize::from(tcp[12] >> 4) * 4 - 20)?;
            let address = |at: usize, port: usize| {
                let octets = [ip[at], ip[at + 1], ip[at + 2], ip[at + 3]];
                SocketAddr::from((octets, u16::from_be_bytes([tcp[port], tcp[port + 1]])))
            };
            segments.push(Segment {
                time_ns,
                source: address(12, 0),
                destination: address(16, 2),
                sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
                flags: tcp[13],
                payload: segment.rest.to_vec(),
            });
        }
        Ok(Self { segments })
    }

    /// Times of the first and the last packet.
    pub fn times_ns(&self) -> (u64, u64) {
        let times = || self.segments.iter().map(|segment| segment.time_ns);
        (times().min().unwrap_or(0), times().max().unwrap_or(0))
    }

    /// The plainest file of it.
    pub fn to_pcap(&self) -> Vec<u8> {
        self.write(File::PcapNs, Link::Ethernet, Ip::AsIs, usize::MAX)
    }

    /// Writes a file; of each packet at most `snap_bytes`.
    pub fn write(&self, file: File, link: Link, ip: Ip, snap_bytes: usize) -> Vec<u8> {
        let packets = self.segments.iter().map(|segment| (segment.time_ns, link.frame(&segment.ip(ip))));
        let big = matches!(file, File::PcapBig | File::PcapNgBig);
        let u16 = |n: u16| if big { n.to_be_bytes() } else { n.to_le_bytes() };
        let u32 = |n: usize| {
            let n = u32::try_from(n).unwrap_or(u32::MAX);
            if big { n.to_be_bytes() } else { n.to_le_bytes() }
        };
        let mut out = Vec::new();
        if matches!(file, File::Pcap | File::PcapNs | File::PcapBig) {
            let (magic, unit) = if file == File::PcapNs { (0xa1b2_3c4d, 1) } else { (0xa1b2_c3d4, 1000) };
            out.extend([u32(magic), u32(if big { 0x0002_0004 } else { 0x0004_0002 }), u32(0), u32(0)].concat());
            out.extend([u32(snap_bytes.min(0x4_0000)), u32(link.number().into())].concat());
            for (time_ns, packet) in packets {
                let kept = &packet[..packet.len().min(snap_bytes)];
                let (seconds, fraction) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000 / unit);
                out.extend([seconds, fraction].map(|n| u32(usize::try_from(n).unwrap_or(0))).concat());
                out.extend([u32(kept.len()), u32(packet.len())].concat());
                out.extend(kept);
            }
            return out;
        }
        let block = |kind: usize, body: &[u8]| {
            let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
            let length = u32(12 + body.len() + padding.len());
            [&u32(kind)[..], &length, body, &padding, &length].concat()
        };
        for (i, (time_ns, packet)) in packets.enumerate() {
            if i == 0 || (big && i % 100 == 0) {
                out.extend(block(0x0a0d_0d0a, &[&u32(0x1a2b_3c4d)[..], &u16(1), &u16(0), &[0xff; 8]].concat()));
                // An interface of another kind first, and a resolution of nanoseconds.
                out.extend(block(1, &[&u16(147)[..], &[0; 6]].concat()));
                let options = [&u16(9)[..], &u16(1), &[9, 0, 0, 0], &[0; 4]].concat();
                out.extend(block(1, &[&u16(link.number())[..], &[0; 2], &u32(0), &options].concat()));
            }
            let kept = &packet[..packet.len().min(snap_bytes)];
            let time = [time_ns >> 32, time_ns & 0xffff_ffff].map(|n| u32(usize::try_from(n).unwrap_or(0))).concat();
            out.extend(block(6, &[&u32(1)[..], &time, &u32(kept.len()), &u32(packet.len()), kept].concat()));
        }
        out
    }
}

struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).context("the file is cut")?;
        self.rest = rest;
        Ok(taken)
    }

    fn little(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into()?))
    }
}
