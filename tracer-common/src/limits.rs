//! Limits that both sides obey.

/// Bytes of a Kafka request that the kernel judges: size, api key, version, correlation id, length of the client id.
pub const HEAD_BYTES: u32 = 14;

/// Bits of [`BLOCK_BYTES`].
pub const BLOCK_SHIFT: u32 = 14;

/// Bytes of one event of a long segment's body.
pub const BLOCK_BYTES: u32 = 1 << BLOCK_SHIFT;

/// Most blocks that one segment is cut into: 512 KiB, the longest packet there is (BIG TCP, 512 KiB since Linux 5.19).
pub const MAX_BLOCKS: u32 = 32;

/// Most blocks of a segment that comes before its connection can be judged: 128 KiB, the longest packet of loopback. The copying loop is
/// there twice, and this keeps the second cheap for the verifier.
pub const EARLY_BLOCKS: u32 = 8;

/// Room that the rest of a segment gets in the ring: the smallest class that holds it.
pub const TAIL_CLASSES: [u32; 4] = [256, 1024, 4096, BLOCK_BYTES];

/// Segments with payload that are judged in one direction of a socket before the kernel stops looking, unless configured otherwise.
pub const DEFAULT_JUDGED_SEGMENTS: u32 = 48;

/// Ports that can be forced or excluded.
pub const MAX_PORT_RULES: u32 = 1024;

/// Verdicts that wait for their socket.
pub const MAX_VERDICTS: u32 = 65_536;

/// Size of the ring, unless configured otherwise.
pub const DEFAULT_RING_BYTES: u32 = 32 << 20;

/// Blocks that one program copies of a call into a TLS library: 64 KiB. What is longer is copied by programs that follow.
pub const CALL_BLOCKS: u32 = 4;

/// Blocks that each of those copies.
pub const WALK_BLOCKS: u32 = 16;

/// Programs that can follow one another (`MAX_TAIL_CALL_CNT` of the oldest kernels is 32): 8 MiB of one call.
pub const MAX_WALKS: u32 = 31;

/// Pieces of a call into a TLS library that are looked at for a request's head.
pub const HEAD_PIECES: u32 = 8;

/// TLS sessions that are known at once; the one that was used longest ago is forgotten.
pub const MAX_SESSIONS: u32 = 16_384;

/// Calls into TLS libraries that have not returned.
pub const MAX_CALLS: u32 = 8_192;

/// Processes that have sessions whose objects do not say their sockets.
pub const MAX_WATCHED: u32 = 4_096;

/// How often threads have to read and write a socket together with a session before it is taken for the session's.
pub const WITNESSES: u32 = 3;

/// Likewise, in a process that has more than one socket on a port that is known for Kafka.
pub const WITNESSES_OF_SEVERAL: u32 = 4;

/// Likewise, in a process whose threads were seen to move bytes for one another.
pub const WITNESSES_IF_MIXED: u32 = 64;

/// How often that may fail before the session is given up.
pub const MAX_CONFLICTS: u32 = 4;

/// Calls of a TLS session on a port that is not known for Kafka that are judged before the kernel stops looking.
pub const MAX_JUDGED_CALLS: u32 = 16;

/// Room of the ring that the rest of a segment, `rest` bytes of less than a block, takes. A whole block's for anything longer.
#[must_use]
pub const fn tail_class(rest: u32) -> u32 {
    if rest <= 256 {
        256
    } else if rest <= 1024 {
        1024
    } else if rest <= 4096 {
        4096
    } else {
        BLOCK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rest_gets_the_smallest_class_that_holds_it() {
        for rest in 1..=BLOCK_BYTES {
            let class = tail_class(rest);
            assert!(TAIL_CLASSES.contains(&class) && class >= rest, "{rest} in {class}");
            assert!(TAIL_CLASSES.iter().all(|&other| other >= class || other < rest), "{rest} in {class}");
        }
    }
}
