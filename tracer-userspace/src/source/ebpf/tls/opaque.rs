//! Why nothing can be seen of a process's encrypted connections, as far as its files tell.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};

use super::mapped;

/// The most of a program that is searched.
const MAX_PROGRAM_BYTES: u64 = 256 << 20;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Names of source files, which Rust's compiler leaves in a program for what it says when it panics: of a registry, and of a vendored copy.
const RUSTLS: [&[u8]; 2] = [b"/rustls-0.", b"/rustls/src/"];

/// The word to count by.
pub(super) fn reason(pid: u32) -> &'static str {
    let maps = mapped::list(pid).unwrap_or_default();
    if let Some(reason) = by_libraries(&maps) {
        return reason;
    }
    let has_rustls = File::open(format!("/proc/{pid}/exe")).and_then(|program| contains(program.take(MAX_PROGRAM_BYTES), &RUSTLS));
    if has_rustls.unwrap_or(false) { "rustls" } else { "no_symbols" }
}

/// The same, as far as what a process has mapped tells.
pub(in crate::source::ebpf) fn by_libraries(maps: &str) -> Option<&'static str> {
    let has = |name: &str| maps.lines().any(|line| line.rsplit_once('/').is_some_and(|(_, file)| file.starts_with(name)));
    // A Java program may have loaded any library; its connections are Java's.
    if has("libjvm.so") {
        Some("jdk")
    } else if has("libgnutls.so") || has("libgnutls-") {
        Some("gnutls")
    } else {
        None
    }
}

/// Whether one of these words is in a file.
fn contains(mut file: impl Read, words: &[&[u8]]) -> io::Result<bool> {
    let longest = words.iter().map(|word| word.len()).max().unwrap_or(0);
    let mut piece = Vec::with_capacity(PIECE + longest);
    loop {
        if file.by_ref().take(PIECE as u64).read_to_end(&mut piece)? == 0 {
            return Ok(false);
        }
        let begins = |at: usize| words.iter().any(|word| piece.get(at..).is_some_and(|rest| rest.starts_with(word)));
        if piece.iter().enumerate().any(|(at, byte)| *byte == b'/' && begins(at)) {
            return Ok(true);
        }
        // A word may go on in the next piece.
        let from = piece.len() - longest.min(piece.len());
        piece.drain(..from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_names_the_reason() {
        let line = |file: &str| format!("7f00-7f01 r-xp 00000000 fe:00 7    /usr/lib/{file}\n");
        assert_eq!(by_libraries(&line("libgnutls.so.30.34.3")), Some("gnutls"));
        assert_eq!(by_libraries(&(line("libgnutls.so.30") + &line("server/libjvm.so"))), Some("jdk"));
        assert_eq!(by_libraries(&line("libgnutls.so.30 (deleted)")), Some("gnutls"));
        assert_eq!(by_libraries(&line("mylibgnutls.so")), None);
        assert_eq!(by_libraries(""), None);
    }

    #[test]
    fn a_word_is_found_wherever_it_lies_and_only_as_a_whole() {
        for at in [0, 1, PIECE - 9, PIECE - 1, PIECE, 2 * PIECE + 3] {
            let mut bytes = vec![b'/'; at];
            bytes.extend(b"/rustls-0.23.31/src/conn.rs");
            assert!(contains(&*bytes, &RUSTLS).unwrap(), "{at}");
            bytes.truncate(at + 9);
            assert!(!contains(&*bytes, &RUSTLS).unwrap(), "{at}");
        }
        assert!(contains(&b"vendor/rustls/src/lib.rs"[..], &RUSTLS).unwrap());
        assert!(!contains(&b""[..], &RUSTLS).unwrap());
    }

    #[test]
    fn a_program_with_rustls_inside_is_told() {
        // This one: the exporters encrypt by it.
        assert_eq!(reason(std::process::id()), "rustls");
        assert_eq!(reason(u32::MAX), "no_symbols");
    }
}
