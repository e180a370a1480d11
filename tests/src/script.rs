//! A recorded capture as a script that a client and a broker can play over real sockets: who connects, who sends what, in
//! which order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;

use crate::capture::{ACK, Capture, FIN, RST, SYN};

/// One thing that happens. Both ends do all of them, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A client connects to a broker.
    Open {
        /// Number of the connection, from 0.
        connection: usize,
        /// The broker's address, as recorded.
        broker: SocketAddr,
    },
    /// One end sends and the other receives.
    Send {
        /// On which connection.
        connection: usize,
        /// The client sends.
        from_client: bool,
        /// The bytes: whole frames, as far as the capture has them.
        frames: Vec<Vec<u8>>,
    },
    /// The connection is closed.
    Close {
        /// Which.
        connection: usize,
    },
}

/// A direction of a connection.
#[derive(Default)]
struct Way {
    /// The sequence number of the first byte, once known.
    first: Option<u32>,
    bytes: Vec<u8>,
    /// How many bytes were there after each segment that brought some, and that segment's place in the capture.
    grown: Vec<(usize, usize)>,
}

/// One connection in the making.
struct Recorded {
    client: SocketAddr,
    broker: SocketAddr,
    opened_at: usize,
    closed_at: Option<usize>,
    ways: [Way; 2],
}

/// The script of a capture. Addresses in `brokers` are those of listeners, by port; who sends a SYN is a client in any case.
pub fn script_of(capture: &Capture, brokers: &[u16]) -> Vec<Act> {
    let mut open: BTreeMap<(SocketAddr, SocketAddr), usize> = BTreeMap::new();
    let mut all: Vec<Recorded> = Vec::new();
    for (place, segment) in capture.segments.iter().enumerate() {
        let is_syn = segment.flags & SYN != 0 && segment.flags & ACK == 0;
        let known = open.get(&segment.connection()).copied();
        // The same pair of addresses with another first number is another connection; with the same, a repetition.
        let is_new = is_syn && known.is_none_or(|known| all[known].ways[0].first != Some(segment.sequence.wrapping_add(1)));
        let index = match known {
            Some(known) if !is_new => known,
            _ => {
                let from_broker = !is_syn && brokers.contains(&segment.source.port());
                let (client, broker) = if from_broker || segment.flags & (SYN | ACK) == SYN | ACK {
                    (segment.destination, segment.source)
                } else {
                    (segment.source, segment.destination)
                };
                open.insert(segment.connection(), all.len());
                all.push(Recorded { client, broker, opened_at: place, closed_at: None, ways: Default::default() });
                all.len() - 1
            }
        };
        let recorded = &mut all[index];
        let way = &mut recorded.ways[usize::from(segment.source != recorded.client)];
        if segment.flags & SYN != 0 {
            way.first = Some(segment.sequence.wrapping_add(1));
            continue;
        }
        if segment.flags & (FIN | RST) != 0 {
            recorded.closed_at = recorded.closed_at.or(Some(place));
        }
        if segment.payload.is_empty() {
            continue;
        }
        let first = *way.first.get_or_insert(segment.sequence);
        let at = segment.sequence.wrapping_sub(first) as usize;
        // What was there already; what lies beyond a hole is left out, and the comparison will say so.
        if let Some(new) = way.bytes.len().checked_sub(at).and_then(|seen| segment.payload.get(seen..))
            && !new.is_empty()
        {
            way.bytes.extend(new);
            way.grown.push((way.bytes.len(), place));
        }
    }
    let mut acts: Vec<(usize, Act)> = Vec::new();
    for (connection, recorded) in all.iter().enumerate().filter(|(_, recorded)| recorded.ways.iter().any(|way| !way.bytes.is_empty())) {
        acts.push((recorded.opened_at, Act::Open { connection, broker: recorded.broker }));
        let mut last = recorded.opened_at;
        for (from_client, way) in [(true, &recorded.ways[0]), (false, &recorded.ways[1])] {
            for frame in frames(&way.bytes) {
                let whole = way.grown.iter().find(|(length, _)| *length >= frame.end).map_or(recorded.opened_at, |(_, place)| *place);
                last = last.max(whole);
                acts.push((whole, Act::Send { connection, from_client, frames: vec![way.bytes[frame].to_vec()] }));
            }
        }
        if let Some(closed_at) = recorded.closed_at {
            acts.push((closed_at.max(last), Act::Close { connection }));
        }
    }
    acts.sort_by_key(|(place, _)| *place);
    let mut script: Vec<Act> = Vec::new();
    for (_, act) in acts {
        // Frames that went out one behind the other can go out as one.
        if let (Some(Act::Send { connection, from_client, frames }), Act::Send { connection: other, from_client: as_well, frames: more }) =
            (script.last_mut(), &act)
            && (*connection, *from_client) == (*other, *as_well)
        {
            frames.extend(more.iter().cloned());
        } else {
            script.push(act);
        }
    }
    script
}

/// The frames of a direction: by their lengths, as long as these make sense; the rest is one.
fn frames(bytes: &[u8]) -> Vec<Range<usize>> {
    let (mut frames, mut place) = (Vec::new(), 0);
    while place < bytes.len() {
        let whole = bytes[place..].first_chunk().map(|size| place + 4 + u32::from_be_bytes(*size) as usize);
        let end = whole.filter(|end| *end <= bytes.len()).unwrap_or(bytes.len());
        frames.push(place..end);
        place = end;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{corpus, corpus_names};

    #[test]
    fn every_byte_of_every_capture_is_played_once() {
        for name in corpus_names().unwrap() {
            let capture = Capture::read(&corpus().join(format!("{name}.pcap"))).unwrap();
            let script = script_of(&capture, &[9092, 9093, 19092]);
            let mut open = std::collections::BTreeSet::new();
            let mut played = 0;
            for act in &script {
                match act {
                    Act::Open { connection, .. } => assert!(open.insert(*connection), "{name}"),
                    Act::Send { connection, frames, .. } => {
                        assert!(open.contains(connection) && frames.iter().all(|frame| !frame.is_empty()), "{name}");
                        played += frames.iter().map(Vec::len).sum::<usize>();
                    }
                    Act::Close { connection } => assert!(open.remove(connection), "{name}"),
                }
            }
            let mut seen = std::collections::BTreeSet::new();
            let recorded: usize = capture
                .segments
                .iter()
                .filter(|segment| seen.insert((segment.way(), segment.sequence, segment.payload.len())))
                .map(|segment| segment.payload.len())
                .sum();
            assert_eq!(played, recorded, "{name}");
        }
    }
}
