//! Frames of recorded captures, found without the tracer's code.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;

use crate::capture::{ACK, Capture, SYN, Segment};

/// From whom to whom.
pub type Way = (SocketAddr, SocketAddr);

/// Place of a frame, and its correlation id.
pub type PlacedFrame = (Range<usize>, [u8; 4]);

/// Where the frames of one direction lie, in bytes since its SYN.
#[derive(Clone, Debug)]
pub struct Framing {
    /// The sender connected: these are requests.
    pub requests: bool,
    /// Position of the first byte.
    pub first: u32,
    /// Its frames.
    pub frames: Vec<PlacedFrame>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Framing {
    /// Where a segment's payload lies.
    pub fn range_of(&self, segment: &Segment) -> Range<usize> {
        let begin = segment.sequence.wrapping_sub(self.first) as usize;
        begin..begin + segment.payload.len()
    }
}

/// The frames of each direction whose SYN was seen (once), as far as sizes make sense.
pub fn frames_of(capture: &Capture) -> BTreeMap<Way, Framing> {
    let mut ways: BTreeMap<Way, Vec<(u32, bool)>> = BTreeMap::new();
    for segment in capture.segments.iter().filter(|segment| segment.flags & SYN != 0) {
        let syn = (segment.sequence.wrapping_add(1), segment.flags & ACK == 0);
        let syns = ways.entry((segment.source, segment.destination)).or_default();
        if !syns.contains(&syn) {
            syns.push(syn);
        }
    }
    let mut found = BTreeMap::new();
    for (way, syns) in ways {
        let [(first, requests)] = syns[..] else { continue };
        let mut bytes = Vec::new();
        for segment in capture.segments.iter().filter(|segment| (segment.source, segment.destination) == way) {
            let place = segment.sequence.wrapping_sub(first) as usize;
            if segment.flags & SYN == 0 && place <= bytes.len() {
                bytes.truncate(place);
                bytes.extend(&segment.payload);
            }
        }
        let (mut frames, mut place) = (Vec::new(), 0);
        while let Some(size) = bytes.get(place..).and_then(|rest| rest.first_chunk()) {
            let end = place + 4 + u32::from_be_bytes(*size) as usize;
            let Some(frame) = bytes.get(place..end) else { break };
            let id = frame.get(if requests { 8.. } else { 4.. }).and_then(|rest| rest.first_chunk()).copied();
            frames.push((place..end, id.unwrap_or_default()));
            place = end;
        }
        found.insert(way, Framing { requests, first, frames, bytes });
    }
    found
}

/// Requests with their answers: those whose correlation id their connection uses once.
pub fn pairs(capture: &Capture) -> Vec<(Vec<u8>, Vec<u8>)> {
    let all = frames_of(capture);
    let mut pairs = Vec::new();
    for ((client, broker), requests) in all.iter().filter(|(_, framing)| framing.requests) {
        let Some(answers) = all.get(&(*broker, *client)) else { continue };
        for (range, id) in &requests.frames {
            let once = requests.frames.iter().filter(|(_, other)| other == id).count() == 1;
            if let Some((answer, _)) = answers.frames.iter().find(|(_, other)| other == id).filter(|_| once) {
                pairs.push((requests.bytes[range.clone()].to_vec(), answers.bytes[answer.clone()].to_vec()));
            }
        }
    }
    pairs
}
