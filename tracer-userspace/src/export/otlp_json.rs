//! Spans as lines of OTLP/JSON, each a `TracesData` of one resource: the Collector's file format.
//!
//! In: [`FinishedSpan`]s. Out: lines. The same spans in the same order give the same bytes.

#![forbid(unsafe_code)]

use std::io::{self, Write};

use hashlink::LinkedHashMap;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::trace::SpanData;

use crate::telemetry::{FinishedSpan, ResourceKey};

/// Most spans that wait for company.
const MAX_SPANS: usize = 512;

/// Writes spans as lines of OTLP/JSON.
#[derive(Debug)]
pub struct OtlpJson<W> {
    out: W,
    waiting: LinkedHashMap<ResourceKey, Vec<SpanData>>,
    spans: usize,
}

impl<W: Write> OtlpJson<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, waiting: LinkedHashMap::new(), spans: 0 }
    }

    /// Takes a span; writes the lines of all that wait once they are many.
    ///
    /// # Errors
    /// When writing fails.
    pub fn export(&mut self, span: FinishedSpan) -> io::Result<()> {
        match self.waiting.get_mut(&span.resource) {
            Some(spans) => spans.push(span.data),
            None => drop(self.waiting.insert(span.resource, vec![span.data])),
        }
        self.spans += 1;
        if self.spans >= MAX_SPANS { self.flush() } else { Ok(()) }
    }

    /// Writes what waits, and gives the writer back.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush()?;
        Ok(self.out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.spans = 0;
        for (resource, spans) in std::mem::take(&mut self.waiting) {
            let mut resource = ResourceAttributesWithSchema::from(&resource.to_resource());
            // The SDK keeps them in an order that differs from run to run.
            resource.attributes.0.sort_by(|a, b| a.key.cmp(&b.key));
            let request = TracesData { resource_spans: group_spans_by_resource_and_scope(spans, &resource) };
            serde_json::to_writer(&mut self.out, &request)?;
            self.out.write_all(b"\n")?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry::trace::{SpanContext, SpanId, Status, TraceFlags, TraceId, TraceState};
    use serde_json::{Value, json};

    use super::super::otlp::tests::span_of;
    use super::*;
    use crate::observe::{Process, ResourceValue};

    fn written(spans: &[FinishedSpan]) -> String {
        let mut exporter = OtlpJson::new(Vec::new());
        for span in spans {
            exporter.export(span.clone()).unwrap();
        }
        String::from_utf8(exporter.finish().unwrap()).unwrap()
    }

    #[test]
    fn a_line_is_a_request_as_the_specification_maps_it_to_json() {
        let mut span = span_of(1, "orders");
        span.data.span_context = SpanContext::new(
            TraceId::from(0x586b_9a0e_9ce7_89ab_5c72_d5f0_b0ff_4010),
            SpanId::from(0xeb44_96be_a25c_15ec),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        );
        span.data.status = Status::error("");
        span.resource = ResourceKey::Process(Arc::new(Process {
            pid: 7,
            resource: vec![
                ("service.name".into(), ResourceValue::Text("checkout".into())),
                ("process.pid".into(), ResourceValue::Integer(7)),
            ],
        }));
        let text = written(&[span]);
        let line: Value = serde_json::from_str(text.strip_suffix('\n').unwrap()).unwrap();
        let resource = &line["resourceSpans"][0];
        assert_eq!(
            resource["resource"]["attributes"],
            json!([{"key": "process.pid", "value": {"intValue": "7"}}, {"key": "service.name", "value": {"stringValue": "checkout"}}])
        );
        assert_eq!(resource["scopeSpans"][0]["scope"]["name"], "kafka-tracer");
        let span = &resource["scopeSpans"][0]["spans"][0];
        assert_eq!(span["traceId"], "586b9a0e9ce789ab5c72d5f0b0ff4010");
        assert_eq!(span["spanId"], "eb4496bea25c15ec");
        assert_eq!((&span["name"], &span["kind"]), (&json!("send orders"), &json!(4)));
        assert_eq!((&span["startTimeUnixNano"], &span["endTimeUnixNano"]), (&json!("1700000000000000000"), &json!("1700000000002000000")));
        assert_eq!(span["status"]["code"], 2);
    }

    #[test]
    fn each_line_holds_one_service_in_the_order_of_their_first_spans() {
        let spans: Vec<FinishedSpan> = [2, 1, 2, 3].map(|service| span_of(service, "orders")).into();
        let text = written(&spans);
        let instances: Vec<(String, usize)> = text
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                let resource = &line["resourceSpans"][0];
                let attributes = resource["resource"]["attributes"].as_array().unwrap();
                let instance = attributes.iter().find(|attribute| attribute["key"] == "service.instance.id").unwrap();
                (
                    instance["value"]["stringValue"].as_str().unwrap().to_owned(),
                    resource["scopeSpans"][0]["spans"].as_array().unwrap().len(),
                )
            })
            .collect();
        assert_eq!(instances, [("10.0.0.2".to_owned(), 2), ("10.0.0.1".to_owned(), 1), ("10.0.0.3".to_owned(), 1)]);
        for _ in 0..20 {
            assert_eq!(written(&spans), text, "the same spans give the same bytes");
        }
    }

    #[test]
    fn few_spans_wait_at_a_time() {
        let mut exporter = OtlpJson::new(Vec::new());
        for _ in 0..=2 * MAX_SPANS {
            exporter.export(span_of(1, "orders")).unwrap();
        }
        assert_eq!(exporter.spans, 1);
        assert_eq!(String::from_utf8(exporter.finish().unwrap()).unwrap().lines().count(), 3);
    }
}
