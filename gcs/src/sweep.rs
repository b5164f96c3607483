//! What the leader of a shard does for references: it lets the shard count them once all heads can, has what
//! waits worked off while nothing else is applied, and tells other shards which edges have ended (R6).

use crate::core::first_sweep;
use crate::duties::{next_look, propose_at};
use crate::level::COUNTS_REFERENCES;
use crate::raft::group::Group;
use crate::server::Running;
use futures::future::join_all;
use mobula_base::{ObjectId, ShardId};
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use prost::Message;
use proto::command::Op;
use proto::propose_reply::Result as Proposed;
use proto::reply::Reply as Answer;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Ends of edges that are told in one round.
const ENDS_PER_ROUND: usize = 4096;
/// Pause after a round in which another shard could not be told.
const RETRY: Duration = Duration::from_millis(500);

/// Lets the shard count, and has what waits worked off. Never ends.
pub async fn sweep(running: Arc<Running>, shard: u32) {
    let group = running.groups[shard as usize].clone();
    let (mut root, mut applied) = (running.root().replica.applied(), group.replica.applied());
    loop {
        root.borrow_and_update();
        applied.borrow_and_update();
        let op = if group.leadership().here { due(&running, &group) } else { None };
        let taken = match op {
            Some(op) => propose(&group, op).await.is_some(),
            None => false,
        };
        // What is left after a step is seen at the next look, at once.
        if !taken {
            let changed = async {
                tokio::select! {
                    changed = applied.changed() => changed,
                    changed = root.changed() => changed,
                }
            };
            next_look(changed).await;
        }
    }
}

fn due(running: &Running, group: &Group) -> Option<Op> {
    let (counts, works) = group.replica.with(|state| (state.counting.is_on(), state.counting.has_work()));
    if counts {
        return works.then(|| Op::Sweep(proto::Sweep::default()));
    }
    let level = running.root().replica.with(|state| state.cluster.level().0);
    (level >= COUNTS_REFERENCES).then(|| first_sweep(group.shard, running.identity.shards))
}

async fn propose(group: &Group, op: Op) -> Option<Answer> {
    let command = proto::Command::from(op).encode_to_vec();
    let reply = group.propose(command.into()).await.ok()?;
    proto::Reply::decode(reply).ok()?.reply
}

/// Tells other shards which edges of theirs have ended. Never ends.
pub async fn deliver(running: Arc<Running>, net: SharedNet, shard: u32) {
    let group = running.groups[shard as usize].clone();
    let mut applied = group.replica.applied();
    loop {
        applied.borrow_and_update();
        let ends = match group.leadership().here {
            true => group.replica.with(|state| state.counting.outbox().first(ENDS_PER_ROUND)),
            false => Vec::new(),
        };
        if ends.is_empty() {
            next_look(applied.changed()).await;
            continue;
        }
        let (told, all_told) = round(&running, &net, shard, ends).await;
        if !all_told {
            tokio::time::sleep(RETRY).await;
        }
        propose(&group, Op::Delivered(told)).await;
    }
}

/// Tells each shard what concerns it; what has become of it, and whether all shards answered. What was not
/// answered gets a new number, as what was not taken: whether it has arrived is not known.
async fn round(
    running: &Running,
    net: &SharedNet,
    from_shard: u32,
    ends: Vec<proto::LooseEnd>,
) -> (proto::Delivered, bool) {
    let map = running.root().replica.with(|s| s.cluster.slots_table.map(running.identity.shards));
    let mut by_shard: BTreeMap<ShardId, Vec<proto::LooseEnd>> = BTreeMap::new();
    let mut told = proto::Delivered::default();
    for end in ends {
        match ObjectId::from_bytes(&end.object) {
            Some(object) => by_shard.entry(map.of_slot(object.task.run.slot())).or_default().push(end),
            None => told.done.push(end.seq),
        }
    }
    let asked = by_shard.into_iter().map(|(to, ends)| async move {
        let seqs: Vec<u64> = ends.iter().map(|end| end.seq).collect();
        let answer = tell(running, net, to, proto::Unnames { from_shard, ends }).await;
        (seqs, answer)
    });
    let mut all_told = true;
    for (seqs, answer) in join_all(asked).await {
        let Some(ack) = answer else {
            all_told = false;
            told.again.extend(seqs);
            continue;
        };
        told.done.extend(seqs.into_iter().filter(|seq| !ack.again.contains(seq)));
        // A slot that is on its way is nowhere for a moment.
        all_told &= ack.again.is_empty();
        told.again.extend(ack.again);
    }
    told.again.sort_unstable();
    (told, all_told)
}

async fn tell(
    running: &Running,
    net: &SharedNet,
    to: ShardId,
    told: proto::Unnames,
) -> Option<proto::UnnamesAck> {
    let group = running.groups.get(to.0 as usize)?;
    let leadership = group.leadership();
    let answer = if leadership.here {
        propose(group, Op::Unnames(told)).await?
    } else {
        let command = proto::Command::from(Op::Unnames(told)).encode_to_vec().into();
        let request = proto::ProposeRequest { cluster: running.identity.cluster, shard: to.0, command };
        match propose_at(net, &leadership.leader?.address, request).await?.result? {
            Proposed::Reply(reply) => reply.reply?,
            _ => return None,
        }
    };
    match answer {
        Answer::Unnames(ack) => Some(ack),
        _ => None,
    }
}
