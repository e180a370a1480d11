//! What is shipped for clusters says what the program does.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use tracer_userspace::privileges::{CAPABILITIES, Kept, Need};

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn needed() -> impl Iterator<Item = &'static str> {
    CAPABILITIES.iter().filter(|capability| capability.need != Need::Special).map(|capability| capability.name)
}

/// The entries of the list under a key, comments and blank lines aside.
fn list<'a>(yaml: &'a str, key: &str) -> BTreeSet<&'a str> {
    let mut lines = yaml.lines().map(str::trim);
    assert!(lines.by_ref().any(|line| line == key), "no {key}");
    lines.filter(|line| !line.starts_with('#')).map_while(|line| line.strip_prefix("- ")).collect()
}

#[test]
fn the_daemonset_has_exactly_the_capabilities_that_the_program_asks_for() {
    let manifest = file("deploy/kubernetes/daemonset.yaml");
    let wanted: BTreeSet<&str> = needed().map(|name| name.strip_prefix("CAP_").unwrap()).collect();
    assert_eq!(list(&manifest, "add:"), wanted);
    for line in [
        "privileged: false",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "drop: [\"ALL\"]",
        // The daemon's own filter holds instead: nothing turns it off.
        "type: Unconfined",
    ] {
        assert!(manifest.lines().any(|found| found.trim() == line), "{line}");
    }
    assert!(!manifest.contains("SECCOMP"), "the manifest sets the daemon's filter to something else than its default");
}

#[test]
fn the_daemonset_for_encrypted_connections_asks_for_one_setting_and_one_capability_more() {
    // The names of the files that they tell how to apply, and what stands at the top, differ, too.
    let lines = |path: &str| file(path).lines().filter(|line| !line.trim_start().starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
    let (plain, tls) = (lines("deploy/kubernetes/daemonset.yaml"), lines("deploy/kubernetes/daemonset-tls.yaml"));
    let more = ["- name: KAFKA_TRACER_TLS", "value: auto", "- SYS_ADMIN"];
    let added: Vec<&str> = tls.iter().filter(|line| !plain.contains(line)).map(|line| line.trim()).collect();
    assert_eq!(added, more);
    let without: Vec<String> = tls.into_iter().filter(|line| !more.contains(&line.trim())).collect();
    assert_eq!(without, plain);
}

#[test]
fn the_page_on_privileges_has_the_programs_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/privileges.md");
    let page = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- capabilities: begin -->\n", "<!-- capabilities: end -->");
    let (before, rest) = page.split_once(begin).expect("the page marks where the table begins");
    let (written, after) = rest.split_once(end).expect("the page marks where the table ends");
    let mut table = "| capability | | to | without | kept |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for capability in &CAPABILITIES {
        let need = match capability.need {
            Need::Required => "required",
            Need::Wanted => "wanted",
            Need::Special => "special",
        };
        let kept = match capability.kept {
            Kept::Start => "for the start",
            Kept::WhileMapsNeedIt => "for the start; before Linux 5.19, always",
            Kept::Always => "always, by the threads that look at processes",
            Kept::ToAttach => "for the start; with `--tls auto` always, by the thread that attaches",
        };
        let _ = writeln!(table, "| `{}` | {need} | {} | {} | {kept} |", capability.name, capability.reason, capability.without);
    }
    if std::env::var_os("KAFKA_TRACER_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
    } else {
        assert!(
            written == table,
            "docs/privileges.md is out of date: KAFKA_TRACER_WRITE_DOCS=1 cargo test -p tests --test manifest writes it"
        );
    }
    let all: Vec<&str> = needed().collect();
    for setting in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        let line = format!("{setting}={}", all.join(" "));
        assert!(page.lines().any(|found| found == line), "{line}");
    }
    for name in all {
        let argument = format!("--cap-add {}", name.strip_prefix("CAP_").unwrap());
        assert!(page.replace('\n', " ").contains(&argument), "{argument}");
    }
}
