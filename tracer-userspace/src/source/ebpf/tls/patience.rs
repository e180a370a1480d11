//! When it is told that nothing is seen of a connection to a port that is known for Kafka.
//!
//! In: how long such connections of a process are there, and how many sessions of the process have no socket. Out: the connections that are
//! told now. The clock is the caller's.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::time::Duration;

/// How long a connection may be there before it is told that nothing can be seen of it: its process has no TLS library that is seen into.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process that has a TLS library that is seen into.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeenInto {
    /// How long its connections may be there: they may be idle, and be seen with their next call.
    pub(super) patience: Duration,
    /// How many of its sessions have no socket. Each may be that of one of the connections, nobody knows which, and is counted by itself when it
    /// is never tied.
    pub(super) untied: usize,
}

/// Which of a process's connections are told now, by their ages: of those of which nothing was seen or told, oldest first. As many as there
/// are sessions without a socket are not told.
pub(super) fn due(ages: impl Iterator<Item = Duration>, process: Option<SeenInto>) -> Vec<usize> {
    let (patience, untied) = process.map_or((PATIENCE, 0), |process| (process.patience, process.untied));
    let mut ages: Vec<_> = ages.enumerate().collect();
    ages.sort_by_key(|(_, age)| Reverse(*age));
    let most = ages.len().saturating_sub(untied);
    ages.into_iter().take(most).take_while(|(_, age)| *age >= patience).map(|(index, _)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_told_once_it_is_due_and_as_far_as_no_session_explains_it() {
        let seen_into = |untied| Some(SeenInto { patience: Duration::from_mins(1), untied });
        for (name, ages, process, told) in [
            ("nothing", &[][..], None, &[][..]),
            ("no library, and young", &[0, 4], None, &[]),
            ("no library", &[5, 4, 90], None, &[2, 0]),
            ("a library: it may be idle", &[5, 59], seen_into(0), &[]),
            ("a library", &[60, 59, 61], seen_into(0), &[2, 0]),
            ("a session may be the connection", &[60], seen_into(1), &[]),
            ("a session may be one of them", &[60, 70], seen_into(1), &[1]),
            ("a session may be the young one", &[0, 70], seen_into(1), &[1]),
            ("sessions on other ports", &[60, 61], seen_into(7), &[]),
        ] {
            assert_eq!(due(ages.iter().map(|&age| Duration::from_secs(age)), process), told, "{name}");
        }
    }
}
