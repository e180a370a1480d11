//! Replays captures through the library, with the command line's own arguments.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args as _, Command, FromArgMatches as _};
use tracer_userspace::replay::{ReplayArgs, ReplayStatus, replay};

use crate::truth::Replayed;

/// What the comparison with the truth asks for.
pub const RECORDS: [&str; 5] = ["--format", "records", "--keys", "--propagators", "tracecontext,b3,b3multi,jaeger"];

/// Where the recorded captures are.
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Names of the recorded captures, sorted.
///
/// # Errors
/// When the folder cannot be read.
pub fn corpus_names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(corpus())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pcap") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// Replays a file as `kafka-tracer replay` with these arguments would.
///
/// # Errors
/// When the arguments are wrong or the output is no text; a capture that cannot be read is an exit status.
pub fn replay_file(arguments: &[&str], file: &Path) -> Result<Replayed> {
    let command = ReplayArgs::augment_args(Command::new("replay"));
    let all = [OsString::from("replay")].into_iter().chain(arguments.iter().map(OsString::from)).chain([file.into()]);
    let arguments = ReplayArgs::from_arg_matches(&command.try_get_matches_from(all)?)?;
    let mut output = Vec::new();
    let (status, message) = match replay(&arguments, &mut output) {
        Ok(ReplayStatus::Decoded) => (0, String::new()),
        Ok(ReplayStatus::NoKafka) => (2, String::new()),
        Err(error) => (1, format!("{:#}", anyhow::Error::from(error))),
    };
    Ok(Replayed { status, output: String::from_utf8(output)?, message })
}

/// Replays a capture given as a file's bytes.
///
/// # Errors
/// As [`replay_file`].
pub fn replay_bytes(arguments: &[&str], bytes: &[u8]) -> Result<Replayed> {
    let mut file = tempfile::NamedTempFile::new().context("a temporary file")?;
    file.write_all(bytes)?;
    file.flush()?;
    replay_file(arguments, file.path())
}
