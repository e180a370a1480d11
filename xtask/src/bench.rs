//! `bench`: the decoder on its own, and what the tracer costs a producer at the highest load that this machine makes.
#![forbid(unsafe_code)]

mod tls;

pub use tls::tls;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, Profile};
use crate::lab::{BpfStatistics, Broker, Collector, Distribution, Process, Protocol, Scratch, Tracer, wait_for};
use crate::vm::kernel::{SERIES, Series};
use crate::vm::plan::Cgroups;
use crate::{step, vm, workspace};

/// Runs benchmarks that need neither root nor a broker: those named, or all.
///
/// # Errors
/// If one does not build or run.
pub fn offline(names: &[&str]) -> Result<()> {
    step::heading("cargo bench", "the line without the kernel, in memory");
    let mut cargo = workspace::cargo();
    cargo.args(["bench", "--package", "tracer-userspace"]);
    for name in names {
        cargo.args(["--bench", name]);
    }
    step::foreground(&mut cargo)
}

/// Measures what the kernel programs cost the traffic that they see.
///
/// # Errors
/// If they cannot be built or attached.
pub fn packets() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this benchmark attaches programs to the kernel and needs root: `sudo -E cargo xtask bench packets`");
    }
    let programs = build::programs(Profile::Release)?;
    step::heading("bench packets", "traffic over loopback with the programs and without, in turn");
    let mut bench = workspace::cargo();
    bench.args(["bench", "--package", "tracer-userspace", "--features", "live", "--bench", "packet_source"]);
    step::foreground(bench.env("KAFKA_TRACER_BPF_DIR", programs))
}

/// Measures what the programs on calls of the kernel's functions cost the traffic that they see, in instructions.
///
/// # Errors
/// If they cannot be built, or a guest cannot be run.
pub fn calls(kernels: Vec<Series>) -> Result<()> {
    let programs = build::programs(Profile::Release)?;
    // What is measured is the kernel: the traffic itself need not be optimised, and is built sooner so.
    let program = build::program("--bench", "packet_source", "live", &programs)?.into_os_string();
    let kernels = if kernels.is_empty() { SERIES.first().into_iter().chain(SERIES.last()).copied().collect() } else { kernels };
    let options = vm::Options {
        kernels,
        cgroups: Cgroups::V2,
        no_ipv6: false,
        with: Vec::new(),
        time_limit: Duration::from_mins(30),
        profile: Profile::Debug,
        counts_instructions: true,
    };
    vm::command(&options, &[program, "packet".into(), "socket".into(), "socket-perf".into()])
}

/// How the live benchmark is run.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    /// Runs with and without the tracer, in turn.
    pub pairs: usize,
    /// Records of 1 KiB that each run produces.
    pub records: u32,
}

/// What one run measured.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// As `ProducerPerformance` says: units of 2^20 bytes.
    mib_per_second: f64,
    producer_cpu_seconds: f64,
    daemon_cpu_seconds: f64,
    program_seconds: f64,
}

/// Produces with `ProducerPerformance` as fast as it goes, with the tracer and without, and prints the comparison.
///
/// # Errors
/// If something cannot be set up, a run fails, or a captured byte was lost.
pub fn live(settings: Live) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the live benchmark attaches programs to the kernel and needs root: `sudo -E cargo xtask bench live`");
    }
    ensure!(settings.pairs >= 2, "an interval needs two pairs at least");
    let daemon = build::daemon(Profile::Release)?;
    Collector::ensure()?;
    let broker = Broker::start(&Distribution::ensure(Distribution::NEWEST)?)?;
    let _statistics = BpfStatistics::on()?;
    step::heading("bench live", &format!("{} pairs of {} records of 1 KiB, about half a minute each", settings.pairs, settings.records));
    // The first runs of a fresh JVM, page cache and disk are slower than all others.
    one_run(&broker, "warm-up", None, settings.records)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for pair in 0..settings.pairs {
        let traced_first = pair % 2 == 1;
        // Whoever comes second in a pair may be favoured: they take turns.
        for traced in [traced_first, !traced_first] {
            let label = format!("{}-{pair}", if traced { "with" } else { "without" });
            let run = one_run(&broker, &label, traced.then_some(daemon.as_path()), settings.records)?;
            if traced { with.push(run) } else { without.push(run) }
        }
        if let (Some(without), Some(with)) = (without.last(), with.last()) {
            let (a, b) = (without.mib_per_second, with.mib_per_second);
            step::note(&format!("pair {}: {a:.1} MiB/s without, {b:.1} with, ratio {:.3}", pair + 1, b / a));
        }
    }
    report(settings, &without, &with);
    Ok(())
}

fn one_run(broker: &Broker, topic: &str, daemon: Option<&Path>, records: u32) -> Result<Run> {
    let scratch = Scratch::new("bench")?;
    broker.create_topic(topic, 3)?;
    let mut collector = None;
    let mut tracer = None;
    if let Some(daemon) = daemon {
        let started = Collector::start(scratch.path())?;
        let mut running = Tracer::start(daemon, scratch.path(), &started, Protocol::Grpc, &[])?;
        // Loading and verifying the programs is paid once, not for each byte.
        let start_seconds = running.process().cpu_seconds()?;
        tracer = Some((running, start_seconds));
        collector = Some(started);
    }
    let mut java = broker.distribution().java("512m");
    java.args(["org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--record-size", "1024", "--throughput", "-1"]);
    java.args(["--num-records", &records.to_string(), "--bootstrap-server", &broker.bootstrap(), "--command-property", "acks=1"]);
    let mut producer = Process::start("producer", scratch.path(), &mut java)?;
    let mut producer_cpu_seconds = 0.0;
    wait_for("the producer's end", Duration::from_mins(5), || {
        producer_cpu_seconds = producer.cpu_seconds().unwrap_or(producer_cpu_seconds);
        Ok(producer.alive().is_err().then_some(()))
    })?;
    producer.success(Duration::from_secs(1))?;
    let mib_per_second = throughput(&producer.stdout())?;

    let mut run = Run { mib_per_second, producer_cpu_seconds, daemon_cpu_seconds: 0.0, program_seconds: 0.0 };
    if let (Some((mut tracer, start_seconds)), Some(mut collector)) = (tracer, collector) {
        // All of the work is done when all records are counted.
        wait_for("the daemon to count the last record", Duration::from_secs(30), || {
            tracer.process().alive()?;
            Ok((collector.counted("messaging.client.sent.messages", topic)? >= f64::from(records)).then_some(()))
        })?;
        run.program_seconds = tracer.program_seconds()?;
        run.daemon_cpu_seconds = tracer.process().cpu_seconds()? - start_seconds;
        let status = tracer.process().terminate(Duration::from_secs(20))?;
        ensure!(status.success(), "SIGTERM ended the daemon with {status}:\n{}", tracer.process().log());
        collector.stop()?;
        for metric in ["kafka_tracer.capture.lost", "kafka_tracer.stream.gaps"] {
            let lost = collector.counted(metric, "")?;
            ensure!(lost == 0.0, "{metric} is {lost} after {topic}: the daemon lost bytes");
        }
        let sent = collector.counted("messaging.client.sent.messages", topic)?;
        ensure!((sent - f64::from(records)).abs() < 0.5, "{sent} of {records} records were counted");
    }
    broker.delete_topic(topic)?;
    Ok(run)
}

/// The last line of `ProducerPerformance`: `1000000 records sent, 166112.9 records/sec (162.22 MB/sec), ...`.
fn throughput(output: &str) -> Result<f64> {
    let line = output
        .lines()
        .rfind(|line| line.contains("records sent") && line.contains("MB/sec)"))
        .context("no result of ProducerPerformance")?;
    let figure = line.split_once('(').and_then(|(_, rest)| rest.split_once(" MB/sec")).map(|(figure, _)| figure);
    figure.and_then(|figure| figure.replace(',', ".").parse().ok()).with_context(|| format!("no throughput in: {line}"))
}

#[expect(clippy::cast_precision_loss, reason = "a handful of runs")]
fn report(settings: Live, without: &[Run], with: &[Run]) {
    let mean = |runs: &[Run], of: fn(&Run) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
    let ratios: Vec<f64> = without.iter().zip(with).map(|(without, with)| (with.mib_per_second / without.mib_per_second).ln()).collect();
    let (ratio, low, high) = interval(&ratios);
    let cpu: Vec<f64> = without.iter().zip(with).map(|(a, b)| (b.producer_cpu_seconds / a.producer_cpu_seconds).ln()).collect();
    let (cpu, cpu_low, cpu_high) = interval(&cpu);
    let gib = f64::from(settings.records) / f64::from(1 << 20);
    let daemon = mean(with, |run| run.daemon_cpu_seconds);
    let programs = mean(with, |run| run.program_seconds);
    let seconds = gib * 1024.0 / mean(with, |run| run.mib_per_second);
    // The promise is in units of 10^6 bytes: 1 MiB is 1.048576 of them.
    let per_100_mb = (daemon + programs) / (gib * 1024.0 * 1.048_576) * 100.0;
    println!("\n| | without | with | ratio (95% interval) |\n| --- | --- | --- | --- |");
    println!(
        "| throughput, MiB/s | {:.1} | {:.1} | {ratio:.3} ({low:.3} to {high:.3}) |",
        mean(without, |run| run.mib_per_second),
        mean(with, |run| run.mib_per_second)
    );
    println!(
        "| CPU of the producer, s per million records | {:.2} | {:.2} | {cpu:.3} ({cpu_low:.3} to {cpu_high:.3}) |",
        mean(without, |run| run.producer_cpu_seconds) / f64::from(settings.records) * 1e6,
        mean(with, |run| run.producer_cpu_seconds) / f64::from(settings.records) * 1e6
    );
    println!("| CPU of the daemon, s per GiB | | {:.3} | |", daemon / gib);
    println!("| run time of the programs in the kernel, s per GiB | | {:.3} | |", programs / gib);
    println!("| daemon and programs, share of one core while producing | | {:.1}% | |", (daemon + programs) / seconds * 100.0);
    println!("| daemon and programs, share of one core per 100 MB/s | | {:.1}% | |", per_100_mb * 100.0);
    println!("| bytes lost | | 0 | |");
    println!(
        "\n{} alternated pairs, {} records of 1 KiB each, acks=1, Kafka {}, {} cores, Linux {}.",
        settings.pairs,
        settings.records,
        Distribution::NEWEST,
        std::thread::available_parallelism().map_or(0, usize::from),
        rustix::system::uname().release().to_string_lossy()
    );
}

/// Mean of paired log ratios as a ratio, with the limits of its 95% interval by Student's t.
#[expect(clippy::cast_precision_loss, reason = "a handful of runs")]
fn interval(logs: &[f64]) -> (f64, f64, f64) {
    /// Two-sided 95% points of Student's t for 1 to 30 degrees of freedom.
    const T: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101,
        2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ];
    let n = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / n;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = logs.len().checked_sub(2).and_then(|index| T.get(index)).copied().unwrap_or(1.96);
    let half = t * (variance / n).sqrt();
    (mean.exp(), (mean - half).exp(), (mean + half).exp())
}

#[cfg(test)]
mod tests {
    use super::{interval, throughput};

    #[test]
    fn the_last_line_of_producer_performance_is_read() {
        let output = "100 records sent, 20.0 records/sec (0.02 MB/sec), 3.0 ms avg latency\n\
                      1000000 records sent, 166112.9 records/sec (162.22 MB/sec), 180.4 ms avg latency, 400.0 ms max latency\n";
        assert!((throughput(output).unwrap() - 162.22).abs() < 1e-9);
        assert!(throughput("nothing").is_err());
    }

    #[test]
    fn the_interval_of_paired_ratios_is_students() {
        // Logs -0.1, 0.0, 0.1: mean 0, deviation 0.1, half width 4.303 * 0.1 / sqrt(3) = 0.24843.
        let (ratio, low, high) = interval(&[-0.1, 0.0, 0.1]);
        assert!((ratio - 1.0).abs() < 1e-9);
        assert!((low.ln() + 0.24843).abs() < 1e-4 && (high.ln() - 0.24843).abs() < 1e-4, "{low} {high}");
    }
}
