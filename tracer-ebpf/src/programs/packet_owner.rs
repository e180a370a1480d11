//! `cgroup/connect4`, `connect6`, `getpeername4`, `getpeername6`: run in the process that connects, or that asks who it accepted (within
//! `accept` itself when the caller wants the address). They write that process into the socket's storage, so that each event carries it.
//!
//! Kernel: `__cgroup_bpf_run_filter_sock_addr` (kernel/bpf/cgroup.c). All return 1 always: go on.

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use tracer_common::socket::{Socket, flag};

use crate::maps::SOCKETS;

/// `SOCK_STREAM`.
const STREAM: u32 = 1;

/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// What the kernel is told: go on.
const GO_ON: i32 = 1;

/// A socket connects to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub(crate) fn owner_connect4(ctx: SockAddrContext) -> i32 {
    own(&ctx, flag::INITIATOR)
}

/// A socket connects to an IPv6 address (Java: to any).
#[cgroup_sock_addr(connect6)]
pub(crate) fn owner_connect6(ctx: SockAddrContext) -> i32 {
    own(&ctx, flag::INITIATOR)
}

/// A process asks for the other end of an IPv4 connection.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn owner_peer4(ctx: SockAddrContext) -> i32 {
    own(&ctx, 0)
}

/// A process asks for the other end of an IPv6 connection.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn owner_peer6(ctx: SockAddrContext) -> i32 {
    own(&ctx, 0)
}

/// The first owner stays: a socket that is handed to children keeps it.
#[inline(always)]
fn own(ctx: &SockAddrContext, set: u32) -> i32 {
    // SAFETY: the kernel's context; the storage lives as long as the program runs.
    #[expect(unsafe_code, reason = "the context is a pointer, and a helper")]
    unsafe {
        let address = ctx.sock_addr;
        if (*address).type_ != STREAM || (*address).protocol != TCP {
            return GO_ON;
        }
        let sk = (*address).__bindgen_anon_1.sk;
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        let socket = generated::bpf_sk_storage_get(SOCKETS.as_ptr(), sk.cast(), core::ptr::null_mut(), create).cast::<Socket>();
        if !socket.is_null() {
            if (*socket).tgid == 0 {
                (*socket).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
            }
            (*socket).flags |= set;
        }
    }
    GO_ON
}
