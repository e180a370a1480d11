//! Which spans are kept: the sampler, by consistent probability where a ratio is set, and what of it the `tracestate`
//! says. (OpenTelemetry, "Probability sampling" and "`TraceState`: handling of `ot`".)
//!
//! A trace's randomness `R` is `ot=rv:` of its tracestate, else the low 56 bits of its id; a span is kept when `R` is
//! not below the threshold `T`. Whoever sees the same trace id at the same ratio decides alike.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::str::FromStr;

use opentelemetry::TraceId;
use opentelemetry::trace::TraceState;

use super::{Root, Sampler};
use crate::kafka::context::CarriedContext;

/// Number of values that `R` can have.
const VALUES: u64 = 1 << 56;
const VENDOR: &str = "ot";
/// Hexadecimal digits of a threshold.
const DIGITS: u32 = 14;

/// A threshold `T`: 0 keeps everything, 2^56 nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Threshold(u64);

impl Threshold {
    pub(super) const ALL: Self = Self(0);
    pub(super) const NONE: Self = Self(VALUES);

    /// Of a probability, rounded to four significant hexadecimal digits as the specification's samplers do.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "kept within 0 and 2^56")]
    pub(super) fn from_probability(probability: f64) -> Self {
        if probability.is_nan() || probability < 1.0 / VALUES as f64 {
            return Self::NONE;
        }
        if probability >= 1.0 {
            return Self::ALL;
        }
        let threshold = VALUES - (probability * VALUES as f64).round() as u64;
        // Leading digits that are all f (small ratios) or all 0 (ratios near 1) carry nothing.
        let leading = (threshold << 8).leading_ones().max((threshold << 8).leading_zeros()) / 4;
        let shift = 4 * DIGITS.saturating_sub(4 + leading);
        let half = if shift == 0 { 0 } else { 1 << (shift - 1) };
        Self((((threshold + half) >> shift) << shift).min(VALUES))
    }

    /// From `th:`'s value: 1 to 14 hexadecimal digits, trailing zeros cut.
    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > 14 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let digits = u32::try_from(text.len()).ok()?;
        Some(Self(u64::from_str_radix(text, 16).ok()? << (4 * (14 - digits))))
    }

    fn keeps(self, randomness: u64) -> bool {
        randomness >= self.0
    }

    /// `th:`'s value.
    fn digits(self) -> String {
        let cut = (self.0.trailing_zeros() / 4).min(DIGITS - 1);
        format!("{:0width$x}", self.0 >> (4 * cut), width = (DIGITS - cut) as usize)
    }
}

/// The low 56 bits of a trace id.
pub(super) fn randomness(trace_id: TraceId) -> u64 {
    let low = u128::from_be_bytes(trace_id.to_bytes()) & u128::from(VALUES - 1);
    u64::try_from(low).unwrap_or(0)
}

/// The sampler's answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    /// Not by the sampler.
    Drop,
    /// Not because more than the ceiling is offered.
    OverCeiling,
    /// With this tracestate.
    Keep(TraceState),
}

/// Decides; knows the sampler's settings as thresholds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge {
    parent_based: bool,
    threshold: Threshold,
    /// A ratio was asked for, so kept spans say with which probability.
    ratio: bool,
}

impl Judge {
    pub(super) fn new(sampler: Sampler) -> Self {
        let (threshold, ratio) = match sampler.root {
            Root::AlwaysOn => (Threshold::ALL, false),
            Root::AlwaysOff => (Threshold::NONE, false),
            Root::Ratio(ratio) => (Threshold::from_probability(ratio), true),
        };
        Self { parent_based: sampler.parent_based, threshold, ratio }
    }

    pub(super) const fn parent_based(&self) -> bool {
        self.parent_based
    }

    /// A root, or a span in a trace whose id was computed: by its trace id alone.
    pub(super) fn root(&self, trace_id: TraceId, ceiling: Threshold) -> Decision {
        let randomness = randomness(trace_id);
        if !self.threshold.keeps(randomness) {
            return Decision::Drop;
        }
        if !ceiling.keeps(randomness) {
            return Decision::OverCeiling;
        }
        let threshold = self.threshold.max(ceiling);
        if !self.ratio && threshold == Threshold::ALL {
            return Decision::Keep(TraceState::NONE);
        }
        let member = format!("th:{}", threshold.digits());
        Decision::Keep(TraceState::from_key_value([(VENDOR, member)]).unwrap_or_default())
    }

    /// A span in the trace of a sampled context that a record carries.
    pub(super) fn carried(&self, context: &CarriedContext, ceiling: Threshold) -> Decision {
        let state = tracestate(context);
        let member = Member::parse(state.get(VENDOR).unwrap_or_default());
        let randomness = member.randomness.unwrap_or_else(|| randomness(TraceId::from_bytes(context.trace_id)));
        let own = if self.parent_based { Threshold::ALL } else { self.threshold };
        if !own.keeps(randomness) {
            return Decision::Drop;
        }
        if !ceiling.keeps(randomness) {
            return Decision::OverCeiling;
        }
        let carried = member.threshold;
        let threshold = if !self.parent_based && self.ratio {
            Some(own.max(ceiling))
        } else {
            // A threshold that contradicts the sampled flag says nothing; an unknown one stays unknown.
            carried.filter(|threshold| threshold.keeps(randomness)).map(|threshold| threshold.max(ceiling))
        };
        if threshold == carried {
            return Decision::Keep(state);
        }
        let changed = member.with_threshold(threshold);
        let changed = if changed.is_empty() { state.delete(VENDOR) } else { state.insert(VENDOR, changed) };
        Decision::Keep(changed.unwrap_or_default())
    }
}

/// The tracestate that came with a context, as the SDK's type; empty when it is not valid.
pub(super) fn tracestate(context: &CarriedContext) -> TraceState {
    context.tracestate.as_deref().and_then(|text| TraceState::from_str(text).ok()).unwrap_or_default()
}

/// The `ot` member of a tracestate: `rv:...;th:...;other:...`.
struct Member<'a> {
    randomness: Option<u64>,
    threshold: Option<Threshold>,
    text: &'a str,
}

impl<'a> Member<'a> {
    fn parse(text: &'a str) -> Self {
        let mut member = Self { randomness: None, threshold: None, text };
        for part in text.split(';') {
            match part.split_once(':') {
                Some(("rv", value)) if value.len() == 14 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
                    member.randomness = u64::from_str_radix(value, 16).ok();
                }
                Some(("th", value)) => member.threshold = Threshold::parse(value),
                _ => {}
            }
        }
        member
    }

    /// The member's text with another threshold; what is not known is passed through.
    fn with_threshold(&self, threshold: Option<Threshold>) -> String {
        let mut text = String::new();
        if let Some(threshold) = threshold {
            let _ = write!(text, "th:{}", threshold.digits());
        }
        for part in self.text.split(';').filter(|part| !part.is_empty() && !part.starts_with("th:")) {
            if !text.is_empty() {
                text.push(';');
            }
            text.push_str(part);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::context::Propagator;

    fn context(randomness: u64, tracestate: Option<&str>) -> CarriedContext {
        CarriedContext {
            trace_id: (u128::from(randomness) | 1 << 127).to_be_bytes(),
            span_id: [1; 8],
            flags: 1,
            propagator: Propagator::TraceContext,
            tracestate: tracestate.map(Into::into),
        }
    }

    fn ratio(parent_based: bool, ratio: f64) -> Judge {
        Judge::new(Sampler { parent_based, root: Root::Ratio(ratio) })
    }

    fn kept(decision: &Decision) -> Option<String> {
        match decision {
            Decision::Keep(state) => Some(state.header()),
            Decision::Drop | Decision::OverCeiling => None,
        }
    }

    #[test]
    fn thresholds_are_those_of_the_specification() {
        for (probability, digits) in [
            (1.0, "0"),
            (0.5, "8"),
            (0.25, "c"),
            (0.1, "e666"),
            (0.01, "fd70a"),
            (0.001, "ffbe77"),
            (1.0 / 3.0, "aaab"),
            (1.0 / 72_057_594_037_927_936.0, "ffffffffffffff"),
        ] {
            assert_eq!(Threshold::from_probability(probability).digits(), digits, "{probability}");
        }
        for probability in [0.0, -1.0, 1e-18, f64::NAN] {
            assert_eq!(Threshold::from_probability(probability), Threshold::NONE, "{probability}");
        }
        assert_eq!(Threshold::from_probability(2.0), Threshold::ALL);
        assert_eq!(Threshold::parse("8"), Some(Threshold(1 << 55)));
        for text in ["", "G", "F", "012345678901234"] {
            assert_eq!(Threshold::parse(text), None, "{text}");
        }
    }

    #[test]
    fn roots_are_kept_by_the_low_56_bits_and_say_so() {
        let half = ratio(true, 0.5);
        let id = |randomness: u64| TraceId::from(u128::from(randomness) | 0xff << 56);
        assert_eq!(kept(&half.root(id(1 << 55), Threshold::ALL)), Some("ot=th:8".into()));
        assert_eq!(half.root(id((1 << 55) - 1), Threshold::ALL), Decision::Drop);
        assert_eq!(half.root(id(1 << 55), Threshold::from_probability(0.25)), Decision::OverCeiling);
        assert_eq!(kept(&half.root(id(VALUES - 1), Threshold::from_probability(0.25))), Some("ot=th:c".into()));
        let on = Judge::new(Sampler::default());
        assert_eq!(kept(&on.root(id(0), Threshold::ALL)), Some(String::new()));
        let off = Judge::new(Sampler { parent_based: true, root: Root::AlwaysOff });
        assert_eq!(off.root(id(VALUES - 1), Threshold::ALL), Decision::Drop);
    }

    #[test]
    fn the_lower_ratio_keeps_a_subset() {
        let (low, high) = (ratio(true, 0.1), ratio(true, 0.3));
        let mut ids = super::super::ids::RandomIds::new(&super::super::IdSeed::from_capture(b"subset"));
        let mut counts = (0, 0);
        for _ in 0..10_000 {
            let id = ids.trace_id();
            let (in_low, in_high) = (kept(&low.root(id, Threshold::ALL)).is_some(), kept(&high.root(id, Threshold::ALL)).is_some());
            assert!(in_high || !in_low);
            counts = (counts.0 + i32::from(in_low), counts.1 + i32::from(in_high));
        }
        assert!((800..1_200).contains(&counts.0) && (2_700..3_300).contains(&counts.1), "{counts:?}");
    }

    #[test]
    fn the_carried_decision_is_followed_and_its_tracestate_passed_on() {
        let follow = ratio(true, 0.0);
        let (c, all) = (VALUES / 4 * 3, Threshold::ALL);
        for (randomness, tracestate, expected) in [
            (1, None, ""),
            (1, Some("vendor=1,other=x:y"), "vendor=1,other=x:y"),
            // Kept with probability 1/4, and consistent with it.
            (c, Some("a=b,ot=th:c"), "a=b,ot=th:c"),
            // The flag says sampled, the threshold says no: the threshold is erased, the rest stays.
            (1, Some("a=b,ot=th:c;zz:1"), "ot=zz:1,a=b"),
            (1, Some("a=b,ot=th:c"), "a=b"),
            // Explicit randomness instead of the id's.
            (1, Some("ot=rv:ffffffffffffff;th:c"), "ot=rv:ffffffffffffff;th:c"),
            (1, Some("not a list"), ""),
        ] {
            assert_eq!(kept(&follow.carried(&context(randomness, tracestate), all)).as_deref(), Some(expected), "{tracestate:?}");
        }
        let quarter = Threshold::from_probability(0.25);
        assert_eq!(follow.carried(&context(1, None), quarter), Decision::OverCeiling);
        assert_eq!(kept(&follow.carried(&context(c, Some("ot=th:8")), quarter)), Some("ot=th:c".into()));
        assert_eq!(kept(&follow.carried(&context(c, None), quarter)), Some(String::new()), "an unknown probability stays unknown");
    }

    #[test]
    fn a_plain_ratio_decides_over_the_carried_context_and_writes_its_threshold() {
        let quarter = ratio(false, 0.25);
        let c = VALUES / 4 * 3;
        assert_eq!(kept(&quarter.carried(&context(c, Some("a=b,ot=th:0;zz:1")), Threshold::ALL)), Some("ot=th:c;zz:1,a=b".into()));
        assert_eq!(kept(&quarter.carried(&context(c - 1, None), Threshold::ALL)), None);
        assert_eq!(
            kept(&quarter.carried(&context(1, Some("ot=rv:ffffffffffffff")), Threshold::ALL)),
            Some("ot=th:c;rv:ffffffffffffff".into())
        );
    }
}
