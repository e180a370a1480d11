//! When a program wakes the reader.

use aya_ebpf::bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};

/// The flags of a submit, where `sleeping` is 1 while the reader sleeps. The kernel's own rule wakes the reader for nearly every event when it
/// keeps up, which halves the speed of what is observed; so the reader looks by itself, and asks to be woken only after a while without events.
#[inline(always)]
pub(crate) fn flags(sleeping: Option<*mut u32>) -> u64 {
    let Some(sleeping) = sleeping else {
        return u64::from(BPF_RB_NO_WAKEUP);
    };
    // SAFETY: the map gave the pointer, and it lives as long as the program. Two programs may both wake the reader: harmless.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    unsafe {
        if sleeping.read_volatile() == 0 {
            return u64::from(BPF_RB_NO_WAKEUP);
        }
        sleeping.write_volatile(0);
    }
    u64::from(BPF_RB_FORCE_WAKEUP)
}
