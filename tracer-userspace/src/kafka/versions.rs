//! Every API of Kafka 0.8 to 4.4, one row each: what the bytes of its headers look like is not in the bytes.
//!
//! Source: the message schemas shipped in `kafka-clients` 2.8.2, 3.9.1 and 4.4.0 (`validVersions`, `flexibleVersions`,
//! first version of a `TopicId` field), their union: old versions that 4.x dropped are still spoken by old clients.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

/// What is known of one API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiVersions {
    /// Kafka's number of the API.
    pub api_key: i16,
    /// Kafka's name of it.
    pub name: &'static str,
    /// The versions that any Kafka up to 4.4 speaks, unstable ones included.
    pub versions: RangeInclusive<i16>,
    /// First version with compact lengths and tagged fields (KIP-482); `i16::MAX` for never.
    pub flexible_from: i16,
    /// First version in which topics go by id (KIP-516), in requests or answers; `i16::MAX` for never.
    pub topic_id_from: i16,
    /// Spoken between brokers and controllers only: nobody's consumption, whoever sends it.
    pub inter_broker: bool,
}

/// `flexible_from` or `topic_id_from` of an API that never got there.
pub const NEVER: i16 = i16::MAX;

/// `Produce`.
pub const PRODUCE: i16 = 0;
/// `Fetch`.
pub const FETCH: i16 = 1;
/// `Metadata`.
pub const METADATA: i16 = 3;
/// `ControlledShutdown`.
pub const CONTROLLED_SHUTDOWN: i16 = 7;
/// `SaslHandshake`.
pub const SASL_HANDSHAKE: i16 = 17;
/// `ApiVersions`.
pub const API_VERSIONS: i16 = 18;
/// `SaslAuthenticate`.
pub const SASL_AUTHENTICATE: i16 = 36;
/// `ShareFetch`.
pub const SHARE_FETCH: i16 = 78;

impl ApiVersions {
    /// True when `api_version` has compact lengths and tagged fields.
    pub const fn is_flexible(&self, api_version: i16) -> bool {
        api_version >= self.flexible_from
    }

    /// Version of the request's header: 0 without client id, 1 with it, 2 with tagged fields.
    pub const fn request_header_version(&self, api_version: i16) -> i16 {
        if self.api_key == CONTROLLED_SHUTDOWN && api_version == 0 {
            return 0; // the only one without a client id, KAFKA-14935
        }
        if self.is_flexible(api_version) { 2 } else { 1 }
    }

    /// Version of the answer's header: 0, or 1 with tagged fields.
    pub const fn response_header_version(&self, api_version: i16) -> i16 {
        if self.api_key == API_VERSIONS {
            return 0; // KIP-511: a client must be able to read it before versions are agreed on
        }
        if self.is_flexible(api_version) { 1 } else { 0 }
    }
}

/// The row of `api_key`.
pub fn lookup(api_key: i16) -> Option<&'static ApiVersions> {
    let row = TABLE.get(usize::try_from(api_key).ok()?)?;
    (row.api_key == api_key).then_some(row)
}

/// All rows, by key.
pub fn all() -> &'static [ApiVersions] {
    TABLE
}

/// The name of `api_key`, also of one that no Kafka up to 4.4 has.
pub fn name(api_key: i16) -> &'static str {
    lookup(api_key).map_or("_OTHER", |row| row.name)
}

const fn row(api_key: i16, name: &'static str, newest: i16, flexible_from: i16, topic_id_from: i16, inter_broker: bool) -> ApiVersions {
    ApiVersions { api_key, name, versions: 0..=newest, flexible_from, topic_id_from, inter_broker }
}

/// Key, name, newest version, flexible from, topic ids from, between brokers. The place of a row is its key.
#[rustfmt::skip]
const TABLE: &[ApiVersions] = &[
    row(0, "Produce", 13, 9, 13, false),
    row(1, "Fetch", 18, 12, 13, false),
    row(2, "ListOffsets", 11, 6, NEVER, false),
    row(3, "Metadata", 13, 9, 10, false),
    row(4, "LeaderAndIsr", 7, 4, 5, true),
    row(5, "StopReplica", 4, 2, NEVER, true),
    row(6, "UpdateMetadata", 8, 6, 7, true),
    row(7, "ControlledShutdown", 3, 3, NEVER, true),
    row(8, "OffsetCommit", 10, 8, 10, false),
    row(9, "OffsetFetch", 10, 6, 10, false),
    row(10, "FindCoordinator", 6, 3, NEVER, false),
    row(11, "JoinGroup", 9, 6, NEVER, false),
    row(12, "Heartbeat", 4, 4, NEVER, false),
    row(13, "LeaveGroup", 5, 4, NEVER, false),
    row(14, "SyncGroup", 5, 4, NEVER, false),
    row(15, "DescribeGroups", 6, 5, NEVER, false),
    row(16, "ListGroups", 5, 3, NEVER, false),
    row(17, "SaslHandshake", 1, NEVER, NEVER, false),
    row(18, "ApiVersions", 5, 3, NEVER, false),
    row(19, "CreateTopics", 7, 5, NEVER, false),
    row(20, "DeleteTopics", 6, 4, 6, false),
    row(21, "DeleteRecords", 2, 2, NEVER, false),
    row(22, "InitProducerId", 6, 2, NEVER, false),
    row(23, "OffsetForLeaderEpoch", 4, 4, NEVER, false),
    row(24, "AddPartitionsToTxn", 5, 3, NEVER, false),
    row(25, "AddOffsetsToTxn", 4, 3, NEVER, false),
    row(26, "EndTxn", 5, 3, NEVER, false),
    row(27, "WriteTxnMarkers", 2, 1, NEVER, true),
    row(28, "TxnOffsetCommit", 6, 3, 6, false),
    row(29, "DescribeAcls", 3, 2, NEVER, false),
    row(30, "CreateAcls", 3, 2, NEVER, false),
    row(31, "DeleteAcls", 3, 2, NEVER, false),
    row(32, "DescribeConfigs", 4, 4, NEVER, false),
    row(33, "AlterConfigs", 2, 2, NEVER, false),
    row(34, "AlterReplicaLogDirs", 2, 2, NEVER, false),
    row(35, "DescribeLogDirs", 5, 2, NEVER, false),
    row(36, "SaslAuthenticate", 2, 2, NEVER, false),
    row(37, "CreatePartitions", 3, 2, NEVER, false),
    row(38, "CreateDelegationToken", 3, 2, NEVER, false),
    row(39, "RenewDelegationToken", 2, 2, NEVER, false),
    row(40, "ExpireDelegationToken", 2, 2, NEVER, false),
    row(41, "DescribeDelegationToken", 3, 2, NEVER, false),
    row(42, "DeleteGroups", 3, 2, NEVER, false),
    row(43, "ElectLeaders", 2, 2, NEVER, false),
    row(44, "IncrementalAlterConfigs", 1, 1, NEVER, false),
    row(45, "AlterPartitionReassignments", 1, 0, NEVER, false),
    row(46, "ListPartitionReassignments", 0, 0, NEVER, false),
    row(47, "OffsetDelete", 0, NEVER, NEVER, false),
    row(48, "DescribeClientQuotas", 1, 1, NEVER, false),
    row(49, "AlterClientQuotas", 1, 1, NEVER, false),
    row(50, "DescribeUserScramCredentials", 0, 0, NEVER, false),
    row(51, "AlterUserScramCredentials", 0, 0, NEVER, false),
    row(52, "Vote", 2, 0, NEVER, true),
    row(53, "BeginQuorumEpoch", 1, 1, NEVER, true),
    row(54, "EndQuorumEpoch", 1, 1, NEVER, true),
    row(55, "DescribeQuorum", 2, 0, NEVER, false),
    row(56, "AlterPartition", 3, 0, 2, true),
    row(57, "UpdateFeatures", 2, 0, NEVER, false),
    row(58, "Envelope", 0, 0, NEVER, true),
    row(59, "FetchSnapshot", 1, 0, NEVER, true),
    row(60, "DescribeCluster", 2, 0, NEVER, false),
    row(61, "DescribeProducers", 0, 0, NEVER, false),
    row(62, "BrokerRegistration", 4, 0, NEVER, true),
    row(63, "BrokerHeartbeat", 2, 0, NEVER, true),
    row(64, "UnregisterBroker", 0, 0, NEVER, false),
    row(65, "DescribeTransactions", 0, 0, NEVER, false),
    row(66, "ListTransactions", 2, 0, NEVER, false),
    row(67, "AllocateProducerIds", 0, 0, NEVER, true),
    row(68, "ConsumerGroupHeartbeat", 1, 0, 0, false),
    row(69, "ConsumerGroupDescribe", 1, 0, NEVER, false),
    row(70, "ControllerRegistration", 0, 0, NEVER, true),
    row(71, "GetTelemetrySubscriptions", 0, 0, NEVER, false),
    row(72, "PushTelemetry", 0, 0, NEVER, false),
    row(73, "AssignReplicasToDirs", 0, 0, 0, true),
    row(74, "ListConfigResources", 1, 0, NEVER, false),
    row(75, "DescribeTopicPartitions", 0, 0, NEVER, false),
    row(76, "ShareGroupHeartbeat", 1, 0, NEVER, false),
    row(77, "ShareGroupDescribe", 1, 0, NEVER, false),
    row(78, "ShareFetch", 2, 0, 0, false),
    row(79, "ShareAcknowledge", 2, 0, 0, false),
    row(80, "AddRaftVoter", 1, 0, NEVER, false),
    row(81, "RemoveRaftVoter", 0, 0, NEVER, false),
    row(82, "UpdateRaftVoter", 0, 0, NEVER, true),
    row(83, "InitializeShareGroupState", 0, 0, 0, true),
    row(84, "ReadShareGroupState", 0, 0, 0, true),
    row(85, "WriteShareGroupState", 1, 0, 0, true),
    row(86, "DeleteShareGroupState", 0, 0, 0, true),
    row(87, "ReadShareGroupStateSummary", 1, 0, 0, true),
    row(88, "StreamsGroupHeartbeat", 1, 0, NEVER, false),
    row(89, "StreamsGroupDescribe", 1, 0, NEVER, false),
    row(90, "DescribeShareGroupOffsets", 1, 0, NEVER, false),
    row(91, "AlterShareGroupOffsets", 0, 0, NEVER, false),
    row(92, "DeleteShareGroupOffsets", 0, 0, NEVER, false),
    row(93, "StreamsGroupTopologyDescriptionUpdate", 0, 0, NEVER, false),
    row(94, "UnregisterController", 0, 0, NEVER, false),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What `ApiKeys.requestHeaderVersion` and `responseHeaderVersion` of `kafka-clients` 4.4.0 (and of 3.9.1 for what
    /// 4.x dropped) say: a line of key, name, and `request/response` per version from 0 on.
    const HEADER_VERSIONS: &str = include_str!("../../tests/data/kafka-header-versions.txt");

    /// shotover/shotover-proxy#1056, build-trust/ockam#4407, KAFKA-14935: the header version is not in the bytes.
    #[test]
    fn shotover_1056_every_key_and_version_has_the_header_versions_kafka_gives_it() {
        let mut keys = 0;
        for (key, line) in HEADER_VERSIONS.lines().enumerate() {
            let mut words = line.split(' ');
            let api_key: i16 = words.next().unwrap().parse().unwrap();
            assert_eq!(usize::try_from(api_key).unwrap(), key, "a line for each key");
            let row = lookup(api_key).unwrap();
            assert_eq!(Some(row.name), words.next());
            let mut newest = -1;
            for (api_version, expected) in (0_i16..).zip(words) {
                let ours = format!("{}/{}", row.request_header_version(api_version), row.response_header_version(api_version));
                assert_eq!(ours, expected, "{} v{api_version}", row.name);
                newest = api_version;
            }
            assert_eq!(row.versions, 0..=newest, "{}", row.name);
            keys += 1;
        }
        assert_eq!(keys, all().len());
    }

    #[test]
    fn what_no_kafka_has_is_not_in_the_table() {
        for api_key in [-1, 95, 24706, i16::MIN, i16::MAX] {
            assert_eq!(lookup(api_key), None);
            assert_eq!(name(api_key), "_OTHER");
        }
    }

    /// The crate `kafka-protocol` was generated from the schemas of 4.1: a second opinion on what flexible means.
    #[test]
    fn the_table_agrees_with_another_reading_of_the_schemas() {
        for row in all() {
            let Ok(api_key) = kafka_protocol::messages::ApiKey::try_from(row.api_key) else { continue };
            let range = api_key.valid_versions();
            assert!(range.max <= *row.versions.end(), "{}", row.name);
            for api_version in range.min..=range.max {
                assert_eq!(row.request_header_version(api_version), api_key.request_header_version(api_version), "{}", row.name);
                assert_eq!(row.response_header_version(api_version), api_key.response_header_version(api_version), "{}", row.name);
            }
        }
    }
}
