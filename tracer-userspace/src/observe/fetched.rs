//! What was fetched: the stored batches of a Fetch or `ShareFetch` answer, and which of their records the client gets.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;

use super::batch::{BatchReader, ReadBatch, Rule};
use super::history::History;
use super::learn::GroupOf;
use super::names::Names;
use super::sessions::{SessionRequest, Sessions};
use super::side_facts::{Acknowledged, acknowledged};
use super::{
    Answered, Emit, FetchFailure, FetchedBatch, Observation, Outcome, Poll, PolledPartition, RecordsRead, Skipped, Told, Topic, TopicId,
    topic,
};
use crate::kafka::api::fetch::{AbortedTransaction, FetchRequest, FetchResponse, PartitionData};
use crate::kafka::api::share_fetch::{self, ShareFetchRequest, ShareFetchResponse};
use crate::kafka::records::{self, Batch, ControlKind, Item, Origin};

const READ_COMMITTED: i8 = 1;

/// What reading an answer takes.
pub(super) struct Tools<'a> {
    pub(super) names: &'a mut Names,
    pub(super) sessions: &'a mut Sessions,
    pub(super) history: &'a mut History,
    pub(super) batches: &'a mut BatchReader,
}

/// What all batches of one partition share.
struct Partition<'a> {
    topic: Topic,
    index: i32,
    group: Option<&'a Arc<str>>,
    several_groups: bool,
    fetch_offset: Option<i64>,
    isolation_level: Option<i8>,
    told: Told,
    /// Ranges that a share group's member was given, with their delivery count; `None` for other groups.
    acquired: Option<&'a [share_fetch::AcquiredRecords]>,
}

/// A Fetch was answered.
pub(super) fn answered(
    request: Option<&FetchRequest<'_>>,
    response: &FetchResponse<'_>,
    answered: &Answered<'_>,
    tools: &mut Tools<'_>,
    emit: &mut Emit<'_>,
) {
    let Tools { names, sessions, history, batches } = tools;
    let asked: Vec<_> = request
        .into_iter()
        .flat_map(|r| &r.topics)
        .flat_map(|t| t.partitions.iter().map(|p| (t.topic, p)))
        .map(|(t, p)| ((topic(t, names), p.partition), p.fetch_offset))
        .collect();
    let forgotten: Vec<_> = request
        .into_iter()
        .flat_map(|r| &r.forgotten_topics_data)
        .flat_map(|t| t.partitions.iter().map(|p| (t.topic, *p)))
        .map(|(t, p)| (topic(t, names), p))
        .collect();
    let session = SessionRequest {
        broker: answered.who.connection.broker,
        session_id: request.map_or(0, |r| r.session_id),
        epoch: request.map(|r| r.session_epoch),
    };
    let mut left = Vec::new();
    let mut view = sessions.answered(session, response.session_id, asked.into_iter(), forgotten.into_iter(), &mut left);
    let group = emit.learnt.group_of(&answered.client, &answered.peer);
    let mut polled = Vec::new();
    for data in response.responses.iter().filter(|data| data.topic.topic_id != TopicId::CLUSTER_METADATA) {
        let topic = topic(data.topic, names);
        for partition in &data.partitions {
            let key = (topic.clone(), partition.partition_index);
            if partition.error_code != 0 {
                let said = (partition.error_code, partition.current_leader.known());
                failed(&topic, partition.partition_index, said, group.one(), answered, emit);
                view.told(&key, None);
            }
            let told = Told {
                high_watermark: known(partition.high_watermark),
                last_stable_offset: known(partition.last_stable_offset),
                log_start_offset: known(partition.log_start_offset),
            };
            let place = Partition {
                fetch_offset: view.fetch_offset(&key),
                topic: key.0,
                index: key.1,
                group: group.one(),
                several_groups: group == GroupOf::Several,
                isolation_level: request.map(|r| r.isolation_level),
                told,
                acquired: None,
            };
            let mut position = place.fetch_offset;
            let mut aborted = Aborted::new(partition, place.isolation_level);
            for item in partition.records.into_iter().flat_map(|payload| records::batches(payload, Origin::Fetch)) {
                match item {
                    Item::Batch(batch) => {
                        position = position.max(Some(batch.header().end_offset()));
                        if let Some(kind) = batch.control_kind() {
                            aborted.marker(kind, batch.header().producer_id);
                            control(&place, &batch, answered, emit);
                            continue;
                        }
                        let rule = aborted.rule(&batch, place.fetch_offset);
                        fetched(&place, &batch, rule, answered, Some(&mut *history), batches, emit);
                    }
                    Item::PartialTail { .. } => emit.counters.batch("partial_tail"),
                    Item::Damaged { reason, .. } => emit.counters.batch(reason.kind().name()),
                }
            }
            if partition.error_code == 0 {
                let polled_partition = PolledPartition { topic: place.topic, partition: place.index, position, told };
                polled.push(polled_partition);
            }
        }
    }
    for polled in &polled {
        view.told(&(polled.topic.clone(), polled.partition), Some(polled.told));
    }
    if answered.whole {
        let said: HashSet<_> = polled.iter().map(|polled| (&polled.topic, polled.partition)).collect();
        let unchanged = view.unchanged(answered.at).filter(|((topic, partition), ..)| !said.contains(&(topic, *partition)));
        let unchanged: Vec<_> = unchanged
            .map(|((topic, partition), from, told)| PolledPartition {
                topic: topic.clone(),
                partition: *partition,
                position: Some(from),
                told,
            })
            .collect();
        polled.extend(unchanged);
    } else {
        view.doubt();
    }
    if polled.is_empty() && left.is_empty() {
        return;
    }
    emit.give(Observation::Poll(Poll {
        operation: Arc::clone(&answered.operation),
        group: group.one().cloned(),
        several_groups: group == GroupOf::Several,
        isolation_level: request.map(|r| r.isolation_level),
        partitions: polled,
        left,
    }));
}

/// A `ShareFetch` was answered.
pub(super) fn share_answered(
    request: &ShareFetchRequest<'_>,
    response: &ShareFetchResponse<'_>,
    answered: &Answered<'_>,
    names: &mut Names,
    batches: &mut BatchReader,
    emit: &mut Emit<'_>,
) {
    let group = request.group_id.map(|g| names.intern(g));
    for asked in &request.topics {
        let topic = topic(asked.topic, names);
        let said = response.responses.iter().find(|t| t.topic == asked.topic);
        for partition in asked.partitions.iter().filter(|p| !p.acknowledgement_batches.is_empty()) {
            let Some(group) = &group else { break };
            let error_code = if response.error_code == 0 {
                // A partition that the answer does not name was acknowledged without error.
                let said = said.and_then(|t| t.partitions.iter().find(|p| p.partition_index == partition.partition_index));
                Some(said.map_or(0, |p| p.acknowledge_error_code))
            } else {
                Some(response.error_code)
            };
            for batch in &partition.acknowledgement_batches {
                acknowledged(
                    &Acknowledged {
                        group,
                        topic: &topic,
                        partition: partition.partition_index,
                        first_offset: batch.first_offset,
                        last_offset: batch.last_offset,
                        types: &batch.acknowledge_types,
                        error_code,
                    },
                    answered,
                    emit,
                );
            }
        }
    }
    for (i, data) in response.responses.iter().enumerate() {
        let is_last_topic = i + 1 == response.responses.len();
        let topic = topic(data.topic, names);
        for (i, partition) in data.partitions.iter().enumerate() {
            // Where the answer breaks off, what was acquired stands behind that.
            let is_cut = !answered.whole && is_last_topic && i + 1 == data.partitions.len();
            if partition.error_code != 0 {
                let said = (partition.error_code, partition.current_leader.known());
                failed(&topic, partition.partition_index, said, group.as_ref(), answered, emit);
            }
            let Some(payload) = partition.records else { continue };
            let place = Partition {
                topic: topic.clone(),
                index: partition.partition_index,
                group: group.as_ref(),
                several_groups: false,
                fetch_offset: None,
                isolation_level: None,
                told: Told::default(),
                acquired: Some(&partition.acquired_records),
            };
            for item in records::batches(payload, Origin::Fetch) {
                match item {
                    Item::Batch(batch) if batch.control_kind().is_some() => control(&place, &batch, answered, emit),
                    Item::Batch(batch) => {
                        let rule = if is_cut {
                            Rule::Fetch { fetch_offset: None, skipped: None }
                        } else {
                            Rule::Acquired(&partition.acquired_records)
                        };
                        fetched(&place, &batch, rule, answered, None, batches, emit);
                    }
                    Item::PartialTail { .. } => emit.counters.batch("partial_tail"),
                    Item::Damaged { reason, .. } => emit.counters.batch(reason.kind().name()),
                }
            }
        }
    }
}

fn known(offset: i64) -> Option<i64> {
    (offset >= 0).then_some(offset)
}

fn failed(
    topic: &Topic,
    partition: i32,
    (error_code, current_leader): (i16, Option<i32>),
    group: Option<&Arc<str>>,
    answered: &Answered<'_>,
    emit: &mut Emit<'_>,
) {
    emit.give(Observation::FetchFailed(FetchFailure {
        operation: Arc::clone(&answered.operation),
        topic: topic.clone(),
        partition,
        group: group.cloned(),
        outcome: Outcome::Error(error_code),
        current_leader,
    }));
}

/// A marker of the broker: no message, but an offset that the reader gets past.
fn control(place: &Partition<'_>, batch: &Batch<'_>, answered: &Answered<'_>, emit: &mut Emit<'_>) {
    emit.counters.record("control", 1);
    let read = ReadBatch::control(batch.header());
    give(place, read, false, answered, emit);
}

fn fetched(
    place: &Partition<'_>,
    batch: &Batch<'_>,
    rule: Rule<'_>,
    answered: &Answered<'_>,
    history: Option<&mut History>,
    batches: &mut BatchReader,
    emit: &mut Emit<'_>,
) {
    let read = batches.read(batch, &place.topic, answered.at, Some(rule), emit.counters);
    if read.record_count == 0 && read.records_read == RecordsRead::All {
        emit.counters.batch("empty");
        return;
    }
    let redelivered = match (place.group, history, read.last_delivered) {
        (Some(group), Some(history), Some(last)) => {
            let identity = emit.learnt.identity(&place.topic, answered.operation.cluster_id.as_ref());
            history.delivering(group, &identity, place.index, last)
        }
        _ => read.delivery_count > 1,
    };
    give(place, read, redelivered, answered, emit);
}

fn give(place: &Partition<'_>, read: ReadBatch, redelivered: bool, answered: &Answered<'_>, emit: &mut Emit<'_>) {
    emit.give(Observation::Fetched(FetchedBatch {
        operation: Arc::clone(&answered.operation),
        topic: place.topic.clone(),
        partition: place.index,
        header: read.header,
        group: place.group.cloned(),
        several_groups: place.several_groups,
        fetch_offset: place.fetch_offset,
        high_watermark: place.told.high_watermark,
        last_stable_offset: place.told.last_stable_offset,
        log_start_offset: place.told.log_start_offset,
        isolation_level: place.isolation_level,
        records: read.records,
        records_read: read.records_read,
        delivered: read.delivered,
        uncompressed_bytes: read.uncompressed_bytes,
        share: place.acquired.is_some(),
        redelivered,
    }));
}

/// Which transactions of one partition are known to be aborted at the batch at hand, as the Java client's `Fetcher` keeps
/// it: an aborted transaction begins at its first offset and ends at its producer's abort marker.
struct Aborted<'a> {
    waiting: Vec<&'a AbortedTransaction>,
    open: HashSet<i64>,
}

impl<'a> Aborted<'a> {
    fn new(partition: &'a PartitionData<'_>, isolation_level: Option<i8>) -> Self {
        let mut waiting: Vec<_> =
            if isolation_level == Some(READ_COMMITTED) { partition.aborted_transactions.iter().collect() } else { Vec::new() };
        // Last first, so that the next one is popped.
        waiting.sort_by_key(|t| std::cmp::Reverse(t.first_offset));
        Self { waiting, open: HashSet::new() }
    }

    fn marker(&mut self, kind: ControlKind, producer_id: i64) {
        // The first marker behind an aborted transaction's start is its own: one that cannot be read ends it as well.
        if matches!(kind, ControlKind::Abort | ControlKind::Unreadable) {
            self.open.remove(&producer_id);
        }
    }

    fn rule(&mut self, batch: &Batch<'_>, fetch_offset: Option<i64>) -> Rule<'static> {
        let header = batch.header();
        let last_offset = header.last_offset();
        while self.waiting.last().is_some_and(|t| t.first_offset <= last_offset)
            && let Some(transaction) = self.waiting.pop()
        {
            self.open.insert(transaction.producer_id);
        }
        let aborted = header.transactional && self.open.contains(&header.producer_id);
        Rule::Fetch { fetch_offset, skipped: aborted.then_some(Skipped::Aborted) }
    }
}
