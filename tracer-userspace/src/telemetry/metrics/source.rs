//! A resource's meter provider with its reader, all of them together as the exporter reads them, and the tracer's own.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use opentelemetry::metrics::{AsyncInstrument, Meter, MeterProvider};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Stream, Temporality};

use super::MetricSettings;
use crate::telemetry::HealthSnapshot;
use crate::telemetry::semconv::{self, metric};

/// How many forgotten services wait for their last reading.
const MAX_RETIRED: usize = 1_000;

/// A reader that the provider and the exporter share.
#[derive(Clone, Debug)]
struct SharedReader(Arc<ManualReader>);

impl MetricReader for SharedReader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(metrics)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

/// One resource's meter provider and its reader.
#[derive(Debug)]
pub(super) struct Source {
    provider: SdkMeterProvider,
    reader: SharedReader,
}

impl Source {
    pub(super) fn new(resource: Resource, settings: &MetricSettings) -> Self {
        let reader = SharedReader(Arc::new(ManualReader::builder().with_temporality(settings.temporality).build()));
        let (limit, exponential) = (settings.max_series.max(1), settings.exponential_histograms);
        let view = move |instrument: &Instrument| {
            let mut stream = Stream::builder().with_cardinality_limit(limit);
            if instrument.kind() == InstrumentKind::Histogram && (exponential || instrument.name() == metric::END_TO_END_DURATION) {
                // The specification's defaults of this aggregation.
                stream =
                    stream.with_aggregation(Aggregation::Base2ExponentialHistogram { max_size: 160, max_scale: 20, record_min_max: true });
            }
            stream.build().ok()
        };
        let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(reader.clone()).with_view(view).build();
        Self { provider, reader }
    }

    pub(super) fn meter(&self) -> Meter {
        self.provider.meter_with_scope(scope())
    }
}

/// The instrumentation scope of everything that the tracer makes.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(semconv::SCOPE_NAME).with_version(env!("CARGO_PKG_VERSION")).with_schema_url(semconv::SCHEMA_URL).build()
}

#[derive(Debug, Default)]
struct Registry {
    live: Vec<Arc<Source>>,
    retired: Vec<Arc<Source>>,
}

/// The reading end: hands out what the meters of all services hold. Cheap to clone, for another thread or task.
#[derive(Clone, Debug, Default)]
pub struct MetricSources(Arc<Mutex<Registry>>);

impl MetricSources {
    /// Reads every service's metrics and hands them over, one resource a call. Services without any are left out.
    pub fn collect(&self, each: &mut dyn FnMut(&ResourceMetrics)) {
        let (live, retired) = {
            let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (registry.live.clone(), std::mem::take(&mut registry.retired))
        };
        let mut metrics = ResourceMetrics::default();
        for source in live.iter().chain(&retired) {
            if source.reader.collect(&mut metrics).is_ok() && metrics.scope_metrics().next().is_some() {
                each(&metrics);
            }
        }
    }

    pub(super) fn add(&self, source: Arc<Source>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).live.push(source);
    }

    /// False when there was no room for its last reading.
    pub(super) fn retire(&self, source: &Arc<Source>) -> bool {
        let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        registry.live.retain(|other| !Arc::ptr_eq(other, source));
        if registry.retired.len() >= MAX_RETIRED {
            return false;
        }
        registry.retired.push(Arc::clone(source));
        true
    }
}

/// The tracer's own meter: its health, on its own resource.
#[derive(Debug)]
pub struct HealthMeter {
    source: Source,
    snapshot: Arc<Mutex<HealthSnapshot>>,
    names: Vec<&'static str>,
}

impl HealthMeter {
    /// With the tracer's own resource.
    pub fn new(resource: Resource, settings: &MetricSettings) -> Self {
        Self { source: Source::new(resource, settings), snapshot: Arc::default(), names: Vec::new() }
    }

    /// Replaces what is shown.
    pub fn publish(&mut self, snapshot: HealthSnapshot) {
        for value in &snapshot.values {
            if !self.names.contains(&value.name) {
                self.names.push(value.name);
                self.show(value.name);
            }
        }
        for reading in &snapshot.readings {
            if !self.names.contains(&reading.name) {
                self.names.push(reading.name);
                self.show_reading(reading.name);
            }
        }
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// Reads it.
    ///
    /// # Errors
    /// Those of the SDK: the provider was shut down.
    pub fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.source.reader.collect(metrics)
    }

    fn show(&self, name: &'static str) {
        let snapshot = Arc::clone(&self.snapshot);
        let (unit, description) = metric::described(name);
        // The SDK keeps the callback; the handle itself is of no more use.
        let _ = self
            .source
            .meter()
            .u64_observable_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |observer| {
                for value in &snapshot.lock().unwrap_or_else(PoisonError::into_inner).values {
                    if value.name == name {
                        observer.observe(value.value, &key_values(&value.attributes));
                    }
                }
            })
            .build();
    }

    fn show_reading(&self, name: &'static str) {
        let snapshot = Arc::clone(&self.snapshot);
        let (unit, description) = metric::described(name);
        let meter = self.source.meter();
        let show = move |observer: &dyn AsyncInstrument<f64>| {
            for reading in &snapshot.lock().unwrap_or_else(PoisonError::into_inner).readings {
                if reading.name == name {
                    observer.observe(reading.value, &key_values(&reading.attributes));
                }
            }
        };
        if name == metric::CPU {
            let _ = meter.f64_observable_counter(name).with_unit(unit).with_description(description).with_callback(show).build();
        } else {
            let _ = meter.f64_observable_gauge(name).with_unit(unit).with_description(description).with_callback(show).build();
        }
    }
}

fn key_values(attributes: &[(&'static str, Cow<'static, str>)]) -> Vec<KeyValue> {
    attributes.iter().map(|(key, by)| KeyValue::new(*key, StringValue::from(by.clone()))).collect()
}
