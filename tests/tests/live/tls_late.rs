//! Encrypted connections that are older than the tracer, of processes that are found by them alone.

use anyhow::{Context, Result, ensure};
use xtask::lab::{Access, Broker, Client, Collector, Consume, Distribution, Language, Produce, Protocol, Scratch, Tracer, wait_for};

use crate::accounting::check_part;
use crate::{daemon, turn, unique};

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn encrypted_connections_that_are_older_than_the_tracer_are_seen_in_part_and_right() -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let broker = Broker::start_secure(&distribution)?;
    let scratch = Scratch::new("tls-go")?;
    let mut collector = Collector::start(scratch.path())?;
    let ports = format!("{},{}", broker.port_for(Access::MutualTls)?, broker.port_for(Access::PasswordOverTls)?);
    let whole = Client::ensure(Language::Go, &distribution)?;
    let clients = [
        ("go", whole.stripped()?.over(Access::MutualTls)),
        ("sarama", Client::ensure(Language::Sarama, &distribution)?.over(Access::PasswordOverTls)),
        // Two processes with one library, each with probes of its own.
        ("kafka-python", Client::ensure(Language::KafkaPython, &distribution)?.over(Access::MutualTls)),
    ];
    let mut running = Vec::new();
    for (name, client) in &clients {
        let topic = unique(&format!("tls-late-{name}"));
        broker.create_topic(&topic, 1)?;
        let group = format!("{topic}-group");
        let consume = Consume { topic: &topic, group: &group, records: 2_400 };
        let consumer = client.consume(&broker, scratch.path(), &format!("{topic}-consumer"), &consume)?;
        let produce = Produce {
            topic: &topic,
            records: 2_400,
            codec: "none",
            context_every: 9,
            unsampled_every: 0,
            rate: 200,
            value_bytes: 200,
            linger_ms: 20,
        };
        let mut producer = client.produce(&broker, scratch.path(), &format!("{topic}-producer"), &produce)?;
        producer.process().wait_connected(broker.port_for(client.access())?)?;
        running.push((topic, producer, consumer));
    }
    let settings = [
        ("KAFKA_TRACER_MAX_SPANS_PER_SECOND", "0"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ("KAFKA_TRACER_TLS", "auto"),
        ("KAFKA_TRACER_TLS_PORTS", &ports),
    ];
    let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &settings)?;
    for (topic, ..) in &running {
        wait_for(&format!("spans of both ends of {topic}"), std::time::Duration::from_secs(30), || {
            tracer.process().alive()?;
            let spans = collector.spans()?;
            let has = |operation| spans.iter().any(|span| span.topic() == Some(topic) && span.operation() == Some(operation));
            Ok((has("send") && has("fetch")).then_some(()))
        })
        .with_context(|| tracer.process().log())?;
    }
    let mut told = Vec::new();
    for (topic, producer, consumer) in running {
        told.push((topic, producer.records()?, consumer.records()?));
    }
    let status = tracer.process().terminate(std::time::Duration::from_secs(20))?;
    let log = tracer.process().log();
    ensure!(status.success(), "SIGTERM ended the daemon with {status}:\n{log}");
    collector.stop()?;
    let spans = collector.spans()?;
    for (topic, sent, fetched) in &told {
        for (operation, records) in [("send", sent), ("fetch", fetched)] {
            let seen = check_part(topic, operation, records, &spans)
                .with_context(|| format!("{operation} of {topic}; the daemon says:\n{log}"))?;
            println!("{topic}: {seen} of {} records seen in `{operation}` spans", records.len());
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn what_javas_own_tls_encrypts_is_counted_and_nothing_is_made_up() -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let broker = Broker::start_secure(&distribution)?;
    let scratch = Scratch::new("tls-java")?;
    let mut collector = Collector::start(scratch.path())?;
    let port = broker.port_for(Access::MutualTls)?.to_string();
    let settings = [("KAFKA_TRACER_TLS", "auto"), ("KAFKA_TRACER_TLS_PORTS", port.as_str())];
    let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &settings)?;
    let topic = unique("tls-java");
    broker.create_topic(&topic, 1)?;
    let produce = Produce {
        topic: &topic,
        records: 1_000_000,
        codec: "none",
        context_every: 0,
        unsampled_every: 0,
        rate: 50,
        value_bytes: 50,
        linger_ms: 0,
    };
    let client = Client::ensure(Language::Java, &distribution)?.over(Access::MutualTls);
    let _producer = client.produce(&broker, scratch.path(), &topic, &produce)?;
    wait_for("the daemon to count a connection of Java's own TLS", std::time::Duration::from_mins(1), || {
        tracer.process().alive()?;
        Ok((collector.counted("kafka_tracer.tls.opaque", "jdk")? > 0.0).then_some(()))
    })
    .with_context(|| tracer.process().log())?;
    let status = tracer.process().terminate(std::time::Duration::from_secs(20))?;
    let log = tracer.process().log();
    ensure!(status.success(), "SIGTERM ended the daemon with {status}:\n{log}");
    ensure!(log.contains("belongs to a Java program") && log.contains("plain listener on loopback"), "{log}");
    collector.stop()?;
    ensure!(collector.spans()?.iter().all(|span| span.topic() != Some(&topic)), "spans of a topic that nobody could see");
    Ok(())
}
