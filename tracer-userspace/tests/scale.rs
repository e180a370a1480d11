//! Memory has a ceiling that no traffic can break. A counting allocator holds the whole line against it.

#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait; it only adds numbers")]
#![expect(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracer_userspace::observe::Observation;
use tracer_userspace::pipeline::{Pipeline, PipelineSettings, Sink};
use tracer_userspace::source::{CaptureEvent, Direction, EventKind, SocketKey};
use tracer_userspace::telemetry::{SpanSettings, Telemetry};
use tracer_userspace::time::Timestamp;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The tests of this file count one after another.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Debug builds are slow: they run a part, `cargo xtask test` runs all of it in a release build.
const PART: u32 = if cfg!(debug_assertions) { 50 } else { 1 };

/// The default ceiling of the daemon.
const CEILING: usize = 256 << 20;

/// Runs `work`, and returns the most memory that it held at once.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

struct Line {
    pipeline: Pipeline,
    out: Out,
    now_ns: u64,
}

struct Out {
    telemetry: Telemetry,
    observations: u64,
    spans: u64,
}

impl Sink for Out {
    fn observation(&mut self, observation: Observation) {
        self.observations += 1;
        self.telemetry.observe(&observation, &mut |_| self.spans += 1);
    }
}

impl Line {
    fn new() -> Self {
        Self {
            pipeline: Pipeline::new(PipelineSettings::default()),
            out: Out { telemetry: Telemetry::new(SpanSettings::live()), observations: 0, spans: 0 },
            now_ns: 1_700_000_000_000_000_000,
        }
    }

    fn event(&mut self, socket: SocketKey, kind: EventKind<'_>) {
        self.now_ns += 10_000;
        let event = CaptureEvent { socket, time: Timestamp::from_unix_ns(self.now_ns), pid: None, kind };
        self.pipeline.push(&event, &mut self.out);
    }

    fn open(&mut self, socket: SocketKey) {
        for (direction, initiator) in [(Direction::Sent, true), (Direction::Received, false)] {
            self.event(socket, EventKind::Open { direction, initiator, first_position: 1 });
        }
    }

    fn data(&mut self, socket: SocketKey, direction: Direction, position: u32, bytes: &[u8]) {
        self.event(socket, EventKind::Data { direction, position, bytes, missing_bytes: 0 });
    }

    fn close(&mut self, socket: SocketKey) {
        self.event(socket, EventKind::Close { direction: Direction::Sent, position: 0, reset: true });
    }

    /// A request and its answer on a connection of their own.
    fn exchange(&mut self, number: u32, request: &[u8], answer: &[u8]) {
        let socket = socket(number);
        self.open(socket);
        self.data(socket, Direction::Sent, 1, request);
        self.data(socket, Direction::Received, 1, answer);
        self.close(socket);
    }
}

fn socket(number: u32) -> SocketKey {
    let [a, b, c, d] = number.to_be_bytes();
    SocketKey { scope: 0, local: SocketAddr::from(([10, a, b, c], 1024 + u16::from(d))), peer: SocketAddr::from(([10, 255, 0, 1], 9092)) }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A request of an inflexible version.
fn request(api_key: i16, api_version: i16, client_id: &str, body: &[u8]) -> Vec<u8> {
    let mut payload = [api_key.to_be_bytes(), api_version.to_be_bytes()].concat();
    payload.extend_from_slice(&7_i32.to_be_bytes());
    payload.extend(string(client_id));
    payload.extend_from_slice(body);
    frame(&payload)
}

fn answer(body: &[u8]) -> Vec<u8> {
    frame(&[&7_i32.to_be_bytes(), body].concat())
}

/// Heartbeat v0: names its group.
fn heartbeat(client_id: &str, group: &str) -> (Vec<u8>, Vec<u8>) {
    let body = [string(group), 1_i32.to_be_bytes().to_vec(), string("member")].concat();
    (request(12, 0, client_id, &body), answer(&[0, 0]))
}

#[test]
fn ten_thousand_connections_in_mid_frame_stay_below_the_ceiling() {
    let _alone = ALONE.lock();
    let mut line = Line::new();
    let (ask, tell) = heartbeat("client", "group");
    // A Produce that claims 90 MiB, of which 64 KiB come.
    let mut begun = 90_000_000_u32.to_be_bytes().to_vec();
    begun.extend_from_slice(&request(0, 3, "client", &[])[4..]);
    begun.resize(64 << 10, 0);
    let peak = peak_of(|| {
        for number in 0..10_000 / PART {
            line.open(socket(number));
            line.data(socket(number), Direction::Sent, 1, &ask);
            line.data(socket(number), Direction::Received, 1, &tell);
            line.data(socket(number), Direction::Sent, 1 + u32::try_from(ask.len()).unwrap(), &begun);
        }
    });
    assert_eq!(u32::try_from(line.pipeline.connections()), Ok(10_000 / PART));
    assert_eq!(line.pipeline.counters().connections_kafka, u64::from(10_000 / PART));
    assert!(peak < CEILING, "{} MiB", peak >> 20);
}

#[test]
fn a_million_connections_one_after_another_leave_nothing_behind() {
    let _alone = ALONE.lock();
    let mut line = Line::new();
    let (ask, tell) = heartbeat("client", "group");
    let peak = peak_of(|| {
        for number in 0..1_000_000 / PART {
            line.exchange(number, &ask, &tell);
        }
    });
    let counters = line.pipeline.counters();
    assert_eq!((counters.connections, counters.connections_kafka), (u64::from(1_000_000 / PART), u64::from(1_000_000 / PART)));
    assert!(peak < CEILING, "{} MiB", peak >> 20);
}

#[test]
fn a_hundred_thousand_topics_stay_below_the_ceiling() {
    let _alone = ALONE.lock();
    let mut line = Line::new();
    let peak = peak_of(|| {
        for number in 0..100_000 / PART {
            // OffsetCommit v2 of a topic of its own, with the longest name that Kafka allows.
            let topic = format!("{number:0>249}");
            let partition = [0_i32.to_be_bytes().to_vec(), 5_i64.to_be_bytes().to_vec(), string("")].concat();
            let topics = [1_i32.to_be_bytes().to_vec(), string(&topic), 1_i32.to_be_bytes().to_vec(), partition].concat();
            let body = [string("group"), 1_i32.to_be_bytes().to_vec(), string("member"), (-1_i64).to_be_bytes().to_vec(), topics].concat();
            let said = [1_i32.to_be_bytes().to_vec(), string(&topic), 1_i32.to_be_bytes().to_vec(), vec![0, 0, 0, 0, 0, 0]].concat();
            line.exchange(number, &request(8, 2, "client", &body), &answer(&said));
        }
    });
    // What the part of a debug build sees takes less time than observations may be held back.
    line.pipeline.finish(&mut line.out);
    assert!(line.out.spans > 0);
    assert_eq!(line.pipeline.counters().frames.get("decoded"), Some(&u64::from(100_000 / PART)));
    assert!(peak < CEILING, "{} MiB", peak >> 20);
}

#[test]
fn a_million_groups_and_clients_of_random_names_stay_below_the_ceiling() {
    let _alone = ALONE.lock();
    let mut line = Line::new();
    let peak = peak_of(|| {
        for number in 0..1_000_000 / PART {
            // Names longer than anyone remembers, now and then.
            let width = if number % 100 == 0 { 30_000 } else { 200 };
            let (ask, tell) = heartbeat(&format!("client-{number:0>width$}"), &format!("group-{number:0>width$}"));
            line.exchange(number, &ask, &tell);
        }
    });
    assert!(peak < CEILING, "{} MiB", peak >> 20);
}

#[test]
fn requests_that_nobody_answers_stay_below_the_ceiling() {
    let _alone = ALONE.lock();
    let mut line = Line::new();
    let (ask, tell) = heartbeat("client", "group");
    // SyncGroup v0 with an assignment of 900 KiB: kept to be read beside its answer, which never comes.
    let assignment = vec![0; 900 << 10];
    let length = u32::try_from(assignment.len()).unwrap().to_be_bytes().to_vec();
    let one = [1_i32.to_be_bytes().to_vec(), string("member"), length, assignment].concat();
    let big = request(14, 0, "client", &[string("group"), 1_i32.to_be_bytes().to_vec(), string("member"), one].concat());
    let peak = peak_of(|| {
        line.open(socket(1));
        line.data(socket(1), Direction::Sent, 1, &ask);
        line.data(socket(1), Direction::Received, 1, &tell);
        let mut position = 1 + u32::try_from(ask.len()).unwrap();
        for _ in 0..1_000 {
            line.data(socket(1), Direction::Sent, position, &big);
            position = position.wrapping_add(u32::try_from(big.len()).unwrap());
        }
    });
    assert_eq!(line.pipeline.connections(), 1);
    assert!(peak < CEILING, "{} MiB", peak >> 20);
}
