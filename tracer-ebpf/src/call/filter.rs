//! Whom to look at: the state of sockets, port rules, user space's verdicts, and the judgement of first bytes.

use core::hint::black_box;

use aya_ebpf::helpers::generated;
use tracer_common::call::{CallSocket, Layout, Walk, Way, flag};
use tracer_common::config::{Config, PortRule};
use tracer_common::counter::Counter;
use tracer_common::judge;
use tracer_common::limits::HEAD_BYTES;
use tracer_common::socket::State;
use tracer_common::verdict;

use super::memory;
use crate::counts::count;
use crate::maps::{CONFIG, NUMBERS, PORTS, SOCKETS, VERDICTS};

/// `AF_INET`, `AF_INET6`.
const IPV4: u32 = 2;
const IPV6: u32 = 10;

/// The first value of `skc_state` (`include/net/tcp_states.h`) that says that the other end sends no more: `TCP_TIME_WAIT`, then `TCP_CLOSE`,
/// `TCP_CLOSE_WAIT`, `TCP_LAST_ACK` and `TCP_CLOSING`. Listeners, in between, take no bytes.
const TIME_WAIT: u32 = 6;

/// Third word of an IPv4 address in IPv6's form, `::ffff:a.b.c.d`.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Bits of a number that say which CPU gave it.
const CPU_BITS: u32 = 12;

/// The start of `struct sock_common`, which is the start of every socket: addresses of IPv4, hash, ports, family and state. It has been the
/// same since Linux 3.13.
#[derive(Clone, Copy)]
pub(crate) struct Identity([u32; 5]);

impl Identity {
    /// None for what is no socket of the internet.
    #[inline(always)]
    pub(crate) fn of(sk: u64) -> Option<Self> {
        let identity = Self(memory::kernel(sk)?);
        let family = identity.family();
        if family == IPV4 || family == IPV6 { Some(identity) } else { None }
    }

    /// `skc_dport` and `skc_num`.
    #[inline(always)]
    fn ports(self) -> u32 {
        let [_, _, _, ports, _] = self.0;
        ports
    }

    #[inline(always)]
    fn family(self) -> u32 {
        let [_, _, _, _, family] = self.0;
        family & 0xffff
    }

    /// `skc_state`.
    #[inline(always)]
    pub(crate) fn state(self) -> u32 {
        let [_, _, _, _, state] = self.0;
        state >> 16 & 0xff
    }

    /// Whether the other end said that it sends no more, or the connection is gone: `TCP_TIME_WAIT` and the states behind it that connections
    /// have.
    #[inline(always)]
    pub(crate) fn is_past_end(self) -> bool {
        self.state() >= TIME_WAIT
    }

    /// Whether this is the socket that `socket` was kept for. A closed one has lost its own port.
    #[inline(always)]
    pub(crate) fn is(self, socket: &CallSocket) -> bool {
        self.ports() == socket.ports || self.ports() >> 16 == 0
    }
}

/// What is kept for a socket, if anything.
#[inline(always)]
pub(crate) fn known<'a>(sk: u64) -> Option<&'a mut CallSocket> {
    let socket = SOCKETS.get_ptr_mut(sk)?;
    // SAFETY: the map gave the pointer, and it lives as long as the program; the socket's lock keeps others from writing.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    Some(unsafe { &mut *socket })
}

/// Whether nothing is wanted of a socket, and nothing new was said about it.
#[inline(always)]
pub(crate) fn is_ignored(sk: u64) -> bool {
    let (Some(socket), Some(config)) = (known(sk), CONFIG.get(0)) else { return false };
    socket.state == State::Ignored as u32 && socket.epoch == config.epoch
}

/// What is kept for a socket, begun if need be. `copied_seq` is where the kernel counts what was taken from the socket; 0 when it is unknown how
/// much of that was taken just now.
#[inline(always)]
pub(crate) fn socket_of<'a>(sk: u64, identity: Identity, layout: &Layout, copied_seq: u64) -> Option<&'a mut CallSocket> {
    if let Some(socket) = known(sk)
        && identity.is(socket)
    {
        return Some(socket);
    }
    if !begin(sk, identity, 0, layout, copied_seq) {
        return None;
    }
    known(sk)
}

/// Begins to keep a socket, in place of what was kept for another one at its address.
#[inline(always)]
pub(crate) fn begin(sk: u64, identity: Identity, flags: u32, layout: &Layout, copied_seq: u64) -> bool {
    let Some(id) = number() else { return false };
    let mut socket = CallSocket { id, ports: identity.ports(), flags, ..CallSocket::default() };
    if identity.family() == IPV6 {
        // One after the other, each with its way out: a way on which only one was read would lead the verifier to what was not written.
        if !read_address(&mut socket.local, sk + layout.v6_rcv_saddr) || !read_address(&mut socket.peer, sk + layout.v6_daddr) {
            return false;
        }
    } else {
        let [peer, local, ..] = identity.0;
        map(&mut socket.local, local);
        map(&mut socket.peer, peer);
    }
    if copied_seq != 0
        && let Some(sequence) = memory::kernel(sk + copied_seq)
    {
        socket.received.sequence = sequence;
        socket.flags |= flag::SEQUENCED;
    }
    #[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would be on the small stack twice")]
    let inserted = SOCKETS.insert(sk, &socket, 0);
    if inserted.is_err() {
        count(Counter::LostNoState, 1);
        return false;
    }
    true
}

/// An address of IPv6, from the kernel's memory.
#[inline(always)]
fn read_address(to: &mut [u8; 16], from: u64) -> bool {
    memory::kernel_into(to.as_mut_ptr().cast(), 16, from) == 0
}

/// A number that no socket had before.
#[inline(always)]
fn number() -> Option<u64> {
    let numbers = NUMBERS.get_ptr_mut(0)?;
    // SAFETY: the map gave the pointer; the second is a helper without arguments.
    #[expect(unsafe_code, reason = "a map value is reached by pointer, and a helper")]
    unsafe {
        *numbers += 1;
        Some(*numbers << CPU_BITS | u64::from(generated::bpf_get_smp_processor_id()))
    }
}

/// An IPv4 address in IPv6's form.
#[inline(always)]
fn map(to: &mut [u8; 16], address: u32) {
    let words = core::ptr::from_mut(to).cast::<u32>();
    // SAFETY: four words, which lie at multiples of four in the socket.
    #[expect(unsafe_code, reason = "written by words: the verifier's stack slots are those")]
    unsafe {
        words.write(0);
        words.add(1).write(0);
        words.add(2).write(MAPPED);
        words.add(3).write(address);
    }
}

/// The socket's own port.
#[inline(always)]
pub(crate) fn local_port(socket: &CallSocket) -> u16 {
    (socket.ports >> 16) as u16
}

/// The other end's port.
#[inline(always)]
pub(crate) fn peer_port(socket: &CallSocket) -> u16 {
    u16::from_be(socket.ports as u16)
}

/// Takes what user space decided about the socket, if there is something new.
#[inline(always)]
pub(crate) fn take_verdict(socket: &mut CallSocket, config: &Config) {
    if socket.state != State::Candidate as u32 && socket.epoch == config.epoch {
        return;
    }
    socket.epoch = config.epoch;
    let Some(slot) = VERDICTS.get_ptr_mut(verdict::slot(socket.id)) else { return };
    // SAFETY: the map gave the pointer; the daemon writes the whole word at once.
    #[expect(unsafe_code, reason = "a map value is reached by pointer")]
    let word = unsafe { slot.read_volatile() };
    let Some(state) = verdict::state_of(socket.id, word) else { return };
    if socket.state == State::Ignored as u32
        && state != State::Ignored as u32
        && let Some(id) = number()
    {
        // Nobody counted what passed meanwhile: what comes now is another stream.
        socket.id = id;
        socket.flags &= !flag::BORN;
    }
    socket.state = state;
}

/// What the rules of a socket's ports say.
#[inline(always)]
fn port_rule(socket: &CallSocket) -> Option<u32> {
    let (local, peer) = (u32::from(local_port(socket)), u32::from(peer_port(socket)));
    // SAFETY: values are plain numbers, read once.
    #[expect(unsafe_code, reason = "a map lookup")]
    let (of_local, of_peer) = unsafe { (PORTS.get(local).copied(), PORTS.get(peer).copied()) };
    if of_local == Some(PortRule::Exclude as u32) { of_local } else { of_peer.or(of_local) }
}

/// What the bytes of a call of a socket in state unknown are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Nothing that is looked for.
    Other,
    /// The start of a Kafka request, or what is taken for it.
    Kafka,
}

/// What has to be asked before bytes are looked at. None when they are to be judged.
#[inline(always)]
pub(crate) fn before_judging(socket: &mut CallSocket, config: &Config, sent: bool) -> Option<Judgement> {
    if config.has_port_rules != 0 && socket.flags & flag::PORTS_CHECKED == 0 {
        socket.flags |= flag::PORTS_CHECKED;
        match port_rule(socket) {
            Some(rule) if rule == PortRule::Exclude as u32 => {
                socket.state = State::Ignored as u32;
                return Some(Judgement::Other);
            }
            Some(_) => return Some(Judgement::Kafka),
            None => {}
        }
    }
    let connected = socket.flags & flag::INITIATOR != 0;
    let is_older = socket.flags & flag::BORN == 0;
    // Requests go from the end that connected to the end that accepted. Of older connections nobody knows which is which.
    if !is_older && connected != sent {
        return Some(Judgement::Other);
    }
    let way = if sent { &mut socket.sent } else { &mut socket.received };
    if way.judged >= config.judged_segments {
        let opposite = if sent { socket.received.judged } else { socket.sent.judged };
        if !is_older || opposite >= config.judged_segments {
            socket.state = State::Ignored as u32;
        }
        return Some(Judgement::Other);
    }
    way.judged += 1;
    None
}

/// Judges the first bytes of a call, with those that came before if they were too few. Leaves in the walk's head what passed before the call
/// and is part of what was found.
#[inline(always)]
pub(crate) fn judge(way: &mut Way, walk: &mut Walk, is_older: bool, bytes: u32) -> bool {
    walk.head.len = 0;
    let before = way.len;
    let got = walk.first_len;
    if got == 0 || before >= HEAD_BYTES {
        way.len = 0;
        return false;
    }
    if before != 0 {
        let room = HEAD_BYTES - before;
        append(way, walk, before, if got < room { got } else { room });
        if way.len < HEAD_BYTES {
            return false;
        }
        way.len = 0;
        let Some(head) = way.bytes.first_chunk() else { return false };
        if is_head(head, before.wrapping_add(bytes), is_older) {
            walk.head.len = before;
            if let Some(bytes) = way.bytes.first_chunk() {
                walk.head.bytes = *bytes;
            }
            return true;
        }
        // Not a head: this call may be the start of one.
    }
    if got < HEAD_BYTES {
        append(way, walk, 0, got);
        return false;
    }
    walk.first.first_chunk().is_some_and(|head| is_head(head, bytes, is_older))
}

#[inline(always)]
fn is_head(head: &[u8; HEAD_BYTES as usize], bytes: u32, is_older: bool) -> bool {
    judge::is_request_head(head, bytes) || is_older && judge::is_answer_head(head, bytes)
}

/// Puts the first `len` bytes of the call behind `before` others.
#[inline(always)]
fn append(way: &mut Way, walk: &Walk, before: u32, len: u32) {
    // The masks are the verifier's proof: at most 15 bytes before, at most 16 behind them, in 32. `black_box` keeps the compiler, which
    // knows better, from leaving them out.
    let at = black_box(before) & 15;
    let size = (black_box(len).wrapping_sub(1) & 15) + 1;
    // SAFETY: `at + size` is at most 31.
    #[expect(unsafe_code, reason = "a place in a map value")]
    let to = unsafe { way.bytes.as_mut_ptr().add(at as usize) };
    let failed = memory::kernel_into(to.cast(), size, walk.first.as_ptr() as u64);
    way.len = if failed == 0 { at + size } else { 0 };
}
