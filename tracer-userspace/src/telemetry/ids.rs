//! Random ids, from a seed that is given: the system's randomness live, the capture in replay.

#![forbid(unsafe_code)]

use opentelemetry::{SpanId, TraceId};

use super::IdSeed;

/// An endless stream of ids.
pub(super) struct RandomIds(blake3::OutputReader);

impl std::fmt::Debug for RandomIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RandomIds(..)")
    }
}

impl RandomIds {
    pub(super) fn new(seed: &IdSeed) -> Self {
        Self(blake3::Hasher::new_keyed(seed.bytes()).finalize_xof())
    }

    pub(super) fn trace_id(&mut self) -> TraceId {
        loop {
            let mut bytes = [0; 16];
            self.0.fill(&mut bytes);
            let id = TraceId::from_bytes(bytes);
            if id != TraceId::INVALID {
                return id;
            }
        }
    }

    pub(super) fn span_id(&mut self) -> SpanId {
        loop {
            let mut bytes = [0; 8];
            self.0.fill(&mut bytes);
            let id = SpanId::from_bytes(bytes);
            if id != SpanId::INVALID {
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_without_repetition() {
        let (mut one, mut two) = (RandomIds::new(&IdSeed::from_capture(b"c")), RandomIds::new(&IdSeed::from_capture(b"c")));
        let mut other = RandomIds::new(&IdSeed::from_capture(b"d"));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1_000 {
            let id = one.trace_id();
            assert_eq!(id, two.trace_id());
            assert_ne!(id, other.trace_id());
            assert!(seen.insert(id));
        }
    }
}
