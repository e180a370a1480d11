//! `StreamsGroupHeartbeat`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `StreamsGroupHeartbeat`, the request.
    pub struct StreamsGroupHeartbeatRequest<'a> {
        group_id: &'a str, 0..;
        member_id: &'a str, 0..;
        member_epoch: i32, 0..;
        endpoint_information_epoch: i32, 0..;
        instance_id: Option<&'a str>, 0..;
        rack_id: Option<&'a str>, 0..;
        rebalance_timeout_ms: i32 = -1, 0..;
        topology: Option<Topology<'a>>, 0..;
        active_tasks: Option<Vec<TaskIds<'a>>>, 0..;
        standby_tasks: Option<Vec<TaskIds<'a>>>, 0..;
        warmup_tasks: Option<Vec<TaskIds<'a>>>, 0..;
        process_id: Option<&'a str>, 0..;
        user_endpoint: Option<Endpoint<'a>>, 0..;
        client_tags: Option<Vec<KeyValue<'a>>>, 0..;
        task_offsets: Option<Vec<TaskOffset<'a>>>, 0..;
        task_end_offsets: Option<Vec<TaskOffset<'a>>>, 0..;
        shutdown_application: bool, 0..;
    }
}

message! {
    /// `StreamsGroupHeartbeat`, the answer.
    pub struct StreamsGroupHeartbeatResponse<'a> {
        throttle_time_ms: i32, 0..;
        error_code: i16, 0..;
        error_message: Option<&'a str>, 0..;
        member_id: &'a str, 0..;
        member_epoch: i32, 0..;
        heartbeat_interval_ms: i32, 0..;
        acceptable_recovery_lag_legacy: i32, 0..=0;
        task_offset_interval_ms: i32, 0..;
        acceptable_recovery_lag: i64 = -1, 1..;
        status: Option<Vec<Status<'a>>>, 0..;
        active_tasks: Option<Vec<TaskIds<'a>>>, 0..;
        standby_tasks: Option<Vec<TaskIds<'a>>>, 0..;
        warmup_tasks: Option<Vec<TaskIds<'a>>>, 0..;
        topology_description_required: bool, 1..;
        endpoint_information_epoch: i32, 0..;
        partitions_by_user_endpoint: Option<Vec<EndpointToPartitions<'a>>>, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct KeyValue<'a> {
        key: &'a str, 0..;
        value: &'a str, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct TopicInfo<'a> {
        name: &'a str, 0..;
        partitions: i32, 0..;
        replication_factor: i16, 0..;
        topic_configs: Vec<KeyValue<'a>>, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct CopartitionGroup {
        source_topics: Vec<i16>, 0..;
        source_topic_regex: Vec<i16>, 0..;
        repartition_source_topics: Vec<i16>, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct Subtopology<'a> {
        subtopology_id: &'a str, 0..;
        source_topics: Vec<&'a str>, 0..;
        source_topic_regex: Vec<&'a str>, 0..;
        state_changelog_topics: Vec<TopicInfo<'a>>, 0..;
        repartition_sink_topics: Vec<&'a str>, 0..;
        repartition_source_topics: Vec<TopicInfo<'a>>, 0..;
        copartition_groups: Vec<CopartitionGroup>, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct Topology<'a> {
        epoch: i32, 0..;
        subtopologies: Vec<Subtopology<'a>>, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct TaskIds<'a> {
        subtopology_id: &'a str, 0..;
        partitions: Vec<i32>, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct Endpoint<'a> {
        host: &'a str, 0..;
        port: u16, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct TaskOffset<'a> {
        subtopology_id: &'a str, 0..;
        partition: i32, 0..;
        offset: i64, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct Status<'a> {
        status_code: i8, 0..;
        status_detail: &'a str, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct TopicPartition<'a> {
        topic: &'a str, 0..;
        partitions: Vec<i32>, 0..;
    }
}

message! {
    /// Part of `StreamsGroupHeartbeat`.
    pub struct EndpointToPartitions<'a> {
        user_endpoint: Endpoint<'a>, 0..;
        active_partitions: Vec<TopicPartition<'a>>, 0..;
        standby_partitions: Vec<TopicPartition<'a>>, 0..;
    }
}
