//! Kafka's messages as a client or broker would write them, made with the crate `kafka-protocol`: a second opinion on the
//! format, since the tracer's decoder is its own.

use anyhow::Result;
use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, BrokerId, FetchRequest, FetchResponse, MetadataRequest, MetadataResponse,
    ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName, api_versions_response, fetch_request, fetch_response,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use uuid::Uuid;

/// A record to be sent.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Its key.
    pub key: Option<&'static str>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<(&'static str, Option<&'static str>)>,
}

/// So many records, `key-0` and so on.
pub fn messages(count: usize) -> Vec<Message> {
    const KEYS: [&str; 10] = ["key-0", "key-1", "key-2", "key-3", "key-4", "key-5", "key-6", "key-7", "key-8", "key-9"];
    let message = |i: usize| Message { key: Some(KEYS[i % 10]), value: Some(vec![b'v'; 20]), headers: Vec::new() };
    (0..count).map(message).collect()
}

/// Makes fewer bytes of many.
pub type Compressor = fn(&[u8]) -> Vec<u8>;

/// What a batch is besides its records.
#[derive(Clone, Copy, Debug)]
pub struct Writing {
    /// Id and epoch of its producer, and the sequence number of the first record; an id of -1 for none.
    pub producer: (i64, i16, i32),
    /// Part of a transaction.
    pub transactional: bool,
    /// A marker of the broker.
    pub control: bool,
    /// How it is compressed: what the header says, and what does it.
    pub codec: (Compression, Compressor),
}

impl Default for Writing {
    fn default() -> Self {
        Self { producer: (-1, -1, 0), transactional: false, control: false, codec: (Compression::None, <[u8]>::to_vec) }
    }
}

/// A record batch.
///
/// # Errors
/// What the encoder says.
pub fn batch(base_offset: i64, messages: &[Message]) -> Result<Bytes> {
    batch_as(base_offset, messages, Writing::default())
}

/// A record batch written in some other way.
///
/// # Errors
/// What the encoder says.
pub fn batch_as(base_offset: i64, messages: &[Message], writing: Writing) -> Result<Bytes> {
    let Writing { producer: (producer_id, producer_epoch, base_sequence), transactional, control, codec: (compression, compress) } =
        writing;
    let records = messages.iter().zip(0..).map(|(message, delta)| Record {
        transactional,
        control,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id,
        producer_epoch,
        timestamp_type: TimestampType::Creation,
        offset: base_offset + i64::from(delta),
        sequence: base_sequence + delta,
        timestamp: 1_700_000_000_000 + i64::from(delta),
        key: message.key.map(Bytes::from),
        value: message.value.clone().map(Bytes::from),
        headers: message.headers.iter().map(|(name, value)| (StrBytes::from_static_str(name), value.map(Bytes::from))).collect(),
    });
    let records: Vec<Record> = records.collect();
    let mut bytes = BytesMut::new();
    let compress = |plain: &mut BytesMut, out: &mut BytesMut, _| {
        out.extend_from_slice(&compress(plain));
        Ok(())
    };
    let options = RecordEncodeOptions { version: 2, compression };
    RecordBatchEncoder::encode_with_custom_compression(&mut bytes, &records, &options, Some(compress))?;
    Ok(bytes.freeze())
}

/// A whole request frame.
///
/// # Errors
/// What the encoder says.
pub fn request(api: ApiKey, version: i16, id: i32, client_id: Option<&str>, body: &impl Encodable) -> Result<Vec<u8>> {
    let header = RequestHeader::default()
        .with_request_api_key(api as i16)
        .with_request_api_version(version)
        .with_correlation_id(id)
        .with_client_id(client_id.map(|client_id| StrBytes::from(client_id.to_owned())));
    let mut bytes = BytesMut::new();
    header.encode(&mut bytes, api.request_header_version(version))?;
    body.encode(&mut bytes, version)?;
    Ok(frame(&bytes))
}

/// A whole answer frame.
///
/// # Errors
/// What the encoder says.
pub fn response(api: ApiKey, version: i16, id: i32, body: &impl Encodable) -> Result<Vec<u8>> {
    let mut bytes = BytesMut::new();
    ResponseHeader::default().with_correlation_id(id).encode(&mut bytes, api.response_header_version(version))?;
    body.encode(&mut bytes, version)?;
    Ok(frame(&bytes))
}

/// Puts the size in front.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + payload.len());
    bytes.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(payload);
    bytes
}

/// An `ApiVersions` request and its answer.
///
/// # Errors
/// What the encoder says.
pub fn api_versions(version: i16, id: i32, client_id: Option<&str>) -> Result<(Vec<u8>, Vec<u8>)> {
    let ask = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str("test"))
        .with_client_software_version(StrBytes::from_static_str("1"));
    let keys = (0..20).map(|key| api_versions_response::ApiVersion::default().with_api_key(key).with_min_version(0).with_max_version(9));
    let answer = ApiVersionsResponse::default().with_api_keys(keys.collect());
    Ok((request(ApiKey::ApiVersions, version, id, client_id, &ask)?, response(ApiKey::ApiVersions, version, id, &answer)?))
}

/// A `Metadata` request for all topics and its answer.
///
/// # Errors
/// What the encoder says.
pub fn metadata(version: i16, id: i32, client_id: Option<&str>, topics: &[(&str, Uuid)]) -> Result<(Vec<u8>, Vec<u8>)> {
    let ask = MetadataRequest::default().with_topics(None);
    let topic = |(name, topic_id): &(&str, Uuid)| {
        let partition = MetadataResponsePartition::default().with_leader_id(BrokerId(1));
        MetadataResponseTopic::default().with_name(Some(topic_name(name))).with_topic_id(*topic_id).with_partitions(vec![partition])
    };
    let broker =
        MetadataResponseBroker::default().with_node_id(BrokerId(1)).with_host(StrBytes::from_static_str("broker.test")).with_port(9092);
    let answer = MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(StrBytes::from_static_str("test-cluster")))
        .with_topics(topics.iter().map(topic).collect());
    Ok((request(ApiKey::Metadata, version, id, client_id, &ask)?, response(ApiKey::Metadata, version, id, &answer)?))
}

/// How a topic is named: by its name, or from some version on by its id.
#[derive(Clone, Copy, Debug)]
pub enum Topic<'a> {
    /// By name.
    Name(&'a str),
    /// By id.
    Id(Uuid),
}

impl Topic<'_> {
    fn name(self) -> TopicName {
        match self {
            Self::Name(name) => topic_name(name),
            Self::Id(_) => TopicName::default(),
        }
    }

    fn id(self) -> Uuid {
        match self {
            Self::Name(_) => Uuid::nil(),
            Self::Id(id) => id,
        }
    }
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from(name.to_owned()))
}

/// A `Produce` request of partition 0.
///
/// # Errors
/// What the encoder says.
pub fn produce(version: i16, id: i32, client_id: Option<&str>, acks: i16, topic: Topic<'_>, messages: &[Message]) -> Result<Vec<u8>> {
    produce_records(version, id, client_id, acks, topic, batch(0, messages)?)
}

/// A `Produce` request of these bytes for partition 0.
///
/// # Errors
/// What the encoder says.
pub fn produce_records(version: i16, id: i32, client_id: Option<&str>, acks: i16, topic: Topic<'_>, records: Bytes) -> Result<Vec<u8>> {
    let partition = PartitionProduceData::default().with_index(0).with_records(Some(records));
    let topic = TopicProduceData::default().with_name(topic.name()).with_topic_id(topic.id()).with_partition_data(vec![partition]);
    let ask = ProduceRequest::default().with_acks(acks).with_timeout_ms(30_000).with_topic_data(vec![topic]);
    request(ApiKey::Produce, version, id, client_id, &ask)
}

/// The answer to a `Produce` request of partition 0.
///
/// # Errors
/// What the encoder says.
pub fn produced(version: i16, id: i32, topic: Topic<'_>, base_offset: i64, error_code: i16) -> Result<Vec<u8>> {
    let partition = PartitionProduceResponse::default().with_index(0).with_error_code(error_code).with_base_offset(base_offset);
    let topic = TopicProduceResponse::default().with_name(topic.name()).with_topic_id(topic.id()).with_partition_responses(vec![partition]);
    response(ApiKey::Produce, version, id, &ProduceResponse::default().with_responses(vec![topic]))
}

/// A `Fetch` request of partition 0 of each topic, within a session.
///
/// # Errors
/// What the encoder says.
pub fn fetch(version: i16, id: i32, client_id: Option<&str>, session: (i32, i32), topics: &[(Topic<'_>, i64)]) -> Result<Vec<u8>> {
    let topic = |(topic, offset): &(Topic<'_>, i64)| {
        let partition =
            fetch_request::FetchPartition::default().with_partition(0).with_fetch_offset(*offset).with_partition_max_bytes(1 << 20);
        fetch_request::FetchTopic::default().with_topic(topic.name()).with_topic_id(topic.id()).with_partitions(vec![partition])
    };
    let ask = FetchRequest::default()
        .with_max_wait_ms(500)
        .with_min_bytes(1)
        .with_max_bytes(50 << 20)
        .with_session_id(session.0)
        .with_session_epoch(session.1)
        .with_topics(topics.iter().map(topic).collect());
    request(ApiKey::Fetch, version, id, client_id, &ask)
}

/// The answer to a `Fetch`: for partition 0 of each topic an error code and record batches.
///
/// # Errors
/// What the encoder says.
pub fn fetched(version: i16, id: i32, session_id: i32, topics: &[(Topic<'_>, i16, Bytes)]) -> Result<Vec<u8>> {
    let topic = |(topic, error_code, records): &(Topic<'_>, i16, Bytes)| {
        let partition = fetch_response::PartitionData::default()
            .with_partition_index(0)
            .with_error_code(*error_code)
            .with_high_watermark(1_000_000)
            .with_last_stable_offset(1_000_000)
            .with_aborted_transactions(None)
            .with_records(Some(records.clone()));
        fetch_response::FetchableTopicResponse::default()
            .with_topic(topic.name())
            .with_topic_id(topic.id())
            .with_partitions(vec![partition])
    };
    let answer = FetchResponse::default().with_session_id(session_id).with_responses(topics.iter().map(topic).collect());
    response(ApiKey::Fetch, version, id, &answer)
}
