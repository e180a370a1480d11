//! The program itself: exit status, standard output and error of `kafka-tracer replay`.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn capture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(name)
}

fn replay(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kafka-tracer"))
        .arg("replay")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // The program may end before it has read all of it.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_capture_can_come_from_a_file_or_from_standard_input() {
    let path = capture("java-basic.pcap");
    let from_file = replay(&["--format", "records", path.to_str().unwrap()], b"");
    let from_pipe = replay(&["--format", "records", "-"], &std::fs::read(&path).unwrap());
    assert_eq!((from_file.status.code(), text(&from_file.stderr)), (Some(0), ""));
    assert_eq!(text(&from_file.stdout).lines().count(), 40);
    assert_eq!((from_pipe.status.code(), &from_pipe.stdout), (Some(0), &from_file.stdout));
}

#[test]
fn without_kafka_the_status_is_2_and_says_so() {
    let path = capture("raw-not-kafka.pcap");
    let output = replay(&["--format", "records", path.to_str().unwrap()], b"");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""));
    assert!(text(&output.stderr).contains("no Kafka"), "{}", text(&output.stderr));
}

#[test]
fn what_is_no_capture_has_status_1_and_says_what_it_is() {
    for (input, message) in [
        (&b""[..], "kafka-tracer: -: the file is empty\n"),
        (b"some text\n", "kafka-tracer: -: not a pcap or pcapng file: it begins with [73, 6f, 6d, 65]\n"),
        (
            &[0x1f, 0x8b, 8, 0],
            "kafka-tracer: -: not a pcap or pcapng file: it begins with [1f, 8b, 08, 00]; it is compressed with gzip, decompress it first\n",
        ),
    ] {
        let output = replay(&["--format", "records", "-"], input);
        assert_eq!((output.status.code(), text(&output.stdout), text(&output.stderr)), (Some(1), "", message));
    }
    let output = replay(&["no-such-file.pcap"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no-such-file.pcap"), "{}", text(&output.stderr));
}

#[test]
fn a_cut_capture_has_status_1_and_lists_what_was_good_before() {
    let whole = std::fs::read(capture("java-basic.pcap")).unwrap();
    let output = replay(&["--format", "records", "-"], &whole[..whole.len() - 5]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout).lines().count(), 40);
    let end = whole.len() - 5;
    let message = format!("kafka-tracer: -: the file is cut: it ends at byte {end}, in the middle of the packet that begins at byte ");
    assert!(text(&output.stderr).starts_with(&message), "{}", text(&output.stderr));
}

#[test]
fn a_reader_that_has_seen_enough_makes_no_noise() {
    let path = capture("java-rebalance.pcap");
    let mut child = Command::new(env!("CARGO_BIN_EXE_kafka-tracer"))
        .args(["replay", "--format", "records", path.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.code().is_some(), "not ended by a signal");
}
