//! The state machine of one shard as openraft sees it: the tables, and snapshot files of them.

use super::timing::RaftTiming;
use super::types::{Answer, LogId, Proposal, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::cold::{FileStore, Manifest};
use crate::core::ShardState;
use crate::error::Error;
use crate::hook::{EntryId, Plant, SharedHook, Unhooked};
use crate::level::Level;
use crate::metrics;
use crate::snapshot::{self, Parcel};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use mobula_base::disk::Disk;
use mobula_proto as proto;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prometheus_client::metrics::histogram::Histogram;
use prost::Message;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use std::time::Instant;
use tokio::sync::{Semaphore, watch};

/// While the disk is full, a snapshot is tried again this often.
const RETRY_FULL: Duration = Duration::from_millis(500);

/// Checkpoints whose digests are remembered.
const MAX_CHECKPOINTS: usize = 16;

struct Inner {
    state: ShardState,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// What the newest snapshot file covers.
    saved: Option<SnapshotMeta>,
    /// Size of the newest dump, in bytes.
    dump_bytes: u64,
    /// Bytes of commands applied since the newest snapshot.
    grown_bytes: u64,
    /// Somebody needs a snapshot now.
    wanted: bool,
    /// The latest checkpoints: their id, index and, once it is known, digest.
    checkpoints: VecDeque<(u64, u64, Option<u64>)>,
}

impl Inner {
    /// Whether it is time for a snapshot.
    fn is_due(&self, timing: &RaftTiming) -> bool {
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let entries = index(self.applied) - index(self.saved.as_ref().and_then(|meta| meta.last_log_id));
        let grown = self.grown_bytes;
        self.wanted
            || grown >= timing.snapshot_max_bytes
            || (entries >= timing.snapshot_entries && grown >= timing.snapshot_bytes.max(self.dump_bytes))
    }
}

/// The tables of one shard, for readers. Clones share them.
#[derive(Clone)]
pub struct Replica {
    inner: Arc<Mutex<Inner>>,
    applied: watch::Receiver<u64>,
}

impl Replica {
    /// Looks at the tables. `look` must be quick: nothing is applied meanwhile.
    pub fn with<T>(&self, look: impl FnOnce(&ShardState) -> T) -> T {
        look(&lock(&self.inner).state)
    }

    /// Index and digest of a checkpoint, once both are known.
    pub fn checkpoint(&self, id: u64) -> Option<(u64, u64)> {
        let inner = lock(&self.inner);
        let (_, index, digest) = inner.checkpoints.iter().find(|(known, ..)| *known == id)?;
        Some((*index, (*digest)?))
    }

    /// The next time openraft asks, a snapshot is made.
    pub fn want_snapshot(&self) {
        lock(&self.inner).wanted = true;
    }

    /// Bytes of the newest snapshot's dump, 0 for none.
    pub fn snapshot_bytes(&self) -> u64 {
        lock(&self.inner).dump_bytes
    }

    /// The last applied index, 0 for none, and word of every change of it.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().expect("a panic while applying has ended this replica")
}

/// openraft's side of the tables.
#[derive(Clone)]
pub struct Machine {
    shard: u32,
    disk: Arc<dyn Disk>,
    cold: Arc<FileStore>,
    inner: Arc<Mutex<Inner>>,
    applied: Arc<watch::Sender<u64>>,
    timing: RaftTiming,
    level: Arc<Level>,
    hook: SharedHook,
    seconds: Histogram,
    /// One shard of a head makes its snapshot at a time: each holds a dump in memory meanwhile.
    turns: Arc<Semaphore>,
}

impl Machine {
    /// Takes its turn with others that share `turns`.
    pub fn taking_turns(self, turns: Arc<Semaphore>) -> Self {
        Machine { turns, ..self }
    }

    /// How long each snapshot takes goes to `seconds`.
    pub fn measured(self, seconds: Histogram) -> Self {
        Machine { seconds, ..self }
    }

    /// An empty machine; openraft fills it from the newest snapshot and the log.
    pub fn new(
        shard: u32,
        disk: Arc<dyn Disk>,
        cold: Arc<FileStore>,
        timing: RaftTiming,
        level: Arc<Level>,
    ) -> (Self, Replica) {
        let mut state = ShardState::new(shard, cold.clone());
        state.set_formats(level.formats.clone());
        let (applied, watched) = watch::channel(0);
        let inner = Arc::new(Mutex::new(Inner {
            state,
            applied: None,
            membership: StoredMembership::default(),
            saved: None,
            dump_bytes: 0,
            grown_bytes: 0,
            wanted: false,
            checkpoints: VecDeque::new(),
        }));
        let (shared, applied, hook) = (inner.clone(), Arc::new(applied), Arc::new(Unhooked));
        let (seconds, turns) = (metrics::seconds(), Arc::new(Semaphore::new(1)));
        let machine =
            Machine { shard, disk, cold, inner: shared, applied, timing, level, hook, seconds, turns };
        (machine, Replica { inner, applied: watched })
    }

    /// The same, with somebody who watches.
    pub fn watched(self, hook: SharedHook) -> Self {
        lock(&self.inner).state.set_careless(hook.has(Plant::RepeatTwice), hook.has(Plant::ApplyDifferently));
        Machine { hook, ..self }
    }

    /// Digests the state as of now beside what goes on: a clone is cheap.
    fn note_checkpoints(&self, inner: &mut Inner, index: u64) {
        for id in inner.state.take_checkpoints() {
            inner.checkpoints.push_back((id, index, None));
            while inner.checkpoints.len() > MAX_CHECKPOINTS {
                inner.checkpoints.pop_front();
            }
            let (view, shared) = (inner.state.clone(), self.inner.clone());
            let digest = move || {
                let digest = view.digest();
                let mut inner = lock(&shared);
                if let Some(entry) = inner.checkpoints.iter_mut().find(|(known, ..)| *known == id) {
                    entry.2 = Some(digest);
                }
            };
            // In simulation there are no threads, and the clone is small.
            if self.disk.blocks() {
                tokio::task::spawn_blocking(digest);
            } else {
                tokio::spawn(async move { digest() });
            }
        }
    }

    fn apply_one(inner: &mut Inner, log_id: LogId, proposal: &Proposal) -> io::Result<Answer> {
        // What cannot be decoded changes nothing, on every replica alike.
        let command = proto::Command::decode(proposal.0.clone()).unwrap_or_default();
        let reply = inner.state.apply(log_id.index, &command);
        inner.grown_bytes += proposal.0.len() as u64;
        match inner.state.broken() {
            Some(why) => Err(io::Error::other(why.to_owned())),
            None => Ok(Answer(Bytes::from(reply.encode_to_vec()))),
        }
    }
}

fn entry_id(id: LogId) -> EntryId {
    let leader = id.committed_leader_id();
    EntryId { term: leader.term, leader: leader.node_id, index: id.index }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Parcel;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let inner = lock(&self.inner);
        Ok((inner.applied, inner.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut last = None;
        while let Some((entry, responder)) = entries.try_next().await? {
            let answer = {
                let mut inner = lock(&self.inner);
                inner.applied = Some(entry.log_id);
                last = Some(entry.log_id.index);
                let (command, answer) = match entry.payload {
                    EntryPayload::Blank => Default::default(),
                    EntryPayload::Normal(proposal) => {
                        let answer = Self::apply_one(&mut inner, entry.log_id, &proposal)?;
                        self.note_checkpoints(&mut inner, entry.log_id.index);
                        (proposal.0, answer)
                    }
                    EntryPayload::Membership(membership) => {
                        inner.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Default::default()
                    }
                };
                self.hook.applied(self.shard, entry_id(entry.log_id), &command, &answer.0);
                answer
            };
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        if let Some(index) = last {
            self.applied.send_replace(index);
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let due = lock(&self.inner).is_due(&self.timing);
        if force || due { Some(self.get_snapshot_builder().await) } else { None }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let inner = lock(&self.inner);
        let meta = SnapshotMeta { last_log_id: inner.applied, last_membership: inner.membership.clone() };
        // A clone is cheap and does not change any more: applying goes on while it is encoded.
        Builder {
            machine: self.clone(),
            meta,
            cold: inner.state.manifest(),
            view: inner.state.clone(),
            grown: inner.grown_bytes,
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, parcel: Parcel) -> io::Result<()> {
        let known = lock(&self.inner).saved.as_ref() == Some(meta);
        if !known {
            let (shard, meta, parcel) = (self.shard, meta.clone(), parcel.clone());
            let save = move |disk: &dyn Disk| snapshot::save(disk, shard, &meta, &parcel);
            snapshot::on_disk(self.disk.clone(), save).await?;
        }
        {
            let mut inner = lock(&self.inner);
            let dump = parcel.dump;
            inner.state.restore(dump.clone(), &parcel.cold)?;
            inner.applied = meta.last_log_id;
            inner.membership = meta.last_membership.clone();
            inner.saved = Some(meta.clone());
            inner.dump_bytes = dump.len() as u64;
            inner.grown_bytes = 0;
        }
        if let Some(last) = meta.last_log_id {
            self.hook.installed(self.shard, entry_id(last));
        }
        self.applied.send_replace(meta.last_log_id.map_or(0, |id| id.index));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let shard = self.shard;
        let load = move |disk: &dyn Disk| snapshot::load_newest(disk, shard).map_err(Error::into_io);
        let Some((meta, snapshot)) = snapshot::on_disk(self.disk.clone(), load).await? else {
            return Ok(None);
        };
        lock(&self.inner).saved = Some(meta.clone());
        Ok(Some(Snapshot { meta, snapshot }))
    }
}

/// A consistent view of the tables on its way to a file.
pub struct Builder {
    machine: Machine,
    meta: SnapshotMeta,
    cold: Manifest,
    view: ShardState,
    grown: u64,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Parcel;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let parcel = loop {
            let since = Instant::now();
            match self.write().await {
                // The replica goes on meanwhile; only its log cannot be shortened.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    tracing::warn!(
                        shard = self.machine.shard,
                        "no room for a snapshot: free space on the disk"
                    );
                    tokio::time::sleep(RETRY_FULL).await;
                }
                written => {
                    self.machine.seconds.observe(since.elapsed().as_secs_f64());
                    break written?;
                }
            }
        };
        let mut inner = lock(&self.machine.inner);
        inner.wanted = false;
        inner.saved = Some(self.meta.clone());
        inner.dump_bytes = parcel.dump.len() as u64;
        inner.grown_bytes = inner.grown_bytes.saturating_sub(self.grown);
        Ok(Snapshot { meta: self.meta.clone(), snapshot: parcel })
    }
}

impl Builder {
    async fn write(&self) -> io::Result<Parcel> {
        // Nobody closes the semaphore.
        let _turn = self.machine.turns.acquire().await.ok();
        let (shard, meta, cold) = (self.machine.shard, self.meta.clone(), self.cold.clone());
        let (store, view, level) =
            (self.machine.cold.clone(), self.view.clone(), self.machine.level.writes());
        let write = move |disk: &dyn Disk| {
            let parcel = Parcel { dump: Bytes::from(view.snapshot(level)), cold };
            store.sync(&parcel.cold)?;
            snapshot::save(disk, shard, &meta, &parcel)?;
            store.tidy(&snapshot::kept_manifests(disk, shard)?)?;
            Ok(parcel)
        };
        snapshot::on_disk(self.machine.disk.clone(), write).await
    }
}
