//! Object `tls`: sees the plaintext of TLS sessions at the libraries that make them, and copies that of Kafka to user space.
//!
//! In: calls into OpenSSL and its relatives, `GnuTLS`, Go's `crypto/tls` and rustls, and connections to ports that are known for Kafka. Out: the events of
//! [`tracer_common::event`] in the ring. The programs keep to what Linux 4.14 can verify, but for the ring and the boot clock (5.8).

#![no_std]
#![no_main]

/// Runs a block once for each of the tokens: the oldest kernels verify no loops.
macro_rules! times {
    ($block:block;) => {};
    ($block:block; $first:tt $($rest:tt)*) => { $block times!($block; $($rest)*) };
}

#[path = "tls/copy.rs"]
mod copy;
mod counts;
#[path = "tls/descriptor.rs"]
mod descriptor;
#[path = "programs/go.rs"]
mod go;
#[path = "tls/maps.rs"]
mod maps;
#[path = "programs/tls.rs"]
mod programs;
#[path = "programs/rustls.rs"]
mod rustls;
#[path = "tls/session.rs"]
mod session;
#[path = "tls/thread.rs"]
mod thread;
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
