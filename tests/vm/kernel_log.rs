//! What the kernel logs of system calls that a filter does not know (`--seccomp log`).

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::older;

/// How long it may take until the kernel has written what it was to write.
const PATIENCE: Duration = Duration::from_secs(10);
/// This program's own name.
const INIT: &str = "/init";

/// The kernel's log from now on.
pub(crate) struct KernelLog(File);

impl KernelLog {
    /// Opens it at its end.
    pub(crate) fn open() -> Result<Self> {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits())?;
        let mut log = File::options().read(true).custom_flags(flags).open("/dev/kmsg").context("the kernel's log")?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self(log))
    }

    /// Calls of this program that it tells of.
    pub(crate) fn calls_of(&mut self, program: &str) -> Result<Vec<String>> {
        // The kernel writes them a little later, in order: a call of our own is the last.
        older::make_a_logged_call()?;
        let deadline = Instant::now() + PATIENCE;
        let mut calls = Vec::new();
        while let Some((exe, call)) = self.next_call(deadline)? {
            if exe == INIT {
                return Ok(calls);
            }
            if exe == program && !calls.contains(&call) {
                calls.push(call);
            }
        }
        bail!("the kernel does not log a system call that a filter has it log")
    }

    /// Program and number of the next call that it tells of; None after the deadline.
    fn next_call(&mut self, deadline: Instant) -> Result<Option<(String, String)>> {
        let mut record = vec![0; 8192];
        loop {
            let len = match self.0.read(&mut record) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                // Overwritten meanwhile: what follows is there.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => continue,
                Err(error) => return Err(error.into()),
            };
            let text = String::from_utf8_lossy(record.get(..len).unwrap_or_default()).into_owned();
            let word = |name| text.split_whitespace().find_map(|word| word.strip_prefix(name));
            if let (true, Some(exe), Some(call)) = (text.contains("type=1326"), word("exe="), word("syscall=")) {
                return Ok(Some((exe.trim_matches('"').to_owned(), format!("system call {call}"))));
            }
        }
    }
}
