//! One frame of a segment: a header whose CRC covers everything that follows it.
//!
//! ```text
//! u32 len | u32 crc | u8 kind | u32 shard | u64 generation | u64 offset | u64 synced | payload
//! ```
//! All little-endian. `len` is the payload's; the CRC covers `len` and all after the CRC.
//! `offset` is where the frame starts; `synced` is the offset up to which this segment was known
//! to be on the disk when the frame was written. So a frame copied, moved or left over from
//! another life of the file does not pass, and damage can be told from a torn tail (R14).

use bytes::{BufMut, BytesMut};

/// Bytes before the payload.
pub const HEADER: usize = 4 + 4 + 1 + 4 + 8 + 8 + 8;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First in a segment: where every shard stands.
    Segment = 1,
    /// A batch of log entries.
    Entries = 2,
    /// A vote.
    Vote = 3,
    /// Entries after an index are void.
    Truncate = 4,
    /// Entries up to a log id are in a snapshot.
    Purge = 5,
    /// Entries up to a log id are committed.
    Committed = 6,
    /// Nothing but the offset known synced.
    Mark = 7,
    /// Last in a segment: whatever follows is not part of it.
    Seal = 8,
}

impl Kind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Committed, Entries, Mark, Purge, Seal, Segment, Truncate, Vote};
        [Segment, Entries, Vote, Truncate, Purge, Committed, Mark, Seal]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it says.
    pub kind: Kind,
    /// Of which shard.
    pub shard: u32,
    /// Of which segment.
    pub generation: u64,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Up to where the segment was known synced, in bytes.
    pub synced: u64,
}

/// Appends a frame whose payload `write` appends.
pub fn encode_with(header: &Header, write: impl FnOnce(&mut BytesMut), out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, HEADER);
    write(out);
    let (fixed, payload) = out[start..].split_at_mut(HEADER);
    fixed[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    fixed[8] = header.kind as u8;
    fixed[9..13].copy_from_slice(&header.shard.to_le_bytes());
    fixed[13..21].copy_from_slice(&header.generation.to_le_bytes());
    fixed[21..29].copy_from_slice(&header.offset.to_le_bytes());
    fixed[29..37].copy_from_slice(&header.synced.to_le_bytes());
    let crc = crc(fixed, payload);
    fixed[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Appends a frame.
pub fn encode(header: &Header, payload: &[u8], out: &mut BytesMut) {
    encode_with(header, |out| out.extend_from_slice(payload), out);
}

fn crc(fixed: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&fixed[..4]);
    hasher.update(&fixed[8..HEADER]);
    hasher.update(payload);
    hasher.finalize()
}

/// The frame that starts at `offset` of a segment's bytes, if a valid one of `generation` does.
pub fn decode(segment: &[u8], offset: usize, generation: u64) -> Option<(Header, &[u8])> {
    decode_at(segment.get(offset..)?, offset as u64, generation)
}

/// The frame at the start of `bytes`, which lie at `offset` of their segment.
pub fn decode_at(bytes: &[u8], offset: u64, generation: u64) -> Option<(Header, &[u8])> {
    let fixed = bytes.get(..HEADER)?;
    let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight bytes"));
    let header = Header {
        kind: Kind::from_byte(fixed[8])?,
        shard: u32_at(9),
        generation: u64_at(13),
        offset: u64_at(21),
        synced: u64_at(29),
    };
    // Cheap checks first: recovery tries every offset after damage.
    if header.generation != generation || header.offset != offset {
        return None;
    }
    let payload = bytes.get(HEADER..HEADER + u32_at(0) as usize)?;
    (crc(fixed, payload) == u32_at(4)).then_some((header, payload))
}
