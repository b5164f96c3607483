//! What a disk does by itself: small writes over the same bytes, each synced, as a log does.
//!
//! Printed beside what the control store does on it, since no replica can be faster.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Data is synced in pieces of this size, in bytes.
const BYTES: usize = 4096;
/// So many pieces lie beside each other.
const PIECES: usize = 256;

/// A file that is written over.
pub struct DiskProbe(File);

impl DiskProbe {
    /// Makes the file in `dir`, and writes it once: growing a file takes longer.
    ///
    /// # Errors
    /// The disk cannot be written.
    pub fn open(dir: &Path) -> Result<DiskProbe, String> {
        let path = dir.join("sync-test");
        let made = File::create(&path).and_then(|file| {
            file.write_all_at(&vec![0; BYTES * PIECES], 0)?;
            file.sync_all()?;
            Ok(file)
        });
        made.map(DiskProbe).map_err(|e| format!("cannot measure the disk at {}: {e}", path.display()))
    }

    /// How long each of `count` syncs takes.
    ///
    /// # Errors
    /// The disk failed.
    pub fn syncs(&self, count: usize) -> Result<Vec<Duration>, String> {
        let data = [7u8; BYTES];
        let one = |n: usize| -> io::Result<Duration> {
            let at = Instant::now();
            self.0.write_all_at(&data, (n % PIECES * BYTES) as u64)?;
            self.0.sync_data()?;
            Ok(at.elapsed())
        };
        (0..count).map(one).collect::<io::Result<_>>().map_err(|e| format!("cannot measure the disk: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sync_is_timed() {
        let dir = crate::cluster::janitor::fresh_dir().expect("room for a file");
        let probe = DiskProbe::open(&dir).expect("the disk works");
        assert_eq!(probe.syncs(PIECES + 1).expect("the disk works").len(), PIECES + 1);
        assert!(DiskProbe::open(&dir.join("missing")).is_err());
        std::fs::remove_dir_all(dir).expect("it can be removed");
    }
}
