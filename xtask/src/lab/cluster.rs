//! Brokers that replicate each other, to be stopped, killed and started one by one.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::node::{Node, cluster_id};
use super::wire::{self, Partition};
use super::{Distribution, Scratch, wait_for};

/// Each record is on all of them, and acknowledged when it is on two. A dead broker or member is noticed within seconds.
const PROPERTIES: &str = "default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2
share.coordinator.state.topic.num.partitions=1
broker.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=2000
group.consumer.heartbeat.interval.ms=2000
group.consumer.min.session.timeout.ms=10000
group.consumer.session.timeout.ms=10000
group.share.min.heartbeat.interval.ms=2000
group.share.heartbeat.interval.ms=2000
group.share.min.session.timeout.ms=10000
group.share.session.timeout.ms=10000
num.io.threads=4
";
const REPLICAS: i16 = 3;
const IN_SYNC_WITHIN: Duration = Duration::from_mins(3);
const STOPPED_WITHIN: Duration = Duration::from_mins(2);

/// Three brokers, each a controller too; their data goes with them.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    id: String,
    distribution: Distribution,
    // Dropped after the processes that write into it.
    scratch: Scratch,
}

impl Cluster {
    /// Starts the brokers and waits until all of them answer.
    ///
    /// # Errors
    /// If a storage cannot be formatted, or a broker does not come up in time.
    pub fn start(distribution: &Distribution) -> Result<Self> {
        let scratch = Scratch::new("cluster")?;
        let nodes = (1..=3).map(|number| Node::new(number, scratch.path())).collect::<Result<Vec<_>>>()?;
        let mut cluster = Self { nodes, id: cluster_id()?, distribution: distribution.clone(), scratch };
        let voters: Vec<String> = cluster.nodes.iter().map(Node::voter).collect();
        for node in &mut cluster.nodes {
            node.format(distribution, &cluster.id, &voters, PROPERTIES)?;
            node.run(distribution)?;
        }
        for node in &mut cluster.nodes {
            node.wait_ready()?;
        }
        Ok(cluster)
    }

    /// The addresses for clients.
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        addresses.join(",")
    }

    /// Kafka's identifier of it.
    pub fn cluster_id(&self) -> &str {
        &self.id
    }

    /// The brokers' numbers.
    pub fn numbers(&self) -> Vec<usize> {
        self.nodes.iter().map(Node::number).collect()
    }

    /// Where each broker keeps its partitions' logs.
    pub fn data(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(Node::data).collect()
    }

    /// Creates a topic with a replica on each broker.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<()> {
        // The first nodes may answer before the last one is registered.
        wait_for(&format!("topic {topic}"), IN_SYNC_WITHIN, || {
            let [node, ..] = self.nodes.as_slice() else { return Ok(None) };
            Ok(wire::create_topic(node.port(), topic, partitions, REPLICAS, &[]).ok())
        })
    }

    /// Asks a broker to end, and waits for it.
    ///
    /// # Errors
    /// If it does not run, or does not end in time.
    pub fn stop(&mut self, number: usize) -> Result<()> {
        let node = self.node(number)?;
        node.process()?.terminate(STOPPED_WITHIN)?;
        node.gone();
        Ok(())
    }

    /// Ends a broker with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        let node = self.node(number)?;
        node.process()?.signal(Signal::KILL)?;
        node.process()?.wait(STOPPED_WITHIN)?;
        node.gone();
        Ok(())
    }

    /// Starts a broker again, on its ports and with its data, and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn resume(&mut self, number: usize) -> Result<()> {
        let distribution = self.distribution.clone();
        let node = self.node(number)?;
        node.run(&distribution)?;
        node.wait_ready()
    }

    /// Waits until each partition of each topic has a leader and all its replicas.
    ///
    /// # Errors
    /// If that takes too long, or a broker has ended.
    pub fn wait_in_sync(&mut self) -> Result<()> {
        let ports: Vec<u16> = self.nodes.iter().map(Node::port).collect();
        let mut last = String::new();
        let waited = wait_for("all replicas to be in sync", IN_SYNC_WITHIN, || {
            for node in &mut self.nodes {
                node.process()?.alive()?;
            }
            // What each of them knows: clients may ask any.
            for port in &ports {
                let Ok(partitions) = wire::partitions(*port) else { return Ok(None) };
                if let Some(behind) = partitions.iter().find(|partition| !is_in_sync(partition)) {
                    last = format!("{behind:?}");
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        waited.with_context(|| format!("{last}; logs are in {} (KAFKA_TRACER_KEEP=1 keeps them)", self.scratch.path().display()))
    }

    fn node(&mut self, number: usize) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.number() == number).with_context(|| format!("there is no broker {number}"))
    }
}

fn is_in_sync(partition: &Partition) -> bool {
    partition.error_code == 0 && partition.leader >= 0 && partition.in_sync == partition.replicas
}
