//! How the daemon starts and ends, and what it leaves behind: nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::loaded_maps;
use aya::programs::loaded_programs;
use xtask::lab::{Broker, Client, Collector, Distribution, KernelObjects, Language, Produce, Protocol, Scratch, Tracer, wait_for};

use crate::{daemon, turn, unique};

/// Which of these are known to the kernel.
fn left(held: &KernelObjects) -> KernelObjects {
    let programs: Vec<u32> = loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect();
    let maps: Vec<u32> = loaded_maps().filter_map(Result::ok).map(|map| map.id()).collect();
    KernelObjects {
        programs: held.programs.iter().copied().filter(|id| programs.contains(id)).collect(),
        maps: held.maps.iter().copied().filter(|id| maps.contains(id)).collect(),
        links: Vec::new(),
    }
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn nothing_is_left_in_the_kernel_after_sigkill() -> Result<()> {
    let _turn = turn();
    let scratch = Scratch::new("sigkill")?;
    let collector = Collector::stopped(scratch.path())?;
    let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &[])?;
    let held = tracer.kernel_objects()?;
    assert!(held.maps.len() >= 2 && held.links.len() >= 2, "the daemon holds too little to be capturing: {held:?}");
    assert_eq!(left(&held).maps, held.maps, "the kernel's list does not show what is there");
    let before = fs::read_dir("/sys/fs/bpf").map_or(0, Iterator::count);

    tracer.process().signal(rustix::process::Signal::KILL)?;
    tracer.process().wait(Duration::from_secs(5))?;
    wait_for("the kernel to let go of programs and maps", Duration::from_secs(5), || {
        Ok((left(&held) == KernelObjects::default()).then_some(()))
    })?;
    assert_eq!(fs::read_dir("/sys/fs/bpf").map_or(0, Iterator::count), before, "something was pinned");
    Ok(())
}

#[test]
#[ignore = "needs root and a broker: `cargo xtask test`"]
fn sigterm_and_sigint_end_it_with_success_amid_traffic() -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let client = Client::ensure(Language::Go, &distribution)?;
    let broker = Broker::start(&distribution)?;
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let scratch = Scratch::new("signal")?;
        let collector = Collector::start(scratch.path())?;
        let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &[])?;
        let topic = unique(&format!("amid-traffic-{}", signal.as_raw()));
        broker.create_topic(&topic, 1)?;
        let endless = Produce {
            topic: &topic,
            records: 1_000_000,
            codec: "none",
            context_every: 0,
            unsampled_every: 0,
            rate: 2_000,
            value_bytes: 50,
            linger_ms: 5,
        };
        let _producer = client.produce(&broker, scratch.path(), &topic, &endless)?;
        wait_for("spans of the traffic", Duration::from_secs(30), || {
            tracer.process().alive()?;
            Ok(collector.spans()?.iter().any(|span| span.topic() == Some(&topic)).then_some(()))
        })?;
        tracer.process().signal(signal)?;
        let status = tracer.process().wait(Duration::from_secs(15))?;
        assert!(status.success(), "{signal:?} ended the daemon with {status}:\n{}", tracer.process().log());
    }
    Ok(())
}

#[test]
#[ignore = "needs root and a broker: `cargo xtask test`"]
fn a_connection_older_than_the_daemon_is_picked_up() -> Result<()> {
    let _turn = turn();
    let distribution = Distribution::ensure(Distribution::NEWEST)?;
    let broker = Broker::start(&distribution)?;
    let scratch = Scratch::new("older")?;
    let collector = Collector::start(scratch.path())?;
    let topic = unique("older");
    broker.create_topic(&topic, 1)?;
    let endless = Produce {
        topic: &topic,
        records: 1_000_000,
        codec: "none",
        context_every: 0,
        unsampled_every: 0,
        rate: 1_000,
        value_bytes: 50,
        linger_ms: 5,
    };
    let mut producers = Vec::new();
    for language in Language::ALL {
        let client = Client::ensure(language, &distribution)?;
        producers.push((language.name(), client.produce(&broker, scratch.path(), language.name(), &endless)?));
    }
    for (name, producer) in &mut producers {
        // Its connection is then older than the daemon.
        producer.process().wait_connected(broker.port()).with_context(|| name.to_owned())?;
    }
    let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &[])?;
    wait_for("spans of all three clients", Duration::from_secs(30), || {
        tracer.process().alive()?;
        let spans = collector.spans()?;
        let seen = |name: &str| spans.iter().any(|span| span.topic() == Some(&topic) && span.text("messaging.client.id") == Some(name));
        Ok(Language::ALL.iter().all(|language| seen(language.name())).then_some(()))
    })
}

#[test]
#[ignore = "needs root to give it up: `cargo xtask test`"]
fn without_root_it_says_what_is_missing_and_what_to_do() -> Result<()> {
    let scratch = Scratch::new("rootless")?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
    let copy = scratch.path().join("kafka-tracer");
    fs::copy(daemon(), &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    let output = Command::new("setpriv").args(nobody).arg(&copy).arg("run").output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it claims to run without rights");
    assert!(text.contains("root") && text.contains("CAP_"), "no word of what is missing:\n{text}");
    assert!(text.lines().count() <= 6 && !text.contains("panicked"), "more than one clear message:\n{text}");
    Ok(())
}
