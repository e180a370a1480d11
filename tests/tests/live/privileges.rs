//! The daemon with no more rights than it needs, and with fewer once it runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tracer_userspace::privileges::{CAPABILITIES, Need, OBSERVING};
use xtask::lab::{Access, Client, Collector, Language, Protocol, Scratch, Tracer, wait_for};

use crate::stage::{self, Stage, endless, few};
use crate::{daemon, deploy, turn};

/// What the kernel says of each thread of a process.
fn threads(pid: u32) -> Result<Vec<BTreeMap<String, String>>> {
    let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))?.filter_map(Result::ok) {
        // A thread may end while we look.
        if let Ok(status) = fs::read_to_string(entry.path().join("status")) {
            threads.push(status.lines().filter_map(field).collect());
        }
    }
    Ok(threads)
}

fn wait_for_filter(tracer: &mut Tracer) -> Result<()> {
    wait_for("the daemon's filter of system calls", Duration::from_secs(10), || {
        tracer.process().alive()?;
        let threads = threads(tracer.process().pid())?;
        Ok(threads.iter().all(|thread| thread.get("Seccomp").is_some_and(|mode| mode == "2")).then_some(()))
    })
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn once_it_captures_all_threads_have_given_up_what_they_do_not_need() -> Result<()> {
    let _turn = turn();
    let scratch = Scratch::new("rights")?;
    let collector = Collector::stopped(scratch.path())?;
    let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &[])?;
    wait_for_filter(&mut tracer)?;
    let threads = threads(tracer.process().pid())?;
    ensure!(threads.len() >= 4, "only {} threads", threads.len());
    for thread in &threads {
        let name = &thread["Name"];
        assert_eq!(thread["NoNewPrivs"], "1", "{name}");
        // Those that look at processes; the kernel cuts names after 15 bytes.
        let allowed = if ["capture", "socket-owners"].contains(&name.as_str()) { OBSERVING.bits() } else { 0 };
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let held = u64::from_str_radix(&thread[set], 16).with_context(|| format!("{set} of {name}"))?;
            assert_eq!(held & !allowed, 0, "{set} of {name} is {}", thread[set]);
        }
    }
    assert!(threads.iter().any(|thread| thread["Name"] == "capture" && thread["CapEff"] != thread["CapAmb"]), "nobody looks at processes");
    assert!(!tracer.process().log().contains("do not need"), "{}", tracer.process().log());
    let status = tracer.process().terminate(Duration::from_secs(15))?;
    // The Collector is away: what is left is undelivered.
    ensure!(status.code().is_some_and(|code| code == 0 || code == 3), "it ended with {status}:\n{}", tracer.process().log());
    Ok(())
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn without_the_filter_it_runs_too() -> Result<()> {
    let _turn = turn();
    let scratch = Scratch::new("no-filter")?;
    let collector = Collector::start(scratch.path())?;
    let mut tracer = Tracer::start(&daemon(), scratch.path(), &collector, Protocol::Grpc, &[("KAFKA_TRACER_SECCOMP", "off")])?;
    wait_for("the daemon to say that it captures", Duration::from_secs(10), || {
        tracer.process().alive()?;
        Ok(tracer.process().log().contains("Capturing").then_some(()))
    })?;
    for thread in threads(tracer.process().pid())? {
        assert_eq!((thread["Seccomp"].as_str(), thread["NoNewPrivs"].as_str()), ("0", "1"), "{}", thread["Name"]);
    }
    let status = tracer.process().terminate(Duration::from_secs(15))?;
    ensure!(status.success(), "it ended with {status}:\n{}", tracer.process().log());
    Ok(())
}

#[test]
#[ignore = "needs root and a broker: `cargo xtask test`"]
fn an_ordinary_user_with_the_listed_capabilities_sees_kafka_from_a_read_only_root() -> Result<()> {
    let _turn = turn();
    let stage = Stage::start("ordinary")?;
    let (broker, dir) = (&stage.broker, stage.scratch.path());
    let client = Client::ensure(Language::Go, broker.distribution())?;
    let (older, newer) = (stage::topic(broker, "older-connection")?, stage::topic(broker, "newer-connection")?);
    let mut producer = client.produce(broker, dir, &older, &endless(&older, 200))?;
    producer.process().wait_connected(broker.port())?;

    let mut tracer = Tracer::start_command(&mut as_ordinary_user(&stage.scratch, &stage.collector, &[])?, dir)?;
    wait_for_filter(&mut tracer)?;
    for thread in threads(tracer.process().pid())? {
        assert_eq!(thread["Uid"], "65534\t65534\t65534\t65534");
    }
    let sent = client.produce(broker, dir, &newer, &few(&newer, 50))?.records()?;
    wait_for("spans of both producers, with their processes", Duration::from_secs(40), || {
        tracer.process().alive()?;
        let spans = stage.collector.spans()?;
        let messages = |topic: &str| {
            let of_topic = spans.iter().filter(|span| span.topic() == Some(topic) && span.operation() == Some("send"));
            of_topic.filter(|span| span.resource.contains_key("process.executable.name")).map(xtask::lab::Span::messages).sum::<i64>()
        };
        Ok((messages(&newer) == i64::try_from(sent.len())? && messages(&older) > 0).then_some(()))
    })
    .with_context(|| tracer.process().log())?;
    let log = stage::end(&mut tracer)?;
    assert!(!log.contains("WARN"), "{log}");
    Ok(())
}

/// As `deploy/kubernetes/daemonset-tls.yaml` has it, and as `daemonset.yaml` has it but for the setting.
#[test]
#[ignore = "needs root and a broker: `cargo xtask test`"]
fn encrypted_connections_need_one_capability_more_and_the_daemon_names_it() -> Result<()> {
    let _turn = turn();
    let stage = Stage::secure("ordinary-tls")?;
    let broker = &stage.broker;
    let client = Client::ensure(Language::Go, broker.distribution())?.over(Access::MutualTls);
    let port = broker.port_for(Access::MutualTls)?.to_string();
    for more in [&["sys_admin"][..], &[]] {
        let scratch = Scratch::new("ordinary-tls-root")?;
        let mut command = as_ordinary_user(&scratch, &stage.collector, more)?;
        command.env("KAFKA_TRACER_TLS", "auto").env("KAFKA_TRACER_TLS_PORTS", &port);
        let mut tracer = Tracer::start_command(&mut command, scratch.path())?;
        wait_for_filter(&mut tracer)?;
        let names_it = tracer.process().log().lines().any(|line| line.contains("WARN") && line.contains("CAP_SYS_ADMIN"));
        ensure!(names_it == more.is_empty(), "{}", tracer.process().log());
        let topic = stage::topic(broker, &format!("ordinary-tls-{}", more.len()))?;
        let _producer = client.produce(broker, scratch.path(), &topic, &endless(&topic, 200))?;
        if more.is_empty() {
            wait_for("the daemon to count what it cannot attach to", Duration::from_secs(40), || {
                tracer.process().alive()?;
                Ok((stage.collector.counted("kafka_tracer.tls.opaque", "not_attached")? > 0.0).then_some(()))
            })
            .with_context(|| tracer.process().log())?;
        } else {
            stage.wait_for_span("spans of an encrypted producer", &mut tracer, |span| span.topic() == Some(&topic))?;
        }
        stage::end(&mut tracer)?;
    }
    Ok(())
}

/// The daemon in a bare root file system that is read-only, as user 65534 with exactly the capabilities of the list, and with `more`.
fn as_ordinary_user(scratch: &Scratch, collector: &Collector, more: &[&str]) -> Result<Command> {
    let root = scratch.path().join("root");
    for (program, name) in [(daemon().as_path(), "kafka-tracer"), (Path::new("/usr/bin/setpriv"), "setpriv")] {
        deploy::install(program, &root.join(name))?;
        for library in deploy::libraries(program)? {
            deploy::install(&library, &root.join(library.strip_prefix("/")?))?;
        }
    }
    for dir in ["proc", "sys", "host/cgroup"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let needed = CAPABILITIES.iter().filter(|capability| capability.need != Need::Special);
    let needed = needed.map(|capability| capability.name.trim_start_matches("CAP_").to_lowercase());
    let needed: Vec<String> = needed.chain(more.iter().map(|name| (*name).to_owned())).collect();
    let needed = format!(",+{}", needed.join(",+"));
    let script = "set -e
        mount --bind \"$1\" \"$1\"
        mount -t proc proc \"$1/proc\"
        mount -t sysfs -o ro sysfs \"$1/sys\"
        mount --bind \"$2\" \"$1/host/cgroup\"
        mount -o remount,bind,ro \"$1\"
        ! touch \"$1/written\" 2>/dev/null
        exec chroot \"$1\" /setpriv --reuid=65534 --regid=65534 --clear-groups \\
            --inh-caps=-all$3 --ambient-caps=-all$3 --bounding-set=-all$3 /kafka-tracer run";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "ordinary"]).arg(&root).arg(deploy::cgroup2_root()?);
    command.arg(needed).env_clear().stdin(Stdio::null());
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("KAFKA_TRACER_CGROUP", "/host/cgroup");
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint(Protocol::Grpc)).env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    command.env("OTEL_BSP_SCHEDULE_DELAY", "500").env("OTEL_METRIC_EXPORT_INTERVAL", "2000");
    Ok(command)
}
