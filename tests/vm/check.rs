//! What `kafka-tracer check` says of a kernel, held against the table of features and against what the daemon then does.

#![forbid(unsafe_code)]

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tracer_userspace::source::features::{Feature, KernelVersion, SourceKind, TABLE, expected_sources};
use xtask::vm::plan::{Older, Way};

use crate::judge;
use crate::older::{self, Hidden};

/// The kernel, or the one that it is taken for.
fn kernel(older: Option<Older>) -> Option<KernelVersion> {
    older.and_then(|older| KernelVersion::parse(older.name())).or_else(KernelVersion::running)
}

/// Whether the table of features says that this works here.
pub(crate) fn is_expected(way: &Way) -> bool {
    let kind = match way.source.as_str() {
        "packet" => SourceKind::Packet,
        "auto" => return true,
        _ => SourceKind::Socket,
    };
    kernel(way.older).is_none_or(|kernel| expected_sources(kernel).any(|expected| expected == kind))
}

/// What is wrong with the answer.
pub(crate) fn faults(tracer: &str, older: Option<Older>) -> Result<Vec<String>> {
    let kernel = kernel(older).context("the kernel's version")?;
    let hidden = older.map(|older| Hidden::of(older, false)).transpose()?;
    let answer = ask(tracer, older, &["check", "--format", "json"])?;
    let text = ask(tracer, older, &["check"])?;
    drop(hidden);
    let json: Value = serde_json::from_slice(&answer.stdout)
        .with_context(|| format!("no JSON: {}{}", String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr)))?;
    let mut faults = Vec::new();
    let mut hold = |what: String, is: bool, should: bool| {
        if is != should {
            faults.push(format!("{what}: {is}, and should be {should}"));
        }
    };
    hold("it ends as if capture could run".to_owned(), answer.status.success(), true);
    hold("the text ends likewise".to_owned(), text.status.success(), answer.status.success());
    hold("can_run".to_owned(), json.get("can_run") == Some(&Value::Bool(true)), true);
    hold("the kernel's version is right".to_owned(), text_of(&json, "kernel") == kernel.to_string(), true);

    let expected: Vec<SourceKind> = expected_sources(kernel).collect();
    let main = expected.iter().find(|kind| **kind != SourceKind::Tls).copied();
    let words = String::from_utf8_lossy(&text.stdout).into_owned();
    for source in list(&json, "sources") {
        let name = text_of(source, "name");
        let kind = SourceKind::ALL.into_iter().find(|kind| kind.name() == name).with_context(|| format!("source {name}"))?;
        let is = |field| source.get(field) == Some(&Value::Bool(true));
        let should = expected.contains(&kind);
        hold(format!("{name} can run ({})", source.get("hindrances").unwrap_or(&Value::Null)), is("can_run"), should);
        if kind != SourceKind::Tls {
            hold(format!("{name} is used"), is("is_used"), main == Some(kind));
        }
        let mark = match (is("is_used"), is("can_run")) {
            (true, _) => "used",
            (false, true) if kind == SourceKind::Tls => "ready",
            (false, true) => "spare",
            (false, false) => "cannot",
        };
        let says_so = words.lines().any(|line| line.split_whitespace().take(2).eq([mark, name.as_str()]));
        hold(format!("the text says `{mark}` of {name}"), says_so, true);
    }
    for row in &TABLE {
        let told = list(&json, "features").find(|feature| text_of(feature, "name") == row.name);
        let told = told.with_context(|| format!("nothing is told of {}", row.name))?;
        let should = row.since <= kernel;
        hold(format!("{} is expected", row.name), told.get("expected") == Some(&Value::Bool(true)), should);
        // An older kernel is one that was built without its types.
        let is_left_out = older.is_some() && row.feature == Feature::KernelTypes;
        if should && !is_left_out {
            let state = text_of(told, "state");
            hold(format!("{} is there ({state}, {})", row.name, told.get("why").unwrap_or(&Value::Null)), state == "ok", true);
        }
    }
    for object in list(&json, "objects") {
        let (name, source) = (text_of(object, "name"), text_of(object, "source"));
        let needs_ring = name == "socket_ring";
        let should = expected.iter().any(|kind| kind.name() == source) && (!needs_ring || Feature::RingBuffer.row().since <= kernel);
        let refused: Vec<String> = list(object, "maps")
            .chain(list(object, "programs"))
            .filter(|loaded| text_of(loaded, "state") != "ok")
            .map(|loaded| format!("{}: {}", text_of(loaded, "name"), text_of(loaded, "reason")))
            .collect();
        hold(format!("all of object {name} is taken ({})", refused.join("; ")), refused.is_empty(), should);
    }
    faults.extend(judge::choice(tracer, older, main.map(SourceKind::name).unwrap_or_default())?);
    Ok(faults)
}

fn ask(tracer: &str, older: Option<Older>, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(tracer);
    command.args(arguments).env("NO_COLOR", "1").env("PATH", "/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = match older {
        Some(older) => older::spawn(command, older)?,
        None => command.spawn()?,
    };
    let output = child.wait_with_output()?;
    ensure!(output.status.code().is_some(), "it ended with {}", output.status);
    Ok(output)
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn text_of(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}
