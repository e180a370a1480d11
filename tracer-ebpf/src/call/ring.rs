//! Events into the ring of all CPUs.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, RingBuf};
use tracer_common::call::CallEvent;
use tracer_common::counter::Counter;
use tracer_common::limits::DEFAULT_RING_BYTES;

use crate::counts::count;
use crate::wake;

/// Flags of maps that the daemon reads and writes while programs run: through shared memory, since the kernel runs no program on a probe
/// while a system call for a map is at work on its CPU.
pub(crate) const SHARED: u32 = BPF_F_MMAPABLE;

/// Events to user space. User space sets the size.
#[map]
static RING: RingBuf = RingBuf::with_byte_size(DEFAULT_RING_BYTES, 0);

/// 1 at index 0 while the reader sleeps: whoever sees it clears it and wakes the reader.
#[map]
static SLEEPING: Array<u32> = Array::with_max_entries(1, SHARED);

/// Hands over the first `len` bytes of an event, which has `bytes` of payload.
#[inline(always)]
pub(crate) fn emit(_ctx: *mut c_void, event: *mut CallEvent, len: u64, bytes: u32) {
    // SAFETY: `len` bytes lie in the event, which the verifier checks.
    #[expect(unsafe_code, reason = "a helper")]
    let failed = unsafe {
        generated::bpf_ringbuf_output((&raw const RING).cast_mut().cast(), event.cast(), len, wake::flags(SLEEPING.get_ptr_mut(0)))
    };
    if failed != 0 {
        count(Counter::LostRingFull, 1);
        count(Counter::LostRingFullBytes, u64::from(bytes));
    }
}
