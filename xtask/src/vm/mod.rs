//! `vm`: the programs on other kernels than this machine's, each in a guest of its own under qemu.
//!
//! A guest has no disk and no network but loopback. It boots Debian's kernel with an archive that holds one program, `vm-guest` of the
//! tests: it mounts what a daemon expects, does what its plan says, tells how it went, and powers off.
#![forbid(unsafe_code)]

mod archive;
pub mod guest;
pub mod kernel;
pub mod matrix;
pub mod plan;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::guest::{Guest, Packed};
use self::kernel::{Kernel, SERIES, Series};
use self::plan::{Cgroups, Job, Plan, Report, TRACER};
use crate::build::{self, Profile};
use crate::{step, workspace};

/// Where a command's program lies in the guest.
const COMMANDS: &str = "/run/";

/// What one program is run with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernels; all when empty.
    pub kernels: Vec<Series>,
    /// How cgroups are mounted.
    pub cgroups: Cgroups,
    /// Boot without IPv6.
    pub no_ipv6: bool,
    /// Files and directories to pack, as `FROM` or `FROM:TO`.
    pub with: Vec<String>,
    /// Most seconds that a guest may take.
    pub time_limit: Duration,
    /// Which builds of the daemon and the programs are packed.
    pub profile: Profile,
    /// The guest's clock counts instructions.
    pub counts_instructions: bool,
}

/// Runs one program of this machine in a guest of each kernel, one after another, with its output on the terminal.
///
/// # Errors
/// If a guest cannot be run, or the program does not end with status 0 in each.
pub fn command(options: &Options, words: &[OsString]) -> Result<()> {
    let (program, arguments) = words.split_first().context("no command was given")?;
    let program = Path::new(program);
    let name = program.file_name().context("the command names no file")?;
    let daemon = build::daemon(options.profile)?;
    let init = init()?;
    let there = format!("{COMMANDS}{}", name.to_string_lossy());
    let mut packed = vec![Packed::Program { from: daemon, to: TRACER.into() }];
    if there != TRACER {
        packed.push(Packed::Program { from: program.to_path_buf(), to: PathBuf::from(&there) });
    }
    for file in &options.with {
        let (from, to) = file.split_once(':').unwrap_or((file, file));
        let from = std::fs::canonicalize(from).with_context(|| format!("cannot find {from}"))?;
        let to = if Path::new(to).is_absolute() { PathBuf::from(to) } else { from.clone() };
        packed.push(Packed::Files { from, to });
    }
    let job = Job::Command { program: there, arguments: arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect() };
    let mut failed = Vec::new();
    for series in if options.kernels.is_empty() { &SERIES[..] } else { &options.kernels } {
        let kernel = Kernel::ensure(*series)?;
        step::heading(&format!("Linux {}", kernel.version), "in a guest under qemu");
        let guest = Guest {
            name: format!("command-{}", series.name),
            kernel,
            parameters: if options.no_ipv6 { vec!["ipv6.disable=1".to_owned()] } else { Vec::new() },
            init: init.clone(),
            packed: packed.clone(),
            plan: Plan { cgroups: options.cgroups, jobs: vec![job.clone()] },
            time_limit: options.time_limit,
            on_terminal: true,
            counts_instructions: options.counts_instructions,
        };
        let ended = guest.run().and_then(|ran| {
            step::note(&format!("took {}", step::seconds(ran.time)));
            for report in ran.reports {
                match report {
                    Report::Command { status: 0 }
                    | Report::Booted { .. }
                    | Report::Played { .. }
                    | Report::Restarted { .. }
                    | Report::Checked { .. }
                    | Report::NotExpected { .. }
                    | Report::Programs { .. }
                    | Report::Done => {}
                    Report::Command { status } => bail!("the command ended with status {status}"),
                    Report::Failed { reason } => bail!(reason),
                }
            }
            Ok(())
        });
        if let Err(error) = ended {
            eprintln!("error: {error:#}");
            failed.push(series.name);
        }
    }
    if !failed.is_empty() {
        bail!("it did not go well on {}", failed.join(", "));
    }
    Ok(())
}

/// The guest's init: a program of the tests, which judge what the daemon tells there.
fn init() -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "tests", "--bin", "vm-guest"]);
    step::run("build the guest's init", "it plays client and broker on the other kernels, and judges", &mut cargo)?;
    Ok(workspace::target_dir().join("debug/vm-guest"))
}
