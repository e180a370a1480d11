//! What a guest is told to do, and what it tells: JSON in the archive that it boots from, JSON lines on its second serial line.
#![forbid(unsafe_code)]

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Where the plan lies in the guest.
pub const PLAN: &str = "/plan.json";
/// The line that reports go to; the first is the console.
pub const REPORTS: &str = "/dev/ttyS1";
/// The daemon of either build, if the guest has it.
pub const TRACER: &str = "/bin/kafka-tracer";

/// What a guest does from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How its cgroups are mounted.
    pub cgroups: Cgroups,
    /// What it does, in this order.
    pub jobs: Vec<Job>,
}

/// How cgroups are mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Cgroups {
    /// Version 1 alone.
    V1,
    /// Controllers of version 1, and version 2 beside them at `/sys/fs/cgroup/unified`.
    Hybrid,
    /// Version 2 alone, at `/sys/fs/cgroup`.
    #[default]
    V2,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Run a program, with its output on the console.
    Command {
        /// Its path in the guest.
        program: String,
        /// Its arguments.
        arguments: Vec<String>,
    },
}

/// What a guest tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It is up.
    Booted {
        /// The kernel's release.
        release: String,
    },
    /// A command ended.
    Command {
        /// As a shell says it: 128 and the signal's number for one that a signal ended.
        status: i32,
    },
    /// Something went wrong that is no verdict.
    Failed {
        /// What.
        reason: String,
    },
    /// All was done.
    Done,
}
