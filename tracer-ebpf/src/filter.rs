//! Whom to look at: port rules, user space's verdicts, and the judgement of first bytes.

use core::hint::black_box;

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated;
use tracer_common::config::{Config, PortRule};
use tracer_common::event::Head;
use tracer_common::judge;
use tracer_common::limits::HEAD_BYTES;
use tracer_common::socket::{Half, Socket, State, flag};

use crate::headers::Packet;
use crate::maps::{PORTS, VERDICTS};

/// What the rules of a socket's ports say.
#[inline(always)]
pub(crate) fn port_rule(local: u32, peer: u32) -> Option<u32> {
    let mut found = None;
    // SAFETY: values are plain numbers, read once.
    #[expect(unsafe_code, reason = "a map lookup")]
    let rules = unsafe { (PORTS.get(local).copied(), PORTS.get(peer).copied()) };
    if let Some(rule) = rules.0 {
        found = Some(rule);
    }
    if let Some(rule) = rules.1
        && found != Some(PortRule::Exclude as u32)
    {
        found = Some(rule);
    }
    found
}

/// Takes what user space decided about the socket, if there is something new.
#[inline(always)]
pub(crate) fn take_verdict(skb: *mut __sk_buff, socket: &mut Socket, config: &Config) {
    if socket.state != State::Candidate as u32 && socket.epoch == config.epoch {
        return;
    }
    socket.epoch = config.epoch;
    // SAFETY: `skb` is the program's context.
    #[expect(unsafe_code, reason = "a helper")]
    let cookie = unsafe { generated::bpf_get_socket_cookie(skb.cast()) };
    // SAFETY: the value is a plain number, read once.
    #[expect(unsafe_code, reason = "a map lookup")]
    let verdict = unsafe { VERDICTS.get(cookie).copied() };
    if let Some(state) = verdict {
        socket.state = state;
        let _ = VERDICTS.remove(cookie);
    }
}

/// What a segment of a socket in state unknown is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Nothing that is looked for.
    Other,
    /// The start of a Kafka request, or what is taken for it.
    Kafka,
    /// Not the next in its stream, before anything is known of that. TCP keeps it, and it will not be sent again.
    Overtook,
}

/// Judges a segment of a socket of which nothing is known yet. Leaves in `head` the bytes that passed before the segment and that the
/// judgement rests on.
#[inline(always)]
pub(crate) fn judge(
    skb: *mut __sk_buff,
    sk: *mut bpf_sock,
    socket: &mut Socket,
    packet: &Packet,
    config: &Config,
    sent: bool,
    head: &mut Head,
) -> Judgement {
    if config.has_port_rules != 0 && socket.flags & flag::PORTS_CHECKED == 0 {
        socket.flags |= flag::PORTS_CHECKED;
        // SAFETY: `sk` is a full socket, checked for null by the caller.
        #[expect(unsafe_code, reason = "the socket is a pointer")]
        let (local, peer) = unsafe { ((*sk).src_port, u16::from_be((*sk).dst_port)) };
        match port_rule(local, u32::from(peer)) {
            Some(rule) if rule == PortRule::Exclude as u32 => {
                socket.state = State::Ignored as u32;
                return Judgement::Other;
            }
            Some(_) => return Judgement::Kafka,
            None => {}
        }
    }
    if socket.flags & flag::EXPECTED != 0 {
        return Judgement::Kafka;
    }
    // Requests go from the end that connected to the end that accepted. Of older connections nobody knows which is which.
    let connected = socket.flags & flag::INITIATOR != 0;
    let is_older = !connected && socket.origin == 0;
    if !is_older && connected != sent {
        return Judgement::Other;
    }
    let half = if sent { &mut socket.sent } else { &mut socket.received };
    if half.judged >= config.judged_segments {
        return Judgement::Other;
    }
    half.judged += 1;
    if !is_older && !sent && half.is_judged == 0 && is_ahead(sk, packet) {
        return Judgement::Overtook;
    }
    if half.len == 0 && packet.len >= HEAD_BYTES {
        half.is_judged = 1;
        return if is_kafka(skb, packet, is_older, head) { Judgement::Kafka } else { Judgement::Other };
    }
    // Two CPUs can be here with two segments of one direction. Counting up and then reading lets at most one of them find 1.
    add(&mut half.busy, 1);
    // SAFETY: a plain read of a map value that another CPU may write.
    #[expect(unsafe_code, reason = "not to be merged with the write before")]
    let alone = unsafe { (&raw const half.busy).read_volatile() } == 1;
    let found = alone && gather(skb, packet, half, is_older, head);
    add(&mut half.busy, u64::MAX);
    if found { Judgement::Kafka } else { Judgement::Other }
}

/// Whether a segment that came is not the next that its socket waits for.
#[inline(always)]
fn is_ahead(sk: *mut bpf_sock, packet: &Packet) -> bool {
    // SAFETY: `sk` is a full socket; the helper gives null for anything but TCP.
    #[expect(unsafe_code, reason = "a helper, and the socket is a pointer")]
    unsafe {
        let tcp = generated::bpf_tcp_sock(sk);
        !tcp.is_null() && packet.position.wrapping_sub((*tcp).rcv_nxt).cast_signed() > 0
    }
}

/// Judges a segment of at least a head alone. `head` is only the place where its bytes are looked at.
#[inline(always)]
pub(crate) fn is_kafka(skb: *mut __sk_buff, packet: &Packet, is_older: bool, head: &mut Head) -> bool {
    // SAFETY: 14 bytes fit the 16 of the head.
    #[expect(unsafe_code, reason = "a helper")]
    let failed =
        unsafe { generated::bpf_skb_load_bytes(skb.cast_const().cast(), packet.payload, head.bytes.as_mut_ptr().cast(), HEAD_BYTES) };
    failed == 0 && is_head(head, packet.len, is_older)
}

/// Judges gathered bytes.
#[inline(always)]
fn is_head(head: &Head, segment_bytes: u32, is_older: bool) -> bool {
    let [s0, s1, s2, s3, k0, k1, v0, v1, _, _, _, _, c0, c1, ..] = head.bytes;
    let (size, key_version) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([k0, k1, v0, v1]));
    // Where a request has key and version, an answer has its correlation id.
    judge::is_request(size, key_version, u16::from_be_bytes([c0, c1]), segment_bytes)
        || is_older && judge::is_answer(size, key_version, segment_bytes)
}

/// Puts the segment's first bytes behind those that came before, and judges them together once they are a head.
#[inline(always)]
fn gather(skb: *mut __sk_buff, packet: &Packet, half: &mut Half, is_older: bool, head: &mut Head) -> bool {
    if half.next != packet.position || half.len >= HEAD_BYTES {
        half.len = 0;
    }
    let before = half.len;
    if before != 0 || packet.len < HEAD_BYTES {
        if !append(skb, packet, half) || half.len < HEAD_BYTES {
            return false;
        }
        half.len = 0;
        half.is_judged = 1;
        if let Some(first) = half.bytes.first_chunk() {
            head.bytes = *first;
        }
        if is_head(head, before.wrapping_add(packet.len), is_older) {
            head.position = packet.position.wrapping_sub(before);
            head.len = before;
            return true;
        }
        if packet.len < HEAD_BYTES {
            // Not a head: this segment may be the start of one.
            let _ = append(skb, packet, half);
            return false;
        }
    }
    is_kafka(skb, packet, is_older, head)
}

/// Copies as many of the segment's first bytes as the head has room for. False when they cannot be read.
#[inline(always)]
fn append(skb: *mut __sk_buff, packet: &Packet, half: &mut Half) -> bool {
    // The masks are the verifier's proof: at most 15 bytes before, at most 16 behind them, in 32. `black_box` keeps the compiler, which
    // knows better, from leaving them out.
    let at = black_box(half.len) & 15;
    let room = HEAD_BYTES.wrapping_sub(at);
    let wanted = if packet.len < room { packet.len } else { room };
    let len = (black_box(wanted).wrapping_sub(1) & 15) + 1;
    // SAFETY: `at + len` is at most 31.
    #[expect(unsafe_code, reason = "a helper that writes into the map value")]
    let failed = unsafe {
        let to = half.bytes.as_mut_ptr().add(at as usize);
        generated::bpf_skb_load_bytes(skb.cast_const().cast(), packet.payload, to.cast(), len)
    };
    half.len = if failed == 0 { at + len } else { 0 };
    half.next = packet.position.wrapping_add(packet.len);
    failed == 0
}

/// `*to += value`, atomically. The instruction set of all kernels has no atomic addition that returns a value.
#[inline(always)]
fn add(to: &mut u64, value: u64) {
    // SAFETY: an aligned number that lives as long as the program; the instruction is known since the first eBPF (`BPF_XADD`).
    #[expect(unsafe_code, reason = "Rust has no atomic addition for this target")]
    unsafe {
        core::arch::asm!("lock *(u64 *)({to} + 0) += {value}", to = in(reg) to, value = in(reg) value);
    }
}
