//! `test`, `lint`, `ci`: what must hold before a commit.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile};
use crate::lab::{Client, Collector, Distribution, Language};
use crate::vm::matrix::{self, Extent, Matrix};
use crate::{fuzz, setup, step, tools, workspace};

const CARGO_DENY_VERSION: &str = "0.20.2";
/// How long each fuzz target runs among the tests.
const BRIEFLY: Duration = Duration::from_secs(4);

/// Which tests to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tests {
    /// Those of `cargo test`: no root, no broker, no BPF.
    Plain,
    /// Those that need root, a broker, clients and a Collector.
    Live,
    /// All.
    All,
}

/// Runs tests and prints how many passed and failed as the last line.
///
/// # Errors
/// If one fails, or none was run.
pub fn test(which: Tests, filter: &[OsString]) -> Result<()> {
    let mut tally = Tally::default();
    if which != Tests::Live {
        step::heading("cargo test", "everything that needs neither root nor a broker");
        run_tests(workspace::cargo().args(["test", "--workspace", "--no-fail-fast", "--"]).args(filter), &mut tally)?;
    }
    if which == Tests::All {
        step::heading("release tests", "what needs speed: memory at full scale, two million damaged messages");
        let mut release = workspace::cargo();
        release.args([
            "test",
            "--release",
            "--package",
            "tracer-userspace",
            "--no-fail-fast",
            "--test",
            "scale",
            "--test",
            "kafka_hostile",
            "--",
        ]);
        run_tests(release.args(filter), &mut tally)?;
        if filter.is_empty() {
            step::heading("fuzz", "each target for a moment; `cargo xtask fuzz` takes its time");
            fuzz::run(None, BRIEFLY)?;
        }
    }
    if which != Tests::Plain {
        live(filter, &mut tally)?;
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 || tally.broken {
        bail!("not all tests passed");
    }
    if tally.passed == 0 {
        bail!("no test was run");
    }
    Ok(())
}

/// Runs the chaos test alone, for longer than it takes by itself, and shows what it found.
///
/// # Errors
/// If it fails.
pub fn chaos(minutes: u32) -> Result<()> {
    let Prepared { daemon, .. } = prepare()?;
    step::heading("chaos", "brokers, clients and the tracer are stopped, killed and started again; its accounts must balance");
    let mut test = workspace::cargo();
    test.args(["test", "--package", "tests", "--test", "live", "--", "--ignored", "--nocapture", "chaos"]);
    test.env("KAFKA_TRACER_BIN", &daemon).env("KAFKA_TRACER_CHAOS_MINUTES", minutes.to_string());
    let mut tally = Tally::default();
    run_tests(&mut test, &mut tally)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 || tally.broken || tally.passed == 0 {
        bail!("the accounts do not balance");
    }
    Ok(())
}

/// The oldest kernel that there is a guest of.
const OLDEST: &str = "5.10";

fn live(filter: &[OsString], tally: &mut Tally) -> Result<()> {
    let Prepared { daemon, bpf_dir } = prepare()?;
    step::heading("kernel tests", "the daemon with live capture, its programs and their traps, on this kernel");
    let mut kernel = workspace::cargo();
    kernel.args(["test", "--package", "tracer-userspace", "--features", "live", "--no-fail-fast", "--", "--include-ignored"]);
    run_tests(kernel.args(filter).env("KAFKA_TRACER_BPF_DIR", &bpf_dir).env("KAFKA_TRACER_BIN", &daemon), tally)?;

    // Without a filter: the matrix has no names to choose by, and a guest takes its time to boot.
    if filter.is_empty() {
        let score = matrix::run(&Matrix { kernels: Vec::new(), sources: Vec::new(), extent: Extent::Short })?;
        tally.passed += score.passed;
        tally.failed += score.failed;

        step::heading("kprobes", "what programs do with sockets, seen by kprobes in a guest of the oldest kernel");
        let sockets = build::program("--test", "live_socket", "kprobes", &bpf_dir)?;
        let mut guest = Command::new(std::env::current_exe().context("the own program")?);
        guest.args(["vm", "--kernel", OLDEST, "--"]).arg(sockets).args(["--include-ignored", "--test-threads", "1"]);
        run_tests(&mut guest, tally)?;
    }

    step::heading("live tests", "real brokers, clients over seven libraries, a real Collector");
    let mut live = workspace::cargo();
    live.args(["test", "--package", "tests", "--no-fail-fast", "--", "--ignored", "--test-threads", "1"]);
    run_tests(live.args(filter).env("KAFKA_TRACER_BIN", &daemon), tally)
}

/// What live tests need.
struct Prepared {
    daemon: PathBuf,
    bpf_dir: PathBuf,
}

fn prepare() -> Result<Prepared> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the live tests attach programs to the kernel and need root: `sudo -E cargo xtask test`; `cargo xtask test --no-live` runs the others"
        );
    }
    // Kept apart: any build without the feature `live` puts its own in that place.
    let daemon = workspace::target_dir().join("xtask/kafka-tracer");
    // As it is used: a debug build is ten times slower, and loses bytes under a load that the real one carries.
    let built = build::daemon(Profile::Release)?;
    fs::copy(&built, &daemon).with_context(|| format!("cannot copy {} to {}", built.display(), daemon.display()))?;
    let bpf_dir = build::programs(Profile::Debug)?;
    // What takes long is fetched and built here, where its progress is seen.
    let newest = Distribution::ensure(Distribution::NEWEST)?;
    for language in Language::ENDLESS.into_iter().chain([Language::Krafka]) {
        Client::ensure(language, &newest)?;
    }
    Client::ensure(Language::Java, &Distribution::ensure(Distribution::OLD)?)?;
    Collector::ensure()?;
    Ok(Prepared { daemon, bpf_dir })
}

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    /// A run ended badly without saying that a test failed: it did not compile, or a test program crashed.
    broken: bool,
}

/// Runs a cargo test, shows what it prints, and counts.
fn run_tests(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let started = Instant::now();
    // Where an error came from is said in its words; a backtrace of the test harness tells nothing.
    command.env("RUST_LIB_BACKTRACE", "0").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let failed_before = tally.failed;
    for line in BufReader::new(child.stdout.take().context("cargo's output")?).lines() {
        let line = line.context("cargo's output")?;
        println!("{line}");
        if let Some((passed, failed)) = result_line(&line) {
            tally.passed += passed;
            tally.failed += failed;
        }
    }
    let status = child.wait().context("cargo's end")?;
    if !status.success() && tally.failed == failed_before {
        tally.broken = true;
    }
    step::note(&format!("took {}", step::seconds(started.elapsed())));
    Ok(())
}

/// `test result: ok. 3 passed; 1 failed; ...` gives (3, 1).
fn result_line(line: &str) -> Option<(u64, u64)> {
    let counts = line.trim_start().strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse().ok());
    Some((count("passed")?, count("failed")?))
}

/// Formatting, clippy, docs, licences: all of it, even if one finds fault.
///
/// # Errors
/// If one finds fault; what it found has been printed.
pub fn lint() -> Result<()> {
    let mut faults = Vec::new();
    let mut check = |what: &str, why: &str, command: &mut Command| {
        if let Err(error) = step::run(what, why, command) {
            eprintln!("error: {:#}", error.root_cause());
            faults.push(what.to_owned());
        }
    };
    let ebpf = workspace::root().join("tracer-ebpf");
    check("check the formatting", "`cargo fmt --all` repairs it", workspace::cargo().args(["fmt", "--all", "--check"]));
    let mut fmt = workspace::cargo();
    check("check the eBPF programs' formatting", "`cargo fmt` in tracer-ebpf repairs it", fmt.args(["fmt", "--check"]).current_dir(&ebpf));
    let mut fmt = tools::rust_client_cargo("fmt");
    check("check the formatting of the client over krafka", "`cargo fmt` in tests/clients/rust repairs it", fmt.arg("--check"));

    let mut clippy = workspace::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
    check("lint the workspace", "clippy, as `cargo build` sees it", &mut clippy);
    let mut clippy = tools::rust_client_cargo("clippy");
    clippy.args(["--locked", "--target-dir"]).arg(workspace::target_dir()).args(["--", "--deny", "warnings"]);
    check("lint the client over krafka", "clippy, for a crate that is no member of the workspace", &mut clippy);

    let tools = setup::ensure()?;
    let bpf_dir = build::programs(Profile::Debug)?;
    let mut clippy = workspace::cargo();
    clippy.args(["clippy", "--package", "tracer-userspace", "--package", "fuzz", "--features", "tracer-userspace/kprobes,fuzz/live"]);
    clippy.args(["--all-targets", "--", "--deny", "warnings"]);
    check("lint live capture", "clippy, with the feature `live`", clippy.env("KAFKA_TRACER_BPF_DIR", &bpf_dir));
    let mut clippy = build::bpf_cargo(&tools, "clippy");
    clippy.args(["--release", "--target-dir"]).arg(workspace::target_dir().join("bpf/build")).args(["--", "--deny", "warnings"]);
    check("lint the eBPF programs", "clippy, for the BPF target", &mut clippy);

    let mut doc = workspace::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--features", "tracer-userspace/live"]);
    doc.env("RUSTDOCFLAGS", "--deny warnings").env("KAFKA_TRACER_BPF_DIR", &bpf_dir);
    check("build the documentation", "rustdoc, without a warning", &mut doc);

    let mut deny = Command::new(cargo_deny()?);
    deny.args(["--locked", "--all-features", "check", "licenses", "bans", "sources"]).current_dir(workspace::root());
    check("check the dependencies", "licences, sources and bans of deny.toml", &mut deny);
    if !faults.is_empty() {
        bail!("could not {}", faults.join("; "));
    }
    Ok(())
}

fn cargo_deny() -> Result<std::path::PathBuf> {
    tools::cargo_program(
        "cargo-deny",
        CARGO_DENY_VERSION,
        "it checks the licences of all dependencies; built once from its source, about 4 min",
    )
}

#[cfg(test)]
mod tests {
    use super::result_line;

    #[test]
    fn a_result_line_is_counted_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some((12, 3)));
        assert_eq!(result_line("test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out"), Some((0, 0)));
        assert_eq!(result_line("test some::name ... ok"), None);
        assert_eq!(result_line("running 3 tests"), None);
    }
}
