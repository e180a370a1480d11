//! The daemon's own log, on standard error.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::export::text::may_colour;

/// Starts the log at `level` (`error` to `trace`, `none`, or directives of `tracing`). A level that cannot be read is
/// `info`, and the sentence returned says so.
pub(super) fn start(level: &str) -> Option<String> {
    let (filter, complaint) = filter(level);
    let colour = may_colour(io::stderr().is_terminal(), &|name| std::env::var(name).ok());
    // Fails only where a log was started before, which then stays.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour).with_target(false).try_init();
    complaint
}

/// What the libraries say of each connection and frame of theirs is of no use here.
const QUIET: [&str; 7] = ["h2=warn", "hyper=warn", "hyper_util=warn", "tonic=warn", "tower=warn", "reqwest=warn", "rustls=warn"];

fn filter(level: &str) -> (EnvFilter, Option<String>) {
    let level = level.trim().to_ascii_lowercase();
    let (directive, complaint) = match level.as_str() {
        "" | "info" => ("info", None),
        "none" | "off" => ("off", None),
        "fatal" | "error" => ("error", None),
        "warn" | "warning" => ("warn", None),
        "debug" => ("debug", None),
        "trace" => ("trace", None),
        other => match other.parse::<EnvFilter>() {
            Ok(filter) if other.contains(['=', ',']) => return (filter, None),
            _ => (
                "info",
                Some(format!("The log level `{other}` is none of error, warn, info, debug, trace and none; info is used instead.")),
            ),
        },
    };
    let quiet = if directive == "off" || directive == "error" { String::new() } else { format!(",{}", QUIET.join(",")) };
    (EnvFilter::new(format!("{directive}{quiet}")), complaint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_the_specification() {
        for (level, shown, complains) in [
            ("info", "info", false),
            ("", "info", false),
            ("WARN", "warn", false),
            ("none", "off", false),
            ("loud", "info", true),
            ("tracer_userspace=debug,warn", "tracer_userspace=debug", false),
        ] {
            let (filter, complaint) = filter(level);
            assert!(filter.to_string().contains(shown), "{level}: {filter}");
            assert_eq!(complaint.is_some(), complains, "{level}");
        }
    }
}
