//! What happened, in Kafka's terms.
//!
//! In: requests as they are seen, and the answers that `correlate` paired with them. Out: [`Observation`]s. Names that
//! only other answers tell (topic ids, cluster ids, groups) are learnt by the way.

#![forbid(unsafe_code)]

mod batch;
mod fetched;
mod groups;
mod history;
mod hold;
mod learn;
mod names;
mod sent;
mod sessions;
mod side_facts;
mod transactions;
mod types;

use std::sync::Arc;
use std::time::Duration;

pub use names::MAX_REMEMBERED_BYTES;
pub use sent::ProduceState;
pub use types::*;

use crate::correlate::{Kept, OpenRequest, RequestFacts};
use crate::counters::Counters;
use crate::kafka::api::{self, Decoded, Request, RequestHeader, Response, TopicRef};
use crate::kafka::context::Propagators;
use crate::kafka::versions;
use crate::kafka::wire::Payload;
use crate::time::Timestamp;
use batch::BatchReader;
use history::History;
use hold::Hold;
use learn::{ClientKey, Learnt, Peer};
use names::Names;
use sessions::Sessions;
use side_facts::CommitTools;
use transactions::Transactions;

/// Request bodies above this size are not kept until their answer comes (a `Produce` is read at once and not kept at all).
const MAX_KEPT_BODY_BYTES: usize = 1 << 20;
/// Names remembered for sharing.
const MAX_NAMES: usize = 65_536;

/// Which records an observation lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordDetail {
    /// Those that carry a trace context.
    #[default]
    Contexts,
    /// Each, as far as a batch of the size that applications send goes (65,536 records); compressed batches are left compressed where
    /// headers are never read.
    Each,
    /// All, without a bound.
    All,
}

/// Whether compressed batches are decompressed to look for trace contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderReading {
    /// Until a topic has shown none for long; then now and again.
    #[default]
    Auto,
    /// Always.
    All,
    /// Never.
    Off,
}

/// What is set for observing.
#[derive(Clone, Debug)]
pub struct ObserveSettings {
    /// Which records are listed.
    pub detail: RecordDetail,
    /// Whose headers are read.
    pub propagators: Propagators,
    /// Keys are kept.
    pub keys: bool,
    /// When compressed batches are looked into.
    pub headers: HeaderReading,
    /// How long an observation waits for a name that it lacks.
    pub hold: Duration,
}

impl Default for ObserveSettings {
    fn default() -> Self {
        Self {
            detail: RecordDetail::default(),
            propagators: Propagators::default(),
            keys: false,
            headers: HeaderReading::default(),
            hold: Duration::from_secs(2),
        }
    }
}

/// Whose request it is.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// The connection.
    pub connection: &'a Arc<Connection>,
    /// The process of the observed socket.
    pub pid: Option<u32>,
}

/// What is kept of a request until its answer comes.
#[derive(Debug)]
pub enum RequestState {
    /// A Produce: its batches were read when they were seen.
    Produce(Box<ProduceState>),
    /// The request's bytes, to be read again beside the answer.
    Body(Box<[u8]>),
    /// `SaslHandshake`.
    Handshake {
        /// The mechanism that the client asked for.
        mechanism: Arc<str>,
    },
    /// A request between brokers: nobody sends, fetches or commits by it.
    InterBroker,
    /// Nothing: credentials, or a request that was not whole.
    Nothing,
}

impl RequestState {
    /// A Produce with acks=0: no answer is ever sent.
    pub const fn is_unanswered(&self) -> bool {
        matches!(self, Self::Produce(produce) if produce.acks == 0)
    }

    /// The mechanism of a `SaslHandshake`.
    pub fn mechanism(&self) -> Option<Arc<str>> {
        match self {
            Self::Handshake { mechanism } => Some(Arc::clone(mechanism)),
            Self::Produce(_) | Self::Body(_) | Self::InterBroker | Self::Nothing => None,
        }
    }
}

impl Kept for RequestState {
    fn kept_bytes(&self) -> usize {
        match self {
            Self::Produce(produce) => produce.kept_bytes(),
            Self::Body(bytes) => bytes.len(),
            Self::Handshake { .. } | Self::InterBroker | Self::Nothing => 0,
        }
    }
}

/// What `Exchange`s and all else have in common while an answer is looked at.
struct Answered<'a> {
    who: Who<'a>,
    client: ClientKey,
    peer: Peer,
    operation: Arc<Operation>,
    at: Timestamp,
    /// The answer was read to its end. Else its last element may lack what follows in it.
    whole: bool,
}

/// Kafka's facts.
#[derive(Debug)]
pub struct Observer {
    names: Names,
    learnt: Learnt,
    sessions: Sessions,
    history: History,
    transactions: Transactions,
    batches: BatchReader,
    hold: Hold,
}

impl Observer {
    /// Nothing observed yet.
    pub fn new(settings: &ObserveSettings) -> Self {
        Self {
            batches: BatchReader::new(settings),
            hold: Hold::new(settings.hold),
            names: Names::new(MAX_NAMES),
            learnt: Learnt::default(),
            sessions: Sessions::default(),
            history: History::default(),
            transactions: Transactions::default(),
        }
    }

    /// The shared copy of a name.
    pub fn intern(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        self.names.intern_option(text)
    }

    /// A request was seen. Returns what is to be kept of it.
    pub fn request(&mut self, header: &RequestHeader<'_>, payload: Payload<'_>, at: Timestamp, counters: &mut Counters) -> RequestState {
        let Decoded { value, damage } = api::decode_request(header, payload);
        let lost = damage.map(|damage| damage.kind().name());
        if let Some(damage) = lost {
            counters.frame(damage);
        }
        counters.kafka_bytes(payload.declared_bytes as u64 + 4, lost);
        match value {
            value if side_facts::is_inter_broker(header.api_key, &value) => RequestState::InterBroker,
            Request::Produce(produce) => RequestState::Produce(Box::new(self.read_produce(&produce, at, counters))),
            Request::SaslAuthenticate(_) => RequestState::Nothing,
            Request::SaslHandshake(handshake) => RequestState::Handshake { mechanism: self.names.intern(handshake.mechanism) },
            _ if damage.is_none() && payload.is_whole() && payload.bytes.len() <= MAX_KEPT_BODY_BYTES => {
                RequestState::Body(Box::from(payload.bytes))
            }
            Request::Fetch(_) if side_facts::is_broker_client(header.client_id) => RequestState::InterBroker,
            _ => RequestState::Nothing,
        }
    }

    /// The answer to a request was seen, its first and last byte at `times`.
    pub fn answered(
        &mut self,
        who: &Who<'_>,
        open: OpenRequest<RequestState>,
        answer: Payload<'_>,
        times: (Timestamp, Timestamp),
        counters: &mut Counters,
        sink: &mut dyn FnMut(Observation),
    ) {
        let OpenRequest { facts, state, .. } = open;
        let Decoded { value: response, damage } = api::decode_response(facts.api_key, facts.api_version, answer);
        counters.frame("decoded");
        let lost = damage.map(|damage| damage.kind().name());
        if let Some(damage) = lost {
            counters.frame(damage);
        }
        counters.kafka_bytes(answer.declared_bytes as u64 + 4, lost);
        *counters.exchanges.entry(versions::name(facts.api_key)).or_default() += 1;
        let generation = self.learnt.generation();
        let (kept, state) = match state {
            RequestState::Body(bytes) => (Some(bytes), RequestState::Nothing),
            state @ (RequestState::Produce(_) | RequestState::Handshake { .. } | RequestState::InterBroker | RequestState::Nothing) => {
                (None, state)
            }
        };
        let body = kept.as_deref().map_or(Request::Other, |bytes| {
            let payload = Payload::whole(bytes);
            api::request_header(payload).map_or(Request::Other, |header| api::decode_request(&header, payload).value)
        });
        let client = client_key(who, &facts);
        let peer = peer(who);
        self.learn_from_answer(&client, &peer, &body, &response);
        let operation = self.operation(who, &client, &facts, Some((times, answer.declared_bytes)), throttle_ms(&response));
        let answered = Answered { who: *who, client, peer, operation, at: times.1, whole: damage.is_none() };
        let inter_broker = matches!(state, RequestState::InterBroker);
        let mut emit = Emit { hold: &mut self.hold, learnt: &mut self.learnt, counters, sink, now: times.1 };
        emit.give(Observation::Exchange(Exchange {
            operation: Arc::clone(&answered.operation),
            outcome: outcome(side_facts::error_code(&response)),
            inter_broker,
        }));
        groups::answered(&body, &response, &answered, &mut self.names, &mut emit);
        if let (Request::EndTxn(request), Response::EndTxn(response)) = (&body, &response) {
            emit.give(Observation::Transaction(TransactionEnd {
                operation: Arc::clone(&answered.operation),
                transactional_id: self.names.intern(request.transactional_id),
                committed: request.committed,
                outcome: outcome(response.error_code),
            }));
        }
        match (state, body, response) {
            (RequestState::Produce(produce), _, Response::Produce(response)) => {
                sent::answered(*produce, &response, &answered, &mut self.history, &mut emit);
            }
            (RequestState::Produce(produce), _, _) => {
                sent::unanswered(*produce, Outcome::AnswerNotSeen, &answered.operation, &mut self.history, &mut emit);
            }
            (_, body, Response::Fetch(response)) if !inter_broker => {
                let request = if let Request::Fetch(request) = &body { Some(request) } else { None };
                fetched::answered(
                    request,
                    &response,
                    &answered,
                    &mut fetched::Tools {
                        names: &mut self.names,
                        sessions: &mut self.sessions,
                        history: &mut self.history,
                        batches: &mut self.batches,
                    },
                    &mut emit,
                );
            }
            (_, Request::ShareFetch(request), Response::ShareFetch(response)) => {
                fetched::share_answered(&request, &response, &answered, &mut self.names, &mut self.batches, &mut emit);
            }
            (_, Request::ShareAcknowledge(request), Response::ShareAcknowledge(response)) => {
                side_facts::share_acknowledged(&request, &response, &answered, &mut self.names, &mut emit);
            }
            (_, Request::OffsetCommit(request), Response::OffsetCommit(response)) => {
                let mut tools = CommitTools { names: &mut self.names, history: &mut self.history, transactions: &mut self.transactions };
                side_facts::committed(&request, &response, &answered, &mut tools, &mut emit);
            }
            (_, Request::TxnOffsetCommit(request), Response::TxnOffsetCommit(response)) => {
                let mut tools = CommitTools { names: &mut self.names, history: &mut self.history, transactions: &mut self.transactions };
                side_facts::txn_committed(&request, &response, &answered, &mut tools, &mut emit);
            }
            (_, Request::EndTxn(request), Response::EndTxn(response)) if response.error_code == 0 => {
                let mut tools = CommitTools { names: &mut self.names, history: &mut self.history, transactions: &mut self.transactions };
                side_facts::transaction_ended(request.transactional_id, request.committed, &answered, &mut tools, &mut emit);
            }
            // A producer that begins anew aborts what it left open.
            (_, Request::InitProducerId(request), Response::InitProducerId(response)) if response.error_code == 0 => {
                let mut tools = CommitTools { names: &mut self.names, history: &mut self.history, transactions: &mut self.transactions };
                if let Some(id) = request.transactional_id {
                    side_facts::transaction_ended(id, false, &answered, &mut tools, &mut emit);
                }
            }
            _ => {}
        }
        if self.learnt.generation() != generation {
            let mut emit = Emit { hold: &mut self.hold, learnt: &mut self.learnt, counters, sink, now: times.1 };
            emit.release_completed();
        }
    }

    /// A request got no answer, or none was seen.
    pub fn unanswered(
        &mut self,
        who: &Who<'_>,
        open: OpenRequest<RequestState>,
        outcome: Outcome,
        at: Timestamp,
        counters: &mut Counters,
        sink: &mut dyn FnMut(Observation),
    ) {
        let OpenRequest { facts, state, .. } = open;
        *counters.exchanges.entry(versions::name(facts.api_key)).or_default() += 1;
        if outcome == Outcome::AnswerNotSeen {
            counters.frame("answer_not_seen");
        }
        let client = client_key(who, &facts);
        let operation = self.operation(who, &client, &facts, None, 0);
        let mut emit = Emit { hold: &mut self.hold, learnt: &mut self.learnt, counters, sink, now: at };
        let inter_broker = matches!(state, RequestState::InterBroker);
        emit.give(Observation::Exchange(Exchange { operation: Arc::clone(&operation), outcome, inter_broker }));
        if let RequestState::Produce(produce) = state {
            sent::unanswered(*produce, outcome, &operation, &mut self.history, &mut emit);
        }
    }

    /// A connection ended.
    pub fn closed(&mut self, who: &Who<'_>, client_id: Option<&Arc<str>>) {
        let client = ClientKey { host: who.connection.client.ip(), client_id: client_id.cloned() };
        self.learnt.closed(&client, who.connection.id);
    }

    /// Time went on: what was held for too long is given out as it is.
    pub fn tick(&mut self, now: Timestamp, counters: &mut Counters, sink: &mut dyn FnMut(Observation)) {
        Emit { hold: &mut self.hold, learnt: &mut self.learnt, counters, sink, now }.release_expired();
    }

    /// Nothing more comes: all that is held is given out.
    pub fn finish(&mut self, now: Timestamp, counters: &mut Counters, sink: &mut dyn FnMut(Observation)) {
        Emit { hold: &mut self.hold, learnt: &mut self.learnt, counters, sink, now }.release_all();
    }

    /// Bytes that held observations take, roughly.
    pub fn held(&self) -> usize {
        self.hold.len()
    }

    fn operation(
        &mut self,
        who: &Who<'_>,
        client: &ClientKey,
        facts: &RequestFacts,
        answer: Option<((Timestamp, Timestamp), usize)>,
        throttle_ms: i32,
    ) -> Arc<Operation> {
        Arc::new(Operation {
            connection: Arc::clone(who.connection),
            api_key: facts.api_key,
            api_version: facts.api_version,
            client_id: facts.client_id.clone(),
            cluster_id: self.learnt.cluster_of(who.connection.broker, client),
            server: self.learnt.server(who.connection.broker),
            request_first: facts.first,
            request_last: facts.last,
            response: answer.map(|(times, _)| times),
            throttle_ms,
            request_bytes: facts.bytes,
            response_bytes: answer.map_or(0, |(_, bytes)| bytes as u64 + 4),
        })
    }
}

/// Where observations go: out, or into the hold while they lack a name.
struct Emit<'a> {
    hold: &'a mut Hold,
    learnt: &'a mut Learnt,
    counters: &'a mut Counters,
    sink: &'a mut dyn FnMut(Observation),
    now: Timestamp,
}

impl Emit<'_> {
    /// Gives an observation out, or holds it while it waits for something.
    fn give(&mut self, observation: Observation) {
        self.counters.held_too_long += self.hold.give(observation, self.now, self.learnt, self.sink);
    }

    /// What became of a batch that was being sent is told: fetches may have waited for it.
    fn sent(&mut self, key: &hold::SendKey) {
        self.hold.sent(key, self.learnt, self.sink);
    }

    fn release_completed(&mut self) {
        self.hold.release_completed(self.now, self.learnt, self.sink);
    }

    fn release_expired(&mut self) {
        self.counters.held_too_long += self.hold.release_expired(self.now, self.sink);
    }

    fn release_all(&mut self) {
        self.counters.held_too_long += self.hold.release_all(self.sink);
    }
}

const fn outcome(error_code: i16) -> Outcome {
    if error_code == 0 { Outcome::Success } else { Outcome::Error(error_code) }
}

fn client_key(who: &Who<'_>, facts: &RequestFacts) -> ClientKey {
    ClientKey { host: who.connection.client.ip(), client_id: facts.client_id.clone() }
}

fn peer(who: &Who<'_>) -> Peer {
    Peer { connection_id: who.connection.id, pid: who.pid, broker: who.connection.broker }
}

fn throttle_ms(response: &Response<'_>) -> i32 {
    match response {
        Response::Produce(r) => r.throttle_time_ms,
        Response::Fetch(r) => r.throttle_time_ms,
        Response::ShareFetch(r) => r.throttle_time_ms,
        Response::OffsetCommit(r) => r.throttle_time_ms,
        Response::TxnOffsetCommit(r) => r.throttle_time_ms,
        _ => 0,
    }
}

/// A topic as the wire names it, with shared names; the name of an id is looked up later, when it is needed.
fn topic(reference: TopicRef<'_>, names: &mut Names) -> Topic {
    Topic { name: names.intern_option(reference.name), id: reference.topic_id }
}
