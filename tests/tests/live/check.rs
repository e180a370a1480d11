//! `kafka-tracer check` says what a host allows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::Scratch;

use crate::daemon;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the JSON says of something in one of its lists.
fn entry<'a>(report: &'a Value, list: &str, name: &str) -> Result<&'a Value> {
    let entries = report[list].as_array().with_context(|| format!("no list {list}"))?;
    entries.iter().find(|entry| entry["name"] == name).with_context(|| format!("no {name} in {list}"))
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn check_says_that_capture_can_run_and_leaves_nothing() -> Result<()> {
    let output = Command::new(daemon()).args(["check", "--format", "json"]).output()?;
    ensure!(output.status.success(), "it ended with {}:\n{}", output.status, text(&output));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["can_run"], true);
    assert_eq!(entry(&report, "sources", "packet")?["is_used"], true);
    assert_eq!(entry(&report, "host", "cgroup_root")?["state"], "ok");
    assert_eq!(entry(&report, "features", "ring_buffer")?["state"], "ok");
    assert_eq!(entry(&report, "capabilities", "CAP_BPF")?["effective"], true);
    assert_eq!(entry(&report, "sources", "tls")?["can_run"], true);
    assert_eq!(entry(&report, "host", "uprobes_allowed")?["state"], "ok");
    assert_eq!(entry(entry(&report, "objects", "tls")?, "programs", "go_read")?["state"], "ok");
    let packet = entry(&report, "objects", "packet")?;
    assert_eq!(entry(packet, "programs", "packet_egress")?["state"], "ok");
    assert!(entry(packet, "programs", "packet_egress")?["instructions"].as_u64().is_some_and(|count| count > 1_000), "{packet:#}");

    let output = Command::new(daemon()).arg("check").output()?;
    let text = text(&output);
    ensure!(output.status.success() && text.contains("live capture can run"), "{text}");
    assert!(!text.contains('\x1b'), "colours where nobody sees them");
    assert!(text.lines().all(|line| line.chars().count() <= 120), "a line is too long:\n{text}");
    Ok(())
}

#[test]
#[ignore = "needs root to give it up: `cargo xtask test`"]
fn check_works_without_rights_and_names_them() -> Result<()> {
    let scratch = Scratch::new("check-rootless")?;
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
    let copy = scratch.path().join("kafka-tracer");
    fs::copy(daemon(), &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    let output = Command::new("setpriv").args(nobody).arg(&copy).arg("check").output()?;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for words in ["cannot run with the rights", "CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "unknown"] {
        ensure!(text.contains(words), "no word of {words}:\n{text}");
    }
    Ok(())
}

/// A cgroup of its own, gone when dropped.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn check_tells_the_root_of_a_cgroup_namespace_from_the_hosts() -> Result<()> {
    let scratch = Scratch::new("check-namespace")?;
    let root = crate::deploy::cgroup2_root()?;
    let cgroup = Cgroup(Path::new(&root).join(format!("kafka-tracer-check-{}", std::process::id())));
    fs::create_dir(&cgroup.0)?;
    let script = "set -e; echo $$ > \"$1/cgroup.procs\"
        exec unshare --cgroup --mount --propagation private sh -c 'mount -t cgroup2 none \"$2\"; exec \"$3\" check --cgroup \"$2\"' sh \"$@\"";
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(&cgroup.0).arg(scratch.path()).arg(daemon()).output()?;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    ensure!(text.contains("root of a cgroup namespace") && text.contains("--cgroupns=host"), "{text}");
    Ok(())
}
