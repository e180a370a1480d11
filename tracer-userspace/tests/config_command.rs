//! `kafka-tracer config`, as it is used.

use std::path::Path;
use std::process::{Command, Output};

fn config(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kafka-tracer"));
    command.arg("config").env_clear().env("KAFKA_TRACER_CONFIG", file);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_file_stands_below_the_environment_and_that_below_the_command_line() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("settings.yaml");
    let yaml = "capture:\n  sides: both\n  ports: [9092]\n  ring_bytes: 64MiB\notel:\n  OTEL_BSP_SCHEDULE_DELAY: 1000\n  OTEL_METRIC_EXPORT_INTERVAL: 2000\n";
    std::fs::write(&file, yaml).unwrap();
    let mut command = config(&file);
    // An empty variable is an unset one.
    command.env("KAFKA_TRACER_SIDES", "").env("KAFKA_TRACER_PORTS", "1,2").env("KAFKA_TRACER_RING_BYTES", "128MiB");
    command.env("OTEL_BSP_SCHEDULE_DELAY", "").env("OTEL_METRIC_EXPORT_INTERVAL", "3000").args(["--ring-bytes", "1MiB"]);
    let output = command.output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{output:?}");
    for (setting, origin) in [
        ("sides: both", format!("{}:2", file.display())),
        ("ports: [1, 2]", "KAFKA_TRACER_PORTS".to_owned()),
        ("ring_bytes: 1MiB", "--ring-bytes".to_owned()),
        ("memory_limit: 256MiB", "default".to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY: 1000", format!("{}:6", file.display())),
        ("OTEL_METRIC_EXPORT_INTERVAL: 3000", "environment".to_owned()),
    ] {
        let line = text.lines().find(|line| line.trim_start().starts_with(setting)).unwrap_or_else(|| panic!("no {setting}:\n{text}"));
        assert!(line.ends_with(&format!("# {origin}")), "{line}");
    }
}

#[test]
fn what_run_would_refuse_is_refused_with_its_place() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("settings.yaml");
    for (yaml, words) in
        [("capture:\n  side: both\n", ":2:3: `capture` has no setting `side`"), ("limits:\n  memory_limit: 1MiB\n", "too little")]
    {
        std::fs::write(&file, yaml).unwrap();
        let output = config(&file).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{yaml}");
        assert!(error.starts_with("kafka-tracer: ") && error.contains(words), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(config(&file).output().unwrap().status.code(), Some(1), "a file that is not there");
}
