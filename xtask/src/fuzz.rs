//! `fuzz`: what takes outside bytes, under libFuzzer, on the compiler that everything else is built with.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile};
use crate::{step, tools, workspace};

/// The targets; `fuzz::TARGETS` and `fuzz::LIVE_TARGETS` have what they do.
pub const TARGETS: [&str; 14] = [
    "pcap",
    "frame",
    "line",
    "message",
    "records",
    "compression",
    "judge",
    "settings",
    "binary",
    "process",
    "events",
    "btf",
    "sockets",
    "lists",
];

/// What a compiler needs to be told for libFuzzer to see which way the code went. Sums that overflow, and broken
/// assertions, are finds.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
-Cdebug-assertions=on -Coverflow-checks=on";

/// The longest that one input may take.
const TIMEOUT_SECONDS: u32 = 10;
/// The most memory that one target may take.
const MEMORY_MIB: u32 = 1_024;

/// Runs a target, or all one after another, each for so long.
///
/// # Errors
/// If it does not build, or one found something: the message names the input.
pub fn run(target: Option<&str>, each: Duration) -> Result<()> {
    let program = build()?;
    let mut found = Vec::new();
    for name in TARGETS.into_iter().filter(|name| target.is_none_or(|target| target == *name)) {
        let what = format!("fuzz {name} for {} s", each.as_secs());
        if let Err(error) = step::step(&what, "any bytes, whatever they are", || fuzz(&program, name, each)) {
            eprintln!("error: {error:#}");
            found.push(name);
        }
    }
    if !found.is_empty() {
        bail!("something was found in {}", found.join(", "));
    }
    Ok(())
}

fn folder() -> PathBuf {
    workspace::target_dir().join("fuzz")
}

/// Builds the program. Only the project's own crates are instrumented; their dependencies are those of any release build.
fn build() -> Result<PathBuf> {
    tools::ensure("g++")?;
    let bpf_dir = build::programs(Profile::Debug)?;
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let compiler = folder.join("instrumented-rustc");
    // Build scripts are programs of their own, which nothing drives.
    let script = format!("#!/bin/sh\ncase \" $* \" in\n*' build_script_'*) exec \"$@\" ;;\n*) exec \"$@\" {INSTRUMENTED} ;;\nesac\n");
    write_program(&compiler, &script)?;
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--package", "fuzz", "--features", "libfuzzer,live"]);
    cargo.env("RUSTC_WORKSPACE_WRAPPER", &compiler).env("KAFKA_TRACER_BPF_DIR", &bpf_dir);
    step::run("build the fuzz targets", "with the instrumentation of libFuzzer", &mut cargo)?;
    // Kept apart: a build without instrumentation puts its own in that place. Renamed, since an older one may be running.
    let (program, new) = (folder.join("fuzz"), folder.join(format!("fuzz.{}", std::process::id())));
    let built = workspace::target_dir().join("release/fuzz");
    fs::copy(&built, &new).with_context(|| format!("cannot copy {} to {}", built.display(), new.display()))?;
    fs::rename(&new, &program).with_context(|| format!("cannot move {} to {}", new.display(), program.display()))?;
    Ok(program)
}

/// Writes a script, unless it is there: cargo takes a new one for a new compiler.
fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| format!("cannot make {} a program", path.display()))
}

fn fuzz(program: &Path, name: &str, time: Duration) -> Result<()> {
    let [seeds, corpus, finds] = ["seeds", "corpus", "finds"].map(|kind| folder().join(kind).join(name));
    for folder in [&seeds, &corpus, &finds] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let target = || {
        let mut command = Command::new(program);
        command.env("KAFKA_TRACER_FUZZ_TARGET", name).current_dir(workspace::root()).stdin(Stdio::null());
        command
    };
    step::quiet("write the seeds", target().env("KAFKA_TRACER_FUZZ_SEEDS", &seeds))?;
    let log_path = folder().join(format!("{name}.log"));
    let log = File::create(&log_path).with_context(|| format!("cannot create {}", log_path.display()))?;
    let mut command = target();
    command
        .args([&corpus, &seeds])
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-timeout={TIMEOUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", finds.display()))
        .args(["-print_final_stats=1", "-max_len=16384"]);
    let copy = log.try_clone().context("the log's descriptor")?;
    let status = command.stdout(log).stderr(copy).status().with_context(|| format!("cannot start {}", program.display()))?;
    let text = fs::read_to_string(&log_path).unwrap_or_default();
    if !status.success() {
        let end: Vec<&str> = text.lines().rev().take(30).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        bail!("{name}: {status}; the input is in {}, the whole log in {}:\n{}", finds.display(), log_path.display(), end.join("\n"));
    }
    let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")).map_or("?", str::trim);
    let covered = text.lines().rev().find_map(|line| line.split_once("cov: ")?.1.split(' ').next()).unwrap_or("?");
    step::note(&format!("{name}: {runs} inputs, {covered} places of the code reached, nothing found"));
    Ok(())
}
