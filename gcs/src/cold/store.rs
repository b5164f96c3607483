//! A shard's files of cold runs: appending, finding, forgetting, copying together.
//!
//! Places are given out where runs come in, so that a [`Manifest`] is known at once; the bytes
//! follow through the writer. Until they are written a run is found in memory (`in_transit`).

use super::file::{self, Place};
use super::index::Index;
use super::writer::Writer;
use super::{ColdRun, ColdStore, Manifest, ManifestFile, path};
use bytes::Bytes;
use mobula_base::disk::{Disk, DiskFile, PAGE};
use mobula_base::{RunId, mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// A file is closed once it is this long, in bytes.
const FILE_BYTES: u64 = 64 << 20;
/// Whoever puts waits while more than this is not written yet, in bytes.
const IN_TRANSIT_MAX: usize = 4 << 20;
/// Runs are written this many bytes at a time, at most and unless one is longer.
const WRITE_BYTES: usize = 1 << 20;
/// A file is synced, and the memory that caches it let go, after so many bytes: what is cold is read
/// seldom, and a snapshot then has little left to wait for.
const SYNC_BYTES: u64 = 4 << 20;
/// While the disk is full, a write is tried again this often.
const RETRY_FULL: Duration = Duration::from_millis(200);
/// Entries of the index that a scan adds at a time.
const SCAN_BATCH: usize = 4096;
/// Files that are kept open for reading.
const READERS_MAX: usize = 32;
/// A closed file is copied together when less than this part of it, in percent, is alive.
const COMPACT_BELOW: u64 = 50;

#[derive(Default)]
struct File {
    len: u64,
    /// Bytes that count, by job.
    jobs: BTreeMap<u64, u64>,
}

impl File {
    fn alive(&self) -> u64 {
        self.jobs.values().sum()
    }

    fn retire(&mut self, job: u64, bytes: u64) {
        if let Some(left) = self.jobs.get_mut(&job) {
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                self.jobs.remove(&job);
            }
        }
    }
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, File>,
    /// Numbers from here on were never used.
    next: u64,
    /// A file is closed once it is this long, in bytes.
    file_bytes: u64,
    /// The file that is appended to.
    open: Option<u64>,
    in_transit: BTreeMap<RunId, (Place, u64, Bytes)>,
    in_transit_bytes: usize,
    /// What the disk had no room for.
    delayed: Vec<Append>,
    /// Files that are arriving from another head.
    arriving: BTreeSet<u64>,
    readers: BTreeMap<u64, Box<dyn DiskFile>>,
    /// Files that will not change and are on the disk.
    synced: BTreeSet<u64>,
    failed: Option<String>,
}

/// Runs for one file that follow each other there.
struct Append {
    file: u64,
    runs: Vec<(Place, ColdRun)>,
}

struct Shared {
    shard: u32,
    disk: Arc<dyn Disk>,
    index: Box<dyn Index>,
    state: Mutex<State>,
    written: Condvar,
}

/// The cold store of one shard.
pub struct FileStore {
    shared: Arc<Shared>,
    writer: Writer,
}

impl FileStore {
    /// A store without runs; files that are there count only once they are adopted.
    pub(super) fn new(shard: u32, disk: Arc<dyn Disk>, index: Box<dyn Index>, writer: Writer) -> Self {
        // Never a number that a file on the disk has: a snapshot may name it.
        let numbers = list(&*disk, shard).unwrap_or_default();
        let next = numbers.last().map_or(1, |last| last + 1);
        let state = State { next, file_bytes: FILE_BYTES, ..State::default() };
        let (state, written) = (Mutex::new(state), Condvar::new());
        FileStore { shared: Arc::new(Shared { shard, disk, index, state, written }), writer }
    }

    /// Makes everything that `manifest` names durable. May block.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync(&self, manifest: &Manifest) -> io::Result<()> {
        self.writer.drain();
        self.shared.write(None);
        self.shared.check()?;
        if !self.shared.state().delayed.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let open = self.shared.state().open;
        for named in &manifest.files {
            if self.shared.state().synced.contains(&named.number) {
                continue;
            }
            if !mutant!("M11") {
                self.shared.disk.open(&path(self.shared.shard, named.number), false)?.sync()?;
            }
            if open != Some(named.number) {
                self.shared.state().synced.insert(named.number);
            }
        }
        self.shared.disk.sync_dir(super::DIR)
    }

    /// Removes files that hold nothing and that no manifest of `kept` names, and copies a file
    /// together that is mostly dead. May block.
    ///
    /// # Errors
    /// The disk failed.
    pub fn tidy(&self, kept: &[Manifest]) -> io::Result<()> {
        self.writer.drain();
        let named: BTreeSet<u64> = kept.iter().flat_map(|m| &m.files).map(|file| file.number).collect();
        let (gone, sparse) = {
            let mut state = self.shared.state();
            let open = state.open;
            let empty = |(number, file): (&u64, &File)| {
                (file.alive() == 0 && Some(*number) != open).then_some(*number)
            };
            let empty: Vec<u64> = state.files.iter().filter_map(empty).collect();
            for number in empty {
                state.files.remove(&number);
                state.readers.remove(&number);
            }
            let on_disk = list(&*self.shared.disk, self.shared.shard)?;
            let is_used =
                |n: &u64| named.contains(n) || state.files.contains_key(n) || state.arriving.contains(n);
            let gone: Vec<u64> = on_disk.into_iter().filter(|n| *n < state.next && !is_used(n)).collect();
            let sparse = state.files.iter().filter(|(number, file)| {
                Some(**number) != open && file.alive() * 100 < file.len * COMPACT_BELOW
            });
            (gone, sparse.map(|(number, _)| *number).next())
        };
        for number in gone {
            self.remove(number)?;
        }
        sparse.map_or(Ok(()), |number| self.copy_together(number))
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        let name = path(self.shared.shard, number);
        let len = self.shared.disk.open(&name, false)?.len()?;
        // A file that a crash left half-written need not add up: what it says of the index is gone
        // with the index.
        let forgotten = file::scan(&*self.shared.disk, &name, len, |offset, head| {
            let len = file::HEADER as u32 + head.len;
            self.shared.index.remove(head.run, Place { file: number, offset, len })
        });
        if let Err(error) = forgotten
            && error.kind() != io::ErrorKind::InvalidData
        {
            return Err(error);
        }
        self.shared.disk.remove(&name)
    }

    /// Puts what is alive in a file again, so that the file can go.
    fn copy_together(&self, number: u64) -> io::Result<()> {
        let mut heads = Vec::new();
        let name = path(self.shared.shard, number);
        let len = self.shared.state().files.get(&number).map_or(0, |file| file.len);
        file::scan(&*self.shared.disk, &name, len, |offset, head| {
            heads.push((head, Place { file: number, offset, len: file::HEADER as u32 + head.len }));
            Ok(())
        })?;
        for (head, place) in heads {
            let is_here = |state: &State| -> io::Result<bool> {
                let alive = state.files.get(&number).is_some_and(|file| file.jobs.contains_key(&head.job));
                let named = self.shared.index.get(head.run)?;
                let counts = if place.is_gone() { named.is_none() } else { named == Some(place) };
                Ok(alive && !state.in_transit.contains_key(&head.run) && counts)
            };
            let mut state = self.shared.state();
            if is_here(&state)? {
                let (_, bytes) = self.shared.read(&mut state, head.run, place)?;
                let run = ColdRun { run: head.run, job: head.job, bytes };
                let append = self.shared.accept(&mut state, vec![run]);
                if let Some(file) = state.files.get_mut(&number) {
                    file.retire(head.job, u64::from(place.len));
                }
                drop(state);
                self.write(append);
            }
        }
        Ok(())
    }

    fn write(&self, appends: Vec<Append>) {
        for append in appends {
            let shared = self.shared.clone();
            self.writer.run(move || shared.write(Some(append)));
        }
    }

    /// A number for a file that arrives from another head; it stays until the next
    /// [`ColdStore::adopt`] or [`FileStore::expect_nothing`].
    pub fn expect_file(&self) -> u64 {
        let mut state = self.shared.state();
        let number = state.next;
        state.next += 1;
        state.arriving.insert(number);
        number
    }

    #[cfg(test)]
    pub(super) fn set_file_bytes(&self, bytes: u64) {
        self.shared.state().file_bytes = bytes;
    }

    /// Files that were arriving no longer are.
    pub fn expect_nothing(&self) {
        self.shared.state().arriving.clear();
    }
}

/// Numbers of a shard's files on the disk, ascending.
fn list(disk: &dyn Disk, shard: u32) -> io::Result<Vec<u64>> {
    let prefix = format!("{shard}-");
    let number = |name: &String| name.strip_prefix(&prefix)?.strip_suffix(".runs")?.parse().ok();
    let mut numbers: Vec<u64> = disk.list(super::DIR)?.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }

    fn check(&self) -> io::Result<()> {
        self.state().failed.as_ref().map_or(Ok(()), |why| Err(io::Error::other(why.clone())))
    }

    /// Gives places to runs.
    fn accept(&self, state: &mut State, runs: Vec<ColdRun>) -> Vec<Append> {
        let mut appends: Vec<Append> = Vec::new();
        for run in runs {
            self.retire(state, run.run);
            let full = |number: &u64| state.files.get(number).is_none_or(|file| file.len >= state.file_bytes);
            let number = match state.open.filter(|number| !full(number)) {
                Some(number) => number,
                None => {
                    let number = state.next;
                    state.next += 1;
                    state.open = Some(number);
                    state.files.insert(number, File::default());
                    number
                }
            };
            let file = state.files.get_mut(&number).expect("it was just made sure");
            let len = (file::HEADER + run.bytes.len()) as u32;
            let place = Place { file: number, offset: file.len, len };
            if appends.last().is_none_or(|append| append.file != number) {
                appends.push(Append { file: number, runs: Vec::new() });
            }
            file.len += u64::from(len);
            *file.jobs.entry(run.job).or_default() += u64::from(len);
            state.in_transit_bytes += run.bytes.len();
            state.in_transit.insert(run.run, (place, run.job, run.bytes.clone()));
            appends.last_mut().expect("one was just pushed").runs.push((place, run));
        }
        appends
    }

    /// A run that is put anew before the old copy was written or taken: the old one counts no more.
    fn retire(&self, state: &mut State, run: RunId) {
        if let Some((place, job, bytes)) = state.in_transit.remove(&run) {
            state.in_transit_bytes -= bytes.len();
            if let Some(file) = state.files.get_mut(&place.file) {
                file.retire(job, u64::from(place.len));
            }
        }
    }

    /// Writes what had to wait for space, then `append`.
    fn write(&self, append: Option<Append>) {
        let mut all = std::mem::take(&mut self.state().delayed);
        all.extend(append);
        for append in all {
            let full = self.state().delayed.iter().any(|delayed| delayed.file == append.file);
            let result = if full { Err(io::ErrorKind::StorageFull.into()) } else { self.write_one(&append) };
            match result {
                Ok(()) => {}
                // It stays in memory until there is space; the log refuses new entries meanwhile.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => self.state().delayed.push(append),
                Err(error) => {
                    let why = format!("cold lineage could not be written ({error})");
                    self.state().failed.get_or_insert(why);
                }
            }
        }
        self.written.notify_all();
    }

    /// Writes, and lets memory go.
    fn write_one(&self, append: &Append) -> io::Result<()> {
        self.check()?;
        self.write_runs(append)?;
        let mut state = self.state();
        // What was taken or put anew meanwhile is not found here: the index never names a copy that
        // is out of date.
        let current =
            |(run, place): &&(RunId, Place)| state.in_transit.get(run).is_some_and(|t| t.0 == *place);
        let entries = append.runs.iter().map(|(place, run)| (run.run, *place));
        let entries: Vec<(RunId, Place)> = entries.filter(|entry| current(&entry)).collect();
        let here: Vec<(RunId, Place)> =
            entries.iter().filter(|(_, place)| !place.is_gone()).copied().collect();
        self.index.insert(&here)?;
        for (run, _) in entries {
            if let Some((_, _, bytes)) = state.in_transit.remove(&run) {
                state.in_transit_bytes -= bytes.len();
            }
        }
        Ok(())
    }

    /// Writes the bytes of runs, a piece at a time.
    fn write_runs(&self, append: &Append) -> io::Result<()> {
        let mut file = self.disk.open(&path(self.shard, append.file), true)?;
        let mut buffer = Vec::new();
        let mut rest = &append.runs[..];
        while let Some(((first, _), _)) = rest.split_first() {
            let mut taken = 0;
            for (_, run) in
                rest.iter().take_while(|(place, _)| place.offset - first.offset < WRITE_BYTES as u64)
            {
                file::encode(run.run, run.job, &run.bytes, &mut buffer);
                taken += 1;
            }
            file.write_at(first.offset, &buffer)?;
            let end = first.offset + buffer.len() as u64;
            if first.offset / SYNC_BYTES != end / SYNC_BYTES {
                file.sync()?;
                let start = first.offset / SYNC_BYTES * SYNC_BYTES;
                file.forget(start, end / PAGE * PAGE - start);
            }
            buffer.clear();
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// The record at `place`: whose it is, and its bytes.
    fn read(&self, state: &mut State, run: RunId, place: Place) -> io::Result<(u64, Bytes)> {
        let name = path(self.shard, place.file);
        if !state.readers.contains_key(&place.file) {
            if state.readers.len() >= READERS_MAX {
                state.readers.pop_first();
            }
            state.readers.insert(place.file, self.disk.open(&name, false)?);
        }
        let file = state.readers.get_mut(&place.file).expect("it was just opened");
        let record = Bytes::from(file.read_at(place.offset, place.len as usize)?);
        match file::decode(record) {
            Some((head, bytes)) if head.run == run => Ok((head.job, bytes)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{name} is damaged at offset {}", place.offset),
            )),
        }
    }

    /// Where a run is, whose it is, and its bytes, if it counts.
    fn find(&self, state: &mut State, run: RunId) -> io::Result<Option<(Place, u64, Bytes)>> {
        let found = match state.in_transit.get(&run) {
            Some(found) => Some(found.clone()),
            None => match self.index.get(run)?.filter(|place| state.files.contains_key(&place.file)) {
                None => None,
                Some(place) => {
                    let (job, bytes) = self.read(state, run, place)?;
                    Some((place, job, bytes))
                }
            },
        };
        let counts = |(place, job, _): &(Place, u64, Bytes)| {
            !place.is_gone() && state.files.get(&place.file).is_some_and(|file| file.jobs.contains_key(job))
        };
        Ok(found.filter(counts))
    }

    /// Adds the runs of a file of a manifest to the index.
    fn adopt_file(&self, named: &ManifestFile) -> io::Result<()> {
        let jobs: BTreeSet<u64> = named.jobs.iter().copied().collect();
        self.state().files.insert(named.number, File { len: named.len, jobs: BTreeMap::new() });
        let mut batch = Vec::with_capacity(SCAN_BATCH);
        let add = |batch: &mut Vec<(RunId, u64, Place)>| -> io::Result<()> {
            for (run, job, place) in batch.drain(..) {
                let before = if place.is_gone() {
                    let before = self.index.get(run)?;
                    before.map_or(Ok(()), |before| self.index.remove(run, before))?;
                    before
                } else {
                    self.index.replace(run, place)?
                };
                let mut state = self.state();
                if let Some(file) =
                    before.and_then(|before| Some((before, state.files.get_mut(&before.file)?)))
                {
                    file.1.retire(job, u64::from(file.0.len));
                }
                let file = state.files.get_mut(&place.file).expect("inserted above");
                *file.jobs.entry(job).or_default() += u64::from(place.len);
            }
            Ok(())
        };
        file::scan(&*self.disk, &path(self.shard, named.number), named.len, |offset, head| {
            if jobs.contains(&head.job) {
                let len = file::HEADER as u32 + head.len;
                batch.push((head.run, head.job, Place { file: named.number, offset, len }));
            }
            if batch.len() == SCAN_BATCH { add(&mut batch) } else { Ok(()) }
        })?;
        add(&mut batch)
    }
}

impl ColdStore for FileStore {
    fn put(&self, runs: Vec<ColdRun>) -> io::Result<()> {
        self.shared.check()?;
        let appends = {
            let mut state = self.shared.state();
            while state.in_transit_bytes > IN_TRANSIT_MAX
                && state.failed.is_none()
                && !self.writer.is_inline()
            {
                let waited = self.shared.written.wait_timeout(state, RETRY_FULL);
                state = waited.expect("nothing panics under this lock").0;
                if !state.delayed.is_empty() {
                    let shared = self.shared.clone();
                    self.writer.run(move || shared.write(None));
                }
            }
            self.shared.accept(&mut state, runs)
        };
        self.write(appends);
        if self.writer.is_inline() { self.shared.check() } else { Ok(()) }
    }

    fn get(&self, run: RunId) -> io::Result<Option<Bytes>> {
        let mut state = self.shared.state();
        Ok(self.shared.find(&mut state, run)?.map(|(_, _, bytes)| bytes))
    }

    fn take(&self, run: RunId) -> io::Result<Option<Bytes>> {
        let mut state = self.shared.state();
        let Some((place, job, bytes)) = self.shared.find(&mut state, run)? else { return Ok(None) };
        if state.in_transit.contains_key(&run) {
            self.shared.retire(&mut state, run);
        } else {
            self.shared.index.remove(run, place)?;
            if let Some(file) = state.files.get_mut(&place.file) {
                file.retire(job, u64::from(place.len));
            }
        }
        Ok(Some(bytes))
    }

    fn after(&self, run: Option<RunId>, limit: usize) -> io::Result<Vec<RunId>> {
        let state = self.shared.state();
        let above = (run.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let in_transit = state.in_transit.range(above).filter(|(_, (place, ..))| !place.is_gone());
        let in_transit = in_transit.take(limit).map(|(run, _)| *run);
        let mut all: Vec<RunId> =
            self.shared.index.after(run, limit)?.into_iter().chain(in_transit).collect();
        all.sort_unstable();
        all.dedup();
        all.truncate(limit);
        Ok(all)
    }

    fn forget(&self, job: u64) {
        let mut state = self.shared.state();
        let State { files, open, .. } = &mut *state;
        for (number, file) in files {
            // A file is all of a job's runs or none: should the job come back, it begins another.
            if file.jobs.remove(&job).is_some() && *open == Some(*number) {
                *open = None;
            }
        }
    }

    fn manifest(&self) -> Manifest {
        let state = self.shared.state();
        let named = |(number, file): (&u64, &File)| {
            let jobs: Vec<u64> = file.jobs.keys().copied().collect();
            (!jobs.is_empty()).then_some(ManifestFile { number: *number, len: file.len, jobs })
        };
        Manifest { files: state.files.iter().filter_map(named).collect() }
    }

    fn adopt(&self, manifest: &Manifest) -> io::Result<()> {
        self.writer.drain();
        {
            let mut state = self.shared.state();
            let next = state.next.max(manifest.files.iter().map(|file| file.number + 1).max().unwrap_or(0));
            *state = State { next, file_bytes: state.file_bytes, ..State::default() };
        }
        self.shared.index.clear()?;
        manifest.files.iter().try_for_each(|file| self.shared.adopt_file(file))
    }
}
