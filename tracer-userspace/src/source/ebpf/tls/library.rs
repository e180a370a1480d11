//! What of a file makes TLS: the places of the functions that the programs are attached to.
//!
//! In: an ELF file, which may be anybody's. Out: [`Library`]. Nothing of it is believed but after a check; a place that is not code of the
//! file is left out.

#![forbid(unsafe_code)]

use std::fs::File;

use object::read::ReadCache;

use super::programs::Probe;
use super::rustls;
use crate::source::binary::{Binary, GoFunction};

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

/// Functions of `GnuTLS`. What is written is taken from `gnutls_record_send2`, where there is that (3.6.3): `gnutls_record_send` jumps to it.
const GNUTLS: [(&str, &[Probe]); 6] = [
    ("gnutls_record_recv", &[Probe::GnuTlsRead, Probe::Return]),
    ("gnutls_record_send2", &[Probe::GnuTlsWrite, Probe::Return]),
    ("gnutls_record_send", &[Probe::GnuTlsWrite, Probe::Return]),
    ("gnutls_record_uncork", &[Probe::GnuTlsFlush, Probe::Return]),
    ("gnutls_init", &[Probe::GnuTlsNew, Probe::GnuTlsMade]),
    ("gnutls_deinit", &[Probe::Free]),
];

/// Says what the session's functions for reading are given, and does nothing else.
const GNUTLS_TRANSPORT: &str = "gnutls_transport_get_ptr";

/// Methods of Go's `crypto/tls.Conn`, in the order in which programs are attached: who sees a session begin sees all of it.
const GO: [(&str, Probe); 5] = [
    ("crypto/tls.(*Conn).Read", Probe::GoRead),
    ("crypto/tls.(*Conn).writeRecordLocked", Probe::GoWrite),
    ("crypto/tls.(*Conn).Close", Probe::GoClose),
    ("crypto/tls.(*Conn).clientHandshake", Probe::GoClient),
    ("crypto/tls.(*Conn).serverHandshake", Probe::GoServer),
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
    /// Where sessions of `GnuTLS` have their transport, in bytes.
    pub(super) transport: Option<u32>,
}

impl Library {
    /// Whether there is something to attach to.
    pub(super) fn makes_tls(&self) -> bool {
        !self.places.is_empty()
    }

    /// Whether its sessions say no end.
    pub(super) fn ends_with_sockets(&self) -> bool {
        self.places.iter().any(|place| place.probe == Probe::RustlsRead)
    }
}

/// Looks into a file. An empty answer if it is no ELF file of 64 bits, or damaged, or has no TLS in it. `name` is the file's.
pub(super) fn look_into(file: File, name: &str) -> Library {
    if file.metadata().map_or(u64::MAX, |metadata| metadata.len()) > MAX_FILE_BYTES {
        return Library::default();
    }
    let data = ReadCache::new(file);
    let Some(binary) = Binary::parse(&data) else { return Library::default() };
    // A program in Go may have a library in C inside.
    let mut places = open_ssl(&binary, name);
    places.extend(go(&binary));
    let (gnu_tls, transport) = gnu_tls(&binary);
    places.extend(gnu_tls);
    places.extend(rustls::places(&binary));
    Library { places, transport }
}

pub(super) type File64<'data> = Binary<'data, &'data ReadCache<File>>;

fn open_ssl(binary: &File64<'_>, name: &str) -> Vec<Place> {
    let names = OPENSSL.map(|(name, _)| name);
    // What a library exports is also in its full table, if that was left in; a program's own functions are in the latter alone.
    let mut found = binary.exported(&names);
    if !has_data(&found) {
        found = binary.symbols(&names);
    }
    if !has_data(&found) {
        return Vec::new();
    }
    let found = found.map(|function| binary.offset(function?.address));
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
    places
}

/// Where the library was not stripped of what it exports, which it never is.
fn gnu_tls(binary: &File64<'_>) -> (Vec<Place>, Option<u32>) {
    let mut found = binary.exported(&GNUTLS.map(|(name, _)| name)).map(|function| binary.offset(function?.address));
    let [Some(_), send2, send, ..] = &mut found else { return (Vec::new(), None) };
    if send2.is_some() {
        *send = None;
    }
    if send2.is_none() && send.is_none() {
        return (Vec::new(), None);
    }
    let place = |((_, probes), offset): (&(&str, &'static [Probe]), Option<u64>)| {
        offset.into_iter().flat_map(|offset| probes.iter().map(move |&probe| Place { probe, offset }))
    };
    let places = GNUTLS.iter().zip(found).flat_map(place).collect();
    let [transport] = binary.exported(&[GNUTLS_TRANSPORT]);
    (places, transport.and_then(|function| binary.member_that_is_returned(function)).filter(|&place| place != 0))
}

fn go(binary: &File64<'_>) -> Vec<Place> {
    let found = binary.go_functions(&GO.map(|(name, _)| name));
    // The linker leaves out what is never called: a program may have no server.
    let [Some(_), Some(_), Some(_), ..] = &found else { return Vec::new() };
    let mut places = Vec::new();
    for ((_, probe), function) in GO.into_iter().zip(found) {
        let Some(GoFunction { entry, returns }) = function else { continue };
        places.push(Place { probe, offset: entry });
        if probe == Probe::GoRead {
            places.extend(returns.into_iter().map(|offset| Place { probe: Probe::GoReturn, offset }));
        }
    }
    places
}

/// Both ways of reading and writing, or at least one.
fn has_data<T>([read, write, read_ex, write_ex, ..]: &[Option<T>; OPENSSL.len()]) -> bool {
    (read.is_some() || read_ex.is_some()) && (write.is_some() || write_ex.is_some())
}

/// `LibreSSL`'s functions with `_ex` call those without: attached to both, each byte would be seen twice. Its library has numbers of two
/// digits, OpenSSL's has 1, 1.0.x, 1.1, 3, 4 and Red Hat's 10.
fn is_libressl(name: &str) -> bool {
    let number = name.strip_prefix("libssl.so.").and_then(|rest| rest.split('.').next()).and_then(|number| number.parse::<u32>().ok());
    number.is_some_and(|number| number > 20)
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
    fn the_systems_gnutls_is_seen_into_and_says_where_its_sessions_have_their_sockets() {
        let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
        let found = dirs.iter().find_map(|dir| File::open(format!("{dir}/libgnutls.so.30")).ok());
        // Not every system has it.
        let Some(file) = found else { return };
        let library = look_into(file, "libgnutls.so.30");
        for probe in [Probe::GnuTlsRead, Probe::GnuTlsWrite, Probe::GnuTlsFlush, Probe::GnuTlsNew, Probe::GnuTlsMade, Probe::Free] {
            assert_eq!(library.places.iter().filter(|place| place.probe == probe).count(), 1, "{probe:?}");
        }
        assert!(library.transport.is_some_and(|place| place % 8 == 0), "{:?}", library.transport);
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
