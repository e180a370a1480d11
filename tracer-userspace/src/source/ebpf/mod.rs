//! Live capture: programs at the root of cgroup v2 see each TCP packet of this host, find Kafka among the connections, and copy its bytes.
//!
//! In: the kernel's events, through a ring. Out: [`CaptureEvent`]s. Needs root (or the capabilities that [`StartError`] names), Linux 5.8
//! and cgroup v2. Nothing is pinned: when the process ends, however it ends, the kernel takes the programs away.
//!
//! The `connection` step sees, for each socket that could be Kafka: first [`EventKind::Open`](super::EventKind) for each direction whose
//! first position is known (both, for connections that began after the tracer, but for a client that still connects; none for older ones),
//! then the bytes, in the order of the ring, which is not that of the stream, and [`EventKind::Close`](super::EventKind). Two CPUs work on
//! one connection: its first bytes can come just before its opening.

mod cgroup;
mod clock;
mod config;
mod error;
mod owner;
mod programs;
mod translate;

use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use rustix::event::{PollFd, PollFlags, Timespec};
use tracer_common::config::{Config, PortRule};
use tracer_common::counter::Counter;
use tracer_common::limits;
use tracer_common::socket::State;

pub use config::SourceConfig;
pub use error::{SourceError, StartError};
pub use translate::EarlyCounters;

use super::{CaptureEvent, SocketKey, Verdict};
use clock::Offset;
use owner::Finder;
use translate::Translator;

/// How often the ring is looked at while events come. Below, the reader costs more and gains nothing; above, spans come later.
const TICK: Duration = Duration::from_millis(1);

/// Looks without events before the reader asks to be woken.
const EMPTY_TICKS: u32 = 20;

/// Longest sleep: an event that is handed over just while the reader lies down wakes nobody.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// Bytes of payload after which the next look follows at once: the traffic is faster than the ticks.
const MUCH_BYTES: u64 = 4 << 20;

/// Events that one call hands on before it returns to its caller.
const MAX_EVENTS_PER_POLL: u64 = 65_536;

/// How often clocks are compared, old data is dropped, and owners are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What one [`PacketSource::poll`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// Events taken from the ring; 0 when the time was up first.
    pub events: u64,
    /// Payload bytes in them.
    pub bytes: u64,
}

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

/// How long the kernel ran a program, while somebody counts (see [`PacketSource::count_run_time`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunTime {
    /// The program.
    pub program: &'static str,
    /// Time spent in it, over all CPUs.
    pub time: Duration,
    /// How often it ran.
    pub runs: u64,
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
    last_look: Instant,
    last_housekeeping: Instant,
    was_much: bool,
    empty_ticks: u32,
    log: Option<aya_log::EbpfLogger<Log>>,
    run_time: Option<std::os::fd::OwnedFd>,
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
        let mut settings: Array<_, [u32; 4]> = programs::take_map(&mut ebpf, "CONFIG")?;
        settings.set(0, in_kernel.to_words(), 0).map_err(|error| StartError::Map { map: "CONFIG", reason: programs::chain(&error) })?;
        set_port_rules(&mut ebpf, &config)?;
        let finder =
            Finder::start().map_err(|source| StartError::System { what: "start the thread that looks for sockets' owners", source })?;
        let mut source = Self {
            ring: programs::take_map(&mut ebpf, "RING")?,
            sleeping: programs::take_map(&mut ebpf, "SLEEPING")?,
            settings,
            verdicts: programs::take_map(&mut ebpf, "VERDICTS")?,
            counts: programs::take_map(&mut ebpf, "COUNTS")?,
            config: in_kernel,
            translator: Translator::new(),
            offset: Offset::measure(),
            finder,
            last_look: Instant::now(),
            last_housekeeping: Instant::now(),
            was_much: false,
            empty_ticks: 0,
            log: aya_log::EbpfLogger::init_with_logger(&mut ebpf, Log).ok(),
            run_time: None,
            ebpf,
        };
        programs::attach(&mut source.ebpf, &root)?;
        Ok(source)
    }

    /// Waits until events come or the time is up, and hands on all that are there. Call it in a loop, from one thread: it paces itself, one
    /// look a millisecond while events come, and sleeps until the kernel wakes it when none do.
    ///
    /// # Errors
    /// If the kernel refuses what it granted at the start. Lost events are no error: they are holes in the streams, and counted.
    pub fn poll(&mut self, timeout: Duration, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Result<Polled, SourceError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.keep_house();
            if !self.was_much {
                let next_look = self.last_look + TICK;
                std::thread::sleep(next_look.min(deadline).saturating_duration_since(Instant::now()));
            }
            let polled = self.drain(sink);
            if polled.events > 0 {
                self.empty_ticks = 0;
                return Ok(polled);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(polled);
            }
            self.empty_ticks += 1;
            if self.empty_ticks > EMPTY_TICKS {
                self.set_sleeping(1)?;
                // What came before the programs could see that the reader sleeps.
                let polled = self.drain(sink);
                if polled.events == 0 {
                    self.wait(left.min(LONGEST_SLEEP))?;
                }
                self.set_sleeping(0)?;
                if polled.events > 0 {
                    self.empty_ticks = 0;
                    return Ok(polled);
                }
            }
        }
    }

    /// Tells the kernel what became of a socket.
    ///
    /// # Errors
    /// If the kernel refuses to write the map.
    pub fn verdict(&mut self, socket: SocketKey, verdict: Verdict) -> Result<(), SourceError> {
        let state = match verdict {
            Verdict::Capture => State::Capture,
            Verdict::Ignore => State::Ignored,
        };
        let fail = |map| move |error: aya::maps::MapError| SourceError::Map { map, reason: programs::chain(&error) };
        self.verdicts.insert(socket.scope, state as u32, 0).map_err(fail("VERDICTS"))?;
        if self.translator.verdict(socket.scope, verdict) {
            self.config.epoch = self.config.epoch.wrapping_add(1);
            self.settings.set(0, self.config.to_words(), 0).map_err(fail("CONFIG"))?;
        }
        Ok(())
    }

    /// The process that owns a socket (pid of the initial namespace), once known.
    pub fn owner(&self, socket: SocketKey) -> Option<u32> {
        self.translator.owner(socket.scope)
    }

    /// What the kernel counted.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn counters(&self) -> Result<KernelCounters, SourceError> {
        let mut counters = KernelCounters::default();
        let fail = |error| SourceError::Map { map: "COUNTS", reason: programs::chain(&error) };
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

    /// Has the kernel count how long programs run, from now on. Costs a little for every program of the host: for measurements only.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn count_run_time(&mut self) -> Result<(), SourceError> {
        let counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|error| SourceError::Wait(error.io_error))?;
        self.run_time = Some(counting);
        Ok(())
    }

    /// How long each program ran while that was counted.
    pub fn run_time(&self) -> Vec<RunTime> {
        programs::names()
            .filter_map(|program| {
                let info = self.ebpf.program(program)?.info().ok()?;
                Some(RunTime { program, time: info.run_time(), runs: info.run_count() })
            })
            .collect()
    }

    /// Hands on what lies in the ring.
    fn drain(&mut self, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Polled {
        self.last_look = Instant::now();
        let mut polled = Polled::default();
        while polled.events < MAX_EVENTS_PER_POLL
            && let Some(event) = self.ring.next()
        {
            polled.events += 1;
            polled.bytes += self.translator.push(&event, self.offset, sink);
        }
        self.was_much = polled.bytes >= MUCH_BYTES || polled.events == MAX_EVENTS_PER_POLL;
        polled
    }

    /// Sleeps until a program wakes it.
    fn wait(&self, time: Duration) -> Result<(), SourceError> {
        let time = Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(time.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(&self.ring, PollFlags::IN)], Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(SourceError::Wait(error.into())),
        }
    }

    fn set_sleeping(&mut self, value: u32) -> Result<(), SourceError> {
        self.sleeping.set(0, value, 0).map_err(|error| SourceError::Map { map: "SLEEPING", reason: programs::chain(&error) })
    }

    /// What is due once a second.
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
        if !self.translator.ownerless().is_empty() {
            self.finder.ask(self.translator.ownerless().clone());
        }
        if let Some(log) = &mut self.log {
            log.flush();
        }
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
        HashMap::try_from(map).map_err(|error| StartError::Map { map: "PORTS", reason: programs::chain(&error) })?;
    let forced = config.force_ports.iter().map(|port| (port, PortRule::Force));
    let excluded = config.exclude_ports.iter().map(|port| (port, PortRule::Exclude));
    for (port, rule) in forced.chain(excluded) {
        rules.insert(u32::from(*port), rule as u32, 0).map_err(|error| StartError::Map {
            map: "PORTS",
            reason: format!("{} (at most {} ports can have a rule)", programs::chain(&error), limits::MAX_PORT_RULES),
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
