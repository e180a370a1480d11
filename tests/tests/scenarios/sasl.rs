//! Authentication before the first request that says anything.

use tracer_userspace::observe::ConnectionEventKind;

use crate::told::{Told, told};

fn authenticated(told: &Told) -> Vec<String> {
    let told = told.connection_events().filter_map(|event| match event {
        ConnectionEventKind::Authenticated { mechanism } => Some(format!("{mechanism}")),
        ConnectionEventKind::AuthenticationFailed { mechanism, error } => Some(format!("{mechanism} {error}")),
        _ => None,
    });
    told.collect()
}

#[test]
fn mechanisms_and_refusals_are_told() {
    let mut events = authenticated(&told("sasl-scram"));
    events.dedup();
    assert_eq!(events, ["SCRAM-SHA-256", "PLAIN 58", "PLAIN"]);
}

#[test]
fn bare_tokens_after_handshake_v0_are_counted_and_authenticate() {
    for (name, mechanism) in [("sasl-handshake-v0", "PLAIN"), ("sasl-handshake-v0-scram", "SCRAM-SHA-256")] {
        bare_tokens_authenticate(name, mechanism);
    }
}

fn bare_tokens_authenticate(name: &str, mechanism: &str) {
    let told = told(name);
    assert_eq!(told.counters.frames.get("malformed"), None);
    assert!(told.counters.frames["sasl_token"] > 0);
    let connections = told.counters.connections_kafka;
    let events = authenticated(&told);
    assert!(events.iter().all(|event| event == mechanism), "{events:?}");
    assert_eq!(u64::try_from(events.len()).unwrap(), connections);
}

#[test]
fn a_raw_gssapi_token_as_the_first_bytes_is_no_request() {
    let told = told("sasl-gssapi-first");
    assert_eq!(told.counters.frames.get("malformed"), None);
    assert_eq!(told.counters.frames["sasl_token"], 4 * told.counters.connections_kafka);
    // 24706 is what the first two bytes of a token would be.
    assert!(told.exchanges().all(|exchange| exchange.operation.api_key != 24_706));
    let events = authenticated(&told);
    assert!(events.iter().all(|event| event == "GSSAPI"), "{events:?}");
    assert_eq!(u64::try_from(events.len()).unwrap(), told.counters.connections_kafka);
}
