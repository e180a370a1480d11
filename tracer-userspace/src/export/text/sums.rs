//! What happened, by topic: the summary at the end.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

use super::quantity::{Distribution, bytes, count, seconds};
use super::{BOLD, CYAN, GREEN, RED, YELLOW, printable, to_the_second, topic_name};
use crate::observe::{Observation, Operation, Outcome, Poll, Side, Topic};
use crate::telemetry::semconv::metric;
use crate::telemetry::{FinishedSpan, HealthSnapshot, HealthValue, Joined, OperationName, error_type};
use crate::time::Timestamp;

/// Topics, and groups of one topic, that are told apart; the rest is summed together.
const MAX_TOPICS: usize = 1_000;
const MAX_GROUPS: usize = 100;
/// Partitions of one topic of which it is said how far they were read.
const MAX_PARTITIONS: usize = 1_000;
const OTHERS: &str = "(others)";

/// Everything summed so far.
#[derive(Debug)]
pub(super) struct Sums {
    counted: Side,
    topics: BTreeMap<String, TopicSums>,
    clients: BTreeSet<u64>,
    first: Option<Timestamp>,
    last: Timestamp,
}

#[derive(Debug, Default)]
struct TopicSums {
    sent: u64,
    sent_bytes: u64,
    retried: u64,
    unanswered: u64,
    send_errors: BTreeMap<&'static str, u64>,
    groups: BTreeMap<Option<Arc<str>>, GroupSums>,
    /// Where partitions end, as far as that was told.
    ends: BTreeMap<i32, i64>,
}

#[derive(Debug, Default)]
struct GroupSums {
    fetched: u64,
    fetched_bytes: u64,
    redelivered: u64,
    commits: u64,
    /// How far partitions were read.
    positions: BTreeMap<i32, i64>,
    errors: BTreeMap<&'static str, u64>,
    span_messages: u64,
    joined_messages: u64,
    end_to_end: Distribution,
}

impl Sums {
    pub(super) const fn new(counted: Side) -> Self {
        Self { counted, topics: BTreeMap::new(), clients: BTreeSet::new(), first: None, last: Timestamp::ZERO }
    }

    pub(super) fn observe(&mut self, observation: &Observation) {
        match observation {
            Observation::Sent(sent) if self.counts(&sent.operation) && !sent.header.control => {
                let Some(topic) = self.topic(&sent.topic) else { return };
                if let Some(end) = sent.end_offset() {
                    topic.ends_at(sent.partition, end);
                }
                topic.sent += u64::from(sent.record_count);
                topic.sent_bytes += u64::from(sent.header.size_bytes);
                if sent.retry {
                    topic.retried += u64::from(sent.record_count);
                }
                if let Some(error) = error_type(sent.outcome) {
                    *topic.send_errors.entry(error).or_default() += 1;
                }
                if sent.outcome == Outcome::AnswerNotSeen {
                    topic.unanswered += 1;
                }
            }
            Observation::Fetched(fetched) if self.counts(&fetched.operation) && !fetched.header.control => {
                let Some(group) = self.group(&fetched.topic, fetched.group.as_ref()) else { return };
                group.fetched += u64::from(fetched.delivered.delivered);
                group.fetched_bytes += u64::from(fetched.header.size_bytes);
                if fetched.redelivered {
                    group.redelivered += u64::from(fetched.delivered.delivered);
                }
            }
            Observation::Poll(poll) if poll.operation.connection.side == self.counted => self.poll(poll),
            Observation::FetchFailed(failed) if self.counts(&failed.operation) => {
                let Some(error) = error_type(failed.outcome) else { return };
                let Some(group) = self.group(&failed.topic, failed.group.as_ref()) else { return };
                *group.errors.entry(error).or_default() += 1;
            }
            Observation::Commit(commit) if self.counts(&commit.operation) => {
                let Some(group) = self.group(&commit.topic, Some(&commit.group)) else { return };
                group.commits += 1;
                if let Some(error) = error_type(commit.outcome) {
                    *group.errors.entry(error).or_default() += 1;
                }
            }
            Observation::Sent(_)
            | Observation::Fetched(_)
            | Observation::FetchFailed(_)
            | Observation::Poll(_)
            | Observation::Commit(_)
            | Observation::Group(_)
            | Observation::Transaction(_)
            | Observation::Exchange(_)
            | Observation::Connection(_) => {}
        }
    }

    /// How far a consumer has come, of topics and groups that there was something to say of.
    fn poll(&mut self, poll: &Poll) {
        for polled in &poll.partitions {
            let Some(topic) = self.topics.get_mut(&topic_name(&polled.topic)) else { continue };
            if let Some(end) = polled.told.high_watermark {
                topic.ends_at(polled.partition, end);
            }
            if let (Some(position), Some(group)) = (polled.position, topic.groups.get_mut(&poll.group).filter(|_| !poll.several_groups))
                && (group.positions.len() < MAX_PARTITIONS || group.positions.contains_key(&polled.partition))
            {
                group.positions.insert(polled.partition, position);
            }
        }
    }

    pub(super) fn span(&mut self, span: &FinishedSpan) {
        let summary = &span.summary;
        if summary.operation != OperationName::Fetch || summary.messages == 0 {
            return;
        }
        let Some(group) = self.group(&summary.topic, summary.group.as_ref()) else { return };
        let messages = u64::from(summary.messages);
        group.span_messages += messages;
        if summary.joined != Joined::No {
            group.joined_messages += messages;
        }
        if let Some(time) = summary.end_to_end {
            group.end_to_end.add(time.seconds, messages);
        }
    }

    /// Of a connection that is seen at both ends, one end is summed.
    fn counts(&mut self, operation: &Operation) -> bool {
        if operation.connection.side != self.counted {
            return false;
        }
        if self.clients.len() < 1_000_000 {
            self.clients.insert(operation.connection.id);
        }
        let end = operation.response.map_or(operation.request_last, |(_, last)| last);
        self.first = Some(self.first.map_or(operation.request_first, |first| first.min(operation.request_first)));
        self.last = self.last.max(end);
        true
    }

    /// `None` for Kafka's own topics.
    fn topic(&mut self, topic: &Topic) -> Option<&mut TopicSums> {
        if topic.name.as_deref().is_some_and(|name| name.starts_with("__")) {
            return None;
        }
        let mut name = topic_name(topic);
        if self.topics.len() >= MAX_TOPICS && !self.topics.contains_key(&name) {
            OTHERS.clone_into(&mut name);
        }
        Some(self.topics.entry(name).or_default())
    }

    fn group(&mut self, topic: &Topic, group: Option<&Arc<str>>) -> Option<&mut GroupSums> {
        let groups = &mut self.topic(topic)?.groups;
        let mut group = group.cloned();
        if groups.len() >= MAX_GROUPS && !groups.contains_key(&group) {
            group = Some(Arc::from(OTHERS));
        }
        Some(groups.entry(group).or_default())
    }

    pub(super) fn write(&self, out: &mut dyn Write, paint: &dyn Fn(&str, &str) -> String, health: &HealthSnapshot) -> io::Result<()> {
        writeln!(out)?;
        match self.first {
            Some(first) => {
                let heading = format!(
                    "{} on {}, {} UTC to {} UTC ({})",
                    number_of(self.topics.len() as u64, "topic"),
                    number_of(self.clients.len() as u64, "connection"),
                    to_the_second(first),
                    to_the_second(self.last),
                    seconds(self.last.since(first).as_secs_f64())
                );
                writeln!(out, "{}", paint(BOLD, &heading))?;
            }
            None => writeln!(out, "{}", paint(BOLD, "No messages were sent, fetched or committed."))?,
        }
        for (name, topic) in &self.topics {
            topic.write(out, paint, name)?;
        }
        let unseen: Vec<String> = health.values.iter().filter_map(loss).collect();
        if unseen.is_empty() {
            return writeln!(out, "\n{}", paint(GREEN, "Nothing was lost on the way: no holes, no drops, nothing undecoded."));
        }
        writeln!(out, "\n{}", paint(YELLOW, "Not seen, not decoded or not delivered:"))?;
        for line in unseen {
            writeln!(out, "  {line}")?;
        }
        Ok(())
    }
}

impl TopicSums {
    fn ends_at(&mut self, partition: i32, offset: i64) {
        if self.ends.len() < MAX_PARTITIONS || self.ends.contains_key(&partition) {
            let end = self.ends.entry(partition).or_insert(offset);
            *end = offset.max(*end);
        }
    }

    /// What lies between a group's positions and the ends.
    fn behind(&self, group: &GroupSums) -> u64 {
        let of_partition =
            |(partition, position): (&i32, &i64)| self.ends.get(partition).map_or(0, |end| end.saturating_sub(*position).max(0));
        group.positions.iter().map(of_partition).map(i64::unsigned_abs).fold(0, u64::saturating_add)
    }

    fn write(&self, out: &mut dyn Write, paint: &dyn Fn(&str, &str) -> String, name: &str) -> io::Result<()> {
        writeln!(out, "\n  {}", paint(BOLD, name))?;
        let width = self.groups.keys().map(|group| label(group.as_ref()).chars().count()).max().unwrap_or(0).max("sent".len());
        let padding = |label: &str| " ".repeat(width - label.chars().count());
        if self.sent > 0 || !self.send_errors.is_empty() {
            let mut parts = vec![format!("{}, {}", number_of(self.sent, "message"), bytes(self.sent_bytes))];
            if self.retried > 0 {
                parts.push(paint(YELLOW, &format!("{} sent again", count(self.retried))));
            }
            if self.unanswered > 0 {
                parts.push(paint(YELLOW, &format!("{} not seen", number_of(self.unanswered, "answer"))));
            }
            parts.extend(errors(&self.send_errors, paint));
            writeln!(out, "    {}{}  {}", paint(CYAN, "sent"), padding("sent"), parts.join(", "))?;
        }
        for (group, sums) in &self.groups {
            let label = label(group.as_ref());
            let mut parts = sums.parts(paint);
            let behind = self.behind(sums);
            if behind > 0 {
                parts.push(paint(YELLOW, &format!("{} behind at the end", number_of(behind, "message"))));
            }
            writeln!(out, "    {}{}  {}", paint(GREEN, &label), padding(&label), parts.join(", "))?;
        }
        Ok(())
    }
}

impl GroupSums {
    fn parts(&self, paint: &dyn Fn(&str, &str) -> String) -> Vec<String> {
        let mut parts = vec![format!("{}, {}", number_of(self.fetched, "message"), bytes(self.fetched_bytes))];
        if self.span_messages > 0 {
            parts.push(format!("{} joined with their send", percent(self.joined_messages, self.span_messages)));
        }
        if let (Some(median), Some(slow)) = (self.end_to_end.quantile(0.5), self.end_to_end.quantile(0.99)) {
            parts.push(format!("end-to-end p50 {} p99 {}", seconds(median), seconds(slow)));
        }
        if self.end_to_end.negative() > 0 {
            parts.push(paint(YELLOW, &format!("{} fetched before they were sent (clocks differ)", count(self.end_to_end.negative()))));
        }
        if self.redelivered > 0 {
            parts.push(paint(YELLOW, &format!("{} redelivered", count(self.redelivered))));
        }
        if self.commits > 0 {
            parts.push(number_of(self.commits, "commit"));
        }
        parts.extend(errors(&self.errors, paint));
        parts
    }
}

fn label(group: Option<&Arc<str>>) -> String {
    group.map_or_else(|| "fetched, group unknown".to_owned(), |group| format!("fetched by {}", printable(group)))
}

fn errors(errors: &BTreeMap<&'static str, u64>, paint: &dyn Fn(&str, &str) -> String) -> Vec<String> {
    errors.iter().map(|(name, times)| paint(RED, &format!("{} {name}", count(*times)))).collect()
}

fn number_of(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(number))
}

/// `99.9%`, and never 100% or 0% of what is not all or nothing.
fn percent(part: u64, whole: u64) -> String {
    if part == whole {
        return "100%".to_owned();
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let share = part as f64 / whole as f64 * 100.0;
    if part == 0 { "0%".to_owned() } else { format!("{:.1}%", share.clamp(0.1, 99.9)) }
}

/// A counter's line, when it is one of losses and something was lost.
fn loss(value: &HealthValue) -> Option<String> {
    let good = match value.name {
        metric::CAPTURE_LOST
        | metric::CAPTURE_LOST_EVENTS
        | metric::EXPORT_LINES
        | metric::METRICS_LOST
        | metric::TLS_OPAQUE
        | metric::STREAM_GAPS
        | metric::STREAM_LOST
        | metric::OBSERVATIONS_UNNAMED
        | metric::CONTEXTS => &[][..],
        metric::CONNECTIONS_SEEN => &["kafka", "other"],
        metric::FRAMES => &["decoded", "sasl_token"],
        metric::RECORDS => &["control"],
        // A Fetch answer may end in the middle of a batch, and compaction may leave one empty.
        metric::BATCHES => &["partial_tail", "empty"],
        metric::SPANS => &["made", "sampled_out"],
        metric::EXPORT_SPANS | metric::EXPORT_REQUESTS | metric::EXPORT_METRICS => &["sent"],
        _ => return None,
    };
    let by: Vec<&str> = value.attributes.iter().map(|(_, by)| &**by).collect();
    if value.value == 0 || by.iter().any(|by| good.contains(by)) {
        return None;
    }
    if let (metric::CONNECTIONS_SEEN, [state]) = (value.name, &by[..]) {
        let what = if *state == "encrypted" {
            "connections are encrypted, and their bytes say nothing"
        } else {
            "connections were forgotten: too many at once"
        };
        return Some(format!("{:>12}  {what}", count(value.value)));
    }
    let name = value.name.strip_prefix("kafka_tracer.").unwrap_or(value.name).replace(['.', '_'], " ");
    let by = if by.is_empty() { String::new() } else { format!(": {}", by.join(", ").replace('_', " ")) };
    Some(format!("{:>12}  {name}{by}", count(value.value)))
}
