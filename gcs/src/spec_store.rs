//! Where the specs of finished tasks go once they are cold: out of memory, but at hand for a retry.
//!
//! The store is a cache of what snapshot and log hold, so it may be deleted at any time: it is
//! wiped at start and refilled by loading the snapshot and replaying the log.

use bytes::Bytes;
use mobula_base::TaskId;
use mobula_base::disk::Disk;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

/// Memory sled may use for pages, for all shards of a head.
const SLED_CACHE_BYTES: u64 = 16 << 20;
/// The directory of the tables, relative to the head's data.
const TABLES: &str = "tables";

/// Cold specs of one shard.
pub trait SpecStore: Send + Sync {
    /// Adds or replaces many.
    fn put_batch(&self, specs: &[(TaskId, Bytes)]) -> io::Result<()>;
    /// The encoded spec of a task.
    fn get(&self, task: TaskId) -> io::Result<Option<Bytes>>;
    /// Forgets everything.
    fn clear(&self) -> io::Result<()>;
    /// How many specs there are.
    fn len(&self) -> u64;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One store per shard: on sled where there is a real disk, in memory otherwise.
pub fn open(disk: &dyn Disk, shards: u32) -> io::Result<Vec<Arc<dyn SpecStore>>> {
    let Some(path) = disk.real_path(TABLES) else {
        return Ok((0..shards).map(|_| Arc::new(MemSpecs::default()) as Arc<dyn SpecStore>).collect());
    };
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let db = sled::Config::new().path(path).cache_capacity(SLED_CACHE_BYTES).flush_every_ms(None).open()?;
    (0..shards)
        .map(|shard| {
            let tree = db.open_tree(format!("specs-{shard}"))?;
            Ok(Arc::new(SledSpecs { tree }) as Arc<dyn SpecStore>)
        })
        .collect()
}

/// Specs in a sled tree.
struct SledSpecs {
    tree: sled::Tree,
}

impl SpecStore for SledSpecs {
    fn put_batch(&self, specs: &[(TaskId, Bytes)]) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (task, spec) in specs {
            batch.insert(&task.to_bytes()[..], &spec[..]);
        }
        Ok(self.tree.apply_batch(batch)?)
    }
    fn get(&self, task: TaskId) -> io::Result<Option<Bytes>> {
        Ok(self.tree.get(task.to_bytes())?.map(|spec| Bytes::copy_from_slice(&spec)))
    }
    fn clear(&self) -> io::Result<()> {
        Ok(self.tree.clear()?)
    }
    fn len(&self) -> u64 {
        self.tree.len() as u64
    }
}

/// The twin for simulation and tests.
#[derive(Default)]
pub struct MemSpecs(Mutex<BTreeMap<TaskId, Bytes>>);

impl MemSpecs {
    fn specs(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskId, Bytes>> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

impl SpecStore for MemSpecs {
    fn put_batch(&self, specs: &[(TaskId, Bytes)]) -> io::Result<()> {
        self.specs().extend(specs.iter().cloned());
        Ok(())
    }
    fn get(&self, task: TaskId) -> io::Result<Option<Bytes>> {
        Ok(self.specs().get(&task).cloned())
    }
    fn clear(&self) -> io::Result<()> {
        self.specs().clear();
        Ok(())
    }
    fn len(&self) -> u64 {
        self.specs().len() as u64
    }
}
