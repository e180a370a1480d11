//! Who owns a socket that told nobody: it is older than the tracer, or was accepted without asking for the peer's address.
//!
//! A dump of all TCP sockets in each network namespace gives the inode of a cookie; the descriptors in `/proc` give the process that holds
//! the inode, the lowest pid of several. Costs tens of milliseconds with thousands of sockets, so it runs in a thread of its own, at most
//! once a second, and only while a socket that is captured has no owner.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use rustix::thread::LinkNameSpaceType;

/// `SOCK_DIAG_BY_FAMILY`, `NLM_F_REQUEST | NLM_F_DUMP`, `NLMSG_ERROR`, `NLMSG_DONE` (`linux/netlink.h`, `linux/sock_diag.h`).
const BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Bytes of `nlmsghdr`, and of `inet_diag_msg` (`linux/inet_diag.h`) with the places of what is read.
const MESSAGE_HEADER_BYTES: usize = 16;
const COOKIE_AT: usize = 44;
const INODE_AT: usize = 68;

/// Every state but TIME-WAIT, NEW-SYN-RECV, CLOSE and LISTEN, in which no process has connection data.
const STATES: u32 = 0xfff & !(1 << 6 | 1 << 7 | 1 << 10);

/// How long the kernel may take for one answer of a dump.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Looks for owners in a thread of its own.
pub(super) struct Finder {
    requests: Sender<HashSet<u64>>,
    answers: Receiver<HashMap<u64, u32>>,
    is_busy: bool,
}

impl Finder {
    /// Starts the thread. It ends when this is dropped.
    pub(super) fn start() -> io::Result<Self> {
        let (requests, to_do) = channel::<HashSet<u64>>();
        let (done, answers) = channel();
        std::thread::Builder::new().name("socket-owners".to_owned()).spawn(move || {
            for cookies in to_do {
                if done.send(find(&cookies)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { requests, answers, is_busy: false })
    }

    /// Asks for the owners of these sockets. False while it still looks for others.
    pub(super) fn ask(&mut self, cookies: HashSet<u64>) -> bool {
        if self.is_busy {
            return false;
        }
        self.is_busy = self.requests.send(cookies).is_ok();
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

/// The process of each of these sockets that one can be found for. Leaves the calling thread in some other network namespace.
fn find(cookies: &HashSet<u64>) -> HashMap<u64, u32> {
    let pids = pids();
    let mut inodes = HashMap::new();
    for namespace in network_namespaces(&pids) {
        if inodes.len() == cookies.len() {
            break;
        }
        // A namespace that is gone or not ours to enter keeps its secrets.
        if rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).is_err() {
            continue;
        }
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            if let Err(error) = dump(family, cookies, &mut inodes) {
                tracing::debug!(%error, "Could not list the sockets of a network namespace.");
            }
        }
    }
    holders(&pids, &inodes)
}

/// All processes, lowest first.
fn pids() -> Vec<u32> {
    let mut pids: Vec<u32> =
        fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Each network namespace that a process lives in, once.
fn network_namespaces(pids: &[u32]) -> Vec<File> {
    let mut seen = HashSet::new();
    let mut namespaces = Vec::new();
    for pid in pids {
        let path = format!("/proc/{pid}/ns/net");
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if seen.insert(metadata.ino())
            && let Ok(file) = File::open(&path)
        {
            namespaces.push(file);
        }
    }
    namespaces
}

/// Adds inode -> cookie of the wanted sockets of the thread's network namespace.
fn dump(family: AddressFamily, cookies: &HashSet<u64>, inodes: &mut HashMap<u64, u64>) -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    rustix::net::send(&socket, &request(family), SendFlags::empty())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (len, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        match read_answer(buffer.get(..len).unwrap_or_default(), cookies, inodes) {
            Answer::More => {}
            Answer::Done => return Ok(()),
            Answer::Refused => return Err(io::Error::other("the kernel refused the dump of its sockets")),
        }
    }
}

/// `nlmsghdr` and `inet_diag_req_v2`: all TCP sockets of the family.
fn request(family: AddressFamily) -> [u8; 72] {
    let mut request = [0; 72];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = request.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &72u32.to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST_DUMP.to_ne_bytes());
    let family = u8::try_from(family.as_raw()).unwrap_or_default();
    put(16, &[family, 6, 0, 0]);
    put(20, &STATES.to_ne_bytes());
    request
}

/// How a dump goes on.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    More,
    Done,
    Refused,
}

/// Reads the messages of one datagram.
fn read_answer(mut datagram: &[u8], cookies: &HashSet<u64>, inodes: &mut HashMap<u64, u64>) -> Answer {
    while let (Some(len), Some(kind)) = (number(datagram, 0), datagram.get(4..6)) {
        let kind = <[u8; 2]>::try_from(kind).map(u16::from_ne_bytes);
        match kind {
            Ok(DONE) => return Answer::Done,
            Ok(ERROR) => return Answer::Refused,
            _ => {}
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let Some(message) = datagram.get(MESSAGE_HEADER_BYTES..len) else { return Answer::Done };
        if let (Some(low), Some(high), Some(inode)) =
            (number(message, COOKIE_AT), number(message, COOKIE_AT + 4), number(message, INODE_AT))
        {
            let cookie = u64::from(high) << 32 | u64::from(low);
            if inode != 0 && cookies.contains(&cookie) {
                inodes.insert(u64::from(inode), cookie);
            }
        }
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Answer::More
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))
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
fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, cookie: u64, inode: u32) -> Vec<u8> {
        let mut bytes = vec![0; 88];
        bytes[0..4].copy_from_slice(&88u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[60..64].copy_from_slice(&u32::try_from(cookie & 0xffff_ffff).unwrap().to_ne_bytes());
        bytes[64..68].copy_from_slice(&u32::try_from(cookie >> 32).unwrap().to_ne_bytes());
        bytes[84..88].copy_from_slice(&inode.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_dump_gives_the_inodes_of_the_wanted_sockets() {
        let cookies = HashSet::from([7, 5 << 32 | 1]);
        let mut inodes = HashMap::new();
        let datagram = [message(BY_FAMILY, 7, 70), message(BY_FAMILY, 8, 80), message(BY_FAMILY, 5 << 32 | 1, 90)].concat();
        assert_eq!(read_answer(&datagram, &cookies, &mut inodes), Answer::More);
        assert_eq!(inodes, HashMap::from([(70, 7), (90, 5 << 32 | 1)]));
        assert_eq!(read_answer(&message(DONE, 0, 0), &cookies, &mut inodes), Answer::Done);
        assert_eq!(read_answer(&message(ERROR, 0, 0), &cookies, &mut inodes), Answer::Refused);
    }

    #[test]
    fn a_damaged_dump_ends() {
        let cookies = HashSet::from([7]);
        let whole = message(BY_FAMILY, 7, 70);
        for len in 0..whole.len() {
            let mut inodes = HashMap::new();
            let _ = read_answer(&whole[..len], &cookies, &mut inodes);
            assert!(inodes.is_empty(), "{len}");
        }
        let mut endless = whole.clone();
        endless[0..4].copy_from_slice(&0u32.to_ne_bytes());
        assert_eq!(read_answer(&endless, &cookies, &mut HashMap::new()), Answer::Done);
    }

    #[test]
    #[ignore = "needs root: `cargo xtask test`"]
    fn the_owner_of_an_own_connection_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let cookie = rustix::net::sockopt::socket_cookie(&client).unwrap();
        let mut finder = Finder::start().unwrap();
        assert!(finder.ask(HashSet::from([cookie, u64::MAX])));
        assert!(!finder.ask(HashSet::new()), "one question at a time");
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
