//! Files of `/proc`, in which processes choose names as they like.

#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

/// The whole of a file. What is no UTF-8 in it (the name of a thread that was cut within a letter, a path of another time) is replaced.
pub(super) fn lossy(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = std::fs::read(path)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}
