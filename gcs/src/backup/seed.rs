//! A data directory for a cluster of one head, made of what another cluster held.
//!
//! Log ids start again at term 0, so that the new cluster's first term is above them. The identity is
//! written last: without it there is no head, and the work can be done again from the start.

use super::archive::{self, Piece, Summary};
use crate::cold::{self, FileStore, Manifest};
use crate::core::ShardState;
use crate::error::Error;
use crate::identity::{FORMAT, Identity, Lock};
use crate::raft::types::{Entry, LogId, SnapshotMeta, StoredMembership, Vote};
use crate::snapshot::{self, Parcel};
use bytes::Bytes;
use mobula_base::disk::{Disk, DiskFile};
use mobula_proto as proto;
use openraft::{BasicNode, EntryPayload, Membership};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::Arc;

/// The only head of a new cluster.
const FIRST_HEAD: u64 = 1;

/// What one shard starts from.
pub struct Start {
    /// The dump and its files, which are in place; `None`: empty.
    pub parcel: Option<Parcel>,
    /// Index that the dump covers.
    pub index: u64,
    /// Entries above it.
    pub entries: BTreeMap<u64, Entry>,
}

/// Whether a directory holds nothing of a head.
///
/// # Errors
/// It does, or the disk failed.
pub fn check_empty(disk: &dyn Disk) -> Result<(), Error> {
    for dir in ["log", "snapshots", cold::DIR] {
        if !disk.list(dir).map_err(|error| Error::storage(dir, error))?.is_empty() {
            return Err(Error::Config(format!(
                "the data directory is not empty (it holds {dir}): name a new one, nothing was changed"
            )));
        }
    }
    match Identity::load(disk)? {
        None => Ok(()),
        Some(identity) => Err(Error::Config(format!(
            "the data directory belongs to head {} of cluster {:016x}: name a new one, nothing was changed",
            identity.head, identity.cluster
        ))),
    }
}

/// Makes the directory of head 1 of the new cluster `cluster`, reached at `address`.
///
/// # Errors
/// The disk failed, or what it starts from is damaged.
pub fn seed(disk: Arc<dyn Disk>, cluster: u64, address: &str, starts: Vec<Start>) -> Result<(), Error> {
    let _lock = Lock::take(&*disk)?;
    snapshot::prepare(&*disk)?;
    let shards = starts.len() as u32;
    let stores = cold::open(&disk, shards).map_err(|error| Error::storage(cold::DIR, error))?;
    let (mut level, mut program) = (0, String::new());
    for ((shard, start), store) in (0..shards).zip(starts).zip(&stores) {
        let place = Place { disk: &*disk, shard, store, cluster, address, level };
        let filled = place.fill(start).map_err(|error| Error::storage(format!("shard {shard}"), error))?;
        // Shard 0, which comes first, says what the cluster wrote, and so what the new one writes.
        if shard == 0 {
            (level, program) = filled;
        }
    }
    let (head, founders) = (FIRST_HEAD, vec![address.to_owned()]);
    let begun = false;
    Identity { format: FORMAT, cluster, head, shards, founders, level, program, begun }.save(&*disk)
}

struct Place<'a> {
    disk: &'a dyn Disk,
    shard: u32,
    store: &'a Arc<FileStore>,
    cluster: u64,
    address: &'a str,
    level: u32,
}

impl Place<'_> {
    /// The level of formats that the state says its cluster wrote, and since when.
    fn fill(&self, start: Start) -> io::Result<(u32, String)> {
        let mut state = ShardState::new(self.shard, self.store.clone());
        let mut index = start.index;
        if let Some(parcel) = start.parcel {
            state.restore(parcel.dump, &parcel.cold)?;
        }
        for (at, entry) in start.entries {
            if at <= index {
                continue;
            }
            if let EntryPayload::Normal(proposal) = &entry.payload {
                let command = proto::Command::decode(proposal.0.clone()).unwrap_or_default();
                state.apply(at, &command);
            }
            index = at;
        }
        if let Some(broken) = state.broken() {
            return Err(io::Error::other(broken.to_owned()));
        }
        if self.shard == 0 {
            state.cluster.reborn(self.cluster);
        }
        let level = state.cluster.level();
        let parcel =
            Parcel { dump: Bytes::from(state.snapshot(self.level.max(level.0))), cold: state.manifest() };
        self.store.sync(&parcel.cold)?;
        // Index 0 is that of an empty log: openraft needs an entry below a snapshot.
        let id = LogId { leader_id: *Vote::new(0, FIRST_HEAD).leader_id(), index: index.max(1) };
        let nodes = BTreeMap::from([(FIRST_HEAD, BasicNode::new(self.address))]);
        let membership = Membership::new(vec![BTreeSet::from([FIRST_HEAD])], nodes)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let meta = SnapshotMeta {
            last_log_id: Some(id),
            last_membership: StoredMembership::new(Some(id), membership),
        };
        snapshot::save(self.disk, self.shard, &meta, &parcel)?;
        Ok(level)
    }
}

/// Makes a data directory of an archive.
///
/// # Errors
/// The archive is damaged, the directory is not empty, or the disk failed.
pub fn restore(
    disk: Arc<dyn Disk>,
    cluster: u64,
    address: &str,
    archive: impl Read,
    name: &str,
) -> Result<Summary, Error> {
    check_empty(&*disk)?;
    disk.create_dir(cold::DIR).map_err(|error| Error::storage(cold::DIR, error))?;
    let mut shards: Vec<Arriving> = Vec::new();
    let summary = archive::read(archive, name, |piece| match piece {
        Piece::Head(_) => Ok(()),
        Piece::Shard(head) => {
            shards.push(Arriving::new(head)?);
            Ok(())
        }
        Piece::Data(bytes) => match shards.last_mut() {
            Some(shard) => shard.take(&*disk, bytes),
            None => Ok(()),
        },
    })?;
    let synced = disk.sync_dir(cold::DIR);
    synced.map_err(|error| Error::storage(cold::DIR, error))?;
    let start = |shard: Arriving| Start {
        index: shard.head.index,
        parcel: Some(Parcel { dump: Bytes::from(shard.dump), cold: shard.cold }),
        entries: BTreeMap::new(),
    };
    seed(disk, cluster, address, shards.into_iter().map(start).collect())?;
    Ok(summary)
}

/// A shard on its way out of an archive.
struct Arriving {
    head: proto::DumpHead,
    cold: Manifest,
    dump: Vec<u8>,
    /// The file that is being written, and how much of it.
    file: usize,
    open: Option<Box<dyn DiskFile>>,
    written: u64,
}

impl Arriving {
    fn new(head: &proto::DumpHead) -> io::Result<Self> {
        let cold = archive::manifest(head)?;
        Ok(Arriving { head: head.clone(), cold, dump: Vec::new(), file: 0, open: None, written: 0 })
    }

    fn take(&mut self, disk: &dyn Disk, mut bytes: &[u8]) -> io::Result<()> {
        let dump = (self.head.dump_bytes as usize - self.dump.len()).min(bytes.len());
        self.dump.extend_from_slice(&bytes[..dump]);
        bytes = &bytes[dump..];
        while !bytes.is_empty() {
            let named = self.cold.files.get(self.file).ok_or_else(|| io::Error::other("too many bytes"))?;
            let mut open = match self.open.take() {
                Some(open) => open,
                None => disk.open(&cold::path(self.head.shard, named.number), true)?,
            };
            let part = ((named.len - self.written) as usize).min(bytes.len());
            open.write_at(self.written, &bytes[..part])?;
            self.written += part as u64;
            bytes = &bytes[part..];
            if self.written == named.len {
                open.sync()?;
                (self.file, self.written) = (self.file + 1, 0);
            } else {
                self.open = Some(open);
            }
        }
        Ok(())
    }
}
