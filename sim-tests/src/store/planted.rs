//! Bugs that are planted to prove that each judge can fail: some in the product, through its hook,
//! some in the disk, which then lies to it.

use super::draw::Kind;
use mobula_base::disk::{Disk, DiskFile};
use mobula_base::sim_disk::SimDisk;
use mobula_gcs::hook::Plant;
use std::io;
use std::path::PathBuf;

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// One of the product.
    Product(Plant),
    /// One of the disk, or of whoever should have asked it.
    Disk(Lie),
}

/// What a disk does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Writes to the log are acknowledged before they are synced.
    AckBeforeSync,
    /// A failed sync is taken for done.
    IgnoreFailedSync,
    /// New files and renames are not made durable.
    ForgetDirectory,
}

/// All bugs: name, bug, the fault that brings it out, and what may find it.
pub const BUGS: [(&str, Bug, Option<Kind>, &str); 10] = [
    (
        "ack-before-sync",
        Bug::Disk(Lie::AckBeforeSync),
        Some(Kind::PowerLossAll),
        "durable, once, commit, election",
    ),
    ("ignore-failed-sync", Bug::Disk(Lie::IgnoreFailedSync), Some(Kind::FailSync), "no-guess"),
    (
        "forget-directory-sync",
        Bug::Disk(Lie::ForgetDirectory),
        Some(Kind::PowerLoss),
        "durable, commit, election",
    ),
    ("skip-vote", Bug::Product(Plant::SkipVote), Some(Kind::PowerLossAll), "election"),
    ("read-without-index", Bug::Product(Plant::ReadWithoutIndex), Some(Kind::Isolate), "linear"),
    ("repeat-twice", Bug::Product(Plant::RepeatTwice), Some(Kind::Rpc), "once, linear"),
    ("watch-twice", Bug::Product(Plant::WatchTwice), None, "watch"),
    ("apply-differently", Bug::Product(Plant::ApplyDifferently), None, "digest"),
    ("take-any-disk", Bug::Product(Plant::TakeAnyDisk), Some(Kind::Swapped), "no-guess"),
    ("leak-proposal-slot", Bug::Product(Plant::LeakProposalSlot), Some(Kind::Isolate), "liveness"),
];

impl Bug {
    /// What the disks do not do.
    pub fn of_the_disk(self) -> Option<Lie> {
        match self {
            Bug::Disk(lie) => Some(lie),
            Bug::Product(_) => None,
        }
    }

    /// What is planted in head `n`.
    pub fn of_head(self, n: u64) -> Option<Plant> {
        match self {
            // Where all are wrong alike, nobody differs.
            Bug::Product(Plant::ApplyDifferently) if n != 2 => None,
            Bug::Product(plant) => Some(plant),
            // Its peers would notice what the disk has lost.
            Bug::Disk(_) => Some(Plant::TrustDisk),
        }
    }
}

/// A disk that lies.
pub struct LyingDisk {
    /// The disk.
    pub disk: SimDisk,
    /// The lie.
    pub lie: Lie,
}

struct LyingFile {
    file: Box<dyn DiskFile>,
    lie: Option<Lie>,
}

impl Disk for LyingDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Box<dyn DiskFile>> {
        // A lie about the identity would be found before anything begins.
        let lie = Some(self.lie).filter(|lie| *lie != Lie::AckBeforeSync || path.starts_with("log/"));
        Ok(Box::new(LyingFile { file: self.disk.open(path, create)?, lie }))
    }
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.disk.read(path)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        match self.lie {
            Lie::ForgetDirectory => Ok(()),
            Lie::IgnoreFailedSync => self.disk.sync_dir(dir).or(Ok(())),
            Lie::AckBeforeSync => self.disk.sync_dir(dir),
        }
    }
    fn blocks(&self) -> bool {
        self.disk.blocks()
    }
    fn real_path(&self, path: &str) -> Option<PathBuf> {
        self.disk.real_path(path)
    }
}

impl DiskFile for LyingFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        match self.lie {
            Some(Lie::AckBeforeSync) => Ok(()),
            Some(Lie::IgnoreFailedSync) => self.file.sync().or(Ok(())),
            Some(Lie::ForgetDirectory) | None => self.file.sync(),
        }
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn read_at(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.file.read_at(offset, len)
    }
}
