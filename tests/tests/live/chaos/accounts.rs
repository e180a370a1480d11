//! What must hold between what the applications tell, what the brokers stored, and what the tracer says.
//!
//! **Every record that the tracer reports is true.** A span names a topic, partition and offset that the brokers stored (as a message,
//! not a transaction's end), by a client that sends to or reads from that topic, in its group; codec, size, producer id, epoch and
//! sequence are those of the stored batch, the trace context is what the sender put in. A send without an offset says why (or was open
//! when the tracer ended), and its context, if it has one, is a record's of that sender. What `read_committed` hides is not told as
//! delivered. No record is sent twice unless the second is marked as a retry, nor delivered to one group twice in one life of the
//! tracer unless the second is marked as redelivered, nor is one answer told twice. Each delivery is of a record that the group's
//! application got. Two seconds after a reader's group was named, each of its deliveries in that life names it.
//!
//! **Every record that it does not report is accounted for.** A record takes from the moment that its sender gave it to the library
//! to the moment that the sender knew its offset, or that the reader got it. If it is not reported, that time overlaps one in which
//! - *no tracer ran*: from the signal that ended it to the confirmation that the next one is attached;
//! - *what it knew was not sent yet* when it was killed: from 2.4 seconds before the end of the newest span that it delivered, to its death
//!   (an observation may wait two seconds for a name, and then for the tracer's next look at its clock: in 20 lives of three seconds,
//!   records that were 70 ms older than two seconds were missing);
//! - *the connection was not followed*: the tracer's own listing (its log at level `debug`) says that a connection of that client,
//!   to the broker that the last or next reported record of that partition, whoever's, was exchanged with, is older than the tracer, and
//!   what it saw of it first came after the time began. An answer to a request that was made while no tracer ran is the case. Or the
//!   listing says that such a connection was out of step then: from the loss of its frames to the next one that was found;
//! - *it counted a loss*: a counter of lost bytes, events, frames, batches, records or spans grew between two of its readings.
//!   Not so the bytes in no frame of connections that are not Kafka's or not followed yet, which the listing tells better, and requests
//!   that are open when the tracer or their connection ends, whose time lies in one of the above or which were told without an offset.
//!
//! A batch is sent whole: of one, all records are reported or none. Anything else fails.
//!
//! That the accounts would not balance without one record in a hundred is tried as well.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write;

use anyhow::{Result, bail, ensure};
use xtask::lab::{Collector, Scratch, Told, WorkKind};

use super::log::Log;
use super::silence::{Loss, Unfollowed, Why, Window, unfollowed};
use super::truth::{Judged, Truth, brief};

/// How long an observation may wait in the tracer for a name that it lacks.
pub(super) const HOLD_NS: u64 = 2_000_000_000;
/// And how long until the tracer looks at its clock, which it does ten times a second where it has the time.
pub(super) const LATE_NS: u64 = 400_000_000;
/// Clients' clocks tell milliseconds, some of them rounded.
pub(super) const CLOCK_NS: u64 = 2_000_000;
/// Failures shown in full.
const SHOWN: usize = 12;

/// A producer or a consumer.
#[derive(Debug)]
pub(super) struct Application {
    pub(super) topic: String,
    pub(super) kind: WorkKind,
    /// `None`: it sends.
    pub(super) group: Option<String>,
    pub(super) read_committed: bool,
}

/// From a tracer's confirmed start to the signal that ended it.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) from_ns: u64,
    pub(super) to_ns: u64,
    /// When its process had ended.
    pub(super) gone_ns: u64,
    pub(super) killed: bool,
    pub(super) log: String,
}

/// All that is to be compared.
pub(super) struct Accounts {
    pub(super) cluster_id: String,
    pub(super) lives: Vec<Life>,
    pub(super) applications: BTreeMap<String, Application>,
    pub(super) told: Vec<Told>,
    pub(super) log: Log,
    pub(super) scratch: Scratch,
}

/// Topic, partition, offset.
pub(super) type Place = (String, i32, i64);

/// Groups that read a record which was sent after a time.
pub(super) fn fresh_by_group(applications: &BTreeMap<String, Application>, told: &[Told], from_us: u64) -> BTreeSet<String> {
    let late = told.iter().rev().take_while(|told| told.to_us + 60_000_000 > from_us);
    let mut fresh: HashSet<(&str, i32, i64)> = HashSet::new();
    let mut read = Vec::new();
    for told in late {
        let Some(application) = applications.get(&told.client_id) else { continue };
        let (Some(partition), Some(offset)) = (told.partition, told.offset) else { continue };
        match &application.group {
            None if told.from_us.is_some_and(|at| at > from_us) => {
                fresh.insert((&application.topic, partition, offset));
            }
            None => {}
            Some(group) => read.push((group, (application.topic.as_str(), partition, offset))),
        }
    }
    read.into_iter().filter(|(_, place)| fresh.contains(place)).map(|(group, _)| group.clone()).collect()
}

/// What groups have not read yet of what was sent to them, in words; empty when they have read it all.
pub(super) fn unread(applications: &BTreeMap<String, Application>, told: &[Told]) -> String {
    let mut sent: BTreeMap<&str, HashSet<(i32, i64)>> = BTreeMap::new();
    let mut read: BTreeMap<(&str, &str), HashSet<(i32, i64)>> = BTreeMap::new();
    for application in applications.values() {
        if let Some(group) = &application.group {
            read.entry((group, &application.topic)).or_default();
        }
    }
    for told in told {
        let Some(application) = applications.get(&told.client_id) else { continue };
        let (Some(partition), Some(offset)) = (told.partition, told.offset) else { continue };
        match &application.group {
            None if told.transaction.as_deref().is_none_or(|outcome| outcome == "committed") => {
                sent.entry(&application.topic).or_default().insert((partition, offset));
            }
            None => {}
            Some(group) => {
                read.entry((group, &application.topic)).or_default().insert((partition, offset));
            }
        }
    }
    let mut text = String::new();
    for ((group, topic), read) in read {
        let left = sent.get(topic).map_or(0, |sent| sent.difference(&read).count());
        if left > 0 {
            let _ = write!(text, " {group}: {left}");
        }
    }
    text
}

/// A record that the tracer reported.
#[derive(Clone, Debug)]
pub(super) struct Reported {
    pub(super) send: bool,
    pub(super) place: Option<Place>,
    pub(super) client_id: String,
    pub(super) group: Option<String>,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) broker_port: i64,
    pub(super) redelivered: bool,
    pub(super) retry: bool,
}

impl Accounts {
    /// Holds all against all; the result is a report in words.
    pub(super) fn settle(&self, collector: &Collector) -> Result<String> {
        let truth = Truth::new(self)?;
        let mut failures = Failures::default();
        let mut reported = Vec::new();
        let mut others: BTreeMap<String, usize> = BTreeMap::new();
        collector.each_span(|span| match truth.judge(&span) {
            Ok(Judged::Record(record)) => reported.push(record),
            Ok(Judged::Other(kind)) => *others.entry(kind).or_default() += 1,
            Err(error) => failures.add(format!("{error:#}: {}", brief(&span))),
        })?;
        self.settle_repetitions(&truth, &reported, &mut failures);
        let losses = self.losses(collector)?;
        let accounted = self.settle_missing(&reported, &losses, &mut failures);
        let report = self.report(&reported, &accounted, &others, &losses);
        if failures.count > 0 {
            let kept = self.scratch.path().display();
            bail!("{} faults ({kept}; KAFKA_TRACER_KEEP=1 keeps it):\n{}\n{report}", failures.count, failures.shown.join("\n"));
        }
        self.would_be_missed(&reported, &losses, &accounted)?;
        Ok(report)
    }

    /// What is told more than once says so.
    fn settle_repetitions(&self, truth: &Truth<'_>, reported: &[Reported], failures: &mut Failures) {
        let mut sent: HashSet<&Place> = HashSet::new();
        let mut answers: HashSet<(&str, &Place, u64)> = HashSet::new();
        let mut delivered: HashSet<(usize, &str, &Place)> = HashSet::new();
        let mut named: HashMap<(usize, &str), u64> = HashMap::new();
        for record in reported.iter().filter(|record| record.group.is_some()) {
            let first = named.entry((self.life(record.end_ns), &record.client_id)).or_insert(record.start_ns);
            *first = record.start_ns.min(*first);
        }
        for record in reported {
            let first_named = named.get(&(self.life(record.end_ns), record.client_id.as_str()));
            if !record.send && record.group.is_none() && first_named.is_some_and(|first| *first + HOLD_NS < record.start_ns) {
                failures.add(format!("its group was named before: {record:?}"));
            }
            let Some(place) = &record.place else { continue };
            if record.send {
                if !sent.insert(place) && !record.retry {
                    failures.add(format!("sent twice, and not marked: {record:?}"));
                }
                continue;
            }
            if !answers.insert((&record.client_id, place, record.start_ns)) {
                failures.add(format!("one answer, told twice: {record:?}"));
            }
            let Some(application) = self.applications.get(&record.client_id) else { continue };
            let Some(group) = &application.group else { continue };
            if !truth.got.contains_key(&(group.as_str(), place.clone())) {
                failures.add(format!("delivered, but nobody of the group got it: {record:?}"));
            }
            // A share group's deliveries are counted by the broker, which may forget when it ends.
            let known = record.group.is_some() && application.kind != WorkKind::Share;
            if known && !record.redelivered && !delivered.insert((self.life(record.end_ns), group, place)) {
                failures.add(format!("delivered twice, and not marked: {record:?}"));
            }
        }
    }

    /// Records that are taken away from what was told are missed, all but those of times in which others are missing too.
    fn would_be_missed(&self, reported: &[Reported], losses: &[Loss], accounted: &BTreeMap<(bool, Why), usize>) -> Result<()> {
        let mut fewer = Vec::new();
        let mut taken = 0;
        for (index, record) in reported.iter().enumerate() {
            // Of what was delivered more than once, one may be taken for the other.
            if index % 100 == 7 && record.place.is_some() && !record.retry && !record.redelivered {
                taken += 1;
            } else {
                fewer.push(record.clone());
            }
        }
        let mut missed = Failures::default();
        let excused: usize = self.settle_missing(&fewer, losses, &mut missed).values().sum();
        let excused = excused.saturating_sub(accounted.values().sum());
        ensure!(missed.count > 0, "of {taken} records taken away none is missed");
        ensure!(missed.count + excused <= taken, "{} faults and {excused} excuses for {taken} records taken away", missed.count);
        ensure!(missed.count >= taken / 2, "of {taken} records taken away {} are missed, {excused} excused", missed.count);
        Ok(())
    }

    /// Which tracer saw this: it may see things before its start is confirmed, and until it is gone.
    pub(super) fn life(&self, at_ns: u64) -> usize {
        self.lives.iter().position(|life| at_ns <= life.gone_ns).unwrap_or(self.lives.len() - 1)
    }

    fn settle_missing(&self, reported: &[Reported], losses: &[Loss], failures: &mut Failures) -> BTreeMap<(bool, Why), usize> {
        let windows = self.windows(reported);
        let unfollowed: Vec<Unfollowed> = self.lives.iter().flat_map(unfollowed).collect();
        let mut count: HashMap<(bool, &str, Place), usize> = HashMap::new();
        // By partition: when, and with which broker. A partition has one leader at a time, for everybody; a member of a group may have read
        // it last before it moved.
        let mut brokers: HashMap<(&str, i32), BTreeMap<u64, i64>> = HashMap::new();
        for record in reported {
            let Some(place) = &record.place else { continue };
            *count.entry((record.send, &record.client_id, place.clone())).or_default() += 1;
            brokers.entry((place.0.as_str(), place.1)).or_default().insert(record.start_ns, record.broker_port);
        }
        let sent_at = self.sent_at();
        let places = reported.iter().filter(|record| record.send).filter_map(|record| record.place.as_ref());
        let sent: HashSet<(&str, i32, i64)> = places.map(|place| (place.0.as_str(), place.1, place.2)).collect();
        let mut accounted: BTreeMap<(bool, Why), usize> = BTreeMap::new();
        for told in &self.told {
            let Some(application) = self.applications.get(&told.client_id) else { continue };
            let (Some(partition), Some(offset)) = (told.partition, told.offset) else { continue };
            let place = (application.topic.clone(), partition, offset);
            let is_send = application.group.is_none();
            if let Some(left) = count.get_mut(&(is_send, told.client_id.as_str(), place.clone()))
                && *left > 0
            {
                *left -= 1;
                continue;
            }
            let batch = self.log.batch(&(place.0.clone(), partition), offset);
            if let Some(batch) = batch.filter(|_| is_send)
                && let Some(sibling) = (batch.base..=batch.last).find(|other| sent.contains(&(place.0.as_str(), partition, *other)))
            {
                failures.add(format!("send of {place:?} is missing, and not that of {sibling} in the same batch: {told:?}"));
                continue;
            }
            // What a library sent again by itself is no younger than what lies before it.
            let sent_before = sent_at.get(&(application.topic.as_str(), partition)).and_then(|sent| sent.range(..=offset).next_back());
            let from_ns = sent_before.map_or(0, |(_, at_ns)| *at_ns);
            let time = (from_ns.saturating_sub(CLOCK_NS), told.to_us * 1_000 + CLOCK_NS);
            let overlaps = |window: &Window| window.0 <= time.1 && time.0 <= window.1;
            let not_followed = || {
                let by_time = brokers.get(&(place.0.as_str(), place.1));
                let (last, next) = (
                    by_time.and_then(|by_time| by_time.range(..time.1).next_back()).map(|(_, port)| *port),
                    by_time.and_then(|by_time| by_time.range(time.1..).next()).map(|(_, port)| *port),
                );
                let fits = |c: &&Unfollowed| c.client_id == told.client_id && [last, next].contains(&Some(c.broker_port));
                unfollowed.iter().filter(fits).any(|c| overlaps(&c.window))
            };
            let why = if let Some((why, _)) = windows.iter().find(|(_, window)| overlaps(window)) {
                Some(*why)
            } else if not_followed() {
                Some(Why::NotFollowed)
            } else {
                losses.iter().any(|loss| overlaps(&loss.between)).then_some(Why::Counted)
            };
            if let Some(why) = why {
                *accounted.entry((is_send, why)).or_default() += 1;
            } else {
                let what = if is_send { "send" } else { "fetch" };
                failures.add(format!("{what} of {place:?}, {time:?}, is missing: {told:?}{}", self.said_of(&told.client_id, time.1)));
            }
        }
        accounted
    }

    /// What the tracer of a time listed of a client's connections, for whoever has to find out why a record is missing.
    fn said_of(&self, client_id: &str, at_ns: u64) -> String {
        let Some(life) = self.lives.get(self.life(at_ns)) else { return String::new() };
        let lines = life.log.lines().filter(|line| line.contains("Connection.") && line.contains(client_id)).take(SHOWN);
        let lines = lines.fold(String::new(), |text, line| text + "\n        " + line);
        format!("\n    by then the tracer ran from {} to {}, and said of this client:{lines}", life.from_ns, life.to_ns)
    }

    /// When records were given to their senders' libraries, by partition and offset.
    fn sent_at(&self) -> HashMap<(&str, i32), BTreeMap<i64, u64>> {
        let mut sent_at: HashMap<(&str, i32), BTreeMap<i64, u64>> = HashMap::new();
        for told in &self.told {
            let Some(application) = self.applications.get(&told.client_id) else { continue };
            if let (Some(partition), Some(offset), Some(from_us)) = (told.partition, told.offset, told.from_us) {
                sent_at.entry((&application.topic, partition)).or_default().insert(offset, from_us * 1_000);
            }
        }
        sent_at
    }

    fn report(
        &self,
        reported: &[Reported],
        accounted: &BTreeMap<(bool, Why), usize>,
        others: &BTreeMap<String, usize>,
        losses: &[Loss],
    ) -> String {
        let mut text = String::new();
        let told = |send: bool| {
            let of_kind = |told: &&Told| self.applications.get(&told.client_id).is_some_and(|a| a.group.is_none() == send);
            self.told.iter().filter(of_kind).filter(|told| told.offset.is_some()).count()
        };
        for (send, word) in [(true, "sent"), (false, "fetched")] {
            let of_kind = || reported.iter().filter(move |record| record.send == send);
            let _ = writeln!(text, "{word}: applications tell of {}, the tracer of {}", told(send), of_kind().count());
            let repeated = of_kind().filter(|record| record.redelivered || record.retry).count();
            let placeless = of_kind().filter(|record| record.place.is_none()).count();
            let groupless = of_kind().filter(|record| !send && record.group.is_none()).count();
            let _ = writeln!(
                text,
                "  among the tracer's: {repeated} marked as repeated, {placeless} without an offset, {groupless} without a group"
            );
            for ((of, why), count) in accounted.iter().filter(|((of, _), _)| *of == send) {
                debug_assert_eq!(*of, send);
                let _ = writeln!(text, "  not told, accounted for by {why:?}: {count}");
            }
        }
        let failed = self.told.iter().filter(|told| told.error.is_some()).count();
        let _ = writeln!(text, "stored: {} messages; applications were told of {failed} failures", self.log.messages());
        let dark: u64 = self.lives.windows(2).map(|pair| pair.last().map_or(0, |l| l.from_ns) - pair.first().map_or(0, |l| l.to_ns)).sum();
        let ran = self.lives.last().map_or(0, |l| l.to_ns) - self.lives.first().map_or(0, |l| l.from_ns);
        let seconds = |ns: u64| ns / 1_000_000_000;
        let _ = writeln!(text, "{} lives of the tracer in {} s, {} s without it", self.lives.len(), seconds(ran), seconds(dark));
        for Loss { counter, by, between } in losses {
            let _ = writeln!(text, "counted as lost: {counter} grew by {by} between {between:?}");
        }
        let _ = write!(text, "other spans: {others:?}");
        text
    }
}

#[derive(Default)]
struct Failures {
    count: usize,
    shown: Vec<String>,
}

impl Failures {
    fn add(&mut self, failure: String) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(failure);
        }
    }
}
