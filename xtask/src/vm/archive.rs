//! The file system that a guest boots from: a cpio archive in the format `newc`, which the kernel unpacks into memory
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of Linux).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

/// An archive in the making. Directories come into being with what lies in them.
#[derive(Debug)]
pub(super) struct Archive<W: Write> {
    out: W,
    inode: u32,
    known: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    /// An empty one.
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0, known: BTreeSet::new() }
    }

    /// An empty directory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        if path.file_name().is_none() || !self.known.insert(path.to_path_buf()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(path, DIRECTORY, &[])
    }

    /// A file; one of the same path that is there already stays.
    ///
    /// # Errors
    /// If it cannot be written, or is larger than the format can say.
    pub(super) fn file(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
        if !self.known.insert(path.to_path_buf()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(path, FILE | mode, bytes)
    }

    /// A file of this machine.
    ///
    /// # Errors
    /// If it cannot be read, or not be written.
    pub(super) fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let cannot = || format!("cannot pack {}", from.display());
        let mode = fs::metadata(from).with_context(cannot)?.permissions().mode() & 0o7777;
        let bytes = fs::read(from).with_context(cannot)?;
        self.file(to, mode, &bytes).with_context(cannot)
    }

    /// A program of this machine with the libraries that it is linked with, which lie where they lie here.
    ///
    /// # Errors
    /// If one of them is missing.
    pub(super) fn program(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.copy(from, to)?;
        for library in libraries(from)? {
            self.copy(&library, &library)?;
        }
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let path = path.to_str().ok_or_else(|| io::Error::other("a path that is not UTF-8"))?;
        let name = path.strip_prefix('/').unwrap_or(path);
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let name_bytes = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        write!(self.out, "070701")?;
        // Inode, mode, user, group, links, time, size, four device numbers, length of the name with its end, no checksum.
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_bytes, 0] {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        let padding = length.next_multiple_of(4) - length;
        self.out.write_all([0_u8; 4].get(..padding).unwrap_or_default())
    }
}

/// The loader and the libraries of a program, as the loader finds them; none for one that is linked statically.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    let output = command.arg(program).output().context("cannot start `ldd`, which is part of the C library")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        if [&text, &said].iter().any(|text| text.contains("not a dynamic executable") || text.contains("statically linked")) {
            return Ok(Vec::new());
        }
        bail!("ldd {} ended with {}: {}", program.display(), output.status, said.trim());
    }
    let mut libraries = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{} lacks a library: {}", program.display(), line.trim());
        }
        libraries.extend(line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from));
    }
    Ok(libraries)
}

/// A program without what only debuggers read, so that it is small; as it is where there is no `strip`.
pub(super) fn stripped(program: &Path, to: &Path) -> Result<()> {
    if step::installed("strip") {
        return step::quiet("strip", Command::new("strip").arg("-o").arg(to).arg(program));
    }
    fs::copy(program, to).map(drop).with_context(|| format!("cannot copy {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_the_kernel_reads_it() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/bc"), 0o755, b"12345").unwrap();
        archive.file(Path::new("/a/d"), 0o644, b"").unwrap();
        let bytes = archive.finish().unwrap();
        let field = |at: usize, number: usize| {
            let start = at + 6 + number * 8;
            u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
        };
        // Walks it: name, mode and content of each entry.
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name_bytes) = (field(at, 6) as usize, field(at, 11) as usize);
            let name = std::str::from_utf8(&bytes[at + 110..at + 110 + name_bytes - 1]).unwrap();
            if name == "TRAILER!!!" {
                break;
            }
            let content = (at + 110 + name_bytes).next_multiple_of(4);
            entries.push((name, field(at, 1), &bytes[content..content + size]));
            at = (content + size).next_multiple_of(4);
        }
        assert_eq!(entries, [("a", 0o040_755, &b""[..]), ("a/bc", 0o100_755, b"12345"), ("a/d", 0o100_644, b"")]);
    }

    #[test]
    fn a_program_of_this_machine_names_its_loader() {
        let program = std::env::current_exe().unwrap();
        let libraries = libraries(&program).unwrap();
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{libraries:?}");
    }
}
