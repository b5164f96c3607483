//! What operators ask of a head: who the heads are and shall be, how the shards stand.

use super::{Running, Service, dump};
use crate::clock::unix_ms;
use crate::membership::driver::{self, local_table, wanted};
use crate::raft::group::{Group, NotDone};
use mobula_proto as proto;
use proto::admin_server::Admin;
use proto::head_command::Op;
use proto::{Elsewhere, HeadEntry};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// How long a leader tries to hand its office over before it says that it did not work.
const HAND_OVER: Duration = Duration::from_secs(2);
/// Pause between looks whether it has.
const LOOK: Duration = Duration::from_millis(5);

pub(super) fn elsewhere(group: &Group) -> Option<Elsewhere> {
    let leader = group.leadership().leader.map(|leader| leader.address).unwrap_or_default();
    Some(Elsewhere { leader })
}

pub(super) fn said(not_done: NotDone) -> String {
    match not_done {
        NotDone::NotLeader(_) => "the leader of shard 0 has just changed".into(),
        NotDone::Busy(why) | NotDone::Unknown(why) => why,
    }
}

/// The members as consensus has them on shard 0.
fn founders(running: &Running) -> Vec<HeadEntry> {
    let seen = running.root().member_view().seen;
    let voters = seen.configs.last().cloned().unwrap_or_default();
    let entry = |head: u64| HeadEntry {
        head,
        address: seen.nodes.get(&head).cloned().unwrap_or_default(),
        claimed: true,
        ..Default::default()
    };
    voters.into_iter().map(entry).collect()
}

fn members(running: &Running, table: &proto::HeadTable) -> Vec<HeadEntry> {
    if table.members.is_empty() { founders(running) } else { table.members.clone() }
}

impl Service {
    async fn heads_reply(&self, request: proto::HeadsRequest) -> proto::HeadsReply {
        let refuse = |refused| proto::HeadsReply { refused, ..Default::default() };
        let running = match self.running(request.cluster) {
            Ok(running) => running,
            Err(why) => return refuse(why),
        };
        if request.fresh && running.root().read_index().await.is_err() {
            return proto::HeadsReply { elsewhere: elsewhere(running.root()), ..Default::default() };
        }
        let table = local_table(running);
        proto::HeadsReply {
            cluster: running.identity.cluster,
            members: members(running, &table),
            table: Some(table),
            waiting: running.notes.all(),
            level: running.root().replica.with(|state| state.cluster.level().0),
            ..Default::default()
        }
    }

    async fn change_reply(&self, request: proto::ChangeHeadsRequest) -> proto::ChangeHeadsReply {
        let refuse = |refused| proto::ChangeHeadsReply { refused, ..Default::default() };
        let busy = |busy| proto::ChangeHeadsReply { busy, ..Default::default() };
        let running = match self.running(request.cluster) {
            Ok(running) => running,
            Err(why) if self.starting() => return busy(why),
            Err(why) => return refuse(why),
        };
        match running.root().read_index().await {
            Ok(()) => {}
            Err(NotDone::NotLeader(_)) => {
                let elsewhere = elsewhere(running.root());
                return proto::ChangeHeadsReply { elsewhere, ..Default::default() };
            }
            Err(other) => return busy(said(other)),
        }
        let op = if request.drain != 0 {
            let founders = founders(running);
            Op::Drain(proto::DrainHead { head: request.drain, undo: request.undo, founders })
        } else {
            match check_change(running, &request) {
                Ok(Change::Needed) => {}
                Ok(Change::Already(head)) => {
                    return proto::ChangeHeadsReply { finished: true, head, ..Default::default() };
                }
                Err(why) => return refuse(why),
            }
            Op::Start(proto::StartHeadPlan {
                request: request.request,
                founders: founders(running),
                add: request.add,
                remove: request.remove,
            })
        };
        match driver::propose(running, op).await {
            Ok(outcome) if outcome.refused.is_empty() => proto::ChangeHeadsReply {
                head: outcome.head,
                finished: outcome.finished,
                ..Default::default()
            },
            Ok(outcome) => refuse(outcome.refused),
            Err(NotDone::NotLeader(_)) => {
                proto::ChangeHeadsReply { elsewhere: elsewhere(running.root()), ..Default::default() }
            }
            Err(other) => busy(said(other)),
        }
    }

    /// A process without an identity asks who it is.
    async fn join_reply(&self, request: proto::JoinRequest) -> proto::JoinReply {
        let wait = |wait: String| proto::JoinReply { wait, ..Default::default() };
        let Ok(running) = self.running(0) else { return wait("this head is still starting".into()) };
        match running.root().read_index().await {
            Ok(()) => {}
            Err(NotDone::NotLeader(_)) => {
                return proto::JoinReply { elsewhere: elsewhere(running.root()), ..Default::default() };
            }
            Err(other) => return wait(said(other)),
        }
        let identity = &running.identity;
        let table = local_table(running);
        let members = members(running, &table);
        let Some(entry) = members.iter().find(|entry| entry.address == request.address) else {
            return wait(format!(
                "cluster {:016x} waits for `mobula head add {}`",
                identity.cluster, request.address
            ));
        };
        if entry.claimed && (entry.nonce == 0 || entry.nonce != request.nonce) {
            if request.repair {
                return wait(take_back(running, entry, request.nonce).await);
            }
            let (emptied, cluster, head) = (true, identity.cluster, entry.head);
            return proto::JoinReply { emptied, cluster, head, ..Default::default() };
        }
        let (level, program) = running.root().replica.with(|state| state.cluster.level());
        if level > request.newest.max(1) {
            let (cluster, shards) = (identity.cluster, identity.shards);
            return proto::JoinReply { cluster, shards, level, program, ..Default::default() };
        }
        let (head, address, nonce) = (entry.head, request.address, request.nonce);
        match driver::propose(running, Op::Claim(proto::ClaimHead { head, address, nonce })).await {
            Ok(outcome) if outcome.refused.is_empty() => proto::JoinReply {
                head,
                cluster: identity.cluster,
                shards: identity.shards,
                members: members.into_iter().map(|entry| entry.address).collect(),
                level,
                program,
                ..Default::default()
            },
            Ok(outcome) => wait(outcome.refused),
            Err(other) => wait(said(other)),
        }
    }

    async fn move_reply(&self, request: proto::MoveLeaderRequest) -> proto::MoveLeaderReply {
        let refuse = |refused| proto::MoveLeaderReply { refused, ..Default::default() };
        let group = match self.shard(request.cluster, request.shard) {
            Ok((_, group)) => group.clone(),
            Err(why) => return refuse(why),
        };
        let leads = || proto::MoveLeaderReply { leads: true, ..Default::default() };
        let leadership = group.leadership();
        if leadership.leader.as_ref().is_some_and(|leader| leader.head == request.head) {
            return leads();
        }
        if !leadership.here {
            return proto::MoveLeaderReply { elsewhere: elsewhere(&group), ..Default::default() };
        }
        let seen = group.member_view().seen;
        let head = request.head;
        if !seen.configs.iter().all(|voters| voters.contains(&head)) {
            return refuse(format!("head {head} is no voting member of shard {}", request.shard));
        }
        if !seen.answering.contains(&head) {
            return refuse(format!("head {head} does not answer: start it first"));
        }
        if !seen.caught_up.contains(&head) {
            let busy = format!("head {head} is behind: its log must catch up first");
            return proto::MoveLeaderReply { busy, ..Default::default() };
        }
        let until = Instant::now() + HAND_OVER;
        if let Err(why) = group.hand_over(head, proto::EventCause::CauseOperator).await {
            return refuse(why);
        }
        while Instant::now() < until {
            tokio::time::sleep(LOOK).await;
            let now = group.leadership();
            if now.term > leadership.term && now.leader.is_some_and(|leader| leader.head == head) {
                return leads();
            }
        }
        let busy = format!("head {head} did not take over within {HAND_OVER:?}");
        proto::MoveLeaderReply { busy, ..Default::default() }
    }
}

/// The process at a member's address has lost what that member knew. It is taken back under a new id,
/// as an operator would with `head replace`: one at a time, while a majority of the others answers.
/// What it has to wait for.
async fn take_back(running: &Running, lost: &HeadEntry, nonce: u64) -> String {
    let (head, add) = (lost.head, lost.address.clone());
    if running.root().member_view().seen.answering.contains(&head) {
        return format!("head {head} at {add} still answers: only one process may be that head");
    }
    // Of the number that is asked with: the same request as often as it asks, another one next time.
    let request = mobula_base::ids::hash64(&[b"repair", &nonce.to_le_bytes()]).max(1);
    let change = proto::ChangeHeadsRequest { request, add: add.clone(), remove: head, ..Default::default() };
    if let Err(why) = check_change(running, &change) {
        return why;
    }
    let op = Op::Start(proto::StartHeadPlan { request, founders: founders(running), add, remove: head });
    match driver::propose(running, op).await {
        Ok(outcome) if outcome.refused.is_empty() => {
            tracing::warn!(
                head,
                new = outcome.head,
                address = lost.address,
                "taking a head without its disk back"
            );
            format!("head {head} is being replaced by head {} at the same address", outcome.head)
        }
        Ok(outcome) => outcome.refused,
        Err(other) => said(other),
    }
}

/// What a request for a change means here and now.
enum Change {
    /// It has to be made, or answered as it was before.
    Needed,
    /// It is so already; the id of the head that it names.
    Already(u64),
}

/// Whether a change has to be made, and can be.
fn check_change(running: &Running, request: &proto::ChangeHeadsRequest) -> Result<Change, String> {
    let table = local_table(running);
    let done = table.done.iter().map(|done| done.request);
    if done.chain(table.plan.iter().map(|plan| plan.request)).any(|known| known == request.request) {
        return Ok(Change::Needed);
    }
    let members = members(running, &table);
    let (add, remove) = (request.add.as_str(), request.remove);
    let is_member = members.iter().any(|entry| entry.head == remove);
    let ever_given = table.last_id.max(members.iter().map(|entry| entry.head).max().unwrap_or(0));
    let idle = || if table.plan.is_none() { Ok(()) } else { Err(under_way(&table)) };
    if add.is_empty() && remove == 0 {
        return Err("the request changes nothing".into());
    }
    if let Some(there) = members.iter().find(|entry| entry.address == add)
        && !is_member
    {
        idle()?;
        return Ok(Change::Already(there.head));
    }
    if remove == 0 {
        return Ok(Change::Needed);
    }
    if !is_member {
        if add.is_empty() && remove <= ever_given {
            idle()?;
            return Ok(Change::Already(remove));
        }
        return Err(format!("head {remove} is no member: `mobula head list` shows who is"));
    }
    let seen = running.root().member_view().seen;
    let left: Vec<u64> = members.iter().map(|entry| entry.head).filter(|head| *head != remove).collect();
    let answer = left.iter().filter(|head| seen.answering.contains(head)).count();
    if answer > left.len() / 2 || left.is_empty() {
        return Ok(Change::Needed);
    }
    Err(format!(
        "without head {remove} only {answer} of {} heads would answer, no majority: start one of the others \
         again first",
        left.len()
    ))
}

fn under_way(table: &proto::HeadTable) -> String {
    let plan = table.plan.as_ref().map(crate::core::heads::say).unwrap_or_default();
    format!("another change of the heads is under way ({plan}): wait for its end")
}

/// How the shards stand, as this head has them.
pub fn shard_infos(running: &Running) -> Vec<proto::ShardInfo> {
    let info = |group: &Arc<Group>| {
        let (leadership, progress, view) = (group.leadership(), group.progress(), group.member_view());
        let voters: Vec<u64> = view.seen.configs.iter().flatten().copied().collect();
        let learners = view.seen.nodes.keys().filter(|head| !voters.contains(head)).copied().collect();
        let mut voters = voters;
        voters.sort_unstable();
        voters.dedup();
        proto::ShardInfo {
            shard: group.shard,
            term: leadership.term,
            leader: leadership.leader.map_or(0, |leader| leader.head),
            here: leadership.here,
            last_log: progress.last_log,
            applied: progress.applied,
            voters,
            learners,
            joint: view.seen.configs.len() > 1,
            settled: view.settled,
            replicas: if leadership.here { group.replica_progress() } else { Vec::new() },
            waiting: running.notes.waiting(group.shard),
            avoids: running.soft[group.shard as usize].avoids(),
        }
    };
    running.groups.iter().map(info).collect()
}

/// Heads that may lead: members that are not drained; `None` before the first change.
pub fn may_lead(running: &Running) -> Option<Vec<u64>> {
    let table = local_table(running);
    let heads: Vec<u64> = table.members.iter().filter(|m| !m.drained).map(|m| m.head).collect();
    (!wanted(&table).is_empty()).then_some(heads)
}

#[tonic::async_trait]
impl Admin for Service {
    async fn heads(
        &self,
        request: Request<proto::HeadsRequest>,
    ) -> Result<Response<proto::HeadsReply>, Status> {
        Ok(Response::new(self.heads_reply(request.into_inner()).await))
    }

    async fn change_heads(
        &self,
        request: Request<proto::ChangeHeadsRequest>,
    ) -> Result<Response<proto::ChangeHeadsReply>, Status> {
        Ok(Response::new(self.change_reply(request.into_inner()).await))
    }

    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinReply>, Status> {
        Ok(Response::new(self.join_reply(request.into_inner()).await))
    }

    async fn shards(
        &self,
        request: Request<proto::ShardsRequest>,
    ) -> Result<Response<proto::ShardsReply>, Status> {
        Ok(Response::new(match self.running(request.into_inner().cluster) {
            Ok(running) => proto::ShardsReply {
                head: running.identity.head,
                shards: shard_infos(running),
                unix_ms: unix_ms(),
                ..Default::default()
            },
            Err(refused) => proto::ShardsReply { refused, ..Default::default() },
        }))
    }

    async fn move_leader(
        &self,
        request: Request<proto::MoveLeaderRequest>,
    ) -> Result<Response<proto::MoveLeaderReply>, Status> {
        Ok(Response::new(self.move_reply(request.into_inner()).await))
    }

    async fn digest(
        &self,
        request: Request<proto::DigestRequest>,
    ) -> Result<Response<proto::DigestReply>, Status> {
        let request = request.into_inner();
        Ok(Response::new(match self.shard(request.cluster, request.shard) {
            Ok((_, group)) => match group.replica.checkpoint(request.id) {
                Some((index, digest)) => {
                    proto::DigestReply { found: true, index, digest, ..Default::default() }
                }
                None => proto::DigestReply::default(),
            },
            Err(refused) => proto::DigestReply { refused, ..Default::default() },
        }))
    }

    async fn events(
        &self,
        request: Request<proto::EventsRequest>,
    ) -> Result<Response<proto::EventsReply>, Status> {
        Ok(Response::new(self.events_reply(request.into_inner()).await))
    }

    async fn slots(
        &self,
        request: Request<proto::SlotsRequest>,
    ) -> Result<Response<proto::SlotsReply>, Status> {
        Ok(Response::new(self.slots_reply(request.into_inner()).await))
    }

    async fn move_slots(
        &self,
        request: Request<proto::MoveSlotsRequest>,
    ) -> Result<Response<proto::MoveSlotsReply>, Status> {
        Ok(Response::new(self.move_slots_reply(request.into_inner()).await))
    }

    type DumpStream = dump::Parts;

    async fn dump(&self, request: Request<proto::DumpRequest>) -> Result<Response<dump::Parts>, Status> {
        Ok(Response::new(dump::send(self.clone(), request.into_inner())))
    }
}
