//! Programs that live for one encrypted connection, a thousand of them.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Buf as _;
use kafka_protocol::messages::{ProduceResponse, ResponseHeader};
use kafka_protocol::protocol::Decodable as _;
use tests::kafka::{self, Topic};
use xtask::lab::{Access, KernelObjects, Tracer, wait_for};
use xtask::tools;

use crate::stage::{self, Stage};
use crate::{deploy, turn};

/// Those whose library is named to the daemon.
const KNOWN: usize = 800;
/// Those that it finds by their connections, one after another.
const FOUND: usize = 200;
/// One in so many reaches the broker; the others are hung up on in the middle of the handshake.
const REACHES: usize = 40;
/// What the daemon may take in the end. Each process that was seen is a resource of its own in its metrics, for a while.
const MAX_KILOBYTES: u64 = 256 << 10;
/// Descriptors of the exporter's connections, which come and go. An attachment has two.
const EXPORTERS: usize = 4;
/// How many run at once.
const AT_ONCE: usize = 6;

/// What the daemon holds: descriptors, links, programs and maps, and kilobytes of memory.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    objects: KernelObjects,
    kilobytes: u64,
}

impl Held {
    fn by(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        let kilobytes = resident.trim().trim_end_matches(" kB").parse()?;
        Ok(Self { descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(), objects: KernelObjects::of(pid)?, kilobytes })
    }

    fn is_no_more_than(&self, before: &Self) -> bool {
        let programs = self.objects.programs == before.objects.programs && self.objects.maps == before.objects.maps;
        programs && self.descriptors <= before.descriptors + EXPORTERS && self.objects.links.len() <= before.objects.links.len()
    }
}

/// What the processes are told.
struct Job<'a> {
    program: &'a Path,
    libraries: &'a Path,
    requests: &'a Path,
    credentials: [&'a Path; 2],
    broker: u16,
    nobody: u16,
}

impl Job<'_> {
    fn start(&self, reaches: bool) -> Result<Child> {
        let mut command = Command::new(self.program);
        command.arg(if reaches { self.broker } else { self.nobody }.to_string()).arg(self.requests).args(self.credentials);
        command.env("LD_LIBRARY_PATH", self.libraries).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().context("cannot start a process")
    }

    /// Starts so many, a few at once. The offsets of the records that the broker stored.
    fn run(&self, processes: usize) -> Result<BTreeSet<i64>> {
        let mut stored = BTreeSet::new();
        let numbers: Vec<usize> = (0..processes).collect();
        for numbers in numbers.chunks(AT_ONCE) {
            let running = numbers.iter().map(|number| Ok((number % REACHES == 0, self.start(number % REACHES == 0)?)));
            for (reaches, child) in running.collect::<Result<Vec<_>>>()? {
                let output = child.wait_with_output()?;
                ensure!(output.status.success() == reaches, "a process ended with {}", output.status);
                if reaches {
                    ensure!(stored.insert(offset(&output.stdout)?), "one offset for two records");
                }
            }
        }
        Ok(stored)
    }
}

/// The offset in the last of the answers that a process got.
fn offset(answers: &[u8]) -> Result<i64> {
    let mut rest = answers;
    let mut last = rest;
    while rest.len() >= 4 {
        let size = usize::try_from(rest.get_u32())?;
        ensure!(rest.len() >= size, "half an answer");
        (last, rest) = rest.split_at(size);
    }
    let _ = ResponseHeader::decode(&mut last, 1)?;
    let answer = ProduceResponse::decode(&mut last, 9)?;
    let partition = answer.responses.first().and_then(|topic| topic.partition_responses.first()).context("no partition")?;
    ensure!(partition.error_code == 0, "the broker refused with error {}", partition.error_code);
    Ok(partition.base_offset)
}

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn a_thousand_short_lived_processes_are_seen_and_leave_nothing_behind() -> Result<()> {
    let _turn = turn();
    let mut stage = Stage::secure("tls-brief")?;
    let (broker, dir) = (&stage.broker, stage.scratch.path());
    let certificates = broker.certificates().context("no certificates")?;
    let (topics, program) = (["tls-brief-known", "tls-brief-found"].map(|name| stage::topic(broker, name)), tools::brief_client()?);
    let [known, found] = topics;
    let (known, found) = (known?, found?);
    // One copy of the library is named to the daemon, another one is not.
    let copies = [dir.join("known"), dir.join("found")];
    let is_libssl = |path: &PathBuf| path.file_name().is_some_and(|name| name == "libssl.so.3");
    let library = deploy::libraries(&program)?.into_iter().find(is_libssl).context("the client has no libssl.so.3")?;
    for copy in &copies {
        fs::create_dir(copy)?;
        fs::copy(&library, copy.join("libssl.so.3"))?;
    }
    let nobody = TcpListener::bind("127.0.0.1:0")?;
    let hung_up = nobody.local_addr()?.port();
    // Ends with the test's process.
    std::thread::spawn(move || nobody.incoming().for_each(drop));
    let ports = format!("{},{hung_up}", broker.port_for(Access::MutualTls)?);
    let library = copies[0].join("libssl.so.3").display().to_string();
    let mut tracer = stage.tls_tracer(&[("KAFKA_TRACER_TLS_PORTS", &ports), ("KAFKA_TRACER_TLS_LIBRARIES", &library)])?;
    let (client, client_key) = (certificates.client(), certificates.client_key());
    let run = |topic: &str, libraries: &Path, processes| {
        let requests = dir.join(topic);
        let (versions, _) = kafka::api_versions(3, 1, Some(topic))?;
        let produce = kafka::produce(9, 2, Some(topic), 1, Topic::Name(topic), &kafka::messages(1))?;
        fs::write(&requests, [versions, produce].concat())?;
        let credentials = [client.as_path(), client_key.as_path()];
        let job = Job {
            program: &program,
            libraries,
            requests: &requests,
            credentials,
            broker: broker.port_for(Access::MutualTls)?,
            nobody: hung_up,
        };
        job.run(processes)
    };

    // All is in place when the first have ended.
    let mut sent = run(&known, &copies[0], AT_ONCE)?;
    let before = Held::by(tracer.process().pid())?;
    sent.extend(run(&known, &copies[0], KNOWN)?);
    let settled = |tracer: &mut Tracer, limit| {
        let last = Held::by(tracer.process().pid())?;
        let waited = wait_for("the daemon to let go of what is over", limit, || {
            tracer.process().alive()?;
            let now = Held::by(tracer.process().pid())?;
            Ok(now.is_no_more_than(&before).then_some(now))
        });
        waited.with_context(|| format!("{last:?} after {before:?}\n{}", tracer.process().log()))
    };
    let after = settled(&mut tracer, Duration::from_secs(5))?;

    let sent_unknown = run(&found, &copies[1], FOUND)?;
    let at_once = Held::by(tracer.process().pid())?;
    let later = settled(&mut tracer, Duration::from_mins(2))?;
    let links = [&before, &at_once, &later].map(|held| held.objects.links.len());
    println!("links before, at the end of the last process, and in the end: {links:?}");
    println!("kilobytes: {:?}", [&before, &after, &at_once, &later].map(|held| held.kilobytes));
    ensure!(later.kilobytes < MAX_KILOBYTES, "{later:?} after {before:?}");

    let (spans, log) = stage.end(tracer)?;
    let seen = |topic: &str| -> Vec<i64> {
        let of_topic = spans.iter().filter(|span| span.topic() == Some(topic) && span.operation() == Some("send"));
        of_topic.filter_map(|span| span.int("kafka_tracer.batch.base_offset")).collect()
    };
    let of_known = seen(&known);
    ensure!(of_known.len() == sent.len() && of_known.into_iter().collect::<BTreeSet<_>>() == sent, "not all were seen:\n{log}");
    let of_found = seen(&found);
    println!("{} of {} records were seen of processes that had to be found", of_found.len(), sent_unknown.len());
    ensure!(of_found.iter().collect::<BTreeSet<_>>().len() == of_found.len(), "a record was seen twice");
    ensure!(of_found.iter().all(|offset| sent_unknown.contains(offset)), "a record was made up");
    let lost = stage.collector.counted("kafka_tracer.capture.lost", "")?;
    ensure!(lost == 0.0, "{lost} bytes lost");
    Ok(())
}
