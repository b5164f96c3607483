//! The file of an object that has left memory: a header, then the bytes of the object, as they were or in
//! packed pieces ([`crate::packing`]).
//!
//! Whoever reads one believes nothing: the header has a checksum of its own, and the bytes must have the
//! checksum that the header names. Pure; reading and writing are somebody else's.

use mobula_base::{JobId, ObjectId};

/// Bytes before the object's own, where they are as they were.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the longest header there is.
pub const HEADER_BYTES_MAX: usize = PACKED_HEADER_BYTES;
/// What such files are called at the end.
pub const EXTENSION: &str = "spill";

const MAGIC: [u8; 8] = *b"MOBSPILL";
/// The bytes as they were. Such files are the same as ever, so that a build that knows no others reads them.
const PLAIN: u32 = 1;
/// Packed pieces: the header ends with how many bytes follow.
const PACKED: u32 = 2;
const PACKED_HEADER_BYTES: usize = HEADER_BYTES + 8;
/// How packed pieces are packed: LZ4 blocks. Nothing else is known.
const LZ4: u32 = 1;
/// Where the object stands, and how far what both versions have goes.
const OBJECT_AT: usize = 36;
const STORED_AT: usize = 60;
const CRC_BYTES: usize = 4;

/// What a file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose bytes follow.
    pub object: ObjectId,
    /// The object's job.
    pub job: JobId,
    /// How many bytes it has.
    pub len: u64,
    /// CRC-32 of them.
    pub crc: u32,
    /// If they are packed: how many bytes follow the header.
    pub packed: Option<u64>,
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
            Damage::Version(version) => {
                write!(f, "it has version {version}, this build reads {PLAIN} and {PACKED}")
            }
            Damage::Header => f.write_str("the checksum of its header is wrong"),
            Damage::Bytes => f.write_str("the checksum of its bytes is wrong"),
            Damage::Name => f.write_str("it is of another object than its name says"),
        }
    }
}

impl std::error::Error for Damage {}

impl Header {
    /// How long it is written.
    pub fn bytes(&self) -> usize {
        if self.packed.is_some() { PACKED_HEADER_BYTES } else { HEADER_BYTES }
    }

    /// The length of the whole file.
    pub fn file_len(&self) -> u64 {
        self.bytes() as u64 + self.packed.unwrap_or(self.len)
    }

    /// As it is written.
    pub fn encode(&self) -> Vec<u8> {
        let (version, flags) = if self.packed.is_some() { (PACKED, LZ4) } else { (PLAIN, 0) };
        let mut out = Vec::with_capacity(self.bytes());
        out.extend(MAGIC);
        out.extend(version.to_le_bytes());
        out.extend(flags.to_le_bytes());
        out.extend(self.job.0.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        out.extend(self.crc.to_le_bytes());
        out.extend(self.object.to_bytes());
        out.resize(STORED_AT, 0);
        out.extend(self.packed.iter().flat_map(|stored| stored.to_le_bytes()));
        out.extend(crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// Reads the first bytes of a file; what comes after the header is not looked at.
    ///
    /// # Errors
    /// It is not the header of a file that this build can read.
    pub fn decode(bytes: &[u8]) -> Result<Header, Damage> {
        let head: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Damage::Length)?;
        if head[..8] != MAGIC {
            return Err(Damage::Magic);
        }
        // Flags are part of the version: what is unknown cannot be read. Nor can it be told from a known
        // version that was damaged: where the checksum stands is not known.
        let (version, flags) = (u32_at(head, 8), u32_at(head, 12));
        let packed = match (version, flags) {
            (PLAIN, 0) => None,
            (PACKED, LZ4) => Some(bytes.get(STORED_AT..STORED_AT + 8).ok_or(Damage::Length)?),
            _ => return Err(Damage::Version(version)),
        };
        let packed = packed.map(|stored| u64_at(stored, 0));
        let whole = if packed.is_some() { PACKED_HEADER_BYTES } else { HEADER_BYTES };
        let whole = bytes.get(..whole).ok_or(Damage::Length)?;
        let (said, crc) = whole.split_at(whole.len() - CRC_BYTES);
        if u32_at(crc, 0) != crc32fast::hash(said) {
            return Err(Damage::Header);
        }
        let object =
            ObjectId::from_bytes(&head[OBJECT_AT..OBJECT_AT + ObjectId::LEN]).ok_or(Damage::Header)?;
        let job = JobId(u64_at(head, 16));
        let header = Header { object, job, len: u64_at(head, 24), crc: u32_at(head, 32), packed };
        // A length that no file can have.
        let longest = header.len.max(packed.unwrap_or(0));
        longest.checked_add(HEADER_BYTES_MAX as u64).ok_or(Damage::Length)?;
        Ok(header)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("offsets of the layout"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
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
        Header { object, job: JobId(7), len: 5_000_000, crc: 0xdead_beef, packed: None }
    }

    fn packed() -> Header {
        Header { packed: Some(77_000), ..header() }
    }

    #[test]
    fn what_is_written_is_read() {
        for header in [header(), packed()] {
            let bytes = header.encode();
            assert_eq!(bytes.len(), header.bytes());
            assert_eq!(Header::decode(&bytes), Ok(header));
            assert_eq!(Header::decode(&bytes[..bytes.len() - 1]), Err(Damage::Length));
            assert_eq!(Header::decode(b""), Err(Damage::Length));
            let mut longer = bytes.to_vec();
            longer.extend(b"the object");
            assert_eq!(Header::decode(&longer), Ok(header));
        }
        assert_eq!((header().file_len(), packed().file_len()), (5_000_064, 77_072));
    }

    /// A file of a build that packed nothing (the golden one is the fuzz target's first input).
    #[test]
    fn the_format_before_packing_is_read_and_written_as_ever() {
        let golden = include_bytes!("../../fuzz/seeds/spill_file/header-v1.spill");
        let read = Header::decode(golden).expect("it is whole");
        assert_eq!(read.packed, None);
        assert_eq!(read.encode(), golden);
    }

    #[test]
    fn what_a_later_build_writes_is_called_so() {
        let mut bytes = packed().encode();
        bytes[8] = 3;
        assert_eq!(Header::decode(&bytes), Err(Damage::Version(3)));
        let mut bytes = packed().encode();
        bytes[12] = 2;
        assert_eq!(Header::decode(&bytes), Err(Damage::Version(PACKED)));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        for bytes in [header().encode(), packed().encode()] {
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(Header::decode(&changed).is_err(), "bit {bit}");
            }
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
                any::<(u64, u64, u32, Option<u64>)>().prop_map(|(job, len, crc, packed)| {
                    Header { job: JobId(job), len, crc, packed, ..header() }.encode()
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
