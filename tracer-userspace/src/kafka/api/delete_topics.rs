//! `DeleteTopics`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;
use crate::observe::TopicId;

message! {
    /// `DeleteTopics`, the request.
    pub struct DeleteTopicsRequest<'a> {
        topics: Vec<DeleteTopicState<'a>>, 6..;
        topic_names: Vec<&'a str>, 0..=5;
        timeout_ms: i32, 0..;
    }
}

message! {
    /// `DeleteTopics`, the answer.
    pub struct DeleteTopicsResponse<'a> {
        throttle_time_ms: i32, 1..;
        responses: Vec<DeletableTopicResult<'a>>, 0..;
    }
}

message! {
    /// Part of `DeleteTopics`.
    pub struct DeleteTopicState<'a> {
        name: Option<&'a str>, 6..;
        topic_id: Option<TopicId>, 6..;
    }
}

message! {
    /// Part of `DeleteTopics`.
    pub struct DeletableTopicResult<'a> {
        name: Option<&'a str>, 0..;
        topic_id: Option<TopicId>, 6..;
        error_code: i16, 0..;
        error_message: Option<&'a str>, 5..;
    }
}
