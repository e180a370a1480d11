//! Requests and answers: headers of every API, bodies of those that something here has a use for.
//!
//! In: the bytes of a frame; for an answer also the API and version of its request, which only `correlate` knows.
//! Out: one structure per API with the names of Kafka's schemas, borrowed from the frame.

#![forbid(unsafe_code)]

mod common;
#[cfg(test)]
mod golden_tests;
mod header;
mod message;

pub use common::{Int32Count, LeaderIdAndEpoch, NodeEndpoint, Opaque, TopicRef};
pub use header::{RequestHeader, correlation_id, plausible_request, request_header};

use super::versions::{self, ApiVersions};
use super::wire::{DecodeError, Payload, Reader};
use message::{Shape, Wire};

/// What came of a body: with damage, `value` holds what was read before it (records of `Produce` and `Fetch` among it;
/// other arrays hold their whole elements).
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded<T> {
    /// The message as far as it was read.
    pub value: T,
    /// What stopped the reading; `None` when it ended exactly where the frame ends.
    pub damage: Option<DecodeError>,
}

macro_rules! apis {
    ($( $key:literal $api:ident $module:ident: $request:ty, $response:ty; )*) => {
        $( pub mod $module; )*

        /// A request's body.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Request<'a> {
            $( #[doc = concat!("`", stringify!($api), "`.")] $api($request), )*
            /// Of an API that nobody here reads, or of a version that does not fit.
            Other,
        }

        /// An answer's body.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Response<'a> {
            $( #[doc = concat!("`", stringify!($api), "`.")] $api($response), )*
            /// Of an API that nobody here reads, or of a version that does not fit.
            Other,
        }

        fn request_body<'a>(api_key: i16, reader: &mut Reader<'a>, shape: Shape) -> (Request<'a>, Option<DecodeError>) {
            match api_key {
                $( $key => {
                    let mut message = <$request>::default();
                    let damage = read_to_the_end(&mut message, reader, shape).err();
                    (Request::$api(message), damage)
                } )*
                _ => (Request::Other, None),
            }
        }

        fn response_body<'a>(api_key: i16, reader: &mut Reader<'a>, shape: Shape) -> (Response<'a>, Option<DecodeError>) {
            match api_key {
                $( $key => {
                    let mut message = <$response>::default();
                    let damage = read_to_the_end(&mut message, reader, shape).err();
                    (Response::$api(message), damage)
                } )*
                _ => (Response::Other, None),
            }
        }

        #[cfg(test)]
        impl Request<'_> {
            fn show(&self, shape: Shape) -> serde_json::Value {
                match self {
                    $( Self::$api(message) => message.show(shape), )*
                    Self::Other => serde_json::Value::Null,
                }
            }
        }

        #[cfg(test)]
        impl Response<'_> {
            fn show(&self, shape: Shape) -> serde_json::Value {
                match self {
                    $( Self::$api(message) => message.show(shape), )*
                    Self::Other => serde_json::Value::Null,
                }
            }
        }

        /// True when this program reads the bodies of `api_key`.
        pub const fn has_body(api_key: i16) -> bool {
            matches!(api_key, $( $key )|*)
        }
    };
}

apis! {
    0 Produce produce: produce::ProduceRequest<'a>, produce::ProduceResponse<'a>;
    1 Fetch fetch: fetch::FetchRequest<'a>, fetch::FetchResponse<'a>;
    2 ListOffsets list_offsets: list_offsets::ListOffsetsRequest<'a>, list_offsets::ListOffsetsResponse<'a>;
    3 Metadata metadata: metadata::MetadataRequest<'a>, metadata::MetadataResponse<'a>;
    8 OffsetCommit offset_commit: offset_commit::OffsetCommitRequest<'a>, offset_commit::OffsetCommitResponse<'a>;
    9 OffsetFetch offset_fetch: offset_fetch::OffsetFetchRequest<'a>, offset_fetch::OffsetFetchResponse<'a>;
    10 FindCoordinator find_coordinator: find_coordinator::FindCoordinatorRequest<'a>, find_coordinator::FindCoordinatorResponse<'a>;
    11 JoinGroup join_group: join_group::JoinGroupRequest<'a>, join_group::JoinGroupResponse<'a>;
    12 Heartbeat heartbeat: heartbeat::HeartbeatRequest<'a>, heartbeat::HeartbeatResponse;
    13 LeaveGroup leave_group: leave_group::LeaveGroupRequest<'a>, leave_group::LeaveGroupResponse<'a>;
    14 SyncGroup sync_group: sync_group::SyncGroupRequest<'a>, sync_group::SyncGroupResponse<'a>;
    17 SaslHandshake sasl_handshake: sasl_handshake::SaslHandshakeRequest<'a>, sasl_handshake::SaslHandshakeResponse<'a>;
    18 ApiVersions api_versions: api_versions::ApiVersionsRequest<'a>, api_versions::ApiVersionsResponse<'a>;
    19 CreateTopics create_topics: create_topics::CreateTopicsRequest<'a>, create_topics::CreateTopicsResponse<'a>;
    20 DeleteTopics delete_topics: delete_topics::DeleteTopicsRequest<'a>, delete_topics::DeleteTopicsResponse<'a>;
    22 InitProducerId init_producer_id: init_producer_id::InitProducerIdRequest<'a>, init_producer_id::InitProducerIdResponse;
    24 AddPartitionsToTxn add_partitions_to_txn: add_partitions_to_txn::AddPartitionsToTxnRequest<'a>, add_partitions_to_txn::AddPartitionsToTxnResponse<'a>;
    25 AddOffsetsToTxn add_offsets_to_txn: add_offsets_to_txn::AddOffsetsToTxnRequest<'a>, add_offsets_to_txn::AddOffsetsToTxnResponse;
    26 EndTxn end_txn: end_txn::EndTxnRequest<'a>, end_txn::EndTxnResponse;
    27 WriteTxnMarkers write_txn_markers: write_txn_markers::WriteTxnMarkersRequest<'a>, write_txn_markers::WriteTxnMarkersResponse<'a>;
    28 TxnOffsetCommit txn_offset_commit: txn_offset_commit::TxnOffsetCommitRequest<'a>, txn_offset_commit::TxnOffsetCommitResponse<'a>;
    36 SaslAuthenticate sasl_authenticate: sasl_authenticate::SaslAuthenticateRequest, sasl_authenticate::SaslAuthenticateResponse<'a>;
    47 OffsetDelete offset_delete: offset_delete::OffsetDeleteRequest<'a>, offset_delete::OffsetDeleteResponse<'a>;
    60 DescribeCluster describe_cluster: describe_cluster::DescribeClusterRequest, describe_cluster::DescribeClusterResponse<'a>;
    68 ConsumerGroupHeartbeat consumer_group_heartbeat: consumer_group_heartbeat::ConsumerGroupHeartbeatRequest<'a>, consumer_group_heartbeat::ConsumerGroupHeartbeatResponse<'a>;
    72 PushTelemetry push_telemetry: push_telemetry::PushTelemetryRequest, push_telemetry::PushTelemetryResponse;
    75 DescribeTopicPartitions describe_topic_partitions: describe_topic_partitions::DescribeTopicPartitionsRequest<'a>, describe_topic_partitions::DescribeTopicPartitionsResponse<'a>;
    76 ShareGroupHeartbeat share_group_heartbeat: share_group_heartbeat::ShareGroupHeartbeatRequest<'a>, share_group_heartbeat::ShareGroupHeartbeatResponse<'a>;
    78 ShareFetch share_fetch: share_fetch::ShareFetchRequest<'a>, share_fetch::ShareFetchResponse<'a>;
    79 ShareAcknowledge share_acknowledge: share_acknowledge::ShareAcknowledgeRequest<'a>, share_acknowledge::ShareAcknowledgeResponse<'a>;
    88 StreamsGroupHeartbeat streams_group_heartbeat: streams_group_heartbeat::StreamsGroupHeartbeatRequest<'a>, streams_group_heartbeat::StreamsGroupHeartbeatResponse<'a>;
}

/// Decodes the body behind `header` of the request that `payload` (its frame after the size) holds.
pub fn decode_request<'a>(header: &RequestHeader<'a>, payload: Payload<'a>) -> Decoded<Request<'a>> {
    let Some(row) = versions::lookup(header.api_key) else { return Decoded { value: Request::Other, damage: None } };
    let mut reader = Reader::at(payload, header.body_start);
    let shape = shape(row, header.api_version);
    let (value, damage) = request_body(header.api_key, &mut reader, shape);
    if let Some(begin) = metadata::begins_later(header, payload, shape, damage) {
        let (value, damage) = request_body(header.api_key, &mut Reader::at(payload, begin), shape);
        return settle(row, header.api_version, value, Request::Other, damage);
    }
    settle(row, header.api_version, value, Request::Other, damage)
}

/// Decodes the answer that `payload` (its frame after the size) holds, to a request of `api_key` and `api_version`.
///
/// An `ApiVersions` answer with error 35 is read in the shape of version 0, whatever was asked for: a broker that does not
/// know the version cannot write it (KIP-511).
pub fn decode_response(api_key: i16, api_version: i16, payload: Payload<'_>) -> Decoded<Response<'_>> {
    let Some(row) = versions::lookup(api_key) else { return Decoded { value: Response::Other, damage: None } };
    let mut reader = Reader::new(payload);
    if let Err(damage) = header::skip_response_header(&mut reader, row, api_version) {
        return Decoded { value: Response::Other, damage: Some(damage) };
    }
    if api_key == versions::API_VERSIONS && api_version > 0 {
        let mut fallback = reader.clone();
        if fallback.i16() == Ok(super::errors::UNSUPPORTED_VERSION) {
            let (value, damage) = response_body(api_key, &mut reader, shape(row, 0));
            return Decoded { value, damage };
        }
    }
    let (value, damage) = response_body(api_key, &mut reader, shape(row, api_version));
    settle(row, api_version, value, Response::Other, damage)
}

/// The shape of `api_version`, or the newest known one for a newer version.
fn shape(row: &ApiVersions, api_version: i16) -> Shape {
    let version = api_version.clamp(*row.versions.start(), *row.versions.end());
    Shape { version, flexible: row.is_flexible(version), topic_ids: version >= row.topic_id_from }
}

/// A version that nobody here knows is believed only when its body ended exactly with the frame.
fn settle<T>(row: &ApiVersions, api_version: i16, value: T, other: T, damage: Option<DecodeError>) -> Decoded<T> {
    if row.versions.contains(&api_version) || (damage.is_none() && has_body(row.api_key)) {
        return Decoded { value, damage };
    }
    Decoded { value: other, damage: Some(DecodeError::UnknownVersion { api_key: row.api_key, api_version }) }
}

fn read_to_the_end<'a>(message: &mut impl Wire<'a>, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
    message.read_into(reader, shape)?;
    match reader.left() {
        0 => Ok(()),
        left => Err(reader.left_over(left)),
    }
}

impl Response<'_> {
    /// The answer's throttle time in milliseconds; 0 where it has none.
    pub fn throttle_time_ms(&self) -> i32 {
        match self {
            Self::Produce(it) => it.throttle_time_ms,
            Self::Fetch(it) => it.throttle_time_ms,
            Self::ListOffsets(it) => it.throttle_time_ms,
            Self::Metadata(it) => it.throttle_time_ms,
            Self::OffsetCommit(it) => it.throttle_time_ms,
            Self::OffsetFetch(it) => it.throttle_time_ms,
            Self::FindCoordinator(it) => it.throttle_time_ms,
            Self::JoinGroup(it) => it.throttle_time_ms,
            Self::Heartbeat(it) => it.throttle_time_ms,
            Self::LeaveGroup(it) => it.throttle_time_ms,
            Self::SyncGroup(it) => it.throttle_time_ms,
            Self::ApiVersions(it) => it.throttle_time_ms,
            Self::CreateTopics(it) => it.throttle_time_ms,
            Self::DeleteTopics(it) => it.throttle_time_ms,
            Self::InitProducerId(it) => it.throttle_time_ms,
            Self::AddPartitionsToTxn(it) => it.throttle_time_ms,
            Self::AddOffsetsToTxn(it) => it.throttle_time_ms,
            Self::EndTxn(it) => it.throttle_time_ms,
            Self::TxnOffsetCommit(it) => it.throttle_time_ms,
            Self::OffsetDelete(it) => it.throttle_time_ms,
            Self::DescribeCluster(it) => it.throttle_time_ms,
            Self::ConsumerGroupHeartbeat(it) => it.throttle_time_ms,
            Self::PushTelemetry(it) => it.throttle_time_ms,
            Self::DescribeTopicPartitions(it) => it.throttle_time_ms,
            Self::ShareGroupHeartbeat(it) => it.throttle_time_ms,
            Self::ShareFetch(it) => it.throttle_time_ms,
            Self::ShareAcknowledge(it) => it.throttle_time_ms,
            Self::StreamsGroupHeartbeat(it) => it.throttle_time_ms,
            Self::SaslHandshake(_) | Self::SaslAuthenticate(_) | Self::WriteTxnMarkers(_) | Self::Other => 0,
        }
    }

    /// The error code of the answer as a whole; 0 where it has none (errors of topics and partitions are with them).
    pub fn error_code(&self) -> i16 {
        match self {
            Self::Fetch(it) => it.error_code,
            Self::Metadata(it) => it.error_code,
            Self::OffsetFetch(it) => it.error_code,
            Self::FindCoordinator(it) => it.error_code,
            Self::JoinGroup(it) => it.error_code,
            Self::Heartbeat(it) => it.error_code,
            Self::LeaveGroup(it) => it.error_code,
            Self::SyncGroup(it) => it.error_code,
            Self::SaslHandshake(it) => it.error_code,
            Self::ApiVersions(it) => it.error_code,
            Self::InitProducerId(it) => it.error_code,
            Self::AddPartitionsToTxn(it) => it.error_code,
            Self::AddOffsetsToTxn(it) => it.error_code,
            Self::EndTxn(it) => it.error_code,
            Self::SaslAuthenticate(it) => it.error_code,
            Self::OffsetDelete(it) => it.error_code,
            Self::DescribeCluster(it) => it.error_code,
            Self::ConsumerGroupHeartbeat(it) => it.error_code,
            Self::PushTelemetry(it) => it.error_code,
            Self::ShareGroupHeartbeat(it) => it.error_code,
            Self::ShareFetch(it) => it.error_code,
            Self::ShareAcknowledge(it) => it.error_code,
            Self::StreamsGroupHeartbeat(it) => it.error_code,
            Self::Produce(_)
            | Self::ListOffsets(_)
            | Self::OffsetCommit(_)
            | Self::CreateTopics(_)
            | Self::DeleteTopics(_)
            | Self::WriteTxnMarkers(_)
            | Self::TxnOffsetCommit(_)
            | Self::DescribeTopicPartitions(_)
            | Self::Other => 0,
        }
    }
}
