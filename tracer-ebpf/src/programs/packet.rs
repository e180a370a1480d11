//! `cgroup_skb`, both ways, at the root of cgroup v2: each TCP packet that a socket of this host sends or gets.
//!
//! Egress runs before segmentation, ingress after reassembly (GRO) and before the socket's own checks; packets that are only forwarded
//! have no socket and are never seen. Kernel: `__cgroup_bpf_run_filter_skb` (kernel/bpf/cgroup.c). Both return 1 always: pass.

use core::hint::black_box;

use aya_ebpf::bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use tracer_common::config::PortRule;
use tracer_common::counter::Counter;
use tracer_common::event::{EventHeader, Head, direction, flag as event_flag};
use tracer_common::judge;
use tracer_common::limits::{EARLY_BLOCKS, HEAD_BYTES, MAX_BLOCKS};
use tracer_common::socket::{Socket, State, flag};

use crate::counts::count;
use crate::filter::Judgement;
use crate::headers::{self, Packet, tcp_flag};
use crate::maps::{CONFIG, EARLY, SOCKETS};
use crate::transport::Way;
use crate::{capture, filter};

/// `BPF_TCP_LISTEN`.
const LISTEN: u32 = 10;

/// What the kernel is told: let the packet pass.
const PASS: i32 = 1;

/// A packet leaves a socket.
#[cgroup_skb(egress)]
pub(crate) fn packet_egress(ctx: SkBuffContext) -> i32 {
    see(ctx.skb.skb, true);
    PASS
}

/// A packet comes to a socket.
#[cgroup_skb(ingress)]
pub(crate) fn packet_ingress(ctx: SkBuffContext) -> i32 {
    see(ctx.skb.skb, false);
    PASS
}

#[inline(always)]
fn see(skb: *mut __sk_buff, sent: bool) {
    let Some(packet) = headers::tcp(skb) else { return };
    let ends = packet.flags & (tcp_flag::FIN | tcp_flag::RST) != 0;
    if packet.len == 0 && !ends && packet.flags & tcp_flag::SYN == 0 {
        return;
    }
    let packet = packet.forgotten();
    let Some(sk) = socket_of(skb) else { return };
    let Some(config) = CONFIG.get(0) else { return };
    if is_listener(sk) {
        if !sent {
            // In a program of its own: in one, the verifier walks this one's paths for each of that one's.
            // SAFETY: the map holds a program of this type, or nothing: then the call fails, and the packet is passed over.
            #[expect(unsafe_code, reason = "a helper")]
            unsafe {
                EARLY.tail_call(&SkBuffContext::new(skb), 0);
            }
        }
        return;
    }
    // One of each for all paths: the program's stack has 512 bytes.
    let mut header = EventHeader { direction: if sent { direction::SENT } else { direction::RECEIVED }, ..EventHeader::default() };
    let mut head = Head::default();
    let Some(socket) = storage(sk, packet.len != 0) else { return };
    filter::take_verdict(skb, socket, config);
    if socket.state == State::Ignored as u32 {
        return;
    }
    let mut judgement = Judgement::Other;
    if socket.state == State::Unknown as u32 {
        if packet.len == 0 {
            return;
        }
        judgement = filter::judge(skb, sk, socket, &packet, config, sent, &mut head);
        match judgement {
            Judgement::Other => return,
            Judgement::Kafka => socket.state = State::Candidate as u32,
            Judgement::Overtook => {}
        }
    }
    capture::describe(&mut header, skb, sk, socket, &packet);
    let Some(way) = Way::now() else { return };
    if judgement == Judgement::Overtook {
        way.counts.add(Counter::Overtook, 1);
        header.flags = event_flag::OVERTOOK;
        capture::data::<EARLY_BLOCKS>(skb, &header, &packet, way);
        return;
    }
    if judgement == Judgement::Kafka {
        capture::open(sk, socket, &header, &head, way);
        trace(skb, "a socket became a candidate");
    }
    capture::data::<MAX_BLOCKS>(skb, &header, &packet, way);
    // Not `ends`: the verifier would walk the copying above once for each of its values.
    if black_box(packet.flags) & (tcp_flag::FIN | tcp_flag::RST) != 0 {
        capture::close(&header, &packet, way);
    }
}

/// A packet comes to a listener: a SYN, or data that came before the connection's own socket existed (deferred accept, fast open, or the
/// last packet of the handshake was lost or overtaken). Called by [`packet_ingress`].
#[cgroup_skb(ingress)]
pub(crate) fn packet_early(ctx: SkBuffContext) -> i32 {
    see_early(ctx.skb.skb);
    PASS
}

#[inline(always)]
fn see_early(skb: *mut __sk_buff) {
    let Some(packet) = headers::tcp(skb) else { return };
    let packet = packet.forgotten();
    let (Some(sk), Some(config)) = (socket_of(skb), CONFIG.get(0)) else { return };
    let Some(listener) = storage(sk, true) else { return };
    if listener.origin == 0 {
        // SAFETY: `skb` is the program's context.
        #[expect(unsafe_code, reason = "a helper")]
        let cookie = unsafe { generated::bpf_get_socket_cookie(skb.cast()) };
        listener.origin = cookie;
    }
    if packet.len == 0 {
        return;
    }
    count(Counter::BeforeAccept, 1);
    let mut header = EventHeader { direction: direction::RECEIVED, ..EventHeader::default() };
    if !capture::describe_early(&mut header, skb, &packet) {
        return;
    }
    let rule = if config.has_port_rules == 0 { None } else { filter::port_rule(u32::from(header.local_port), u32::from(header.peer_port)) };
    if rule == Some(PortRule::Exclude as u32) || rule.is_none() && !can_be_kafka(skb, &packet) {
        return;
    }
    // The socket that this data belongs to gets the flag with the rest of the storage when the kernel makes it.
    if listener.flags & flag::EXPECTED == 0 {
        listener.flags |= flag::EXPECTED;
    }
    if let Some(way) = Way::now() {
        capture::data::<EARLY_BLOCKS>(skb, &header, &packet, way);
    }
}

/// Judges what there is: a listener's data cannot be gathered, as it belongs to many connections.
#[inline(always)]
fn can_be_kafka(skb: *mut __sk_buff, packet: &Packet) -> bool {
    if packet.len >= HEAD_BYTES {
        return filter::is_kafka(skb, packet, false, &mut Head::default());
    }
    if packet.len >= 4 {
        return headers::load::<[u8; 4]>(skb, packet.payload).is_some_and(|size| judge::is_request_size(u32::from_be_bytes(size)));
    }
    true
}

#[inline(always)]
fn is_listener(sk: *mut bpf_sock) -> bool {
    // SAFETY: a full socket, checked for null.
    #[expect(unsafe_code, reason = "the socket is a pointer")]
    unsafe {
        (*sk).state == LISTEN
    }
}

/// The packet's full socket. None for packets without one, and for those of half-open and already closed connections.
#[inline(always)]
fn socket_of(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: `skb` is the program's context, whose socket may be null.
    #[expect(unsafe_code, reason = "the context is a pointer, and a helper")]
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let sk = generated::bpf_sk_fullsock(sk);
        if sk.is_null() { None } else { Some(sk) }
    }
}

/// The socket's storage, made if wanted. Both directions may have it at the same time: each writes its own half.
#[inline(always)]
fn storage<'a>(sk: *mut bpf_sock, create: bool) -> Option<&'a mut Socket> {
    let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
    // SAFETY: `sk` is a full socket; the storage lives as long as the program runs.
    #[expect(unsafe_code, reason = "a helper, and a map value is reached by pointer")]
    let socket =
        unsafe { generated::bpf_sk_storage_get(SOCKETS.as_ptr(), sk.cast(), core::ptr::null_mut(), flags).cast::<Socket>().as_mut() };
    if socket.is_none() && create {
        count(Counter::LostNoState, 1);
    }
    socket
}

/// A line in the log of debug builds.
#[inline(always)]
fn trace(skb: *mut __sk_buff, what: &str) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(&SkBuffContext::new(skb), "{}", what);
    #[cfg(not(feature = "log"))]
    let _ = (skb, what);
}
