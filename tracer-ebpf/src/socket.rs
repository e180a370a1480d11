//! Object `socket`: sees what programs give to TCP sockets and take from them, finds Kafka, and copies its bytes to user space.
//!
//! In: calls of the kernel's own functions for TCP. Out: the events of [`tracer_common::call`] in a perf buffer per CPU. Runs on Linux 4.14 and
//! later: no loops, no calls between programs but tail calls, nothing in read-only or writable data, 4096 instructions a program.
//! `cargo xtask test` holds the object against that.

#![no_std]
#![no_main]

mod call;
mod counts;
#[path = "call/maps.rs"]
mod maps;
#[path = "programs/socket.rs"]
mod programs;
#[path = "call/perf.rs"]
mod transport;

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
