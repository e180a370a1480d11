//! A Kafka broker of one node, broker and controller in one process.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Distribution, Process, Scratch, free_port, wait_for, wire};
use crate::step;

const READY_WITHIN: Duration = Duration::from_secs(90);

/// A running broker; its data goes with it.
#[derive(Debug)]
pub struct Broker {
    process: Process,
    port: u16,
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
        let (port, controller_port) = (free_port()?, free_port()?);
        let settings = scratch.path().join("server.properties");
        fs::write(&settings, properties(port, controller_port, &scratch.path().join("data")))?;
        let mut format = java(distribution);
        format.args(["kafka.tools.StorageTool", "format", "--cluster-id", &cluster_id()?, "--config"]).arg(&settings);
        step::quiet("format the broker's storage", &mut format)?;
        let mut kafka = java(distribution);
        kafka.arg("kafka.Kafka").arg(&settings);
        let mut process = Process::start("broker", scratch.path(), &mut kafka)?;
        wait_for("the broker's first answer", READY_WITHIN, || {
            process.alive()?;
            Ok(wire::api_versions(port).ok())
        })?;
        Ok(Self { process, port, distribution: distribution.clone(), _scratch: scratch })
    }

    /// The address for clients.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port of that address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it runs.
    pub fn distribution(&self) -> &Distribution {
        &self.distribution
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
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
        wire::create_topic(self.port, topic, partitions, settings).with_context(|| format!("cannot create topic {topic}"))
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn delete_topic(&self, topic: &str) -> Result<()> {
        wire::delete_topic(self.port, topic).with_context(|| format!("cannot delete topic {topic}"))
    }
}

fn java(distribution: &Distribution) -> Command {
    distribution.java("1g")
}

/// 16 random bytes as the kernel writes them, in the spelling of Kafka's identifiers.
fn cluster_id() -> Result<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let path = "/proc/sys/kernel/random/uuid";
    let uuid = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let number = u128::from_str_radix(&uuid.trim().replace('-', ""), 16).with_context(|| format!("{path} holds no uuid"))?;
    // Kafka's tools take an identifier that begins with a dash for an option: the first bit is 0, the first digit a letter.
    let number = number & (u128::MAX >> 1);
    // 128 bits in 22 digits of 6 bits, the last 4 of them padding.
    let digits = (0..22).map(|index| {
        let shift = 128 - 6 * (index + 1);
        let digit = if shift >= 0 { number >> shift } else { number << -shift } & 63;
        char::from(usize::try_from(digit).ok().and_then(|digit| ALPHABET.get(digit)).copied().unwrap_or(b'A'))
    });
    Ok(digits.collect())
}

fn properties(port: u16, controller_port: u16, data: &Path) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.enable=false
log.segment.delete.delay.ms=1000
",
        data.display()
    )
}

#[cfg(test)]
mod tests {
    use super::cluster_id;

    #[test]
    fn a_cluster_id_has_the_shape_of_kafkas() {
        let id = cluster_id().unwrap();
        assert_eq!(id.len(), 22, "{id}");
        assert!(id.starts_with(|first: char| first.is_ascii_alphabetic()), "{id}");
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'), "{id}");
        assert!("AQgw".contains(id.chars().last().unwrap()), "the last digit holds two bits: {id}");
        assert_ne!(id, cluster_id().unwrap());
    }
}
