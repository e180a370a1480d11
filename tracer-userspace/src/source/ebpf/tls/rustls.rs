//! Functions of rustls (0.20 to 0.23) in a program: of no interface, so that only their names say which they are. Where the compiler has put one
//! into its callers, or the symbols were taken off, nothing is found.
//!
//! In: a file's functions in Rust. Out: [`Place`]s.

#![forbid(unsafe_code)]

use super::library::{File64, Place};
use super::programs::Probe;
use crate::source::binary;

/// In the names of all.
const PART: &str = "rustls";

/// In the names of those that are asked about, and in those of no other but few.
const OTHERS: [&str; 4] = ["take_received_plaintext", "send_appdata_encrypt", "ExpectFinished", OUTBOUND];

/// From 0.23 on what is sent is told so.
const OUTBOUND: &str = "OutboundChunks";

/// What a function is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Read,
    Write,
    Client,
    Server,
    /// Of something else; the library is of 0.23.
    Outbound,
}

/// What the function of a name is.
fn pick(name: &str) -> Option<Function> {
    // Methods of a type stand behind it, or behind it in angle brackets: that depends on how names are mangled.
    let (of, method) = name.rsplit_once("::")?;
    let of = of.strip_prefix('<').unwrap_or(of);
    let of = of.strip_suffix('>').unwrap_or(of);
    match (of, method) {
        ("rustls::common_state::CommonState" | "rustls::conn::CommonState", "take_received_plaintext") => Some(Function::Read),
        ("rustls::common_state::CommonState" | "rustls::conn::CommonState", "send_appdata_encrypt") => Some(Function::Write),
        (_, "handle") if is_state_of(of, "client") => Some(Function::Client),
        (_, "handle") if is_state_of(of, "server") => Some(Function::Server),
        _ => name.contains(OUTBOUND).then_some(Function::Outbound),
    }
}

fn is_state_of(of: &str, side: &str) -> bool {
    let state = of.strip_prefix("rustls::").and_then(|rest| rest.strip_prefix(side)).and_then(|rest| rest.strip_prefix("::"));
    state.is_some_and(|state| state.starts_with("tls12::ExpectFinished as ") || state.starts_with("tls13::ExpectFinished as "))
}

/// What is attached to a function, in the order in which it is.
fn probes(function: Function, is_outbound: bool) -> &'static [Probe] {
    match function {
        Function::Read => &[Probe::RustlsRead],
        Function::Write if is_outbound => &[Probe::RustlsWrite, Probe::RustlsReturn],
        Function::Write => &[Probe::RustlsWriteSlice, Probe::RustlsReturn],
        Function::Client => &[Probe::RustlsClient],
        Function::Server => &[Probe::RustlsServer],
        Function::Outbound => &[],
    }
}

/// Where to attach what; nothing unless both ways can be seen.
pub(super) fn places(binary: &File64<'_>) -> Vec<Place> {
    let mut found = binary.rust_functions(PART, &OTHERS, pick);
    let has = |function| found.iter().any(|(of, _)| *of == function);
    if !has(Function::Read) || !has(Function::Write) {
        return Vec::new();
    }
    let is_outbound = has(Function::Outbound);
    // What moves bytes first: who sees a session begin sees all of it.
    found.sort_by_key(|(function, _)| matches!(function, Function::Client | Function::Server));
    let place = |(function, at): (Function, binary::Function)| {
        let offset = binary.offset(at.address);
        offset.into_iter().flat_map(move |offset| probes(function, is_outbound).iter().map(move |&probe| Place { probe, offset }))
    };
    let mut places = Vec::new();
    for place in found.into_iter().flat_map(place) {
        // Functions of the same instructions may be one.
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_rustls_are_told_however_their_names_are_mangled() {
        for (name, function) in [
            ("rustls::common_state::CommonState::take_received_plaintext", Some(Function::Read)),
            ("<rustls::common_state::CommonState>::take_received_plaintext", Some(Function::Read)),
            ("rustls::conn::CommonState::send_appdata_encrypt", Some(Function::Write)),
            ("<rustls::common_state::CommonState>::send_appdata_encrypt", Some(Function::Write)),
            (
                "<rustls::client::tls13::ExpectFinished as rustls::common_state::State<rustls::client::client_conn::ClientConnectionData>>::handle",
                Some(Function::Client),
            ),
            (
                "<rustls::server::tls12::ExpectFinished as rustls::common_state::State<rustls::server::server_conn::connection::ServerConnectionData>>::handle",
                Some(Function::Server),
            ),
            (
                "<rustls::client::tls12::ExpectFinished as rustls::common_state::State<rustls::client::client_conn::ClientConnectionData>>::handle_decrypt_error",
                None,
            ),
            ("core::ptr::drop_in_place<rustls::client::tls13::ExpectFinished>", None),
            ("rustls::server::server_conn::EarlyDataState::take_received_plaintext", None),
            ("rustls::msgs::message::outbound::OutboundChunks::split_at", Some(Function::Outbound)),
            ("send_appdata_encrypt", None),
        ] {
            assert_eq!(pick(name), function, "{name}");
        }
    }
}
