//! Kafka applications in three languages with one way of telling them what to do.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Broker, Distribution, Process};
use crate::{tools, workspace};

const CONFLUENT_KAFKA_VERSION: &str = "2.16.1";

/// The client library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// Apache Kafka's own.
    Java,
    /// librdkafka, through its Python binding.
    Librdkafka,
    /// franz-go.
    Go,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Java, Self::Librdkafka, Self::Go];

    /// A word for topic names and client ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Java => "java",
            Self::Librdkafka => "librdkafka",
            Self::Go => "go",
        }
    }
}

/// A client library with all it needs to run.
#[derive(Clone, Debug)]
pub struct Client {
    language: Language,
    home: PathBuf,
    distribution: Distribution,
    service: Option<String>,
}

/// What a producer is to do.
#[derive(Clone, Debug)]
pub struct Produce<'a> {
    /// Where to.
    pub topic: &'a str,
    /// How many records.
    pub records: usize,
    /// `none`, `gzip`, `snappy`, `lz4` or `zstd`.
    pub codec: &'a str,
    /// Each how-manieth record carries a `traceparent` header, each with a trace of its own; 0: none.
    pub context_every: usize,
    /// Each how-manieth of those is not sampled; 0: all are.
    pub unsampled_every: usize,
    /// Records a second; 0: as fast as it goes.
    pub rate: usize,
    /// Size of each value.
    pub value_bytes: usize,
    /// How long a batch waits for more records.
    pub linger_ms: usize,
}

/// What a consumer is to do: read `records` records from the start, commit after each poll, leave.
#[derive(Clone, Debug)]
pub struct Consume<'a> {
    /// Where from.
    pub topic: &'a str,
    /// As member of this group.
    pub group: &'a str,
    /// How many records there will be.
    pub records: usize,
}

/// A record as its producer or consumer saw it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Record {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The value of its `traceparent` header.
    pub traceparent: Option<String>,
}

#[derive(Serialize)]
struct Job<'a> {
    mode: &'a str,
    bootstrap: &'a str,
    client_id: &'a str,
    topic: &'a str,
    group: &'a str,
    records: usize,
    codec: &'a str,
    context_every: usize,
    unsampled_every: usize,
    rate: usize,
    value_bytes: usize,
    linger_ms: usize,
    timeout_seconds: u64,
    properties: std::collections::BTreeMap<&'a str, &'a str>,
}

/// A client at work.
#[derive(Debug)]
pub struct Running {
    process: Process,
    what: String,
    limit: Duration,
}

impl Client {
    /// The longest that a client works before it gives up.
    const TIME_LIMIT: Duration = Duration::from_mins(2);

    /// Fetches or builds what the language needs. The Java client is that of `distribution`.
    ///
    /// # Errors
    /// If something is missing and cannot be installed.
    pub fn ensure(language: Language, distribution: &Distribution) -> Result<Self> {
        let home = match language {
            Language::Java => distribution.client_classes()?,
            Language::Librdkafka => tools::python_package("confluent-kafka", CONFLUENT_KAFKA_VERSION, "a client over librdkafka, by pip")?,
            Language::Go => tools::go_program("go", "a client over franz-go, about 30 s")?,
        };
        Ok(Self { language, home, distribution: distribution.clone(), service: None })
    }

    /// Its language.
    pub fn language(&self) -> Language {
        self.language
    }

    /// The same client as part of an application that calls itself `service`, as OpenTelemetry's variable does.
    #[must_use]
    pub fn of_service(&self, service: &str) -> Self {
        Self { service: Some(service.to_owned()), ..self.clone() }
    }

    /// Starts producing; `client_id` is also the name of its files in `dir`.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn produce(&self, broker: &Broker, dir: &Path, client_id: &str, what: &Produce<'_>) -> Result<Running> {
        self.start(
            dir,
            &Job {
                mode: "produce",
                bootstrap: &broker.bootstrap(),
                client_id,
                topic: what.topic,
                group: "",
                records: what.records,
                codec: what.codec,
                context_every: what.context_every,
                unsampled_every: what.unsampled_every,
                rate: what.rate,
                value_bytes: what.value_bytes,
                linger_ms: what.linger_ms,
                timeout_seconds: Self::TIME_LIMIT.as_secs(),
                properties: std::collections::BTreeMap::new(),
            },
        )
    }

    /// Starts consuming; `client_id` is also the name of its files in `dir`.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn consume(&self, broker: &Broker, dir: &Path, client_id: &str, what: &Consume<'_>) -> Result<Running> {
        self.start(
            dir,
            &Job {
                mode: "consume",
                bootstrap: &broker.bootstrap(),
                client_id,
                topic: what.topic,
                group: what.group,
                records: what.records,
                codec: "",
                context_every: 0,
                unsampled_every: 0,
                rate: 0,
                value_bytes: 0,
                linger_ms: 0,
                timeout_seconds: Self::TIME_LIMIT.as_secs(),
                properties: std::collections::BTreeMap::new(),
            },
        )
    }

    fn start(&self, dir: &Path, job: &Job<'_>) -> Result<Running> {
        let mut command = match self.language {
            Language::Java => {
                let mut java = self.distribution.java_with("256m", &[&self.home]);
                java.arg("Client");
                java
            }
            Language::Librdkafka => {
                let mut python = Command::new("python3");
                python.arg(workspace::root().join("tests/clients/librdkafka/client.py")).env("PYTHONPATH", &self.home);
                python
            }
            Language::Go => Command::new(&self.home),
        };
        command.arg(serde_json::to_string(job).context("a job is JSON")?);
        if let Some(service) = &self.service {
            command.env("OTEL_SERVICE_NAME", service);
        }
        let process = Process::start(job.client_id, dir, &mut command)?;
        Ok(Running { process, what: format!("{} {}", job.mode, job.topic), limit: Self::TIME_LIMIT + Duration::from_secs(10) })
    }
}

impl Running {
    /// Waits for the client's end and returns the records it reports, in the order it sent or got them.
    ///
    /// # Errors
    /// If it fails, with the end of its log.
    pub fn records(mut self) -> Result<Vec<Record>> {
        self.process.success(self.limit).with_context(|| format!("could not {}", self.what))?;
        let output = self.process.stdout();
        output
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).with_context(|| format!("not a record: {line}")))
            .collect()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
