//! `DescribeCluster`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `DescribeCluster`, the request.
    pub struct DescribeClusterRequest {
        include_cluster_authorized_operations: bool, 0..;
        endpoint_type: i8 = 1, 1..;
        include_fenced_brokers: bool, 2..;
    }
}

message! {
    /// `DescribeCluster`, the answer.
    pub struct DescribeClusterResponse<'a> {
        throttle_time_ms: i32, 0..;
        error_code: i16, 0..;
        error_message: Option<&'a str>, 0..;
        endpoint_type: i8 = 1, 1..;
        cluster_id: &'a str, 0..;
        controller_id: i32 = -1, 0..;
        brokers: Vec<DescribeClusterBroker<'a>>, 0..;
        cluster_authorized_operations: i32 = i32::MIN, 0..;
    }
}

message! {
    /// Part of `DescribeCluster`.
    pub struct DescribeClusterBroker<'a> {
        broker_id: i32, 0..;
        host: &'a str, 0..;
        port: i32, 0..;
        rack: Option<&'a str>, 0..;
        is_fenced: bool, 2..;
    }
}
