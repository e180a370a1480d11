//! A records field of any bytes, whole, cut or with a hole: what its items take is what there is, no more good records than
//! counted, contexts that are none, and no output beyond the cap.

use tracer_userspace::kafka::context::Propagators;
use tracer_userspace::kafka::records::{Item, Limits, Origin, Scratch, batches};
use tracer_userspace::kafka::wire::Payload;

use crate::seeds::Recorded;

const LIMITS: Limits = Limits { max_uncompressed_bytes: 64 << 10 };

pub(super) fn run(data: &[u8]) {
    let Some(([flags, cut, at, length], field)) = data.split_first_chunk().map(|(head, rest)| (*head, rest)) else { return };
    let mut field = field.to_vec();
    if flags & 16 == 0 {
        repair(&mut field);
    }
    let captured = field.get(..field.len().saturating_sub(usize::from(cut))).unwrap_or_default();
    let start = usize::from(at).min(field.len());
    let hole = start..(start + 1 + usize::from(length)).min(field.len().max(start + 1));
    let payload = match flags & 3 {
        0 => Payload::whole(&field),
        1 => Payload::new(captured, &[], field.len()),
        2 => Payload::new(&field, std::slice::from_ref(&hole), field.len()),
        _ => Payload::new(captured, std::slice::from_ref(&hole), field.len()),
    };
    let origin = if flags & 4 == 0 { Origin::Fetch } else { Origin::Produce };
    let propagators: Propagators = "tracecontext,b3,b3multi,jaeger,xray".parse().unwrap_or_default();
    let mut scratch = Scratch::default();
    let mut taken = 0;
    for item in batches(payload, origin) {
        match item {
            Item::PartialTail { bytes } => {
                assert_eq!(origin, Origin::Fetch);
                taken += bytes;
            }
            Item::Damaged { bytes, .. } => taken += bytes,
            Item::Batch(batch) => {
                taken += usize::try_from(batch.header().size_bytes).unwrap_or(usize::MAX);
                let _ = (batch.crc_ok(), batch.control_kind());
                let Ok(mut records) = batch.records(&mut scratch, LIMITS) else { continue };
                let header = records.header().clone();
                let mut good = 0;
                for record in records.by_ref() {
                    let Ok(record) = record else { continue };
                    good += 1;
                    assert!(record.timestamp_ms != Some(-1));
                    if let Some(context) = propagators.extract(&record.headers).context {
                        assert!(context.trace_id != [0; 16] && context.span_id != [0; 8]);
                    }
                }
                assert_eq!(records.walked(), good);
                assert!(i64::from(good) <= i64::from(header.record_count));
                if header.codec.name() != "none" {
                    assert!(records.uncompressed_bytes() <= LIMITS.max_uncompressed_bytes);
                }
            }
        }
    }
    assert_eq!(taken, field.len());
}

/// Makes the first batch's length right, so that damage further in is reached.
fn repair(field: &mut [u8]) {
    let Ok(length) = i32::try_from(field.len().saturating_sub(12)) else { return };
    if let Some(place) = field.get_mut(8..12) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Fields of records as they were recorded.
pub(super) fn seeds(recorded: &Recorded) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (is_produce, field) in &recorded.fields {
        let flags = 16 | if *is_produce { 4 } else { 0 };
        seeds.push([&[flags, 0, 0, 0][..], field].concat());
        seeds.push([&[flags | 1, 30, 0, 0][..], field].concat());
        seeds.push([&[flags | 2, 0, 70, 9][..], field].concat());
    }
    seeds
}
