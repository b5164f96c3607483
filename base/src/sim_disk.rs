//! A disk in memory that forgets: the simulated twin of [`crate::disk::RealDisk`].
//!
//! It keeps two views: what running code sees, and what a power cut would leave. A write reaches
//! the second at `sync`, a name at `sync_dir`. [`SimDisk::power_cut`] drops the difference, but for
//! a random prefix of the last unsynced write of each file (a torn write).

use crate::disk::{Disk, DiskFile, parent};
use crate::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

#[derive(Clone, Default)]
struct Inode {
    now: Vec<u8>,
    synced: Vec<u8>,
    last_write: Option<(u64, Vec<u8>)>,
    /// Where the two differ: from the first byte written since the last sync to the last.
    dirty: Option<(usize, usize)>,
}

impl Inode {
    fn touch(&mut self, from: usize, to: usize) {
        let (a, b) = self.dirty.unwrap_or((from, to));
        self.dirty = Some((a.min(from), b.max(to)));
    }

    /// Makes what is seen durable. Copies what was written, not the file.
    fn sync(&mut self) {
        self.synced.resize(self.now.len(), 0);
        if let Some((from, to)) = self.dirty.take() {
            let (from, to) = (from.min(self.now.len()), to.min(self.now.len()));
            self.synced[from..to].copy_from_slice(&self.now[from..to]);
        }
        self.last_write = None;
    }
}

struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    dirs: BTreeSet<String>,
    random: Random,
    full: bool,
    fail_sync: bool,
    lag: Duration,
    syncs: u64,
    failed_syncs: u64,
}

/// What a disk holds.
#[derive(Clone, Default)]
pub struct Image {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    dirs: BTreeSet<String>,
}

/// A shared handle: clones see the same disk. Keep one outside the simulated host, so that the
/// disk outlives the host's crash.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk; `seed` decides how torn writes tear.
    pub fn new(seed: u64) -> Self {
        SimDisk(Arc::new(Mutex::new(State {
            inodes: BTreeMap::new(),
            next_inode: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dirs: BTreeSet::new(),
            random: Random::new(seed),
            full: false,
            fail_sync: false,
            lag: Duration::ZERO,
            syncs: 0,
            failed_syncs: 0,
        })))
    }

    /// A disk with these files and directories, all of them durable.
    pub fn with_files(seed: u64, files: BTreeMap<String, Vec<u8>>, dirs: BTreeSet<String>) -> Self {
        let disk = SimDisk::new(seed);
        {
            let mut state = disk.state();
            state.dirs = dirs;
            for (name, bytes) in files {
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(
                    inode,
                    Inode { now: bytes.clone(), synced: bytes, last_write: None, dirty: None },
                );
                state.names.insert(name.clone(), inode);
                state.durable_names.insert(name, inode);
            }
        }
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("a simulated disk is used by one thread")
    }

    /// Loses what was not synced, as a power cut does.
    pub fn power_cut(&self) {
        let mut state = self.state();
        let mut random = state.random.clone();
        state.names = state.durable_names.clone();
        let live: BTreeSet<u64> = state.names.values().copied().collect();
        state.inodes.retain(|inode, _| live.contains(inode));
        for inode in state.inodes.values_mut() {
            let torn = inode.last_write.take().filter(|_| random.below(2) == 0);
            let mut left = inode.synced.clone();
            if let Some((offset, bytes)) = torn {
                let kept = random.below(bytes.len() as u64 + 1) as usize;
                overwrite(&mut left, offset, &bytes[..kept]);
            }
            inode.now.clone_from(&left);
            inode.synced = left;
            inode.dirty = None;
        }
        state.random = random;
    }

    /// From now on writes that extend a file fail as on a full disk.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// From now on every sync fails.
    pub fn set_fail_sync(&self, fail: bool) {
        self.state().fail_sync = fail;
    }

    /// From now on a write waits so long before it reaches the disk.
    pub fn set_lag(&self, lag: Duration) {
        self.state().lag = lag;
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Syncs that failed so far.
    pub fn failed_syncs(&self) -> u64 {
        self.state().failed_syncs
    }

    /// Paths of all files, sorted, with their lengths in bytes.
    pub fn files(&self) -> Vec<(String, u64)> {
        let state = self.state();
        let len = |inode: &u64| state.inodes.get(inode).map_or(0, |inode| inode.now.len() as u64);
        state.names.iter().map(|(name, inode)| (name.clone(), len(inode))).collect()
    }

    /// All that is on the disk, to be put back later. Take it while nothing has the disk open.
    pub fn image(&self) -> Image {
        let state = self.state();
        Image {
            inodes: state.inodes.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            dirs: state.dirs.clone(),
        }
    }

    /// Replaces everything by an image, the empty one by default.
    pub fn load(&self, image: Image) {
        let mut state = self.state();
        let above = image.inodes.last_key_value().map_or(0, |(inode, _)| inode + 1);
        state.next_inode = state.next_inode.max(above);
        state.inodes = image.inodes;
        state.names = image.names;
        state.durable_names = image.durable_names;
        state.dirs = image.dirs;
    }

    /// Flips one bit, on disk and in every view of it.
    pub fn flip_bit(&self, path: &str, byte: u64) {
        let mut state = self.state();
        let Some(inode) = state.names.get(path).copied() else { return };
        if let Some(inode) = state.inodes.get_mut(&inode) {
            for view in [&mut inode.now, &mut inode.synced] {
                if let Some(target) = view.get_mut(byte as usize) {
                    *target ^= 1;
                }
            }
        }
    }
}

fn overwrite(view: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if view.len() < end {
        view.resize(end, 0);
    }
    view[offset as usize..end].copy_from_slice(bytes);
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{path}: no such simulated file"))
}

impl Disk for SimDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let inode = match state.names.get(path).copied() {
            Some(inode) => inode,
            None if create => {
                let dir = parent(path);
                if !dir.is_empty() && !state.dirs.contains(dir) {
                    return Err(not_found(dir));
                }
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.names.insert(path.to_owned(), inode);
                inode
            }
            None => return Err(not_found(path)),
        };
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let inode = state.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(state.inodes[inode].now.clone())
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.state();
        let own = state.names.keys().filter(|name| parent(name) == dir);
        let sub = state.dirs.iter().filter(|name| parent(name) == dir && !name.is_empty());
        let mut names: Vec<String> =
            own.chain(sub).map(|name| name.rsplit('/').next().unwrap_or(name).to_owned()).collect();
        names.sort();
        Ok(names)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state();
        let mut at = dir;
        while !at.is_empty() {
            state.dirs.insert(at.to_owned());
            at = parent(at);
        }
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.names.remove(from).ok_or_else(|| not_found(from))?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.state().names.remove(path).map(|_| ()).ok_or_else(|| not_found(path))
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.fail_sync {
            state.failed_syncs += 1;
            return Err(io::Error::other("simulated sync failure"));
        }
        state.syncs += 1;
        let now: BTreeMap<String, u64> = state
            .names
            .iter()
            .filter(|(name, _)| parent(name) == dir)
            .map(|(n, i)| (n.clone(), *i))
            .collect();
        state.durable_names.retain(|name, _| parent(name) != dir);
        state.durable_names.extend(now);
        Ok(())
    }
    fn blocks(&self) -> bool {
        false
    }
    fn lag(&self) -> Duration {
        self.state().lag
    }
    fn real_path(&self, _path: &str) -> Option<PathBuf> {
        None
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl SimFile {
    fn with<R>(&self, f: impl FnOnce(&mut Inode) -> R) -> io::Result<R> {
        let mut state = self.disk.state();
        let inode = state.inodes.get_mut(&self.inode).ok_or_else(|| not_found("(lost in a power cut)"))?;
        Ok(f(inode))
    }
}

impl DiskFile for SimFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let full = self.disk.state().full;
        self.with(|inode| {
            if full && offset as usize + bytes.len() > inode.now.len() {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "simulated disk is full"));
            }
            overwrite(&mut inode.now, offset, bytes);
            inode.touch(offset as usize, offset as usize + bytes.len());
            inode.last_write = Some((offset, bytes.to_vec()));
            Ok(())
        })?
    }
    fn sync(&mut self) -> io::Result<()> {
        {
            let mut state = self.disk.state();
            if state.fail_sync {
                state.failed_syncs += 1;
                return Err(io::Error::other("simulated sync failure"));
            }
            state.syncs += 1;
        }
        self.with(Inode::sync)
    }
    fn len(&self) -> io::Result<u64> {
        self.with(|inode| inode.now.len() as u64)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.with(|inode| {
            let (len, had) = (len as usize, inode.now.len());
            inode.now.resize(len, 0);
            // Bytes that were cut off may lie beyond the end of what is durable when it grows again.
            inode.touch(len.min(had), len.max(had));
        })
    }
    fn read_at(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.with(|inode| {
            let start = (offset as usize).min(inode.now.len());
            let end = (start + len).min(inode.now.len());
            inode.now[start..end].to_vec()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsynced_bytes_and_names_are_lost() {
        for seed in 0..20 {
            let disk = SimDisk::new(seed);
            disk.create_dir("log").expect("memory");
            let mut kept = disk.open("log/kept", true).expect("memory");
            kept.write_at(0, b"AAAA").expect("memory");
            kept.sync().expect("memory");
            disk.sync_dir("log").expect("memory");
            kept.write_at(4, b"BBBB").expect("memory");
            let mut unnamed = disk.open("log/unnamed", true).expect("memory");
            unnamed.write_at(0, b"x").expect("memory");
            unnamed.sync().expect("memory");
            disk.power_cut();
            let left = disk.read("log/kept").expect("its name was synced");
            assert!(left.starts_with(b"AAAA") && b"AAAABBBB".starts_with(&left[..]), "{left:?}");
            assert!(disk.read("log/unnamed").is_err(), "its directory was not synced");
        }
    }

    #[test]
    fn a_sync_makes_durable_what_is_seen_whatever_was_written_cut_and_grown_before() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let disk = SimDisk::new(seed);
            let mut file = disk.open("f", true).expect("memory");
            disk.sync_dir("").expect("memory");
            for step in 0..40u8 {
                match random.below(5) {
                    0 => file.sync().expect("memory"),
                    1 => file.set_len(random.below(64)).expect("memory"),
                    _ => file
                        .write_at(random.below(64), &vec![step + 1; random.below(9) as usize])
                        .expect("memory"),
                }
            }
            file.sync().expect("memory");
            let seen = disk.read("f").expect("there");
            disk.power_cut();
            assert_eq!(disk.read("f").expect("its name was synced"), seen, "seed {seed}");
        }
    }

    #[test]
    fn a_full_disk_refuses_and_keeps() {
        let disk = SimDisk::new(1);
        let mut file = disk.open("f", true).expect("memory");
        file.write_at(0, b"abcd").expect("memory");
        disk.set_full(true);
        assert_eq!(file.write_at(2, b"zz").map_err(|e| e.kind()), Ok(()));
        assert_eq!(file.write_at(3, b"zz").map_err(|e| e.kind()), Err(io::ErrorKind::StorageFull));
        disk.set_full(false);
        assert!(file.write_at(3, b"zz").is_ok());
    }
}
