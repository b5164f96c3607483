//! How large things are: the log's bounds on the disk, in one place.

/// A segment of a busy log is this long, in bytes.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// The first segment of a life is this long, so that an idle head writes little; each one that
/// fills up is followed by one four times as long, up to [`SEGMENT_BYTES`].
const FIRST_BYTES: u64 = 1 << 20;
/// The log is to stay below this many bytes; beyond, the shards that hold the oldest segment are
/// snapshotted.
const LOG_BYTES: u64 = 16 * SEGMENT_BYTES;
/// And below this many segments: every start begins one.
const MAX_SEGMENTS: usize = 64;
/// Kept for what frees space once the disk is full, in bytes.
const RESERVE_BYTES: u64 = 4 << 20;
/// Segments that wait, filled with zeros or recycled, for their turn.
const SPARES: usize = 2;
/// Zeros are written and synced this many at a time, so that no sync of the log waits long.
const FILL_STEP: u64 = 1 << 20;

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Of the first segment of a life, in bytes.
    pub first: u64,
    /// Of a segment at most, in bytes, unless a single record is longer.
    pub segment: u64,
    /// Of the reserve, in bytes; 0 for none.
    pub reserve: u64,
    /// Spare segments at most.
    pub spares: usize,
    /// Zeros written between two syncs, in bytes.
    pub step: u64,
    /// Of all segments together, before snapshots are asked for, in bytes.
    pub log: u64,
    /// Segments, before snapshots are asked for.
    pub segments: usize,
}

impl Sizes {
    /// Those of a head: smaller where the disk is memory.
    pub fn of_a_head(real: bool) -> Self {
        let sizes = Sizes::with_segments_of(SEGMENT_BYTES);
        if real {
            Sizes { first: FIRST_BYTES, reserve: RESERVE_BYTES, ..sizes }
        } else {
            Sizes { first: 16 << 10, reserve: 32 << 10, segment: 256 << 10, ..sizes }
        }
    }

    /// Segments of one size and no reserve.
    pub fn with_segments_of(bytes: u64) -> Self {
        Sizes {
            first: bytes,
            segment: bytes,
            reserve: 0,
            spares: SPARES,
            step: FILL_STEP,
            log: LOG_BYTES.min(bytes * 16),
            segments: MAX_SEGMENTS,
        }
    }
}
