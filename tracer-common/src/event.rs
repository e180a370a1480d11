//! Events of the ring: a header, then what its kind says.

/// What an event is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Payload: `len` bytes follow the header.
    Data = 1,
    /// The socket became a candidate: [`Opening`] follows. Comes before its first data, more than once in a rare race.
    Open = 2,
    /// FIN or RST, or the end of a TLS session. Nothing follows.
    Close = 3,
    /// A process connects to a port that is known for Kafka: `pid`, `peer` and `peer_port`. Nothing follows.
    Connect = 4,
}

impl Kind {
    /// The kind that a number stands for.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Data),
            2 => Some(Self::Open),
            3 => Some(Self::Close),
            4 => Some(Self::Connect),
            _ => None,
        }
    }
}

/// Values of [`EventHeader::direction`], seen from the socket.
pub mod direction {
    /// From the local to the peer address.
    pub const SENT: u8 = 0;
    /// From the peer to the local address.
    pub const RECEIVED: u8 = 1;
}

/// Bits of [`EventHeader::flags`].
pub mod flag {
    /// `cookie` is the listener's: the segment came before the connection's own socket existed.
    pub const LISTENER: u8 = 1;
    /// The end was a reset.
    pub const RESET: u8 = 2;
    /// The segment overtook the first of its connection, which will tell whether this one is wanted.
    pub const OVERTOOK: u8 = 4;
    /// The addresses are not known: of a TLS session, whose socket's descriptor plus one is in `origin`, or 0 when that is not known either.
    pub const UNTIED: u8 = 8;
}

/// Bits of [`Opening::flags`].
pub mod opening {
    /// The socket connected (and the tracer saw it): else it was accepted, or is older than the tracer.
    pub const INITIATOR: u32 = 1;
    /// [`super::Opening::sent_first`] is known.
    pub const SENT_FIRST: u32 = 2;
    /// [`super::Opening::received_first`] is known.
    pub const RECEIVED_FIRST: u32 = 4;
}

/// What every event starts with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventHeader {
    /// When it was seen: nanoseconds of the kernel's boot clock.
    pub boot_ns: u64,
    /// Cookie of the socket; of a TLS session, its id.
    pub cookie: u64,
    /// Cookie of the listener that accepted the socket; 0 when unknown.
    pub origin: u64,
    /// The socket's address, network byte order; IPv4 as `::ffff:a.b.c.d`.
    pub local: [u8; 16],
    /// The other end's address, likewise.
    pub peer: [u8; 16],
    /// The socket's port.
    pub local_port: u16,
    /// The other end's port.
    pub peer_port: u16,
    /// Process that owns the socket, in the initial pid namespace; 0 while unknown.
    pub pid: u32,
    /// TCP sequence number of the first byte; of a close, of the byte after the last.
    pub position: u32,
    /// Payload bytes that follow.
    pub len: u32,
    /// Payload bytes of this piece that could not be read and do not follow.
    pub missing: u32,
    /// A [`Kind`].
    pub kind: u8,
    /// A value of [`direction`].
    pub direction: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// The [`crate::socket::State`] that the socket had.
    pub state: u8,
}

/// Bytes of an [`EventHeader`].
pub const HEADER_BYTES: usize = 80;
const _: () = assert!(size_of::<EventHeader>() == HEADER_BYTES);

/// Bytes of one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// TCP sequence number of `bytes[0]`.
    pub position: u32,
    /// How many bytes there are, at most 14.
    pub len: u32,
    /// The bytes.
    pub bytes: [u8; 16],
}
const _: () = assert!(size_of::<Head>() == 24);

/// What follows the header of an [`Kind::Open`] event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Bits of [`opening`].
    pub flags: u32,
    /// TCP sequence number of the first byte that ever left.
    pub sent_first: u32,
    /// TCP sequence number of the first byte that ever came.
    pub received_first: u32,
    /// Always 0; keeps the size a multiple of eight.
    pub reserved: u32,
    /// Bytes that passed in the header's direction before it became a candidate, in shorter segments than could be judged.
    pub head: Head,
}

/// Bytes of an [`Opening`].
pub const OPENING_BYTES: usize = 40;
const _: () = assert!(size_of::<Opening>() == OPENING_BYTES);

/// Event of kind [`Kind::Data`] with room for `N` payload bytes.
#[repr(C)]
pub struct DataEvent<const N: usize> {
    /// The header.
    pub header: EventHeader,
    /// The payload; only [`EventHeader::len`] bytes are meant.
    pub data: [u8; N],
}
const _: () = assert!(size_of::<DataEvent<256>>() == HEADER_BYTES + 256);

/// Event of kind [`Kind::Open`].
#[repr(C)]
pub struct OpenEvent {
    /// The header.
    pub header: EventHeader,
    /// What was known of the socket.
    pub opening: Opening,
}
const _: () = assert!(size_of::<OpenEvent>() == HEADER_BYTES + OPENING_BYTES);

impl EventHeader {
    /// Reads a header from the start of an event and gives what follows it. None when the event is too short to be one.
    #[must_use]
    pub fn parse(event: &[u8]) -> Option<(Self, &[u8])> {
        let mut bytes = Take(event);
        let header = Self {
            boot_ns: u64::from_ne_bytes(bytes.array()?),
            cookie: u64::from_ne_bytes(bytes.array()?),
            origin: u64::from_ne_bytes(bytes.array()?),
            local: bytes.array()?,
            peer: bytes.array()?,
            local_port: u16::from_ne_bytes(bytes.array()?),
            peer_port: u16::from_ne_bytes(bytes.array()?),
            pid: bytes.u32()?,
            position: bytes.u32()?,
            len: bytes.u32()?,
            missing: bytes.u32()?,
            kind: bytes.u8()?,
            direction: bytes.u8()?,
            flags: bytes.u8()?,
            state: bytes.u8()?,
        };
        Some((header, bytes.0))
    }

    /// What the event is; None for a number that no program of this version writes.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_number(self.kind)
    }
}

impl Opening {
    /// Reads what follows the header of an open event. None when it is too short.
    #[must_use]
    pub fn parse(rest: &[u8]) -> Option<Self> {
        let mut bytes = Take(rest);
        Some(Self {
            flags: bytes.u32()?,
            sent_first: bytes.u32()?,
            received_first: bytes.u32()?,
            reserved: bytes.u32()?,
            head: bytes.head()?,
        })
    }
}

impl Head {
    /// The gathered bytes.
    #[must_use]
    pub fn gathered(&self) -> &[u8] {
        self.bytes.get(..self.len as usize).unwrap_or_default()
    }
}

/// Takes fixed-width values off the front of a slice.
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl Take<'_> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn head(&mut self) -> Option<Head> {
        Some(Head { position: self.u32()?, len: self.u32()?, bytes: self.array()? })
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn the_reader_takes_each_field_from_where_the_program_puts_it() {
        let mut event = [0u8; HEADER_BYTES + 2];
        let mut put = |offset: usize, bytes: &[u8]| event[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(offset_of!(EventHeader, boot_ns), &1u64.to_ne_bytes());
        put(offset_of!(EventHeader, cookie), &2u64.to_ne_bytes());
        put(offset_of!(EventHeader, origin), &3u64.to_ne_bytes());
        put(offset_of!(EventHeader, local), &[4; 16]);
        put(offset_of!(EventHeader, peer), &[5; 16]);
        put(offset_of!(EventHeader, local_port), &6u16.to_ne_bytes());
        put(offset_of!(EventHeader, peer_port), &7u16.to_ne_bytes());
        put(offset_of!(EventHeader, pid), &8u32.to_ne_bytes());
        put(offset_of!(EventHeader, position), &9u32.to_ne_bytes());
        put(offset_of!(EventHeader, len), &10u32.to_ne_bytes());
        put(offset_of!(EventHeader, missing), &11u32.to_ne_bytes());
        put(offset_of!(EventHeader, kind), &[1]);
        put(offset_of!(EventHeader, direction), &[1]);
        put(offset_of!(EventHeader, flags), &[2]);
        put(offset_of!(EventHeader, state), &[3]);
        put(HEADER_BYTES, b"ab");
        let wanted = EventHeader {
            boot_ns: 1,
            cookie: 2,
            origin: 3,
            local: [4; 16],
            peer: [5; 16],
            local_port: 6,
            peer_port: 7,
            pid: 8,
            position: 9,
            len: 10,
            missing: 11,
            kind: 1,
            direction: direction::RECEIVED,
            flags: flag::RESET,
            state: 3,
        };
        assert_eq!(EventHeader::parse(&event), Some((wanted, &b"ab"[..])));
        assert_eq!(wanted.kind(), Some(Kind::Data));
        for short in 0..HEADER_BYTES {
            assert_eq!(EventHeader::parse(&event[..short]), None);
        }
    }

    #[test]
    fn an_opening_is_read_from_where_the_program_puts_it() {
        let mut rest = [0u8; OPENING_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| rest[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(offset_of!(Opening, flags), &opening::INITIATOR.to_ne_bytes());
        put(offset_of!(Opening, sent_first), &20u32.to_ne_bytes());
        put(offset_of!(Opening, received_first), &30u32.to_ne_bytes());
        put(offset_of!(Opening, head), &21u32.to_ne_bytes());
        put(offset_of!(Opening, head) + offset_of!(Head, len), &3u32.to_ne_bytes());
        put(offset_of!(Opening, head) + offset_of!(Head, bytes), b"abc");
        let opening = Opening::parse(&rest).unwrap();
        assert_eq!((opening.flags, opening.sent_first, opening.received_first), (opening::INITIATOR, 20, 30));
        assert_eq!((opening.head.position, opening.head.gathered()), (21, &b"abc"[..]));
        assert_eq!(Head { len: 17, ..opening.head }.gathered(), b"", "a length beyond the array holds nothing");
        assert_eq!(Opening::parse(&rest[1..]), None);
    }
}
