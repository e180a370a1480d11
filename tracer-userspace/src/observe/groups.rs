//! What members of groups do: they join, get their partitions, say that they are alive, and leave.
//!
//! In: the requests of the group APIs with their answers. Out: [`GroupEvent`]s.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::names::Names;
use super::side_facts::LEAVING;
use super::{Answered, Emit, GroupEvent, GroupEventKind, Observation};
use crate::kafka::api::{Request, Response};

/// `MEMBER_ID_REQUIRED`: not an error of the member's, it asks again with the id that it was given.
const MEMBER_ID_REQUIRED: i16 = 79;

/// A group API was answered.
pub(super) fn answered(request: &Request<'_>, response: &Response<'_>, answered: &Answered<'_>, names: &mut Names, emit: &mut Emit<'_>) {
    let mut give = |group: &str, member: &str, kind: GroupEventKind| {
        if group.is_empty() {
            return;
        }
        let event = GroupEvent {
            operation: Arc::clone(&answered.operation),
            group: names.intern(group),
            member: (!member.is_empty()).then(|| Arc::from(member)),
            kind,
        };
        emit.give(Observation::Group(event));
    };
    match (request, response) {
        (Request::JoinGroup(asked), Response::JoinGroup(said)) => {
            let generation = (said.error_code == 0).then_some(said.generation_id);
            let member = if matches!(said.error_code, 0 | MEMBER_ID_REQUIRED) { said.member_id } else { asked.member_id };
            give(asked.group_id, member, GroupEventKind::Joining { generation });
        }
        (Request::SyncGroup(asked), Response::SyncGroup(said)) if said.error_code == 0 => {
            give(asked.group_id, asked.member_id, GroupEventKind::Synced { generation: asked.generation_id });
        }
        (Request::Heartbeat(asked), Response::Heartbeat(said)) if said.error_code == 0 => {
            give(asked.group_id, asked.member_id, GroupEventKind::Alive { generation: asked.generation_id });
        }
        (Request::LeaveGroup(asked), Response::LeaveGroup(said)) if said.error_code == 0 => {
            let several = asked.members.iter().map(|member| member.member_id);
            for member in several.chain((!asked.member_id.is_empty()).then_some(asked.member_id)) {
                give(asked.group_id, member, GroupEventKind::Left);
            }
        }
        (Request::ConsumerGroupHeartbeat(asked), Response::ConsumerGroupHeartbeat(said)) if said.error_code == 0 => {
            let member = said.member_id.unwrap_or(asked.member_id);
            give(asked.group_id, member, by_epoch(asked.member_epoch, said.member_epoch));
        }
        (Request::ShareGroupHeartbeat(asked), Response::ShareGroupHeartbeat(said)) if said.error_code == 0 => {
            let member = said.member_id.unwrap_or(asked.member_id);
            give(asked.group_id, member, by_epoch(asked.member_epoch, said.member_epoch));
        }
        (Request::StreamsGroupHeartbeat(asked), Response::StreamsGroupHeartbeat(said)) if said.error_code == 0 => {
            give(asked.group_id, said.member_id, by_epoch(asked.member_epoch, said.member_epoch));
        }
        _ => {}
    }
}

/// What a heartbeat of KIP-848 and later is: with epoch 0 it asks to join.
fn by_epoch(asked: i32, generation: i32) -> GroupEventKind {
    match asked {
        asked if LEAVING.contains(&asked) => GroupEventKind::Left,
        0 => GroupEventKind::Joined { generation },
        _ => GroupEventKind::Alive { generation },
    }
}
