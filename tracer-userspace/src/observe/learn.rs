//! What was learnt by the way: topic names of ids, clusters and advertised names of brokers, groups of clients.
//!
//! In: facts from answers (Metadata, coordinators, group APIs). Out: names, when asked. Everything is bounded; what falls
//! out is learnt again from the next answer that says it.

#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashlink::LruCache;

use super::history::{KnownTopic, TopicIdentity};
use super::names::MAX_REMEMBERED_BYTES;
use super::{Topic, TopicId};

/// Topic ids remembered. A cluster of 100,000 topics fits.
const MAX_TOPICS: usize = 131_072;
/// Brokers remembered, by address.
const MAX_BROKERS: usize = 16_384;
/// Clients remembered, by host and client id.
const MAX_CLIENTS: usize = 32_768;
/// Memberships remembered for one client; a client that names more groups than this is an administrator's tool.
const MAX_MEMBERSHIPS: usize = 8;

/// Who sends requests, as far as different connections of one client have it in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClientKey {
    /// The client's host.
    pub(super) host: IpAddr,
    /// Its client id.
    pub(super) client_id: Option<Arc<str>>,
}

impl ClientKey {
    fn is_short(&self) -> bool {
        self.client_id.as_ref().is_none_or(|id| id.len() <= MAX_REMEMBERED_BYTES)
    }
}

/// A connection's place in what is learnt.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Number of the connection.
    pub(super) connection_id: u64,
    /// The client's process, where known.
    pub(super) pid: Option<u32>,
    /// The broker's address.
    pub(super) broker: SocketAddr,
}

#[derive(Debug, Default)]
struct Broker {
    cluster_id: Option<Arc<str>>,
    advertised: Option<(Arc<str>, u16)>,
}

#[derive(Debug)]
struct Membership {
    group: Arc<str>,
    connection_id: u64,
    pid: Option<u32>,
    ended: bool,
}

/// The cluster of a client, as long as it is only one.
#[derive(Debug, Default)]
enum OnlyCluster {
    #[default]
    Unknown,
    One(Arc<str>),
    Several,
}

#[derive(Debug, Default)]
struct Client {
    memberships: Vec<Membership>,
    cluster: OnlyCluster,
}

/// Everything learnt by the way.
#[derive(Debug)]
pub(super) struct Learnt {
    topics: LruCache<TopicId, Arc<str>>,
    /// The id that a cluster's topic of this name has now.
    topic_ids: LruCache<(Arc<str>, Arc<str>), TopicId>,
    brokers: LruCache<SocketAddr, Broker>,
    clients: LruCache<ClientKey, Client>,
    /// Counts up with every new name of a topic or a cluster: who waits for one looks again only then.
    generation: u64,
}

impl Default for Learnt {
    fn default() -> Self {
        Self {
            topics: LruCache::new(MAX_TOPICS),
            topic_ids: LruCache::new(MAX_TOPICS),
            brokers: LruCache::new(MAX_BROKERS),
            clients: LruCache::new(MAX_CLIENTS),
            generation: 0,
        }
    }
}

impl Learnt {
    /// Counts up whenever something new was learnt.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    /// A topic id stands for this name. Ids are never used twice, so no cluster is needed.
    pub(super) fn topic(&mut self, id: TopicId, name: &Arc<str>) {
        if name.len() <= MAX_REMEMBERED_BYTES && self.topics.get(&id) != Some(name) {
            self.topics.insert(id, Arc::clone(name));
            self.generation += 1;
        }
    }

    /// The cluster's topic of this name has this id. One that is created anew gets another.
    pub(super) fn topic_in(&mut self, cluster_id: &Arc<str>, name: &Arc<str>, id: TopicId) {
        if cluster_id.len() <= MAX_REMEMBERED_BYTES && name.len() <= MAX_REMEMBERED_BYTES {
            self.topic_ids.insert((Arc::clone(cluster_id), Arc::clone(name)), id);
        }
    }

    /// The id of a topic that the wire names only by its name.
    pub(super) fn topic_id(&mut self, cluster_id: &Arc<str>, name: &Arc<str>) -> Option<TopicId> {
        self.topic_ids.get(&(Arc::clone(cluster_id), Arc::clone(name))).copied()
    }

    /// A topic as itself: by its id, where the wire has it or the cluster's Metadata told it.
    pub(super) fn identity(&mut self, topic: &Topic, cluster_id: Option<&Arc<str>>) -> KnownTopic {
        let told = |learnt: &mut Self| learnt.topic_id(cluster_id?, topic.name.as_ref()?);
        let id = topic.id.or_else(|| told(self)).map(TopicIdentity::Id);
        let named = |cluster_id: Option<&Arc<str>>| {
            let name = topic.name.clone()?;
            Some(TopicIdentity::Name(cluster_id.cloned(), Some(name)))
        };
        match (id, cluster_id) {
            (Some(id), None) => KnownTopic { now: id, before: [named(None), None] },
            (Some(id), Some(_)) => KnownTopic { now: id, before: [named(cluster_id), named(None)] },
            (None, None) => KnownTopic { now: TopicIdentity::Name(None, topic.name.clone()), before: [None, None] },
            (None, Some(_)) => {
                KnownTopic { now: TopicIdentity::Name(cluster_id.cloned(), topic.name.clone()), before: [named(None), None] }
            }
        }
    }

    /// The name of a topic id.
    pub(super) fn topic_name(&mut self, id: TopicId) -> Option<Arc<str>> {
        self.topics.get(&id).cloned()
    }

    /// The broker at `address` belongs to this cluster.
    pub(super) fn cluster(&mut self, address: SocketAddr, cluster_id: &Arc<str>) {
        if cluster_id.len() > MAX_REMEMBERED_BYTES {
            return;
        }
        let broker = self.brokers.entry(address).or_insert_with(Broker::default);
        if broker.cluster_id.as_ref() != Some(cluster_id) {
            broker.cluster_id = Some(Arc::clone(cluster_id));
            self.generation += 1;
        }
    }

    /// The client was told about this cluster.
    pub(super) fn client_cluster(&mut self, client: &ClientKey, cluster_id: &Arc<str>) {
        if !client.is_short() || cluster_id.len() > MAX_REMEMBERED_BYTES {
            return;
        }
        let client = self.clients.entry(client.clone()).or_insert_with(Client::default);
        match &client.cluster {
            OnlyCluster::Unknown => {
                client.cluster = OnlyCluster::One(Arc::clone(cluster_id));
                self.generation += 1;
            }
            OnlyCluster::One(known) if known != cluster_id => client.cluster = OnlyCluster::Several,
            OnlyCluster::One(_) | OnlyCluster::Several => {}
        }
    }

    /// The broker at `address` calls itself by this host and port.
    pub(super) fn advertised(&mut self, address: SocketAddr, host: &Arc<str>, port: u16) {
        if host.len() > MAX_REMEMBERED_BYTES {
            return;
        }
        let broker = self.brokers.entry(address).or_insert_with(Broker::default);
        if broker.advertised.as_ref().is_none_or(|(h, p)| h != host || *p != port) {
            broker.advertised = Some((Arc::clone(host), port));
        }
    }

    /// Cluster of a broker: as its address says, else the only one that the client knows.
    pub(super) fn cluster_of(&mut self, broker: SocketAddr, client: &ClientKey) -> Option<Arc<str>> {
        if let Some(id) = self.brokers.get(&broker).and_then(|b| b.cluster_id.clone()) {
            return Some(id);
        }
        match &self.clients.get(client)?.cluster {
            OnlyCluster::One(id) => Some(Arc::clone(id)),
            OnlyCluster::Unknown | OnlyCluster::Several => None,
        }
    }

    /// Advertised name of the broker at `address`.
    pub(super) fn server(&mut self, address: SocketAddr) -> Option<(Arc<str>, u16)> {
        self.brokers.get(&address)?.advertised.clone()
    }

    /// A request on this connection named its group: the client is (or acts as) a member.
    pub(super) fn member(&mut self, client: &ClientKey, peer: &Peer, group: &Arc<str>) {
        if group.len() > MAX_REMEMBERED_BYTES || !client.is_short() {
            return;
        }
        let client = self.clients.entry(client.clone()).or_insert_with(Client::default);
        if let Some(known) = client.memberships.iter_mut().find(|m| m.group == *group && m.connection_id == peer.connection_id) {
            known.ended = false;
            known.pid = peer.pid.or(known.pid);
            return;
        }
        if client.memberships.len() >= MAX_MEMBERSHIPS {
            let oldest = client.memberships.iter().position(|m| m.ended).unwrap_or(0);
            client.memberships.remove(oldest);
        }
        client.memberships.push(Membership { group: Arc::clone(group), connection_id: peer.connection_id, pid: peer.pid, ended: false });
    }

    /// The client left the group.
    pub(super) fn left(&mut self, client: &ClientKey, peer: &Peer, group: &str) {
        if let Some(client) = self.clients.get_mut(client) {
            for membership in &mut client.memberships {
                if &*membership.group == group && membership.connection_id == peer.connection_id {
                    membership.ended = true;
                }
            }
        }
    }

    /// A connection ended: memberships that were seen on it count only where nothing else fits.
    pub(super) fn closed(&mut self, client: &ClientKey, connection_id: u64) {
        if let Some(client) = self.clients.get_mut(client) {
            for membership in client.memberships.iter_mut().filter(|m| m.connection_id == connection_id) {
                membership.ended = true;
            }
        }
    }

    /// The group of a client that fetches: what was named on the same connection, else on others of the same client (same
    /// process where both are known, same host and client id). When two fit there is no telling.
    pub(super) fn group_of(&mut self, client: &ClientKey, peer: &Peer) -> GroupOf {
        let Some(client) = self.clients.get(client) else { return GroupOf::Unknown };
        let same_connection = |m: &&Membership| m.connection_id == peer.connection_id;
        let same_process = |m: &&Membership| m.pid.is_none() || peer.pid.is_none() || m.pid == peer.pid;
        if client.memberships.iter().any(|m| same_connection(&m)) {
            return only(client.memberships.iter().filter(same_connection));
        }
        let fitting = || client.memberships.iter().filter(same_process);
        if fitting().any(|m| !m.ended) { only(fitting().filter(|m| !m.ended)) } else { only(fitting()) }
    }
}

/// Whose a fetch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GroupOf {
    /// No group of the client was named so far.
    Unknown,
    /// This one's.
    One(Arc<str>),
    /// One of several's.
    Several,
}

impl GroupOf {
    pub(super) const fn one(&self) -> Option<&Arc<str>> {
        match self {
            Self::One(group) => Some(group),
            Self::Unknown | Self::Several => None,
        }
    }
}

/// The one group that all of these name.
fn only<'m>(mut memberships: impl Iterator<Item = &'m Membership>) -> GroupOf {
    let Some(first) = memberships.next() else { return GroupOf::Unknown };
    if memberships.all(|m| m.group == first.group) { GroupOf::One(Arc::clone(&first.group)) } else { GroupOf::Several }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: &str) -> ClientKey {
        ClientKey { host: IpAddr::from([127, 0, 0, 1]), client_id: Some(Arc::from(id)) }
    }

    fn peer(connection_id: u64, pid: Option<u32>) -> Peer {
        Peer { connection_id, pid, broker: SocketAddr::from(([127, 0, 0, 1], 9092)) }
    }

    #[test]
    fn a_client_with_one_group_fetches_for_it_on_any_connection() {
        let mut learnt = Learnt::default();
        assert_eq!(learnt.group_of(&client("c"), &peer(2, None)).one(), None);
        learnt.member(&client("c"), &peer(1, None), &Arc::from("g"));
        assert_eq!(learnt.group_of(&client("c"), &peer(2, None)).one().map(AsRef::as_ref), Some("g"));
        assert_eq!(learnt.group_of(&client("d"), &peer(3, None)).one(), None);
    }

    #[test]
    fn two_groups_that_fit_are_none_until_one_of_them_ends() {
        let mut learnt = Learnt::default();
        learnt.member(&client("c"), &peer(1, None), &Arc::from("g"));
        learnt.member(&client("c"), &peer(2, None), &Arc::from("h"));
        assert_eq!(learnt.group_of(&client("c"), &peer(3, None)).one(), None);
        assert_eq!(learnt.group_of(&client("c"), &peer(2, None)).one().map(AsRef::as_ref), Some("h"));
        learnt.left(&client("c"), &peer(1, None), "g");
        assert_eq!(learnt.group_of(&client("c"), &peer(3, None)).one().map(AsRef::as_ref), Some("h"));
        learnt.closed(&client("c"), 2);
        assert_eq!(learnt.group_of(&client("c"), &peer(3, None)).one(), None);
    }

    #[test]
    fn processes_tell_groups_of_equal_client_ids_apart() {
        let mut learnt = Learnt::default();
        learnt.member(&client("c"), &peer(1, Some(10)), &Arc::from("g"));
        learnt.member(&client("c"), &peer(2, Some(20)), &Arc::from("h"));
        assert_eq!(learnt.group_of(&client("c"), &peer(3, Some(20))).one().map(AsRef::as_ref), Some("h"));
        assert_eq!(learnt.group_of(&client("c"), &peer(3, None)).one(), None);
    }

    #[test]
    fn a_client_of_two_clusters_lends_neither_to_an_unknown_broker() {
        let mut learnt = Learnt::default();
        let (known, unknown) = (SocketAddr::from(([10, 0, 0, 1], 9092)), SocketAddr::from(([10, 0, 0, 2], 9092)));
        learnt.cluster(known, &Arc::from("A"));
        learnt.client_cluster(&client("c"), &Arc::from("A"));
        assert_eq!(learnt.cluster_of(unknown, &client("c")).as_deref(), Some("A"));
        learnt.client_cluster(&client("c"), &Arc::from("B"));
        assert_eq!(learnt.cluster_of(unknown, &client("c")), None);
        assert_eq!(learnt.cluster_of(known, &client("c")).as_deref(), Some("A"));
    }
}
