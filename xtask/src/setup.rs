//! What the eBPF programs need to be built: the sources of `core` (no compiled one exists for the BPF target) and bpf-linker.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

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
        match apt.download(suite, "rust-src", version) {
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

fn place(source: &Path, library: &Path) -> Result<()> {
    let parent = library.parent().context("the library folder has a parent")?;
    fs::create_dir_all(parent)
        .with_context(|| format!("cannot create {}; run as the user who owns the Rust toolchain", parent.display()))?;
    workspace::install_dir(library, |half| {
        step::quiet("copy the library sources", Command::new("cp").arg("-a").arg(source.join(".")).arg(half))
    })
}

/// An apt that reads and writes only below one directory and takes the mirror from the machine's own configuration.
struct PrivateApt {
    state: PathBuf,
    mirrors: Vec<String>,
}

impl PrivateApt {
    fn new(state: &Path) -> Result<Self> {
        if !step::installed("apt-get") {
            bail!("this is not a Debian machine (no apt-get)");
        }
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(dir)).with_context(|| format!("cannot create {}", state.join(dir).display()))?;
        }
        // ORIGIN is the archive's own word for itself: other vendors' repositories among the machine's sources are left out.
        let listed = step::output(Command::new("apt-get").args(["indextargets", "--format", "$(ORIGIN) $(SITE)"]))?;
        let mut mirrors: Vec<String> = Vec::new();
        for site in listed.lines().filter_map(|line| line.strip_prefix("Debian ")) {
            // The security archive has no suites of the kind we look for.
            if !site.ends_with("-security") && !mirrors.iter().any(|known| known == site) {
                mirrors.push(site.to_owned());
            }
        }
        if mirrors.is_empty() {
            mirrors = configured_mirrors();
        }
        if mirrors.is_empty() {
            bail!("the machine's apt names no Debian mirror; run `apt-get update`");
        }
        Ok(Self { state: state.to_path_buf(), mirrors })
    }

    fn command(&self, program: &str, sources: &Path) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        command.args(["-o", &option("Dir::Etc::sourcelist", sources)]);
        command.args(["-o", "Dir::Etc::sourceparts=/dev/null"]);
        command.args(["-o", &option("Dir::State::lists", &self.state.join("lists"))]);
        command.args(["-o", &option("Dir::Cache", &self.state.join("cache"))]);
        // The cache may lie in a home directory that the user `_apt` cannot enter.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
        command.current_dir(&self.state);
        command
    }

    /// Downloads `package` in a version that starts with `upstream`.
    fn download(&self, suite: &str, package: &str, upstream: &str) -> Result<PathBuf> {
        let sources = self.state.join("sources.list");
        let lines: Vec<String> = self.mirrors.iter().map(|mirror| format!("deb {mirror} {suite} main\n")).collect();
        fs::write(&sources, lines.concat()).with_context(|| format!("cannot write {}", sources.display()))?;
        step::quiet("apt-get update", self.command("apt-get", &sources).arg("update"))?;
        let listed = step::output(self.command("apt-cache", &sources).args(["madison", package]))?;
        let version = listed
            .lines()
            .filter_map(|line| line.split('|').nth(1).map(str::trim))
            .find(|version| version.strip_prefix(upstream).is_some_and(|rest| rest.starts_with(['+', '-', '~'])))
            .with_context(|| format!("no {package} of version {upstream}"))?;
        step::quiet("apt-get download", self.command("apt-get", &sources).arg("download").arg(format!("{package}={version}")))?;
        let found = fs::read_dir(&self.state)?.filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{package}_")) && path.extension().is_some_and(|extension| extension == "deb")
        });
        found.with_context(|| format!("apt-get downloaded no file {package}_*.deb"))
    }
}

/// Mirrors as the configuration files spell them: for a machine whose lists were never fetched.
fn configured_mirrors() -> Vec<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    let mut mirrors = Vec::new();
    for text in files.iter().filter_map(|path| fs::read_to_string(path).ok()) {
        let words = text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:")).flat_map(str::split_whitespace);
        for word in words.filter(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian")) {
            let mirror = word.trim_end_matches('/').to_owned();
            if !mirrors.contains(&mirror) {
                mirrors.push(mirror);
            }
        }
    }
    mirrors
}
