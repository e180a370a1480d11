//! The only program of a guest of `cargo xtask vm`, run by its kernel as init: mounts what a daemon expects, does what the
//! plan says, tells how it went, and powers off.

#![forbid(unsafe_code)]

mod boot;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::system::RebootCommand;
use xtask::vm::plan::{Job, PLAN, Plan, REPORTS, Report};

fn main() {
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

fn run() -> Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(PLAN).context("the guest's plan")?)?;
    boot::prepare(plan.cgroups)?;
    tell(&Report::Booted { release: rustix::system::uname().release().to_string_lossy().into_owned() })?;
    for job in &plan.jobs {
        match job {
            Job::Command { program, arguments } => {
                let ended = Command::new(program).args(arguments).env("PATH", "/bin").env("HOME", "/root").status();
                let ended = ended.with_context(|| format!("cannot start {program}"))?;
                tell(&Report::Command { status: ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or(0)) })?;
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
