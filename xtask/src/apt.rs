//! Debian packages of other suites than the machine's own, by an apt that leaves the machine's as it is.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;

/// An apt that reads and writes only below one directory and takes the mirror from the machine's own configuration.
#[derive(Debug)]
pub struct PrivateApt {
    state: PathBuf,
    mirrors: Vec<String>,
}

impl PrivateApt {
    /// An apt whose state lies at `state`.
    ///
    /// # Errors
    /// If this is no Debian machine, or its apt names no mirror.
    pub fn new(state: &Path) -> Result<Self> {
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

    /// Reads the lists of a suite; what is asked next is asked of it alone.
    ///
    /// # Errors
    /// If no mirror has it.
    pub fn use_suite(&self, suite: &str) -> Result<()> {
        let sources = self.sources();
        let lines: Vec<String> = self.mirrors.iter().map(|mirror| format!("deb {mirror} {suite} main\n")).collect();
        fs::write(&sources, lines.concat()).with_context(|| format!("cannot write {}", sources.display()))?;
        step::quiet(&format!("apt-get update of {suite}"), self.command("apt-get").arg("update"))
    }

    /// The versions of a package that the suite has.
    ///
    /// # Errors
    /// If apt cannot say.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let listed = step::output(self.command("apt-cache").args(["madison", package]))?;
        Ok(listed.lines().filter_map(|line| line.split('|').nth(1)).map(|version| version.trim().to_owned()).collect())
    }

    /// The packages of the suite whose names match a regular expression.
    ///
    /// # Errors
    /// If apt cannot say.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let listed = step::output(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Downloads a package in exactly this version.
    ///
    /// # Errors
    /// If the mirror does not give it.
    pub fn download(&self, package: &str, version: &str) -> Result<PathBuf> {
        step::quiet("apt-get download", self.command("apt-get").arg("download").arg(format!("{package}={version}")))?;
        let found = fs::read_dir(&self.state)?.filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{package}_")) && path.extension().is_some_and(|extension| extension == "deb")
        });
        found.with_context(|| format!("apt-get downloaded no file {package}_*.deb"))
    }

    fn sources(&self) -> PathBuf {
        self.state.join("sources.list")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        command.args(["-o", &option("Dir::Etc::sourcelist", &self.sources())]);
        command.args(["-o", "Dir::Etc::sourceparts=/dev/null"]);
        command.args(["-o", &option("Dir::State::lists", &self.state.join("lists"))]);
        command.args(["-o", &option("Dir::Cache", &self.state.join("cache"))]);
        // The cache may lie in a home directory that the user `_apt` cannot enter.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
        command.current_dir(&self.state);
        command
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
