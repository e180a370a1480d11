//! `fetch`: a stored batch in a Fetch or `ShareFetch` answer, or a partition's failure in one.

use opentelemetry::trace::SpanKind;
use opentelemetry::{KeyValue, SpanId, TraceId};

use super::split::{Own, Split, split};
use super::{Admission, Body, Identity, NoPlace, Place, Telemetry};
use super::{attributes, batch_attributes, ended_at, last_offset, link_to, link_to_ids, record_span_id};
use crate::kafka::context::CarriedContext;
use crate::observe::{FetchFailure, FetchedBatch, Operation, Outcome, RecordFact, RecordsRead};
use crate::telemetry::joins::{BatchSpan, FetchedSpans, Fingerprint, Reader, SeenSend, TopicInstance, TopicKey};
use crate::telemetry::{
    Coordinates, EndToEnd, FetchKind, FetchType, FinishedSpan, Joined, OperationName, Scope, SentClock, Summary, error_type,
    is_fetch_failure, semconv,
};
use crate::time::Timestamp;

/// The `send` that a fetched batch is joined with.
struct Send<'a> {
    /// Ids of the batch's `send`.
    ids: (TraceId, SpanId),
    /// Where records' computed ids come from; `None` when the ids are random.
    place: Option<Place<'a>>,
    /// The producer's side made a batch span.
    has_batch_span: bool,
    joined: Joined,
}

/// What all spans of one fetched batch share.
struct Shared<'a> {
    fetched: &'a FetchedBatch,
    send: Result<Send<'a>, NoPlace>,
    /// When the send was seen here.
    sent_at: Option<Timestamp>,
    now: Timestamp,
    attributes: Option<Vec<KeyValue>>,
}

impl Telemetry {
    pub(super) fn observe_fetched(&mut self, fetched: &FetchedBatch, sink: &mut dyn FnMut(FinishedSpan)) {
        let operation = &*fetched.operation;
        let delivered = fetched.delivered.delivered;
        if !self.wants(&operation.connection, &fetched.topic) {
            return;
        }
        let offsets = (fetched.header.base_offset, last_offset(fetched.header.base_offset, &fetched.header));
        let place = TopicKey::of(&fetched.topic).map(|topic| (Reader::of(fetched.group.as_ref(), operation), topic, fetched.partition));
        if delivered == 0 || fetched.header.control {
            if let Some(place) = place.filter(|_| fetched.header.control || fetched.delivered.aborted > 0) {
                self.fetches.read_past(&place, offsets);
            }
            return;
        }
        let now = ended_at(operation);
        let split = split(self.rules, &fetched.records, delivered, &mut self.contexts, now);
        self.counters.per_context += split.over_limit;
        let (send, sent_at) = self.find_send(fetched, &split);
        let mut shared = Shared { fetched, send, sent_at, now, attributes: None };

        let batch = self.finish_fetched_batch(&mut shared, &split, sink);
        let mut records = Vec::with_capacity(split.own.len());
        for own in &split.own {
            let offset = fetched.header.base_offset.saturating_add(own.record.offset_delta);
            let context = self.finish_fetched_record(&mut shared, own, offset, sink);
            records.push((offset, context));
        }
        // A commit must not take another group's fetch for its own.
        if let Some(place) = place.filter(|_| !fetched.several_groups) {
            let (first_offset, last_offset) = offsets;
            let topic = TopicInstance::of(operation, &fetched.topic);
            let records = records.into();
            self.fetches
                .insert(place, FetchedSpans { topic, first_offset, last_offset, read_to: last_offset, fetched_at: now, batch, records });
        }
    }

    /// Finds what the fetched batch was when it was sent: seen here, or computed.
    fn find_send<'a>(&mut self, fetched: &'a FetchedBatch, split: &Split<'_>) -> (Result<Send<'a>, NoPlace>, Option<Timestamp>) {
        let (operation, header) = (&*fetched.operation, &fetched.header);
        let place = self.place(operation, &fetched.topic, fetched.partition, header, Some(header.base_offset));
        let computed = place.and_then(|place| match self.deriver.batch(&place) {
            Some(ids) => Ok((place, ids)),
            None => Err(NoPlace::UnknownTopic),
        });
        let print = TopicKey::of(&fetched.topic).map(|topic| Fingerprint::of(topic, fetched.partition, header));
        // What compaction or an old format changed does not look as it did when it was sent.
        let seen: Option<SeenSend> = print
            .filter(|_| !matches!(computed, Err(NoPlace::Rewritten)))
            .and_then(|print| self.sent.find(&print, header, operation, &fetched.topic).cloned());
        let sent_at = seen.as_ref().map(|seen| seen.sent_at);
        let send = match (computed, seen) {
            (Err(NoPlace::Off), _) => Err(NoPlace::Off),
            (Ok((place, _)), Some(seen)) if seen.computed => {
                let place = Place { base_timestamp_ms: seen.base_timestamp_ms, ..place };
                Ok(Send { ids: seen.ids, place: Some(place), has_batch_span: seen.has_batch_span, joined: Joined::Seen })
            }
            (_, Some(seen)) => Ok(Send { ids: seen.ids, place: None, has_batch_span: seen.has_batch_span, joined: Joined::Seen }),
            (Ok((place, ids)), None) => {
                let has_batch_span = self.sender_made_batch_span(fetched, split);
                Ok(Send { ids, place: Some(place), has_batch_span, joined: Joined::Coordinates })
            }
            (Err(why), None) => Err(why),
        };
        (send, sent_at)
    }

    /// Whether the producer's side, by the same rules, had records left for a batch span.
    fn sender_made_batch_span(&self, fetched: &FetchedBatch, split: &Split<'_>) -> bool {
        match (self.rules.scope, fetched.records_read) {
            (Scope::Record | Scope::Auto, RecordsRead::All) => {
                i32::try_from(split.eligible).is_ok_and(|eligible| eligible < fetched.header.record_count)
            }
            (Scope::Batch, _) | (_, RecordsRead::NotRead | RecordsRead::Partly) => true,
        }
    }

    fn finish_fetched_batch(&mut self, shared: &mut Shared<'_>, split: &Split<'_>, sink: &mut dyn FnMut(FinishedSpan)) -> BatchSpan {
        let fetched = shared.fetched;
        if split.rest == 0 {
            return BatchSpan::None;
        }
        if self.follows_unsampled(split.rest_is_unsampled) {
            return BatchSpan::SampledOut;
        }
        let header = &fetched.header;
        let timestamp = header.max_timestamp_ms;
        let apart = fetched.redelivered || self.is_old(timestamp, shared.now);
        let target = shared.send.as_ref().ok().filter(|send| send.has_batch_span).map(|send| send.ids);
        let mut identity = self.fetched_identity(target, apart);
        let state = match self.admit_root(identity.trace_id, false, shared.now) {
            Admission::Made(state) => state,
            Admission::SampledOut => return BatchSpan::SampledOut,
            Admission::OverCeiling => return BatchSpan::None,
        };
        identity.links.extend(split.links.iter().map(|context| link_to(context)));
        identity.dropped_links = split.dropped_links;
        let joined = if target.is_some() { joined(&shared.send) } else { Joined::No };
        // The first record is the one that waited longest; where the broker stamps, all have the batch's time.
        let sent_ms = if header.log_append_time { header.max_timestamp_ms } else { header.base_timestamp_ms };
        let end_to_end = end_to_end(shared, sent_ms);
        let mut attributes = self.fetched_attributes(shared);
        batch_attributes(&mut attributes, split.rest, header, Some(header.base_offset));
        if fetched.records_read == RecordsRead::NotRead {
            attributes.push(KeyValue::new(semconv::HEADERS, "not_read"));
        }
        say_why_random(&mut attributes, &shared.send);
        say_times(&mut attributes, end_to_end, fetched.redelivered);
        let mut summary = fetched_summary(fetched, false, split.rest, (header.base_offset, last_offset(header.base_offset, header)));
        (summary.end_to_end, summary.redelivered, summary.joined) = (end_to_end, fetched.redelivered, joined);
        let body = Body { operation: &fetched.operation, kind: self.fetch_kind(), attributes, summary };
        BatchSpan::Made(self.finish(identity, state, body, sink))
    }

    fn finish_fetched_record(
        &mut self,
        shared: &mut Shared<'_>,
        own: &Own<'_>,
        offset: i64,
        sink: &mut dyn FnMut(FinishedSpan),
    ) -> Option<opentelemetry::trace::SpanContext> {
        let (fetched, record, now) = (shared.fetched, own.record, shared.now);
        let redelivered = fetched.redelivered || record.delivery_count.is_some_and(|count| count > 1);
        let apart = redelivered || self.is_old(record.timestamp_ms, now);
        let mut how = Joined::No;
        let (identity, admission) = if let Some(context) = own.parent {
            how = Joined::Context;
            self.fetched_in_trace_of(context, apart, now)?
        } else {
            if self.follows_unsampled(own.linked.is_some()) {
                return None;
            }
            let target = match &shared.send {
                Ok(send) => {
                    how = send.joined;
                    let (place, ids) = (send.place, send.ids);
                    self.sent_record_ids(place, ids, record)
                }
                Err(_) => None,
            };
            let mut identity = self.fetched_identity(target, apart);
            identity.links.extend(own.linked.map(link_to));
            let admission = self.admit_root(identity.trace_id, false, now);
            (identity, admission)
        };
        let Admission::Made(state) = admission else { return None };
        let end_to_end = end_to_end(shared, record.timestamp_ms);
        let mut attributes = self.fetched_attributes(shared);
        self.record_attributes(&mut attributes, record, Some(offset));
        if let Some(count) = record.delivery_count {
            attributes.push(KeyValue::new(semconv::DELIVERY_COUNT, i64::from(count)));
        }
        if own.parent.is_none() {
            say_why_random(&mut attributes, &shared.send);
        }
        say_times(&mut attributes, end_to_end, redelivered);
        let mut summary = fetched_summary(fetched, true, 1, (offset, offset));
        (summary.end_to_end, summary.redelivered, summary.joined) = (end_to_end, redelivered, how);
        let body = Body { operation: &fetched.operation, kind: self.fetch_kind(), attributes, summary };
        Some(self.finish(identity, state, body, sink))
    }

    /// In the trace of the context that the record carries; apart from it, with a link, when that would not be sane.
    fn fetched_in_trace_of(&mut self, context: &CarriedContext, apart: bool, now: Timestamp) -> Option<(Identity, Admission)> {
        if apart {
            let identity = self.random_root().linked(link_to(context));
            let admission = self.admit_root(identity.trace_id, false, now);
            return Some((identity, admission));
        }
        let admission = self.admit_carried(context, false, now);
        matches!(admission, Admission::Made(_)).then(|| (Identity::in_trace_of(context, self.ids.span_id()), admission))
    }

    /// Joined with the `send` at `target`, as the settings say.
    fn fetched_identity(&mut self, target: Option<(TraceId, SpanId)>, apart: bool) -> Identity {
        match (target, self.settings.coordinates) {
            (None, _) => self.random_root(),
            (Some(send), _) if apart => self.random_root().linked(link_to_ids(send)),
            (Some(send), Coordinates::Parent) => self.in_trace(send.0).child(send.1, true),
            (Some(send), Coordinates::Link | Coordinates::Off) => self.in_trace(send.0).linked(link_to_ids(send)),
        }
    }

    /// Ids of one record's `send`, in scope `record`.
    fn sent_record_ids(
        &mut self,
        place: Option<Place<'_>>,
        (trace_id, span_id): (TraceId, SpanId),
        record: &RecordFact,
    ) -> Option<(TraceId, SpanId)> {
        let span_id = match place {
            Some(place) => self.computed_record(&place, record.offset_delta)?,
            None => record_span_id(span_id, record.offset_delta),
        };
        Some((trace_id, span_id))
    }

    /// Older than `parent_max_age` when it was fetched. No timestamp, or one of the future, is no age.
    fn is_old(&self, timestamp_ms: Option<i64>, now: Timestamp) -> bool {
        let max = i64::try_from(self.settings.parent_max_age.as_millis()).unwrap_or(i64::MAX);
        timestamp_ms.is_some_and(|ms| ms >= 0 && now.unix_ms().saturating_sub(ms) > max)
    }

    fn fetch_kind(&self) -> SpanKind {
        match self.settings.fetch_kind {
            FetchKind::Consumer => SpanKind::Consumer,
            FetchKind::Client => SpanKind::Client,
        }
    }

    fn fetched_attributes(&self, shared: &mut Shared<'_>) -> Vec<KeyValue> {
        let fetched = shared.fetched;
        shared
            .attributes
            .get_or_insert_with(|| {
                let operation = &*fetched.operation;
                let with_type = self.settings.fetch_type == FetchType::Receive;
                let mut attributes = attributes::common(OperationName::Fetch, with_type, operation, &fetched.topic, fetched.partition);
                attributes::batch(&mut attributes, operation, &fetched.header, fetched.uncompressed_bytes);
                if let Some(group) = &fetched.group {
                    attributes.push(attributes::text(semconv::MESSAGING_CONSUMER_GROUP_NAME, group));
                }
                say_wait(&mut attributes, operation);
                if let Some(high_watermark) = fetched.high_watermark.filter(|offset| *offset >= 0) {
                    attributes.push(KeyValue::new(semconv::FETCH_HIGH_WATERMARK, high_watermark));
                }
                match fetched.isolation_level {
                    Some(0) => attributes.push(KeyValue::new(semconv::FETCH_ISOLATION_LEVEL, "read_uncommitted")),
                    Some(1) => attributes.push(KeyValue::new(semconv::FETCH_ISOLATION_LEVEL, "read_committed")),
                    Some(_) | None => {}
                }
                attributes
            })
            .clone()
    }

    pub(super) fn observe_fetch_failure(&mut self, failure: &FetchFailure, sink: &mut dyn FnMut(FinishedSpan)) {
        let operation = &*failure.operation;
        if !self.wants(&operation.connection, &failure.topic) {
            return;
        }
        self.counters.answer_not_seen += u64::from(failure.outcome == Outcome::AnswerNotSeen);
        if !is_fetch_failure(failure.outcome) {
            return;
        }
        let identity = self.random_root();
        let Admission::Made(state) = self.admit_root(identity.trace_id, true, ended_at(operation)) else { return };
        let with_type = self.settings.fetch_type == FetchType::Receive;
        let mut attributes = attributes::common(OperationName::Fetch, with_type, operation, &failure.topic, failure.partition);
        if let Some(group) = &failure.group {
            attributes.push(attributes::text(semconv::MESSAGING_CONSUMER_GROUP_NAME, group));
        }
        say_wait(&mut attributes, operation);
        attributes.extend(attributes::current_leader(failure.current_leader));
        let summary = Summary {
            operation: OperationName::Fetch,
            topic: failure.topic.clone(),
            partition: failure.partition,
            single_record: false,
            messages: 0,
            offsets: None,
            group: failure.group.clone(),
            client_id: operation.client_id.clone(),
            start: started_at(operation),
            end: ended_at(operation),
            end_to_end: None,
            error: error_type(failure.outcome),
            retry: false,
            redelivered: false,
            joined: Joined::No,
        };
        let body = Body { operation, kind: self.fetch_kind(), attributes, summary };
        self.finish(identity, state, body, sink);
    }
}

fn joined(send: &Result<Send<'_>, NoPlace>) -> Joined {
    send.as_ref().map_or(Joined::No, |send| send.joined)
}

/// From the send that was seen here, else from the record's timestamp.
fn end_to_end(shared: &Shared<'_>, timestamp_ms: Option<i64>) -> Option<EndToEnd> {
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a century are good to a microsecond in a double")]
    let between = |from: i128| (i128::from(shared.now.unix_ns()) - from) as f64 / 1e9;
    if let Some(sent_at) = shared.sent_at {
        return Some(EndToEnd { seconds: between(i128::from(sent_at.unix_ns())), clock: SentClock::Host });
    }
    let ms = timestamp_ms.filter(|ms| *ms >= 0)?;
    let clock = if shared.fetched.header.log_append_time { SentClock::Append } else { SentClock::Create };
    Some(EndToEnd { seconds: between(i128::from(ms) * 1_000_000), clock })
}

fn say_wait(attributes: &mut Vec<KeyValue>, operation: &Operation) {
    if let Some((first, _)) = operation.response {
        attributes.push(KeyValue::new(semconv::FETCH_WAIT, first.since(operation.request_last).as_secs_f64()));
    }
}

fn say_times(attributes: &mut Vec<KeyValue>, end_to_end: Option<EndToEnd>, redelivered: bool) {
    if let Some(EndToEnd { seconds, clock }) = end_to_end {
        attributes.push(KeyValue::new(semconv::END_TO_END, seconds));
        attributes.push(KeyValue::new(semconv::CLOCK, clock.name()));
    }
    if redelivered {
        attributes.push(KeyValue::new(semconv::REDELIVERED, true));
    }
}

fn say_why_random(attributes: &mut Vec<KeyValue>, send: &Result<Send<'_>, NoPlace>) {
    if let Err(why) = send
        && let Some(reason) = why.reason()
    {
        attributes.push(KeyValue::new(semconv::COORDINATES, reason));
    }
}

/// The wait for data is no part of a `fetch`.
fn started_at(operation: &Operation) -> Timestamp {
    operation.response.map_or(operation.request_last, |(first, _)| first)
}

fn fetched_summary(fetched: &FetchedBatch, single_record: bool, messages: u32, offsets: (i64, i64)) -> Summary {
    Summary {
        operation: OperationName::Fetch,
        topic: fetched.topic.clone(),
        partition: fetched.partition,
        single_record,
        messages,
        offsets: Some(offsets),
        group: fetched.group.clone(),
        client_id: fetched.operation.client_id.clone(),
        start: started_at(&fetched.operation),
        end: ended_at(&fetched.operation),
        end_to_end: None,
        error: None,
        retry: false,
        redelivered: false,
        joined: Joined::No,
    }
}
