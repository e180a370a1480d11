//! The listing of each recorded capture, held against what the client applications reported.

use std::collections::BTreeMap;

use serde_json::Value;
use tests::capture::Capture;
use tests::replay::{RECORDS, corpus, corpus_names, replay_file};
use tests::truth::{consumed_again, differences};

/// Captures whose listing does not agree with the truth yet, each with the reason. One that does agree must be taken out.
const NOT_YET: &[(&str, &str)] = &[];

fn truth_of(name: &str) -> Value {
    let path = corpus().join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_recorded_capture_lists_exactly_what_its_applications_sent_and_got() {
    let names = corpus_names().unwrap();
    assert!(names.len() >= 76, "the corpus is whole");
    let mut not_yet: BTreeMap<&str, &str> = NOT_YET.iter().copied().collect();
    let mut wrong = Vec::new();
    for name in &names {
        let file = corpus().join(format!("{name}.pcap"));
        let times_ns = Capture::read(&file).unwrap().times_ns();
        let replayed = replay_file(&RECORDS, &file).unwrap();
        let found = match differences(&truth_of(name), &replayed, times_ns) {
            Ok(found) => found,
            Err(error) => vec![format!("{error:#}")],
        };
        match (not_yet.remove(name.as_str()), found.is_empty()) {
            (None, true) | (Some(_), false) => {}
            (Some(reason), true) => wrong.push(format!("{name}: passes, so it is to be taken out of NOT_YET ({reason})")),
            (None, false) => {
                let shown = found[..found.len().min(6)].join("\n    ");
                wrong.push(format!("{name}: {} differences\n    {shown}", found.len()));
            }
        }
    }
    assert!(not_yet.is_empty(), "no such captures: {not_yet:?}");
    assert!(wrong.is_empty(), "{} of {} captures are wrong:\n{}", wrong.len(), names.len(), wrong.join("\n"));
}

#[test]
fn a_record_that_was_fetched_again_is_listed_again() {
    // 40 records, read by a group that was rebalanced: 99 reads.
    assert_eq!(consumed_again(&truth_of("java-rebalance")), (40, 59));
    let replayed = replay_file(&RECORDS, &corpus().join("java-rebalance.pcap")).unwrap();
    assert_eq!(replayed.output.lines().filter(|line| line.contains(r#""operation":"fetch""#)).count(), 99);
}

#[test]
fn a_listing_of_another_capture_does_not_agree() {
    let file = corpus().join("java-basic.pcap");
    let times_ns = Capture::read(&file).unwrap().times_ns();
    let replayed = replay_file(&RECORDS, &file).unwrap();
    assert!(differences(&truth_of("java-basic"), &replayed, times_ns).unwrap().is_empty());
    assert!(!differences(&truth_of("java-gzip"), &replayed, times_ns).unwrap().is_empty());
}

#[test]
fn no_frame_and_no_batch_of_a_real_client_is_malformed() {
    for name in corpus_names().unwrap().into_iter().filter(|name| !name.starts_with("raw-")) {
        let replayed = replay_file(&["--format", "summary"], &corpus().join(format!("{name}.pcap"))).unwrap();
        let Ok(summary) = serde_json::from_str::<Value>(&replayed.output) else { panic!("{name}: {}", replayed.message) };
        for what in ["frames", "batches_not_read"] {
            assert!(summary[what]["malformed"].is_null(), "{name}: {what} {}", summary[what]);
        }
    }
}

#[test]
fn two_replays_print_the_same_bytes() {
    for name in corpus_names().unwrap() {
        let file = corpus().join(format!("{name}.pcap"));
        for format in ["records", "text", "otlp-json", "summary"] {
            let once = replay_file(&["--format", format], &file).unwrap();
            let again = replay_file(&["--format", format], &file).unwrap();
            assert!(once.output == again.output, "{name} as {format}");
            assert_eq!((once.status, &once.message), (again.status, &again.message), "{name} as {format}");
        }
    }
}
