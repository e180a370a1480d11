//! The command line of `cargo xtask`.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use crate::build::{self, Profile};
use crate::checks::{self, Tests};
use crate::vm::kernel::Series;
use crate::vm::matrix::{self, Extent, Matrix};
use crate::vm::plan::Cgroups;
use crate::{bench, demo, fuzz, setup, step, vm};

/// The jobs of the kafka-tracer project. Each installs what it needs by itself; tools are kept under the user's cache directory.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Install what the eBPF programs need to be built: the sources of Rust's core library, and bpf-linker.
    Setup,
    /// Build the eBPF programs and the daemon, with live capture.
    Build {
        /// Optimise the daemon, and build the eBPF programs without logging.
        #[arg(long)]
        release: bool,
    },
    /// Build, then run kafka-tracer with the arguments given (needs root to see the kernel).
    Run {
        /// Optimise the daemon, and build the eBPF programs without logging.
        #[arg(long)]
        release: bool,
        /// Arguments of kafka-tracer; none means `run`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// See it work: a real broker, Java and librdkafka clients, and their spans on the terminal (root; about a minute once set up).
    Demo,
    /// Run all tests: those of `cargo test`, then the live ones (root; fetches Kafka, builds clients and a Collector).
    Test {
        /// Only what `cargo test` runs: no root, no broker.
        #[arg(long)]
        no_live: bool,
        /// Only the live tests.
        #[arg(long, conflicts_with = "no_live")]
        only_live: bool,
        /// Run the tests whose names contain one of these.
        filter: Vec<OsString>,
    },
    /// Test the programs on other kernels, in guests under qemu (no root needed): client and broker play recorded captures over real sockets, the
    /// daemon's listing is held against the truth. With a command: run that program of this machine there instead.
    ///
    /// The guest has the daemon at /bin/kafka-tracer. A command lies in /run, its libraries where they lie here.
    Vm {
        /// Kernels: 5.10, 6.1, 6.12, 7.x; all when not given.
        #[arg(long, value_name = "SERIES,...", value_delimiter = ',')]
        kernel: Vec<Series>,
        /// Sources: packet, socket, socket-perf; on the oldest kernel also auto-4.14, auto-5.4, auto-no-ring (as on older kernels). All when not given.
        #[arg(long, value_name = "SOURCE,...", value_delimiter = ',', conflicts_with = "command")]
        source: Vec<String>,
        /// Each kernel once, as `test` does.
        #[arg(long, conflicts_with = "command")]
        short: bool,
        /// Every capture of the corpus too.
        #[arg(long, conflicts_with_all = ["short", "command"])]
        all: bool,
        /// How the guest's cgroups are mounted.
        #[arg(long, value_enum, default_value_t, requires = "command")]
        cgroups: Cgroups,
        /// Boot the guest without IPv6.
        #[arg(long, requires = "command")]
        no_ipv6: bool,
        /// Programs and daemon of the debug build.
        #[arg(long, requires = "command")]
        debug: bool,
        /// Files or directories that the guest shall have too.
        #[arg(long, value_name = "FROM[:TO]", requires = "command")]
        with: Vec<String>,
        /// Most seconds that a guest may take.
        #[arg(long, default_value_t = 300, requires = "command")]
        seconds: u64,
        /// A program, and its arguments.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Let a cluster, clients of six libraries and the tracer be stopped, killed and started again, and hold what the tracer says against
    /// what they tell (root). `test` does the same once.
    Chaos {
        /// How long it goes on, at least; one round takes about a minute.
        #[arg(long, default_value_t = 10)]
        minutes: u32,
    },
    /// Check formatting, lints, documentation, and the licences of the dependencies.
    Lint,
    /// Feed any bytes to what takes outside bytes, under libFuzzer; finds are kept in target/fuzz.
    Fuzz {
        /// Only this target.
        #[arg(long, value_parser = fuzz::TARGETS)]
        target: Option<String>,
        /// How long each target runs.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
        minutes: u64,
    },
    /// Measure: the line in memory, or (`bench live`, root) what the tracer costs a producer at full load.
    Bench {
        #[command(subcommand)]
        kind: Option<Benchmark>,
    },
    /// Everything that must hold before a commit: `lint`, then `test`.
    Ci,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// The decoder: batches of every codec, beside a copy of the bytes and beside the crate `kafka-protocol`.
    Decode,
    /// The whole line in memory, and what `headers: auto` saves.
    Line,
    /// A producer at full load with the tracer and without, in turn: throughput, CPU, bytes lost.
    Live {
        /// How many pairs of runs.
        #[arg(long, default_value_t = 10)]
        pairs: usize,
        /// Records of 1 KiB in each run.
        #[arg(long, default_value_t = 1_000_000)]
        records: u32,
    },
    /// What the kernel programs cost traffic that is not Kafka's, and that is: ping-pong, streams, connections (root; two minutes).
    Packets,
    /// What `socket` costs them, in instructions: in guests under qemu, whose clock counts them (no root; some minutes).
    Calls {
        /// Kernels: 5.10, 6.1, 6.12, 7.x; the oldest and the newest when not given.
        #[arg(long, value_delimiter = ',', value_name = "SERIES,...")]
        kernel: Vec<Series>,
    },
    /// What seeing into encrypted connections costs programs with such connections, Kafka's or not (root; three minutes).
    Tls,
}

/// Does the job.
///
/// # Errors
/// As the job's.
pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.job {
        Job::Setup => {
            let tools = setup::ensure()?;
            step::note(&format!("ready: core's sources, {}", tools.bpf_linker.display()));
            Ok(())
        }
        Job::Build { release } => {
            let daemon = build::daemon(profile(release))?;
            step::note(&format!("built {}", daemon.display()));
            Ok(())
        }
        Job::Run { release, arguments } => {
            let daemon = build::daemon(profile(release))?;
            let arguments = if arguments.is_empty() { vec![OsString::from("run")] } else { arguments };
            let error = Command::new(&daemon).args(arguments).exec();
            bail!("cannot start {}: {error}", daemon.display())
        }
        Job::Demo => demo::run(),
        Job::Test { no_live: true, filter, .. } => checks::test(Tests::Plain, &filter),
        Job::Test { only_live: true, filter, .. } => checks::test(Tests::Live, &filter),
        Job::Test { filter, .. } => checks::test(Tests::All, &filter),
        Job::Vm { kernel, source, short, all, command, .. } if command.is_empty() => {
            let extent = match (short, all) {
                (true, _) => Extent::Short,
                (false, true) => Extent::All,
                (false, false) => Extent::Whole,
            };
            let score = matrix::run(&Matrix { kernels: kernel, sources: source, extent })?;
            println!("{} passed, {} failed", score.passed, score.failed);
            if score.failed > 0 || score.passed == 0 {
                bail!("not all went well on the other kernels");
            }
            Ok(())
        }
        Job::Vm { kernel, cgroups, no_ipv6, debug, with, seconds, command, .. } => {
            let time_limit = Duration::from_secs(seconds);
            let options =
                vm::Options { kernels: kernel, cgroups, no_ipv6, with, time_limit, profile: profile(!debug), counts_instructions: false };
            vm::command(&options, &command)
        }
        Job::Chaos { minutes } => checks::chaos(minutes),
        Job::Lint => checks::lint(),
        Job::Fuzz { target, minutes } => fuzz::run(target.as_deref(), Duration::from_secs(minutes * 60)),
        Job::Bench { kind: None } => bench::offline(&[]),
        Job::Bench { kind: Some(Benchmark::Decode) } => bench::offline(&["decode"]),
        Job::Bench { kind: Some(Benchmark::Line) } => bench::offline(&["line"]),
        Job::Bench { kind: Some(Benchmark::Packets) } => bench::packets(),
        Job::Bench { kind: Some(Benchmark::Calls { kernel }) } => bench::calls(kernel),
        Job::Bench { kind: Some(Benchmark::Tls) } => bench::tls(),
        Job::Bench { kind: Some(Benchmark::Live { pairs, records }) } => bench::live(bench::Live { pairs, records }),
        Job::Ci => {
            checks::lint()?;
            checks::test(Tests::All, &[])
        }
    }
}

fn profile(release: bool) -> Profile {
    if release { Profile::Release } else { Profile::Debug }
}
