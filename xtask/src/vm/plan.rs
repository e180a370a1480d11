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

/// Where a daemon sees bytes, and on what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Way {
    /// Its source, as its settings call it.
    pub source: String,
    /// It is made to believe that it runs on an older kernel.
    pub older: Option<Older>,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.older {
            Some(older) => write!(f, "{}-{}", self.source, older.name()),
            None => f.write_str(&self.source),
        }
    }
}

/// A kernel that there is no package of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Older {
    /// The oldest that the tracer is made for. Probes are made by writing to tracefs, which is not mounted.
    Linux414,
    /// One that does not describe its types, and has no ring.
    Linux54,
    /// The kernel as it is, but for rings, which it refuses.
    NoRing,
}

impl Older {
    /// Its version, or what it lacks.
    pub fn name(self) -> &'static str {
        match self {
            Older::Linux414 => "4.14",
            Older::Linux54 => "5.4",
            Older::NoRing => "no-ring",
        }
    }
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
    /// Start a daemon and tell what it loaded.
    Programs {
        /// The daemon.
        tracer: String,
        /// Where it shall see bytes.
        way: Way,
    },
    /// Ask `kafka-tracer check` what this host allows, and hold the answer against what should and what does work.
    Check {
        /// The daemon.
        tracer: String,
        /// On which kernel.
        older: Option<Older>,
    },
    /// Start and end a daemon many times, every other time by SIGKILL: the kernel must be as before.
    Restarts {
        /// The daemon.
        tracer: String,
        /// Where it shall see bytes.
        way: Way,
        /// How often.
        times: u32,
    },
    /// Play a recorded capture over real sockets while a daemon looks, and hold its listing against the truth.
    Play(Play),
}

/// One capture, played once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Play {
    /// The daemon.
    pub tracer: String,
    /// Where it shall see bytes.
    pub way: Way,
    /// How many of it look at once; each must list everything.
    pub daemons: u8,
    /// What it is told to take for Kafka's ports, if it must be told.
    pub ports: Option<String>,
    /// The capture's name in the corpus.
    pub capture: String,
    /// How the bytes go through the sockets.
    pub manner: Manner,
}

/// How client and broker call the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// A write for each frame, reads as large as what is missing.
    Plain,
    /// `writev` of frames that follow one another, cut in odd places and with an empty piece; reads of 4 bytes and the rest.
    Gathered,
    /// A write for each byte; reads of 8 bytes and the rest.
    Bytes,
    /// Answers by `sendfile` from tmpfs behind a written head, as brokers answer Fetch; reads of 4 bytes, 4 and the rest.
    SendfileTmpfs,
    /// The same from ramfs, whose pages are in the page cache; receives with `MSG_WAITALL`.
    SendfileRamfs,
    /// Looks with `MSG_PEEK` before each read.
    Peek,
    /// `readv` into three pieces.
    Scattered,
    /// Reads of 4 bytes and the rest while a hundred other threads wait in reads of their own.
    Crowd,
}

impl Manner {
    /// All.
    pub const ALL: [Self; 8] =
        [Self::Plain, Self::Gathered, Self::Bytes, Self::SendfileTmpfs, Self::SendfileRamfs, Self::Peek, Self::Scattered, Self::Crowd];
}

/// A program that the daemon loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Its name, as the kernel keeps it.
    pub name: String,
    /// Instructions, as the kernel translated them.
    pub instructions: u32,
    /// Instructions that the verifier went through, where the kernel says so (5.16).
    pub verified: Option<u32>,
    /// Bytes of machine code.
    pub machine_bytes: u32,
    /// From the start of its load to that of the next one's, or to the daemon's being ready.
    pub load_ms: u64,
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
    /// A daemon started, with these programs in the kernel.
    Programs {
        /// Where it sees bytes.
        way: Way,
        /// What it loaded, in this order.
        programs: Vec<Loaded>,
    },
    /// A kernel of this version need not have what the source needs: all jobs of it are left out.
    NotExpected {
        /// Which.
        way: Way,
    },
    /// `kafka-tracer check` answered.
    Checked {
        /// On which kernel.
        older: Option<Older>,
        /// What is wrong with the answer; empty when that is nothing.
        faults: Vec<String>,
    },
    /// A capture was played.
    Played {
        /// Which, and how.
        play: Play,
        /// What is wrong with the daemon's listing; empty when it agrees with the truth.
        differences: Vec<String>,
        /// How long it took.
        ms: u64,
    },
    /// A daemon was started and ended many times.
    Restarted {
        /// Where it saw bytes.
        way: Way,
        /// What it left behind; empty when that is nothing.
        left: Vec<String>,
    },
    /// Something went wrong that is no verdict.
    Failed {
        /// What.
        reason: String,
    },
    /// All was done.
    Done,
}
