//! The line from a source's events to observations: the only module that knows all its steps.
//!
//! In: [`CaptureEvent`]s, and the time. Out: observations, and verdicts on sockets. The daemon and `replay` run this same
//! pipeline.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use hashlink::LruCache;

use crate::connection::{After, Connection, ConnectionLimits, Data, Followed, Reader, Sides};
use crate::counters::Counters;
use crate::observe::{Observation, ObserveSettings, Observer, Process};
use crate::source::{CaptureEvent, EventKind, SocketKey, Verdict};
use crate::time::Timestamp;

/// How often, in time of events, all connections are looked at for what has waited too long.
const TICK: Duration = Duration::from_millis(100);
/// How long a connection that ended is kept for packets that come late.
const LINGER: Duration = Duration::from_secs(1);
/// Connections that were silent for so long are forgotten. Kafka's own `connections.max.idle.ms` is 10 minutes.
const IDLE: Duration = Duration::from_hours(1);

/// What is set for the whole line.
#[derive(Clone, Debug)]
pub struct PipelineSettings {
    /// For observing.
    pub observe: ObserveSettings,
    /// For each connection.
    pub connection: ConnectionLimits,
    /// Which ends' sockets are wanted.
    pub sides: Sides,
    /// The source sees both ends of a local connection as two sockets, and takes verdicts.
    pub live: bool,
    /// Connections kept at once; the one that was silent longest is forgotten for a new one.
    pub max_connections: usize,
    /// Memory that all connections may hold while they wait for more bytes.
    pub max_buffered_bytes: usize,
}

impl Default for PipelineSettings {
    fn default() -> Self {
        Self {
            observe: ObserveSettings::default(),
            connection: ConnectionLimits::default(),
            sides: Sides::Client,
            live: false,
            max_connections: 65_536,
            max_buffered_bytes: 192 << 20,
        }
    }
}

/// Who takes what comes out.
pub trait Sink {
    /// Something happened.
    fn observation(&mut self, observation: Observation);
    /// The source may be told this about a socket.
    fn verdict(&mut self, _socket: SocketKey, _verdict: Verdict) {}
    /// Describes a process, asked once for each connection.
    fn process(&mut self, _pid: u32) -> Option<Arc<Process>> {
        None
    }
}

/// The line.
pub struct Pipeline {
    settings: PipelineSettings,
    connections: LruCache<SocketKey, Connection>,
    observer: Observer,
    counters: Counters,
    next_id: u64,
    next_tick: Timestamp,
    now: Timestamp,
    buffered_bytes: usize,
}

impl Pipeline {
    /// Nothing seen yet.
    pub fn new(settings: PipelineSettings) -> Self {
        Self {
            observer: Observer::new(&settings.observe),
            connections: LruCache::new(settings.max_connections.max(1)),
            settings,
            counters: Counters::default(),
            next_id: 1,
            next_tick: Timestamp::ZERO,
            now: Timestamp::ZERO,
            buffered_bytes: 0,
        }
    }

    /// Takes an event.
    pub fn push(&mut self, event: &CaptureEvent<'_>, sink: &mut impl Sink) {
        self.now = self.now.max(event.time);
        if !self.connections.contains_key(&event.socket) {
            self.admit(event.socket, sink);
        }
        if self.give(event, sink) == After::Replaced {
            self.end(event.socket, sink);
            self.admit(event.socket, sink);
            let _: After = self.give(event, sink);
        }
        if self.buffered_bytes > self.settings.max_buffered_bytes {
            self.relieve(sink);
        }
        if event.time >= self.next_tick {
            self.tick(event.time, sink);
        }
    }

    /// The time is `now`, whether there was an event or not.
    pub fn tick(&mut self, now: Timestamp, sink: &mut impl Sink) {
        self.now = self.now.max(now);
        self.next_tick = self.now.plus(TICK);
        let (mut over, mut verdicts) = (Vec::new(), Vec::new());
        let Self { connections, observer, counters, settings, buffered_bytes, .. } = self;
        for (key, connection) in &mut *connections {
            let before = connection.buffered_bytes();
            let mut give = |observation| sink.observation(observation);
            connection.tick(now, &mut Reader { observer, counters, sink: &mut give, sides: settings.sides });
            *buffered_bytes = (*buffered_bytes + connection.buffered_bytes()).saturating_sub(before);
            verdicts.extend(connection.take_verdict().map(|verdict| (*key, verdict)));
            if connection.ended_since(now) > LINGER || now.since(connection.last_event()) > IDLE {
                over.push(*key);
            }
        }
        for (socket, verdict) in verdicts {
            sink.verdict(socket, verdict);
        }
        for key in over {
            self.end(key, sink);
        }
        self.observer.tick(now, &mut self.counters, &mut |observation| sink.observation(observation));
    }

    /// Nothing more comes.
    pub fn finish(&mut self, sink: &mut impl Sink) {
        let keys: Vec<_> = self.connections.iter().map(|(key, _)| *key).collect();
        for key in keys {
            self.end(key, sink);
        }
        self.observer.finish(self.now, &mut self.counters, &mut |observation| sink.observation(observation));
    }

    /// What was counted so far, streams that are still open included.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        for (_, connection) in &self.connections {
            add_streams(&mut counters, connection);
        }
        counters
    }

    /// Connections that are open and speak Kafka.
    pub fn followed(&self) -> impl Iterator<Item = Followed> {
        self.connections.iter().filter_map(|(_, connection)| connection.followed())
    }

    /// Connections known now.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Memory that connections hold while they wait for more bytes.
    pub const fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    fn admit(&mut self, socket: SocketKey, sink: &mut impl Sink) {
        if self.connections.len() >= self.settings.max_connections
            && let Some(oldest) = self.connections.iter().next().map(|(key, _)| *key)
        {
            self.counters.connections_evicted += 1;
            self.end(oldest, sink);
        }
        self.counters.connections += 1;
        self.connections.insert(socket, Connection::new(socket, self.next_id, self.settings.live, self.settings.connection));
        self.next_id += 1;
    }

    fn give(&mut self, event: &CaptureEvent<'_>, sink: &mut impl Sink) -> After {
        let Self { connections, observer, counters, settings, buffered_bytes, .. } = self;
        let Some(connection) = connections.get_mut(&event.socket) else { return After::Continue };
        if let Some(pid) = event.pid
            && connection.pid() != Some(pid)
        {
            connection.set_process(pid, sink.process(pid));
        }
        match event.kind {
            EventKind::Open { direction, initiator, first_position } => {
                return connection.open(direction, initiator, first_position, event.time);
            }
            EventKind::Data { direction, position, bytes, missing_bytes } => {
                let before = connection.buffered_bytes();
                let data = Data { direction, position, bytes, missing_bytes, time: event.time };
                let mut give = |observation| sink.observation(observation);
                connection.data(&data, &mut Reader { observer, counters, sink: &mut give, sides: settings.sides });
                *buffered_bytes = (*buffered_bytes + connection.buffered_bytes()).saturating_sub(before);
            }
            EventKind::Close { direction, position, reset } => {
                let mut give = |observation| sink.observation(observation);
                let mut reader = Reader { observer, counters, sink: &mut give, sides: settings.sides };
                connection.close(direction, position, reset, event.time, &mut reader);
            }
        }
        if let Some(verdict) = connection.take_verdict() {
            sink.verdict(event.socket, verdict);
        }
        After::Continue
    }

    /// Too much waits for more bytes: the connections that hold most give up what they hold, as holes, until there is room
    /// again.
    fn relieve(&mut self, sink: &mut impl Sink) {
        let Self { connections, observer, counters, settings, buffered_bytes, now, .. } = self;
        let mut holders: Vec<_> = connections.iter().map(|(key, connection)| (connection.buffered_bytes(), *key)).collect();
        holders.sort_unstable_by(|a, b| b.cmp(a));
        let mut give = |observation| sink.observation(observation);
        let room = settings.max_buffered_bytes - settings.max_buffered_bytes / 8;
        for (before, key) in holders {
            if *buffered_bytes <= room {
                break;
            }
            let Some(connection) = connections.peek_mut(&key) else { continue };
            counters.relieved += 1;
            connection.relieve(*now, &mut Reader { observer, counters, sink: &mut give, sides: settings.sides });
            *buffered_bytes = (*buffered_bytes + connection.buffered_bytes()).saturating_sub(before);
        }
    }

    fn end(&mut self, socket: SocketKey, sink: &mut impl Sink) {
        let Some(mut connection) = self.connections.remove(&socket) else { return };
        self.buffered_bytes = self.buffered_bytes.saturating_sub(connection.buffered_bytes());
        let Self { observer, counters, settings, now, .. } = self;
        let mut give = |observation| sink.observation(observation);
        connection.finish(*now, &mut Reader { observer, counters, sink: &mut give, sides: settings.sides });
        add_streams(&mut self.counters, &connection);
    }
}

fn add_streams(counters: &mut Counters, connection: &Connection) {
    for stream in connection.stream_counters() {
        counters.stream_bytes += stream.bytes;
        counters.stream_gaps += stream.gaps;
        counters.stream_gap_bytes += stream.gap_bytes;
        counters.duplicate_bytes += stream.duplicate_bytes;
    }
}
