//! Reading segments back: what is valid, where a tail is torn, and what is damage (R14).

use super::files::FORMAT;
use super::frame::{self, Header, Kind};
use super::record::SegmentHeader;
use crate::error::Error;
use bytes::BytesMut;
use mobula_base::disk::Disk;
use prost::Message;

/// The directory of the segments, relative to the head's data.
pub const DIR: &str = "log";

/// Read at a time while verifying, in bytes.
const BLOCK: usize = 1 << 20;
/// A run that is skipped when looking for frames: most of a segment is not written yet.
const ZEROS: [u8; 512] = [0; 512];

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
    /// Whether it ends with a seal: nothing after is part of it.
    pub sealed: bool,
}

/// Reads segment `number` and hands every frame to `visit`.
///
/// # Errors
/// Damage to bytes that had been synced. `last` says that no later segment exists: only there may
/// a tail be torn, since a segment is sealed and synced before its successor gets its name.
pub fn scan(
    disk: &dyn Disk,
    number: u64,
    last: bool,
    mut visit: impl FnMut(Header, &[u8]) -> Result<(), Error>,
) -> Result<Scan, Error> {
    let file = name(number);
    let bytes = disk.read(&file).map_err(|error| Error::storage(&file, error))?;
    let corrupt =
        |at: usize, detail: String| Error::Corrupt { file: file.clone(), offset: at as u64, detail };
    let mut scan = Scan { header: None, valid: 0, len: bytes.len() as u64, sealed: false };
    let mut at = 0;
    while !scan.sealed
        && let Some((found, payload)) = frame::decode(&bytes, at, number)
    {
        match found.kind {
            Kind::Segment => {
                let decoded = SegmentHeader::decode(payload)
                    .map_err(|error| corrupt(at, format!("unreadable segment header: {error}")))?;
                if decoded.format > FORMAT {
                    return Err(Error::Newer { found: decoded.format, known: FORMAT });
                }
                scan.header = Some(decoded);
            }
            Kind::Seal => scan.sealed = true,
            _ => {}
        }
        visit(found, payload)?;
        at += frame::HEADER + payload.len();
    }
    scan.valid = at as u64;
    // Format 1 had no seals: a whole segment ended with its file.
    let old = scan.header.as_ref().is_some_and(|header| header.format == 1);
    if scan.sealed || (old && at == bytes.len()) {
        return Ok(scan);
    }
    if !last {
        return Err(corrupt(at, "a later segment exists, so all of this one had been synced".into()));
    }
    // Whatever a later frame knew to be synced cannot be a torn tail.
    let mut later = at + 1;
    while later + frame::HEADER <= bytes.len() {
        if bytes[later..].starts_with(&ZEROS) {
            later += ZEROS.len();
            // A frame may begin with zeros, but its generation follows within its fixed part.
            if !bytes[later..].starts_with(&ZEROS) {
                later -= frame::HEADER;
            }
        }
        if let Some((found, _)) = frame::decode(&bytes, later, number)
            && found.synced > at as u64
        {
            let knew = format!(
                "a later write, at {later}, knew everything before {} to be on the disk",
                found.synced
            );
            return Err(corrupt(at, knew));
        }
        later += 1;
    }
    Ok(scan)
}

/// Reads a segment that is whole, a little at a time; its length.
///
/// # Errors
/// Damage, or a disk that fails.
pub fn verify(disk: &dyn Disk, number: u64) -> Result<u64, Error> {
    let name = name(number);
    let storage = |error| Error::storage(&name, error);
    let mut file = disk.open(&name, false).map_err(storage)?;
    let (len, mut at) = (file.len().map_err(storage)?, 0);
    // Format 1 had no seals: a whole segment ended with its file.
    while at < len {
        let mut block = file.read_at(at, BLOCK).map_err(storage)?;
        let payload = block.first_chunk().map_or(0, |len: &[u8; 4]| u32::from_le_bytes(*len) as usize);
        if frame::HEADER + payload > block.len() && at + payload as u64 <= len {
            block = file.read_at(at, frame::HEADER + payload).map_err(storage)?;
        }
        let start = at;
        while let Some((found, payload)) = frame::decode_at(&block[(at - start) as usize..], at, number) {
            at += (frame::HEADER + payload.len()) as u64;
            if found.kind == Kind::Seal {
                return Ok(at);
            }
        }
        if at == start {
            let detail = "checksum of a frame that had been synced".to_owned();
            return Err(Error::Corrupt { file: name.clone(), offset: at, detail });
        }
    }
    Ok(at)
}

/// Ends a segment whose tail was torn, or that nobody had time to seal.
///
/// # Errors
/// The disk failed.
pub fn seal(disk: &dyn Disk, number: u64, scan: &Scan) -> Result<(), Error> {
    let file = name(number);
    let mut bytes = BytesMut::new();
    let header =
        Header { kind: Kind::Seal, shard: 0, generation: number, offset: scan.valid, synced: scan.valid };
    frame::encode(&header, &[], &mut bytes);
    let sealed = disk.open(&file, false).and_then(|mut open| {
        open.write_at(scan.valid, &bytes)?;
        open.sync()
    });
    sealed.map_err(|error| Error::storage(&file, error))
}
