//! A Kafka broker of one node, broker and controller in one process.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};

use super::node::{Node, cluster_id};
use super::{Distribution, Process, Scratch, wire};

/// Kafka's own topics on one node.
const PROPERTIES: &str = "offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
";

/// A running broker; its data goes with it.
#[derive(Debug)]
pub struct Broker {
    node: Node,
    distribution: Distribution,
    // Dropped after the process that writes into it.
    _scratch: Scratch,
}

impl Broker {
    /// Starts a broker and waits until it answers.
    ///
    /// # Errors
    /// If the storage cannot be formatted, or the broker does not come up in time.
    pub fn start(distribution: &Distribution) -> Result<Self> {
        let scratch = Scratch::new("broker")?;
        let mut node = Node::new(1, scratch.path())?;
        node.format(distribution, &cluster_id()?, &[node.voter()], PROPERTIES)?;
        node.run(distribution)?;
        node.wait_ready()?;
        Ok(Self { node, distribution: distribution.clone(), _scratch: scratch })
    }

    /// The address for clients.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// The port of that address.
    pub fn port(&self) -> u16 {
        self.node.port()
    }

    /// What it runs.
    pub fn distribution(&self) -> &Distribution {
        &self.distribution
    }

    /// Its process.
    ///
    /// # Errors
    /// If it does not run.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.node.process()
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<()> {
        self.create_topic_with(topic, partitions, &[])
    }

    /// Creates a topic with settings of its own.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
        wire::create_topic(self.port(), topic, partitions, 1, settings).with_context(|| format!("cannot create topic {topic}"))
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn delete_topic(&self, topic: &str) -> Result<()> {
        wire::delete_topic(self.port(), topic).with_context(|| format!("cannot delete topic {topic}"))
    }
}
