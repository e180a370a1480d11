//! Every record that was produced and consumed stands in exactly one span of each side, where it belongs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use xtask::lab::{Broker, Client, Collector, Consume, Distribution, Language, Produce, Protocol, Record, Scratch, Span, Tracer};

use crate::{daemon, turn, unique};

const CODECS: [&str; 3] = ["none", "lz4", "zstd"];
const PARTITIONS: i32 = 3;
/// Nine topics of these make more than 20,000 records.
const RECORDS: usize = 2_400;
const RATE: usize = 1_500;
/// A client that is slow to connect sends all records of a partition in one batch: still fewer than 128 that carry contexts. Coprime
/// to the clients' 16 keys, so that contexts come to all partitions.
const CONTEXT_EVERY: usize = 9;
const UNSAMPLED_EVERY: usize = 10;

/// What the clients of one topic say that happened.
pub(crate) struct Told {
    pub(crate) topic: String,
    pub(crate) sent: Vec<Record>,
    /// By group.
    pub(crate) fetched: BTreeMap<String, Vec<Record>>,
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn kafka_4_records_are_accounted_for_over_grpc() -> Result<()> {
    account(Distribution::NEWEST, Protocol::Grpc, &Language::ALL, &CODECS, RECORDS)
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn kafka_3_9_records_are_accounted_for_over_http_protobuf() -> Result<()> {
    account(Distribution::OLD, Protocol::HttpProtobuf, &Language::ALL, &CODECS, RECORDS)
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn records_are_accounted_for_over_http_json() -> Result<()> {
    let languages = [&Language::ALL[..], &[Language::Krafka]].concat();
    account(Distribution::NEWEST, Protocol::HttpJson, &languages, &["snappy"], 600)
}

fn account(version: &str, protocol: Protocol, languages: &[Language], codecs: &[&str], records: usize) -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(version)?;
    let clients = languages.iter().map(|language| Client::ensure(*language, &distribution)).collect::<Result<Vec<_>>>()?;
    let broker = Broker::start(&distribution)?;
    let scratch = Scratch::new("accounting")?;
    let mut collector = Collector::start(scratch.path())?;
    // By default no more than 2,000 spans a second are made, and no span for a batch with nothing but unsampled contexts.
    let settings = [("KAFKA_TRACER_MAX_SPANS_PER_SECOND", "0"), ("OTEL_TRACES_SAMPLER", "always_on")];
    let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, protocol, &settings)?;

    let mut told = Vec::new();
    for codec in codecs {
        told.extend(exchange(&broker, &scratch, &clients, codec, records)?);
    }

    let status = tracer.process().terminate(std::time::Duration::from_secs(20))?;
    assert!(status.success(), "SIGTERM ended the daemon with {status}:\n{}", tracer.process().log());
    collector.stop()?;
    let spans = collector.spans()?;
    for told in &told {
        check_topic(told, &spans).with_context(|| format!("topic {} on Kafka {version}", told.topic))?;
    }
    check_counters(&told, &spans, &collector)?;
    check_gauges(&told, &collector)
}

/// All languages at once: each producer's topic is read by a group of its own language and by one of the next.
fn exchange(broker: &Broker, scratch: &Scratch, clients: &[Client], codec: &str, records: usize) -> Result<Vec<Told>> {
    let mut running = Vec::new();
    for (index, client) in clients.iter().enumerate() {
        let name = client.language().name();
        let topic = unique(&format!("{name}-{codec}"));
        broker.create_topic(&topic, PARTITIONS)?;
        let readers = [client, &clients[(index + 1) % clients.len()]];
        let consumers = readers.map(|reader| {
            let group = format!("{topic}-read-by-{}", reader.language().name());
            let consume = Consume { topic: &topic, group: &group, records };
            let consumer = reader.consume(broker, scratch.path(), &format!("{group}-client"), &consume);
            consumer.map(|consumer| (group, consumer))
        });
        let produce = Produce {
            topic: &topic,
            records,
            codec,
            context_every: CONTEXT_EVERY,
            unsampled_every: UNSAMPLED_EVERY,
            rate: RATE,
            value_bytes: 200,
            linger_ms: 20,
        };
        let producer = client.produce(broker, scratch.path(), &format!("{topic}-client"), &produce)?;
        running.push((topic, producer, consumers));
    }
    let finish = |(topic, producer, consumers): (String, xtask::lab::Running, [Result<(String, xtask::lab::Running)>; 2])| {
        let sent = producer.records()?;
        let mut fetched = BTreeMap::new();
        for consumer in consumers {
            let (group, consumer) = consumer?;
            fetched.insert(group, consumer.records()?);
        }
        Ok(Told { topic, sent, fetched })
    };
    running.into_iter().map(finish).collect()
}

pub(crate) fn check_topic(told: &Told, spans: &[Span]) -> Result<()> {
    let of_topic: Vec<&Span> = spans.iter().filter(|span| span.topic() == Some(&told.topic)).collect();
    let sends = stored(&of_topic);
    // A library may drop what it fetched and ask again, without its application ever knowing: such spans say so.
    let first_delivery = |span: &&Span| span.operation() == Some("fetch") && !span.is("kafka_tracer.redelivered");
    let fetches: Vec<&Span> = of_topic.iter().copied().filter(first_delivery).collect();

    check_side("send", &sends, &told.sent)?;
    let unnamed = fetches.iter().filter(|span| span.text("messaging.consumer.group.name").is_none()).count();
    anyhow::ensure!(unnamed == 0, "{unnamed} of {} fetch spans name no group", fetches.len());
    for (group, got) in &told.fetched {
        let of_group = |span: &&Span| span.text("messaging.consumer.group.name") == Some(group);
        let fetches: Vec<&Span> = fetches.iter().copied().filter(of_group).collect();
        check_side(&format!("fetch by {group}"), &fetches, got)?;
        check_join(group, &sends, &fetches)?;
        let commits = of_topic.iter().copied().filter(|span| span.operation() == Some("commit")).filter(of_group).count();
        anyhow::ensure!(commits > 0, "no commit span of {group}");
    }

    let unsampled: BTreeSet<String> = contexts(&told.sent).filter(|context| !context.sampled).map(|context| context.trace_id).collect();
    let wrong = spans.iter().filter(|span| unsampled.contains(&span.trace_id)).count();
    anyhow::ensure!(wrong == 0, "{wrong} spans in traces that their owners chose not to sample");
    Ok(())
}

/// Sends that put records into the log. A broker may refuse a first attempt, as one does that does not know yet of a topic made a moment
/// ago. What comes of it is the library's: Java's sends the same batch again, librdkafka puts the records into another one, with others.
fn stored<'a>(of_topic: &[&'a Span]) -> Vec<&'a Span> {
    let mut places = BTreeSet::new();
    let mut sends: Vec<&Span> = of_topic.iter().copied().filter(|span| span.operation() == Some("send")).collect();
    sends.retain(|span| span.text("error.type").is_none());
    sends.sort_by_key(|span| span.is("kafka_tracer.retry"));
    // A retry of what was stored has the place of the first attempt.
    sends.retain(|span| {
        let place = ["messaging.kafka.offset", "kafka_tracer.batch.base_offset"].map(|name| span.int(name));
        places.insert((span.partition(), place)) || !span.is("kafka_tracer.retry")
    });
    sends
}

/// One side's spans against what the client says: every record once, contexts in their traces.
fn check_side(side: &str, spans: &[&Span], records: &[Record]) -> Result<()> {
    let messages: i64 = spans.iter().map(|span| span.messages()).sum();
    anyhow::ensure!(messages == i64::try_from(records.len())?, "{side}: spans account for {messages} of {} records", records.len());

    let mut by_place = BTreeMap::new();
    for span in spans.iter().filter(|span| span.int("messaging.kafka.offset").is_some()) {
        let place = (span.partition().context("a record span without partition")?, span.int("messaging.kafka.offset").unwrap_or(-1));
        anyhow::ensure!(by_place.insert(place, *span).is_none(), "{side}: two spans for the record at {place:?}");
    }
    let mut expected = 0;
    for context in contexts(records).filter(|context| context.sampled) {
        expected += 1;
        let place = (context.partition, context.offset);
        let span = by_place.get(&place).with_context(|| format!("{side}: no span for the traced record at {place:?}"))?;
        let (trace, parent) = (&context.trace_id, &context.span_id);
        anyhow::ensure!(&span.trace_id == trace, "{side}: the record at {place:?} is in trace {}, not in {trace}", span.trace_id);
        anyhow::ensure!(
            span.parent_span_id.as_ref() == Some(parent),
            "{side}: {place:?} has parent {:?}, not {parent}",
            span.parent_span_id
        );
        anyhow::ensure!(span.links.contains(&(trace.clone(), parent.clone())), "{side}: {place:?} has no link to its context");
    }
    anyhow::ensure!(by_place.len() == expected, "{side}: {} record spans for {expected} sampled contexts", by_place.len());

    let mut batches = BTreeSet::new();
    for span in spans.iter().filter(|span| span.int("messaging.kafka.offset").is_none()) {
        let partition = span.partition().context("a batch span without partition")?;
        let base = span.int("kafka_tracer.batch.base_offset").context("a batch span without base offset")?;
        let last = span.int("kafka_tracer.batch.last_offset").context("a batch span without last offset")?;
        anyhow::ensure!(batches.insert((partition, base)), "{side}: two spans for the batch at {partition}:{base}");
        let own = i64::try_from(by_place.range((partition, base)..=(partition, last)).count())?;
        let messages = span.messages();
        anyhow::ensure!(messages + own == last - base + 1, "{side}: batch {partition}:{base}-{last} has {messages} + {own} messages");
    }
    Ok(())
}

/// Clients ask for names before they send or fetch: a tracer that came later may know a topic's id alone. Then it is that of the client, whose
/// own name begins with it.
fn is_of(span: &Span, topic: &str) -> bool {
    let by_id = || {
        let client_id = span.text("messaging.client.id").unwrap_or_default();
        span.text("kafka_tracer.topic.id").is_some() && client_id.strip_prefix(topic).is_some_and(|rest| rest.starts_with('-'))
    };
    span.topic().map_or_else(by_id, |known| known == topic)
}

/// What a tracer that came late says of one side: nothing that did not happen, nothing twice. Partition and offset of the records that it
/// accounts for.
pub(crate) fn check_part(topic: &str, operation: &str, records: &[Record], spans: &[Span]) -> Result<BTreeSet<(i32, i64)>> {
    let places: BTreeSet<(i32, i64)> = records.iter().map(|record| (record.partition, record.offset)).collect();
    let carried: BTreeMap<(i32, i64), Carried> = contexts(records).map(|context| ((context.partition, context.offset), context)).collect();
    let is_first = |span: &&Span| !span.is("kafka_tracer.retry") && !span.is("kafka_tracer.redelivered");
    let mut seen = BTreeSet::new();
    let mut batches = BTreeMap::new();
    for span in spans.iter().filter(|span| is_of(span, topic) && span.operation() == Some(operation)).filter(is_first) {
        let partition = span.partition().context("a span without partition")?;
        if let Some(offset) = span.int("messaging.kafka.offset") {
            let place = (partition, offset);
            let context = carried.get(&place).with_context(|| format!("{place:?} was sent without a context"))?;
            anyhow::ensure!(span.trace_id == context.trace_id, "{place:?} is in trace {}, not in {}", span.trace_id, context.trace_id);
            anyhow::ensure!(seen.insert(place), "two spans for the record at {place:?}");
        } else if let (Some(base), Some(last)) = (span.int("kafka_tracer.batch.base_offset"), span.int("kafka_tracer.batch.last_offset")) {
            anyhow::ensure!(batches.insert((partition, base), (last, span.messages())).is_none(), "two spans for {partition}:{base}");
        }
    }
    for ((partition, base), (last, messages)) in batches {
        let mut own = 0;
        for offset in base..=last {
            anyhow::ensure!(places.contains(&(partition, offset)), "no client says anything of {partition}:{offset}");
            if seen.contains(&(partition, offset)) && carried.contains_key(&(partition, offset)) {
                own += 1;
            } else {
                anyhow::ensure!(seen.insert((partition, offset)), "{partition}:{offset} is in two batches");
            }
        }
        anyhow::ensure!(messages + own == last - base + 1, "batch {partition}:{base}-{last} has {messages} + {own} messages");
    }
    Ok(seen)
}

/// Records without context: the fetch side's batch spans are children of the send side's, in their traces.
fn check_join(group: &str, sends: &[&Span], fetches: &[&Span]) -> Result<()> {
    let key = |span: &Span| Some((span.partition()?, span.int("kafka_tracer.batch.base_offset")?));
    let sent: BTreeMap<_, &Span> = sends.iter().filter_map(|span| Some((key(span)?, *span))).collect();
    let delivered: BTreeMap<_, &Span> = fetches.iter().filter_map(|span| Some((key(span)?, *span))).collect();
    anyhow::ensure!(!sent.is_empty(), "no batch spans");
    for (place, send) in &sent {
        let fetch = delivered.get(place).with_context(|| format!("{group}: the batch at {place:?} was sent, but has no fetch span"))?;
        let (found, wanted) = (&fetch.trace_id, &send.trace_id);
        anyhow::ensure!(found == wanted, "{group}: the batch at {place:?} was sent in trace {wanted}, fetched in {found}");
        let (found, wanted) = (fetch.parent_span_id.as_ref(), &send.span_id);
        anyhow::ensure!(found == Some(wanted), "{group}: the fetch of the batch at {place:?} has parent {found:?}, not {wanted}");
        anyhow::ensure!(send.parent_span_id.is_none(), "the computed send span of {place:?} has a parent");
        let age =
            fetch.float("kafka_tracer.end_to_end").with_context(|| format!("{group}: the fetch of {place:?} has no end-to-end time"))?;
        anyhow::ensure!((0.0..60.0).contains(&age), "{group}: the batch at {place:?} took {age} s end to end");
    }
    anyhow::ensure!(delivered.len() == sent.len(), "{group}: {} batches sent, {} fetched", sent.len(), delivered.len());
    Ok(())
}

/// The counters say the same as the spans, and that nothing was lost.
pub(crate) fn check_counters(told: &[Told], spans: &[Span], collector: &Collector) -> Result<()> {
    let lost = collector.counted("kafka_tracer.capture.lost", "")?;
    anyhow::ensure!(lost == 0.0, "{lost} events or bytes lost on their way from the kernel");
    let understood = collector.counted("kafka_tracer.coverage.ratio", "understood")?;
    anyhow::ensure!((0.999..=1.0).contains(&understood), "{understood} of the bytes were understood");
    for told in told {
        // Attempts, and deliveries.
        for (metric, operation) in [("messaging.client.sent.messages", "send"), ("messaging.client.consumed.messages", "fetch")] {
            let of_kind = spans.iter().filter(|span| span.topic() == Some(&told.topic) && span.operation() == Some(operation));
            let records = u32::try_from(of_kind.map(Span::messages).sum::<i64>())?;
            let (counted, records) = (collector.counted(metric, &told.topic)?, f64::from(records));
            anyhow::ensure!((counted - records).abs() < 0.5, "{metric} of {} is {counted}, not {records}", told.topic);
        }
    }
    Ok(())
}

/// Partitions end where the clients say, nobody is further ahead or behind than there are records, and each group came together.
fn check_gauges(told: &[Told], collector: &Collector) -> Result<()> {
    const END: &str = "kafka.partition.current_offset";
    const LAG: &str = "kafka_tracer.consumer.lag";
    const REBALANCES: &str = "kafka_tracer.group.rebalances";
    let histories = collector.histories(&[END, LAG])?;
    let values = |metric: &str, attributes: &[String]| -> Vec<f64> {
        let series = histories.get(metric).into_iter().flatten();
        let wanted = series.filter(|((_, of), _)| attributes.iter().all(|attribute| of.contains(attribute)));
        let mut points: Vec<_> = wanted.flat_map(|(_, values)| values).copied().collect();
        points.sort_by_key(|(at_ns, _)| *at_ns);
        points.into_iter().map(|(_, value)| value).collect()
    };
    for told in told {
        let topic = format!("{{\"stringValue\":\"{}\"}}", told.topic);
        for partition in 0..PARTITIONS {
            let of_partition = format!("\"key\":\"partition\",\"value\":{{\"intValue\":\"{partition}\"}}");
            let end = told.sent.iter().filter(|record| record.partition == partition).map(|record| record.offset + 1).max().unwrap_or(0);
            let said = values(END, &[topic.clone(), of_partition]).last().copied();
            anyhow::ensure!(
                said == Some(f64::from(u32::try_from(end)?)),
                "{}-{partition} ends at {end}, and {END} is {said:?}",
                told.topic
            );
        }
        for group in told.fetched.keys() {
            let records = f64::from(u32::try_from(told.sent.len())?);
            let lags = values(LAG, &[topic.clone(), format!("{{\"stringValue\":\"{group}\"}}")]);
            anyhow::ensure!(lags.iter().all(|lag| (0.0..=records).contains(lag)), "{group}: {LAG} is {lags:?} of {records} records");
            let rebalances = collector.counted(REBALANCES, group)?;
            anyhow::ensure!(rebalances >= 1.0, "{group}: {REBALANCES} is {rebalances}");
        }
    }
    let lags = histories.get(LAG).map_or(0, |series| series.values().map(Vec::len).sum::<usize>());
    anyhow::ensure!(lags > 0, "{LAG} was never told");
    Ok(())
}

struct Carried {
    partition: i32,
    offset: i64,
    trace_id: String,
    span_id: String,
    sampled: bool,
}

fn contexts(records: &[Record]) -> impl Iterator<Item = Carried> + '_ {
    records.iter().filter_map(|record| {
        let mut parts = record.traceparent.as_deref()?.split('-').skip(1).map(str::to_owned);
        let (trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Carried { partition: record.partition, offset: record.offset, trace_id, span_id, sampled: flags == "01" })
    })
}
