//! Which span a record lands in. The sets are disjoint, and together they are what the operation accounts for.

use std::collections::HashSet;

use super::super::Scope;
use super::super::limits::ContextLimit;
use crate::kafka::context::CarriedContext;
use crate::observe::RecordFact;
use crate::time::Timestamp;

/// A record with a span of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own<'a> {
    pub(super) record: &'a RecordFact,
    /// The sampled context it carries: its span lies in that trace.
    pub(super) parent: Option<&'a CarriedContext>,
    /// A context that it is only linked to.
    pub(super) linked: Option<&'a CarriedContext>,
}

/// A batch's records, by span.
#[derive(Debug, Default)]
pub(super) struct Split<'a> {
    pub(super) own: Vec<Own<'a>>,
    /// Records that share the batch's span.
    pub(super) rest: u32,
    /// The distinct contexts among them, the first `max_links`.
    pub(super) links: Vec<&'a CarriedContext>,
    /// How many more there are.
    pub(super) dropped_links: u32,
    /// All of the rest carry a context, and none is sampled.
    pub(super) rest_is_unsampled: bool,
    /// Records of the whole stored batch that get a span of their own on either side.
    pub(super) eligible: usize,
    /// Records kept in the batch's span because their context had its share.
    pub(super) over_limit: u64,
}

/// What splitting needs of the settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) scope: Scope,
    pub(super) max_records: usize,
    pub(super) max_links: usize,
}

/// Splits `records`, of which `total` are accounted for (those not skipped).
pub(super) fn split<'a>(rules: Rules, records: &'a [RecordFact], total: u32, limit: &mut ContextLimit, now: Timestamp) -> Split<'a> {
    let mut split = Split::default();
    let mut distinct: HashSet<([u8; 16], [u8; 8])> = HashSet::new();
    let mut unsampled = 0_u32;
    for record in records {
        let sampled = record.context.as_ref().filter(|context| context.sampled());
        let eligible = match rules.scope {
            Scope::Batch => false,
            Scope::Auto => sampled.is_some() && split.eligible < rules.max_records,
            Scope::Record => true,
        };
        split.eligible += usize::from(eligible);
        if record.skipped.is_some() {
            continue;
        }
        if eligible {
            match (sampled, &record.context) {
                (Some(context), _) if limit.admit(context, now) => {
                    split.own.push(Own { record, parent: Some(context), linked: None });
                    continue;
                }
                (Some(_), _) => split.over_limit += 1,
                (None, linked) => {
                    split.own.push(Own { record, parent: None, linked: linked.as_ref() });
                    continue;
                }
            }
        }
        let Some(context) = &record.context else { continue };
        unsampled += u32::from(!context.sampled());
        if distinct.insert((context.trace_id, context.span_id)) {
            if split.links.len() < rules.max_links {
                split.links.push(context);
            } else {
                split.dropped_links += 1;
            }
        }
    }
    split.rest = total.saturating_sub(u32::try_from(split.own.len()).unwrap_or(u32::MAX));
    split.rest_is_unsampled = split.rest > 0 && unsampled == split.rest;
    split
}
