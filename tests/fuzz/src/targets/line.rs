//! The whole line, from capture events to observations: two ends of one connection say anything, in any pieces.

use std::net::SocketAddr;

use tracer_userspace::observe::{Observation, ObserveSettings, RecordDetail};
use tracer_userspace::pipeline::{Pipeline, PipelineSettings, Sink};
use tracer_userspace::source::{CaptureEvent, Direction, EventKind, SocketKey};
use tracer_userspace::time::Timestamp;

use crate::seeds::Recorded;

struct Nowhere;

impl Sink for Nowhere {
    fn observation(&mut self, observation: Observation) {
        // Everything in it can be shown.
        let _ = format!("{observation:?}");
    }
}

pub(super) fn run(data: &[u8]) {
    let observe = ObserveSettings { detail: RecordDetail::All, keys: true, ..ObserveSettings::default() };
    let mut pipeline = Pipeline::new(PipelineSettings { observe, max_buffered_bytes: 1 << 20, ..PipelineSettings::default() });
    let socket = SocketKey { scope: 0, local: SocketAddr::from(([10, 0, 0, 1], 1)), peer: SocketAddr::from(([10, 0, 0, 2], 2)) };
    let mut positions = [1_000_u32, 2_000];
    let mut now = 0;
    let mut rest = data;
    // Each step: flags and direction, and how many bytes.
    while let Some(([flags, high, low], after)) = rest.split_first_chunk().map(|(step, after)| (*step, after)) {
        let (bytes, after) = after.split_at_checked(u16::from_be_bytes([high & 31, low]).into()).unwrap_or((after, &[]));
        rest = after;
        let way = usize::from(flags & 1);
        let direction = if way == 0 { Direction::Sent } else { Direction::Received };
        let position = positions[way];
        now += u64::from(flags >> 4) * 20_000_000;
        let kind = match flags & 15 {
            2 | 3 => EventKind::Open { direction, initiator: way == 0, first_position: position },
            4 | 5 => EventKind::Close { direction, position, reset: low & 1 == 1 },
            6 | 7 => {
                positions[way] = position.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0));
                continue;
            }
            8 | 9 => EventKind::Data { direction, position, bytes, missing_bytes: u32::from(high) },
            _ => EventKind::Data { direction, position, bytes, missing_bytes: 0 },
        };
        if let EventKind::Data { missing_bytes, .. } = kind {
            positions[way] = position.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0) + missing_bytes);
        }
        pipeline.push(&CaptureEvent { socket, time: Timestamp::from_unix_ns(now), pid: None, kind }, &mut Nowhere);
    }
    pipeline.finish(&mut Nowhere);
}

/// Conversations as they were recorded, whole and without a segment.
pub(super) fn seeds(recorded: &Recorded) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for talk in &recorded.talks {
        for lost in [None, Some(3), Some(talk.len() / 2)] {
            let mut seed = vec![2, 0, 0, 3, 0, 0];
            for (number, (direction, bytes)) in talk.iter().enumerate() {
                let way = u8::from(*direction == Direction::Received);
                for piece in bytes.chunks(0x1fff) {
                    let action = if lost == Some(number) { 6 } else { 10 };
                    seed.push(0x10 | action | way);
                    seed.extend(u16::try_from(piece.len()).unwrap_or(0).to_be_bytes());
                    seed.extend(piece);
                }
            }
            seed.extend([4, 0, 0, 5, 0, 0]);
            seeds.push(seed);
        }
    }
    seeds
}
