//! The state machine of one shard as openraft sees it: the tables, and snapshot files of them.

use super::types::{Answer, LogId, Proposal, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::core::ShardState;
use crate::error::Error;
use crate::snapshot;
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use mobula_base::disk::Disk;
use mobula_proto as proto;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

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
    inner: Arc<Mutex<Inner>>,
    applied: Arc<watch::Sender<u64>>,
    snapshot_bytes: u64,
}

impl Machine {
    /// An empty machine; openraft fills it from the newest snapshot and the log.
    pub fn new(state: ShardState, disk: Arc<dyn Disk>, snapshot_bytes: u64) -> (Self, Replica) {
        let shard = state.shard;
        let (applied, watched) = watch::channel(0);
        let inner = Arc::new(Mutex::new(Inner {
            state,
            applied: None,
            membership: StoredMembership::default(),
            saved: None,
            dump_bytes: 0,
            grown_bytes: 0,
        }));
        let machine =
            Machine { shard, disk, inner: inner.clone(), applied: Arc::new(applied), snapshot_bytes };
        (machine, Replica { inner, applied: watched })
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

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Bytes;
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
                match entry.payload {
                    EntryPayload::Blank => Answer::default(),
                    EntryPayload::Normal(proposal) => Self::apply_one(&mut inner, entry.log_id, &proposal)?,
                    EntryPayload::Membership(membership) => {
                        inner.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Answer::default()
                    }
                }
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
        let due = {
            let inner = lock(&self.inner);
            inner.grown_bytes >= self.snapshot_bytes.max(inner.dump_bytes)
        };
        if force || due { Some(self.get_snapshot_builder().await) } else { None }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let inner = lock(&self.inner);
        let meta = SnapshotMeta { last_log_id: inner.applied, last_membership: inner.membership.clone() };
        // A clone is cheap and does not change any more: applying goes on while it is encoded.
        Builder { machine: self.clone(), meta, view: inner.state.clone(), grown: inner.grown_bytes }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, dump: Bytes) -> io::Result<()> {
        let known = lock(&self.inner).saved.as_ref() == Some(meta);
        if !known {
            let (shard, meta, dump) = (self.shard, meta.clone(), dump.clone());
            let save = move |disk: &dyn Disk| snapshot::save(disk, shard, &meta, &dump);
            snapshot::on_disk(self.disk.clone(), save).await?;
        }
        {
            let mut inner = lock(&self.inner);
            inner.state.restore(&dump)?;
            inner.applied = meta.last_log_id;
            inner.membership = meta.last_membership.clone();
            inner.saved = Some(meta.clone());
            inner.dump_bytes = dump.len() as u64;
            inner.grown_bytes = 0;
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
    view: ShardState,
    grown: u64,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (shard, meta, view) = (self.machine.shard, self.meta.clone(), self.view.clone());
        let write = move |disk: &dyn Disk| {
            let dump = Bytes::from(view.snapshot()?);
            snapshot::save(disk, shard, &meta, &dump)?;
            Ok(dump)
        };
        let dump = snapshot::on_disk(self.machine.disk.clone(), write).await?;
        let mut inner = lock(&self.machine.inner);
        inner.saved = Some(self.meta.clone());
        inner.dump_bytes = dump.len() as u64;
        inner.grown_bytes = inner.grown_bytes.saturating_sub(self.grown);
        Ok(Snapshot { meta: self.meta.clone(), snapshot: dump })
    }
}
