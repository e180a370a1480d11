//! What was sent: the batches of a Produce request, read when it is seen, told when its answer is.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::batch::ReadBatch;
use super::history::{Attempt, History};
use super::hold::SendKey;
use super::learn::Learnt;
use super::{Answered, Emit, Observation, Observer, Operation, Outcome, RecordFact, SentBatch, Topic, outcome, topic};
use crate::counters::Counters;
use crate::kafka::api::produce::{PartitionProduceResponse, ProduceRequest, ProduceResponse};
use crate::kafka::records::{self, Item, Origin};
use crate::time::Timestamp;

/// Kafka's `DUPLICATE_SEQUENCE_NUMBER`: the broker had the batch already. A success, without an offset.
const DUPLICATE_SEQUENCE_NUMBER: i16 = 46;

/// What is kept of a Produce request.
#[derive(Debug)]
pub struct ProduceState {
    /// -1, 0 or 1.
    pub acks: i16,
    transactional_id: Option<Arc<str>>,
    batches: Vec<Draft>,
}

/// A batch that waits to hear what became of it.
#[derive(Debug)]
struct Draft {
    topic: Topic,
    partition: i32,
    /// Records of the same request and partition that come before it (formats 0 and 1 only).
    records_before: i64,
    batch: ReadBatch,
}

impl ProduceState {
    /// Memory that it takes, keys and states of contexts left out.
    pub(super) fn kept_bytes(&self) -> usize {
        let records: usize = self.batches.iter().map(|draft| draft.batch.records.capacity()).sum();
        size_of::<Self>() + self.batches.capacity() * size_of::<Draft>() + records * size_of::<RecordFact>()
    }
}

impl Observer {
    pub(super) fn read_produce(&mut self, request: &ProduceRequest<'_>, at: Timestamp, counters: &mut Counters) -> ProduceState {
        let mut batches = Vec::new();
        for data in &request.topic_data {
            let topic = topic(data.topic, &mut self.names);
            for partition in &data.partition_data {
                let Some(payload) = partition.records else { continue };
                let mut records_before = 0;
                for item in records::batches(payload, Origin::Produce) {
                    match item {
                        Item::Batch(batch) => {
                            let read = self.batches.read(&batch, &topic, at, None, counters);
                            let draft = Draft { topic: topic.clone(), partition: partition.index, records_before, batch: read };
                            records_before += i64::from(draft.batch.record_count);
                            if request.acks != 0
                                && let Some(key) = draft.key(&mut self.learnt)
                            {
                                self.hold.sending(key);
                            }
                            batches.push(draft);
                        }
                        Item::PartialTail { .. } => counters.batch("partial_tail"),
                        Item::Damaged { reason, .. } => counters.batch(reason.kind().name()),
                    }
                }
            }
        }
        ProduceState { acks: request.acks, transactional_id: self.names.intern_option(request.transactional_id), batches }
    }
}

/// The answer came.
pub(super) fn answered(
    state: ProduceState,
    response: &ProduceResponse<'_>,
    answered: &Answered<'_>,
    history: &mut History,
    emit: &mut Emit<'_>,
) {
    let ProduceState { acks, transactional_id, batches } = state;
    for draft in batches {
        let partition = partition_response(response, &draft);
        let outcome = partition.map_or(Outcome::AnswerNotSeen, |p| outcome(p.error_code));
        let key = draft.key(emit.learnt);
        let mut sent = draft.into_sent(&answered.operation, acks, transactional_id.clone(), outcome, history, emit.learnt);
        if let Some(partition) = partition {
            if partition.error_code == 0 && partition.base_offset >= 0 {
                sent.0.base_offset = Some(partition.base_offset + sent.1);
            }
            if partition.error_code == 0 && partition.log_append_time_ms >= 0 {
                sent.0.log_append_time_ms = Some(partition.log_append_time_ms);
            }
            sent.0.current_leader = partition.current_leader.known();
            sent.0.refused_records = partition.record_errors.iter().map(|e| e.batch_index).collect();
        }
        give(sent.0, key, emit);
    }
}

/// No answer will come, or none was seen.
pub(super) fn unanswered(state: ProduceState, outcome: Outcome, operation: &Arc<Operation>, history: &mut History, emit: &mut Emit<'_>) {
    let ProduceState { acks, transactional_id, batches } = state;
    for draft in batches {
        let key = draft.key(emit.learnt);
        let (sent, _) = draft.into_sent(operation, acks, transactional_id.clone(), outcome, history, emit.learnt);
        give(sent, key, emit);
    }
}

fn give(sent: SentBatch, key: Option<SendKey>, emit: &mut Emit<'_>) {
    emit.give(Observation::Sent(sent));
    if let Some(key) = key {
        emit.sent(&key);
    }
}

fn partition_response<'r>(response: &'r ProduceResponse<'_>, draft: &Draft) -> Option<&'r PartitionProduceResponse<'r>> {
    let topic = response.responses.iter().find(|r| {
        if draft.topic.id.is_some() { r.topic.topic_id == draft.topic.id } else { r.topic.name == draft.topic.name.as_deref() }
    })?;
    topic.partition_responses.iter().find(|p| p.index == draft.partition)
}

impl Draft {
    /// How a fetch of the same batch would call it.
    fn key(&self, learnt: &mut Learnt) -> Option<SendKey> {
        let name = self.topic.name.clone().or_else(|| learnt.topic_name(self.topic.id?));
        SendKey::new(&Topic { name, id: self.topic.id }, self.partition, &self.batch.header)
    }

    /// The observation, and the number of records before it in its partition.
    fn into_sent(
        self,
        operation: &Arc<Operation>,
        acks: i16,
        transactional_id: Option<Arc<str>>,
        outcome: Outcome,
        history: &mut History,
        learnt: &mut Learnt,
    ) -> (SentBatch, i64) {
        let Self { topic, partition, records_before, batch } = self;
        let attempt = match outcome {
            Outcome::Success | Outcome::Unacknowledged | Outcome::Error(DUPLICATE_SEQUENCE_NUMBER) => Attempt::Done,
            Outcome::Error(_) | Outcome::ConnectionClosed | Outcome::NoResponse | Outcome::AnswerNotSeen => Attempt::Failed,
        };
        let identity = learnt.identity(&topic, operation.cluster_id.as_ref());
        let retry = history.sent(&identity, partition, &batch.header, attempt, operation.request_first);
        let sent = SentBatch {
            operation: Arc::clone(operation),
            topic,
            partition,
            header: batch.header,
            base_offset: None,
            log_append_time_ms: None,
            outcome,
            refused_records: Vec::new(),
            current_leader: None,
            records: batch.records,
            records_read: batch.records_read,
            record_count: batch.record_count,
            uncompressed_bytes: batch.uncompressed_bytes,
            acks,
            transactional_id,
            retry,
        };
        (sent, records_before)
    }
}
