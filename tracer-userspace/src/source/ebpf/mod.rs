//! Live capture: programs in the kernel see the bytes of this host's connections, find Kafka among them, and copy it.
//!
//! In: the kernel's events. Out: [`CaptureEvent`]s. [`Sources`] drives what was chosen: one main source that sees connections, and beside it
//! what sees into encrypted ones. Each source is a [`LiveSource`]; [`Pacer`] says when they are looked at. Nothing is pinned: when the
//! process ends, however it ends, the kernel takes the programs away.

mod btf;
mod cells;
mod clock;
mod config;
mod error;
mod load;
mod missed;
mod out;
pub mod outside;
mod owner;
mod pace;
pub mod packet;
pub mod probe;
mod procfs;
pub mod socket;
mod sources;
pub mod tls;

use std::os::fd::BorrowedFd;
use std::time::Duration;

pub use config::{MainSource, SourceConfig};
pub use error::{SourceError, StartError};
pub use pace::Pacer;
pub use packet::PacketSource;
pub use socket::SocketSource;
pub use sources::{SourceRights, Sources};
pub use tls::{TlsConfig, TlsSource};

use super::{CaptureEvent, SocketKey, Verdict};

/// One family of programs with the reader's end of its ring.
///
/// [`SocketKey::scope`] tells the sockets of all sources apart: the packet source's are the kernel's cookies, which count up from 1; those of
/// a source beside the main one have [`BESIDE`] set.
pub trait LiveSource {
    /// What it is called in the log and in settings.
    fn name(&self) -> &'static str;

    /// Hands on what the kernel has handed over by now, and returns at once.
    ///
    /// # Errors
    /// If the kernel refuses what it granted at the start. Lost events are no error: they are holes in the streams, and counted.
    fn drain(&mut self, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Result<Polled, SourceError>;

    /// Tells the programs whether the reader sleeps and wants to be woken.
    ///
    /// # Errors
    /// If the kernel refuses to write the map.
    fn set_asleep(&mut self, asleep: bool) -> Result<(), SourceError>;

    /// What becomes readable when a program wakes a reader that sleeps.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Does what is due: clocks, owners, old data. Called before each look, so it has to be cheap when nothing is.
    fn keep_house(&mut self);

    /// Nothing more will come: what waits for more is given up, and counted.
    fn finish(&mut self) {}

    /// Tells the kernel what became of a socket of this source.
    ///
    /// # Errors
    /// If the kernel refuses to write the map.
    fn verdict(&mut self, socket: SocketKey, verdict: Verdict) -> Result<(), SourceError>;

    /// The process that owns a socket (pid of the initial namespace), once known.
    fn owner(&self, socket: SocketKey) -> Option<u32>;

    /// What was handed over and what was lost since the start.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    fn counts(&self) -> Result<SourceCounts, SourceError>;

    /// How long each program ran, while that is counted (see [`count_run_time`]).
    fn run_time(&self) -> Vec<RunTime>;

    /// True for a source that loads and attaches programs after its start, too.
    fn attaches_later(&self) -> bool {
        false
    }

    /// True for a source that writes to tracefs when it ends.
    fn writes_tracefs(&self) -> bool {
        false
    }
}

/// Bit of [`SocketKey::scope`] that says: a socket of a source beside the main one.
pub const BESIDE: u64 = 1 << 63;

/// What one look did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// Events taken; 0 when the time was up first.
    pub events: u64,
    /// Payload bytes in them.
    pub bytes: u64,
    /// True when there may be more, which was left for the next look.
    pub is_cut: bool,
    /// True when events were taken that wait for those of other CPUs: a look a little later hands them on.
    pub holds_back: bool,
}

impl Polled {
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.bytes += other.bytes;
        self.is_cut |= other.is_cut;
        self.holds_back |= other.holds_back;
    }
}

/// What sources handed over and lost since their start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// Events with payload.
    pub events: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Payload bytes lost, by reason.
    pub lost_bytes: Vec<(&'static str, u64)>,
    /// Events lost or not understood, by reason.
    pub lost_events: Vec<(&'static str, u64)>,
    /// Programs that the kernel refused and capture goes on without.
    pub programs_off: Vec<&'static str>,
    /// TLS sessions that were seen into from their first byte.
    pub sessions: u64,
    /// TLS sessions that were seen into from somewhere in the middle: older than the programs, or quicker than they were attached.
    pub joined_sessions: u64,
    /// Encrypted connections, or sessions, of which nothing is told, by reason.
    pub opaque: Vec<(&'static str, u64)>,
}

impl SourceCounts {
    /// Adds another source's, reason by reason.
    fn add(&mut self, other: Self) {
        self.events += other.events;
        self.bytes += other.bytes;
        self.programs_off.extend(other.programs_off);
        self.sessions += other.sessions;
        self.joined_sessions += other.joined_sessions;
        for (to, from) in
            [(&mut self.lost_bytes, other.lost_bytes), (&mut self.lost_events, other.lost_events), (&mut self.opaque, other.opaque)]
        {
            for (reason, value) in from {
                match to.iter_mut().find(|(known, _)| *known == reason) {
                    Some((_, sum)) => *sum += value,
                    None => to.push((reason, value)),
                }
            }
        }
    }

    /// Events that found no room between kernel and reader, and the bytes in them.
    pub fn ring_full(&self) -> (u64, u64) {
        let of = |list: &[(&str, u64)]| list.iter().find(|(reason, _)| *reason == RING_FULL).map_or(0, |(_, value)| *value);
        (of(&self.lost_events), of(&self.lost_bytes))
    }
}

/// Reason of what found no room between kernel and reader.
const RING_FULL: &str = "ring_full";

/// Reason of what a program would have seen that the kernel left out.
const MISSED: &str = "program_left_out";

/// How long the kernel ran a program, while somebody counts (see [`count_run_time`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunTime {
    /// The program.
    pub program: &'static str,
    /// Time spent in it, over all CPUs.
    pub time: Duration,
    /// How often it ran.
    pub runs: u64,
}

/// Has the kernel count how long programs run, until what is returned is dropped. Costs a little for every program of the host: for
/// measurements only.
///
/// # Errors
/// If the kernel refuses.
pub fn count_run_time() -> Result<std::os::fd::OwnedFd, SourceError> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|error| SourceError::Wait(error.io_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_of_two_sources_are_summed_by_their_reasons() {
        let mut counts = SourceCounts {
            events: 1,
            bytes: 10,
            lost_bytes: vec![("unreadable", 3)],
            lost_events: vec![(RING_FULL, 1), ("malformed", 0)],
            ..SourceCounts::default()
        };
        counts.add(SourceCounts {
            events: 2,
            bytes: 20,
            lost_bytes: vec![(RING_FULL, 7), ("unreadable", 1)],
            lost_events: vec![(RING_FULL, 4)],
            programs_off: vec!["a program"],
            ..SourceCounts::default()
        });
        assert_eq!((counts.events, counts.bytes), (3, 30));
        assert_eq!(counts.lost_bytes, [("unreadable", 4), (RING_FULL, 7)]);
        assert_eq!(counts.lost_events, [(RING_FULL, 5), ("malformed", 0)]);
        assert_eq!(counts.ring_full(), (5, 7));
        assert_eq!(counts.programs_off, ["a program"]);
    }
}
