//! Snapshot files: `snapshots/<shard>-<index>.snap`, CRC-framed, written whole or not at all, read
//! back before anything is purged on their strength. The last two of a shard are kept.
//!
//! ```text
//! record = u32 len | u32 crc | bytes       first a `FileHead`, then the dump in chunks
//! ```
//!
//! Cold runs are not in the file: it names the files they lie in, which were made durable before.

use crate::cold::Manifest;
use crate::error::Error;
use crate::log::record::{pack, unpack};
use crate::raft::types::SnapshotMeta;
use crate::scrub::is_gone;
use bytes::Bytes;
use mobula_base::disk::{Disk, write_atomically};
use prost::Message;
use std::io;
use std::sync::Arc;

/// The directory, relative to the head's data.
pub const DIR: &str = "snapshots";
/// Format version of the files.
const FORMAT: u32 = 2;
/// Bytes of the dump per record.
const CHUNK: usize = 1 << 20;
/// Snapshots of a shard that are kept.
const KEPT: usize = 2;

#[derive(Clone, PartialEq, Message)]
struct FileHead {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint32, tag = "2")]
    shard: u32,
    #[prost(bytes = "bytes", tag = "3")]
    meta: Bytes,
    #[prost(uint64, tag = "4")]
    bytes: u64,
    #[prost(message, optional, tag = "5")]
    cold: Option<Manifest>,
}

/// A snapshot as openraft hands it around: the dump, and which files of this head hold the rest.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// What `ShardState::snapshot` wrote.
    pub dump: Bytes,
    /// The files of cold runs.
    pub cold: Manifest,
}

impl Parcel {
    /// Bytes of everything it holds and names.
    pub fn bytes(&self) -> u64 {
        self.dump.len() as u64 + self.cold.bytes()
    }
}

/// Runs `work` where it may block: on a thread of its own kind if the disk is real.
pub async fn on_disk<T, F>(disk: Arc<dyn Disk>, work: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce(&dyn Disk) -> io::Result<T> + Send + 'static,
{
    if !disk.blocks() {
        return work(&*disk);
    }
    let done = tokio::task::spawn_blocking(move || work(&*disk)).await;
    done.map_err(|_| io::Error::other("the work on the disk was cut off by shutdown"))?
}

fn name(shard: u32, index: u64) -> String {
    format!("{shard}-{index:020}.snap")
}

/// Indexes of the snapshots of `shard`, ascending.
fn list(disk: &dyn Disk, shard: u32) -> io::Result<Vec<u64>> {
    let prefix = format!("{shard}-");
    let index = |name: &String| name.strip_prefix(&prefix)?.strip_suffix(".snap")?.parse().ok();
    Ok(disk.list(DIR)?.iter().filter_map(index).collect())
}

/// Makes the directory and removes what a crash left half-written.
///
/// # Errors
/// The disk failed.
pub fn prepare(disk: &dyn Disk) -> Result<(), Error> {
    let prepared = || -> io::Result<()> {
        disk.create_dir(DIR)?;
        for left in disk.list(DIR)?.iter().filter(|name| name.ends_with(".tmp")) {
            disk.remove(&format!("{DIR}/{left}"))?;
        }
        disk.sync_dir(DIR)
    };
    prepared().map_err(|error| Error::storage(DIR, error))
}

/// Writes a snapshot, reads it back, and removes all but the newest two of the shard.
///
/// # Errors
/// The disk failed, or gave back other bytes than it was given.
pub fn save(disk: &dyn Disk, shard: u32, meta: &SnapshotMeta, parcel: &Parcel) -> io::Result<()> {
    let index = meta.last_log_id.as_ref().map_or(0, |id| id.index);
    let (dump, cold) = (&parcel.dump, Some(parcel.cold.clone()));
    let head = FileHead { format: FORMAT, shard, meta: pack(meta), bytes: dump.len() as u64, cold };
    let mut out = Vec::with_capacity(dump.len() + dump.len() / CHUNK * 8 + 256);
    push(&mut out, &head.encode_to_vec());
    dump.chunks(CHUNK).for_each(|chunk| push(&mut out, chunk));
    let name = name(shard, index);
    write_atomically(disk, DIR, &name, &out)?;
    load(disk, shard, index).map_err(Error::into_io)?;
    let all = list(disk, shard)?;
    for old in &all[..all.len().saturating_sub(KEPT)] {
        disk.remove(&format!("{DIR}/{}", self::name(shard, *old)))?;
    }
    Ok(())
}

fn push(out: &mut Vec<u8>, record: &[u8]) {
    out.extend_from_slice(&(record.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
    out.extend_from_slice(record);
}

/// The newest snapshot of a shard, if it has any.
///
/// # Errors
/// The newest is damaged: the log below it is gone, so an older one would be a step back.
pub fn load_newest(disk: &dyn Disk, shard: u32) -> Result<Option<(SnapshotMeta, Parcel)>, Error> {
    let all = list(disk, shard).map_err(|error| Error::storage(DIR, error))?;
    all.last().map(|index| load(disk, shard, *index)).transpose()
}

/// What the kept snapshots of a shard need of its files of cold runs.
///
/// # Errors
/// The disk failed, or a snapshot is damaged.
pub fn kept_manifests(disk: &dyn Disk, shard: u32) -> io::Result<Vec<Manifest>> {
    let manifest = |index: u64| Ok(load(disk, shard, index).map_err(Error::into_io)?.1.cold);
    list(disk, shard)?.into_iter().map(manifest).collect()
}

/// Reads all snapshots of a shard and the runs that they name; how many bytes that was.
///
/// # Errors
/// Damage, or a disk that fails.
pub fn verify(disk: &dyn Disk, shard: u32) -> Result<u64, Error> {
    let mut bytes = 0;
    for index in list(disk, shard).map_err(|error| Error::storage(DIR, error))? {
        match load(disk, shard, index).and_then(|(_, parcel)| {
            bytes += parcel.bytes();
            crate::cold::verify(disk, shard, &parcel.cold)
        }) {
            // A newer one has taken its place meanwhile.
            Err(error) if is_gone(&error) && !list(disk, shard).is_ok_and(|all| all.contains(&index)) => {}
            verified => verified?,
        }
    }
    Ok(bytes)
}

/// Checks the newest snapshot of a shard; what it covers.
///
/// # Errors
/// Damage, or a disk that fails.
pub fn newest(disk: &dyn Disk, shard: u32) -> Result<Option<SnapshotMeta>, Error> {
    Ok(load_newest(disk, shard)?.map(|(meta, _)| meta))
}

fn load(disk: &dyn Disk, shard: u32, index: u64) -> Result<(SnapshotMeta, Parcel), Error> {
    let file = format!("{DIR}/{}", name(shard, index));
    let bytes = disk.read(&file).map_err(|error| Error::storage(&file, error))?;
    let damaged = |offset: usize, detail: &str| Error::Corrupt {
        file: file.clone(),
        offset: offset as u64,
        detail: detail.to_owned(),
    };
    let (record, mut at) = next(&bytes, 0).ok_or_else(|| damaged(0, "checksum of the first record"))?;
    let head = FileHead::decode(record).map_err(|_| damaged(0, "unreadable first record"))?;
    if head.format > FORMAT {
        return Err(Error::Newer { found: head.format, known: FORMAT });
    }
    let meta = unpack(&head.meta).map_err(|_| damaged(0, "unreadable description"))?;
    let mut dump = Vec::with_capacity(bytes.len());
    while at < bytes.len() {
        let (record, end) = next(&bytes, at).ok_or_else(|| damaged(at, "checksum of a record"))?;
        dump.extend_from_slice(record);
        at = end;
    }
    if (dump.len() as u64, head.shard) != (head.bytes, shard) {
        return Err(damaged(at, "its length or shard is not what its head says"));
    }
    Ok((meta, Parcel { dump: Bytes::from(dump), cold: head.cold.unwrap_or_default() }))
}

fn next(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let end = at + 8 + word(at)? as usize;
    let record = bytes.get(at + 8..end)?;
    (crc32fast::hash(record) == word(at + 4)?).then_some((record, end))
}
