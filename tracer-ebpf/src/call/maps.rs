//! Maps of both objects. Of the older kind, which every kernel's loader takes.

use aya_ebpf::helpers::generated;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray};
use tracer_common::call::{Call, CallEvent, CallSocket, Layout, MAX_CALLS, MAX_SOCKETS, Walk};
use tracer_common::config::Config;
use tracer_common::counter::COUNTERS;
use tracer_common::limits::MAX_PORT_RULES;
use tracer_common::verdict;

use crate::transport::SHARED;

/// State of each socket, by its address in the kernel.
#[map]
pub(crate) static SOCKETS: LruHashMap<u64, CallSocket> = LruHashMap::with_max_entries(MAX_SOCKETS, 0);

/// The call that each thread is in.
#[map]
pub(crate) static CALLS: LruHashMap<u64, Call> = LruHashMap::with_max_entries(MAX_CALLS, 0);

/// Settings, at index 0.
#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, SHARED);

/// Where the kernel's structures hold what is read, at index 0.
#[map]
pub(crate) static LAYOUT: Array<Layout> = Array::with_max_entries(1, 0);

/// Rules by port, values of [`tracer_common::config::PortRule`].
#[map]
pub(crate) static PORTS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PORT_RULES, 0);

/// What user space decided, as [`tracer_common::verdict`] says, by the socket's number.
#[map]
pub(crate) static VERDICTS: Array<u64> = Array::with_max_entries(verdict::SLOTS, SHARED);

/// How many sockets this CPU gave a number, at index 0.
#[map]
pub(crate) static NUMBERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The event in the making, at index 0.
#[map]
pub(crate) static EVENT: PerCpuArray<CallEvent> = PerCpuArray::with_max_entries(1, 0);

/// Where the copying program is, at index 0.
#[map]
pub(crate) static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// At index 0 the copying program.
#[map]
pub(crate) static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Counters by [`tracer_common::counter::Counter`], together at the index of each CPU. User space sets how many there are.
#[map]
static COUNTS: Array<[u64; COUNTERS as usize]> = Array::with_max_entries(1, SHARED);

/// The counters of this CPU.
#[inline(always)]
pub(crate) fn counts() -> Option<*mut [u64; COUNTERS as usize]> {
    // SAFETY: a helper without arguments.
    #[expect(unsafe_code, reason = "a helper")]
    let cpu = unsafe { generated::bpf_get_smp_processor_id() };
    COUNTS.get_ptr_mut(cpu)
}
