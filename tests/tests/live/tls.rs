//! Encrypted connections: every record that a client's own words tell stands in exactly one span of each side, as if it had been plain.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use xtask::lab::{Access, Client, Consume, Language, Produce, Tracer};
use xtask::tools;

use crate::accounting::{Told, check_counters, check_part, check_topic};
use crate::stage::{self, Stage, few};
use crate::turn;

const RECORDS: usize = 600;

/// One topic: a producer and a consumer that run at the same time. `name` is part of the topic's.
fn exchange(stage: &Stage, client: &Client, name: &str) -> Result<Told> {
    let access = client.access();
    let topic = stage::topic(&stage.broker, &format!("tls-{name}-{}", access.name()))?;
    let group = format!("{topic}-group");
    let consume = Consume { topic: &topic, group: &group, records: RECORDS };
    let consumer = client.consume(&stage.broker, stage.scratch.path(), &format!("{topic}-consumer"), &consume)?;
    let produce = Produce { context_every: 9, unsampled_every: 10, rate: 400, value_bytes: 200, linger_ms: 20, ..few(&topic, RECORDS) };
    let producer = client.produce(&stage.broker, stage.scratch.path(), &format!("{topic}-producer"), &produce)?;
    let sent = producer.records().with_context(|| format!("{name} over {access:?}"))?;
    Ok(Told { fetched: BTreeMap::from([(group, consumer.records()?)]), topic, sent })
}

/// Ends the daemon: all that was told has its spans, and nothing was left out.
fn finish(mut stage: Stage, tracer: Tracer, told: &[Told]) -> Result<()> {
    let (spans, log) = stage.end(tracer)?;
    for told in told {
        check_topic(told, &spans).with_context(|| format!("topic {}; the daemon says:\n{log}", told.topic))?;
    }
    let unseen = stage.collector.counted("kafka_tracer.tls.opaque", "")?;
    ensure!(unseen == 0.0, "{unseen} connections were not seen into; the daemon says:\n{log}");
    check_counters(told, &spans, &stage.collector)
}

/// With its library from where it lies, in place of a copy that it makes and removes.
fn at_a_known_place(client: &Client) -> Result<Client> {
    let libraries = client.tls_libraries()?;
    let dir = libraries.first().and_then(|library| library.parent()).context("no library")?;
    Ok(client.with_libraries(dir))
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn encrypted_records_are_what_the_clients_say() -> Result<()> {
    let _turn = turn();
    let stage = Stage::secure("tls")?;
    let distribution = stage.broker.distribution();
    let clients = Language::SEEN_INTO.map(|language| Ok((language.name(), Client::ensure(language, distribution)?)));
    let mut clients = clients.into_iter().collect::<Result<Vec<_>>>()?;
    clients.push(("go-stripped", Client::ensure(Language::Go, distribution)?.stripped()?));
    clients.push(("gnutls", Client::ensure(Language::KafkaPython, distribution)?.over_gnutls()?));
    clients.push(("boringssl", at_a_known_place(&Client::ensure(Language::Java, distribution)?.over_boringssl()?)?));
    clients.push(("krafka-optimised", Client::ensure(Language::Krafka, distribution)?.optimised()?));
    let mut libraries = Vec::new();
    for (_, client) in &clients {
        libraries.extend(client.tls_libraries()?.iter().map(|path| path.display().to_string()));
    }
    libraries.dedup();
    // Attached before the clients start: a program that is found by its connection may have said something by then.
    let tracer = stage.tls_tracer(&[("KAFKA_TRACER_TLS_LIBRARIES", &libraries.join(","))])?;
    let mut told = Vec::new();
    for (name, client) in &clients {
        for access in [Access::MutualTls, Access::PasswordOverTls] {
            told.push(exchange(&stage, &client.over(access), name)?);
        }
    }
    finish(stage, tracer, &told)
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn programs_that_are_found_by_their_connections_are_seen_into_from_then_on_and_what_was_before_is_counted() -> Result<()> {
    let _turn = turn();
    let mut stage = Stage::secure("tls-auto")?;
    let tracer = stage.tls_tracer(&[])?;
    let mut told = Vec::new();
    let client = |language| Client::ensure(language, stage.broker.distribution());
    for (name, client) in [
        ("librdkafka", client(Language::Librdkafka)?),
        ("kafkajs", client(Language::Kafkajs)?),
        ("kafka-python", client(Language::KafkaPython)?),
        ("gnutls", client(Language::KafkaPython)?.over_gnutls()?),
        ("boringssl", client(Language::Java)?.over_boringssl()?),
        ("krafka", client(Language::Krafka)?),
    ] {
        told.push(exchange(&stage, &client.over(Access::MutualTls), &format!("auto-{name}"))?);
    }
    let (spans, log) = stage.end(tracer)?;
    let mut missed = 0;
    for told in &told {
        let fetched = told.fetched.values().flatten().cloned().collect::<Vec<_>>();
        for (operation, records) in [("send", &told.sent), ("fetch", &fetched)] {
            let what = format!("{operation} of {}", told.topic);
            let seen = check_part(&told.topic, operation, records, &spans).with_context(|| format!("{what}; the daemon says:\n{log}"))?;
            println!("{what}: {} of {} records seen", seen.len(), records.len());
            // A program has had its first words by then. From the first record that is seen on there is no hole.
            let first = seen.first().with_context(|| format!("{what} was not seen; the daemon says:\n{log}"))?;
            let since = records.iter().filter(|record| (record.partition, record.offset) >= *first).count();
            ensure!(seen.len() == since, "{what}: {} of {since} records since {first:?}; the daemon says:\n{log}", seen.len());
            missed += records.len() - seen.len();
        }
    }
    let counted = |word| stage.collector.counted("kafka_tracer.tls.sessions", word);
    let (whole, joined) = (counted("from_start")?, counted("in_the_middle")?);
    println!("{missed} records were not seen, of sessions that began before their programs were known; {joined} such, {whole} others");
    ensure!(missed == 0 || joined > 0.0, "{missed} records are missing, and nothing is counted; the daemon says:\n{log}");
    let (unseen, lost) =
        (stage.collector.counted("kafka_tracer.tls.opaque", "")?, stage.collector.counted("kafka_tracer.capture.lost", "")?);
    ensure!((unseen, lost) == (0.0, 0.0), "{unseen} sessions not seen into, {lost} bytes lost; the daemon says:\n{log}");
    Ok(())
}

/// A directory with OpenSSL's library, as an update leaves it: what had the name before is mapped still, and has none.
fn update(dir: &Path, library: &Path) -> Result<()> {
    let new = dir.join("libssl.so.3.new");
    fs::copy(library, &new).with_context(|| format!("cannot copy {}", library.display()))?;
    fs::rename(&new, dir.join("libssl.so.3"))?;
    Ok(())
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn a_library_that_is_replaced_while_it_is_in_use_is_seen_into_where_its_functions_are() -> Result<()> {
    let _turn = turn();
    let mut stage = Stage::secure("tls-replaced")?;
    let (broker, dir) = (&stage.broker, stage.scratch.path());
    let client = Client::ensure(Language::KafkaPython, broker.distribution())?.over(Access::MutualTls);
    let first = client.tls_libraries()?.into_iter().next().context("no library")?;
    let second = tools::libssl_of_another_build()?;
    let libraries = dir.join("libraries");
    fs::create_dir(&libraries)?;
    update(&libraries, &first)?;
    let client = client.with_libraries(&libraries);
    let older = stage::topic(broker, "tls-replaced-older")?;
    let produce = Produce { context_every: 9, rate: 200, linger_ms: 20, ..few(&older, 3_000) };
    let mut running = client.produce(broker, dir, &format!("{older}-producer"), &produce)?;
    running.process().wait_connected(broker.port_for(client.access())?)?;
    // What is mapped is another file now than what has its name; then again while programs are attached.
    update(&libraries, &second)?;
    let mut tracer = stage.tls_tracer(&[])?;
    stage.wait_for_span("spans of a program whose library is gone", &mut tracer, |span| span.topic() == Some(&older))?;
    let mut told = vec![exchange(&stage, &client, "replaced-once")?];
    update(&libraries, &first)?;
    told.push(exchange(&stage, &client, "replaced-twice")?);
    let sent = running.records()?;
    let (spans, log) = stage.end(tracer)?;
    let seen = check_part(&older, "send", &sent, &spans).with_context(|| format!("{older}; the daemon says:\n{log}"))?;
    println!("{older}: {} of {} records seen", seen.len(), sent.len());
    for told in &told {
        check_topic(told, &spans).with_context(|| format!("topic {}; the daemon says:\n{log}", told.topic))?;
    }
    check_counters(&told, &spans, &stage.collector)
}
