//! "Could this be Kafka": what the kernel judges from the first bytes of a segment. Cheap, and right about every request that Kafka
//! allows; what it takes wrongly is dismissed by user space, which pairs requests with answers.

#![expect(clippy::inline_always, reason = "the programs are one function each: the verifier follows nothing else")]

use crate::limits::HEAD_BYTES;

/// Smallest request: api key, version, correlation id.
const MIN_SIZE: u32 = 8;

/// Largest request that brokers accept unless told otherwise (`socket.request.max.bytes`).
const MAX_SIZE: u32 = 100 << 20;

/// Highest api key of Apache Kafka 4.4.
const MAX_API_KEY: u32 = 94;

/// Beyond the highest version of any api.
const MAX_API_VERSION: u32 = 20;

/// Longest client id that is believed.
const MAX_CLIENT_ID_BYTES: u32 = 255;

/// Bytes of the head behind the size.
const HEAD_BEHIND_SIZE: u32 = HEAD_BYTES - 4;

/// Whether 14 bytes can be the start of a request: size, api key, version, correlation id (any), length of the client id.
///
/// `size` is bytes 0..4 as a number, `key_version` bytes 4..8, `client_id_length` bytes 12..14; `segment_bytes` counts from the head on.
#[inline(always)]
#[must_use]
pub const fn is_request(size: u32, key_version: u32, client_id_length: u16, segment_bytes: u32) -> bool {
    // Api key 0 in version 0 (Produce before Kafka 0.9) looks like an HTTP/2 frame without flags on a low stream. It has to be whole;
    // a client that old is also known by its other requests.
    if key_version == 0 && !(segment_bytes >= HEAD_BYTES && size == segment_bytes - 4) {
        return false;
    }
    if !is_request_size(size) || key_version >> 16 > MAX_API_KEY || key_version & 0xffff > MAX_API_VERSION {
        return false;
    }
    // A null client id has length -1.
    if client_id_length == u16::MAX {
        return size >= HEAD_BEHIND_SIZE;
    }
    client_id_length as u32 <= MAX_CLIENT_ID_BYTES && HEAD_BEHIND_SIZE + client_id_length as u32 <= size
}

/// Whether four bytes can be the size of a request.
#[inline(always)]
#[must_use]
pub const fn is_request_size(size: u32) -> bool {
    size >= MIN_SIZE && size <= MAX_SIZE
}

/// Whether a whole segment can be one answer: its size says just how long the segment is, and the correlation id is not negative
/// (which tells it from a Thrift call). As weak as it looks: used only on connections that are older than the tracer.
///
/// `size` is bytes 0..4 as a number, `correlation_id` bytes 4..8.
#[inline(always)]
#[must_use]
pub const fn is_answer(size: u32, correlation_id: u32, segment_bytes: u32) -> bool {
    segment_bytes >= HEAD_BYTES && size == segment_bytes - 4 && correlation_id >> 31 == 0
}

/// [`is_request`] of bytes as they are on the wire.
#[inline(always)]
#[must_use]
pub const fn is_request_head(head: &[u8; HEAD_BYTES as usize], segment_bytes: u32) -> bool {
    let [s0, s1, s2, s3, k0, k1, v0, v1, _, _, _, _, c0, c1] = *head;
    is_request(u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([k0, k1, v0, v1]), u16::from_be_bytes([c0, c1]), segment_bytes)
}

/// [`is_answer`] of bytes as they are on the wire.
#[inline(always)]
#[must_use]
pub const fn is_answer_head(head: &[u8; HEAD_BYTES as usize], segment_bytes: u32) -> bool {
    let [s0, s1, s2, s3, c0, c1, c2, c3, ..] = *head;
    is_answer(u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([c0, c1, c2, c3]), segment_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first 14 bytes, filled up as a longer segment would be.
    fn head(start: &[u8]) -> [u8; 14] {
        let mut head = [b'x'; 14];
        let taken = start.len().min(14);
        head[..taken].copy_from_slice(&start[..taken]);
        head
    }

    #[test]
    fn kafka_requests_are_candidates() {
        for (name, request) in [
            ("ApiVersions 4, client id of 8", &b"\0\0\0\x24\0\x12\0\x04\0\0\0\0\0\x08producer"[..]),
            ("Produce 13, a megabyte", b"\0\x10\0\x40\0\0\0\x0d\0\0\0\x07\0\x0aproducer-1"),
            ("Fetch 4, null client id", b"\0\0\0\x40\0\x01\0\x04\x7f\xff\xff\xff\xff\xff"),
            ("Metadata 0, empty client id", b"\0\0\0\x0e\0\x03\0\0\0\0\0\x01\0\0"),
            ("correlation id below zero", b"\0\0\0\x20\0\x12\0\x03\xff\xff\xff\xfe\0\x04test"),
            ("client id of 255", b"\0\0\x02\0\0\x12\0\x03\0\0\0\x01\0\xff"),
            ("the largest request", b"\x06\x40\0\0\0\0\0\x09\0\0\0\x01\0\x04test"),
            ("SaslHandshake", b"\0\0\0\x1b\0\x11\0\x01\0\0\0\x02\0\x04test"),
            ("ShareGroupHeartbeat", b"\0\0\0\x30\0\x4c\0\x01\0\0\0\x02\0\x04test"),
        ] {
            assert!(is_request_head(&head(request), 60), "{name}");
        }
    }

    #[test]
    fn other_protocols_are_never_candidates() {
        for (name, start) in [
            ("HTTP/1 request", &b"GET / HTTP/1.1\r\n"[..]),
            ("HTTP/1 answer", b"HTTP/1.1 200 OK\r\n"),
            ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ("HTTP/2 settings frame", b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64"),
            ("HTTP/2 headers frame", b"\0\0\x2a\x01\x04\0\0\0\x01\x83\x86\x44\x95\x62"),
            ("HTTP/2 data frame", b"\0\0\x0c\0\0\0\0\0\x01\0\0\0\0\x07"),
            ("HTTP/2 window update", b"\0\0\x04\x08\0\0\0\0\0\0\x0e\xff\x01\0\0"),
            ("TLS client hello", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\x11\x22\x33"),
            ("TLS data", b"\x17\x03\x03\0\x45\x8a\x01\x02\x03\x04\x05\x06\x07\x08"),
            ("Redis command", b"*3\r\n$3\r\nSET\r\n$3"),
            ("Redis answer", b"+OK\r\n$-1\r\n:1000\r\n"),
            ("Postgres startup", b"\0\0\0\x54\0\x03\0\0user\0postgres"),
            ("Postgres TLS request", b"\0\0\0\x08\x04\xd2\x16\x2f"),
            ("Postgres query", b"Q\0\0\0\x0dselect 1;\0"),
            ("Postgres row", b"D\0\0\0\x0b\0\x01\0\0\0\x011C\0"),
            ("MySQL greeting", b"\x4a\0\0\0\x0a8.0.36\0\x0b\0\0"),
            ("MySQL query", b"\x21\0\0\0\x03select @@version"),
            ("Thrift framed call", b"\0\0\0\x1d\x80\x01\0\x01\0\0\0\x04ping\0\0\0\x01"),
            ("Thrift unframed call", b"\x80\x01\0\x01\0\0\0\x04ping\0\0\0\x01\0"),
            ("Cassandra options", b"\x04\0\0\0\x05\0\0\0\0\x04\0\0\0\x01"),
            ("AMQP 0-9-1", b"AMQP\0\0\x09\x01\x01\0\0\0\0\0"),
            ("MongoDB message", b"\x3d\0\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0"),
            ("NATS", b"CONNECT {\"verbose\":false}"),
            ("SSH", b"SSH-2.0-OpenSSH_9.7\r\n"),
            ("SSH packet", b"\0\0\x05\xdc\x07\x14\x11\x22\x33\x44\x55\x66\x77\x88"),
            ("Hadoop", b"hrpc\x09\0\0\0\0\0\x1e\x10\x08\x02"),
            ("DNS over TCP", b"\0\x1d\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example"),
            ("zeros", &[0; 14]),
            ("ones", &[0xff; 14]),
            ("text", b"hello, kafka!\r\n"),
        ] {
            for segment_bytes in [start.len(), 14, 100, 1448, 16_384, 65_483] {
                assert!(!is_request_head(&head(start), u32::try_from(segment_bytes).unwrap()), "{name} in a segment of {segment_bytes}");
            }
        }
    }

    #[test]
    fn zookeeper_is_a_candidate_that_user_space_has_to_dismiss() {
        assert!(is_request_head(b"\0\0\0\x2d\0\0\0\0\0\0\0\0\0\0", 49));
    }

    #[test]
    fn a_produce_of_version_0_has_to_be_whole() {
        let produce = b"\0\0\0\x40\0\0\0\0\0\0\0\x01\0\x04test";
        assert!(is_request_head(&head(produce), 68));
        assert!(!is_request_head(&head(produce), 67));
    }

    #[test]
    fn a_client_id_that_reaches_beyond_the_request_is_refused() {
        assert!(is_request_head(b"\0\0\0\x0e\0\x12\0\x03\0\0\0\x01\0\x04", 60));
        assert!(!is_request_head(b"\0\0\0\x0e\0\x12\0\x03\0\0\0\x01\0\x05", 60));
        assert!(!is_request_head(b"\0\0\x02\0\0\x12\0\x03\0\0\0\x01\x01\0", 60), "256 bytes are too long");
        assert!(!is_request_head(b"\x06\x40\0\x01\0\0\0\x09\0\0\0\x01\0\x04", 60), "beyond 100 MiB");
        assert!(!is_request_head(b"\0\0\0\x20\0\x5f\0\0\0\0\0\x01\0\x04", 60), "api key 95");
        assert!(!is_request_head(b"\0\0\0\x20\0\x12\0\x15\0\0\0\x01\0\x04", 60), "version 21");
    }

    #[test]
    fn a_segment_that_is_one_answer_is_told_by_its_size() {
        let answer = b"\0\0\0\x16\0\0\0\x07abcdefgh";
        assert!(is_answer_head(&head(answer), 26));
        assert!(!is_answer_head(&head(answer), 25));
        assert!(!is_answer_head(&head(b"\0\0\0\x1d\x80\x01\0\x01\0\0\0\x04ping"), 33), "a Thrift call");
        assert!(!is_answer_head(&head(b"\0\0\0\x54\0\x03\0\0user\0postgres"), 84), "Postgres counts the size itself");
        assert!(!is_answer_head(&head(b"\0\0\0\x06\0\0\0\x01ab"), 10), "too short to tell");
    }

    /// Random bytes pass by chance about once in 2^20 heads; this fixed sequence holds none that does.
    #[test]
    fn random_bytes_are_hardly_ever_candidates() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut byte = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        let taken = (0..150_000).filter(|_| is_request_head(&core::array::from_fn(|_| byte()), 1448)).count();
        assert_eq!(taken, 0);
    }
}
