//! What this host allows: asked of the kernel and of the host's files, feature by feature, map by map, program by program. Nothing is attached,
//! nothing stays.
//!
//! In: nothing. Out: a [`Report`], which `kafka-tracer check` shows.

mod holders;
mod host;
mod kernel;
mod objects;

use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::CapabilitySet;

pub use kernel::Support;
pub(super) use kernel::held_maps;
pub(super) use objects::Object;
pub use objects::{Loaded, ObjectReport, Outcome};

use super::packet::open_cgroup_root;
use crate::privileges::{CAPABILITIES, Capability, Need, effective, has};
use crate::source::features::{KernelVersion, Row, SourceKind};

/// Whether this process may make uprobes, among what was found of the host.
const UPROBES: &str = "uprobes_allowed";

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, with less to see or at a higher price.
    Limited,
    /// It is not there.
    Missing,
    /// It could not be found out.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What follows from it; empty when nothing does.
    pub effect: String,
    /// What to do about it; empty when nothing has to be or can be done.
    pub remedy: String,
}

impl Finding {
    fn ok(name: &'static str, title: &'static str, found: impl Into<String>) -> Self {
        Self { name, title, state: State::Ok, found: found.into(), effect: String::new(), remedy: String::new() }
    }

    fn but(self, state: State, effect: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state, effect: effect.into(), remedy: remedy.into(), ..self }
    }
}

/// Whether a source can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceReport {
    /// The source.
    pub source: SourceKind,
    /// It will be used. The one for encrypted connections is used where that is asked for.
    pub is_used: bool,
    /// Why it cannot run; empty when it can.
    pub hindrances: Vec<String>,
}

/// All that was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The kernel's version, where its name says it.
    pub kernel: Option<KernelVersion>,
    /// Sources of this build, in the order in which they are preferred.
    pub sources: Vec<SourceReport>,
    /// The host and this process on it.
    pub host: Vec<Finding>,
    /// Capabilities, and whether this process has them.
    pub capabilities: Vec<(&'static Capability, bool)>,
    /// What the kernel can do.
    pub features: Vec<(&'static Row, Support)>,
    /// What of the compiled-in objects the kernel takes.
    pub objects: Vec<ObjectReport>,
}

impl Report {
    /// Whether live capture can run at all.
    pub fn can_run(&self) -> bool {
        self.sources.iter().any(|source| source.is_used)
    }

    /// Whether it is this process's rights alone that are in the way.
    pub fn lacks_rights_only(&self) -> bool {
        let lacks = |source: &SourceReport| {
            source.source != SourceKind::Tls && !source.hindrances.is_empty() && source.hindrances.iter().all(|why| why.starts_with("CAP_"))
        };
        !self.can_run() && self.sources.iter().any(lacks)
    }

    /// What this kernel should have by its version, and has not. An option that it was built without is no such thing where the host says so.
    pub fn unexpected(&self) -> impl Iterator<Item = &'static Row> {
        let kernel = self.kernel;
        let missing = self.features.iter().filter(|(_, support)| *support == Support::No).map(|(row, _)| *row);
        missing.filter(move |row| kernel.is_some_and(|kernel| row.since <= kernel))
    }
}

/// Looks at everything. `cgroup` is the root of cgroup v2 where it is configured.
pub fn probe(cgroup: Option<&Path>) -> Report {
    let kernel = KernelVersion::running();
    let mut host = host::findings(kernel);
    let (root, is_free) = cgroup_findings(cgroup);
    host.push(root);
    host.extend(is_free);
    let effective = effective();
    let capabilities: Vec<_> = CAPABILITIES.iter().map(|capability| (capability, has(effective, capability))).collect();
    let objects = objects::try_all();
    let mut report = Report { kernel, sources: Vec::new(), host, capabilities, features: kernel::features(), objects };
    let built: Vec<SourceKind> =
        SourceKind::ALL.into_iter().filter(|kind| report.objects.iter().any(|object| object.source == *kind)).collect();
    let mut has_main = false;
    for source in built {
        let hindrances = hindrances(&report, source);
        // Encrypted connections are seen into where that is asked for.
        let is_used = hindrances.is_empty() && !has_main && source != SourceKind::Tls;
        has_main |= is_used;
        report.sources.push(SourceReport { source, is_used, hindrances });
    }
    report
}

/// Why a source cannot run, in words.
fn hindrances(report: &Report, source: SourceKind) -> Vec<String> {
    let mut why = Vec::new();
    let needs_cgroup = source == SourceKind::Packet;
    for (capability, has) in &report.capabilities {
        let needed = capability.need == Need::Required && (needs_cgroup || capability.bit != CapabilitySet::NET_ADMIN);
        if needed && !has {
            why.push(format!("{} is missing", capability.name));
        }
    }
    if source == SourceKind::Tls
        && why.is_empty()
        && report.host.iter().any(|finding| finding.name == UPROBES && finding.state != State::Ok)
    {
        why.push("CAP_SYS_ADMIN is missing".to_owned());
    }
    for (row, support) in &report.features {
        if row.needed_by.contains(&source) && *support == Support::No {
            let config = if row.config.is_empty() { String::new() } else { format!(", built with {}", row.config.join(" and ")) };
            why.push(format!("the kernel has no {} (Linux {} and newer{config})", row.title, row.since));
        }
    }
    if needs_cgroup {
        let cgroup = report.host.iter().filter(|finding| finding.name.starts_with("cgroup") && finding.state == State::Missing);
        why.extend(cgroup.map(|finding| finding.effect.clone()));
    } else if report.host.iter().any(|finding| finding.name == "lockdown" && finding.state == State::Limited) {
        why.push("the kernel is locked down: programs may not read its memory".to_owned());
    }
    let tracefs = report.host.iter().find(|finding| finding.name == "tracefs" && finding.state == State::Missing);
    if let Some(tracefs) = tracefs.filter(|_| source == SourceKind::Socket) {
        why.push(tracefs.effect.clone());
    }
    // What follows from missing rights or features is told already.
    if why.is_empty() {
        let objects = || report.objects.iter().filter(|object| object.source == source);
        // The socket source has one object with a ring and one without, and needs either.
        let one_is_enough = source == SourceKind::Socket && objects().any(|object| object.hindrances().next().is_none());
        for object in objects().filter(|_| !one_is_enough) {
            let refused: Vec<&str> = object.hindrances().collect();
            if !refused.is_empty() {
                why.push(format!("the kernel does not take {} (see below)", refused.join(", ")));
            }
        }
    }
    why
}

/// The root of cgroup v2, and whether there is room at it.
fn cgroup_findings(configured: Option<&Path>) -> (Finding, Option<Finding>) {
    let root = match open_cgroup_root(configured) {
        Ok(root) => root,
        Err(error) => {
            let in_namespace = host::has_first_cgroup_namespace() == Some(false);
            let found = if in_namespace { "only that of a cgroup namespace" } else { "not found" };
            return (Finding::ok("cgroup_root", "cgroup v2", found).but(State::Missing, error.to_string(), ""), None);
        }
    };
    let found = Finding::ok("cgroup_root", "cgroup v2", format!("{}, the host's root", root.path.display()));
    let beside = match holders::attached(root.directory.as_fd()) {
        Ok(attached) => {
            let exclusive: Vec<String> = attached
                .iter()
                .filter(|attached| attached.is_exclusive)
                .map(|attached| format!("{} by {}", attached.hook.name, programs(&attached.programs)))
                .collect();
            let others: usize = attached.iter().map(|attached| attached.programs.len()).sum();
            if exclusive.is_empty() {
                Finding::ok(
                    "cgroup_beside",
                    "attached there already",
                    if others == 0 { "nothing".to_owned() } else { format!("{others} programs, with room beside them") },
                )
            } else {
                let effect = format!("another program holds the cgroup root exclusively ({})", exclusive.join(", "));
                let remedy = format!(
                    "`bpftool cgroup show {}` names the holder; it has to attach with BPF_F_ALLOW_MULTI, or to go",
                    root.path.display()
                );
                Finding::ok("cgroup_beside", "attached there already", "held exclusively").but(State::Missing, effect, remedy)
            }
        }
        Err(error) => Finding::ok("cgroup_beside", "attached there already", format!("not known: {error}")).but(State::Unknown, "", ""),
    };
    (found, Some(beside))
}

/// Programs by their numbers, with their names where the kernel tells them.
fn programs(ids: &[u32]) -> String {
    let known: Vec<_> = aya::programs::loaded_programs().filter_map(Result::ok).collect();
    let named = ids.iter().map(|id| {
        let name = known.iter().find(|program| program.id() == *id).and_then(|program| program.name_as_str().map(str::to_owned));
        name.map_or_else(|| format!("program {id}"), |name| format!("program {id} `{name}`"))
    });
    named.collect::<Vec<_>>().join(", ")
}
