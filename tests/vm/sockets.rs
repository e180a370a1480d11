//! Client and broker of a script, each a process of its own: both go through the same acts in the same order, one sends what
//! the other receives, in the given manner.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::RecvFlags;
use tests::capture::Capture;
use tests::script::{Act, script_of};
use xtask::vm::plan::Manner;

/// Threads that wait in a read of their own.
const CROWD: usize = 100;
/// Bytes of an answer that are written before the rest is sent from a file: length, id and a little.
const HEAD: usize = 12;
/// How long either end waits for the other.
const PATIENCE: Duration = Duration::from_mins(1);

/// Which end this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Connects.
    Client {
        /// Where the crowd connects to.
        crowd: SocketAddr,
    },
    /// Listens.
    Broker,
}

/// Plays one end of a capture to its end. A broker prints a line with the crowd's address once it listens.
pub(crate) fn play(capture: &Path, manner: Manner, role: Role) -> Result<()> {
    let truth: serde_json::Value = serde_json::from_slice(&std::fs::read(capture.with_extension("json"))?)?;
    let ports = truth.get("broker_ports").and_then(serde_json::Value::as_array).map_or(&[][..], Vec::as_slice);
    let ports: Vec<u16> = ports.iter().filter_map(|port| u16::try_from(port.as_u64()?).ok()).collect();
    let script = script_of(&Capture::read(capture)?, &ports);
    let mut end = End { manner, role, open: HashMap::new(), listeners: HashMap::new(), file: None };
    let _crowd = match role {
        Role::Broker => end.listen(&script)?,
        Role::Client { crowd } => join_crowd(manner, crowd)?,
    };
    if end.sends_files() {
        end.file = Some(answers_file(&script, manner)?);
    }
    for (number, act) in script.iter().enumerate() {
        end.act(act).with_context(|| format!("act {number}"))?;
    }
    // The client closes first, as clients do.
    if role == Role::Broker {
        for (_, mut stream) in end.open.drain() {
            let mut rest = [0; 1];
            let _ = stream.read(&mut rest);
        }
    }
    Ok(())
}

/// Connections that only wait.
fn join_crowd(manner: Manner, at: SocketAddr) -> Result<Vec<TcpStream>> {
    if manner != Manner::Crowd {
        return Ok(Vec::new());
    }
    for _ in 0..CROWD {
        let mut stream = TcpStream::connect(at).context("the crowd's listener")?;
        let wait = move || drop(stream.read(&mut [0; 16]));
        std::thread::Builder::new().stack_size(64 << 10).spawn(wait).context("a thread of the crowd")?;
    }
    // Until all are asleep in the kernel: their names there say so.
    let deadline = Instant::now() + PATIENCE;
    while waiting_threads()? < CROWD {
        ensure!(Instant::now() < deadline, "the crowd does not come to rest");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Vec::new())
}

/// Threads of this process that sleep.
fn waiting_threads() -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir("/proc/self/task")? {
        let stat = std::fs::read_to_string(entry?.path().join("stat"))?;
        count += usize::from(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')));
    }
    Ok(count)
}

/// All answers in one file, for `sendfile`.
fn answers_file(script: &[Act], manner: Manner) -> Result<File> {
    let path = if manner == Manner::SendfileTmpfs { "/tmp/answers" } else { "/mnt/ramfs/answers" };
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(path).context(path)?;
    for act in script {
        if let Act::Send { from_client: false, frames, .. } = act {
            for frame in frames {
                file.write_all(frame)?;
            }
        }
    }
    file.sync_all()?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}

struct End {
    manner: Manner,
    role: Role,
    open: HashMap<usize, TcpStream>,
    listeners: HashMap<SocketAddr, TcpListener>,
    /// The broker's answers, at the next one.
    file: Option<File>,
}

impl End {
    fn listen(&mut self, script: &[Act]) -> Result<Vec<TcpStream>> {
        for act in script {
            if let Act::Open { broker, .. } = act {
                let at = local(*broker);
                if let Entry::Vacant(vacant) = self.listeners.entry(at) {
                    vacant.insert(TcpListener::bind(at).with_context(|| format!("cannot listen at {at}"))?);
                }
            }
        }
        let crowd = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        println!("{}", crowd.local_addr()?);
        let expected = if self.manner == Manner::Crowd { CROWD } else { 0 };
        (0..expected).map(|_| Ok(crowd.accept()?.0)).collect()
    }

    fn sends_files(&self) -> bool {
        self.role == Role::Broker && matches!(self.manner, Manner::SendfileTmpfs | Manner::SendfileRamfs)
    }

    fn act(&mut self, act: &Act) -> Result<()> {
        let is_client = matches!(self.role, Role::Client { .. });
        match act {
            Act::Open { connection, broker } => {
                let at = local(*broker);
                let stream = if is_client {
                    TcpStream::connect(at).with_context(|| format!("cannot connect to {at}"))?
                } else {
                    self.listeners.get(&at).context("no listener")?.accept()?.0
                };
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                self.open.insert(*connection, stream);
            }
            Act::Send { connection, from_client, frames } if *from_client == is_client => {
                let stream = self.open.get(connection).context("the connection is not open")?;
                send(stream, frames, self.manner, self.file.as_ref()).context("sending")?;
            }
            Act::Send { connection, frames, .. } => {
                let stream = self.open.get(connection).context("the connection is not open")?;
                for frame in frames {
                    let received = receive(stream, frame.len(), self.manner).context("receiving")?;
                    ensure!(received == *frame, "other bytes arrive than were sent");
                }
            }
            Act::Close { connection } => {
                if let Some(mut stream) = self.open.remove(connection)
                    && !is_client
                {
                    // The client closes first.
                    let _ = stream.read(&mut [0; 1]);
                }
            }
        }
        Ok(())
    }
}

/// Where a recorded broker listens in the guest: loopback addresses stay, others are moved into loopback's network.
fn local(recorded: SocketAddr) -> SocketAddr {
    match recorded.ip() {
        IpAddr::V4(address) if address.is_loopback() => recorded,
        IpAddr::V4(address) => {
            let [.., third, fourth] = address.octets();
            SocketAddr::from(([127, 1, third, fourth], recorded.port()))
        }
        IpAddr::V6(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, recorded.port())),
    }
}

fn send(mut stream: &TcpStream, frames: &[Vec<u8>], manner: Manner, file: Option<&File>) -> Result<()> {
    match manner {
        Manner::Plain | Manner::Peek | Manner::Scattered | Manner::Crowd => {
            for frame in frames {
                stream.write_all(frame)?;
            }
        }
        Manner::Gathered => write_gathered(stream, &frames.concat())?,
        Manner::Bytes => {
            for byte in frames.iter().flatten() {
                stream.write_all(std::slice::from_ref(byte))?;
            }
        }
        Manner::SendfileTmpfs | Manner::SendfileRamfs => {
            for frame in frames {
                let Some(file) = file else {
                    stream.write_all(frame)?;
                    continue;
                };
                let head = frame.get(..HEAD.min(frame.len())).unwrap_or_default();
                stream.write_all(head)?;
                rustix::fs::seek(file, rustix::fs::SeekFrom::Current(i64::try_from(head.len())?))?;
                let mut left = frame.len() - head.len();
                while left > 0 {
                    match rustix::fs::sendfile(stream, file, None, left)? {
                        0 => bail!("the file of answers is too short"),
                        sent => left -= sent,
                    }
                }
            }
        }
    }
    Ok(())
}

/// Writes of up to five pieces, whose lengths are odd and one of which is empty.
fn write_gathered(stream: &TcpStream, bytes: &[u8]) -> Result<()> {
    const LENGTHS: [usize; 11] = [1, 3, 0, 7, 2, 61, 509, 5, 4099, 1021, 16381];
    let (mut rest, mut turn) = (bytes, 0);
    while !rest.is_empty() {
        let mut pieces = Vec::new();
        let mut ahead = rest;
        for _ in 0..5 {
            let length = LENGTHS.get(turn % LENGTHS.len()).copied().unwrap_or(1).min(ahead.len());
            turn += 1;
            let (piece, behind) = ahead.split_at(length);
            pieces.push(IoSlice::new(piece));
            ahead = behind;
        }
        let written = rustix::io::writev(stream, &pieces)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

fn receive(stream: &TcpStream, length: usize, manner: Manner) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let heads: &[usize] = match manner {
        Manner::Plain => &[],
        Manner::Gathered | Manner::Crowd | Manner::Peek => &[4],
        Manner::Bytes => &[8],
        Manner::SendfileTmpfs => &[4, 4],
        Manner::SendfileRamfs => {
            let mut got = 0;
            while got < length {
                let (_, received) = rustix::net::recv(stream, bytes.get_mut(got..).unwrap_or_default(), RecvFlags::WAITALL)?;
                ensure!(received > 0, "the connection ended {} bytes early", length - got);
                got += received;
            }
            return Ok(bytes);
        }
        Manner::Scattered => return scattered(stream, bytes),
    };
    let mut place = 0;
    for head in heads.iter().copied().chain([length]) {
        let end = (place + head).min(length);
        let piece = bytes.get_mut(place..end).unwrap_or_default();
        if manner == Manner::Peek && !piece.is_empty() {
            let mut look = vec![0; piece.len().min(100)];
            rustix::net::recv(stream, &mut look, RecvFlags::PEEK)?;
        }
        read_exact(stream, piece)?;
        place = end;
    }
    Ok(bytes)
}

/// As `read_exact` of the standard library, but for the message.
fn read_exact(mut stream: &TcpStream, mut piece: &mut [u8]) -> Result<()> {
    while !piece.is_empty() {
        let received = stream.read(piece)?;
        ensure!(received > 0, "the connection ended {} bytes early", piece.len());
        piece = piece.get_mut(received..).unwrap_or_default();
    }
    Ok(())
}

fn scattered(stream: &TcpStream, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let mut got = 0;
    while got < bytes.len() {
        let rest = bytes.get_mut(got..).unwrap_or_default();
        let (first, rest) = rest.split_at_mut(rest.len().min(3));
        let (second, third) = rest.split_at_mut(rest.len().min(14));
        let received = rustix::io::readv(stream, &mut [IoSliceMut::new(first), IoSliceMut::new(second), IoSliceMut::new(third)])?;
        ensure!(received > 0, "the connection ended {} bytes early", bytes.len() - got);
        got += received;
    }
    Ok(bytes)
}
