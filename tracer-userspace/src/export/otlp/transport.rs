//! The one connection that all services share: a gRPC channel or an HTTP client, with TLS over ring.
//!
//! In: [`Endpoint`]. Out: exporters of `opentelemetry-otlp`, each for one resource, all over the same transport.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    Compression, ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::metrics::Temporality;
use tonic::metadata::{MetadataKey, MetadataMap};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use super::super::settings::{Endpoint, Protocol};

/// Most time for a connection to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is silent for this long is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What keeps a transport from being made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A certificate or key cannot be read.
    #[error("cannot read {}, which is to secure the OTLP connection: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate or key is not what it should be, or TLS cannot be set up.
    #[error("cannot set up TLS for the OTLP endpoint {endpoint}: {reason}")]
    Tls {
        /// The endpoint.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The endpoint cannot be used.
    #[error("cannot use the OTLP endpoint {endpoint}: {reason}")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The exporter's crate refuses.
    #[error("cannot make an OTLP exporter: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// The sending threads cannot be started.
    #[error("cannot start the exporting runtime: {0}")]
    Runtime(#[source] std::io::Error),
}

#[derive(Clone, Debug)]
enum Wire {
    Grpc(Channel),
    Http(Client),
}

/// A transport to one endpoint.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    endpoint: Endpoint,
    wire: Wire,
}

impl Transport {
    /// Connects nothing yet; needs to be called within a runtime.
    pub(super) fn new(endpoint: Endpoint) -> Result<Self, TransportError> {
        // Fails only when there is a provider already, which then is this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wire = if endpoint.protocol == Protocol::Grpc { Wire::Grpc(channel(&endpoint)?) } else { Wire::Http(Client::new(&endpoint)?) };
        Ok(Self { endpoint, wire })
    }

    /// The same connection for another signal where that goes to the same place, else a new one.
    pub(super) fn shared_or_new(&self, endpoint: Endpoint) -> Result<Self, TransportError> {
        let same_security = self.endpoint.certificate == endpoint.certificate && self.endpoint.identity == endpoint.identity;
        let same_place = match (self.endpoint.protocol, endpoint.protocol) {
            (Protocol::Grpc, Protocol::Grpc) => self.endpoint.url == endpoint.url,
            (Protocol::Grpc, _) | (_, Protocol::Grpc) => false,
            // The client keeps a pool of connections by host; the path goes with the request.
            _ => true,
        };
        if same_security && same_place && self.endpoint.timeout == endpoint.timeout {
            return Ok(Self { endpoint, wire: self.wire.clone() });
        }
        Self::new(endpoint)
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Why the last HTTP request failed below HTTP, which the exporter's own error leaves out.
    pub(super) fn take_cause(&self) -> Option<String> {
        match &self.wire {
            Wire::Grpc(_) => None,
            Wire::Http(client) => client.cause.lock().unwrap_or_else(PoisonError::into_inner).take(),
        }
    }

    pub(super) fn span_exporter(&self) -> Result<SpanExporter, ExporterBuildError> {
        let endpoint = &self.endpoint;
        match &self.wire {
            Wire::Grpc(channel) => {
                let mut builder = SpanExporter::builder()
                    .with_tonic()
                    .with_channel(channel.clone())
                    .with_timeout(endpoint.timeout)
                    .with_metadata(metadata(endpoint));
                if endpoint.gzip {
                    builder = builder.with_compression(Compression::Gzip);
                }
                builder.build()
            }
            Wire::Http(client) => {
                let mut builder = SpanExporter::builder()
                    .with_http()
                    .with_http_client(client.clone())
                    .with_endpoint(&endpoint.url)
                    .with_protocol(http_protocol(endpoint))
                    .with_timeout(endpoint.timeout)
                    .with_headers(headers(endpoint));
                if endpoint.gzip {
                    builder = builder.with_compression(Compression::Gzip);
                }
                builder.build()
            }
        }
    }

    pub(super) fn metric_exporter(&self, temporality: Temporality) -> Result<MetricExporter, ExporterBuildError> {
        let endpoint = &self.endpoint;
        let builder = MetricExporter::builder().with_temporality(temporality);
        match &self.wire {
            Wire::Grpc(channel) => {
                let mut builder =
                    builder.with_tonic().with_channel(channel.clone()).with_timeout(endpoint.timeout).with_metadata(metadata(endpoint));
                if endpoint.gzip {
                    builder = builder.with_compression(Compression::Gzip);
                }
                builder.build()
            }
            Wire::Http(client) => {
                let mut builder = builder
                    .with_http()
                    .with_http_client(client.clone())
                    .with_endpoint(&endpoint.url)
                    .with_protocol(http_protocol(endpoint))
                    .with_timeout(endpoint.timeout)
                    .with_headers(headers(endpoint));
                if endpoint.gzip {
                    builder = builder.with_compression(Compression::Gzip);
                }
                builder.build()
            }
        }
    }
}

const fn http_protocol(endpoint: &Endpoint) -> opentelemetry_otlp::Protocol {
    match endpoint.protocol {
        Protocol::HttpJson => opentelemetry_otlp::Protocol::HttpJson,
        Protocol::HttpProtobuf | Protocol::Grpc => opentelemetry_otlp::Protocol::HttpBinary,
    }
}

fn headers(endpoint: &Endpoint) -> HashMap<String, String> {
    // Spelled as the exporter spells its own, which it replaces.
    let mut headers = HashMap::from([("User-Agent".to_owned(), USER_AGENT.to_owned())]);
    for (name, value) in &endpoint.headers {
        let name = if name == "user-agent" { "User-Agent" } else { name };
        headers.insert(name.to_owned(), value.clone());
    }
    headers
}

const USER_AGENT: &str = concat!("kafka-tracer/", env!("CARGO_PKG_VERSION"));

fn metadata(endpoint: &Endpoint) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, value) in &endpoint.headers {
        if let (Ok(name), Ok(value)) = (MetadataKey::from_bytes(name.as_bytes()), value.parse()) {
            metadata.insert(name, value);
        }
    }
    metadata
}

fn channel(endpoint: &Endpoint) -> Result<Channel, TransportError> {
    let refused = |error: &tonic::transport::Error| TransportError::Endpoint { endpoint: endpoint.to_string(), reason: chain(error) };
    let mut to = tonic::transport::Endpoint::from_shared(endpoint.url.clone())
        .and_then(|to| to.user_agent(USER_AGENT))
        .map_err(|error| refused(&error))?
        .timeout(endpoint.timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(endpoint.timeout))
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(endpoint.timeout);
    if endpoint.url.starts_with("https:") {
        let mut tls = match &endpoint.certificate {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &endpoint.identity {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        to = to.tls_config(tls).map_err(|error| TransportError::Tls { endpoint: endpoint.to_string(), reason: chain(&error) })?;
    }
    Ok(to.connect_lazy())
}

/// An HTTP client that remembers why it failed.
#[derive(Clone, Debug)]
struct Client {
    inner: reqwest::Client,
    cause: Arc<Mutex<Option<String>>>,
}

impl Client {
    fn new(endpoint: &Endpoint) -> Result<Self, TransportError> {
        let failed = |error: &reqwest::Error| TransportError::Tls { endpoint: endpoint.to_string(), reason: chain(error) };
        let mut builder = reqwest::Client::builder().timeout(endpoint.timeout).connect_timeout(CONNECT_TIMEOUT.min(endpoint.timeout));
        if let Some(path) = &endpoint.certificate {
            let authorities = reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(|error| failed(&error))?;
            builder = builder.tls_certs_only(authorities);
        }
        if let Some((certificate, key)) = &endpoint.identity {
            let mut pem = read(certificate)?;
            pem.push(b'\n');
            pem.extend_from_slice(&read(key)?);
            builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(|error| failed(&error))?);
        }
        let inner = builder.build().map_err(|error| failed(&error))?;
        Ok(Self { inner, cause: Arc::default() })
    }
}

impl HttpClient for Client {
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let result = self.inner.send_bytes(request).await;
            if let Err(error) = &result {
                *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain(&**error));
            }
            result
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TransportError> {
    fs::read(path).map_err(|source| TransportError::File { path: path.to_owned(), source })
}

/// An error and what it stems from, without repeating what is said already.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = source.source();
    }
    text
}
