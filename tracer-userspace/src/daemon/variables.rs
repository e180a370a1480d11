//! The variables of the OpenTelemetry specification that `run` obeys and that are not arguments, too.

#![forbid(unsafe_code)]

/// Their names, as `docs/configuration.md` lists them.
pub(super) const NAMES: [&str; 24] = [
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_INSECURE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
];

const OTLP: &str = "OTEL_EXPORTER_OTLP_";

/// Variables whose values are secrets, or hold some.
const SECRET: &str = "HEADERS";

/// Whether a variable is obeyed.
pub(super) fn is_known(name: &str) -> bool {
    all().any(|known| known == name)
}

/// Whether its value is not for others to see.
pub(super) fn is_secret(name: &str) -> bool {
    name.starts_with(OTLP) && name.ends_with(SECRET)
}

/// All names that are obeyed: a signal may be named in those of the exporters, as in `OTEL_EXPORTER_OTLP_TRACES_HEADERS`.
pub(super) fn all() -> impl Iterator<Item = String> {
    let exporters = NAMES.iter().filter_map(|name| name.strip_prefix(OTLP));
    let of_no_signal = exporters.filter(|rest| !rest.starts_with("TRACES_") && !rest.starts_with("METRICS_"));
    let signals = of_no_signal.flat_map(|rest| ["TRACES_", "METRICS_"].map(|signal| format!("{OTLP}{signal}{rest}")));
    let plain = NAMES.iter().map(|name| (*name).to_owned());
    plain.chain(signals.filter(|name| !NAMES.contains(&name.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_may_be_named() {
        for name in [
            "OTEL_BSP_SCHEDULE_DELAY",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY",
        ] {
            assert!(is_known(name) && all().any(|known| known == name), "{name}");
        }
        for name in [
            "OTEL_LOG_LEVEL",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
            "OTEL_BSP_TRACES_SCHEDULE_DELAY",
            "OTEL_EXPORTER_OTLP_TRACES_METRICS_ENDPOINT",
            "",
        ] {
            assert!(!is_known(name) && !all().any(|known| known == name), "{name}");
        }
        assert!(is_secret("OTEL_EXPORTER_OTLP_TRACES_HEADERS") && !is_secret("OTEL_EXPORTER_OTLP_ENDPOINT"));
    }
}
