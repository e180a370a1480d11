//! What must hold however a capture was made: another file format, packets captured twice, cut differently or out of order,
//! a start in the middle, packets that nobody captured.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;
use tests::capture::{Capture, FIN, File, Ip, Link, RST, SYN, Segment};
use tests::framing::{Framing, PlacedFrame, Way, frames_of};
use tests::observe::{observe_both_ends, settings};
use tests::replay::{RECORDS, corpus, corpus_names, replay_bytes};
use tests::truth::{lines, name_of, unix_ns};
use tracer_userspace::connection::Sides;
use tracer_userspace::pipeline::PipelineSettings;

fn captures() -> Vec<(String, Capture)> {
    let read = |name: String| {
        let capture = Capture::read(&corpus().join(format!("{name}.pcap"))).unwrap();
        (name, capture)
    };
    corpus_names().unwrap().into_iter().map(read).collect()
}

fn listing(capture: &Capture) -> String {
    listing_of(&capture.to_pcap())
}

fn listing_of(file: &[u8]) -> String {
    let replayed = replay_bytes(&RECORDS, file).unwrap();
    assert_ne!(replayed.status, 1, "{}", replayed.message);
    replayed.output
}

/// The lines without their times, in an order of their own: what must not depend on when bytes were seen.
fn untimed(listing: &str) -> Vec<String> {
    let mut untimed: Vec<String> = lines(listing)
        .unwrap()
        .into_iter()
        .map(|mut line| {
            line["time"].take();
            line.to_string()
        })
        .collect();
    untimed.sort();
    untimed
}

/// A small generator of numbers, so that a failure can be repeated by its seed.
struct Numbers(u64);

impl Numbers {
    /// A number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound.max(1) as u64).unwrap()
    }
}

#[test]
fn every_file_format_and_link_type_gives_the_same_listing() {
    let ways = [
        (File::Pcap, Link::Vlan, Ip::AsIs),
        (File::PcapBig, Link::QinQ, Ip::Options),
        (File::PcapNs, Link::CookedV1, Ip::AsIs),
        (File::PcapNg, Link::CookedV2, Ip::Six),
        (File::PcapNgBig, Link::Raw, Ip::AsIs),
        (File::PcapNg, Link::NullLittle, Ip::SixExtended),
        (File::PcapBig, Link::NullBig, Ip::AsIs),
        (File::PcapNs, Link::Loop, Ip::Six),
        (File::PcapNg, Link::Raw, Ip::LengthZero),
        (File::PcapNgBig, Link::Ethernet, Ip::AsIs),
    ];
    for (name, capture) in captures() {
        let expected = listing_of(&std::fs::read(corpus().join(format!("{name}.pcap"))).unwrap());
        assert!(listing(&capture) == expected, "{name}: as it was recorded");
        for (file, link, ip) in ways {
            let written = capture.write(file, link, ip, usize::MAX);
            assert!(listing_of(&written) == expected, "{name} as {file:?}, {link:?}, {ip:?}");
        }
    }
}

#[test]
fn packets_captured_twice_are_harmless() {
    for (name, capture) in captures() {
        let expected = listing(&capture);
        let twice = |segment: &Segment| [segment.clone(), segment.clone()];
        let doubled = Capture { segments: capture.segments.iter().flat_map(twice).collect() };
        assert!(listing(&doubled) == expected, "{name}: each at once");
        // As two interfaces of one host see them: the second copy a little later.
        let mut late = Vec::new();
        for pair in capture.segments.chunks(3) {
            late.extend_from_slice(pair);
            late.extend_from_slice(pair);
        }
        assert_eq!(untimed(&listing(&Capture { segments: late })), untimed(&expected), "{name}: three by three");
    }
}

#[test]
fn two_sockets_of_one_connection_say_what_one_capture_says() {
    for (name, capture) in captures() {
        let expected = listing(&capture);
        for sides in [Sides::Client, Sides::Broker] {
            let seen = observe_both_ends(&capture, PipelineSettings { sides, ..settings() });
            assert_eq!(untimed(&seen.listing().unwrap()), untimed(&expected), "{name}, {sides:?}");
        }
        let both = observe_both_ends(&capture, PipelineSettings { sides: Sides::Both, ..settings() });
        assert_eq!(both.listing().unwrap().lines().count(), 2 * expected.lines().count(), "{name}, both");
    }
}

/// Cuts segments up, sends some again, and puts neighbours of one direction out of order.
fn disturb(capture: &Capture, numbers: &mut Numbers) -> Capture {
    let mut segments: Vec<Segment> = Vec::new();
    for segment in &capture.segments {
        let mut rest = segment.clone();
        while rest.payload.len() > 1 && numbers.below(3) > 0 {
            let mut first = rest.clone();
            let at = 1 + numbers.below(rest.payload.len() - 1);
            rest.payload = first.payload.split_off(at);
            // The SYN counts as a byte before the payload, the FIN as one behind it.
            let syn = u32::from(first.flags & SYN != 0);
            rest.sequence = first.sequence.wrapping_add(u32::try_from(at).unwrap() + syn);
            rest.flags &= !SYN;
            first.flags &= !(FIN | RST);
            segments.push(first);
        }
        segments.push(rest);
    }
    // Out of order within what one direction says before the other answers, and not across a SYN or an end.
    let mut runs: BTreeMap<(SocketAddr, SocketAddr), Vec<usize>> = BTreeMap::new();
    let mut all_runs = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        if segment.is_bare_ack() {
            continue;
        }
        let this_way = (segment.source, segment.destination);
        if let Some(run) = runs.remove(&(segment.destination, segment.source)) {
            all_runs.push(run);
        }
        if segment.flags & (SYN | FIN | RST) != 0 {
            all_runs.extend(runs.remove(&this_way));
        } else {
            runs.entry(this_way).or_default().push(i);
        }
    }
    all_runs.extend(runs.into_values());
    for run in all_runs {
        for pair in 1..run.len() {
            if numbers.below(2) == 0 {
                let (one, other) = (run[pair - 1], run[pair]);
                // Each keeps its place in time.
                let times = (segments[one].time_ns, segments[other].time_ns);
                segments.swap(one, other);
                (segments[one].time_ns, segments[other].time_ns) = times;
            }
        }
    }
    // Sent again: some earlier segment of the last few, with its bytes cut at the other end.
    let mut again = Vec::new();
    for i in 0..segments.len() {
        again.push(segments[i].clone());
        if numbers.below(8) == 0 {
            let mut copy = segments[i - numbers.below(4).min(i)].clone();
            if copy.flags & (SYN | RST) == 0 {
                copy.time_ns = segments[i].time_ns;
                let cut = numbers.below(copy.payload.len() + 1);
                copy.payload.truncate(copy.payload.len() - cut);
                copy.flags &= !FIN;
                again.push(copy);
            }
        }
    }
    Capture { segments: again }
}

#[test]
fn any_cutting_reordering_and_repetition_gives_the_same_records() {
    for (name, capture) in captures() {
        let expected = untimed(&listing(&capture));
        for seed in 0..4 {
            let disturbed = disturb(&capture, &mut Numbers(seed));
            assert_eq!(untimed(&listing(&disturbed)), expected, "{name}, seed {seed}");
        }
    }
}

#[test]
fn one_byte_at_a_time_gives_the_same_records() {
    for (name, capture) in captures() {
        if capture.segments.iter().map(|segment| segment.payload.len()).sum::<usize>() > 20_000 {
            continue;
        }
        let mut segments = Vec::new();
        for segment in &capture.segments {
            let last = segment.payload.len().saturating_sub(1);
            for (i, byte) in segment.payload.iter().enumerate() {
                let sequence = segment.sequence.wrapping_add(u32::try_from(i).unwrap());
                let flags = if i == last { segment.flags } else { segment.flags & !FIN };
                segments.push(Segment { sequence, flags, payload: vec![*byte], ..*segment });
            }
            if segment.payload.is_empty() {
                segments.push(segment.clone());
            }
        }
        assert_eq!(untimed(&listing(&Capture { segments })), untimed(&listing(&capture)), "{name}");
    }
}

/// True when `line` says nothing that `whole` does not: each field is the same, or not known, or not looked at.
fn says_less(line: &Value, whole: &Value, ignored: &[&str]) -> bool {
    let (Some(line), Some(whole)) = (line.as_object(), whole.as_object()) else { return false };
    line.iter().all(|(field, value)| {
        // What waits behind a hole may learn its group in the meantime.
        let learnt = field == "group" && whole.get(field).is_some_and(Value::is_null);
        value.is_null() || Some(value) == whole.get(field) || learnt || ignored.contains(&field.as_str())
    })
}

/// Takes from `whole` the lines that `part` says, as far as it goes; returns what is left, or a line that is wrong.
fn without(whole: &str, part: &str, ignored: &[&str]) -> Result<Vec<Value>, Value> {
    let mut left = lines(whole).unwrap();
    let mut part = lines(part).unwrap();
    // Those that say most first, so that they find their own, and that of the same time before others.
    part.sort_by_key(|line| line.as_object().map_or(0, |fields| fields.values().filter(|value| value.is_null()).count()));
    let mut later = Vec::new();
    for line in part {
        match left.iter().position(|whole| says_less(&line, whole, ignored) && line["time"] == whole["time"]) {
            Some(place) => drop(left.remove(place)),
            None => later.push(line),
        }
    }
    for line in later {
        let Some(place) = left.iter().position(|whole| says_less(&line, whole, ignored)) else { return Err(line) };
        left.remove(place);
    }
    Ok(left)
}

#[test]
fn a_start_in_the_middle_costs_only_what_had_begun_and_gives_nothing_wrong() {
    let mut wrong = Vec::new();
    for (name, capture) in captures() {
        let whole = listing(&capture);
        let frames = frames_of(&capture);
        let packets = capture.segments.len();
        let step = if packets <= 60 { 1 } else { packets / 30 };
        for skipped in (0..=packets).step_by(step) {
            let part = listing(&Capture { segments: capture.segments[skipped..].to_vec() });
            match without(&whole, &part, &[]) {
                Err(line) => {
                    panic!("{name} without its first {skipped} packets: {} is not in the whole listing: {line}", name_of(&line))
                }
                Ok(left) => {
                    let beyond = missing_beyond(&left, &times_touched(&capture, &frames, &capture.segments[..skipped]));
                    if !beyond.is_empty() {
                        wrong.push(format!("{name} without its first {skipped} packets: also missing are {}", beyond.join(", ")));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn packets_cut_by_the_capture_give_a_part_of_the_listing_and_nothing_wrong() {
    for (name, capture) in captures() {
        let whole = listing(&capture);
        for snap_bytes in [54, 68, 96, 150, 256, 512, 1500] {
            let part = listing_of(&capture.write(File::PcapNs, Link::Ethernet, Ip::AsIs, snap_bytes));
            if let Err(line) = without(&whole, &part, &[]) {
                panic!("{name} at {snap_bytes} bytes: {} is not in the whole listing: {line}", name_of(&line));
            }
        }
    }
}

fn overlap(one: &std::ops::Range<usize>, other: &std::ops::Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

/// When that was seen which the loss of some segments may cost: the frames that they hold a part of, the answers to those of
/// them that are requests, and all of a connection of which no whole request and answer are left.
fn times_touched(capture: &Capture, all: &BTreeMap<Way, Framing>, lost: &[Segment]) -> Vec<u64> {
    let mut touched: BTreeMap<Way, Vec<PlacedFrame>> = BTreeMap::new();
    for (way, framing) in all {
        let ranges: Vec<_> = lost.iter().filter(|segment| segment.way() == *way).map(|segment| framing.range_of(segment)).collect();
        let is_touched = |(range, _): &&PlacedFrame| ranges.iter().any(|lost| overlap(range, lost));
        touched.insert(*way, framing.frames.iter().filter(is_touched).cloned().collect());
    }
    let mut times = Vec::new();
    for segment in &capture.segments {
        let way = segment.way();
        let back = (way.1, way.0);
        let (Some(framing), Some(this), Some(other)) = (all.get(&way), touched.get(&way), touched.get(&back)) else {
            // Not known where its frames lie.
            times.push(segment.time_ns);
            continue;
        };
        let place = framing.range_of(segment);
        let here = framing.frames.iter().filter(|(range, _)| overlap(range, &place));
        let costs = here.into_iter().any(|frame| this.contains(frame) || (!framing.requests && other.iter().any(|(_, id)| *id == frame.1)));
        let whole = |way: &Way| {
            let frames = all.get(way).map(|framing| framing.frames.as_slice()).unwrap_or_default();
            frames.iter().filter(|frame| !touched[way].contains(frame)).map(|(_, id)| *id).collect::<Vec<_>>()
        };
        let (one, two) = (whole(&way), whole(&back));
        if costs || !one.iter().any(|id| two.contains(id)) {
            times.push(segment.time_ns);
        }
    }
    times
}

/// The lines of `whole` that `part` lacks although nothing of theirs was seen at these times.
fn missing_beyond(left: &[Value], times: &[u64]) -> Vec<String> {
    let is_beyond = |line: &&Value| {
        let time = unix_ns(line["time"].as_str().unwrap()).unwrap();
        !times.iter().any(|ns| i128::from(*ns) == time)
    };
    left.iter().filter(is_beyond).map(name_of).collect()
}

#[test]
fn a_lost_packet_costs_only_the_frames_it_held_a_part_of() {
    let mut wrong = Vec::new();
    let mut held_to_it = 0;
    for (name, capture) in captures() {
        let whole = listing(&capture);
        let frames = frames_of(&capture);
        let with_data: Vec<usize> = (0..capture.segments.len()).filter(|i| !capture.segments[*i].payload.is_empty()).collect();
        let step = with_data.len().div_ceil(30).max(1);
        for lost in with_data.into_iter().step_by(step) {
            let mut segments = capture.segments.clone();
            let segment = segments.remove(lost);
            let part = listing(&Capture { segments });
            let left = match without(&whole, &part, &["time"]) {
                Ok(left) => left,
                Err(line) => {
                    wrong.push(format!("{name} without packet {lost}: {} is not in the whole listing: {line}", name_of(&line)));
                    continue;
                }
            };
            held_to_it += 1;
            let beyond = missing_beyond(&left, &times_touched(&capture, &frames, &[segment]));
            if !beyond.is_empty() {
                wrong.push(format!("{name} without packet {lost}: also missing are {}", beyond.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(held_to_it > 1000, "{held_to_it} losses were looked at");
}

#[test]
fn many_lost_packets_give_a_part_of_the_listing_and_nothing_wrong() {
    let (mut all, mut listed) = (0, 0);
    for (name, capture) in captures() {
        let whole = listing(&capture);
        for seed in 0..6 {
            all += whole.lines().count();
            let mut numbers = Numbers(seed);
            let mut segments = disturb(&capture, &mut numbers).segments;
            segments.retain(|_| numbers.below(12) > 0);
            let part = listing(&Capture { segments });
            listed += part.lines().count();
            if let Err(line) = without(&whole, &part, &["time"]) {
                panic!("{name}, seed {seed}: {} is not in the whole listing: {line}", name_of(&line));
            }
        }
    }
    // One packet in twelve is lost, and requests and answers are cut into several. Most records come through all the same.
    assert!(listed * 2 > all, "{listed} of {all} records are listed");
}

#[test]
fn damaged_bytes_are_survived_and_cost_no_more_than_their_connection() {
    for (name, capture) in captures() {
        let whole = listing(&capture);
        for seed in 0..5 {
            let mut numbers = Numbers(seed);
            let mut damaged = capture.clone();
            // One connection is damaged, the others are not.
            let ways: Vec<_> = capture.segments.iter().map(Segment::connection).collect();
            let way = ways[numbers.below(ways.len())];
            for segment in damaged.segments.iter_mut().filter(|segment| segment.connection() == way) {
                for _ in 0..numbers.below(4) {
                    let at = numbers.below(segment.payload.len());
                    if let Some(byte) = segment.payload.get_mut(at) {
                        *byte = [0, 0x7f, 0x80, 0xff, *byte ^ 1, *byte ^ 0x40][numbers.below(6)];
                    }
                }
            }
            // Times tell which lines are of other connections, and names and groups may have been learnt from the damaged one.
            let others: Vec<i128> =
                capture.segments.iter().filter(|segment| segment.connection() != way).map(|segment| i128::from(segment.time_ns)).collect();
            let of_others = |text: &str| {
                let is_other = |line: &Value| others.contains(&unix_ns(line["time"].as_str().unwrap()).unwrap());
                lines(text).unwrap().into_iter().filter(is_other).count()
            };
            let listed = listing(&damaged);
            assert!(of_others(&listed) >= of_others(&whole), "{name}, seed {seed}");
        }
    }
}
