//! What operators ask about slots: who owns which, and moving them.

use super::Service;
use super::admin::{elsewhere, said};
use crate::moves::driver;
use crate::raft::group::NotDone;
use mobula_proto as proto;
use proto::slot_command::Op;

impl Service {
    pub(super) async fn slots_reply(&self, request: proto::SlotsRequest) -> proto::SlotsReply {
        let running = match self.running(request.cluster) {
            Ok(running) => running,
            Err(refused) => return proto::SlotsReply { refused, ..Default::default() },
        };
        if request.fresh && running.root().read_index().await.is_err() {
            return proto::SlotsReply { elsewhere: elsewhere(running.root()), ..Default::default() };
        }
        let shards = running.identity.shards;
        let (map, plan) = running.root().replica.with(|state| {
            let table = &state.cluster.slots_table;
            (table.map(shards), table.plan().cloned())
        });
        let waiting = driver::waiting(running);
        proto::SlotsReply { map: Some(proto::slot_map(&map)), plan, waiting, ..Default::default() }
    }

    pub(super) async fn move_slots_reply(&self, request: proto::MoveSlotsRequest) -> proto::MoveSlotsReply {
        let refuse = |refused| proto::MoveSlotsReply { refused, ..Default::default() };
        let busy = |busy| proto::MoveSlotsReply { busy, ..Default::default() };
        let running = match self.running(request.cluster) {
            Ok(running) => running,
            Err(why) if self.starting() => return busy(why),
            Err(why) => return refuse(why),
        };
        match running.root().read_index().await {
            Ok(()) => {}
            Err(NotDone::NotLeader(_)) => {
                let elsewhere = elsewhere(running.root());
                return proto::MoveSlotsReply { elsewhere, ..Default::default() };
            }
            Err(other) => return busy(said(other)),
        }
        // A node of an earlier release would take `moved` for an answer.
        let live: Vec<u64> = running.members().live.keys().copied().collect();
        let (strange, unheard) = running.liveness.beats().strangers_to_slots(&live);
        if let Some(node) = strange.first() {
            return refuse(format!(
                "node {node} (its incarnation) is of a release that cannot follow slots: upgrade it first"
            ));
        }
        if let Some(node) = unheard.first() {
            return busy(format!("node {node} (its incarnation) has not been heard by this leader yet"));
        }
        let start = request.r#move.unwrap_or_default();
        match driver::propose(running.root(), Op::Start(start)).await {
            Ok(outcome) if outcome.refused.is_empty() => proto::MoveSlotsReply {
                epoch: outcome.epoch,
                finished: outcome.finished,
                ..Default::default()
            },
            Ok(outcome) => refuse(outcome.refused),
            Err(NotDone::NotLeader(_)) => {
                proto::MoveSlotsReply { elsewhere: elsewhere(running.root()), ..Default::default() }
            }
            Err(other) => busy(said(other)),
        }
    }
}
