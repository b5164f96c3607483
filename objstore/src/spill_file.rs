//! The file of an object that has left memory: a header, then the bytes of the object as they were.
//!
//! Whoever reads one believes nothing: the header has a checksum of its own, and the bytes must have the
//! checksum that the header names. Pure; reading and writing are somebody else's.

use mobula_base::{JobId, ObjectId};

/// Bytes before the object's own.
pub const HEADER_BYTES: usize = 64;
/// What such files are called at the end.
pub const EXTENSION: &str = "spill";

const MAGIC: [u8; 8] = *b"MOBSPILL";
const VERSION: u32 = 1;
/// Bit 0 and up: reserved for how the bytes are packed. They are not.
const FLAGS: u32 = 0;
const CRC_AT: usize = HEADER_BYTES - 4;

/// What a file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose bytes follow.
    pub object: ObjectId,
    /// The object's job.
    pub job: JobId,
    /// How many bytes.
    pub len: u64,
    /// CRC-32 of them.
    pub crc: u32,
}

/// Why a file is not what it should be. It counts as gone, whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It ends before its header does, or before its bytes do, or goes on after them.
    Length,
    /// It is something else.
    Magic,
    /// Another release wrote it.
    Version(u32),
    /// The header has other bytes than were written.
    Header,
    /// The object has other bytes than were written.
    Bytes,
    /// It is of another object than its name says.
    Name,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Length => f.write_str("it has another length than its header says"),
            Damage::Magic => f.write_str("it is no file of a spilled object"),
            Damage::Version(version) => write!(f, "it has version {version}, this build reads {VERSION}"),
            Damage::Header => f.write_str("the checksum of its header is wrong"),
            Damage::Bytes => f.write_str("the checksum of its bytes is wrong"),
            Damage::Name => f.write_str("it is of another object than its name says"),
        }
    }
}

impl std::error::Error for Damage {}

impl Header {
    /// As it is written.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let object = self.object.to_bytes();
        let parts: [&[u8]; 7] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            &FLAGS.to_le_bytes(),
            &self.job.0.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.crc.to_le_bytes(),
            &object,
        ];
        let mut at = 0;
        for part in parts {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let crc = crc32fast::hash(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the first bytes of a file; what comes after them is not looked at.
    ///
    /// # Errors
    /// It is not the header of a file that this build can read.
    pub fn decode(bytes: &[u8]) -> Result<Header, Damage> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Damage::Length)?;
        if header[..8] != MAGIC {
            return Err(Damage::Magic);
        }
        if u32_at(header, CRC_AT) != crc32fast::hash(&header[..CRC_AT]) {
            return Err(Damage::Header);
        }
        // Flags are part of the version: what is unknown cannot be read.
        let (version, flags) = (u32_at(header, 8), u32_at(header, 12));
        if version != VERSION || flags != FLAGS {
            return Err(Damage::Version(version));
        }
        let object = ObjectId::from_bytes(&header[36..36 + ObjectId::LEN]).ok_or(Damage::Header)?;
        let job = JobId(u64_at(header, 16));
        let header = Header { object, job, len: u64_at(header, 24), crc: u32_at(header, 32) };
        // A length that no file can have.
        header.len.checked_add(HEADER_BYTES as u64).ok_or(Damage::Length)?;
        Ok(header)
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("offsets of the layout"))
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("offsets of the layout"))
}

/// A file by its name: an object may be spilled again after it was made again, and the removal of the
/// first file must not meet the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    /// The object.
    pub object: ObjectId,
    /// Which of its files.
    pub number: u64,
}

impl FileId {
    /// The name of the file.
    pub fn name(&self) -> String {
        let hex: String = self.object.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}-{}.{EXTENSION}", self.number)
    }

    /// The inverse of [`FileId::name`].
    pub fn of_name(name: &str) -> Option<FileId> {
        let (hex, number) = name.strip_suffix(EXTENSION)?.strip_suffix('.')?.split_once('-')?;
        if !hex.is_ascii() {
            return None;
        }
        let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
        let id = FileId { object: ObjectId::from_bytes(&bytes?)?, number: number.parse().ok()? };
        // One name for each: no leading zeros, no capitals.
        (id.name() == name).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use mobula_base::TaskId;
    use proptest::prelude::*;

    fn header() -> Header {
        let object = TaskId::root(JobId(7)).output(3);
        Header { object, job: JobId(7), len: 5_000_000, crc: 0xdead_beef }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes), Ok(header()));
        assert_eq!(Header::decode(&bytes[..63]), Err(Damage::Length));
        assert_eq!(Header::decode(b""), Err(Damage::Length));
        let mut longer = bytes.to_vec();
        longer.extend(b"the object");
        assert_eq!(Header::decode(&longer), Ok(header()));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = header().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn names_are_read_back() {
        let id = FileId { object: header().object, number: 12 };
        assert_eq!(FileId::of_name(&id.name()), Some(id));
        for wrong in ["", ".spill", "-1.spill", "00-1.spill", &id.name().to_uppercase(), "x.tmp", "é-1.spill"]
        {
            assert_eq!(FileId::of_name(wrong), None, "{wrong}");
        }
        assert_eq!(FileId::of_name(&id.name().replace("-12", "-012")), None);
    }

    proptest! {
        #[test]
        fn headers_that_are_something_else(
            mut bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..100),
                any::<(u64, u64, u32)>().prop_map(|(job, len, crc)| {
                    Header { job: JobId(job), len, crc, ..header() }.encode().to_vec()
                }),
            ],
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            if !bytes.is_empty() {
                changes.into_iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = byte);
            }
            hostile::spill_file(&bytes);
        }
    }
}
