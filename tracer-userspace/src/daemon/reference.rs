//! The page `docs/configuration.md`, made from what the program really takes, so that it cannot say anything else.
//!
//! `KAFKA_TRACER_WRITE_DOCS=1 cargo test -p tracer-userspace configuration_page` writes it anew.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::path::Path;

use clap::{Args, Command, FromArgMatches, Parser};

use super::{CheckArgs, RunArgs, Settings};
use crate::replay::ReplayArgs;

/// A variable of the OpenTelemetry specification that `run` obeys: name, default, meaning, and a value that changes something.
struct Variable(&'static str, &'static str, &'static str, &'static str);

const OTLP: &str = "where `_TRACES` or `_METRICS` may stand before the last word, for one signal alone";

const VARIABLES: &[Variable] = &[
    Variable("OTEL_SDK_DISABLED", "`false`", "`true`: neither spans nor metrics go anywhere", "true"),
    Variable(
        "OTEL_TRACES_EXPORTER",
        "`otlp` with an endpoint, else `console`",
        "`otlp`, `console` (text on standard output), `none`, or several with commas",
        "console",
    ),
    Variable("OTEL_METRICS_EXPORTER", "`otlp` with an endpoint, else `none`", "`otlp`, `none`", "none"),
    Variable(
        "OTEL_TRACES_SAMPLER",
        "`parentbased_always_on`",
        "`always_on`, `always_off`, `traceidratio`, or one of them after `parentbased_`",
        "always_off",
    ),
    Variable("OTEL_TRACES_SAMPLER_ARG", "`1`", "the ratio of `traceidratio`, 0 to 1", "0.5"),
    Variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "`http://localhost:4318`; for gRPC `http://localhost:4317`",
        "URL to send to; HTTP adds `v1/traces` and `v1/metrics`",
        "http://collector:4318",
    ),
    Variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "", "URL for spans alone, taken as it is", "http://collector:4318/spans"),
    Variable("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "", "URL for metrics alone, taken as it is", "http://collector:4318/metrics"),
    Variable("OTEL_EXPORTER_OTLP_PROTOCOL", "`http/protobuf`", "`grpc`, `http/protobuf`, `http/json`", "grpc"),
    Variable("OTEL_EXPORTER_OTLP_HEADERS", "", "`name=value,...` sent with each request; values may be percent-encoded", "x-tenant=shop"),
    Variable("OTEL_EXPORTER_OTLP_COMPRESSION", "`none`", "`gzip`, `none`", "gzip"),
    Variable("OTEL_EXPORTER_OTLP_TIMEOUT", "`10000`", "milliseconds for one request, its retries included", "2000"),
    Variable("OTEL_EXPORTER_OTLP_INSECURE", "`false`", "`true`: a gRPC endpoint written without `http://` or `https://` is plain", "true"),
    Variable("OTEL_EXPORTER_OTLP_CERTIFICATE", "the system's", "PEM file with the authorities to trust", "/etc/ca.pem"),
    Variable("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "", "PEM file with the client's certificate chain; needs the key too", "/etc/me.pem"),
    Variable("OTEL_EXPORTER_OTLP_CLIENT_KEY", "", "PEM file with the client's private key", "/etc/me.key"),
    Variable("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "`cumulative`", "`cumulative`, `delta`, `lowmemory`", "delta"),
    Variable(
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
        "`explicit_bucket_histogram`",
        "`base2_exponential_bucket_histogram`: exponential buckets",
        "base2_exponential_bucket_histogram",
    ),
    Variable("OTEL_BSP_SCHEDULE_DELAY", "`5000`", "milliseconds that spans wait at most for company", "1000"),
    Variable("OTEL_BSP_EXPORT_TIMEOUT", "`30000`", "milliseconds after which a request is given up, whatever it does", "1000"),
    Variable(
        "OTEL_BSP_MAX_QUEUE_SIZE",
        "`65536`",
        "spans that wait at most, of all services of the host together (the specification's default, 2048, is for one process)",
        "100000",
    ),
    Variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "`512`", "spans in one request at most", "100"),
    Variable("OTEL_METRIC_EXPORT_INTERVAL", "`60000`", "milliseconds between two readings of the metrics", "1000"),
    Variable("OTEL_METRIC_EXPORT_TIMEOUT", "`30000`", "milliseconds for one request with metrics", "1000"),
];

/// A file, as the page shows it.
const EXAMPLE: &str = "\
capture:
  sides: both
  exclude_ports: [22, 443]
  ring_bytes: 64MiB
spans:
  topics: [orders, payments]
limits:
  memory_limit: 512MiB
otel:
  OTEL_EXPORTER_OTLP_ENDPOINT: http://otel-collector.observability:4318
";

#[derive(Parser)]
struct Run {
    #[command(flatten)]
    args: RunArgs,
}

fn page() -> String {
    let mut page = String::from(
        "\
# Settings

<!-- Written by a test from the program's own definitions: `KAFKA_TRACER_WRITE_DOCS=1 cargo test -p tracer-userspace configuration_page`. -->

An argument wins over its environment variable, the variable over the file that `--config` names, and all of them over the default. Sizes are bytes, or a whole
number with `KiB`, `MiB` or `GiB`; times are a whole number with `ms`, `s`, `m` or `h`. Lists are separated by commas. What cannot be read is refused with what would be understood; of the `OTEL_*` variables that are not
arguments too, it is ignored with a warning, as the OpenTelemetry specification asks. `kafka-tracer run --help` says the same.

## `kafka-tracer run`
",
    );
    tables(&mut page, &RunArgs::augment_args(Command::new("run")), true);
    page.push_str(
        "\n### Where telemetry goes\n\nThe variables of the OpenTelemetry specification. In those that begin with `OTEL_EXPORTER_OTLP_`, ",
    );
    let _ = writeln!(
        page,
        "the signal may be named: `OTEL_EXPORTER_OTLP_TRACES_HEADERS`, {OTLP}.\n\n| variable | default | meaning |\n| --- | --- | --- |"
    );
    for Variable(name, default, meaning, _) in VARIABLES {
        let _ = writeln!(page, "| `{name}` | {} | {meaning} |", if default.is_empty() { "none" } else { default });
    }
    page.push_str(
        "
The tracer's own resource follows `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` of its own environment, as those of the observed processes follow theirs. `NO_COLOR`
and `TERM=dumb` keep the text plain, which it also is where it does not go to a terminal.

## The file

`--config FILE` or `KAFKA_TRACER_CONFIG` names a YAML file. It has a section for each group of arguments above, named like it in small letters, with the arguments' names
in it, `_` for `-`; and a section `otel` with variables of the OpenTelemetry specification by their own names. Lists are lists or words with commas between. A name that
is not known, a value that cannot be read, or a name that stands twice keeps the daemon from starting, with the place in the file.

```yaml
",
    );
    page.push_str(EXAMPLE);
    page.push_str(
        "\
```

`kafka-tracer config` takes the same arguments as `run`, checks them and the file, and prints the settings that `run` would use, each with where it comes from. What it
prints is such a file. Secrets are left out. Exit status: 0 when `run` would take the settings, 1 when it would not.

## `kafka-tracer replay FILE...`
",
    );
    tables(&mut page, &ReplayArgs::augment_args(Command::new("replay")), false);
    page.push_str("\n## `kafka-tracer check`\n\n`docs/kernels.md` says what it finds out.\n");
    tables(&mut page, &CheckArgs::augment_args(Command::new("check")), true);
    page
}

/// One table for each heading, in the order of the arguments.
fn tables(page: &mut String, command: &Command, with_variables: bool) {
    let mut last = None;
    for argument in command.get_arguments().filter(|argument| argument.get_long().is_some_and(|long| long != "help")) {
        let heading = argument.get_help_heading().unwrap_or("Options");
        if last != Some(heading) {
            last = Some(heading);
            let variable = if with_variables { " environment variable |" } else { "" };
            let line = if with_variables { " --- |" } else { "" };
            let _ = writeln!(page, "\n### {heading}\n\n| argument |{variable} default | meaning |\n| --- |{line} --- | --- |");
        }
        let takes_value = argument.get_action().takes_values();
        let possible: Vec<String> = argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        let is_choice = takes_value && !possible.is_empty() && possible != ["true", "false"];
        let value = match (takes_value, is_choice) {
            (false, _) => String::new(),
            (true, true) => format!(" {}", possible.join("\\|")),
            (true, false) => format!(" {}", argument.get_value_names().unwrap_or_default().first().map_or("VALUE", |name| name.as_str())),
        };
        let defaults: Vec<String> = argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        let default = if !takes_value {
            "off".to_owned()
        } else if defaults.is_empty() {
            "none".to_owned()
        } else {
            defaults.join(", ")
        };
        let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
        let mut meaning = help.replace("\n\n", ". ").replace('\n', " ");
        if is_choice {
            let values: Vec<String> = argument
                .get_possible_values()
                .iter()
                .filter_map(|value| value.get_help().map(|help| format!("`{}`: {help}", value.get_name())))
                .collect();
            let _ = write!(meaning, ". {}", values.join("; "));
        }
        let variable = argument.get_env().map_or_else(String::new, |variable| format!("`{}`", variable.to_string_lossy()));
        let variable = if with_variables { format!(" {variable} |") } else { String::new() };
        let _ = writeln!(page, "| `--{}{value}` |{variable} {default} | {meaning} |", argument.get_long().unwrap_or_default());
    }
}

fn settings(variables: &[(&str, &str)]) -> Settings {
    let matches = Run::augment_args(Command::new("run")).try_get_matches_from(["run"]).unwrap();
    let args = Run::from_arg_matches(&matches).unwrap().args;
    Settings::new(&args, &|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())).unwrap()
}

#[test]
fn configuration_page_says_what_the_program_takes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = page();
    if std::env::var_os("KAFKA_TRACER_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/configuration.md is out of date: KAFKA_TRACER_WRITE_DOCS=1 cargo test -p tracer-userspace configuration_page writes it"
    );
}

#[test]
fn the_file_on_the_page_is_read() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("settings.yaml");
    std::fs::write(&path, EXAMPLE).unwrap();
    let command = RunArgs::augment_args(Command::new("run"));
    let file = super::SettingsFile::read(&path, &command).unwrap();
    let args = Run::from_arg_matches(&file.as_defaults(command).try_get_matches_from(["run"]).unwrap()).unwrap().args;
    assert_eq!((args.exclude_ports, args.ring_bytes, args.memory_limit), (vec![22, 443], 64 << 20, 512 << 20));
}

#[test]
fn the_page_lists_the_variables_that_a_file_may_set() {
    assert_eq!(VARIABLES.iter().map(|Variable(name, ..)| *name).collect::<Vec<_>>(), super::variables::NAMES);
}

#[test]
fn every_variable_on_the_page_changes_something() {
    for Variable(name, _, _, value) in VARIABLES {
        let needed: &[(&str, &str)] = match *name {
            "OTEL_TRACES_SAMPLER_ARG" => &[("OTEL_TRACES_SAMPLER", "traceidratio")],
            "OTEL_EXPORTER_OTLP_INSECURE" => &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")],
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" | "OTEL_EXPORTER_OTLP_CLIENT_KEY" => {
                // One without the other is refused, which is an effect too.
                assert!(identity_is_refused(name, value), "{name}");
                continue;
            }
            _ => &[],
        };
        let exporters = [("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_METRICS_EXPORTER", "otlp")];
        let without: Vec<(&str, &str)> = needed.iter().chain(&exporters).copied().collect();
        let with: Vec<(&str, &str)> = std::iter::once((*name, *value)).chain(without.iter().copied()).collect();
        assert_ne!(format!("{:?}", settings(&with)), format!("{:?}", settings(&without)), "{name}={value} changes nothing");
    }
}

fn identity_is_refused(name: &str, value: &str) -> bool {
    let matches = Run::augment_args(Command::new("run")).try_get_matches_from(["run"]).unwrap();
    let args = Run::from_arg_matches(&matches).unwrap().args;
    let lookup = |asked: &str| match asked {
        "OTEL_TRACES_EXPORTER" => Some("otlp".to_owned()),
        asked if asked == name => Some(value.to_owned()),
        _ => None,
    };
    Settings::new(&args, &lookup).is_err()
}
