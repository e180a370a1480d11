//! The tracer's own health as plain numbers, on their way from whoever counts to the tracer's own meter.

#![forbid(unsafe_code)]

use std::borrow::Cow;

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

/// What the parts of the line counted so far. Plain values: filled by the pipeline, read by the tracer's own meter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthSnapshot {
    /// The counters.
    pub values: Vec<HealthValue>,
}

impl HealthSnapshot {
    /// Adds a counter without attributes.
    pub fn add(&mut self, name: &'static str, value: u64) {
        self.values.push(HealthValue { name, attributes: Vec::new(), value });
    }

    /// Adds a counter split by one attribute.
    pub fn add_by(&mut self, name: &'static str, key: &'static str, by: impl Into<Cow<'static, str>>, value: u64) {
        self.values.push(HealthValue { name, attributes: vec![(key, by.into())], value });
    }
}
