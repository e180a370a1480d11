//! Object `packet`: sees each TCP packet of the host at its socket, finds Kafka, and copies its bytes to user space.
//!
//! In: packets at the root of cgroup v2, both ways, and the connect and getpeername calls that tell who owns a socket.
//! Out: the events of [`tracer_common::event`] in the ring. Needs Linux 5.8 (ring buffer, boot clock, socket storage).

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod capture;
mod counts;
mod filter;
mod headers;
mod maps;
mod programs;
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
