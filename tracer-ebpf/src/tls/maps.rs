//! All maps of the object.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, ProgramArray, RingBuf};
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::btf_map;
use tracer_common::counter::COUNTERS;
use tracer_common::limits;
use tracer_common::tls::{Call, CallKey, OwnedKey, Session, SessionKey, Thread, TlsConfig, Walk, Watched, transport};
use tracer_common::verdict;

/// Flags of maps that the daemon reads and writes while programs run: through shared memory, since the kernel runs no program on a probe
/// while a system call for a map is at work on its CPU.
const SHARED: usize = BPF_F_MMAPABLE as usize;

/// Events to user space. User space sets the size.
#[btf_map]
pub(crate) static RING: RingBuf<[u8; 0], { limits::DEFAULT_RING_BYTES as usize }> = RingBuf::new();

/// Settings, at index 0.
#[btf_map]
pub(crate) static TLS_CONFIG: Array<TlsConfig, 1> = Array::new();

/// 1 at index 0 while the reader sleeps: whoever sees it clears it and wakes the reader.
#[btf_map]
pub(crate) static SLEEPING: Array<u32, 1, SHARED> = Array::new();

/// Rules by port, values of [`tracer_common::config::PortRule`].
#[btf_map]
pub(crate) static PORTS: HashMap<u32, u32, { limits::MAX_PORT_RULES as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What user space decided, as [`tracer_common::verdict`] says, by session.
#[btf_map]
pub(crate) static VERDICTS: Array<u64, { verdict::SLOTS as usize }, SHARED> = Array::new();

/// Sessions, least recently used forgotten first: not all libraries say that one ended.
#[btf_map]
pub(crate) static SESSIONS: LruHashMap<SessionKey, Session, { limits::MAX_SESSIONS as usize }> = LruHashMap::new();

/// Which session a socket belongs to.
#[btf_map]
pub(crate) static OWNERS: LruHashMap<OwnedKey, SessionKey, { limits::MAX_SESSIONS as usize }> = LruHashMap::new();

/// Processes that have sessions whose objects do not say their sockets: what their threads do with sockets is looked at.
#[btf_map]
pub(crate) static WATCHED: LruHashMap<u32, Watched, { limits::MAX_WATCHED as usize }> = LruHashMap::new();

/// What the threads of those did, by process and thread.
#[btf_map]
pub(crate) static THREADS: LruHashMap<u64, Thread, { limits::MAX_CALLS as usize }> = LruHashMap::new();

/// Calls that have not returned. Those of a thread that was killed in one are forgotten in time.
#[btf_map]
pub(crate) static CALLS: LruHashMap<CallKey, Call, { limits::MAX_CALLS as usize }> = LruHashMap::new();

/// What is left to copy of the call that a thread is in, by process and thread.
#[btf_map]
pub(crate) static WALKS: LruHashMap<u64, Walk, { limits::MAX_CALLS as usize }> = LruHashMap::new();

/// Where sessions of `GnuTLS` have their sockets, as [`tracer_common::tls::transport`] says.
#[btf_map]
pub(crate) static TRANSPORTS: Array<u64, { transport::SLOTS as usize }, SHARED> = Array::new();

/// At index 0 the program that goes on copying.
#[btf_map]
pub(crate) static GO_ON: ProgramArray<1> = ProgramArray::new();

/// Counters by [`tracer_common::counter::Counter`], together at the index of each CPU. User space sets how many there are.
#[btf_map]
static COUNTS: Array<[u64; COUNTERS as usize], 1, SHARED> = Array::new();

/// The counters of this CPU.
#[inline(always)]
pub(crate) fn counts() -> Option<*mut [u64; COUNTERS as usize]> {
    // SAFETY: a helper without arguments.
    #[expect(unsafe_code, reason = "a helper")]
    let cpu = unsafe { generated::bpf_get_smp_processor_id() };
    COUNTS.get_ptr_mut(cpu)
}
