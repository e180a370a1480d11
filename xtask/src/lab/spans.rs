//! Spans read back from OTLP/JSON, in a shape that tests can ask.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

/// A span's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Neither said to be good nor bad.
    Unset,
    /// Said to be good.
    Ok,
    /// Said to be bad.
    Error,
}

/// A span as the Collector wrote it.
#[derive(Clone, Debug)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// The parent's span id, if there is one.
    pub parent_span_id: Option<String>,
    /// Its name.
    pub name: String,
    /// OTLP's number for the kind: 3 is CLIENT, 4 PRODUCER, 5 CONSUMER.
    pub kind: u64,
    /// Nanoseconds since 1970.
    pub start_ns: u64,
    /// Nanoseconds since 1970.
    pub end_ns: u64,
    /// Its status.
    pub status: Status,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Value>,
    /// Trace and span ids of its links.
    pub links: Vec<(String, String)>,
    /// Attributes of the resource it belongs to.
    pub resource: BTreeMap<String, Value>,
}

impl Span {
    /// A string attribute.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).and_then(Value::as_str)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attributes.get(name).and_then(Value::as_i64)
    }

    /// A floating-point attribute.
    pub fn float(&self, name: &str) -> Option<f64> {
        self.attributes.get(name).and_then(Value::as_f64)
    }

    /// A boolean attribute that is there and true.
    pub fn is(&self, name: &str) -> bool {
        self.attributes.get(name).and_then(Value::as_bool) == Some(true)
    }

    /// The operation: `send`, `fetch` or `commit`.
    pub fn operation(&self) -> Option<&str> {
        self.text("messaging.operation.name")
    }

    /// The topic.
    pub fn topic(&self) -> Option<&str> {
        self.text("messaging.destination.name")
    }

    /// The partition.
    pub fn partition(&self) -> Option<i32> {
        self.text("messaging.destination.partition.id").and_then(|text| text.parse().ok())
    }

    /// How many messages it accounts for: a batch span says so, a record span is one.
    pub fn messages(&self) -> i64 {
        self.int("messaging.batch.message_count").unwrap_or(1)
    }
}

/// All spans of some `TracesData`.
pub(super) fn parse(requests: &[Value]) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for resource_spans in requests.iter().flat_map(|request| list(request, "resourceSpans")) {
        let resource = attributes(resource_spans.get("resource").unwrap_or(&Value::Null))?;
        for span in list(resource_spans, "scopeSpans").iter().flat_map(|scope| list(scope, "spans")) {
            spans.push(one(span, &resource).with_context(|| format!("in span {span}"))?);
        }
    }
    Ok(spans)
}

fn one(span: &Value, resource: &BTreeMap<String, Value>) -> Result<Span> {
    let text = |name: &str| span.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let links = list(span, "links").iter().map(|link| {
        let id = |name: &str| link.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        (id("traceId"), id("spanId"))
    });
    Ok(Span {
        trace_id: text("traceId"),
        span_id: text("spanId"),
        parent_span_id: Some(text("parentSpanId")).filter(|id| !id.is_empty()),
        name: text("name"),
        kind: span.get("kind").and_then(Value::as_u64).unwrap_or(0),
        start_ns: text("startTimeUnixNano").parse().context("startTimeUnixNano")?,
        end_ns: text("endTimeUnixNano").parse().context("endTimeUnixNano")?,
        status: match span.get("status").and_then(|status| status.get("code")).and_then(Value::as_u64) {
            Some(1) => Status::Ok,
            Some(2) => Status::Error,
            _ => Status::Unset,
        },
        attributes: attributes(span)?,
        links: links.collect(),
        resource: resource.clone(),
    })
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn attributes(owner: &Value) -> Result<BTreeMap<String, Value>> {
    let pair = |attribute: &Value| {
        let key = attribute.get("key").and_then(Value::as_str).context("an attribute without a key")?;
        let value = attribute.get("value").context("an attribute without a value")?;
        Ok((key.to_owned(), plain(value)))
    };
    list(owner, "attributes").iter().map(pair).collect()
}

/// OTLP's tagged value without its tag; integers come as strings there.
fn plain(value: &Value) -> Value {
    let Some((kind, inner)) = value.as_object().and_then(|object| object.iter().next()) else { return Value::Null };
    match (kind.as_str(), inner) {
        ("intValue", Value::String(digits)) => digits.parse::<i64>().map_or(Value::Null, Value::from),
        ("arrayValue", array) => list(array, "values").iter().map(plain).collect(),
        (_, inner) => inner.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Status, parse};

    #[test]
    fn a_span_is_read_back_with_its_resource() {
        let request = serde_json::json!({"resourceSpans": [{
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
            "scopeSpans": [{"spans": [{
                "traceId": "586b9a0e9ce789ab5c72d5f0b0ff4010", "spanId": "eb4496bea25c15ec", "parentSpanId": "", "name": "send orders",
                "kind": 4, "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000000000000500",
                "attributes": [
                    {"key": "messaging.operation.name", "value": {"stringValue": "send"}},
                    {"key": "messaging.destination.partition.id", "value": {"stringValue": "3"}},
                    {"key": "messaging.batch.message_count", "value": {"intValue": "5"}},
                    {"key": "kafka_tracer.retry", "value": {"boolValue": true}}],
                "links": [{"traceId": "aa", "spanId": "bb"}], "status": {"code": 2}}]}]}]});
        let spans = parse(&[request]).unwrap();
        assert_eq!(spans.len(), 1);
        let span = &spans[0];
        assert_eq!((span.operation(), span.partition(), span.messages()), (Some("send"), Some(3), 5));
        assert_eq!((span.parent_span_id.as_deref(), span.status, span.is("kafka_tracer.retry")), (None, Status::Error, true));
        assert_eq!(span.end_ns - span.start_ns, 500);
        assert_eq!(span.links, [("aa".to_owned(), "bb".to_owned())]);
        assert_eq!(span.resource["service.name"], "shop");
    }
}
