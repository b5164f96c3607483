//! The bytes of a file of cold runs.
//!
//! ```text
//! record = u32 len | u32 crc | u128 run (big-endian) | u64 job | payload      the rest little-endian
//! ```
//! `len` is the payload's; the CRC covers all after itself, and `len`.

use bytes::{BufMut, Bytes};
use mobula_base::disk::Disk;
use mobula_base::{RunId, mutant};
use std::io;

/// Bytes before the payload.
pub const HEADER: usize = 32;
/// A scan reads this much at a time, in bytes.
const BLOCK: usize = 1 << 20;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the file.
    pub file: u64,
    /// Where the record starts, in bytes.
    pub offset: u64,
    /// Length of the record, header included, in bytes.
    pub len: u32,
}

impl Place {
    /// Bytes in an index.
    pub const LEN: usize = 20;

    /// Whether the record says that its run is not here any more: it is without bytes. No index names it.
    pub fn is_gone(self) -> bool {
        self.len as usize == HEADER
    }

    /// As it stands in an index.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.file.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    /// The inverse of [`Place::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Place {
            file: u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?),
            offset: u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
            len: u32::from_le_bytes(bytes.get(16..)?.try_into().ok()?),
        })
    }
}

/// What a record says before its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Length of the payload, in bytes.
    pub len: u32,
    crc: u32,
    /// Which run.
    pub run: RunId,
    /// Whose.
    pub job: u64,
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Head {
            len: u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?),
            crc: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
            run: RunId(u128::from_be_bytes(bytes.get(8..24)?.try_into().ok()?)),
            job: u64::from_le_bytes(bytes.get(24..HEADER)?.try_into().ok()?),
        })
    }
}

fn crc(fixed: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&fixed[..4]);
    hasher.update(&fixed[8..HEADER]);
    hasher.update(payload);
    hasher.finalize()
}

/// Appends a record.
pub fn encode(run: RunId, job: u64, payload: &[u8], out: &mut Vec<u8>) {
    let mut fixed = [0; HEADER];
    fixed[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    fixed[8..24].copy_from_slice(&run.0.to_be_bytes());
    fixed[24..].copy_from_slice(&job.to_le_bytes());
    let crc = crc(&fixed, payload);
    fixed[4..8].copy_from_slice(&crc.to_le_bytes());
    out.put_slice(&fixed);
    out.put_slice(payload);
}

/// Reads a whole record; `None` when it is damaged.
pub fn decode(record: Bytes) -> Option<(Head, Bytes)> {
    let head = Head::read(&record)?;
    let fixed = record.slice(..HEADER);
    let payload = record.slice(HEADER..);
    let right = crc(&fixed, &payload) == head.crc || mutant!("M23");
    (payload.len() == head.len as usize && right).then_some((head, payload))
}

/// Visits the heads of all records in the first `len` bytes of a file, without their payloads.
///
/// # Errors
/// The disk failed, or the records do not add up to `len`.
pub fn scan(
    disk: &dyn Disk,
    path: &str,
    len: u64,
    mut visit: impl FnMut(u64, Head) -> io::Result<()>,
) -> io::Result<()> {
    let damaged =
        |at: u64| io::Error::new(io::ErrorKind::InvalidData, format!("{path} is damaged at offset {at}"));
    let mut file = disk.open(path, false)?;
    if file.len()? < len {
        return Err(damaged(len));
    }
    let (mut block, mut start, mut at) = (Vec::new(), 0, 0);
    while at < len {
        let within = (at - start) as usize;
        if within + HEADER > block.len() {
            (block, start) = (file.read_at(at, BLOCK)?, at);
        }
        let within = (at - start) as usize;
        let head = Head::read(&block[within..]).ok_or_else(|| damaged(at))?;
        let next = at + (HEADER as u64) + u64::from(head.len);
        if next > len {
            return Err(damaged(at));
        }
        visit(at, head)?;
        at = next;
    }
    Ok(())
}

/// Checks every record in the first `len` bytes of a file; where the first is that is damaged.
///
/// # Errors
/// The disk failed.
pub fn first_damaged(disk: &dyn Disk, path: &str, len: u64) -> io::Result<Option<u64>> {
    let mut file = disk.open(path, false)?;
    let mut at = 0;
    while at < len {
        let Some(head) = Head::read(&file.read_at(at, HEADER)?) else { return Ok(Some(at)) };
        let next = at + HEADER as u64 + u64::from(head.len);
        if next > len || decode(file.read_at(at, (next - at) as usize)?.into()).is_none() {
            return Ok(Some(at));
        }
        at = next;
    }
    Ok(None)
}
