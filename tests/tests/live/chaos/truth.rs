//! What is true of a record: what the brokers stored, what its sender says, who may report it.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use xtask::lab::{Span, Told};

use super::accounts::{Accounts, Application, CLOCK_NS, Place, Reported};
use super::log::Batch;

/// How long a library waits for an answer before it asks again.
const REQUEST_NS: u64 = 30_000_000_000;

/// Trace id, span id.
type Ids<'a> = (&'a str, &'a str);

/// What is known before the spans are read.
pub(super) struct Truth<'a> {
    accounts: &'a Accounts,
    /// What senders say of each place.
    sent: HashMap<Place, &'a Told>,
    /// Contexts by topic: trace id, span id; whether it is sampled, and who sent it.
    contexts: HashMap<&'a str, HashMap<Ids<'a>, (bool, &'a Told)>>,
    /// What each group got.
    pub(super) got: HashMap<(&'a str, Place), usize>,
}

/// A span that is true.
pub(super) enum Judged {
    Record(Reported),
    /// Of another kind, or not of these topics.
    Other(String),
}

impl<'a> Truth<'a> {
    /// What all but the tracer say.
    pub(super) fn new(accounts: &'a Accounts) -> Result<Self> {
        let mut truth = Self { accounts, sent: HashMap::new(), contexts: HashMap::new(), got: HashMap::new() };
        for told in &accounts.told {
            let application = accounts.applications.get(&told.client_id).context("an application that nobody employed")?;
            if application.group.is_none()
                && let Some((ids, sampled)) = told.traceparent.as_deref().and_then(ids)
            {
                truth.contexts.entry(&application.topic).or_default().insert(ids, (sampled, told));
            }
            let (Some(partition), Some(offset)) = (told.partition, told.offset) else { continue };
            let place = (application.topic.clone(), partition, offset);
            match &application.group {
                None => {
                    if let Some(other) = truth.sent.insert(place.clone(), told) {
                        bail!("two records were sent to {place:?}: {other:?} and {told:?}");
                    }
                }
                Some(group) => *truth.got.entry((group, place)).or_default() += 1,
            }
        }
        for (group, place) in truth.got.keys() {
            let stored = accounts.log.batch(&(place.0.clone(), place.1), place.2);
            ensure!(stored.is_some_and(|batch| !batch.control), "{group} got {place:?}, which is not stored");
        }
        Ok(truth)
    }

    pub(super) fn judge(&self, span: &Span) -> Result<Judged> {
        let operation = span.operation().context("a span without an operation")?;
        // Clients ask for names before they send or fetch: a tracer that came later may know the id alone.
        let by_id = || self.accounts.log.topic(span.text("kafka_tracer.topic.id")?);
        let Some(topic) = span.topic().or_else(by_id).filter(|topic| self.contexts.contains_key(topic)) else {
            return Ok(Judged::Other(format!("{operation} of another topic")));
        };
        let client_id = span.text("messaging.client.id").context("no client id")?;
        let application = self.accounts.applications.get(client_id).with_context(|| format!("nobody is {client_id}"))?;
        ensure!(application.topic == topic, "{client_id} works with {}", application.topic);
        ensure!(span.text("kafka_tracer.side") == Some("client"), "not a client's side");
        if let Some(cluster_id) = span.text("messaging.kafka.cluster.id") {
            ensure!(cluster_id == self.accounts.cluster_id, "the cluster is {}", self.accounts.cluster_id);
        }
        if let Some(group) = span.text("messaging.consumer.group.name") {
            ensure!(application.group.as_deref() == Some(group), "it is in group {:?}", application.group);
        }
        match operation {
            "commit" => {
                ensure!(application.group.is_some(), "a producer without a group commits");
                return Ok(Judged::Other("commit".to_owned()));
            }
            "fetch" if span.text("error.type").is_some() => return Ok(Judged::Other("fetch that failed".to_owned())),
            "send" => ensure!(application.group.is_none(), "a reader sends"),
            "fetch" => ensure!(application.group.is_some(), "a sender fetches"),
            other => bail!("operation {other}"),
        }
        ensure!(span.int("messaging.batch.message_count").is_none(), "a batch's span in scope record");
        let partition = span.partition().context("no partition")?;
        let send = operation == "send";
        let place = span.int("messaging.kafka.offset").map(|offset| (topic.to_owned(), partition, offset));
        match &place {
            Some(place) => self.stored(span, place, send, application)?,
            None => self.not_stored(span, topic, send)?,
        }
        Ok(Judged::Record(Reported {
            send,
            place,
            client_id: client_id.to_owned(),
            group: span.text("messaging.consumer.group.name").map(str::to_owned),
            start_ns: span.start_ns,
            end_ns: span.end_ns,
            broker_port: span.int("network.peer.port").context("no broker")?,
            redelivered: span.is("kafka_tracer.redelivered"),
            retry: span.is("kafka_tracer.retry"),
        }))
    }

    fn stored(&self, span: &Span, place: &Place, send: bool, application: &Application) -> Result<()> {
        let batch = self.accounts.log.batch(&(place.0.clone(), place.1), place.2).context("no such offset is stored")?;
        ensure!(!batch.control, "the end of a transaction is no message");
        ensure!(span.text("kafka_tracer.batch.codec") == Some(batch.codec), "stored as {}", batch.codec);
        ensure!(span.int("kafka_tracer.batch.size") == Some(batch.size), "{} bytes are stored", batch.size);
        ensure!(span.text("error.type").is_none(), "an error, and yet an offset");
        if send {
            produced_as(span, batch)?;
        }
        match self.sent.get(place) {
            Some(told) => {
                // Some libraries leave alone what compression makes no smaller.
                ensure!(batch.codec == "none" || told.codec.as_deref() == Some(batch.codec), "its sender chose {:?}", told.codec);
                let aborted = told.transaction.as_deref() == Some("aborted");
                ensure!(send || !aborted || !application.read_committed, "its transaction was aborted");
                ensure!(!send || told.client_id == span.text("messaging.client.id").unwrap_or_default(), "{} sent it", told.client_id);
                carries(span, &place.0, told.traceparent.as_deref(), self)
            }
            // A library's own repetition, which its application never heard of.
            None => carries_one_of(span, &place.0, self),
        }
    }

    /// The tracer was asked to end between this request and its answer.
    fn was_open(&self, span: &Span, topic: &str) -> bool {
        let accounts = self.accounts;
        let Some(life) = accounts.lives.get(accounts.life(span.end_ns)) else { return false };
        let known = self.contexts.get(topic);
        let told = span.links.iter().find_map(|(trace, id)| known?.get(&(trace.as_str(), id.as_str())));
        let answered_later = told.is_none_or(|(_, told)| told.to_us * 1_000 + CLOCK_NS >= life.to_ns);
        answered_later && !life.killed && span.end_ns + REQUEST_NS > life.to_ns
    }

    /// A send that was refused, not answered, or whose batch was there already.
    fn not_stored(&self, span: &Span, topic: &str, send: bool) -> Result<()> {
        ensure!(send, "a delivery without an offset");
        let said = span.text("error.type").is_some() || span.is("kafka_tracer.retry");
        ensure!(said || self.was_open(span, topic), "no offset, and no reason");
        carries_one_of(span, topic, self)
    }
}

/// A span without what all of them have.
pub(super) fn brief(span: &Span) -> String {
    let told: Vec<String> = span.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let Span { name, trace_id, span_id, parent_span_id, start_ns, end_ns, links, .. } = span;
    format!("{name} {trace_id} {span_id} {parent_span_id:?} {start_ns}-{end_ns} {links:?} {}", told.join(" "))
}

fn produced_as(span: &Span, batch: &Batch) -> Result<()> {
    let numbered = batch.producer_id >= 0;
    let said = ["id", "epoch", "sequence"].map(|what| span.int(&format!("kafka_tracer.producer.{what}")));
    let stored =
        [batch.producer_id, i64::from(batch.producer_epoch), i64::from(batch.base_sequence)].map(|number| numbered.then_some(number));
    ensure!(said == stored, "producer id, epoch, sequence are {said:?}, stored {stored:?}");
    ensure!(span.text("kafka_tracer.transactional_id").is_some() == batch.transactional, "transactional: {}", batch.transactional);
    Ok(())
}

/// The span lies where the record's context says, or is linked to it.
fn carries(span: &Span, topic: &str, traceparent: Option<&str>, truth: &Truth<'_>) -> Result<()> {
    let Some((context, sampled)) = traceparent.and_then(ids) else {
        let known = truth.contexts.get(topic);
        let foreign = span.links.iter().find(|(trace, id)| known.is_some_and(|known| known.contains_key(&(trace.as_str(), id.as_str()))));
        ensure!(foreign.is_none(), "it carries no context, and is linked to {foreign:?}");
        return Ok(());
    };
    lies_right(span, context, sampled)
}

fn lies_right(span: &Span, (trace_id, span_id): (&str, &str), sampled: bool) -> Result<()> {
    let linked = span.links.iter().any(|(trace, id)| trace == trace_id && id == span_id);
    ensure!(linked, "no link to its context {trace_id} {span_id}");
    let child = span.trace_id == trace_id && span.parent_span_id.as_deref() == Some(span_id);
    let wanted = sampled && !span.is("kafka_tracer.redelivered");
    ensure!(child == wanted, "child of its context {trace_id} {span_id}: {child}");
    ensure!(wanted || span.trace_id != trace_id, "in a trace where it has no place");
    Ok(())
}

/// For records whose place no sender tells: the context, if there is one, is one that a record of this topic carries.
fn carries_one_of(span: &Span, topic: &str, truth: &Truth<'_>) -> Result<()> {
    let known = truth.contexts.get(topic).context("a topic that nobody sends to")?;
    let link = span.links.iter().find_map(|(trace, id)| known.get_key_value(&(trace.as_str(), id.as_str())));
    if let Some((context, (sampled, _))) = link {
        return lies_right(span, *context, *sampled);
    }
    let parent = span.parent_span_id.as_deref().unwrap_or_default();
    let own_trace = known.keys().all(|(trace, _)| *trace != span.trace_id);
    ensure!(own_trace, "in a record's trace, below {parent}, without a link to its context");
    Ok(())
}

/// Trace id, span id, sampled.
fn ids(traceparent: &str) -> Option<((&str, &str), bool)> {
    let mut parts = traceparent.split('-').skip(1);
    let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    Some(((trace, span), flags == "01"))
}
