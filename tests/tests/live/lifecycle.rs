//! How the daemon starts and ends, and what it leaves behind: nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::maps::loaded_maps;
use aya::programs::loaded_programs;
use xtask::lab::{Client, Collector, KernelObjects, Language, Protocol, Scratch, Tracer, wait_for};

use crate::accounting::check_part;
use crate::stage::{self, Stage, endless};
use crate::{daemon, turn};

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
    let stage = Stage::start("signal")?;
    let client = Client::ensure(Language::Go, stage.broker.distribution())?;
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut tracer = stage.tracer(&[])?;
        let topic = stage::topic(&stage.broker, &format!("amid-traffic-{}", signal.as_raw()))?;
        let _producer = client.produce(&stage.broker, stage.scratch.path(), &topic, &endless(&topic, 2_000))?;
        stage.wait_for_span("spans of the traffic", &mut tracer, |span| span.topic() == Some(&topic))?;
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
    let stage = Stage::start("older")?;
    let broker = &stage.broker;
    let topic = stage::topic(broker, "older")?;
    let mut producers = Vec::new();
    for language in Language::ALL {
        let client = Client::ensure(language, broker.distribution())?;
        producers.push((language.name(), client.produce(broker, stage.scratch.path(), language.name(), &endless(&topic, 1_000))?));
    }
    for (name, producer) in &mut producers {
        // Its connection is then older than the daemon.
        producer.process().wait_connected(broker.port()).with_context(|| name.to_owned())?;
    }
    let mut tracer = stage.tracer(&[])?;
    for (name, _) in &producers {
        stage.wait_for_span(&format!("spans of {name}"), &mut tracer, |span| {
            span.topic() == Some(&topic) && span.text("messaging.client.id") == Some(name)
        })?;
    }
    Ok(())
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

#[test]
#[ignore = "needs root, a broker and a Collector: `cargo xtask test`"]
fn what_was_seen_is_sent_before_the_last_tls_library_is_let_go() -> Result<()> {
    let _turn = turn();
    let stage = Stage::secure("let-go")?;
    let client = Client::ensure(Language::KafkaPython, stage.broker.distribution())?;
    let library = client.tls_libraries()?.into_iter().next().context("no library")?;
    let mut copies = Vec::new();
    // The kernel waits for all CPUs with each function that programs are taken off.
    for number in 0..4 {
        let copy = stage.scratch.path().join(format!("libssl-{number}.so.3"));
        fs::copy(&library, &copy)?;
        copies.push(copy.display().to_string());
    }
    // Nothing is sent by itself in time.
    let settings = [("KAFKA_TRACER_TLS_LIBRARIES", copies.join(",")), ("OTEL_BSP_SCHEDULE_DELAY", "600000".to_owned())];
    let mut tracer = stage.tls_tracer(&settings.each_ref().map(|(name, value)| (*name, value.as_str())))?;
    let topic = stage::topic(&stage.broker, "let-go")?;
    let sent = client.produce(&stage.broker, stage.scratch.path(), &topic, &stage::few(&topic, 50))?.records()?;
    assert!(stage.collector.spans()?.is_empty(), "spans were sent before the end");

    let begun = Instant::now();
    tracer.process().signal(rustix::process::Signal::TERM)?;
    wait_for("all that was seen", Duration::from_secs(30), || {
        let seen = check_part(&topic, "send", &sent, &stage.collector.spans()?)?;
        Ok((seen.len() == sent.len()).then_some(()))
    })?;
    let seen_after = begun.elapsed();
    let status = tracer.process().wait(Duration::from_mins(2))?;
    let ended_after = begun.elapsed();
    println!("all was sent {seen_after:?} after the signal; the daemon ended after {ended_after:?}");
    assert!(status.success(), "{status}: {}", tracer.process().log());
    assert!(seen_after * 2 < ended_after, "all was sent {seen_after:?} after the signal, and the daemon ended after {ended_after:?}");
    Ok(())
}
