//! The Kafka requests that the lab itself makes: "are you there", "make this topic", "drop it".
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const API_VERSIONS: i16 = 18;
const CREATE_TOPICS: i16 = 19;
const DELETE_TOPICS: i16 = 20;
const TOPIC_ALREADY_EXISTS: i16 = 36;
/// An answer larger than this is not one to our requests.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Asks for the broker's API versions; fails while it is not up.
pub(super) fn api_versions(port: u16) -> Result<()> {
    exchange(port, API_VERSIONS, 0, &[]).map(drop)
}

/// Creates a topic with its defaults and the given settings; one that exists is an error.
pub(super) fn create_topic(port: u16, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
    // CreateTopics v2, the oldest that Kafka 4 knows: [name partitions replicas [assignments] [settings]] timeout validate_only
    let mut body = Vec::new();
    body.extend(1_i32.to_be_bytes());
    string(&mut body, topic)?;
    body.extend(partitions.to_be_bytes());
    body.extend(1_i16.to_be_bytes());
    body.extend(0_i32.to_be_bytes());
    body.extend(i32::try_from(settings.len())?.to_be_bytes());
    for (name, value) in settings {
        string(&mut body, name)?;
        string(&mut body, value)?;
    }
    body.extend(10_000_i32.to_be_bytes());
    body.push(0);
    let answer = exchange(port, CREATE_TOPICS, 2, &body)?;
    // throttle_time_ms, count, name, error_code
    let at = 4 + 4 + 2 + topic.len();
    let error_code = answer.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map(i16::from_be_bytes);
    match error_code {
        Some(0) => Ok(()),
        Some(TOPIC_ALREADY_EXISTS) => bail!("topic {topic} exists already"),
        other => bail!("the broker refused topic {topic} with error {other:?}"),
    }
}

/// Deletes a topic; its files go a little later.
pub(super) fn delete_topic(port: u16, topic: &str) -> Result<()> {
    // DeleteTopics v1: [name] timeout; answered by throttle_time_ms [name error_code]
    let mut body = Vec::new();
    body.extend(1_i32.to_be_bytes());
    string(&mut body, topic)?;
    body.extend(10_000_i32.to_be_bytes());
    let answer = exchange(port, DELETE_TOPICS, 1, &body)?;
    match answer.last_chunk::<2>().copied().map(i16::from_be_bytes) {
        Some(0) => Ok(()),
        other => bail!("the broker refused to delete {topic} with error {other:?}"),
    }
}

fn exchange(port: u16, api_key: i16, api_version: i16, body: &[u8]) -> Result<Vec<u8>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).context("no connection to the broker")?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    let mut request = Vec::new();
    request.extend(api_key.to_be_bytes());
    request.extend(api_version.to_be_bytes());
    request.extend(7_i32.to_be_bytes());
    string(&mut request, "kafka-tracer-lab")?;
    request.extend_from_slice(body);
    stream.write_all(&i32::try_from(request.len())?.to_be_bytes())?;
    stream.write_all(&request)?;
    let mut size = [0; 4];
    stream.read_exact(&mut size).context("the broker closed the connection")?;
    let size = usize::try_from(i32::from_be_bytes(size)).unwrap_or(usize::MAX);
    if !(4..=MAX_ANSWER_BYTES).contains(&size) {
        bail!("the broker announced an answer of {size} bytes");
    }
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer)?;
    Ok(answer.split_off(4))
}

fn string(to: &mut Vec<u8>, text: &str) -> Result<()> {
    to.extend(i16::try_from(text.len())?.to_be_bytes());
    to.extend_from_slice(text.as_bytes());
    Ok(())
}
