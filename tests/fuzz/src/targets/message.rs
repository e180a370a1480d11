//! A frame of any bytes as request and as answer of any API and version, cut and with a hole: it is decoded or damage is told,
//! and what is read of a frame that was cut is the beginning of what is read of the whole.

use tracer_userspace::kafka::api::{Decoded, Request, Response, decode_request, decode_response, plausible_request, request_header};
use tracer_userspace::kafka::wire::{DamageKind, Payload};

use crate::seeds::Recorded;

pub(super) fn run(data: &[u8]) {
    let Some(([flags, cut, at, length, key, version], frame)) = data.split_first_chunk().map(|(head, rest)| (*head, rest)) else { return };
    let captured = frame.get(..frame.len().saturating_sub(usize::from(cut))).unwrap_or_default();
    let start = usize::from(at).min(frame.len());
    let hole = start..(start + 1 + usize::from(length)).min(frame.len().max(start + 1));
    let payload = match flags & 3 {
        0 => Payload::whole(frame),
        1 => Payload::new(captured, &[], frame.len()),
        2 => Payload::new(frame, std::slice::from_ref(&hole), frame.len()),
        _ => Payload::new(captured, std::slice::from_ref(&hole), frame.len()),
    };
    if flags & 4 == 0 {
        plausible_request(i32::try_from(frame.len()).unwrap_or(i32::MAX), frame);
        let Ok(header) = request_header(payload) else { return };
        assert!(header.body_start <= frame.len());
        let decoded = decode_request(&header, payload);
        judge(&decoded, decoded.value == Request::Other, payload);
    } else {
        let decoded = decode_response(i16::from(key), i16::from(version & 0x1f), payload);
        let _ = (decoded.value.throttle_time_ms(), decoded.value.error_code());
        judge(&decoded, decoded.value == Response::Other, payload);
    }
}

fn judge<T>(decoded: &Decoded<T>, is_other: bool, payload: Payload<'_>) {
    let Some(damage) = decoded.damage else { return };
    assert!(!damage.to_string().is_empty());
    match damage.kind() {
        DamageKind::Truncated => assert!(payload.bytes.len() < payload.declared_bytes),
        DamageKind::Hole => assert!(!payload.holes.is_empty()),
        DamageKind::UnknownVersion => assert!(is_other),
        DamageKind::Malformed => {}
    }
}

/// Frames as they were recorded, whole and cut in some places; `tests` has every cut.
pub(super) fn seeds(recorded: &Recorded) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for frame in &recorded.frames {
        let (Ok(key), Ok(version)) = (u8::try_from(frame.api_key), u8::try_from(frame.api_version)) else { continue };
        let flags = if frame.is_request { 0 } else { 4 };
        for part in [frame.bytes.len(), frame.bytes.len() / 2, frame.bytes.len() * 7 / 8] {
            seeds.push([&[flags, 0, 0, 0, key, version][..], &frame.bytes[..part]].concat());
        }
        seeds.push([&[flags | 2, 0, u8::try_from(frame.bytes.len() / 2).unwrap_or(u8::MAX), 3, key, version][..], &frame.bytes].concat());
    }
    seeds
}
