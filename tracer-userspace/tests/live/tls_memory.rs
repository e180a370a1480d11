//! TLS sessions over memory, on a kernel without the tracepoints that show what threads do with sockets: kprobes show it.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::ptr::null_mut;
use std::time::Duration;

use tracer_userspace::source::Direction;
use tracer_userspace::source::ebpf::{LiveSource, TlsConfig, TlsSource};

use crate::harness::{self, Recorder, kafka_request};

/// Names the port to the process whose sessions are looked into.
const PORT: &str = "KAFKA_TRACER_TEST_PORT";

/// Bytes of a request, with those of its answer.
const REQUEST: usize = 300;
const ANSWER: usize = 500;

#[test]
#[ignore = "needs root and kprobes: `cargo xtask vm`"]
fn the_sockets_of_sessions_over_memory_are_found() {
    let _turn = harness::turn();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = TlsConfig {
        ports: vec![port],
        exclude_ports: Vec::new(),
        libraries: Vec::new(),
        brokers: true,
        ring_bytes: 8 << 20,
        cgroup_root: None,
        unseen_after: TlsConfig::UNSEEN_AFTER,
    };
    let mut recorder = Recorder::of(TlsSource::start(config).unwrap());
    let mut talking = Command::new(std::env::current_exe().unwrap())
        .args(["tls_memory::talks_over_memory", "--exact", "--include-ignored", "--nocapture"])
        .env(PORT, port.to_string())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = talking.id();
    // Both ends of both connections: each thread uses the sockets of one end of both by turns.
    let found = recorder.until(|seen| {
        let ends = |is_client: bool| {
            let of_this_end = seen.sockets.iter().filter(|(key, _)| (key.peer.port() == port) == is_client);
            of_this_end
                .filter(|(_, socket)| socket.sent.bytes_seen() >= 10 * REQUEST && socket.received.bytes_seen() >= 10 * REQUEST)
                .count()
        };
        ends(true) == 2 && ends(false) == 2
    });
    let counts = recorder.source.counts().unwrap();
    // Its input ends.
    drop(talking.stdin.take());
    assert!(talking.wait().unwrap().success());
    assert!(found, "{:?}; {counts:?}", recorder.seen.sockets);
    for (key, socket) in &mut recorder.seen.sockets {
        let (sends, takes) = if key.peer.port() == port { (REQUEST, ANSWER) } else { (ANSWER, REQUEST) };
        assert_eq!(socket.pid, Some(pid));
        for (direction, len) in [(Direction::Sent, sends), (Direction::Received, takes)] {
            let pieces = &socket.way(direction).pieces;
            assert!(
                pieces.iter().all(|(_, bytes)| *bytes == message(len, if key.peer.port() == port { key.local } else { key.peer }.port()))
            );
        }
    }
}

/// Tells which connection it belongs to.
fn message(len: usize, client_port: u16) -> Vec<u8> {
    let mut message = kafka_request(len);
    message.truncate(len - 2);
    message.extend(client_port.to_be_bytes());
    message
}

#[test]
#[ignore = "is started by the one above"]
fn talks_over_memory() {
    let Some(port) = std::env::var(PORT).ok().and_then(|port| port.parse().ok()) else { return };
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let context = Context::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut ends: Vec<End> = (0..2).map(|_| End::new(&context, listener.accept().unwrap().0, false)).collect();
            let ports: Vec<u16> = ends.iter().map(|end| end.socket.peer_addr().unwrap().port()).collect();
            loop {
                for (end, port) in ends.iter_mut().zip(&ports) {
                    if end.receive(REQUEST).is_none() {
                        return;
                    }
                    end.send(&message(ANSWER, *port));
                }
            }
        });
        scope.spawn(|| {
            let mut ends: Vec<End> = (0..2).map(|_| End::new(&context, TcpStream::connect(("127.0.0.1", port)).unwrap(), true)).collect();
            let over = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = std::io::stdin().read(&mut [0]);
                    over.store(true, std::sync::atomic::Ordering::Relaxed);
                });
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    for end in &mut ends {
                        let port = end.socket.local_addr().unwrap().port();
                        end.send(&message(REQUEST, port));
                        assert!(end.receive(ANSWER).is_some_and(|got| got == message(ANSWER, port)));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        });
    });
}

// OpenSSL 3, as far as it is used. By the names of its files: those without a number come with its headers alone.
#[link(name = "libssl.so.3", kind = "dylib", modifiers = "+verbatim")]
#[expect(unsafe_code, reason = "a library in C")]
unsafe extern "C" {
    fn TLS_method() -> *const c_void;
    fn SSL_CTX_new(method: *const c_void) -> *mut c_void;
    fn SSL_CTX_ctrl(context: *mut c_void, command: c_int, number: c_long, pointer: *mut c_void) -> c_long;
    fn SSL_CTX_set_cipher_list(context: *mut c_void, list: *const c_char) -> c_int;
    fn SSL_new(context: *mut c_void) -> *mut c_void;
    fn SSL_set_bio(session: *mut c_void, input: *mut c_void, output: *mut c_void);
    fn SSL_set_accept_state(session: *mut c_void);
    fn SSL_set_connect_state(session: *mut c_void);
    fn SSL_read(session: *mut c_void, buffer: *mut c_void, len: c_int) -> c_int;
    fn SSL_write(session: *mut c_void, buffer: *const c_void, len: c_int) -> c_int;
}
#[link(name = "libcrypto.so.3", kind = "dylib", modifiers = "+verbatim")]
#[expect(unsafe_code, reason = "a library in C")]
unsafe extern "C" {
    fn BIO_s_mem() -> *const c_void;
    fn BIO_new(kind: *const c_void) -> *mut c_void;
    fn BIO_read(bio: *mut c_void, buffer: *mut c_void, len: c_int) -> c_int;
    fn BIO_write(bio: *mut c_void, buffer: *const c_void, len: c_int) -> c_int;
}
const SSL_CTRL_SET_MAX_PROTO_VERSION: c_int = 124;
const TLS1_2: c_long = 0x303;

/// Settings of sessions without certificates.
struct Context(*mut c_void);

// SAFETY: the library locks what sessions of several threads share of it.
#[expect(unsafe_code, reason = "the library promises it")]
unsafe impl Sync for Context {}

impl Context {
    fn new() -> Self {
        const NO_CERTIFICATES: &CStr = c"AECDH-AES128-SHA:@SECLEVEL=0";
        // SAFETY: as the library's manual says.
        #[expect(unsafe_code, reason = "functions of a library in C")]
        unsafe {
            let context = SSL_CTX_new(TLS_method());
            assert!(!context.is_null());
            assert_eq!(SSL_CTX_ctrl(context, SSL_CTRL_SET_MAX_PROTO_VERSION, TLS1_2, null_mut()), 1);
            assert_eq!(SSL_CTX_set_cipher_list(context, NO_CERTIFICATES.as_ptr()), 1);
            Self(context)
        }
    }
}

/// One end of a connection, whose session knows no socket: what it says and is told goes through memory, as in Node.js.
struct End {
    socket: TcpStream,
    session: *mut c_void,
    input: *mut c_void,
    output: *mut c_void,
}

impl End {
    fn new(context: &Context, socket: TcpStream, is_client: bool) -> Self {
        // SAFETY: as the library's manual says: the session takes both ends of memory over.
        #[expect(unsafe_code, reason = "functions of a library in C")]
        unsafe {
            let (session, input, output) = (SSL_new(context.0), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
            assert!(![session, input, output].contains(&null_mut()));
            SSL_set_bio(session, input, output);
            if is_client {
                SSL_set_connect_state(session);
            } else {
                SSL_set_accept_state(session);
            }
            Self { socket, session, input, output }
        }
    }

    /// Sends what the session wants to be sent.
    fn flush(&mut self) {
        let mut bytes = [0u8; 4096];
        loop {
            // SAFETY: the buffer is as long as is said.
            #[expect(unsafe_code, reason = "a function of a library in C")]
            let len = unsafe { BIO_read(self.output, bytes.as_mut_ptr().cast(), 4096) };
            let Ok(len @ 1..) = usize::try_from(len) else { return };
            self.socket.write_all(bytes.get(..len).unwrap()).unwrap();
        }
    }

    /// Gives the session what came; false at the end.
    fn take(&mut self) -> bool {
        let mut bytes = [0u8; 4096];
        let len = self.socket.read(&mut bytes).unwrap_or(0);
        // SAFETY: so much was read.
        #[expect(unsafe_code, reason = "a function of a library in C")]
        let taken = unsafe { BIO_write(self.input, bytes.as_ptr().cast(), c_int::try_from(len).unwrap()) };
        len > 0 && usize::try_from(taken) == Ok(len)
    }

    fn send(&mut self, message: &[u8]) {
        loop {
            // SAFETY: the buffer is as long as is said.
            #[expect(unsafe_code, reason = "a function of a library in C")]
            let taken = unsafe { SSL_write(self.session, message.as_ptr().cast(), c_int::try_from(message.len()).unwrap()) };
            self.flush();
            if taken > 0 {
                return;
            }
            assert!(self.take(), "the connection ends while hands are shaken");
        }
    }

    /// None at the end.
    fn receive(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut message = vec![0; len];
        loop {
            // SAFETY: the buffer is as long as is said.
            #[expect(unsafe_code, reason = "a function of a library in C")]
            let got = unsafe { SSL_read(self.session, message.as_mut_ptr().cast(), c_int::try_from(len).unwrap()) };
            self.flush();
            if got > 0 {
                assert_eq!(usize::try_from(got), Ok(len), "a message is a record");
                return Some(message);
            }
            if !self.take() {
                return None;
            }
        }
    }
}
