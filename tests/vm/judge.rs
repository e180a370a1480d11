//! A daemon looks while a capture is played; its listing is held against the truth.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::loaded_programs;
use rustix::process::{Pid, Signal, kill_process};
use tests::truth::{Replayed, differences};
use xtask::vm::plan::{Loaded, Manner, Older, Play, Way};

use crate::kernel_log::KernelLog;
use crate::older::{self, Hidden};

/// How long a daemon may take to start, and to end.
const START: Duration = Duration::from_mins(1);
const END: Duration = Duration::from_secs(30);
/// How long a capture may take to play.
const PLAY: Duration = Duration::from_mins(2);
/// What the memory of an idle guest may swing by: less than the ring of one daemon.
const MEMORY_SWING_KIB: u64 = 24 << 10;
/// Differences that are told of one play.
const SHOWN: usize = 8;
/// What the daemon says where it cannot see packets and sees calls instead.
const INSTEAD: &str = "connections are seen at their sockets instead";
/// What the daemon says once it sees everything.
const READY: &str = "Capturing the Kafka connections";

/// Plays a capture and says what is wrong with the listing.
pub(crate) fn play(play: &Play) -> Result<Vec<String>> {
    let capture = PathBuf::from("/corpus").join(format!("{}.pcap", play.capture));
    let truth: serde_json::Value = serde_json::from_slice(&std::fs::read(capture.with_extension("json")).context("the truth")?)?;
    let begun_ns = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let mut log = KernelLog::open()?;
    let daemons = (0..play.daemons).map(|_| Daemon::start(&play.tracer, &play.way, play.ports.as_deref(), false));
    let daemons = daemons.collect::<Result<Vec<_>>>()?;
    let played = play_both_ends(&capture, play.manner);
    let mut all = Vec::new();
    for daemon in daemons {
        let ended = daemon.end()?;
        if let Err(error) = &played {
            bail!("{error:#}; the daemon said: {}", ended.message);
        }
        // A moment more: the kernel's clock and the daemon's are compared now and then.
        let now_ns = u64::try_from((SystemTime::now() + Duration::from_secs(1)).duration_since(UNIX_EPOCH)?.as_nanos())?;
        all.extend(disagreements(&truth, &ended, (begun_ns.saturating_sub(1_000_000_000), now_ns))?);
    }
    let unknown = log.calls_of(&play.tracer)?;
    if !unknown.is_empty() {
        all.push(format!("the daemon makes system calls that its filter would refuse: {}", unknown.join(", ")));
    }
    Ok(all)
}

fn disagreements(truth: &serde_json::Value, ended: &Replayed, times_ns: (u64, u64)) -> Result<Vec<String>> {
    let mut found = differences(truth, ended, times_ns)?;
    if found.len() > SHOWN {
        let more = found.len() - SHOWN;
        found.truncate(SHOWN);
        found.push(format!("and {more} more"));
    }
    if !found.is_empty() {
        found.push(format!("the daemon said: {}", ended.message));
    }
    Ok(found)
}

fn play_both_ends(capture: &Path, manner: Manner) -> Result<()> {
    let myself = std::env::current_exe()?;
    let manner = serde_json::to_string(&manner)?;
    let end = |arguments: &[&str]| {
        let mut command = Command::new(&myself);
        command.arg("play").arg(capture).arg(&manner).args(arguments);
        command
    };
    let mut broker = Ended(end(&[]).stdout(Stdio::piped()).spawn().context("cannot start the broker")?);
    let mut crowd = String::new();
    BufReader::new(broker.0.stdout.take().context("the broker's output")?).read_line(&mut crowd)?;
    ensure!(!crowd.is_empty(), "the broker does not listen");
    let mut client = Ended(end(&[crowd.trim()]).spawn().context("cannot start the client")?);
    let (client, broker) = (client.wait(PLAY).context("the client")?, broker.wait(PLAY).context("the broker")?);
    ensure!(client.success() && broker.success(), "the client ended with {client}, the broker with {broker}");
    Ok(())
}

/// What of the kernel a daemon changes, and must not leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    programs: Vec<u32>,
    kprobes: String,
    uprobes: String,
}

impl Traces {
    fn now() -> Result<Self> {
        let events = |name: &str| std::fs::read_to_string(Path::new("/sys/kernel/tracing").join(name)).unwrap_or_default();
        let programs = loaded_programs().map(|info| Ok(info?.id())).collect::<Result<_>>()?;
        Ok(Self { programs, kprobes: events("kprobe_events"), uprobes: events("uprobe_events") })
    }
}

/// Starts and ends a daemon, every other time by SIGKILL, and says what is left of it in the kernel.
pub(crate) fn restarts(tracer: &str, way: &Way, times: u32) -> Result<Vec<String>> {
    let before = Traces::now()?;
    let mut memory_before = 0;
    for time in 0..times {
        let mut daemon = Daemon::start(tracer, way, None, true).with_context(|| format!("start {time}"))?;
        if time % 2 == 0 {
            daemon.process.0.kill()?;
            daemon.process.wait(END)?;
        } else {
            let ended = daemon.end()?;
            ensure!(ended.status == 0, "end {time}: status {}; the daemon said: {}", ended.status, ended.message);
        }
        if time == times / 10 {
            // Caches have grown by now to what they need.
            memory_before = available_kib()?;
        }
    }
    // The last one ended as asked, and took away what killed ones had left. The kernel frees maps a little later.
    let deadline = Instant::now() + END;
    loop {
        let after = Traces::now()?;
        let lost_kib = memory_before.saturating_sub(available_kib()?);
        let mut left = Vec::new();
        if after != before {
            left.push(format!("{before:?} became {after:?}"));
        }
        if lost_kib > MEMORY_SWING_KIB {
            left.push(format!("{lost_kib} KiB of memory are gone"));
        }
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn available_kib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok());
    value.context("MemAvailable in /proc/meminfo")
}

/// Whether a daemon that may choose chooses this source.
pub(crate) fn choice(tracer: &str, older: Option<Older>, source: &str) -> Result<Vec<String>> {
    let daemon = Daemon::start(tracer, &Way { source: "auto".to_owned(), older }, None, false)?;
    let sees_calls = daemon.said.contains(INSTEAD);
    let ended = daemon.end()?;
    let mut faults = Vec::new();
    if sees_calls != (source == "socket") {
        faults.push(format!("the daemon does not choose {source}: {}", ended.message));
    }
    if ended.status != 0 {
        faults.push(format!("the daemon ends with status {}: {}", ended.status, ended.message));
    }
    Ok(faults)
}

/// What a daemon has in the kernel once it sees everything.
pub(crate) fn programs(tracer: &str, way: &Way) -> Result<Vec<Loaded>> {
    let before: Vec<u32> = loaded_programs().map(|info| Ok(info?.id())).collect::<Result<_>>()?;
    let daemon = Daemon::start(tracer, way, None, false)?;
    let ready = SystemTime::now();
    let mut infos = loaded_programs().collect::<Result<Vec<_>, _>>()?;
    infos.retain(|info| !before.contains(&info.id()));
    infos.sort_by_key(aya::programs::ProgramInfo::id);
    let times: Vec<SystemTime> = infos.iter().filter_map(aya::programs::ProgramInfo::loaded_at).chain([ready]).collect();
    let mut loaded = Vec::new();
    for (number, info) in infos.iter().enumerate() {
        let load = times.get(number).zip(times.get(number + 1)).and_then(|(begun, next)| next.duration_since(*begun).ok());
        loaded.push(Loaded {
            name: info.name_as_str().unwrap_or_default().to_owned(),
            instructions: info.size_translated().unwrap_or(0) / 8,
            verified: info.verified_instruction_count().filter(|count| *count > 0),
            machine_bytes: info.size_jitted(),
            load_ms: u64::try_from(load.unwrap_or_default().as_millis())?,
        });
    }
    let ended = daemon.end()?;
    ensure!(!loaded.is_empty(), "no program is in the kernel; the daemon said: {}", ended.message);
    Ok(loaded)
}

/// A running daemon.
struct Daemon {
    process: Ended,
    output: Receiver<std::io::Result<String>>,
    lines: Receiver<String>,
    said: String,
    _hidden: Option<Hidden>,
}

impl Daemon {
    /// Starts one and waits until it sees everything.
    fn start(tracer: &str, way: &Way, ports: Option<&str>, has_tracefs: bool) -> Result<Self> {
        let mut command = Command::new(tracer);
        command.args(["run", "--format", "records", "--keys", "--headers", "all", "--propagators", "tracecontext,b3,b3multi,jaeger"]);
        if let Some(ports) = ports {
            command.args(["--ports", ports]);
        }
        // Where many start and end its filter refuses; where captures are played the kernel tells what it would refuse.
        command.env("KAFKA_TRACER_SECCOMP", if has_tracefs { "on" } else { "log" });
        // What it lists of its connections is what one wants to know of a play that failed.
        command.env("OTEL_LOG_LEVEL", "debug").env("KAFKA_TRACER_SOURCE", &way.source).env("NO_COLOR", "1").env("PATH", "/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let hidden = way.older.map(|older| Hidden::of(older, has_tracefs)).transpose()?;
        let process = match way.older {
            Some(older) => older::spawn(command, older),
            None => command.spawn().map_err(Into::into),
        };
        let mut process = Ended(process.with_context(|| format!("cannot start {tracer}"))?);
        let output = read_all(process.0.stdout.take().context("the daemon's output")?);
        let lines = read_lines(process.0.stderr.take().context("the daemon's messages")?);
        let mut daemon = Self { process, output, lines, said: String::new(), _hidden: hidden };
        let deadline = Instant::now() + START;
        while !daemon.said.contains(READY) {
            match daemon.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => daemon.said.push_str(&line),
                Err(RecvTimeoutError::Timeout) => bail!("the daemon does not start: {}", daemon.said),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = daemon.process.wait(END)?;
                    bail!("the daemon ended with {status} instead of starting: {}", daemon.said);
                }
            }
        }
        Ok(daemon)
    }

    /// Ends it as a service manager does.
    fn end(mut self) -> Result<Replayed> {
        let pid = Pid::from_child(&self.process.0);
        // One that is dead already says so by its status.
        let _ = kill_process(pid, Signal::TERM);
        let status = self.process.wait(END).with_context(|| format!("the daemon; it said: {}", self.said))?;
        let output = self.output.recv_timeout(END).context("the daemon's output")??;
        self.said.extend(self.lines.iter());
        Ok(Replayed { status: status.code().unwrap_or(-1), output, message: self.said })
    }
}

fn read_all(mut output: ChildStdout) -> Receiver<std::io::Result<String>> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = output.read_to_string(&mut text).map(|_| text);
        let _ = send.send(read);
    });
    receive
}

fn read_lines(messages: ChildStderr) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(messages).lines().map_while(Result::ok) {
            if send.send(line + "\n").is_err() {
                break;
            }
        }
    });
    receive
}

/// A process that does not outlive its value.
struct Ended(Child);

impl Ended {
    fn wait(&mut self, time: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
