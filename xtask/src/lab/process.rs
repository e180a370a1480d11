//! A child process with its output in a file, killed when dropped.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use super::wait_for;

/// Below what runs by default, above what runs for nobody.
const NICE: i32 = 5;

/// A running program of the lab.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    stdout: PathBuf,
}

impl Process {
    /// Starts `command` with its standard output and error in files of `dir`.
    ///
    /// # Errors
    /// If the files cannot be created or the program cannot be started.
    pub fn start(name: &str, dir: &Path, command: &mut Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let stdout = dir.join(format!("{name}.out"));
        let create = |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
        let child = command
            .stdin(Stdio::null())
            .stdout(create(&stdout)?)
            .stderr(create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", Path::new(command.get_program()).display()))?;
        Ok(Self { name: name.to_owned(), child, log, stdout })
    }

    /// What it is called, and its files.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it wrote to standard output after that many bytes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn stdout_from(&self, bytes: usize) -> Result<String> {
        let mut file = File::open(&self.stdout)?;
        file.seek(SeekFrom::Start(u64::try_from(bytes)?))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Fails if it has ended: for use in a wait for something that only a living process does.
    ///
    /// # Errors
    /// With its exit status and the end of its log.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; the end of its log:\n{}", self.name, self.log_end()),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let Self { name, child, .. } = self;
        let ended = wait_for(&format!("the end of {name}"), limit, || Ok(child.try_wait()?));
        ended.with_context(|| format!("the end of its log:\n{}", self.log_end()))
    }

    /// Waits for its end and wants it to be a success.
    ///
    /// # Errors
    /// If it does not end in time, or fails.
    pub fn success(&mut self, limit: Duration) -> Result<()> {
        let status = self.wait(limit)?;
        if !status.success() {
            bail!("{} ended with {status}; the end of its log:\n{}", self.name, self.log_end());
        }
        Ok(())
    }

    /// Waits until it holds an established connection to a port of loopback.
    ///
    /// # Errors
    /// If it ends or takes too long.
    pub fn wait_connected(&mut self, port: u16) -> Result<()> {
        let what = format!("{} to connect to port {port}", self.name);
        wait_for(&what, Duration::from_secs(30), || {
            self.alive()?;
            Ok(is_connected(self.pid(), port).then_some(()))
        })
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// If the process is gone already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.id()?, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }

    /// Lets others go first where there is not enough CPU.
    ///
    /// # Errors
    /// If the process is gone already.
    pub fn give_way(&self) -> Result<()> {
        rustix::process::setpriority_process(Some(self.id()?), NICE).with_context(|| format!("cannot change the priority of {}", self.name))
    }

    /// CPU seconds that it has used, in user and kernel mode.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th field after it.
        let after = text.rsplit_once(')').map_or("", |(_, after)| after);
        let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        #[expect(clippy::cast_precision_loss, reason = "a process does not run for 2^53 ticks")]
        let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Ok(seconds)
    }

    fn id(&self) -> Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id is positive")
    }

    fn log_end(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn is_connected(pid: u32, port: u16) -> bool {
    // Columns of the kernel's tables: slot, local, remote, state (01: established), ..., inode.
    let remote = format!(":{port:04X} 01 ");
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|table| fs::read_to_string(table).ok());
    let sockets = tables.flat_map(|text| {
        let socket = |line: &str| line.split_whitespace().nth(9).map(|inode| PathBuf::from(format!("socket:[{inode}]")));
        text.lines().filter(|line| line.contains(&remote)).filter_map(socket).collect::<Vec<_>>()
    });
    let sockets: Vec<PathBuf> = sockets.collect();
    let Ok(held) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    held.filter_map(Result::ok).filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| sockets.contains(&target))
}
