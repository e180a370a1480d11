//! Any bytes through each codec, twice through the same decompressor: the same answer, within the cap.

use tracer_userspace::kafka::compression::Decompressor;
use tracer_userspace::kafka::records::{Item, Origin, batches};
use tracer_userspace::kafka::wire::Payload;
use tracer_userspace::observe::Codec;

use crate::seeds::Recorded;

const CAP_BYTES: usize = 128 << 10;

pub(super) fn run(data: &[u8]) {
    let Some((&codec, compressed)) = data.split_first() else { return };
    let codec = match codec % 5 {
        0 => Codec::Gzip,
        1 => Codec::Snappy,
        2 => Codec::Lz4,
        3 => Codec::Zstd,
        _ => Codec::Unknown(codec),
    };
    let mut decompressor = Decompressor::default();
    let first = decompressor.decompress(codec, compressed, CAP_BYTES).map(<[u8]>::to_vec);
    if let Ok(plain) = &first {
        assert!(plain.len() <= CAP_BYTES);
    }
    let second = decompressor.decompress(codec, compressed, CAP_BYTES).map(<[u8]>::to_vec);
    assert_eq!(first, second);
}

/// The compressed batches among the recorded ones.
pub(super) fn seeds(recorded: &Recorded) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (is_produce, field) in &recorded.fields {
        let origin = if *is_produce { Origin::Produce } else { Origin::Fetch };
        for item in batches(Payload::whole(field), origin) {
            let Item::Batch(batch) = item else { continue };
            let codec = match batch.header().codec {
                Codec::Gzip => 0,
                Codec::Snappy => 1,
                Codec::Lz4 => 2,
                Codec::Zstd => 3,
                Codec::None | Codec::Unknown(_) => continue,
            };
            if batch.header().magic == 2 {
                let body = field.len().saturating_sub(batch.body_bytes());
                seeds.push([&[codec][..], &field[body..]].concat());
            }
        }
    }
    seeds
}
