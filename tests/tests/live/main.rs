//! The daemon on this machine's kernel, with real brokers, clients and a real Collector: `cargo xtask test` runs these.
//!
//! They take turns, since each looks at all Kafka traffic of the host; topics and groups have names of their own.

#![expect(clippy::indexing_slicing, reason = "a test that fails says so")]

mod accounting;
mod chaos;
mod check;
mod collector;
mod demo;
mod deploy;
mod lab;
mod lifecycle;
mod privileges;
mod restarts;
mod stage;
mod tls;
mod tls_brief;
mod tls_late;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The daemon that `cargo xtask test` built.
fn daemon() -> PathBuf {
    let path = std::env::var_os("KAFKA_TRACER_BIN").map(PathBuf::from);
    path.expect("KAFKA_TRACER_BIN names no daemon with live capture: run `cargo xtask test`, or `cargo xtask build` and set it")
}

/// One test at a time, however many threads the harness has.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name of this run alone: the daemon sees all of the host's Kafka traffic, another run of these tests too.
fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}
