//! What the benchmarks of the line are fed with.

use std::io::Write as _;

/// Zigzag, as records have it.
pub(crate) fn varint(out: &mut Vec<u8>, value: usize) {
    let mut zigzag = value * 2;
    while zigzag >= 0x80 {
        out.push(u8::try_from(zigzag & 0x7f).unwrap() | 0x80);
        zigzag >>= 7;
    }
    out.push(u8::try_from(zigzag).unwrap());
}

/// The next number (xorshift).
pub(crate) fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// An order with as many items as fit before `end`.
pub(crate) fn order(out: &mut Vec<u8>, end: usize, random: &mut u64) {
    const STATES: [&str; 4] = ["CREATED", "PAID", "SHIPPED", "DELIVERED"];
    const NAMES: [&str; 8] = ["Anna", "Olga", "Wei", "Maria", "John", "Aisha", "Lars", "Kenji"];
    const CITIES: [&str; 8] = ["Berlin", "Paris", "Madrid", "London", "Vienna", "Prague", "Warsaw", "Lisbon"];
    fn one_of(names: &[&'static str], number: u64) -> &'static str {
        names.get(usize::try_from(number).unwrap() % names.len()).unwrap()
    }
    let mut below = |bound: u64| (next(random) >> 20) % bound;
    let (id, state, day, hour, second) = (below(1 << 40), below(4), below(28) + 1, below(24), below(3_600));
    let state = one_of(&STATES, state);
    write!(out, r#"{{"orderId":"{id:011x}","status":"{state}","at":"2026-11-{day:02}T{hour:02}:{:02}:{:02}Z""#, second / 60, second % 60)
        .unwrap();
    if end > out.len() + 100 {
        let (id, name, city) = (below(1_000_000), below(8), below(8));
        let (name, city) = (one_of(&NAMES, name), one_of(&CITIES, city));
        write!(out, r#","customer":{{"id":{id},"name":"{name}","city":"{city}"}},"items":["#).unwrap();
    }
    while end > out.len() + 70 {
        let (sku, quantity, euros, cents) = (below(20_000), below(9) + 1, below(500), below(100));
        write!(out, r#"{{"sku":"SKU-{sku:05}","quantity":{quantity},"unitPrice":{euros}.{cents:02}}},"#).unwrap();
    }
    out.resize(end, b' ');
}

/// What a codec makes of the records of a batch; the number is Kafka's.
pub(crate) fn compressed(codec: u8, plain: &[u8]) -> Vec<u8> {
    match codec {
        0 => plain.to_vec(),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        2 => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
        3 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        _ => {
            let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
            zstd_safe::compress(&mut out, plain, 3).unwrap();
            out
        }
    }
}
