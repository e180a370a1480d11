//! A Kafka broker of one node, broker and controller in one process.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};

use super::node::{Node, cluster_id};
use super::{Certificates, Distribution, Process, Scratch, free_port, wire};

/// Kafka's own topics on one node.
const PROPERTIES: &str = "offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
";

/// How clients come to a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// As it is.
    Plain,
    /// Encrypted; both ends show a certificate.
    MutualTls,
    /// Encrypted; the client shows name and password (SASL PLAIN).
    PasswordOverTls,
}

impl Access {
    /// A word for topic names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::MutualTls => "mutual",
            Self::PasswordOverTls => "password",
        }
    }
}

/// Who may come in with a password, and it.
pub(super) const USER: (&str, &str) = ("alice", "alice-secret");

/// The encrypted side of a broker.
#[derive(Debug)]
struct Secure {
    mutual_port: u16,
    password_port: u16,
    certificates: Certificates,
}

/// A running broker; its data goes with it.
#[derive(Debug)]
pub struct Broker {
    node: Node,
    secure: Option<Secure>,
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
        Self::start_in(distribution, Scratch::new("broker")?, None)
    }

    /// Starts a broker that also listens for encrypted connections.
    ///
    /// # Errors
    /// If the storage cannot be formatted, or the broker does not come up in time.
    pub fn start_secure(distribution: &Distribution) -> Result<Self> {
        let scratch = Scratch::new("broker")?;
        let certificates = Certificates::make(scratch.path())?;
        let secure = Secure { mutual_port: free_port()?, password_port: free_port()?, certificates };
        Self::start_in(distribution, scratch, Some(secure))
    }

    fn start_in(distribution: &Distribution, scratch: Scratch, secure: Option<Secure>) -> Result<Self> {
        let mut node = Node::new(1, scratch.path())?;
        let more = secure.as_ref().map(|secure| secure.properties(&node)).unwrap_or_default();
        node.format(distribution, &cluster_id()?, &[node.voter()], &format!("{PROPERTIES}{more}"))?;
        node.run(distribution)?;
        node.wait_ready()?;
        Ok(Self { node, secure, distribution: distribution.clone(), _scratch: scratch })
    }

    /// The port for clients that come this way.
    ///
    /// # Errors
    /// If the broker does not listen for them.
    pub fn port_for(&self, access: Access) -> Result<u16> {
        let secure = || self.secure.as_ref().context("the broker was started without encrypted listeners");
        Ok(match access {
            Access::Plain => self.port(),
            Access::MutualTls => secure()?.mutual_port,
            Access::PasswordOverTls => secure()?.password_port,
        })
    }

    /// What clients need for encrypted connections.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.secure.as_ref().map(|secure| &secure.certificates)
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

impl Secure {
    /// What comes later in a file of properties is what counts.
    fn properties(&self, node: &Node) -> String {
        let Self { mutual_port, password_port, certificates } = self;
        let outside = format!("PLAINTEXT://127.0.0.1:{},SSL://127.0.0.1:{mutual_port},SASL_SSL://127.0.0.1:{password_port}", node.port());
        format!(
            "listeners={outside},CONTROLLER://127.0.0.1:{}
advertised.listeners={outside}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={}
ssl.truststore.type=PEM
ssl.truststore.location={}
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{}=\"{}\";
",
            node.controller_port(),
            certificates.broker().display(),
            certificates.authority().display(),
            USER.0,
            USER.1
        )
    }
}
