//! Whose connection it is: a process id becomes the [`Process`] whose resource the connection's telemetry carries.
//!
//! In: a process id, as the source attributed it. Out: [`Process`], from a few small files of `/proc`, read once per
//! process and kept in a bounded cache. A process that is gone gives what is known; nothing here fails.

#![forbid(unsafe_code)]

mod container;
mod environment;
mod program;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hashlink::LruCache;
use uuid::Uuid;

pub use container::Container;
pub use environment::Declared;
pub use program::Program;

use crate::observe::{Process, ResourceValue};
use crate::time::Timestamp;

/// Most bytes read of a process's environment or arguments (a JVM's class path can be tens of kilobytes).
const MAX_BLOCK_BYTES: u64 = 128 * 1_024;
/// Most bytes read of any other file.
const MAX_FILE_BYTES: u64 = 16 * 1_024;
/// Within this time after the last look a process id is taken to be the same process.
const TRUST: Duration = Duration::from_secs(1);
/// The name of a service about which nothing is known (OpenTelemetry's default).
const UNKNOWN_SERVICE: &str = "unknown_service";
/// Namespace of computed service instance ids, from the semantic conventions' page on `service.instance.id`.
const INSTANCE_NAMESPACE: Uuid = Uuid::from_u128(0x4d63_009a_8d0f_11ee_aad7_4c79_6ed8_e320);

/// Where to look, and how much to keep.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The host's `/proc`; in a container it may be mounted elsewhere.
    pub proc_root: PathBuf,
    /// The host's name; read from `proc_root` when `None`.
    pub host_name: Option<String>,
    /// The host's id; read from its machine id when `None`.
    pub host_id: Option<String>,
    /// Most processes remembered.
    pub max_processes: usize,
    /// A process not asked for in this time is forgotten.
    pub expiry: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { proc_root: PathBuf::from("/proc"), host_name: None, host_id: None, max_processes: 4_096, expiry: Duration::from_hours(1) }
    }
}

/// Describes processes by their id.
#[derive(Debug)]
pub struct Enricher {
    proc_root: PathBuf,
    host_name: Option<Arc<str>>,
    host_id: String,
    expiry: Duration,
    known: LruCache<u32, Known>,
}

#[derive(Debug)]
struct Known {
    /// Clock ticks since boot; `None` when the process was gone at the first look.
    start_ticks: Option<u64>,
    checked: Timestamp,
    process: Arc<Process>,
}

impl Enricher {
    /// Reads what is the same for all processes: the host's name and id.
    pub fn new(settings: Settings) -> Self {
        let Settings { proc_root, host_name, host_id, max_processes, expiry } = settings;
        let host_name = host_name.or_else(|| trimmed(&proc_root.join("sys/kernel/hostname")));
        let host_id = host_id.or_else(|| host_id_of(&proc_root)).unwrap_or_default();
        Self { proc_root, host_name: host_name.map(Arc::from), host_id, expiry, known: LruCache::new(max_processes.max(1)) }
    }

    /// The process with this id (of the initial namespace) at `now`. The first call for a process reads five small
    /// files, later ones at most one a second.
    pub fn process(&mut self, pid: u32, now: Timestamp) -> Arc<Process> {
        while self.known.iter().next().is_some_and(|(_, oldest)| now.since(oldest.checked) > self.expiry) {
            self.known.remove_lru();
        }
        if let Some(known) = self.known.get_mut(&pid) {
            if now.since(known.checked) < TRUST {
                return Arc::clone(&known.process);
            }
            let start_ticks = start_ticks(&self.proc_root, pid);
            // Gone since: what was known of it is still the best answer for its last bytes.
            if start_ticks.is_none() || start_ticks == known.start_ticks {
                known.checked = now;
                return Arc::clone(&known.process);
            }
        }
        let start_ticks = start_ticks(&self.proc_root, pid);
        let process = Arc::new(self.describe(pid, start_ticks));
        self.known.insert(pid, Known { start_ticks, checked: now, process: Arc::clone(&process) });
        process
    }

    /// How many processes are remembered.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn describe(&self, pid: u32, start_ticks: Option<u64>) -> Process {
        let directory = self.proc_root.join(pid.to_string());
        let executable = fs::read_link(directory.join("exe")).ok().and_then(|path| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            Some(name.strip_suffix(" (deleted)").map_or(name.clone(), str::to_owned))
        });
        let executable = executable.or_else(|| trimmed(&directory.join("comm")));
        let command = read_bounded(&directory.join("cmdline"), MAX_BLOCK_BYTES);
        let arguments: Vec<&str> = command.split(|b| *b == 0).map_while(|argument| std::str::from_utf8(argument).ok()).collect();
        let arguments = arguments.strip_suffix(&[""]).unwrap_or(&arguments);
        let program = Program::from_command(executable.as_deref(), arguments);
        let environ = read_bounded(&directory.join("environ"), MAX_BLOCK_BYTES);
        let jvm_arguments = if program::is_jvm(executable.as_deref(), arguments) { arguments } else { &[] };
        let declared = Declared::from_process(&environ, jvm_arguments);
        let container = Container::from_cgroup(&String::from_utf8_lossy(&read_bounded(&directory.join("cgroup"), MAX_FILE_BYTES)));

        let mut resource = Resource::default();
        let service = declared.service_name.or_else(|| program.as_ref().map(|program| program.name.clone()));
        resource.text("service.name", service.as_deref().unwrap_or(UNKNOWN_SERVICE));
        for (key, value) in &declared.attributes {
            resource.text(key, value);
        }
        if let Some(start) = start_ticks {
            let name = format!("{}:{pid}:{start}", self.host_id);
            resource.text("service.instance.id", &Uuid::new_v5(&INSTANCE_NAMESPACE, name.as_bytes()).to_string());
        }
        resource.integer("process.pid", i64::from(pid));
        resource.optional("process.executable.name", executable.as_deref());
        resource.optional("process.runtime.name", program.and_then(|program| program.runtime));
        resource.optional("container.id", container.id.as_deref());
        resource.optional("k8s.pod.uid", container.pod_uid.as_deref());
        resource.optional("host.name", self.host_name.as_deref());
        Process { pid, resource: resource.0 }
    }
}

/// Attributes in order; the first value of a key stays, so that what a process declares wins over what was found out.
#[derive(Default)]
struct Resource(Vec<(Arc<str>, ResourceValue)>);

impl Resource {
    fn text(&mut self, key: &str, value: &str) {
        self.add(key, ResourceValue::Text(Arc::from(value)));
    }

    fn integer(&mut self, key: &str, value: i64) {
        self.add(key, ResourceValue::Integer(value));
    }

    fn optional(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn add(&mut self, key: &str, value: ResourceValue) {
        if !self.0.iter().any(|(known, _)| &**known == key) {
            self.0.push((Arc::from(key), value));
        }
    }
}

/// The machine id (`machine-id(5)`): of the host whose `/proc` it is, which from within a container is found through
/// its first process. Without one, the id of this boot still keeps hosts apart.
fn host_id_of(proc_root: &Path) -> Option<String> {
    let own = (proc_root == Path::new("/proc")).then(|| trimmed(Path::new("/etc/machine-id"))).flatten();
    own.or_else(|| trimmed(&proc_root.join("1/root/etc/machine-id"))).or_else(|| trimmed(&proc_root.join("sys/kernel/random/boot_id")))
}

/// Field 22 of `/proc/PID/stat`: start time in clock ticks since boot. Field 2 is the name in brackets and may hold
/// anything, brackets and blanks included; it ends at the last closing one.
fn start_ticks(proc_root: &Path, pid: u32) -> Option<u64> {
    let stat = read_bounded(&proc_root.join(pid.to_string()).join("stat"), MAX_FILE_BYTES);
    let text = String::from_utf8_lossy(&stat);
    let (_, after_name) = text.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

fn trimmed(path: &Path) -> Option<String> {
    let bytes = read_bounded(path, MAX_FILE_BYTES);
    Some(String::from_utf8_lossy(&bytes).trim().to_owned()).filter(|text| !text.is_empty())
}

/// The first `limit` bytes of a file; empty when it cannot be read.
fn read_bounded(path: &Path, limit: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What was read before an error (the process ended in between) is still good.
        let _ = file.take(limit).read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct FakeProc(tempfile::TempDir);

    impl FakeProc {
        fn new() -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            fake.write("sys/kernel/hostname", b"node-7\n");
            fake.write("1/root/etc/machine-id", b"9f2d5c1b3a4e4f5d8a7b6c5d4e3f2a1b\n");
            fake
        }

        fn write(&self, path: &str, bytes: &[u8]) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }

        fn process(&self, pid: u32, name: &str, start: u64, exe: &str, command: &[u8], environ: &[u8]) {
            let zeros = "0 ".repeat(18);
            self.write(&format!("{pid}/stat"), format!("{pid} ({name}) S {zeros}{start} 0 0").as_bytes());
            self.write(&format!("{pid}/comm"), format!("{name}\n").as_bytes());
            self.write(&format!("{pid}/cmdline"), command);
            self.write(&format!("{pid}/environ"), environ);
            let link = self.0.path().join(format!("{pid}/exe"));
            let _ = fs::remove_file(&link);
            symlink(exe, link).unwrap();
        }

        fn enricher(&self) -> Enricher {
            Enricher::new(Settings { proc_root: self.0.path().to_owned(), ..Settings::default() })
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_ns(seconds * 1_000_000_000)
    }

    fn shown(process: &Process) -> Vec<(&str, String)> {
        let value = |value: &ResourceValue| match value {
            ResourceValue::Text(text) => text.to_string(),
            ResourceValue::Integer(number) => number.to_string(),
        };
        process.resource.iter().map(|(key, v)| (&**key, value(v))).collect()
    }

    fn value<'a>(process: &'a Process, key: &str) -> Option<&'a ResourceValue> {
        process.resource.iter().find_map(|(known, value)| (&**known == key).then_some(value))
    }

    fn service(process: &Process) -> String {
        shown(process).into_iter().find(|(key, _)| *key == "service.name").unwrap().1
    }

    #[test]
    fn a_process_in_a_pod_is_described_whole() {
        let fake = FakeProc::new();
        let id = "3d1c2b4a5f60718293a4b5c6d7e8f90123456789abcdef0123456789abcdef01";
        fake.process(
            4_242,
            "java) S (evil",
            777,
            "/usr/lib/jvm/bin/java",
            b"java\0-Xmx1G\0-jar\0/app/orders.jar\0--password\0hunter2\0",
            b"OTEL_RESOURCE_ATTRIBUTES=service.namespace=shop,host.name=pod-9\0SECRET=hunter2\0",
        );
        fake.write("4242/cgroup", format!("0::/kubepods/burstable/pod0b7a9c1e-52d4-4c0e-9b7e-6f1d2c3b4a59/{id}\n").as_bytes());
        let process = fake.enricher().process(4_242, at(1));
        let instance = Uuid::new_v5(&INSTANCE_NAMESPACE, b"9f2d5c1b3a4e4f5d8a7b6c5d4e3f2a1b:4242:777").to_string();
        assert_eq!(
            shown(&process),
            [
                ("service.name", "orders".to_owned()),
                ("service.namespace", "shop".to_owned()),
                ("host.name", "pod-9".to_owned()),
                ("service.instance.id", instance),
                ("process.pid", "4242".to_owned()),
                ("process.executable.name", "java".to_owned()),
                ("process.runtime.name", "java".to_owned()),
                ("container.id", id.to_owned()),
                ("k8s.pod.uid", "0b7a9c1e-52d4-4c0e-9b7e-6f1d2c3b4a59".to_owned()),
            ]
        );
        assert!(!format!("{process:?}").contains("hunter2"));
    }

    #[test]
    fn what_the_process_declares_names_the_service() {
        let fake = FakeProc::new();
        fake.process(7, "python3", 5, "/usr/bin/python3.12 (deleted)", b"python3\0worker.py\0", b"OTEL_SERVICE_NAME=billing\0");
        let process = fake.enricher().process(7, at(1));
        assert_eq!(service(&process), "billing");
        assert_eq!(value(&process, "process.executable.name"), Some(&ResourceValue::Text(Arc::from("python3.12"))));
        assert_eq!(value(&process, "process.runtime.name"), Some(&ResourceValue::Text(Arc::from("cpython"))));
        assert_eq!(value(&process, "host.name"), Some(&ResourceValue::Text(Arc::from("node-7"))));
    }

    #[test]
    fn a_process_that_is_gone_gives_what_is_known() {
        let fake = FakeProc::new();
        let mut enricher = fake.enricher();
        let never_seen = enricher.process(99, at(1));
        assert_eq!(
            shown(&never_seen),
            [("service.name", "unknown_service".to_owned()), ("process.pid", "99".to_owned()), ("host.name", "node-7".to_owned())]
        );

        fake.process(5, "feed", 1, "/bin/feed", b"feed\0", b"");
        let alive = enricher.process(5, at(1));
        fs::remove_dir_all(fake.0.path().join("5")).unwrap();
        assert!(Arc::ptr_eq(&alive, &enricher.process(5, at(100))));
    }

    #[test]
    fn a_reused_process_id_is_another_process() {
        let fake = FakeProc::new();
        let mut enricher = fake.enricher();
        fake.process(5, "feed", 1, "/bin/feed", b"feed\0", b"");
        let first = enricher.process(5, at(10));
        fake.process(5, "drain", 2, "/bin/drain", b"drain\0", b"");
        assert!(Arc::ptr_eq(&first, &enricher.process(5, at(10))), "not looked at again within a second");
        let second = enricher.process(5, at(12));
        assert_eq!(service(&second), "drain");
        assert_ne!(value(&first, "service.instance.id"), value(&second, "service.instance.id"));
    }

    #[test]
    fn a_process_seen_too_early_is_looked_at_again() {
        let fake = FakeProc::new();
        let mut enricher = fake.enricher();
        assert_eq!(service(&enricher.process(5, at(10))), "unknown_service");
        fake.process(5, "feed", 1, "/bin/feed", b"feed\0", b"");
        assert_eq!(service(&enricher.process(5, at(12))), "feed");
    }

    #[test]
    fn the_cache_is_bounded_and_forgets() {
        let fake = FakeProc::new();
        let mut enricher = Enricher::new(Settings { proc_root: fake.0.path().to_owned(), max_processes: 8, ..Settings::default() });
        for pid in 0..100 {
            enricher.process(pid, at(1));
        }
        assert_eq!(enricher.len(), 8);
        enricher.process(1, at(10_000));
        assert_eq!(enricher.len(), 1);
    }

    #[test]
    fn this_very_process_is_described_from_the_real_proc() {
        let mut enricher = Enricher::new(Settings::default());
        let pid = std::process::id();
        let process = enricher.process(pid, at(1));
        let executable = std::env::current_exe().unwrap();
        let executable = executable.file_name().unwrap().to_str().unwrap();
        assert_eq!(value(&process, "process.executable.name"), Some(&ResourceValue::Text(Arc::from(executable))));
        assert_eq!(value(&process, "process.pid"), Some(&ResourceValue::Integer(i64::from(pid))));
        assert!(value(&process, "service.instance.id").is_some());
        assert!(Arc::ptr_eq(&process, &enricher.process(pid, at(1_000))));
    }

    #[test]
    fn huge_files_are_read_in_part() {
        let fake = FakeProc::new();
        let mut environ = vec![b'x'; 10_000_000];
        environ.extend_from_slice(b"\0OTEL_SERVICE_NAME=late\0");
        fake.process(5, "feed", 1, "/bin/feed", b"feed\0", &environ);
        assert_eq!(read_bounded(&fake.0.path().join("5/environ"), MAX_BLOCK_BYTES).len(), 128 * 1_024);
        assert_eq!(service(&fake.enricher().process(5, at(1))), "feed");
    }
}
