//! The smallest receiver of OTLP: HTTP with JSON bodies, traces kept in memory. For the demo, which should not need Go.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Span, spans};

/// More than the daemon ever puts into one request.
const MAX_BODY_BYTES: usize = 64 << 20;

/// A listening receiver; it ends with the process.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// If the kernel has no port to give.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
        let address = listener.local_addr()?;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let kept = Arc::clone(&kept);
                thread::spawn(move || serve(stream, &kept));
            }
        });
        Ok(Self { address, requests })
    }

    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`; the protocol is `http/json`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans received so far.
    ///
    /// # Errors
    /// If something else than OTLP/JSON was received.
    pub fn spans(&self) -> Result<Vec<Span>> {
        spans::parse(&self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Answers the requests of one connection until it ends or makes no sense.
fn serve(stream: TcpStream, kept: &Mutex<Vec<Value>>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let mut answers = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    loop {
        let mut request_line = String::new();
        if input.read_line(&mut request_line)? == 0 {
            return Ok(());
        }
        let body = body(&mut input)?;
        if request_line.contains(" /v1/traces ") {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(serde_json::from_slice(&body).context("a body is not JSON")?);
        }
        answers.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")?;
    }
}

fn body(input: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut size = 0;
    loop {
        let mut header = String::new();
        input.read_line(&mut header)?;
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            size = value.trim().parse().context("Content-Length")?;
        }
    }
    if size > MAX_BODY_BYTES {
        bail!("a body of {size} bytes");
    }
    let mut body = vec![0; size];
    input.read_exact(&mut body)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::Receiver;

    #[test]
    fn two_requests_on_one_connection_are_kept() {
        let receiver = Receiver::start().unwrap();
        let mut stream = TcpStream::connect(receiver.address).unwrap();
        let body =
            r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"send orders","startTimeUnixNano":"1","endTimeUnixNano":"2"}]}]}]}"#;
        for _ in 0..2 {
            write!(stream, "POST /v1/traces HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            let mut rest = [0; 2048];
            assert!(stream.read(&mut rest).unwrap() > 0);
        }
        assert_eq!(receiver.spans().unwrap().len(), 2);
    }
}
