//! With feature `live`: finds the eBPF objects that `cargo xtask build` made, so that they can be compiled in.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=KAFKA_TRACER_BPF_DIR");
    if env::var_os("CARGO_FEATURE_LIVE").is_none() {
        return;
    }
    let dir = env::var_os("KAFKA_TRACER_BPF_DIR").map(PathBuf::from);
    for name in ["packet", "socket", "socket_ring"] {
        match dir.as_ref().map(|dir| dir.join(format!("{name}.o"))) {
            Some(object) if object.is_file() => {
                println!("cargo:rerun-if-changed={}", object.display());
                println!("cargo:rustc-env=KAFKA_TRACER_{}_OBJECT={}", name.to_uppercase(), object.display());
            }
            _ => {
                println!("cargo:error=feature `live` needs the eBPF programs, which cargo alone does not build: run `cargo xtask build`");
                std::process::exit(1);
            }
        }
    }
}
