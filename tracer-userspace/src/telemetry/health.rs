//! The tracer's own health as plain numbers, on their way from whoever counts to the tracer's own meter.

#![forbid(unsafe_code)]

use std::borrow::Cow;

use super::semconv::{self, metric};
use crate::counters::Counters;

/// One counter's value: cumulative since the start of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthValue {
    /// Name of the metric, one of [`super::semconv::metric`]'s.
    pub name: &'static str,
    /// What it is split by, such as `("reason", "ring_full")`. The sets of one name must differ.
    pub attributes: Vec<(&'static str, Cow<'static, str>)>,
    /// The count.
    pub value: u64,
}

/// A value that is no count: what it is now, or a time.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthReading {
    /// Name of the metric, one of [`super::semconv::metric`]'s.
    pub name: &'static str,
    /// What it is split by. The sets of one name must differ.
    pub attributes: Vec<(&'static str, Cow<'static, str>)>,
    /// The value.
    pub value: f64,
}

/// What the parts of the line counted so far. Plain values: filled by the pipeline, read by the tracer's own meter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HealthSnapshot {
    /// The counters.
    pub values: Vec<HealthValue>,
    /// What is no count.
    pub readings: Vec<HealthReading>,
}

impl HealthSnapshot {
    /// Adds what the line counted, from streams to observations.
    pub fn add_counters(&mut self, counters: &Counters) {
        self.add(metric::STREAM_GAPS, counters.stream_gaps);
        for (reason, bytes) in &counters.unframed_bytes {
            self.add_by(metric::STREAM_LOST, semconv::REASON, *reason, *bytes);
        }
        for (result, frames) in &counters.frames {
            self.add_by(metric::FRAMES, semconv::RESULT, *result, *frames);
        }
        for (result, records) in &counters.records {
            self.add_by(metric::RECORDS, semconv::RESULT, *result, *records);
        }
        for (reason, batches) in &counters.batches {
            self.add_by(metric::BATCHES, semconv::REASON, *reason, *batches);
        }
        self.add_by(metric::CONTEXTS, semconv::RESULT, "malformed", counters.malformed_contexts);
        self.add_by(metric::CONTEXTS, semconv::RESULT, "repeated", counters.repeated_contexts);
        self.add_by(metric::CONTEXTS, semconv::RESULT, "not_seen", counters.unseen_contexts);
        self.add_by(metric::CONTEXTS, semconv::RESULT, "damaged", counters.damaged_headers);
        for (result, connections) in [
            ("kafka", counters.connections_kafka),
            ("encrypted", counters.connections_encrypted),
            ("other", counters.connections_other),
            ("evicted", counters.connections_evicted),
            ("relieved", counters.relieved),
        ] {
            self.add_by(metric::CONNECTIONS_SEEN, semconv::RESULT, result, connections);
        }
        self.add(metric::OBSERVATIONS_UNNAMED, counters.held_too_long);
        self.add_coverage(counters);
    }

    /// Adds how much of what Kafka's connections said was understood, and what the rest was lost by.
    fn add_coverage(&mut self, counters: &Counters) {
        let all = counters.understood_bytes.saturating_add(counters.lost_bytes.values().sum());
        if all == 0 {
            return;
        }
        let parts = counters.lost_bytes.iter().map(|(reason, bytes)| (*reason, *bytes)).chain([("understood", counters.understood_bytes)]);
        for (result, bytes) in parts {
            #[expect(clippy::cast_precision_loss, reason = "a ratio")]
            let value = bytes as f64 / all as f64;
            self.read(metric::COVERAGE_RATIO, vec![(semconv::RESULT, Cow::Borrowed(result))], value);
        }
    }

    /// Adds a value that is no count.
    pub fn read(&mut self, name: &'static str, attributes: Vec<(&'static str, Cow<'static, str>)>, value: f64) {
        self.readings.push(HealthReading { name, attributes, value });
    }

    /// Adds a counter without attributes.
    pub fn add(&mut self, name: &'static str, value: u64) {
        self.values.push(HealthValue { name, attributes: Vec::new(), value });
    }

    /// Adds a counter split by one attribute.
    pub fn add_by(&mut self, name: &'static str, key: &'static str, by: impl Into<Cow<'static, str>>, value: u64) {
        self.values.push(HealthValue { name, attributes: vec![(key, by.into())], value });
    }
}
