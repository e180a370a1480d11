//! Copies a segment's payload into events, and tells what is known of its socket.

use core::hint::black_box;

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated;
use tracer_common::counter::Counter;
use tracer_common::event::{DataEvent, EventHeader, Head, Kind, OpenEvent, flag, opening};
use tracer_common::limits::{BLOCK_BYTES, BLOCK_SHIFT};
use tracer_common::socket::{Socket, flag as socket_flag};

use crate::headers::{self, Packet, tcp_flag};
use crate::transport::{Way, emit};

/// `BPF_TCP_SYN_SENT`.
const SYN_SENT: u32 = 2;

/// `AF_INET`.
const IPV4: u32 = 2;

/// Third word of an IPv4 address in IPv6's form, `::ffff:a.b.c.d`.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Fills the header of a connection's own socket. Addresses are the socket's: those of the packet can be translated in one direction and
/// not in the other.
///
/// There is one header on the program's stack of 512 bytes, and each event is patched in its place in the ring.
#[inline(always)]
pub(crate) fn describe(header: &mut EventHeader, skb: *mut __sk_buff, sk: *mut bpf_sock, socket: &Socket, packet: &Packet) {
    begin(header, skb, packet);
    header.origin = socket.origin;
    header.pid = socket.tgid;
    header.state = socket.state as u8;
    // All fields are read before the family is looked at: reads in branches would be merged into one by a computed address, which the
    // verifier refuses on a socket.
    // SAFETY: `sk` is a full socket, checked for null by the caller; addresses lie at multiples of four in the header.
    #[expect(unsafe_code, reason = "the socket is a pointer")]
    unsafe {
        header.local_port = (*sk).src_port as u16;
        header.peer_port = u16::from_be((*sk).dst_port);
        let word = |place: *const u32| place.read_volatile();
        let is_ipv4 = word(&raw const (*sk).family) == IPV4;
        let [local, peer] = [(&raw mut header.local).cast::<u32>(), (&raw mut header.peer).cast::<u32>()];
        for i in 0..4 {
            local.add(i).write(word((&raw const (*sk).src_ip6).cast::<u32>().add(i)));
            peer.add(i).write(word((&raw const (*sk).dst_ip6).cast::<u32>().add(i)));
        }
        let (local4, peer4) = (word(&raw const (*sk).src_ip4), word(&raw const (*sk).dst_ip4));
        if is_ipv4 {
            map(&mut header.local, local4);
            map(&mut header.peer, peer4);
        }
    }
}

/// Fills the header of data that came to a listener: the addresses are the packet's. False when they cannot be read.
#[inline(always)]
pub(crate) fn describe_early(header: &mut EventHeader, skb: *mut __sk_buff, packet: &Packet) -> bool {
    begin(header, skb, packet);
    header.origin = header.cookie;
    header.flags = flag::LISTENER;
    let (Some([p0, p1, l0, l1]), true) = (headers::load::<[u8; 4]>(skb, packet.tcp), packet.version == 4 || packet.version == 6) else {
        return false;
    };
    header.peer_port = u16::from_be_bytes([p0, p1]);
    header.local_port = u16::from_be_bytes([l0, l1]);
    if packet.version == 4 {
        let (Some(peer), Some(local)) = (headers::load(skb, 12), headers::load(skb, 16)) else { return false };
        map(&mut header.peer, u32::from_ne_bytes(peer));
        map(&mut header.local, u32::from_ne_bytes(local));
        return true;
    }
    headers::load_into(skb, 8, &mut header.peer) && headers::load_into(skb, 24, &mut header.local)
}

#[inline(always)]
fn begin(header: &mut EventHeader, skb: *mut __sk_buff, packet: &Packet) {
    // SAFETY: helpers; `skb` is the program's context.
    #[expect(unsafe_code, reason = "helpers")]
    unsafe {
        header.boot_ns = generated::bpf_ktime_get_boot_ns();
        header.cookie = generated::bpf_get_socket_cookie(skb.cast());
    }
    header.position = packet.position;
}

/// An IPv4 address in IPv6's form.
#[inline(always)]
fn map(to: &mut [u8; 16], address: u32) {
    let words = core::ptr::from_mut(to).cast::<u32>();
    // SAFETY: four words, which lie at multiples of four in the header.
    #[expect(unsafe_code, reason = "written by words: the verifier's stack slots are those")]
    unsafe {
        words.write(0);
        words.add(1).write(0);
        words.add(2).write(MAPPED);
        words.add(3).write(address);
    }
}

/// Says that the socket became a candidate, with the bytes that its judgement rests on and that passed before this segment.
#[inline(always)]
pub(crate) fn open(sk: *mut bpf_sock, socket: &Socket, header: &EventHeader, head: &Head, transport: Way) {
    let (mut flags, mut sent_first, mut received_first) = (0, 0, 0);
    let initiator = socket.flags & socket_flag::INITIATOR != 0;
    if initiator || socket.origin != 0 {
        // SAFETY: `sk` is a full socket; the helper gives null for anything but TCP.
        #[expect(unsafe_code, reason = "a helper")]
        let tcp = unsafe { generated::bpf_tcp_sock(sk) };
        if !tcp.is_null() {
            // SAFETY: checked for null.
            #[expect(unsafe_code, reason = "the socket is a pointer")]
            let (unacknowledged, acknowledged, next, received, state) =
                unsafe { ((*tcp).snd_una, (*tcp).bytes_acked as u32, (*tcp).rcv_nxt, (*tcp).bytes_received as u32, (*sk).state) };
            // A connecting socket counts its SYN among the acknowledged bytes once it is answered, and stands on it before.
            flags = if initiator { opening::INITIATOR | opening::SENT_FIRST } else { opening::SENT_FIRST };
            sent_first = unacknowledged.wrapping_sub(acknowledged).wrapping_add(u32::from(initiator));
            if state != SYN_SENT {
                flags |= opening::RECEIVED_FIRST;
                received_first = next.wrapping_sub(received);
            }
        }
    }
    transport.counts.add(Counter::Candidates, 1);
    emit::<OpenEvent>(transport, 0, |event| {
        // SAFETY: `event` is reserved room of its size.
        #[expect(unsafe_code, reason = "ring memory is reached by pointer")]
        unsafe {
            (*event).header = *header;
            (*event).header.kind = Kind::Open as u8;
            (*event).opening.flags = flags;
            (*event).opening.sent_first = sent_first;
            (*event).opening.received_first = received_first;
            (*event).opening.reserved = 0;
            (*event).opening.head = *head;
        }
    });
}

/// Says that the direction ended.
#[inline(always)]
pub(crate) fn close(header: &EventHeader, packet: &Packet, transport: Way) {
    emit::<EventHeader>(transport, 0, |event| {
        // SAFETY: `event` is reserved room of its size.
        #[expect(unsafe_code, reason = "ring memory is reached by pointer")]
        unsafe {
            *event = *header;
            (*event).kind = Kind::Close as u8;
            (*event).position = packet.position.wrapping_add(packet.len);
            (*event).flags = if packet.flags & tcp_flag::RST != 0 { flag::RESET } else { 0 };
        }
    });
}

/// Copies the payload: whole blocks, then the rest in the smallest class that holds it.
#[inline(always)]
pub(crate) fn data<const BLOCKS: u32>(skb: *mut __sk_buff, header: &EventHeader, packet: &Packet, transport: Way) {
    let blocks = packet.len >> BLOCK_SHIFT;
    // All that comes after the loop is worked out before it: the number of blocks is a different constant at each way out of the loop, and
    // whatever looked at it would be walked once for each.
    let rest = if blocks < BLOCKS { packet.len & (BLOCK_BYTES - 1) } else { 0 };
    let offset = packet.len & !(BLOCK_BYTES - 1);
    if blocks >= BLOCKS {
        transport.counts.add(Counter::LostTooLongBytes, u64::from(packet.len - (BLOCKS << BLOCK_SHIFT)));
    }
    transport.counts.add(Counter::Events, u64::from(blocks) + u64::from(rest != 0));
    transport.counts.add(Counter::Bytes, u64::from(packet.len));
    // Everything in the loop comes from `i` alone: values that are carried from round to round make the verifier walk each combination
    // (`offset += BLOCK_BYTES` costs it three times as much as `i << BLOCK_SHIFT`).
    let mut i = 0;
    while i < BLOCKS {
        if i >= blocks {
            break;
        }
        piece::<{ BLOCK_BYTES as usize }>(skb, header, packet, i << BLOCK_SHIFT, BLOCK_BYTES, transport);
        i += 1;
    }
    if rest == 0 {
    } else if rest <= 256 {
        piece::<256>(skb, header, packet, offset, rest, transport);
    } else if rest <= 1024 {
        piece::<1024>(skb, header, packet, offset, rest, transport);
    } else if rest <= 4096 {
        piece::<4096>(skb, header, packet, offset, rest, transport);
    } else {
        piece::<{ BLOCK_BYTES as usize }>(skb, header, packet, offset, rest, transport);
    }
}

/// One event with `len` bytes of 1..=`N`, from `offset` of the payload on.
#[inline(always)]
fn piece<const N: usize>(skb: *mut __sk_buff, header: &EventHeader, packet: &Packet, offset: u32, len: u32, transport: Way) {
    emit::<DataEvent<N>>(transport, len, |event| {
        // SAFETY: `event` is reserved room of its size.
        #[expect(unsafe_code, reason = "ring memory is reached by pointer")]
        let room = unsafe {
            (*event).header = *header;
            (*event).header.kind = Kind::Data as u8;
            (*event).header.position = header.position.wrapping_add(offset);
            &raw mut (*event).data
        };
        // The verifier wants to see 1..=N; the compiler, which knows `len`, would leave the mask out.
        let bounded = if len == BLOCK_BYTES { BLOCK_BYTES } else { (black_box(len).wrapping_sub(1) & (N as u32 - 1)) + 1 };
        // SAFETY: `bounded` bytes fit the room.
        #[expect(unsafe_code, reason = "a helper")]
        let failed = unsafe { generated::bpf_skb_load_bytes(skb.cast_const().cast(), packet.payload + offset, room.cast(), bounded) };
        // All ones after a failure, which is a negative number: one branch less in the loop.
        let unread = (failed >> 63).cast_unsigned() as u32 & len;
        transport.counts.add(Counter::LostUnreadableBytes, u64::from(unread));
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "ring memory is reached by pointer")]
        unsafe {
            (*event).header.len = len - unread;
            (*event).header.missing = unread;
        }
    });
}
