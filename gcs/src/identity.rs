//! Who a data directory belongs to: the `identity` file, and the lock that keeps a second head out.

use crate::error::Error;
use mobula_base::disk::{Disk, write_atomically};
use prost::Message;
use std::fs;
use std::io;

/// Name of the file.
const FILE: &str = "identity";
/// What it is written as before it takes its name.
const TEMPORARY: &str = "identity.tmp";
/// Name of the lock file.
const LOCK: &str = "lock";
/// Format version of a data directory that this build writes, and the newest it reads.
pub const FORMAT: u32 = 1;

/// What a head must not forget.
#[derive(Clone, PartialEq, Message)]
pub struct Identity {
    /// Format version of the whole directory.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The cluster, never 0.
    #[prost(fixed64, tag = "2")]
    pub cluster: u64,
    /// This head, from 1.
    #[prost(uint64, tag = "3")]
    pub head: u64,
    /// Number of shards of the cluster.
    #[prost(uint32, tag = "4")]
    pub shards: u32,
    /// Addresses of the heads the cluster was made of, sorted.
    #[prost(string, repeated, tag = "5")]
    pub founders: Vec<String>,
    /// Level of formats that this directory may hold; 0 stands for 1. See [`crate::level`].
    #[prost(uint32, tag = "6")]
    pub level: u32,
    /// The version of the program that brought it there.
    #[prost(string, tag = "7")]
    pub program: String,
    /// The log has been begun: from now on it must be there.
    #[prost(bool, tag = "8")]
    pub begun: bool,
}

impl Identity {
    /// Reads the file; `None` in a fresh directory.
    ///
    /// # Errors
    /// Damage, a newer format, or a disk that fails.
    pub fn load(disk: &dyn Disk) -> Result<Option<Self>, Error> {
        let bytes = match disk.read(FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| Error::storage(FILE, error))?,
        };
        let damaged = |detail: &str| Error::Corrupt { file: FILE.into(), offset: 0, detail: detail.into() };
        let (crc, body) = bytes.split_at_checked(4).ok_or_else(|| damaged("too short"))?;
        if crc != crc32fast::hash(body).to_le_bytes() {
            return Err(damaged("checksum"));
        }
        let identity = Identity::decode(body).map_err(|_| damaged("not an identity"))?;
        if identity.format > FORMAT {
            return Err(Error::Newer { found: identity.format, known: FORMAT });
        }
        Ok(Some(identity))
    }

    /// Writes the file; durable when this returns.
    ///
    /// # Errors
    /// The disk failed.
    pub fn save(&self, disk: &dyn Disk) -> Result<(), Error> {
        let body = self.encode_to_vec();
        let mut bytes = crc32fast::hash(&body).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        let write = || -> io::Result<()> {
            let mut file = disk.open(TEMPORARY, true)?;
            file.set_len(0)?;
            file.write_at(0, &bytes)?;
            file.sync()?;
            disk.rename(TEMPORARY, FILE)?;
            disk.sync_dir("")
        };
        write().map_err(|error| Error::storage(FILE, error))
    }
}

/// Name of the file that holds the number a head that is to join asks with.
pub const JOINER: &str = "joiner";

/// The number this directory asks to join with: the same after a restart, another one once the
/// directory was emptied.
///
/// # Errors
/// The disk failed.
pub fn joiner_nonce(disk: &dyn Disk, offer: u64) -> Result<u64, Error> {
    let failed = |error| Error::storage(JOINER, error);
    match disk.read(JOINER) {
        Ok(bytes) => {
            let number = bytes.try_into().map(u64::from_le_bytes).unwrap_or(0);
            if number != 0 {
                return Ok(number);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let number = offer.max(1);
    write_atomically(disk, "", JOINER, &number.to_le_bytes()).map_err(failed)?;
    Ok(number)
}

/// Held while a head uses a real directory; simulated disks have one user by construction.
pub struct Lock(Option<fs::File>);

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Another head has it, or the disk failed.
    pub fn take(disk: &dyn Disk) -> Result<Self, Error> {
        let Some(path) = disk.real_path(LOCK) else { return Ok(Lock(None)) };
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| Error::storage(LOCK, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(Some(file))),
            Err(fs::TryLockError::WouldBlock) => Err(Error::InUse),
            Err(fs::TryLockError::Error(error)) => Err(Error::storage(LOCK, error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            // Closing the file would do it too.
            file.unlock().ok();
        }
    }
}
