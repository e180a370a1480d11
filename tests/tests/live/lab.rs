//! The lab itself, without the tracer: what the other live tests rely on.

use std::collections::BTreeSet;

use anyhow::Result;
use xtask::lab::{Broker, Client, Collector, Consume, Distribution, Language, Produce, Scratch};

#[test]
#[ignore = "needs a broker and clients: `cargo xtask test`"]
fn clients_of_all_languages_read_what_the_others_wrote() -> Result<()> {
    for version in [Distribution::NEWEST, Distribution::OLD] {
        let distribution = Distribution::ensure(version)?;
        let broker = Broker::start(&distribution)?;
        let scratch = Scratch::new("lab")?;
        for (language, codec) in Language::ALL.into_iter().zip(["none", "lz4", "zstd"]) {
            let client = Client::ensure(language, &distribution)?;
            let topic = format!("lab-{}", language.name());
            broker.create_topic(&topic, 2)?;
            let produce = Produce {
                topic: &topic,
                records: 300,
                codec,
                context_every: 3,
                unsampled_every: 10,
                rate: 0,
                value_bytes: 100,
                linger_ms: 5,
            };
            let sent = client.produce(&broker, scratch.path(), &format!("{topic}-producer"), &produce)?.records()?;
            assert_eq!(sent.len(), 300, "{language:?}");
            assert_eq!(sent.iter().filter(|record| record.traceparent.is_some()).count(), 100);
            assert_eq!(sent.iter().filter_map(|record| record.traceparent.as_deref()).filter(|text| text.ends_with("-00")).count(), 10);
            for reader in Language::ALL {
                let consume = Consume { topic: &topic, group: &format!("{topic}-{}", reader.name()), records: 300 };
                let client_id = format!("{topic}-consumer-{}", reader.name());
                let got = Client::ensure(reader, &distribution)?.consume(&broker, scratch.path(), &client_id, &consume)?.records()?;
                let sorted = |records: &[xtask::lab::Record]| {
                    records.iter().map(|record| (record.partition, record.offset, record.traceparent.clone())).collect::<BTreeSet<_>>()
                };
                assert_eq!(sorted(&sent), sorted(&got), "{language:?} to {reader:?} on Kafka {version}");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs Go: `cargo xtask test`"]
fn the_collector_comes_and_goes() -> Result<()> {
    let scratch = Scratch::new("collector")?;
    let mut collector = Collector::start(scratch.path())?;
    assert!(collector.spans()?.is_empty());
    collector.stop()?;
    collector.resume()?;
    collector.stop()
}
