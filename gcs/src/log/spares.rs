//! Files that wait for their turn as segments: filled with zeros ahead of need by a thread of its
//! own, or recycled. Frames go only where bytes have been written and synced before: overwriting
//! takes half as long to sync as growing a file, and cannot run out of space.
//!
//! Two kinds: spares, for anyone; and the reserve, taken only when the disk is full.

use super::segments::DIR;
use super::sizes::Sizes;
use mobula_base::disk::Disk;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

const PREFIX: &str = "spare-";
/// With a full disk, filling is tried again this often.
pub const RETRY_FULL: Duration = Duration::from_millis(100);

/// A file that waits.
#[derive(Clone, Debug)]
pub struct Spare {
    /// Path on the disk.
    pub path: String,
    /// Length, in bytes.
    pub len: u64,
}

#[derive(Default)]
struct State {
    spares: Vec<Spare>,
    reserve: Option<Spare>,
    /// Length of the next spare that is made ahead of need; 0 while none is wanted.
    wanted: u64,
    next: u64,
    full: bool,
    /// The disk failed while zeros were written.
    failed: Option<String>,
    closed: bool,
}

struct Shared {
    disk: Arc<dyn Disk>,
    sizes: Sizes,
    state: Mutex<State>,
    changed: Condvar,
}

/// All files that wait. The thread ends when this is dropped.
pub struct Spares {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Whether an error says that there is no room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Spares {
    /// Takes over what an earlier life left, and starts filling where calls may block.
    ///
    /// # Errors
    /// The disk failed.
    pub fn open(disk: Arc<dyn Disk>, sizes: Sizes) -> io::Result<Self> {
        let mut state = State::default();
        for name in disk.list(DIR)? {
            let Some(number) = name.strip_prefix(PREFIX) else { continue };
            let path = format!("{DIR}/{name}");
            let len = disk.open(&path, false)?.len()?;
            state.next = state.next.max(number.parse::<u64>().map_or(0, |number| number + 1));
            let spare = Spare { path, len };
            if state.reserve.is_none() && sizes.reserve > 0 && len >= sizes.reserve {
                state.reserve = Some(spare);
            } else if state.spares.len() < sizes.spares && len >= sizes.first {
                state.spares.push(spare);
            } else {
                disk.remove(&spare.path)?;
            }
        }
        let blocks = disk.blocks();
        let shared = Arc::new(Shared { disk, sizes, state: Mutex::new(state), changed: Condvar::new() });
        let thread = if blocks {
            let shared = shared.clone();
            let named = std::thread::Builder::new().name("mobula-fill".into());
            Some(named.spawn(move || shared.run())?)
        } else {
            shared.tend();
            None
        };
        Ok(Spares { shared, thread })
    }

    /// A file of at least `need` bytes; made on the spot if none waits.
    ///
    /// # Errors
    /// The disk is full (see [`is_full`]) and the reserve used up, or it failed.
    pub fn take(&self, need: u64) -> io::Result<Spare> {
        {
            let mut state = self.shared.state();
            let fits = |spare: &Spare| spare.len >= need;
            let best = (0..state.spares.len()).filter(|at| fits(&state.spares[*at]));
            if let Some(at) = best.min_by_key(|at| state.spares[*at].len) {
                let spare = state.spares.swap_remove(at);
                self.shared.changed.notify_one();
                return Ok(spare);
            }
        }
        match self.shared.fill(need.max(self.shared.sizes.first)) {
            Err(error) if is_full(&error) => {
                let mut state = self.shared.state();
                state.full = true;
                state.wanted = state.wanted.max(need);
                self.shared.changed.notify_one();
                state.reserve.take_if(|reserve| reserve.len >= need).ok_or(error)
            }
            made => made,
        }
    }

    /// From now on one spare of `len` bytes is made ahead of need.
    pub fn want(&self, len: u64) {
        self.shared.state().wanted = len;
        self.shared.changed.notify_one();
    }

    /// Keeps a segment that is not needed any more as a spare, or removes it; the caller syncs the
    /// directory before the file is written again.
    ///
    /// # Errors
    /// The disk failed.
    pub fn give(&self, path: &str, len: u64) -> io::Result<()> {
        let mut state = self.shared.state();
        let reserve = self.shared.sizes.reserve;
        let as_reserve = state.reserve.is_none() && reserve > 0 && len >= reserve;
        // A short one would soon have to be followed by another.
        let long = len >= state.wanted.max(self.shared.sizes.first);
        if as_reserve || (long && state.spares.len() < self.shared.sizes.spares) {
            let spare = Spare { path: format!("{DIR}/{PREFIX}{}", state.next), len };
            state.next += 1;
            self.shared.disk.rename(path, &spare.path)?;
            // The caller is the only taker, and syncs first.
            if as_reserve {
                state.reserve = Some(spare);
            } else {
                state.spares.push(spare);
            }
            self.shared.changed.notify_one();
            return Ok(());
        }
        drop(state);
        self.shared.disk.remove(path)?;
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Whether the disk is full: only what frees space should be written.
    pub fn full(&self) -> bool {
        self.shared.state().full
    }

    /// Why zeros could not be written, other than for want of space.
    pub fn failed(&self) -> Option<String> {
        self.shared.state().failed.clone()
    }

    /// Where no thread does it: makes what is missing, if there is room now.
    pub fn tend(&self) {
        if self.thread.is_none() {
            self.shared.tend();
        }
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It panics only if a lock was poisoned, and then this process reports that elsewhere.
            thread.join().ok();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }

    fn run(&self) {
        loop {
            let retry = self.tend();
            let state = self.state();
            if state.closed {
                return;
            }
            if retry {
                drop(self.changed.wait_timeout(state, RETRY_FULL).expect("nothing panics under this lock"));
            } else if self.missing(&state).is_none() || state.failed.is_some() {
                drop(self.changed.wait(state).expect("nothing panics under this lock"));
            }
        }
    }

    /// What should be made next: its length, and whether it is the reserve.
    fn missing(&self, state: &State) -> Option<(u64, bool)> {
        if state.closed || state.failed.is_some() {
            None
        } else if state.reserve.is_none() && self.sizes.reserve > 0 {
            Some((self.sizes.reserve, true))
        } else if state.spares.is_empty() && state.wanted > 0 && (self.disk.blocks() || state.full) {
            Some((state.wanted, false))
        } else {
            None
        }
    }

    /// Makes what is missing. Whether it is worth trying again soon.
    fn tend(&self) -> bool {
        loop {
            let Some((len, reserve)) = self.missing(&self.state()) else {
                let mut state = self.state();
                if state.full && !state.closed {
                    state.full = false;
                    tracing::info!("there is room on the disk again");
                }
                return false;
            };
            let made = self.fill(len);
            let mut state = self.state();
            match made {
                Ok(spare) if reserve => state.reserve = Some(spare),
                Ok(spare) => state.spares.push(spare),
                Err(error) if is_full(&error) => {
                    if !state.full {
                        tracing::error!("the disk is full: only what frees space is taken");
                    }
                    state.full = true;
                    return true;
                }
                Err(error) => {
                    state.failed = Some(error.to_string());
                    return false;
                }
            }
        }
    }

    /// A new file of `len` zeros, all of them on the disk.
    fn fill(&self, len: u64) -> io::Result<Spare> {
        let path = {
            let mut state = self.state();
            state.next += 1;
            format!("{DIR}/{PREFIX}{}", state.next - 1)
        };
        let filled = self.fill_file(&path, len);
        if filled.is_err() {
            // What was filled so far gives its room back; if even that fails the next start does it.
            self.disk.remove(&path).ok();
        }
        filled.map(|()| Spare { path, len })
    }

    fn fill_file(&self, path: &str, len: u64) -> io::Result<()> {
        let mut file = self.disk.open(path, true)?;
        let zeros = vec![0; self.sizes.step.min(len) as usize];
        let mut at = 0;
        while at < len {
            if self.state().closed {
                return Err(io::Error::other("the log is closing"));
            }
            let step = self.sizes.step.min(len - at);
            file.write_at(at, &zeros[..step as usize])?;
            file.sync()?;
            // The next piece takes the same memory again.
            file.forget(at, step);
            at += step;
        }
        Ok(())
    }
}
