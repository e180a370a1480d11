//! What the kernel keeps for a socket, in the socket's own storage: it lives and dies with it.

/// Whether a socket's bytes are copied.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The first bytes of its segments are judged.
    Unknown = 0,
    /// Could be Kafka: everything is copied, and each packet looks for user space's verdict.
    Candidate = 1,
    /// Confirmed: everything is copied.
    Capture = 2,
    /// Not Kafka, or not wanted: nothing is copied.
    Ignored = 3,
}

/// Bits of [`Socket::flags`].
pub mod flag {
    /// The socket connected, and the tracer was there when it did.
    pub const INITIATOR: u32 = 1;
    /// Segments that looked like Kafka arrived at this listener before their sockets existed: its new sockets are candidates from their
    /// first byte.
    pub const EXPECTED: u32 = 2;
    /// The port rules were looked up.
    pub const PORTS_CHECKED: u32 = 4;
}

/// First bytes of one direction, gathered over segments that are shorter than a request's head. Only the program of that direction
/// writes it, since both directions are handled at the same time on two CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Half {
    /// How many CPUs are at this half: with more than one, the later leaves it alone.
    pub busy: u64,
    /// Position after the last gathered byte.
    pub next: u32,
    /// How many bytes are gathered.
    pub len: u32,
    /// Segments judged so far.
    pub judged: u32,
    /// 1 once a whole head was judged.
    pub is_judged: u32,
    /// The bytes; only the first 14 are ever used. The verifier wants room for what could follow the fifteenth.
    pub bytes: [u8; 32],
}
const _: () = assert!(size_of::<Half>() == 56);

/// A socket's storage. A listener's is copied into each socket that it accepts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Cookie of the listener that accepted the socket; 0 when it connected, or when it is older than the tracer.
    pub origin: u64,
    /// Process that owns it, in the initial pid namespace; 0 while unknown. Written by the connect and getpeername programs.
    pub tgid: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// The configuration's epoch when a verdict was last looked for.
    pub epoch: u32,
    /// A [`State`].
    pub state: u32,
    /// Bytes that left.
    pub sent: Half,
    /// Bytes that came.
    pub received: Half,
}
const _: () = assert!(size_of::<Socket>() == 136);
