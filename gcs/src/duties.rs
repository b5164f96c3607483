//! What a head does unasked: it fences the dead, watches the living, names the cluster, moves
//! leaderships where they belong, forgets jobs that are over, and lets old segments go.

use crate::level;
use crate::membership::driver;
use crate::raft::group::{Group, Leadership};
use crate::server::admin::may_lead;
use crate::server::{Running, Site};
use bytes::Bytes;
use mobula_base::ids::SLOTS;
use mobula_net::grpc;
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use prost::Message;
use proto::EventCause;
use proto::command::Op;
use proto::control_store_client::ControlStoreClient;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pause between looks.
const TICK: Duration = Duration::from_millis(100);
/// Fences proposed between two looks.
const MAX_FENCES: usize = 64;
/// Pause between looks at old segments.
const RECYCLE_TICK: Duration = Duration::from_secs(1);
/// A leader elsewhere must answer within this.
const LEADER_DEADLINE: Duration = Duration::from_secs(1);
/// Pause between looks at jobs that have ended.
const FORGET_TICK: Duration = Duration::from_secs(1);
/// At most one leadership is moved in this time.
const TRANSFER_PAUSE: Duration = Duration::from_secs(1);

/// Waits for a change, at most for a tick. What has stopped for good says so at once, every time: that is
/// no reason to look without a pause.
pub async fn next_look<E>(changed: impl Future<Output = Result<(), E>>) {
    if let Ok(Err(_)) = tokio::time::timeout(TICK, changed).await {
        tokio::time::sleep(TICK).await;
    }
}

/// Proposes at the leader of a shard, wherever it is; what it answers in time.
pub async fn propose_at(
    net: &SharedNet,
    leader: &str,
    request: proto::ProposeRequest,
) -> Option<proto::ProposeReply> {
    let mut leader = ControlStoreClient::new(grpc::channel(net.clone(), leader).ok()?);
    let asked = tokio::time::timeout(LEADER_DEADLINE, leader.propose(request)).await;
    Some(asked.ok()?.ok()?.into_inner())
}

async fn propose(group: &Group, op: Op) {
    let command = proto::Command::from(op).encode_to_vec();
    // Whatever the outcome: the next look decides anew.
    group.propose(command.into()).await.ok();
}

/// The leader of each shard copies shard 0's deaths into its own log (R10). Never ends.
pub async fn fence(running: Arc<Running>, shard: u32) {
    let group = running.groups[shard as usize].clone();
    let mut root = running.root().replica.applied();
    let mut seen = (0, 0);
    loop {
        let leadership = group.leadership();
        let members = running.members();
        if leadership.here && seen != (leadership.term, members.version) {
            let missing: Vec<u64> = group.replica.with(|state| {
                members
                    .dead
                    .iter()
                    .filter(|dead| !state.is_fenced(**dead))
                    .take(MAX_FENCES)
                    .copied()
                    .collect()
            });
            if missing.is_empty() {
                seen = (leadership.term, members.version);
                running.soft[shard as usize].holdings().forget_dead(&members.dead);
            }
            for incarnation in missing {
                propose(&group, Op::Fence(proto::Fence { incarnation })).await;
            }
        }
        // Shard 0 has changed, or it is time to see whether this head leads now.
        next_look(root.changed()).await;
    }
}

/// The leader of shard 0 names the cluster and declares deaths. Never ends.
pub async fn watch_nodes(site: Arc<Site>, running: Arc<Running>, silence: Duration) {
    let every = TICK.min(silence / 5);
    loop {
        tokio::time::sleep(every).await;
        let leadership = running.root().leadership();
        if !leadership.here {
            running.forget_liveness();
            continue;
        }
        if running.root().replica.with(|state| state.cluster.id == 0) {
            let (cluster, shards) = (running.identity.cluster, running.identity.shards);
            propose(running.root(), Op::Init(proto::InitCluster { cluster, shards, slots: SLOTS })).await;
            // A new cluster writes what its heads read from its first task on.
            level::raise(&site, &running).await;
        }
        running.check_liveness(leadership.term, every, silence).await;
    }
}

/// Moves each leadership to the head it is meant for, once things are stable: shard s belongs with
/// head 1 + s mod n, so that the work is spread. Never ends.
pub async fn spread(running: Arc<Running>, net: SharedNet, stable_for: Duration) {
    let mut since: Vec<(Leadership, Instant)> =
        running.groups.iter().map(|group| (group.leadership(), Instant::now())).collect();
    loop {
        tokio::time::sleep(TICK).await;
        for (group, (before, at)) in running.groups.iter().zip(&mut since) {
            let now = group.leadership();
            if now != *before {
                (*before, *at) = (now, Instant::now());
                continue;
            }
            let heads = leaders_to_be(&running, group);
            // At formation one head leads everything, and there is nothing to disturb yet.
            let forming = now.term <= 1;
            if !now.here || heads.is_empty() || (at.elapsed() < stable_for && !forming) {
                continue;
            }
            let wanted = heads[group.shard as usize % heads.len()];
            if wanted == running.identity.head || !group.progress().caught_up.contains(&wanted) {
                continue;
            }
            *at = Instant::now();
            if !answers(group, wanted) || avoids(&running, &net, group, wanted).await {
                continue;
            }
            tracing::info!(shard = group.shard, to = wanted, "moving leadership to where it belongs");
            let is_drained = !heads.contains(&running.identity.head);
            let cause = if is_drained { EventCause::CauseDrain } else { EventCause::CauseBalance };
            group.hand_over(wanted, cause).await.ok();
            if !forming {
                tokio::time::sleep(TRANSFER_PAUSE.min(stable_for)).await;
            }
        }
    }
}

/// The voters of a shard that may lead it: those that are to stay and are not drained, sorted.
fn leaders_to_be(running: &Running, group: &Group) -> Vec<u64> {
    let configs = group.member_view().seen.configs;
    let voters = configs.last().into_iter().flatten().copied();
    match may_lead(running) {
        None => voters.collect(),
        Some(allowed) => voters.filter(|head| allowed.contains(head)).collect(),
    }
}

/// Whether `head` does not want this shard: a member could not be heard from there (R9).
async fn avoids(running: &Running, net: &SharedNet, group: &Group, head: u64) -> bool {
    let address = group.heads().into_iter().find(|known| known.head == head).map(|known| known.address);
    let replies = driver::all_shards(running, net, address.as_slice()).await;
    replies.iter().flat_map(|reply| &reply.shards).any(|info| info.shard == group.shard && info.avoids)
}

/// Whether `head` has acknowledged a heartbeat of ours lately.
fn answers(group: &Group, head: u64) -> bool {
    group.acknowledged_within(head, Duration::from_millis(1000))
}

/// A replica that has flushed nothing since it started is not trusted with an office: openraft takes
/// only what was flushed in this life. In an idle shard that could last for ever, so each replica asks
/// its leader for an empty entry. Ends when something was flushed.
pub async fn wake(running: Arc<Running>, net: SharedNet, shard: u32) {
    let group = running.groups[shard as usize].clone();
    let flushed = group.raft.watch_log_progress();
    let request = proto::ProposeRequest { cluster: running.identity.cluster, shard, command: Bytes::new() };
    while flushed.get().is_none_or(|point| point.last_log_id.is_none()) {
        tokio::time::sleep(TICK).await;
        let leadership = group.leadership();
        let Some(leader) = leadership.leader.filter(|_| !leadership.here) else { continue };
        // It is refused as a request, but it is an entry: whatever the answer, the next look decides.
        propose_at(&net, &leader.address, request.clone()).await;
    }
}

/// The leader of each shard forgets the records of jobs that ended `after` ago, as far as this leader
/// knows: until then they can be looked at. Never ends.
pub async fn forget(running: Arc<Running>, shard: u32, after: Duration) {
    let group = running.groups[shard as usize].clone();
    let mut ended: BTreeMap<u64, Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(FORGET_TICK).await;
        if !group.leadership().here {
            ended.clear();
            continue;
        }
        let here = group.replica.with(|state| state.jobs());
        let over = running.root().replica.with(|state| {
            let over = |job: &u64| state.cluster.jobs.get(job).is_some_and(|job| job.ended);
            here.into_iter().filter(over).collect::<BTreeSet<u64>>()
        });
        ended.retain(|job, _| over.contains(job));
        for job in over {
            if ended.entry(job).or_insert_with(Instant::now).elapsed() >= after {
                propose(&group, Op::Forget(proto::ForgetJob { job })).await;
            }
        }
    }
}

/// Lets old entries go: those that a snapshot covers, but for the last `keep`, which spare a follower
/// that lags a little a snapshot. A shard whose old entries keep too many segments on the disk gets a
/// snapshot at once and keeps nothing below it. Never ends.
pub async fn recycle(running: Arc<Running>, keep: u64) {
    let mut asked = vec![0; running.groups.len()];
    loop {
        tokio::time::sleep(RECYCLE_TICK).await;
        let pinning = running.log.pinning();
        for (group, asked) in running.groups.iter().zip(&mut asked) {
            let pins = pinning.contains(&group.shard);
            if pins {
                group.replica.want_snapshot();
                group.raft.trigger().snapshot().await.ok();
            }
            let upto = group.snapshot_index().saturating_sub(if pins { 0 } else { keep });
            if upto > *asked && group.raft.trigger().purge_log(upto).await.is_ok() {
                *asked = upto;
            }
        }
    }
}
