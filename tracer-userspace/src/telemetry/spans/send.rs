//! `send`: a batch of a Produce request.

use opentelemetry::trace::SpanKind;
use opentelemetry::{KeyValue, SpanId, TraceId};

use super::split::{Own, split};
use super::{Admission, Body, Identity, NoPlace, Telemetry, attributes, batch_attributes, ended_at, last_offset, link_to, link_to_ids};
use super::{Place, record_span_id};
use crate::observe::{Outcome, SentBatch};
use crate::telemetry::joins::{Before, Fingerprint, SeenSend, TopicKey};
use crate::telemetry::{Coordinates, FinishedSpan, Joined, OperationName, Summary, error_type, semconv};

/// Which ids a batch's spans take.
enum Ids<'a> {
    /// The computed ones.
    Computed(Place<'a>, (TraceId, SpanId)),
    /// Random ones below or beside the computed ones: another attempt, or the broker's side.
    Beside(Place<'a>, (TraceId, SpanId), Beside),
    /// Random ones.
    Random((TraceId, SpanId), NoPlace),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Attempt,
    Broker,
}

impl Telemetry {
    pub(super) fn observe_sent(&mut self, sent: &SentBatch, sink: &mut dyn FnMut(FinishedSpan)) {
        let operation = &*sent.operation;
        if sent.header.control || !self.wants(&operation.connection, &sent.topic) {
            return;
        }
        let now = ended_at(operation);
        self.counters.answer_not_seen += u64::from(sent.outcome == Outcome::AnswerNotSeen);
        let split = split(self.rules, &sent.records, sent.record_count, &mut self.contexts, now);
        self.counters.per_context += split.over_limit;
        let ids = self.sent_ids(sent, split.rest > 0);
        let error = error_type(sent.outcome);
        let base_offset = sent.base_offset.filter(|_| error.is_none());
        let mut base: Option<Vec<KeyValue>> = None;

        if split.rest > 0 && !self.follows_unsampled(split.rest_is_unsampled) {
            let mut identity = self.sent_batch_identity(&ids);
            if let Admission::Made(state) = self.admit_root(identity.trace_id, error.is_some(), now) {
                let kind = if matches!(ids, Ids::Computed(..)) && split.links.is_empty() { SpanKind::Producer } else { SpanKind::Client };
                identity.links.extend(split.links.iter().map(|context| link_to(context)));
                identity.dropped_links = split.dropped_links;
                let mut attributes = base.get_or_insert_with(|| sent_attributes(sent)).clone();
                batch_attributes(&mut attributes, split.rest, &sent.header, base_offset);
                say_why_random(&mut attributes, &ids);
                let offsets = base_offset.map(|base| (base, last_offset(base, &sent.header)));
                let summary = sent_summary(sent, false, split.rest, offsets);
                self.finish(identity, state, Body { operation, kind, attributes, summary }, sink);
            }
        }

        for own in &split.own {
            let (identity, admission) = if let Some(context) = own.parent {
                let admission = self.admit_carried(context, error.is_some(), now);
                if !matches!(admission, Admission::Made(_)) {
                    continue;
                }
                (Identity::in_trace_of(context, self.ids.span_id()), admission)
            } else {
                if self.follows_unsampled(own.linked.is_some()) {
                    continue;
                }
                let identity = self.sent_record_identity(&ids, own);
                let admission = self.admit_root(identity.trace_id, error.is_some(), now);
                (identity, admission)
            };
            let Admission::Made(state) = admission else { continue };
            let computed = own.parent.is_none() && own.linked.is_none() && matches!(ids, Ids::Computed(..));
            let kind = if computed { SpanKind::Producer } else { SpanKind::Client };
            let offset = base_offset.map(|base| base.saturating_add(own.record.offset_delta));
            let mut attributes = base.get_or_insert_with(|| sent_attributes(sent)).clone();
            self.record_attributes(&mut attributes, own.record, offset);
            if own.parent.is_none() {
                say_why_random(&mut attributes, &ids);
            }
            let summary = sent_summary(sent, true, 1, offset.map(|offset| (offset, offset)));
            self.finish(identity, state, Body { operation, kind, attributes, summary }, sink);
        }
    }

    /// Chooses the ids, and remembers the batch for the fetch.
    fn sent_ids<'a>(&mut self, sent: &'a SentBatch, has_batch_span: bool) -> Ids<'a> {
        let operation = &*sent.operation;
        let base_offset = sent.base_offset.filter(|_| sent.outcome == Outcome::Success);
        let place = self.place(operation, &sent.topic, sent.partition, &sent.header, base_offset);
        let computed = place.and_then(|place| match self.deriver.batch(&place) {
            Some(ids) => Ok((place, ids)),
            None => Err(NoPlace::UnknownTopic),
        });
        let primary = self.is_primary(operation.connection.side);
        let print = TopicKey::of(&sent.topic).map(|topic| Fingerprint::of(topic, sent.partition, &sent.header));
        let before = match (&print, base_offset) {
            (Some(print), Some(base)) => self.sent.before(print, base, operation, &sent.topic),
            _ => Before::Nothing,
        };
        let ids = match computed {
            Ok((place, ids)) if !primary => Ids::Beside(place, ids, Beside::Broker),
            Ok((place, ids)) if before == Before::SameBatch => Ids::Beside(place, ids, Beside::Attempt),
            Ok(_) if before == Before::OldTopic => Ids::Random((self.ids.trace_id(), self.ids.span_id()), NoPlace::Taken),
            Ok((place, ids)) => Ids::Computed(place, ids),
            Err(why) => Ids::Random((self.ids.trace_id(), self.ids.span_id()), why),
        };
        if let Some(print) = print.filter(|_| primary) {
            let (own, is_computed) = match &ids {
                Ids::Computed(_, own) => (*own, true),
                Ids::Random(own, _) => (*own, false),
                Ids::Beside(..) => return ids,
            };
            let seen = SeenSend::new(sent, own, has_batch_span, is_computed);
            match base_offset {
                Some(_) if before == Before::SameBatch => {}
                Some(base) => self.sent.insert_stored(print, base, seen),
                None if may_be_stored(sent.outcome) => self.sent.insert_unacknowledged(print, seen, sent.retry),
                None => {}
            }
        }
        ids
    }

    fn sent_batch_identity(&mut self, ids: &Ids<'_>) -> Identity {
        match ids {
            Ids::Computed(_, (trace_id, span_id)) | Ids::Random((trace_id, span_id), _) => Identity::root(*trace_id, *span_id),
            Ids::Beside(_, computed, beside) => self.beside(*computed, *beside),
        }
    }

    fn sent_record_identity(&mut self, ids: &Ids<'_>, own: &Own<'_>) -> Identity {
        let delta = own.record.offset_delta;
        let identity = match ids {
            Ids::Random((trace_id, span_id), _) => Identity::root(*trace_id, record_span_id(*span_id, delta)),
            Ids::Computed(place, (trace_id, _)) => match self.computed_record(place, delta) {
                Some(span_id) => Identity::root(*trace_id, span_id),
                None => self.random_root(),
            },
            Ids::Beside(place, (trace_id, _), beside) => match self.computed_record(place, delta) {
                Some(span_id) => self.beside((*trace_id, span_id), *beside),
                None => self.random_root(),
            },
        };
        match own.linked {
            Some(context) => identity.linked(link_to(context)),
            None => identity,
        }
    }

    /// Span id of a record's computed `send`.
    pub(super) fn computed_record(&mut self, place: &Place<'_>, offset_delta: i64) -> Option<SpanId> {
        self.deriver.record(place, i32::try_from(offset_delta).ok()?)
    }

    /// Random ids that go with computed ones.
    fn beside(&mut self, computed: (TraceId, SpanId), beside: Beside) -> Identity {
        match (beside, self.settings.coordinates) {
            (Beside::Broker, Coordinates::Parent) => self.in_trace(computed.0).child(computed.1, true),
            (Beside::Broker, _) => self.in_trace(computed.0).linked(link_to_ids(computed)),
            (Beside::Attempt, _) => self.random_root().linked(link_to_ids(computed)),
        }
    }
}

/// Whether the broker may have stored the batch though it did not tell where.
const fn may_be_stored(outcome: Outcome) -> bool {
    /// `REQUEST_TIMED_OUT`, `NETWORK_EXCEPTION`, `NOT_ENOUGH_REPLICAS_AFTER_APPEND`, `DUPLICATE_SEQUENCE_NUMBER`.
    const AFTER_APPEND: [i16; 4] = [7, 13, 20, 46];
    match outcome {
        Outcome::Success | Outcome::Unacknowledged | Outcome::ConnectionClosed | Outcome::NoResponse | Outcome::AnswerNotSeen => true,
        Outcome::Error(code) => {
            let [a, b, c, d] = AFTER_APPEND;
            code == a || code == b || code == c || code == d
        }
    }
}

fn say_why_random(attributes: &mut Vec<KeyValue>, ids: &Ids<'_>) {
    if let Ids::Random(_, why) = ids
        && let Some(reason) = why.reason()
    {
        attributes.push(KeyValue::new(semconv::COORDINATES, reason));
    }
}

fn sent_attributes(sent: &SentBatch) -> Vec<KeyValue> {
    let operation = &*sent.operation;
    let mut attributes = attributes::common(OperationName::Send, true, operation, &sent.topic, sent.partition);
    attributes::batch(&mut attributes, operation, &sent.header, sent.uncompressed_bytes);
    attributes.push(KeyValue::new(semconv::ACKS, i64::from(sent.acks)));
    if sent.header.producer_id >= 0 {
        attributes.push(KeyValue::new(semconv::PRODUCER_ID, sent.header.producer_id));
        attributes.push(KeyValue::new(semconv::PRODUCER_EPOCH, i64::from(sent.header.producer_epoch)));
        attributes.push(KeyValue::new(semconv::PRODUCER_SEQUENCE, i64::from(sent.header.base_sequence)));
    }
    if let Some(id) = &sent.transactional_id {
        attributes.push(attributes::text(semconv::TRANSACTIONAL_ID, id));
    }
    if sent.retry {
        attributes.push(KeyValue::new(semconv::RETRY, true));
    }
    if !sent.refused_records.is_empty() {
        attributes.push(KeyValue::new(semconv::REFUSED_RECORDS, i64::try_from(sent.refused_records.len()).unwrap_or(i64::MAX)));
    }
    attributes.extend(attributes::current_leader(sent.current_leader));
    attributes
}

fn sent_summary(sent: &SentBatch, single_record: bool, messages: u32, offsets: Option<(i64, i64)>) -> Summary {
    Summary {
        operation: OperationName::Send,
        topic: sent.topic.clone(),
        partition: sent.partition,
        single_record,
        messages,
        offsets,
        group: None,
        client_id: sent.operation.client_id.clone(),
        start: sent.operation.request_first,
        end: ended_at(&sent.operation),
        end_to_end: None,
        error: error_type(sent.outcome),
        retry: sent.retry,
        redelivered: false,
        joined: Joined::No,
    }
}
