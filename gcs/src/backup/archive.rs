//! The file of a backup: what all shards hold, each as of one entry of its log.
//!
//! ```text
//! record = u32 len | u32 crc | u8 kind | bytes      little-endian; len and crc are of kind and bytes
//! file   = head, then for each shard: its head and its data in pieces, then the end
//! ```

use crate::cold::Manifest;
use crate::error::Error;
use mobula_proto::DumpHead;
use prost::Message;
use std::io::{self, Read, Write};

/// Format version of the file.
pub const FORMAT: u32 = 1;
/// No record may be longer, in bytes.
const RECORD_MAX: usize = 16 << 20;

const HEAD: u8 = 1;
const SHARD: u8 = 2;
const DATA: u8 = 3;
const END: u8 = 4;

/// What the file says first.
#[derive(Clone, PartialEq, Message)]
pub struct ArchiveHead {
    /// Format version.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The cluster it was taken from.
    #[prost(fixed64, tag = "2")]
    pub cluster: u64,
    /// Its shards.
    #[prost(uint32, tag = "3")]
    pub shards: u32,
    /// When, by the clock of the machine that took it, in ms since 1970.
    #[prost(uint64, tag = "4")]
    pub unix_ms: u64,
}

/// Part of an archive, in the order of the file.
pub enum Piece<'a> {
    /// First.
    Head(&'a ArchiveHead),
    /// A shard begins.
    Shard(&'a DumpHead),
    /// Bytes of the shard: its dump, then its files.
    Data(&'a [u8]),
}

/// What an archive holds.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// What it says of itself.
    pub head: ArchiveHead,
    /// Its shards.
    pub shards: Vec<DumpHead>,
    /// Its length, in bytes.
    pub bytes: u64,
}

/// The files that belong to a shard of an archive.
///
/// # Errors
/// The head of the shard is damaged.
pub fn manifest(head: &DumpHead) -> io::Result<Manifest> {
    Manifest::decode(head.cold.clone()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes an archive.
pub struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    ///
    /// # Errors
    /// The disk failed.
    pub fn new(to: W, head: &ArchiveHead) -> io::Result<Self> {
        let mut writer = Writer { to };
        writer.record(HEAD, &head.encode_to_vec())?;
        Ok(writer)
    }

    /// Begins a shard.
    ///
    /// # Errors
    /// The disk failed.
    pub fn shard(&mut self, head: &DumpHead) -> io::Result<()> {
        self.record(SHARD, &head.encode_to_vec())
    }

    /// Adds bytes to the shard.
    ///
    /// # Errors
    /// The disk failed.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(RECORD_MAX / 2).try_for_each(|piece| self.record(DATA, piece))
    }

    /// Ends the archive; it is not durable yet.
    ///
    /// # Errors
    /// The disk failed.
    pub fn finish(mut self) -> io::Result<W> {
        self.record(END, &[])?;
        Ok(self.to)
    }

    fn record(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&[kind]);
        crc.update(bytes);
        self.to.write_all(&(bytes.len() as u32 + 1).to_le_bytes())?;
        self.to.write_all(&crc.finalize().to_le_bytes())?;
        self.to.write_all(&[kind])?;
        self.to.write_all(bytes)
    }
}

/// Reads an archive to its end, and checks that it is whole.
///
/// # Errors
/// It is damaged or cut short, newer than this build, or `visit` failed.
pub fn read(
    mut from: impl Read,
    name: &str,
    mut visit: impl FnMut(Piece<'_>) -> io::Result<()>,
) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    // Bytes of the shard at hand that are still to come.
    let mut missing = 0u64;
    loop {
        let at = summary.bytes;
        let damaged = |detail: &str| Error::Archive { file: name.into(), offset: at, detail: detail.into() };
        let record = next(&mut from).map_err(|error| damaged(&error.to_string()))?;
        summary.bytes += record.len() as u64 + 8;
        let (kind, bytes) = (record[0], &record[1..]);
        let first = at == 0;
        let visited = match kind {
            HEAD if first => {
                summary.head = ArchiveHead::decode(bytes).map_err(|_| damaged("unreadable head"))?;
                if summary.head.format > FORMAT {
                    return Err(Error::Newer { found: summary.head.format, known: FORMAT });
                }
                visit(Piece::Head(&summary.head))
            }
            SHARD if !first && missing == 0 => {
                let head = DumpHead::decode(bytes).map_err(|_| damaged("unreadable head of a shard"))?;
                let cold = manifest(&head).map_err(|_| damaged("unreadable head of a shard"))?;
                if head.shard as usize != summary.shards.len() {
                    return Err(damaged("a shard is missing or twice there"));
                }
                missing = head.dump_bytes.saturating_add(cold.bytes());
                let visited = visit(Piece::Shard(&head));
                summary.shards.push(head);
                visited
            }
            DATA if bytes.len() as u64 <= missing => {
                missing -= bytes.len() as u64;
                visit(Piece::Data(bytes))
            }
            END if !first && missing == 0 && summary.shards.len() as u32 == summary.head.shards => {
                if from.read(&mut [0]).map_err(|error| damaged(&error.to_string()))? != 0 {
                    return Err(damaged("there is more after its end"));
                }
                return Ok(summary);
            }
            _ => return Err(damaged("a record that does not belong here")),
        };
        visited.map_err(|error| Error::storage(name, error))?;
    }
}

fn next(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let (mut len, mut crc) = ([0; 4], [0; 4]);
    let cut = |_| wrong("the file is cut short");
    from.read_exact(&mut len).map_err(cut)?;
    from.read_exact(&mut crc).map_err(cut)?;
    let len = u32::from_le_bytes(len) as usize;
    if len == 0 || len > RECORD_MAX {
        return Err(wrong("length of a record"));
    }
    let mut record = vec![0; len];
    from.read_exact(&mut record).map_err(cut)?;
    if crc32fast::hash(&record) != u32::from_le_bytes(crc) {
        return Err(wrong("checksum"));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let head = ArchiveHead { format: FORMAT, cluster: 7, shards: 2, unix_ms: 1 };
        let mut writer = Writer::new(Vec::new(), &head).expect("a Vec grows");
        for shard in 0..2 {
            let head = DumpHead { shard, index: 9, dump_bytes: 5, ..Default::default() };
            writer.shard(&head).expect("a Vec grows");
            writer.data(b"hello").expect("a Vec grows");
        }
        writer.finish().expect("a Vec grows")
    }

    #[test]
    fn an_archive_is_read_back_whole_or_not_at_all() {
        let whole = archive();
        let mut data = Vec::new();
        let summary = read(&whole[..], "a", |piece| {
            if let Piece::Data(bytes) = piece {
                data.extend_from_slice(bytes);
            }
            Ok(())
        });
        let summary = summary.expect("whole");
        assert_eq!(
            (summary.shards.len(), summary.bytes, data),
            (2, whole.len() as u64, b"hellohello".to_vec())
        );
        for cut in 0..whole.len() {
            read(&whole[..cut], "a", |_| Ok(())).expect_err("cut short");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            let error = read(&flipped[..], "a", |_| Ok(())).expect_err("a flipped bit");
            assert!(error.to_string().contains("damaged"), "{error}");
        }
        let mut longer = whole;
        longer.push(0);
        read(&longer[..], "a", |_| Ok(())).expect_err("more after its end");
    }
}
