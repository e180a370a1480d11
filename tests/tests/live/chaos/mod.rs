//! A cluster, clients of six libraries and the tracer itself, all of them stopped, killed and started again while records flow: what
//! the tracer says is true, and what it does not say is accounted for.
//!
//! `accounts` says what that means, `truth` what is true, `silence` why something may be missing. `cargo xtask chaos` lets it go on for longer.

mod accounts;
mod log;
mod silence;
mod truth;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::process::Signal;
use xtask::lab::{Client, Cluster, Collector, Distribution, Language, Protocol, Scratch, Told, Tracer, Work, WorkKind, Workers, wait_for};

use self::accounts::{Accounts, Application, Life};
use crate::{daemon, turn, unique};

const PARTITIONS: i32 = 3;
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// Records a second of each producer.
const RATE: usize = 20;
/// How long a producer or a restless member of a group lives.
const ROUND: Duration = Duration::from_secs(9);
/// How long the slowest machine may take until everybody sends and reads again.
const PATIENCE: Duration = Duration::from_mins(5);
/// How long no tracer runs when it was ended.
const WITHOUT: Duration = Duration::from_secs(1);

/// Who sends: language, what, the end of the topic's and the client's name.
const PRODUCERS: [(Language, WorkKind, &str); 7] = [
    (Language::Java, WorkKind::Produce, "java"),
    (Language::Java, WorkKind::Transact, "transactions"),
    (Language::Librdkafka, WorkKind::Produce, "librdkafka"),
    (Language::Go, WorkKind::Produce, "franz-go"),
    (Language::Sarama, WorkKind::Produce, "sarama"),
    (Language::KafkaPython, WorkKind::Produce, "kafka-python"),
    (Language::Kafkajs, WorkKind::Produce, "kafkajs"),
];

/// Who reads.
struct Member {
    language: Language,
    kind: WorkKind,
    client: &'static str,
    group: &'static str,
    topic: &'static str,
    /// Leaves and comes back, again and again.
    restless: bool,
    properties: &'static [(&'static str, &'static str)],
}

/// A member that goes while its coordinator does is missed only when its session is over.
const SHORT_SESSION: &[(&str, &str)] = &[("session.timeout.ms", "10000")];

const MEMBERS: [Member; 11] = [
    Member { properties: SHORT_SESSION, ..Member::of(Language::Java, "java-classic-1", "classic", "sarama") },
    Member { restless: true, properties: SHORT_SESSION, ..Member::of(Language::Java, "java-classic-2", "classic", "sarama") },
    Member { properties: &[("group.protocol", "consumer")], ..Member::of(Language::Java, "java-kip848-1", "kip848", "kafkajs") },
    Member {
        restless: true,
        properties: &[("group.protocol", "consumer")],
        ..Member::of(Language::Java, "java-kip848-2", "kip848", "kafkajs")
    },
    Member { kind: WorkKind::Share, ..Member::of(Language::Java, "java-share", "share", "franz-go") },
    Member {
        properties: &[("isolation.level", "read_committed")],
        ..Member::of(Language::Java, "java-committed", "committed", "transactions")
    },
    Member::of(Language::Librdkafka, "librdkafka-classic", "librdkafka", "java"),
    Member::of(Language::Go, "franz-go-reader", "franz-go", "librdkafka"),
    Member::of(Language::Sarama, "sarama-reader", "sarama", "franz-go"),
    Member::of(Language::KafkaPython, "kafka-python-reader", "kafka-python", "kafkajs"),
    Member::of(Language::Kafkajs, "kafkajs-reader", "kafkajs", "kafka-python"),
];

impl Member {
    const fn of(language: Language, client: &'static str, group: &'static str, topic: &'static str) -> Self {
        Self { language, kind: WorkKind::Consume, client, group, topic, restless: false, properties: &[] }
    }
}

#[test]
#[ignore = "needs root, brokers, six client libraries and a Collector: `cargo xtask test`"]
fn chaos_every_record_is_true_or_accounted_for() -> Result<()> {
    let _turn = turn();
    let minutes: u64 = match std::env::var("KAFKA_TRACER_CHAOS_MINUTES") {
        Ok(text) => text.parse().with_context(|| format!("KAFKA_TRACER_CHAOS_MINUTES is {text}, no whole number"))?,
        Err(_) => 0,
    };
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let mut stage = Stage::set(&distribution)?;
    stage.everybody_works("after the start")?;
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    loop {
        stage.round()?;
        if Instant::now() >= end {
            break;
        }
    }
    let (accounts, collector) = stage.end()?;
    let report = accounts.settle(&collector)?;
    println!("{report}");
    Ok(())
}

/// All that takes part.
struct Stage {
    daemon: PathBuf,
    cluster: Cluster,
    scratch: Scratch,
    collector: Collector,
    tracer: Option<Tracer>,
    lives: Vec<Life>,
    workers: Vec<Workers>,
    applications: BTreeMap<String, Application>,
    told: Vec<Told>,
    /// When it exists, producers and then consumers go home.
    until: [PathBuf; 2],
}

impl Stage {
    fn set(distribution: &Distribution) -> Result<Self> {
        let mut clients = BTreeMap::new();
        for language in Language::ENDLESS {
            clients.insert(language.name(), Client::ensure(language, distribution)?);
        }
        let cluster = Cluster::start(distribution)?;
        let scratch = Scratch::new("chaos")?;
        let collector = Collector::start(scratch.path())?;
        let until = ["producers", "consumers"].map(|who| scratch.path().join(format!("{who}-go-home")));
        let mut stage = Self {
            daemon: daemon(),
            cluster,
            scratch,
            collector,
            tracer: None,
            lives: Vec::new(),
            workers: Vec::new(),
            applications: BTreeMap::new(),
            told: Vec::new(),
            until,
        };
        for (_, _, topic) in PRODUCERS {
            stage.cluster.create_topic(&chaos(topic), PARTITIONS)?;
        }
        stage.cluster.wait_in_sync()?;
        stage.start_tracer()?;
        stage.employ(&clients)?;
        Ok(stage)
    }

    fn employ(&mut self, clients: &BTreeMap<&str, Client>) -> Result<()> {
        let bootstrap = self.cluster.bootstrap();
        for language in Language::ENDLESS {
            let client = clients.get(language.name()).context("all clients are there")?;
            let own = PRODUCERS.iter().filter(|(of, _, _)| *of == language);
            let produced: Vec<(WorkKind, String, String)> =
                own.map(|(_, kind, name)| (*kind, chaos(&format!("{name}-producer")), chaos(name))).collect();
            let work: Vec<Work<'_>> = produced
                .iter()
                .map(|(kind, client_id, topic)| Work {
                    until: &self.until[0],
                    kind: *kind,
                    client_id,
                    topic,
                    group: "",
                    codecs: &CODECS,
                    round: ROUND,
                    rate: RATE,
                    properties: &[],
                })
                .collect();
            self.workers.extend(client.work(&bootstrap, self.scratch.path(), &format!("{}-producers", language.name()), &work)?);
            for (kind, client_id, topic) in produced {
                self.applications.insert(client_id, Application { topic, kind, group: None, read_committed: false });
            }

            let own: Vec<&Member> = MEMBERS.iter().filter(|member| member.language == language).collect();
            let names: Vec<[String; 3]> = own.iter().map(|member| [member.client, member.group, member.topic].map(chaos)).collect();
            let work: Vec<Work<'_>> = own
                .iter()
                .zip(&names)
                .map(|(member, [client_id, group, topic])| Work {
                    until: &self.until[1],
                    kind: member.kind,
                    client_id,
                    topic,
                    group,
                    codecs: &[],
                    round: if member.restless { ROUND } else { Duration::ZERO },
                    rate: 0,
                    properties: member.properties,
                })
                .collect();
            self.workers.extend(client.work(&bootstrap, self.scratch.path(), &format!("{}-consumers", language.name()), &work)?);
            for (member, [client_id, group, topic]) in own.iter().zip(names) {
                // librdkafka and kafka-python read committed or not as told too, but here they meet no transactions.
                let read_committed = member.properties.contains(&("isolation.level", "read_committed"));
                self.applications.insert(client_id, Application { topic, kind: member.kind, group: Some(group), read_committed });
            }
        }
        Ok(())
    }

    /// Everything once: brokers stopped, brokers killed, the tracer stopped, the tracer killed.
    fn round(&mut self) -> Result<()> {
        let [first, second, third] = self.cluster.numbers()[..] else { anyhow::bail!("not three brokers") };
        self.restart_broker(first, Signal::TERM)?;
        self.restart_tracer(Signal::TERM)?;
        self.everybody_works("after the tracer's restart")?;
        self.restart_broker(second, Signal::TERM)?;
        self.restart_broker(third, Signal::KILL)?;
        self.everybody_works("after the brokers' restarts")?;
        self.restart_tracer(Signal::KILL)?;
        self.everybody_works("after the tracer was killed")
    }

    fn restart_broker(&mut self, number: usize, signal: Signal) -> Result<()> {
        say(&format!("broker {number} gets {signal:?}"));
        if signal == Signal::KILL {
            self.cluster.kill(number)?;
        } else {
            self.cluster.stop(number)?;
        }
        self.cluster.resume(number)?;
        self.cluster.wait_in_sync()?;
        say(&format!("broker {number} is back and in sync"));
        Ok(())
    }

    fn start_tracer(&mut self) -> Result<()> {
        let dir = self.scratch.path().join(format!("tracer-{}", self.lives.len()));
        fs::create_dir(&dir)?;
        // A span for each record, none left out; the log lists the connections that it follows.
        let settings = [
            ("KAFKA_TRACER_SCOPE", "record"),
            ("KAFKA_TRACER_HEADERS", "all"),
            ("KAFKA_TRACER_MAX_SPANS_PER_SECOND", "0"),
            ("OTEL_TRACES_SAMPLER", "always_on"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "1000000"),
            ("OTEL_LOG_LEVEL", "debug"),
        ];
        let tracer = Tracer::start(&self.daemon, &dir, &self.collector, Protocol::Grpc, &settings)?;
        self.lives.push(Life { from_ns: now_ns(), to_ns: u64::MAX, gone_ns: u64::MAX, killed: false, log: String::new() });
        self.tracer = Some(tracer);
        Ok(())
    }

    fn end_tracer(&mut self, signal: Signal) -> Result<()> {
        let mut tracer = self.tracer.take().context("a tracer runs")?;
        let life = self.lives.last_mut().context("a tracer runs")?;
        tracer.process().alive()?;
        life.to_ns = now_ns();
        life.killed = signal == Signal::KILL;
        tracer.process().signal(signal)?;
        let status = tracer.process().wait(Duration::from_mins(1))?;
        life.gone_ns = now_ns();
        life.log = tracer.process().log();
        anyhow::ensure!(life.killed || status.success(), "SIGTERM ended the daemon with {status}:\n{}", life.log);
        Ok(())
    }

    fn restart_tracer(&mut self, signal: Signal) -> Result<()> {
        say(&format!("the tracer gets {signal:?}"));
        self.end_tracer(signal)?;
        std::thread::sleep(WITHOUT);
        self.start_tracer()
    }

    fn listen(&mut self) -> Result<()> {
        for workers in &mut self.workers {
            self.told.extend(workers.take_told()?);
        }
        Ok(())
    }

    /// Waits until each producer sent, and each group read, a record that was not there when it began to wait.
    fn everybody_works(&mut self, when: &str) -> Result<()> {
        let from_us = now_ns() / 1_000;
        let (mut sent, mut waited) = (BTreeMap::new(), 0);
        let mut missing = String::new();
        let mut said = Instant::now();
        let done = wait_for("everybody to send and read", PATIENCE, || {
            self.listen()?;
            for workers in &mut self.workers {
                workers.process().alive()?;
            }
            if let Some(tracer) = &mut self.tracer {
                tracer.process().alive()?;
            }
            let new = self.told.get(waited..).unwrap_or_default();
            for told in new.iter().filter(|told| told.from_us.is_some_and(|at| at > from_us) && told.error.is_none()) {
                *sent.entry(told.client_id.clone()).or_insert(0) += 1;
            }
            waited = self.told.len();
            let fresh = accounts::fresh_by_group(&self.applications, &self.told, from_us);
            missing.clear();
            for (client_id, application) in &self.applications {
                let works = match &application.group {
                    None => sent.contains_key(client_id),
                    Some(group) => fresh.contains(group),
                };
                if !works {
                    let _ = write!(missing, " {client_id}");
                }
            }
            if said.elapsed() > Duration::from_secs(10) {
                said = Instant::now();
                say(&format!("still waiting for{missing}"));
            }
            Ok(missing.is_empty().then_some(()))
        });
        done.with_context(|| format!("{when}; still waiting for{missing}; {}", self.scratch.path().display()))?;
        say(&format!("everybody works {when}"));
        Ok(())
    }

    /// Producers go home, consumers read what is left and follow, the tracer last.
    fn end(mut self) -> Result<(Accounts, Collector)> {
        fs::write(&self.until[0], "")?;
        let producers: Vec<String> = self.applications.iter().filter(|(_, a)| a.group.is_none()).map(|(id, _)| id.clone()).collect();
        say(&format!("{} producers go home", producers.len()));
        let mut missing = String::new();
        let read = wait_for("all groups to read all that was sent", PATIENCE, || {
            self.listen()?;
            let mut producers = self.workers.iter_mut().filter(|workers| workers.name().contains("producers"));
            if producers.any(|workers| workers.process().alive().is_ok()) {
                return Ok(None);
            }
            missing = accounts::unread(&self.applications, &self.told);
            Ok(missing.is_empty().then_some(()))
        });
        read.with_context(|| format!("unread: {missing}; {}", self.scratch.path().display()))?;
        fs::write(&self.until[1], "")?;
        for workers in &mut self.workers {
            workers.process().success(PATIENCE)?;
        }
        self.listen()?;
        self.end_tracer(Signal::TERM)?;
        self.cluster.wait_in_sync()?;
        let topics: Vec<String> = PRODUCERS.iter().map(|(_, _, topic)| chaos(topic)).collect();
        let log = log::Log::read(&self.cluster.data(), &topics)?;
        self.collector.stop()?;
        let cluster_id = self.cluster.cluster_id().to_owned();
        let Self { lives, applications, told, collector, scratch, .. } = self;
        let accounts = Accounts { cluster_id, lives, applications, told, log, scratch };
        Ok((accounts, collector))
    }
}

/// A name of this run alone.
fn chaos(name: &str) -> String {
    unique(&format!("chaos-{name}"))
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What happens when, for whoever reads along.
fn say(what: &str) {
    let seconds = now_ns() / 1_000_000 % 1_000_000;
    eprintln!("chaos {:7.3} {what}", f64::from(u32::try_from(seconds).unwrap_or(0)) / 1_000.0);
}
