//! From a run to its place: on sled, or in memory where sled cannot run.

use super::file::Place;
use mobula_base::RunId;
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

/// An index that may be lost at any time: a scan of the files makes it anew.
pub trait Index: Send + Sync {
    /// Adds or replaces many.
    fn insert(&self, entries: &[(RunId, Place)]) -> io::Result<()>;
    /// Adds or replaces one; what was there.
    fn replace(&self, run: RunId, place: Place) -> io::Result<Option<Place>>;
    /// Where a run is.
    fn get(&self, run: RunId) -> io::Result<Option<Place>>;
    /// Up to `limit` runs after `run`, in order.
    fn after(&self, run: Option<RunId>, limit: usize) -> io::Result<Vec<RunId>>;
    /// Removes a run if it is at `place`.
    fn remove(&self, run: RunId, place: Place) -> io::Result<()>;
    /// Forgets everything.
    fn clear(&self) -> io::Result<()>;
}

/// On a sled tree.
pub struct SledIndex(pub sled::Tree);

impl Index for SledIndex {
    fn insert(&self, entries: &[(RunId, Place)]) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (run, place) in entries {
            batch.insert(&run.0.to_be_bytes()[..], &place.to_bytes()[..]);
        }
        Ok(self.0.apply_batch(batch)?)
    }
    fn replace(&self, run: RunId, place: Place) -> io::Result<Option<Place>> {
        let before = self.0.insert(run.0.to_be_bytes(), &place.to_bytes()[..])?;
        Ok(before.and_then(|bytes| Place::from_bytes(&bytes)))
    }
    fn get(&self, run: RunId) -> io::Result<Option<Place>> {
        Ok(self.0.get(run.0.to_be_bytes())?.and_then(|bytes| Place::from_bytes(&bytes)))
    }
    fn after(&self, run: Option<RunId>, limit: usize) -> io::Result<Vec<RunId>> {
        let Some(first) = run.map_or(Some(0), |run| run.0.checked_add(1)) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for key in self.0.range(first.to_be_bytes()..).keys().take(limit) {
            found.extend(key?[..].try_into().ok().map(|bytes| RunId(u128::from_be_bytes(bytes))));
        }
        Ok(found)
    }
    fn remove(&self, run: RunId, place: Place) -> io::Result<()> {
        // Not swapped means: somewhere else by now, and then it stays.
        self.0
            .compare_and_swap(run.0.to_be_bytes(), Some(&place.to_bytes()[..]), None::<&[u8]>)
            .map(|_| ())
            .map_err(io::Error::from)
    }
    fn clear(&self) -> io::Result<()> {
        Ok(self.0.clear()?)
    }
}

/// In memory.
#[derive(Default)]
pub struct MemIndex(Mutex<BTreeMap<RunId, Place>>);

impl MemIndex {
    fn map(&self) -> MutexGuard<'_, BTreeMap<RunId, Place>> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

impl Index for MemIndex {
    fn insert(&self, entries: &[(RunId, Place)]) -> io::Result<()> {
        self.map().extend(entries.iter().copied());
        Ok(())
    }
    fn replace(&self, run: RunId, place: Place) -> io::Result<Option<Place>> {
        Ok(self.map().insert(run, place))
    }
    fn get(&self, run: RunId) -> io::Result<Option<Place>> {
        Ok(self.map().get(&run).copied())
    }
    fn after(&self, run: Option<RunId>, limit: usize) -> io::Result<Vec<RunId>> {
        let above = (run.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        Ok(self.map().range(above).take(limit).map(|(run, _)| *run).collect())
    }
    fn remove(&self, run: RunId, place: Place) -> io::Result<()> {
        let mut map = self.map();
        if map.get(&run) == Some(&place) {
            map.remove(&run);
        }
        Ok(())
    }
    fn clear(&self) -> io::Result<()> {
        self.map().clear();
        Ok(())
    }
}
