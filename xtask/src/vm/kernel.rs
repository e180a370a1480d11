//! Debian's kernels: fetched as packages, kept in the cache by their version.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::PrivateApt;
use crate::{step, workspace};

/// A line of kernels that users run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// What the command line calls it.
    pub name: &'static str,
    /// What its versions begin with.
    prefix: &'static str,
    /// Debian suites that have it; the first that does is taken.
    suites: &'static [&'static str],
}

/// All that are tested, oldest first.
pub const SERIES: [Series; 4] = [
    Series { name: "5.10", prefix: "5.10.", suites: &["bullseye"] },
    Series { name: "6.1", prefix: "6.1.", suites: &["bookworm"] },
    Series { name: "6.12", prefix: "6.12.", suites: &["trixie"] },
    Series { name: "7.x", prefix: "7.", suites: &["trixie-backports", "sid"] },
];

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its series.
    pub series: Series,
    /// The package's version.
    pub version: String,
    /// The image.
    pub image: PathBuf,
}

impl std::str::FromStr for Series {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || SERIES.map(|series| series.name).join(", ");
        SERIES.into_iter().find(|series| series.name == name).ok_or_else(|| format!("not one of {}", names()))
    }
}

impl Kernel {
    /// A kernel of the series: the newest of those in the cache, else the newest that Debian has.
    ///
    /// # Errors
    /// If it is not in the cache and cannot be had.
    pub fn ensure(series: Series) -> Result<Self> {
        if let Some(kernel) = Self::cached(series)? {
            return Ok(kernel);
        }
        // One lock for all: they share apt's state.
        let _lock = workspace::lock("kernel")?;
        if let Some(kernel) = Self::cached(series)? {
            return Ok(kernel);
        }
        let what = format!("fetch Debian's Linux {}", series.name);
        step::step(&what, "the programs are tested on the kernels that users run", || fetch(series)).with_context(|| {
            format!("no kernel {} to test on; it comes as a package from Debian's mirror, which apt must reach", series.name)
        })?;
        Self::cached(series)?.with_context(|| format!("the package of Linux {} held no kernel", series.name))
    }

    /// Its version is this or a later one.
    pub fn is_at_least(&self, version: [u64; 2]) -> bool {
        numbers(&self.version).get(..2).is_some_and(|own| own >= &version[..])
    }

    fn cached(series: Series) -> Result<Option<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(workspace::cache_dir()?).context("cannot read the cache")? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let image = entry.path().join("vmlinuz");
            if let Some(version) = name.strip_prefix("linux-").filter(|version| version.starts_with(series.prefix))
                && image.is_file()
            {
                found.push(Self { series, version: version.to_owned(), image });
            }
        }
        Ok(found.into_iter().max_by_key(|kernel| numbers(&kernel.version)))
    }
}

/// The numbers in a version, to compare by.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn fetch(series: Series) -> Result<()> {
    let state = workspace::cache_dir()?.join("apt-kernel");
    let apt = PrivateApt::new(&state)?;
    let mut reasons = Vec::new();
    for suite in series.suites {
        match download(&apt, suite, series) {
            Ok((package, version)) => {
                let unpacked = state.join("unpacked");
                let _ = fs::remove_dir_all(&unpacked);
                step::quiet("unpack the kernel", Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
                let image = find_image(&unpacked)?.context("the package holds no vmlinuz")?;
                workspace::install_dir(&workspace::cache_dir()?.join(format!("linux-{version}")), |half| {
                    fs::copy(&image, half.join("vmlinuz")).map(drop).context("cannot copy the kernel image")
                })?;
                let _ = fs::remove_dir_all(&state);
                return Ok(());
            }
            Err(error) => reasons.push(format!("{suite}: {error:#}")),
        }
    }
    bail!("Debian has no Linux {} at hand ({})", series.name, reasons.join("; "))
}

/// The kernel image below a directory: `/boot/vmlinuz-...`, since Linux 7 elsewhere.
fn find_image(directory: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_file() && entry.file_name().to_string_lossy().starts_with("vmlinuz") {
            return Ok(Some(entry.path()));
        }
        if kind.is_dir()
            && let Some(image) = find_image(&entry.path())?
        {
            return Ok(Some(image));
        }
    }
    Ok(None)
}

/// The newest image of the series: cloud images are small, and all that a guest needs is built in.
fn download(apt: &PrivateApt, suite: &str, series: Series) -> Result<(PathBuf, String)> {
    apt.use_suite(suite)?;
    // Since Linux 7 the image is in a package of its own, and linux-image only asks for it.
    let pattern = format!("^linux-(binary|image)-{}.*-cloud-amd64$", series.prefix.replace('.', "\\."));
    let mut found = Vec::new();
    for package in apt.names(&pattern)? {
        for version in apt.versions(&package)? {
            if version.starts_with(series.prefix) {
                found.push((package.clone(), version));
            }
        }
    }
    found.sort_by_key(|(package, version)| Reverse((numbers(version), package.starts_with("linux-binary"))));
    let (package, version) = found.into_iter().next().with_context(|| format!("no package matches {pattern}"))?;
    Ok((apt.download(&package, &version)?, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(numbers("6.1.99-1") < numbers("6.1.192-1"));
        assert!(numbers("7.3.4-1~bpo13+1") > numbers("7.3.3-2"));
        assert_eq!("7.x".parse::<Series>().map(|series| series.prefix), Ok("7."));
        assert!("6.2".parse::<Series>().unwrap_err().contains("6.12"));
    }
}
