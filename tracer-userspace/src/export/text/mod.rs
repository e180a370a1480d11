//! Spans for a person at a terminal: one line each, and a summary by topic at the end.
//!
//! In: [`FinishedSpan`]s for the lines, [`Observation`]s for the sums (which are exact whatever spans are left out).
//! Out: text, coloured only where asked for. What came off the wire is never let near the terminal with its control
//! characters.
//! `docs/reading-the-text.md` shows it.

#![forbid(unsafe_code)]

mod quantity;
mod sums;

use std::io::{self, Write};

use opentelemetry::trace::SpanId;

use self::quantity::{count, duration, seconds};
use self::sums::Sums;
use crate::observe::{Observation, ResourceValue, Side, Topic};
use crate::telemetry::{FinishedSpan, HealthSnapshot, Joined, OperationName, ResourceKey, Summary, semconv};
use crate::time::Timestamp;

const DIM: &str = "2";
const BOLD: &str = "1";
const RED: &str = "1;31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";
const MAGENTA: &str = "35";

/// From this many seconds on, a time is shown as slow.
const SLOW_SECONDS: f64 = 1.0;

/// Whether text may be coloured: only on a terminal, and not when `NO_COLOR` is set to anything (no-color.org).
pub fn may_colour(is_terminal: bool, lookup: &dyn Fn(&str) -> Option<String>) -> bool {
    is_terminal && lookup("NO_COLOR").is_none_or(|value| value.is_empty()) && lookup("TERM").is_none_or(|term| term != "dumb")
}

/// Writes spans as lines.
#[derive(Debug)]
pub struct Text<W> {
    out: W,
    colour: bool,
    columns: Columns,
    day: Option<String>,
    sums: Sums,
}

/// Widths that grow with what was seen, up to a limit, so that lines stay aligned.
#[derive(Debug)]
struct Columns {
    place: Column,
    service: Column,
    who: Column,
}

#[derive(Debug)]
struct Column {
    width: usize,
    most: usize,
}

impl Column {
    const fn new(width: usize, most: usize) -> Self {
        Self { width, most }
    }

    /// The text in this column's width; what is too long loses its beginning, since the end tells more.
    fn fit(&mut self, text: &str) -> String {
        let length = text.chars().count();
        self.width = self.width.max(length.min(self.most));
        if length <= self.width {
            return format!("{text:<width$}", width = self.width);
        }
        let cut: String = text.chars().skip(length + 1 - self.width).collect();
        format!("…{cut}")
    }
}

impl<W: Write> Text<W> {
    /// Writes to `out`; `colour` as [`may_colour`] says. `sides` decides which end's observations are summed.
    pub fn new(out: W, colour: bool, counted: Side) -> Self {
        let columns = Columns { place: Column::new(25, 48), service: Column::new(10, 24), who: Column::new(16, 28) };
        Self { out, colour, columns, day: None, sums: Sums::new(counted) }
    }

    /// Counts an observation for the summary.
    pub fn observe(&mut self, observation: &Observation) {
        self.sums.observe(observation);
    }

    /// Writes a span's line.
    ///
    /// # Errors
    /// When writing fails.
    pub fn span(&mut self, span: &FinishedSpan) -> io::Result<()> {
        self.sums.span(span);
        let summary = &span.summary;
        let start = summary.start.to_string();
        let (day, time) = start.split_once('T').unwrap_or(("", &start));
        if self.day.as_deref() != Some(day) {
            let first = self.day.replace(day.to_owned()).is_none();
            self.heading(day, first)?;
        }
        let time = time.get(..12).unwrap_or(time);
        let operation = format!("{:<6}", summary.operation.name());
        let place = self.columns.place.fit(&place(summary));
        let messages = if summary.messages > 0 { count(u64::from(summary.messages)) } else { String::new() };
        let service = self.columns.service.fit(&service(&span.resource));
        let who = who(summary).map_or_else(String::new, printable);
        let who = self.columns.who.fit(&who);
        let took = duration(summary.duration());
        let end_to_end = summary.end_to_end.map_or_else(String::new, |time| seconds(time.seconds));
        let slow = summary.operation == OperationName::Send && summary.duration().as_secs_f64() >= SLOW_SECONDS;
        let late = summary.end_to_end.is_some_and(|time| time.seconds >= SLOW_SECONDS || time.seconds < 0.0);
        let colour = match summary.operation {
            OperationName::Send => CYAN,
            OperationName::Fetch => GREEN,
            OperationName::Commit => MAGENTA,
        };
        let line = [
            self.paint(DIM, time),
            self.paint(colour, &operation),
            place,
            format!("{messages:>6}"),
            service,
            who,
            self.paint_if(slow, YELLOW, &format!("{took:>8}")),
            self.paint_if(late, YELLOW, &format!("{end_to_end:>10}")),
            self.notes(span),
        ];
        writeln!(self.out, "{}", line.join("  "))
    }

    /// Writes the summary, with what was not seen as `health` counts it.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self, health: &HealthSnapshot) -> io::Result<W> {
        let colour = self.colour;
        self.sums.write(&mut self.out, &|code, text| painted(colour, code, text), health)?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn heading(&mut self, day: &str, first: bool) -> io::Result<()> {
        let day = self.paint(DIM, &format!("{day}, times are UTC"));
        writeln!(self.out, "{day}")?;
        if !first {
            return Ok(());
        }
        let columns = &mut self.columns;
        let heading = format!(
            "{:<12}  {:<6}  {}  {:>6}  {}  {}  {:>8}  {:>10}",
            "TIME",
            "OP",
            columns.place.fit("TOPIC-PARTITION@OFFSETS"),
            "MSGS",
            columns.service.fit("SERVICE"),
            columns.who.fit("GROUP / CLIENT"),
            "TOOK",
            "END-TO-END"
        );
        let heading = self.paint(BOLD, &heading);
        writeln!(self.out, "{heading}")
    }

    fn notes(&self, span: &FinishedSpan) -> String {
        let summary = &span.summary;
        let mut notes = Vec::new();
        if let Some(error) = summary.error {
            notes.push(self.paint(RED, error));
        }
        if summary.retry {
            notes.push(self.paint(YELLOW, "retry"));
        }
        if summary.redelivered {
            notes.push(self.paint(YELLOW, "redelivered"));
        }
        match summary.joined {
            Joined::Seen => notes.push(self.paint(GREEN, "<- joined with send")),
            Joined::Coordinates => notes.push(self.paint(GREEN, "<- joined with send elsewhere")),
            Joined::Context => notes.push(self.paint(GREEN, "<- joined by carried context")),
            Joined::No if summary.operation == OperationName::Send && span.data.parent_span_id != SpanId::INVALID => {
                notes.push(self.paint(GREEN, "<- in the application's trace"));
            }
            Joined::No => {}
        }
        let own = span.data.span_context.trace_id();
        notes.push(self.paint(DIM, &format!("trace {}", short(&own.to_string()))));
        let linked = span.data.links.links.iter().map(|link| link.span_context.trace_id()).find(|linked| *linked != own);
        if let Some(linked) = linked {
            notes.push(self.paint(DIM, &format!("linked to {}", short(&linked.to_string()))));
        }
        notes.join(", ")
    }

    fn paint(&self, code: &str, text: &str) -> String {
        painted(self.colour, code, text)
    }

    fn paint_if(&self, condition: bool, code: &str, text: &str) -> String {
        painted(self.colour && condition, code, text)
    }
}

fn painted(colour: bool, code: &str, text: &str) -> String {
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// `orders-1@1000..1004`.
fn place(summary: &Summary) -> String {
    let topic = topic_name(&summary.topic);
    let partition = summary.partition;
    match summary.offsets {
        Some((first, last)) if first == last => format!("{topic}-{partition}@{first}"),
        Some((first, last)) => format!("{topic}-{partition}@{first}..{last}"),
        None => format!("{topic}-{partition}"),
    }
}

/// The topic's name, else its id.
fn topic_name(topic: &Topic) -> String {
    match (&topic.name, topic.id) {
        (Some(name), _) => printable(name),
        (None, Some(id)) => id.to_string(),
        (None, None) => "?".to_owned(),
    }
}

fn service(resource: &ResourceKey) -> String {
    match resource {
        ResourceKey::Process(process) => {
            let name = process.resource.iter().find(|(key, _)| &**key == semconv::SERVICE_NAME).map(|(_, value)| value);
            match name {
                Some(ResourceValue::Text(name)) => printable(name),
                _ => format!("pid {}", process.pid),
            }
        }
        ResourceKey::Remote(address) => address.to_string(),
    }
}

/// The consumer group, else the client id.
fn who(summary: &Summary) -> Option<&str> {
    summary.group.as_deref().or(summary.client_id.as_deref())
}

/// Without control characters, which could make the terminal do things, and without invisible reordering.
fn printable(text: impl AsRef<str>) -> String {
    let hidden =
        |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    text.as_ref().chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// The day and second of a moment.
fn to_the_second(time: Timestamp) -> String {
    let text = time.to_string();
    text.get(..19).map_or(text.clone(), |cut| cut.replace('T', " "))
}

#[cfg(test)]
mod tests;
