//! What the live sources take: events of the kernel's programs, the kernel's description of its types, lines of its tables.

use tracer_userspace::source::EventKind;
use tracer_userspace::source::ebpf::outside::{self, Programs};

use crate::seeds::Recorded;

/// Bytes of an event's header, and the places of its fields that seeds fill in.
const HEADER: usize = 80;
const COOKIE: usize = 8;
const ORIGIN: usize = 16;
const POSITION: usize = 64;
const LEN: usize = 68;
const KIND: usize = 76;
const FLAGS: usize = 78;
/// Bit of the flags: the TLS translator looks into `/proc` for such a session's socket, and must not here.
const UNTIED: u8 = 8;

/// One byte says whose events they are; each event has two bytes before it that say how long it is.
pub(super) fn events(data: &[u8]) {
    let Some((&whose, mut rest)) = data.split_first() else { return };
    let programs = [Programs::Packet, Programs::Socket, Programs::Tls][usize::from(whose) % 3];
    let mut events = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk() {
        let (event, behind) = behind.split_at(behind.len().min(usize::from(u16::from_le_bytes(*length))));
        let mut event = event.to_vec();
        if programs == Programs::Tls && event.len() >= HEADER && event[FLAGS] & UNTIED != 0 {
            event[ORIGIN..ORIGIN + 8].fill(0);
        }
        events.push(event);
        rest = behind;
    }
    let (mut told, mut openings) = (0, 0);
    let taken = outside::translate(programs, events.iter().map(Vec::as_slice), &mut |event| match event.kind {
        EventKind::Data { bytes, .. } => told += bytes.len(),
        EventKind::Open { .. } => openings += 1,
        EventKind::Close { .. } => {}
    });
    let there: usize = events.iter().map(Vec::len).sum();
    assert!(told <= there && taken.bytes <= u64::try_from(there).unwrap_or(u64::MAX), "{told} bytes told, {taken:?} of {there}");
    assert!(openings <= 2 * events.len() && taken.malformed <= u64::try_from(events.len()).unwrap_or(u64::MAX));
    let (counted, waiting) = taken.waiting_bytes;
    assert!(counted == waiting, "{counted} bytes are said to wait, and {waiting} do");
}

fn event(kind: u8, direction: u8, flags: u8, cookie: u64, position: u32, bytes: &[u8]) -> Vec<u8> {
    let mut event = vec![0; HEADER];
    event[COOKIE..ORIGIN].copy_from_slice(&cookie.to_ne_bytes());
    event[ORIGIN..ORIGIN + 8].copy_from_slice(&cookie.to_ne_bytes());
    event[POSITION..LEN].copy_from_slice(&position.to_ne_bytes());
    event[LEN..LEN + 4].copy_from_slice(&u32::try_from(if kind == 1 { bytes.len() } else { 0 }).unwrap_or(0).to_ne_bytes());
    event[KIND] = kind;
    event[KIND + 1] = direction;
    event[FLAGS] = flags;
    event.extend(bytes);
    event
}

pub(super) fn events_seeds(_: &Recorded) -> Vec<Vec<u8>> {
    let opening = [7_u32, 100, 200, 0, 96, 4, 0x0102_0304, 0, 0, 0].map(u32::to_ne_bytes).concat();
    let lives = [
        vec![
            event(2, 0, 0, 5, 100, &opening),
            event(1, 0, 0, 5, 100, b"request"),
            event(1, 1, 0, 5, 200, b"answer"),
            event(3, 0, 0, 5, 107, b""),
        ],
        vec![
            event(1, 1, 1, 5, 200, b"early"),
            event(1, 1, 4, 6, 300, b"overtook"),
            event(2, 1, 0, 6, 0, &opening),
            event(3, 1, 2, 6, 0, b""),
        ],
        vec![event(4, 0, 0, 9, 0, b""), event(1, 0, 8, 9, 0, b"waits"), event(1, 0, 0, 9, 5, b"tied"), event(3, 1, 0, 9, 0, b"")],
        vec![event(1, 1, 8, 9, 0, b"waits"), event(3, 1, 8, 9, 0, b""), event(9, 0, 0, 1, 0, b"")],
    ];
    let seed = |whose: u8, life: &[Vec<u8>]| {
        let mut seed = vec![whose];
        for event in life {
            seed.extend(u16::try_from(event.len()).unwrap_or(0).to_le_bytes());
            seed.extend(event);
        }
        seed
    };
    lives.iter().flat_map(|life| [0, 1, 2].map(|whose| seed(whose, life))).collect()
}

pub(super) fn btf(data: &[u8]) {
    let read = outside::btf(data);
    assert!(!read || data.len() >= 24, "a header alone has 24 bytes");
}

/// Descriptions of a kernel with a few types: a number, structures with nameless ones within, an enumeration, a function.
pub(super) fn btf_seeds(_: &Recorded) -> Vec<Vec<u8>> {
    let mut strings = vec![0_u8];
    let mut name = |text: &str| {
        let at = u32::try_from(strings.len()).unwrap_or(0);
        strings.extend(text.bytes().chain([0]));
        at
    };
    let (iter, count, s, x, kind, iovec, function, flags) =
        (name("iov_iter"), name("count"), name("s"), name("x"), name("iter_type"), name("ITER_IOVEC"), name("tcp_recvmsg"), name("flags"));
    let types: [Vec<u32>; 6] = [
        vec![x, 1 << 24, 8, 64],
        vec![0, 4 << 24 | 2, 16, 0, 1, 0, count, 1, 64],
        vec![iter, 4 << 24 | 2, 40, x, 1, 0, 0, 2, 128],
        vec![kind, 6 << 24 | 1, 4, iovec, 1],
        vec![0, 13 << 24 | 1, 1, flags, 1],
        vec![function, 12 << 24, 5],
    ];
    let knot = [vec![s, 4 << 24 | 3, 8, 0, 1, 0, 0, 1, 0, 0, 1, 8]];
    let write = |types: &[Vec<u32>]| {
        let types: Vec<u8> = types.iter().flatten().flat_map(|number| number.to_ne_bytes()).collect();
        let [length, end] = [types.len(), strings.len()].map(|length| u32::try_from(length).unwrap_or(0));
        let header = [24, 0, length, length, end].map(u32::to_ne_bytes).concat();
        [&0xeb9f_u16.to_ne_bytes()[..], &[1, 0], &header, &types, &strings].concat()
    };
    (1..=types.len())
        .map(|count| write(&types[..count]))
        .chain((1..=types.len()).map(|count| write(&types[count - 1..])))
        .chain([write(&knot)])
        .collect()
}

pub(super) fn sockets(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        if let Some((local, peer, inode)) = outside::socket_line(line) {
            assert!(inode != 0);
            for address in [local, peer] {
                let mapped = matches!(address.ip(), std::net::IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
                assert!(!mapped, "{address} is an address of IPv4");
            }
        }
        if let Some(inode) = outside::socket_inode(line) {
            assert!(line.contains(&inode.to_string()) || line.contains('+') || line.contains('0'));
        }
    }
}

pub(super) fn sockets_seeds(_: &Recorded) -> Vec<Vec<u8>> {
    let four = "   1: 0100007F:2384 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 200 1 0 20 4 30 10 -1";
    let six = "   3: 0000000000000000FFFF00000100007F:C351 00000000000000000000000001000000:2384 01 0:0 00:0 0 0 0 300 1 0 20";
    let mut seeds: Vec<Vec<u8>> = [four, six, "socket:[4026]", "pipe:[1]"].map(|line| line.as_bytes().to_vec()).into();
    seeds.extend((10..four.len()).step_by(9).map(|end| four.as_bytes()[..end].to_vec()));
    seeds
}
