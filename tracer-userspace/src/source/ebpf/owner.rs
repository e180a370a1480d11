//! Who owns a socket that told nobody: it is older than the tracer, or was accepted without asking for the peer's address.
//!
//! The tables of TCP sockets in `/proc/PID/net`, one PID for each network namespace, give the inode of a pair of addresses; the descriptors in
//! `/proc` give the process that holds the inode, the lowest pid of several. Where the same pair of addresses is found in two namespaces, nobody
//! is the owner: a guess is worse than none. Costs tens of milliseconds with thousands of sockets, so it runs in a thread of its own, at most once a
//! second, and only while a socket that is captured has no owner. (A dump by `sock_diag` would tell sockets by their cookies, but entering another
//! network namespace to make one needs `CAP_SYS_ADMIN`.)

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use crate::privileges::{self, OBSERVING};

/// The two ends of a connection, seen from a socket: its own address and the other end's.
pub(super) type Ends = (SocketAddr, SocketAddr);

/// Looks for owners in a thread of its own.
pub(super) struct Finder {
    requests: Sender<HashMap<u64, Ends>>,
    answers: Receiver<HashMap<u64, u32>>,
    is_busy: bool,
}

impl Finder {
    /// Starts the thread. It ends when this is dropped.
    pub(super) fn start() -> io::Result<Self> {
        let (requests, to_do) = channel::<HashMap<u64, Ends>>();
        let (done, answers) = channel();
        std::thread::Builder::new().name("socket-owners".to_owned()).spawn(move || {
            if let Err(error) = privileges::keep_only(OBSERVING) {
                tracing::debug!(%error, "The thread that looks for sockets' owners keeps its rights.");
            }
            for sockets in to_do {
                if done.send(find(&sockets)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { requests, answers, is_busy: false })
    }

    /// Asks for the owners of these sockets, by cookie. False while it still looks for others.
    pub(super) fn ask(&mut self, sockets: HashMap<u64, Ends>) -> bool {
        if self.is_busy {
            return false;
        }
        self.is_busy = self.requests.send(sockets).is_ok();
        self.is_busy
    }

    /// What was found, once it is there: sockets without an owner are not in it.
    pub(super) fn answer(&mut self) -> Option<HashMap<u64, u32>> {
        if !self.is_busy {
            return None;
        }
        match self.answers.try_recv() {
            Ok(found) => {
                self.is_busy = false;
                Some(found)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.is_busy = false;
                None
            }
        }
    }
}

/// The process of each of these sockets that one can be found for.
fn find(sockets: &HashMap<u64, Ends>) -> HashMap<u64, u32> {
    let pids = pids();
    let mut wanted: HashMap<Ends, Wanted> = HashMap::new();
    for (cookie, ends) in sockets {
        wanted.entry(*ends).and_modify(|wanted| wanted.is_ambiguous = true).or_insert(Wanted {
            cookie: *cookie,
            inode: None,
            is_ambiguous: false,
        });
    }
    for pid in one_of_each_network_namespace(&pids) {
        for table in ["tcp", "tcp6"] {
            if let Ok(table) = File::open(format!("/proc/{pid}/net/{table}")) {
                read_table(BufReader::new(table), &mut wanted);
            }
        }
    }
    let inodes = wanted.values().filter(|wanted| !wanted.is_ambiguous).filter_map(|wanted| Some((wanted.inode?, wanted.cookie))).collect();
    holders(&pids, &inodes)
}

/// A socket that is looked for, and what was found of it.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    cookie: u64,
    inode: Option<u64>,
    /// Two sockets have these addresses, in two namespaces.
    is_ambiguous: bool,
}

/// All processes, lowest first.
pub(super) fn pids() -> Vec<u32> {
    let mut pids: Vec<u32> =
        fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// A process of each network namespace that processes live in.
pub(super) fn one_of_each_network_namespace(pids: &[u32]) -> Vec<u32> {
    let mut seen = HashSet::new();
    // One that is gone, or not ours to look at, keeps its secrets.
    let namespace = |pid: &u32| fs::metadata(format!("/proc/{pid}/ns/net")).map(|metadata| metadata.ino());
    pids.iter().copied().filter(|pid| namespace(pid).is_ok_and(|inode| seen.insert(inode))).collect()
}

/// Notes the inodes of the wanted sockets in a table of the kernel (`net/ipv4/tcp_ipv4.c`, `get_tcp4_sock`).
fn read_table(table: impl BufRead, wanted: &mut HashMap<Ends, Wanted>) {
    for line in table.lines().map_while(Result::ok) {
        let Some((ends, inode)) = read_line(&line) else { continue };
        if let Some(wanted) = wanted.get_mut(&ends) {
            wanted.is_ambiguous |= wanted.inode.is_some_and(|known| known != inode);
            wanted.inode = Some(inode);
        }
    }
}

/// The addresses and the inode of a socket that a process can hold.
pub(super) fn read_line(line: &str) -> Option<(Ends, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, peer) = (address(fields.next()?)?, address(fields.next()?)?);
    let inode = fields.nth(6)?.parse().ok().filter(|inode| *inode != 0)?;
    Some(((local, peer), inode))
}

/// `0100007F:1F90`, or with four words: each in the order of this machine's bytes, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let word = |at: usize| words.get(at * 8..at * 8 + 8).and_then(|word| u32::from_str_radix(word, 16).ok()).map(u32::to_ne_bytes);
    let ip = match words.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, place) in octets.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The lowest pid that holds each inode.
fn holders(pids: &[u32], inodes: &HashMap<u64, u64>) -> HashMap<u64, u32> {
    let mut owners = HashMap::new();
    for &pid in pids {
        if owners.len() == inodes.len() {
            break;
        }
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if let Some(cookie) = fs::read_link(entry.path()).ok().and_then(|target| inodes.get(&socket_inode(target.to_str()?)?)) {
                owners.entry(*cookie).or_insert(pid);
            }
        }
    }
    owners
}

/// The inode in `socket:[1234]`.
pub(super) fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0
   1: 0100007F:2384 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 200 1 0 20 4 30 10 -1
   2: 0100007F:C350 0100007F:2384 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   3: 0000000000000000FFFF00000100007F:C351 0000000000000000FFFF00000100007F:2384 01 0:0 00:0 0 0 0 300 1 0 20 4 30 10 -1
   4: 00000000000000000000000001000000:C352 00000000000000000000000001000000:2384 01 0:0 00:0 0 0 0 400 1 0 20 4 30 10 -1
";

    fn ends(local: &str, peer: &str) -> Ends {
        (local.parse().unwrap(), peer.parse().unwrap())
    }

    fn wanted(cookie: u64) -> Wanted {
        Wanted { cookie, inode: None, is_ambiguous: false }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_table_gives_the_inodes_of_the_wanted_sockets() {
        let mut sockets = HashMap::from([
            (ends("127.0.0.1:9092", "127.0.0.1:50000"), wanted(1)),
            // Ended: nobody holds it.
            (ends("127.0.0.1:50000", "127.0.0.1:9092"), wanted(2)),
            // A socket of IPv6 to an address of IPv4, as Java has them.
            (ends("127.0.0.1:50001", "127.0.0.1:9092"), wanted(3)),
            (ends("[::1]:50002", "[::1]:9092"), wanted(4)),
            (ends("10.0.0.1:50001", "127.0.0.1:9092"), wanted(5)),
        ]);
        read_table(TABLE.as_bytes(), &mut sockets);
        let mut found: Vec<_> = sockets.values().map(|wanted| (wanted.cookie, wanted.inode)).collect();
        found.sort_unstable();
        assert_eq!(found, [(1, Some(200)), (2, None), (3, Some(300)), (4, Some(400)), (5, None)]);
        assert!(sockets.values().all(|wanted| !wanted.is_ambiguous));
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_same_addresses_in_two_namespaces_belong_to_nobody() {
        let place = ends("127.0.0.1:9092", "127.0.0.1:50000");
        let mut sockets = HashMap::from([(place, wanted(1))]);
        read_table(TABLE.as_bytes(), &mut sockets);
        read_table(TABLE.as_bytes(), &mut sockets);
        assert!(!sockets[&place].is_ambiguous, "the same socket seen twice is one");
        read_table(TABLE.replace(" 200 ", " 201 ").as_bytes(), &mut sockets);
        assert!(sockets[&place].is_ambiguous);
    }

    #[test]
    fn a_damaged_line_is_passed_over() {
        let line = TABLE.lines().nth(2).unwrap();
        let end = line.find(" 200").unwrap();
        assert!(read_line(line).is_some());
        for len in 0..=end {
            assert_eq!(read_line(&line[..len]), None, "{len}");
        }
        for text in ["0100007F", "0100007F:", "0100007G:1F90", "0100007F:1F90F", "1F:1F90", ":", "é100007F:1F90"] {
            assert_eq!(address(text), None, "{text}");
        }
    }

    #[test]
    #[ignore = "needs root: `cargo xtask test`"]
    fn the_owner_of_an_own_connection_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let cookie = rustix::net::sockopt::socket_cookie(&client).unwrap();
        let mut finder = Finder::start().unwrap();
        let (local, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert!(finder.ask(HashMap::from([(cookie, (local, peer)), (u64::MAX, (local, local))])));
        assert!(!finder.ask(HashMap::new()), "one question at a time");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let found = loop {
            if let Some(found) = finder.answer() {
                break found;
            }
            assert!(std::time::Instant::now() < deadline, "no answer");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(found, HashMap::from([(cookie, std::process::id())]));
    }

    #[test]
    fn descriptors_that_are_no_sockets_have_no_inode() {
        assert_eq!(socket_inode("socket:[4026]"), Some(4026));
        for target in ["pipe:[4026]", "/dev/null", "socket:[]", "socket:[x]", "anon_inode:[eventpoll]"] {
            assert_eq!(socket_inode(target), None, "{target}");
        }
    }
}
