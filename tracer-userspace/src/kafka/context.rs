//! Trace contexts that records carry in their headers.
//!
//! In: the headers of a record and the propagators to look for. Out: the one context that counts, and what was wrong with
//! the others. Header names match without case, the last header of a name wins, a malformed value is no context.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::records::Headers;

/// How a context was written into the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Propagator {
    /// W3C `traceparent`.
    TraceContext,
    /// `b3`, one header.
    B3,
    /// `x-b3-traceid` and its kin.
    B3Multi,
    /// `uber-trace-id`.
    Jaeger,
    /// `x-amzn-trace-id`.
    XRay,
}

/// A valid context that a record carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CarriedContext {
    /// Trace id, 64-bit ids padded on the left; never all zero.
    pub trace_id: [u8; 16],
    /// Span id; never all zero.
    pub span_id: [u8; 8],
    /// The trace flags as written (tracecontext), else 1 when sampled and 0 when not.
    pub flags: u8,
    /// Who wrote it.
    pub propagator: Propagator,
    /// `tracestate`, as far as it is valid; only of tracecontext.
    pub tracestate: Option<std::sync::Arc<str>>,
}

impl CarriedContext {
    /// The sampled flag.
    pub const fn sampled(&self) -> bool {
        self.flags & 1 == 1
    }
}

impl Propagator {
    /// Its name in `OTEL_PROPAGATORS` and in the record listing.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TraceContext => "tracecontext",
            Self::B3 => "b3",
            Self::B3Multi => "b3multi",
            Self::Jaeger => "jaeger",
            Self::XRay => "xray",
        }
    }
}

/// Which contexts are looked for, and which one wins when a record carries several: the first in the list that is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Propagators {
    order: Vec<Propagator>,
}

impl Default for Propagators {
    /// OpenTelemetry's default, `tracecontext,baggage`.
    fn default() -> Self {
        Self { order: vec![Propagator::TraceContext] }
    }
}

/// A name in `OTEL_PROPAGATORS` that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("propagator {name:?} is not known; known are tracecontext, baggage, b3, b3multi, jaeger, xray and none")]
pub struct UnknownPropagator {
    /// What was written.
    pub name: String,
}

impl std::str::FromStr for Propagators {
    type Err = UnknownPropagator;

    /// Reads the syntax of `OTEL_PROPAGATORS`: names with commas between them. `baggage` carries no trace context and is passed
    /// over, repeated names count once, `none` and the empty text look for nothing.
    fn from_str(text: &str) -> Result<Self, UnknownPropagator> {
        let mut order = Vec::new();
        for name in text.split(',').map(str::trim) {
            let propagator = match name {
                "" | "none" | "baggage" => continue,
                "tracecontext" => Propagator::TraceContext,
                "b3" => Propagator::B3,
                "b3multi" => Propagator::B3Multi,
                "jaeger" => Propagator::Jaeger,
                "xray" => Propagator::XRay,
                _ => return Err(UnknownPropagator { name: name.to_owned() }),
            };
            if !order.contains(&propagator) {
                order.push(propagator);
            }
        }
        Ok(Self { order })
    }
}

/// What a record's headers say about its trace context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// The context that counts.
    pub context: Option<CarriedContext>,
    /// A header of a propagator in the list held a value that is no context.
    pub malformed: bool,
    /// A header that carries contexts was there more than once; the last one counted.
    pub repeated: bool,
    /// The headers could not be read to their end; what they seem to say is not believed.
    pub damaged: bool,
}

/// The headers that carry contexts.
#[derive(Clone, Copy)]
enum Slot {
    TraceParent,
    TraceState,
    B3,
    B3TraceId,
    B3SpanId,
    B3Sampled,
    B3Flags,
    Uber,
    XRay,
}

const SLOTS: usize = 9;

impl Slot {
    /// By length first: nearly every other header's name has another one.
    #[inline]
    fn of(name: &[u8]) -> Option<Self> {
        let (expected, slot): (&[u8], _) = match name.len() {
            2 => (b"b3", Self::B3),
            10 if name.first().is_some_and(|first| first.eq_ignore_ascii_case(&b't')) => (b"tracestate", Self::TraceState),
            10 => (b"x-b3-flags", Self::B3Flags),
            11 if name.first().is_some_and(|first| first.eq_ignore_ascii_case(&b't')) => (b"traceparent", Self::TraceParent),
            11 => (b"x-b3-spanid", Self::B3SpanId),
            12 if name.get(5).is_some_and(|letter| letter.eq_ignore_ascii_case(&b't')) => (b"x-b3-traceid", Self::B3TraceId),
            12 => (b"x-b3-sampled", Self::B3Sampled),
            13 => (b"uber-trace-id", Self::Uber),
            15 => (b"x-amzn-trace-id", Self::XRay),
            _ => return None,
        };
        name.eq_ignore_ascii_case(expected).then_some(slot)
    }
}

/// The last value of each header; an empty or null one stands for none.
#[derive(Default)]
struct Found<'r> {
    values: [&'r [u8]; SLOTS],
}

impl<'r> Found<'r> {
    fn get(&self, slot: Slot) -> Option<&'r [u8]> {
        self.values.get(slot as usize).copied().filter(|value| !value.is_empty())
    }
}

/// A header that was there, and what it says.
enum Parsed {
    Absent,
    Malformed,
    Context(CarriedContext),
}

impl Propagators {
    /// The list, in order.
    pub fn order(&self) -> &[Propagator] {
        &self.order
    }

    /// Looks for a context in a record's headers. Allocates only for a `tracestate`.
    pub fn extract(&self, headers: &Headers<'_>) -> Extracted {
        let mut extracted = Extracted::default();
        if headers.is_empty() || self.order.is_empty() {
            return extracted;
        }
        let mut found = Found::default();
        let (mut seen, mut any) = ([false; SLOTS], false);
        for header in headers {
            let Ok(header) = header else { return Extracted { damaged: true, ..Extracted::default() } };
            let Some(slot) = Slot::of(header.name) else { continue };
            let index = slot as usize;
            if let (Some(value), Some(seen)) = (found.values.get_mut(index), seen.get_mut(index)) {
                extracted.repeated |= *seen;
                *seen = true;
                any = true;
                *value = header.value.unwrap_or_default();
            }
        }
        if !any {
            return extracted;
        }
        for &propagator in &self.order {
            match found.parse(propagator) {
                Parsed::Malformed => extracted.malformed = true,
                Parsed::Context(context) if extracted.context.is_none() => extracted.context = Some(context),
                Parsed::Absent | Parsed::Context(_) => {}
            }
        }
        extracted
    }
}

impl Found<'_> {
    fn parse(&self, propagator: Propagator) -> Parsed {
        match propagator {
            Propagator::TraceContext => self.trace_context(),
            // OpenTelemetry's B3 propagator reads both forms under either name, the single header first.
            Propagator::B3 | Propagator::B3Multi => match self.b3() {
                Parsed::Context(context) => Parsed::Context(context),
                single => match (single, self.b3_multi()) {
                    (Parsed::Malformed, Parsed::Absent) => Parsed::Malformed,
                    (_, multi) => multi,
                },
            },
            Propagator::Jaeger => self.jaeger(),
            Propagator::XRay => self.xray(),
        }
    }

    /// `version-traceid-spanid-flags`, lower-case hex; versions above 00 may have more behind another dash. `ff` is no version.
    fn trace_context(&self) -> Parsed {
        let Some(value) = self.get(Slot::TraceParent) else { return Parsed::Absent };
        let context = || {
            let (fixed, rest) = value.split_first_chunk::<55>()?;
            let [version] = hex(&fixed[..2])?;
            let trace_id = hex(&fixed[3..35])?;
            let span_id = hex(&fixed[36..52])?;
            let [flags] = hex(&fixed[53..])?;
            let has_dashes = fixed[2] == b'-' && fixed[35] == b'-' && fixed[52] == b'-';
            let more_is_fine = rest.is_empty() || (version > 0 && rest.first() == Some(&b'-'));
            if !has_dashes || version == 0xff || !more_is_fine {
                return None;
            }
            let tracestate = self.get(Slot::TraceState).and_then(tracestate);
            known(CarriedContext { trace_id, span_id, flags, propagator: Propagator::TraceContext, tracestate })
        };
        context().map_or(Parsed::Malformed, Parsed::Context)
    }

    /// `traceid-spanid[-sampled[-parent]]`; a lone `0`, `1` or `d` decides on sampling and names no trace.
    fn b3(&self) -> Parsed {
        let Some(value) = self.get(Slot::B3) else { return Parsed::Absent };
        if matches!(value, b"0" | b"1" | b"d") {
            return Parsed::Absent;
        }
        let context = || {
            let mut parts = value.split(|&byte| byte == b'-');
            let trace_id = b3_trace_id(parts.next()?)?;
            let span_id = hex(parts.next()?)?;
            let flags = u8::from(matches!(parts.next(), Some(b"1" | b"d")));
            known(CarriedContext { trace_id, span_id, flags, propagator: Propagator::B3, tracestate: None })
        };
        context().map_or(Parsed::Malformed, Parsed::Context)
    }

    fn b3_multi(&self) -> Parsed {
        let (trace_id, span_id) = match (self.get(Slot::B3TraceId), self.get(Slot::B3SpanId)) {
            (None, None) => return Parsed::Absent,
            (Some(trace_id), Some(span_id)) => (trace_id, span_id),
            _ => return Parsed::Malformed,
        };
        let sampled = matches!(self.get(Slot::B3Sampled), Some(b"1" | b"true")) || self.get(Slot::B3Flags) == Some(b"1");
        let context = || {
            let (trace_id, span_id) = (b3_trace_id(trace_id)?, hex(span_id)?);
            let flags = u8::from(sampled);
            known(CarriedContext { trace_id, span_id, flags, propagator: Propagator::B3Multi, tracestate: None })
        };
        context().map_or(Parsed::Malformed, Parsed::Context)
    }

    /// `traceid:spanid:parent:flags`, possibly with `%3A` for the colons; leading zeros may be missing.
    fn jaeger(&self) -> Parsed {
        let Some(value) = self.get(Slot::Uber) else { return Parsed::Absent };
        let context = || {
            let mut rest = value;
            let mut part = |is_last: bool| {
                let length = rest.iter().position(|&byte| byte == b':' || byte == b'%');
                if is_last {
                    return length.is_none().then_some(rest);
                }
                let (part, behind) = rest.split_at_checked(length?)?;
                rest = behind.strip_prefix(b":").or_else(|| behind.strip_prefix(b"%3A")).or_else(|| behind.strip_prefix(b"%3a"))?;
                Some(part)
            };
            let trace_id = short_hex(part(false)?)?;
            let span_id = short_hex(part(false)?)?;
            part(false)?; // the parent, of no use since long
            let [flags] = short_hex(part(true)?)?;
            let flags = flags & 1;
            known(CarriedContext { trace_id, span_id, flags, propagator: Propagator::Jaeger, tracestate: None })
        };
        context().map_or(Parsed::Malformed, Parsed::Context)
    }

    /// `Root=1-time-unique;Parent=spanid;Sampled=1`, in any order, other keys passed over.
    fn xray(&self) -> Parsed {
        let Some(value) = self.get(Slot::XRay) else { return Parsed::Absent };
        let context = || {
            let (mut trace_id, mut span_id, mut flags) = (None, None, 0);
            for part in value.split(|&byte| byte == b';') {
                let part = part.trim_ascii();
                if let Some(root) = part.strip_prefix(b"Root=") {
                    let (time, unique) = root.strip_prefix(b"1-")?.split_at_checked(8)?;
                    let time: [u8; 4] = hex(time)?;
                    let unique: [u8; 12] = hex(unique.strip_prefix(b"-")?)?;
                    let mut both = [0; 16];
                    both.iter_mut().zip(time.iter().chain(&unique)).for_each(|(to, from)| *to = *from);
                    trace_id = Some(both);
                } else if let Some(parent) = part.strip_prefix(b"Parent=") {
                    span_id = Some(hex(parent)?);
                } else if let Some(sampled) = part.strip_prefix(b"Sampled=") {
                    flags = u8::from(sampled == b"1");
                }
            }
            let propagator = Propagator::XRay;
            known(CarriedContext { trace_id: trace_id?, span_id: span_id?, flags, propagator, tracestate: None })
        };
        context().map_or(Parsed::Malformed, Parsed::Context)
    }
}

/// Ids of only zeros are no ids.
fn known(context: CarriedContext) -> Option<CarriedContext> {
    (context.trace_id != [0; 16] && context.span_id != [0; 8]).then_some(context)
}

/// What [`digit`] says of a byte that is none.
const NO_DIGIT: u8 = 0xff;

/// The value of a lower-case hex digit.
const fn digit(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => NO_DIGIT,
    }
}

/// `N` bytes in exactly `2 * N` lower-case hex digits.
#[inline]
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    let mut any = 0;
    for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        let [high, low] = pair.map(digit);
        *byte = high << 4 | low;
        any |= high | low;
    }
    (any < 16).then_some(bytes)
}

/// `N` bytes in at most `2 * N` lower-case hex digits, padded on the left.
fn short_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    if digits.is_empty() || digits.len() > 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().rev().zip(digits.rchunks(2)) {
        for &digit in pair {
            let value = self::digit(digit);
            if value == NO_DIGIT {
                return None;
            }
            *byte = *byte << 4 | value;
        }
    }
    Some(bytes)
}

/// A B3 trace id: 64 or 128 bits, the shorter padded on the left.
fn b3_trace_id(digits: &[u8]) -> Option<[u8; 16]> {
    match digits.len() {
        32 => hex(digits),
        16 => short_hex(digits),
        _ => None,
    }
}

/// A `tracestate` that keeps the rules of W3C Trace Context level 2; one that does not is dropped as a whole.
fn tracestate(value: &[u8]) -> Option<Arc<str>> {
    const MAX_BYTES: usize = 4096;
    const MAX_MEMBERS: usize = 32;
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= MAX_BYTES)?.trim_matches([' ', '\t']);
    let mut keys: [&str; MAX_MEMBERS] = [""; MAX_MEMBERS];
    let mut count = 0;
    for member in text.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty()) {
        let (key, value) = member.split_once('=')?;
        let is_repeated = keys.get(..count)?.contains(&key);
        if is_repeated || !is_tracestate_key(key) || !is_tracestate_value(value) {
            return None;
        }
        *keys.get_mut(count)? = key;
        count += 1;
    }
    (count > 0).then(|| Arc::from(text))
}

fn is_tracestate_key(key: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@');
    key.len() <= 256
        && key.bytes().next().is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
        && key.bytes().all(is_inner)
}

fn is_tracestate_value(value: &str) -> bool {
    let is_inner = |byte: u8| matches!(byte, 0x20..=0x7e) && byte != b',' && byte != b'=';
    !value.is_empty() && value.len() <= 256 && !value.ends_with(' ') && value.bytes().all(is_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::records::{Item, Limits, Origin, Scratch, batches};
    use crate::kafka::wire::Payload;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
        let mut zigzag = bytes.len() * 2;
        while zigzag >= 0x80 {
            out.push(u8::try_from(zigzag & 0x7f).unwrap() | 0x80);
            zigzag >>= 7;
        }
        out.push(u8::try_from(zigzag).unwrap());
        out.extend_from_slice(bytes);
    }

    /// What is found in one record with these headers; `None` is a null value.
    fn extract_bytes(propagators: &str, headers: &[(&[u8], Option<&[u8]>)]) -> Extracted {
        let mut body = vec![0, 0, 0, 1, 1, u8::try_from(headers.len() * 2).unwrap()];
        for (name, value) in headers {
            sized(&mut body, name);
            match value {
                Some(value) => sized(&mut body, value),
                None => body.push(1),
            }
        }
        let mut bytes = vec![0; 61];
        bytes[16] = 2;
        bytes[60] = 1;
        sized(&mut bytes, &body);
        let length = i32::try_from(bytes.len() - 12).unwrap();
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
        let mut scratch = Scratch::default();
        let record = batch.records(&mut scratch, Limits::default()).unwrap().next().unwrap().unwrap();
        propagators.parse::<Propagators>().unwrap().extract(&record.headers)
    }

    fn extract(propagators: &str, headers: &[(&str, &str)]) -> Extracted {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))).collect();
        extract_bytes(propagators, &headers)
    }

    /// Trace id and span id as hex, the flags and the propagator.
    fn shown(extracted: &Extracted) -> Option<(String, String, u8, &'static str)> {
        let context = extracted.context.as_ref()?;
        let trace_id = format!("{:032x}", u128::from_be_bytes(context.trace_id));
        Some((trace_id, format!("{:016x}", u64::from_be_bytes(context.span_id)), context.flags, context.propagator.name()))
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is compared with what may be none")]
    fn expected(flags: u8, propagator: &'static str) -> Option<(String, String, u8, &'static str)> {
        Some((TRACE.to_owned(), SPAN.to_owned(), flags, propagator))
    }

    /// thomhurst/Dekaf#3063 and the rules of W3C Trace Context, section 3.2.
    #[test]
    fn traceparents_are_judged_as_the_w3c_says() {
        let good = [
            (format!("00-{TRACE}-{SPAN}-01"), 1),
            (format!("00-{TRACE}-{SPAN}-00"), 0),
            (format!("00-{TRACE}-{SPAN}-03"), 3),
            (format!("01-{TRACE}-{SPAN}-01"), 1),
            (format!("01-{TRACE}-{SPAN}-01-extra"), 1),
            (format!("cc-{TRACE}-{SPAN}-01-"), 1),
        ];
        for (value, flags) in good {
            let extracted = extract("tracecontext", &[("traceparent", &value)]);
            assert_eq!((shown(&extracted), extracted.malformed), (expected(flags, "tracecontext"), false), "{value}");
        }
        let bad = [
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-012"),
            format!("00-{TRACE}-{SPAN}-01-extra"),
            format!("01-{TRACE}-{SPAN}-01.extra"),
            format!("00-{TRACE}-{SPAN}_01"),
            format!("00-{TRACE}0-{SPAN}-1"),
            format!(" 00-{TRACE}-{SPAN}-01"),
            "00".to_owned(),
            "-".repeat(55),
        ];
        for value in bad {
            let extracted = extract("tracecontext", &[("traceparent", &value)]);
            assert_eq!((shown(&extracted), extracted.malformed), (None, true), "{value}");
        }
        let extracted = extract_bytes("tracecontext", &[(b"traceparent", Some(&[0xff; 55]))]);
        assert!(extracted.malformed && extracted.context.is_none());
    }

    /// knative-extensions/eventing-kafka-broker#725, kamon-io/Kamon#1235: 64-bit ids are padded on the left.
    #[test]
    fn b3_is_read_in_both_its_forms_and_only_when_asked_for() {
        let short = &TRACE[16..];
        let padded = Some((format!("{}{short}", "0".repeat(16)), SPAN.to_owned(), 1, "b3"));
        for (value, want) in [
            (format!("{TRACE}-{SPAN}"), expected(0, "b3")),
            (format!("{TRACE}-{SPAN}-0"), expected(0, "b3")),
            (format!("{TRACE}-{SPAN}-1"), expected(1, "b3")),
            (format!("{TRACE}-{SPAN}-d"), expected(1, "b3")),
            (format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"), expected(1, "b3")),
            (format!("{short}-{SPAN}-1"), padded),
        ] {
            assert_eq!(shown(&extract("b3", &[("b3", &value)])), want, "{value}");
            assert_eq!(extract("tracecontext,jaeger", &[("b3", &value)]), Extracted::default());
        }
        for value in [TRACE.to_owned(), format!("{}-{SPAN}", &TRACE[1..]), format!("{TRACE}-{}", &SPAN[1..]), "2".to_owned()] {
            let extracted = extract("b3", &[("b3", &value)]);
            assert_eq!((shown(&extracted), extracted.malformed), (None, true), "{value}");
        }
        for value in ["0", "1", "d"] {
            assert_eq!(extract("b3", &[("b3", value)]), Extracted::default(), "a decision without a trace");
        }
        let ids = [("X-B3-TraceId", TRACE), ("x-b3-spanid", SPAN)];
        for (more, flags) in [
            (None, 0),
            (Some(("x-b3-sampled", "1")), 1),
            (Some(("x-b3-sampled", "true")), 1),
            (Some(("x-b3-sampled", "0")), 0),
            (Some(("X-B3-Flags", "1")), 1),
            (Some(("x-b3-flags", "0")), 0),
        ] {
            let headers: Vec<_> = ids.into_iter().chain(more).collect();
            assert_eq!(shown(&extract("b3multi", &headers)), expected(flags, "b3multi"), "{more:?}");
        }
        assert!(extract("b3multi", &ids[..1]).malformed, "half a context");
        assert_eq!(extract("b3multi", &[("x-b3-sampled", "0")]), Extracted::default());
    }

    #[test]
    fn jaeger_may_leave_out_leading_zeros_and_escape_its_colons() {
        for (value, want) in [
            (format!("{TRACE}:{SPAN}:0:1"), expected(1, "jaeger")),
            (format!("{TRACE}:{SPAN}:1234:00"), expected(0, "jaeger")),
            (format!("{TRACE}:{SPAN}::3"), expected(1, "jaeger")),
            (format!("{TRACE}%3A{SPAN}%3A0%3A1"), expected(1, "jaeger")),
            (format!("{TRACE}:{}:0:1", SPAN.trim_start_matches('0')), expected(1, "jaeger")),
            ("1:2:0:1".to_owned(), Some((format!("{:032x}", 1), format!("{:016x}", 2), 1, "jaeger"))),
        ] {
            assert_eq!(shown(&extract("jaeger", &[("Uber-Trace-Id", &value)])), want, "{value}");
        }
        for value in ["1:2:0", "1:2:0:1:0", "0:2:0:1", "1:0:0:1", "1:2:0:100", "1:2:0:g", "1:2:0:", ":2:0:1", "1%3B2%3B0%3B1"] {
            let extracted = extract("jaeger", &[("uber-trace-id", value)]);
            assert_eq!((shown(&extracted), extracted.malformed), (None, true), "{value}");
        }
    }

    #[test]
    fn xray_is_read_whatever_the_order_of_its_parts() {
        let root = format!("1-{}-{}", &TRACE[..8], &TRACE[8..]);
        for (value, flags) in [
            (format!("Root={root};Parent={SPAN};Sampled=1"), 1),
            (format!("Sampled=0; Parent={SPAN}; Root={root}"), 0),
            (format!("Self=1-x;Root={root};Parent={SPAN};Lineage=a:0"), 0),
        ] {
            assert_eq!(shown(&extract("xray", &[("X-Amzn-Trace-Id", &value)])), expected(flags, "xray"), "{value}");
        }
        for value in [format!("Root={root}"), format!("Parent={SPAN}"), format!("Root=2{};Parent={SPAN}", &root[1..])] {
            assert!(extract("xray", &[("x-amzn-trace-id", &value)]).malformed, "{value}");
        }
    }

    /// OpenTelemetry's Java agent, measured: the application's header first, the agent's behind it.
    #[test]
    fn the_last_header_of_a_name_wins_and_repetition_is_told() {
        let (good, bad) = (format!("00-{TRACE}-{SPAN}-01"), "00-bad".to_owned());
        let other = good.replace("4bf9", "ffff");
        let extracted = extract("tracecontext", &[("traceparent", &other), ("x", "y"), ("TraceParent", &good)]);
        assert_eq!((shown(&extracted), extracted.repeated), (expected(1, "tracecontext"), true));
        let extracted = extract("tracecontext", &[("traceparent", &good), ("traceparent", &bad)]);
        assert_eq!((shown(&extracted), extracted.malformed, extracted.repeated), (None, true, true));
        let null: (&[u8], _) = (b"traceparent", None);
        let extracted = extract_bytes("tracecontext", &[(b"traceparent", Some(good.as_bytes())), null]);
        assert_eq!((shown(&extracted), extracted.malformed, extracted.repeated), (None, false, true));
    }

    /// dpkp/kafka-python#2004, DataDog/dd-trace-java#1631.
    #[test]
    fn null_and_empty_values_are_no_context_and_nothing_malformed() {
        for headers in [&[(&b"a"[..], None)][..], &[(b"traceparent", None)], &[(b"traceparent", Some(&b""[..]))], &[(b"", None)]] {
            assert_eq!(extract_bytes("tracecontext,b3,b3multi,jaeger,xray", headers), Extracted::default());
        }
    }

    #[test]
    fn the_first_propagator_in_the_list_that_is_valid_wins() {
        let traceparent = format!("00-{TRACE}-{SPAN}-01");
        let b3 = format!("{TRACE}-{SPAN}");
        let both = [("traceparent", traceparent.as_str()), ("b3", b3.as_str())];
        assert_eq!(shown(&extract("tracecontext,b3", &both)), expected(1, "tracecontext"));
        assert_eq!(shown(&extract("b3,tracecontext", &both)), expected(0, "b3"));
        let extracted = extract("tracecontext,b3", &[("traceparent", "00-bad"), ("b3", &b3)]);
        assert_eq!((shown(&extracted), extracted.malformed), (expected(0, "b3"), true));
        assert_eq!(extract("none", &both), Extracted::default());
    }

    #[test]
    fn a_tracestate_is_kept_when_it_keeps_the_rules_and_a_traceparent_is_there() {
        let traceparent = format!("00-{TRACE}-{SPAN}-01");
        let state =
            |value: &str| extract("tracecontext", &[("traceparent", &traceparent), ("tracestate", value)]).context.unwrap().tracestate;
        for good in ["ot=th:8", "a=1,b=2", "tenant@vendor=x y", "a=1,,b=2", "0a=!"] {
            assert_eq!(state(good).as_deref(), Some(good));
        }
        let many = (0..33).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        for bad in ["", "a", "a=", "A=1", "a=1,a=2", "a=b=c", "a=\u{e4}", &many, &format!("{}=1", "k".repeat(257))] {
            assert_eq!(state(bad), None, "{bad}");
        }
        assert_eq!(extract("tracecontext", &[("tracestate", "a=1")]), Extracted::default());
    }

    #[test]
    fn the_list_of_propagators_has_opentelemetrys_syntax() {
        use Propagator::{B3, B3Multi, Jaeger, TraceContext, XRay};
        let all = "tracecontext, baggage ,b3,b3multi,jaeger,xray,b3".parse::<Propagators>().unwrap();
        assert_eq!(all.order(), [TraceContext, B3, B3Multi, Jaeger, XRay]);
        assert_eq!("none".parse::<Propagators>().unwrap().order(), []);
        assert_eq!(Propagators::default(), "tracecontext,baggage".parse().unwrap());
        assert_eq!("tracecontext,otrace".parse::<Propagators>().unwrap_err().name, "otrace");
    }

    #[test]
    fn headers_that_cannot_be_read_to_their_end_are_not_believed() {
        let traceparent = format!("00-{TRACE}-{SPAN}-01");
        let mut body = vec![0, 0, 0, 1, 1, 4];
        sized(&mut body, b"traceparent");
        sized(&mut body, traceparent.as_bytes());
        body.push(9);
        let mut bytes = vec![0; 61];
        (bytes[16], bytes[60]) = (2, 1);
        sized(&mut bytes, &body);
        let length = i32::try_from(bytes.len() - 12).unwrap();
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        let Some(Item::Batch(batch)) = batches(Payload::whole(&bytes), Origin::Fetch).next() else { panic!() };
        let mut scratch = Scratch::default();
        let record = batch.records(&mut scratch, Limits::default()).unwrap().next().unwrap().unwrap();
        let extracted = Propagators::default().extract(&record.headers);
        assert_eq!(extracted, Extracted { damaged: true, ..Extracted::default() });
    }
}
