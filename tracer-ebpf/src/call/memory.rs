//! Reads the memory of the kernel and of the process that is in the call.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated;

/// Reads a value of the kernel's memory.
#[inline(always)]
pub(crate) fn kernel<T: Copy>(from: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    if kernel_into(value.as_mut_ptr().cast(), size_of::<T>() as u32, from) != 0 {
        return None;
    }
    // SAFETY: the helper succeeded, so all bytes are written; used with numbers and arrays of them only.
    #[expect(unsafe_code, reason = "written by a helper")]
    Some(unsafe { value.assume_init() })
}

/// Copies kernel memory; 0 when it could be read.
#[inline(always)]
pub(crate) fn kernel_into(to: *mut c_void, len: u32, from: u64) -> i64 {
    // SAFETY: `to` has room for `len` bytes, which the verifier checks; the helper takes any address to read from.
    #[expect(unsafe_code, reason = "a helper")]
    unsafe {
        generated::bpf_probe_read_kernel(to, len, from as *const c_void)
    }
}

/// Copies memory of the process; 0 when it could be read.
#[inline(always)]
pub(crate) fn user_into(to: *mut c_void, len: u32, from: u64) -> i64 {
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "a helper")]
    unsafe {
        generated::bpf_probe_read_user(to, len, from as *const c_void)
    }
}

/// Nanoseconds of the monotonic clock: the one that every kernel has.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    #[expect(unsafe_code, reason = "a helper")]
    unsafe {
        generated::bpf_ktime_get_ns()
    }
}

/// Thread and process of the call.
#[inline(always)]
pub(crate) fn thread() -> u64 {
    // SAFETY: a helper without arguments.
    #[expect(unsafe_code, reason = "a helper")]
    unsafe {
        generated::bpf_get_current_pid_tgid()
    }
}
