//! One piece of work that takes a while: says what and why, keeps the output in a file, gives a sign of life, shows the end of the
//! output when it fails.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// How long a step may be silent.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// Lines of a failed command's output that are shown.
const SHOWN_LINES: usize = 30;

/// Prints a line about what is going on.
pub fn note(text: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[2m    {text}\x1b[0m");
    } else {
        eprintln!("    {text}");
    }
}

/// Prints the heading of a step: `what`, and `why` it is done.
pub fn heading(what: &str, why: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[1;36m==>\x1b[0m \x1b[1m{what}\x1b[0m: {why}");
    } else {
        eprintln!("==> {what}: {why}");
    }
}

/// Does `work` under a heading and says how long it took.
///
/// # Errors
/// What `work` returns, with the step's name.
pub fn step<T>(what: &str, why: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    under_heading(what, why, String::new, work)
}

/// Runs `command` as a step; its output goes to a file under `target/xtask`.
///
/// # Errors
/// If the command cannot be started or fails; the end of its output is part of the message.
pub fn run(what: &str, why: &str, command: &mut Command) -> Result<()> {
    let log = log_path(what)?;
    let last_line = || tail(&log, 1).trim().to_owned();
    under_heading(what, why, last_line, || logged(command, &log))
}

/// Runs `command` without a heading; its output goes to a file that is named, and shown in part, if the command fails.
///
/// # Errors
/// If the command cannot be started or fails.
pub fn quiet(what: &str, command: &mut Command) -> Result<()> {
    logged(command, &log_path(what)?)
}

fn under_heading<T>(what: &str, why: &str, doing: impl Fn() -> String + Send, work: impl FnOnce() -> Result<T>) -> Result<T> {
    heading(what, why);
    let started = Instant::now();
    let value = alive(started, doing, work).with_context(|| format!("could not {what}"))?;
    note(&format!("done in {}", seconds(started.elapsed())));
    Ok(value)
}

fn log_path(what: &str) -> Result<PathBuf> {
    let logs = workspace::target_dir().join("xtask");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let name: String = what.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    Ok(logs.join(format!("{name}-{}.log", std::process::id())))
}

fn logged(command: &mut Command, path: &Path) -> Result<()> {
    let log = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let status = status(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
    if !status.success() {
        let end = tail(path, SHOWN_LINES);
        bail!("{} ended with {status}; all of its output is in {}, the end of it:\n{end}", words(command), path.display());
    }
    // A file that tells of success is of no use to anyone.
    let _ = fs::remove_file(path);
    Ok(())
}

/// Runs `command` and returns what it printed on standard output.
///
/// # Errors
/// If it cannot be started, fails, or prints something that is not UTF-8.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("{} ended with {}:\n{}", words(command), output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {} is not UTF-8", words(command)))
}

/// Runs `command` with the terminal as its own.
///
/// # Errors
/// If it cannot be started or fails.
pub fn foreground(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("{} ended with {status}", words(command));
    }
    Ok(())
}

fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| cannot_start(command))
}

/// Is there a program of this name on the path?
pub fn installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// A time as a person reads it.
pub fn seconds(time: Duration) -> String {
    if time.as_secs() >= 60 {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// Does `work` while another thread shows that time passes, and what is being done.
fn alive<T>(started: Instant, doing: impl Fn() -> String + Send, work: impl FnOnce() -> T) -> T {
    let (done, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while wait.recv_timeout(SIGN_OF_LIFE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let shown: String = doing().chars().take(80).collect();
                note(&format!("{:>12}  {shown}", seconds(started.elapsed())));
            }
        });
        let value = work();
        drop(done);
        value
    })
}

fn cannot_start(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    format!("cannot start `{program}`; install it or add its folder to PATH")
}

fn words(command: &Command) -> String {
    let mut text = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    for word in command.get_args().take(6) {
        text.push(' ');
        text.push_str(&word.to_string_lossy());
    }
    format!("`{text}`")
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path, count: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let shown: Vec<String> = lines.iter().skip(lines.len().saturating_sub(count)).map(|line| format!("    {line}")).collect();
    shown.join("\n")
}
