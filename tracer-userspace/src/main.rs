//! The binary: parses arguments, prints the error, sets the exit status. Everything else is in the library.

#![forbid(unsafe_code)]

use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracer_userspace::replay::{ReplayArgs, ReplayError, ReplayStatus, replay};

/// Shows what happens to Kafka messages on this host, without touching a program.
#[derive(Parser)]
#[command(name = "kafka-tracer", version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole line over capture files: no root, no kernel
    ///
    /// Exit status: 0 when Kafka was decoded, 2 when the captures hold none, 1 when a file cannot be read as a capture
    /// (what was good before the damage is listed all the same).
    Replay(ReplayArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Replay(args) => run_replay(&ReplayArgs { terminal: io::stdout().is_terminal(), ..args }),
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
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
