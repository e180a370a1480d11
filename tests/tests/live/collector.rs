//! A Collector that is away, and comes back.

use std::time::Duration;

use anyhow::Result;
use xtask::lab::{Broker, Client, Collector, Distribution, Language, Produce, Protocol, Scratch, Tracer, wait_for};

use crate::{daemon, turn, unique};

const SOME: Produce<'static> =
    Produce { topic: "", records: 50, codec: "none", context_every: 0, unsampled_every: 0, rate: 0, value_bytes: 50, linger_ms: 0 };

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn the_daemon_goes_on_while_the_collector_is_away() -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let client = Client::ensure(Language::Librdkafka, &distribution)?;
    let broker = Broker::start(&distribution)?;
    let scratch = Scratch::new("away")?;
    let mut collector = Collector::stopped(scratch.path())?;
    let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &[])?;

    let topic = unique("while-away");
    broker.create_topic(&topic, 1)?;
    client.produce(&broker, scratch.path(), "while-away", &Produce { topic: &topic, ..SOME })?.records()?;
    wait_for("a word about the Collector that is away", Duration::from_secs(40), || {
        tracer.process().alive()?;
        Ok(tracer.process().log().contains("WARN").then_some(()))
    })?;

    collector.resume()?;
    let topic = unique("when-back");
    broker.create_topic(&topic, 1)?;
    // The exporter waits longer after each failure: what was produced first may be needed to make it try again.
    wait_for("spans of what was produced when the Collector was back", Duration::from_mins(1), || {
        tracer.process().alive()?;
        client.produce(&broker, scratch.path(), "when-back", &Produce { topic: &topic, ..SOME })?.records()?;
        Ok(collector.spans()?.iter().any(|span| span.topic() == Some(&topic)).then_some(()))
    })?;
    let status = tracer.process().terminate(Duration::from_secs(20))?;
    assert!(status.success(), "SIGTERM ended the daemon with {status}:\n{}", tracer.process().log());
    Ok(())
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn sigterm_ends_the_daemon_in_time_though_the_collector_is_away() -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let client = Client::ensure(Language::Librdkafka, &distribution)?;
    let broker = Broker::start(&distribution)?;
    let scratch = Scratch::new("never")?;
    let collector = Collector::stopped(scratch.path())?;
    let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::HttpProtobuf, &[])?;
    let topic = unique("never-told");
    broker.create_topic(&topic, 1)?;
    client.produce(&broker, scratch.path(), "never-told", &Produce { topic: &topic, ..SOME })?.records()?;
    // The spans could not be delivered: whether that makes the end clean is the daemon's to say; that it ends is what counts here.
    let status = tracer.process().terminate(Duration::from_secs(20))?;
    assert!(status.code().is_some(), "the daemon was ended by a signal: {status}");
    Ok(())
}
