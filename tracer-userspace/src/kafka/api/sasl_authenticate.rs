//! `SaslAuthenticate`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::common::{Opaque};
use super::message::message;

message! {
    /// `SaslAuthenticate`, the request.
    pub struct SaslAuthenticateRequest {
        auth_bytes: Opaque, 0..;
    }
}

message! {
    /// `SaslAuthenticate`, the answer.
    pub struct SaslAuthenticateResponse<'a> {
        error_code: i16, 0..;
        error_message: Option<&'a str>, 0..;
        auth_bytes: Opaque, 0..;
        session_lifetime_ms: i64, 1..;
    }
}
