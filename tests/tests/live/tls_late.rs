//! Encrypted connections that are older than the tracer, of processes that are found by them alone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::{Access, Client, Consume, Language, Produce, wait_for};

use crate::accounting::check_part;
use crate::stage::{self, Stage, endless, few};
use crate::turn;

const RECORDS: usize = 2_400;

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn encrypted_connections_that_are_older_than_the_tracer_are_seen_in_part_and_right() -> Result<()> {
    let _turn = turn();
    let mut stage = Stage::secure("tls-late")?;
    let (broker, dir) = (&stage.broker, stage.scratch.path());
    let client = |language| Client::ensure(language, broker.distribution());
    let clients = [
        ("go", client(Language::Go)?.stripped()?.over(Access::MutualTls)),
        ("sarama", client(Language::Sarama)?.over(Access::PasswordOverTls)),
        // Two processes with one library, each with probes of its own.
        ("kafka-python", client(Language::KafkaPython)?.over(Access::MutualTls)),
    ];
    let mut running = Vec::new();
    for (name, client) in &clients {
        let topic = stage::topic(broker, &format!("tls-late-{name}"))?;
        let group = format!("{topic}-group");
        let consume = Consume { topic: &topic, group: &group, records: RECORDS };
        let consumer = client.consume(broker, dir, &format!("{topic}-consumer"), &consume)?;
        let produce = Produce { context_every: 9, rate: 200, value_bytes: 200, linger_ms: 20, ..few(&topic, RECORDS) };
        let mut producer = client.produce(broker, dir, &format!("{topic}-producer"), &produce)?;
        producer.process().wait_connected(broker.port_for(client.access())?)?;
        running.push((topic, producer, consumer));
    }
    let mut tracer = stage.tls_tracer(&[])?;
    for (topic, ..) in &running {
        for operation in ["send", "fetch"] {
            let is_wanted = |span: &xtask::lab::Span| span.topic() == Some(topic) && span.operation() == Some(operation);
            stage.wait_for_span(&format!("{operation} spans of {topic}"), &mut tracer, is_wanted)?;
        }
    }
    let mut told = Vec::new();
    for (topic, producer, consumer) in running {
        told.push((topic, producer.records()?, consumer.records()?));
    }
    let (spans, log) = stage.end(tracer)?;
    for (topic, sent, fetched) in &told {
        for (operation, records) in [("send", sent), ("fetch", fetched)] {
            let seen = check_part(topic, operation, records, &spans)
                .with_context(|| format!("{operation} of {topic}; the daemon says:\n{log}"))?;
            println!("{topic}: {} of {} records seen in `{operation}` spans", seen.len(), records.len());
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn what_javas_own_tls_encrypts_is_counted_and_nothing_is_made_up() -> Result<()> {
    let _turn = turn();
    let mut stage = Stage::secure("tls-java")?;
    let mut tracer = stage.tls_tracer(&[])?;
    let topic = stage::topic(&stage.broker, "tls-java")?;
    let client = Client::ensure(Language::Java, stage.broker.distribution())?.over(Access::MutualTls);
    let _producer = client.produce(&stage.broker, stage.scratch.path(), &topic, &endless(&topic, 50))?;
    wait_for("the daemon to count a connection of Java's own TLS", Duration::from_mins(1), || {
        tracer.process().alive()?;
        Ok((stage.collector.counted("kafka_tracer.tls.opaque", "jdk")? > 0.0).then_some(()))
    })
    .with_context(|| tracer.process().log())?;
    let (spans, log) = stage.end(tracer)?;
    ensure!(log.contains("belongs to a Java program") && log.contains("plain listener on loopback"), "{log}");
    ensure!(spans.iter().all(|span| span.topic() != Some(&topic)), "spans of a topic that nobody could see");
    Ok(())
}
