//! When sources are looked at: every few milliseconds while events come, and sleep until a program wakes the reader when none do.
//!
//! The kernel's own rule would wake the reader for nearly every event when it keeps up, which halves the speed of what is observed.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{LiveSource, Polled, SourceError};
use crate::source::CaptureEvent;

/// How often sources are looked at while events come, at most: a look costs as much as reading ten batches, and what is read in one go
/// is read with warm caches.
const LONGEST_TICK: Duration = Duration::from_millis(5);

/// And at least, whatever fits into the ring.
const SHORTEST_TICK: Duration = Duration::from_millis(1);

/// Bytes in a millisecond of the fastest traffic that two CPUs make over loopback.
const MOST_BYTES_PER_MS: u32 = 4 << 20;

/// How long nothing comes before the reader asks to be woken.
const QUIET: Duration = Duration::from_millis(20);

/// Longest sleep: an event that is handed over just while the reader lies down wakes nobody.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// Bytes of payload after which the next look follows at once: the traffic is faster than the ticks.
const MUCH_BYTES: u64 = 4 << 20;

/// Paces the looks at a group of sources.
#[derive(Debug)]
pub struct Pacer {
    tick: Duration,
    last_look: Instant,
    last_event: Instant,
    was_much: bool,
}

impl Pacer {
    /// For sources whose smallest ring has so many bytes: no traffic fills it between two looks.
    #[must_use]
    pub fn new(ring_bytes: u32) -> Self {
        let tick = Duration::from_millis(u64::from(ring_bytes / MOST_BYTES_PER_MS)).clamp(SHORTEST_TICK, LONGEST_TICK);
        Self { tick, last_look: Instant::now(), last_event: Instant::now(), was_much: false }
    }

    /// Waits until events come or the time is up, and hands on all that are there. To be called in a loop, from one thread, always with the
    /// same sources.
    ///
    /// # Errors
    /// If a source fails, or the system refuses to wait.
    pub fn poll(
        &mut self,
        sources: &mut [&mut dyn LiveSource],
        timeout: Duration,
        sink: &mut dyn FnMut(CaptureEvent<'_>),
    ) -> Result<Polled, SourceError> {
        let deadline = Instant::now() + timeout;
        loop {
            for source in sources.iter_mut() {
                source.keep_house();
            }
            if !self.was_much {
                let next_look = self.last_look + self.tick;
                std::thread::sleep(next_look.min(deadline).saturating_duration_since(Instant::now()));
            }
            let polled = self.look(sources, sink)?;
            if polled.events > 0 {
                return Ok(polled);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(polled);
            }
            if self.last_event.elapsed() > QUIET {
                set_asleep(sources, true)?;
                // What came before the programs could see that the reader sleeps.
                let polled = self.look(sources, sink)?;
                if polled.events == 0 {
                    wait(sources, left.min(LONGEST_SLEEP))?;
                }
                set_asleep(sources, false)?;
                if polled.events > 0 {
                    return Ok(polled);
                }
            }
        }
    }

    fn look(&mut self, sources: &mut [&mut dyn LiveSource], sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Result<Polled, SourceError> {
        self.last_look = Instant::now();
        let mut polled = Polled::default();
        for source in sources {
            polled.add(source.drain(sink)?);
        }
        if polled.events > 0 {
            self.last_event = self.last_look;
        }
        self.was_much = polled.bytes >= MUCH_BYTES || polled.is_cut;
        Ok(polled)
    }
}

fn set_asleep(sources: &mut [&mut dyn LiveSource], asleep: bool) -> Result<(), SourceError> {
    sources.iter_mut().try_for_each(|source| source.set_asleep(asleep))
}

/// Sleeps until a program of one of the sources wakes it.
fn wait(sources: &[&mut dyn LiveSource], time: Duration) -> Result<(), SourceError> {
    let time = Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(time.subsec_nanos()) };
    let descriptors: Vec<_> = sources.iter().flat_map(|source| source.descriptors()).collect();
    let mut ready: Vec<_> = descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)).collect();
    match rustix::event::poll(&mut ready, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(SourceError::Wait(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_ring_is_looked_at_more_often() {
        for (ring_bytes, tick_ms) in [(256 << 10, 1), (4 << 20, 1), (8 << 20, 2), (16 << 20, 4), (32 << 20, 5), (1 << 30, 5)] {
            assert_eq!(Pacer::new(ring_bytes).tick, Duration::from_millis(tick_ms), "{ring_bytes}");
        }
    }
}
