//! Executables and files of jobs, by the hash of their content.
//!
//! A driver's binary is the binary of its workers, on nodes that never saw it, too. Its own node keeps the file open
//! and lends it to others; they verify what they have been sent before they run it. The same is true of the files
//! that a job ships for its workers, except that its own node takes a copy: they may change.
//!
//! - this file — what is at hand; [`travel`] — from node to node; [`runtime`] — what a job's workers find.

pub mod runtime;
pub mod travel;

use mobula_base::JobId;
use mobula_proto::Content;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

/// Bytes of one file at most.
pub const PACKAGE_BYTES_MAX: u64 = 4 << 30;
/// Bytes kept for later jobs. Beyond that, what was used least recently goes.
const KEPT_BYTES_MAX: u64 = 8 << 30;
/// Bytes read at once.
const PIECE: usize = 256 * 1024;

/// SHA-256 of a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

impl Hash {
    /// As it travels; `None` unless it has 32 bytes.
    pub fn of(content: &Content) -> Option<Self> {
        Self::read(&content.hash)
    }

    /// Of its bytes.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Hash)
    }

    fn content(self, size: u64) -> Content {
        Content { hash: self.0.to_vec().into(), size }
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where a file lies and how old it is: as long as these are the same, its bytes are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    place: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(file: &Metadata) -> Self {
        Identity {
            place: (file.dev(), file.ino()),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// The binary of a driver that runs: it may be replaced where it lies, and stays as it is while it is open.
struct Lent {
    file: Arc<File>,
    identity: Identity,
    path: PathBuf,
    jobs: BTreeSet<JobId>,
}

#[derive(Default)]
struct State {
    lent: BTreeMap<Hash, Lent>,
    /// Of what lies in the directory, what this process has verified.
    verified: BTreeSet<Hash>,
    known: BTreeMap<Identity, Hash>,
}

/// What a node has of executables and files. All functions that are not `async` may wait for the disk.
pub struct Packages {
    dir: PathBuf,
    jobs: PathBuf,
    state: Mutex<State>,
    /// Held by whoever brings something here, so that it is brought once.
    bringing: tokio::sync::Mutex<()>,
}

impl Packages {
    /// Below `dir`, which is this process's alone: `packages`, which outlives jobs and daemons, and `jobs`, which is
    /// emptied.
    ///
    /// # Errors
    /// A directory cannot be made, or not be emptied.
    pub fn open(dir: &Path) -> io::Result<Arc<Self>> {
        let (packages, jobs) = (dir.join("packages"), dir.join("jobs"));
        fs::create_dir_all(&packages)?;
        for left in fs::read_dir(&packages)?.flatten().filter(is_draft) {
            fs::remove_file(left.path())?;
        }
        match fs::remove_dir_all(&jobs) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir_all(&jobs)?;
        let (state, bringing) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Arc::new(Packages { dir: packages, jobs, state, bringing }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned: nothing panics under this lock")
    }

    fn place(&self, hash: Hash) -> PathBuf {
        self.dir.join(hash.to_string())
    }

    /// Keeps the binary of a driver open until its job ends; what it contains. The file that the process `pid` runs
    /// counts, whatever lies at `path` by now.
    ///
    /// # Errors
    /// Neither can be read.
    pub fn lend(&self, job: JobId, pid: u32, path: &Path) -> io::Result<Content> {
        // A driver in another process namespace has another number here.
        let file = File::open(format!("/proc/{pid}/exe")).or_else(|_| File::open(path))?;
        let identity = Identity::of(&file.metadata()?);
        let hash = self.hash_of(&file, identity)?;
        let mut state = self.state();
        let fresh = || Lent { file: Arc::new(file), identity, path: path.to_owned(), jobs: BTreeSet::new() };
        state.lent.entry(hash).or_insert_with(fresh).jobs.insert(job);
        Ok(hash.content(identity.size))
    }

    /// A job has ended: its binary is closed unless another one needs it, and its files are removed.
    pub fn end_job(&self, job: JobId) {
        self.state().lent.retain(|_, lent| {
            lent.jobs.remove(&job);
            !lent.jobs.is_empty()
        });
        runtime::remove(&self.jobs, job);
    }

    /// As [`Packages::end_job`], for who must not wait for the disk.
    pub fn let_go(self: &Arc<Self>, job: JobId) {
        let packages = self.clone();
        tokio::task::spawn_blocking(move || packages.end_job(job));
    }

    /// What a file contains; not read again while it is the same.
    fn hash_of(&self, file: &File, identity: Identity) -> io::Result<Hash> {
        if let Some(known) = self.state().known.get(&identity) {
            return Ok(*known);
        }
        let mut hash = Sha256::new();
        each_piece(file, |piece| {
            hash.update(piece);
            Ok(())
        })?;
        let hash = Hash(hash.finalize().into());
        self.state().known.insert(identity, hash);
        Ok(hash)
    }

    /// Takes a copy of a file that may change.
    ///
    /// # Errors
    /// It cannot be read, is no file, or is too large; or there is no room.
    pub fn take(&self, path: &Path) -> io::Result<(Content, bool)> {
        let file = File::open(path)?;
        let about = file.metadata()?;
        if !about.is_file() || about.len() > PACKAGE_BYTES_MAX {
            return Err(io::Error::other(format!("not a file of at most {PACKAGE_BYTES_MAX} bytes")));
        }
        let (hash, size) = self.copy_of(&file)?;
        Ok((hash.content(size), about.permissions().mode() & 0o100 != 0))
    }

    fn copy_of(&self, file: &File) -> io::Result<(Hash, u64)> {
        let mut draft = Draft::new(&self.dir)?;
        each_piece(file, |piece| draft.write(piece))?;
        draft.keep(self, None)
    }

    /// A file with this content, to be run or copied, if this node has one. `hint` is where one may lie.
    pub fn at_hand(&self, content: &Content, hint: &str) -> Option<PathBuf> {
        let hash = Hash::of(content)?;
        let lent = self.state().lent.get(&hash).map(|l| (l.file.clone(), l.identity, l.path.clone()));
        if let Some((_, identity, path)) = &lent
            && fs::metadata(path).is_ok_and(|there| Identity::of(&there) == *identity)
        {
            return Some(path.clone());
        }
        let kept = self.place(hash);
        let is_verified = self.state().verified.contains(&hash);
        if is_verified && kept.exists() || self.contains(&kept, hash, content.size) {
            self.state().verified.insert(hash);
            // For whoever makes room: it is in use.
            let _ = File::open(&kept).and_then(|file| file.set_modified(SystemTime::now()));
            return Some(kept);
        }
        if let Some((file, ..)) = lent {
            // Another build lies there by now.
            let copied = self.copy_of(&file).inspect_err(|error| tracing::warn!(%error, "cannot be copied"));
            return copied.ok().map(|(hash, _)| self.place(hash));
        }
        let hint = Path::new(hint);
        (hint.is_absolute() && self.contains(hint, hash, content.size)).then(|| hint.to_owned())
    }

    /// Whether the file at `path` is this one.
    fn contains(&self, path: &Path, hash: Hash, size: u64) -> bool {
        let Ok(file) = File::open(path) else { return false };
        let Ok(about) = file.metadata() else { return false };
        about.is_file()
            && about.len() == size
            && self.hash_of(&file, Identity::of(&about)).is_ok_and(|found| found == hash)
    }

    /// A file for another node, with its length.
    pub fn lend_out(&self, hash: Hash) -> Option<(Arc<File>, u64)> {
        let lent = self.state().lent.get(&hash).map(|lent| lent.file.clone());
        let file = lent.or_else(|| File::open(self.place(hash)).ok().map(Arc::new))?;
        let size = file.metadata().ok()?.len();
        Some((file, size))
    }

    /// Makes room for `bytes` more, if no more than `most` are to be kept.
    fn make_room(&self, bytes: u64, most: u64) {
        let entry = |entry: fs::DirEntry| {
            let about = entry.metadata().ok()?;
            Some((about.modified().ok()?, about.len(), entry.path()))
        };
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut kept: Vec<(SystemTime, u64, PathBuf)> =
            entries.flatten().filter(|e| !is_draft(e)).filter_map(entry).collect();
        kept.sort();
        let mut used: u64 = kept.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in kept {
            if used + bytes <= most {
                return;
            }
            // A process that runs it goes on; a worker that is to be started has it brought again.
            if fs::remove_file(path).is_ok() {
                used -= size;
            }
        }
    }
}

/// What is not complete is called so.
const DRAFT: &str = "draft-";

/// A place for something that is not complete.
fn draft_in(dir: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    dir.join(format!("{DRAFT}{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Whether this is something that was never completed, or is not yet.
fn is_draft(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with(DRAFT)
}

/// A file that is being written; it goes unless it is kept.
struct Draft {
    file: File,
    path: PathBuf,
    hash: Sha256,
    size: u64,
    is_kept: bool,
}

impl Draft {
    fn new(dir: &Path) -> io::Result<Self> {
        let path = draft_in(dir);
        let file = File::create(&path)?;
        Ok(Draft { file, path, hash: Sha256::new(), size: 0, is_kept: false })
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.hash.update(piece);
        self.size += piece.len() as u64;
        self.file.write_all(piece)
    }

    /// Keeps it under its hash; refused if that is not the one that was asked for.
    fn keep(mut self, packages: &Packages, wanted: Option<Hash>) -> io::Result<(Hash, u64)> {
        let hash = Hash(std::mem::take(&mut self.hash).finalize().into());
        if let Some(wanted) = wanted.filter(|wanted| *wanted != hash) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("content {wanted} was asked for, {hash} came"),
            ));
        }
        packages.make_room(self.size, KEPT_BYTES_MAX);
        self.file.set_permissions(fs::Permissions::from_mode(0o500))?;
        self.file.sync_all()?;
        fs::rename(&self.path, packages.place(hash))?;
        self.is_kept = true;
        packages.state().verified.insert(hash);
        Ok((hash, self.size))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Reads a file from its beginning, whoever else reads it.
fn each_piece(file: &File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut at = At { file, offset: 0 };
    let mut piece = vec![0; PIECE];
    loop {
        match at.read(&mut piece)? {
            0 => return Ok(()),
            n => take(&piece[..n])?,
        }
    }
}

struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = std::os::unix::fs::FileExt::read_at(self.file, bytes, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(name: &str) -> (PathBuf, Arc<Packages>) {
        let dir = std::env::temp_dir().join(format!("mobula-packages-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        (dir.clone(), Packages::open(&dir).expect("a directory"))
    }

    #[test]
    fn a_file_is_kept_by_its_content_and_damage_is_seen_before_it_is_used() {
        let (dir, packages) = packages("kept");
        let path = dir.join("tool");
        fs::write(&path, b"the first").expect("written");
        let (first, executable) = packages.take(&path).expect("taken");
        assert!(!executable);
        fs::write(&path, b"the second").expect("written");
        let kept = packages.at_hand(&first, "").expect("it is kept");
        assert_eq!(fs::read(&kept).expect("read"), b"the first");
        // Another daemon finds it there, and looks at it before it trusts it.
        let later = Packages::open(&dir).expect("a directory");
        assert_eq!(later.at_hand(&first, ""), Some(kept.clone()));
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o700)).expect("permissions");
        fs::write(&kept, b"the worst").expect("written");
        let later = Packages::open(&dir).expect("a directory");
        assert_eq!(later.at_hand(&first, ""), None);
        // What lies at the same path here counts if it is the same.
        fs::write(&path, b"the first").expect("written");
        let hint = path.display().to_string();
        assert_eq!(later.at_hand(&first, &hint), Some(path));
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn what_came_is_not_kept_if_it_is_not_what_was_asked_for() {
        let (dir, packages) = packages("asked");
        let mut draft = Draft::new(&packages.dir).expect("a file");
        draft.write(b"something else").expect("written");
        let asked = Hash(Sha256::digest(b"this").into());
        let error = draft.keep(&packages, Some(asked)).map(drop).expect_err("another content");
        assert!(error.to_string().contains(&asked.to_string()), "{error}");
        assert_eq!(fs::read_dir(&packages.dir).expect("there").count(), 0);
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn what_was_used_least_recently_makes_room_and_nothing_that_is_being_written() {
        let (dir, packages) = packages("room");
        let [one, two, three] = ["one", "two", "six"].map(|text| {
            fs::write(dir.join("source"), text).expect("written");
            packages.take(&dir.join("source")).expect("taken").0
        });
        let used = |content: &Content, seconds: u64| {
            let kept = packages.place(Hash::of(content).expect("32 bytes"));
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            File::open(kept).and_then(|file| file.set_modified(at)).expect("its time is set");
        };
        used(&one, 30);
        used(&two, 10);
        used(&three, 20);
        let mut draft = Draft::new(&packages.dir).expect("a file");
        draft.write(b"never mind").expect("written");
        packages.make_room(1, 10);
        let is_kept = |content: &Content| packages.place(Hash::of(content).expect("32 bytes")).exists();
        assert_eq!([&one, &two, &three].map(is_kept), [true, true, true], "there is room");
        packages.make_room(4, 10);
        assert_eq!([&one, &two, &three].map(is_kept), [true, false, true]);
        assert!(draft.path.exists());
        // A daemon that was killed leaves it behind.
        draft.is_kept = true;
        let later = Packages::open(&dir).expect("a directory");
        assert!(!draft.path.exists() && later.at_hand(&one, "").is_some());
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn a_running_binary_is_lent_whatever_becomes_of_its_path() {
        let (dir, packages) = packages("lent");
        let here = std::env::current_exe().expect("a path");
        let (one, two) = (JobId(1), JobId(2));
        let content = packages.lend(one, std::process::id(), &here).expect("lent");
        assert_eq!(content.size, fs::metadata(&here).expect("there").len());
        assert_eq!(packages.at_hand(&content, ""), Some(here));
        let again = packages.lend(two, std::process::id(), &dir.join("gone")).expect("lent");
        assert_eq!(again, content);
        let hash = Hash::of(&content).expect("32 bytes");
        packages.end_job(one);
        assert!(packages.lend_out(hash).is_some_and(|(_, size)| size == content.size));
        packages.end_job(two);
        assert!(packages.lend_out(hash).is_none());
        fs::remove_dir_all(dir).expect("removed");
    }
}
