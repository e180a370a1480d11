//! All maps of the object.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::macros::btf_map;
use tracer_common::config::Config;
use tracer_common::counter::COUNTERS;
use tracer_common::limits;
use tracer_common::socket::Socket;

/// State of each socket, in the socket itself.
#[btf_map]
pub(crate) static SOCKETS: SocketStorage = SocketStorage::new();

/// Events to user space. User space sets the size.
#[btf_map]
pub(crate) static RING: RingBuf<[u8; 0], { limits::DEFAULT_RING_BYTES as usize }> = RingBuf::new();

/// Settings, at index 0.
#[btf_map]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();

/// 1 at index 0 while the reader sleeps: whoever sees it clears it and wakes the reader.
#[btf_map]
pub(crate) static SLEEPING: Array<u32, 1> = Array::new();

/// Rules by port, values of [`tracer_common::config::PortRule`].
#[btf_map]
pub(crate) static PORTS: HashMap<u32, u32, { limits::MAX_PORT_RULES as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What user space decided, by cookie: a [`tracer_common::socket::State`]. Least recently used go first, since a socket that was closed
/// never takes its verdict.
#[btf_map]
pub(crate) static VERDICTS: LruHashMap<u64, u32, { limits::MAX_VERDICTS as usize }> = LruHashMap::new();

/// At index 0 the program for listeners' packets.
#[btf_map]
pub(crate) static EARLY: ProgramArray<1> = ProgramArray::new();

/// Counters by [`tracer_common::counter::Counter`], together at index 0.
#[btf_map]
static COUNTS: PerCpuArray<[u64; COUNTERS as usize], 1> = PerCpuArray::new();

/// The counters of this CPU.
#[inline(always)]
pub(crate) fn counts() -> Option<*mut [u64; COUNTERS as usize]> {
    COUNTS.get_ptr_mut(0)
}

/// Storage in each socket, copied from a listener into the sockets that it accepts (`BPF_F_CLONE`): they know their listener.
///
/// aya-ebpf's own type sets no such flag. The fields are what the loader reads from the object's BTF; none is ever used.
#[repr(C)]
pub(crate) struct SocketStorage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Socket,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the pointers are null and never read; the kernel's map behind the symbol is made for many CPUs.
#[expect(unsafe_code, reason = "a static of raw pointers")]
unsafe impl Sync for SocketStorage {}

impl SocketStorage {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The map as helpers take it.
    #[inline(always)]
    pub(crate) const fn as_ptr(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
