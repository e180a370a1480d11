use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, Sender, channel};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use prost::Message;

use super::*;
use crate::export::settings::{Destination, Endpoint, Protocol};
use crate::observe::Topic;
use crate::telemetry::{Joined, OperationName, Summary};
use crate::time::Timestamp;

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn remote(service: u8) -> ResourceKey {
    ResourceKey::Remote([10, 0, 0, service].into())
}

/// A `send` span of one message on `topic`, with ids of its own.
pub(crate) fn span_of(service: u8, topic: &str) -> FinishedSpan {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let (start, end) = (Timestamp::from_unix_ns(1_700_000_000_000_000_000), Timestamp::from_unix_ns(1_700_000_000_002_000_000));
    FinishedSpan {
        data: SpanData {
            span_context: SpanContext::new(
                TraceId::from(u128::from(number)),
                SpanId::from(number),
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Producer,
            name: format!("send {topic}").into(),
            start_time: start.to_system_time(),
            end_time: end.to_system_time(),
            attributes: vec![KeyValue::new("messaging.system", "kafka")],
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("kafka-tracer").build(),
        },
        resource: remote(service),
        summary: Summary {
            operation: OperationName::Send,
            topic: Topic { name: Some(topic.into()), id: None },
            partition: 0,
            single_record: true,
            messages: 1,
            offsets: Some((7, 7)),
            group: None,
            client_id: Some("producer-1".into()),
            start,
            end,
            end_to_end: None,
            error: None,
            retry: false,
            redelivered: false,
            joined: Joined::No,
        },
    }
}

/// One request as a Collector sees it.
struct Got {
    /// Counts the connections from 0.
    connection: usize,
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Got {
    fn plain_body(&self) -> Vec<u8> {
        if self.headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip") {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&*self.body).read_to_end(&mut plain).unwrap();
            return plain;
        }
        self.body.clone()
    }

    /// Service instance and span count of each resource in the request.
    fn spans(&self) -> Vec<(String, usize)> {
        let body = self.plain_body();
        let request = if self.headers.get("content-type").is_some_and(|kind| kind == "application/json") {
            serde_json::from_slice(&body).unwrap()
        } else {
            ExportTraceServiceRequest::decode(&*body).unwrap()
        };
        spans_of(&request)
    }
}

fn spans_of(request: &ExportTraceServiceRequest) -> Vec<(String, usize)> {
    let spans = request.resource_spans.iter().map(|resource| {
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        let instance = attributes.iter().find(|attribute| attribute.key == "service.instance.id").unwrap();
        let Some(opentelemetry_proto::tonic::common::v1::any_value::Value::StringValue(instance)) = &instance.value.as_ref().unwrap().value
        else {
            panic!("{instance:?} is not text")
        };
        (instance.clone(), resource.scope_spans.iter().map(|scope| scope.spans.len()).sum())
    });
    spans.collect()
}

/// Speaks enough HTTP/1.1 to be a Collector; answers with the statuses given, then with 200.
fn http_collector(listener: TcpListener, statuses: Vec<u16>) -> Receiver<Got> {
    let (sender, receiver) = channel();
    let statuses = Arc::new(Mutex::new(statuses.into_iter()));
    std::thread::spawn(move || {
        for (connection, stream) in listener.incoming().enumerate() {
            let (sender, statuses) = (sender.clone(), Arc::clone(&statuses));
            std::thread::spawn(move || serve(stream.unwrap(), connection, &sender, &mut || statuses.lock().unwrap().next().unwrap_or(200)));
        }
    });
    receiver
}

fn serve(stream: impl Read + Write, connection: usize, sender: &Sender<Got>, status: &mut dyn FnMut() -> u16) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let status = status();
        if status == 200 && sender.send(Got { connection, path, headers, body }).is_err() {
            return;
        }
        let _ = reader.get_mut().write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes());
        let _ = reader.get_mut().flush();
    }
}

/// A Collector's gRPC end over bare HTTP/2, in TLS if given.
fn grpc_collector(runtime: &Runtime, listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>) -> Receiver<Got> {
    let (sender, receiver) = channel();
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let (sender, tls) = (sender.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve_grpc(stream, connection, sender).await;
                        }
                    }
                    None => serve_grpc(stream, connection, sender).await,
                }
            });
        }
    });
    receiver
}

async fn serve_grpc(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, number: usize, sender: Sender<Got>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let sender = sender.clone();
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut bytes = Vec::new();
            while let Some(chunk) = body.data().await {
                let chunk = chunk.unwrap();
                body.flow_control().release_capacity(chunk.len()).unwrap();
                bytes.extend_from_slice(&chunk);
            }
            let mut headers: HashMap<String, String> =
                head.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
            // A message of gRPC: one byte "compressed", four of length.
            if bytes[0] == 1 {
                headers.insert("content-encoding".to_owned(), headers["grpc-encoding"].clone());
            }
            let _ = sender.send(Got { connection: number, path: head.uri.path().to_owned(), headers, body: bytes[5..].to_vec() });
            let response = opentelemetry_http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_data(opentelemetry_http::Bytes::from_static(&[0; 5]), false).unwrap();
            let mut trailers = reqwest::header::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        });
    }
}

/// An authority of its own, and a server that lets only clients in whom that authority vouches for.
struct Secure {
    folder: tempfile::TempDir,
    server: Arc<rustls::ServerConfig>,
}

impl Secure {
    fn new() -> Self {
        use rustls::pki_types::PrivateKeyDer;

        let folder = tempfile::tempdir().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let authority_certificate = authority.self_signed(&authority_key).unwrap();
        let by_authority = rcgen::Issuer::new(authority, authority_key);
        let issued = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &by_authority).unwrap();
            (certificate, key)
        };
        let (server, server_key) = issued("localhost");
        let (client, client_key) = issued("kafka-tracer");
        for (name, pem) in
            [("ca.pem", authority_certificate.pem()), ("client.pem", client.pem()), ("client.key", client_key.serialize_pem())]
        {
            std::fs::write(folder.path().join(name), pem).unwrap();
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority_certificate.der().clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
        let mut server =
            rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(vec![server.der().clone()], key).unwrap();
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { folder, server: Arc::new(server) }
    }

    /// Starts a Collector that speaks the protocol.
    fn collector(&self, runtime: &Runtime, protocol: Protocol) -> (SocketAddr, Receiver<Got>) {
        let (listener, address) = loopback();
        if protocol == Protocol::Grpc {
            return (address, grpc_collector(runtime, listener, Some(Arc::clone(&self.server).into())));
        }
        let (sender, receiver) = channel();
        let server = Arc::clone(&self.server);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (sender, server) = (sender.clone(), Arc::clone(&server));
                std::thread::spawn(move || {
                    let connection = rustls::ServerConnection::new(server).unwrap();
                    serve(rustls::StreamOwned::new(connection, stream.unwrap()), number, &sender, &mut || 200);
                });
            }
        });
        (address, receiver)
    }

    fn endpoint(&self, protocol: Protocol, address: SocketAddr) -> Endpoint {
        let file = |name: &str| self.folder.path().join(name);
        let plain = endpoint(protocol, address);
        let url = plain.url.replace("http://127.0.0.1", "https://localhost");
        Endpoint { url, certificate: Some(file("ca.pem")), identity: Some((file("client.pem"), file("client.key"))), ..plain }
    }
}

fn loopback() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn endpoint(protocol: Protocol, address: SocketAddr) -> Endpoint {
    let path = if protocol == Protocol::Grpc { "" } else { "/v1/traces" };
    Endpoint {
        protocol,
        url: format!("http://{address}{path}"),
        headers: vec![("x-tenant".to_owned(), "shop".to_owned())],
        gzip: false,
        timeout: Duration::from_secs(5),
        certificate: None,
        identity: None,
    }
}

fn settings(endpoint: Endpoint) -> Settings {
    let batching = Batching { delay: Duration::from_millis(20), max_batch_spans: 10, ..Batching::default() };
    Settings { traces: Destination { otlp: Some(endpoint), console: false }, batching, ..Settings::default() }
}

fn start(settings: &Settings) -> Otlp {
    Otlp::start(settings, Vec::new()).unwrap().unwrap()
}

fn counted(otlp: &Otlp, name: &str, result: &str) -> u64 {
    let mut health = HealthSnapshot::default();
    otlp.report(&mut health);
    let found = health.values.iter().find(|value| value.name == name && value.attributes == [("result", result.into())]);
    found.unwrap().value
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not come about within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Everything that arrived, summed by service.
fn all_spans(receiver: &Receiver<Got>) -> HashMap<String, usize> {
    let mut sums = HashMap::new();
    for (service, count) in receiver.try_iter().flat_map(|got| got.spans()) {
        *sums.entry(service).or_insert(0) += count;
    }
    sums
}

#[test]
fn each_service_has_requests_of_its_own_over_http() {
    for (protocol, content_type, gzip) in [
        (Protocol::HttpProtobuf, "application/x-protobuf", false),
        (Protocol::HttpProtobuf, "application/x-protobuf", true),
        (Protocol::HttpJson, "application/json", false),
        (Protocol::HttpJson, "application/json", true),
    ] {
        let (listener, address) = loopback();
        let receiver = http_collector(listener, Vec::new());
        let otlp = start(&settings(Endpoint { gzip, ..endpoint(protocol, address) }));
        for service in [1, 2, 1, 3, 1] {
            otlp.export(span_of(service, "orders"));
        }
        assert_eq!(otlp.shutdown(PATIENCE), Flushed { clean: true, unsent_spans: 0 });
        let mut services = HashMap::new();
        for got in receiver.try_iter() {
            assert_eq!((got.path.as_str(), got.headers["content-type"].as_str()), ("/v1/traces", content_type));
            assert_eq!(got.headers["x-tenant"], "shop");
            assert_eq!(got.headers.get("content-encoding").map(String::as_str), gzip.then_some("gzip"));
            assert!(got.headers["user-agent"].starts_with("kafka-tracer/"));
            let spans = got.spans();
            assert_eq!(spans.len(), 1, "one resource a request");
            services.extend(spans);
        }
        assert_eq!(
            services,
            HashMap::from([("10.0.0.1".to_owned(), 3), ("10.0.0.2".to_owned(), 1), ("10.0.0.3".to_owned(), 1)]),
            "{protocol}"
        );
    }
}

#[test]
fn grpc_carries_the_same_over_one_connection() {
    for gzip in [false, true] {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (listener, address) = loopback();
        let receiver = grpc_collector(&runtime, listener, None);
        let otlp = start(&settings(Endpoint { gzip, ..endpoint(Protocol::Grpc, address) }));
        for service in 1..=30 {
            otlp.export(span_of(service, "orders"));
        }
        assert_eq!(otlp.shutdown(PATIENCE), Flushed { clean: true, unsent_spans: 0 });
        let got: Vec<Got> = receiver.try_iter().collect();
        assert_eq!(got.len(), 30);
        for got in &got {
            assert_eq!(got.connection, 0, "thirty services share one connection");
            assert_eq!(got.path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
            assert_eq!(got.headers["x-tenant"], "shop");
            assert_eq!(got.headers.get("grpc-encoding").map(String::as_str), gzip.then_some("gzip"));
            assert_eq!(got.spans()[0].1, 1);
        }
        runtime.shutdown_background();
    }
}

#[test]
fn a_whole_batch_does_not_wait_for_the_delay() {
    let (listener, address) = loopback();
    let receiver = http_collector(listener, Vec::new());
    let mut settings = settings(endpoint(Protocol::HttpProtobuf, address));
    settings.batching.delay = Duration::from_hours(1);
    let otlp = start(&settings);
    for _ in 0..13 {
        otlp.export(span_of(1, "orders"));
    }
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap().spans(), [("10.0.0.1".to_owned(), 10)]);
    assert!(receiver.try_recv().is_err(), "three spans wait for company");
    assert!(otlp.shutdown(PATIENCE).clean);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap().spans(), [("10.0.0.1".to_owned(), 3)]);
}

#[test]
fn spans_outlast_a_collector_that_is_away() {
    // Bound and closed again: nobody listens there, for a while.
    let (listener, address) = loopback();
    drop(listener);
    let otlp = start(&settings(endpoint(Protocol::HttpProtobuf, address)));
    for number in 0..100 {
        otlp.export(span_of(number % 3, "orders"));
    }
    wait_for("a failed request", || counted(&otlp, metric::EXPORT_REQUESTS, "failed") > 0);
    let receiver = http_collector(TcpListener::bind(address).unwrap(), Vec::new());
    wait_for("delivery", || counted(&otlp, metric::EXPORT_SPANS, "sent") == 100);
    assert_eq!(otlp.shutdown(PATIENCE), Flushed { clean: true, unsent_spans: 0 });
    assert_eq!(
        all_spans(&receiver),
        HashMap::from([("10.0.0.0".to_owned(), 34), ("10.0.0.1".to_owned(), 33), ("10.0.0.2".to_owned(), 33)])
    );
}

#[test]
fn a_collector_that_stays_away_costs_what_does_not_fit_the_queue() {
    let (listener, address) = loopback();
    drop(listener);
    let mut settings = settings(endpoint(Protocol::Grpc, address));
    settings.batching.max_queue_spans = 40;
    let otlp = start(&settings);
    for _ in 0..200 {
        otlp.export(span_of(1, "orders"));
    }
    wait_for("a failed request", || counted(&otlp, metric::EXPORT_REQUESTS, "failed") > 0);
    assert!(otlp.waiting() <= 40);
    let dropped = counted(&otlp, metric::EXPORT_SPANS, "queue_full");
    // What is on its way is not in the queue: up to one batch for each request in flight.
    assert!((200 - 40 - 10 * 8..=160).contains(&dropped), "{dropped} dropped");
    let flushed = otlp.shutdown(PATIENCE);
    assert!(!flushed.clean);
    assert!((1..=40).contains(&flushed.unsent_spans), "{flushed:?}");
}

#[test]
fn answers_that_ask_to_come_back_are_obeyed_and_refusals_are_counted() {
    let (listener, address) = loopback();
    // The exporter itself tries four times; only then is the batch put back.
    let receiver = http_collector(listener, vec![503, 503, 503, 503, 429]);
    let otlp = start(&settings(endpoint(Protocol::HttpProtobuf, address)));
    otlp.export(span_of(1, "orders"));
    wait_for("delivery", || counted(&otlp, metric::EXPORT_SPANS, "sent") == 1);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap().spans(), [("10.0.0.1".to_owned(), 1)]);
    assert!(otlp.shutdown(PATIENCE).clean);

    let (listener, address) = loopback();
    let _receiver = http_collector(listener, vec![401]);
    let otlp = start(&settings(endpoint(Protocol::HttpProtobuf, address)));
    otlp.export(span_of(1, "orders"));
    wait_for("refusal", || counted(&otlp, metric::EXPORT_SPANS, "refused") == 1);
    assert_eq!(otlp.shutdown(PATIENCE), Flushed { clean: true, unsent_spans: 0 });
}

#[test]
fn a_collector_that_never_answers_cannot_hold_up_the_shutdown() {
    let (listener, address) = loopback();
    let otlp = start(&settings(endpoint(Protocol::HttpProtobuf, address)));
    otlp.export(span_of(1, "orders"));
    let begun = Instant::now();
    assert_eq!(otlp.shutdown(Duration::from_millis(200)), Flushed { clean: false, unsent_spans: 1 });
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    drop(listener);
}

#[test]
fn failures_are_told_apart_by_the_exporters_words() {
    for (text, expected) in [
        ("HTTP export failed: network error", Failure::Away),
        ("HTTP export failed with status code: 503", Failure::Away),
        ("HTTP export failed with status code: 429", Failure::Away),
        ("HTTP export failed with status code: 404", Failure::Refused),
        (
            "TonicTracesClient export failed with gRPC code: Unavailable: tcp connect error: Connection refused (os error 111)",
            Failure::Away,
        ),
        ("TonicTracesClient export failed with gRPC code: Unauthenticated", Failure::Refused),
        ("OTLP HTTP uncompressed request body is 70000000 bytes, exceeding the configured limit", Failure::Refused),
    ] {
        assert_eq!(failure(&OTelSdkError::InternalFailure(text.to_owned())), expected, "{text}");
    }
}

#[test]
fn nothing_is_started_when_nothing_goes_by_otlp() {
    assert!(Otlp::start(&Settings::default(), Vec::new()).unwrap().is_none());
}

#[test]
fn a_certificate_that_cannot_be_read_is_an_error_at_the_start() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let mut endpoint = endpoint(protocol, ([127, 0, 0, 1], 1).into());
        endpoint.url = endpoint.url.replace("http:", "https:");
        endpoint.certificate = Some("/does/not/exist.pem".into());
        let error = Otlp::start(&settings(endpoint), Vec::new()).unwrap_err().to_string();
        assert!(error.contains("/does/not/exist.pem"), "{error}");
    }
}

#[test]
fn certificates_secure_the_connection_both_ways() {
    let secure = Secure::new();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let (address, receiver) = secure.collector(&runtime, protocol);
        let otlp = start(&settings(secure.endpoint(protocol, address)));
        otlp.export(span_of(1, "orders"));
        assert_eq!(otlp.shutdown(PATIENCE), Flushed { clean: true, unsent_spans: 0 }, "{protocol}");
        assert_eq!(receiver.recv_timeout(PATIENCE).unwrap().spans(), [("10.0.0.1".to_owned(), 1)], "{protocol}");

        // A client that nobody vouches for is not let in, and a server that nobody vouches for gets nothing.
        let nameless = Endpoint { identity: None, ..secure.endpoint(protocol, address) };
        let doubtful = Endpoint { certificate: None, ..secure.endpoint(protocol, address) };
        for endpoint in [nameless, doubtful] {
            let otlp = start(&settings(endpoint));
            otlp.export(span_of(1, "orders"));
            wait_for("a failed request", || counted(&otlp, metric::EXPORT_REQUESTS, "failed") > 0);
            assert_eq!(otlp.shutdown(Duration::from_millis(300)).unsent_spans, 1, "{protocol}");
            assert!(receiver.try_recv().is_err(), "{protocol}");
        }
    }
    runtime.shutdown_background();
}

/// A meter of the tracer's own, read when asked.
#[derive(Debug)]
struct Own(Mutex<crate::telemetry::metrics::HealthMeter>);

impl MetricSource for Own {
    fn collect(&self, each: &mut dyn FnMut(&ResourceMetrics)) {
        let mut metrics = ResourceMetrics::default();
        self.0.lock().unwrap().collect(&mut metrics).unwrap();
        each(&metrics);
    }
}

fn own_meter(service: &'static str, value: u64) -> Box<dyn MetricSource> {
    let resource = opentelemetry_sdk::Resource::builder_empty().with_service_name(service).build();
    let mut meter = crate::telemetry::metrics::HealthMeter::new(resource, &crate::telemetry::metrics::MetricSettings::default());
    let mut health = HealthSnapshot::default();
    health.add_by(metric::EXPORT_SPANS, "result", "sent", value);
    meter.publish(health);
    Box::new(Own(Mutex::new(meter)))
}

#[test]
fn metrics_of_all_meters_go_out_at_each_interval_and_at_the_end() {
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point::Value};

    /// The service and the sum that a request holds.
    fn sum(got: &Got) -> (String, i64) {
        assert_eq!((got.path.as_str(), got.headers["x-tenant"].as_str()), ("/v1/metrics", "shop"));
        let request = ExportMetricsServiceRequest::decode(&*got.plain_body()).unwrap();
        let [resource] = &request.resource_metrics[..] else { panic!("one resource a request: {request:?}") };
        let service = format!("{:?}", resource.resource.as_ref().unwrap().attributes[0].value);
        let Some(Data::Sum(sum)) = &resource.scope_metrics[0].metrics[0].data else { panic!("{resource:?}") };
        let Some(Value::AsInt(value)) = sum.data_points[0].value else { panic!("{sum:?}") };
        (service, value)
    }

    let (listener, address) = loopback();
    let receiver = http_collector(listener, Vec::new());
    let endpoint = Endpoint { url: format!("http://{address}/v1/metrics"), gzip: true, ..endpoint(Protocol::HttpProtobuf, address) };
    let collection = Collection { interval: Duration::from_millis(30), ..Collection::default() };
    let settings = Settings { metrics: Destination { otlp: Some(endpoint), console: false }, collection, ..Settings::default() };
    let otlp = Otlp::start(&settings, vec![own_meter("one", 1), own_meter("two", 2)]).unwrap().unwrap();
    wait_for("two rounds", || counted(&otlp, metric::EXPORT_METRICS, "sent") >= 4);
    assert!(otlp.shutdown(PATIENCE).clean);
    let sums: Vec<(String, i64)> = receiver.try_iter().map(|got| sum(&got)).collect();
    assert!(sums.len() >= 6 && sums.len().is_multiple_of(2), "two services each round, the last at the end: {sums:?}");
    for pair in sums.chunks(2) {
        assert!(pair[0].0.contains("one") && pair[0].1 == 1 && pair[1].0.contains("two") && pair[1].1 == 2, "{pair:?}");
    }
}

#[test]
fn both_signals_share_a_connection_to_one_place() {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (listener, address) = loopback();
    let receiver = grpc_collector(&runtime, listener, None);
    let to = |endpoint| Destination { otlp: Some(endpoint), console: false };
    let both = Settings { metrics: to(endpoint(Protocol::Grpc, address)), ..settings(endpoint(Protocol::Grpc, address)) };
    let otlp = Otlp::start(&both, vec![own_meter("one", 1)]).unwrap().unwrap();
    otlp.export(span_of(1, "orders"));
    assert!(otlp.shutdown(PATIENCE).clean);
    let mut seen: Vec<(usize, String)> = receiver.try_iter().map(|got| (got.connection, got.path)).collect();
    seen.sort();
    let service = |signal: &str, name: &str| format!("/opentelemetry.proto.collector.{signal}.v1.{name}Service/Export");
    assert_eq!(seen, [(0, service("metrics", "Metrics")), (0, service("trace", "Trace"))]);
    runtime.shutdown_background();
}
