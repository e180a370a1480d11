//! What the eBPF programs need to be built: the sources of `core` (no compiled one exists for the BPF target) and bpf-linker.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::PrivateApt;
use crate::{step, tools, workspace};

/// Newer ones need a system LLVM; this one brings none and wants none.
const BPF_LINKER_VERSION: &str = "0.10.3";
/// Debian suites that may hold the sources of our compiler's version, newest first by likelihood.
const DEBIAN_SUITES: [&str; 3] = ["trixie-backports", "trixie", "sid"];

/// What [`ensure`] found or installed.
#[derive(Debug)]
pub struct BpfToolchain {
    /// The linker for the BPF target.
    pub bpf_linker: PathBuf,
}

/// Installs what is missing to build the eBPF programs; does nothing, quickly, when all is there.
///
/// # Errors
/// If something cannot be installed, with what to do about it.
pub fn ensure() -> Result<BpfToolchain> {
    core_sources()?;
    let why = "it links the eBPF programs; built once from its source, about 2 min";
    Ok(BpfToolchain { bpf_linker: tools::cargo_program("bpf-linker", BPF_LINKER_VERSION, why)? })
}

/// The `library` folder of the compiler's own version, in the place where cargo looks for it.
fn core_sources() -> Result<()> {
    let sysroot = PathBuf::from(step::output(rustc().args(["--print", "sysroot"]))?.trim());
    let library = sysroot.join("lib/rustlib/src/rust/library");
    if complete(&library) {
        return Ok(());
    }
    let _lock = workspace::lock("rust-src")?;
    if complete(&library) {
        return Ok(());
    }
    let version = rustc_version()?;
    step::step(&format!("install the sources of Rust {version}'s core library"), "no compiled core exists for the BPF target", || {
        let by_rustup = from_rustup();
        if by_rustup.is_ok() && complete(&library) {
            return Ok(());
        }
        step::note("rustup does not have them at hand, taking Debian's package rust-src");
        from_debian(&version, &library).with_context(|| {
            let first = by_rustup.err().map_or_else(|| "rustup succeeded but the sources are not there".to_owned(), |error| format!("{error:#}"));
            format!(
                "the sources of core are needed at {}. Run `rustup component add rust-src` where rustup reaches its server, or copy the `library` folder of Rust {version}'s source there. (rustup: {first})",
                library.display()
            )
        })
    })
}

fn complete(library: &Path) -> bool {
    library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
}

fn rustc() -> Command {
    let mut command = Command::new("rustc");
    command.current_dir(workspace::root());
    command
}

fn rustc_version() -> Result<String> {
    let text = step::output(rustc().arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .context("`rustc -vV` names no release; is rustc on PATH the one of a Rust toolchain?")
}

fn from_rustup() -> Result<()> {
    if !step::installed("rustup") {
        bail!("not installed");
    }
    // A machine without the server answers at once; one with a slow line is given its time, but not for ever.
    let mut command = Command::new("timeout");
    command.args(["120", "rustup", "component", "add", "rust-src"]).current_dir(workspace::root());
    step::quiet("rustup component add rust-src", &mut command)
}

/// Takes the package of exactly our version out of a Debian suite, with an apt state of its own: the system's stays as it is.
fn from_debian(version: &str, library: &Path) -> Result<()> {
    let state = workspace::cache_dir()?.join("apt");
    let apt = PrivateApt::new(&state)?;
    let mut reasons = Vec::new();
    for suite in DEBIAN_SUITES {
        match rust_src(&apt, suite, version) {
            Ok(package) => {
                let unpacked = state.join("rust-src");
                let _ = fs::remove_dir_all(&unpacked);
                step::quiet("unpack rust-src", Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
                let source = unpacked.join(format!("usr/src/rustc-{version}/library"));
                if !complete(&source) {
                    bail!("Debian's rust-src holds no {}", source.display());
                }
                place(&source, library)?;
                let _ = fs::remove_dir_all(&state);
                return Ok(());
            }
            Err(error) => reasons.push(format!("{suite}: {error:#}")),
        }
    }
    bail!("Debian's package rust-src {version} was not found ({})", reasons.join("; "))
}

fn rust_src(apt: &PrivateApt, suite: &str, version: &str) -> Result<PathBuf> {
    apt.use_suite(suite)?;
    let is_ours = |debian: &String| debian.strip_prefix(version).is_some_and(|rest| rest.starts_with(['+', '-', '~']));
    let found = apt.versions("rust-src")?.into_iter().find(is_ours);
    apt.download("rust-src", &found.with_context(|| format!("no rust-src of version {version}"))?)
}

fn place(source: &Path, library: &Path) -> Result<()> {
    let parent = library.parent().context("the library folder has a parent")?;
    fs::create_dir_all(parent)
        .with_context(|| format!("cannot create {}; run as the user who owns the Rust toolchain", parent.display()))?;
    workspace::install_dir(library, |half| {
        step::quiet("copy the library sources", Command::new("cp").arg("-a").arg(source.join(".")).arg(half))
    })
}
