//! What is left when everything but consensus and the log is taken away: a yardstick for a benchmark.
//!
//! Three replicas in one process, each with the log of a head (one for all shards, one sync per drain)
//! on a disk of its own. A message between them is a call. Applying an entry notes its id. So this
//! leaves out whatever else a head does: gRPC and sockets between processes, the encoding of messages,
//! requests and replies, sessions and streams, the tables and their snapshots, gathering many commands
//! into one entry, failover. By how much real heads on the same machine are slower is what those parts
//! cost; only gathering could make them faster. Nothing but the benchmark uses it.

use super::timing::RaftTiming;
use super::types::{Answer, LogId, Proposal, SnapshotMeta, StoredMembership, Types, Vote};
use crate::error::Error;
use crate::log::store::ShardLog;
use crate::log::{LogIdentity, LogWriter};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use mobula_base::disk::Disk;
use openraft::alias::SnapshotOf;
use openraft::errors::{
    ClientWriteError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{BasicNode, Config, EntryPayload, OptionalSend, RaftSnapshotBuilder};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// How long electing the first leaders may take.
const ELECTION: Duration = Duration::from_secs(10);
/// A proposal follows the leader to another replica so often.
const FORWARDS: u32 = 50;
/// Pause before it does, while nobody leads.
const FORWARD_AFTER: Duration = Duration::from_millis(20);

type Raft = openraft::Raft<Types, Idle>;
/// All replicas, by their ids and shards, as soon as there are all.
type Replicas = Arc<OnceLock<BTreeMap<(u64, u32), Raft>>>;

/// Three replicas of every shard in this process.
pub struct Bare {
    logs: Vec<LogWriter>,
    replicas: Replicas,
    /// Who leads each shard, as far as is known.
    leaders: Vec<AtomicU64>,
}

impl Bare {
    /// Starts one replica of each shard on each disk, and waits for leaders, which are dealt to the
    /// replicas in turn. Must be called inside [`crate::in_scope`].
    ///
    /// # Errors
    /// A disk failed, or nobody was elected.
    pub async fn start(disks: &[Arc<dyn Disk>], shards: u32, timing: &RaftTiming) -> Result<Bare, Error> {
        // There are no duties here that purge.
        let config =
            Config { max_in_snapshot_log_to_keep: timing.keep_entries, ..(*timing.config()?).clone() };
        let config = Arc::new(config);
        let (replicas, mut all, mut logs) = (Replicas::default(), BTreeMap::new(), Vec::new());
        for (id, disk) in (1..).zip(disks) {
            let (log, _) = LogWriter::open(disk.clone(), LogIdentity { cluster: 1, head: id })?;
            for shard in 0..shards {
                let entries = ShardLog::new(shard, Default::default(), disk.clone(), log.clone());
                let (dialer, idle) = (Dialer(shard, replicas.clone()), Idle::new(timing.snapshot_max_bytes));
                let raft = Raft::new(id, config.clone(), dialer, entries, idle).await;
                all.insert((id, shard), raft.map_err(|error| stopped(shard, &error))?);
            }
            logs.push(log);
        }
        let all = replicas.get_or_init(|| all);
        let members: BTreeMap<u64, BasicNode> =
            (1..).zip(disks).map(|(id, _)| (id, <_>::default())).collect();
        let mut leaders = Vec::new();
        for shard in 0..shards {
            let first = u64::from(shard) % disks.len() as u64 + 1;
            let raft = &all[&(first, shard)];
            raft.initialize(members.clone()).await.map_err(|error| stopped(shard, &error))?;
            let elected = raft.wait(Some(ELECTION)).current_leader(first, "the first leader").await;
            elected.map_err(|error| stopped(shard, &error))?;
            leaders.push(AtomicU64::new(first));
        }
        Ok(Bare { logs, replicas, leaders })
    }

    fn replicas(&self) -> &BTreeMap<(u64, u32), Raft> {
        self.replicas.get().expect("set when it was started")
    }

    /// Returns once `command` is an entry of its own that a majority has made durable and the leader has
    /// applied.
    ///
    /// # Errors
    /// The shard has stopped, or has no leader for long.
    pub async fn propose(&self, shard: u32, command: Bytes) -> Result<(), Error> {
        let leader = &self.leaders[shard as usize];
        for _ in 0..FORWARDS {
            let raft = &self.replicas()[&(leader.load(Ordering::Relaxed), shard)];
            match raft.client_write(Proposal(command.clone())).await {
                Ok(_) => return Ok(()),
                // On a disk that stalls, followers may have elected another.
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => match to.leader_id {
                    Some(to) => leader.store(to, Ordering::Relaxed),
                    None => tokio::time::sleep(FORWARD_AFTER).await,
                },
                Err(error) => return Err(stopped(shard, &error)),
            }
        }
        Err(stopped(shard, &"nobody leads"))
    }

    /// Syncs so far of the logs of all replicas.
    pub fn syncs(&self) -> u64 {
        self.logs.iter().map(LogWriter::syncs).sum()
    }

    /// Stops every replica and closes the logs.
    pub async fn stop(self) {
        for raft in self.replicas().values() {
            // One that has stopped already has said why to whoever proposed.
            raft.shutdown().await.ok();
        }
        for log in &self.logs {
            log.close().await;
        }
    }
}

fn stopped(shard: u32, why: &dyn std::fmt::Display) -> Error {
    Error::Stopped { shard, detail: why.to_string() }
}

/// Connects the replicas of one shard.
struct Dialer(u32, Replicas);

impl RaftNetworkFactory<Types> for Dialer {
    type Network = Direct;
    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Direct {
        let replica = self.1.get().and_then(|all| all.get(&(target, self.0)));
        Direct(replica.cloned().expect("a shard begins when all its replicas exist"))
    }
}

/// A call instead of a connection.
struct Direct(Raft);

fn unreachable(error: impl std::fmt::Display) -> Unreachable<Types> {
    Unreachable::from_string(error.to_string())
}

impl RaftNetworkV2<Types> for Direct {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.0.append_entries(rpc).await.map_err(|error| unreachable(error).into())
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.0.vote(rpc).await.map_err(|error| unreachable(error).into())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.0.pre_vote(rpc).await.map_err(|error| unreachable(error).into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, ()>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        self.0.install_full_snapshot(vote, snapshot).await.map_err(|error| unreachable(error).into())
    }
}

#[derive(Default)]
struct Noted {
    applied: Option<LogId>,
    membership: StoredMembership,
    /// What may be purged.
    saved: Option<SnapshotMeta>,
    /// Bytes of commands since then.
    grown: u64,
}

/// A state machine without a state. Its snapshots are empty: they let the log be purged and its segments
/// be used again, as on a head.
#[derive(Clone)]
struct Idle {
    noted: Arc<Mutex<Noted>>,
    snapshot_bytes: u64,
}

impl Idle {
    fn new(snapshot_bytes: u64) -> Self {
        Idle { noted: Arc::default(), snapshot_bytes }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().expect("nothing panics under this lock")
    }
}

impl RaftStateMachine<Types> for Idle {
    type SnapshotData = ();
    type SnapshotBuilder = Idle;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let noted = self.noted();
        Ok((noted.applied, noted.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            {
                let mut noted = self.noted();
                noted.applied = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Normal(command) => noted.grown += command.0.len() as u64,
                    EntryPayload::Membership(members) => {
                        noted.membership = StoredMembership::new(Some(entry.log_id), members);
                    }
                }
            }
            if let Some(responder) = responder {
                responder.send(Answer::default());
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Idle> {
        let due = self.noted().grown >= self.snapshot_bytes;
        (force || due).then(|| self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Idle {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> io::Result<()> {
        let mut noted = self.noted();
        noted.applied = meta.last_log_id;
        noted.membership = meta.last_membership.clone();
        noted.saved = Some(meta.clone());
        noted.grown = 0;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, ()>>> {
        Ok(self.noted().saved.clone().map(|meta| SnapshotOf::<Types, ()> { meta, snapshot: () }))
    }
}

impl RaftSnapshotBuilder<Types> for Idle {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, ()>> {
        let mut noted = self.noted();
        let meta = SnapshotMeta { last_log_id: noted.applied, last_membership: noted.membership.clone() };
        noted.saved = Some(meta.clone());
        noted.grown = 0;
        Ok(SnapshotOf::<Types, ()> { meta, snapshot: () })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::sim_disk::SimDisk;
    use openraft::async_runtime::WatchReceiver;

    fn disks() -> Vec<Arc<dyn Disk>> {
        (1..=3).map(|seed| Arc::new(SimDisk::new(seed)) as Arc<dyn Disk>).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_answered_is_in_every_log_and_the_logs_are_purged() {
        crate::in_scope(5, async {
            let timing = RaftTiming { snapshot_max_bytes: 64 << 10, ..RaftTiming::default() };
            let bare = Bare::start(&disks(), 2, &timing).await.expect("three good disks");
            for n in 0..600u32 {
                let command = Bytes::from(vec![n as u8; 1024]);
                bare.propose(n % 2, command).await.expect("a majority lives");
            }
            assert!(bare.syncs() > 600, "two of three have synced each entry: {}", bare.syncs());
            for (&(id, shard), raft) in bare.replicas() {
                let has_all = raft.wait(Some(ELECTION)).applied_index_at_least(Some(300), "all").await;
                has_all.unwrap_or_else(|error| panic!("replica {id} of shard {shard}: {error}"));
                let purged = raft.metrics().borrow_watched().purged;
                assert!(purged.is_some(), "replica {id} of shard {shard} has kept its whole log");
            }
            bare.stop().await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn proposals_follow_the_leader() {
        crate::in_scope(6, async {
            let bare = Bare::start(&disks(), 1, &RaftTiming::default()).await.expect("three good disks");
            bare.leaders[0].store(3, Ordering::Relaxed);
            bare.propose(0, Bytes::from_static(b"one")).await.expect("a majority lives");
            assert_eq!(bare.leaders[0].load(Ordering::Relaxed), 1);
            bare.stop().await;
        })
        .await;
    }
}
