//! Whether a place in a stream looks like the beginning of a frame of this connection.

#![forbid(unsafe_code)]

use super::core::{Core, Role};
use crate::frame::{Candidate, Plausible};
use crate::kafka::api;
use crate::source::Direction;

/// A longer client id is not believed while frames are searched for.
const MAX_CLIENT_ID_BYTES: usize = 256;
/// A longer request without a client id is not believed while frames are searched for.
const MAX_UNNAMED_BYTES: u32 = 1 << 20;

impl Core {
    pub(super) fn judge(&self, direction: Direction, candidate: Candidate<'_>) -> Plausible {
        let as_request = || {
            let Candidate { declared_bytes, head, at_piece_start } = candidate;
            // In the middle of a segment only a client id that this connection has used before is believed.
            if !at_piece_start && self.client_id.is_none() {
                return Plausible::No;
            }
            let is_all = u32::try_from(head.len()).is_ok_and(|length| length >= declared_bytes);
            let Some((length, named)) = head.get(8..).and_then(|rest| rest.split_first_chunk()) else {
                return if is_all { Plausible::No } else { Plausible::NeedMore };
            };
            let client_id_bytes = i16::from_be_bytes(*length);
            // As far as it is there. Waiting for more holds up what comes behind, so it must be worth it.
            if !api::plausible_request(i32::try_from(declared_bytes).unwrap_or(i32::MAX), head) {
                return Plausible::No;
            }
            if usize::try_from(client_id_bytes).is_ok_and(|length| length > named.len() && length <= MAX_CLIENT_ID_BYTES) && !is_all {
                return Plausible::NeedMore;
            }
            // Zeros and small numbers, which answers are full of, look like a request without a client id.
            let is_named = client_id_bytes > 0 || (head.get(4..8) != Some(&[0; 4]) && declared_bytes <= MAX_UNNAMED_BYTES);
            if is_named && (at_piece_start || self.is_own_client_id(head)) { Plausible::Yes } else { Plausible::No }
        };
        let as_answer = || {
            let Some(id) = candidate.head.first_chunk::<4>() else { return Plausible::NeedMore };
            let id = i32::from_be_bytes(*id);
            let open = self.open.get(direction.opposite()).find(id).is_some();
            // Small ids are common in all kinds of data; a segment's start is not.
            if open && (candidate.at_piece_start || id.unsigned_abs() > 255) { Plausible::Yes } else { Plausible::No }
        };
        match self.role {
            Role::Requests(requests) if requests == direction => as_request(),
            Role::Requests(_) => as_answer(),
            Role::Unknown => match as_answer() {
                Plausible::Yes => Plausible::Yes,
                Plausible::No => as_request(),
                Plausible::NeedMore => Plausible::NeedMore,
            },
        }
    }

    fn is_own_client_id(&self, head: &[u8]) -> bool {
        self.client_id
            .as_ref()
            .is_some_and(|known| !known.is_empty() && head.get(10..).is_some_and(|rest| rest.get(..known.len()) == Some(known.as_bytes())))
    }
}
