//! Object `socket_ring`: what object `socket` is, with its events in one ring for all CPUs (Linux 5.8 and later). An object of its own, since
//! a kernel that does not know a map refuses all that is in the object.

#![no_std]
#![no_main]

mod call;
mod counts;
#[path = "call/maps.rs"]
mod maps;
#[path = "programs/socket.rs"]
mod programs;
#[path = "call/ring.rs"]
mod transport;
mod wake;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Read by the kernel's loader: some helpers are for GPL-compatible programs only.
#[expect(unsafe_code, reason = "names the section that the loader looks for")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
