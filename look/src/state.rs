//! The whole cluster at one moment: verdict, heads by shards, nodes, jobs, tasks by function, and how much has run.

use crate::gather::{Answer, Look, silent};
use crate::names::Names;
use crate::rows::{self, JobRow, Listed, NodeRow, WorkerRow};
use crate::verdict::{self, Observed, Verdict};
use mobula_gcs::{Error, clock};
use mobula_proto::{LookReply, LookRequest, StatusReply};
use serde::Serialize;
use std::collections::BTreeMap;

/// A head.
#[derive(Clone, Debug, Serialize)]
pub struct HeadState {
    pub address: String,
    /// Its id, if it answers.
    pub head: Option<u64>,
    pub error: Option<String>,
    pub resident_bytes: u64,
    pub syncs: u64,
}

/// A shard at one head.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicaState {
    pub address: String,
    /// `leader`, `follower`, `stopped`, `down`.
    pub role: &'static str,
    pub applied: u64,
    /// Entries that the newest replica has applied and this one has not.
    pub behind: u64,
}

/// A shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardState {
    pub shard: u32,
    pub term: u64,
    pub leader: Option<u64>,
    pub applied: u64,
    pub tasks: u64,
    /// By head, in the order of the heads.
    pub replicas: Vec<ReplicaState>,
}

/// Tasks of one function, by state.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FunctionState {
    pub job: String,
    pub name: String,
    pub states: BTreeMap<String, u64>,
}

/// How much workers of a node have ended so far.
#[derive(Clone, Debug, Serialize)]
pub struct NodeTotals {
    pub node: String,
    pub incarnation: u64,
    pub ended: u64,
    pub again: u64,
    pub failed: u64,
    pub resident_bytes: u64,
}

/// Everything at one moment.
#[derive(Debug, Serialize)]
pub struct State {
    pub now_ms: u64,
    pub cluster: String,
    pub verdict: Verdict,
    /// The verdict in one line.
    pub says: String,
    pub heads: Vec<HeadState>,
    pub shards: Vec<ShardState>,
    pub nodes: Vec<NodeRow>,
    pub jobs: Vec<JobRow>,
    pub workers: Vec<WorkerRow>,
    pub functions: Vec<FunctionState>,
    /// Some node keeps more tasks than it counts.
    pub more: bool,
    pub totals: Vec<NodeTotals>,
    pub silent: Vec<String>,
}

impl Look {
    /// The state. What does not answer is said to be silent; there always is one.
    pub async fn state(&self) -> State {
        let observed = self.heads().await;
        let verdict = verdict::judge(&observed);
        let view = verdict::newest_view(&observed).cloned().unwrap_or_default();
        let asked = LookRequest { workers: true, counts: true, ..LookRequest::default() };
        let answers = self.nodes(&view, &asked).await;
        let names = Names::of(&view);
        let now_ms = clock::unix_ms();
        State {
            now_ms,
            cluster: format!("{:016x}", view.cluster),
            says: verdict.to_string(),
            heads: observed.iter().map(head).collect(),
            shards: (0..view.shards).map(|shard| shard_state(shard, &observed)).collect(),
            nodes: rows::nodes(&view),
            jobs: rows::jobs(&view),
            workers: rows::workers(&answers, &names, now_ms * 1000),
            functions: functions(&answers, &names),
            more: answers.iter().flat_map(|answer| &answer.reply).any(|reply| reply.more),
            totals: answers.iter().filter_map(totals).collect(),
            silent: silent(&answers),
            verdict,
        }
    }

    /// How many tasks of each function stand where; there are more if some node keeps more than it counts.
    ///
    /// # Errors
    /// No head answers.
    pub async fn summary(&self) -> Result<Listed<FunctionState>, Error> {
        let view = self.view().await?;
        let answers = self.nodes(&view, &LookRequest { counts: true, ..LookRequest::default() }).await;
        Ok(rows::whole(&answers, functions(&answers, &Names::of(&view))))
    }
}

fn head(observed: &Observed) -> HeadState {
    let reply = observed.reply.as_ref();
    HeadState {
        address: observed.address.clone(),
        head: reply.ok().map(|reply| reply.head),
        error: reply.err().cloned(),
        resident_bytes: reply.map_or(0, |reply| reply.resident_bytes),
        syncs: reply.map_or(0, |reply| reply.syncs),
    }
}

fn shard_state(shard: u32, observed: &[Observed]) -> ShardState {
    let up: Vec<&StatusReply> = observed.iter().filter_map(|head| head.reply.as_ref().ok()).collect();
    let all = || up.iter().filter_map(|reply| reply.shards.iter().find(|s| s.shard == shard));
    let (leader, newest) = (verdict::leader(shard, &up), all().map(|s| s.applied).max().unwrap_or(0));
    let replica = |head: &Observed| {
        let own = head
            .reply
            .as_ref()
            .ok()
            .and_then(|reply| Some((reply.head, reply.shards.iter().find(|s| s.shard == shard)?)));
        let role = match own {
            None => "down",
            Some((_, own)) if !own.stopped.is_empty() => "stopped",
            Some((id, _)) if Some(id) == leader => "leader",
            Some(_) => "follower",
        };
        let applied = own.map_or(0, |(_, own)| own.applied);
        ReplicaState { address: head.address.clone(), role, applied, behind: newest.saturating_sub(applied) }
    };
    ShardState {
        shard,
        term: all().map(|s| s.term).max().unwrap_or(0),
        leader,
        applied: newest,
        tasks: all().map(|s| s.tasks).max().unwrap_or(0),
        replicas: observed.iter().map(replica).collect(),
    }
}

fn functions(answers: &[Answer<LookReply>], names: &Names) -> Vec<FunctionState> {
    let mut all: BTreeMap<(u64, u64), FunctionState> = BTreeMap::new();
    for count in answers.iter().flat_map(|answer| &answer.reply).flat_map(|reply| &reply.counts) {
        let state = all.entry((count.job, count.function)).or_insert_with(|| FunctionState {
            job: crate::names::job(count.job),
            name: names.function(count.job, count.function),
            states: BTreeMap::new(),
        });
        *state.states.entry(count.state.clone()).or_default() += count.tasks;
    }
    all.into_values().collect()
}

fn totals(answer: &Answer<LookReply>) -> Option<NodeTotals> {
    let reply = answer.reply.as_ref().ok()?;
    Some(NodeTotals {
        node: answer.node.name.clone(),
        incarnation: answer.node.incarnation,
        ended: reply.ended,
        again: reply.again,
        failed: reply.failed,
        resident_bytes: reply.resident_bytes,
    })
}
