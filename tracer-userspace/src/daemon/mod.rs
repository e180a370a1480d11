//! `kafka-tracer check`: what the daemon would find here. `kafka-tracer run`: the daemon. Supervises capture, the line and the exporters; starts them in order and ends them in
//! order: detach, drain, flush; what takes long to detach goes on meanwhile.
//!
//! In: [`RunArgs`], the environment, signals. Out: spans and metrics through `export`, a log on standard error, and how
//! it ended. Live capture itself needs feature `live`.

#![forbid(unsafe_code)]

mod args;
#[cfg(feature = "live")]
mod check;
mod config;
mod file;
#[cfg(any(feature = "live", test))]
mod lines;
#[cfg(feature = "live")]
mod log;
#[cfg(test)]
mod reference;
#[cfg(feature = "live")]
mod rights;
#[cfg(feature = "live")]
mod run;
mod settings;
#[cfg(feature = "live")]
mod teller;
mod variables;

pub use args::{
    CheckArgs, CheckFormat, CoordinatesArg, HeadersArg, OutputArg, RunArgs, SeccompArg, SidesArg, SourceArg, without_empty_variables,
};
#[cfg(feature = "live")]
pub use check::check;
pub use config::{config, with_file};
pub use file::{FileError, SettingsFile};
#[cfg(feature = "live")]
pub use run::{DaemonError, Ended, run};
pub use settings::{Settings, SettingsError};
