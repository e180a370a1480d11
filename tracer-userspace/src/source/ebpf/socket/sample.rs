//! Where a socket counts what was taken from it, on a kernel that does not describe its types: the place is another in each version and
//! configuration (1308 bytes into `struct tcp_sock` in one 4.14, 1520 in one 6.1). A socket of our own is looked at each time that bytes were
//! taken from it; the word that grew by as many each time is the one.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tracer_common::call::{CallHeader, Layout, SAMPLE_BYTES};
use tracer_common::event::{Kind, direction};

use super::{SocketSource, trial};
use crate::source::ebpf::clock;

/// Bytes that are taken one after another, and those that stay.
const TAKEN: [u16; 6] = [300, 5, 77, 1000, 11, 640];
const LEFT: u16 = 321;

/// How long the bytes and the events may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// A place in `struct tcp_sock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) copied_seq: u64,
    pub(super) rcv_nxt: u64,
}

impl Places {
    pub(super) const fn put_into(self, layout: &mut Layout) {
        layout.copied_seq = self.copied_seq;
        layout.rcv_nxt = self.rcv_nxt;
    }
}

/// Looks for the places. None when no word, or more than one, did what it should.
///
/// # Errors
/// When there is no loopback to send over, or the kernel refuses a setting.
pub(super) fn find(source: &mut SocketSource, layout: Layout) -> io::Result<Option<Places>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let set = |source: &mut SocketSource, layout| source.set_layout(layout).map_err(io::Error::other);
    set(source, Layout { sampled_port: u64::from(port), ..layout })?;
    let samples = trial::with_forced(source, port, |source| {
        let (client, server) = exchange(&listener)?;
        Ok(samples(source, client, server))
    });
    set(source, layout)?;
    Ok(search(&samples?, TAKEN, LEFT))
}

/// Sends, and takes piece by piece once all is there.
fn exchange(listener: &TcpListener) -> io::Result<(SocketAddr, SocketAddr)> {
    let bytes = vec![0; TAKEN.into_iter().chain([LEFT]).map(usize::from).sum()];
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, peer) = listener.accept()?;
    if peer != client.local_addr()? {
        return Err(io::Error::other("somebody else connected"));
    }
    server.set_read_timeout(Some(DEADLINE))?;
    client.write_all(&bytes)?;
    let end = Instant::now() + DEADLINE;
    while server.peek(&mut bytes.clone())? < bytes.len() {
        if Instant::now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    for len in TAKEN {
        server.read_exact(&mut vec![0; usize::from(len)])?;
    }
    Ok((client.local_addr()?, server.local_addr()?))
}

/// What the server's socket was after each. What the source saw of others is kept.
fn samples(source: &mut SocketSource, client: SocketAddr, server: SocketAddr) -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    let end = Instant::now() + DEADLINE;
    while samples.len() < TAKEN.len() && Instant::now() < end {
        let early = &mut source.early;
        source.reader.drain(clock::monotonic_ns(), &mut |event| {
            match CallHeader::parse(event) {
                Some((header, rest)) if trial::is_of(&header, server, client) => {
                    if header.kind() == Some(Kind::Data) && header.direction == direction::RECEIVED && header.len == SAMPLE_BYTES {
                        samples.push(rest.to_vec());
                    }
                }
                Some((header, _)) if trial::is_of(&header, client, server) => {}
                _ => early.push(event.to_vec()),
            }
            0
        });
        std::thread::sleep(Duration::from_millis(1));
    }
    samples
}

/// The word that grew by what was taken, behind one that says how many bytes had come (`rcv_nxt`: the two are neighbours in all kernels up to
/// 6.7, include/linux/tcp.h).
fn search(samples: &[Vec<u8>], taken: [u16; 6], left: u16) -> Option<Places> {
    if samples.len() != taken.len() {
        return None;
    }
    let is_counted = |at: usize| {
        let mut unread: u32 = taken.into_iter().chain([left]).map(u32::from).sum();
        samples.iter().zip(taken).all(|(sample, taken)| {
            unread -= u32::from(taken);
            let word = |at: usize| sample.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_ne_bytes(*bytes));
            word(at).zip(word(at + 4)).is_some_and(|(received, copied)| received.wrapping_sub(copied) == unread)
        })
    };
    let mut found = (0..usize::try_from(SAMPLE_BYTES).unwrap_or_default()).step_by(4).filter(|at| is_counted(*at));
    let rcv_nxt = u64::try_from(found.next()?).ok()?;
    found.next().is_none().then_some(Places { copied_seq: rcv_nxt + 4, rcv_nxt })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that counts from here on, at this place.
    fn samples_at(places: &[usize], first: u32) -> Vec<Vec<u8>> {
        let mut copied = first;
        let all: u32 = TAKEN.into_iter().chain([LEFT]).map(u32::from).sum();
        let sample = |taken: u16| {
            copied = copied.wrapping_add(u32::from(taken));
            let mut sample: Vec<u8> = (0..SAMPLE_BYTES).map(|at| u8::try_from(at % 251).unwrap()).collect();
            for place in places {
                sample[*place..place + 4].copy_from_slice(&first.wrapping_add(all).to_ne_bytes());
                sample[place + 4..place + 8].copy_from_slice(&copied.to_ne_bytes());
            }
            sample
        };
        TAKEN.into_iter().map(sample).collect()
    }

    #[test]
    fn the_counts_are_where_words_grow_by_what_was_taken() {
        for (place, first) in [(1304, 7), (0, 0), (2040, u32::MAX - 400), (1516, u32::MAX)] {
            let wanted = Places { copied_seq: place + 4, rcv_nxt: place };
            assert_eq!(search(&samples_at(&[usize::try_from(place).unwrap()], first), TAKEN, LEFT), Some(wanted));
        }
    }

    #[test]
    fn what_is_not_certain_is_not_known() {
        assert_eq!(search(&samples_at(&[], 1), TAKEN, LEFT), None);
        assert_eq!(search(&samples_at(&[40, 400], 1), TAKEN, LEFT), None, "two places");
        let mut samples = samples_at(&[1304], 1);
        samples.pop();
        assert_eq!(search(&samples, TAKEN, LEFT), None, "a sample is missing");
        samples.push(Vec::new());
        assert_eq!(search(&samples, TAKEN, LEFT), None, "a sample is short");
    }

    #[test]
    fn the_exchange_itself_works() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(exchange(&listener).unwrap().1, listener.local_addr().unwrap());
    }
}
