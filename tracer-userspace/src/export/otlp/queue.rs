//! Spans that wait to be sent, by service, bounded in number and in bytes.
//!
//! In: [`FinishedSpan`]s, from the pipeline's thread. Out: batches of one service each, to the sending task.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::mem::size_of;

use hashlink::LinkedHashMap;
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;

use crate::telemetry::{FinishedSpan, ResourceKey};

/// After this many failures in a row, one service's oldest batch is given up: it may be what makes sending fail.
const MAX_ATTEMPTS: u32 = 100;

/// Spans of one service, on their way.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) resource: ResourceKey,
    pub(super) spans: Vec<SpanData>,
    attempts: u32,
}

#[derive(Debug, Default)]
struct Pending {
    spans: VecDeque<(usize, SpanData)>,
    attempts: u32,
}

/// The queue. Counts what it holds, not what is on its way.
#[derive(Debug)]
pub(super) struct Queue {
    services: LinkedHashMap<ResourceKey, Pending>,
    spans: usize,
    bytes: usize,
    max_spans: usize,
    max_bytes: usize,
    max_batch: usize,
}

impl Queue {
    pub(super) fn new(max_spans: usize, max_bytes: usize, max_batch: usize) -> Self {
        Self { services: LinkedHashMap::new(), spans: 0, bytes: 0, max_spans, max_bytes, max_batch: max_batch.max(1) }
    }

    /// Adds a span; `Ok(true)` when its service now has a whole batch. `Err` when there is no room.
    pub(super) fn push(&mut self, span: FinishedSpan) -> Result<bool, ()> {
        let bytes = estimated_bytes(&span.data);
        if self.spans >= self.max_spans || self.bytes.saturating_add(bytes) > self.max_bytes {
            return Err(());
        }
        self.spans += 1;
        self.bytes += bytes;
        if let Some(pending) = self.services.get_mut(&span.resource) {
            pending.spans.push_back((bytes, span.data));
            return Ok(pending.spans.len() >= self.max_batch);
        }
        self.services.insert(span.resource, Pending { spans: VecDeque::from([(bytes, span.data)]), attempts: 0 });
        Ok(self.max_batch == 1)
    }

    /// Up to `limit` batches, each of another service, longest waiting service first; only whole ones if `whole`.
    pub(super) fn take(&mut self, limit: usize, whole: bool) -> Vec<Batch> {
        let ready: Vec<ResourceKey> = self
            .services
            .iter()
            .filter(|(_, pending)| !whole || pending.spans.len() >= self.max_batch)
            .take(limit)
            .map(|(resource, _)| resource.clone())
            .collect();
        ready.into_iter().filter_map(|resource| self.take_of(resource)).collect()
    }

    fn take_of(&mut self, resource: ResourceKey) -> Option<Batch> {
        let mut pending = self.services.remove(&resource)?;
        let count = pending.spans.len().min(self.max_batch);
        let mut spans = Vec::with_capacity(count);
        for (bytes, span) in pending.spans.drain(..count) {
            self.bytes = self.bytes.saturating_sub(bytes);
            spans.push(span);
        }
        self.spans = self.spans.saturating_sub(count);
        let attempts = pending.attempts;
        if !pending.spans.is_empty() {
            // Behind the others: each service has its turn.
            self.services.insert(resource.clone(), pending);
        }
        Some(Batch { resource, spans, attempts })
    }

    /// Puts a batch that could not be sent back before its service's other spans, behind all other services. Returns how
    /// many of its spans were given up: those without room, or all after too many attempts.
    pub(super) fn put_back(&mut self, batch: Batch) -> usize {
        let count = batch.spans.len();
        if batch.attempts + 1 >= MAX_ATTEMPTS {
            return count;
        }
        let mut pending = self.services.remove(&batch.resource).unwrap_or_default();
        pending.attempts = batch.attempts + 1;
        let mut kept = 0;
        for span in batch.spans.into_iter().rev() {
            let bytes = estimated_bytes(&span);
            if self.spans >= self.max_spans || self.bytes.saturating_add(bytes) > self.max_bytes {
                break;
            }
            self.spans += 1;
            self.bytes += bytes;
            kept += 1;
            pending.spans.push_front((bytes, span));
        }
        if !pending.spans.is_empty() {
            self.services.insert(batch.resource, pending);
        }
        count - kept
    }

    /// Its service's batches are sent again: earlier failures no longer count.
    pub(super) fn forgive(&mut self, resource: &ResourceKey) {
        if let Some(pending) = self.services.get_mut(resource) {
            pending.attempts = 0;
        }
    }

    /// Spans that wait.
    pub(super) const fn len(&self) -> usize {
        self.spans
    }
}

/// What a span takes in memory, roughly and rather too much than too little.
fn estimated_bytes(span: &SpanData) -> usize {
    let attributes = |attributes: &[KeyValue]| {
        attributes
            .iter()
            .map(|attribute| size_of::<KeyValue>() + attribute.key.as_str().len() + value_bytes(&attribute.value))
            .sum::<usize>()
    };
    // A link holds a whole context.
    let links = span.links.links.iter().map(|link| 128 + attributes(&link.attributes)).sum::<usize>();
    let events = span.events.events.iter().map(|event| 64 + event.name.len() + attributes(&event.attributes)).sum::<usize>();
    size_of::<SpanData>() + span.name.len() + attributes(&span.attributes) + links + events
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.as_str().len(),
        Value::Array(_) => 256,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{remote, span_of};
    use super::*;

    fn pushed(queue: &mut Queue, service: u8, count: usize) {
        for _ in 0..count {
            queue.push(span_of(service, "orders")).unwrap();
        }
    }

    #[test]
    fn a_batch_is_of_one_service_and_no_larger_than_allowed() {
        let mut queue = Queue::new(1_000, usize::MAX, 10);
        pushed(&mut queue, 1, 25);
        pushed(&mut queue, 2, 3);
        let sizes = |batches: Vec<Batch>| batches.iter().map(|batch| (batch.resource.clone(), batch.spans.len())).collect::<Vec<_>>();
        assert_eq!(sizes(queue.take(8, true)), [(remote(1), 10)]);
        assert_eq!(sizes(queue.take(8, false)), [(remote(2), 3), (remote(1), 10)]);
        assert_eq!(sizes(queue.take(8, false)), [(remote(1), 5)]);
        assert_eq!((queue.len(), queue.bytes, queue.services.len()), (0, 0, 0));
    }

    #[test]
    fn pushing_tells_when_a_batch_is_whole() {
        let mut queue = Queue::new(1_000, usize::MAX, 3);
        let whole: Vec<bool> = (0..4).map(|_| queue.push(span_of(1, "t")).unwrap()).collect();
        assert_eq!(whole, [false, false, true, true]);
    }

    #[test]
    fn the_queue_is_bounded_in_number_and_in_bytes() {
        let mut by_number = Queue::new(5, usize::MAX, 512);
        let taken = (0..9).filter(|_| by_number.push(span_of(1, "t")).is_ok()).count();
        assert_eq!((taken, by_number.len()), (5, 5));

        let one = estimated_bytes(&span_of(1, "t").data);
        assert!(one >= size_of::<SpanData>());
        let mut by_bytes = Queue::new(1_000, 3 * one + one / 2, 512);
        let taken = (0..9).filter(|_| by_bytes.push(span_of(1, "t")).is_ok()).count();
        assert_eq!((taken, by_bytes.bytes), (3, 3 * one));
    }

    #[test]
    fn what_is_put_back_keeps_its_place_and_the_bounds() {
        let mut queue = Queue::new(4, usize::MAX, 2);
        for topic in ["a", "b", "c"] {
            queue.push(span_of(1, topic)).unwrap();
        }
        let mut taken = queue.take(1, false);
        queue.push(span_of(1, "d")).unwrap();
        queue.push(span_of(1, "e")).unwrap();
        assert_eq!(queue.put_back(taken.remove(0)), 1, "only one place is left");
        let names: Vec<String> = queue
            .take(1, false)
            .into_iter()
            .chain(queue.take(1, false))
            .flat_map(|batch| batch.spans)
            .map(|span| span.name.into_owned())
            .collect();
        assert_eq!(names, ["send b", "send c", "send d", "send e"]);
    }

    #[test]
    fn a_batch_that_fails_for_ever_is_given_up() {
        let mut queue = Queue::new(10, usize::MAX, 2);
        pushed(&mut queue, 1, 2);
        let mut rounds = 0;
        while let Some(batch) = queue.take(1, false).pop() {
            rounds += 1;
            let lost = queue.put_back(batch);
            assert_eq!(lost, if rounds == MAX_ATTEMPTS { 2 } else { 0 });
        }
        assert_eq!(rounds, MAX_ATTEMPTS);

        pushed(&mut queue, 1, 4);
        let batch = queue.take(1, false).remove(0);
        assert_eq!(queue.put_back(batch), 0);
        queue.forgive(&remote(1));
        assert_eq!(queue.take(1, false).remove(0).attempts, 0);
    }
}
