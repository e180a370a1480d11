//! Parts that several APIs share.

#![forbid(unsafe_code)]

use super::message::{Shape, Wire, array_length, message, text};
use crate::kafka::wire::{DecodeError, Reader};
use crate::observe::TopicId;

/// A topic as a message names it: by name or, from the version on that the table says, by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TopicRef<'a> {
    /// Its name.
    pub name: Option<&'a str>,
    /// Its id; the all-zero id, "no topic", reads as none.
    pub topic_id: Option<TopicId>,
}

impl<'a> Wire<'a> for TopicRef<'a> {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        if shape.topic_ids {
            self.topic_id = reader.topic_id()?;
        } else {
            self.name = Some(text(reader, shape)?.ok_or_else(|| reader.invalid("null where no null may be"))?);
        }
        Ok(())
    }

    #[cfg(test)]
    fn show(&self, shape: Shape) -> serde_json::Value {
        if shape.topic_ids { self.topic_id.show(shape) } else { self.name.show(shape) }
    }
}

/// Bytes of which only the number is kept: credentials, assignments, pushed metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opaque {
    /// How many; 0 also for null.
    pub bytes: usize,
}

impl<'a> Wire<'a> for Opaque {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        self.bytes = array_length(reader, shape)?.unwrap_or(0);
        reader.skip(self.bytes)
    }

    #[cfg(test)]
    fn show(&self, _: Shape) -> serde_json::Value {
        self.bytes.into()
    }
}

/// An array of 32-bit numbers of which only the count is kept (replicas).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Int32Count {
    /// How many; 0 also for null.
    pub count: usize,
}

impl<'a> Wire<'a> for Int32Count {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        self.count = array_length(reader, shape)?.unwrap_or(0);
        reader.skip(self.count.saturating_mul(4))
    }

    #[cfg(test)]
    fn show(&self, _: Shape) -> serde_json::Value {
        self.count.into()
    }
}

message! {
    /// Who leads a partition now (KIP-951).
    pub struct LeaderIdAndEpoch {
        /// The broker's id; -1 when it is not known.
        leader_id: i32 = -1, 0..;
        /// The leader's epoch; -1 when it is not known.
        leader_epoch: i32 = -1, 0..;
    }
}

impl LeaderIdAndEpoch {
    /// The leader's id, where it is known.
    pub fn known(&self) -> Option<i32> {
        (self.leader_id >= 0).then_some(self.leader_id)
    }
}

message! {
    /// Where a broker listens (KIP-951).
    pub struct NodeEndpoint<'a> {
        /// The broker's id.
        node_id: i32, 0..;
        /// Its advertised host.
        host: &'a str, 0..;
        /// Its advertised port.
        port: i32, 0..;
        /// Its rack.
        rack: Option<&'a str>, 0..;
    }
}
