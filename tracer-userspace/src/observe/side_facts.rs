//! What answers tell beside sending and fetching: names, clusters, groups, commits.

#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::history::History;
use super::learn::{ClientKey, Learnt, Peer};
use super::names::Names;
use super::transactions::{Pending, TransactionalId, Transactions};
use super::{Answered, Commit, Emit, Observation, Observer, Outcome, Topic, outcome, topic};
use crate::kafka::api::offset_commit::{OffsetCommitRequest, OffsetCommitResponse};
use crate::kafka::api::share_acknowledge::{ShareAcknowledgeRequest, ShareAcknowledgeResponse};
use crate::kafka::api::txn_offset_commit::{TxnOffsetCommitRequest, TxnOffsetCommitResponse};
use crate::kafka::api::{NodeEndpoint, Request, Response, TopicRef};
use crate::kafka::versions;

/// Epochs by which a member of a KIP-848 group says that it leaves (-2: a static member that may come back).
pub(super) const LEAVING: [i32; 2] = [-1, -2];

impl Observer {
    pub(super) fn learn_from_answer(&mut self, client: &ClientKey, peer: &Peer, request: &Request<'_>, response: &Response<'_>) {
        self.learn_group(client, peer, request, response);
        match response {
            Response::Metadata(metadata) => {
                if let Some(cluster_id) = metadata.cluster_id {
                    let brokers = metadata.brokers.iter().map(|b| (b.host, b.port));
                    self.learn_cluster(client, peer, cluster_id, brokers);
                }
                for topic in metadata.topics.iter().filter(|t| t.error_code == 0) {
                    self.learn_topic(client, peer, topic.topic_id, topic.name);
                }
            }
            Response::DescribeCluster(answer) if answer.error_code == 0 && answer.endpoint_type == 1 => {
                let brokers = answer.brokers.iter().map(|b| (b.host, b.port));
                self.learn_cluster(client, peer, answer.cluster_id, brokers);
            }
            Response::DescribeTopicPartitions(answer) => {
                for topic in answer.topics.iter().filter(|t| t.error_code == 0) {
                    self.learn_topic(client, peer, topic.topic_id, topic.name);
                }
            }
            Response::CreateTopics(answer) => {
                for topic in answer.topics.iter().filter(|t| t.error_code == 0) {
                    self.learn_topic(client, peer, topic.topic_id, Some(topic.name));
                }
            }
            Response::FindCoordinator(answer) => {
                let one = (answer.error_code == 0 && !answer.host.is_empty()).then_some((answer.host, answer.port));
                let several = answer.coordinators.iter().filter(|c| c.error_code == 0).map(|c| (c.host, c.port));
                self.learn_endpoints(client, peer, one.into_iter().chain(several));
            }
            Response::Produce(answer) => self.learn_hints(client, peer, &answer.node_endpoints),
            Response::Fetch(answer) => self.learn_hints(client, peer, &answer.node_endpoints),
            Response::ShareFetch(answer) => self.learn_hints(client, peer, &answer.node_endpoints),
            Response::ShareAcknowledge(answer) => self.learn_hints(client, peer, &answer.node_endpoints),
            _ => {}
        }
    }

    /// Where the leaders are that a refusal names (KIP-951).
    fn learn_hints(&mut self, client: &ClientKey, peer: &Peer, endpoints: &[NodeEndpoint<'_>]) {
        self.learn_endpoints(client, peer, endpoints.iter().map(|endpoint| (endpoint.host, endpoint.port)));
    }

    /// Some brokers of a cluster. Only addresses say which broker is meant: of names, another may listen on the same port.
    fn learn_endpoints<'b>(&mut self, client: &ClientKey, peer: &Peer, endpoints: impl Iterator<Item = (&'b str, i32)>) {
        let cluster_id = self.learnt.cluster_of(peer.broker, client);
        for (host, port) in endpoints {
            let (Ok(ip), Ok(port)) = (host.parse::<IpAddr>(), u16::try_from(port)) else { continue };
            let (address, host) = (SocketAddr::new(ip, port), self.names.intern(host));
            if let Some(cluster_id) = &cluster_id {
                self.learnt.cluster(address, cluster_id);
            }
            self.learnt.advertised(address, &host, port);
        }
    }

    fn learn_topic(&mut self, client: &ClientKey, peer: &Peer, id: Option<super::TopicId>, name: Option<&str>) {
        if let (Some(id), Some(name)) = (id, name) {
            let name = self.names.intern(name);
            self.learnt.topic(id, &name);
            if let Some(cluster_id) = self.learnt.cluster_of(peer.broker, client) {
                self.learnt.topic_in(&cluster_id, &name, id);
            }
        }
    }

    fn learn_cluster<'b>(
        &mut self,
        client: &ClientKey,
        peer: &Peer,
        cluster_id: &str,
        brokers: impl Iterator<Item = (&'b str, i32)> + Clone,
    ) {
        let cluster_id = self.names.intern(cluster_id);
        self.learnt.cluster(peer.broker, &cluster_id);
        self.learnt.client_cluster(client, &cluster_id);
        let usable = brokers.filter_map(|(host, port)| Some((host, u16::try_from(port).ok()?)));
        for (host, port) in usable.clone() {
            if let Ok(ip) = host.parse::<IpAddr>() {
                let (address, host) = (SocketAddr::new(ip, port), self.names.intern(host));
                self.learnt.cluster(address, &cluster_id);
                self.learnt.advertised(address, &host, port);
            }
        }
        // The broker at hand is the only one that listens on its port, unless several hosts do or a proxy is between.
        let mut same_port = usable.filter(|(host, port)| *port == peer.broker.port() && host.parse::<IpAddr>().is_err());
        if let (Some((host, port)), None) = (same_port.next(), same_port.next()) {
            let host = self.names.intern(host);
            self.learnt.advertised(peer.broker, &host, port);
        }
    }

    /// Requests that only a member of a group makes (or who acts for one: a consumer that assigns itself and commits).
    fn learn_group(&mut self, client: &ClientKey, peer: &Peer, request: &Request<'_>, response: &Response<'_>) {
        let (group, leaves) = match request {
            Request::JoinGroup(r) => (r.group_id, false),
            Request::SyncGroup(r) => (r.group_id, false),
            Request::Heartbeat(r) => (r.group_id, false),
            Request::LeaveGroup(r) => (r.group_id, true),
            Request::ConsumerGroupHeartbeat(r) => (r.group_id, LEAVING.contains(&r.member_epoch)),
            Request::ShareGroupHeartbeat(r) => (r.group_id, LEAVING.contains(&r.member_epoch)),
            Request::StreamsGroupHeartbeat(r) => (r.group_id, LEAVING.contains(&r.member_epoch)),
            Request::OffsetCommit(r) => (r.group_id, false),
            Request::OffsetFetch(r) => match r.groups.as_slice() {
                [] => (r.group_id, false),
                [group] => (group.group_id, false),
                // Several at once: an administrator's tool.
                _ => return,
            },
            _ => return,
        };
        if group.is_empty() || matches!(error_code(response), GROUP_AUTHORIZATION_FAILED | INVALID_GROUP_ID) {
            return;
        }
        if leaves {
            self.learnt.left(client, peer, group);
        } else {
            let group = self.names.intern(group);
            self.learnt.member(client, peer, &group);
        }
    }
}

const GROUP_AUTHORIZATION_FAILED: i16 = 30;
const INVALID_GROUP_ID: i16 = 24;

/// The error code of a whole answer, where its API has one at the top.
pub(super) const fn error_code(response: &Response<'_>) -> i16 {
    match response {
        Response::Fetch(r) => r.error_code,
        Response::Metadata(r) => r.error_code,
        Response::ApiVersions(r) => r.error_code,
        Response::FindCoordinator(r) => r.error_code,
        Response::JoinGroup(r) => r.error_code,
        Response::SyncGroup(r) => r.error_code,
        Response::Heartbeat(r) => r.error_code,
        Response::LeaveGroup(r) => r.error_code,
        Response::OffsetFetch(r) => r.error_code,
        Response::ConsumerGroupHeartbeat(r) => r.error_code,
        Response::ShareGroupHeartbeat(r) => r.error_code,
        Response::StreamsGroupHeartbeat(r) => r.error_code,
        Response::ShareFetch(r) => r.error_code,
        Response::ShareAcknowledge(r) => r.error_code,
        Response::InitProducerId(r) => r.error_code,
        Response::EndTxn(r) => r.error_code,
        Response::AddOffsetsToTxn(r) => r.error_code,
        Response::SaslHandshake(r) => r.error_code,
        Response::SaslAuthenticate(r) => r.error_code,
        Response::DescribeCluster(r) => r.error_code,
        _ => 0,
    }
}

/// Requests between brokers and controllers: of APIs that only they speak, and Fetch of a follower or of `KRaft`'s log.
pub(super) fn is_inter_broker(api_key: i16, request: &Request<'_>) -> bool {
    match request {
        Request::Fetch(r) => r.replica_id >= 0 || r.replica_state.replica_id >= 0,
        Request::ListOffsets(r) => r.replica_id >= 0,
        _ => versions::lookup(api_key).is_some_and(|row| row.inter_broker),
    }
}

/// What reading a commit takes.
pub(super) struct CommitTools<'a> {
    pub(super) names: &'a mut Names,
    pub(super) history: &'a mut History,
    pub(super) transactions: &'a mut Transactions,
}

/// The client ids of Kafka's own fetchers (`ReplicaFetcherThread`, `KafkaRaftManager`), for a Fetch that cannot be read to
/// its end: since v15 the replica stands there.
pub(super) fn is_broker_client(client_id: Option<&str>) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(client_id) = client_id else { return false };
    let fetcher = client_id.strip_prefix("broker-").and_then(|rest| rest.split_once("-fetcher-"));
    fetcher.is_some_and(|(broker, thread)| is_number(broker) && is_number(thread))
        || client_id.strip_prefix("raft-client-").is_some_and(is_number)
}

/// `OffsetCommit` was answered.
pub(super) fn committed(
    request: &OffsetCommitRequest<'_>,
    response: &OffsetCommitResponse<'_>,
    answered: &Answered<'_>,
    tools: &mut CommitTools<'_>,
    emit: &mut Emit<'_>,
) {
    let group = tools.names.intern(request.group_id);
    for asked in &request.topics {
        let said = response.topics.iter().find(|t| t.topic == asked.topic);
        for partition in &asked.partitions {
            let said = said.and_then(|t| t.partitions.iter().find(|p| p.partition_index == partition.partition_index));
            let place = (asked.topic, partition.partition_index, partition.committed_offset);
            let Some(pending) = pending(&group, place, said.map(|p| p.error_code), answered, tools.names, emit.learnt) else { continue };
            give(pending, tools.history, emit);
        }
    }
}

/// `TxnOffsetCommit` was answered: what it says holds once its transaction is committed.
pub(super) fn txn_committed(
    request: &TxnOffsetCommitRequest<'_>,
    response: &TxnOffsetCommitResponse<'_>,
    answered: &Answered<'_>,
    tools: &mut CommitTools<'_>,
    emit: &mut Emit<'_>,
) {
    let group = tools.names.intern(request.group_id);
    let producer = (request.producer_id, request.producer_epoch);
    let id = transactional_id(request.transactional_id, answered, tools.names);
    for asked in &request.topics {
        let said = response.topics.iter().find(|t| t.topic == asked.topic);
        for partition in &asked.partitions {
            let said = said.and_then(|t| t.partitions.iter().find(|p| p.partition_index == partition.partition_index));
            let place = (asked.topic, partition.partition_index, partition.committed_offset);
            let Some(pending) = pending(&group, place, said.map(|p| p.error_code), answered, tools.names, emit.learnt) else { continue };
            let unended = match pending.commit.outcome {
                Outcome::Success => tools.transactions.add(id.clone(), producer, pending),
                _ => vec![pending],
            };
            for pending in unended {
                give(pending, tools.history, emit);
            }
        }
    }
}

/// `EndTxn` was answered well, or the producer's next life began.
pub(super) fn transaction_ended(id: &str, committed: bool, answered: &Answered<'_>, tools: &mut CommitTools<'_>, emit: &mut Emit<'_>) {
    let offsets = tools.transactions.end(&transactional_id(id, answered, tools.names));
    if committed {
        for pending in offsets {
            give(pending, tools.history, emit);
        }
    }
}

fn transactional_id(id: &str, answered: &Answered<'_>, names: &mut Names) -> TransactionalId {
    TransactionalId { cluster_id: answered.operation.cluster_id.clone(), id: names.intern(id) }
}

/// One topic-partition of a commit; `None` when it asks for nothing.
fn pending(
    group: &Arc<str>,
    (reference, partition, offset): (TopicRef<'_>, i32, i64),
    error_code: Option<i16>,
    answered: &Answered<'_>,
    names: &mut Names,
    learnt: &mut Learnt,
) -> Option<Pending> {
    if offset < 0 {
        return None;
    }
    let topic = topic(reference, names);
    let identity = learnt.identity(&topic, answered.operation.cluster_id.as_ref());
    let commit = Commit {
        operation: Arc::clone(&answered.operation),
        group: Arc::clone(group),
        topic,
        partition,
        offset,
        moves: true,
        outcome: error_code.map_or(Outcome::AnswerNotSeen, outcome),
        acknowledged: None,
    };
    Some(Pending { commit, topic: identity })
}

fn give(pending: Pending, history: &mut History, emit: &mut Emit<'_>) {
    let Pending { mut commit, topic } = pending;
    if commit.outcome == Outcome::Success {
        commit.moves = history.committing(&commit.group, &topic, commit.partition, commit.offset);
    }
    emit.give(Observation::Commit(commit));
}

/// One range that a member of a share group acknowledges.
pub(super) struct Acknowledged<'a> {
    pub(super) group: &'a Arc<str>,
    pub(super) topic: &'a Topic,
    pub(super) partition: i32,
    pub(super) first_offset: i64,
    pub(super) last_offset: i64,
    /// One type for the whole range, or one for each offset of it.
    pub(super) types: &'a [i8],
    pub(super) error_code: Option<i16>,
}

/// Runs of one range that are told apart; a client that acknowledges every other record differently has half as many as
/// records. Beyond it the rest of the range is told with the type of its first record.
const MAX_RUNS: usize = 1024;

pub(super) fn acknowledged(ack: &Acknowledged<'_>, answered: &Answered<'_>, emit: &mut Emit<'_>) {
    let mut first = ack.first_offset;
    let mut runs = 0;
    while first <= ack.last_offset {
        let at = usize::try_from(first - ack.first_offset).unwrap_or(usize::MAX);
        let kind = ack.types.get(at).or(ack.types.first()).copied().unwrap_or(0);
        let same = ack.types.get(at..).unwrap_or_default().iter().take_while(|k| **k == kind).count();
        runs += 1;
        let last = if ack.types.len() <= 1 || runs >= MAX_RUNS || at >= ack.types.len() {
            ack.last_offset
        } else {
            (first + i64::try_from(same).unwrap_or(1) - 1).min(ack.last_offset)
        };
        emit.give(Observation::Commit(Commit {
            operation: Arc::clone(&answered.operation),
            group: Arc::clone(ack.group),
            topic: ack.topic.clone(),
            partition: ack.partition,
            offset: last.saturating_add(1),
            moves: true,
            outcome: ack.error_code.map_or(Outcome::AnswerNotSeen, outcome),
            acknowledged: Some((first, last, acknowledge_type(kind))),
        }));
        let Some(next) = last.checked_add(1) else { return };
        first = next;
    }
}

/// The names of KIP-932 (and 4 of KIP-1222).
const fn acknowledge_type(kind: i8) -> &'static str {
    match kind {
        0 => "gap",
        1 => "accept",
        2 => "release",
        3 => "reject",
        4 => "renew",
        _ => "_OTHER",
    }
}

/// `ShareAcknowledge` was answered.
pub(super) fn share_acknowledged(
    request: &ShareAcknowledgeRequest<'_>,
    response: &ShareAcknowledgeResponse<'_>,
    answered: &Answered<'_>,
    names: &mut Names,
    emit: &mut Emit<'_>,
) {
    let Some(group) = request.group_id.map(|g| names.intern(g)) else { return };
    for asked in &request.topics {
        let topic = topic(asked.topic, names);
        let said = response.responses.iter().find(|t| t.topic == asked.topic);
        for partition in &asked.partitions {
            let error_code = if response.error_code == 0 {
                said.and_then(|t| t.partitions.iter().find(|p| p.partition_index == partition.partition_index)).map(|p| p.error_code)
            } else {
                Some(response.error_code)
            };
            for batch in &partition.acknowledgement_batches {
                acknowledged(
                    &Acknowledged {
                        group: &group,
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
}
