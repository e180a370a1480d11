//! What a user can set about spans, as values.

#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

pub use crate::observe::Sides;

/// Which span a record lands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Records with a sampled context get a span in that trace, the rest of the batch shares one.
    #[default]
    Auto,
    /// One span per batch.
    Batch,
    /// One span per record.
    Record,
}

/// What the ids computed from a batch's place in the log are used for on the consumer's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coordinates {
    /// The `fetch` is the child of the computed `send`.
    #[default]
    Parent,
    /// The `fetch` is a root in the computed trace, with a link.
    Link,
    /// No id is computed.
    Off,
}

/// Span kind of `fetch`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FetchKind {
    /// CONSUMER: it is the consuming side's only span, and service graphs pair PRODUCER with CONSUMER.
    #[default]
    Consumer,
    /// CLIENT, by the letter of the conventions.
    Client,
}

/// Whether `fetch` claims an operation type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FetchType {
    /// `messaging.operation.type` = `receive`.
    #[default]
    Receive,
    /// No operation type.
    Omit,
}

/// How spans without a deciding parent are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Root {
    /// All.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// This share of traces (0 to 1), by consistent probability: the low 56 bits of the trace id decide.
    Ratio(f64),
}

/// The sampler, as `OTEL_TRACES_SAMPLER` names them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// A context that a record carries decides for that record's span (`parentbased_*`).
    pub parent_based: bool,
    /// Decides for the rest.
    pub root: Root,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { parent_based: true, root: Root::AlwaysOn }
    }
}

impl Sampler {
    /// From the values of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. Empty is unset; names match without
    /// case. What cannot be read falls back to the specification's default, and the sentence returned says so.
    pub fn from_environment(name: Option<&str>, argument: Option<&str>) -> (Self, Option<String>) {
        let name = name.map(str::trim).filter(|name| !name.is_empty());
        let Some(name) = name else { return (Self::default(), None) };
        let lower = name.to_ascii_lowercase();
        let (parent_based, kind) = match lower.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, lower.as_str()),
        };
        match kind {
            "always_on" => (Self { parent_based, root: Root::AlwaysOn }, None),
            "always_off" => (Self { parent_based, root: Root::AlwaysOff }, None),
            "traceidratio" => {
                let argument = argument.map(str::trim).filter(|argument| !argument.is_empty());
                let (ratio, warning) = match argument.map(str::parse::<f64>) {
                    None => (1.0, None),
                    Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => (ratio, None),
                    Some(_) => (1.0, Some("OTEL_TRACES_SAMPLER_ARG is not a number from 0 to 1; 1 is used instead.".to_owned())),
                };
                (Self { parent_based, root: Root::Ratio(ratio) }, warning)
            }
            _ => (
                Self::default(),
                Some(format!("OTEL_TRACES_SAMPLER `{name}` is not one of this tracer's; parentbased_always_on is used instead.")),
            ),
        }
    }
}

/// Which topics get spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicFilter {
    /// When not empty: only these names.
    pub include: Vec<Arc<str>>,
    /// Not these names.
    pub exclude: Vec<Arc<str>>,
    /// Kafka's own topics (`__*`) too.
    pub internal: bool,
}

impl TopicFilter {
    /// Whether a topic of this name gets spans. A topic whose name is unknown does.
    pub fn admits(&self, name: Option<&str>) -> bool {
        let Some(name) = name else { return true };
        if self.exclude.iter().any(|excluded| &**excluded == name) {
            return false;
        }
        if !self.include.is_empty() {
            return self.include.iter().any(|included| &**included == name);
        }
        self.internal || !name.starts_with("__")
    }
}

/// Where random ids start from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdSeed([u8; 32]);

impl IdSeed {
    /// From bytes of a capture (its hash, or any bytes that are its own): two runs make the same ids.
    pub fn from_capture(bytes: &[u8]) -> Self {
        Self(blake3::derive_key("kafka-tracer replay ids v1", bytes))
    }

    /// From the operating system's randomness, by way of the keys it gives the standard library's hash tables.
    pub fn random() -> Self {
        let mut material = [0; 64];
        for chunk in material.chunks_exact_mut(8) {
            chunk.copy_from_slice(&RandomState::new().hash_one(std::process::id()).to_be_bytes());
        }
        Self(blake3::derive_key("kafka-tracer random ids v1", &material))
    }

    pub(super) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for IdSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdSeed(..)")
    }
}

/// Everything that can be set about spans.
#[derive(Clone, Debug)]
pub struct SpanSettings {
    /// Which span a record lands in.
    pub scope: Scope,
    /// What computed ids are used for.
    pub coordinates: Coordinates,
    /// Hashed in before the coordinates; the same on all hosts. `None`: anyone who knows the coordinates knows the ids.
    pub coordinates_key: Option<Arc<[u8]>>,
    /// A record that was older than this when it was fetched does not continue its producer's trace.
    pub parent_max_age: Duration,
    /// How many records of a batch get a span of their own in `Scope::Auto`.
    pub max_records_per_batch: usize,
    /// How many links a span has; the rest is counted in it.
    pub max_links: usize,
    /// How many spans one carried context gets in a minute.
    pub max_per_context: u32,
    /// How many spans are made in a second; errors are exempt up to a tenth of it. `None`: no ceiling.
    pub max_per_second: Option<u32>,
    /// Span kind of `fetch`.
    pub fetch_kind: FetchKind,
    /// Operation type of `fetch`.
    pub fetch_type: FetchType,
    /// The sampler.
    pub sampler: Sampler,
    /// From which end spans are made.
    pub sides: Sides,
    /// Records' keys go on their spans.
    pub capture_keys: bool,
    /// Which topics get spans.
    pub topics: TopicFilter,
    /// Where random ids start from.
    pub seed: IdSeed,
    /// How many sent batches are remembered, to join fetches with.
    pub max_sent_batches: usize,
    /// How many fetched spans are remembered, to join commits with.
    pub max_fetched_spans: usize,
}

impl SpanSettings {
    /// The defaults of the daemon.
    pub fn live() -> Self {
        Self {
            scope: Scope::default(),
            coordinates: Coordinates::default(),
            coordinates_key: None,
            parent_max_age: Duration::from_hours(1),
            max_records_per_batch: 128,
            max_links: 128,
            max_per_context: 100,
            max_per_second: Some(2_000),
            fetch_kind: FetchKind::default(),
            fetch_type: FetchType::default(),
            sampler: Sampler::default(),
            sides: Sides::default(),
            capture_keys: false,
            topics: TopicFilter::default(),
            seed: IdSeed::random(),
            max_sent_batches: 65_536,
            max_fetched_spans: 65_536,
        }
    }

    /// The defaults of the offline reader: as [`Self::live`], without a ceiling per second, ids seeded from the capture.
    pub fn replay(seed: IdSeed) -> Self {
        Self { max_per_second: None, seed, ..Self::live() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samplers_are_read_as_the_specification_names_them() {
        let on = Sampler { parent_based: true, root: Root::AlwaysOn };
        for (name, argument, expected, warns) in [
            (None, None, on, false),
            (Some(""), Some("0.1"), on, false),
            (Some("always_on"), None, Sampler { parent_based: false, root: Root::AlwaysOn }, false),
            (Some("ALWAYS_OFF"), None, Sampler { parent_based: false, root: Root::AlwaysOff }, false),
            (Some("parentbased_always_off"), None, Sampler { parent_based: true, root: Root::AlwaysOff }, false),
            (Some("traceidratio"), Some("0.25"), Sampler { parent_based: false, root: Root::Ratio(0.25) }, false),
            (Some("traceidratio"), None, Sampler { parent_based: false, root: Root::Ratio(1.0) }, false),
            (Some("parentbased_traceidratio"), Some(" 1e-3 "), Sampler { parent_based: true, root: Root::Ratio(0.001) }, false),
            (Some("parentbased_traceidratio"), Some("2"), Sampler { parent_based: true, root: Root::Ratio(1.0) }, true),
            (Some("traceidratio"), Some("NaN"), Sampler { parent_based: false, root: Root::Ratio(1.0) }, true),
            (Some("jaeger_remote"), None, on, true),
        ] {
            let (sampler, warning) = Sampler::from_environment(name, argument);
            assert_eq!((sampler, warning.is_some()), (expected, warns), "{name:?} {argument:?}");
        }
    }

    #[test]
    fn kafkas_own_topics_are_left_out_unless_asked_for() {
        let default = TopicFilter::default();
        assert!(default.admits(Some("orders")) && default.admits(Some("_schemas")) && default.admits(None));
        assert!(!default.admits(Some("__consumer_offsets")));
        assert!(TopicFilter { internal: true, ..TopicFilter::default() }.admits(Some("__consumer_offsets")));
        let listed = TopicFilter { include: vec!["a".into(), "b".into()], exclude: vec!["b".into()], internal: true };
        assert!(listed.admits(Some("a")) && !listed.admits(Some("b")) && !listed.admits(Some("c")));
    }

    #[test]
    fn random_seeds_differ_and_seeds_of_a_capture_do_not() {
        assert!(IdSeed::random() != IdSeed::random());
        assert!(IdSeed::from_capture(b"x") == IdSeed::from_capture(b"x"));
        assert!(IdSeed::from_capture(b"x") != IdSeed::from_capture(b"y"));
    }
}
