//! `kafka-tracer check`: what this host allows, for people and as JSON.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{CheckArgs, CheckFormat};
use crate::privileges::Need;
use crate::source::ebpf::probe::{Finding, Loaded, ObjectReport, Outcome, Report, State, Support, probe};
use crate::source::features::{Row, SourceKind};

/// Looks at this host and prints what was found. True when live capture can run.
///
/// # Errors
/// If it cannot be printed.
pub fn check(args: &CheckArgs, colour: bool, out: &mut dyn Write) -> io::Result<bool> {
    let report = probe(args.cgroup.as_deref());
    match args.format {
        CheckFormat::Text => text(&report, colour, out)?,
        CheckFormat::Json => {
            serde_json::to_writer_pretty(&mut *out, &json(&report))?;
            writeln!(out)?;
        }
    }
    Ok(report.can_run())
}

/// Columns that marks and titles take.
const MARK: usize = 8;
const TITLE: usize = 26;

/// Width of the lines of an explanation.
const WIDTH: usize = 112;

fn text(report: &Report, colour: bool, out: &mut dyn Write) -> io::Result<()> {
    let painter = Painter { colour };
    let answer = match (report.can_run(), report.lacks_rights_only()) {
        (true, _) => painter.green("live capture can run on this host."),
        (false, true) => painter.red("live capture cannot run with the rights of this process."),
        (false, false) => painter.red("live capture cannot run on this host."),
    };
    writeln!(out, "kafka-tracer {}: {answer}\n", env!("CARGO_PKG_VERSION"))?;
    for source in &report.sources {
        let (mark, words) = match (source.is_used, source.hindrances.is_empty()) {
            (true, _) => (painter.green(&pad("used", MARK)), sees(source.source).to_owned()),
            (false, true) if source.source == SourceKind::Tls => (painter.green(&pad("ready", MARK)), sees(source.source).to_owned()),
            (false, true) => (pad("spare", MARK), "it could run, and is not needed".to_owned()),
            (false, false) if source.source == SourceKind::Tls => (painter.yellow(&pad("cannot", MARK)), source.hindrances.join("; ")),
            (false, false) => (painter.red(&pad("cannot", MARK)), source.hindrances.join("; ")),
        };
        write!(out, "  {mark} {} ", pad(source.source.name(), TITLE))?;
        wrapped(&words, MARK + TITLE + 4, out)?;
    }

    writeln!(out, "\nHost")?;
    for finding in &report.host {
        show(finding, &painter, out)?;
    }

    writeln!(out, "\nRights")?;
    let needs_words = |need: Need, has: bool| !has && need != Need::Special;
    let has: Vec<&str> = report.capabilities.iter().filter(|(_, has)| *has).map(|(capability, _)| capability.name).collect();
    if !has.is_empty() {
        line(&painter.green(&pad("ok", MARK)), "has", &has.join(", "), out)?;
    }
    for (capability, has) in &report.capabilities {
        if !needs_words(capability.need, *has) {
            continue;
        }
        let mark = pad(if capability.need == Need::Required { "missing" } else { "limited" }, MARK);
        let mark = if capability.need == Need::Required { painter.red(&mark) } else { painter.yellow(&mark) };
        line(&mark, capability.name, &format!("to {}", capability.reason), out)?;
        explain(capability.without, out)?;
    }
    if report.capabilities.iter().any(|(capability, has)| needs_words(capability.need, *has)) {
        explain("-> run it as root, or see docs/privileges.md for how to give it these alone", out)?;
    }

    writeln!(out, "\nKernel")?;
    let there = report.features.iter().filter(|(_, support)| *support == Support::Yes).count();
    line(&painter.green(&pad("ok", MARK)), "features", &format!("{there} of {} that the tracer uses", report.features.len()), out)?;
    let kernel = report.kernel;
    for (row, support) in &report.features {
        if *support == Support::No {
            let expected = kernel.is_some_and(|kernel| row.since <= kernel);
            line(&painter.yellow(&pad("missing", MARK)), row.title, &origin(row, expected), out)?;
            explain(row.purpose, out)?;
        }
    }
    // Mostly for one and the same reason.
    let mut unknown: Vec<(&str, Vec<&str>)> = Vec::new();
    for (row, support) in &report.features {
        let Support::Unknown(why) = support else { continue };
        match unknown.iter_mut().find(|(known, _)| known == why) {
            Some((_, titles)) => titles.push(row.title),
            None => unknown.push((why, vec![row.title])),
        }
    }
    for (why, titles) in unknown {
        line(&painter.yellow(&pad("unknown", MARK)), &format!("{} of them", titles.len()), &titles.join(", "), out)?;
        explain(why, out)?;
    }

    writeln!(out, "\nPrograms")?;
    for object in &report.objects {
        show_object(object, &painter, out)?;
    }
    Ok(())
}

/// What a source sees.
const fn sees(source: SourceKind) -> &'static str {
    match source {
        SourceKind::Packet => "sees every TCP connection of this host, sendfile'd answers included",
        SourceKind::Socket => "sees what programs hand to TCP and get from it",
        SourceKind::Tls => "sees what TLS libraries encrypt and decrypt, when asked for by `--tls auto`",
    }
}

/// Where a feature that is missing would come from.
fn origin(row: &Row, expected: bool) -> String {
    match (expected, row.config.is_empty()) {
        (false, _) => format!("comes with Linux {}", row.since),
        (true, false) => format!("Linux {} and newer have it when built with {}", row.since, row.config.join(" and ")),
        (true, true) => format!("Linux {} and newer should have it", row.since),
    }
}

fn show(finding: &Finding, painter: &Painter, out: &mut dyn Write) -> io::Result<()> {
    let mark = pad(name_of(finding.state), MARK);
    let mark = match finding.state {
        State::Ok => painter.green(&mark),
        State::Missing => painter.red(&mark),
        State::Limited | State::Unknown => painter.yellow(&mark),
    };
    line(&mark, finding.title, &finding.found, out)?;
    if !finding.effect.is_empty() {
        explain(&finding.effect, out)?;
    }
    if !finding.remedy.is_empty() {
        explain(&format!("-> {}", finding.remedy), out)?;
    }
    Ok(())
}

fn show_object(object: &ObjectReport, painter: &Painter, out: &mut dyn Write) -> io::Result<()> {
    let all = || object.maps.iter().chain(&object.programs);
    let taken = all().filter(|loaded| matches!(loaded.outcome, Outcome::Taken { .. })).count();
    let total = object.maps.len() + object.programs.len();
    let time: Duration =
        object.programs.iter().map(|loaded| if let Outcome::Taken { time, .. } = loaded.outcome { time } else { Duration::ZERO }).sum();
    let words = if taken == total {
        format!("{} maps and {} programs, taken by the kernel in {} ms", object.maps.len(), object.programs.len(), time.as_millis())
    } else {
        format!("{taken} of {total} taken by the kernel: {} maps, {} programs", object.maps.len(), object.programs.len())
    };
    let is_refused = all().any(|loaded| matches!(loaded.outcome, Outcome::Refused(_)));
    let mark = match (taken == total, is_refused) {
        (true, _) => painter.green(&pad("ok", MARK)),
        (false, true) => painter.red(&pad("refused", MARK)),
        (false, false) => painter.yellow(&pad("unknown", MARK)),
    };
    line(&mark, object.name, &words, out)?;
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for loaded in all() {
        let reason = match &loaded.outcome {
            Outcome::Taken { .. } => continue,
            Outcome::Refused(reason) | Outcome::NotTried(reason) => reason.trim(),
        };
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(&loaded.name),
            None => reasons.push((reason, vec![&loaded.name])),
        }
    }
    for (reason, names) in reasons {
        let who = if names.len() == total { "all".to_owned() } else { names.join(", ") };
        explain(&format!("{who}: {reason}"), out)?;
    }
    Ok(())
}

fn line(mark: &str, title: &str, words: &str, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "  {mark} {} ", pad(title, TITLE))?;
    wrapped(words, MARK + TITLE + 4, out)
}

/// What belongs to the line above.
fn explain(words: &str, out: &mut dyn Write) -> io::Result<()> {
    for words in words.lines() {
        write!(out, "{}", " ".repeat(MARK + 3))?;
        wrapped(words, MARK + 3, out)?;
    }
    Ok(())
}

/// Words in lines of limited width, all but the first indented.
fn wrapped(words: &str, indent: usize, out: &mut dyn Write) -> io::Result<()> {
    let mut column = indent;
    for (index, word) in words.split_whitespace().enumerate() {
        let len = word.chars().count();
        if index > 0 && column + 1 + len > WIDTH {
            write!(out, "\n{}{word}", " ".repeat(indent))?;
            column = indent + len;
        } else {
            let blank = if index > 0 { " " } else { "" };
            write!(out, "{blank}{word}")?;
            column += len + blank.len();
        }
    }
    writeln!(out)
}

fn pad(text: &str, width: usize) -> String {
    format!("{text:<width$}")
}

struct Painter {
    colour: bool,
}

impl Painter {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    fn yellow(&self, text: &str) -> String {
        self.paint("33", text)
    }

    fn red(&self, text: &str) -> String {
        self.paint("31", text)
    }
}

const fn name_of(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Limited => "limited",
        State::Missing => "missing",
        State::Unknown => "unknown",
    }
}

/// The whole report. `docs/kernels.md` describes it.
fn json(report: &Report) -> Value {
    let or_null = |text: &str| if text.is_empty() { Value::Null } else { Value::from(text) };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "can_run": report.can_run(),
        "kernel": report.kernel.map(|kernel| kernel.to_string()),
        "sources": report.sources.iter().map(|source| json!({
            "name": source.source.name(),
            "can_run": source.hindrances.is_empty(),
            "is_used": source.is_used,
            "hindrances": source.hindrances,
        })).collect::<Vec<_>>(),
        "host": report.host.iter().map(|finding| json!({
            "name": finding.name,
            "state": name_of(finding.state),
            "found": finding.found,
            "effect": or_null(&finding.effect),
            "remedy": or_null(&finding.remedy),
        })).collect::<Vec<_>>(),
        "capabilities": report.capabilities.iter().map(|(capability, has)| json!({
            "name": capability.name,
            "effective": has,
            "need": match capability.need {
                Need::Required => "required",
                Need::Wanted => "wanted",
                Need::Special => "special",
            },
            "reason": capability.reason,
            "without": capability.without,
        })).collect::<Vec<_>>(),
        "features": report.features.iter().map(|(row, support)| json!({
            "name": row.name,
            "state": match support {
                Support::Yes => "ok",
                Support::No => "missing",
                Support::Unknown(_) => "unknown",
            },
            "why": if let Support::Unknown(why) = support { Value::from(why.as_str()) } else { Value::Null },
            "since": row.since.to_string(),
            "expected": report.kernel.map(|kernel| row.since <= kernel),
            "config": row.config,
            "needed_by": row.needed_by.iter().map(|source| source.name()).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "objects": report.objects.iter().map(|object| json!({
            "name": object.name,
            "source": object.source.name(),
            "maps": object.maps.iter().map(loaded).collect::<Vec<_>>(),
            "programs": object.programs.iter().map(loaded).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn loaded(loaded: &Loaded) -> Value {
    let (state, reason, time, instructions) = match &loaded.outcome {
        Outcome::Taken { time, instructions } => ("ok", None, Some(time.as_micros()), *instructions),
        Outcome::Refused(reason) => ("refused", Some(reason.as_str()), None, None),
        Outcome::NotTried(reason) => ("not_tried", Some(reason.as_str()), None, None),
    };
    json!({
        "name": loaded.name,
        "state": state,
        "needed": !loaded.is_optional,
        "reason": reason,
        "microseconds": time.map(|time| u64::try_from(time).unwrap_or(u64::MAX)),
        "instructions": instructions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanations_are_wrapped_under_themselves() {
        let mut out = Vec::new();
        wrapped(&"word ".repeat(40), 20, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with(&format!("{}word", " ".repeat(20)))), "{text}");
        assert_eq!(text.split_whitespace().count(), 40);
    }

    #[test]
    fn marks_have_colours_only_where_they_are_wanted() {
        let plain = Painter { colour: false };
        let bright = Painter { colour: true };
        assert_eq!(plain.red("x"), "x");
        assert_eq!(bright.red("x"), "\x1b[31mx\x1b[0m");
    }

    #[test]
    fn a_missing_feature_says_where_it_would_come_from() {
        let row = crate::source::features::Feature::Kprobes.row();
        assert!(origin(row, true).contains("CONFIG_KPROBES"));
        assert_eq!(origin(crate::source::features::Feature::RingBuffer.row(), false), "comes with Linux 5.8");
    }
}
