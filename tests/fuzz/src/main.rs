//! One target under libFuzzer: `KAFKA_TRACER_FUZZ_TARGET` names it. With `KAFKA_TRACER_FUZZ_SEEDS`, writes its seeds into that
//! folder instead and ends. `cargo xtask fuzz` builds and runs it.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use fuzz::Target;

static TARGET: OnceLock<Target> = OnceLock::new();

fn begin() {
    let name = std::env::var("KAFKA_TRACER_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = fuzz::TARGETS.into_iter().chain(fuzz::LIVE_TARGETS).find(|target| target.name == name) else {
        eprintln!("KAFKA_TRACER_FUZZ_TARGET names no target: {name:?}");
        std::process::exit(1);
    };
    if let Some(folder) = std::env::var_os("KAFKA_TRACER_FUZZ_SEEDS") {
        if let Err(error) = write_seeds(target, Path::new(&folder)) {
            eprintln!("cannot write the seeds of {name}: {error}");
            std::process::exit(1);
        }
        std::process::exit(0);
    }
    TARGET.get_or_init(|| target);
}

fn write_seeds(target: Target, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (number, seed) in target.seeds().into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number:05}")), seed)?;
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(init: begin(), |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
});
