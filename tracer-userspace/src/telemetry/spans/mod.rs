//! Observations to spans.

#![forbid(unsafe_code)]

mod attributes;
mod commit;
mod fetch;
mod send;
mod split;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use self::split::Rules;
use super::coordinates::{Deriver, Place};
use super::ids::RandomIds;
use super::joins::{Fetches, SentBatches};
use super::limits::{Ceiling, ContextLimit};
use super::sampling::{self, Decision, Judge};
use super::{Coordinates, FinishedSpan, HealthSnapshot, ResourceKey, Sides, SpanSettings, Summary, semconv};
use crate::kafka::context::CarriedContext;
use crate::observe::{BatchHeader, Connection, Observation, Operation, RecordFact, Side, Topic};
use crate::time::Timestamp;

/// Flags of a root with a random id, and of a computed one, which is as good as random: sampled, random.
const OWN_FLAGS: TraceFlags = TraceFlags::new(3);
/// The flags that we know; others are not passed on.
const KNOWN_FLAGS: u8 = 3;

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
            health.add_by(semconv::metric::SPANS, semconv::RESULT, result, value);
        }
    }
}

/// Why the ids of a batch cannot be computed: `kafka_tracer.coordinates`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoPlace {
    UnknownCluster,
    UnknownTopic,
    /// What lies in the log is not what the producer sent.
    Rewritten,
    Unacknowledged,
    /// Another batch has them: of a topic that was deleted and made anew, without producer ids, with equal timestamps.
    Taken,
    /// Switched off.
    Off,
}

impl NoPlace {
    const fn reason(self) -> Option<&'static str> {
        match self {
            Self::UnknownCluster => Some("unknown_cluster"),
            Self::UnknownTopic => Some("unknown_topic"),
            Self::Rewritten => Some("rewritten"),
            Self::Unacknowledged => Some("unacknowledged"),
            Self::Taken => Some("taken"),
            Self::Off => None,
        }
    }
}

/// Turns observations into spans.
#[derive(Debug)]
pub struct Telemetry {
    settings: SpanSettings,
    rules: Rules,
    scope: InstrumentationScope,
    counters: SpanCounters,
    judge: Judge,
    ceiling: Ceiling,
    contexts: ContextLimit,
    deriver: Deriver,
    ids: RandomIds,
    sent: SentBatches,
    fetches: Fetches,
}

/// Who a span is in the tree, decided before anything of it is built.
#[derive(Debug)]
struct Identity {
    trace_id: TraceId,
    span_id: SpanId,
    parent: Option<Parent>,
    flags: TraceFlags,
    links: Vec<Link>,
    dropped_links: u32,
}

#[derive(Clone, Copy, Debug)]
struct Parent {
    span_id: SpanId,
    remote: bool,
}

impl Identity {
    fn root(trace_id: TraceId, span_id: SpanId) -> Self {
        Self { trace_id, span_id, parent: None, flags: OWN_FLAGS, links: Vec::new(), dropped_links: 0 }
    }

    fn child(self, span_id: SpanId, remote: bool) -> Self {
        Self { parent: Some(Parent { span_id, remote }), ..self }
    }

    /// In the trace of a context that a record carries: child of it, and linked to it.
    fn in_trace_of(context: &CarriedContext, span_id: SpanId) -> Self {
        let root =
            Self { flags: TraceFlags::new(context.flags & KNOWN_FLAGS), ..Self::root(TraceId::from_bytes(context.trace_id), span_id) };
        root.child(SpanId::from_bytes(context.span_id), true).linked(link_to(context))
    }

    fn linked(mut self, link: Link) -> Self {
        self.links.push(link);
        self
    }
}

fn link_to(context: &CarriedContext) -> Link {
    Link::with_context(SpanContext::new(
        TraceId::from_bytes(context.trace_id),
        SpanId::from_bytes(context.span_id),
        TraceFlags::new(context.flags & KNOWN_FLAGS),
        true,
        sampling::tracestate(context),
    ))
}

fn link_to_ids((trace_id, span_id): (TraceId, SpanId)) -> Link {
    Link::with_context(SpanContext::new(trace_id, span_id, OWN_FLAGS, true, TraceState::NONE))
}

/// Whether a span may be made, and with which tracestate.
enum Admission {
    Made(TraceState),
    SampledOut,
    OverCeiling,
}

/// What is left of a span once it is known who it is.
struct Body<'a> {
    operation: &'a Operation,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
    summary: Summary,
}

impl Telemetry {
    /// With empty tables.
    pub fn new(settings: SpanSettings) -> Self {
        Self {
            rules: Rules { scope: settings.scope, max_records: settings.max_records_per_batch, max_links: settings.max_links },
            scope: super::metrics::scope(),
            counters: SpanCounters::default(),
            judge: Judge::new(settings.sampler),
            ceiling: Ceiling::new(settings.max_per_second),
            contexts: ContextLimit::new(settings.max_per_context),
            deriver: Deriver::new(settings.coordinates_key.clone()),
            ids: RandomIds::new(&settings.seed),
            sent: SentBatches::new(settings.max_sent_batches),
            fetches: Fetches::new(settings.max_fetched_spans),
            settings,
        }
    }

    /// Takes one observation; the spans it completes go to `sink`.
    pub fn observe(&mut self, observation: &Observation, sink: &mut dyn FnMut(FinishedSpan)) {
        match observation {
            Observation::Sent(sent) => self.observe_sent(sent, sink),
            Observation::Fetched(fetched) => self.observe_fetched(fetched, sink),
            Observation::FetchFailed(failure) => self.observe_fetch_failure(failure, sink),
            Observation::Commit(commit) => self.observe_commit(commit, sink),
            Observation::Poll(_)
            | Observation::Group(_)
            | Observation::Transaction(_)
            | Observation::Exchange(_)
            | Observation::Connection(_) => {}
        }
    }

    /// Lets time pass: forgets what is too old to be joined with.
    pub fn tick(&mut self, now: Timestamp) {
        self.sent.forget(now, self.settings.parent_max_age);
        self.fetches.forget(now, self.settings.parent_max_age);
    }

    /// What was counted so far.
    pub const fn counters(&self) -> &SpanCounters {
        &self.counters
    }

    /// Whether this end of the connection and this topic are wanted.
    fn wants(&self, connection: &Connection, topic: &Topic) -> bool {
        let side = match self.settings.sides {
            Sides::Client => connection.side == Side::Client,
            Sides::Broker => connection.side == Side::Broker,
            Sides::Both => true,
        };
        side && self.settings.topics.admits(topic.name.as_deref())
    }

    /// Whether spans of this end take the computed ids.
    fn is_primary(&self, side: Side) -> bool {
        match self.settings.sides {
            Sides::Client | Sides::Both => side == Side::Client,
            Sides::Broker => side == Side::Broker,
        }
    }

    /// Where a batch lies in the log, if ids can be computed of it.
    fn place<'a>(
        &self,
        operation: &'a Operation,
        topic: &'a Topic,
        partition: i32,
        header: &BatchHeader,
        base_offset: Option<i64>,
    ) -> Result<Place<'a>, NoPlace> {
        if self.settings.coordinates == Coordinates::Off {
            return Err(NoPlace::Off);
        }
        let base_offset = base_offset.ok_or(NoPlace::Unacknowledged)?;
        if header.magic != 2 || header.delete_horizon || header.last_offset_delta.checked_add(1) != Some(header.record_count) {
            return Err(NoPlace::Rewritten);
        }
        Ok(Place {
            topic: topic.name.as_deref().ok_or(NoPlace::UnknownTopic)?,
            cluster_id: operation.cluster_id.as_deref().ok_or(NoPlace::UnknownCluster)?,
            partition,
            base_offset,
            base_timestamp_ms: header.base_timestamp_ms.unwrap_or(-1),
            last_offset_delta: header.last_offset_delta,
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
        })
    }

    /// A root with random ids.
    fn random_root(&mut self) -> Identity {
        Identity::root(self.ids.trace_id(), self.ids.span_id())
    }

    /// A span in the given trace, with a random span id.
    fn in_trace(&mut self, trace_id: TraceId) -> Identity {
        Identity::root(trace_id, self.ids.span_id())
    }

    /// The sampler and the ceiling, for a span that no carried context decides about.
    fn admit_root(&mut self, trace_id: TraceId, error: bool, now: Timestamp) -> Admission {
        let judge = self.judge;
        self.admit(|ceiling| judge.root(trace_id, ceiling), error, now)
    }

    /// The same for a span in the trace of a context that a record carries.
    fn admit_carried(&mut self, context: &CarriedContext, error: bool, now: Timestamp) -> Admission {
        let judge = self.judge;
        self.admit(|ceiling| judge.carried(context, ceiling), error, now)
    }

    fn admit(&mut self, decide: impl Fn(sampling::Threshold) -> Decision, error: bool, now: Timestamp) -> Admission {
        let ceiling = self.ceiling.threshold(now);
        let (state, within) = match decide(ceiling) {
            Decision::Drop => {
                self.counters.sampled_out += 1;
                return Admission::SampledOut;
            }
            Decision::Keep(state) => (state, true),
            // Errors may still pass: then the sampler alone has decided.
            Decision::OverCeiling if error => match decide(sampling::Threshold::ALL) {
                Decision::Keep(state) => (state, false),
                Decision::Drop | Decision::OverCeiling => (TraceState::NONE, false),
            },
            Decision::OverCeiling => (TraceState::NONE, false),
        };
        if self.ceiling.admit(within, error) {
            return Admission::Made(state);
        }
        self.counters.rate += 1;
        Admission::OverCeiling
    }

    /// A batch span made only of unsampled contexts follows them, where contexts decide.
    fn follows_unsampled(&mut self, unsampled: bool) -> bool {
        let follows = unsampled && self.judge.parent_based();
        self.counters.sampled_out += u64::from(follows);
        follows
    }

    /// Builds the span and hands it on. Returns its context.
    fn finish(&mut self, identity: Identity, state: TraceState, body: Body<'_>, sink: &mut dyn FnMut(FinishedSpan)) -> SpanContext {
        let Body { operation, kind, mut attributes, summary } = body;
        let verb = summary.operation.name();
        let name = match &summary.topic.name {
            Some(topic) => Cow::Owned(format!("{verb} {topic}")),
            None => Cow::Borrowed(verb),
        };
        let status = match summary.error {
            Some(error) => {
                attributes.push(KeyValue::new(semconv::ERROR_TYPE, error));
                Status::Error { description: Cow::Borrowed("") }
            }
            None => Status::Unset,
        };
        let mut links = SpanLinks::default();
        links.links = identity.links;
        if links.links.len() > self.settings.max_links {
            links.dropped_count = u32::try_from(links.links.len() - self.settings.max_links).unwrap_or(u32::MAX);
            links.links.truncate(self.settings.max_links);
        }
        links.dropped_count = links.dropped_count.saturating_add(identity.dropped_links);
        self.counters.links += u64::from(links.dropped_count);
        self.counters.made += 1;
        let span_context = SpanContext::new(identity.trace_id, identity.span_id, identity.flags, false, state);
        let context = span_context.clone();
        sink(FinishedSpan {
            data: SpanData {
                span_context,
                parent_span_id: identity.parent.map_or(SpanId::INVALID, |parent| parent.span_id),
                parent_span_is_remote: identity.parent.is_some_and(|parent| parent.remote),
                span_kind: kind,
                name,
                start_time: summary.start.to_system_time(),
                end_time: summary.end.max(summary.start).to_system_time(),
                attributes,
                dropped_attributes_count: 0,
                events: SpanEvents::default(),
                links,
                status,
                instrumentation_scope: self.scope.clone(),
            },
            resource: ResourceKey::of(&operation.connection),
            summary,
        });
        context
    }

    /// What only a record's span says.
    fn record_attributes(&self, attributes: &mut Vec<KeyValue>, record: &RecordFact, offset: Option<i64>) {
        if let Some(offset) = offset {
            attributes.push(KeyValue::new(semconv::MESSAGING_KAFKA_OFFSET, offset));
        }
        if let Some(key) = record.key.as_ref().filter(|_| self.settings.capture_keys) {
            attributes.push(attributes::text(semconv::MESSAGING_KAFKA_MESSAGE_KEY, key));
        }
        if record.value_bytes.is_none() {
            attributes.push(KeyValue::new(semconv::MESSAGING_KAFKA_MESSAGE_TOMBSTONE, true));
        }
    }
}

/// What only a batch's span says.
fn batch_attributes(attributes: &mut Vec<KeyValue>, messages: u32, header: &BatchHeader, base_offset: Option<i64>) {
    attributes.push(KeyValue::new(semconv::MESSAGING_BATCH_MESSAGE_COUNT, i64::from(messages)));
    if let Some(base) = base_offset {
        attributes.push(KeyValue::new(semconv::BATCH_BASE_OFFSET, base));
        attributes.push(KeyValue::new(semconv::BATCH_LAST_OFFSET, last_offset(base, header)));
    }
}

fn last_offset(base_offset: i64, header: &BatchHeader) -> i64 {
    base_offset.saturating_add(i64::from(header.last_offset_delta))
}

/// Span id of a record's `send` in a batch whose ids are random: the batch's, with the place in the batch mixed in, so
/// that the consumer's side finds it from what it knows of the batch.
fn record_span_id(batch: SpanId, offset_delta: i64) -> SpanId {
    let mixed = u64::from_be_bytes(batch.to_bytes()) ^ offset_delta.cast_unsigned().wrapping_add(1);
    SpanId::from_bytes(if mixed == 0 { batch.to_bytes() } else { mixed.to_be_bytes() })
}

/// When an operation ended.
fn ended_at(operation: &Operation) -> Timestamp {
    operation.response.map_or(operation.request_last, |(_, last)| last)
}
