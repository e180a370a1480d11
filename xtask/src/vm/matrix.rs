//! The matrix: on each kernel, with each source that it should have, clients and brokers play recorded captures, and the daemon's listing is held
//! against what the applications reported.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::guest::{Guest, Packed, Ran};
use super::kernel::{Kernel, SERIES, Series};
use super::plan::{Cgroups, Job, Manner, Older, Plan, Play, Report, Way};
use crate::build::{self, Profile};
use crate::{step, workspace};

/// Guests that run at once: each has two CPUs.
const AT_ONCE: usize = 2;

/// Where bytes can be seen. Where the table of features (`source::features` of the daemon) does not ask for one of them, the guest says so.
const SOURCES: [&str; 3] = ["packet", "socket", PERF];

/// What the oldest kernel at hand, whose structures are those of 5.4, is also made to look like: older ones, and one that was built otherwise.
const OLDER: [Older; 3] = [Older::Linux414, Older::Linux54, Older::NoRing];

/// How often a daemon is started and ended, half of them by SIGKILL.
const RESTARTS: u32 = 100;

/// The buffers of kernels before 5.8: the short matrix looks through them on the oldest kernel alone.
const PERF: &str = "socket-perf";

/// Captures for every manner: a client that produces and consumes, headers of several kinds, old formats, transactions, groups, answers of many batches.
const EVERY_MANNER: [&str; 3] = ["java-headers-mixed", "confluent-basic", "java-txn"];
/// Captures with answers that take many calls, or many segments.
const LARGE: [&str; 3] = ["confluent-fetch-truncated", "kafkajs-large", "java-large-produce"];
/// For bytes that go one at a time.
const SMALL: [&str; 2] = ["java-nulls", "sarama-headers-b3"];

/// Captures whose connections must be told by their ports: raw GSSAPI tokens before the first request say too little for the kernel to judge, which is what
/// `--ports` is for.
const BY_PORT: [(&str, &str); 1] = [("sasl-gssapi-first", "9092")];

/// What is run.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The kernels; all when empty.
    pub kernels: Vec<Series>,
    /// The sources; all that a kernel should have when empty.
    pub sources: Vec<String>,
    /// How much.
    pub extent: Extent,
}

/// How much of the matrix is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Each kernel once with the programs that users run, one with those that log: for each commit.
    Short,
    /// Each kernel with both builds, all ways of mounting cgroups, with IPv6 and without.
    Whole,
    /// The whole, and every capture of the corpus.
    All,
}

/// A host that a guest is.
#[derive(Clone, Copy, Debug)]
struct Setup {
    series: Series,
    profile: Profile,
    cgroups: Cgroups,
    no_ipv6: bool,
    extent: Extent,
}

/// How the matrix went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Captures that were played and listed as the truth says.
    pub passed: u64,
    /// Those that were not, and what had no verdict.
    pub failed: u64,
}

/// Runs it and prints a table.
///
/// # Errors
/// If it cannot be set up. What went wrong in a guest is printed, and counted as failed.
pub fn run(matrix: &Matrix) -> Result<Score> {
    let setups = setups(matrix);
    let needed = |profile: Profile| setups.iter().any(|setup| setup.profile == profile);
    let mut tracers = BTreeMap::new();
    for profile in [Profile::Release, Profile::Debug] {
        if needed(profile) {
            tracers.insert(profile.name(), build::daemon(profile)?);
        }
    }
    let init = super::init()?;
    // Before any guest starts: what cannot be had is said at once, and for all.
    let mut kernels = BTreeMap::new();
    let mut score = Score::default();
    for setup in &setups {
        let series = setup.series.name;
        if !kernels.contains_key(series) {
            let kernel = Kernel::ensure(setup.series).map_err(|error| eprintln!("error: {error:#}")).ok();
            score.failed += u64::from(kernel.is_none());
            kernels.insert(series, kernel);
        }
    }
    step::heading("kernels", &format!("{} guests under qemu, {AT_ONCE} at a time", setups.len()));
    let begun = Instant::now();
    let waiting = Mutex::new(setups.iter());
    let done: Mutex<Vec<(Setup, Result<Verdict>)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = lock(&waiting).next();
                    let Some(setup) = next else { break };
                    let Some(Some(kernel)) = kernels.get(setup.series.name) else { continue };
                    let Some(tracer) = tracers.get(setup.profile.name()) else { continue };
                    let verdict = judge(matrix, *setup, kernel, tracer, &init);
                    let mut done = lock(&done);
                    show(setup, &verdict);
                    done.push((*setup, verdict));
                }
            });
        }
    });
    for (_, verdict) in lock(&done).iter() {
        match verdict {
            Ok(verdict) => {
                score.passed += verdict.passed;
                score.failed += u64::try_from(verdict.failed.len()).unwrap_or(u64::MAX);
            }
            Err(_) => score.failed += 1,
        }
    }
    step::note(&format!("took {}", step::seconds(begun.elapsed())));
    Ok(score)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn setups(matrix: &Matrix) -> Vec<Setup> {
    let mut setups = Vec::new();
    for (number, series) in
        SERIES.into_iter().enumerate().filter(|(_, series)| matrix.kernels.is_empty() || matrix.kernels.contains(series))
    {
        let setup = |profile, cgroups, no_ipv6, extent| Setup { series, profile, cgroups, no_ipv6, extent };
        if matrix.extent == Extent::Short {
            // Every way of mounting cgroups on one kernel at least, IPv6 off on another than the first.
            let cgroups = [Cgroups::Hybrid, Cgroups::V1, Cgroups::V2];
            let cgroups = cgroups.get(number % cgroups.len()).copied().unwrap_or_default();
            setups.push(setup(Profile::Release, cgroups, number == 1, Extent::Short));
            if number == 1 {
                setups.push(setup(Profile::Debug, Cgroups::V2, false, Extent::Short));
            }
            continue;
        }
        setups.push(setup(Profile::Release, Cgroups::V2, false, matrix.extent));
        setups.push(setup(Profile::Release, Cgroups::V1, true, Extent::Short));
        setups.push(setup(Profile::Debug, Cgroups::Hybrid, false, Extent::Short));
    }
    setups
}

/// The captures and manners of a guest.
fn plays(extent: Extent) -> Result<Vec<(String, Manner)>> {
    let mut plays: Vec<(String, Manner)> = Vec::new();
    let mut add = |captures: &[&str], manners: &[Manner]| {
        for capture in captures {
            plays.extend(manners.iter().map(|manner| ((*capture).to_owned(), *manner)));
        }
    };
    match extent {
        Extent::Short => {
            add(&EVERY_MANNER[..1], &[Manner::Plain, Manner::Gathered, Manner::Peek, Manner::Crowd]);
            add(&LARGE[..1], &[Manner::SendfileTmpfs, Manner::SendfileRamfs, Manner::Scattered]);
            add(&SMALL[..1], &[Manner::Bytes]);
        }
        Extent::Whole | Extent::All => {
            let without_bytes: Vec<Manner> = Manner::ALL.into_iter().filter(|manner| *manner != Manner::Bytes).collect();
            add(&EVERY_MANNER, &without_bytes);
            add(&LARGE, &[Manner::Plain, Manner::Gathered, Manner::SendfileTmpfs, Manner::SendfileRamfs]);
            add(&SMALL, &[Manner::Bytes]);
        }
    }
    if extent == Extent::All {
        for name in captures()? {
            if !plays.contains(&(name.clone(), Manner::Plain)) {
                plays.push((name, Manner::Plain));
            }
        }
    }
    Ok(plays)
}

/// What is tested in a guest: the short matrix looks through perf buffers on the oldest kernel alone, and there as older ones do.
fn ways(matrix: &Matrix, extent: Extent, is_oldest: bool) -> Vec<Way> {
    let is_short = extent == Extent::Short;
    let way = |source: &str, older| Way { source: source.to_owned(), older };
    let mut ways: Vec<Way> = SOURCES.into_iter().filter(|source| !is_short || *source != PERF).map(|source| way(source, None)).collect();
    if is_oldest {
        ways.extend(OLDER.map(|older| way("auto", Some(older))));
    }
    ways.retain(|way| matrix.sources.is_empty() || matrix.sources.contains(&way.to_string()));
    ways
}

fn corpus() -> PathBuf {
    workspace::root().join("tests/corpus")
}

fn captures() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(corpus()).context("cannot read the corpus")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pcap") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// What a guest found.
#[derive(Clone, Debug, Default)]
struct Verdict {
    release: String,
    passed: u64,
    failed: Vec<String>,
    /// Lines for the table of programs.
    programs: Vec<String>,
    time: Duration,
}

fn judge(matrix: &Matrix, setup: Setup, kernel: &Kernel, tracer: &Path, init: &Path) -> Result<Verdict> {
    let is_oldest = setup.series == SERIES[0];
    let plays = plays(setup.extent)?;
    let ways = ways(matrix, setup.extent, is_oldest);
    ensure!(!ways.is_empty(), "no source was asked for that is tested on Linux {}", kernel.version);
    let tracer_there = || super::plan::TRACER.to_owned();
    let mut jobs = vec![Job::Check { tracer: tracer_there(), older: None }];
    if is_oldest {
        let of_a_version = OLDER.into_iter().filter(|older| *older != Older::NoRing);
        jobs.extend(of_a_version.map(|older| Job::Check { tracer: tracer_there(), older: Some(older) }));
    }
    for way in &ways {
        let play = |capture: &str, manner, daemons| {
            let ports = BY_PORT.iter().find(|(by_port, _)| *by_port == capture).map(|(_, ports)| (*ports).to_owned());
            Job::Play(Play { tracer: tracer_there(), way: way.clone(), daemons, ports, capture: capture.to_owned(), manner })
        };
        jobs.push(Job::Programs { tracer: tracer_there(), way: way.clone() });
        // Its programs are those of perf buffers: one play shows that they are taken.
        let all = if way.older == Some(Older::NoRing) { plays.get(..1).unwrap_or_default() } else { &plays };
        jobs.extend(all.iter().map(|(capture, manner)| play(capture, *manner, 1)));
        if way.older == Some(Older::NoRing) {
            continue;
        }
        jobs.push(play(EVERY_MANNER[0], Manner::Plain, 2));
        if setup.extent != Extent::Short {
            jobs.push(Job::Restarts { tracer: tracer_there(), way: way.clone(), times: RESTARTS });
        }
    }
    let mut packed = vec![Packed::Program { from: tracer.to_path_buf(), to: super::plan::TRACER.into() }];
    let used: BTreeSet<&String> = plays.iter().map(|(capture, _)| capture).collect();
    for capture in used {
        for extension in ["pcap", "json"] {
            let name = format!("{capture}.{extension}");
            packed.push(Packed::Files { from: corpus().join(&name), to: Path::new("/corpus").join(&name) });
        }
    }
    let guest = Guest {
        name: name_of(&setup).replace(' ', "-"),
        kernel: kernel.clone(),
        parameters: if setup.no_ipv6 { vec!["ipv6.disable=1".to_owned()] } else { Vec::new() },
        init: init.to_path_buf(),
        packed,
        plan: Plan { cgroups: setup.cgroups, jobs: jobs.clone() },
        // A minute to start, and what the slowest machine that was seen needs for a play, four times over.
        time_limit: Duration::from_mins(1) + Duration::from_secs(20) * u32::try_from(jobs.len())? + restarts_time(&jobs),
        on_terminal: false,
        counts_instructions: false,
    };
    weigh(&jobs, guest.run()?)
}

fn restarts_time(jobs: &[Job]) -> Duration {
    let times: u32 = jobs.iter().map(|job| if let Job::Restarts { times, .. } = job { *times } else { 0 }).sum();
    Duration::from_secs(4) * times
}

/// Every job of the plan needs its verdict.
fn weigh(jobs: &[Job], ran: Ran) -> Result<Verdict> {
    let mut verdict = Verdict { time: ran.time, ..Verdict::default() };
    let mut played = BTreeMap::new();
    let mut loaded = BTreeMap::new();
    let mut restarted = BTreeMap::new();
    let mut checked = BTreeMap::new();
    let mut not_expected = BTreeSet::new();
    for report in ran.reports {
        match report {
            Report::Booted { release } => verdict.release = release,
            Report::Played { play, differences, .. } => drop(played.insert(play, differences)),
            Report::Programs { way, programs } => drop(loaded.insert(way, programs)),
            Report::Restarted { way, left } => drop(restarted.insert(way, left)),
            Report::Checked { older, faults } => drop(checked.insert(older, faults)),
            Report::NotExpected { way } => drop(not_expected.insert(way)),
            Report::Failed { reason } => bail!(reason),
            Report::Command { .. } | Report::Done => {}
        }
    }
    for job in jobs {
        match job {
            Job::Programs { way, .. } | Job::Restarts { way, .. } | Job::Play(Play { way, .. }) if not_expected.contains(way) => {}
            Job::Play(play) => {
                let two = if play.daemons > 1 { ", two daemons" } else { "" };
                let name = format!("{} {:?} {}{two}", play.way, play.manner, play.capture);
                match played.get(play) {
                    Some(differences) if differences.is_empty() => verdict.passed += 1,
                    Some(differences) => verdict.failed.push(format!("{name}:\n        {}", differences.join("\n        "))),
                    None => verdict.failed.push(format!("{name}: no verdict")),
                }
            }
            Job::Check { older, .. } => {
                let name = format!("check{}", older.map(|older| format!(" as on {}", older.name())).unwrap_or_default());
                match checked.get(older) {
                    Some(faults) if faults.is_empty() => verdict.passed += 1,
                    Some(faults) => verdict.failed.push(format!("{name}:\n        {}", faults.join("\n        "))),
                    None => verdict.failed.push(format!("{name}: no verdict")),
                }
            }
            Job::Programs { way, .. } => match loaded.get(way) {
                Some(programs) => {
                    verdict.programs.extend(programs.iter().map(|program| {
                        let verified = program.verified.map_or_else(|| "-".to_owned(), |count| count.to_string());
                        format!(
                            "{:<14}{:<16}{:>8}{verified:>10}{:>10}{:>8}",
                            way.to_string(),
                            program.name,
                            program.instructions,
                            program.machine_bytes,
                            program.load_ms
                        )
                    }));
                }
                None => verdict.failed.push(format!("{way}: the daemon did not start, or loaded nothing")),
            },
            Job::Restarts { way, times, .. } => match restarted.get(way) {
                Some(left) if left.is_empty() => verdict.passed += 1,
                Some(left) => verdict.failed.push(format!("{way}: {times} starts and ends leave behind: {}", left.join("; "))),
                None => verdict.failed.push(format!("{way}: {times} starts and ends: no verdict")),
            },
            Job::Command { .. } => {}
        }
    }
    Ok(verdict)
}

fn name_of(setup: &Setup) -> String {
    let cgroups = match setup.cgroups {
        Cgroups::V1 => "cgroup v1",
        Cgroups::Hybrid => "cgroup hybrid",
        Cgroups::V2 => "cgroup v2",
    };
    format!("{} {} {cgroups}{}", setup.series.name, setup.profile.name(), if setup.no_ipv6 { " no ipv6" } else { "" })
}

fn show(setup: &Setup, verdict: &Result<Verdict>) {
    match verdict {
        Err(error) => println!("FAILED  {}: {error:#}", name_of(setup)),
        Ok(verdict) => {
            let word = if verdict.failed.is_empty() { "ok" } else { "FAILED" };
            println!(
                "{word:<8}{}, Linux {}: {} played as the truth says, {} not, {}",
                name_of(setup),
                verdict.release,
                verdict.passed,
                verdict.failed.len(),
                step::seconds(verdict.time)
            );
            println!("        {:<14}{:<16}{:>8}{:>10}{:>10}{:>8}", "source", "program", "insns", "verified", "machine", "ms");
            for line in &verdict.programs {
                println!("        {line}");
            }
            for failed in &verdict.failed {
                println!("    {failed}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_verdict_has_failed() {
        let packet = Way { source: "packet".to_owned(), older: None };
        let play = |capture: &str| Play {
            tracer: "/bin/kafka-tracer".to_owned(),
            way: packet.clone(),
            daemons: 1,
            ports: None,
            capture: capture.to_owned(),
            manner: Manner::Plain,
        };
        let programs = Job::Programs { tracer: String::new(), way: packet.clone() };
        let jobs = [Job::Play(play("a")), Job::Play(play("b")), Job::Play(play("c")), programs];
        let told = |capture: &str, differences: &[&str]| Report::Played {
            play: play(capture),
            differences: differences.iter().map(|text| (*text).to_owned()).collect(),
            ms: 1,
        };
        let reports = vec![told("a", &[]), told("b", &["a record is missing"]), Report::Done];
        let verdict = weigh(&jobs, Ran { reports, time: Duration::ZERO }).unwrap();
        assert_eq!((verdict.passed, verdict.failed.len()), (1, 3), "{:?}", verdict.failed);
    }

    #[test]
    fn the_captures_that_are_named_exist() {
        let names = captures().unwrap();
        let wanted = EVERY_MANNER.iter().chain(&LARGE).chain(&SMALL).chain(BY_PORT.iter().map(|(name, _)| name));
        for name in wanted {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn even_the_short_matrix_has_every_kernel_every_way_of_cgroups_and_every_manner() {
        let setups = setups(&Matrix { kernels: Vec::new(), sources: Vec::new(), extent: Extent::Short });
        for series in SERIES {
            assert!(setups.iter().any(|setup| setup.series == series && setup.profile == Profile::Release), "{}", series.name);
        }
        for cgroups in [Cgroups::V1, Cgroups::Hybrid, Cgroups::V2] {
            assert!(setups.iter().any(|setup| setup.cgroups == cgroups), "{cgroups:?}");
        }
        assert!(setups.iter().any(|setup| setup.no_ipv6) && setups.iter().any(|setup| setup.profile == Profile::Debug));
        let plays = plays(Extent::Short).unwrap();
        for manner in Manner::ALL {
            assert!(plays.iter().any(|(_, of)| *of == manner), "{manner:?}");
        }
    }
}
