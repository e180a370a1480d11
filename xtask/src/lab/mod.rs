//! A Kafka installation to look at: real brokers, real clients of seven libraries, a real OpenTelemetry Collector, the tracer itself.
//!
//! The demo, the live tests and the benchmarks share it. Everything listens on loopback, on ports that were free, with its files in a
//! temporary directory; every process is killed when its value is dropped, on a panic too.
#![forbid(unsafe_code)]

mod broker;
mod certificates;
mod client;
mod cluster;
mod collector;
mod distribution;
mod node;
mod process;
mod receiver;
mod spans;
mod tracer;
mod wire;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use broker::{Access, Broker};
pub use certificates::Certificates;
pub use client::{Client, Consume, Language, Produce, Record, Running, Told, Work, WorkKind, Workers};
pub use cluster::Cluster;
pub use collector::{Collector, History, Protocol};
pub use distribution::Distribution;
pub use process::Process;
pub use receiver::Receiver;
pub use spans::{Span, Status};
pub use tracer::{BpfStatistics, KernelObjects, Tracer};

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes a new directory; `label` makes it recognisable.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn new(label: &str) -> Result<Self> {
        for attempt in 0..1000 {
            let path = std::env::temp_dir().join(format!("kafka-tracer-{label}-{}-{attempt}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot create {}", path.display())),
            }
        }
        bail!("{} is full of our old directories; remove kafka-tracer-* there", std::env::temp_dir().display())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // KAFKA_TRACER_KEEP=1 leaves logs and data for whoever looks for a failure's reason.
        if std::env::var_os("KAFKA_TRACER_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A TCP port of loopback that was free a moment ago.
///
/// # Errors
/// If the kernel has none to give.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?.local_addr()?.port())
}

/// Asks `probe` until it has an answer; `what` is what we wait for.
///
/// # Errors
/// When `limit` is over, or at once if `probe` fails.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}, in vain", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
