//! The only program of a guest of `cargo xtask vm`, run by its kernel as init: mounts what a daemon expects, does what the
//! plan says, tells how it went, and powers off.

mod boot;
mod check;
mod judge;
mod kernel_log;
mod older;
mod sockets;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::system::RebootCommand;
use sockets::Role;
use xtask::vm::plan::{Job, PLAN, Plan, Play, REPORTS, Report, Way};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, capture, manner, crowd @ ..] = arguments.as_slice()
        && word == "play"
    {
        return end(capture, manner, crowd.first());
    }
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        eprintln!("vm-guest is the init of a guest; `cargo xtask vm` boots one");
        std::process::exit(2);
    }
    // An init that ends is a panic of the kernel, which would hide what was said.
    let ended = std::panic::catch_unwind(run).unwrap_or_else(|_| Err(anyhow::anyhow!("the guest's init panicked; its console says why")));
    let last = ended.map_or_else(|error| Report::Failed { reason: format!("{error:#}") }, |()| Report::Done);
    if let Err(error) = tell(&last) {
        eprintln!("cannot tell {last:?}: {error:#}");
    }
    rustix::fs::sync();
    let refused = rustix::system::reboot(RebootCommand::PowerOff);
    eprintln!("cannot power off: {refused:?}");
}

/// Plays one end of a capture: the client's if there is a crowd to join, else the broker's.
fn end(capture: &str, manner: &str, crowd: Option<&String>) {
    let played = || -> Result<()> {
        let role = match crowd {
            Some(crowd) => Role::Client { crowd: crowd.parse()? },
            None => Role::Broker,
        };
        sockets::play(Path::new(capture), serde_json::from_str(manner)?, role)
    };
    let ended = played();
    if let Err(error) = &ended {
        eprintln!("{}: {error:#}", if crowd.is_some() { "client" } else { "broker" });
    }
    // At once: a crowd may still wait.
    std::process::exit(i32::from(ended.is_err()));
}

fn run() -> Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(PLAN).context("the guest's plan")?)?;
    boot::prepare(plan.cgroups)?;
    tell(&Report::Booted { release: rustix::system::uname().release().to_string_lossy().into_owned() })?;
    let mut not_expected: Vec<&Way> = Vec::new();
    for job in &plan.jobs {
        let way = match job {
            Job::Programs { way, .. } | Job::Restarts { way, .. } | Job::Play(Play { way, .. }) => Some(way),
            Job::Command { .. } | Job::Check { .. } => None,
        };
        if let Some(way) = way.filter(|way| !check::is_expected(way)) {
            if !not_expected.contains(&way) {
                not_expected.push(way);
                tell(&Report::NotExpected { way: way.clone() })?;
            }
            continue;
        }
        match job {
            Job::Command { program, arguments } => {
                let ended = Command::new(program).args(arguments).env("PATH", "/bin").env("HOME", "/root").status();
                let ended = ended.with_context(|| format!("cannot start {program}"))?;
                tell(&Report::Command { status: ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or(0)) })?;
            }
            Job::Programs { tracer, way } => {
                // What cannot be had has no verdict, which the other side takes for a failure.
                match judge::programs(tracer, way) {
                    Ok(programs) => tell(&Report::Programs { way: way.clone(), programs })?,
                    Err(error) => eprintln!("programs of {way}: {error:#}"),
                }
            }
            Job::Check { tracer, older } => {
                let faults = check::faults(tracer, *older).unwrap_or_else(|error| vec![format!("{error:#}")]);
                tell(&Report::Checked { older: *older, faults })?;
            }
            Job::Restarts { tracer, way, times } => {
                let left = judge::restarts(tracer, way, *times).unwrap_or_else(|error| vec![format!("{error:#}")]);
                tell(&Report::Restarted { way: way.clone(), left })?;
            }
            Job::Play(capture) => {
                let begun = Instant::now();
                let differences = judge::play(capture).unwrap_or_else(|error| vec![format!("{error:#}")]);
                let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                tell(&Report::Played { play: capture.clone(), differences, ms })?;
            }
        }
    }
    Ok(())
}

/// Tells the machine that runs the guest.
fn tell(report: &Report) -> Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut port = File::options().write(true).open(REPORTS).context("the line for reports")?;
    port.write_all(&line)?;
    Ok(rustix::termios::tcdrain(&port)?)
}
