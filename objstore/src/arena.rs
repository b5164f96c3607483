//! Best-fit allocation of offsets. All metadata lives here, none in the shared memory, so that a
//! process that dies while writing cannot leave it wrong.

use std::collections::{BTreeMap, BTreeSet};

/// Every allocation starts at a multiple of this and is a multiple of it long: a cache line.
pub const ALIGN: u64 = 64;

/// Free and used ranges of `0..capacity`.
///
/// Invariants, asserted by `check_invariants`:
/// 1. Live allocations and free ranges never overlap and together cover the capacity.
/// 2. No two free ranges touch (they would have been joined).
#[derive(Debug)]
pub struct Arena {
    capacity: u64,
    free_by_offset: BTreeMap<u64, u64>,
    free_by_len: BTreeSet<(u64, u64)>,
    used: BTreeMap<u64, u64>,
    used_bytes: u64,
}

impl Arena {
    /// An empty arena of `capacity` bytes, rounded down to [`ALIGN`].
    pub fn new(capacity: u64) -> Self {
        let capacity = capacity / ALIGN * ALIGN;
        let mut arena = Arena {
            capacity,
            free_by_offset: BTreeMap::new(),
            free_by_len: BTreeSet::new(),
            used: BTreeMap::new(),
            used_bytes: 0,
        };
        if capacity > 0 {
            arena.insert_free(0, capacity);
        }
        arena
    }

    /// Bytes that can be allocated in all.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes that are allocated.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Allocates `len` bytes; the lowest of the smallest ranges that fit, so that hot memory is
    /// used again. `None` when no free range is large enough.
    pub fn allocate(&mut self, len: u64) -> Option<u64> {
        let len = len.max(1).div_ceil(ALIGN) * ALIGN;
        let &(range, offset) = self.free_by_len.range((len, 0)..).next()?;
        self.remove_free(offset, range);
        if range > len {
            self.insert_free(offset + len, range - len);
        }
        self.used.insert(offset, len);
        self.used_bytes += len;
        Some(offset)
    }

    /// Whether there is an allocation at `offset`.
    pub fn is_taken(&self, offset: u64) -> bool {
        self.used.contains_key(&offset)
    }

    /// Frees the allocation at `offset`. Panics when there is none: that is a bug of the caller.
    pub fn free(&mut self, offset: u64) {
        let len = self.used.remove(&offset).expect("only live allocations are freed");
        self.used_bytes -= len;
        let (mut start, mut end) = (offset, offset + len);
        if let Some((&before, &before_len)) = self.free_by_offset.range(..start).next_back()
            && before + before_len == start
        {
            self.remove_free(before, before_len);
            start = before;
        }
        if let Some(&after_len) = self.free_by_offset.get(&end) {
            self.remove_free(end, after_len);
            end += after_len;
        }
        self.insert_free(start, end - start);
    }

    fn insert_free(&mut self, offset: u64, len: u64) {
        self.free_by_offset.insert(offset, len);
        self.free_by_len.insert((len, offset));
    }

    fn remove_free(&mut self, offset: u64, len: u64) {
        self.free_by_offset.remove(&offset);
        self.free_by_len.remove(&(len, offset));
    }

    /// Panics when an invariant does not hold.
    pub fn check_invariants(&self) {
        let mut ranges: Vec<(u64, u64, bool)> = self.used.iter().map(|(o, l)| (*o, *l, true)).collect();
        ranges.extend(self.free_by_offset.iter().map(|(o, l)| (*o, *l, false)));
        ranges.sort_unstable();
        let mut at = 0;
        let mut last_free = false;
        for (offset, len, used) in ranges {
            assert_eq!(offset, at, "ranges overlap or leave a hole");
            assert!(used || !last_free, "two free ranges touch");
            last_free = !used;
            at += len;
        }
        assert_eq!(at, self.capacity, "ranges do not cover the arena");
        assert_eq!(self.free_by_len.len(), self.free_by_offset.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_never_overlap(steps in prop::collection::vec((any::<bool>(), 0u64..5000), 1..200)) {
            let mut arena = Arena::new(64 * 1024);
            let mut live: Vec<u64> = Vec::new();
            for (allocate, n) in steps {
                if allocate {
                    live.extend(arena.allocate(n));
                } else if !live.is_empty() {
                    arena.free(live.swap_remove(n as usize % live.len()));
                }
                arena.check_invariants();
            }
            for offset in live {
                arena.free(offset);
            }
            arena.check_invariants();
            prop_assert_eq!(arena.used_bytes(), 0);
            prop_assert_eq!(arena.allocate(64 * 1024), Some(0));
        }
    }
}
