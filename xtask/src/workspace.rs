//! Where things are: the repository, the build directory, the cache of tools.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The repository's root.
pub fn root() -> PathBuf {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir).to_path_buf()
}

/// Cargo's build directory: `$CARGO_TARGET_DIR`, else `target` in the repository.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root().join(dir),
        _ => root().join("target"),
    }
}

/// The project's tools: `kafka-tracer` under `$XDG_CACHE_HOME`, else under `~/.cache`. Created if missing.
///
/// # Errors
/// If neither variable is set or the directory cannot be created.
pub fn cache_dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set; set one of them")?).join(".cache"),
    };
    let dir = base.join("kafka-tracer");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}; set XDG_CACHE_HOME to a writable directory", dir.display()))?;
    Ok(dir)
}

/// The cargo that runs us, so that a job and its children use one toolchain.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    command
}

/// Holds a named lock among all `cargo xtask` of this user until the returned file is dropped: installing a tool happens once.
///
/// # Errors
/// If the lock file cannot be created or locked.
pub fn lock(name: &str) -> Result<File> {
    let path = cache_dir()?.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        crate::step::note(&format!("waiting for another `cargo xtask` that installs {name}"));
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Puts a directory made by `fill` at `place`, whole or not at all: it is filled beside its place and renamed.
///
/// # Errors
/// If `fill` fails or the directory cannot be moved.
pub fn install_dir(place: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = place.file_name().context("a directory to install needs a name")?.to_string_lossy();
    let half = place.with_file_name(format!(".{name}.part"));
    if half.exists() {
        fs::remove_dir_all(&half).with_context(|| format!("cannot remove {}", half.display()))?;
    }
    fs::create_dir_all(&half).with_context(|| format!("cannot create {}", half.display()))?;
    fill(&half)?;
    fs::rename(&half, place).with_context(|| format!("cannot move {} to {}", half.display(), place.display()))
}
