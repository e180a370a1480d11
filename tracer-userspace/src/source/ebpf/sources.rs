//! What the daemon drives: the main source, and what runs beside it.

use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::probe::{self, Support};
use super::{
    BESIDE, LiveSource, MainSource, Pacer, PacketSource, Polled, RunTime, SocketSource, SourceConfig, SourceCounts, SourceError,
    StartError, TlsConfig, TlsSource,
};
use crate::privileges::{Extra, OBSERVING};
use crate::source::features::{Feature, KernelVersion};
use crate::source::{CaptureEvent, SocketKey, Verdict};

/// The running sources. Their events go into one sink; a verdict goes to the source that knows the socket.
pub struct Sources {
    /// Sees the connections of the host.
    main: Box<dyn LiveSource + Send>,
    /// Sees into encrypted connections; the scopes of its sockets have [`BESIDE`] set.
    beside: Option<TlsSource>,
    pacer: Pacer,
}

impl Sources {
    /// Starts what this host allows. Events come from now on. Without `tls`, or where that cannot run, encrypted connections stay so.
    ///
    /// # Errors
    /// When no main source can run: says what is missing, and what to do about it.
    pub fn start(config: &SourceConfig, tls: Option<TlsConfig>) -> Result<Self, StartError> {
        let pacer = Pacer::new(config.ring_bytes);
        let main = start_main(config)?;
        let beside = tls.and_then(|tls| {
            let started = TlsSource::start(tls);
            started.inspect_err(|error| tracing::warn!(%error, "Encrypted connections cannot be seen into.")).ok()
        });
        Ok(Self { main, beside, pacer })
    }

    /// Waits until events come or the time is up, and hands on all that are there. Call it in a loop, from one thread: it paces itself.
    ///
    /// # Errors
    /// If the kernel refuses what it granted at the start. Lost events are no error: they are holes in the streams, and counted.
    pub fn poll(&mut self, timeout: Duration, sink: &mut dyn FnMut(CaptureEvent<'_>)) -> Result<Polled, SourceError> {
        match &mut self.beside {
            Some(beside) => self.pacer.poll(&mut [self.main.as_mut(), beside], timeout, sink),
            None => self.pacer.poll(&mut [self.main.as_mut()], timeout, sink),
        }
    }

    /// Nothing more will be asked for: what waits for more is given up, and counted.
    pub fn finish(&mut self) {
        self.main.finish();
        if let Some(beside) = &mut self.beside {
            beside.finish();
        }
    }

    /// Takes the programs off. Those that see into encrypted connections may take long, since the kernel waits for all CPUs with each
    /// of their functions: that goes on behind the result, which is dropped to wait for it.
    pub fn detach(self) -> Detaching {
        let Self { main, mut beside, .. } = self;
        if let Some(beside) = &mut beside {
            beside.detach();
        }
        drop(main);
        Detaching(beside)
    }

    /// Tells the kernel what became of a socket.
    ///
    /// # Errors
    /// If the kernel refuses to write the map.
    pub fn verdict(&mut self, socket: SocketKey, verdict: Verdict) -> Result<(), SourceError> {
        match &mut self.beside {
            Some(beside) if socket.scope & BESIDE != 0 => beside.verdict(socket, verdict),
            Some(beside) => {
                if verdict == Verdict::Capture {
                    beside.is_plain(socket);
                }
                self.main.verdict(socket, verdict)
            }
            None => self.main.verdict(socket, verdict),
        }
    }

    /// The process that owns a socket (pid of the initial namespace), once known.
    pub fn owner(&self, socket: SocketKey) -> Option<u32> {
        match &self.beside {
            Some(beside) if socket.scope & BESIDE != 0 => beside.owner(socket),
            _ => self.main.owner(socket),
        }
    }

    /// What all sources handed over and lost since their start.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn counts(&self) -> Result<SourceCounts, SourceError> {
        let mut counts = self.main.counts()?;
        if let Some(beside) = &self.beside {
            counts.add(beside.counts()?);
        }
        Ok(counts)
    }

    /// What they need from now on. Called with the rights that they were started with, since it tries what can be done without.
    pub fn rights(&self) -> SourceRights {
        let all = || std::iter::once(self.main.as_ref() as &dyn LiveSource).chain(self.beside.as_ref().map(|tls| tls as &dyn LiveSource));
        let extra = Extra { attaches_later: all().any(LiveSource::attaches_later), writes_tracefs: all().any(LiveSource::writes_tracefs) };
        let mut capabilities = OBSERVING;
        if probe::held_maps() != Support::Yes {
            let has_own = KernelVersion::running().is_none_or(|kernel| kernel >= Feature::OwnCapabilities.row().since);
            capabilities |= if has_own { CapabilitySet::BPF } else { CapabilitySet::SYS_ADMIN };
        }
        let attaching = if extra.attaches_later { super::tls::ATTACHING } else { CapabilitySet::empty() };
        SourceRights { capabilities, attaching, extra }
    }

    /// How long each program ran, while that is counted.
    pub fn run_time(&self) -> Vec<RunTime> {
        let beside = self.beside.iter().flat_map(LiveSource::run_time);
        self.main.run_time().into_iter().chain(beside).collect()
    }
}

/// Programs that are being taken off; dropped, it waits until none is left.
#[derive(Debug)]
pub struct Detaching(#[expect(dead_code, reason = "dropped to wait")] Option<TlsSource>);

/// What the running sources need, beyond reading what the kernel hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRights {
    /// Capabilities of the thread that drives them.
    pub capabilities: CapabilitySet,
    /// Capabilities of the thread that attaches programs later.
    pub attaching: CapabilitySet,
    /// System calls.
    pub extra: Extra,
}

/// Starts the source that was asked for; without one, packets where that works.
fn start_main(config: &SourceConfig) -> Result<Box<dyn LiveSource + Send>, StartError> {
    let packet = || PacketSource::start(config.clone()).map(|source| -> Box<dyn LiveSource + Send> { Box::new(source) });
    let socket = || SocketSource::start(config).map(|source| -> Box<dyn LiveSource + Send> { Box::new(source) });
    match config.main {
        MainSource::Packet => packet(),
        MainSource::Socket => socket(),
        MainSource::Auto => packet().or_else(|error| {
            match socket() {
                Ok(source) => {
                    tracing::info!(reason = %error, "Packets cannot be seen on this host: connections are seen at their sockets instead.");
                    Ok(source)
                }
                // What packets lack is all that is lacking.
                Err(StartError::NoRights { .. }) if matches!(error, StartError::NoRights { .. }) => Err(error),
                Err(socket) => Err(StartError::Neither { packet: Box::new(error), socket: Box::new(socket) }),
            }
        }),
    }
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let beside = self.beside.as_ref().map(LiveSource::name);
        f.debug_struct("Sources").field("main", &self.main.name()).field("beside", &beside).finish_non_exhaustive()
    }
}
