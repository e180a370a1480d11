//! The daemon under test.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Collector, Process, Protocol, wait_for};

/// How the daemon says that its programs are attached.
const READY: &str = "Capturing";

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
        wait_for("kafka-tracer to capture", Duration::from_secs(30), || {
            process.alive()?;
            Ok((process.log().contains(READY) || process.stdout().contains(READY)).then_some(()))
        })?;
        Ok(Self { process })
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kernel ids of the programs and maps that it holds, from the kernel's description of its file descriptors.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn kernel_objects(&self) -> Result<KernelObjects> {
        let dir = format!("/proc/{}/fdinfo", self.process.pid());
        let mut held = KernelObjects::default();
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))? {
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let numbered = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
            // A link names its program as well.
            let link = numbered("link_id:");
            held.links.extend(link);
            held.programs.extend(numbered("prog_id:"));
            held.maps.extend(numbered("map_id:"));
        }
        held.programs.sort_unstable();
        held.programs.dedup();
        Ok(held)
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
