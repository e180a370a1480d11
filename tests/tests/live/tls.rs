//! Encrypted connections: every record that a client's own words tell stands in exactly one span of each side, as if it had been plain.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::lab::{Access, Broker, Client, Collector, Consume, Distribution, Language, Produce, Protocol, Scratch, Tracer, wait_for};

use crate::accounting::{Told, check_counters, check_topic};
use crate::{daemon, turn, unique};

const RECORDS: usize = 600;

/// A broker with encrypted listeners, and a daemon that knows them.
struct Lab {
    broker: Broker,
    collector: Collector,
    tracer: Tracer,
    scratch: Scratch,
}

impl Lab {
    fn start(label: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let distribution = Distribution::ensure(Distribution::NEWEST)?;
        let broker = Broker::start_secure(&distribution)?;
        let scratch = Scratch::new(label)?;
        let collector = Collector::start(scratch.path())?;
        let ports = format!("{},{}", broker.port_for(Access::MutualTls)?, broker.port_for(Access::PasswordOverTls)?);
        let always = [
            ("KAFKA_TRACER_MAX_SPANS_PER_SECOND", "0"),
            ("OTEL_TRACES_SAMPLER", "always_on"),
            ("KAFKA_TRACER_TLS", "auto"),
            ("KAFKA_TRACER_TLS_PORTS", &ports),
        ];
        let settings: Vec<(&str, &str)> = always.into_iter().chain(settings.iter().copied()).collect();
        let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &settings)?;
        // The programs for TLS libraries come after those that a start waits for.
        wait_for("the daemon to see into TLS libraries", Duration::from_secs(30), || {
            tracer.process().alive()?;
            Ok(tracer.process().log().contains("Capturing the Kafka connections").then_some(()))
        })?;
        Ok(Self { broker, collector, tracer, scratch })
    }

    /// One topic: a producer and a consumer that run at the same time. `name` is part of the topic's.
    fn exchange(&self, client: &Client, name: &str, access: Access, records: usize) -> Result<Told> {
        let client = client.over(access);
        let topic = unique(&format!("tls-{name}-{}", access.name()));
        self.broker.create_topic(&topic, 1)?;
        let group = format!("{topic}-group");
        let consume = Consume { topic: &topic, group: &group, records };
        let consumer = client.consume(&self.broker, self.scratch.path(), &format!("{topic}-consumer"), &consume)?;
        let produce = Produce {
            topic: &topic,
            records,
            codec: "none",
            context_every: 9,
            unsampled_every: 10,
            rate: 400,
            value_bytes: 200,
            linger_ms: 20,
        };
        let producer = client.produce(&self.broker, self.scratch.path(), &format!("{topic}-producer"), &produce)?;
        let sent = producer.records()?;
        Ok(Told { fetched: BTreeMap::from([(group, consumer.records()?)]), topic, sent })
    }

    fn finish(mut self, told: &[Told]) -> Result<()> {
        let status = self.tracer.process().terminate(Duration::from_secs(20))?;
        let log = self.tracer.process().log();
        assert!(status.success(), "SIGTERM ended the daemon with {status}:\n{log}");
        self.collector.stop()?;
        let spans = self.collector.spans()?;
        for told in told {
            check_topic(told, &spans).with_context(|| format!("topic {}; the daemon says:\n{log}", told.topic))?;
        }
        let unseen = self.collector.counted("kafka_tracer.tls.opaque", "")?;
        anyhow::ensure!(unseen == 0.0, "{unseen} connections were not seen into; the daemon says:\n{log}");
        check_counters(told, &spans, &self.collector)
    }
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn encrypted_records_are_what_the_clients_say() -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let clients = Language::SEEN_INTO.map(|language| Ok((language.name(), Client::ensure(language, &distribution)?)));
    let mut clients = clients.into_iter().collect::<Result<Vec<_>>>()?;
    clients.push(("go-stripped", Client::ensure(Language::Go, &distribution)?.stripped()?));
    let mut libraries = Vec::new();
    for (_, client) in &clients {
        libraries.extend(client.tls_libraries()?.iter().map(|path| path.display().to_string()));
    }
    libraries.dedup();
    // Attached before the clients start: a program that is found by its connection may have said something by then.
    let lab = Lab::start("tls", &[("KAFKA_TRACER_TLS_LIBRARIES", &libraries.join(","))])?;
    let mut told = Vec::new();
    for (name, client) in &clients {
        for access in [Access::MutualTls, Access::PasswordOverTls] {
            told.push(lab.exchange(client, name, access, RECORDS).with_context(|| format!("{name} over {access:?}"))?);
        }
    }
    lab.finish(&told)
}
