//! A disk that remembers everything that was done to it, and can say what a power cut at any moment
//! may have left: for tests of code that must recover from each of these states.
//!
//! What POSIX promises is little: a write is there for certain once its file was synced, a name
//! once its directory was. Before that each block of each write, and each change of a name, may be
//! there or not, whatever the order in which they were made.

use crate::disk::{Disk, DiskFile, parent};
use crate::random::Random;
use crate::sim_disk::SimDisk;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Clone, Debug)]
enum Op {
    Write { inode: usize, offset: u64, bytes: Vec<u8> },
    SetLen { inode: usize, len: u64 },
    Sync { inode: usize },
    Create { path: String, inode: usize },
    MakeDir { path: String },
    Rename { from: String, to: String },
    Remove { path: String },
    SyncDir { dir: String },
}

#[derive(Default)]
struct State {
    ops: Vec<Op>,
    start: Image,
    inodes: Vec<Vec<u8>>,
    names: BTreeMap<String, usize>,
    dirs: BTreeSet<String>,
}

/// What a power cut left.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Image {
    files: BTreeMap<String, Vec<u8>>,
    dirs: BTreeSet<String>,
}

impl Image {
    /// A disk that holds this.
    pub fn disk(&self, seed: u64) -> SimDisk {
        SimDisk::with_files(seed, self.files.clone(), self.dirs.clone())
    }
}

/// A shared handle: clones see the same disk.
#[derive(Clone, Default)]
pub struct RecordedDisk(Arc<Mutex<State>>);

impl RecordedDisk {
    /// A disk that holds `image`, all of it durable, and has recorded nothing yet.
    pub fn new(image: Image) -> Self {
        let disk = RecordedDisk::default();
        {
            let mut state = disk.state();
            state.dirs.clone_from(&image.dirs);
            for (name, bytes) in &image.files {
                state.inodes.push(bytes.clone());
                let inode = state.inodes.len() - 1;
                state.names.insert(name.clone(), inode);
            }
            state.start = image;
        }
        disk
    }

    /// How much has been recorded: a moment that [`RecordedDisk::crashes`] understands.
    pub fn now(&self) -> usize {
        self.state().ops.len()
    }

    /// What a power cut right after the first `moment` operations may leave, each state once: all
    /// states when there are at most `limit`, otherwise the extremes and a choice by `random`.
    pub fn crashes(&self, moment: usize, block: usize, limit: usize, random: &mut Random) -> BTreeSet<Image> {
        let state = self.state();
        let mut at = Pending::start(&state.start);
        for op in &state.ops[..moment] {
            at.record(op, block);
        }
        let open = at.effects.len();
        if open < 20 && 1usize << open <= limit {
            return (0..1usize << open).map(|mask| at.image(|place| mask >> place & 1 == 1)).collect();
        }
        let mut images = BTreeSet::from([at.image(|_| false), at.image(|_| true)]);
        for other in 0..open.min(limit / 4) {
            images.insert(at.image(|place| place != other));
            images.insert(at.image(|place| place == other));
        }
        while images.len() < limit {
            let mask: Vec<bool> = (0..open).map(|_| random.below(2) == 0).collect();
            let before = images.len();
            images.insert(at.image(|place| mask[place]));
            if images.len() == before && random.below(8) == 0 {
                break;
            }
        }
        images
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("a recorded disk is used by tests, a panic ends them")
    }
}

/// What is certain, and what may or may not be there.
struct Pending {
    inodes: Vec<Vec<u8>>,
    names: BTreeMap<String, usize>,
    dirs: BTreeSet<String>,
    effects: Vec<Op>,
}

impl Pending {
    fn start(image: &Image) -> Self {
        let names = image.files.keys().cloned().zip(0..).collect();
        Pending {
            inodes: image.files.values().cloned().collect(),
            names,
            dirs: image.dirs.clone(),
            effects: Vec::new(),
        }
    }

    fn record(&mut self, op: &Op, block: usize) {
        match op {
            Op::Sync { inode } => self.settle(
                |effect| matches!(effect, Op::Write { inode: of, .. } | Op::SetLen { inode: of, .. } if of == inode),
            ),
            Op::SyncDir { dir } => self.settle(|effect| match effect {
                Op::Create { path, .. } | Op::MakeDir { path } | Op::Remove { path } => parent(path) == dir,
                Op::Rename { to, .. } => parent(to) == dir,
                _ => false,
            }),
            // A disk writes whole blocks: of a write each may be there or not.
            Op::Write { inode, offset, bytes } => {
                let mut at = 0;
                while at < bytes.len() {
                    let start = offset + at as u64;
                    let len = (block - start as usize % block).min(bytes.len() - at);
                    let piece = Op::Write { inode: *inode, offset: start, bytes: bytes[at..at + len].to_vec() };
                    self.effects.push(piece);
                    at += len;
                }
            }
            other => self.effects.push(other.clone()),
        }
    }

    fn settle(&mut self, settled: impl Fn(&Op) -> bool) {
        for effect in std::mem::take(&mut self.effects) {
            if settled(&effect) {
                apply(&effect, &mut self.inodes, &mut self.names, &mut self.dirs);
            } else {
                self.effects.push(effect);
            }
        }
    }

    fn image(&self, happened: impl Fn(usize) -> bool) -> Image {
        let (mut inodes, mut names, mut dirs) = (self.inodes.clone(), self.names.clone(), self.dirs.clone());
        for (place, effect) in self.effects.iter().enumerate() {
            if happened(place) {
                apply(effect, &mut inodes, &mut names, &mut dirs);
            }
        }
        let reachable = |path: &str| parent(path).is_empty() || dirs.contains(parent(path));
        let content = |inode: usize| inodes.get(inode).cloned().unwrap_or_default();
        let files = names.iter().filter(|(name, _)| reachable(name));
        Image {
            files: files.map(|(name, inode)| (name.clone(), content(*inode))).collect(),
            dirs: dirs.clone(),
        }
    }
}

fn apply(
    op: &Op,
    inodes: &mut Vec<Vec<u8>>,
    names: &mut BTreeMap<String, usize>,
    dirs: &mut BTreeSet<String>,
) {
    match op {
        Op::Write { inode, offset, bytes } => {
            let end = *offset as usize + bytes.len();
            let file = content(inodes, *inode);
            file.resize(file.len().max(end), 0);
            file[*offset as usize..end].copy_from_slice(bytes);
        }
        Op::SetLen { inode, len } => content(inodes, *inode).resize(*len as usize, 0),
        Op::Create { path, inode } => {
            content(inodes, *inode);
            names.insert(path.clone(), *inode);
        }
        Op::MakeDir { path } => _ = dirs.insert(path.clone()),
        // A name that never became durable cannot be moved.
        Op::Rename { from, to } => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        Op::Remove { path } => _ = names.remove(path),
        Op::Sync { .. } | Op::SyncDir { .. } => {}
    }
}

fn content(inodes: &mut Vec<Vec<u8>>, inode: usize) -> &mut Vec<u8> {
    if inodes.len() <= inode {
        inodes.resize(inode + 1, Vec::new());
    }
    &mut inodes[inode]
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{path}: no such recorded file"))
}

impl State {
    fn act(&mut self, op: Op) {
        apply(&op, &mut self.inodes, &mut self.names, &mut self.dirs);
        self.ops.push(op);
    }
}

impl Disk for RecordedDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        let inode = match state.names.get(path).copied() {
            Some(inode) => inode,
            None if create => {
                if !parent(path).is_empty() && !state.dirs.contains(parent(path)) {
                    return Err(not_found(parent(path)));
                }
                let inode = state.inodes.len();
                state.act(Op::Create { path: path.to_owned(), inode });
                inode
            }
            None => return Err(not_found(path)),
        };
        Ok(Box::new(RecordedFile { disk: self.clone(), inode }))
    }
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let inode = state.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(state.inodes[*inode].clone())
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.state();
        let all = state.names.keys().chain(&state.dirs).filter(|name| parent(name) == dir);
        let names: BTreeSet<String> =
            all.map(|name| name.rsplit('/').next().unwrap_or(name).to_owned()).collect();
        Ok(names.into_iter().collect())
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state();
        if !parent(dir).is_empty() && !state.dirs.contains(parent(dir)) {
            state.act(Op::MakeDir { path: parent(dir).to_owned() });
        }
        if !state.dirs.contains(dir) {
            state.act(Op::MakeDir { path: dir.to_owned() });
        }
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.names.contains_key(from) {
            return Err(not_found(from));
        }
        state.act(Op::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.names.contains_key(path) {
            return Err(not_found(path));
        }
        state.act(Op::Remove { path: path.to_owned() });
        Ok(())
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.state().act(Op::SyncDir { dir: dir.to_owned() });
        Ok(())
    }
    fn blocks(&self) -> bool {
        false
    }
    fn real_path(&self, _path: &str) -> Option<PathBuf> {
        None
    }
}

struct RecordedFile {
    disk: RecordedDisk,
    inode: usize,
}

impl DiskFile for RecordedFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.state().act(Op::Write { inode: self.inode, offset, bytes: bytes.to_vec() });
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        self.disk.state().act(Op::Sync { inode: self.inode });
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.inode].len() as u64)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.disk.state().act(Op::SetLen { inode: self.inode, len });
        Ok(())
    }
    fn read_at(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let state = self.disk.state();
        let file = &state.inodes[self.inode];
        let start = (offset as usize).min(file.len());
        Ok(file[start..(start + len).min(file.len())].to_vec())
    }
}
