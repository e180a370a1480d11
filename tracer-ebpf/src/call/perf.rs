//! Events into the perf buffer of this CPU. What finds no room there the kernel counts, and tells the reader; what finds no buffer is counted here.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_F_CURRENT_CPU;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerfEventByteArray;
use tracer_common::call::CallEvent;
use tracer_common::counter::Counter;

use crate::counts::count;

/// Flags of maps that the daemon reads and writes while programs run: kernels without a ring may not know shared memory either.
pub(crate) const SHARED: u32 = 0;

/// `ENOSPC`: the buffer is full.
const FULL: i64 = -28;

/// Events to user space.
#[map]
static EVENTS: PerfEventByteArray = PerfEventByteArray::new(0);

/// Hands over the first `len` bytes of an event, which has `_bytes` of payload.
#[inline(always)]
pub(crate) fn emit(ctx: *mut c_void, event: *mut CallEvent, len: u64, _bytes: u32) {
    // SAFETY: `len` bytes lie in the event, which the verifier checks.
    #[expect(unsafe_code, reason = "a helper")]
    let result = unsafe {
        generated::bpf_perf_event_output(ctx, (&raw const EVENTS).cast_mut().cast(), u64::from(BPF_F_CURRENT_CPU as u32), event.cast(), len)
    };
    if result != 0 && result != FULL {
        count(Counter::LostNoBuffer, 1);
    }
}
