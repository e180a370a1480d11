//! With feature `live`: finds the eBPF object that `cargo xtask build` made, so that it can be compiled in.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=KAFKA_TRACER_BPF_DIR");
    if env::var_os("CARGO_FEATURE_LIVE").is_none() {
        return;
    }
    let object = env::var_os("KAFKA_TRACER_BPF_DIR").map(|dir| PathBuf::from(dir).join("packet.o"));
    match object {
        Some(object) if object.is_file() => {
            println!("cargo:rerun-if-changed={}", object.display());
            println!("cargo:rustc-env=KAFKA_TRACER_PACKET_OBJECT={}", object.display());
        }
        _ => {
            println!("cargo:error=feature `live` needs the eBPF programs, which cargo alone does not build: run `cargo xtask build`");
            std::process::exit(1);
        }
    }
}
