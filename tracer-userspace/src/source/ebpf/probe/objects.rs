//! Each map and each program of each object, loaded on its own and let go again. Nothing is attached.

use std::time::{Duration, Instant};

use aya::maps::{MapData, MapError, MapType};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_map_type;

use super::kernel::{NOT_ALLOWED, Support};
use crate::privileges::{CAPABILITIES, effective, has};
use crate::source::ebpf::load::{self, chain};
use crate::source::ebpf::{StartError, packet, socket, tls};
use crate::source::features::SourceKind;

/// Size of a ring that is only tried.
const RING_BYTES: u32 = 256 << 10;

/// One object that is compiled in.
pub(crate) struct Object {
    /// What it is called: the file that `cargo xtask build` makes.
    pub(crate) name: &'static str,
    /// The source that it belongs to.
    pub(crate) source: SourceKind,
    /// The object file.
    pub(crate) bytes: &'static [u8],
    /// Programs without which the source sees less, but sees.
    pub(crate) optional: &'static [&'static str],
}

/// What became of a map or program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its name in the object.
    pub name: String,
    /// True for what the source can do without.
    pub is_optional: bool,
    /// What the kernel said.
    pub outcome: Outcome,
}

/// What the kernel said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was taken.
    Taken {
        /// How long that took.
        time: Duration,
        /// Instructions that the verifier walked, where the kernel tells (5.16 and newer).
        instructions: Option<u32>,
    },
    /// It was refused, with the kernel's or the loader's words.
    Refused(String),
    /// It could not be tried; why.
    NotTried(String),
}

/// All that was tried of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectReport {
    /// The object's name.
    pub name: &'static str,
    /// The source that it belongs to.
    pub source: SourceKind,
    /// Its maps, by name.
    pub maps: Vec<Loaded>,
    /// Its programs, by name.
    pub programs: Vec<Loaded>,
}

impl ObjectReport {
    /// What the source cannot do without and the kernel did not take.
    pub fn hindrances(&self) -> impl Iterator<Item = &str> {
        let needed = self.maps.iter().chain(&self.programs).filter(|loaded| !loaded.is_optional);
        needed.filter(|loaded| !matches!(loaded.outcome, Outcome::Taken { .. })).map(|loaded| loaded.name.as_str())
    }
}

/// The objects of this build.
fn objects() -> Vec<Object> {
    [packet::object()].into_iter().chain(socket::objects()).chain([tls::object()]).collect()
}

/// Tries all of all objects.
pub(super) fn try_all() -> Vec<ObjectReport> {
    load::raise_locked_memory();
    let effective = effective();
    let may_try = CAPABILITIES.iter().filter(|capability| capability.name == "CAP_BPF").all(|capability| has(effective, capability));
    objects().iter().map(|object| try_object(object, may_try)).collect()
}

/// Whether programs at getpeername(2) are taken, by trying the packet source's own.
pub(super) fn peer_name() -> Support {
    let object = packet::object();
    let loaded = open(&object, &[]).map(|mut ebpf| ebpf.program_mut("owner_peer4").map(load_program));
    match loaded {
        Ok(Some(Ok(_))) => Support::Yes,
        // EINVAL: the kernel knows no such place to attach to.
        Ok(Some(Err(ProgramError::LoadError { io_error, .. }))) if io_error.raw_os_error() == Some(libc::EINVAL) => Support::No,
        Ok(Some(Err(error))) => Support::Unknown(chain(&error)),
        Ok(None) => Support::Unknown("the compiled-in object has no such program".to_owned()),
        Err(_) => map_refused(),
    }
}

/// Maps are refused for want of rights, or on a kernel that is older than the feature.
fn map_refused() -> Support {
    match aya::sys::is_map_supported(MapType::RingBuf) {
        Ok(false) => Support::No,
        _ => Support::Unknown(NOT_ALLOWED.to_owned()),
    }
}

fn try_object(object: &Object, may_try: bool) -> ObjectReport {
    let mut report = ObjectReport { name: object.name, source: object.source, maps: Vec::new(), programs: Vec::new() };
    let parsed = match aya_obj::Object::parse(object.bytes) {
        Ok(parsed) => parsed,
        Err(error) => {
            let outcome = Outcome::Refused(chain(&error));
            report.programs.push(Loaded { name: object.name.to_owned(), is_optional: false, outcome });
            return report;
        }
    };
    let mut rings = Vec::new();
    for (name, map) in &parsed.maps {
        if map.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 {
            rings.push(name.as_str());
        }
        report.maps.push(Loaded {
            name: name.clone(),
            is_optional: false,
            outcome: if may_try { try_map(name, map) } else { not_allowed() },
        });
    }
    let mut programs: Vec<&str> = parsed.programs.keys().map(String::as_str).collect();
    programs.sort_unstable();
    report.maps.sort_by(|a, b| a.name.cmp(&b.name));
    let mut opened = if may_try { open(object, &rings) } else { Err(NOT_ALLOWED.to_owned()) };
    for name in programs {
        let outcome = match &mut opened {
            Ok(ebpf) => ebpf.program_mut(name).map_or_else(|| Outcome::NotTried("no loader knows its kind".to_owned()), try_program),
            Err(reason) => Outcome::NotTried(reason.clone()),
        };
        report.programs.push(Loaded { name: name.to_owned(), is_optional: object.optional.contains(&name), outcome });
    }
    report
}

fn not_allowed() -> Outcome {
    Outcome::NotTried(NOT_ALLOWED.to_owned())
}

/// The object with its maps, or why they cannot be made.
fn open(object: &Object, rings: &[&str]) -> Result<Ebpf, String> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for ring in rings {
        loader.map_max_entries(ring, RING_BYTES);
    }
    loader.load(object.bytes).map_err(|error| format!("the object's maps were refused: {}", chain(&error)))
}

fn try_map(name: &str, map: &aya_obj::Map) -> Outcome {
    let begun = Instant::now();
    let taken = |()| Outcome::Taken { time: begun.elapsed(), instructions: None };
    if map.map_type() == bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as u32 {
        // It needs the object's types; whether the kernel knows the kind can be asked.
        return match aya::sys::is_map_supported(MapType::SkStorage) {
            Ok(true) => taken(()),
            Ok(false) => Outcome::Refused("the kernel knows no storage in sockets".to_owned()),
            Err(error) => Outcome::Refused(error.io_error.to_string()),
        };
    }
    let max_entries = if map.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 {
        RING_BYTES
    } else if map.max_entries() == 0 {
        // A perf buffer has one for each CPU.
        aya::util::nr_cpus().map_or(1, |cpus| u32::try_from(cpus).unwrap_or(1))
    } else {
        map.max_entries()
    };
    // Without the object's types, which only the whole object brings, and which no other kind of map needs.
    let map = aya_obj::Map::new_from_params(map.map_type(), map.key_size(), map.value_size(), max_entries, map.map_flags());
    match MapData::create(map, name, None) {
        Ok(map) => {
            drop(map);
            taken(())
        }
        Err(MapError::CreateError { io_error, .. }) => Outcome::Refused(io_error.to_string()),
        Err(error) => Outcome::Refused(chain(&error)),
    }
}

fn try_program(program: &mut Program) -> Outcome {
    let begun = Instant::now();
    match load_program(program) {
        Ok(instructions) => Outcome::Taken { time: begun.elapsed(), instructions },
        Err(error) => Outcome::Refused(match load::refused("", error) {
            StartError::Refused { reason, .. } => reason,
            error => error.to_string(),
        }),
    }
}

/// Loads a program without attaching it; returns how many instructions the verifier walked.
fn load_program(program: &mut Program) -> Result<Option<u32>, ProgramError> {
    match program {
        Program::CgroupSkb(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::KProbe(program) => program.load()?,
        Program::UProbe(program) => program.load()?,
        Program::TracePoint(program) => program.load()?,
        Program::RawTracePoint(program) => program.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    let info = program.info().ok();
    Ok(info.and_then(|info| info.verified_instruction_count()))
}
