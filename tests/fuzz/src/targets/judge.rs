//! The first bytes of a segment, as the kernel's programs judge them.

use tracer_common::judge::{is_answer_head, is_request_head};
use tracer_common::limits::HEAD_BYTES;

use crate::seeds::Recorded;

pub(super) fn run(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<{ HEAD_BYTES as usize }>() else { return };
    let length = rest.first_chunk().map_or(HEAD_BYTES, |bytes| u32::from_be_bytes(*bytes));
    let size = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    if is_request_head(head, length) {
        assert!(size >= 8 && size <= i32::MAX.unsigned_abs());
    }
    if is_answer_head(head, length) {
        assert_eq!(size + 4, length);
    }
}

/// The heads of the recorded frames.
pub(super) fn seeds(recorded: &Recorded) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for frame in &recorded.frames {
        let length = u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX);
        let mut whole = [&length.to_be_bytes()[..], &frame.bytes].concat();
        whole.resize(whole.len().max(HEAD_BYTES as usize), 0);
        seeds.push([&whole[..HEAD_BYTES as usize], &(length + 4).to_be_bytes()].concat());
    }
    seeds
}

#[cfg(test)]
mod tests {
    use tracer_userspace::kafka::versions;

    use super::*;
    use crate::seeds::Frame;

    /// Nothing that is a request may be left alone, whatever its API.
    #[test]
    fn every_recorded_request_and_every_api_is_judged_to_be_one() {
        // What no Kafka has is not among them: bare tokens of SASL, and version 99 of ApiVersions.
        let is_known = |frame: &&Frame| versions::lookup(frame.api_key).is_some_and(|row| row.versions.contains(&frame.api_version));
        for frame in crate::seeds::recorded().frames.iter().filter(|frame| frame.is_request).filter(is_known) {
            let length = u32::try_from(frame.bytes.len()).unwrap();
            let whole = [&length.to_be_bytes()[..], &frame.bytes].concat();
            if let Some(head) = whole.first_chunk() {
                assert!(is_request_head(head, length + 4), "{} v{}", frame.api_key, frame.api_version);
            }
        }
        for row in versions::all() {
            for version in row.versions.clone() {
                let mut head = [0, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0, 1, 0, 6];
                head[4..6].copy_from_slice(&row.api_key.to_be_bytes());
                head[6..8].copy_from_slice(&version.to_be_bytes());
                assert!(is_request_head(&head, 34), "{} v{version}", row.name);
            }
        }
    }
}
