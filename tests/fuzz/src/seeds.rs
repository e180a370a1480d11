//! The recorded captures, taken apart: what was said on each connection, its frames, and the records in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use tracer_userspace::kafka::api::{Request, Response, decode_request, decode_response, plausible_request, request_header};
use tracer_userspace::kafka::wire::Payload;
use tracer_userspace::source::pcap::PcapSource;
use tracer_userspace::source::{Direction, EventKind, SocketKey};

/// What the captures hold.
#[derive(Debug, Default)]
pub struct Recorded {
    /// The first bytes of each capture file.
    pub files: Vec<Vec<u8>>,
    /// What was said on one connection of each capture: who spoke, and the bytes of a segment.
    pub talks: Vec<Vec<(Direction, Vec<u8>)>>,
    /// Frames without their size, of each API and version a few.
    pub frames: Vec<Frame>,
    /// Fields of records, and whether a Produce held them.
    pub fields: Vec<(bool, Vec<u8>)>,
}

/// A frame.
#[derive(Debug)]
pub struct Frame {
    /// Its API.
    pub api_key: i16,
    /// Version of its request.
    pub api_version: i16,
    /// A request, or an answer.
    pub is_request: bool,
    /// What is behind the size.
    pub bytes: Vec<u8>,
}

/// Frames of one API, version and direction that are taken.
const FRAMES_OF_A_KIND: usize = 4;
/// Fields of records of one direction, format and codec that are taken.
const FIELDS_OF_A_KIND: usize = 24;
const MAX_FIELD_BYTES: usize = 8 << 10;
const MAX_FRAME_BYTES: usize = 4 << 10;
const MAX_TALK_BYTES: usize = 12 << 10;
const FILE_BYTES: usize = 4 << 10;

/// The captures, read once.
pub fn recorded() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(read)
}

/// What one end of a connection sent and received, in order.
#[derive(Default)]
struct Talk {
    segments: Vec<(Direction, Vec<u8>)>,
    /// Bytes by direction, as far as nothing is missing.
    streams: [Stream; 2],
}

#[derive(Default)]
struct Stream {
    next: Option<u32>,
    bytes: Vec<u8>,
}

fn read() -> Recorded {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("the corpus at {}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "pcap"));
    paths.sort();
    let mut recorded = Recorded::default();
    let mut kinds: BTreeMap<(i16, i16, bool), usize> = BTreeMap::new();
    let mut fields: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for path in paths {
        let file = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        recorded.files.push(file[..file.len().min(FILE_BYTES)].to_vec());
        let talks = talks(&file);
        for talk in talks.values() {
            for frame in frames(talk) {
                for field in records(&frame) {
                    let like_it = fields.entry(shape(&field)).or_default();
                    if field.1.len() <= MAX_FIELD_BYTES && like_it.len() < FIELDS_OF_A_KIND {
                        like_it.insert(field);
                    }
                }
                let count = kinds.entry((frame.api_key, frame.api_version, frame.is_request)).or_default();
                if frame.bytes.len() <= MAX_FRAME_BYTES && *count < FRAMES_OF_A_KIND {
                    *count += 1;
                    recorded.frames.push(frame);
                }
            }
        }
        let first = talks.into_values().map(|talk| talk.segments).max_by_key(|segments| {
            let bytes: usize = segments.iter().map(|(_, bytes)| bytes.len()).sum();
            if bytes <= MAX_TALK_BYTES { bytes } else { 0 }
        });
        recorded.talks.extend(first);
    }
    recorded.fields = fields.into_values().flatten().collect();
    recorded
}

fn talks(file: &[u8]) -> BTreeMap<String, Talk> {
    let mut talks: BTreeMap<String, Talk> = BTreeMap::new();
    let Ok(mut source) = PcapSource::open(file) else { return talks };
    let mut take = |socket: SocketKey, kind: EventKind<'_>| {
        let talk = talks.entry(format!("{socket:?}")).or_default();
        match kind {
            EventKind::Open { direction, first_position, .. } => talk.streams[way(direction)].next = Some(first_position),
            EventKind::Data { direction, position, bytes, .. } => {
                talk.segments.push((direction, bytes.to_vec()));
                let stream = &mut talk.streams[way(direction)];
                if stream.next == Some(position) {
                    stream.bytes.extend_from_slice(bytes);
                    stream.next = Some(position.wrapping_add(u32::try_from(bytes.len()).unwrap_or(0)));
                }
            }
            EventKind::Close { .. } => {}
        }
    };
    while let Ok(true) = source.next_packet(&mut |event| take(event.socket, event.kind)) {}
    talks
}

fn way(direction: Direction) -> usize {
    match direction {
        Direction::Sent => 0,
        Direction::Received => 1,
    }
}

/// Requests, and the answers whose correlation id says to which of them they belong.
fn frames(talk: &Talk) -> Vec<Frame> {
    let [sent, received] = talk.streams.each_ref().map(|stream| split(&stream.bytes));
    let (requests, answers) = if sent.first().is_some_and(|frame| is_request(frame)) { (sent, received) } else { (received, sent) };
    let mut asked: BTreeMap<[u8; 4], (i16, i16)> = BTreeMap::new();
    let mut frames = Vec::new();
    for frame in requests {
        let Ok(header) = request_header(Payload::whole(frame)) else { continue };
        asked.insert(header.correlation_id.to_be_bytes(), (header.api_key, header.api_version));
        let (api_key, api_version) = (header.api_key, header.api_version);
        frames.push(Frame { api_key, api_version, is_request: true, bytes: frame.to_vec() });
    }
    for frame in answers {
        let Some(&(api_key, api_version)) = frame.first_chunk().and_then(|id| asked.get(id)) else { continue };
        frames.push(Frame { api_key, api_version, is_request: false, bytes: frame.to_vec() });
    }
    frames
}

fn is_request(frame: &[u8]) -> bool {
    plausible_request(i32::try_from(frame.len()).unwrap_or(i32::MAX), frame)
}

fn split(stream: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    let mut rest = stream;
    while let Some((size, behind)) = rest.split_first_chunk() {
        let Some((frame, behind)) = behind.split_at_checked(u32::from_be_bytes(*size) as usize) else { break };
        frames.push(frame);
        rest = behind;
    }
    frames
}

/// Direction, format and attributes.
fn shape((is_produce, field): &(bool, Vec<u8>)) -> (bool, u8, u8) {
    let at = |place: usize| field.get(place).copied().unwrap_or(0);
    let magic = at(16);
    (*is_produce, magic, if magic < 2 { at(17) } else { at(22) })
}

fn records(frame: &Frame) -> Vec<(bool, Vec<u8>)> {
    let payload = Payload::whole(&frame.bytes);
    let mut fields = Vec::new();
    let mut take = |records: Option<Payload<'_>>| {
        if let Some(records) = records.filter(|records| !records.bytes.is_empty()) {
            fields.push((frame.is_request, records.bytes.to_vec()));
        }
    };
    if frame.is_request {
        let Ok(header) = request_header(payload) else { return fields };
        if let Request::Produce(produce) = decode_request(&header, payload).value {
            produce.topic_data.iter().flat_map(|topic| &topic.partition_data).for_each(|partition| take(partition.records));
        }
        return fields;
    }
    match decode_response(frame.api_key, frame.api_version, payload).value {
        Response::Fetch(fetch) => {
            fetch.responses.iter().flat_map(|topic| &topic.partitions).for_each(|partition| take(partition.records));
        }
        Response::ShareFetch(fetch) => {
            fetch.responses.iter().flat_map(|topic| &topic.partitions).for_each(|partition| take(partition.records));
        }
        _ => {}
    }
    fields
}
