//! Frames out of pieces, with holes, cuts and nonsense in between.

use proptest::prelude::*;

use super::*;

/// Begins each payload of the tests that search.
const MARKER: &[u8] = b"\xffKAFKA\xff\xfe";

/// Takes down what happened. A frame begins, to its mind, with [`MARKER`].
#[derive(Default)]
struct Owner {
    log: Vec<String>,
    frames: Vec<(Vec<u8>, Vec<Range<usize>>, u32)>,
    times: Vec<(Timestamp, Timestamp)>,
    slices: Vec<*const u8>,
    lost_bytes: u64,
    /// Frames of any size are expected.
    short: bool,
    /// Answer to the frame with this text.
    answer: Option<(&'static str, Next)>,
    judged: std::cell::RefCell<Vec<(u32, usize, bool)>>,
}

impl FrameOwner for Owner {
    fn judge(&self, candidate: Candidate<'_>) -> Plausible {
        self.judged.borrow_mut().push((candidate.declared_bytes, candidate.head.len(), candidate.at_piece_start));
        if candidate.head.starts_with(MARKER) {
            Plausible::Yes
        } else if MARKER.starts_with(candidate.head) {
            Plausible::NeedMore
        } else {
            Plausible::No
        }
    }

    fn expects_short_frames(&self) -> bool {
        self.short
    }

    fn on_frame_event(&mut self, event: FrameEvent<'_>) -> Next {
        let mut text = String::new();
        match event {
            FrameEvent::Frame(frame) => {
                text = String::from_utf8_lossy(frame.payload.strip_prefix(MARKER).unwrap_or(frame.payload)).into_owned();
                let cut =
                    if frame.payload.len() == frame.declared_bytes as usize { String::new() } else { format!("/{}", frame.declared_bytes) };
                let holes = if frame.holes.is_empty() { String::new() } else { format!(" {:?}", frame.holes) };
                self.log.push(format!("frame {}{cut}{holes}", text.replace('\0', ".")));
                self.frames.push((frame.payload.to_vec(), frame.holes.to_vec(), frame.declared_bytes));
                self.times.push((frame.first_time, frame.last_time));
                self.slices.push(frame.payload.as_ptr());
                assert_eq!(frame.is_whole(), cut.is_empty() && holes.is_empty());
            }
            FrameEvent::Lost { bytes, reason, .. } => {
                assert!(bytes > 0);
                self.lost_bytes += bytes;
                self.log.push(format!("lost {bytes} {reason:?}"));
            }
            FrameEvent::LostSync { reason, .. } => self.log.push(format!("lost sync {reason:?}")),
            FrameEvent::Resumed { time } => self.log.push(format!("resumed {}", time.unix_ns())),
        }
        match self.answer {
            Some((on, next)) if on == text => next,
            _ => Next::Continue,
        }
    }
}

const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 100, min_declared_bytes: 4, max_declared_bytes: 1 << 20 };

fn framed(payload: &[u8]) -> Vec<u8> {
    [&u32::try_from(payload.len()).unwrap().to_be_bytes()[..], payload].concat()
}

fn marked(text: &str) -> Vec<u8> {
    framed(&[MARKER, text.as_bytes()].concat())
}

enum Step {
    Bytes(Vec<u8>),
    Gap(u64),
    Restart,
    Finish,
}
use Step::{Bytes, Finish, Gap, Restart};

/// Runs the steps, the n-th at n nanoseconds.
fn run(mut framer: Framer, owner: &mut Owner, steps: &[Step]) -> Framer {
    for (i, step) in steps.iter().enumerate() {
        let time = Timestamp::from_unix_ns(i as u64);
        match step {
            Bytes(bytes) => framer.push(Piece::Bytes { time, bytes }, owner),
            Gap(bytes) => framer.push(Piece::Gap { time, bytes: *bytes }, owner),
            Restart => framer.push(Piece::Restart { time }, owner),
            Finish => framer.finish(time, owner),
        }
    }
    framer
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn frames_come_out_whole_and_what_is_missing_is_said() {
    let long = |n: usize| "x".repeat(n);
    let join = |parts: &[&[u8]]| Bytes(parts.concat());
    let table: Vec<(&str, Vec<Step>, Vec<String>)> = vec![
        ("two in one piece", vec![join(&[&framed(b"first"), &framed(b"second")])], vec!["frame first".into(), "frame second".into()]),
        (
            "size and the rest apart (Java client since 2.8)",
            vec![Bytes(vec![0, 0, 0, 5]), Bytes(b"first".to_vec())],
            vec!["frame first".into()],
        ),
        (
            "size and correlation id, then the rest (librdkafka)",
            vec![join(&[&[0, 0, 0, 9], b"corr"]), Bytes(b"after".to_vec())],
            vec!["frame corrafter".into()],
        ),
        (
            "longer than the limit",
            vec![Bytes(framed(long(120).as_bytes())), Bytes(framed(b"next"))],
            vec![format!("frame {}/120", long(100)), "frame next".into()],
        ),
        (
            "longer than the limit, in parts",
            vec![join(&[&[0, 0, 0, 120], long(60).as_bytes()]), join(&[long(60).as_bytes(), &framed(b"next")])],
            vec![format!("frame {}/120", long(100)), "frame next".into()],
        ),
        (
            "a hole within a frame",
            vec![join(&[&[0, 0, 0, 8], b"ab"]), Gap(3), join(&[b"fgh", &framed(b"next")])],
            vec!["frame ab...fgh [2..5]".into(), "frame next".into()],
        ),
        (
            "two holes that touch are one",
            vec![Bytes(vec![0, 0, 0, 5]), Gap(1), Gap(2), Bytes(b"de".to_vec())],
            vec!["frame ...de [0..3]".into()],
        ),
        (
            "a hole to the frame's end",
            vec![join(&[&[0, 0, 0, 8], b"ab"]), Gap(6), Bytes(framed(b"next"))],
            vec!["frame ab/8 [2..8]".into(), "frame next".into()],
        ),
        (
            "a hole over a border, then a piece that begins with a frame",
            vec![join(&[&[0, 0, 0, 8], b"ab"]), Gap(16), Bytes(marked("next"))],
            vec!["frame ab/8 [2..8]".into(), "lost sync Hole".into(), "lost 10 Hole".into(), "resumed 2".into(), "frame next".into()],
        ),
        (
            "a hole over a border, then the rest of a frame and another",
            vec![Gap(16), join(&[b"of a frame", &marked("one"), &marked("two")])],
            vec![
                "lost sync Hole".into(),
                "lost 16 Hole".into(),
                "lost 10 Unframed".into(),
                "resumed 1".into(),
                "frame one".into(),
                "frame two".into(),
            ],
        ),
        (
            "a hole in a size field",
            vec![Bytes(vec![0, 0]), Gap(2), join(&[b"abcd", &marked("next")])],
            vec![
                "lost sync Hole".into(),
                "lost 2 Unframed".into(),
                "lost 2 Hole".into(),
                "lost 4 Unframed".into(),
                "resumed 2".into(),
                "frame next".into(),
            ],
        ),
        (
            "a second hole while searching",
            vec![Gap(4), Bytes(b"\0\0\0\x0e\xff".to_vec()), Gap(5), Bytes(marked("next"))],
            vec![
                "lost sync Hole".into(),
                "lost 4 Hole".into(),
                "lost 5 Unframed".into(),
                "lost 5 Hole".into(),
                "resumed 3".into(),
                "frame next".into(),
            ],
        ),
        (
            "size 3",
            vec![join(&[&framed(b"abc"), &marked("next")])],
            vec!["lost sync Size(3)".into(), "lost 7 Unframed".into(), "resumed 0".into(), "frame next".into()],
        ),
        (
            "size -1",
            vec![Bytes([&[0xff; 4][..], &marked("next")].concat())],
            vec!["lost sync Size(-1)".into(), "lost 4 Unframed".into(), "resumed 0".into(), "frame next".into()],
        ),
        (
            "size 2^31-1, in two pieces",
            vec![Bytes(vec![0x7f, 0xff]), join(&[&[0xff, 0xff], &marked("next")])],
            vec!["lost sync Size(2147483647)".into(), "lost 4 Unframed".into(), "resumed 1".into(), "frame next".into()],
        ),
        (
            "what was taken for a size holds the beginning of a frame",
            vec![Bytes(vec![0, 0]), Bytes(vec![0, 0]), Bytes([&[0, 12][..], MARKER, b"next"].concat())],
            vec!["lost sync Size(0)".into(), "lost 1 Unframed".into(), "lost 1 Unframed".into(), "resumed 1".into(), "frame next".into()],
        ),
        (
            "the stream ends in a frame",
            vec![join(&[&[0, 0, 0, 9], b"abc"]), Gap(2), Bytes(b"de".to_vec()), Finish],
            vec!["lost 9 Unfinished".into()],
        ),
        ("the stream ends in a size field", vec![Bytes(vec![0, 0]), Finish], vec!["lost 2 Unfinished".into()]),
        (
            "another stream takes over",
            vec![join(&[&[0, 0, 0, 9], b"abc"]), Restart, join(&[b"zz", &marked("next")])],
            vec!["lost 7 Unfinished".into(), "lost sync Restart".into(), "lost 2 Unframed".into(), "resumed 2".into(), "frame next".into()],
        ),
        (
            "a raw SASL token is a frame like any other",
            vec![Bytes(framed(b"\x60\x82token"))],
            vec![format!("frame {}token", String::from_utf8_lossy(b"\x60\x82"))],
        ),
    ];
    for (name, steps, expected) in table {
        let mut owner = Owner::default();
        run(Framer::new(LIMITS), &mut owner, &steps);
        assert_eq!(owner.log, expected, "{name}");
    }
}

#[test]
fn short_and_empty_frames_are_believed_where_the_owner_expects_them() {
    let bytes = [framed(b""), framed(b"abc"), framed(b""), framed(b"whole")].concat();
    for cut in 1..bytes.len() {
        let mut owner = Owner { short: true, ..Owner::default() };
        run(Framer::new(LIMITS), &mut owner, &[Bytes(bytes[..cut].to_vec()), Bytes(bytes[cut..].to_vec()), Finish]);
        assert_eq!(owner.log, ["frame ", "frame abc", "frame ", "frame whole"], "cut at {cut}");
    }
    let mut owner = Owner::default();
    run(Framer::new(LIMITS), &mut owner, &[Bytes(bytes)]);
    assert_eq!(owner.log.first().map(String::as_str), Some("lost sync Size(0)"));
}

#[test]
fn a_stream_picked_up_in_the_middle_begins_at_its_first_frame() {
    let mut owner = Owner::default();
    let bytes = [b"rest of a frame".to_vec(), marked("one"), marked("two")].concat();
    let framer = run(Framer::starts_midway(LIMITS), &mut owner, &[Bytes(bytes)]);
    assert_eq!(owner.log, ["lost 15 Unframed", "resumed 0", "frame one", "frame two"]);
    assert!(framer.is_synchronised());
}

#[test]
fn a_frame_within_one_piece_is_not_copied() {
    let (mut framer, mut owner) = (Framer::new(LIMITS), Owner::default());
    let piece = [framed(b"first"), framed(&[b'x'; 300])].concat();
    framer.push(Piece::Bytes { time: Timestamp::ZERO, bytes: &[0, 0, 0, 5] }, &mut owner);
    framer.push(Piece::Bytes { time: Timestamp::ZERO, bytes: &[b"apart", &piece[..]].concat() }, &mut owner);
    framer.push(Piece::Bytes { time: Timestamp::ZERO, bytes: &piece }, &mut owner);
    assert_eq!(owner.slices[3..], [piece[4..].as_ptr(), piece[13..].as_ptr()]);
    assert_eq!(framer.buffered_bytes(), 0);
}

#[test]
fn a_declared_size_alone_takes_no_memory() {
    let mut owner = Owner::default();
    let limits = FrameLimits { max_frame_bytes: u32::MAX, ..FrameLimits::default() };
    let framer = run(Framer::new(limits), &mut owner, &[Bytes((200_u32 << 20).to_be_bytes().to_vec()), Bytes(vec![1; 10]), Gap(100 << 20)]);
    assert!(framer.buffered_bytes() < 100 + 4 * size_of::<Range<usize>>(), "{}", framer.buffered_bytes());
}

#[test]
fn a_frame_with_very_many_holes_keeps_what_lies_before_them() {
    let mut owner = Owner::default();
    let mut steps = vec![Bytes(100_000_u32.to_be_bytes().to_vec())];
    for _ in 0..50_000 {
        steps.extend([Gap(1), Bytes(b"x".to_vec())]);
    }
    let framer = run(Framer::new(FrameLimits { max_frame_bytes: 1 << 20, ..LIMITS }), &mut owner, &steps);
    let (payload, holes, declared) = &owner.frames[0];
    assert_eq!((payload.len(), holes.len(), *declared), (2 * MAX_HOLES, MAX_HOLES, 100_000));
    assert!(framer.buffered_bytes() < 100_000);
}

/// Pieces of a frame: where each ends, and when it was seen.
type Pieces = &'static [(usize, u64)];

#[test]
fn times_are_those_of_the_first_and_the_last_byte() {
    let frame = framed(b"payload");
    // (pieces as (end, time)) => (first, last)
    let table: &[(Pieces, (u64, u64))] = &[
        (&[(11, 5)], (5, 5)),
        (&[(2, 5), (4, 6), (11, 7)], (5, 7)),
        (&[(1, 5), (9, 6), (11, 9)], (5, 9)),
        // What comes behind was seen before what fills the hole.
        (&[(4, 8), (11, 3)], (3, 8)),
    ];
    for (pieces, (first, last)) in table {
        let (mut framer, mut owner) = (Framer::new(LIMITS), Owner::default());
        let mut begin = 0;
        for (end, ns) in *pieces {
            framer.push(Piece::Bytes { time: Timestamp::from_unix_ns(*ns), bytes: &frame[begin..*end] }, &mut owner);
            begin = *end;
        }
        assert_eq!(owner.times, [(Timestamp::from_unix_ns(*first), Timestamp::from_unix_ns(*last))]);
    }
}

#[test]
fn the_owner_can_have_the_rest_searched_or_ignored() {
    for (next, expected) in [
        (Next::Resynchronise, &["frame one", "lost sync Owner", "lost 3 Unframed", "resumed 0", "frame two"][..]),
        (Next::Ignore, &["frame one"][..]),
    ] {
        let mut owner = Owner { answer: Some(("one", next)), ..Owner::default() };
        let bytes = [marked("one"), b"zzz".to_vec(), marked("two")].concat();
        let framer = run(Framer::new(LIMITS), &mut owner, &[Bytes(bytes), Finish]);
        assert_eq!(owner.log, expected);
        assert_eq!(matches!(framer.state, State::Opaque), next == Next::Ignore);
    }
    let mut owner = Owner { answer: Some(("", Next::Ignore)), ..Owner::default() };
    run(Framer::new(LIMITS), &mut owner, &[Gap(5), Bytes(marked("one")), Restart, Finish]);
    assert_eq!(owner.log, ["lost sync Hole"]);
}

#[test]
fn a_candidate_is_refused_when_the_next_size_cannot_be() {
    // A payload that contains what looks like a frame.
    let inner = marked("looks like one");
    let mut owner = Owner::default();
    let bytes = [b"zz".to_vec(), inner, vec![0xff; 4], marked("real")].concat();
    run(Framer::starts_midway(LIMITS), &mut owner, &[Bytes(bytes)]);
    assert_eq!(owner.log, ["lost 32 Unframed", "resumed 0", "frame real"]);
}

#[test]
fn the_judge_sees_at_most_a_head_and_knows_where_pieces_begin() {
    let mut owner = Owner::default();
    run(
        Framer::starts_midway(LIMITS),
        &mut owner,
        &[Bytes([&5000_u32.to_be_bytes()[..], &[9; 600]].concat()), Bytes(vec![0, 0, 0]), Bytes(vec![9, 0xee])],
    );
    assert_eq!(*owner.judged.borrow(), [(5000, HEAD_BYTES, true), (9, 1, true), (0x9ee, 0, false)]);
}

/// Needs so many bytes of a head, then says yes to what begins with `#` and no to all else.
struct Slow {
    wanted_bytes: usize,
    lost_bytes: u64,
    frames: Vec<usize>,
    starts: std::cell::RefCell<Vec<bool>>,
}

impl FrameOwner for Slow {
    fn judge(&self, candidate: Candidate<'_>) -> Plausible {
        self.starts.borrow_mut().push(candidate.at_piece_start);
        match candidate.head.first() {
            _ if candidate.head.len() < self.wanted_bytes => Plausible::NeedMore,
            Some(b'#') => Plausible::Yes,
            _ => Plausible::No,
        }
    }

    fn on_frame_event(&mut self, event: FrameEvent<'_>) -> Next {
        match event {
            FrameEvent::Frame(frame) => self.frames.push(frame.payload.len()),
            FrameEvent::Lost { bytes, .. } => self.lost_bytes += bytes,
            FrameEvent::LostSync { .. } | FrameEvent::Resumed { .. } => {}
        }
        Next::Continue
    }
}

fn slow(wanted_bytes: usize, pieces: &[&[u8]]) -> Slow {
    let mut owner = Slow { wanted_bytes, lost_bytes: 0, frames: Vec::new(), starts: std::cell::RefCell::default() };
    let mut framer = Framer::starts_midway(FrameLimits { max_frame_bytes: 1000, ..LIMITS });
    for bytes in pieces {
        framer.push(Piece::Bytes { time: Timestamp::ZERO, bytes }, &mut owner);
        assert!(framer.is_synchronised() || framer.buffer.len() < SIZE_BYTES + HEAD_BYTES);
    }
    framer.finish(Timestamp::ZERO, &mut owner);
    owner
}

#[test]
fn a_judge_that_never_has_enough_gets_a_head_and_no_more() {
    let pieces = [&[0; 3000][..], &[1, 0, 0, 9, 9, 9], &[0; 3000]];
    let owner = slow(usize::MAX, &pieces);
    assert_eq!((owner.lost_bytes, owner.frames), (6006, vec![]));
}

#[test]
fn a_judge_that_needs_a_long_head_gets_it_over_several_pieces() {
    let frame = framed(&[b'#'; 600]);
    let stream = [b"xy".to_vec(), frame.clone(), frame].concat();
    for cut in 0..stream.len() {
        let owner = slow(400, &[&stream[..cut], &stream[cut..]]);
        assert_eq!((owner.lost_bytes, owner.frames), (2, vec![600, 600]), "cut at {cut}");
    }
}

#[test]
fn what_waits_from_a_pieces_middle_is_no_pieces_start_later() {
    // The byte before the size is dropped; what waits is judged again when there is more.
    let owner = slow(2, &[&[0xff, 0, 0, 0, 9], b"#", b"#"]);
    assert_eq!(*owner.starts.borrow(), [false, false, false]);
    let owner = slow(2, &[&[0xff], &[0, 0, 0, 9], b"#", b"#"]);
    assert_eq!(*owner.starts.borrow(), [true, true, true]);
}

/// A frame: text length and fill; what was lost of the stream; where it is cut.
fn frames() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0_usize..60, b'a'..=b'z'), 1..20)
}

fn stream_of(frames: &[(usize, u8)]) -> (Vec<u8>, Vec<Range<usize>>) {
    let (mut stream, mut places) = (Vec::new(), Vec::new());
    for (length, fill) in frames {
        let begin = stream.len();
        stream.extend(framed(&[MARKER, &vec![*fill; *length]].concat()));
        places.push(begin..stream.len());
    }
    (stream, places)
}

/// Cuts the stream at the given places and leaves out what is lost.
fn pieces(stream: &[u8], cuts: &[prop::sample::Index], lost: &[Range<usize>]) -> Vec<Step> {
    let is_lost = |place: usize| lost.iter().any(|range| range.contains(&place));
    let cut_at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
    let mut steps: Vec<Step> = Vec::new();
    for (place, byte) in stream.iter().enumerate() {
        match steps.last_mut() {
            Some(Gap(bytes)) if is_lost(place) => *bytes += 1,
            Some(Bytes(bytes)) if !is_lost(place) && !cut_at.contains(&place) => bytes.push(*byte),
            _ if is_lost(place) => steps.push(Gap(1)),
            _ => steps.push(Bytes(vec![*byte])),
        }
    }
    steps
}

fn lost_ranges(stream: &[u8], lost: &[(prop::sample::Index, usize)]) -> Vec<Range<usize>> {
    lost.iter()
        .map(|(index, length)| {
            let begin = index.index(stream.len());
            begin..(begin + length).min(stream.len())
        })
        .collect()
}

proptest! {
    #[test]
    fn any_cutting_gives_the_same_frames(frames in frames(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..60), midway: bool, max_frame_bytes in 8_u32..80) {
        let (stream, places) = stream_of(&frames);
        let limits = FrameLimits { max_frame_bytes, ..LIMITS };
        let framer = if midway { Framer::starts_midway(limits) } else { Framer::new(limits) };
        let mut owner = Owner::default();
        run(framer, &mut owner, &pieces(&stream, &cuts, &[]));
        let expected: Vec<_> = places.iter().map(|place| {
            let payload = &stream[place.start + 4..place.end];
            (payload[..payload.len().min(max_frame_bytes as usize)].to_vec(), Vec::new(), u32::try_from(payload.len()).unwrap())
        }).collect();
        prop_assert_eq!(owner.frames, expected);
        prop_assert_eq!(owner.lost_bytes, 0);
    }

    #[test]
    fn a_hole_costs_only_the_frames_it_touches(
        frames in frames(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
        lost in prop::collection::vec((any::<prop::sample::Index>(), 1_usize..70), 0..4),
    ) {
        let (stream, places) = stream_of(&frames);
        let lost = lost_ranges(&stream, &lost);
        let is_lost = |place: usize| lost.iter().any(|range| range.contains(&place));
        let mut owner = Owner::default();
        let mut steps = pieces(&stream, &cuts, &lost);
        steps.push(Finish);
        run(Framer::new(LIMITS), &mut owner, &steps);

        let mut synchronised = true;
        let mut expected = Vec::new();
        for place in &places {
            let mut head = place.start..place.start + 4 + MARKER.len();
            let mut size = place.start..place.start + 4;
            synchronised = !size.any(is_lost) && (synchronised || !head.any(is_lost));
            if synchronised {
                let payload: Vec<Option<u8>> = (place.start + 4..place.end).map(|at| (!is_lost(at)).then(|| stream[at])).collect();
                expected.push(payload);
            }
        }
        let seen: Vec<Vec<Option<u8>>> = owner.frames.iter().map(|(payload, holes, declared)| {
            (0..*declared as usize).map(|at| if holes.iter().any(|hole| hole.contains(&at)) { None } else { Some(payload[at]) }).collect()
        }).collect();
        prop_assert_eq!(seen, expected);
        let framed: usize = owner.frames.iter().map(|frame| 4 + frame.2 as usize).sum();
        prop_assert_eq!(framed as u64 + owner.lost_bytes, stream.len() as u64, "each byte is in a frame or lost: {:?}", owner.log);
    }

    #[test]
    fn each_byte_of_anything_is_accounted_for(
        steps in prop::collection::vec((0_u8..12, prop::collection::vec(prop_oneof![Just(0_u8), Just(0), Just(5), any::<u8>()], 1..40)), 0..40),
        midway: bool,
    ) {
        let limits = FrameLimits { max_declared_bytes: 300, ..LIMITS };
        let mut framer = if midway { Framer::starts_midway(limits) } else { Framer::new(limits) };
        let (mut owner, mut all, mut in_holes) = (Owner::default(), 0, 0);
        for (kind, bytes) in &steps {
            let time = Timestamp::ZERO;
            all += bytes.len() as u64;
            match kind {
                0 => framer.push(Piece::Gap { time, bytes: bytes.len() as u64 }, &mut owner),
                1 => { framer.push(Piece::Restart { time }, &mut owner); all -= bytes.len() as u64; }
                _ => framer.push(Piece::Bytes { time, bytes }, &mut owner),
            }
            prop_assert!(framer.buffered_bytes() < 2 * (HEAD_BYTES + 300));
            if *kind == 0 { in_holes += bytes.len() as u64; }
        }
        framer.finish(Timestamp::ZERO, &mut owner);
        let framed: u64 = owner.frames.iter().map(|frame| 4 + u64::from(frame.2)).sum();
        // Holes of frames that never became whole are the only bytes that are in neither.
        prop_assert!((all - in_holes..=all).contains(&(framed + owner.lost_bytes)), "{:?}", owner.log);
    }
}
