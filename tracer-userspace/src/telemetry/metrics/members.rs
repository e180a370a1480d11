//! The members of groups: how many a service has, and when their groups divide their partitions anew.
//!
//! In: what members do. Out: rebalances to count, and an observable gauge in the service's meter.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashlink::LruCache;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use opentelemetry::{KeyValue, StringValue};

use super::positions::ServiceId;
use crate::observe::{GroupEvent, GroupEventKind};
use crate::telemetry::semconv::{self, metric};
use crate::time::Timestamp;

/// A member that was not heard of for this long is none any more: longer than the default `session.timeout.ms`.
const MEMBER_AGE: Duration = Duration::from_mins(1);
/// Groups of services that are remembered.
const MAX_GROUPS: usize = 4_096;
/// Members of one group in one service that are told apart.
const MAX_MEMBERS: usize = 256;

/// What an event says of its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rebalance {
    /// A generation began that this service was not in before.
    pub(super) begun: bool,
    /// A member left, or its group divides its partitions anew.
    pub(super) revokes: bool,
    /// A member has its partitions, so long after it first asked to join.
    pub(super) took: Option<Duration>,
}

#[derive(Debug, Default)]
struct Group {
    generation: Option<i32>,
    /// When each was heard of last, by the hash of its id.
    members: HashMap<u64, Timestamp>,
    /// Since when members are joining, by connection: they have no id yet.
    joining: HashMap<u64, Timestamp>,
}

impl Group {
    fn alive(&mut self, member: Option<u64>, at: Timestamp) {
        let Some(member) = member else { return };
        if let Some(seen_at) = self.members.get_mut(&member) {
            *seen_at = at.max(*seen_at);
        } else if self.members.len() < MAX_MEMBERS {
            self.members.insert(member, at);
        }
    }
}

#[derive(Debug)]
struct Table {
    now: Timestamp,
    groups: LruCache<(ServiceId, Arc<str>), Group>,
    hash: RandomState,
}

/// Shared by the line, which writes, and the meters' readers.
#[derive(Clone, Debug)]
pub(super) struct Members(Arc<Mutex<Table>>);

impl Members {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Table { now: Timestamp::ZERO, groups: LruCache::new(MAX_GROUPS), hash: RandomState::new() })))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time is `now`.
    pub(super) fn tick(&self, now: Timestamp) {
        let mut table = self.table();
        table.now = table.now.max(now);
    }

    /// A member did something.
    pub(super) fn event(&self, service: ServiceId, event: &GroupEvent, at: Timestamp) -> Rebalance {
        let mut table = self.table();
        let Table { now, groups, hash } = &mut *table;
        *now = at.max(*now);
        let group = groups.entry((service, Arc::clone(&event.group))).or_insert_with(Group::default);
        let connection = event.operation.connection.id;
        let member = event.member.as_ref().map(|member| hash.hash_one(member));
        let mut rebalance = Rebalance::default();
        match event.kind {
            GroupEventKind::Joining { generation } => {
                if group.joining.len() < MAX_MEMBERS {
                    group.joining.entry(connection).or_insert(event.operation.request_first);
                }
                if let Some(generation) = generation {
                    rebalance.begun = group.generation.replace(generation) != Some(generation);
                    rebalance.revokes = rebalance.begun;
                    group.alive(member, at);
                }
            }
            GroupEventKind::Synced { generation } => {
                group.generation = Some(generation);
                rebalance.took = group.joining.remove(&connection).map(|since| at.since(since));
                group.alive(member, at);
            }
            GroupEventKind::Joined { generation } => {
                rebalance.begun = group.generation.replace(generation) != Some(generation);
                rebalance.revokes = rebalance.begun;
                group.alive(member, at);
            }
            GroupEventKind::Alive { generation } => {
                // The first heartbeat that is seen begins nothing, nor does that of a member that is not as far as another.
                rebalance.begun = group.generation.is_some_and(|known| known < generation);
                rebalance.revokes = rebalance.begun;
                group.generation = group.generation.max(Some(generation));
                group.alive(member, at);
            }
            GroupEventKind::Left => {
                group.joining.remove(&connection);
                if let Some(member) = member {
                    group.members.remove(&member);
                }
                rebalance.revokes = true;
            }
        }
        rebalance
    }

    /// Shows the members of a service's groups in its meter.
    pub(super) fn show(&self, service: ServiceId, meter: &Meter) {
        let all = self.clone();
        let (unit, meaning) = metric::described(metric::GROUP_MEMBERS);
        let gauge = meter.u64_observable_gauge(metric::GROUP_MEMBERS).with_unit(unit).with_description(meaning);
        let show = move |observer: &dyn AsyncInstrument<u64>| {
            for (group, members) in all.of(service) {
                observer.observe(members, &[KeyValue::new(semconv::GROUP, StringValue::from(group))]);
            }
        };
        // The SDK keeps the callbacks; the handles are of no more use.
        let _ = gauge.with_callback(show).build();
    }

    fn of(&self, service: ServiceId) -> Vec<(Arc<str>, u64)> {
        let mut table = self.table();
        let now = table.now;
        let mut groups = Vec::new();
        for ((of, name), group) in &mut table.groups {
            if *of == service {
                group.members.retain(|_, seen_at| now.since(*seen_at) <= MEMBER_AGE);
                if !group.members.is_empty() {
                    groups.push((Arc::clone(name), group.members.len() as u64));
                }
            }
        }
        groups
    }
}
