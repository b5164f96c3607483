//! What is left of a cluster on the disk of one head, when a majority of the disks is gone.
//!
//! The survivor may lack what the others had acknowledged without it, and may hold entries that were
//! never acknowledged. Nobody can tell; so it is said, and a person decides.

use super::seed::{self, Start};
use crate::cold;
use crate::error::Error;
use crate::identity::{Identity, Lock};
use crate::log::{self, LogIdentity};
use crate::raft::types::{Entry, LogId};
use crate::snapshot;
use mobula_base::disk::Disk;
use openraft::EntryPayload;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Bytes copied at a time.
const CHUNK: usize = 4 << 20;

/// One shard of a survivor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardLeft {
    /// The shard.
    pub shard: u32,
    /// Term and index of the last entry.
    pub last: (u64, u64),
    /// Entries up to here are known to be committed: those above may never have been acknowledged.
    pub committed: u64,
    /// Index of the newest snapshot.
    pub snapshot: u64,
}

/// What the directory of a head holds.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// Whose it is.
    pub identity: Identity,
    /// Its address, as the cluster knew it.
    pub address: String,
    /// Other members, as this head knew them.
    pub others: Vec<String>,
    /// Its shards.
    pub shards: Vec<ShardLeft>,
}

/// Looks at a directory without changing what it says.
///
/// # Errors
/// It is no head's, in use, or damaged.
pub fn look(disk: &dyn Disk) -> Result<Survivor, Error> {
    let _lock = Lock::take(disk)?;
    Ok(read(disk)?.0)
}

fn read(disk: &dyn Disk) -> Result<(Survivor, Vec<Start>), Error> {
    let identity = Identity::load(disk)?
        .ok_or_else(|| Error::Config("there is no head in this directory: it has no identity".into()))?;
    let whose = LogIdentity { cluster: identity.cluster, head: identity.head };
    let mut found = log::look(disk, &whose)?;
    let (mut shards, mut starts) = (Vec::new(), Vec::new());
    let mut nodes: BTreeMap<u64, String> = BTreeMap::new();
    for shard in 0..identity.shards {
        let log = found.remove(&shard).unwrap_or_default();
        let newest = snapshot::load_newest(disk, shard)?;
        let covered = newest.as_ref().and_then(|(meta, _)| meta.last_log_id);
        let last = log.entries.values().next_back().map(|entry| entry.log_id).max(covered);
        let at = |id: Option<LogId>| id.map_or((0, 0), |id| (id.leader_id.term, id.index));
        shards.push(ShardLeft {
            shard,
            last: at(last),
            committed: at(log.committed.max(covered)).1,
            snapshot: at(covered).1,
        });
        if shard == 0 {
            if let Some((meta, _)) = &newest {
                nodes = addresses(meta.last_membership.nodes());
            }
            for entry in log.entries.values() {
                if let EntryPayload::Membership(membership) = &entry.payload {
                    nodes = addresses(membership.nodes());
                }
            }
        }
        let parcel = newest.map(|(_, parcel)| parcel);
        let entries: BTreeMap<u64, Entry> = log.entries;
        starts.push(Start { parcel, index: at(covered).1, entries });
    }
    let address = nodes.remove(&identity.head).unwrap_or_default();
    Ok((Survivor { identity, address, others: nodes.into_values().collect(), shards }, starts))
}

fn addresses<'a>(nodes: impl Iterator<Item = (&'a u64, &'a openraft::BasicNode)>) -> BTreeMap<u64, String> {
    nodes.map(|(head, node)| (*head, node.addr.clone())).collect()
}

/// Makes in `to` the directory of a cluster of one head out of what is left in `from`, which is not
/// changed.
///
/// # Errors
/// `from` is not what was planned for, or damaged; or a disk failed.
pub fn recover(
    from: &dyn Disk,
    to: Arc<dyn Disk>,
    planned: &[ShardLeft],
    cluster: u64,
    address: &str,
) -> Result<(), Error> {
    let _lock = Lock::take(from)?;
    let (survivor, starts) = read(from)?;
    if survivor.shards != planned {
        return Err(Error::Config(
            "the directory has changed since the plan was made: make a new plan and read it again".into(),
        ));
    }
    seed::check_empty(&*to)?;
    for (start, shard) in starts.iter().zip(0..) {
        for file in start.parcel.iter().flat_map(|parcel| &parcel.cold.files) {
            let path = cold::path(shard, file.number);
            copy(from, &*to, &path, file.len).map_err(|error| Error::storage(path, error))?;
        }
    }
    seed::seed(to, cluster, address, starts)
}

fn copy(from: &dyn Disk, to: &dyn Disk, path: &str, len: u64) -> io::Result<()> {
    to.create_dir(cold::DIR)?;
    let (mut source, mut target) = (from.open(path, false)?, to.open(path, true)?);
    let mut at = 0;
    while at < len {
        let bytes = source.read_at(at, CHUNK.min((len - at) as usize))?;
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than its snapshot says"));
        }
        target.write_at(at, &bytes)?;
        at += bytes.len() as u64;
    }
    target.sync()?;
    to.sync_dir(cold::DIR)
}
