//! The counters of this CPU.

use tracer_common::counter::{COUNTERS, Counter};

use crate::maps;

/// This CPU's counters. Looked up once for all that is counted: a lookup wherever something is counted is a branch each, and the verifier of
/// Linux 6.1 gives up on a copying loop with four of them.
#[derive(Clone, Copy)]
pub(crate) struct Counts(*mut [u64; COUNTERS as usize]);

impl Counts {
    #[inline(always)]
    pub(crate) fn of_this_cpu() -> Option<Self> {
        maps::counts().map(Self)
    }

    /// Adds to a counter. Of programs that see packets one of the other direction can come in between, so it may miss.
    #[inline(always)]
    pub(crate) fn add(self, counter: Counter, by: u64) {
        // SAFETY: the map gave the pointer, and it lives as long as the program; there is a slot for each counter.
        #[expect(unsafe_code, reason = "a map value is reached by pointer")]
        unsafe {
            let slot = self.0.cast::<u64>().add(counter as usize);
            *slot = (*slot).wrapping_add(by);
        }
    }
}

/// Counts something rare.
#[inline(always)]
pub(crate) fn count(counter: Counter, by: u64) {
    if let Some(counts) = Counts::of_this_cpu() {
        counts.add(counter, by);
    }
}
