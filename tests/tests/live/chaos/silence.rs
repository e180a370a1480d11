//! Why a record may be missing from what the tracer says, and when.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use xtask::lab::Collector;

use super::accounts::{Accounts, HOLD_NS, LATE_NS, Life, Reported};

/// What a reading shows was counted up to so much earlier.
const HEALTH_NS: u64 = 5_000_000_000;

/// Why a record is not reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    NoTracer,
    Unsent,
    NotFollowed,
    Counted,
}

/// From and to, in nanoseconds since 1970.
pub(super) type Window = (u64, u64);

/// When a connection was not followed, as the tracer lists it.
#[derive(Debug)]
pub(super) struct Unfollowed {
    pub(super) client_id: String,
    pub(super) broker_port: i64,
    pub(super) window: Window,
}

/// When a tracer says that it did not follow connections that it saw.
pub(super) fn unfollowed(life: &Life) -> Vec<Unfollowed> {
    let field = |line: &str, name: &str| {
        let from = line.find(&format!(" {name}="))? + name.len() + 2;
        let rest = line.get(from..)?;
        Some(rest.split(' ').next().unwrap_or(rest).trim_matches('"').to_owned())
    };
    let mut found = Vec::new();
    let mut out_of_step: BTreeMap<String, u64> = BTreeMap::new();
    for line in life.log.lines().filter(|line| line.contains("Connection.")) {
        let text = |name: &str| field(line, name).unwrap_or_default();
        let number = |name: &str| text(name).parse::<u64>().unwrap_or(0);
        let broker_port = text("broker").rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0);
        let unfollowed = |window| Unfollowed { client_id: text("client_id"), broker_port, window };
        match text("kind").as_str() {
            "followed" | "never_followed" if text("from_its_start") == "false" => {
                found.push(unfollowed((life.from_ns, number("seen_from_ns"))));
            }
            "lost_sync" => {
                out_of_step.entry(text("client")).or_insert(number("time_ns"));
            }
            "regained_sync" | "closed" | "reset" => {
                found.extend(out_of_step.remove(&text("client")).map(|from| unfollowed((from, number("time_ns")))));
            }
            _ => {}
        }
    }
    found
}

/// A counter of losses that grew between two readings.
#[derive(Debug)]
pub(super) struct Loss {
    pub(super) counter: String,
    pub(super) by: f64,
    pub(super) between: Window,
}

impl Accounts {
    /// When nothing could be told.
    pub(super) fn windows(&self, reported: &[Reported]) -> Vec<(Why, Window)> {
        let mut windows = Vec::new();
        let mut dark_from = 0;
        for (index, life) in self.lives.iter().enumerate() {
            windows.push((Why::NoTracer, (dark_from, life.from_ns)));
            dark_from = life.to_ns;
            if life.killed {
                let of_life = reported.iter().filter(|record| self.life(record.end_ns) == index);
                let newest = of_life.map(|record| record.end_ns).max().unwrap_or(life.from_ns);
                windows.push((Why::Unsent, (newest.saturating_sub(HOLD_NS + LATE_NS), life.to_ns)));
            }
        }
        windows.push((Why::NoTracer, (dark_from, u64::MAX)));
        windows
    }

    /// What counters say that was lost, and when.
    pub(super) fn losses(&self, collector: &Collector) -> Result<Vec<Loss>> {
        /// With what is in them and no loss.
        const COUNTERS: [(&str, &[&str]); 8] = [
            ("kafka_tracer.capture.lost", &[]),
            ("kafka_tracer.capture.lost_events", &[]),
            ("kafka_tracer.stream.gaps", &[]),
            ("kafka_tracer.stream.lost", &["unframed"]),
            ("kafka_tracer.frames", &["decoded", "sasl_token", "answer_not_seen", "unconfirmed"]),
            ("kafka_tracer.batches", &[]),
            ("kafka_tracer.records", &["control"]),
            ("kafka_tracer.export.spans", &["sent"]),
        ];
        // A counter is first told when it has something to tell: it was nothing at the reading before, which this one shows.
        let metrics: Vec<&str> = COUNTERS.iter().map(|(metric, _)| *metric).chain(["kafka_tracer.capture.events"]).collect();
        let mut histories = collector.histories(&metrics)?;
        let readings: BTreeMap<String, BTreeSet<u64>> = histories
            .remove("kafka_tracer.capture.events")
            .into_iter()
            .flatten()
            .map(|((process, _), points)| (process, points.into_iter().map(|(at_ns, _)| at_ns).collect()))
            .collect();
        let mut losses = Vec::new();
        for (metric, no_loss) in COUNTERS {
            for ((process, attributes), points) in histories.remove(metric).into_iter().flatten() {
                if no_loss.iter().any(|word| attributes.contains(&format!("\"{word}\""))) {
                    continue;
                }
                let read = readings.get(&process);
                let counter = format!("{metric} {attributes}");
                let mut before = 0.0;
                for (at_ns, value) in points {
                    if value > before {
                        // Times of one reading differ by little.
                        let earlier = read.and_then(|read| read.range(..at_ns.saturating_sub(500_000_000)).next_back()).copied();
                        let from = earlier.unwrap_or(self.started(at_ns)).saturating_sub(HEALTH_NS);
                        losses.push(Loss { counter: counter.clone(), by: value - before, between: (from, at_ns) });
                    }
                    before = value;
                }
            }
        }
        Ok(losses)
    }

    /// When the tracer of that time was confirmed.
    fn started(&self, at_ns: u64) -> u64 {
        self.lives.get(self.life(at_ns)).map_or(0, |life| life.from_ns)
    }
}
