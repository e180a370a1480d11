//! Every target over its seeds, over every prefix of what was recorded, and over changes of both: little beside a fuzzer, and
//! the same each time.

#![expect(clippy::indexing_slicing, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use fuzz::{LIVE_TARGETS, TARGETS, Target, seeds};

fn target(name: &str) -> Target {
    TARGETS.into_iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name}"))
}

/// A panic says which bytes it was.
fn run(target: Target, bytes: &[u8]) {
    let taken = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    assert!(taken.is_ok(), "{} fails on {bytes:02x?}", target.name);
}

/// The same numbers each time (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % end.max(1)
    }
}

fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..(at + random.below(12)).min(bytes.len()))),
            4 => {
                let piece = bytes[at..(at + random.below(40)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let end = (at + 4).min(bytes.len());
                bytes[at..end].fill([0, 0xff, 0x7f][random.below(3)]);
            }
        }
    }
}

#[test]
fn every_target_takes_its_seeds_and_their_changes() {
    for target in TARGETS.into_iter().chain(LIVE_TARGETS) {
        let seeds = target.seeds();
        assert!(seeds.len() >= 12, "{} has {} seeds", target.name, seeds.len());
        for seed in &seeds {
            run(target, seed);
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..3_000 {
            let mut bytes = seeds[random.below(seeds.len())].clone();
            bytes.truncate(2_000);
            change(&mut bytes, &mut random);
            run(target, &bytes);
        }
    }
}

#[test]
fn every_prefix_of_every_recorded_frame_is_taken() {
    let message = target("message");
    let frames = &seeds::recorded().frames;
    assert!(frames.len() > 300, "{} frames", frames.len());
    let mut taken = 0;
    for frame in frames {
        let flags = if frame.is_request { 0 } else { 4 };
        let key = u8::try_from(frame.api_key).unwrap_or(u8::MAX);
        let version = u8::try_from(frame.api_version).unwrap_or(u8::MAX);
        let whole = [&[flags, 0, 0, 0, key, version][..], &frame.bytes].concat();
        // All of the short ones; of the others what is near the beginning, and every 16th.
        for end in (6..=whole.len()).filter(|end| *end < 400 || end % 16 == 0) {
            run(message, &whole[..end]);
            taken += 1;
        }
    }
    assert!(taken > 30_000, "{taken} prefixes");
}
