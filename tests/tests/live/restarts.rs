//! Starting and ending again and again, in every way and at every moment; and two daemons at once.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::loaded_maps;
use aya::programs::loaded_programs;
use rustix::process::Signal;
use xtask::lab::{
    Broker, Client, Collector, Consume, Distribution, KernelObjects, Language, Process, Produce, Protocol, Scratch, Tracer, wait_for,
};

use crate::{daemon, turn, unique};

const STARTS: u32 = 100;

const PRODUCE: Produce<'static> =
    Produce { topic: "", records: 0, codec: "none", context_every: 0, unsampled_every: 0, rate: 0, value_bytes: 100, linger_ms: 5 };

/// What the kernel holds that no living process does. Other tracers of the host come and go meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Orphans {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    /// Probes in tracefs, which stay when their process is killed.
    probes: BTreeSet<String>,
    pinned: usize,
}

impl Orphans {
    fn find() -> Self {
        // Before the processes are looked at: what is loaded later is nobody's business.
        let mut programs: BTreeSet<u32> = loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect();
        let mut maps: BTreeSet<u32> = loaded_maps().filter_map(Result::ok).map(|map| map.id()).collect();
        let pids = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        for held in pids.filter_map(|pid| KernelObjects::of(pid).ok()) {
            programs.retain(|id| !held.programs.contains(id));
            maps.retain(|id| !held.maps.contains(id));
        }
        let probes = ["kprobe_events", "uprobe_events"].into_iter().flat_map(|file| {
            let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"].map(|place| fs::read_to_string(format!("{place}/{file}")));
            places.into_iter().filter_map(Result::ok).flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        });
        Self { programs, maps, probes: probes.collect(), pinned: fs::read_dir("/sys/fs/bpf").map_or(0, Iterator::count) }
    }

    /// What is there and was not before.
    fn since(&self, before: &Self) -> Self {
        Self {
            programs: &self.programs - &before.programs,
            maps: &self.maps - &before.maps,
            probes: &self.probes - &before.probes,
            pinned: self.pinned.saturating_sub(before.pinned),
        }
    }
}

/// A figure of `/proc/meminfo`, in KiB.
fn memory(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).with_context(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
#[ignore = "needs root and a broker: `cargo xtask test`"]
fn a_hundred_starts_and_ends_under_load_leave_the_kernel_as_it_was() -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let client = Client::ensure(Language::Go, &distribution)?;
    let broker = Broker::start(&distribution)?;
    let scratch = Scratch::new("restarts")?;
    let topic = unique("restarts");
    broker.create_topic(&topic, 1)?;
    let load = Produce { topic: &topic, records: 10_000_000, rate: 5_000, ..PRODUCE };
    let mut producer = client.produce(&broker, scratch.path(), &topic, &load)?;
    producer.process().wait_connected(broker.port())?;

    let before = Orphans::find();
    let before_kib = memory("VmallocUsed")?;
    let mut one_kib = 0;
    for start in 0..STARTS {
        let mut process = Process::start("restarted", scratch.path(), Command::new(daemon()).args(["run", "--format", "none"]))?;
        // Every other one is ended while it starts: at another moment each time.
        if start % 2 == 0 {
            wait_for("the daemon to attach its programs", Duration::from_secs(20), || {
                process.alive()?;
                Ok((KernelObjects::of(process.pid())?.links.len() >= 2).then_some(()))
            })?;
            one_kib = one_kib.max(memory("VmallocUsed")?.saturating_sub(before_kib));
        } else {
            std::thread::sleep(Duration::from_millis(u64::from(start * 2)));
        }
        if start % 4 < 2 {
            process.signal(Signal::KILL)?;
        } else {
            process.signal(if start % 8 < 4 { Signal::TERM } else { Signal::INT })?;
        }
        let status = process.wait(Duration::from_secs(15))?;
        if start % 4 == 2 {
            ensure!(status.success(), "start {start} ended with {status}:\n{}", process.log());
        }
        ensure!(!process.log().contains("panicked"), "start {start}:\n{}", process.log());
    }
    producer.process().alive().context("the producer was disturbed")?;
    wait_for("the kernel to let go of everything", Duration::from_secs(10), || {
        Ok((Orphans::find().since(&before) == Orphans::default()).then_some(()))
    })
    .with_context(|| format!("{:?}", Orphans::find().since(&before)))?;
    // Programs and large maps live there. One that stays would take a hundredfold; stacks of other programs' threads come and go there, too.
    ensure!(one_kib > 0, "a running daemon takes no memory of the kernel");
    let allowed_kib = before_kib + one_kib * 10;
    wait_for("the kernel's memory to be as it was", Duration::from_secs(10), || Ok((memory("VmallocUsed")? <= allowed_kib).then_some(())))
        .with_context(|| format!("{before_kib} KiB before, {:?} after, {one_kib} more while one runs", memory("VmallocUsed")))
}

#[test]
#[ignore = "needs root and a broker: `cargo xtask test`"]
fn two_daemons_at_once_see_every_record_each() -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let client = Client::ensure(Language::Go, &distribution)?;
    let broker = Broker::start(&distribution)?;
    let scratches = [Scratch::new("first")?, Scratch::new("second")?];
    let mut daemons = Vec::new();
    for scratch in &scratches {
        let collector = Collector::start(scratch.path())?;
        let settings = [("KAFKA_TRACER_MAX_SPANS_PER_SECOND", "0")];
        let tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &settings)?;
        daemons.push((tracer, collector));
    }
    // The second time one has gone, and the other goes on.
    for round in 0..2 {
        let topic = unique(&format!("two-daemons-{round}"));
        broker.create_topic(&topic, 3)?;
        let (group, dir) = (format!("{topic}-readers"), scratches[0].path());
        let consume = Consume { topic: &topic, group: &group, records: 3_000 };
        let consumer = client.consume(&broker, dir, &format!("{topic}-consumer"), &consume)?;
        let produce = Produce { topic: &topic, records: 3_000, context_every: 7, rate: 3_000, ..PRODUCE };
        let sent = client.produce(&broker, dir, &format!("{topic}-producer"), &produce)?.records()?;
        let fetched = consumer.records()?;
        assert_eq!((sent.len(), fetched.len()), (3_000, 3_000));
        for (tracer, collector) in &mut daemons {
            let messages = |operation: &str| -> Result<i64> {
                let spans = collector.spans()?;
                let of_topic = spans
                    .iter()
                    .filter(|span| span.topic() == Some(&topic) && span.operation() == Some(operation))
                    // On a busy host a library may send or ask again; such spans say so.
                    .filter(|span| !span.is("kafka_tracer.redelivered") && !span.is("kafka_tracer.retry"));
                Ok(of_topic.map(xtask::lab::Span::messages).sum())
            };
            let seen = || Ok((messages("send")? >= 3_000 && messages("fetch")? >= 3_000).then_some(()));
            wait_for("both ends of all records", Duration::from_secs(20), seen).with_context(|| {
                format!("{:?} sent, {:?} fetched of 3000\n{}", messages("send"), messages("fetch"), tracer.process().log())
            })?;
            assert_eq!((messages("send")?, messages("fetch")?), (3_000, 3_000), "some were seen twice");
        }
        if round == 0 {
            let (mut tracer, mut collector) = daemons.remove(0);
            let status = tracer.process().terminate(Duration::from_secs(20))?;
            ensure!(status.success(), "it ended with {status}:\n{}", tracer.process().log());
            collector.stop()?;
        }
    }
    Ok(())
}
