//! The binary: parses arguments, prints the error, sets the exit status. Everything else is in the library.

#![forbid(unsafe_code)]

use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
#[cfg(feature = "live")]
use tracer_userspace::daemon::{CheckArgs, Ended, check, run};
use tracer_userspace::daemon::{RunArgs, SettingsFile, config, with_file, without_empty_variables};
#[cfg(feature = "live")]
use tracer_userspace::export::text::may_colour;
use tracer_userspace::replay::{ReplayArgs, ReplayError, ReplayStatus, replay};

/// What is made of a batch lives for milliseconds and dies on another thread: glibc's allocator takes a tenth of the daemon's time for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Shows what happens to Kafka messages on this host, without touching a program.
#[derive(Parser)]
#[command(name = "kafka-tracer", version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[cfg_attr(feature = "live", expect(clippy::doc_markdown, reason = "help texts are shown as they are written"))]
enum Command {
    /// Run the whole line over capture files: no root, no kernel
    ///
    /// Exit status: 0 when Kafka was decoded, 2 when the captures hold none, 1 when a file cannot be read as a capture
    /// (what was good before the damage is listed all the same).
    Replay(ReplayArgs),

    #[cfg(feature = "live")]
    /// Watch the Kafka connections of this host, and tell what happens by OTLP or as text
    ///
    /// Needs root (or CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH), and Linux 5.8 with cgroup v2 or
    /// Linux 4.14 with kprobes; `kafka-tracer check` says what is missing. Spans are printed unless OTEL_EXPORTER_OTLP_ENDPOINT says where to
    /// send them. Exit status: 0 when all was delivered, 1 when it could not start or capture failed, 3 when it ended with spans undelivered.
    Run(Box<RunArgs>),

    /// Show the settings that `run` would use, each with where it comes from, and check them and their file
    ///
    /// Takes the arguments of `run`. What it prints is a file that `run --config` takes; secrets are left out. Exit status: 0 when `run` would take
    /// the settings, 1 when it would not.
    Config(Box<RunArgs>),

    #[cfg(feature = "live")]
    /// Say what this host allows, what will be used, what is missing and how to get it
    ///
    /// Attaches nothing and changes nothing. Works without root, and then says what it could not find out. Exit status: 0 when live capture
    /// can run, 1 when it cannot.
    Check(CheckArgs),

    #[cfg(not(feature = "live"))]
    /// Not in this build, which was made without live capture: `cargo xtask build` makes one with it
    Run {
        /// Taken, so that the answer is about the build and not about an argument
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },

    #[cfg(not(feature = "live"))]
    /// Not in this build, which was made without live capture: `cargo xtask build` makes one with it
    Check {
        /// Taken, so that the answer is about the build and not about an argument
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let command = without_empty_variables(Cli::command());
    let matches = command.clone().get_matches();
    let with_file = match matches.subcommand() {
        Some((name, of_subcommand)) => with_file(command.clone(), name, of_subcommand),
        None => Ok(None),
    };
    let (command, matches, file) = match with_file {
        Ok(None) => (command, matches, None),
        // What the file says are defaults: everything is read again over them.
        Ok(Some((command, file))) => (command.clone(), command.get_matches(), Some(file)),
        Err(error) => {
            eprintln!("kafka-tracer: {error}");
            return ExitCode::FAILURE;
        }
    };
    let variables = file.as_ref().map(SettingsFile::variables).unwrap_or_default();
    match Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()).command {
        Command::Config(args) => run_config(&RunArgs { variables, ..*args }, &command, &matches, file.as_ref()),
        #[cfg(feature = "live")]
        Command::Run(args) => run_daemon(&RunArgs { variables, ..*args }),
        #[cfg(feature = "live")]
        Command::Check(args) => run_check(&args),
        #[cfg(not(feature = "live"))]
        Command::Run { .. } | Command::Check { .. } => {
            eprintln!(
                "kafka-tracer: this build has no live capture; `cargo xtask build` makes one that has, `kafka-tracer replay` reads capture files"
            );
            ExitCode::FAILURE
        }
        Command::Replay(args) => run_replay(&ReplayArgs { terminal: io::stdout().is_terminal(), ..args }),
    }
}

#[cfg(feature = "live")]
fn run_daemon(args: &RunArgs) -> ExitCode {
    match run(args) {
        Ok(Ended::Clean) => ExitCode::SUCCESS,
        Ok(Ended::Failed) => ExitCode::FAILURE,
        Ok(Ended::Unsent) => ExitCode::from(3),
        Err(error) => {
            eprintln!("kafka-tracer: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "live")]
fn run_check(args: &CheckArgs) -> ExitCode {
    let colour = may_colour(io::stdout().is_terminal(), &|name| std::env::var(name).ok());
    match check(args, colour, &mut io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kafka-tracer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_config(args: &RunArgs, command: &clap::Command, matches: &ArgMatches, file: Option<&SettingsFile>) -> ExitCode {
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::FAILURE };
    let Some(subcommand) = command.find_subcommand(name) else { return ExitCode::FAILURE };
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = config(args, subcommand, matches, file, &mut out);
    match printed.map(|printed| printed.and_then(|()| out.flush())) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("kafka-tracer: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("kafka-tracer: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run_replay(args: &ReplayArgs) -> ExitCode {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let result = replay(args, &mut out);
    let flushed = out.flush();
    match result {
        Ok(ReplayStatus::Decoded) if flushed.is_ok() => ExitCode::SUCCESS,
        Ok(ReplayStatus::Decoded) => ExitCode::FAILURE,
        Ok(ReplayStatus::NoKafka) => {
            eprintln!("kafka-tracer: no Kafka in the capture that can be read (`--format summary` tells what was seen)");
            ExitCode::from(2)
        }
        // Whoever read the listing has seen enough (`| head`).
        Err(ReplayError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kafka-tracer: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some messages hold their cause already.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
