//! What live capture uses of a kernel, and since which version a kernel has it: one table, for `kafka-tracer check`, for `docs/kernels.md` and for
//! the tests, which fail where a kernel lacks what it should have.

#![forbid(unsafe_code)]

use std::fmt;

/// Major and minor number of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelVersion {
    /// The 5 of 5.10.
    pub major: u32,
    /// The 10 of 5.10.
    pub minor: u32,
}

impl KernelVersion {
    /// The version with these numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Reads a release as distributions write it (`6.1.0-25-cloud-amd64`); None for a name without numbers.
    ///
    /// ```
    /// use tracer_userspace::source::features::KernelVersion;
    /// assert_eq!(KernelVersion::parse("5.4.0-1.el8.elrepo"), Some(KernelVersion::new(5, 4)));
    /// ```
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }

    /// That of the running kernel.
    #[must_use]
    pub fn running() -> Option<Self> {
        Self::parse(&rustix::system::uname().release().to_string_lossy())
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The oldest kernel that the tracer is made for.
pub const OLDEST_KERNEL: KernelVersion = KernelVersion::new(4, 14);

/// A way of seeing bytes: a source of live capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// Packets at the root of cgroup v2.
    Packet,
    /// Calls of the kernel's own TCP functions.
    Socket,
    /// Calls of TLS libraries.
    Tls,
}

impl SourceKind {
    /// All of them, in the order in which they are preferred.
    pub const ALL: [Self; 3] = [Self::Packet, Self::Socket, Self::Tls];

    /// Its name in settings, in the log and in `kafka-tracer check`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Socket => "socket",
            Self::Tls => "tls",
        }
    }
}

/// Something that the kernel can or cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Feature {
    /// Programs at any function of the kernel.
    Kprobes,
    /// Programs at any function of a program or library.
    Uprobes,
    /// Maps that keep what was used last.
    LruMaps,
    /// A program that goes on with another one.
    TailCalls,
    /// Buffers per CPU between kernel and user space.
    PerfBuffer,
    /// Programs that see a cgroup's packets.
    CgroupPackets,
    /// Probes through `perf_event_open` alone, without tracefs.
    ProbeEvents,
    /// Programs at a cgroup's connect(2).
    CgroupConnect,
    /// State that lives in the socket, and is copied into what a listener accepts.
    SocketStorage,
    /// The kernel's own types, to be read by programs.
    KernelTypes,
    /// Reading user and kernel memory by helpers of their own.
    TypedReads,
    /// Attachments that end with the process.
    CgroupLinks,
    /// Programs at a cgroup's getpeername(2).
    CgroupPeerName,
    /// One buffer for all CPUs between kernel and user space.
    RingBuffer,
    /// A clock that goes on while the host sleeps.
    BootClock,
    /// `CAP_BPF` and `CAP_PERFMON` instead of `CAP_SYS_ADMIN`.
    OwnCapabilities,
    /// Maps that count against the memory of a cgroup and not against the limit of locked memory.
    CgroupMemory,
    /// Maps that can be used by whoever holds them, without `CAP_BPF`.
    HeldMaps,
    /// Tracepoints for what calls on sockets moved.
    SocketLengths,
}

/// A row of the table: what a feature is called, since when it is there, what it needs and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The feature.
    pub feature: Feature,
    /// Its name in JSON.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// The first kernel that has it; [`OLDEST_KERNEL`] for all that is older still.
    pub since: KernelVersion,
    /// Options that the kernel must be built with. None: every kernel with eBPF has it.
    pub config: &'static [&'static str],
    /// Sources that cannot run without it.
    pub needed_by: &'static [SourceKind],
    /// What it is used for, and what is done where it is missing.
    pub purpose: &'static str,
}

use SourceKind::{Packet, Socket, Tls};

/// All features, oldest first.
pub static TABLE: [Row; 19] = [
    Row {
        feature: Feature::Kprobes,
        name: "kprobes",
        title: "kprobes",
        since: OLDEST_KERNEL,
        config: &["CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS"],
        needed_by: &[Socket],
        purpose: "`socket` sees calls of the kernel's TCP functions, and `tls` before 6.3 what `socket_lengths` would show; else nobody needs them where `packet` can run",
    },
    Row {
        feature: Feature::Uprobes,
        name: "uprobes",
        title: "uprobes",
        since: OLDEST_KERNEL,
        config: &["CONFIG_UPROBES", "CONFIG_UPROBE_EVENTS"],
        needed_by: &[Tls],
        purpose: "`tls` sees calls of TLS libraries; without them encrypted connections are opaque",
    },
    Row {
        feature: Feature::LruMaps,
        name: "lru_maps",
        title: "LRU maps",
        since: OLDEST_KERNEL,
        config: &[],
        needed_by: &[Packet, Socket, Tls],
        purpose: "what is known of sockets stays bounded",
    },
    Row {
        feature: Feature::TailCalls,
        name: "tail_calls",
        title: "tail calls",
        since: OLDEST_KERNEL,
        config: &[],
        needed_by: &[Packet, Socket, Tls],
        purpose: "calls and packets larger than one program may handle",
    },
    Row {
        feature: Feature::PerfBuffer,
        name: "perf_buffer",
        title: "perf buffer",
        since: OLDEST_KERNEL,
        config: &["CONFIG_PERF_EVENTS"],
        needed_by: &[],
        purpose: "events come through it where there is no ring buffer",
    },
    Row {
        feature: Feature::CgroupPackets,
        name: "cgroup_packets",
        title: "packets of a cgroup",
        since: OLDEST_KERNEL,
        config: &["CONFIG_CGROUP_BPF"],
        needed_by: &[Packet],
        purpose: "`packet` sees every TCP packet of the host",
    },
    Row {
        feature: Feature::ProbeEvents,
        name: "probe_events",
        title: "probes without tracefs",
        since: KernelVersion::new(4, 17),
        config: &["CONFIG_UPROBE_EVENTS"],
        needed_by: &[],
        purpose: "probes end with the process; before, they are lines in tracefs, which is mounted for the tracer alone where it is not, and those of a killed tracer are removed at the next start",
    },
    Row {
        feature: Feature::CgroupConnect,
        name: "cgroup_connect",
        title: "connect of a cgroup",
        since: KernelVersion::new(4, 17),
        config: &["CONFIG_CGROUP_BPF"],
        needed_by: &[],
        purpose: "`packet` knows the process of a connection at once; without, it is looked for in /proc once a second",
    },
    Row {
        feature: Feature::SocketStorage,
        name: "socket_storage",
        title: "storage in sockets",
        since: KernelVersion::new(5, 4),
        config: &[],
        needed_by: &[Packet],
        purpose: "`packet` keeps what it knows of a socket in the socket",
    },
    Row {
        feature: Feature::KernelTypes,
        name: "kernel_types",
        title: "the kernel's types (BTF)",
        since: KernelVersion::new(5, 4),
        config: &["CONFIG_DEBUG_INFO_BTF"],
        needed_by: &[],
        purpose: "`socket` finds the fields of the kernel's structures in them; without, by a table of known kernels",
    },
    Row {
        feature: Feature::TypedReads,
        name: "typed_reads",
        title: "typed reads",
        since: KernelVersion::new(5, 5),
        config: &[],
        needed_by: &[],
        purpose: "probes read user memory and kernel memory by a helper for each; before, by one for both",
    },
    Row {
        feature: Feature::CgroupLinks,
        name: "cgroup_links",
        title: "links at a cgroup",
        since: KernelVersion::new(5, 7),
        config: &["CONFIG_CGROUP_BPF"],
        needed_by: &[Packet],
        purpose: "attachments of `packet` end with the process, however it ends",
    },
    Row {
        feature: Feature::CgroupPeerName,
        name: "cgroup_peer_name",
        title: "getpeername of a cgroup",
        since: KernelVersion::new(5, 8),
        config: &["CONFIG_CGROUP_BPF"],
        needed_by: &[],
        purpose: "`packet` knows the process that accepted a connection at once; without, it is looked for in /proc once a second",
    },
    Row {
        feature: Feature::RingBuffer,
        name: "ring_buffer",
        title: "ring buffer",
        since: KernelVersion::new(5, 8),
        config: &[],
        needed_by: &[Packet, Tls],
        purpose: "events of all CPUs come through one buffer; `socket` uses the perf buffer where there is none",
    },
    Row {
        feature: Feature::BootClock,
        name: "boot_clock",
        title: "boot clock",
        since: KernelVersion::new(5, 8),
        config: &[],
        needed_by: &[Packet, Tls],
        purpose: "times of events, by a clock that goes on while the host sleeps",
    },
    Row {
        feature: Feature::OwnCapabilities,
        name: "own_capabilities",
        title: "CAP_BPF and CAP_PERFMON",
        since: KernelVersion::new(5, 8),
        config: &[],
        needed_by: &[],
        purpose: "the tracer does not need CAP_SYS_ADMIN",
    },
    Row {
        feature: Feature::CgroupMemory,
        name: "cgroup_memory",
        title: "cgroup memory for maps",
        since: KernelVersion::new(5, 11),
        config: &[],
        needed_by: &[],
        purpose: "maps count as memory of the daemon's cgroup; before, against the limit of locked memory, which is raised with CAP_SYS_RESOURCE",
    },
    Row {
        feature: Feature::HeldMaps,
        name: "held_maps",
        title: "maps without CAP_BPF",
        since: KernelVersion::new(5, 19),
        config: &[],
        needed_by: &[],
        purpose: "maps are used by whoever holds them, so CAP_BPF is given up after the start",
    },
    Row {
        feature: Feature::SocketLengths,
        name: "socket_lengths",
        title: "lengths of socket calls",
        since: KernelVersion::new(6, 3),
        config: &["CONFIG_BPF_EVENTS"],
        needed_by: &[],
        purpose: "`tls` finds the sockets of sessions over memory (Node.js, asyncio) by what their threads do; before, by `kprobes`; without either, such sessions are counted as `untied`",
    },
];

impl Feature {
    /// Its row of the table.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "there is a row for each feature, in their order: a test holds it")]
    pub fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

/// What a kernel of this version should have, if it was built with the options that the rows name.
pub fn expected(kernel: KernelVersion) -> impl Iterator<Item = &'static Row> {
    TABLE.iter().filter(move |row| row.since <= kernel)
}

/// Which sources a kernel of this version should run, if it was built with the options that the rows name.
pub fn expected_sources(kernel: KernelVersion) -> impl Iterator<Item = SourceKind> {
    let since = |kind| TABLE.iter().filter(move |row| row.needed_by.contains(&kind)).map(|row| row.since).max().unwrap_or(OLDEST_KERNEL);
    SourceKind::ALL.into_iter().filter(move |kind| since(*kind) <= kernel)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn kernel_releases_are_read_as_distributions_write_them() {
        for (release, wanted) in [
            ("5.8.0", Some((5, 8))),
            ("4.14.67", Some((4, 14))),
            ("6.1.0-25-cloud-amd64", Some((6, 1))),
            ("5.4.0-1.el8.elrepo", Some((5, 4))),
            ("7.3", Some((7, 3))),
            ("linux", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(KernelVersion::parse(release), wanted.map(|(major, minor)| KernelVersion::new(major, minor)), "{release}");
        }
        assert!(KernelVersion::new(4, 20) < KernelVersion::new(5, 8) && KernelVersion::new(5, 8) < KernelVersion::new(5, 10));
    }

    #[test]
    fn each_feature_finds_its_row_and_the_rows_are_in_order() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.feature as usize, index, "{}", row.name);
            assert_eq!(row.feature.row().name, row.name);
        }
        assert!(TABLE.is_sorted_by_key(|row| row.since));
    }

    #[test]
    fn kernels_are_expected_to_run_what_was_seen_running_on_them() {
        for (kernel, wanted) in [
            ((4, 14), vec![Socket]),
            ((5, 4), vec![Socket]),
            ((5, 7), vec![Socket]),
            ((5, 8), vec![Packet, Socket, Tls]),
            ((6, 18), vec![Packet, Socket, Tls]),
            ((4, 13), vec![]),
        ] {
            let kernel = KernelVersion::new(kernel.0, kernel.1);
            assert_eq!(expected_sources(kernel).collect::<Vec<_>>(), wanted, "{kernel}");
        }
        assert_eq!(expected(KernelVersion::new(4, 14)).count(), 6);
        assert_eq!(expected(KernelVersion::new(7, 3)).count(), TABLE.len());
    }

    /// `KAFKA_TRACER_WRITE_DOCS=1 cargo test -p tracer-userspace kernels_page` writes the table anew.
    #[test]
    fn kernels_page_has_this_table() {
        let mut table = String::from("| feature | since Linux | built with | needed by | for |\n| --- | --- | --- | --- | --- |\n");
        for row in &TABLE {
            let config: Vec<String> = row.config.iter().map(|option| format!("`{option}`")).collect();
            let needed_by: Vec<String> = row.needed_by.iter().map(|kind| format!("`{}`", kind.name())).collect();
            let or_nothing = |words: Vec<String>| if words.is_empty() { "-".to_owned() } else { words.join(", ") };
            let (config, needed_by) = (or_nothing(config), or_nothing(needed_by));
            let _ = writeln!(table, "| {} (`{}`) | {} | {config} | {needed_by} | {} |", row.title, row.name, row.since, row.purpose);
        }
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kernels.md");
        let page = std::fs::read_to_string(&path).expect("docs/kernels.md is there");
        let (begin, end) = ("<!-- features: begin -->\n", "<!-- features: end -->");
        let (before, rest) = page.split_once(begin).expect("the page marks where the table begins");
        let (written, after) = rest.split_once(end).expect("the page marks where the table ends");
        if std::env::var_os("KAFKA_TRACER_WRITE_DOCS").is_some() {
            std::fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
        } else {
            assert!(
                written == table,
                "docs/kernels.md is out of date: KAFKA_TRACER_WRITE_DOCS=1 cargo test -p tracer-userspace kernels_page writes it"
            );
        }
    }
}
