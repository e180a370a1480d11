//! The Kafka requests that the lab itself makes: "are you there", "make this topic", "drop it", "who leads".
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const METADATA: i16 = 3;
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
pub(super) fn create_topic(port: u16, topic: &str, partitions: i32, replicas: i16, settings: &[(&str, &str)]) -> Result<()> {
    // CreateTopics v2, the oldest that Kafka 4 knows: [name partitions replicas [assignments] [settings]] timeout validate_only
    let mut body = Vec::new();
    body.extend(1_i32.to_be_bytes());
    string(&mut body, topic)?;
    body.extend(partitions.to_be_bytes());
    body.extend(replicas.to_be_bytes());
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

/// A partition as a broker describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) topic: String,
    pub(super) index: i32,
    pub(super) error_code: i16,
    /// -1 while there is none.
    pub(super) leader: i32,
    /// How many replicas it has.
    pub(super) replicas: usize,
    /// How many of them are in sync.
    pub(super) in_sync: usize,
}

/// All partitions of all topics, as this broker knows them.
pub(super) fn partitions(port: u16) -> Result<Vec<Partition>> {
    // Metadata v1: null for all topics; answered by [node host port rack] controller
    // [error name internal [error partition leader [replica] [in sync]]].
    read_partitions(&exchange(port, METADATA, 1, &(-1_i32).to_be_bytes())?)
}

fn read_partitions(answer: &[u8]) -> Result<Vec<Partition>> {
    let mut left = Answer(answer);
    let mut found = Vec::new();
    for _ in 0..left.int()? {
        left.int()?;
        left.string()?;
        left.int()?;
        left.string()?;
    }
    left.int()?;
    for _ in 0..left.int()? {
        left.short()?;
        let topic = left.string()?;
        left.take::<1>()?;
        for _ in 0..left.int()? {
            let (error_code, index, leader) = (left.short()?, left.int()?, left.int()?);
            let (replicas, in_sync) = (left.ints()?, left.ints()?);
            found.push(Partition { topic: topic.clone(), index, error_code, leader, replicas, in_sync });
        }
    }
    Ok(found)
}

/// What is left to read of an answer.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().context("the broker's answer ends early")?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn short(&mut self) -> Result<i16> {
        Ok(i16::from_be_bytes(self.take()?))
    }

    fn int(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.take()?))
    }

    /// Null is empty.
    fn string(&mut self) -> Result<String> {
        let size = usize::try_from(self.short()?).unwrap_or(0);
        let (text, rest) = self.0.split_at_checked(size).context("the broker's answer ends early")?;
        self.0 = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// How many integers an array holds.
    fn ints(&mut self) -> Result<usize> {
        let count = usize::try_from(self.int()?).unwrap_or(0);
        for _ in 0..count {
            self.int()?;
        }
        Ok(count)
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

#[cfg(test)]
mod tests {
    use super::{Partition, read_partitions};

    #[test]
    fn partitions_are_read_from_metadata_and_a_cut_answer_is_an_error() {
        let mut answer = Vec::new();
        answer.extend([0, 0, 0, 1, 0, 0, 0, 7, 0, 1, b'h', 0, 0, 35, 132, 0xff, 0xff]); // one broker: 7 h 9092 null
        answer.extend([0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, b't', 0, 0, 0, 0, 1]); // controller 7; one topic: 0 t false, one partition
        answer.extend([0, 9, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 7]);
        let expected = Partition { topic: "t".to_owned(), index: 2, error_code: 9, leader: 7, replicas: 2, in_sync: 1 };
        assert_eq!(read_partitions(&answer).unwrap(), [expected]);
        answer.truncate(answer.len() - 1);
        assert!(read_partitions(&answer).is_err());
    }
}
