//! The same six records by seven client libraries, each at its current version: the same spans.

use std::collections::BTreeSet;

use opentelemetry::trace::SpanKind;
use tracer_userspace::telemetry::OperationName::{Commit, Fetch, Send};
use tracer_userspace::telemetry::{FinishedSpan, Joined, OperationName, Scope};

use crate::coordinates::agree;
use crate::told::{Told, attribute, capture, told_of};

const LIBRARIES: [&str; 7] = ["aiokafka", "franz-go", "kafka-go", "kafka-python", "kafkajs", "platformatic", "sarama"];

/// Attributes that only some clients' requests can have: a producer's numbers, and what only newer answers say.
const NOT_OF_ALL: [&str; 3] = ["kafka_tracer.producer.id", "kafka_tracer.producer.epoch", "kafka_tracer.producer.sequence"];

fn told(library: &str) -> Told {
    told_of(&capture(&format!("lib-{library}")), Scope::Auto)
}

fn shape(span: &FinishedSpan, library: &str) -> (String, SpanKind, bool, usize, BTreeSet<String>) {
    let keys = span.data.attributes.iter().map(|attribute| attribute.key.to_string());
    let keys = keys.filter(|key| !NOT_OF_ALL.contains(&key.as_str()) && key != "kafka_tracer.batch.uncompressed_size").collect();
    (span.data.name.replace(library, "LIBRARY"), span.data.span_kind.clone(), span.summary.single_record, span.data.links.len(), keys)
}

fn spans<'a>(told: &'a Told, library: &str, operation: OperationName) -> Vec<&'a FinishedSpan> {
    told.spans(operation, &format!("lib-{library}"))
}

#[test]
fn every_library_gives_the_same_spans() {
    let expected = told(LIBRARIES[0]);
    for library in LIBRARIES {
        let told = told(library);
        for operation in [Send, Fetch, Commit] {
            let shapes = |told: &Told, library: &str| -> BTreeSet<_> {
                spans(told, library, operation).iter().map(|span| format!("{:?}", shape(span, library))).collect()
            };
            assert_eq!(shapes(&told, library), shapes(&expected, LIBRARIES[0]), "{library} {operation:?}");
        }
        told.parents_are_there_or_carried();
    }
}

#[test]
fn records_with_a_context_are_in_its_trace_and_the_others_in_their_batchs() {
    for library in LIBRARIES {
        let told = told(library);
        let messages = |operation| spans(&told, library, operation).iter().map(|span| span.summary.messages).sum::<u32>();
        assert_eq!((messages(Send), messages(Fetch)), (6, 6), "{library}");
        let fetches = spans(&told, library, Fetch);
        assert_eq!(fetches.iter().filter(|span| span.summary.joined == Joined::Context).count(), 3, "{library}");
        assert!(fetches.iter().all(|span| span.summary.group.as_deref() == Some(&format!("grp-{library}"))), "{library}");
        for span in told.spans {
            let by = if span.summary.operation == Send { "producer" } else { "consumer" };
            assert_eq!(attribute(&span, "messaging.client.id"), Some(format!("{library}-{by}")));
        }
    }
}

#[test]
fn both_ends_compute_the_same_ids_whether_they_name_topics_or_number_them() {
    for library in LIBRARIES {
        agree(&format!("lib-{library}"), &[&format!("{library}-producer")], &[&format!("lib-{library}")]);
    }
}
