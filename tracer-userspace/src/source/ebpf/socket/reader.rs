//! The reader's end of what programs hand over: one ring for all CPUs, or a perf buffer for each.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{MapData, PerfEventArray, RingBuf};
use tracer_common::call::CallHeader;

use crate::source::ebpf::cells::Cells;
use crate::source::ebpf::load::{chain, take_map};
use crate::source::ebpf::{Polled, SourceError, StartError};

/// Events that one look takes from a ring, or from the buffer of a CPU.
const MAX_EVENTS_PER_LOOK: u64 = 65_536;

/// How long an event waits for those of other CPUs that were handed over before it and are not seen yet. From a program's look at the clock to
/// its event it takes a few microseconds, unless something interrupts it.
const SETTLE_NS: u64 = 1_000_000;

/// Smallest and largest perf buffer of one CPU.
const BUFFER_BYTES: std::ops::RangeInclusive<usize> = 256 << 10..=1 << 30;

/// Where events come from.
pub(super) enum Reader {
    Ring { ring: Box<RingBuf<MapData>>, sleeping: Cells<u32> },
    Perf { buffers: Vec<PerfEventArrayBuffer<MapData>>, waiting: Waiting, lost: u64, cpus: Cpus },
}

impl Reader {
    /// Takes the ring of an object.
    pub(super) fn ring(ebpf: &mut Ebpf) -> Result<Self, StartError> {
        Ok(Self::Ring { ring: Box::new(take_map(ebpf, "RING")?), sleeping: Cells::take(ebpf, "SLEEPING", 1)? })
    }

    /// Opens a buffer for each CPU; together they are about as large as the ring would be.
    pub(super) fn perf(ebpf: &mut Ebpf, bytes: u32) -> Result<Self, StartError> {
        let fail = |reason| StartError::Map { map: "EVENTS", reason };
        let mut array: PerfEventArray<MapData> = take_map(ebpf, "EVENTS")?;
        let cpus = aya::util::online_cpus().map_err(|(what, source)| fail(format!("{what}: {source}")))?;
        let pages = buffer_bytes(bytes, cpus.len()) / rustix::param::page_size();
        let mut buffers = Vec::with_capacity(cpus.len());
        for cpu in &cpus {
            buffers.push(array.open(*cpu, Some(pages)).map_err(|error| fail(chain(&error)))?);
        }
        Ok(Self::Perf { buffers, waiting: Waiting::default(), lost: 0, cpus: Cpus { with_buffer: cpus, told: Vec::new() } })
    }

    /// Hands on what is there, each socket's events in order. `now_ns` is the programs' clock. `push` returns payload bytes.
    pub(super) fn drain(&mut self, now_ns: u64, push: &mut dyn FnMut(&[u8]) -> u64) -> Polled {
        let mut polled = Polled::default();
        match self {
            Self::Ring { ring, .. } => {
                while polled.events < MAX_EVENTS_PER_LOOK
                    && let Some(event) = ring.next()
                {
                    polled.events += 1;
                    polled.bytes += push(&event);
                }
                polled.is_cut = polled.events == MAX_EVENTS_PER_LOOK;
            }
            Self::Perf { buffers, waiting, lost, .. } => {
                let mut until = now_ns.saturating_sub(SETTLE_NS);
                for buffer in buffers {
                    let mut taken = 0;
                    let cut = buffer.try_fold((), |(), event| {
                        match event {
                            PerfEvent::Sample { head, tail } => waiting.add(head, tail),
                            PerfEvent::Lost { count } => *lost += count,
                        }
                        taken += 1;
                        if taken == MAX_EVENTS_PER_LOOK { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    });
                    if cut.is_break() {
                        polled.is_cut = true;
                        // Nothing of other CPUs may overtake what this one still has.
                        until = until.min(waiting.newest());
                    }
                }
                waiting.take_until(until, &mut |event| {
                    polled.events += 1;
                    polled.bytes += push(event);
                });
                polled.holds_back = !waiting.events.is_empty();
            }
        }
        polled
    }

    pub(super) fn set_asleep(&mut self, asleep: bool) -> Result<(), SourceError> {
        match self {
            Self::Ring { sleeping, .. } => sleeping.set(0, u32::from(asleep)),
            // Perf buffers wake whoever waits.
            Self::Perf { .. } => Ok(()),
        }
    }

    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Ring { ring, .. } => vec![ring.as_fd()],
            Self::Perf { buffers, .. } => buffers.iter().map(AsFd::as_fd).collect(),
        }
    }

    /// Says of CPUs that came online after the start that their events are lost. Opening a buffer takes rights that were given up by then.
    pub(super) fn tell_new_cpus(&mut self) {
        let Self::Perf { cpus, .. } = self else { return };
        let Ok(online) = aya::util::online_cpus() else { return };
        for cpu in cpus.untold(&online) {
            tracing::error!(
                cpu,
                "A CPU came online after the start: what programs send and receive there is not seen. Start the tracer anew."
            );
        }
    }

    /// Events that the kernel had no room for, where the programs do not count them.
    pub(super) fn lost(&self) -> Option<u64> {
        match self {
            Self::Ring { .. } => None,
            Self::Perf { lost, .. } => Some(*lost),
        }
    }
}

/// CPUs that have a buffer, and those of which it was told that they have none.
pub(super) struct Cpus {
    with_buffer: Vec<u32>,
    told: Vec<u32>,
}

impl Cpus {
    /// Those without a buffer that were not told of yet. A buffer does not outlive that its CPU goes offline.
    fn untold(&mut self, online: &[u32]) -> Vec<u32> {
        self.with_buffer.retain(|cpu| online.contains(cpu));
        let untold = online.iter().filter(|cpu| !self.with_buffer.contains(cpu) && !self.told.contains(cpu)).copied().collect::<Vec<_>>();
        self.told.extend(&untold);
        untold
    }
}

/// Size of the buffer of one of `cpus` CPUs: a power of two.
fn buffer_bytes(together: u32, cpus: usize) -> usize {
    let together = usize::try_from(together).unwrap_or(usize::MAX);
    (together / cpus.max(1)).clamp(*BUFFER_BYTES.start(), *BUFFER_BYTES.end()).next_power_of_two()
}

/// Events of several CPUs, to be put in the order in which they were handed over.
#[derive(Default)]
pub(super) struct Waiting {
    events: Vec<(u64, Vec<u8>)>,
    /// Buffers to be filled again.
    spare: Vec<Vec<u8>>,
}

/// Buffers that are kept.
const MAX_SPARE: usize = 1024;

impl Waiting {
    /// Adds an event that lies in two pieces.
    fn add(&mut self, head: &[u8], tail: &[u8]) {
        let mut event = self.spare.pop().unwrap_or_default();
        event.extend_from_slice(head);
        event.extend_from_slice(tail);
        // What is too short to say when is passed on at once, to be counted.
        let emitted_ns = CallHeader::parse(&event).map_or(0, |(header, _)| header.emitted_ns);
        self.events.push((emitted_ns, event));
    }

    /// When the event that was added last was handed over.
    fn newest(&self) -> u64 {
        self.events.last().map_or(0, |(emitted_ns, _)| *emitted_ns)
    }

    /// Hands on all that is not newer, oldest first, and in the order of coming what is equally old.
    fn take_until(&mut self, until_ns: u64, each: &mut dyn FnMut(&[u8])) {
        self.events.sort_by_key(|(emitted_ns, _)| *emitted_ns);
        let count = self.events.partition_point(|(emitted_ns, _)| *emitted_ns <= until_ns);
        for (_, mut event) in self.events.drain(..count) {
            each(&event);
            if self.spare.len() < MAX_SPARE {
                event.clear();
                self.spare.push(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event that was handed over then, with a number to tell it.
    fn event(emitted_ns: u64, number: u8) -> Vec<u8> {
        let mut event = vec![0; tracer_common::call::CALL_HEADER_BYTES];
        event[8..16].copy_from_slice(&emitted_ns.to_ne_bytes());
        event.push(number);
        event
    }

    fn take(waiting: &mut Waiting, until_ns: u64) -> Vec<u8> {
        let mut numbers = Vec::new();
        waiting.take_until(until_ns, &mut |event| numbers.push(*event.last().unwrap()));
        numbers
    }

    #[test]
    fn events_of_two_cpus_come_in_the_order_of_their_times() {
        let mut waiting = Waiting::default();
        for (emitted_ns, number) in [(10, 1), (30, 3), (30, 4)] {
            waiting.add(&event(emitted_ns, number), b"");
        }
        waiting.add(&event(20, 2), b"");
        assert_eq!(take(&mut waiting, 29), [1, 2]);
        waiting.add(&event(5, 0), b"");
        let late = event(40, 5);
        let (head, tail) = late.split_at(50);
        waiting.add(head, tail);
        assert_eq!(take(&mut waiting, 40), [0, 3, 4, 5]);
        assert!(waiting.events.is_empty());
    }

    #[test]
    fn a_cpu_without_a_buffer_is_told_of_once() {
        let mut cpus = Cpus { with_buffer: vec![0, 1], told: Vec::new() };
        assert!(cpus.untold(&[0, 1]).is_empty());
        assert_eq!(cpus.untold(&[0, 1, 2]), [2]);
        assert!(cpus.untold(&[0, 2]).is_empty());
        assert_eq!(cpus.untold(&[0, 1, 2]), [1], "its buffer went with it");
        assert!(cpus.untold(&[0, 1, 2]).is_empty());
    }

    #[test]
    fn what_is_too_short_is_passed_on_at_once() {
        let mut waiting = Waiting::default();
        waiting.add(&[9], b"");
        assert_eq!(take(&mut waiting, 0), [9]);
    }

    #[test]
    fn buffers_share_what_the_ring_would_have() {
        assert_eq!(buffer_bytes(32 << 20, 2), 16 << 20);
        assert_eq!(buffer_bytes(32 << 20, 3), 16 << 20);
        assert_eq!(buffer_bytes(32 << 20, 256), 256 << 10);
        assert_eq!(buffer_bytes(0, 0), 256 << 10);
    }
}
