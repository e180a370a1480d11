//! A guest: one kernel, one archive, one run from power on to power off, under qemu without hardware help.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::archive::{Archive, stripped};
use super::kernel::Kernel;
use super::plan::{PLAN, Plan, Report};
use crate::{step, tools, workspace};

/// Lines of the console that are shown of a guest that did not do its work.
const SHOWN_LINES: usize = 40;

/// What is packed into a guest besides its init and its plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packed {
    /// A program, with its libraries and without its debug information.
    Program {
        /// Here.
        from: PathBuf,
        /// There.
        to: PathBuf,
    },
    /// A file as it is, or a directory with all files in it.
    Files {
        /// Here.
        from: PathBuf,
        /// There.
        to: PathBuf,
    },
}

/// A guest that was not started yet.
#[derive(Clone, Debug)]
pub struct Guest {
    /// To name it by, and its files.
    pub name: String,
    /// What it boots.
    pub kernel: Kernel,
    /// Words for the kernel's command line.
    pub parameters: Vec<String>,
    /// The program that it runs first, and only.
    pub init: PathBuf,
    /// What else lies in its file system.
    pub packed: Vec<Packed>,
    /// What it does.
    pub plan: Plan,
    /// How long it may take.
    pub time_limit: Duration,
    /// Its console is this process's output; else a file.
    pub on_terminal: bool,
    /// Its clock goes on by a nanosecond with each instruction, and it has one CPU: what it measures as time are instructions.
    pub counts_instructions: bool,
}

/// What became of a guest.
#[derive(Clone, Debug)]
pub struct Ran {
    /// What it told.
    pub reports: Vec<Report>,
    /// How long it took.
    pub time: Duration,
}

impl Guest {
    /// Boots it and waits for its end.
    ///
    /// # Errors
    /// If it cannot be started, takes too long, or does not come to the end of its plan.
    pub fn run(&self) -> Result<Ran> {
        tools::ensure("qemu-system-x86_64")?;
        let place = workspace::target_dir().join("xtask/vm").join(format!("{}-{}", self.name, std::process::id()));
        fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
        let archive = place.join("archive.cpio");
        self.pack(&archive, &place)?;
        let (console, reports) = (place.join("console.log"), place.join("reports.jsonl"));
        File::create(&reports).with_context(|| format!("cannot create {}", reports.display()))?;
        let begun = Instant::now();
        let ended = self.wait(self.command(&archive, &console, &reports).spawn().context("cannot start qemu-system-x86_64")?);
        let told = read_reports(&reports);
        // Large, and written anew for each run.
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
        let ran = ended.and_then(|()| {
            let reports = told?;
            ensure!(reports.last() == Some(&Report::Done), "it ended before its work was done");
            Ok(Ran { reports, time: begun.elapsed() })
        });
        match ran {
            Ok(ran) => {
                // What tells of success is of no use to anyone.
                let _ = fs::remove_dir_all(&place);
                Ok(ran)
            }
            Err(error) => Err(error.context(format!("guest {}{}", self.name, self.told_on(&console)))),
        }
    }

    fn told_on(&self, console: &Path) -> String {
        if self.on_terminal {
            return String::new();
        }
        format!(" (its console is in {}, the end of it:\n{}\n)", console.display(), step::tail(console, SHOWN_LINES))
    }

    fn pack(&self, archive: &Path, place: &Path) -> Result<()> {
        let file = File::create(archive).with_context(|| format!("cannot create {}", archive.display()))?;
        let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, file));
        for directory in ["/dev", "/proc", "/sys", "/tmp", "/run", "/root"] {
            archive.directory(Path::new(directory))?;
        }
        let smaller = place.join("stripped");
        let mut program = |from: &Path, to: &Path| {
            stripped(from, &smaller)?;
            archive.program(&smaller, to).with_context(|| format!("cannot pack {}", from.display()))?;
            fs::remove_file(&smaller).context("cannot remove a stripped program")
        };
        program(&self.init, Path::new("/init"))?;
        for packed in &self.packed {
            if let Packed::Program { from, to } = packed {
                program(from, to)?;
            }
        }
        for packed in &self.packed {
            if let Packed::Files { from, to } = packed {
                pack_files(&mut archive, from, to)?;
            }
        }
        archive.file(Path::new(PLAN), 0o644, &serde_json::to_vec(&self.plan)?)?;
        archive.finish().map(drop).context("cannot write the guest's archive")
    }

    fn command(&self, archive: &Path, console: &Path, reports: &Path) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        // Emulated, so that it is the same everywhere: in a virtual machine and without rights to /dev/kvm.
        qemu.args(["-machine", "pc", "-cpu", "max", "-m", "1024"]);
        if self.counts_instructions {
            qemu.args(["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=off"]);
        } else {
            qemu.args(["-accel", "tcg", "-smp", "2"]);
        }
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(archive);
        // `panic=-1` with `-no-reboot` ends qemu at once when the guest's kernel or its init dies.
        // A busy machine emulates the timer too late for the kernel's test of it, which then panics (`setup_IO_APIC`; seen on 7.3).
        let mut words = vec!["console=ttyS0", "no_timer_check", "loglevel=4", "panic=-1", "oops=panic", "mitigations=off"];
        if self.counts_instructions {
            // Else the kernel compares clocks, and may take a coarser one.
            words.push("tsc=reliable");
        }
        words.extend(self.parameters.iter().map(String::as_str));
        qemu.arg("-append").arg(words.join(" "));
        if self.on_terminal {
            qemu.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        } else {
            qemu.arg("-serial").arg(format!("file:{}", console.display()));
        }
        qemu.arg("-serial").arg(format!("file:{}", reports.display()));
        qemu.stdin(Stdio::null());
        qemu
    }

    fn wait(&self, mut qemu: Child) -> Result<()> {
        let end = Instant::now() + self.time_limit;
        loop {
            if let Some(status) = qemu.try_wait().context("cannot wait for qemu")? {
                ensure!(status.success(), "qemu ended with {status}");
                return Ok(());
            }
            if Instant::now() > end {
                qemu.kill().context("cannot end qemu")?;
                qemu.wait().context("cannot wait for qemu")?;
                bail!("it was not done within {}", step::seconds(self.time_limit));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn pack_files<W: std::io::Write>(archive: &mut Archive<W>, from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        archive.directory(to)?;
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let entry = entry?;
            pack_files(archive, &entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    archive.copy(from, to)
}

/// What the guest told; a line that it did not finish is none.
fn read_reports(path: &Path) -> Result<Vec<Report>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut reports = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.context("the guest's reports are no text")?;
        match serde_json::from_str(line.trim()) {
            Ok(report) => reports.push(report),
            Err(error) if error.is_eof() => {}
            Err(error) => return Err(error).with_context(|| format!("the guest told nonsense: {line}")),
        }
    }
    Ok(reports)
}
