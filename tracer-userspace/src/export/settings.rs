//! Where telemetry goes, from the `OTEL_*` variables of the OpenTelemetry specification, as values.
//!
//! In: a way to look a variable up. Out: [`Settings`], and a sentence for each variable that was set and ignored. As the
//! specification asks: an empty variable is unset, names match without case, what cannot be read is ignored with a
//! warning. An endpoint or certificate that cannot be used is an error instead, since telemetry would be lost.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use opentelemetry_sdk::metrics::Temporality;

/// What cannot be settled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// An endpoint is no URL that could be called.
    #[error("{variable} is `{value}`, which is no http:// or https:// URL with a host, such as http://localhost:4318")]
    Endpoint {
        /// The variable.
        variable: String,
        /// What it holds, without user information.
        value: String,
    },
    /// One half of a client certificate is there and the other is not.
    #[error("{present} is set and {missing} is not: a client certificate needs both")]
    HalfIdentity {
        /// The variable that is set.
        present: &'static str,
        /// The one that is missing.
        missing: &'static str,
    },
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// Protobuf over HTTP, the specification's default.
    #[default]
    HttpProtobuf,
    /// JSON over HTTP.
    HttpJson,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
            Self::HttpJson => "http/json",
        })
    }
}

/// Where one signal goes by OTLP.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// How.
    pub protocol: Protocol,
    /// The whole URL: with the signal's path for HTTP, without one for gRPC.
    pub url: String,
    /// Sent with each request; values may be secrets.
    pub headers: Vec<(String, String)>,
    /// Bodies are compressed with gzip.
    pub gzip: bool,
    /// For one request, its retries included.
    pub timeout: Duration,
    /// PEM file with the certificate authorities to trust instead of the system's.
    pub certificate: Option<PathBuf>,
    /// PEM files of the client's certificate chain and private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Endpoint")
            .field("protocol", &self.protocol)
            .field("url", &without_user(&self.url))
            .field("headers", &names)
            .field("gzip", &self.gzip)
            .field("timeout", &self.timeout)
            .field("certificate", &self.certificate)
            .field("identity", &self.identity.as_ref().map(|(certificate, _)| certificate))
            .finish()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", without_user(&self.url), self.protocol)
    }
}

/// Where one signal goes; nowhere when both are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// By OTLP.
    pub otlp: Option<Endpoint>,
    /// As text on standard output.
    pub console: bool,
}

/// How spans wait and travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Spans wait at most this long for company (`OTEL_BSP_SCHEDULE_DELAY`).
    pub delay: Duration,
    /// One request, whatever happens in it (`OTEL_BSP_EXPORT_TIMEOUT`).
    pub export_timeout: Duration,
    /// Most spans that wait (`OTEL_BSP_MAX_QUEUE_SIZE`). The default is above the specification's 2,048: this is the
    /// queue of a whole host.
    pub max_queue_spans: usize,
    /// Most bytes of memory that waiting spans may take, as estimated.
    pub max_queue_bytes: usize,
    /// Most spans in one request (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`).
    pub max_batch_spans: usize,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(5),
            export_timeout: Duration::from_secs(30),
            max_queue_spans: 65_536,
            max_queue_bytes: 64 * 1_024 * 1_024,
            max_batch_spans: 512,
        }
    }
}

/// When metrics are collected and how they count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collection {
    /// `OTEL_METRIC_EXPORT_INTERVAL`.
    pub interval: Duration,
    /// `OTEL_METRIC_EXPORT_TIMEOUT`.
    pub timeout: Duration,
    /// `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`.
    pub temporality: Temporality,
}

impl Default for Collection {
    fn default() -> Self {
        Self { interval: Duration::from_mins(1), timeout: Duration::from_secs(30), temporality: Temporality::Cumulative }
    }
}

/// Where telemetry goes, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Spans.
    pub traces: Destination,
    /// Metrics.
    pub metrics: Destination,
    /// How spans wait and travel.
    pub batching: Batching,
    /// When metrics are collected.
    pub collection: Collection,
    /// What was set and is not obeyed, or looks like a mistake: one sentence each.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Reads the variables through `lookup`. With no exporter chosen and no endpoint set, spans go to the console and
    /// metrics nowhere.
    pub fn from_environment(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let mut reader = Reader { lookup, warnings: Vec::new() };
        let mut settings = Self::default();
        if reader.boolean("OTEL_SDK_DISABLED") {
            settings.warnings.push("OTEL_SDK_DISABLED is true: neither spans nor metrics go anywhere.".to_owned());
            return Ok(settings);
        }
        settings.traces = reader.destination(Signal::Traces)?;
        settings.metrics = reader.destination(Signal::Metrics)?;
        let batching = &mut settings.batching;
        reader.milliseconds("OTEL_BSP_SCHEDULE_DELAY", &mut batching.delay);
        reader.milliseconds("OTEL_BSP_EXPORT_TIMEOUT", &mut batching.export_timeout);
        reader.count("OTEL_BSP_MAX_QUEUE_SIZE", &mut batching.max_queue_spans);
        reader.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &mut batching.max_batch_spans);
        if batching.max_batch_spans > batching.max_queue_spans {
            batching.max_batch_spans = batching.max_queue_spans;
            reader.warnings.push("OTEL_BSP_MAX_EXPORT_BATCH_SIZE is above OTEL_BSP_MAX_QUEUE_SIZE and is cut to it.".to_owned());
        }
        let collection = &mut settings.collection;
        reader.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", &mut collection.interval);
        reader.milliseconds("OTEL_METRIC_EXPORT_TIMEOUT", &mut collection.timeout);
        let temporality = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        if let Some(value) = reader.text(temporality) {
            match value.to_ascii_lowercase().as_str() {
                "cumulative" => collection.temporality = Temporality::Cumulative,
                "delta" => collection.temporality = Temporality::Delta,
                "lowmemory" => collection.temporality = Temporality::LowMemory,
                _ => reader.ignored(temporality, &value, "cumulative, delta or lowmemory"),
            }
        }
        for unsupported in ["OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE"] {
            if reader.text(unsupported).is_some() {
                reader.warnings.push(format!("{unsupported} is set, but declarative configuration files are not read."));
            }
        }
        settings.warnings = reader.warnings;
        Ok(settings)
    }
}

#[derive(Clone, Copy)]
enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    const fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Traces => "v1/traces",
            Self::Metrics => "v1/metrics",
        }
    }
}

struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// A signal's own variable, else the one for all: its name and its value.
    fn for_signal(&self, signal: Signal, suffix: &str) -> Option<(String, String)> {
        [format!("OTEL_EXPORTER_OTLP_{}_{suffix}", signal.name()), format!("OTEL_EXPORTER_OTLP_{suffix}")]
            .into_iter()
            .find_map(|name| self.text(&name).map(|value| (name, value)))
    }

    fn ignored(&mut self, name: &str, value: &str, expected: &str) {
        self.warnings.push(format!("{name} is `{value}` and is ignored: expected {expected}."));
    }

    fn boolean(&mut self, name: &str) -> bool {
        match self.text(name) {
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(value) if !value.eq_ignore_ascii_case("false") => {
                self.ignored(name, &value, "true or false");
                false
            }
            _ => false,
        }
    }

    fn number<T: FromStr + Default + PartialOrd>(&mut self, name: &str, expected: &str) -> Option<T> {
        let value = self.text(name)?;
        let number = value.parse().ok().filter(|number| *number > T::default());
        if number.is_none() {
            self.ignored(name, &value, expected);
        }
        number
    }

    fn milliseconds(&mut self, name: &str, setting: &mut Duration) {
        if let Some(value) = self.number(name, "a whole number of milliseconds above 0") {
            *setting = Duration::from_millis(value);
        }
    }

    fn count(&mut self, name: &str, setting: &mut usize) {
        if let Some(value) = self.number(name, "a whole number above 0") {
            *setting = value;
        }
    }

    fn destination(&mut self, signal: Signal) -> Result<Destination, SettingsError> {
        let variable = format!("OTEL_{}_EXPORTER", signal.name());
        let mut destination = Destination::default();
        let mut otlp = false;
        if let Some(list) = self.text(&variable) {
            for name in list.split(',').map(str::trim) {
                match name.to_ascii_lowercase().as_str() {
                    "otlp" => otlp = true,
                    "console" => destination.console = true,
                    "none" | "" => {}
                    _ => self.ignored(&variable, name, "otlp, console or none"),
                }
            }
        } else if self.for_signal(signal, "ENDPOINT").is_some() {
            otlp = true;
        } else {
            destination.console = matches!(signal, Signal::Traces);
        }
        if otlp {
            destination.otlp = Some(self.endpoint(signal)?);
        }
        Ok(destination)
    }

    fn endpoint(&mut self, signal: Signal) -> Result<Endpoint, SettingsError> {
        let protocol = self.protocol(signal);
        let protocol_is_set = protocol.is_some();
        let protocol = protocol.unwrap_or_default();
        let url = self.url(signal, protocol)?;
        if !protocol_is_set && port(&url) == Some("4317") {
            self.warnings.push(format!(
                "The endpoint {} has the port that gRPC usually has, but is called by http/protobuf; set OTEL_EXPORTER_OTLP_PROTOCOL=grpc if it speaks gRPC.",
                without_user(&url)
            ));
        }
        let gzip = self.gzip(signal);
        let headers = self.for_signal(signal, "HEADERS").map(|(name, value)| self.headers(&name, &value)).unwrap_or_default();
        let mut timeout = Duration::from_secs(10);
        for name in ["OTEL_EXPORTER_OTLP_TIMEOUT".to_owned(), format!("OTEL_EXPORTER_OTLP_{}_TIMEOUT", signal.name())] {
            self.milliseconds(&name, &mut timeout);
        }
        let path = |suffix: &str| self.for_signal(signal, suffix).map(|(_, value)| PathBuf::from(value));
        let identity = match (path("CLIENT_CERTIFICATE"), path("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(SettingsError::HalfIdentity {
                    present: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                    missing: "OTEL_EXPORTER_OTLP_CLIENT_KEY",
                });
            }
            (None, Some(_)) => {
                return Err(SettingsError::HalfIdentity {
                    present: "OTEL_EXPORTER_OTLP_CLIENT_KEY",
                    missing: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                });
            }
        };
        Ok(Endpoint { protocol, url, headers, gzip, timeout, certificate: path("CERTIFICATE"), identity })
    }

    fn protocol(&mut self, signal: Signal) -> Option<Protocol> {
        let (name, value) = self.for_signal(signal, "PROTOCOL")?;
        match value.to_ascii_lowercase().as_str() {
            "grpc" => Some(Protocol::Grpc),
            "http/protobuf" => Some(Protocol::HttpProtobuf),
            "http/json" => Some(Protocol::HttpJson),
            _ => {
                self.ignored(&name, &value, "grpc, http/protobuf or http/json");
                None
            }
        }
    }

    fn gzip(&mut self, signal: Signal) -> bool {
        let Some((name, value)) = self.for_signal(signal, "COMPRESSION") else { return false };
        match value.to_ascii_lowercase().as_str() {
            "gzip" => true,
            "none" => false,
            _ => {
                self.ignored(&name, &value, "gzip or none");
                false
            }
        }
    }

    fn url(&mut self, signal: Signal, protocol: Protocol) -> Result<String, SettingsError> {
        let (name, value) = self.for_signal(signal, "ENDPOINT").unwrap_or_else(|| {
            let default = if protocol == Protocol::Grpc { "http://localhost:4317" } else { "http://localhost:4318" };
            ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), default.to_owned())
        });
        let mut url = value.clone();
        if protocol == Protocol::Grpc && !url.contains("://") {
            // Only such an endpoint is governed by INSECURE.
            let insecure = self.for_signal(signal, "INSECURE").is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
            url = format!("{}://{url}", if insecure { "http" } else { "https" });
        }
        let valid = url
            .parse::<tonic::transport::Uri>()
            .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty()));
        if !valid {
            return Err(SettingsError::Endpoint { variable: name, value: without_user(&value) });
        }
        // A signal's own URL is taken as it is; the common one gets the signal's path.
        if protocol != Protocol::Grpc && name == "OTEL_EXPORTER_OTLP_ENDPOINT" {
            url = format!("{}/{}", url.trim_end_matches('/'), signal.path());
        }
        Ok(url)
    }

    fn headers(&mut self, name: &str, value: &str) -> Vec<(String, String)> {
        let mut headers = Vec::new();
        for pair in value.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let parsed =
                pair.split_once('=').and_then(|(key, value)| Some((key.trim().to_ascii_lowercase(), percent_decoded(value.trim())?)));
            match parsed {
                Some((key, value)) if is_header_name(&key) && is_header_value(&value) => headers.push((key, value)),
                // The value may be a secret, and so may be a pair that went wrong.
                _ => self.warnings.push(format!("{name} holds a pair that is not `name=value` of an HTTP header; it is ignored.")),
            }
        }
        headers
    }
}

fn is_header_name(name: &str) -> bool {
    name.parse::<reqwest::header::HeaderName>().is_ok()
}

fn is_header_value(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| (0x20..0x7f).contains(&b) || b == b'\t')
}

/// Percent-decoding as in W3C Baggage; a bad escape stays as it is written.
fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = (byte == b'%').then(|| after.get(..2)).flatten().and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(value) = escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            out.push(value);
            rest = after.get(2..).unwrap_or_default();
        } else {
            out.push(byte);
            rest = after;
        }
    }
    String::from_utf8(out).ok()
}

fn port(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    authority.rsplit_once(':').map(|(_, port)| port)
}

/// The URL without `user:password@`.
fn without_user(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => url.rsplit_once('@').map_or(url, |(_, host)| host).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_environment(&|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    fn traces(variables: &[(&str, &str)]) -> Endpoint {
        let settings = read(variables).unwrap();
        assert_eq!(settings.warnings, Vec::<String>::new());
        settings.traces.otlp.unwrap()
    }

    #[test]
    fn with_nothing_set_spans_are_text_and_metrics_go_nowhere() {
        let settings = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap();
        assert_eq!(settings, Settings { traces: Destination { otlp: None, console: true }, ..Settings::default() });
    }

    #[test]
    fn an_endpoint_alone_sends_both_signals_there() {
        let settings = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/base/")]).unwrap();
        let (traces, metrics) = (settings.traces.otlp.unwrap(), settings.metrics.otlp.unwrap());
        assert_eq!(
            (traces.url.as_str(), metrics.url.as_str()),
            ("http://collector:4318/base/v1/traces", "http://collector:4318/base/v1/metrics")
        );
        assert_eq!((traces.protocol, traces.timeout, traces.gzip), (Protocol::HttpProtobuf, Duration::from_secs(10), false));
        assert!(!settings.traces.console);
    }

    #[test]
    fn exporters_are_chosen_by_name() {
        let none = read(&[("OTEL_TRACES_EXPORTER", "none"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1")]).unwrap();
        assert_eq!(none.traces, Destination::default());
        assert!(none.metrics.otlp.is_some());
        let both = read(&[("OTEL_TRACES_EXPORTER", "OTLP, console"), ("OTEL_METRICS_EXPORTER", "console")]).unwrap();
        assert_eq!(both.traces.otlp.as_ref().unwrap().url, "http://localhost:4318/v1/traces");
        assert!(both.traces.console && both.metrics.console && both.metrics.otlp.is_none());
        let unknown = read(&[("OTEL_TRACES_EXPORTER", "zipkin")]).unwrap();
        assert_eq!(unknown.warnings, ["OTEL_TRACES_EXPORTER is `zipkin` and is ignored: expected otlp, console or none."]);
        let disabled = read(&[("OTEL_SDK_DISABLED", "True"), ("OTEL_TRACES_EXPORTER", "otlp")]).unwrap();
        assert_eq!((disabled.traces, disabled.warnings.len()), (Destination::default(), 1));
    }

    #[test]
    fn a_signals_own_variable_wins() {
        let endpoint = traces(&[
            ("OTEL_METRICS_EXPORTER", "none"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces.example/own/path"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "HTTP/JSON"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "Authorization=Basic%20AAA=, x-tenant = shop "),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/me.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/me.key"),
        ]);
        assert_eq!(
            endpoint,
            Endpoint {
                protocol: Protocol::HttpJson,
                url: "https://traces.example/own/path".to_owned(),
                headers: vec![("authorization".to_owned(), "Basic AAA=".to_owned()), ("x-tenant".to_owned(), "shop".to_owned())],
                gzip: true,
                timeout: Duration::from_millis(2_500),
                certificate: Some("/ca.pem".into()),
                identity: Some(("/me.pem".into(), "/me.key".into())),
            }
        );
        assert!(!format!("{endpoint:?}").contains("AAA"));
    }

    #[test]
    fn grpc_endpoints_without_a_scheme_are_secure_unless_told_otherwise() {
        for (endpoint, insecure, url) in [
            ("collector:4317", "", "https://collector:4317"),
            ("collector:4317", "TRUE", "http://collector:4317"),
            ("http://collector:4317", "false", "http://collector:4317"),
        ] {
            let settings = [
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
                ("OTEL_EXPORTER_OTLP_INSECURE", insecure),
            ];
            assert_eq!(traces(&settings).url, url);
        }
        assert_eq!(traces(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_TRACES_EXPORTER", "otlp")]).url, "http://localhost:4317");
    }

    #[test]
    fn an_endpoint_that_cannot_be_called_is_an_error() {
        for endpoint in ["collector:4318", "/v1/traces", "ftp://x", "http://", "http://a b"] {
            let error = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]).unwrap_err().to_string();
            assert!(error.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && error.contains("http://localhost:4318"), "{error}");
        }
        let error = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://me:secret@x/y")]).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
        let half = read(&[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k")]).unwrap_err().to_string();
        assert!(half.contains("CLIENT_CERTIFICATE is not"), "{half}");
    }

    #[test]
    fn what_cannot_be_read_is_ignored_with_a_sentence() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "carrier-pigeon"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "good=1,bad header=2,nothing,secret"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "never"),
            ("OTEL_CONFIG_FILE", "/etc/otel.yaml"),
        ])
        .unwrap();
        let text = settings.warnings.join("\n");
        assert!(!text.contains("secret"), "{text}");
        for part in [
            "carrier-pigeon",
            "port that gRPC",
            "not `name=value`",
            "zstd",
            "soon",
            "cut to it",
            "INTERVAL is `-1`",
            "never",
            "OTEL_CONFIG_FILE",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(settings.batching, Batching { max_queue_spans: 100, max_batch_spans: 100, ..Batching::default() });
        assert_eq!(settings.collection, Collection::default());
        assert_eq!(settings.traces.otlp.unwrap().headers, [("good".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn numbers_are_milliseconds_and_counts() {
        let settings = read(&[
            ("OTEL_BSP_SCHEDULE_DELAY", "250"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "1000"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "64"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1500"),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "700"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta"),
        ])
        .unwrap();
        assert_eq!(settings.batching.delay, Duration::from_millis(250));
        assert_eq!((settings.batching.export_timeout, settings.batching.max_batch_spans), (Duration::from_secs(1), 64));
        assert_eq!(
            settings.collection,
            Collection { interval: Duration::from_millis(1_500), timeout: Duration::from_millis(700), temporality: Temporality::Delta }
        );
    }
}
