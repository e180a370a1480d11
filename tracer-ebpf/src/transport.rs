//! Events into the ring: room reserved in a fixed class, filled in place, handed over.
//!
//! Nothing lies in between (no per-CPU scratch): the program of one direction interrupts that of the other on the same CPU.

use core::mem::MaybeUninit;

use aya_ebpf::maps::ring_buf::RingBufEntry;
use tracer_common::counter::Counter;

use crate::counts::Counts;
use crate::maps::{RING, SLEEPING};
use crate::wake;

/// How the events of one packet are handed over.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    flags: u64,
    pub(crate) counts: Counts,
}

impl Way {
    /// None only if the maps are not what they are.
    #[inline(always)]
    pub(crate) fn now() -> Option<Self> {
        Some(Self { counts: Counts::of_this_cpu()?, flags: wake::flags(SLEEPING.get_ptr_mut(0)) })
    }
}

/// Reserves room for a `T`, lets `fill` write it, and hands it over. `bytes` is the payload that is lost when there is no room.
#[inline(always)]
pub(crate) fn emit<T: 'static>(way: Way, bytes: u32, fill: impl FnOnce(*mut T)) {
    let Some(mut entry): Option<RingBufEntry<T>> = RING.reserve_untyped::<T>(0) else {
        way.counts.add(Counter::LostRingFull, 1);
        way.counts.add(Counter::LostRingFullBytes, u64::from(bytes));
        return;
    };
    fill(MaybeUninit::as_mut_ptr(&mut entry));
    entry.submit(way.flags);
}
