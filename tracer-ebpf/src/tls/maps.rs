//! All maps of the object.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::macros::btf_map;
use tracer_common::counter::COUNTERS;
use tracer_common::limits;
use tracer_common::tls::{Call, CallKey, Session, SessionKey, TlsConfig, Walk};

/// Events to user space. User space sets the size.
#[btf_map]
pub(crate) static RING: RingBuf<[u8; 0], { limits::DEFAULT_RING_BYTES as usize }> = RingBuf::new();

/// Settings, at index 0.
#[btf_map]
pub(crate) static TLS_CONFIG: Array<TlsConfig, 1> = Array::new();

/// 1 at index 0 while the reader sleeps: whoever sees it clears it and wakes the reader.
#[btf_map]
pub(crate) static SLEEPING: Array<u32, 1> = Array::new();

/// Rules by port, values of [`tracer_common::config::PortRule`].
#[btf_map]
pub(crate) static PORTS: HashMap<u32, u32, { limits::MAX_PORT_RULES as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What user space decided, by session: a [`tracer_common::socket::State`].
#[btf_map]
pub(crate) static VERDICTS: LruHashMap<u64, u32, { limits::MAX_SESSIONS as usize }> = LruHashMap::new();

/// Sessions, least recently used forgotten first: not all libraries say that one ended.
#[btf_map]
pub(crate) static SESSIONS: LruHashMap<SessionKey, Session, { limits::MAX_SESSIONS as usize }> = LruHashMap::new();

/// Calls that have not returned. Those of a thread that was killed in one are forgotten in time.
#[btf_map]
pub(crate) static CALLS: LruHashMap<CallKey, Call, { limits::MAX_CALLS as usize }> = LruHashMap::new();

/// What is left to copy of the call that a thread is in, by process and thread.
#[btf_map]
pub(crate) static WALKS: LruHashMap<u64, Walk, { limits::MAX_CALLS as usize }> = LruHashMap::new();

/// At index 0 the program that goes on copying.
#[btf_map]
pub(crate) static GO_ON: ProgramArray<1> = ProgramArray::new();

/// Counters by [`tracer_common::counter::Counter`], together at index 0.
#[btf_map]
pub(crate) static COUNTS: PerCpuArray<[u64; COUNTERS as usize], 1> = PerCpuArray::new();
