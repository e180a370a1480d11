//! Tries the source on a connection of its own over loopback: what is known of a kernel's structures can be wrong, above all where the kernel
//! does not describe them, and wrong bytes must not be taken for right ones.

#![forbid(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tracer_common::call::CallHeader;
use tracer_common::config::{Config, PortRule};
use tracer_common::event::{Kind, direction};

use super::SocketSource;
use crate::source::ebpf::clock;
use crate::source::ebpf::load::chain;

/// Bytes of the process's memory that are sent, in pieces, and of a file behind them.
const MEMORY_BYTES: usize = 20_000;
const FILE_BYTES: usize = 9_000;

/// How long the events may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What was wrong with what was seen; None where nothing was.
#[derive(Debug)]
pub(super) struct Seen {
    /// Bytes of the process's memory, sent and received.
    pub(super) memory: Option<String>,
    /// Bytes of a file.
    pub(super) pages: Option<String>,
}

/// Sends and looks.
///
/// # Errors
/// When there is no loopback to send over, or the kernel refuses a setting.
pub(super) fn run(source: &mut SocketSource) -> io::Result<Seen> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    with_forced(source, port, |source| exchange(&listener).map(|exchange| look(source, &exchange)))
}

/// Does something while what goes to and from a port is taken for Kafka.
pub(super) fn with_forced<T>(source: &mut SocketSource, port: u16, act: impl FnOnce(&mut SocketSource) -> io::Result<T>) -> io::Result<T> {
    let port = u32::from(port);
    let before = source.config;
    let refused = |error: aya::maps::MapError| io::Error::other(chain(&error));
    source.ports.insert(port, PortRule::Force as u32, 0).map_err(refused)?;
    source.settings.set(0, Config { has_port_rules: 1, ..before }.to_words()).map_err(io::Error::other)?;
    let done = act(source);
    source.ports.remove(&port).map_err(refused)?;
    source.settings.set(0, before.to_words()).map_err(io::Error::other)?;
    done
}

/// What was sent, and between whom.
struct Exchange {
    client: SocketAddr,
    server: SocketAddr,
    bytes: Vec<u8>,
}

/// Sends from the client to the server in several ways, and closes.
fn exchange(listener: &TcpListener) -> io::Result<Exchange> {
    let bytes: Vec<u8> = (0..MEMORY_BYTES + FILE_BYTES).map(|at| u8::try_from(at * 31 % 251).unwrap_or_default()).collect();
    let (memory, file) = bytes.split_at(MEMORY_BYTES);
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, peer) = listener.accept()?;
    if peer != client.local_addr()? {
        return Err(io::Error::other("somebody else connected"));
    }
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
    }
    let file = file_of(file)?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| -> io::Result<()> {
            // In segments, one of them empty; then in one piece; then from a file.
            let (pieces, rest) = memory.split_at(MEMORY_BYTES / 2);
            let (first, others) = pieces.split_at(5);
            let (second, third) = others.split_at(4_321);
            let sent = client.write_vectored(&[IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(second), IoSlice::new(third)])?;
            client.write_all(pieces.get(sent..).unwrap_or_default())?;
            client.write_all(rest)?;
            let mut offset = 0;
            while usize::try_from(offset).is_ok_and(|offset| offset < FILE_BYTES) {
                if rustix::fs::sendfile(&client, &file, Some(&mut offset), FILE_BYTES)? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
            Ok(())
        });
        let mut got = vec![0; bytes.len()];
        // As clients read: the size, then the rest; into segments too.
        let (size, rest) = got.split_at_mut(4);
        server.read_exact(size)?;
        let (one, other) = rest.split_at_mut(777);
        let len = server.read_vectored(&mut [IoSliceMut::new(one), IoSliceMut::new(&mut []), IoSliceMut::new(other)])?;
        server.read_exact(got.get_mut(4 + len..).unwrap_or_default())?;
        sending.join().unwrap_or_else(|_| Err(io::Error::other("sending failed")))?;
        if got == bytes { Ok(()) } else { Err(io::Error::other("the connection itself is broken")) }
    })?;
    Ok(Exchange { client: client.local_addr()?, server: server.local_addr()?, bytes })
}

/// A file in memory with these bytes.
fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("kafka-tracer-trial", rustix::fs::MemfdFlags::CLOEXEC)?;
    std::fs::File::from(file.try_clone()?).write_all(bytes)?;
    Ok(file)
}

/// One direction of one end.
#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    is_closed: bool,
}

impl Stream {
    fn take(&mut self, header: &CallHeader, bytes: &[u8]) {
        let at = usize::try_from(header.position).unwrap_or(usize::MAX);
        let len = usize::try_from(header.len.saturating_add(header.missing)).unwrap_or(usize::MAX);
        // Nothing but a wrong layout makes it longer.
        let Some(end) = at.checked_add(len).filter(|end| *end <= 2 * (MEMORY_BYTES + FILE_BYTES)) else { return };
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn fault(&self, what: &str, wanted: &[u8], range: std::ops::Range<usize>) -> Option<String> {
        let (seen, wanted) = (self.bytes.get(range.clone()), wanted.get(range));
        if seen == wanted {
            return None;
        }
        let (seen, wanted) = (seen.unwrap_or_default(), wanted.unwrap_or_default());
        let same = seen.iter().zip(wanted).take_while(|(seen, wanted)| seen == wanted).count();
        Some(format!("{what}: {} of {} bytes, the first {same} right", self.bytes.len(), wanted.len()))
    }
}

/// Looks what the source saw. What it saw of others is kept.
fn look(source: &mut SocketSource, exchange: &Exchange) -> Seen {
    let (mut sent, mut received) = (Stream::default(), Stream::default());
    let end = Instant::now() + DEADLINE;
    while !(sent.is_closed && received.is_closed) && Instant::now() < end {
        let early = &mut source.early;
        source.reader.drain(clock::monotonic_ns(), &mut |event| {
            let Some((header, rest)) = CallHeader::parse(event) else { return 0 };
            let stream = if is_of(&header, exchange.client, exchange.server) {
                Some((&mut sent, direction::SENT))
            } else if is_of(&header, exchange.server, exchange.client) {
                Some((&mut received, direction::RECEIVED))
            } else {
                early.push(event.to_vec());
                None
            };
            if let Some((stream, way)) = stream
                && header.direction == way
            {
                match header.kind() {
                    Some(Kind::Data) => {
                        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
                        stream.take(&header, rest.get(..len).unwrap_or_default());
                    }
                    Some(Kind::Close) => stream.is_closed = true,
                    Some(Kind::Open | Kind::Connect) | None => {}
                }
            }
            0
        });
        std::thread::sleep(Duration::from_millis(1));
    }
    let all = 0..exchange.bytes.len();
    Seen {
        memory: sent.fault("sent", &exchange.bytes, 0..MEMORY_BYTES).or_else(|| received.fault("received", &exchange.bytes, all)),
        pages: sent.fault("sent from a file", &exchange.bytes, MEMORY_BYTES..exchange.bytes.len()),
    }
}

/// Whether an event is of this end of a connection.
pub(super) fn is_of(header: &CallHeader, local: SocketAddr, peer: SocketAddr) -> bool {
    let mapped = |address: SocketAddr| match address {
        SocketAddr::V4(address) => address.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(address) => address.ip().octets(),
    };
    (header.local_port, header.peer_port) == (local.port(), peer.port()) && (header.local, header.peer) == (mapped(local), mapped(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exchange_itself_works() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let exchange = exchange(&listener).unwrap();
        assert_eq!(exchange.bytes.len(), MEMORY_BYTES + FILE_BYTES);
        assert_eq!(exchange.server, listener.local_addr().unwrap());
    }

    #[test]
    fn a_stream_that_differs_is_told_with_where() {
        let wanted: Vec<u8> = (0..100).collect();
        let mut stream = Stream::default();
        let header = |position, len, missing| CallHeader { position, len, missing, ..CallHeader::default() };
        stream.take(&header(0, 60, 0), &wanted[..60]);
        stream.take(&header(60, 0, 40), b"");
        assert_eq!(stream.fault("sent", &wanted, 0..60), None);
        assert_eq!(stream.fault("sent", &wanted, 60..100).unwrap(), "sent: 100 of 40 bytes, the first 0 right");
        stream.take(&header(60, 40, 0), &wanted[60..]);
        assert_eq!(stream.fault("sent", &wanted, 0..100), None);
        stream.take(&header(u32::MAX, u32::MAX, 7), b"x");
        assert_eq!(stream.bytes.len(), 100, "a position that cannot be is passed over");
    }
}
