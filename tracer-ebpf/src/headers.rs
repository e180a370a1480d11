//! From a packet at a socket to the place of its TCP payload.

use core::hint::black_box;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated;
use tracer_common::counter::Counter;

use crate::counts::count;

/// Flags of a TCP header's byte 13.
pub(crate) mod tcp_flag {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
}

/// TCP's number among the protocols over IP.
const TCP: u8 = 6;

/// Extension headers of IPv6 that are followed. Real packets carry at most two or three.
const MAX_EXTENSIONS: u32 = 6;

/// What the headers say.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    /// Where the TCP header begins, from the IP header on.
    pub(crate) tcp: u32,
    /// Where the payload begins.
    pub(crate) payload: u32,
    /// How long it is. From the packet's own length: the IP header's is 0 beyond 64 KiB.
    pub(crate) len: u32,
    /// TCP sequence number of the first payload byte.
    pub(crate) position: u32,
    /// Bits of [`tcp_flag`].
    pub(crate) flags: u8,
    /// 4 or 6.
    pub(crate) version: u8,
}

impl Packet {
    /// The same values, of which the verifier has forgotten how they came about. It walked many paths through the headers, and would walk all
    /// that follows for each of them: 28 thousand instructions of egress became 75 thousand.
    #[inline(always)]
    pub(crate) fn forgotten(self) -> Self {
        Self {
            tcp: black_box(self.tcp),
            payload: black_box(self.payload),
            len: black_box(self.len),
            position: black_box(self.position),
            flags: black_box(self.flags),
            version: black_box(self.version),
        }
    }
}

/// Finds TCP in a packet. None when it is not TCP, not its first fragment, or not readable (counted).
#[inline(always)]
pub(crate) fn tcp(skb: *mut __sk_buff) -> Option<Packet> {
    let start: [u8; 10] = read(skb, 0)?;
    let [first, ..] = start;
    let version = first >> 4;
    let tcp = match version {
        4 => over_ipv4(start)?,
        6 => over_ipv6(skb, start)?,
        _ => return None,
    };
    let [_, _, _, _, s0, s1, s2, s3, _, _, _, _, words, flags]: [u8; 14] = read(skb, tcp)?;
    // SAFETY: `skb` is the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    let packet_len = unsafe { (*skb).len };
    let payload = tcp + (u32::from(words >> 4) << 2);
    if payload > packet_len {
        count(Counter::SkippedHeaders, 1);
        return None;
    }
    let syn = u32::from(flags & tcp_flag::SYN != 0);
    Some(Packet {
        tcp,
        payload,
        len: packet_len - payload,
        // A SYN takes a number of its own: data in it (fast open) begins one after it.
        position: u32::from_be_bytes([s0, s1, s2, s3]).wrapping_add(syn),
        flags,
        version,
    })
}

#[inline(always)]
fn over_ipv4([first, _, _, _, _, _, fragment_high, fragment_low, _, protocol]: [u8; 10]) -> Option<u32> {
    if protocol != TCP || fragment_high & 0x1f != 0 || fragment_low != 0 {
        return None;
    }
    Some(u32::from(first & 15) << 2)
}

#[inline(always)]
fn over_ipv6(skb: *mut __sk_buff, [_, _, _, _, _, _, mut next, ..]: [u8; 10]) -> Option<u32> {
    let mut offset = 40u32;
    let mut i = 0;
    while i < MAX_EXTENSIONS {
        if next == TCP {
            return Some(offset);
        }
        let [following, words, fragment_high, fragment_low]: [u8; 4] = read(skb, offset)?;
        offset += match next {
            // Hop by hop, routing, destination options. Loopback puts a jumbo header of the first kind on packets beyond 64 KiB.
            0 | 43 | 60 => (u32::from(words) << 3) + 8,
            44 if fragment_high == 0 && fragment_low & 0xf8 == 0 => 8,
            // Authentication.
            51 => (u32::from(words) << 2) + 8,
            _ => return None,
        };
        next = following;
        i += 1;
    }
    None
}

/// Reads a value at an offset; directly where the packet is linear, as headers always were when tried.
#[inline(always)]
fn read<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    // SAFETY: `skb` is the program's context.
    #[expect(unsafe_code, reason = "the context is a pointer")]
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let at = data + (offset as usize & 0x3fff);
    if at + size_of::<T>() <= end {
        // SAFETY: the comparison with `data_end` right above is the verifier's proof that the bytes are there.
        #[expect(unsafe_code, reason = "direct packet access")]
        return Some(unsafe { core::ptr::read_unaligned(at as *const T) });
    }
    load(skb, offset).or_else(|| {
        count(Counter::SkippedHeaders, 1);
        None
    })
}

/// Reads a value wherever its bytes lie.
#[inline(always)]
pub(crate) fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes the whole value or fails.
    #[expect(unsafe_code, reason = "a helper")]
    let failed =
        unsafe { generated::bpf_skb_load_bytes(skb.cast_const().cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) };
    if failed != 0 {
        return None;
    }
    // SAFETY: the helper succeeded, so all bytes are written; any bytes are a value of the arrays this is used with.
    #[expect(unsafe_code, reason = "written by a helper")]
    Some(unsafe { value.assume_init() })
}

/// Reads 16 bytes to where they belong. False when they cannot be read.
#[inline(always)]
pub(crate) fn load_into(skb: *mut __sk_buff, offset: u32, to: &mut [u8; 16]) -> bool {
    // SAFETY: the helper writes the whole array or fails.
    #[expect(unsafe_code, reason = "a helper")]
    unsafe {
        generated::bpf_skb_load_bytes(skb.cast_const().cast(), offset, to.as_mut_ptr().cast(), 16) == 0
    }
}
