//! The disk seam: everything that must survive goes through [`Disk`].
//!
//! Calls block. In production they run on a thread that may block; in simulation they return at
//! once, because [`crate::sim_disk::SimDisk`] is memory that forgets what was not synced.

use rustix::fs::{Advice, fadvise};
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a page: whoever writes whole ones never has to wait for the rest of one to be read.
pub const PAGE: u64 = 4096;

/// A flat-named tree of files under one root. Paths are relative, with `/` between parts.
///
/// Durability follows POSIX: bytes survive a power cut after `sync` of the file, and the file's
/// name only after `sync_dir` of its directory.
pub trait Disk: Send + Sync + 'static {
    /// Opens for reading and writing; creates when `create` is set.
    fn open(&self, path: &str, create: bool) -> io::Result<Box<dyn DiskFile>>;
    /// The whole file.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;
    /// Names (not paths) of the entries of a directory, sorted; empty when it does not exist.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Creates a directory and its parents.
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Atomically replaces `to` by `from`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Whether calls may block for long, so that a thread of its own is due.
    fn blocks(&self) -> bool;
    /// How long a write waits before it reaches the disk, where that is not felt by the caller's thread: a
    /// simulated disk that is slow.
    fn lag(&self) -> Duration {
        Duration::ZERO
    }
    /// Where this is on the real file system, if it is: for stores that cannot be simulated.
    fn real_path(&self, path: &str) -> Option<PathBuf>;
}

/// An open file of a [`Disk`].
pub trait DiskFile: Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written so far, and the length, durable (`fdatasync`).
    fn sync(&mut self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends with zeros.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    /// Reads up to `len` bytes at `offset`; shorter at the end of the file.
    fn read_at(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Says that these bytes, synced already, will not be read soon, so that the memory that caches
    /// them can be used again at once: on a virtual machine a page that was never used costs several
    /// times the copy into it.
    fn forget(&mut self, _offset: u64, _len: u64) {}
}

/// Writes a whole file so that it is there completely or not at all: a temporary file, synced,
/// renamed, and the directory synced.
pub fn write_atomically(disk: &dyn Disk, dir: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    // At the root there is no directory to name: a leading `/` would leave the tree.
    let path = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
    let temporary = format!("{path}.tmp");
    let mut file = disk.open(&temporary, true)?;
    file.set_len(0)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    disk.rename(&temporary, &path)?;
    disk.sync_dir(dir)
}

/// The real file system below a root directory.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// Uses (and creates) `root`.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        Ok(RealDisk { root })
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .open(self.at(path))?;
        Ok(Box::new(RealFile(file)))
    }
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        fs::read(self.at(path))
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.at(dir)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        fs::create_dir_all(self.at(dir))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from), self.at(to))
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.at(path))
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        fs::File::open(self.at(dir))?.sync_all()
    }
    fn blocks(&self) -> bool {
        true
    }
    fn real_path(&self, path: &str) -> Option<PathBuf> {
        Some(self.at(path))
    }
}

struct RealFile(fs::File);

impl DiskFile for RealFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn read_at(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        // Never more room than there are bytes, whatever is asked for.
        let len = (len as u64).min(self.len()?.saturating_sub(offset)) as usize;
        let (mut out, mut at) = (vec![0; len], 0);
        while at < len {
            match self.0.read_at(&mut out[at..], offset + at as u64) {
                Ok(0) => break,
                Ok(read) => at += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out.truncate(at);
        Ok(out)
    }
    fn forget(&mut self, offset: u64, len: u64) {
        // Advice: where it is not taken, memory is used as it would be without.
        if let Some(len) = NonZeroU64::new(len) {
            fadvise(&self.0, offset, Some(len), Advice::DontNeed).ok();
        }
    }
}

/// The parent directory of a relative path, `""` for a name at the root.
pub fn parent(path: &str) -> &str {
    Path::new(path).parent().and_then(Path::to_str).unwrap_or("")
}
