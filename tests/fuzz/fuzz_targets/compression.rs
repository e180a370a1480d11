//! Any bytes through each codec, twice through the same decompressor: the same answer, within the cap.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer_userspace::kafka::compression::Decompressor;
use tracer_userspace::observe::Codec;

const CAP_BYTES: usize = 128 << 10;

fuzz_target!(|data: &[u8]| {
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
});
