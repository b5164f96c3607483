//! Taking the steps. Each shard's leader brings its own shard there; shard 0's leader says when all
//! shards have arrived, and only then may the next change begin.
//!
//! A step is taken on top of the members that it was decided for, after asking shard 0 whether the
//! table still stands (a fresh read). A step that is late all the same is undone by the next look:
//! the table is compared with what there is for as long as a cluster lives.

use super::{Step, next_step};
use crate::core::heads;
use crate::raft::failover;
use crate::raft::group::Group;
use crate::server::{Running, Site};
use futures::future::join_all;
use mobula_net::grpc::{self, Channel};
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use prost::Message;
use proto::admin_client::AdminClient;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Pause between looks.
const TICK: Duration = Duration::from_millis(100);
/// One question to another head may take this long.
const QUESTION: Duration = Duration::from_secs(1);
/// Pause between questions whether this head still is a member, while there is reason to doubt it.
const MEMBER_TICK: Duration = Duration::from_secs(1);
/// Without reason it asks only every so many times: what it follows may have gone on without it.
const MEMBER_ROUNDS: u32 = 5;

/// What a head remembers of changes in memory.
#[derive(Default)]
pub struct Notes {
    /// What each shard that this head leads waits for.
    waiting: Mutex<BTreeMap<u32, String>>,
    /// On shard 0's leader: what all shards wait for.
    all: Mutex<Vec<String>>,
    /// Set when this head was removed from the cluster.
    pub removed: OnceLock<()>,
}

impl Notes {
    /// What `shard` waits for, as this head knows; empty for nothing.
    pub fn waiting(&self, shard: u32) -> String {
        self.waiting.lock().expect("nothing panics under this lock").get(&shard).cloned().unwrap_or_default()
    }

    /// What the change waits for on any shard.
    pub fn all(&self) -> Vec<String> {
        self.all.lock().expect("nothing panics under this lock").clone()
    }

    fn note(&self, shard: u32, why: Option<String>) {
        let mut waiting = self.waiting.lock().expect("nothing panics under this lock");
        match why {
            Some(why) => {
                if waiting.insert(shard, why.clone()).as_ref() != Some(&why) {
                    tracing::info!(shard, "change of the heads: {why}");
                }
            }
            None => _ = waiting.remove(&shard),
        }
    }
}

/// The stub of a head's operators' service. A channel per question: one that failed must not be
/// waited for.
pub fn ask(net: &SharedNet, address: &str) -> Option<AdminClient<Channel>> {
    Some(AdminClient::new(grpc::channel(net.clone(), address).ok()?))
}

/// Who the heads are to be, from a table; empty before the first change.
pub fn wanted(table: &proto::HeadTable) -> BTreeMap<u64, String> {
    table.members.iter().map(|entry| (entry.head, entry.address.clone())).collect()
}

/// The table as the local replica of shard 0 has it.
pub fn local_table(running: &Running) -> proto::HeadTable {
    running.root().replica.with(|state| state.cluster.heads.table().clone())
}

/// The table as fresh as the call.
async fn fresh_table(running: &Running, net: &SharedNet) -> Option<proto::HeadTable> {
    if running.root().leadership().here {
        running.root().read_index().await.ok()?;
        return Some(local_table(running));
    }
    let leader = running.root().leadership().leader?;
    let request = proto::HeadsRequest { cluster: running.identity.cluster, fresh: true };
    let mut client = ask(net, &leader.address)?;
    let asked = tokio::time::timeout(QUESTION, client.heads(request)).await;
    let reply = asked.ok()?.ok()?.into_inner();
    (reply.refused.is_empty() && reply.elsewhere.is_none()).then_some(())?;
    reply.table
}

/// On the leader of `shard`: brings its members to those of the table, step by step. Never ends.
pub async fn reconcile(running: Arc<Running>, net: SharedNet, shard: u32) {
    let group = running.groups[shard as usize].clone();
    loop {
        tokio::time::sleep(TICK).await;
        if !group.leadership().here {
            running.notes.note(shard, None);
            continue;
        }
        let why = look(&running, &net, &group).await;
        running.notes.note(shard, why);
    }
}

/// One look and at most one step; what is waited for.
async fn look(running: &Running, net: &SharedNet, group: &Group) -> Option<String> {
    // Cheap, and nearly always the end of it.
    if next_step(&wanted(&local_table(running)), &group.member_view().seen) == Step::Settled {
        return None;
    }
    let view = group.member_view();
    let Some(table) = fresh_table(running, net).await else {
        return Some("the leader of shard 0 does not answer".into());
    };
    let step = next_step(&wanted(&table), &view.seen);
    if let Step::Wait(why) = step {
        return Some(why);
    }
    if !matches!(step, Step::Settled) {
        tracing::info!(shard = group.shard, ?step, "change of the heads");
    }
    group.take(step, view.at).await.err()
}

/// On shard 0's leader: ends the plan when all shards have arrived. Never ends.
pub async fn conclude(running: Arc<Running>, net: SharedNet) {
    loop {
        tokio::time::sleep(TICK).await;
        let table = local_table(&running);
        let Some(plan) = table.plan.as_ref().filter(|_| running.root().leadership().here) else {
            running.notes.all.lock().expect("nothing panics under this lock").clear();
            continue;
        };
        let left = unsettled(&running, &net, &table).await;
        let done = left.is_empty();
        *running.notes.all.lock().expect("nothing panics under this lock") = left;
        if done {
            let op = proto::head_command::Op::End(proto::EndHeadPlan { request: plan.request });
            if propose(&running, op).await.is_ok() {
                tracing::info!("change of the heads is done: {}", heads::say(plan));
            }
        }
    }
}

/// Proposes a change of the table.
///
/// # Errors
/// It was not done, or nobody knows.
pub async fn propose(
    running: &Running,
    op: proto::head_command::Op,
) -> Result<proto::HeadOutcome, crate::raft::group::NotDone> {
    use crate::raft::group::NotDone;
    let op = proto::command::Op::Heads(proto::HeadCommand { op: Some(op) });
    let command = proto::Command::from(op).encode_to_vec();
    let reply = running.root().propose(command.into()).await?;
    match proto::Reply::decode(reply).ok().and_then(|reply| reply.reply) {
        Some(proto::reply::Reply::Heads(outcome)) => Ok(outcome),
        _ => Err(NotDone::Unknown("an answer this build does not understand".into())),
    }
}

/// What each head says of its shards.
pub async fn all_shards(running: &Running, net: &SharedNet, heads: &[String]) -> Vec<proto::ShardsReply> {
    let request = proto::ShardsRequest { cluster: running.identity.cluster };
    let asked = heads.iter().map(|address| async {
        let mut client = ask(net, address)?;
        let reply = tokio::time::timeout(QUESTION, client.shards(request)).await;
        Some(reply.ok()?.ok()?.into_inner())
    });
    join_all(asked).await.into_iter().flatten().filter(|reply| reply.refused.is_empty()).collect()
}

/// The shards that have not arrived, each with the reason.
async fn unsettled(running: &Running, net: &SharedNet, table: &proto::HeadTable) -> Vec<String> {
    let mut addresses: BTreeSet<String> = wanted(table).into_values().collect();
    addresses.extend(table.plan.iter().flat_map(|plan| &plan.remove).map(|old| old.address.clone()));
    let replies = all_shards(running, net, &addresses.into_iter().collect::<Vec<_>>()).await;
    let target: BTreeSet<u64> = wanted(table).into_keys().collect();
    let mut left = Vec::new();
    for shard in 0..running.identity.shards {
        let leaders = replies.iter().flat_map(|reply| &reply.shards).filter(|s| s.shard == shard && s.here);
        let Some(leader) = leaders.max_by_key(|info| info.term) else {
            left.push(format!("shard {shard}: no leader"));
            continue;
        };
        let voters: BTreeSet<u64> = leader.voters.iter().copied().collect();
        if !leader.settled || voters != target || !leader.learners.is_empty() {
            let why = if leader.waiting.is_empty() { "under way" } else { &leader.waiting };
            left.push(format!("shard {shard}: {why}"));
        }
    }
    left
}

/// Watches every other member for its death, whoever they are by now (R15). Never ends.
pub async fn follow(site: Arc<Site>, running: Arc<Running>) {
    let mut watched: BTreeMap<(u64, String), Watch> = BTreeMap::new();
    loop {
        let me = running.identity.head;
        let mut now: BTreeSet<(u64, String)> = (running.groups.iter().flat_map(|group| group.heads()))
            .map(|head| (head.head, head.address))
            .filter(|(head, _)| *head != me)
            .collect();
        if now.is_empty() && running.root().heads().is_empty() {
            // Not formed yet.
            now = (1..).zip(site.founders.iter().cloned()).filter(|(_, at)| *at != site.advertise).collect();
        }
        watched.retain(|member, _| now.contains(member));
        for (head, address) in now {
            let at = address.clone();
            watched.entry((head, address)).or_insert_with(|| {
                let watcher = failover::Watcher {
                    net: site.net.clone(),
                    me,
                    groups: running.groups.clone(),
                    peers: running.peers.clone(),
                    alarms: running.alarms.clone(),
                };
                Watch(tokio::spawn(watcher.watch(at, head)))
            });
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Ends with its owner.
struct Watch(tokio::task::JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Notes when this head is no member any more: whoever is removed is not told by consensus. Never
/// ends.
pub async fn notice_removal(site: Arc<Site>, running: Arc<Running>) {
    let me = running.identity.head;
    let gone = |table: &proto::HeadTable| {
        table.plan.is_none() && !table.members.is_empty() && table.members.iter().all(|m| m.head != me)
    };
    let mut round = 0u32;
    loop {
        tokio::time::sleep(MEMBER_TICK).await;
        let ours = local_table(&running);
        if gone(&ours) && ours.version > 0 {
            break;
        }
        let on_the_way_out = ours.members.iter().all(|member| member.head != me) && ours.version > 0;
        let leaderless = running.groups.iter().any(|group| group.leadership().leader.is_none());
        round += 1;
        if !on_the_way_out && !leaderless && !round.is_multiple_of(MEMBER_ROUNDS) {
            continue;
        }
        let mut others: BTreeSet<String> = wanted(&ours).into_values().collect();
        others.extend(running.root().heads().into_iter().map(|head| head.address));
        others.remove(&site.advertise);
        let request = proto::HeadsRequest { cluster: running.identity.cluster, fresh: false };
        let asked = others.iter().map(|address| async {
            let mut client = ask(&site.net, address)?;
            let reply = tokio::time::timeout(QUESTION, client.heads(request)).await;
            Some(reply.ok()?.ok()?.into_inner())
        });
        let tables = join_all(asked).await.into_iter().flatten().filter_map(|reply| reply.table);
        // A later table than ours does not name us: ids are never given again.
        if tables.into_iter().any(|table| table.version > ours.version && gone(&table)) {
            break;
        }
    }
    tracing::warn!(head = me, "this head was removed from its cluster");
    running.notes.removed.set(()).ok();
}
