//! Where runs go that are not in memory: append-only files of CRC-framed records (`file`), found
//! through an index (`index`) that a scan of the files rebuilds.
//!
//! A snapshot names the files and how much of each it needs ([`Manifest`]) instead of containing
//! them, so its cost does not grow with the lineage that is kept. A file goes when no job has a
//! run in it and no kept snapshot names it; one that is mostly dead is copied together (`store`).
//!
//! Read it in this order: this file, `file`, `index`, `store`, `writer`.

pub(crate) mod file;
mod index;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use store::FileStore;
pub use writer::Writer;

use crate::error::Error;
use bytes::Bytes;
use index::{Index, MemIndex, SledIndex};
use mobula_base::RunId;
use mobula_base::disk::Disk;
use std::io;
use std::sync::Arc;

/// The directory of the files, relative to the head's data.
pub const DIR: &str = "cold";
/// The directory of the index.
const TABLES: &str = "tables";
/// Memory sled may use for pages, for all shards of a head, in bytes.
const SLED_CACHE_BYTES: u64 = 16 << 20;

/// A run on its way out of memory.
#[derive(Clone, Debug)]
pub struct ColdRun {
    /// Which.
    pub run: RunId,
    /// Whose.
    pub job: u64,
    /// Its canonical bytes; none say that it is not here any more, whatever older files hold.
    pub bytes: Bytes,
}

/// What a shard's tables need of a cold store.
pub trait ColdStore: Send + Sync {
    /// Takes runs; each replaces what was there of it.
    ///
    /// # Errors
    /// An earlier write failed.
    fn put(&self, runs: Vec<ColdRun>) -> io::Result<()>;
    /// The bytes that were put last.
    ///
    /// # Errors
    /// The disk failed, or gave back other bytes than it was given.
    fn get(&self, run: RunId) -> io::Result<Option<Bytes>>;
    /// As [`ColdStore::get`]; the copy here is out of date from now on.
    ///
    /// # Errors
    /// As [`ColdStore::get`].
    fn take(&self, run: RunId) -> io::Result<Option<Bytes>>;
    /// Up to `limit` runs after `run` in the order of their ids; some may no longer count.
    ///
    /// # Errors
    /// The index cannot be read.
    fn after(&self, run: Option<RunId>, limit: usize) -> io::Result<Vec<RunId>>;
    /// Forgets all runs of a job.
    fn forget(&self, job: u64);
    /// Which files hold what was put so far.
    fn manifest(&self) -> Manifest;
    /// Forgets everything, and takes these files, which are there.
    ///
    /// # Errors
    /// A file is missing or damaged.
    fn adopt(&self, manifest: &Manifest) -> io::Result<()>;
}

/// The files that a snapshot needs, in the order in which they were written.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Manifest {
    /// Later ones replace what earlier ones say of the same run.
    #[prost(message, repeated, tag = "1")]
    pub files: Vec<ManifestFile>,
}

/// One file of a manifest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ManifestFile {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// How much of it counts, in bytes.
    #[prost(uint64, tag = "2")]
    pub len: u64,
    /// Jobs whose runs in it count.
    #[prost(fixed64, repeated, tag = "3")]
    pub jobs: Vec<u64>,
}

impl Manifest {
    /// Bytes of all files together; as many as there can be when somebody says that there are more.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.len))
    }
}

/// The path of a file.
pub fn path(shard: u32, number: u64) -> String {
    format!("{DIR}/{shard}-{number:010}.runs")
}

/// Reads the files of a manifest.
///
/// # Errors
/// Damage, or a disk that fails.
pub fn verify(disk: &dyn Disk, shard: u32, manifest: &Manifest) -> Result<(), Error> {
    for named in &manifest.files {
        let file = path(shard, named.number);
        match file::first_damaged(disk, &file, named.len) {
            Ok(None) => {}
            Ok(Some(offset)) => {
                return Err(Error::Corrupt { file, offset, detail: "checksum of a run".into() });
            }
            Err(error) => return Err(Error::storage(&file, error)),
        }
    }
    Ok(())
}

/// One store per shard: indexes on sled where there is a real disk, in memory otherwise.
///
/// # Errors
/// The disk failed.
pub fn open(disk: &Arc<dyn Disk>, shards: u32) -> io::Result<Vec<Arc<FileStore>>> {
    disk.create_dir(DIR)?;
    let writer = Writer::start(&**disk)?;
    let db = match disk.real_path(TABLES) {
        None => None,
        Some(path) => {
            // A cache of what the files say: made anew at every start.
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let config = sled::Config::new().path(path).cache_capacity(SLED_CACHE_BYTES);
            Some(config.flush_every_ms(None).open()?)
        }
    };
    (0..shards)
        .map(|shard| {
            let index: Box<dyn Index> = match &db {
                Some(db) => Box::new(SledIndex(db.open_tree(format!("runs-{shard}"))?)),
                None => Box::new(MemIndex::default()),
            };
            Ok(Arc::new(FileStore::new(shard, disk.clone(), index, writer.clone())))
        })
        .collect()
}

/// A store of its own on `disk`, with its index in memory.
///
/// # Errors
/// The disk failed.
pub fn open_one(disk: Arc<dyn Disk>, shard: u32) -> io::Result<Arc<FileStore>> {
    disk.create_dir(DIR)?;
    Ok(Arc::new(FileStore::new(shard, disk, Box::new(MemIndex::default()), Writer::inline())))
}
