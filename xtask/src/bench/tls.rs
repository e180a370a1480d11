//! `bench tls`: what seeing into encrypted connections costs the programs that have them, Kafka's or not.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, Profile};
use crate::lab::{Certificates, Scratch, Tracer, free_port, wait_for};
use crate::{step, tools};

/// Rounds of each kind in each manner.
const ROUNDS: usize = 9;

/// How long one round is measured.
const ROUND: Duration = Duration::from_millis(400);

/// With which tracer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    None,
    /// Packets alone: encrypted connections are left alone after their first bytes.
    Packet,
    /// And TLS libraries.
    Tls,
}

/// One kind of traffic, over one connection.
struct Traffic {
    name: &'static str,
    /// As the program is told.
    kind: &'static str,
    /// Whether it is on a port where Kafka may listen.
    is_named: bool,
    unit: &'static str,
}

const TRAFFIC: [Traffic; 5] = [
    Traffic { name: "other protocol, other port, 64 bytes each way", kind: "ask", is_named: false, unit: "round trip" },
    Traffic { name: "other protocol, other port, 64 KiB one way", kind: "send", is_named: false, unit: "request" },
    Traffic { name: "other protocol on `--tls-ports`, 64 bytes each way", kind: "ask", is_named: true, unit: "round trip" },
    Traffic { name: "Kafka on `--tls-ports`, 64 bytes each way", kind: "askk", is_named: true, unit: "round trip" },
    Traffic { name: "Kafka on `--tls-ports`, 64 KiB one way", kind: "sendk", is_named: true, unit: "request" },
];

/// Microseconds of a round for each kind of traffic.
type Costs = [f64; TRAFFIC.len()];

/// Measures traffic without a tracer, with one that sees packets, and with one that sees into TLS, in turn, and prints a table.
///
/// # Errors
/// If something cannot be built, started or attached.
#[expect(clippy::indexing_slicing, reason = "a list for each manner, and in it a cost for each kind of traffic")]
pub fn tls() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this benchmark attaches programs to the kernel and needs root: `sudo -E cargo xtask bench tls`");
    }
    let daemon = build::daemon(Profile::Release)?;
    let program = tools::tls_traffic()?;
    let scratch = Scratch::new("bench-tls")?;
    let certificates = Certificates::make(scratch.path())?;
    step::heading("bench tls", &format!("{ROUNDS} rounds in each of three manners, about {} s", ROUNDS * 21));
    let mut costs = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let mut manners = [Manner::None, Manner::Packet, Manner::Tls];
        // Each comes first every third time: the machine's speed drifts.
        manners.rotate_left(round % 3);
        for manner in manners {
            costs[manner as usize].push(one_round(manner, &daemon, &program, &certificates)?);
        }
    }
    let [none, packet, tls] = costs;
    println!("\n| traffic over TLS, both ends in one process | CPU without | packets alone | and TLS |\n| --- | --- | --- | --- |");
    for (index, traffic) in TRAFFIC.iter().enumerate() {
        let ratio = |with: &[Costs]| quartiles(with.iter().zip(&none).map(|(with, without)| with[index] / without[index]).collect());
        let ([_, middle, _], [p1, p2, p3], [t1, t2, t3]) =
            (quartiles(none.iter().map(|costs| costs[index]).collect()), ratio(&packet), ratio(&tls));
        println!("| {} | {middle:.2} us a {} | {p2:.2} ({p1:.2}-{p3:.2}) | {t2:.2} ({t1:.2}-{t3:.2}) |", traffic.name, traffic.unit);
    }
    println!(
        "\nMedians and quartiles of {ROUNDS} rounds of {} ms, {} cores, Linux {}.",
        ROUND.as_millis(),
        std::thread::available_parallelism().map_or(0, usize::from),
        rustix::system::uname().release().to_string_lossy()
    );
    Ok(())
}

fn one_round(manner: Manner, daemon: &Path, program: &Path, certificates: &Certificates) -> Result<Costs> {
    let scratch = Scratch::new("bench-tls-round")?;
    let (named, other) = (free_port()?, free_port()?);
    let mut tracer = None;
    if manner != Manner::None {
        let mut command = Command::new(daemon);
        command.arg("run").env("OTEL_TRACES_EXPORTER", "none").env("KAFKA_TRACER_TLS_PORTS", named.to_string());
        command.env("KAFKA_TRACER_TLS", if manner == Manner::Tls { "auto" } else { "off" });
        let mut started = Tracer::start_command(&mut command, scratch.path())?;
        wait_for("the daemon to capture", Duration::from_secs(30), || {
            started.process().alive()?;
            Ok(started.process().log().contains("Capturing the Kafka connections").then_some(()))
        })?;
        tracer = Some(started);
    }
    let mut traffic = Command::new(program);
    traffic.arg(certificates.client()).arg(certificates.client_key()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut traffic = traffic.spawn().context("cannot start the traffic")?;
    let (mut ask, answers) = (traffic.stdin.take().context("no input")?, traffic.stdout.take().context("no output")?);
    let mut answers = BufReader::new(answers).lines();
    let mut costs = Costs::default();
    for (kind, cost) in TRAFFIC.iter().zip(&mut costs) {
        let port = if kind.is_named { named } else { other };
        writeln!(ask, "{port} {} {}", kind.kind, ROUND.as_millis())?;
        ask.flush()?;
        let answer = answers.next().context("the traffic ended")??;
        let (units, nanoseconds) = answer.split_once(' ').with_context(|| format!("not an answer: {answer}"))?;
        let (units, nanoseconds): (f64, f64) = (units.parse()?, nanoseconds.parse()?);
        ensure!(units > 0.0, "nothing moved");
        *cost = nanoseconds / 1e3 / units;
    }
    drop(ask);
    ensure!(traffic.wait()?.success(), "the traffic failed");
    if let Some(mut tracer) = tracer {
        tracer.process().terminate(Duration::from_mins(1))?;
    }
    Ok(costs)
}

/// The quartiles in the order of their size.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values.get(values.len() * quarter / 4).copied().unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::quartiles;

    #[test]
    fn quartiles_are_those_of_the_sorted_values() {
        let found = quartiles(vec![9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]);
        assert!(found.iter().zip([3.0, 5.0, 7.0]).all(|(found, wanted)| (found - wanted).abs() < 1e-9), "{found:?}");
    }
}
