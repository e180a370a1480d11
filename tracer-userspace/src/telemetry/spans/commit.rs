//! `commit`: an offset that a group has moved to.

use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, SpanContext, SpanKind};

use super::{Admission, Body, Identity, Telemetry, attributes, ended_at};
use crate::observe::{Commit, Outcome};
use crate::telemetry::joins::{BatchSpan, FetchedSpans, Reader, TopicInstance, TopicKey};
use crate::telemetry::{FinishedSpan, Joined, OperationName, Summary, error_type, semconv};

/// What is remembered of the fetch of the last offset that a commit covers.
enum Fetched {
    Unknown,
    /// A record had a span of its own.
    Record(SpanContext),
    Batch(SpanContext),
    SampledOut,
}

impl Telemetry {
    pub(super) fn observe_commit(&mut self, commit: &Commit, sink: &mut dyn FnMut(FinishedSpan)) {
        let operation = &*commit.operation;
        if !commit.moves || !self.wants(&operation.connection, &commit.topic) {
            return;
        }
        self.counters.answer_not_seen += u64::from(commit.outcome == Outcome::AnswerNotSeen);
        let (now, error) = (ended_at(operation), error_type(commit.outcome));
        let last_read = commit.offset.saturating_sub(1);
        let fetch = self.fetch_of(commit, last_read);
        let delay = fetch.map(|spans| operation.request_first.since(spans.fetched_at));
        let (identity, decided) = match fetch.map_or(Fetched::Unknown, |spans| span_of(spans, last_read)) {
            Fetched::Unknown => (self.random_root(), None),
            Fetched::Record(record) => (self.random_root().linked(Link::with_context(record)), None),
            Fetched::Batch(batch) => {
                let root = Identity { flags: batch.trace_flags(), ..self.in_trace(batch.trace_id()) };
                (root.child(batch.span_id(), false), Some(batch.trace_state().clone()))
            }
            Fetched::SampledOut => {
                self.counters.sampled_out += 1;
                return;
            }
        };
        let Admission::Made(state) = self.admit_root(identity.trace_id, error.is_some(), now) else { return };
        // A child keeps what its parent's tracestate says of the probability.
        let state = decided.unwrap_or(state);

        let mut attributes = attributes::common(OperationName::Commit, true, operation, &commit.topic, commit.partition);
        attributes.push(attributes::text(semconv::MESSAGING_CONSUMER_GROUP_NAME, &commit.group));
        match commit.acknowledged {
            Some((first, last, how)) => {
                attributes.push(KeyValue::new(semconv::ACKNOWLEDGE_TYPE, how));
                attributes.push(KeyValue::new(semconv::ACKNOWLEDGE_FIRST_OFFSET, first));
                attributes.push(KeyValue::new(semconv::ACKNOWLEDGE_LAST_OFFSET, last));
            }
            None => attributes.push(KeyValue::new(semconv::COMMIT_OFFSET, commit.offset)),
        }
        if let Some(delay) = delay {
            attributes.push(KeyValue::new(semconv::COMMIT_DELAY, delay.as_secs_f64()));
        }
        let summary = Summary {
            operation: OperationName::Commit,
            topic: commit.topic.clone(),
            partition: commit.partition,
            single_record: false,
            messages: 0,
            offsets: Some(commit.acknowledged.map_or((commit.offset, commit.offset), |(first, last, _)| (first, last))),
            group: Some(commit.group.clone()),
            client_id: operation.client_id.clone(),
            start: operation.request_first,
            end: now,
            end_to_end: None,
            error,
            retry: false,
            redelivered: false,
            joined: Joined::No,
        };
        self.finish(identity, state, Body { operation, kind: SpanKind::Client, attributes, summary }, sink);
    }

    /// The latest fetch of the offset: by the group, or by the client while its group was not known.
    fn fetch_of(&self, commit: &Commit, offset: i64) -> Option<&FetchedSpans> {
        let topic = TopicKey::of(&commit.topic)?;
        let instance = TopicInstance::of(&commit.operation, &commit.topic);
        let group = (Reader::of(Some(&commit.group), &commit.operation), topic, commit.partition);
        self.fetches.find(&group, &instance, offset).or_else(|| {
            let client = (Reader::client(&commit.operation), group.1, group.2);
            self.fetches.find(&client, &instance, offset)
        })
    }
}

fn span_of(spans: &FetchedSpans, offset: i64) -> Fetched {
    let offset = offset.min(spans.last_offset);
    if let Ok(index) = spans.records.binary_search_by_key(&offset, |(offset, _)| *offset) {
        let record = spans.records.get(index).and_then(|(_, context)| context.clone());
        return record.map_or(Fetched::Unknown, Fetched::Record);
    }
    match &spans.batch {
        BatchSpan::Made(context) => Fetched::Batch(context.clone()),
        BatchSpan::SampledOut => Fetched::SampledOut,
        BatchSpan::None => Fetched::Unknown,
    }
}
