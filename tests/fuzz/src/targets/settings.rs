//! A file of settings: taken, or refused with its place; what is taken can be used.

use std::path::Path;

use clap::{Args, Command};
use tracer_userspace::daemon::{RunArgs, SettingsFile};

use crate::seeds::Recorded;

pub(super) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let command = || RunArgs::augment_args(Command::new("run"));
    match SettingsFile::parse(Path::new("settings.yaml"), text, &command()) {
        // Each value was one that its argument takes.
        Ok(file) => {
            let run = file.as_defaults(command()).try_get_matches_from(["run"]);
            assert!(run.is_ok(), "{text:?} is taken, and not as defaults: {run:?}");
            for (name, _) in file.variables() {
                assert!(name.starts_with("OTEL_"), "{name}");
            }
        }
        Err(error) => assert!(error.to_string().contains("settings.yaml"), "{error}"),
    }
}

pub(super) fn seeds(_: &Recorded) -> Vec<Vec<u8>> {
    let texts = [
        "",
        "{}",
        "capture:\n  source: auto\n",
        "capture:\n  source: [packet]\n  ports: [9092, 9093]\n",
        "spans:\n  scope: record\n  fetch_kind: client\n",
        "spans:\n  max_per_second: 10\n  parent_max_age: 1h\n  coordinates: link\n",
        "otel:\n  OTEL_SERVICE_NAME: shop\n  OTEL_EXPORTER_OTLP_ENDPOINT: http://127.0.0.1:4317\n",
        "otel:\n  OTEL_TRACES_SAMPLER: traceidratio\n  OTEL_TRACES_SAMPLER_ARG: 0.1\n",
        "# none\nmetrics: {partition: true}\n",
        "a: &a\n  b: *a\n",
        "capture: !!str x\n---\nspans: ~\n",
        "spans:\n  scope: |\n    record\n",
        "export:\n  format: text\n",
        "? capture\n: {source: 'socket', sides: \"both\"}\n",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
