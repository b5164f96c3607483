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
use bytes::{Bytes, BytesMut};
use mobula_base::disk::{Disk, DiskFile};
use prost::Message;
use std::io;
use std::sync::Arc;

/// The directory, relative to the head's data.
pub const DIR: &str = "snapshots";
/// Format version of the files.
const FORMAT: u32 = 2;
/// Bytes of the dump per record.
const CHUNK: usize = 1 << 20;
/// Bytes before a record: its length and checksum.
const HEADER: usize = 8;
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
        (self.dump.len() as u64).saturating_add(self.cold.bytes())
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
    let name = name(shard, index);
    let records = std::iter::once(head.encode_to_vec().into()).chain(chunks(dump));
    write(disk, &name, records)?;
    read(disk, shard, index, |_| {}).map_err(Error::into_io)?;
    let all = list(disk, shard)?;
    for old in &all[..all.len().saturating_sub(KEPT)] {
        disk.remove(&format!("{DIR}/{}", self::name(shard, *old)))?;
    }
    Ok(())
}

fn chunks(dump: &Bytes) -> impl Iterator<Item = Bytes> {
    (0..dump.len()).step_by(CHUNK).map(|at| dump.slice(at..(at + CHUNK).min(dump.len())))
}

/// Writes a file of records, whole or not at all, a record at a time.
fn write(disk: &dyn Disk, name: &str, records: impl Iterator<Item = Bytes>) -> io::Result<()> {
    let path = format!("{DIR}/{name}");
    let temporary = format!("{path}.tmp");
    let mut file = disk.open(&temporary, true)?;
    file.set_len(0)?;
    let (mut at, mut buffer) = (0, Vec::with_capacity(CHUNK + HEADER));
    for record in records {
        buffer.clear();
        buffer.extend_from_slice(&(record.len() as u32).to_le_bytes());
        buffer.extend_from_slice(&crc32fast::hash(&record).to_le_bytes());
        buffer.extend_from_slice(&record);
        file.write_at(at, &buffer)?;
        at += buffer.len() as u64;
    }
    file.sync()?;
    // So that reading it back asks the disk.
    file.forget(0, at);
    disk.rename(&temporary, &path)?;
    disk.sync_dir(DIR)
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
    let manifest = |index: u64| {
        let (_, head) = read(disk, shard, index, |_| {}).map_err(Error::into_io)?;
        Ok(head.cold.unwrap_or_default())
    };
    list(disk, shard)?.into_iter().map(manifest).collect()
}

/// Reads all snapshots of a shard and the runs that they name; how many bytes that was.
///
/// # Errors
/// Damage, or a disk that fails.
pub fn verify(disk: &dyn Disk, shard: u32) -> Result<u64, Error> {
    let mut bytes = 0;
    for index in list(disk, shard).map_err(|error| Error::storage(DIR, error))? {
        match read(disk, shard, index, |_| {}).and_then(|(_, head)| {
            let cold = head.cold.unwrap_or_default();
            bytes = cold.bytes().saturating_add(head.bytes).saturating_add(bytes);
            crate::cold::verify(disk, shard, &cold)
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
    let all = list(disk, shard).map_err(|error| Error::storage(DIR, error))?;
    let meta = |index: &u64| read(disk, shard, *index, |_| {}).map(|(meta, _)| meta);
    all.last().map(meta).transpose()
}

fn load(disk: &dyn Disk, shard: u32, index: u64) -> Result<(SnapshotMeta, Parcel), Error> {
    let mut dump = BytesMut::new();
    let (meta, head) = read(disk, shard, index, |record| dump.extend_from_slice(record))?;
    Ok((meta, Parcel { dump: dump.freeze(), cold: head.cold.unwrap_or_default() }))
}

/// Checks a snapshot file, and hands the dump's pieces to `visit`, none of it twice in memory.
fn read(
    disk: &dyn Disk,
    shard: u32,
    index: u64,
    mut visit: impl FnMut(&[u8]),
) -> Result<(SnapshotMeta, FileHead), Error> {
    let name = format!("{DIR}/{}", name(shard, index));
    let storage = |error| Error::storage(&name, error);
    let file = disk.open(&name, false).map_err(storage)?;
    let len = file.len().map_err(storage)?;
    let mut records = Records { file, name: name.clone(), at: 0, len };
    let first = records.next()?.ok_or_else(|| records.damaged("no first record"))?;
    let head = FileHead::decode(&*first).map_err(|_| records.damaged("unreadable first record"))?;
    if head.format > FORMAT {
        return Err(Error::Newer { found: head.format, known: FORMAT });
    }
    let meta = unpack(&head.meta).map_err(|_| records.damaged("unreadable description"))?;
    let mut bytes = 0;
    while let Some(record) = records.next()? {
        bytes += record.len() as u64;
        visit(&record);
    }
    if (bytes, head.shard) != (head.bytes, shard) {
        return Err(records.damaged("its length or shard is not what its head says"));
    }
    Ok((meta, head))
}

/// The records of a file, one after the other.
struct Records {
    file: Box<dyn DiskFile>,
    name: String,
    at: u64,
    len: u64,
}

impl Records {
    fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if self.at == self.len {
            return Ok(None);
        }
        let storage = |error| Error::storage(&self.name, error);
        let head = self.file.read_at(self.at, HEADER).map_err(storage)?;
        let word = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let (Some(len), Some(crc)) = (word(0), word(4)) else {
            return Err(self.damaged("a record is cut off"));
        };
        let record = self.file.read_at(self.at + HEADER as u64, len as usize).map_err(storage)?;
        if record.len() != len as usize || crc32fast::hash(&record) != crc {
            return Err(self.damaged("checksum of a record"));
        }
        self.at += (HEADER + record.len()) as u64;
        Ok(Some(record))
    }

    fn damaged(&self, detail: &str) -> Error {
        Error::Corrupt { file: self.name.clone(), offset: self.at, detail: detail.to_owned() }
    }
}
