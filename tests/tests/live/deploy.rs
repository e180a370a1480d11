//! What is shipped for clusters fits what is built.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use xtask::lab::{KernelObjects, Process, Scratch};
use xtask::{step, tools, workspace};

use crate::{daemon, turn};

#[test]
#[ignore = "fetches Kubernetes' schemas: `cargo xtask test`"]
fn the_kubernetes_manifests_fit_the_published_schema() -> Result<()> {
    let schemas = tools::python_package("kubernetes-validate", "1.37.0", "the published schemas of Kubernetes, 22 MB, by pip")?;
    let [manifest, tls] = ["daemonset.yaml", "daemonset-tls.yaml"].map(|name| workspace::root().join("deploy/kubernetes").join(name));
    let validate = |path: &Path| {
        let mut python = Command::new("python3");
        python.args(["-m", "kubernetes_validate", "--strict"]).arg(path).env("PYTHONPATH", &schemas);
        step::output(&mut python)
    };
    validate(&manifest)?;
    validate(&tls)?;

    // A check that passes everything would show nothing.
    let scratch = Scratch::new("manifest")?;
    let wrong = scratch.path().join("wrong.yaml");
    fs::write(&wrong, fs::read_to_string(&manifest)?.replace("hostPID: true", "hostPids: true"))?;
    ensure!(validate(&wrong).is_err(), "a manifest with an unknown field passed the check");
    Ok(())
}

#[test]
#[ignore = "needs root: `cargo xtask test`"]
fn the_binary_captures_from_a_bare_root_file_system() -> Result<()> {
    let _turn = turn();
    let scratch = Scratch::new("bare")?;
    let root = scratch.path().join("root");
    install(&daemon(), &root.join("kafka-tracer"))?;
    for library in libraries(&daemon())? {
        install(&library, &root.join(library.strip_prefix("/")?))?;
    }
    for dir in ["proc", "host/cgroup"] {
        fs::create_dir_all(root.join(dir))?;
    }
    // As the manifest has it: the host's /proc, its cgroup root at another place than usual, nothing writable, few capabilities.
    let cgroup = cgroup2_root()?;
    let script = "set -e
        mount --bind \"$1\" \"$1\"
        mount -t proc proc \"$1/proc\"
        mount --bind \"$2\" \"$1/host/cgroup\"
        mount -o remount,bind,ro \"$1\"
        exec setpriv --bounding-set=-all,+bpf,+net_admin,+perfmon,+sys_ptrace,+dac_read_search,+sys_chroot \\
            chroot \"$1\" /kafka-tracer run";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "bare"]).arg(&root).arg(cgroup).env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("KAFKA_TRACER_CGROUP", "/host/cgroup").stdin(Stdio::null());
    let mut process = Process::start("bare", scratch.path(), &mut command)?;
    KernelObjects::wait_attached(process.pid(), || process.alive())?;
    let status = process.terminate(std::time::Duration::from_secs(15))?;
    ensure!(status.success(), "it ended with {status}:\n{}", process.log());
    Ok(())
}

pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file has a folder")?)?;
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// The shared libraries of a program, and its loader.
pub(crate) fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let listed = step::output(Command::new("ldd").arg(program))?;
    let libraries: BTreeSet<PathBuf> = listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    ensure!(libraries.len() <= 5, "an image needs more than the C library's own files: {libraries:?}");
    Ok(libraries)
}

pub(crate) fn cgroup2_root() -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let place = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields.get(2) == Some(&"cgroup2"));
    place.and_then(|fields| fields.get(1).map(|place| (*place).to_owned())).context("cgroup v2 is not mounted")
}
