//! Where this kernel's structures hold what the programs read: from the kernel's own types, and where it has none, from a table by version.
//! What is found is not believed before it was tried ([`super::trial`]).

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read};

use tracer_common::call::{Layout, NONE};

use crate::source::ebpf::btf::{Btf, BtfError};
use crate::source::features::KernelVersion;

/// Where kernels describe their types.
const BTF_FILE: &str = "/sys/kernel/btf/vmlinux";

/// Start of the kernel's mapping of all memory where its place is not random, since Linux 4.20, and before (which stable versions of older
/// kernels left too).
const PAGE_OFFSET: u64 = 0xffff_8880_0000_0000;
const PAGE_OFFSET_BEFORE: u64 = 0xffff_8800_0000_0000;

/// Start of its table of pages, likewise.
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;

/// `sizeof(struct page)` that the programs count with.
const PAGE_STRUCT_BYTES: u32 = 64;

/// Why the layout is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LayoutError {
    #[error("{BTF_FILE} cannot be read: {0}")]
    Btf(#[from] BtfError),
    #[error("the kernel's types have no {0}")]
    Missing(&'static str),
    #[error("the kernel's types have {0} at another place than all kernels before")]
    Moved(&'static str),
    #[error("the kernel does not describe its types ({BTF_FILE}), and its version is not in the table (4.14 to 6.3)")]
    Unknown,
}

/// What is known of this kernel, with what has to be tried in turn for the bytes of pages: the first that works is right.
pub(super) struct Known {
    pub(super) layout: Layout,
    pub(super) pages: Vec<Pages>,
    /// Where it is from, for the log.
    pub(super) from: &'static str,
}

/// Where the bytes of a page lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    pub(super) page_offset_at: u64,
    pub(super) page_offset: u64,
    pub(super) vmemmap_at: u64,
    pub(super) vmemmap: u64,
}

impl Pages {
    pub(super) const fn put_into(self, layout: &mut Layout) {
        layout.reads_pages = 1;
        layout.page_offset_at = self.page_offset_at;
        layout.page_offset = self.page_offset;
        layout.vmemmap_at = self.vmemmap_at;
        layout.vmemmap = self.vmemmap;
    }
}

/// Finds the layout of the running kernel.
pub(super) fn find() -> Result<Known, LayoutError> {
    let version = KernelVersion::running();
    let (layout, has_pages, from) = match std::fs::read(BTF_FILE) {
        Ok(bytes) => {
            let btf = Btf::parse(&bytes)?;
            (from_types(&btf)?, btf.size_of("page") == Some(PAGE_STRUCT_BYTES), "the kernel's types")
        }
        Err(_) => (version.and_then(from_version).ok_or(LayoutError::Unknown)?, true, "a table of versions"),
    };
    // Elsewhere pages are reached in other ways.
    let pages = if has_pages && cfg!(target_arch = "x86_64") {
        std::fs::File::open("/proc/kallsyms").map_or_else(|_| Vec::new(), pages)
    } else {
        Vec::new()
    };
    Ok(Known { layout, pages, from })
}

fn from_types(btf: &Btf<'_>) -> Result<Layout, LayoutError> {
    let offset = |structure, member, name| btf.member_offset(structure, member).map(u64::from).ok_or(LayoutError::Missing(name));
    let constant = |name| btf.constant(name).map(u64::from).ok_or(LayoutError::Missing(name));
    for (member, place, name) in [
        ("skc_daddr", 0, "sock_common.skc_daddr"),
        ("skc_rcv_saddr", 4, "sock_common.skc_rcv_saddr"),
        ("skc_dport", 12, "sock_common.skc_dport"),
        ("skc_num", 14, "sock_common.skc_num"),
        ("skc_family", 16, "sock_common.skc_family"),
        ("skc_state", 18, "sock_common.skc_state"),
    ] {
        if offset("sock_common", member, name)? != place {
            return Err(LayoutError::Moved(name));
        }
    }
    let (iovec, bvec) = (constant("ITER_IOVEC")?, constant("ITER_BVEC")?);
    // Before 5.14 the direction of the call lies in the same number, and for a while a mark of pages, below the kinds.
    let (iter_type, iter_type_mask) = match btf.member_offset("iov_iter", "iter_type") {
        Some(offset) => (u64::from(offset), 0xff),
        None => (offset("iov_iter", "type", "iov_iter.type")?, mask_before_5_14(iovec)),
    };
    let segments = ["__iov", "iov", "bvec"].into_iter().find_map(|member| btf.member_offset("iov_iter", member));
    Ok(Layout {
        msg_iter: offset("msghdr", "msg_iter", "msghdr.msg_iter")?,
        iter_type,
        iter_type_mask,
        iter_iov_offset: offset("iov_iter", "iov_offset", "iov_iter.iov_offset")?,
        iter_count: offset("iov_iter", "count", "iov_iter.count")?,
        iter_segments: segments.map(u64::from).ok_or(LayoutError::Missing("iov_iter.__iov"))?,
        iter_nr_segs: offset("iov_iter", "nr_segs", "iov_iter.nr_segs")?,
        iovec,
        ubuf: btf.constant("ITER_UBUF").map_or(NONE, u64::from),
        bvec,
        recv_has_nonblock: u64::from(btf.has_parameter("tcp_recvmsg", "nonblock").ok_or(LayoutError::Missing("tcp_recvmsg"))?),
        // Absent in kernels without IPv6, where no socket asks for it.
        v6_daddr: btf.member_offset("sock_common", "skc_v6_daddr").map_or(0, u64::from),
        v6_rcv_saddr: btf.member_offset("sock_common", "skc_v6_rcv_saddr").map_or(0, u64::from),
        reads_pages: 0,
        page_offset_at: 0,
        page_offset: 0,
        vmemmap_at: 0,
        vmemmap: 0,
        copied_seq: offset("tcp_sock", "copied_seq", "tcp_sock.copied_seq")?,
        rcv_nxt: offset("tcp_sock", "rcv_nxt", "tcp_sock.rcv_nxt")?,
        sampled_port: 0,
    })
}

/// All but the bits below the first kind: one where that is 0 (4.14 to 5.0, where the next is 2), two where it is 4.
const fn mask_before_5_14(iovec: u64) -> u64 {
    if iovec == 0 { 0xffff_fffe } else { 0xffff_fffc }
}

/// The layout by version (include/linux/uio.h, include/net/sock.h, net/ipv4/tcp.c).
fn from_version(version: KernelVersion) -> Option<Layout> {
    let at_least = |major, minor| version >= KernelVersion::new(major, minor);
    // From 6.4 on the iterator changed its form more than once; those kernels describe it.
    if !at_least(4, 14) || at_least(6, 4) {
        return None;
    }
    let (iovec, bvec) = match version {
        _ if at_least(5, 14) => (0, 2),
        _ if at_least(5, 1) => (4, 16),
        _ => (0, 4),
    };
    Some(Layout {
        msg_iter: 16,
        iter_type: 0,
        iter_type_mask: if at_least(5, 14) { 0xff } else { mask_before_5_14(iovec) },
        iter_iov_offset: 8,
        iter_count: 16,
        iter_segments: 24,
        iter_nr_segs: 32,
        iovec,
        ubuf: if at_least(6, 0) { 6 } else { NONE },
        bvec,
        recv_has_nonblock: u64::from(!at_least(5, 19)),
        v6_daddr: 56,
        v6_rcv_saddr: 72,
        reads_pages: 0,
        page_offset_at: 0,
        page_offset: 0,
        vmemmap_at: 0,
        vmemmap: 0,
        // The configuration decides as well as the version: looked for on a socket.
        copied_seq: 0,
        rcv_nxt: 0,
        sampled_port: 0,
    })
}

/// What can be right about pages, by the kernel's symbols: variables, or the constants of kernels that have no such variables.
fn pages(symbols: impl Read) -> Vec<Pages> {
    let (mut page_offset, mut vmemmap) = (None, None);
    let mut lines = BufReader::with_capacity(1 << 16, symbols);
    let mut line = Vec::new();
    while let Ok(1..) = lines.read_until(b'\n', &mut line) {
        if let Some((address, name)) = symbol(&line) {
            match name {
                b"page_offset_base" => page_offset = Some(address),
                b"vmemmap_base" => vmemmap = Some(address),
                _ => {}
            }
        }
        line.clear();
        if page_offset.is_some() && vmemmap.is_some() {
            break;
        }
    }
    match (page_offset, vmemmap) {
        (Some(1..), Some(1..)) => vec![Pages {
            page_offset_at: page_offset.unwrap_or_default(),
            page_offset: PAGE_OFFSET,
            vmemmap_at: vmemmap.unwrap_or_default(),
            vmemmap: VMEMMAP,
        }],
        (None, None) => [PAGE_OFFSET, PAGE_OFFSET_BEFORE]
            .map(|page_offset| Pages { page_offset_at: 0, page_offset, vmemmap_at: 0, vmemmap: VMEMMAP })
            .to_vec(),
        // Hidden from this process, or something new.
        _ => Vec::new(),
    }
}

/// Address and name in a line of `/proc/kallsyms`.
fn symbol(line: &[u8]) -> Option<(u64, &[u8])> {
    let mut words = line.split(u8::is_ascii_whitespace);
    let (address, _, name) = (words.next()?, words.next()?, words.next()?);
    Some((u64::from_str_radix(std::str::from_utf8(address).ok()?, 16).ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_was_seen() {
        let row = |major, minor| from_version(KernelVersion::new(major, minor));
        let kinds = |major, minor| row(major, minor).map(|layout| (layout.iovec, layout.bvec, layout.ubuf, layout.recv_has_nonblock));
        assert_eq!(row(4, 13), None);
        assert_eq!(kinds(4, 14), Some((0, 4, NONE, 1)));
        assert_eq!(kinds(5, 4), Some((4, 16, NONE, 1)));
        assert_eq!(kinds(5, 10), Some((4, 16, NONE, 1)));
        assert_eq!(kinds(5, 15), Some((0, 2, NONE, 1)));
        assert_eq!(kinds(6, 1), Some((0, 2, 6, 0)));
        assert_eq!(row(6, 4), None);
        // As `READ | ITER_IOVEC` and `WRITE | ITER_BVEC` lie in memory.
        for (minor, word, kind) in [(4, 4 | 1, 4), (4, 16 | 1, 16), (4, 16 | 2 | 1, 16)] {
            assert_eq!(word & row(5, minor).unwrap().iter_type_mask, kind);
        }
        assert_eq!((4 | 1) & row(4, 14).unwrap().iter_type_mask, 4);
        assert_eq!((2 | 1) & row(4, 19).unwrap().iter_type_mask, 2, "a kernel's own memory is no user's");
    }

    #[test]
    fn the_types_of_this_kernel_agree_with_what_is_known_of_it() {
        let Ok(bytes) = std::fs::read(BTF_FILE) else { return };
        let layout = from_types(&Btf::parse(&bytes).unwrap()).unwrap();
        assert_eq!((layout.msg_iter, layout.v6_daddr, layout.v6_rcv_saddr), (16, 56, 72));
        assert!(layout.rcv_nxt != 0 && layout.copied_seq != 0);
        if let Some(known) = KernelVersion::running().and_then(from_version) {
            assert_eq!(Layout { copied_seq: 0, rcv_nxt: 0, ..layout }, known);
        } else {
            assert_eq!((layout.iter_iov_offset, layout.iter_segments, layout.iter_count, layout.iter_nr_segs), (8, 16, 24, 32));
            assert_eq!((layout.iovec, layout.ubuf, layout.bvec, layout.recv_has_nonblock), (1, 0, 2, 0));
        }
    }

    #[test]
    fn pages_are_where_the_symbols_say() {
        let both = b"ffffffff82a00000 T _text\nffffffff82a11110 D page_offset_base\nffffffff82a11120 D vmemmap_base\n";
        let found = pages(&both[..]);
        assert_eq!((found.len(), found[0].page_offset_at, found[0].vmemmap_at), (1, 0xffff_ffff_82a1_1110, 0xffff_ffff_82a1_1120));
        let none = pages(&b"ffffffff82a00000 T _text\n"[..]);
        assert_eq!(none.iter().map(|pages| pages.page_offset).collect::<Vec<_>>(), [PAGE_OFFSET, PAGE_OFFSET_BEFORE]);
        for hidden in [
            &b"0000000000000000 D page_offset_base\n0000000000000000 D vmemmap_base\n"[..],
            b"ffffffff82a11110 D page_offset_base\n",
            b"ffffffff82a11120 D vmemmap_base",
        ] {
            assert!(pages(hidden).is_empty());
        }
        assert_eq!(pages(&b"\xff\xfe\n\n x page_offset_base\n"[..]).len(), 2, "lines of no such form say nothing");
    }
}
