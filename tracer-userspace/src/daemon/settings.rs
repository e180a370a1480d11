//! From what was asked for to what each step is told.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::args::{OutputArg, RunArgs, SidesArg};
use crate::observe::{ObserveSettings, RecordDetail, Side};
use crate::pipeline::PipelineSettings;
use crate::replay::ScopeArg;
use crate::telemetry::metrics::MetricSettings;
use crate::telemetry::{Sampler, SpanSettings, TopicFilter};
use crate::{enrich, export};

/// Below this the daemon cannot do its work.
const LEAST_MEMORY: u64 = 64 << 20;

/// What cannot be settled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Where telemetry goes cannot be settled.
    #[error(transparent)]
    Export(#[from] export::SettingsError),
    /// Too little memory.
    #[error("a memory limit of {} MiB is too little: ring ({} MiB), streams and spans need at least {} MiB together", limit >> 20, ring >> 20, least >> 20)]
    Memory {
        /// What was asked for.
        limit: u64,
        /// The ring's share.
        ring: u64,
        /// What is needed.
        least: u64,
    },
}

/// What each part of the daemon is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The line.
    pub pipeline: PipelineSettings,
    /// Spans.
    pub spans: SpanSettings,
    /// Metrics.
    pub metrics: MetricSettings,
    /// Records are listed on standard output.
    pub records: bool,
    /// Where they go.
    pub export: export::Settings,
    /// Processes.
    pub enrich: enrich::Settings,
    /// Which end the text's sums count.
    pub counted: Side,
    /// Size of the ring.
    pub ring_bytes: u32,
    /// Size of the ring for what TLS libraries say.
    pub tls_ring_bytes: u32,
    /// Priority of the capturing thread; 0 leaves it.
    pub nice: i32,
    /// How long sending may take at the end.
    pub shutdown_timeout: Duration,
    /// End by itself after this time.
    pub duration: Option<Duration>,
    /// What was set and is not obeyed, or looks like a mistake: one sentence each.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Joins the arguments with the `OTEL_*` variables, read through `lookup`.
    pub fn new(args: &RunArgs, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let mut export = export::Settings::from_environment(lookup)?;
        let mut warnings = std::mem::take(&mut export.warnings);
        match args.format {
            Some(OutputArg::Text) => export.traces.console = true,
            Some(OutputArg::Records | OutputArg::None) => export.traces.console = false,
            None => {}
        }
        if export.metrics.console {
            warnings.push(
                "OTEL_METRICS_EXPORTER names console: metrics are not printed; the summary at the end of the text output has their sums."
                    .to_owned(),
            );
        }
        let (sampler, complaint) =
            Sampler::from_environment(lookup("OTEL_TRACES_SAMPLER").as_deref(), lookup("OTEL_TRACES_SAMPLER_ARG").as_deref());
        warnings.extend(complaint);

        // The kernel's ring is a power of two.
        let ring_bytes = args.ring_bytes.clamp(256 << 10, 1 << 30).next_power_of_two();
        let least = ring_bytes + LEAST_MEMORY;
        if args.memory_limit < least {
            return Err(SettingsError::Memory { limit: args.memory_limit, ring: ring_bytes, least });
        }
        // Of what the ring leaves: half for streams, a quarter for spans that wait, the rest for tables and the program.
        let left = usize::try_from(args.memory_limit - ring_bytes).unwrap_or(usize::MAX);
        export.batching.max_queue_bytes = left / 4;
        let records = args.format == Some(OutputArg::Records);
        let pipeline = PipelineSettings {
            observe: ObserveSettings {
                detail: match args.scope {
                    _ if records => RecordDetail::All,
                    ScopeArg::Record => RecordDetail::Each,
                    ScopeArg::Auto | ScopeArg::Batch => RecordDetail::Contexts,
                },
                propagators: args.propagators.clone(),
                keys: args.keys,
                headers: args.headers.into(),
                ..ObserveSettings::default()
            },
            sides: args.sides.into(),
            live: true,
            max_buffered_bytes: left / 2,
            ..PipelineSettings::default()
        };
        let names = |names: &[String]| names.iter().map(|name| Arc::from(name.trim())).filter(|name: &Arc<str>| !name.is_empty()).collect();
        let spans = SpanSettings {
            scope: args.scope.into(),
            coordinates: args.coordinates.into(),
            coordinates_key: args.coordinates_key.as_deref().filter(|key| !key.is_empty()).map(|key| Arc::from(key.as_bytes())),
            parent_max_age: args.parent_max_age,
            max_per_second: (args.max_spans_per_second > 0).then_some(args.max_spans_per_second),
            sampler,
            sides: args.sides.into(),
            capture_keys: args.keys,
            topics: TopicFilter { include: names(&args.topics), exclude: names(&args.exclude_topics), internal: args.internal_topics },
            ..SpanSettings::live()
        };
        let exponential_histograms = lookup("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION")
            .is_some_and(|value| value.trim().eq_ignore_ascii_case("base2_exponential_bucket_histogram"));
        let metrics = MetricSettings {
            messaging: args.messaging_metrics,
            partition: args.partition_metrics,
            temporality: export.collection.temporality,
            exponential_histograms,
            ..MetricSettings::default()
        };
        Ok(Self {
            pipeline,
            spans,
            metrics,
            records,
            export,
            enrich: enrich::Settings {
                proc_root: args.proc_root.clone(),
                host_name: args.host_name.clone(),
                ..enrich::Settings::default()
            },
            counted: if args.sides == SidesArg::Broker { Side::Broker } else { Side::Client },
            ring_bytes: u32::try_from(ring_bytes).unwrap_or(1 << 30),
            // Part of what is left beside streams and spans. Plaintext is copied once, at the client's end.
            tls_ring_bytes: u32::try_from(ring_bytes / 4).unwrap_or(1 << 28),
            nice: args.nice,
            shutdown_timeout: args.shutdown_timeout,
            duration: args.duration,
            warnings,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::telemetry::Root;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn settings(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let args = Line::try_parse_from(std::iter::once(&"run").chain(arguments)).unwrap().run;
        Settings::new(&args, &|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn without_an_endpoint_spans_are_printed_and_with_one_only_if_asked() {
        assert!(settings(&[], &[]).unwrap().export.traces.console);
        let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")];
        assert!(!settings(&[], &endpoint).unwrap().export.traces.console);
        assert!(settings(&["--format", "text"], &endpoint).unwrap().export.traces.console);
        assert!(!settings(&["--format", "none"], &[]).unwrap().export.traces.console);
    }

    #[test]
    fn the_memory_limit_is_shared_out() {
        let settings = settings(&["--memory-limit", "256MiB", "--ring-bytes", "33MiB"], &[]).unwrap();
        assert_eq!(settings.ring_bytes, 64 << 20);
        assert_eq!((settings.pipeline.max_buffered_bytes, settings.export.batching.max_queue_bytes), (96 << 20, 48 << 20));
    }

    #[test]
    fn too_little_memory_is_an_error_that_says_how_much_is_needed() {
        let error = settings(&["--memory-limit", "64MiB"], &[]).unwrap_err().to_string();
        assert!(error.contains("64 MiB is too little") && error.contains("at least 96 MiB"), "{error}");
    }

    #[test]
    fn variables_and_arguments_reach_their_steps() {
        let settings = settings(
            &[
                "--sides",
                "both",
                "--keys",
                "--headers",
                "off",
                "--topics",
                "a, b,",
                "--exclude-topics",
                "c",
                "--max-spans-per-second",
                "0",
                "--coordinates-key",
                "k",
            ],
            &[
                ("OTEL_TRACES_SAMPLER", "traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
                ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
            ],
        )
        .unwrap();
        assert_eq!(settings.spans.sampler, Sampler { parent_based: false, root: Root::Ratio(0.5) });
        assert_eq!(settings.spans.max_per_second, None);
        assert_eq!(
            settings.spans.topics,
            TopicFilter { include: vec!["a".into(), "b".into()], exclude: vec!["c".into()], internal: false }
        );
        assert_eq!(settings.spans.coordinates_key.as_deref(), Some(&b"k"[..]));
        assert!(settings.spans.capture_keys && settings.pipeline.observe.keys && settings.pipeline.live);
        assert_eq!(settings.metrics.temporality, opentelemetry_sdk::metrics::Temporality::Delta);
        assert_eq!(settings.counted, Side::Client);
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    }

    #[test]
    fn spans_of_records_ask_for_all_records() {
        let asked = |scope: &str| settings(&["--scope", scope], &[]).unwrap().pipeline.observe.detail;
        assert_eq!([asked("auto"), asked("batch")], [RecordDetail::Contexts; 2]);
        assert_eq!(asked("record"), RecordDetail::Each);
    }

    #[test]
    fn what_is_set_wrong_is_told() {
        let settings = settings(&[], &[("OTEL_TRACES_SAMPLER", "xray"), ("OTEL_METRICS_EXPORTER", "console")]).unwrap();
        assert_eq!(settings.warnings.len(), 2, "{:?}", settings.warnings);
    }
}
