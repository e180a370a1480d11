//! What `kafka-tracer run` can be told, on the command line or by environment variables.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::kafka::context::Propagators;
use crate::observe::HeaderReading;
use crate::replay::ScopeArg;
use crate::telemetry;

/// What the daemon was asked for. The help texts are the reference of `docs/configuration.md`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// YAML file with settings, which the environment and the command line win over
    ///
    /// One section for each group below, with the arguments' names (`ring_bytes` for --ring-bytes), and `otel` for variables. `kafka-tracer config` checks one.
    #[arg(long, value_name = "FILE", env = "KAFKA_TRACER_CONFIG", help_heading = "File")]
    pub config: Option<PathBuf>,

    /// Variables of the OpenTelemetry specification that the file sets, for those that the environment does not.
    #[arg(skip)]
    pub variables: Vec<(String, String)>,

    /// Where bytes are seen
    ///
    /// Packets need Linux 5.8 and cgroup v2 and cost least; sockets need kprobes and Linux 4.14.
    #[arg(long, value_enum, default_value_t = SourceArg::Auto, env = "KAFKA_TRACER_SOURCE", help_heading = "Capture")]
    pub source: SourceArg,

    /// Whose sockets to look at: the clients', the brokers' or both
    ///
    /// With `both`, each request of a local client is copied at both ends, and a broker's spans are children of the clients'.
    #[arg(long, value_enum, default_value_t = SidesArg::Client, env = "KAFKA_TRACER_SIDES", help_heading = "Capture")]
    pub sides: SidesArg,

    /// Ports that are taken for Kafka without judging, at either end of a connection
    ///
    /// Kafka is found by its bytes on any port; this is for connections whose first bytes say too little.
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', env = "KAFKA_TRACER_PORTS", help_heading = "Capture")]
    pub ports: Vec<u16>,

    /// Ports that are never looked at, at either end of a connection; wins over --ports
    #[arg(long, value_name = "PORT,...", value_delimiter = ',', env = "KAFKA_TRACER_EXCLUDE_PORTS", help_heading = "Capture")]
    pub exclude_ports: Vec<u16>,

    /// Whether the tracer's own connections are left alone
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, env = "KAFKA_TRACER_EXCLUDE_SELF", help_heading = "Capture")]
    pub exclude_self: bool,

    /// Root of the cgroup v2 hierarchy, whose sockets are seen; found in /proc/self/mounts when not given
    #[arg(long, value_name = "PATH", env = "KAFKA_TRACER_CGROUP", help_heading = "Capture")]
    pub cgroup: Option<PathBuf>,

    /// Size of the ring between kernel and daemon: a number of bytes, or with KiB, MiB or GiB
    ///
    /// Rounded up to a power of two. Larger rings bear longer bursts before bytes are lost (which is counted).
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = size, env = "KAFKA_TRACER_RING_BYTES", help_heading = "Capture")]
    pub ring_bytes: u64,

    /// Whether encrypted connections are seen into, at the TLS libraries of programs that connect to Kafka
    ///
    /// OpenSSL and its relatives, as a library of its own or within a program that has its symbols; `GnuTLS`; Go's crypto/tls; and rustls, within a program that has its symbols. Nothing is attached to a program without a connection to one of --tls-ports. The thread that attaches keeps `CAP_SYS_ADMIN`, which the kernel asks for.
    #[arg(long, value_enum, default_value_t = TlsArg::Off, env = "KAFKA_TRACER_TLS", help_heading = "Capture")]
    pub tls: TlsArg,

    /// Ports where Kafka may listen for encrypted connections
    ///
    /// A program that connects to one of them, and does not speak plain Kafka there, has its TLS libraries looked into.
    #[arg(
        long,
        value_name = "PORT,...",
        value_delimiter = ',',
        default_value = "9092,9093,9094,9095,9096,9097,9098,9099",
        env = "KAFKA_TRACER_TLS_PORTS",
        help_heading = "Capture"
    )]
    pub tls_ports: Vec<u16>,

    /// TLS libraries, or programs with one inside, that are looked into in every process that has them mapped
    ///
    /// For programs that live too short to be found by their connections. Each process that uses such a file pays for two breakpoints in each read and write (`docs/performance.md`), whatever it talks to.
    #[arg(long, value_name = "PATH,...", value_delimiter = ',', env = "KAFKA_TRACER_TLS_LIBRARIES", help_heading = "Capture")]
    pub tls_libraries: Vec<PathBuf>,

    /// Where the host's /proc is mounted
    #[arg(long, value_name = "PATH", default_value = "/proc", env = "KAFKA_TRACER_PROC_ROOT", help_heading = "Capture")]
    pub proc_root: PathBuf,

    /// The host's name on what is exported; the kernel's when not given
    #[arg(long, value_name = "NAME", env = "KAFKA_TRACER_HOST_NAME", help_heading = "Capture")]
    pub host_name: Option<String>,

    /// Which records get a span of their own
    #[arg(long, value_enum, default_value_t = ScopeArg::Auto, env = "KAFKA_TRACER_SCOPE", help_heading = "Spans")]
    pub scope: ScopeArg,

    /// What ids computed from a batch's place in the log are used for
    #[arg(long, value_enum, default_value_t = CoordinatesArg::Parent, env = "KAFKA_TRACER_COORDINATES", help_heading = "Spans")]
    pub coordinates: CoordinatesArg,

    /// Secret that goes into computed ids, so that nobody else can guess them; the same on all hosts
    #[arg(long, value_name = "KEY", env = "KAFKA_TRACER_COORDINATES_KEY", hide_env_values = true, help_heading = "Spans")]
    pub coordinates_key: Option<String>,

    /// Put records' keys on their spans (they may be personal data)
    #[arg(long, env = "KAFKA_TRACER_KEYS", value_parser = clap::builder::FalseyValueParser::new(), help_heading = "Spans")]
    pub keys: bool,

    /// Whose trace contexts to read from record headers, the first valid one wins: tracecontext, b3, b3multi, jaeger, xray
    #[arg(long, value_name = "LIST", env = "OTEL_PROPAGATORS", default_value = "tracecontext,baggage", help_heading = "Spans")]
    pub propagators: Propagators,

    /// Whether compressed batches are decompressed to look for trace contexts
    #[arg(long, value_enum, default_value_t = HeadersArg::Auto, env = "KAFKA_TRACER_HEADERS", help_heading = "Spans")]
    pub headers: HeadersArg,

    /// Topics that get spans; all but Kafka's own when not given
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', env = "KAFKA_TRACER_TOPICS", help_heading = "Spans")]
    pub topics: Vec<String>,

    /// Topics that get no spans; wins over --topics
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', env = "KAFKA_TRACER_EXCLUDE_TOPICS", help_heading = "Spans")]
    pub exclude_topics: Vec<String>,

    /// Make spans of Kafka's own topics too, whose names begin with two underscores
    #[arg(long, env = "KAFKA_TRACER_INTERNAL_TOPICS", value_parser = clap::builder::FalseyValueParser::new(), help_heading = "Spans")]
    pub internal_topics: bool,

    /// Most spans made in a second, 0 for no limit; what is beyond is counted, and metrics stay exact
    #[arg(long, value_name = "NUMBER", default_value_t = 2_000, env = "KAFKA_TRACER_MAX_SPANS_PER_SECOND", help_heading = "Spans")]
    pub max_spans_per_second: u32,

    /// A record older than this when it is fetched does not continue its producer's trace: a number with ms, s, m or h
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time, env = "KAFKA_TRACER_PARENT_MAX_AGE", help_heading = "Spans")]
    pub parent_max_age: Duration,

    /// Whether the messaging.* metrics are made
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, env = "KAFKA_TRACER_MESSAGING_METRICS", help_heading = "Metrics")]
    pub messaging_metrics: bool,

    /// Split the messaging.* metrics by partition
    #[arg(long, env = "KAFKA_TRACER_PARTITION_METRICS", value_parser = clap::builder::FalseyValueParser::new(), help_heading = "Metrics")]
    pub partition_metrics: bool,

    /// Also print on standard output: spans or records; without it spans are printed when no OTLP endpoint is set
    #[arg(long, value_enum, env = "KAFKA_TRACER_FORMAT", help_heading = "Output")]
    pub format: Option<OutputArg>,

    /// What the log on standard error tells: error, warn, info, debug, trace, or none
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "OTEL_LOG_LEVEL", help_heading = "Output")]
    pub log_level: String,

    /// Most memory for what waits: ring, streams and spans together; a number of bytes, or with KiB, MiB or GiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size, env = "KAFKA_TRACER_MEMORY_LIMIT", help_heading = "Limits")]
    pub memory_limit: u64,

    /// Priority of the capturing thread, from -20 (first) to 19; 0 leaves it as the daemon was started
    ///
    /// It needs little time, but needs it soon: what it does not fetch before the ring is full is lost. Without the right to raise it (`CAP_SYS_NICE`) it stays.
    #[arg(long, value_name = "NUMBER", default_value_t = -10, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-20..=19), env = "KAFKA_TRACER_NICE", help_heading = "Limits")]
    pub nice: i32,

    /// What becomes of a system call that the running daemon does not need
    ///
    /// The filter is set when capture has started, and holds for all threads. Where a library needs a call that the filter does not know, `log` shows which.
    #[arg(long, value_enum, default_value_t = SeccompArg::On, env = "KAFKA_TRACER_SECCOMP", help_heading = "Limits")]
    pub seccomp: SeccompArg,

    /// End by itself after this time: a number with ms, s, m or h
    #[arg(long, value_name = "TIME", value_parser = time, env = "KAFKA_TRACER_DURATION", help_heading = "Limits")]
    pub duration: Option<Duration>,

    /// How long sending may take at the end, until what is not sent is given up: a number with ms, s, m or h
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time, env = "KAFKA_TRACER_SHUTDOWN_TIMEOUT", help_heading = "Limits")]
    pub shutdown_timeout: Duration,
}

/// What `kafka-tracer check` was asked for.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// What to print
    #[arg(long, value_enum, default_value_t = CheckFormat::Text)]
    pub format: CheckFormat,

    /// Root of the cgroup v2 hierarchy, as for `run`; found in /proc/self/mounts when not given
    #[arg(long, value_name = "PATH", env = "KAFKA_TRACER_CGROUP")]
    pub cgroup: Option<PathBuf>,
}

/// How `kafka-tracer check` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// Lines for people; what is as it should be is summed up
    Text,
    /// One JSON object with everything
    Json,
}

impl RunArgs {
    /// A variable's value: the environment's, or the file's.
    pub fn variable(&self, name: &str) -> Option<String> {
        let of_file = || self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        std::env::var(name).ok().filter(|value| !value.is_empty()).or_else(of_file)
    }
}

/// The command with all arguments for which an empty environment variable is set no longer reading it: OpenTelemetry's
/// rule, an empty variable is an unset one, for every variable.
pub fn without_empty_variables(command: clap::Command) -> clap::Command {
    without_variables(command, &|name| std::env::var_os(name).is_some_and(|value| value.is_empty()))
}

fn without_variables(command: clap::Command, empty: &dyn Fn(&std::ffi::OsStr) -> bool) -> clap::Command {
    command
        .mut_args(|argument| match argument.get_env() {
            Some(name) if empty(name) => argument.env(clap::builder::Resettable::Reset),
            _ => argument,
        })
        .mut_subcommands(|subcommand| without_variables(subcommand, empty))
}

/// Where bytes are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceArg {
    /// As packets where that works, else at sockets
    Auto,
    /// As packets at the root of cgroup v2
    Packet,
    /// As programs give them to sockets and take them
    Socket,
    /// Likewise, through a buffer for each CPU as before Linux 5.8
    SocketPerf,
}

/// Whose sockets are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SidesArg {
    /// The clients': each request is seen once, by who made it
    Client,
    /// The brokers'
    Broker,
    /// Both
    Both,
}

/// Whether encrypted connections are seen into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsArg {
    /// Where a program connects to Kafka
    Auto,
    /// Never
    Off,
}

/// What computed ids are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CoordinatesArg {
    /// A fetch is the child of the send whose id both ends compute
    Parent,
    /// A fetch is a root in the computed trace, linked to the send
    Link,
    /// Nothing: all ids are random
    Off,
}

/// When compressed batches are looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HeadersArg {
    /// Until a topic has shown no context for long, then now and again
    Auto,
    /// Always
    All,
    /// Never
    Off,
}

/// What becomes of a system call that the running daemon does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeccompArg {
    /// It is refused with EPERM
    On,
    /// It is made, and the kernel writes it to its log (`type=1326`)
    Log,
    /// No filter is set
    Off,
}

/// What is printed on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputArg {
    /// Spans as lines for people, and a summary by topic at the end
    Text,
    /// One JSON object per record on the wire, whatever spans are made
    Records,
    /// Nothing
    None,
}

#[cfg(feature = "live")]
impl From<SourceArg> for crate::source::ebpf::MainSource {
    fn from(source: SourceArg) -> Self {
        match source {
            SourceArg::Auto => Self::Auto,
            SourceArg::Packet => Self::Packet,
            SourceArg::Socket | SourceArg::SocketPerf => Self::Socket,
        }
    }
}

impl From<SidesArg> for crate::observe::Sides {
    fn from(sides: SidesArg) -> Self {
        match sides {
            SidesArg::Client => Self::Client,
            SidesArg::Broker => Self::Broker,
            SidesArg::Both => Self::Both,
        }
    }
}

impl From<CoordinatesArg> for telemetry::Coordinates {
    fn from(coordinates: CoordinatesArg) -> Self {
        match coordinates {
            CoordinatesArg::Parent => Self::Parent,
            CoordinatesArg::Link => Self::Link,
            CoordinatesArg::Off => Self::Off,
        }
    }
}

impl From<HeadersArg> for HeaderReading {
    fn from(headers: HeadersArg) -> Self {
        match headers {
            HeadersArg::Auto => Self::Auto,
            HeadersArg::All => Self::All,
            HeadersArg::Off => Self::Off,
        }
    }
}

/// Bytes: a number, with KiB, MiB or GiB behind it if wanted.
fn size(text: &str) -> Result<u64, String> {
    let number_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return Err(format!("`{unit}` is no unit of size: KiB, MiB and GiB are")),
    };
    let number: u64 = number.parse().map_err(|_| "expected a whole number, as in 32MiB".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "more bytes than can be counted".to_owned())
}

/// A time: a number with its unit.
fn time(text: &str) -> Result<Duration, String> {
    let number_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let milliseconds: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" => return Err("a time needs its unit, as in 90s".to_owned()),
        _ => return Err(format!("`{unit}` is no unit of time: ms, s, m and h are")),
    };
    let number: u64 = number.parse().map_err(|_| "expected a whole number with its unit, as in 90s".to_owned())?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| "a longer time than can be counted".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
        Line::try_parse_from(std::iter::once(&"run").chain(arguments)).map(|line| line.run)
    }

    #[test]
    fn every_setting_has_a_variable_and_a_heading() {
        Line::command().debug_assert();
        for argument in Line::command().get_arguments() {
            let name = argument.get_id().as_str();
            if name == "help" {
                continue;
            }
            let variable = argument.get_env().unwrap_or_else(|| panic!("{name} has no variable")).to_str().unwrap();
            assert!(variable.starts_with("KAFKA_TRACER_") || variable.starts_with("OTEL_"), "{name}: {variable}");
            assert!(argument.get_help_heading().is_some(), "{name} has no heading");
        }
    }

    #[test]
    fn an_empty_variable_is_an_unset_one() {
        let command = clap::Command::new("kafka-tracer").subcommand(Line::command().name("run"));
        let command = without_variables(command, &|name| name == "KAFKA_TRACER_PORTS");
        let run = command.find_subcommand("run").unwrap();
        let variables: Vec<_> = run.get_arguments().filter_map(clap::Arg::get_env).collect();
        assert!(!variables.contains(&"KAFKA_TRACER_PORTS".as_ref()));
        assert!(variables.contains(&"KAFKA_TRACER_SIDES".as_ref()));
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let args = parse(&[]).unwrap();
        assert_eq!((args.ring_bytes, args.memory_limit), (32 << 20, 256 << 20));
        assert_eq!((args.parent_max_age, args.shutdown_timeout), (Duration::from_hours(1), Duration::from_secs(10)));
        assert_eq!((args.sides, args.headers, args.coordinates), (SidesArg::Client, HeadersArg::Auto, CoordinatesArg::Parent));
        assert!(args.exclude_self && args.messaging_metrics && !args.keys && !args.partition_metrics);
        assert_eq!((args.max_spans_per_second, args.duration, args.format), (2_000, None, None));
    }

    #[test]
    fn values_are_read_with_their_units() {
        let args = parse(&[
            "--ports",
            "9092,9094",
            "--ring-bytes",
            "64MiB",
            "--duration",
            "90s",
            "--exclude-self",
            "false",
            "--keys",
            "--topics",
            "a,b",
        ])
        .unwrap();
        assert_eq!((args.ports.as_slice(), args.ring_bytes, args.duration), (&[9_092, 9_094][..], 64 << 20, Some(Duration::from_secs(90))));
        assert!(!args.exclude_self && args.keys);
        assert_eq!(args.topics, ["a", "b"]);
        for (text, bytes) in [("0", 0), ("512", 512), ("1KiB", 1_024), ("2M", 2 << 20), ("3 GiB", 3 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, duration) in [("250ms", Duration::from_millis(250)), ("2m", Duration::from_mins(2)), ("1h", Duration::from_hours(1))] {
            assert_eq!(time(text), Ok(duration), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for arguments in [
            ["--ports", "99999"],
            ["--ring-bytes", "32MB"],
            ["--ring-bytes", "many"],
            ["--memory-limit", "18446744073709551615GiB"],
            ["--duration", "90"],
            ["--duration", "-1s"],
            ["--sides", "server"],
            ["--propagators", "carrier-pigeon"],
        ] {
            assert!(parse(&arguments).is_err(), "{arguments:?}");
        }
        assert!(time("90").unwrap_err().contains("90s"));
        assert!(size("1TB").unwrap_err().contains("GiB"));
    }
}
