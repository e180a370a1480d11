//! `kafka-tracer config`: the settings that `run` would use, each with where it comes from, as a file that `run` takes.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::file::{CONFIG, FileError, OTEL, SettingsFile, section_of};
use super::{RunArgs, Settings, SettingsError, variables};

/// Arguments whose values are not for others to see.
const SECRETS: [&str; 1] = ["coordinates_key"];

/// Column at which origins stand.
const ORIGIN_COLUMN: usize = 46;

/// The command with the settings of the file that `matches` of its subcommand `name` names, if any, and the file.
///
/// # Errors
/// If the file cannot be read, or says what makes no sense.
pub fn with_file(command: Command, name: &str, matches: &ArgMatches) -> Result<Option<(Command, SettingsFile)>, FileError> {
    let Some(path) = matches.try_get_one::<PathBuf>(CONFIG).ok().flatten() else { return Ok(None) };
    let Some(subcommand) = command.find_subcommand(name) else { return Ok(None) };
    let file = SettingsFile::read(path, subcommand)?;
    let command = command.mut_subcommand(name, |subcommand| file.as_defaults(subcommand));
    Ok(Some((command, file)))
}

/// Prints the settings of a command line, after they were found to make sense together.
///
/// # Errors
/// If they make no sense together, or cannot be printed.
pub fn config(
    args: &RunArgs,
    subcommand: &Command,
    matches: &ArgMatches,
    file: Option<&SettingsFile>,
    out: &mut dyn Write,
) -> Result<io::Result<()>, SettingsError> {
    let settings = Settings::new(args, &|name| args.variable(name))?;
    Ok(print(&settings, args, subcommand, matches, file, out))
}

fn print(
    settings: &Settings,
    args: &RunArgs,
    subcommand: &Command,
    matches: &ArgMatches,
    file: Option<&SettingsFile>,
    out: &mut dyn Write,
) -> io::Result<()> {
    for warning in &settings.warnings {
        writeln!(out, "# Warning: {warning}")?;
    }
    let mut last = None;
    for argument in subcommand.get_arguments() {
        let Some(section) = section_of(argument) else { continue };
        if last.as_ref() != Some(&section) {
            writeln!(out, "{section}:")?;
            last = Some(section);
        }
        let name = argument.get_id().as_str();
        let line = match value(argument, matches) {
            _ if SECRETS.contains(&name) && matches.get_raw(name).is_some() => format!("  # {name}: (not shown)"),
            Some(value) => format!("  {name}: {value}"),
            None => format!("  # {name}:"),
        };
        writeln!(out, "{line:<ORIGIN_COLUMN$} # {}", origin(argument, matches, file))?;
    }
    writeln!(out, "{OTEL}:")?;
    for name in variables::all() {
        let Some(value) = args.variable(&name) else { continue };
        let line = if variables::is_secret(&name) { format!("  # {name}: (not shown)") } else { format!("  {name}: {}", scalar(&value)) };
        let from_environment = std::env::var_os(&name).is_some_and(|value| !value.is_empty());
        let origin = if from_environment { "environment".to_owned() } else { file.and_then(|file| file.place(&name)).unwrap_or_default() };
        writeln!(out, "{line:<ORIGIN_COLUMN$} # {origin}")?;
    }
    Ok(())
}

/// What an argument is set to, as YAML; None when it is not.
fn value(argument: &Arg, matches: &ArgMatches) -> Option<String> {
    let name = argument.get_id().as_str();
    if !argument.get_action().takes_values() {
        return Some(matches.get_flag(name).to_string());
    }
    let raw: Vec<String> = matches.get_raw(name)?.map(|value| value.to_string_lossy().into_owned()).collect();
    if argument.get_value_delimiter().is_some() {
        // A variable's list may come in one word.
        let words: Vec<String> = raw.iter().flat_map(|word| word.split(',')).map(|word| scalar(word.trim())).collect();
        return Some(format!("[{}]", words.join(", ")));
    }
    raw.last().map(|word| scalar(word))
}

fn origin(argument: &Arg, matches: &ArgMatches, file: Option<&SettingsFile>) -> String {
    let name = argument.get_id().as_str();
    match matches.value_source(name) {
        Some(ValueSource::CommandLine) => format!("--{}", argument.get_long().unwrap_or_default()),
        Some(ValueSource::EnvVariable) => argument.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        _ => file.and_then(|file| file.place(name)).unwrap_or_else(|| "default".to_owned()),
    }
}

/// A word as YAML, quoted where it could be read as something else.
fn scalar(word: &str) -> String {
    let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "_./:+-".contains(c))
        && word.chars().any(|c| c.is_ascii_alphanumeric())
        && word.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '-')
        && !word.ends_with(':')
        && !["null", "Null", "NULL"].contains(&word);
    if is_plain { word.to_owned() } else { serde_json::Value::from(word).to_string() }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    fn command() -> Command {
        Command::new("kafka-tracer").subcommand(RunArgs::augment_args(Command::new("config")).mut_args(|argument| {
            // Whatever the environment of the tests says.
            if argument.get_id() == "sides" {
                argument.env("KAFKA_TRACER_TEST_SIDES")
            } else {
                argument.env(clap::builder::Resettable::Reset)
            }
        }))
    }

    /// What the command prints for a file and arguments.
    fn printed(text: &str, line: &[&str]) -> Result<String, String> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("settings.yaml");
        std::fs::write(&path, text).unwrap();
        let path = path.to_string_lossy().into_owned();
        let line: Vec<&str> = ["kafka-tracer", "config", "--config", &path].into_iter().chain(line.iter().copied()).collect();
        let first = command().try_get_matches_from(&line).unwrap();
        let (command, file) = with_file(command(), "config", first.subcommand().unwrap().1).map_err(|error| error.to_string())?.unwrap();
        let matches = command.clone().try_get_matches_from(&line).unwrap();
        let matches = matches.subcommand().unwrap().1;
        let mut args = RunArgs::from_arg_matches(matches).unwrap();
        args.variables = file.variables();
        let mut out = Vec::new();
        let subcommand = command.find_subcommand("config").unwrap();
        config(&args, subcommand, matches, Some(&file), &mut out).map_err(|error| error.to_string())?.unwrap();
        Ok(String::from_utf8(out).unwrap().replace(&path, "FILE"))
    }

    #[test]
    fn each_setting_says_where_it_comes_from() {
        let file = "capture:\n  sides: both\n  ports: [9092, 9094]\nspans:\n  coordinates_key: secret\n  topics: ['a b', null-ish]\notel:\n  OTEL_EXPORTER_OTLP_HEADERS: authorization=secret\n  OTEL_BSP_SCHEDULE_DELAY: 1000\n";
        let text = printed(file, &["--ring-bytes", "64MiB"]).unwrap();
        let line =
            |start: &str| text.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_else(|| panic!("no {start}:\n{text}"));
        for (start, value, origin) in [
            ("sides", "sides: both", "FILE:2"),
            ("ports", "ports: [9092, 9094]", "FILE:3"),
            ("topics", "topics: [\"a b\", null-ish]", "FILE:6"),
            ("ring_bytes", "ring_bytes: 64MiB", "--ring-bytes"),
            ("memory_limit", "memory_limit: 256MiB", "default"),
            ("keys", "keys: false", "default"),
            ("# duration", "# duration:", "default"),
            ("# coordinates_key", "# coordinates_key: (not shown)", "FILE:5"),
            ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_SCHEDULE_DELAY: 1000", "FILE:9"),
            ("# OTEL_EXPORTER_OTLP_HEADERS", "(not shown)", "FILE:8"),
        ] {
            let line = line(start);
            assert!(line.contains(value) && line.ends_with(&format!("# {origin}")), "{line}");
        }
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn what_is_printed_is_a_file_that_says_the_same() {
        let file = "capture:\n  sides: both\n  ports: [9092]\n  cgroup: /host/c group\nspans:\n  keys: true\n  topics: [a, 'null', '- b', 'c: d']\noutput:\n  format: none\notel:\n  OTEL_TRACES_EXPORTER: otlp\n  OTEL_EXPORTER_OTLP_ENDPOINT: http://c:4318/x\n";
        let without_origins =
            |text: &str| text.lines().map(|line| line.split(" # ").next().unwrap_or_default().trim_end().to_owned()).collect::<Vec<_>>();
        let once = printed(file, &[]).unwrap();
        let twice = printed(&once, &[]).unwrap_or_else(|error| panic!("{error}\n{once}"));
        assert_eq!(without_origins(&once), without_origins(&twice));
    }

    #[test]
    fn settings_that_make_no_sense_together_are_refused() {
        let error = printed("limits:\n  memory_limit: 64MiB\n", &[]).unwrap_err();
        assert!(error.contains("64 MiB is too little"), "{error}");
        let error = printed("limits:\n  memory: 64MiB\n", &[]).unwrap_err();
        assert!(error.contains("settings.yaml:2:3: `limits` has no setting `memory`"), "{error}");
    }
}
