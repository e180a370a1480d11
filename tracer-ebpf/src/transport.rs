//! Events into the ring: room reserved in a fixed class, filled in place, handed over.
//!
//! Nothing lies in between (no per-CPU scratch): the program of one direction interrupts that of the other on the same CPU.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::maps::ring_buf::RingBufEntry;
use tracer_common::counter::Counter;

use crate::counts::Counts;
use crate::maps::{RING, SLEEPING};

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
        Some(Self { counts: Counts::of_this_cpu()?, flags: wake_up() })
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

/// The flags of the submits of one packet. The kernel's own rule wakes the reader for nearly every event when it keeps up, which halves the
/// speed of what is observed; so the reader looks by itself, and asks to be woken only after a while without events.
#[inline(always)]
fn wake_up() -> u64 {
    let Some(sleeping) = SLEEPING.get_ptr_mut(0) else {
        return u64::from(BPF_RB_NO_WAKEUP);
    };
    // SAFETY: the map gave the pointer, and it lives as long as the program. Two programs may both wake the reader: harmless.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        if sleeping.read_volatile() == 0 {
            return u64::from(BPF_RB_NO_WAKEUP);
        }
        sleeping.write_volatile(0);
    }
    u64::from(BPF_RB_FORCE_WAKEUP)
}
