//! From a library's object to the socket below it, and from there to the kernel's structures. Everything read here is another's memory:
//! each step is checked, and what does not fit is no socket.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_user, generated};
use tracer_common::tls::{Call, Kind, Session, TlsConfig, transport};

use crate::maps::TRANSPORTS;

/// Kinds of basic input and output objects that have a socket's descriptor (`BIO_TYPE_SOCKET`, `BIO_TYPE_CONNECT`, openssl/bio.h).
const BIO_SOCKET: u32 = 0x505;
const BIO_CONNECT: u32 = 0x50c;

/// Places in the kernel's `sock_common`, the same since 4.14.
const PEER: u64 = 0;
const LOCAL: u64 = 4;
const PEER_PORT: u64 = 12;
const LOCAL_PORT: u64 = 14;
const FAMILY: u64 = 16;
const STATE: u64 = 18;
const PEER6: u64 = 56;
const LOCAL6: u64 = 72;
const IPV4: u16 = 2;
const IPV6: u16 = 10;

/// `IPPROTO_TCP`.
const TCP: u16 = 6;

/// `TCP_ESTABLISHED` and `TCP_CLOSE_WAIT`: the states of a connection that this end has not closed.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// `SOCK_STREAM`.
const STREAM: u64 = 1;

/// A number in the current process's memory.
#[inline(always)]
pub(crate) fn user<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    #[expect(unsafe_code, reason = "a helper")]
    unsafe {
        bpf_probe_read_user(address as *const T).ok()
    }
}

#[inline(always)]
fn kernel<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    #[expect(unsafe_code, reason = "a helper")]
    unsafe {
        bpf_probe_read_kernel(address as *const T).ok()
    }
}

/// The descriptor of the socket that a session reads from, where its object says so.
#[inline(always)]
pub(crate) fn of(call: &Call) -> Option<u32> {
    if call.kind == Kind::OpenSsl as u32 {
        return open_ssl(call.session);
    }
    if call.kind == Kind::Go as u32 {
        return go(call.session);
    }
    if call.kind == Kind::Rustls as u32 {
        return None;
    }
    gnu_tls(call.session)
}

/// `gnutls_session_t`: what the session's functions for reading are given, by default a descriptor. A program with functions of its own may
/// give them anything: what is no descriptor of a socket leads nowhere.
#[inline(always)]
fn gnu_tls(session: u64) -> Option<u32> {
    let tgid = crate::session::tgid();
    let word = |slot| TRANSPORTS.get(slot).map_or(0, |word| *word);
    let place = transport::place(tgid, word(transport::slot(tgid))).or_else(|| transport::place(0, word(0)))?;
    let given: u64 = user(session.wrapping_add(u64::from(place)))?;
    u32::try_from(given).ok().filter(|&descriptor| descriptor > 2)
}

/// `SSL *`: the object for reading is the third word of `struct ssl_st` up to OpenSSL 3.1 (a number, the method, then it), the eleventh of
/// `struct ssl_connection_st` from 3.2 on. What is found has to have a socket's type.
#[inline(always)]
fn open_ssl(ssl: u64) -> Option<u32> {
    if let Some(found) = bio(user(ssl.wrapping_add(0x10))?) {
        return Some(found);
    }
    bio(user(ssl.wrapping_add(0x50))?)
}

/// `BIO *`: the method comes first, from OpenSSL 3.0 on behind the library's context. The descriptor is `num`.
#[inline(always)]
fn bio(bio: u64) -> Option<u32> {
    if bio == 0 {
        return None;
    }
    if is_socket(user(bio.wrapping_add(8))?) {
        return user(bio.wrapping_add(0x38));
    }
    if !is_socket(user(bio)?) {
        return None;
    }
    // `init` is 1 and comes fourth in 1.0 and fifth in 1.1, where the fourth is a pointer.
    let place = if user::<u32>(bio.wrapping_add(24))? == 1 { 0x28 } else { 0x30 };
    user(bio.wrapping_add(place))
}

#[inline(always)]
fn is_socket(method: u64) -> bool {
    method != 0 && user::<u32>(method).is_some_and(|kind| kind == BIO_SOCKET || kind == BIO_CONNECT)
}

/// `*tls.Conn`: an interface first, whose second word is the `*net.TCPConn`; that is a pointer to a `netFD`, which begins with a `poll.FD`
/// of 56 bytes (Go 1.17 to 1.26) and goes on with family and type.
#[inline(always)]
fn go(conn: u64) -> Option<u32> {
    let tcp: u64 = user(conn.wrapping_add(8))?;
    let fd: u64 = user(tcp)?;
    let (family, kind): (u64, u64) = (user(fd.wrapping_add(56))?, user(fd.wrapping_add(64))?);
    if kind != STREAM || family != u64::from(IPV4) && family != u64::from(IPV6) {
        return None;
    }
    user(fd.wrapping_add(16))
}

/// The kernel's `struct sock` of a descriptor of the current process. A file that is a socket is told by its socket's pointing back at it.
#[inline(always)]
pub(crate) fn sock(descriptor: u32, places: &TlsConfig) -> Option<u64> {
    // SAFETY: a helper without arguments.
    #[expect(unsafe_code, reason = "a helper")]
    let task = unsafe { generated::bpf_get_current_task() };
    let at = |base: u64, place: u32| base.wrapping_add(u64::from(place));
    let files: u64 = kernel(at(task, places.task_files))?;
    let table: u64 = kernel(at(files, places.files_table))?;
    if descriptor >= kernel::<u32>(at(table, places.table_max))? {
        return None;
    }
    let array: u64 = kernel(at(table, places.table_array))?;
    let file: u64 = kernel(array.wrapping_add(u64::from(descriptor) * 8))?;
    if file == 0 {
        return None;
    }
    let socket: u64 = kernel(at(file, places.file_private))?;
    if socket == 0 || kernel::<u64>(at(socket, places.socket_file))? != file {
        return None;
    }
    kernel(at(socket, places.socket_sock))
}

/// Local and peer port of a connected TCP socket.
#[inline(always)]
pub(crate) fn tcp_ports(sock: u64, places: &TlsConfig) -> Option<(u16, u16)> {
    if kernel::<u16>(sock.wrapping_add(u64::from(places.sock_protocol)))? != TCP {
        return None;
    }
    let (family, peer, local) = (kernel::<u16>(sock + FAMILY)?, kernel::<u16>(sock + PEER_PORT)?, kernel(sock + LOCAL_PORT)?);
    ((family == IPV4 || family == IPV6) && peer != 0 && local != 0).then_some((local, u16::from_be(peer)))
}

/// Local and peer port of a socket that is closed: it has given back its place in the kernel's tables by then.
#[inline(always)]
pub(crate) fn ports_that_were(sock: u64, places: &TlsConfig) -> Option<(u16, u16)> {
    let local = kernel::<u16>(sock.wrapping_add(u64::from(places.sock_source_port)))?;
    Some((u16::from_be(local), u16::from_be(kernel(sock.wrapping_add(PEER_PORT))?)))
}

/// Whether a socket is still that of the connection between these ports, and was not closed. The memory of one that was may be another's.
#[inline(always)]
pub(crate) fn is_connected(sock: u64, (local_port, peer_port): (u16, u16), places: &TlsConfig) -> bool {
    let is_open = kernel::<u8>(sock.wrapping_add(STATE)).is_some_and(|state| state == ESTABLISHED || state == CLOSE_WAIT);
    is_open && tcp_ports(sock, places).is_some_and(|(local, peer)| local == local_port && peer == peer_port)
}

/// Writes the addresses of a connected socket into the session. False when it has none.
#[inline(always)]
pub(crate) fn addresses(sock: u64, session: &mut Session) -> bool {
    let (Some(family), Some(peer_port), Some(local_port)) =
        (kernel::<u16>(sock + FAMILY), kernel::<u16>(sock + PEER_PORT), kernel::<u16>(sock + LOCAL_PORT))
    else {
        return false;
    };
    if peer_port == 0 || local_port == 0 {
        return false;
    }
    if family == IPV4 {
        let (Some(peer), Some(local)) = (kernel::<[u8; 4]>(sock + PEER), kernel::<[u8; 4]>(sock + LOCAL)) else { return false };
        session.peer = mapped(peer);
        session.local = mapped(local);
    } else if family == IPV6 {
        let (Some(peer), Some(local)) = (kernel(sock + PEER6), kernel(sock + LOCAL6)) else { return false };
        session.peer = peer;
        session.local = local;
    } else {
        return false;
    }
    session.peer_port = u16::from_be(peer_port);
    session.local_port = local_port;
    true
}

/// An IPv4 address in IPv6's form.
#[inline(always)]
const fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
