//! Headers of requests and answers. What version they have is not in their bytes: the table `versions` knows.

#![forbid(unsafe_code)]

use crate::kafka::versions::{self, ApiVersions};
use crate::kafka::wire::{DecodeError, LengthKind, Payload, Reader};

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader<'a> {
    /// Kafka's number of the API.
    pub api_key: i16,
    /// Version of the request.
    pub api_version: i16,
    /// What the answer will carry again; any number, also negative and repeated ones.
    pub correlation_id: i32,
    /// The client's id; `None` for null, which is not the empty one.
    pub client_id: Option<&'a str>,
    /// Position of the body in the frame.
    pub body_start: usize,
}

/// Reads the header of the request in `payload` (its frame after the size). Of an API that nobody knows, header version 1
/// is assumed.
pub fn request_header(payload: Payload<'_>) -> Result<RequestHeader<'_>, DecodeError> {
    let mut reader = Reader::new(payload);
    reader.field("request_api_key");
    let api_key = reader.i16()?;
    reader.field("request_api_version");
    let api_version = reader.i16()?;
    reader.field("correlation_id");
    let correlation_id = reader.i32()?;
    let header_version = versions::lookup(api_key).map_or(1, |row| row.request_header_version(api_version));
    reader.field("client_id");
    // Always with a 16-bit length, also in flexible headers: a broker must find it whatever the version.
    let client_id = if header_version >= 1 { reader.text(LengthKind::Int16)? } else { None };
    if header_version >= 2 {
        reader.tagged_fields(|_, _| Ok(false))?;
    }
    Ok(RequestHeader { api_key, api_version, correlation_id, client_id, body_start: reader.position() })
}

/// The correlation id of the answer in `payload` (its frame after the size).
pub fn correlation_id(payload: Payload<'_>) -> Result<i32, DecodeError> {
    let mut reader = Reader::new(payload);
    reader.field("correlation_id");
    reader.i32()
}

/// Passes over the header of an answer to a request of `api_version`.
pub(super) fn skip_response_header(reader: &mut Reader<'_>, row: &ApiVersions, api_version: i16) -> Result<(), DecodeError> {
    reader.field("correlation_id");
    reader.i32()?;
    if row.response_header_version(api_version) >= 1 {
        reader.tagged_fields(|_, _| Ok(false))?;
    }
    Ok(())
}

/// The longest frame that is believed while looking for frames: brokers refuse more than 100 MiB unless told otherwise.
const MAX_PLAUSIBLE_BYTES: i32 = 256 << 20;
/// How far above the newest known version a version is still believed.
const NEWER_VERSIONS: i16 = 2;
/// `ApiVersions` is sent in the client's newest version before anything is known of the broker.
const NEWER_API_VERSIONS: i16 = 127;
/// The longest client id that is believed.
const MAX_CLIENT_ID_BYTES: usize = 255;
/// The most tagged fields that are believed in a header; Kafka has none so far.
const MAX_TAGGED_FIELDS: u8 = 8;

/// Whether a frame of `size` bytes that begins with `first_bytes` (after the size) can be a request: a known API, a
/// version in or slightly above its range, a printable client id that fits. At least 8 bytes have to be there, 10 to see the
/// client id's length; what is not there is not judged.
pub fn plausible_request(size: i32, first_bytes: &[u8]) -> bool {
    judge(size, first_bytes).unwrap_or(false)
}

fn judge(size: i32, first_bytes: &[u8]) -> Option<bool> {
    if !(8..=MAX_PLAUSIBLE_BYTES).contains(&size) {
        return Some(false);
    }
    let size = usize::try_from(size).ok()?;
    let first_bytes = first_bytes.get(..size).unwrap_or(first_bytes);
    let (&[key_high, key_low, version_high, version_low, _, _, _, _], rest) = first_bytes.split_first_chunk::<8>()?;
    let api_version = i16::from_be_bytes([version_high, version_low]);
    let row = versions::lookup(i16::from_be_bytes([key_high, key_low]))?;
    let newer = if row.api_key == versions::API_VERSIONS { NEWER_API_VERSIONS } else { NEWER_VERSIONS };
    if api_version < 0 || api_version > row.versions.end().saturating_add(newer) {
        return Some(false);
    }
    let header_version = row.request_header_version(api_version);
    if header_version == 0 {
        return Some(true);
    }
    let tagged_bytes = usize::from(header_version >= 2);
    let room = size.checked_sub(10 + tagged_bytes);
    let Some(room) = room else { return Some(false) };
    let Some((&length, rest)) = rest.split_first_chunk::<2>() else { return Some(true) };
    let length = match i16::from_be_bytes(length) {
        -1 => 0,
        length => usize::try_from(length).ok()?,
    };
    if length > MAX_CLIENT_ID_BYTES || length > room {
        return Some(false);
    }
    let (client_id, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
    if !is_printable(client_id, client_id.len() < length) {
        return Some(false);
    }
    Some(tagged_bytes == 0 || behind.first().is_none_or(|&count| count <= MAX_TAGGED_FIELDS))
}

/// UTF-8 without control characters; a character that `is_cut` left unfinished at the end is let pass.
fn is_printable(bytes: &[u8], is_cut: bool) -> bool {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if is_cut && error.error_len().is_none() => {
            let Some(Ok(text)) = bytes.get(..error.valid_up_to()).map(std::str::from_utf8) else { return false };
            text
        }
        Err(_) => return false,
    };
    !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::wire::DamageKind;

    fn frame(api_key: i16, api_version: i16, client_id: Option<&[u8]>, rest: &[u8]) -> Vec<u8> {
        let mut frame = [api_key.to_be_bytes(), api_version.to_be_bytes()].concat();
        frame.extend((-7_i32).to_be_bytes());
        frame.extend(client_id.map_or(-1, |id| i16::try_from(id.len()).unwrap()).to_be_bytes());
        frame.extend(client_id.unwrap_or_default());
        frame.extend(rest);
        frame
    }

    /// DataDog/datadog-agent defs.h: a null client id is none, and not the empty one.
    #[test]
    fn headers_are_read_in_every_version_they_have() {
        for (bytes, client_id, body_start) in [
            (frame(18, 0, None, &[]), None, 10),
            (frame(18, 2, Some(b""), &[]), Some(""), 10),
            (frame(3, 8, Some(b"adm\xc3\xadn"), &[1]), Some("admín"), 16),
            (frame(3, 12, Some(b"a"), &[0, 1]), Some("a"), 12),
            (frame(3, 12, Some(b"a"), &[1, 200, 1, 2, 7, 7, 1]), Some("a"), 17),
            (frame(7, 1, Some(b"a"), &[]), Some("a"), 11),
            (frame(5_000, 1, Some(b"a"), &[]), Some("a"), 11),
        ] {
            let header = request_header(Payload::whole(&bytes)).unwrap();
            assert_eq!((header.client_id, header.body_start, header.correlation_id), (client_id, body_start, -7), "{bytes:?}");
            assert_eq!(Some(header.api_key), bytes.first_chunk().map(|key| i16::from_be_bytes(*key)));
        }
        let controlled_shutdown = [0, 7, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1];
        let header = request_header(Payload::whole(&controlled_shutdown)).unwrap();
        assert_eq!((header.client_id, header.body_start, header.correlation_id), (None, 8, 9), "version 0 has no client id");
    }

    #[test]
    fn a_header_that_is_not_all_there_says_why() {
        let bytes = frame(3, 12, Some(b"client"), &[0]);
        for end in 0..bytes.len() {
            let error = request_header(Payload::new(&bytes[..end], &[], bytes.len())).unwrap_err();
            assert_eq!(error.kind(), DamageKind::Truncated, "{end}");
            let error = request_header(Payload::whole(&bytes[..end])).unwrap_err();
            assert_eq!(error.kind(), DamageKind::Malformed, "{end}");
        }
        for start in 0..bytes.len() {
            let hole = start..start + 1;
            let error = request_header(Payload::new(&bytes, std::slice::from_ref(&hole), bytes.len())).unwrap_err();
            assert_eq!(error.kind(), DamageKind::Hole, "{start}");
        }
        let error = request_header(Payload::whole(&bytes[..12])).unwrap_err();
        assert_eq!(error.to_string(), "`client_id` at byte 10 needs 6 bytes, 2 are left");
    }

    /// deepflowio/deepflow#520, coroot/coroot-node-agent#329, twmb/franz-go#1224: what is not Kafka is not taken for it.
    #[test]
    fn only_what_can_be_a_request_is_taken_for_one() {
        let plausible = |bytes: &[u8]| plausible_request(i32::try_from(bytes.len()).unwrap(), bytes);
        for good in [
            frame(18, 3, Some(b"rdkafka"), &[0, 1, 1, 0]),
            frame(18, 4, None, &[0, 1, 1, 0]),
            frame(18, 99, Some(b"x"), &[0]),
            frame(0, 9, Some("späti".as_bytes()), &[0, 0, 0, 1]),
            frame(0, 15, Some(b"two versions above"), &[0]),
            frame(1, 4, Some(&[b'a'; 255]), &[1, 2, 3]),
            frame(7, 0, None, &[]),
        ] {
            assert!(plausible(&good), "{good:?}");
            let size = i32::try_from(good.len()).unwrap();
            for seen in 8..good.len() {
                assert!(plausible_request(size, &good[..seen]), "{good:?} as far as byte {seen}");
            }
            assert!(!plausible_request(size, &good[..7]), "too few bytes to say");
        }
        for bad in [
            frame(95, 0, Some(b"a"), &[]),
            frame(-1, 0, Some(b"a"), &[]),
            frame(24_706, 0, Some(b"a"), &[]),
            frame(0, 16, Some(b"a"), &[0]),
            frame(0, -1, Some(b"a"), &[]),
            frame(18, 133, Some(b"a"), &[0]),
            frame(3, 8, Some(b"a\0b"), &[]),
            frame(3, 8, Some(b"a\nb"), &[]),
            frame(3, 8, Some(&[0xff, 0xfe]), &[]),
            frame(3, 8, Some(&[b'a'; 256]), &[]),
            frame(3, 12, Some(b"a"), &[99]),
            frame(3, 12, Some(b"a"), &[]),
            b"GET / HTTP/1.1\r\nHost: kafka".to_vec(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        ] {
            assert!(!plausible(&bad), "{bad:?}");
        }
        let mut too_long = frame(3, 8, Some(b"abc"), &[]);
        too_long[9] = 9;
        assert!(!plausible(&too_long), "a client id that does not fit");
        too_long[8..10].copy_from_slice(&(-2_i16).to_be_bytes());
        assert!(!plausible(&too_long), "a client id of length -2");
        let good = frame(18, 0, None, &[]);
        for size in [-1, 0, 7, 9, i32::MAX, i32::MIN, (256 << 20) + 1] {
            assert!(!plausible_request(size, &good), "{size}");
        }
        assert!(plausible_request(256 << 20, &good));
    }
}
