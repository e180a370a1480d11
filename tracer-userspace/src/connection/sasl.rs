//! What is said of SASL, apart from its tokens, which are never looked at.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Reader;
use super::core::{Core, payload};
use crate::correlate::OpenRequest;
use crate::frame::Frame;
use crate::kafka::api::{self, Response};
use crate::kafka::versions;
use crate::observe::{ConnectionEventKind, RequestState};
use crate::time::Timestamp;

impl Core {
    /// What an answer says about SASL. Tokens themselves are never looked at.
    pub(super) fn authentication(&mut self, open: &OpenRequest<RequestState>, frame: &Frame<'_>, reader: &mut Reader<'_>) {
        let error = match api::decode_response(open.facts.api_key, open.facts.api_version, payload(frame)).value {
            _ if !matches!(open.facts.api_key, versions::SASL_AUTHENTICATE | versions::SASL_HANDSHAKE) => return,
            Response::SaslHandshake(answer) => {
                // v0: what follows are bare tokens with a size in front, no Kafka headers (KIP-43).
                self.sasl_raw = answer.error_code == 0 && open.facts.api_version == 0;
                answer.error_code
            }
            Response::SaslAuthenticate(answer) => {
                self.sasl_succeeded = answer.error_code == 0;
                answer.error_code
            }
            _ => return,
        };
        if error != 0 {
            let mechanism = self.sasl_mechanism.clone().unwrap_or_else(|| Arc::from("unknown"));
            self.connection_event(ConnectionEventKind::AuthenticationFailed { mechanism, error }, frame.last_time, reader);
        }
    }

    /// What the client says now comes after its last token.
    pub(super) fn authenticated(&mut self, at: Timestamp, reader: &mut Reader<'_>) {
        if std::mem::take(&mut self.sasl_succeeded) {
            let mechanism = self.sasl_mechanism.clone().unwrap_or_else(|| Arc::from("unknown"));
            self.connection_event(ConnectionEventKind::Authenticated { mechanism }, at, reader);
        }
    }
}
