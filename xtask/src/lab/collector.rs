//! A real OpenTelemetry Collector that writes what it receives to a file.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Process, Span, free_port, spans, wait_for};
use crate::tools;

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// HTTP with protobuf bodies.
    HttpProtobuf,
    /// HTTP with JSON bodies.
    HttpJson,
}

impl Protocol {
    /// As `OTEL_EXPORTER_OTLP_PROTOCOL` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
            Self::HttpJson => "http/json",
        }
    }
}

/// A Collector, running or stopped; it keeps its ports and its file while it is away.
#[derive(Debug)]
pub struct Collector {
    program: PathBuf,
    dir: PathBuf,
    grpc_port: u16,
    http_port: u16,
    process: Option<Process>,
}

impl Collector {
    /// Builds the Collector if it is missing.
    ///
    /// # Errors
    /// If Go is missing and cannot be installed, or the build fails.
    pub fn ensure() -> Result<PathBuf> {
        tools::go_program("collector", &[], "a real OpenTelemetry Collector with OTLP receiver and file exporter, about 1 min")
    }

    /// Starts a Collector that keeps its files in `dir`.
    ///
    /// # Errors
    /// If it cannot be built or does not come up.
    pub fn start(dir: &Path) -> Result<Self> {
        let mut collector = Self::stopped(dir)?;
        collector.resume()?;
        Ok(collector)
    }

    /// A Collector that is not running yet, but whose ports are chosen.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn stopped(dir: &Path) -> Result<Self> {
        Ok(Self { program: Self::ensure()?, dir: dir.to_path_buf(), grpc_port: free_port()?, http_port: free_port()?, process: None })
    }

    /// Starts it again, on the same ports; the file is written on.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn resume(&mut self) -> Result<()> {
        let settings = self.dir.join("collector.yaml");
        fs::write(&settings, self.settings()).with_context(|| format!("cannot write {}", settings.display()))?;
        let mut process = Process::start("collector", &self.dir, Command::new(&self.program).arg("--config").arg(&settings))?;
        for port in [self.grpc_port, self.http_port] {
            wait_for("the Collector's ports", Duration::from_secs(30), || {
                process.alive()?;
                Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
            })?;
        }
        self.process = Some(process);
        Ok(())
    }

    /// Stops it; what it received is in the file.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.terminate(Duration::from_secs(30))?;
        }
        Ok(())
    }

    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self, protocol: Protocol) -> String {
        let port = if protocol == Protocol::Grpc { self.grpc_port } else { self.http_port };
        format!("http://127.0.0.1:{port}")
    }

    /// All spans received so far.
    ///
    /// # Errors
    /// If the file holds something else than OTLP/JSON.
    pub fn spans(&self) -> Result<Vec<Span>> {
        spans::parse(&self.requests("traces.json")?)
    }

    /// Shows all spans received so far, without holding them all.
    ///
    /// # Errors
    /// If the file holds something else than OTLP/JSON.
    pub fn each_span(&self, mut show: impl FnMut(Span)) -> Result<()> {
        let path = self.dir.join("traces.json");
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        for line in BufReader::new(file).lines() {
            let request = serde_json::from_str(&line?).with_context(|| format!("{} is not JSON", path.display()))?;
            spans::parse(&[request])?.into_iter().for_each(&mut show);
        }
        Ok(())
    }

    /// All metrics requests received so far, as OTLP/JSON.
    ///
    /// # Errors
    /// If the file holds something else than JSON.
    pub fn metrics(&self) -> Result<Vec<Value>> {
        self.requests("metrics.json")
    }

    /// The sum of a counter's newest values over all series whose attributes name `word` (empty: over all).
    ///
    /// # Errors
    /// If the file holds something else than JSON.
    pub fn counted(&self, metric: &str, word: &str) -> Result<f64> {
        let quoted = format!("\"{word}\"");
        let histories = self.histories(&[metric])?;
        let wanted = histories
            .values()
            .flatten()
            .filter(|((resource, attributes), _)| word.is_empty() || resource.contains(&quoted) || attributes.contains(&quoted));
        Ok(wanted.filter_map(|(_, values)| values.last()).map(|(_, value)| value).sum())
    }

    /// All values of some counters and gauges.
    ///
    /// # Errors
    /// If the file holds something else than JSON.
    pub fn histories<'a>(&self, metrics: &[&'a str]) -> Result<BTreeMap<&'a str, History>> {
        let mut read: BTreeMap<&str, History> = BTreeMap::new();
        let path = self.dir.join("metrics.json");
        let Ok(file) = File::open(&path) else { return Ok(read) };
        for line in BufReader::new(file).lines() {
            // The last line may be half written while the Collector runs.
            let Ok(request) = serde_json::from_str::<Value>(&line?) else { break };
            for (metric, history) in histories(&[request], metrics) {
                let known = read.entry(metric).or_default();
                for (series, values) in history {
                    known.entry(series).or_default().extend(values);
                }
            }
        }
        Ok(read)
    }

    fn requests(&self, file: &str) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        // The last line may be half written while the Collector runs.
        let whole = text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default();
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("{file} holds a line that is not JSON"))).collect()
    }

    fn settings(&self) -> String {
        let Self { grpc_port, http_port, dir, .. } = self;
        let dir = dir.display();
        format!(
            "receivers:
  otlp:
    protocols:
      grpc:
        endpoint: 127.0.0.1:{grpc_port}
      http:
        endpoint: 127.0.0.1:{http_port}
exporters:
  debug: {{}}
  file/traces:
    path: {dir}/traces.json
    append: true
    flush_interval: 200ms
  file/metrics:
    path: {dir}/metrics.json
    append: true
    flush_interval: 200ms
service:
  telemetry:
    metrics:
      level: none
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [debug, file/traces]
    metrics:
      receivers: [otlp]
      exporters: [debug, file/metrics]
"
        )
    }
}

/// A metric's values: by series (its resource and its attributes, as JSON) when it was read (nanoseconds since 1970) and what.
pub type History = BTreeMap<(String, String), Vec<(u64, f64)>>;

/// All values of some sums and gauges.
fn histories<'a>(requests: &[Value], metrics: &[&'a str]) -> BTreeMap<&'a str, History> {
    let whole = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).and_then(|digits| digits.parse::<i64>().ok());
    let mut histories: BTreeMap<&str, History> = metrics.iter().map(|metric| (*metric, History::new())).collect();
    for resource in requests.iter().flat_map(|request| list(request, "resourceMetrics")) {
        for found in list(resource, "scopeMetrics").iter().flat_map(|scope| list(scope, "metrics")) {
            let Some(history) = found.get("name").and_then(Value::as_str).and_then(|name| histories.get_mut(name)) else { continue };
            for point in found.get("sum").or_else(|| found.get("gauge")).map_or(&[][..], |values| list(values, "dataPoints")) {
                let part = |of: &Value, name: &str| of.get(name).map(Value::to_string).unwrap_or_default();
                let series = (part(resource, "resource"), part(point, "attributes"));
                #[expect(clippy::cast_precision_loss, reason = "what is counted here stays below 2^53")]
                let value = whole(point, "asInt").map(|value: i64| value as f64);
                let value = value.or_else(|| point.get("asDouble").and_then(Value::as_f64));
                let at_ns = whole(point, "timeUnixNano").and_then(|time| u64::try_from(time).ok()).unwrap_or(0);
                history.entry(series).or_default().push((at_ns, value.unwrap_or(0.0)));
            }
        }
    }
    histories
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::histories;

    #[test]
    fn a_series_is_read_in_the_order_it_was_told() {
        let request = |service: &str, value: &str| {
            serde_json::json!({"resourceMetrics": [{
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
                "scopeMetrics": [{"metrics": [
                    {"name": "sent", "sum": {"dataPoints": [{"attributes": [], "asInt": value, "timeUnixNano": "7"}]}},
                    {"name": "other", "sum": {"dataPoints": [{"attributes": [], "asInt": "99"}]}}]}]}]})
        };
        let mut read = histories(&[request("a", "1"), request("b", "10"), request("a", "3")], &["sent", "unsaid"]);
        assert!(read["unsaid"].is_empty());
        let points = read.remove("sent").unwrap();
        assert_eq!(points.into_values().collect::<Vec<_>>(), [vec![(7, 1.0), (7, 3.0)], vec![(7, 10.0)]]);
    }
}
