//! Files that are cut, or are no captures: what was good is listed, and the message says what is wrong.

use tests::capture::Capture;
use tests::replay::{RECORDS, corpus, replay_bytes, replay_file};

#[test]
fn a_file_that_is_no_capture_is_refused_with_status_1() {
    for (bytes, message) in [
        (&b""[..], "the file is empty"),
        (b"Hello, this is a text.\n", "not a pcap or pcapng file: it begins with [48, 65, 6c, 6c]"),
        (
            &[0x1f, 0x8b, 8, 0, 0, 0],
            "not a pcap or pcapng file: it begins with [1f, 8b, 08, 00]; it is compressed with gzip, decompress it first",
        ),
    ] {
        let replayed = replay_bytes(&RECORDS, bytes).unwrap();
        assert_eq!((replayed.status, replayed.output.as_str()), (1, ""));
        assert!(replayed.message.ends_with(message), "{}", replayed.message);
    }
    let missing = replay_file(&RECORDS, &corpus().join("no-such-file.pcap")).unwrap();
    assert_eq!((missing.status, missing.output.as_str()), (1, ""));
    assert!(missing.message.contains("no-such-file.pcap"), "{}", missing.message);
}

#[test]
fn a_capture_without_kafka_has_status_2_and_no_lines() {
    let replayed = replay_bytes(&RECORDS, &Capture::default().to_pcap()).unwrap();
    assert_eq!((replayed.status, replayed.output.as_str()), (2, ""));
    let replayed = replay_file(&RECORDS, &corpus().join("raw-not-kafka.pcap")).unwrap();
    assert_eq!((replayed.status, replayed.output.as_str()), (2, ""));
}

#[test]
fn a_cut_file_lists_what_was_whole_and_says_where_it_ends() {
    let whole = std::fs::read(corpus().join("java-basic.pcap")).unwrap();
    let all = replay_bytes(&RECORDS, &whole).unwrap();
    assert_eq!((all.status, all.output.lines().count()), (0, 40));
    let mut most = 0;
    for cut in (25..whole.len()).step_by(307) {
        let replayed = replay_bytes(&RECORDS, &whole[..cut]).unwrap();
        let end = format!("the file is cut: it ends at byte {cut}, in the middle of the packet that begins at byte ");
        // A cut between two packets cannot be told from the end.
        assert!(replayed.status != 1 || replayed.message.contains(&end), "{}", replayed.message);
        assert!(replayed.status != 1 || !replayed.message.is_empty());
        assert!(replayed.output.lines().count() >= most, "a longer file lists no less");
        most = replayed.output.lines().count();
    }
    assert!((20..=40).contains(&most), "{most}");
}
