//! The socket source: programs on the kernel's own functions for TCP see what programs of this host give to sockets and take from them, find
//! Kafka among the connections, and copy its bytes. For kernels from 4.14 on, and wherever the packet source cannot run.
//!
//! In: the kernel's events, through a ring (Linux 5.8) or a perf buffer per CPU. Out: [`CaptureEvent`]s. Needs kprobes and root (or the
//! capabilities that [`StartError`] names).
//!
//! The `connection` step sees what it sees of the packet source, but for this: positions are a running count from the first byte that was
//! seen, bytes come in the order of the stream, and a connection ends when its program closes it.

mod events;
mod layout;
mod programs;
mod reader;
mod sample;
mod translate;
mod trial;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData};
use tracer_common::call::{LAYOUT_WORDS, Layout};
use tracer_common::config::{Config, PortRule};
use tracer_common::counter::Counter;
use tracer_common::limits;
use tracer_common::socket::State;
use tracer_common::verdict;

pub(super) use events::{can_be_mounted, place_of};
pub(super) use programs::objects;

use super::cells::{self, Cells};
use super::clock::{self, Offset};
use super::load::{chain, run_time, take_map};
use super::missed::Missed;
use super::outside::{Taken, word};
use super::{LiveSource, MISSED, Polled, RING_FULL, RunTime, SourceConfig, SourceCounts, SourceError, StartError};
use crate::source::{CaptureEvent, SocketKey, Verdict};
pub(super) use events::probes as stale_probes;
use programs::Programs;
use reader::Reader;
use translate::Translator;

/// How often clocks are compared.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// The running programs and the reader's end of their buffers.
pub struct SocketSource {
    reader: Reader,
    settings: Cells<[u32; 4]>,
    layout: Array<MapData, [u64; LAYOUT_WORDS]>,
    ports: HashMap<MapData, u32, u32>,
    verdicts: Cells<u64>,
    counts: Cells<[u64; Counter::ALL.len()]>,
    config: Config,
    translator: Translator,
    offset: Offset,
    last_housekeeping: Instant,
    /// Events that came while the source was tried.
    early: Vec<Vec<u8>>,
    /// What was counted until then.
    base: [u64; Counter::ALL.len()],
    /// Holds programs and links; without it they are gone.
    programs: Programs,
}

impl SocketSource {
    /// Loads the programs, attaches them, and tries them on a connection of its own. Events come from now on.
    ///
    /// # Errors
    /// Says what is missing, and what to do about it.
    pub fn start(config: &SourceConfig) -> Result<Self, StartError> {
        programs::check_host()?;
        if programs::needs_lists() && events::place().is_none() {
            // In a thread of its own, which alone sees the mount.
            return std::thread::scope(|scope| {
                let started = scope.spawn(|| {
                    events::mount_privately()
                        .map_err(|source| StartError::System { what: "mount tracefs, which lists the kernel's probes", source })?;
                    Self::start_here(config)
                });
                started.join().unwrap_or(Err(StartError::Object { what: "start that ends" }))
            });
        }
        Self::start_here(config)
    }

    fn start_here(config: &SourceConfig) -> Result<Self, StartError> {
        let known = layout::find().map_err(|error| StartError::Layout { reason: error.to_string() })?;
        let mut with_ring = programs::has_ring() && !config.perf_buffers;
        let loaded = Programs::load(config, with_ring).or_else(|error| match error {
            StartError::Map { .. } if with_ring => {
                tracing::warn!(%error, "The kernel refuses the ring, or what goes with it: events come through a buffer for each CPU instead.");
                with_ring = false;
                Programs::load(config, false)
            }
            error => Err(error),
        });
        let mut programs = loaded?;
        let ebpf = programs.ebpf.as_mut().ok_or(StartError::Object { what: "program" })?;
        let in_kernel = Config {
            epoch: 0,
            judged_segments: config.judged_segments,
            has_port_rules: u32::from(!config.force_ports.is_empty() || !config.exclude_ports.is_empty()),
            reserved: 0,
        };
        let mut source = Self {
            reader: if with_ring { Reader::ring(ebpf)? } else { Reader::perf(ebpf, config.ring_bytes)? },
            settings: Cells::take(ebpf, "CONFIG", 1)?,
            layout: take_map(ebpf, "LAYOUT")?,
            ports: take_map(ebpf, "PORTS")?,
            verdicts: Cells::take(ebpf, "VERDICTS", verdict::SLOTS)?,
            counts: Cells::take(ebpf, "COUNTS", cells::possible_cpus()?)?,
            config: in_kernel,
            translator: Translator::new(),
            offset: Offset::measure_monotonic(),
            last_housekeeping: Instant::now(),
            early: Vec::new(),
            base: [0; Counter::ALL.len()],
            programs,
        };
        source.set_config(in_kernel)?;
        source.set_layout(known.layout)?;
        source.set_port_rules(config)?;
        source.programs.attach()?;
        source.try_out(&known)?;
        Ok(source)
    }

    /// Sends known bytes over a connection of its own and looks what is seen of them: what programs have in their memory, without which
    /// nothing works, and pages of a file.
    fn try_out(&mut self, known: &layout::Known) -> Result<(), StartError> {
        let counted = self.find_counts(known.layout);
        let known = &layout::Known { layout: counted, pages: known.pages.clone(), from: known.from };
        let mut why_no_pages = "the kernel does not say where they lie, or not without CAP_SYSLOG".to_owned();
        for pages in known.pages.iter().copied().map(Some).chain([None]) {
            let mut layout = known.layout;
            if let Some(pages) = pages {
                pages.put_into(&mut layout);
            }
            self.set_layout(layout)?;
            let seen = match trial::run(self) {
                Ok(seen) => seen,
                Err(error) => {
                    self.set_layout(known.layout)?;
                    tracing::warn!(%error, "The socket source could not be tried on a connection of its own; bytes of files are not read.");
                    return Ok(());
                }
            };
            if let Some(fault) = seen.memory {
                return Err(StartError::Layout {
                    reason: format!("a trial with {} showed other bytes than were sent ({fault})", known.from),
                });
            }
            match (pages, seen.pages) {
                (Some(_), None) => break,
                (Some(_), Some(fault)) => why_no_pages = fault,
                (None, _) => {
                    let reason = why_no_pages.as_str();
                    tracing::warn!(reason, "Bytes that programs send straight from files cannot be read on this kernel; they are counted.");
                }
            }
        }
        tracing::debug!(from = known.from, "The socket source was tried and sees what is sent.");
        self.base = self.kernel_counts().unwrap_or_default();
        Ok(())
    }

    /// The layout with the places where sockets count what was taken, if need be by looking for them.
    fn find_counts(&mut self, mut layout: Layout) -> Layout {
        if layout.copied_seq != 0 {
            return layout;
        }
        match sample::find(self, layout) {
            Ok(Some(places)) => {
                tracing::debug!(?places, "Found where sockets count what was taken.");
                places.put_into(&mut layout);
            }
            found => tracing::warn!(
                reason = found.err().map_or_else(|| "no such place".to_owned(), |error| error.to_string()),
                "It is not known where sockets count what was taken; bytes that a program splices out of a socket may not be counted."
            ),
        }
        layout
    }

    fn set_config(&mut self, config: Config) -> Result<(), StartError> {
        self.config = config;
        self.settings.set(0, config.to_words()).map_err(|error| StartError::Map { map: "CONFIG", reason: chain(&error) })
    }

    fn set_layout(&mut self, layout: Layout) -> Result<(), StartError> {
        self.layout.set(0, layout.to_words(), 0).map_err(|error| StartError::Map { map: "LAYOUT", reason: chain(&error) })
    }

    /// Forced ports first: a port that is in both lists is excluded.
    fn set_port_rules(&mut self, config: &SourceConfig) -> Result<(), StartError> {
        let forced = config.force_ports.iter().map(|port| (port, PortRule::Force));
        let excluded = config.exclude_ports.iter().map(|port| (port, PortRule::Exclude));
        for (port, rule) in forced.chain(excluded) {
            self.ports.insert(u32::from(*port), rule as u32, 0).map_err(|error| StartError::Map {
                map: "PORTS",
                reason: format!("{} (at most {} ports can have a rule)", chain(&error), limits::MAX_PORT_RULES),
            })?;
        }
        Ok(())
    }

    /// The value of each counter over all CPUs, without what the trial counted.
    fn kernel_counts(&self) -> Result<[u64; Counter::ALL.len()], SourceError> {
        let mut sums = cells::sums(&self.counts)?;
        for (sum, base) in sums.iter_mut().zip(self.base) {
            *sum = sum.saturating_sub(base);
        }
        Ok(sums)
    }
}

impl LiveSource for SocketSource {
    fn name(&self) -> &'static str {
        "socket"
    }

    fn drain(&mut self, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Result<Polled, SourceError> {
        let Self { reader, translator, offset, early, .. } = self;
        let mut before = Polled::default();
        for event in early.drain(..) {
            before.events += 1;
            before.bytes += translator.push(&event, *offset, sink);
        }
        let mut polled = reader.drain(clock::monotonic_ns(), &mut |event| translator.push(event, *offset, sink));
        polled.add(before);
        Ok(polled)
    }

    fn set_asleep(&mut self, asleep: bool) -> Result<(), SourceError> {
        self.reader.set_asleep(asleep)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.reader.descriptors()
    }

    fn writes_tracefs(&self) -> bool {
        programs::needs_lists()
    }

    fn keep_house(&mut self) {
        if self.last_housekeeping.elapsed() >= HOUSEKEEPING {
            self.last_housekeeping = Instant::now();
            self.offset = Offset::measure_monotonic();
            self.reader.tell_new_cpus();
        }
    }

    fn verdict(&mut self, socket: SocketKey, decided: Verdict) -> Result<(), SourceError> {
        let state = match decided {
            Verdict::Capture => State::Capture,
            Verdict::Ignore => State::Ignored,
        };
        self.verdicts.set(verdict::slot(socket.scope), verdict::word(socket.scope, state as u32))?;
        if self.translator.verdict(socket.scope, decided) {
            self.config.epoch = self.config.epoch.wrapping_add(1);
            self.settings.set(0, self.config.to_words())?;
        }
        Ok(())
    }

    fn owner(&self, socket: SocketKey) -> Option<u32> {
        self.translator.owner(socket.scope)
    }

    fn counts(&self) -> Result<SourceCounts, SourceError> {
        let sums = self.kernel_counts()?;
        let value = |counter: Counter| sums.get(counter as usize).copied().unwrap_or_default();
        let [unreadable, too_long] = [value(Counter::LostUnreadableBytes), value(Counter::LostTooLongBytes)];
        // Programs count what finds no room in a ring; of perf buffers the kernel says how many events, and their holes how many bytes.
        let (lost_events, lost_bytes) = match self.reader.lost() {
            Some(events) => (events, self.translator.holes_bytes),
            None => (value(Counter::LostRingFull), value(Counter::LostRingFullBytes)),
        };
        let no_buffer = value(Counter::LostNoBuffer);
        Ok(SourceCounts {
            events: value(Counter::Events).saturating_sub(lost_events + no_buffer),
            bytes: value(Counter::Bytes).saturating_sub(unreadable + too_long + lost_bytes),
            lost_bytes: vec![(RING_FULL, lost_bytes), ("unreadable", unreadable), ("too_long", too_long)],
            lost_events: vec![
                (RING_FULL, lost_events),
                (Counter::LostNoBuffer.name(), no_buffer),
                (Counter::LostNoState.name(), value(Counter::LostNoState)),
                (Counter::LostCalls.name(), value(Counter::LostCalls)),
                ("malformed", self.translator.malformed),
                (MISSED, self.programs.missed.as_ref().map_or(0, Missed::count)),
            ],
            programs_off: self.programs.off.clone(),
            ..SourceCounts::default()
        })
    }

    fn run_time(&self) -> Vec<RunTime> {
        self.programs.ebpf.as_ref().map_or_else(Vec::new, |ebpf| run_time(ebpf, programs::names()))
    }
}

impl std::fmt::Debug for SocketSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketSource").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Gives events to a translator, one after another. After each, its socket gets a verdict.
pub(super) fn translate<'e>(events: impl Iterator<Item = &'e [u8]>, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Taken {
    let (mut translator, mut bytes) = (Translator::new(), 0);
    for event in events {
        bytes += translator.push(event, Offset::ZERO, sink);
        let _: bool = translator.verdict(word(event, 16), Verdict::Ignore);
    }
    Taken { bytes, malformed: translator.malformed, waiting_bytes: (0, 0) }
}
