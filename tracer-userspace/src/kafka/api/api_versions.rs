//! `ApiVersions`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `ApiVersions`, the request.
    pub struct ApiVersionsRequest<'a> {
        client_software_name: &'a str, 3..;
        client_software_version: &'a str, 3..;
        cluster_id: Option<&'a str>, 5..;
        node_id: i32 = -1, 5..;
    }
}

message! {
    /// `ApiVersions`, the answer.
    pub struct ApiVersionsResponse<'a> {
        error_code: i16, 0..;
        api_keys: Vec<ApiVersion>, 0..;
        throttle_time_ms: i32, 1..;
    } tagged {
        0 supported_features: Vec<SupportedFeatureKey<'a>>, 3..;
        1 finalized_features_epoch: i64 = -1, 3..;
        2 finalized_features: Vec<FinalizedFeatureKey<'a>>, 3..;
        3 zk_migration_ready: bool, 3..;
    }
}

message! {
    /// Part of `ApiVersions`.
    pub struct ApiVersion {
        api_key: i16, 0..;
        min_version: i16, 0..;
        max_version: i16, 0..;
    }
}

message! {
    /// Part of `ApiVersions`.
    pub struct SupportedFeatureKey<'a> {
        name: &'a str, 3..;
        min_version: i16, 3..;
        max_version: i16, 3..;
    }
}

message! {
    /// Part of `ApiVersions`.
    pub struct FinalizedFeatureKey<'a> {
        name: &'a str, 3..;
        max_version_level: i16, 3..;
        min_version_level: i16, 3..;
    }
}
