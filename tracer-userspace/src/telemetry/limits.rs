//! What keeps the number of spans sane: a share per carried context and minute, and a ceiling per second.

#![forbid(unsafe_code)]

use std::time::Duration;

use hashlink::LruCache;

use super::sampling::Threshold;
use crate::kafka::context::CarriedContext;
use crate::time::Timestamp;

const MINUTE: Duration = Duration::from_mins(1);
const SECOND: Duration = Duration::from_secs(1);
/// How many contexts are watched at a time.
const MAX_CONTEXTS: usize = 65_536;

/// How many spans each carried context was given in its minute.
#[derive(Debug)]
pub(super) struct ContextLimit {
    max: u32,
    contexts: LruCache<([u8; 16], [u8; 8]), (Timestamp, u32)>,
}

impl ContextLimit {
    pub(super) fn new(max: u32) -> Self {
        Self { max, contexts: LruCache::new(MAX_CONTEXTS) }
    }

    /// Whether the context may have one more span.
    pub(super) fn admit(&mut self, context: &CarriedContext, now: Timestamp) -> bool {
        let key = (context.trace_id, context.span_id);
        let Some((since, count)) = self.contexts.get_mut(&key) else {
            self.contexts.insert(key, (now, 1));
            return self.max > 0;
        };
        if now.since(*since) >= MINUTE {
            (*since, *count) = (now, 0);
        }
        if *count >= self.max {
            return false;
        }
        *count += 1;
        true
    }
}

/// At most so many spans in a second. When more are offered, the next second keeps a smaller share of traces, by the
/// same rule as the sampler, so that whole traces stay whole; what still is too much is cut.
#[derive(Debug)]
pub(super) struct Ceiling {
    max: Option<u32>,
    since: Timestamp,
    offered: u64,
    left: u32,
    left_for_errors: u32,
    threshold: Threshold,
}

impl Ceiling {
    pub(super) fn new(max: Option<u32>) -> Self {
        let left = max.unwrap_or(0);
        Self { max, since: Timestamp::ZERO, offered: 0, left, left_for_errors: left / 10, threshold: Threshold::ALL }
    }

    /// The share of traces that is kept in this second.
    pub(super) fn threshold(&mut self, now: Timestamp) -> Threshold {
        self.roll(now);
        self.threshold
    }

    /// Counts a span that the sampler wants. `within` says that it lies in the share of this second; whether it may
    /// be made is the answer.
    pub(super) fn admit(&mut self, within: bool, error: bool) -> bool {
        if self.max.is_none() {
            return true;
        }
        self.offered += 1;
        let left = if within && self.left > 0 {
            &mut self.left
        } else if error && self.left_for_errors > 0 {
            &mut self.left_for_errors
        } else {
            return false;
        };
        *left -= 1;
        true
    }

    fn roll(&mut self, now: Timestamp) {
        let Some(max) = self.max else { return };
        let elapsed = now.since(self.since);
        if elapsed < SECOND {
            return;
        }
        // After a silence nothing is known of the rate.
        let offered = if elapsed < 2 * SECOND { self.offered } else { 0 };
        self.threshold = if offered > u64::from(max) {
            #[expect(clippy::cast_precision_loss, reason = "a ratio")]
            let share = f64::from(max) / offered as f64;
            // A tenth below, so that chance seldom exhausts what is left.
            Threshold::from_probability(0.9 * share)
        } else {
            Threshold::ALL
        };
        (self.since, self.offered, self.left, self.left_for_errors) = (now, 0, max, max / 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::context::Propagator;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_unix_ns(1_700_000_000_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn a_context_has_its_share_again_after_a_minute() {
        let context = |n| CarriedContext { trace_id: [n; 16], span_id: [n; 8], flags: 1, propagator: Propagator::B3, tracestate: None };
        let mut limit = ContextLimit::new(3);
        let admitted = (0..10).filter(|i| limit.admit(&context(1), at(i * 1_000))).count();
        assert_eq!(admitted, 3);
        assert!(limit.admit(&context(2), at(10_000)), "another context has its own share");
        assert!(!limit.admit(&context(1), at(59_999)));
        assert!(limit.admit(&context(1), at(60_000)));
        assert!(!ContextLimit::new(0).admit(&context(1), at(0)));
    }

    #[test]
    fn a_second_has_its_ceiling_and_errors_a_tenth_more() {
        let mut ceiling = Ceiling::new(Some(100));
        assert_eq!(ceiling.threshold(at(0)), Threshold::ALL);
        assert_eq!((0..400).filter(|_| ceiling.admit(true, false)).count(), 100);
        assert_eq!((0..400).filter(|_| ceiling.admit(true, true)).count(), 10);
        // 800 were offered: the next second keeps 90 of 800.
        assert_eq!(ceiling.threshold(at(1_000)), Threshold::from_probability(0.9 / 8.0));
        assert!(!ceiling.admit(false, false) && ceiling.admit(true, false) && ceiling.admit(false, true));
        // Calm again, or silent for long.
        assert_eq!(ceiling.threshold(at(2_000)), Threshold::ALL);
        assert_eq!(ceiling.threshold(at(90_000)), Threshold::ALL);
    }

    #[test]
    fn no_ceiling_means_none() {
        let mut ceiling = Ceiling::new(None);
        assert!((0..10_000).all(|i| ceiling.threshold(at(i)) == Threshold::ALL && ceiling.admit(true, false)));
    }
}
