//! One node of a Kafka cluster: broker and controller in one process.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Distribution, Process, free_port, wait_for, wire};
use crate::step;

const READY_WITHIN: Duration = Duration::from_mins(3);

/// A node, running or stopped; it keeps its ports and its data while it is away.
#[derive(Debug)]
pub(super) struct Node {
    number: usize,
    port: u16,
    controller_port: u16,
    dir: PathBuf,
    starts: usize,
    process: Option<Process>,
}

impl Node {
    /// A node with ports and a place of its own, not running yet.
    pub(super) fn new(number: usize, dir: &Path) -> Result<Self> {
        let dir = dir.join(format!("node-{number}"));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { number, port: free_port()?, controller_port: free_port()?, dir, starts: 0, process: None })
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens for other controllers.
    pub(super) fn controller_port(&self) -> u16 {
        self.controller_port
    }

    /// Its part of `controller.quorum.voters`.
    pub(super) fn voter(&self) -> String {
        format!("{}@127.0.0.1:{}", self.number, self.controller_port)
    }

    /// Where its partitions' logs are.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Prepares its storage.
    pub(super) fn format(&self, distribution: &Distribution, cluster_id: &str, voters: &[String], properties: &str) -> Result<()> {
        let settings = self.settings();
        fs::write(&settings, format!("{}{properties}", self.properties(voters)))?;
        let mut format = java(distribution);
        format.args(["kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config"]).arg(&settings);
        step::quiet("format the broker's storage", &mut format)
    }

    /// Starts it.
    pub(super) fn run(&mut self, distribution: &Distribution) -> Result<()> {
        let mut kafka = java(distribution);
        kafka.arg("kafka.Kafka").arg(self.settings());
        self.starts += 1;
        // Each run has a log of its own.
        let name = if self.starts == 1 { "broker".to_owned() } else { format!("broker-{}", self.starts) };
        self.process = Some(Process::start(&name, &self.dir, &mut kafka)?);
        Ok(())
    }

    /// Waits until it answers.
    pub(super) fn wait_ready(&mut self) -> Result<()> {
        let port = self.port;
        let process = self.process()?;
        wait_for("the broker's first answer", READY_WITHIN, || {
            process.alive()?;
            Ok(wire::api_versions(port).ok())
        })
    }

    /// Its process, if it runs.
    pub(super) fn process(&mut self) -> Result<&mut Process> {
        let number = self.number;
        self.process.as_mut().with_context(|| format!("broker {number} does not run"))
    }

    /// It ended.
    pub(super) fn gone(&mut self) {
        self.process = None;
    }

    fn settings(&self) -> PathBuf {
        self.dir.join("server.properties")
    }

    fn properties(&self, voters: &[String]) -> String {
        let Self { number, port, controller_port, .. } = self;
        format!(
            "process.roles=broker,controller
node.id={number}
controller.quorum.voters={}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={}
auto.create.topics.enable=false
offsets.topic.num.partitions=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
log.cleaner.enable=false
log.segment.delete.delay.ms=1000
",
            voters.join(","),
            self.data().display()
        )
    }
}

fn java(distribution: &Distribution) -> Command {
    distribution.java("1g")
}

/// 16 random bytes as the kernel writes them, in the spelling of Kafka's identifiers.
pub(super) fn cluster_id() -> Result<String> {
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
