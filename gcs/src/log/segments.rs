//! Reading segments back: what is valid, where a tail is torn, and what is damage (R14).

use super::frame::{self, Header, Kind};
use super::record::SegmentHeader;
use crate::error::Error;
use mobula_base::disk::Disk;
use prost::Message;

/// The directory of the segments, relative to the head's data.
pub const DIR: &str = "log";

/// The name of segment `number`.
pub fn name(number: u64) -> String {
    format!("{DIR}/{number:010}.seg")
}

/// Numbers of the segments on disk, ascending.
pub fn list(disk: &dyn Disk) -> Result<Vec<u64>, Error> {
    let names = disk.list(DIR).map_err(|error| Error::storage(DIR, error))?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(".seg")?.parse().ok()).collect())
}

/// What was found in one segment.
pub struct Scan {
    /// What its first frame says; `None` when not even that was written whole.
    pub header: Option<SegmentHeader>,
    /// Length of the valid part, in bytes.
    pub valid: u64,
    /// Length of the file, in bytes.
    pub len: u64,
}

/// Reads segment `number` and hands every frame to `visit`.
///
/// # Errors
/// Damage to bytes that had been synced. `last` says that no later segment exists: only there may
/// a tail be torn, since a segment is synced before its successor is made.
pub fn scan(
    disk: &dyn Disk,
    number: u64,
    last: bool,
    mut visit: impl FnMut(Header, &[u8]) -> Result<(), Error>,
) -> Result<Scan, Error> {
    let file = name(number);
    let bytes = disk.read(&file).map_err(|error| Error::storage(&file, error))?;
    let mut at = 0;
    let mut header = None;
    while let Some((found, payload)) = frame::decode(&bytes, at, number) {
        let next = at + frame::HEADER + payload.len();
        if found.kind == Kind::Segment {
            let decoded = SegmentHeader::decode(payload).map_err(|error| Error::Corrupt {
                file: file.clone(),
                offset: at as u64,
                detail: format!("unreadable segment header: {error}"),
            })?;
            header = Some(decoded);
        }
        visit(found, payload)?;
        at = next;
    }
    let scan = Scan { header, valid: at as u64, len: bytes.len() as u64 };
    if at == bytes.len() && at > 0 {
        return Ok(scan);
    }
    let corrupt = |detail: String| Error::Corrupt { file: file.clone(), offset: at as u64, detail };
    if !last {
        return Err(corrupt("a later segment exists, so all of this one had been synced".into()));
    }
    // Whatever a later frame knew to be synced cannot be a torn tail.
    for later in at + 1..bytes.len().saturating_sub(frame::HEADER - 1) {
        if let Some((found, _)) = frame::decode(&bytes, later, number)
            && found.synced > at as u64
        {
            return Err(corrupt(format!(
                "a later write, at {later}, knew everything before {} to be on the disk",
                found.synced
            )));
        }
    }
    Ok(scan)
}
