//! `SaslHandshake`.

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "the fields have the names of Kafka's message schemas, which say what they hold")]

use super::message::message;

message! {
    /// `SaslHandshake`, the request.
    pub struct SaslHandshakeRequest<'a> {
        mechanism: &'a str, 0..;
    }
}

message! {
    /// `SaslHandshake`, the answer.
    pub struct SaslHandshakeResponse<'a> {
        error_code: i16, 0..;
        mechanisms: Vec<&'a str>, 0..;
    }
}
