//! The packet source: programs at the root of cgroup v2 see each TCP packet of this host, find Kafka among the connections, and copy its
//! bytes.
//!
//! In: the kernel's events, through a ring. Out: [`CaptureEvent`]s. Needs root (or the capabilities that [`StartError`] names), Linux 5.8
//! and cgroup v2.
//!
//! The `connection` step sees, for each socket that could be Kafka: first [`EventKind::Open`] for each direction whose first position is
//! known (both, for connections that began after the tracer, but for a client that still connects; none for older ones), then the bytes, in
//! the order of the ring, which is not that of the stream, and [`EventKind::Close`]. Two CPUs work on one connection: its first bytes can
//! come just before its opening.
//!
//! [`EventKind::Open`]: crate::source::EventKind::Open
//! [`EventKind::Close`]: crate::source::EventKind::Close

pub(super) mod cgroup;
mod programs;
mod translate;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use tracer_common::config::{Config, PortRule};
use tracer_common::counter::Counter;
use tracer_common::limits;
use tracer_common::socket::State;

pub(super) use cgroup::open_root as open_cgroup_root;
pub(super) use programs::object;
pub use translate::EarlyCounters;

use super::clock::{self, Offset};
use super::load::{self, chain};
use super::outside::{Taken, word};
use super::owner::Finder;
use super::{LiveSource, Polled, RING_FULL, RunTime, SourceConfig, SourceCounts, SourceError, StartError};
use crate::source::{CaptureEvent, SocketKey, Verdict};
use translate::Translator;

/// Events that one look hands on before it returns to its caller.
const MAX_EVENTS_PER_LOOK: u64 = 65_536;

/// How often clocks are compared, old data is dropped, and owners are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What the kernel counted since the start, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    counts: [u64; Counter::ALL.len()],
}

impl KernelCounters {
    /// The value of one counter.
    pub fn value(&self, counter: Counter) -> u64 {
        self.counts.get(counter as usize).copied().unwrap_or_default()
    }

    /// From what was meant to be handed over to what was.
    fn take_off_lost(&mut self) {
        let lost_events = self.value(Counter::LostRingFull);
        let lost_bytes =
            [Counter::LostRingFullBytes, Counter::LostUnreadableBytes, Counter::LostTooLongBytes].map(|counter| self.value(counter));
        for (counter, lost) in [(Counter::Events, lost_events), (Counter::Bytes, lost_bytes.iter().sum())] {
            if let Some(value) = self.counts.get_mut(counter as usize) {
                *value = value.saturating_sub(lost);
            }
        }
    }

    /// All counters with their values.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> {
        Counter::ALL.into_iter().zip(self.counts)
    }
}

/// The running programs and the reader's end of their ring.
pub struct PacketSource {
    ring: RingBuf<MapData>,
    sleeping: Array<MapData, u32>,
    settings: Array<MapData, [u32; 4]>,
    verdicts: HashMap<MapData, u64, u32>,
    counts: PerCpuArray<MapData, [u64; Counter::ALL.len()]>,
    config: Config,
    translator: Translator,
    offset: Offset,
    finder: Finder,
    last_housekeeping: Instant,
    /// Programs that the kernel refused and capture goes on without.
    off: Vec<&'static str>,
    log: Option<aya_log::EbpfLogger<Log>>,
    /// Holds programs and links; without it they are gone.
    ebpf: Ebpf,
}

impl PacketSource {
    /// Loads the programs and attaches them to the root of cgroup v2. Events come from now on.
    ///
    /// # Errors
    /// Says what is missing, and what to do about it.
    #[expect(clippy::needless_pass_by_value, reason = "settings come by value; a caller that keeps them clones")]
    pub fn start(config: SourceConfig) -> Result<Self, StartError> {
        programs::check_host()?;
        let root = cgroup::open_root(config.cgroup_root.as_deref())?;
        let mut ebpf = programs::load(&config)?;
        let in_kernel = Config {
            epoch: 0,
            judged_segments: config.judged_segments,
            has_port_rules: u32::from(!config.force_ports.is_empty() || !config.exclude_ports.is_empty()),
            reserved: 0,
        };
        let mut settings: Array<_, [u32; 4]> = load::take_map(&mut ebpf, "CONFIG")?;
        settings.set(0, in_kernel.to_words(), 0).map_err(|error| StartError::Map { map: "CONFIG", reason: chain(&error) })?;
        set_port_rules(&mut ebpf, &config)?;
        let finder =
            Finder::start().map_err(|source| StartError::System { what: "start the thread that looks for sockets' owners", source })?;
        let mut source = Self {
            ring: load::take_map(&mut ebpf, "RING")?,
            sleeping: load::take_map(&mut ebpf, "SLEEPING")?,
            settings,
            verdicts: load::take_map(&mut ebpf, "VERDICTS")?,
            counts: load::take_map(&mut ebpf, "COUNTS")?,
            config: in_kernel,
            translator: Translator::new(),
            offset: Offset::measure(),
            finder,
            last_housekeeping: Instant::now(),
            off: Vec::new(),
            log: aya_log::EbpfLogger::init_with_logger(&mut ebpf, Log).ok(),
            ebpf,
        };
        source.off = programs::attach(&mut source.ebpf, &root)?;
        Ok(source)
    }

    /// What the kernel counted.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn counters(&self) -> Result<KernelCounters, SourceError> {
        let mut counters = KernelCounters::default();
        let fail = |error| SourceError::Map { map: "COUNTS", reason: chain(&error) };
        for of_one_cpu in self.counts.get(&0, 0).map_err(fail)?.iter() {
            for (sum, count) in counters.counts.iter_mut().zip(of_one_cpu) {
                *sum = sum.wrapping_add(*count);
            }
        }
        counters.take_off_lost();
        Ok(counters)
    }

    /// What became of data that came before its connection had a socket, or before the first data of it.
    pub fn early_counters(&self) -> EarlyCounters {
        self.translator.counters()
    }
}

impl LiveSource for PacketSource {
    fn name(&self) -> &'static str {
        "packet"
    }

    fn drain(&mut self, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Result<Polled, SourceError> {
        let mut polled = Polled::default();
        while polled.events < MAX_EVENTS_PER_LOOK
            && let Some(event) = self.ring.next()
        {
            polled.events += 1;
            polled.bytes += self.translator.push(&event, self.offset, sink);
        }
        polled.is_cut = polled.events == MAX_EVENTS_PER_LOOK;
        Ok(polled)
    }

    fn set_asleep(&mut self, asleep: bool) -> Result<(), SourceError> {
        self.sleeping.set(0, u32::from(asleep), 0).map_err(|error| SourceError::Map { map: "SLEEPING", reason: chain(&error) })
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.ring.as_fd()]
    }

    fn keep_house(&mut self) {
        if let Some(found) = self.finder.answer() {
            self.translator.learn_owners(&found);
        }
        if self.last_housekeeping.elapsed() < HOUSEKEEPING {
            return;
        }
        self.last_housekeeping = Instant::now();
        self.offset = Offset::measure();
        self.translator.expire(clock::boot_ns());
        if self.translator.has_ownerless() {
            self.finder.ask(self.translator.ownerless());
        }
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    fn verdict(&mut self, socket: SocketKey, verdict: Verdict) -> Result<(), SourceError> {
        let state = match verdict {
            Verdict::Capture => State::Capture,
            Verdict::Ignore => State::Ignored,
        };
        let fail = |map| move |error: aya::maps::MapError| SourceError::Map { map, reason: chain(&error) };
        self.verdicts.insert(socket.scope, state as u32, 0).map_err(fail("VERDICTS"))?;
        if self.translator.verdict(socket.scope, verdict) {
            self.config.epoch = self.config.epoch.wrapping_add(1);
            self.settings.set(0, self.config.to_words(), 0).map_err(fail("CONFIG"))?;
        }
        Ok(())
    }

    fn owner(&self, socket: SocketKey) -> Option<u32> {
        self.translator.owner(socket.scope)
    }

    fn counts(&self) -> Result<SourceCounts, SourceError> {
        let kernel = self.counters()?;
        let mut counts = SourceCounts::default();
        for (counter, value) in kernel.iter() {
            match counter {
                Counter::Events => counts.events = value,
                Counter::Bytes => counts.bytes = value,
                Counter::LostRingFullBytes => counts.lost_bytes.push((RING_FULL, value)),
                Counter::LostUnreadableBytes => counts.lost_bytes.push(("unreadable", value)),
                Counter::LostTooLongBytes => counts.lost_bytes.push(("too_long", value)),
                Counter::LostRingFull => counts.lost_events.push((RING_FULL, value)),
                Counter::SkippedHeaders | Counter::LostNoState | Counter::LostCalls => counts.lost_events.push((counter.name(), value)),
                // Not lost: how many were looked at, and what came too early and was kept. Nor is there a buffer for each CPU.
                Counter::Candidates | Counter::BeforeAccept | Counter::Overtook | Counter::LostNoBuffer => {}
            }
        }
        let early = self.early_counters();
        counts.lost_events.extend([("no_socket", early.given_up), ("malformed", early.malformed)]);
        counts.programs_off.clone_from(&self.off);
        Ok(counts)
    }

    fn run_time(&self) -> Vec<RunTime> {
        load::run_time(&self.ebpf, programs::names())
    }
}

impl std::fmt::Debug for PacketSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PacketSource").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Forced ports first: a port that is in both lists is excluded.
fn set_port_rules(ebpf: &mut Ebpf, config: &SourceConfig) -> Result<(), StartError> {
    // Borrowed, not taken: the map has to live until the programs that use it are loaded.
    let map = ebpf.map_mut("PORTS").ok_or(StartError::Object { what: "PORTS" })?;
    let mut rules: HashMap<_, u32, u32> =
        HashMap::try_from(map).map_err(|error| StartError::Map { map: "PORTS", reason: chain(&error) })?;
    let forced = config.force_ports.iter().map(|port| (port, PortRule::Force));
    let excluded = config.exclude_ports.iter().map(|port| (port, PortRule::Exclude));
    for (port, rule) in forced.chain(excluded) {
        rules.insert(u32::from(*port), rule as u32, 0).map_err(|error| StartError::Map {
            map: "PORTS",
            reason: format!("{} (at most {} ports can have a rule)", chain(&error), limits::MAX_PORT_RULES),
        })?;
    }
    Ok(())
}

/// Lines of debug builds of the programs, on their way to this process's own log.
struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "kafka_tracer::programs", line = %record.args(), "The programs say something.");
    }

    fn flush(&self) {}
}

/// Gives events to a translator, one after another. After each, time goes on to what it says, and its socket gets a verdict.
pub(super) fn translate<'e>(events: impl Iterator<Item = &'e [u8]>, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Taken {
    let (mut translator, mut bytes) = (Translator::new(), 0);
    for event in events {
        bytes += translator.push(event, Offset::ZERO, sink);
        translator.expire(word(event, 0));
        translator.learn_owners(&translator.ownerless().into_keys().take(1).map(|cookie| (cookie, 1)).collect());
        let _: bool = translator.verdict(word(event, 8), Verdict::Ignore);
    }
    Taken { bytes, malformed: translator.counters().malformed, waiting_bytes: translator.waiting_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_not_handed_over() {
        let mut counters = KernelCounters::default();
        for (counter, value) in [
            (Counter::Events, 10),
            (Counter::Bytes, 1000),
            (Counter::LostRingFull, 3),
            (Counter::LostRingFullBytes, 300),
            (Counter::LostUnreadableBytes, 20),
            (Counter::LostTooLongBytes, 1),
        ] {
            counters.counts[counter as usize] = value;
        }
        counters.take_off_lost();
        assert_eq!((counters.value(Counter::Events), counters.value(Counter::Bytes)), (7, 679));
        assert_eq!(counters.iter().find(|(counter, _)| *counter == Counter::LostRingFull), Some((Counter::LostRingFull, 3)));
    }
}
