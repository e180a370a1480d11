//! From the kernel's clocks to wall time. The offset changes when somebody sets the clock, so it is measured again and again.

#![forbid(unsafe_code)]

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::time::Timestamp;

/// Tries per measurement; the tightest counts.
const TRIES: usize = 5;

/// Wall time minus the time of a clock of the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offset {
    ns: i64,
}

impl Offset {
    /// A clock that tells wall time.
    pub(super) const ZERO: Self = Self { ns: 0 };

    /// Compares the boot clock, which goes on while the host sleeps, with wall time.
    pub(super) fn measure() -> Self {
        Self::of(ClockId::Boottime)
    }

    /// Compares the monotonic clock with wall time: the only one that programs can read before Linux 5.8. After the host slept, what happened
    /// before is dated too late.
    pub(super) fn measure_monotonic() -> Self {
        Self::of(ClockId::Monotonic)
    }

    fn of(clock: ClockId) -> Self {
        let mut best = (u64::MAX, 0);
        for _ in 0..TRIES {
            let before = nanoseconds(clock_gettime(clock));
            let wall = nanoseconds(clock_gettime(ClockId::Realtime));
            let after = nanoseconds(clock_gettime(clock));
            let gap = after.saturating_sub(before);
            if gap < best.0 {
                best = (gap, wall.cast_signed().wrapping_sub((before + gap / 2).cast_signed()));
            }
        }
        Self { ns: best.1 }
    }

    /// When something was that happened at `ns` of the clock.
    pub(super) const fn wall(self, ns: u64) -> Timestamp {
        Timestamp::from_unix_ns(ns.saturating_add_signed(self.ns))
    }
}

/// Nanoseconds of the boot clock.
pub(super) fn boot_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// Nanoseconds of the monotonic clock.
pub(super) fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

fn nanoseconds(time: Timespec) -> u64 {
    let (seconds, rest) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_kernels_time_becomes_wall_time() {
        for (offset, ns) in [(Offset::measure(), boot_ns()), (Offset::measure_monotonic(), monotonic_ns())] {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let now = Timestamp::from_unix_ns(u64::try_from(now.as_nanos()).unwrap());
            let converted = offset.wall(ns);
            assert!(converted.since(now).max(now.since(converted)) < Duration::from_secs(1), "{converted} is not {now}");
        }
    }
}
