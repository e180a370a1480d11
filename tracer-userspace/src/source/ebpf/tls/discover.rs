//! Which processes to look into: those with a connection to a port that is known for Kafka, and that is not plain Kafka.
//!
//! In: who connects, as the programs say at once; and once a second a list of the host's sockets, which finds connections that are older.
//! Out: programs attached to the TLS libraries of those processes, of each of them alone, and taken off again. Runs in a thread of its own:
//! none of it may hold up the reading of events. A host without such connections pays the list of its sockets.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::uprobe::UProbeLink;
use hashlink::LruCache;
use rustix::thread::CapabilitySet;
use tracer_common::tls::transport;
use tracing::{debug, info, warn};

use super::library::{Library, look_into};
use super::mapped::{self, Mapped};
use super::patience::{self, SeenInto};
use super::programs::{self, Link, SocketLinks};
use super::turn::Turn;
use super::{TlsConfig, opaque};
use crate::privileges;
use crate::source::ebpf::cells::Cells;
use crate::source::ebpf::owner;
use crate::source::ebpf::procfs::lossy;

/// How often sockets are listed.
const PERIOD: Duration = Duration::from_secs(1);

/// How often network namespaces are looked for.
const NAMESPACES: Duration = Duration::from_secs(5);

/// How long programs stay attached to a process after its last connection: the next may follow.
const LINGER: Duration = Duration::from_secs(30);

/// Processes that are looked into at once. Each takes up to twenty descriptors.
const MAX_PROCESSES: usize = 1024;

/// Files whose symbols are remembered.
const MAX_LIBRARIES: usize = 4096;

/// Connections that are remembered as plain, or as seen into.
const MAX_KNOWN: usize = 65_536;

/// How long what threads do with sockets is looked at after somebody connected, or came with a session whose object does not say its socket.
const UNTIED_LINGER: Duration = Duration::from_mins(1);

/// What the thread is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// A process connects to this address.
    Look(u32, SocketAddr),
    /// This connection is plain Kafka: the main source reads it.
    Plain(SocketAddr, SocketAddr),
    /// This connection is seen into.
    Seen(SocketAddr, SocketAddr),
    /// A session came whose object does not say its socket.
    Untied,
}

/// What the threads tell each other: this one counts.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Connections of which nothing can be seen, by reason.
    pub(super) opaque: Vec<(&'static str, u64)>,
    /// Processes that were looked into and are gone.
    pub(super) gone: Vec<u32>,
    /// How many sessions without a socket each process has. Written by the thread that reads.
    pub(super) untied: HashMap<u32, usize>,
}

/// Shared with the thread that reads.
pub(super) type Shared = Arc<Mutex<Found>>;

/// A file, whatever its name: device, inode, size and time of last change.
type Identity = (u64, u64, u64, i64);

/// A process that is looked into.
#[derive(Debug)]
struct Process {
    /// Tells it from another one that gets the same number later.
    started: u64,
    links: Vec<Link>,
    /// Mapped files that were looked at, by device and inode as the kernel lists them.
    files: HashSet<(String, u64)>,
    has_library: bool,
    last_wanted: Instant,
}

/// The thread's state.
struct Discovery {
    ebpf: Ebpf,
    transports: Cells<u64>,
    config: TlsConfig,
    shared: Shared,
    processes: HashMap<u32, Process>,
    libraries: LruCache<Identity, Arc<Library>>,
    /// Files that programs are attached to for all processes.
    everywhere: HashSet<(u64, u64)>,
    /// A process of each network namespace.
    namespaces: Vec<u32>,
    last_namespaces: Option<Instant>,
    /// Sockets seen in the last list, and who holds them.
    sockets: HashMap<u64, Held>,
    plain: LruCache<(SocketAddr, SocketAddr), ()>,
    /// Addresses where plain Kafka was spoken to.
    plain_brokers: LruCache<SocketAddr, ()>,
    seen: LruCache<(SocketAddr, SocketAddr), ()>,
    /// Processes of which was told that they were too many: number and beginning.
    too_many: LruCache<(u32, u64), ()>,
    /// Programs that see what threads do with sockets: attached while there is a need.
    sockets_seen: SocketsSeen,
    /// Whether the end of sockets was to be seen, as sessions of rustls need it.
    sees_ends: bool,
    /// Takes what is to be detached.
    undertaker: Sender<Vec<UProbeLink>>,
    turn: Arc<Turn>,
}

/// Whether it is seen what threads do with sockets.
#[derive(Debug)]
enum SocketsSeen {
    No,
    /// This kernel does not let it be seen.
    Never,
    /// And when somebody needed it last.
    Yes(#[expect(dead_code, reason = "dropped to detach")] SocketLinks, Instant),
}

/// A connection to a port that is known for Kafka.
#[derive(Clone, Copy, Debug)]
struct Socket {
    local: SocketAddr,
    peer: SocketAddr,
    inode: u64,
}

/// A socket on a port that is known for Kafka.
#[derive(Debug)]
struct Held {
    holders: Vec<u32>,
    since: Instant,
    is_told: bool,
}

impl Discovery {
    fn new(loaded: Loaded, config: TlsConfig, shared: Shared, undertaker: Sender<Vec<UProbeLink>>, turn: Arc<Turn>) -> Self {
        Self {
            ebpf: loaded.ebpf,
            transports: loaded.transports,
            config,
            shared,
            processes: HashMap::new(),
            libraries: LruCache::new(MAX_LIBRARIES),
            everywhere: HashSet::new(),
            namespaces: Vec::new(),
            last_namespaces: None,
            sockets: HashMap::new(),
            plain: LruCache::new(MAX_KNOWN),
            plain_brokers: LruCache::new(MAX_KNOWN),
            seen: LruCache::new(MAX_KNOWN),
            too_many: LruCache::new(MAX_KNOWN),
            sockets_seen: SocketsSeen::No,
            sees_ends: false,
            undertaker,
            turn,
        }
    }

    /// Attaches to the configured files, for all processes.
    fn attach_everywhere(&mut self) {
        for path in self.config.libraries.clone() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(file) = File::open(&path).inspect_err(|error| warn!(path = %path.display(), %error, "Cannot open a TLS library."))
            else {
                continue;
            };
            let Some((library, at)) = self.library(&file, &name) else { continue };
            if !library.makes_tls() {
                warn!(path = %path.display(), "No function of a known TLS library is in this file.");
                continue;
            }
            // Attached twice, each byte would be seen twice.
            if !self.everywhere.insert(at) {
                continue;
            }
            self.tell_transport(&library, 0);
            self.see_ends(&library);
            let (links, failed) = attach(&mut self.ebpf, &library, &file, None);
            if let Some(error) = failed {
                warn!(path = %path.display(), error, "Not all of a TLS library can be seen into.");
            }
            info!(path = %path.display(), functions = links.len(), "Seeing into all sessions of a TLS library.");
        }
    }

    /// Runs until nobody gives orders any more.
    fn run(mut self, orders: &Receiver<Order>) {
        let mut next = Instant::now();
        loop {
            match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {
                    self.look_around();
                    next = Instant::now() + PERIOD;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.turn.end();
        for pid in self.processes.keys().copied().collect::<Vec<_>>() {
            self.forget(pid);
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Look(pid, broker) => {
                if self.plain_brokers.peek(&broker).is_none() {
                    // Before its libraries: it may be a session that does not say its socket, and its first words count.
                    self.see_sockets();
                    self.look_into(pid);
                }
            }
            Order::Plain(local, peer) => {
                self.plain.insert((local, peer), ());
                if self.config.ports.contains(&peer.port()) {
                    self.plain_brokers.insert(peer, ());
                }
            }
            Order::Seen(local, peer) => {
                self.seen.insert((local, peer), ());
                // A broker that answers on one port in plain and encrypted form is none; but addresses are given anew.
                self.plain_brokers.remove(&peer);
            }
            Order::Untied => self.see_sockets(),
        }
    }

    /// Looks at what threads do with sockets, of the processes that the programs watch.
    fn see_sockets(&mut self) {
        match &mut self.sockets_seen {
            SocketsSeen::Never => {}
            SocketsSeen::Yes(_, last_wanted) => *last_wanted = Instant::now(),
            SocketsSeen::No => {
                let attached = {
                    let _turn = self.turn.attach();
                    programs::attach_sockets(&mut self.ebpf)
                };
                self.sockets_seen = match attached {
                    Ok(links) => {
                        debug!("Looking at what threads do with sockets: TLS sessions may not say their own.");
                        SocketsSeen::Yes(links, Instant::now())
                    }
                    Err(error) => {
                        warn!(%error, "The sockets of TLS sessions over memory cannot be found on this kernel: they are not seen into.");
                        SocketsSeen::Never
                    }
                };
            }
        }
    }

    /// Looks at sockets that are closed, if sessions of this library end so.
    fn see_ends(&mut self, library: &Library) {
        if self.sees_ends || !library.ends_with_sockets() {
            return;
        }
        self.sees_ends = true;
        if let Err(error) = programs::attach_closed(&mut self.ebpf) {
            info!(%error, "The end of sessions of rustls is not seen: they are taken to go on until their process ends, or the next one takes their place.");
        }
    }

    /// What is done once a second.
    fn look_around(&mut self) {
        let now = Instant::now();
        let current = self.list_sockets();
        let new: HashSet<u64> = current.iter().map(|socket| socket.inode).filter(|inode| !self.sockets.contains_key(inode)).collect();
        let inodes: HashSet<u64> = current.iter().map(|socket| socket.inode).collect();
        self.sockets.retain(|inode, _| inodes.contains(inode));
        if !new.is_empty() {
            let mut holders = holders(&new);
            for inode in new {
                let holders = holders.remove(&inode).unwrap_or_default();
                self.sockets.insert(inode, Held { holders, since: now, is_told: false });
            }
        }
        // Those of which nothing was seen or told, and their ages, by process.
        let mut dark: HashMap<u32, Vec<(Socket, Duration)>> = HashMap::new();
        for socket in current {
            if self.plain.peek(&(socket.local, socket.peer)).is_some() {
                continue;
            }
            let Some(held) = self.sockets.get(&socket.inode) else { continue };
            let (holders, age, is_told) = (held.holders.clone(), held.since.elapsed(), held.is_told);
            if let Some(pid) = holders.first()
                && !is_told
                && self.seen.peek(&(socket.local, socket.peer)).is_none()
            {
                dark.entry(*pid).or_default().push((socket, age));
            }
            for pid in holders {
                self.look_into(pid);
            }
        }
        for (pid, connections) in dark {
            self.tell_opaque(pid, &connections);
        }
        self.take_off(now);
    }

    /// The connections to ports that are known for Kafka.
    fn list_sockets(&mut self) -> Vec<Socket> {
        if self.last_namespaces.is_none_or(|last| last.elapsed() >= NAMESPACES) {
            self.namespaces = owner::one_of_each_network_namespace(&owner::pids());
            self.last_namespaces = Some(Instant::now());
        }
        let (ports, brokers) = (&self.config.ports, self.config.brokers);
        let mut sockets = Vec::new();
        for pid in &self.namespaces {
            for table in ["tcp", "tcp6"] {
                let table = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
                let listed = table.lines().filter_map(owner::read_line).map(|((local, peer), inode)| Socket { local, peer, inode });
                sockets.extend(listed.filter(|socket| {
                    socket.peer.port() != 0 && (ports.contains(&socket.peer.port()) || brokers && ports.contains(&socket.local.port()))
                }));
            }
        }
        sockets
    }

    /// Attaches to the TLS libraries that a process has mapped by now.
    fn look_into(&mut self, pid: u32) {
        let Some(started) = started(pid) else { return };
        let now = Instant::now();
        if self.processes.get(&pid).is_some_and(|process| process.started != started) {
            self.forget(pid);
        }
        if !self.processes.contains_key(&pid) && self.processes.len() >= MAX_PROCESSES {
            self.tell_too_many(pid, started);
            return;
        }
        if !self.processes.contains_key(&pid) {
            self.see_sockets();
        }
        let process = self.processes.entry(pid).or_insert_with(|| Process {
            started,
            links: Vec::new(),
            files: HashSet::new(),
            has_library: false,
            last_wanted: now,
        });
        process.last_wanted = now;
        let Ok(maps) = mapped::list(pid) else { return };
        let mut mapped: Vec<Mapped<'_>> = maps.lines().filter_map(Mapped::parse).collect();
        // Hands may be shaken by now: what is a TLS library by its name first.
        mapped.sort_by_key(|mapped| !mapped.name().contains("ssl"));
        for mapped in mapped {
            let Some(process) = self.processes.get_mut(&pid) else { return };
            if !process.files.insert((mapped.device.to_owned(), mapped.inode)) {
                continue;
            }
            let Some(file) = mapped.open(pid) else { continue };
            let Some((library, at)) = self.library(&file, mapped.name()) else { continue };
            if !library.makes_tls() {
                continue;
            }
            let Some(process) = self.processes.get_mut(&pid) else { return };
            process.has_library = true;
            if self.everywhere.contains(&at) {
                continue;
            }
            if self.turn.is_behind() {
                // Looked at again while its connection is there.
                process.files.remove(&(mapped.device.to_owned(), mapped.inode));
                self.tell_too_many(pid, started);
                continue;
            }
            let begun = Instant::now();
            self.tell_transport(&library, pid);
            self.see_ends(&library);
            let (links, failed) = {
                let _turn = self.turn.attach();
                attach(&mut self.ebpf, &library, &file, NonZeroU32::new(pid))
            };
            debug!(pid, library = mapped.path, functions = links.len(), microseconds = begun.elapsed().as_micros(), "Seeing into TLS.");
            if let Some(process) = self.processes.get_mut(&pid) {
                process.links.extend(links);
            }
            if let Some(error) = failed {
                warn!(pid, library = mapped.path, error, "Not all of a process's TLS can be seen into.");
                self.tell(pid, "not_attached");
            }
        }
    }

    /// Tells the programs where sessions of `GnuTLS` have their sockets, in a process or, for number 0, in those of which nothing else is said.
    fn tell_transport(&mut self, library: &Library, pid: u32) {
        let Some(place) = library.transport else { return };
        if let Err(error) = self.transports.set(transport::slot(pid), transport::word(pid, place)) {
            // What their threads do tells it, too.
            debug!(%error, "The programs do not know where sessions of GnuTLS have their sockets.");
        }
    }

    /// What is in a file, and its device and inode.
    fn library(&mut self, file: &File, name: &str) -> Option<(Arc<Library>, (u64, u64))> {
        let metadata = file.metadata().ok()?;
        let at = (metadata.dev(), metadata.ino());
        let identity = (at.0, at.1, metadata.len(), metadata.mtime());
        if let Some(known) = self.libraries.get(&identity) {
            return Some((Arc::clone(known), at));
        }
        let library = Arc::new(look_into(file.try_clone().ok()?, name));
        self.libraries.insert(identity, Arc::clone(&library));
        Some((library, at))
    }

    /// Takes programs off processes that ended, or have had no connection for long.
    fn take_off(&mut self, now: Instant) {
        let over: Vec<u32> = self
            .processes
            .iter()
            .filter(|(pid, process)| started(**pid) != Some(process.started) || now.duration_since(process.last_wanted) > LINGER)
            .map(|(pid, _)| *pid)
            .collect();
        for pid in over {
            self.forget(pid);
        }
        if matches!(&self.sockets_seen, SocketsSeen::Yes(_, last_wanted) if now.duration_since(*last_wanted) > UNTIED_LINGER) {
            self.sockets_seen = SocketsSeen::No;
        }
    }

    fn forget(&mut self, pid: u32) {
        let Some(process) = self.processes.remove(&pid) else { return };
        let links: Vec<_> = process.links.into_iter().filter_map(|link| programs::take(&mut self.ebpf, link)).collect();
        // Whoever connects next must not wait for it.
        self.turn.announce(links.len());
        let _ = self.undertaker.send(links);
        self.lock(|found| found.gone.push(pid));
    }

    /// Nothing was seen of these connections of a process: says why, once, and counts them, when they are due.
    fn tell_opaque(&mut self, pid: u32, connections: &[(Socket, Duration)]) {
        let has_library = self.processes.get(&pid).is_some_and(|process| process.has_library);
        let untied = self.lock(|found| found.untied.get(&pid).copied().unwrap_or(0));
        let seen_into = has_library.then_some(SeenInto { patience: self.config.unseen_after, untied });
        for index in patience::due(connections.iter().map(|(_, age)| *age), seen_into) {
            let Some((socket, _)) = connections.get(index) else { continue };
            if let Some(held) = self.sockets.get_mut(&socket.inode) {
                held.is_told = true;
            }
            self.say_opaque(pid, socket, if has_library { "unseen" } else { opaque::reason(pid) });
        }
    }

    fn say_opaque(&self, pid: u32, socket: &Socket, reason: &'static str) {
        self.tell(pid, reason);
        let name = lossy(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim_end();
        if reason == "unseen" {
            info!(
                pid,
                name,
                peer = %socket.peer,
                "Nothing was seen of a connection to Kafka that is not plain, though its program has a TLS library that is seen into: it is idle, or encrypted by something else in that program."
            );
        } else if reason == "jdk" {
            info!(
                pid,
                name,
                peer = %socket.peer,
                "A connection to Kafka that is not plain belongs to a Java program, whose TLS cannot be seen into; a plain listener on loopback can be, and so can TLS from netty-tcnative."
            );
        } else {
            info!(
                pid,
                name,
                reason,
                peer = %socket.peer,
                "A connection to Kafka that is not plain belongs to a program without a TLS library that can be seen into."
            );
        }
    }

    fn tell_too_many(&mut self, pid: u32, started: u64) {
        if self.too_many.insert((pid, started), ()).is_none() {
            self.tell(pid, "too_many_processes");
        }
    }

    fn tell(&self, pid: u32, reason: &'static str) {
        debug!(pid, reason, "A connection cannot be seen into.");
        self.lock(|found| match found.opaque.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => found.opaque.push((reason, 1)),
        });
    }

    fn lock<T>(&self, with: impl FnOnce(&mut Found) -> T) -> T {
        with(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The programs, and what is told to them.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    /// Where sessions of `GnuTLS` have their sockets, see [`transport`].
    pub(super) transports: Cells<u64>,
}

/// The threads, and where they get their orders from.
pub(super) struct Threads {
    pub(super) orders: Sender<Order>,
    pub(super) handles: [JoinHandle<()>; 2],
}

/// Starts the thread that looks for libraries, and the one that takes programs off them. They end, and nothing stays attached, when the
/// orders' sender is dropped. Both have no more than their rights when this returns.
pub(super) fn start(loaded: Loaded, config: TlsConfig, shared: Shared, rights: CapabilitySet) -> std::io::Result<Threads> {
    let (undertaker, dead) = channel();
    let turn = Arc::new(Turn::default());
    let mut discovery = Discovery::new(loaded, config, shared, undertaker, Arc::clone(&turn));
    discovery.attach_everywhere();
    let (orders, to_obey) = channel();
    let (ready, both) = channel();
    let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let told = ready.clone();
    let detaching = spawn("tls-detach").spawn(move || {
        give_up_all_but(CapabilitySet::empty());
        let _ = told.send(());
        for link in dead.into_iter().flatten() {
            turn.detach(link);
        }
    })?;
    let looking = spawn("tls-libraries").spawn(move || {
        give_up_all_but(rights);
        let _ = ready.send(());
        drop(ready);
        discovery.run(&to_obey);
    })?;
    both.iter().take(2).for_each(drop);
    Ok(Threads { orders, handles: [looking, detaching] })
}

fn give_up_all_but(rights: CapabilitySet) {
    if let Err(error) = privileges::keep_only(rights) {
        debug!(%error, "A thread of the TLS source keeps its rights.");
    }
}

/// Attaches all that a library has. What was refused first is told, and nothing more is tried then.
fn attach(ebpf: &mut Ebpf, library: &Library, file: &File, pid: Option<NonZeroU32>) -> (Vec<Link>, Option<String>) {
    let mut links = Vec::new();
    for place in &library.places {
        match programs::attach(ebpf, place.probe, file, place.offset, pid) {
            Ok(link) => links.push(link),
            Err(error) => return (links, Some(error.to_string())),
        }
    }
    (links, None)
}

/// When a process began, in ticks since the host did. None once it is gone.
fn started(pid: u32) -> Option<u64> {
    started_of(&lossy(format!("/proc/{pid}/stat")).ok()?)
}

/// The same, of what the kernel says of it: the process has named itself as it likes.
pub(in crate::source::ebpf) fn started_of(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    // A process that is dead and not yet waited for maps nothing any more.
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    // The 22nd field, of which the state is the third.
    fields.nth(18)?.parse().ok()
}

/// Who holds each of these sockets.
fn holders(inodes: &HashSet<u64>) -> HashMap<u64, Vec<u32>> {
    let mut holders: HashMap<u64, Vec<u32>> = HashMap::new();
    for pid in owner::pids() {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let inode = fs::read_link(entry.path()).ok().and_then(|target| owner::socket_inode(target.to_str()?));
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                let known = holders.entry(inode).or_default();
                if known.last() != Some(&pid) {
                    known.push(pid);
                }
            }
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_beginning_while_it_is_there() {
        assert!(started(std::process::id()).is_some());
        assert_eq!(started(u32::MAX), None);
        let rest = "S 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 8100 0 0";
        assert_eq!(started_of(&format!("7 (a) b\u{fffd}) {rest}")), Some(8_100), "a name may hold anything");
        assert_eq!(started_of(&format!("7 (a) {}", rest.replace('S', "Z"))), None);
    }
}
