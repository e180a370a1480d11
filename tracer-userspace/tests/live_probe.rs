//! What this kernel should have, it has. Run by `cargo xtask test`, which knows how.

#![cfg(feature = "live")]

use std::io::Read;

use tracer_userspace::source::ebpf::probe::{Outcome, Support, probe};
use tracer_userspace::source::features::{self, KernelVersion, Row};

/// Whether the running kernel was built with all of these. Where it does not tell, it is held to have been.
fn is_configured(row: &Row) -> bool {
    let Ok(packed) = std::fs::File::open("/proc/config.gz") else { return true };
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("the kernel packs its own configuration");
    row.config.iter().all(|option| text.lines().any(|line| line == format!("{option}=y")))
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn this_kernel_has_what_its_version_promises() {
    let report = probe(None);
    let kernel = KernelVersion::running().expect("a kernel says its version");
    for row in features::expected(kernel) {
        let (_, support) = report.features.iter().find(|(known, _)| known.feature == row.feature).expect("every feature is probed");
        let wanted = if is_configured(row) { Support::Yes } else { Support::No };
        assert_eq!(*support, wanted, "Linux {kernel}, {} ({})", row.title, row.name);
    }
    for (row, support) in &report.features {
        // A distribution may bring a feature to a kernel that is older. What nobody built is not there.
        assert!(is_configured(row) || *support != Support::Yes, "{}", row.name);
    }
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn the_kernel_takes_each_map_and_each_program_on_its_own() {
    let report = probe(None);
    assert!(report.can_run(), "{:?}", report.sources);
    for object in &report.objects {
        assert!(!object.maps.is_empty() && !object.programs.is_empty(), "{} is empty", object.name);
        for loaded in object.maps.iter().chain(&object.programs) {
            assert!(matches!(loaded.outcome, Outcome::Taken { .. }), "{} of {}: {:?}", loaded.name, object.name, loaded.outcome);
        }
    }
}
