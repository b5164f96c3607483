//! A set of places of a run: one bit each.

use bytes::Bytes;
use mobula_base::ids::RUN_LEN;

const WORDS: usize = RUN_LEN as usize / 64;

/// Places below [`RUN_LEN`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places([u64; WORDS]);

impl Places {
    /// Bytes on the wire.
    pub const LEN: usize = RUN_LEN as usize / 8;

    /// `count` places from `first` on; `None` when they do not all lie in a run.
    pub fn range(first: u32, count: usize) -> Option<Self> {
        let end = (first as usize).checked_add(count)?;
        if end > RUN_LEN as usize {
            return None;
        }
        let mut all = Places::default();
        for word in first as usize / 64..end.div_ceil(64) {
            let below = |at: usize| match at.saturating_sub(word * 64) {
                64.. => u64::MAX,
                bits => (1u64 << bits) - 1,
            };
            all.0[word] = below(end) & !below(first as usize);
        }
        Some(all)
    }

    /// Reads the wire form.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
        Some(Places(std::array::from_fn(word)))
    }

    /// The wire form.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        for (chunk, word) in out.chunks_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// As [`Places::from_bytes`]; no bytes stand for none.
    pub(super) fn from_short(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() { Some(Places::default()) } else { Places::from_bytes(bytes) }
    }

    /// As [`Places::to_bytes`], and no bytes for none.
    pub(super) fn to_short(self) -> Bytes {
        if self.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(&self.to_bytes()) }
    }

    /// Adds one place, which must be below [`RUN_LEN`].
    pub fn insert(&mut self, place: u16) {
        self.0[usize::from(place) / 64] |= 1 << (place % 64);
    }

    /// Takes one place out.
    pub fn remove(&mut self, place: u16) {
        if let Some(word) = self.0.get_mut(usize::from(place) / 64) {
            *word &= !(1 << (place % 64));
        }
    }

    /// Whether a place is in it.
    pub fn contains(&self, place: u16) -> bool {
        self.0.get(usize::from(place) / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    /// The lowest.
    pub fn first(&self) -> Option<u16> {
        let at = self.0.iter().position(|word| *word != 0)?;
        Some((at * 64) as u16 + self.0[at].trailing_zeros() as u16)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many there are below `place`.
    pub fn rank(&self, place: u16) -> usize {
        let word = usize::from(place) / 64;
        let full: usize = self.0[..word].iter().map(|word| word.count_ones() as usize).sum();
        full + (self.0[word] & ((1u64 << (place % 64)) - 1)).count_ones() as usize
    }

    /// All of both.
    pub fn union(&self, other: &Places) -> Places {
        Places(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// What is in both.
    pub fn intersect(&self, other: &Places) -> Places {
        Places(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// What is not in `other`.
    pub fn without(&self, other: &Places) -> Places {
        Places(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// Whether any place is in both.
    pub fn meets(&self, other: &Places) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| a & b != 0)
    }

    /// Whether every place is in `other`.
    pub fn is_within(&self, other: &Places) -> bool {
        self.0.iter().zip(other.0).all(|(a, b)| a & !b == 0)
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                (left != 0).then(|| {
                    left &= left - 1;
                    (at * 64) as u16 + bit as u16
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(first in 0u32..520, count in 0usize..520, more in proptest::collection::vec(0u16..512, 0..40)) {
            let range = Places::range(first, count);
            prop_assert_eq!(range.is_some(), first as usize + count <= 512);
            let Some(mut places) = range else { return Ok(()) };
            let mut model: BTreeSet<u16> = (first as u16..first as u16 + count as u16).collect();
            prop_assert!(places.is_within(&places) && places.meets(&places) != model.is_empty());
            for place in more {
                places.insert(place);
                model.insert(place);
            }
            prop_assert_eq!(places.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((places.len(), places.first()), (model.len(), model.first().copied()));
            for place in 0..512 {
                prop_assert_eq!(places.contains(place), model.contains(&place));
                prop_assert_eq!(places.rank(place), model.range(..place).count());
            }
            prop_assert_eq!(Places::from_bytes(&places.to_bytes()), Some(places));
            let low = Places::range(0, 256).expect("within");
            let (below, above) = (places.intersect(&low), places.without(&low));
            prop_assert_eq!((below.len(), above.len()), (model.range(..256).count(), model.range(256..).count()));
            prop_assert_eq!(below.union(&above), places);
            if let Some(gone) = model.pop_first() {
                places.remove(gone);
                prop_assert_eq!(places.len(), model.len());
                prop_assert!(!places.contains(gone));
            }
        }
    }
}
