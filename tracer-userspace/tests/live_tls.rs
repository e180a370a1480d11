//! Sessions over memory on this host's own kernel: what threads do with sockets tells whose a session is, or nothing does. Needs root and
//! Python; run by `cargo xtask test`.
#![cfg(feature = "live")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use tracer_userspace::source::ebpf::{LiveSource, Pacer, TlsConfig, TlsSource};
use tracer_userspace::source::{CaptureEvent, EventKind};

/// What was seen of a client's sessions: for each port that its socket is said to have, the ports that its plaintext names.
type Said = BTreeMap<u16, BTreeSet<u16>>;

/// Runs the program and records what the source says, until the program has ended.
fn record(who: &str) -> (Said, u64) {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let [certificate, key] = [("certificate", made.cert.pem()), ("key", made.signing_key.serialize_pem())].map(|(name, text)| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    });
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = TlsConfig {
        ports: vec![port],
        exclude_ports: vec![],
        libraries: vec![],
        brokers: false,
        ring_bytes: 32 << 20,
        cgroup_root: None,
        unseen_after: TlsConfig::UNSEEN_AFTER,
    };
    let mut source = TlsSource::start(config).unwrap();
    let mut pacer = Pacer::new(32 << 20);
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/live/for_one_another.py");
    let mut child = Command::new("python3").arg(program).arg(port.to_string()).args([&certificate, &key]).arg(who).spawn().unwrap();
    let mut said = Said::new();
    let mut take = |event: CaptureEvent<'_>| {
        // The other end's sessions say their sockets themselves.
        if event.socket.peer.port() != port {
            return;
        }
        if let EventKind::Data { bytes, .. } = event.kind {
            let named = String::from_utf8_lossy(bytes).lines().filter_map(|line| line.strip_prefix('P')?.get(..5)?.parse().ok()).collect();
            said.entry(event.socket.local.port()).or_default().append(&mut { named });
        }
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the program does not end");
        pacer.poll(&mut [&mut source], Duration::from_millis(20), &mut take).unwrap();
    }
    pacer.poll(&mut [&mut source], Duration::from_millis(20), &mut take).unwrap();
    source.finish();
    let untied = source.counts().unwrap().opaque.iter().find(|(reason, _)| *reason == "untied").map_or(0, |(_, count)| *count);
    println!("{who}: {said:?}, {untied} untied");
    (said, untied)
}

fn assert_right(said: &Said) {
    for (port, named) in said {
        assert!(named.iter().all(|named| named == port), "what a session of {named:?} said is told of port {port}");
    }
}

#[test]
#[ignore = "needs root, Linux 6.3 and Python: `cargo xtask test`"]
fn sessions_over_memory_are_tied_by_what_their_threads_do_and_never_to_the_socket_of_another() {
    let (said, _) = record("own");
    assert_right(&said);
    assert_eq!(said.len(), 4, "threads that do all for one connection each tell its socket: {said:?}");
    for who in ["random", "next"] {
        assert_right(&record(who).0);
    }
}
