//! One connection: which end asks and which answers, its frames taken to the observer, its open requests.
//!
//! In: capture events of one socket. Out: calls of the observer, and a verdict on the socket. The role of each direction
//! is learnt from the SYN and from content, never from ports: who sends plausible requests is the client once one of
//! them was answered.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use crate::correlate::{OpenRequest, OpenRequests, RequestFacts};
use crate::counters::Counters;
use crate::frame::{Candidate, DesyncReason, Frame, FrameEvent, FrameLimits, FrameOwner, Framer, LostReason, Next, Plausible};
use crate::kafka::api::{self, Response};
use crate::kafka::versions;
use crate::kafka::wire::{DamageKind, Payload};
pub use crate::observe::Sides;
use crate::observe::{self, ConnectionEvent, ConnectionEventKind, Observation, Observer, Outcome, RequestState, Side, Who};
use crate::source::{Direction, SocketKey, Verdict};
use crate::stream::{Opened, Piece, Stream, StreamCounters, StreamLimits};
use crate::time::Timestamp;

/// Frames without any sense that a connection may begin with before it is given up as not Kafka.
const MAX_SENSELESS_FRAMES: u32 = 16;
/// Pieces without any sense that must have been seen in both directions before a connection whose beginning was missed
/// is given up. A large answer is thousands of pieces, so one direction alone says little.
const MAX_SENSELESS_PIECES: u32 = 64;
/// The same, in one direction alone.
const MAX_SENSELESS_PIECES_ONE_WAY: u32 = 100_000;
/// A longer client id is not believed while frames are searched for.
const MAX_CLIENT_ID_BYTES: usize = 256;
/// A longer request without a client id is not believed while frames are searched for.
const MAX_UNNAMED_BYTES: u32 = 1 << 20;
/// acks=0 requests kept until the connection has proved to be Kafka.
const MAX_UNCONFIRMED: usize = 1024;
/// An answer larger than this is not kept when it has to be looked at again.
const MAX_KEPT_ANSWER_BYTES: usize = 4 << 20;

/// Who reads what a connection says: the ends that the pipeline lends for the time of an event.
pub struct Reader<'a> {
    /// What happened in Kafka's terms.
    pub observer: &'a mut Observer,
    /// What was lost.
    pub counters: &'a mut Counters,
    /// Where observations go.
    pub sink: &'a mut dyn FnMut(Observation),
    /// Which ends' sockets are wanted.
    pub sides: Sides,
}

/// What is set for all connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionLimits {
    /// Reordering.
    pub stream: StreamLimits,
    /// Framing.
    pub frame: FrameLimits,
}

/// Which end of a socket asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Not known yet.
    Unknown,
    /// Requests go this way: from the SYN (then `confirmed` is still false), or proved by an answer.
    Requests(Direction),
}

#[derive(Debug)]
struct Half {
    stream: Stream,
    framer: Framer,
    /// The first piece decides how the framer starts.
    begun: bool,
}

impl Half {
    fn new(limits: &ConnectionLimits) -> Self {
        Self { stream: Stream::new(limits.stream), framer: Framer::new(limits.frame), begun: false }
    }
}

/// One of something for each direction.
#[derive(Debug, Default)]
struct PerDirection<T> {
    sent: T,
    received: T,
}

impl<T> PerDirection<T> {
    const fn get(&self, direction: Direction) -> &T {
        match direction {
            Direction::Sent => &self.sent,
            Direction::Received => &self.received,
        }
    }

    const fn get_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Sent => &mut self.sent,
            Direction::Received => &mut self.received,
        }
    }
}

/// What is known of a connection apart from its bytes.
#[derive(Debug)]
struct Core {
    key: SocketKey,
    /// Number of the connection.
    id: u64,
    /// Live sources see both ends of a local connection as two sockets.
    live: bool,
    process: Option<Arc<observe::Process>>,
    pid: Option<u32>,
    role: Role,
    /// One request and its answer were seen.
    confirmed: bool,
    info: Option<Arc<observe::Connection>>,
    /// Open requests by the direction they went. Once the role is known one of the two stays empty.
    open: PerDirection<OpenRequests<RequestState>>,
    /// acks=0 requests of a connection that is not confirmed.
    unconfirmed: Vec<OpenRequest<RequestState>>,
    /// An answer that paired with nothing while requests wait behind a hole.
    kept_answer: Option<KeptAnswer>,
    /// Frames of the answers are searched for while requests wait behind a hole.
    answers_unframed: bool,
    /// Raw SASL tokens go back and forth: after `SaslHandshake` v0, or from the first byte (GSSAPI of old).
    sasl_raw: bool,
    /// The last request was `SaslHandshake` v0: what follows is no request, whether its answer was seen or not.
    sasl_raw_follows: bool,
    /// Bytes of either direction are missing.
    holes_seen: bool,
    sasl_mechanism: Option<Arc<str>>,
    /// A `SaslAuthenticate` was answered well, or bare tokens were exchanged: the next other request says that it was the last one.
    sasl_succeeded: bool,
    client_id: Option<Arc<str>>,
    senseless_frames: u32,
    /// Pieces of each direction since it last made sense.
    senseless_pieces: PerDirection<u32>,
    /// Data of the requests' direction waits behind a hole.
    requests_wait: bool,
    /// Not Kafka, or not wanted: nothing of it is looked at any more.
    ignored: bool,
    verdict: Option<Verdict>,
    ended: Option<Ended>,
    /// When the first event was seen; `None` before it.
    first_event: Option<Timestamp>,
    last_event: Timestamp,
    /// Its SYN was seen: nothing came before the first event.
    opened: bool,
}

#[derive(Debug)]
struct KeptAnswer {
    payload: Vec<u8>,
    holes: Vec<std::ops::Range<usize>>,
    declared_bytes: u32,
    first: Timestamp,
    last: Timestamp,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ended {
    reset: bool,
    at: Timestamp,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    core: Core,
    halves: PerDirection<Half>,
    limits: ConnectionLimits,
}

/// A connection that is open and speaks Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Whose end was seen.
    pub side: Side,
    /// The client authenticated by SASL.
    pub authenticated: bool,
    /// Its socket.
    pub socket: SocketKey,
}

/// What an event did to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing of note.
    Continue,
    /// The event opens another connection of the same addresses: this one is to be finished, and the event given to a new one.
    Replaced,
}

const BOTH: [Direction; 2] = [Direction::Sent, Direction::Received];

impl Connection {
    /// A connection of which nothing was seen yet.
    pub fn new(key: SocketKey, id: u64, live: bool, limits: ConnectionLimits) -> Self {
        Self {
            core: Core {
                key,
                id,
                live,
                process: None,
                pid: None,
                role: Role::Unknown,
                confirmed: false,
                info: None,
                open: PerDirection::default(),
                unconfirmed: Vec::new(),
                kept_answer: None,
                answers_unframed: false,
                sasl_raw: false,
                sasl_raw_follows: false,
                holes_seen: false,
                sasl_mechanism: None,
                client_id: None,
                senseless_frames: 0,
                senseless_pieces: PerDirection::default(),
                requests_wait: false,
                ignored: false,
                sasl_succeeded: false,
                verdict: None,
                ended: None,
                first_event: None,
                last_event: Timestamp::ZERO,
                opened: false,
            },
            halves: PerDirection { sent: Half::new(&limits), received: Half::new(&limits) },
            limits,
        }
    }

    /// The process that owns the socket is known now.
    pub fn set_process(&mut self, pid: u32, process: Option<Arc<observe::Process>>) {
        self.core.pid = Some(pid);
        self.core.process = process;
        if let Some(info) = &self.core.info {
            self.core.info = Some(Arc::new(observe::Connection { process: self.core.process.clone(), ..(**info).clone() }));
        }
    }

    /// Pid that was set.
    pub const fn pid(&self) -> Option<u32> {
        self.core.pid
    }

    /// What the kernel may be told about the socket, each answer once.
    pub const fn take_verdict(&mut self) -> Option<Verdict> {
        self.core.verdict.take()
    }

    /// Memory that waits for more bytes.
    pub fn buffered_bytes(&self) -> usize {
        let half = |h: &Half| h.stream.buffered_bytes() + h.framer.buffered_bytes();
        let open = self.core.open.sent.kept_bytes() + self.core.open.received.kept_bytes();
        open + half(&self.halves.sent) + half(&self.halves.received) + self.core.kept_answer.as_ref().map_or(0, |k| k.payload.len())
    }

    /// What its two streams have seen.
    pub fn stream_counters(&self) -> [StreamCounters; 2] {
        [self.halves.sent.stream.counters(), self.halves.received.stream.counters()]
    }

    /// What is known of it while it is open: whether both ends use Kafka's own authentication, and whose side it is.
    pub fn followed(&self) -> Option<Followed> {
        let info = self.core.info.as_ref().filter(|_| self.core.confirmed && !self.core.ignored && self.core.ended.is_none())?;
        Some(Followed { side: info.side, authenticated: self.core.sasl_mechanism.is_some(), socket: self.core.key })
    }

    /// When the last event was seen.
    pub const fn last_event(&self) -> Timestamp {
        self.core.last_event
    }

    /// How long ago it ended; zero when it did not.
    pub fn ended_since(&self, now: Timestamp) -> Duration {
        self.core.ended.map_or(Duration::ZERO, |ended| now.since(ended.at))
    }

    /// Memory is short: what waits behind holes is let through, and frames that are not complete are given up.
    pub fn relieve(&mut self, now: Timestamp, reader: &mut Reader<'_>) {
        for direction in BOTH {
            self.run(direction, reader, Step::Flush(now));
            self.halves.get_mut(direction).framer.give_up();
        }
        self.look_again(now, reader);
        self.core.give_up_open(now, reader);
    }

    /// A SYN was seen.
    pub fn open(&mut self, direction: Direction, initiator: bool, first_position: u32, time: Timestamp) -> After {
        self.core.event_at(time);
        if initiator && self.core.ended.is_some() {
            return After::Replaced;
        }
        match self.halves.get_mut(direction).stream.open(first_position) {
            Opened::Other => return After::Replaced,
            Opened::Again => return After::Continue,
            Opened::First => self.core.opened = true,
        }
        if self.core.role == Role::Unknown {
            self.core.role = Role::Requests(if initiator { direction } else { direction.opposite() });
        }
        After::Continue
    }

    /// Bytes were seen.
    pub fn data(&mut self, data: &Data<'_>, reader: &mut Reader<'_>) {
        self.core.event_at(data.time);
        self.run(data.direction, reader, Step::Push(data));
        self.look_again(data.time, reader);
        self.settle(data.time, reader);
    }

    /// FIN or RST was seen.
    pub fn close(&mut self, direction: Direction, position: u32, reset: bool, time: Timestamp, reader: &mut Reader<'_>) {
        self.core.event_at(time);
        if reset {
            self.core.ended.get_or_insert(Ended { reset, at: time });
            self.halves.get_mut(direction).stream.reset(position);
        } else {
            self.halves.get_mut(direction).stream.close(position);
            self.end_when_finished(time);
        }
        self.settle(time, reader);
    }

    /// The broker will say no more: requests that are open get no answer. It is told at once, because the client's next
    /// attempt on another connection follows within a moment.
    fn settle(&mut self, at: Timestamp, reader: &mut Reader<'_>) {
        let Role::Requests(requests) = self.core.role else { return };
        if !self.halves.get(requests.opposite()).stream.is_finished() || !self.core.confirmed {
            return;
        }
        let left: Vec<_> = self.core.open.get_mut(requests).drain().collect();
        for open in left {
            let outcome = if open.answer_may_be_lost { Outcome::AnswerNotSeen } else { Outcome::ConnectionClosed };
            self.core.resolve(open, outcome, at, reader);
        }
    }

    /// Time went on.
    pub fn tick(&mut self, now: Timestamp, reader: &mut Reader<'_>) {
        for direction in BOTH {
            self.run(direction, reader, Step::Tick(now));
        }
        self.look_again(now, reader);
        self.end_when_finished(now);
        self.core.expire(now, reader);
    }

    /// Nothing more comes: holes are given up, open requests are told how they ended.
    pub fn finish(&mut self, now: Timestamp, reader: &mut Reader<'_>) {
        // Requests first, so that answers find them.
        let order = match self.core.role {
            Role::Requests(Direction::Received) => [Direction::Received, Direction::Sent],
            Role::Requests(Direction::Sent) | Role::Unknown => BOTH,
        };
        for direction in order {
            self.run(direction, reader, Step::Flush(now));
        }
        self.look_again(now, reader);
        for direction in order {
            let Self { core, halves, .. } = self;
            halves.get_mut(direction).framer.finish(now, &mut Owner { core, direction, reader });
        }
        self.core.end(now, reader);
    }

    fn end_when_finished(&mut self, at: Timestamp) {
        if self.halves.sent.stream.is_finished() && self.halves.received.stream.is_finished() {
            self.core.ended.get_or_insert(Ended { reset: false, at });
        }
    }

    /// Runs a step of a stream, and takes what comes out of it through the framer.
    fn run(&mut self, direction: Direction, reader: &mut Reader<'_>, step: Step<'_>) {
        let Self { core, halves, limits } = self;
        core.requests_wait = halves.get(direction.opposite()).stream.is_waiting();
        let Half { stream, framer, begun } = halves.get_mut(direction);
        let at_open = stream.begins_at_open();
        let mut take = |piece: Piece<'_>| {
            if !std::mem::replace(begun, true) && !at_open {
                *framer = Framer::starts_midway(limits.frame);
            }
            if let Piece::Bytes { .. } = piece {
                core.piece_seen(direction, reader);
            }
            framer.push(piece, &mut Owner { core, direction, reader });
            if core.verdict == Some(Verdict::Ignore) {
                framer.set_opaque();
            }
        };
        match step {
            Step::Push(data) => stream.push(data.position, data.bytes, data.missing_bytes, data.time, &mut take),
            Step::Flush(now) => stream.flush(now, &mut take),
            Step::Tick(now) => stream.tick(now, &mut take),
        }
        if core.ignored {
            halves.get_mut(direction.opposite()).framer.set_opaque();
        }
    }

    /// An answer that pairs with nothing while requests wait behind a hole proves that the hole stays: the broker has read
    /// past it. So do answers that cannot be framed any more. The requests are let through, and the answer is looked at again.
    fn look_again(&mut self, now: Timestamp, reader: &mut Reader<'_>) {
        let unframed = std::mem::take(&mut self.core.answers_unframed);
        let kept = self.core.kept_answer.take();
        if kept.is_none() && !unframed {
            return;
        }
        let Role::Requests(direction) = self.core.role else { return };
        self.run(direction, reader, Step::Flush(now));
        self.core.requests_wait = false;
        let Some(kept) = kept else { return };
        let frame = Frame {
            payload: &kept.payload,
            holes: &kept.holes,
            declared_bytes: kept.declared_bytes,
            first_time: kept.first,
            last_time: kept.last,
        };
        // Where the answers' frames begin is not in question here.
        let _: Next = self.core.answer(&frame, reader);
    }
}

/// What is done with a stream.
#[derive(Clone, Copy)]
enum Step<'a> {
    Push(&'a Data<'a>),
    Flush(Timestamp),
    Tick(Timestamp),
}

/// Bytes of a stream, as a source saw them.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    /// Which way they went.
    pub direction: Direction,
    /// Position of the first.
    pub position: u32,
    /// The bytes.
    pub bytes: &'a [u8],
    /// Bytes behind them that nobody kept.
    pub missing_bytes: u32,
    /// When they were seen.
    pub time: Timestamp,
}

struct Owner<'a, 'r> {
    core: &'a mut Core,
    direction: Direction,
    reader: &'a mut Reader<'r>,
}

impl FrameOwner for Owner<'_, '_> {
    fn judge(&self, candidate: Candidate<'_>) -> Plausible {
        self.core.judge(self.direction, candidate)
    }

    fn expects_short_frames(&self) -> bool {
        self.core.sasl_raw
    }

    fn on_frame_event(&mut self, event: FrameEvent<'_>) -> Next {
        let Self { core, direction, reader } = self;
        if core.ignored {
            return Next::Ignore;
        }
        match event {
            FrameEvent::Frame(frame) => core.frame(*direction, &frame, reader),
            FrameEvent::Lost { bytes, reason, time } => {
                reader.counters.unframed(lost_name(reason), bytes);
                if core.confirmed {
                    reader.counters.kafka_bytes(bytes, Some(lost_name(reason)));
                }
                if reason == LostReason::Hole {
                    core.answers_may_be_lost(*direction);
                }
                let _ = time;
                Next::Continue
            }
            FrameEvent::LostSync { reason, time } => core.lost_sync(*direction, reason, time, reader),
            FrameEvent::Resumed { time } => {
                core.connection_event(ConnectionEventKind::RegainedSync, time, reader);
                Next::Continue
            }
        }
    }
}

const fn lost_name(reason: LostReason) -> &'static str {
    match reason {
        LostReason::Hole => "hole",
        LostReason::Unframed => "unframed",
        LostReason::Unfinished => "unfinished",
    }
}

impl Core {
    /// A piece of the stream is about to be framed. A connection whose beginning was missed, and whose bytes make no sense
    /// for long, is not Kafka.
    fn piece_seen(&mut self, direction: Direction, reader: &mut Reader<'_>) {
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

    fn not_kafka(&mut self, reader: &mut Reader<'_>) {
        if !self.ignored {
            reader.counters.connections_other += 1;
            self.ignore();
        }
    }

    fn ignore(&mut self) {
        self.ignored = true;
        self.verdict = Some(Verdict::Ignore);
        self.open = PerDirection::default();
        self.unconfirmed = Vec::new();
        self.kept_answer = None;
    }

    fn judge(&self, direction: Direction, candidate: Candidate<'_>) -> Plausible {
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

    fn frame(&mut self, direction: Direction, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
        match self.role {
            Role::Requests(requests) if requests == direction => self.request(direction, frame, reader),
            Role::Requests(_) => self.answer(frame, reader),
            Role::Unknown => self.undecided(direction, frame, reader),
        }
    }

    /// A frame of a connection whose beginning was missed. It is an answer when it answers a request that went the other way
    /// and can be read as one; a request when it can be read as one.
    fn undecided(&mut self, direction: Direction, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
        if let Some(open) = correlation_id(frame).and_then(|id| self.open.get(direction.opposite()).find(id))
            && api::decode_response(open.facts.api_key, open.facts.api_version, payload(frame)).damage.is_none()
        {
            self.role = Role::Requests(direction.opposite());
            *self.open.get_mut(direction) = OpenRequests::default();
            return self.answer(frame, reader);
        }
        self.request(direction, frame, reader)
    }

    fn request(&mut self, direction: Direction, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
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
    fn unanswered_by_design(&mut self, facts: RequestFacts, state: RequestState, reader: &mut Reader<'_>) {
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
    fn senseless_request(&mut self, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
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

    fn answer(&mut self, frame: &Frame<'_>, reader: &mut Reader<'_>) -> Next {
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
    fn confirm(&mut self, requests: Direction, frame: &Frame<'_>, open: &OpenRequest<RequestState>, reader: &mut Reader<'_>) -> bool {
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

    /// What an answer says about SASL. Tokens themselves are never looked at.
    fn authentication(&mut self, open: &OpenRequest<RequestState>, frame: &Frame<'_>, reader: &mut Reader<'_>) {
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
    fn authenticated(&mut self, at: Timestamp, reader: &mut Reader<'_>) {
        if std::mem::take(&mut self.sasl_succeeded) {
            let mechanism = self.sasl_mechanism.clone().unwrap_or_else(|| Arc::from("unknown"));
            self.connection_event(ConnectionEventKind::Authenticated { mechanism }, at, reader);
        }
    }

    fn lost_sync(&mut self, direction: Direction, reason: DesyncReason, time: Timestamp, reader: &mut Reader<'_>) -> Next {
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
    fn give_up_open(&mut self, at: Timestamp, reader: &mut Reader<'_>) {
        let open = std::mem::take(&mut self.open);
        for mut open in [open.sent, open.received] {
            for request in open.drain() {
                self.resolve(request, Outcome::AnswerNotSeen, at, reader);
            }
        }
    }

    /// Bytes of this direction are missing, and with them perhaps answers to what is open.
    fn answers_may_be_lost(&mut self, direction: Direction) {
        self.holes_seen = true;
        self.open.get_mut(direction.opposite()).answers_may_be_lost();
    }

    fn connection_event(&self, kind: ConnectionEventKind, time: Timestamp, reader: &mut Reader<'_>) {
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
    fn never_confirmed(&self, direction: Direction, at: Timestamp, reader: &mut Reader<'_>) {
        let connection = self.describe(direction);
        if self.confirmed || self.ignored || self.open.get(direction).is_empty() || !reader.sides.wants(connection.side) {
            return;
        }
        let (client_id, seen_from) = (self.client_id.clone(), self.first_event.unwrap_or(at));
        let kind = ConnectionEventKind::NeverConfirmed;
        let event = ConnectionEvent { connection, client_id, seen_from, from_its_start: self.opened, time: at, kind };
        (reader.sink)(Observation::Connection(event));
    }

    fn event_at(&mut self, time: Timestamp) {
        self.first_event.get_or_insert(time);
        self.last_event = time;
    }

    fn describe(&self, requests: Direction) -> Arc<observe::Connection> {
        let side = if self.live && requests == Direction::Received { Side::Broker } else { Side::Client };
        let (client, broker) = match requests {
            Direction::Sent => (self.key.local, self.key.peer),
            Direction::Received => (self.key.peer, self.key.local),
        };
        Arc::new(observe::Connection { id: self.id, client, broker, side, process: self.process.clone() })
    }

    /// A request gets no answer.
    fn resolve(&self, open: OpenRequest<RequestState>, outcome: Outcome, at: Timestamp, reader: &mut Reader<'_>) {
        let Some(info) = &self.info else {
            reader.counters.frame("unconfirmed");
            return;
        };
        let who = Who { connection: info, pid: self.pid };
        reader.observer.unanswered(&who, open, outcome, at, reader.counters, reader.sink);
    }

    fn expire(&mut self, now: Timestamp, reader: &mut Reader<'_>) {
        for direction in BOTH {
            while let Some(open) = self.open.get_mut(direction).take_expired(now) {
                let outcome = if open.answer_may_be_lost { Outcome::AnswerNotSeen } else { Outcome::NoResponse };
                self.resolve(open, outcome, now, reader);
            }
        }
    }

    /// The connection is over, or what we see of it.
    fn end(&mut self, now: Timestamp, reader: &mut Reader<'_>) {
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
    fn of(frame: &Frame<'_>) -> Self {
        Self {
            payload: frame.payload.to_vec(),
            holes: frame.holes.to_vec(),
            declared_bytes: frame.declared_bytes,
            first: frame.first_time,
            last: frame.last_time,
        }
    }
}

fn payload<'a>(frame: &Frame<'a>) -> Payload<'a> {
    Payload::new(frame.payload, frame.holes, usize::try_from(frame.declared_bytes).unwrap_or(usize::MAX))
}

fn correlation_id(frame: &Frame<'_>) -> Option<i32> {
    api::correlation_id(payload(frame)).ok()
}
