//! The TLS source: programs at the functions of TLS libraries see the plaintext of encrypted connections.
//!
//! In: the kernel's events, through a ring. Out: [`CaptureEvent`]s with the addresses of the sockets below the sessions, and positions that
//! count plaintext from the session's first byte, or from the first that was seen.
//!
//! Runs beside a main source, which sees the same connections encrypted, and dismisses them. Looks into processes that have a connection
//! to a port known for Kafka, unless that connection is plain, and into no other.

mod discover;
mod library;
mod mapped;
mod opaque;
mod patience;
mod proc;
mod programs;
mod rights;
mod rustls;
mod translate;
mod turn;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, MapData, RingBuf};
use rustix::thread::CapabilitySet;
use tracer_common::config::PortRule;
use tracer_common::counter::Counter;
use tracer_common::limits;
use tracer_common::socket::State;
use tracer_common::tls::transport;
use tracer_common::verdict;

use super::cells::{self, Cells};
use super::clock::{self, Offset};
use super::load::{self, chain};
use super::missed::Missed;
use super::outside::{Taken, word};
use super::packet::cgroup;
use super::probe::Support;
use super::{LiveSource, MISSED, Polled, RING_FULL, RunTime, SourceCounts, SourceError, StartError};
use crate::privileges::OBSERVING;
use crate::source::{CaptureEvent, SocketKey, Verdict};
pub(super) use discover::started_of;
use discover::{Loaded, Order, Shared};
pub(super) use mapped::Mapped;
pub(super) use opaque::by_libraries;
pub(crate) use programs::object;
pub(crate) use rights::may_attach;
use translate::{Note, Translator};

/// Events that one look hands on before it returns to its caller.
const MAX_EVENTS_PER_LOOK: u64 = 65_536;

/// How often clocks are compared and old data is dropped.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What the thread that looks for libraries keeps: to look at processes and the files that they have mapped, and to attach to them. For
/// uprobes the kernel asks for `CAP_SYS_ADMIN` (kernel/events/core.c, `perf_uprobe_event_init`; seen on 6.18).
pub(super) const ATTACHING: CapabilitySet =
    OBSERVING.union(CapabilitySet::BPF).union(CapabilitySet::PERFMON).union(CapabilitySet::SYS_ADMIN);

/// What the TLS source is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Ports that are known for Kafka: a connection to one of them that is not plain is looked into.
    pub ports: Vec<u16>,
    /// Ports that are never looked at. Wins over `ports`.
    pub exclude_ports: Vec<u16>,
    /// Files that are looked into in every process that maps them.
    pub libraries: Vec<PathBuf>,
    /// Whether the processes that accepted such connections are looked into, too.
    pub brokers: bool,
    /// Size of the ring between kernel and daemon.
    pub ring_bytes: u32,
    /// Root of the cgroup v2 hierarchy; None finds it.
    pub cgroup_root: Option<PathBuf>,
    /// How long nothing may be seen of a connection before it is counted as `unseen`, in a process with a TLS library that is seen into.
    pub unseen_after: Duration,
}

impl TlsConfig {
    /// The daemon's [`Self::unseen_after`].
    pub const UNSEEN_AFTER: Duration = Duration::from_mins(1);
}

/// The running programs and the reader's end of their ring.
pub struct TlsSource {
    ring: RingBuf<MapData>,
    sleeping: Cells<u32>,
    verdicts: Cells<u64>,
    counts: Cells<[u64; Counter::ALL.len()]>,
    /// Programs by their numbers.
    programs: Vec<(&'static str, u32)>,
    missed: Missed,
    translator: Translator,
    offset: Offset,
    last_housekeeping: Instant,
    gone: Vec<u32>,
    shared: Shared,
    /// Dropped first: then the thread ends, and takes programs and links along.
    orders: Option<Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
}

impl TlsSource {
    /// Loads the programs, and begins to look for processes to attach them to.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn start(config: TlsConfig) -> Result<Self, StartError> {
        raise_open_files();
        if may_attach() == Support::No {
            // Others may be refused by a security module, or as root of a user namespace: then attaching says so.
            tracing::warn!(
                capability = "CAP_SYS_ADMIN",
                "A capability is missing: this kernel makes no probes in programs without it, and --tls auto sees into no encrypted connection."
            );
        }
        let mut ebpf = programs::load(config.ring_bytes)?;
        set_ports(&mut ebpf, &config)?;
        let ring = load::take_map(&mut ebpf, "RING")?;
        let (sleeping, verdicts) = (Cells::take(&mut ebpf, "SLEEPING", 1)?, Cells::take(&mut ebpf, "VERDICTS", verdict::SLOTS)?);
        let transports = Cells::take(&mut ebpf, "TRANSPORTS", transport::SLOTS)?;
        let counts = Cells::take(&mut ebpf, "COUNTS", cells::possible_cpus()?)?;
        // Without it connections are found by listing sockets, up to a second late.
        let root = cgroup::open_root(config.cgroup_root.as_deref());
        if let Err(error) = root.and_then(|root| programs::attach_connects(&mut ebpf, root.directory)) {
            tracing::info!(%error, "Who connects to Kafka is not seen at once: encrypted connections are found within a second.");
        }
        let programs = programs::names().filter_map(|name| Some((name, ebpf.program(name)?.info().ok()?.id()))).collect();
        let missed = Missed::of(&ebpf);
        let shared = Shared::default();
        let threads = discover::start(Loaded { ebpf, transports }, config, Shared::clone(&shared), ATTACHING)
            .map_err(|source| StartError::System { what: "start the threads that look for TLS libraries", source })?;
        Ok(Self {
            ring,
            sleeping,
            verdicts,
            counts,
            programs,
            missed,
            translator: Translator::new(),
            offset: Offset::measure(),
            last_housekeeping: Instant::now(),
            gone: Vec::new(),
            shared,
            orders: Some(threads.orders),
            threads: threads.handles.into(),
        })
    }

    /// The main source reads this connection: it is not encrypted.
    pub fn is_plain(&self, socket: SocketKey) {
        self.order(Order::Plain(socket.local, socket.peer));
    }

    /// Has its threads take the programs off and end. Nobody waits for it yet.
    pub fn detach(&mut self) {
        self.orders = None;
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A thread that is gone has said why.
            let _ = orders.send(order);
        }
    }
}

impl LiveSource for TlsSource {
    fn name(&self) -> &'static str {
        "tls"
    }

    fn drain(&mut self, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Result<Polled, SourceError> {
        let mut polled = Polled::default();
        let mut notes = Vec::new();
        while polled.events < MAX_EVENTS_PER_LOOK
            && let Some(event) = self.ring.next()
        {
            polled.events += 1;
            let (bytes, note) = self.translator.push(&event, self.offset, sink);
            polled.bytes += bytes;
            notes.push(note);
        }
        polled.is_cut = polled.events == MAX_EVENTS_PER_LOOK;
        for note in notes {
            match note {
                Note::None => {}
                Note::Connects(pid, broker) => self.order(Order::Look(pid, broker)),
                Note::Tied(local, peer) => self.order(Order::Seen(local, peer)),
                Note::Untied(pid) => {
                    // At once, and counted anew with the housekeeping: it may be all that is seen of a connection that is to be told as unseen.
                    *lock(&self.shared).untied.entry(pid).or_default() += 1;
                    self.order(Order::Untied);
                }
            }
        }
        // After what they said last.
        if !polled.is_cut && !self.gone.is_empty() {
            let gone = std::mem::take(&mut self.gone);
            self.translator.end_of(&gone, clock::boot_ns(), self.offset, sink);
        }
        Ok(polled)
    }

    fn set_asleep(&mut self, asleep: bool) -> Result<(), SourceError> {
        self.sleeping.set(0, u32::from(asleep))
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.ring.as_fd()]
    }

    fn keep_house(&mut self) {
        if self.last_housekeeping.elapsed() < HOUSEKEEPING {
            return;
        }
        self.last_housekeeping = Instant::now();
        self.offset = Offset::measure();
        self.translator.expire(clock::boot_ns());
        self.gone.append(&mut lock(&self.shared).gone);
        lock(&self.shared).untied = self.translator.untied();
    }

    fn finish(&mut self) {
        self.translator.give_up_all();
    }

    fn verdict(&mut self, socket: SocketKey, decided: Verdict) -> Result<(), SourceError> {
        let state = match decided {
            Verdict::Capture => State::Capture,
            Verdict::Ignore => State::Ignored,
        };
        self.verdicts.set(verdict::slot(socket.scope), verdict::word(socket.scope, state as u32))
    }

    fn owner(&self, socket: SocketKey) -> Option<u32> {
        self.translator.owner(socket.scope)
    }

    fn counts(&self) -> Result<SourceCounts, SourceError> {
        let kernel = cells::sums(&self.counts)?;
        let value = |counter: Counter| kernel.get(counter as usize).copied().unwrap_or_default();
        let lost = [Counter::LostRingFullBytes, Counter::LostUnreadableBytes, Counter::LostTooLongBytes].map(value);
        let [full, unreadable, too_long] = lost;
        let seen = self.translator.seen();
        let mut opaque = lock(&self.shared).opaque.clone();
        opaque.push(("untied", seen.untied));
        Ok(SourceCounts {
            events: value(Counter::Events).saturating_sub(value(Counter::LostRingFull)),
            bytes: value(Counter::Bytes).saturating_sub(lost.iter().sum()),
            lost_bytes: vec![(RING_FULL, full), ("unreadable", unreadable), ("too_long", too_long)],
            lost_events: vec![
                (RING_FULL, value(Counter::LostRingFull)),
                (Counter::LostCalls.name(), value(Counter::LostCalls)),
                ("malformed", seen.malformed),
                (MISSED, self.missed.count()),
            ],
            sessions: seen.sessions - seen.joined,
            joined_sessions: seen.joined,
            opaque,
            ..SourceCounts::default()
        })
    }

    fn attaches_later(&self) -> bool {
        true
    }

    fn run_time(&self) -> Vec<RunTime> {
        let loaded = aya::programs::loaded_programs().filter_map(Result::ok);
        let own = loaded.filter_map(|info| {
            let (program, _) = self.programs.iter().find(|(_, id)| *id == info.id())?;
            Some(RunTime { program, time: info.run_time(), runs: info.run_count() })
        });
        own.collect()
    }
}

impl Drop for TlsSource {
    fn drop(&mut self) {
        self.detach();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSource").field("seen", &self.translator.seen()).finish_non_exhaustive()
    }
}

fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, discover::Found> {
    Mutex::lock(shared).unwrap_or_else(PoisonError::into_inner)
}

/// Known ports first: a port that is in both lists is excluded.
fn set_ports(ebpf: &mut aya::Ebpf, config: &TlsConfig) -> Result<(), StartError> {
    // Borrowed, not taken: the map has to live until the programs that use it are loaded.
    let map = ebpf.map_mut("PORTS").ok_or(StartError::Object { what: "PORTS" })?;
    let fail = |error| StartError::Map {
        map: "PORTS",
        reason: format!("{} (at most {} ports can have a rule)", chain(&error), limits::MAX_PORT_RULES),
    };
    let mut rules: HashMap<_, u32, u32> = HashMap::try_from(map).map_err(fail)?;
    let known = config.ports.iter().map(|port| (port, PortRule::Force));
    let excluded = config.exclude_ports.iter().map(|port| (port, PortRule::Exclude));
    for (port, rule) in known.chain(excluded) {
        rules.insert(u32::from(*port), rule as u32, 0).map_err(fail)?;
    }
    Ok(())
}

/// Each attachment takes a descriptor.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit });
}

/// Gives events to a translator, one after another. After each, time goes on to what it says; in the end, processes end.
pub(super) fn translate<'e>(events: impl Iterator<Item = &'e [u8]>, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Taken {
    let (mut translator, mut bytes) = (Translator::new(), 0);
    for event in events {
        bytes += translator.push(event, Offset::ZERO, sink).0;
        translator.expire(word(event, 0));
    }
    translator.end_of(&[0, 1], 1, Offset::ZERO, sink);
    Taken { bytes, malformed: translator.seen().malformed, waiting_bytes: translator.waiting_bytes() }
}
