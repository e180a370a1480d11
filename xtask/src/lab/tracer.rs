//! The daemon under test.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Collector, Process, Protocol, wait_for};

/// A running `kafka-tracer run`.
#[derive(Debug)]
pub struct Tracer {
    process: Process,
}

impl Tracer {
    /// Starts the daemon with OTLP to `collector` and waits until it captures.
    ///
    /// # Errors
    /// If it does not come up, with the end of its log.
    pub fn start(daemon: &Path, dir: &Path, collector: &Collector, protocol: Protocol, settings: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(daemon);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint(protocol));
        command.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.name());
        command.env("OTEL_BSP_SCHEDULE_DELAY", "500").env("OTEL_METRIC_EXPORT_INTERVAL", "2000");
        command.envs(settings.iter().copied());
        Self::start_command(command.arg("run"), dir)
    }

    /// Starts the daemon as `command` says and waits until it captures.
    ///
    /// # Errors
    /// If it does not come up, with the end of its log.
    pub fn start_command(command: &mut Command, dir: &Path) -> Result<Self> {
        let mut process = Process::start("kafka-tracer", dir, command)?;
        KernelObjects::wait_attached(process.pid(), || process.alive())?;
        Ok(Self { process })
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it holds in the kernel.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn kernel_objects(&self) -> Result<KernelObjects> {
        KernelObjects::of(self.process.pid())
    }

    /// Seconds that its programs have run in the kernel, while [`BpfStatistics`] are on.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn program_seconds(&self) -> Result<f64> {
        let mut run_time_ns: BTreeMap<u32, u64> = BTreeMap::new();
        for text in fdinfo(self.process.pid())? {
            if let (Some(program), Some(time_ns)) = (numbered(&text, "prog_id:"), numbered(&text, "run_time_ns:")) {
                run_time_ns.insert(u32::try_from(program)?, time_ns);
            }
        }
        Ok(Duration::from_nanos(run_time_ns.values().sum()).as_secs_f64())
    }
}

/// The kernel measures how long BPF programs run; off again when dropped, if it was off.
#[derive(Debug)]
pub struct BpfStatistics {
    before: String,
}

impl BpfStatistics {
    const SETTING: &str = "/proc/sys/kernel/bpf_stats_enabled";

    /// Turns them on.
    ///
    /// # Errors
    /// Without the right to do so.
    pub fn on() -> Result<Self> {
        let before = fs::read_to_string(Self::SETTING).with_context(|| format!("cannot read {}", Self::SETTING))?;
        fs::write(Self::SETTING, "1").with_context(|| format!("cannot write {}", Self::SETTING))?;
        Ok(Self { before })
    }
}

impl Drop for BpfStatistics {
    fn drop(&mut self) {
        let _ = fs::write(Self::SETTING, &self.before);
    }
}

/// What a process holds in the kernel, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelObjects {
    /// Programs.
    pub programs: Vec<u32>,
    /// Maps.
    pub maps: Vec<u32>,
    /// Attachments.
    pub links: Vec<u32>,
}

impl KernelObjects {
    /// What a process holds, from the kernel's description of its file descriptors.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let mut held = Self::default();
        for text in fdinfo(pid)? {
            let id = |name: &str| numbered(&text, name).and_then(|id| u32::try_from(id).ok());
            held.links.extend(id("link_id:"));
            held.maps.extend(id("map_id:"));
            // A link names its program as well.
            held.programs.extend(id("prog_id:"));
        }
        held.programs.sort_unstable();
        held.programs.dedup();
        Ok(held)
    }

    /// Waits until a process has attached programs in both directions, and attaches no more. `alive` fails if it has ended.
    ///
    /// # Errors
    /// If it ends or takes too long.
    pub fn wait_attached(pid: u32, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let mut before = Self::default();
        wait_for("kafka-tracer to attach its programs", Duration::from_secs(30), || {
            alive()?;
            let now = Self::of(pid)?;
            let settled = now.links.len() >= 2 && now == before;
            before = now;
            Ok(settled.then_some(()))
        })
    }
}

fn fdinfo(pid: u32) -> Result<Vec<String>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))?;
    // A descriptor may be closed while we look.
    Ok(entries.filter_map(Result::ok).filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect())
}

fn numbered(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
