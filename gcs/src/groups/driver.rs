//! Taking the steps: the leader of shard 0, with what the nodes' heartbeats say.

use super::{Pace, next_step};
use crate::duties::next_look;
use crate::server::Running;
use mobula_proto as proto;
use prost::Message;
use std::sync::Arc;
use tokio::time::Instant;

/// Places groups while this head leads shard 0. Never ends.
pub async fn drive(running: Arc<Running>) {
    let (mut applied, zero) = (running.root().replica.applied(), Instant::now());
    let mut pace = Pace::default();
    loop {
        applied.borrow_and_update();
        let step = match running.root().leadership().here {
            true => look(&running, &mut pace, zero),
            false => {
                // Times are those of one leadership.
                pace = Pace::default();
                None
            }
        };
        let taken = match step {
            Some(op) => {
                let op = proto::command::Op::Groups(proto::GroupCommand { op: Some(op) });
                let command = proto::Command::from(op).encode_to_vec();
                // Whatever the outcome: the next look decides anew.
                let taken = running.root().propose(command.into()).await.is_ok();
                if !taken {
                    pace.look_again();
                }
                taken
            }
            None => false,
        };
        if !taken {
            let changed = async {
                tokio::select! {
                    changed = applied.changed() => changed,
                    () = running.liveness.claims_told() => Ok(()),
                }
            };
            next_look(changed).await;
        }
    }
}

fn look(running: &Running, pace: &mut Pace, zero: Instant) -> Option<proto::group_command::Op> {
    let beats = running.liveness.beats();
    running.root().replica.with(|state| {
        if state.cluster.groups.all().is_empty() {
            return None;
        }
        let offers = beats.offers(&state.cluster);
        let heard = offers.values().filter(|offer| offer.heard).count() as u64;
        // The table's version covers who is there and what they offer.
        let inputs = state.cluster.version << 16 | heard;
        next_step(&state.cluster.groups, &offers, inputs, pace, zero.elapsed())
    })
}
