//! A capture taken through the library, as observations and as spans.

use opentelemetry::{Key, SpanId, Value};
use tests::capture::Capture;
use tests::replay::corpus;
use tracer_userspace::counters::Counters;
use tracer_userspace::observe::{Commit, ConnectionEventKind, Exchange, FetchedBatch, Observation, ObserveSettings, SentBatch};
use tracer_userspace::pipeline::{Pipeline, PipelineSettings, Sink};
use tracer_userspace::source::pcap::PcapSource;
use tracer_userspace::telemetry::{FinishedSpan, IdSeed, OperationName, Scope, SpanSettings, Telemetry};

/// All that was told of a capture, in order.
pub(crate) struct Told {
    pub(crate) observations: Vec<Observation>,
    pub(crate) spans: Vec<FinishedSpan>,
    pub(crate) counters: Counters,
}

struct Taken {
    observations: Vec<Observation>,
    spans: Vec<FinishedSpan>,
    telemetry: Telemetry,
}

impl Sink for Taken {
    fn observation(&mut self, observation: Observation) {
        let Self { observations, spans, telemetry } = self;
        telemetry.observe(&observation, &mut |span| spans.push(span));
        observations.push(observation);
    }
}

/// A recorded capture, with one span per batch.
pub(crate) fn told(name: &str) -> Told {
    told_of(&capture(name), Scope::Batch)
}

/// A recorded capture, to be changed.
pub(crate) fn capture(name: &str) -> Capture {
    Capture::read(&corpus().join(format!("{name}.pcap"))).unwrap()
}

pub(crate) fn told_of(capture: &Capture, scope: Scope) -> Told {
    let telemetry = Telemetry::new(SpanSettings { scope, ..SpanSettings::replay(IdSeed::from_capture(b"scenarios")) });
    let mut taken = Taken { observations: Vec::new(), spans: Vec::new(), telemetry };
    let settings =
        PipelineSettings { observe: ObserveSettings { keys: true, ..ObserveSettings::default() }, ..PipelineSettings::default() };
    let mut pipeline = Pipeline::new(settings);
    let bytes = capture.to_pcap();
    let mut source = PcapSource::open(&bytes[..]).unwrap();
    while source.next_packet(&mut |event| pipeline.push(&event, &mut taken)).unwrap() {}
    pipeline.finish(&mut taken);
    Told { observations: taken.observations, spans: taken.spans, counters: pipeline.counters() }
}

impl Told {
    pub(crate) fn sent(&self) -> impl Iterator<Item = &SentBatch> {
        self.observations.iter().filter_map(|o| if let Observation::Sent(sent) = o { Some(sent) } else { None })
    }

    pub(crate) fn fetched(&self) -> impl Iterator<Item = &FetchedBatch> {
        self.observations.iter().filter_map(|o| if let Observation::Fetched(fetched) = o { Some(fetched) } else { None })
    }

    pub(crate) fn commits(&self) -> impl Iterator<Item = &Commit> {
        self.observations.iter().filter_map(|o| if let Observation::Commit(commit) = o { Some(commit) } else { None })
    }

    pub(crate) fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.observations.iter().filter_map(|o| if let Observation::Exchange(exchange) = o { Some(exchange) } else { None })
    }

    pub(crate) fn connection_events(&self) -> impl Iterator<Item = &ConnectionEventKind> {
        self.observations.iter().filter_map(|o| if let Observation::Connection(event) = o { Some(&event.kind) } else { None })
    }

    /// The spans of an operation on a topic, in order.
    pub(crate) fn spans(&self, operation: OperationName, topic: &str) -> Vec<&FinishedSpan> {
        let wanted = |span: &&FinishedSpan| span.summary.operation == operation && span.summary.topic.name.as_deref() == Some(topic);
        self.spans.iter().filter(wanted).collect()
    }

    /// The same for scope `auto`: a record with a context has a parent in the application.
    pub(crate) fn parents_are_there_or_carried(&self) {
        let ids: Vec<_> = self.spans.iter().map(|span| (span.data.span_context.trace_id(), span.data.span_context.span_id())).collect();
        for span in &self.spans {
            let parent = (span.data.span_context.trace_id(), span.data.parent_span_id);
            let carried = span.data.links.iter().any(|link| (link.span_context.trace_id(), link.span_context.span_id()) == parent);
            assert!(parent.1 == SpanId::INVALID || carried || ids.contains(&parent), "{}", span.data.name);
        }
    }

    /// Every fetch of the topic that was joined with a send is that send's child, and the send is there, once.
    pub(crate) fn parents_are_there(&self) {
        for fetch in self.spans.iter().filter(|span| span.summary.operation == OperationName::Fetch) {
            let parent = fetch.data.parent_span_id;
            if parent == SpanId::INVALID {
                continue;
            }
            let ids = (fetch.data.span_context.trace_id(), parent);
            let same = |span: &&FinishedSpan| (span.data.span_context.trace_id(), span.data.span_context.span_id()) == ids;
            let parents: Vec<_> = self.spans.iter().filter(same).collect();
            assert_eq!(parents.len(), 1, "{} {:?} has no send, or two", fetch.data.name, fetch.summary.offsets);
            assert_eq!(parents[0].summary.topic.name, fetch.summary.topic.name);
        }
    }
}

/// An attribute of a span, as text.
pub(crate) fn attribute(span: &FinishedSpan, key: &'static str) -> Option<String> {
    let found = span.data.attributes.iter().find(|attribute| attribute.key == Key::from_static_str(key));
    found.map(|attribute| match &attribute.value {
        Value::String(text) => text.as_str().to_owned(),
        other => other.to_string(),
    })
}
