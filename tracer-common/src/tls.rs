//! What the kernel keeps of TLS sessions, and of calls into the libraries that make them.

/// A session's place: the library's object for it, in a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// Address of the library's object: `SSL *`, `gnutls_session_t`, Go's `*tls.Conn`, rustls' `CommonState`.
    pub address: u64,
    /// The process, in the initial pid namespace.
    pub tgid: u32,
    /// Always 0; keeps the size a multiple of eight.
    pub reserved: u32,
}
const _: () = assert!(size_of::<SessionKey>() == 16);

/// Bits of [`Session::flags`].
pub mod flag {
    /// The tracer was there when the session began.
    pub const BEGUN: u32 = 1;
    /// This end connected: known only together with [`BEGUN`].
    pub const INITIATOR: u32 = 2;
    /// The addresses are known.
    pub const TIED: u32 = 4;
    /// Something was said about the session: user space knows it.
    pub const TOLD: u32 = 8;
    /// The socket was found by what the session's threads do, not by its object.
    pub const BY_THREAD: u32 = 16;
    /// What is written was written before: the library sends what it kept back.
    pub const FLUSHING: u32 = 32;
    /// The library does not say that it ends: it does when its socket is closed.
    pub const ENDS_WITH_SOCKET: u32 = 64;
}

/// A session.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// What user space calls it: like no other session, and with its highest bit set.
    pub id: u64,
    /// The kernel's `struct sock` below it; 0 while unknown.
    pub socket: u64,
    /// The socket's address, network byte order; IPv4 as `::ffff:a.b.c.d`.
    pub local: [u8; 16],
    /// The other end's address, likewise.
    pub peer: [u8; 16],
    /// The socket's port.
    pub local_port: u16,
    /// The other end's port.
    pub peer_port: u16,
    /// The socket's descriptor plus one; 0 while unknown.
    pub descriptor: u32,
    /// Plaintext bytes that were written.
    pub sent: u32,
    /// Plaintext bytes that were read.
    pub received: u32,
    /// A [`crate::socket::State`].
    pub state: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Calls that were judged.
    pub judged: u32,
    /// How often what threads did spoke against [`Self::witnessed`].
    pub conflicts: u32,
    /// The socket that threads read and wrote with the session, and with nothing else; 0 while none did, and once it is tied. The ports above
    /// are its.
    pub witnessed: u64,
    /// How often it was read from.
    pub reads_witnessed: u32,
    /// How often it was written to.
    pub writes_witnessed: u32,
    /// When its first call was seen: nanoseconds of the kernel's boot clock. Only with [`flag::ENDS_WITH_SOCKET`].
    pub first_ns: u64,
    /// When its last call began, likewise.
    pub last_ns: u64,
    /// By [`crate::event::direction`].
    pub halves: [Half; 2],
}
const _: () = assert!(size_of::<Session>() == 192);

/// First bytes of one direction, gathered over calls that are shorter than a request's head, and over the pieces of a call ([`Told::Pieces`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Half {
    /// Position after the last call that was judged.
    pub next: u32,
    /// How many bytes are gathered of the calls before the one that is judged, and of it while it is.
    pub len: u32,
    /// The bytes; only the first 14 are ever used. The verifier wants room for what could follow the fifteenth.
    pub bytes: [u8; 32],
}
const _: () = assert!(size_of::<Half>() == 40);

/// A process that has sessions whose objects do not say their sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// The first socket on a port that is known for Kafka that a thread of it moved bytes on: the kernel's `struct sock`.
    pub socket: u64,
    /// 1 once there was another one.
    pub has_several: u32,
    /// 1 once what threads did spoke for two sockets of one session: threads move bytes for one another.
    pub is_mixed: u32,
}
const _: () = assert!(size_of::<Watched>() == 16);

/// Sockets that a thread moved bytes on, of those on a port that is known for Kafka.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The first one: the kernel's `struct sock`.
    pub socket: u64,
    /// Bytes on it.
    pub bytes: u32,
    /// How many sockets: 0, 1, or 2 for more than one.
    pub sockets: u32,
}
const _: () = assert!(size_of::<Moved>() == 16);

/// What a thread did between its calls into TLS libraries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// What it received since its last reading call returned.
    pub received: Moved,
    /// What it sent since its last writing call began.
    pub sent: Moved,
    /// The session of that writing call; 0 when another call followed it.
    pub writer: u64,
    /// A session that wrote before it, of which nothing was sent until then; 0 when there is none.
    pub unsent: u64,
    /// Plaintext bytes of the writing call.
    pub wrote: u32,
    /// Bits of [`flag`] for the next session that is new: its hands were shaken, at an address that it has left since. 0 when there is none.
    pub begun: u32,
}
const _: () = assert!(size_of::<Thread>() == 56);

/// A connection of a socket: another one at the same address has other ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnedKey {
    /// The kernel's `struct sock`.
    pub socket: u64,
    /// The socket's port.
    pub local_port: u16,
    /// The other end's port.
    pub peer_port: u16,
    /// Always 0; keeps the size a multiple of eight.
    pub reserved: u32,
}
const _: () = assert!(size_of::<OwnedKey>() == 16);

/// Which call a thread is in. A session over another session's bytes makes calls within calls, told apart by their stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CallKey {
    /// Process and thread; of Go, process and depth in the goroutine's stack.
    pub thread: u64,
    /// Where the caller's stack ends; of Go, whose stacks move, the goroutine's address.
    pub stack: u64,
}
const _: () = assert!(size_of::<CallKey>() == 16);

/// How a call tells how many bytes it moved.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It returns an `int`.
    Int = 0,
    /// It returns a `ssize_t`.
    Long = 1,
    /// It returns 1 and writes a `size_t` where its fourth argument points to.
    Out = 2,
    /// It moves nothing.
    Nothing = 3,
    /// It sends what was given before.
    Flush = 4,
    /// It returns a `usize`; what it is given lies in pieces, each told by two words: where it is, and how long.
    Pieces = 5,
}

/// Bytes of the two words that tell of a piece ([`Told::Pieces`]).
pub const PIECE_BYTES: u64 = 16;

/// Where a session's object has its socket.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In the basic input and output objects of OpenSSL.
    OpenSsl = 0,
    /// Where the library's own function looks for it ([`transport`]).
    GnuTls = 1,
    /// In the descriptor of Go's `net.TCPConn`.
    Go = 2,
    /// Nowhere: a session of rustls moves no bytes on sockets by itself.
    Rustls = 3,
}

/// Where the sessions of a process that uses `GnuTLS` have their transport: the descriptor of their socket, if they have one.
///
/// What user space found in the library's code is kept in a table of words, each with the process beside the place.
pub mod transport {
    /// Words in the table; that of number 0 is for the processes without one of their own.
    pub const SLOTS: u32 = 4096;

    /// The number of a process's word.
    #[must_use]
    pub const fn slot(tgid: u32) -> u32 {
        tgid % SLOTS
    }

    /// The word: `place` is in bytes from where the session begins, and not 0.
    #[must_use]
    pub const fn word(tgid: u32, place: u32) -> u64 {
        (tgid as u64) << 32 | place as u64
    }

    /// The place that a word tells for a process; None if the word is another's.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub const fn place(tgid: u32, word: u64) -> Option<u32> {
        let place = word as u32;
        if place != 0 && word >> 32 == tgid as u64 { Some(place) } else { None }
    }
}

/// A call that has not returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Address of the library's object.
    pub session: u64,
    /// Where the plaintext is, or the list of its pieces ([`Told::Pieces`]).
    pub buffer: u64,
    /// How many bytes it has, or has room for.
    pub bytes: u64,
    /// Where the number of moved bytes will be written ([`Told::Out`]).
    pub out: u64,
    /// When the call began: nanoseconds of the kernel's boot clock.
    pub entry_ns: u64,
    /// A value of [`crate::event::direction`].
    pub direction: u32,
    /// A [`Told`].
    pub told: u32,
    /// A [`Kind`].
    pub kind: u32,
    /// 1 once its return was seen.
    pub has_returned: u32,
}
const _: () = assert!(size_of::<Call>() == 56);

/// What is left to copy of a call that moved more than one program copies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    /// Header of the next event.
    pub header: crate::event::EventHeader,
    /// Where its bytes are.
    pub buffer: u64,
    /// How many there are.
    pub left: u32,
    /// Programs that took part so far.
    pub rounds: u32,
    /// What tells of the next piece ([`Told::Pieces`]).
    pub piece: u64,
    /// Bytes in the pieces from there on.
    pub behind: u32,
    /// Always 0; keeps the size a multiple of eight.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Walk>() == 112);

/// What the programs read in entry 0 of the `TLS_CONFIG` map: places in the kernel's structures, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// `task_struct.files`.
    pub task_files: u32,
    /// `files_struct.fdt`.
    pub files_table: u32,
    /// `fdtable.fd`.
    pub table_array: u32,
    /// `fdtable.max_fds`.
    pub table_max: u32,
    /// `file.private_data`.
    pub file_private: u32,
    /// `socket.file`.
    pub socket_file: u32,
    /// `socket.sk`.
    pub socket_sock: u32,
    /// 1 when the places above are known: else user space looks for the addresses.
    pub has_layout: u32,
    /// `sock.sk_protocol`; 0 when it is not known: then no socket is found by what threads do.
    pub sock_protocol: u32,
    /// `inet_sock.inet_sport`; 0 when it is not known: then no session ends with its socket.
    pub sock_source_port: u32,
}
const _: () = assert!(size_of::<TlsConfig>() == 40);

impl TlsConfig {
    /// The value as the map holds it.
    #[must_use]
    pub const fn to_words(self) -> [u32; 10] {
        [
            self.task_files,
            self.files_table,
            self.table_array,
            self.table_max,
            self.file_private,
            self.socket_file,
            self.socket_sock,
            self.has_layout,
            self.sock_protocol,
            self.sock_source_port,
        ]
    }
}
