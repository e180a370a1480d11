//! What of a file makes TLS: the places of the functions that the programs are attached to.
//!
//! In: an ELF file, which may be anybody's. Out: [`Library`]. Nothing of it is believed but after a check; a place that is not code of the
//! file is left out.

#![forbid(unsafe_code)]

use std::fs::File;

use object::read::ReadCache;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol, elf};

use super::programs::Probe;

/// A larger file is not looked into: symbols of that many bytes take too long to go through.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Functions of OpenSSL and its relatives, and what is attached to each.
const OPENSSL: [(&str, &[Probe]); 9] = [
    ("SSL_read", &[Probe::Read, Probe::Return]),
    ("SSL_write", &[Probe::Write, Probe::Return]),
    ("SSL_read_ex", &[Probe::ReadEx, Probe::Return]),
    ("SSL_write_ex", &[Probe::WriteEx, Probe::Return]),
    ("SSL_connect", &[Probe::Connect]),
    ("SSL_set_connect_state", &[Probe::Connect]),
    ("SSL_accept", &[Probe::Accept]),
    ("SSL_set_accept_state", &[Probe::Accept]),
    ("SSL_free", &[Probe::Free]),
];

/// A program to attach, and where in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) probe: Probe,
    pub(super) offset: u64,
}

/// What a file has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Library {
    /// Where to attach what, in the order in which it is attached: entries before returns.
    pub(super) places: Vec<Place>,
    /// The file has TLS inside, but no symbols to find its functions by.
    pub(super) is_stripped: bool,
}

impl Library {
    /// Whether there is something to attach to.
    pub(super) fn makes_tls(&self) -> bool {
        !self.places.is_empty()
    }
}

/// Looks into a file. An empty answer if it is no ELF file of 64 bits, or damaged, or has no TLS in it. `name` is the file's.
pub(super) fn look_into(file: File, name: &str) -> Library {
    if file.metadata().map_or(u64::MAX, |metadata| metadata.len()) > MAX_FILE_BYTES {
        return Library::default();
    }
    let data = ReadCache::new(file);
    let Ok(elf) = ElfFile64::<Endianness, _>::parse(&data) else { return Library::default() };
    let mut found = [None; OPENSSL.len()];
    // What a library exports is also in its full table, if that was left in; a program's own functions are in the latter alone.
    find(&elf, elf.dynamic_symbols(), &mut found);
    if !has_data(&found) {
        find(&elf, elf.symbols(), &mut found);
    }
    if !has_data(&found) {
        return Library::default();
    }
    let [read, write, read_ex, write_ex, ..] = found;
    let wraps = is_libressl(name) && read.is_some() && write.is_some();
    let mut places = Vec::new();
    for ((_, probes), offset) in OPENSSL.iter().zip(found) {
        let Some(offset) = offset else { continue };
        if wraps && (Some(offset) == read_ex || Some(offset) == write_ex) {
            continue;
        }
        places.extend(probes.iter().map(|&probe| Place { probe, offset }));
    }
    Library { places, is_stripped: false }
}

/// Both ways of reading and writing, or at least one.
fn has_data([read, write, read_ex, write_ex, ..]: &[Option<u64>; OPENSSL.len()]) -> bool {
    (read.is_some() || read_ex.is_some()) && (write.is_some() || write_ex.is_some())
}

/// `LibreSSL`'s functions with `_ex` call those without: attached to both, each byte would be seen twice. Its library has numbers of two
/// digits, OpenSSL's has 1, 1.0.x, 1.1, 3, 4 and Red Hat's 10.
fn is_libressl(name: &str) -> bool {
    let number = name.strip_prefix("libssl.so.").and_then(|rest| rest.split('.').next()).and_then(|number| number.parse::<u32>().ok());
    number.is_some_and(|number| number > 20)
}

type Elf<'data> = ElfFile64<'data, Endianness, &'data ReadCache<File>>;

fn find<'data, S: ObjectSymbol<'data>>(elf: &Elf<'_>, symbols: impl Iterator<Item = S>, found: &mut [Option<u64>; OPENSSL.len()]) {
    for symbol in symbols {
        if !symbol.is_definition() {
            continue;
        }
        let Ok(name) = symbol.name_bytes() else { continue };
        // By far the most names are others.
        if !name.starts_with(b"SSL_") {
            continue;
        }
        let index = OPENSSL.iter().position(|(wanted, _)| wanted.as_bytes() == name);
        if let Some(place) = index.and_then(|index| found.get_mut(index))
            && place.is_none()
        {
            *place = file_offset(elf, symbol.address());
        }
    }
}

/// Where in the file the code at an address lies, as the kernel wants it.
fn file_offset(elf: &Elf<'_>, address: u64) -> Option<u64> {
    let endian = elf.endian();
    let segment = elf.elf_program_headers().iter().find(|segment| {
        let begin = segment.p_vaddr(endian);
        segment.p_type(endian) == elf::PT_LOAD
            && segment.p_flags(endian) & elf::PF_X != 0
            && (begin..begin.saturating_add(segment.p_filesz(endian))).contains(&address)
    })?;
    (address - segment.p_vaddr(endian)).checked_add(segment.p_offset(endian))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_wraps_its_own_functions_is_told_by_its_name() {
        for (name, wraps) in [
            ("libssl.so.3", false),
            ("libssl.so.1.1", false),
            ("libssl.so.1.0.2", false),
            ("libssl.so.10", false),
            ("libssl.so.56", true),
            ("libssl-1b2c3d.so.1.1", false),
            ("node", false),
        ] {
            assert_eq!(is_libressl(name), wraps, "{name}");
        }
    }

    #[test]
    fn what_is_no_library_has_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for (name, bytes) in [("empty", &b""[..]), ("text", b"#!/bin/sh\n"), ("cut", &whole[..64]), ("more", &whole[..4096])] {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(look_into(File::open(path).unwrap(), name), Library::default(), "{name}");
        }
    }
}
