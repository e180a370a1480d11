//! Kafka applications over seven libraries with one way of telling them what to do.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::broker::USER;
use super::{Access, Broker, Distribution, Process};
use crate::tools::Netty;
use crate::{step, tools, workspace};

const CONFLUENT_KAFKA_VERSION: &str = "2.16.1";
const KAFKA_PYTHON_VERSION: &str = "3.0.12";
/// What kafka-python compresses with.
const KAFKA_PYTHON_CODECS: [(&str, &str); 3] = [("lz4", "4.4.5"), ("python-snappy", "0.7.3"), ("zstandard", "0.25.0")];

/// The client library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// Apache Kafka's own.
    Java,
    /// librdkafka, through its Python binding.
    Librdkafka,
    /// franz-go.
    Go,
    /// sarama, in Go.
    Sarama,
    /// kafka-python.
    KafkaPython,
    /// kafkajs, in Node.js.
    Kafkajs,
    /// krafka, in Rust, with rustls.
    Krafka,
}

impl Language {
    /// Those that can do all there is to do.
    pub const ALL: [Self; 3] = [Self::Java, Self::Librdkafka, Self::Go];
    /// Those whose TLS can be seen into: OpenSSL built in, shared, and over memory, Go's own, and rustls.
    pub const SEEN_INTO: [Self; 6] = [Self::Librdkafka, Self::KafkaPython, Self::Kafkajs, Self::Go, Self::Sarama, Self::Krafka];
    /// All that do endless work.
    pub const ENDLESS: [Self; 6] = [Self::Java, Self::Librdkafka, Self::Go, Self::Sarama, Self::KafkaPython, Self::Kafkajs];

    /// A word for topic names and client ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Java => "java",
            Self::Librdkafka => "librdkafka",
            Self::Go => "go",
            Self::Sarama => "sarama",
            Self::KafkaPython => "kafka-python",
            Self::Kafkajs => "kafkajs",
            Self::Krafka => "krafka",
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
    libraries: Option<PathBuf>,
    encryption: Encryption,
    access: Access,
}

/// Where a client has its TLS from.
#[derive(Clone, Debug)]
enum Encryption {
    /// From where its library or language has it.
    Own,
    /// `GnuTLS`; kafka-python.
    GnuTls,
    /// `BoringSSL`, from netty; Java.
    BoringSsl {
        /// With the file that its code is in.
        netty: Netty,
        /// What has the client use it.
        classes: PathBuf,
    },
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

/// What an application does until it is told to stop.
#[derive(Clone, Debug)]
pub struct Work<'a> {
    /// It goes on until this file exists.
    pub until: &'a Path,
    /// What.
    pub kind: WorkKind,
    /// Its client id.
    pub client_id: &'a str,
    /// The topic that it sends to or reads from.
    pub topic: &'a str,
    /// The group that it reads in; nothing to a producer.
    pub group: &'a str,
    /// A producer's codecs, one each round.
    pub codecs: &'a [&'a str],
    /// How long a round is: then a new client takes over. Zero: never.
    pub round: Duration,
    /// Records a second that a producer sends; what it could not send in time follows.
    pub rate: usize,
    /// More settings, as the library names them.
    pub properties: &'a [(&'a str, &'a str)],
}

/// What there is to do without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// Send records of up to 1,500 bytes; each second one carries a `traceparent`, and each tenth of those is not sampled.
    Produce,
    /// The same in transactions, of which each fourth is aborted. Java alone.
    Transact,
    /// Read as member of a consumer group, and commit.
    Consume,
    /// Read as member of a share group. Java alone.
    Share,
}

/// What an application at endless work tells of a record.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Told {
    /// Who tells it.
    pub client_id: String,
    /// Its partition; `None` if it could not be sent.
    pub partition: Option<i32>,
    /// Its offset; `None` if it could not be sent.
    pub offset: Option<i64>,
    /// The value of its `traceparent` header.
    pub traceparent: Option<String>,
    /// How it was compressed, as its producer was told to.
    pub codec: Option<String>,
    /// Before it was given to the library, in microseconds since 1970; nothing of a record that was received.
    pub from_us: Option<u64>,
    /// When its answer was known, or it was received.
    pub to_us: u64,
    /// Why it could not be sent.
    pub error: Option<String>,
    /// `committed`, `aborted` or `unknown`: how its transaction ended.
    pub transaction: Option<String>,
}

/// Applications of one library at endless work.
#[derive(Debug)]
pub struct Workers {
    process: Process,
    language: Language,
    /// Bytes of their output that were read.
    read: usize,
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

#[derive(Default, Serialize)]
struct Job<'a> {
    library: &'a str,
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
    properties: BTreeMap<&'a str, Cow<'a, str>>,
    codecs: &'a [&'a str],
    round_ms: u128,
    until: Cow<'a, str>,
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
            Language::Go | Language::Sarama => tools::go_program("go", &[], "clients over franz-go and sarama, about 40 s")?,
            Language::KafkaPython => {
                let why = "a client over kafka-python with all its codecs, by pip";
                tools::python_packages("kafka-python", KAFKA_PYTHON_VERSION, &KAFKA_PYTHON_CODECS, why)?
            }
            Language::Kafkajs => tools::node_packages("kafkajs", "a client over kafkajs with all its codecs, by npm")?,
            Language::Krafka => tools::rust_client(&[], "a client in Rust, with rustls, about 30 s")?,
        };
        Ok(Self {
            language,
            home,
            distribution: distribution.clone(),
            service: None,
            libraries: None,
            encryption: Encryption::Own,
            access: Access::Plain,
        })
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

    /// The same client, coming another way. Only Java and those of [`Language::SEEN_INTO`] know another.
    #[must_use]
    pub fn over(&self, access: Access) -> Self {
        Self { access, ..self.clone() }
    }

    /// The same client with libraries from `dir` first.
    #[must_use]
    pub fn with_libraries(&self, dir: &Path) -> Self {
        Self { libraries: Some(dir.to_owned()), ..self.clone() }
    }

    /// The same client, in kafka-python, with its TLS from `GnuTLS`.
    ///
    /// # Errors
    /// If that library is missing and cannot be installed.
    pub fn over_gnutls(&self) -> Result<Self> {
        tools::ensure_gnutls()?;
        Ok(Self { encryption: Encryption::GnuTls, ..self.clone() })
    }

    /// The same client, in Java, with its TLS from `BoringSSL`. It unpacks that library to a place of its own, unless it has it
    /// [`Self::with_libraries`].
    ///
    /// # Errors
    /// If netty is missing and Maven does not get it, or what has the client use it does not compile.
    pub fn over_boringssl(&self) -> Result<Self> {
        let netty = tools::netty()?;
        let classes = self.distribution.classes("netty/NettyEngines", &[&netty.jars])?;
        Ok(Self { encryption: Encryption::BoringSsl { netty, classes }, ..self.clone() })
    }

    /// How it comes to the broker.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The same client, in Go, without symbols.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn stripped(&self) -> Result<Self> {
        let home = tools::go_program("go", &["-ldflags=-s -w"], "the same without symbols, about 10 s")?;
        Ok(Self { home, ..self.clone() })
    }

    /// The same client, in Rust, with an optimised rustls.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn optimised(&self) -> Result<Self> {
        // An optimised krafka takes a minute more to build, and calls the same functions.
        let optimised = ["rustls", "tokio-rustls"].map(|name| format!("--config=profile.dev.package.{name}.opt-level=3"));
        let home = tools::rust_client(&optimised.each_ref().map(String::as_str), "the same with an optimised rustls, about 30 s")?;
        Ok(Self { home, ..self.clone() })
    }

    /// The files that a client in Python, in Go, in Rust, for Node.js or over `BoringSSL` has its TLS from.
    ///
    /// # Errors
    /// If Python does not load the client, or has no such file.
    pub fn tls_libraries(&self) -> Result<Vec<PathBuf>> {
        if let Encryption::BoringSsl { netty, .. } = &self.encryption {
            return Ok(vec![netty.library.clone()]);
        }
        if matches!(self.language, Language::Go | Language::Sarama | Language::Krafka) {
            return Ok(vec![self.home.clone()]);
        }
        if self.language == Language::Kafkajs {
            let node = step::output(Command::new("node").args(["-p", "process.execPath"]))?;
            return Ok(vec![PathBuf::from(node.trim())]);
        }
        let is_over_gnutls = matches!(self.encryption, Encryption::GnuTls);
        let module = match (self.language, is_over_gnutls) {
            (_, true) => "gnutls_ssl",
            (Language::Librdkafka, _) => "confluent_kafka",
            _ => "ssl",
        };
        let program = format!("import {module}\nfor line in open('/proc/self/maps'):\n if ' r-xp ' in line: print(line.split()[-1])");
        let mapped = step::output(Command::new("python3").args(["-c", &program]).env("PYTHONPATH", self.python_path()?))?;
        let names: &[&str] = if is_over_gnutls { &["libgnutls"] } else { &["librdkafka", "libssl"] };
        let is_wanted = |path: &&str| path.rsplit('/').next().is_some_and(|file| names.iter().any(|name| file.starts_with(name)));
        let found: Vec<PathBuf> = mapped.lines().filter(is_wanted).map(PathBuf::from).collect();
        anyhow::ensure!(!found.is_empty(), "{module} has no TLS library of its own");
        Ok(found)
    }

    fn python_path(&self) -> Result<std::ffi::OsString> {
        let paths = [self.home.clone(), workspace::root().join("tests/clients/python")];
        std::env::join_paths(paths).context("a path with a colon in it")
    }

    /// The client's own words for how it comes to the broker.
    fn security<'a>(&self, broker: &'a Broker) -> BTreeMap<&'a str, Cow<'a, str>> {
        let Some(certificates) = broker.certificates().filter(|_| self.access != Access::Plain) else { return BTreeMap::new() };
        let is_mutual = self.access == Access::MutualTls;
        let path = |path: PathBuf| Cow::Owned(path.to_string_lossy().into_owned());
        if self.language == Language::Java {
            let mut words =
                BTreeMap::from([("ssl.truststore.location", path(certificates.authority())), ("ssl.truststore.type", "PEM".into())]);
            if is_mutual {
                let store = path(certificates.client_store());
                words.extend([("security.protocol", "SSL".into()), ("ssl.keystore.location", store), ("ssl.keystore.type", "PEM".into())]);
            } else {
                let module = "org.apache.kafka.common.security.plain.PlainLoginModule";
                let login = format!("{module} required username=\"{}\" password=\"{}\";", USER.0, USER.1);
                let (protocol, mechanism) = (("security.protocol", "SASL_SSL".into()), ("sasl.mechanism", "PLAIN".into()));
                words.extend([protocol, mechanism, ("sasl.jaas.config", login.into())]);
            }
            if matches!(self.encryption, Encryption::BoringSsl { .. }) {
                words.insert("ssl.engine.factory.class", "NettyEngines".into());
            }
            return words;
        }
        let (protocol, authority, certificate, key, mechanism, user, password) = if self.language == Language::KafkaPython {
            let (user, password) = ("sasl_plain_username", "sasl_plain_password");
            ("security_protocol", "ssl_cafile", "ssl_certfile", "ssl_keyfile", "sasl_mechanism", user, password)
        } else {
            let (certificate, key) = ("ssl.certificate.location", "ssl.key.location");
            ("security.protocol", "ssl.ca.location", certificate, key, "sasl.mechanism", "sasl.username", "sasl.password")
        };
        let mut words = BTreeMap::from([(authority, path(certificates.authority()))]);
        if is_mutual {
            words.extend([(protocol, "SSL".into()), (certificate, path(certificates.client())), (key, path(certificates.client_key()))]);
        } else {
            words.extend([(protocol, "SASL_SSL".into()), (mechanism, "PLAIN".into()), (user, USER.0.into()), (password, USER.1.into())]);
        }
        words
    }

    /// Starts producing; `client_id` is also the name of its files in `dir`.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn produce(&self, broker: &Broker, dir: &Path, client_id: &str, what: &Produce<'_>) -> Result<Running> {
        self.start(
            dir,
            &Job {
                library: self.library(),
                mode: "produce",
                bootstrap: &format!("127.0.0.1:{}", broker.port_for(self.access)?),
                client_id,
                topic: what.topic,
                records: what.records,
                codec: what.codec,
                context_every: what.context_every,
                unsampled_every: what.unsampled_every,
                rate: what.rate,
                value_bytes: what.value_bytes,
                linger_ms: what.linger_ms,
                timeout_seconds: Self::TIME_LIMIT.as_secs(),
                properties: self.security(broker),
                ..Job::default()
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
                library: self.library(),
                mode: "consume",
                bootstrap: &format!("127.0.0.1:{}", broker.port_for(self.access)?),
                client_id,
                topic: what.topic,
                group: what.group,
                records: what.records,
                timeout_seconds: Self::TIME_LIMIT.as_secs(),
                properties: self.security(broker),
                ..Job::default()
            },
        )
    }

    /// Puts applications to work; `name` is that of their files in `dir`. Where starting a process is costly they share one. They give
    /// way to the rest of the machine.
    ///
    /// # Errors
    /// If they cannot be started.
    pub fn work(&self, bootstrap: &str, dir: &Path, name: &str, work: &[Work<'_>]) -> Result<Vec<Workers>> {
        let jobs = work.iter().map(|work| Job {
            library: self.library(),
            mode: work.kind.mode(),
            bootstrap,
            client_id: work.client_id,
            topic: work.topic,
            group: work.group,
            context_every: 2,
            unsampled_every: 10,
            rate: work.rate,
            value_bytes: 1_500,
            linger_ms: 20,
            properties: work.properties.iter().map(|(name, value)| (*name, Cow::Borrowed(*value))).collect(),
            codecs: work.codecs,
            round_ms: work.round.as_millis(),
            until: work.until.to_string_lossy(),
            ..Job::default()
        });
        let jobs: Vec<Job<'_>> = jobs.collect();
        let one_process = if self.language == Language::Java { jobs.len().max(1) } else { 1 };
        let start = |(number, jobs): (usize, &[Job<'_>])| {
            let name = format!("{name}-{number}");
            let process = Process::start(&name, dir, &mut self.command(jobs)?)?;
            process.give_way()?;
            Ok(Workers { process, language: self.language, read: 0 })
        };
        jobs.chunks(one_process).enumerate().map(start).collect()
    }

    /// What it is called in jobs.
    fn library(&self) -> &'static str {
        if self.language == Language::Go { "franz-go" } else { self.language.name() }
    }

    fn start(&self, dir: &Path, job: &Job<'_>) -> Result<Running> {
        let process = Process::start(job.client_id, dir, &mut self.command(std::slice::from_ref(job))?)?;
        Ok(Running { process, what: format!("{} {}", job.mode, job.topic), limit: Self::TIME_LIMIT + Duration::from_secs(10) })
    }

    fn command(&self, jobs: &[Job<'_>]) -> Result<Command> {
        let clients = workspace::root().join("tests/clients");
        let python = |program: &str| {
            let mut python = Command::new("python3");
            // Nothing is written beside the sources.
            python.arg(clients.join("python").join(program)).env("PYTHONPATH", &self.home).env("PYTHONDONTWRITEBYTECODE", "1");
            python
        };
        let mut command = match self.language {
            Language::Java => {
                let mut places = vec![self.home.clone()];
                if let Encryption::BoringSsl { netty, classes } = &self.encryption {
                    places.extend([classes.clone(), netty.jars.join("*")]);
                }
                let mut java = self.distribution.java_with("256m", &places);
                java.arg("Client");
                java
            }
            Language::Librdkafka => python("librdkafka.py"),
            Language::KafkaPython => python("kafka_python.py"),
            Language::Go | Language::Sarama | Language::Krafka => Command::new(&self.home),
            Language::Kafkajs => {
                let mut node = Command::new("node");
                node.arg(clients.join("kafkajs/client.mjs")).env("NODE_PATH", &self.home);
                node
            }
        };
        for job in jobs {
            command.arg(serde_json::to_string(job).context("a job is JSON")?);
        }
        if let Some(service) = &self.service {
            command.env("OTEL_SERVICE_NAME", service);
        }
        if matches!(self.encryption, Encryption::GnuTls) {
            command.env("TLS_LIBRARY", "gnutls");
        }
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        Ok(command)
    }
}

impl WorkKind {
    fn mode(self) -> &'static str {
        match self {
            Self::Produce => "produce_until",
            Self::Transact => "transact_until",
            Self::Consume => "consume_until",
            Self::Share => "share_until",
        }
    }
}

impl Workers {
    /// What they were called.
    pub fn name(&self) -> &str {
        self.process.name()
    }

    /// What they told since the last call, in order.
    ///
    /// # Errors
    /// If they told something else.
    pub fn take_told(&mut self) -> Result<Vec<Told>> {
        let text = self.process.stdout_from(self.read)?;
        // The last line may be in the making.
        let whole = text.get(..text.rfind('\n').map_or(0, |end| end + 1)).unwrap_or_default();
        self.read += whole.len();
        let read = |line: &str| serde_json::from_str(line).with_context(|| format!("{} told {line}", self.language.name()));
        whole.lines().filter(|line| line.starts_with('{')).map(read).collect()
    }

    /// Their process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
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
