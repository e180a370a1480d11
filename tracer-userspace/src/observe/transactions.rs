//! Offsets that are committed within transactions: they count when the transaction is committed, and never if it is aborted.
//!
//! In: `TxnOffsetCommit`, and how its transaction ended. Out: the commits of transactions that were committed.

#![forbid(unsafe_code)]

use std::sync::Arc;

use hashlink::LruCache;

use super::Commit;
use super::history::KnownTopic;
use super::names::MAX_REMEMBERED_BYTES;

/// Offsets that wait for their transactions at once; beyond it those of the transaction that was begun first count as they are.
const MAX_WAITING: usize = 32_768;

/// A transactional producer, as all its transactions have it in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TransactionalId {
    /// The cluster, as far as it is known.
    pub(super) cluster_id: Option<Arc<str>>,
    /// The transactional id.
    pub(super) id: Arc<str>,
}

/// A commit that waits for its transaction's end.
#[derive(Debug)]
pub(super) struct Pending {
    /// The commit.
    pub(super) commit: Commit,
    /// Its topic.
    pub(super) topic: KnownTopic,
}

/// Where in a producer's life a transaction belongs: with KIP-890 each has an epoch of its own.
pub(super) type Producer = (i64, i16);

/// Open transactions.
#[derive(Debug)]
pub(super) struct Transactions {
    waiting: usize,
    open: LruCache<TransactionalId, (Producer, Vec<Pending>)>,
}

impl Default for Transactions {
    fn default() -> Self {
        Self { waiting: 0, open: LruCache::new_unbounded() }
    }
}

impl Transactions {
    /// An offset is to be committed with the transaction. Returns what nothing more will be heard of: the end of those
    /// transactions was not seen.
    pub(super) fn add(&mut self, id: TransactionalId, producer: Producer, pending: Pending) -> Vec<Pending> {
        let is_long = |name: &Option<Arc<str>>| name.as_ref().is_some_and(|name| name.len() > MAX_REMEMBERED_BYTES);
        let Commit { group, topic, .. } = &pending.commit;
        if id.id.len().max(group.len()) > MAX_REMEMBERED_BYTES || is_long(&id.cluster_id) || is_long(&topic.name) {
            return vec![pending];
        }
        let mut given_up = Vec::new();
        let (of, offsets) = self.open.entry(id).or_insert_with(|| (producer, Vec::new()));
        if *of != producer {
            *of = producer;
            given_up.append(offsets);
        }
        offsets.push(pending);
        self.waiting = self.waiting + 1 - given_up.len();
        while self.waiting > MAX_WAITING
            && let Some((_, (_, offsets))) = self.open.remove_lru()
        {
            self.waiting -= offsets.len();
            given_up.extend(offsets);
        }
        given_up
    }

    /// The open transaction ended. Returns its offsets.
    pub(super) fn end(&mut self, id: &TransactionalId) -> Vec<Pending> {
        let offsets = self.open.remove(id).map_or_else(Vec::new, |(_, offsets)| offsets);
        self.waiting -= offsets.len();
        offsets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::history::TopicIdentity;
    use crate::telemetry::fixtures;

    fn id(text: &str) -> TransactionalId {
        TransactionalId { cluster_id: None, id: Arc::from(text) }
    }

    fn pending(offset: i64) -> Pending {
        Pending { commit: fixtures::commit(offset), topic: KnownTopic::only(TopicIdentity::Name(None, None)) }
    }

    fn offsets(pending: &[Pending]) -> Vec<i64> {
        pending.iter().map(|pending| pending.commit.offset).collect()
    }

    #[test]
    fn offsets_wait_for_the_end_of_their_own_transaction() {
        let mut transactions = Transactions::default();
        assert!(transactions.add(id("a"), (1, 0), pending(5)).is_empty());
        assert!(transactions.add(id("b"), (2, 0), pending(7)).is_empty());
        assert_eq!(offsets(&transactions.end(&id("a"))), [5]);
        assert!(transactions.end(&id("a")).is_empty());
        assert_eq!(offsets(&transactions.end(&id("b"))), [7]);
    }

    #[test]
    fn a_new_epoch_shows_that_the_end_of_the_one_before_was_not_seen() {
        let mut transactions = Transactions::default();
        assert!(transactions.add(id("a"), (1, 0), pending(5)).is_empty());
        assert_eq!(offsets(&transactions.add(id("a"), (1, 1), pending(8))), [5]);
        assert_eq!(offsets(&transactions.end(&id("a"))), [8]);
    }

    #[test]
    fn what_waits_is_bounded_and_long_names_do_not_wait() {
        let mut transactions = Transactions::default();
        assert_eq!(transactions.add(id(&"x".repeat(300)), (1, 0), pending(1)).len(), 1);
        let mut given_up = 0;
        for number in 0..40_000 {
            given_up += transactions.add(id(&number.to_string()), (1, 0), pending(number)).len();
        }
        assert_eq!((given_up, transactions.waiting), (40_000 - MAX_WAITING, MAX_WAITING));
        assert!(transactions.end(&id("0")).is_empty() && transactions.end(&id("39999")).len() == 1);
    }
}
