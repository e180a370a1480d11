//! With feature `live`: finds the eBPF objects that `cargo xtask build` made, so that they can be compiled in.

use std::env;
use std::path::PathBuf;

/// The objects, and the variables that name them to the crate.
const OBJECTS: [(&str, &str); 4] = [
    ("packet.o", "KAFKA_TRACER_PACKET_OBJECT"),
    ("socket.o", "KAFKA_TRACER_SOCKET_OBJECT"),
    ("socket_ring.o", "KAFKA_TRACER_SOCKET_RING_OBJECT"),
    ("tls.o", "KAFKA_TRACER_TLS_OBJECT"),
];

fn main() {
    println!("cargo:rerun-if-env-changed=KAFKA_TRACER_BPF_DIR");
    if env::var_os("CARGO_FEATURE_LIVE").is_none() {
        return;
    }
    let dir = env::var_os("KAFKA_TRACER_BPF_DIR").map(PathBuf::from);
    for (name, variable) in OBJECTS {
        match dir.as_ref().map(|dir| dir.join(name)) {
            Some(object) if object.is_file() => {
                println!("cargo:rerun-if-changed={}", object.display());
                println!("cargo:rustc-env={variable}={}", object.display());
            }
            _ => {
                println!("cargo:error=feature `live` needs the eBPF programs, which cargo alone does not build: run `cargo xtask build`");
                std::process::exit(1);
            }
        }
    }
}
