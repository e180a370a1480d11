//! Segments of any kind through a stream and a framer: what they hold stays within the limits, what comes out makes sense.

use std::time::Duration;

use tracer_userspace::frame::{Candidate, FrameEvent, FrameLimits, FrameOwner, Framer, HEAD_BYTES, Next, Plausible};
use tracer_userspace::stream::{Piece, Stream, StreamLimits};
use tracer_userspace::time::Timestamp;

use crate::seeds::Recorded;

const STREAM: StreamLimits = StreamLimits { reorder_bytes: 4096, hole_delay: Duration::from_millis(500) };
const FRAME: FrameLimits = FrameLimits { max_frame_bytes: 1024, min_declared_bytes: 4, max_declared_bytes: 4096 };

struct Owner {
    in_sync: bool,
}

impl FrameOwner for Owner {
    fn judge(&self, candidate: Candidate<'_>) -> Plausible {
        assert!(!self.in_sync && candidate.head.len() <= HEAD_BYTES);
        match candidate.head.first() {
            None => Plausible::NeedMore,
            Some(first) if first % 4 == 0 => Plausible::Yes,
            Some(first) if first % 4 == 1 && candidate.head.len() < 100 => Plausible::NeedMore,
            Some(_) => Plausible::No,
        }
    }

    fn on_frame_event(&mut self, event: FrameEvent<'_>) -> Next {
        match event {
            FrameEvent::Frame(frame) => {
                assert!(self.in_sync);
                assert!(frame.payload.len() <= FRAME.max_frame_bytes as usize && frame.payload.len() <= frame.declared_bytes as usize);
                assert!(frame.first_time <= frame.last_time);
                let mut end = None;
                for hole in frame.holes {
                    assert!(!hole.is_empty() && end < Some(hole.start) && hole.end <= frame.declared_bytes as usize);
                    let seen = frame.payload.get(hole.start..hole.end.min(frame.payload.len())).unwrap_or_default();
                    assert!(seen.iter().all(|byte| *byte == 0));
                    end = Some(hole.end);
                }
                if frame.payload.first() == Some(&7) {
                    self.in_sync = false;
                    return Next::Resynchronise;
                }
            }
            FrameEvent::Lost { bytes, .. } => assert!(bytes > 0),
            FrameEvent::LostSync { .. } => self.in_sync = false,
            FrameEvent::Resumed { .. } => {
                assert!(!self.in_sync);
                self.in_sync = true;
            }
        }
        Next::Continue
    }
}

pub(super) fn run(data: &[u8]) {
    let (mut stream, mut framer, mut owner) = (Stream::new(STREAM), Framer::new(FRAME), Owner { in_sync: true });
    let mut rest = data;
    let mut now = 0;
    let mut place = 0_u32;
    // Each step: what to do, how far to move, how many bytes.
    while let Some(([action, low, high, length], after)) = rest.split_first_chunk().map(|(step, after)| (*step, after)) {
        let (bytes, after) = after.split_at_checked(length.into()).unwrap_or((after, &[]));
        rest = after;
        now += u64::from(action >> 4) * 10_000_000;
        let time = Timestamp::from_unix_ns(now);
        let position = place.wrapping_add_signed(i32::from(i16::from_be_bytes([high, low])));
        let mut sink = |piece: Piece<'_>| framer.push(piece, &mut owner);
        match action & 15 {
            0 => drop(stream.open(position)),
            1 => stream.close(position),
            2 => stream.tick(time, &mut sink),
            3 => stream.flush(time, &mut sink),
            4 => place = u32::from_be_bytes([low, high, length, action]),
            5 => stream.push(position, bytes, u32::from(low), time, &mut sink),
            6 => stream.push(position, bytes, 0, time, &mut sink),
            _ => {
                stream.push(place, bytes, 0, time, &mut sink);
                place = place.wrapping_add(u32::from(length).min(u32::try_from(bytes.len()).unwrap_or(0)));
            }
        }
        assert!(stream.buffered_bytes() <= STREAM.reorder_bytes);
        assert!(framer.buffered_bytes() <= 1 << 16);
    }
    framer.finish(Timestamp::from_unix_ns(now), &mut owner);
}

/// Frames of some sizes: in one piece, in two, the second first, and with a hole.
pub(super) fn seeds(_: &Recorded) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for size in [4_u8, 9, 100, 250] {
        let mut frame = vec![0, 0, 0, size];
        frame.extend(std::iter::repeat_n(4, size.into()));
        frame.truncate(255);
        let length = u8::try_from(frame.len()).unwrap_or(u8::MAX);
        let step = |action: u8, from: usize, count: usize| {
            [&[action, 0, u8::try_from(from).unwrap_or(0), u8::try_from(count).unwrap_or(0)][..], &frame[from..from + count]].concat()
        };
        let half = frame.len() / 2;
        seeds.push([&[0, 0, 0, 0][..], &[15, 0, 0, length], &frame, &[1, 0, 0, 0]].concat());
        seeds.push([step(6, 0, half), step(6, half, frame.len() - half), vec![0x12, 0, 0, 0]].concat());
        seeds.push([step(6, half, frame.len() - half), step(0x16, 0, half), vec![3, 0, 0, 0]].concat());
        seeds.push([step(6, 0, 4), step(6, half, frame.len() - half), vec![0x72, 0, 0, 0]].concat());
    }
    seeds
}
