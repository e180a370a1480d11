//! One connection: which end asks and which answers, its frames taken to the observer, its open requests.
//!
//! In: capture events of one socket. Out: calls of the observer, and a verdict on the socket. The role of each direction
//! is learnt from the SYN and from content, never from ports: who sends plausible requests is the client once one of
//! them was answered.

#![forbid(unsafe_code)]

mod core;
mod judge;
mod sasl;

use std::sync::Arc;
use std::time::Duration;

use self::core::{BOTH, Core, Ended, PerDirection, Role};
use crate::counters::Counters;
use crate::frame::{Candidate, Frame, FrameEvent, FrameLimits, FrameOwner, Framer, LostReason, Next, Plausible};
pub use crate::observe::Sides;
use crate::observe::{self, ConnectionEventKind, Observation, Observer, Outcome, Side};
use crate::source::{Direction, SocketKey, Verdict};
use crate::stream::{Opened, Piece, Stream, StreamCounters, StreamLimits};
use crate::time::Timestamp;

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
