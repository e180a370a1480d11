//! Builds the eBPF programs, then the daemon that carries them.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{setup, step, workspace};

const BPF_TARGET: &str = "bpfel-unknown-none";
/// The objects of `tracer-ebpf`, each a binary of that crate.
const OBJECTS: [&str; 4] = ["packet", "socket", "socket_ring", "tls"];

/// How a build is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build; the eBPF programs can log.
    Debug,
    /// What users run; the eBPF programs are silent.
    Release,
}

impl Profile {
    /// The folder's name under `target` and `target/bpf`.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Debug => "debug",
            Profile::Release => "release",
        }
    }
}

/// Builds everything for live capture and returns the daemon's path.
///
/// # Errors
/// If a tool is missing and cannot be installed, or something does not compile.
pub fn daemon(profile: Profile) -> Result<PathBuf> {
    let bpf_dir = programs(profile)?;
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "tracer-userspace", "--bin", "kafka-tracer", "--features", "live"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    cargo.env("KAFKA_TRACER_BPF_DIR", &bpf_dir);
    step::run("build kafka-tracer", "the daemon, with live capture", &mut cargo)?;
    Ok(daemon_path(profile))
}

/// Builds a test or a benchmark (`--test`, `--bench`) of the daemon's crate and returns its path.
///
/// # Errors
/// If it does not compile.
pub fn program(kind: &str, name: &str, features: &str, programs: &Path) -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "tracer-userspace", "--features", features, kind, name, "--message-format", "json"]);
    let built = step::output(cargo.env("KAFKA_TRACER_BPF_DIR", programs))?;
    built
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message.pointer("/target/name").is_some_and(|of| of == name))
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .with_context(|| format!("cargo names no {name} that it built"))
}

/// Where the daemon of a profile lies after [`daemon`].
pub fn daemon_path(profile: Profile) -> PathBuf {
    workspace::target_dir().join(profile.name()).join("kafka-tracer")
}

/// Builds the eBPF programs and returns the folder that holds them: `target/bpf/{debug,release}`, one `NAME.o` per object.
///
/// # Errors
/// If a tool is missing and cannot be installed, or the programs do not compile.
pub fn programs(profile: Profile) -> Result<PathBuf> {
    let tools = setup::ensure()?;
    let build_dir = workspace::target_dir().join("bpf/build");
    let bpf_dir = bpf_dir(profile);

    // The kernel's verifier accepts optimised programs only: both profiles are release builds, they differ in the programs' logging.
    let mut cargo = bpf_cargo(&tools, "build");
    cargo.args(["--release", "--bins", "--target-dir"]).arg(&build_dir);
    if profile == Profile::Debug {
        cargo.args(["--features", "log"]);
    }
    step::run("build the eBPF programs", "they run in the kernel and copy the bytes of Kafka connections", &mut cargo)?;

    fs::create_dir_all(&bpf_dir).with_context(|| format!("cannot create {}", bpf_dir.display()))?;
    for name in OBJECTS {
        let built = build_dir.join(BPF_TARGET).join("release").join(name);
        copy_if_changed(&built, &bpf_dir.join(format!("{name}.o")))?;
    }
    Ok(bpf_dir)
}

/// Where the eBPF programs of a profile lie after [`programs`].
pub fn bpf_dir(profile: Profile) -> PathBuf {
    workspace::target_dir().join("bpf").join(profile.name())
}

/// A cargo for the crate `tracer-ebpf`: target, linker and flags that decide whether the kernel takes the programs.
pub fn bpf_cargo(tools: &setup::BpfToolchain, subcommand: &str) -> std::process::Command {
    let arch = std::env::consts::ARCH;
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Clinker={}", tools.bpf_linker.display()),
        // The types of maps with BTF keys (socket storage) and the verifier's line numbers come from here.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Without it copies and fills of a few dozen bytes become calls of byte-wise loops: slow to run, and the verifier of Linux 6.1 gives
        // up on them.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ];
    let mut cargo = workspace::cargo();
    cargo.arg(subcommand).current_dir(workspace::root().join("tracer-ebpf"));
    // `core` has to be built for this target, which a stable compiler does only when told that we know what we do.
    cargo.args(["-Z", "build-std=core", "--target", BPF_TARGET]).env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    cargo.env_remove("RUSTC").env_remove("RUSTC_WORKSPACE_WRAPPER");
    cargo
}

/// Leaves an equal file as it is, so that what depends on it is not built again.
fn copy_if_changed(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("the build left no {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
