//! `cargo xtask`: every job of the project as a subcommand.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use xtask::cli::{self, Arguments};

fn main() -> ExitCode {
    match cli::run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}
