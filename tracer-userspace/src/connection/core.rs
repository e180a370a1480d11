//! What is known of a connection, and what its frames do to it: they prove that it speaks Kafka, are paired, and go to the observer.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Reader;
use crate::correlate::{OpenRequest, OpenRequests, RequestFacts};
use crate::frame::{DesyncReason, Frame, Next};
use crate::kafka::api;
use crate::kafka::versions;
use crate::kafka::wire::{DamageKind, Payload};
use crate::observe::{self, ConnectionEvent, ConnectionEventKind, Observation, Outcome, RequestState, Side, Who};
use crate::source::{Direction, SocketKey, Verdict};
use crate::time::Timestamp;

/// Frames without any sense that a connection may begin with before it is given up as not Kafka.
const MAX_SENSELESS_FRAMES: u32 = 16;
/// Pieces without any sense that must have been seen in both directions before a connection whose beginning was missed
/// is given up. A large answer is thousands of pieces, so one direction alone says little.
const MAX_SENSELESS_PIECES: u32 = 64;
/// The same, in one direction alone.
const MAX_SENSELESS_PIECES_ONE_WAY: u32 = 100_000;
/// acks=0 requests kept until the connection has proved to be Kafka.
const MAX_UNCONFIRMED: usize = 1024;
/// An answer larger than this is not kept when it has to be looked at again.
const MAX_KEPT_ANSWER_BYTES: usize = 4 << 20;

/// Which end of a socket asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Not known yet.
    Unknown,
    /// Requests go this way: from the SYN (then `confirmed` is still false), or proved by an answer.
    Requests(Direction),
}

/// One of something for each direction.
#[derive(Debug, Default)]
pub(super) struct PerDirection<T> {
    pub(super) sent: T,
    pub(super) received: T,
}

impl<T> PerDirection<T> {
    pub(super) const fn get(&self, direction: Direction) -> &T {
        match direction {
            Direction::Sent => &self.sent,
            Direction::Received => &self.received,
        }
    }

    pub(super) const fn get_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Sent => &mut self.sent,
            Direction::Received => &mut self.received,
        }
    }
}

pub(super) const BOTH: [Direction; 2] = [Direction::Sent, Direction::Received];

/// What is known of a connection apart from its bytes.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) key: SocketKey,
    /// Number of the connection.
    pub(super) id: u64,
    /// Live sources see both ends of a local connection as two sockets.
    pub(super) live: bool,
    pub(super) process: Option<Arc<observe::Process>>,
    pub(super) pid: Option<u32>,
    pub(super) role: Role,
    /// One request and its answer were seen.
    pub(super) confirmed: bool,
    pub(super) info: Option<Arc<observe::Connection>>,
    /// Open requests by the direction they went. Once the role is known one of the two stays empty.
    pub(super) open: PerDirection<OpenRequests<RequestState>>,
    /// acks=0 requests of a connection that is not confirmed.
    pub(super) unconfirmed: Vec<OpenRequest<RequestState>>,
    /// An answer that paired with nothing while requests wait behind a hole.
    pub(super) kept_answer: Option<KeptAnswer>,
    /// Frames of the answers are searched for while requests wait behind a hole.
    pub(super) answers_unframed: bool,
    /// Raw SASL tokens go back and forth: after `SaslHandshake` v0, or from the first byte (GSSAPI of old).
    pub(super) sasl_raw: bool,
    /// The last request was `SaslHandshake` v0: what follows is no request, whether its answer was seen or not.
    pub(super) sasl_raw_follows: bool,
    /// Bytes of either direction are missing.
    pub(super) holes_seen: bool,
    pub(super) sasl_mechanism: Option<Arc<str>>,
    /// A `SaslAuthenticate` was answered well, or bare tokens were exchanged: the next other request says that it was the last one.
    pub(super) sasl_succeeded: bool,
    pub(super) client_id: Option<Arc<str>>,
    pub(super) senseless_frames: u32,
    /// Pieces of each direction since it last made sense.
    pub(super) senseless_pieces: PerDirection<u32>,
    /// Data of the requests' direction waits behind a hole.
    pub(super) requests_wait: bool,
    /// Not Kafka, or not wanted: nothing of it is looked at any more.
    pub(super) ignored: bool,
    pub(super) verdict: Option<Verdict>,
    pub(super) ended: Option<Ended>,
    /// When the first event was seen; `None` before it.
    pub(super) first_event: Option<Timestamp>,
    pub(super) last_event: Timestamp,
    /// Its SYN was seen: nothing came before the first event.
    pub(super) opened: bool,
}

#[derive(Debug)]
pub(super) struct KeptAnswer {
    pub(super) payload: Vec<u8>,
    pub(super) holes: Vec<std::ops::Range<usize>>,
    pub(super) declared_bytes: u32,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) reset: bool,
    pub(super) at: Timestamp,
}

impl Core {
    /// A piece of the stream is about to be framed. A connection whose beginning was missed, and whose bytes make no sense
    /// for long, is not Kafka.
    pub(super) fn piece_seen(&mut self, direction: Direction, reader: &mut Reader<'_>) {
        if self.confirmed || self.ignored {
            return;
        }
        let count = self.senseless_pieces.get_mut(direction);
        *count += 1;
        let (sent, received) = (self.senseless_pieces.sent, self.senseless_pieces.received);
        if sent.min(received) > MAX_SENSELESS_PIECES || sent.max(received) > MAX_SENSELESS_PIECES_ONE_WAY {
            self.not_kafka(reader);
        }
    }

    pub(super) fn not_kafka(&mut self, reader: &mut Reader<'_>) {
        if !self.ignored {
            reader.counters.connections_other += 1;
            self.ignore();
        }
    }

    pub(super) fn ignore(&mut self) {
        self.ignored = true;
        self.verdict = Some(Verdict::Ignore);
        self.open = PerDirection::default();
        self.unconfirmed = Vec::new();
        self.kept_answer = None;
    }

    pub(super) fn frame(&mut self, direction: Direction, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
        match self.role {
            Role::Requests(requests) if requests == direction => self.request(direction, frame, reader),
            Role::Requests(_) => self.answer(frame, reader),
            Role::Unknown => self.undecided(direction, frame, reader),
        }
    }

    /// A frame of a connection whose beginning was missed. It is an answer when it answers a request that went the other way
    /// and can be read as one; a request when it can be read as one.
    pub(super) fn undecided(&mut self, direction: Direction, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
        if let Some(open) = correlation_id(frame).and_then(|id| self.open.get(direction.opposite()).find(id))
            && api::decode_response(open.facts.api_key, open.facts.api_version, payload(frame)).damage.is_none()
        {
            self.role = Role::Requests(direction.opposite());
            *self.open.get_mut(direction) = OpenRequests::default();
            return self.answer(frame, reader);
        }
        self.request(direction, frame, reader)
    }

    pub(super) fn request(&mut self, direction: Direction, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
        let payload = payload(frame);
        let plausible = api::plausible_request(i32::try_from(frame.declared_bytes).unwrap_or(i32::MAX), frame.payload);
        let header = match api::request_header(payload) {
            // A bare token can happen to have the shape of a header.
            Ok(header) if plausible || (self.confirmed && !self.sasl_raw && !self.sasl_raw_follows) => header,
            Ok(_) | Err(_) => return self.senseless_request(frame, reader),
        };
        // While it is not known which way requests go this may be an answer: no fault of it, and nothing to remember.
        if self.role == Role::Unknown
            && api::decode_request(&header, payload).damage.is_some_and(|damage| damage.kind() == DamageKind::Malformed)
        {
            return self.senseless_request(frame, reader);
        }
        if self.client_id.as_deref() != header.client_id {
            self.client_id = reader.observer.intern(header.client_id);
        }
        let facts = RequestFacts {
            api_key: header.api_key,
            api_version: header.api_version,
            correlation_id: header.correlation_id,
            client_id: self.client_id.clone(),
            first: frame.first_time,
            last: frame.last_time,
            bytes: u64::from(frame.declared_bytes) + 4,
        };
        let state = reader.observer.request(&header, payload, frame.last_time, reader.counters);
        self.sasl_raw_follows = false;
        if let Some(mechanism) = state.mechanism() {
            self.sasl_mechanism = Some(mechanism);
            self.sasl_raw_follows = header.api_version == 0;
        }
        // Bare tokens have no answer that says so: the broker goes on to requests only when it was content with them.
        self.sasl_succeeded |= std::mem::take(&mut self.sasl_raw);
        if self.confirmed && !matches!(header.api_key, versions::SASL_AUTHENTICATE | versions::SASL_HANDSHAKE) {
            self.authenticated(frame.last_time, reader);
        }
        *self.senseless_pieces.get_mut(direction) = 0;
        if state.is_unanswered() {
            self.unanswered_by_design(facts, state, reader);
            return Next::Continue;
        }
        if let Some(given_up) = self.open.get_mut(direction).push(facts, state) {
            self.resolve(given_up, Outcome::AnswerNotSeen, frame.last_time, reader);
        }
        Next::Continue
    }

    /// acks=0: nothing will ever answer. Before the connection has proved to be Kafka the request is only kept.
    pub(super) fn unanswered_by_design(&mut self, facts: RequestFacts, state: RequestState, reader: &mut Reader<'_>) {
        let at = facts.last;
        let open = OpenRequest { facts, answer_may_be_lost: false, state };
        if self.confirmed {
            self.resolve(open, Outcome::Unacknowledged, at, reader);
        } else if self.unconfirmed.len() < MAX_UNCONFIRMED {
            self.unconfirmed.push(open);
        } else {
            reader.counters.frame("unconfirmed");
        }
    }

    /// A frame that went the way of requests and is none.
    pub(super) fn senseless_request(&mut self, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
        // Raw tokens: GSSAPI of clients older than 0.10 from the first byte (an ASN.1 application tag), or after SaslHandshake v0.
        if self.sasl_raw || self.sasl_raw_follows || (!self.confirmed && frame.payload.first() == Some(&0x60)) {
            if !std::mem::replace(&mut self.sasl_raw, true) && !self.sasl_raw_follows {
                self.sasl_mechanism = Some(Arc::from("GSSAPI"));
            }
            reader.counters.frame("sasl_token");
            self.senseless_pieces = PerDirection::default();
            return Next::Continue;
        }
        if self.confirmed {
            reader.counters.frame("malformed");
            reader.counters.kafka_bytes(frame.bytes(), Some("malformed"));
            return Next::Resynchronise;
        }
        self.senseless_frames += 1;
        let from_first_byte = matches!(self.role, Role::Requests(_)) && !self.holes_seen;
        if from_first_byte || self.senseless_frames > MAX_SENSELESS_FRAMES {
            // Seen from its first byte, and that is no request: not Kafka.
            self.not_kafka(reader);
            return Next::Ignore;
        }
        Next::Resynchronise
    }

    pub(super) fn answer(&mut self, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
        let Role::Requests(requests) = self.role else { return Next::Continue };
        let id = correlation_id(frame);
        let Some(open) = id.and_then(|id| self.open.get_mut(requests).take(id)) else {
            if self.requests_wait && frame.payload.len() <= MAX_KEPT_ANSWER_BYTES && self.kept_answer.is_none() {
                self.kept_answer = Some(KeptAnswer::of(frame));
                return Next::Continue;
            }
            if self.sasl_raw {
                reader.counters.frame("sasl_token");
                self.senseless_pieces = PerDirection::default();
                return Next::Continue;
            }
            reader.counters.frame("unmatched_answer");
            reader.counters.kafka_bytes(frame.bytes(), Some("unmatched_answer"));
            return Next::Continue;
        };
        if !self.confirmed && !self.confirm(requests, frame, &open, reader) {
            return if self.ignored { Next::Ignore } else { Next::Resynchronise };
        }
        self.authentication(&open, frame, reader);
        let Some(info) = &self.info else { return Next::Continue };
        let who = Who { connection: info, pid: self.pid };
        reader.observer.answered(&who, open, payload(frame), (frame.first_time, frame.last_time), reader.counters, reader.sink);
        Next::Continue
    }

    /// The first answer. False when it is none, or when the connection is not wanted.
    pub(super) fn confirm(
        &mut self,
        requests: Direction,
        frame: &Frame<'_>,
        open: &OpenRequest<RequestState>,
        reader: &mut Reader<'_>,
    ) -> bool {
        let decoded = api::decode_response(open.facts.api_key, open.facts.api_version, payload(frame));
        if frame.is_whole() && decoded.damage.is_some_and(|damage| damage.kind() == DamageKind::Malformed) {
            reader.counters.frame("malformed");
            return false;
        }
        self.confirmed = true;
        reader.counters.connections_kafka += 1;
        let info = self.describe(requests);
        let side = info.side;
        self.info = Some(info);
        if !reader.sides.wants(side) {
            self.ignore();
            return false;
        }
        self.verdict = Some(Verdict::Capture);
        self.connection_event(ConnectionEventKind::Confirmed, frame.last_time, reader);
        self.authenticated(frame.last_time, reader);
        for kept in std::mem::take(&mut self.unconfirmed) {
            let at = kept.facts.last;
            self.resolve(kept, Outcome::Unacknowledged, at, reader);
        }
        true
    }

    pub(super) fn lost_sync(&mut self, direction: Direction, reason: DesyncReason, time: Timestamp, reader: &mut Reader<'_>) -> Next {
        if let DesyncReason::Size(size) = reason
            && !self.confirmed
            && !self.holes_seen
            && matches!(self.role, Role::Requests(_))
        {
            // Seen from its first byte, and that is no frame. A TLS record begins with its type (22, handshake) and 3.x.
            let [record_type, major, _, _] = size.to_be_bytes();
            if record_type == 22 && major == 3 {
                reader.counters.connections_encrypted += 1;
                self.connection_event(ConnectionEventKind::Encrypted, time, reader);
                self.ignore();
            } else {
                self.not_kafka(reader);
            }
            return Next::Ignore;
        }
        self.answers_may_be_lost(direction);
        self.answers_unframed |= self.requests_wait && self.role == Role::Requests(direction.opposite());
        if reason == DesyncReason::Restart {
            // Other ends talk now: what was open stays unanswered.
            self.give_up_open(time, reader);
        }
        if self.confirmed {
            reader.counters.lost_sync += 1;
            self.connection_event(ConnectionEventKind::LostSync, time, reader);
        }
        Next::Continue
    }

    /// Nothing that is open will be paired with its answer any more.
    pub(super) fn give_up_open(&mut self, at: Timestamp, reader: &mut Reader<'_>) {
        let open = std::mem::take(&mut self.open);
        for mut open in [open.sent, open.received] {
            for request in open.drain() {
                self.resolve(request, Outcome::AnswerNotSeen, at, reader);
            }
        }
    }

    /// Bytes of this direction are missing, and with them perhaps answers to what is open.
    pub(super) fn answers_may_be_lost(&mut self, direction: Direction) {
        self.holes_seen = true;
        self.open.get_mut(direction.opposite()).answers_may_be_lost();
    }

    pub(super) fn connection_event(&self, kind: ConnectionEventKind, time: Timestamp, reader: &mut Reader<'_>) {
        let connection = self.info.clone().unwrap_or_else(|| self.describe(Direction::Sent));
        let event = ConnectionEvent {
            connection,
            client_id: self.client_id.clone(),
            seen_from: self.first_event.unwrap_or(time),
            from_its_start: self.opened,
            time,
            kind,
        };
        (reader.sink)(Observation::Connection(event));
    }

    /// Requests went this way, none was answered: what else was said is not known.
    pub(super) fn never_confirmed(&self, direction: Direction, at: Timestamp, reader: &mut Reader<'_>) {
        let connection = self.describe(direction);
        if self.confirmed || self.ignored || self.open.get(direction).is_empty() || !reader.sides.wants(connection.side) {
            return;
        }
        let (client_id, seen_from) = (self.client_id.clone(), self.first_event.unwrap_or(at));
        let kind = ConnectionEventKind::NeverConfirmed;
        let event = ConnectionEvent { connection, client_id, seen_from, from_its_start: self.opened, time: at, kind };
        (reader.sink)(Observation::Connection(event));
    }

    pub(super) fn event_at(&mut self, time: Timestamp) {
        self.first_event.get_or_insert(time);
        self.last_event = time;
    }

    pub(super) fn describe(&self, requests: Direction) -> Arc<observe::Connection> {
        let side = if self.live && requests == Direction::Received { Side::Broker } else { Side::Client };
        let (client, broker) = match requests {
            Direction::Sent => (self.key.local, self.key.peer),
            Direction::Received => (self.key.peer, self.key.local),
        };
        Arc::new(observe::Connection { id: self.id, client, broker, side, process: self.process.clone() })
    }

    /// A request gets no answer.
    pub(super) fn resolve(&self, open: OpenRequest<RequestState>, outcome: Outcome, at: Timestamp, reader: &mut Reader<'_>) {
        let Some(info) = &self.info else {
            reader.counters.frame("unconfirmed");
            return;
        };
        let who = Who { connection: info, pid: self.pid };
        reader.observer.unanswered(&who, open, outcome, at, reader.counters, reader.sink);
    }

    pub(super) fn expire(&mut self, now: Timestamp, reader: &mut Reader<'_>) {
        for direction in BOTH {
            while let Some(open) = self.open.get_mut(direction).take_expired(now) {
                let outcome = if open.answer_may_be_lost { Outcome::AnswerNotSeen } else { Outcome::NoResponse };
                self.resolve(open, outcome, now, reader);
            }
        }
    }

    /// The connection is over, or what we see of it.
    pub(super) fn end(&mut self, now: Timestamp, reader: &mut Reader<'_>) {
        let (outcome, at) = match self.ended {
            Some(ended) => (Outcome::ConnectionClosed, ended.at),
            None => (Outcome::AnswerNotSeen, now),
        };
        for direction in BOTH {
            self.never_confirmed(direction, at, reader);
        }
        let left: Vec<_> = self.open.sent.drain().chain(self.open.received.drain()).collect();
        for open in left {
            let outcome = if open.answer_may_be_lost { Outcome::AnswerNotSeen } else { outcome };
            self.resolve(open, outcome, at, reader);
        }
        for _ in self.unconfirmed.drain(..) {
            reader.counters.frame("unconfirmed");
        }
        if let (Some(info), Some(ended)) = (&self.info, self.ended)
            && self.confirmed
            && !self.ignored
        {
            reader.observer.closed(&Who { connection: info, pid: self.pid }, self.client_id.as_ref());
            self.connection_event(ConnectionEventKind::Closed { reset: ended.reset }, ended.at, reader);
        }
    }
}

impl KeptAnswer {
    pub(super) fn of(frame: &Frame<'_>) -> Self {
        Self {
            payload: frame.payload.to_vec(),
            holes: frame.holes.to_vec(),
            declared_bytes: frame.declared_bytes,
            first: frame.first_time,
            last: frame.last_time,
        }
    }
}

pub(super) fn payload<'a>(frame: &Frame<'a>) -> Payload<'a> {
    Payload::new(frame.payload, frame.holes, usize::try_from(frame.declared_bytes).unwrap_or(usize::MAX))
}

fn correlation_id(frame: &Frame<'_>) -> Option<i32> {
    api::correlation_id(payload(frame)).ok()
}
