//! Slots and who owns them: every id and key hashes to one of [`SLOTS`] slots, and a map with an epoch
//! deals the slots to shards. A later map has a higher epoch; each move of slots makes the next one.

use crate::ids::{RunId, SLOTS, ShardId, hash64, shard_of_slot};
use std::fmt;

const WORDS: usize = SLOTS as usize / 64;

/// The slot of a key-value key.
pub fn slot_of_key(key: &[u8]) -> u32 {
    (hash64(&[key]) % u64::from(SLOTS)) as u32
}

/// A set of slots: one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotSet([u64; WORDS]);

impl SlotSet {
    /// Adds a slot; one that there is not is left out.
    pub fn insert(&mut self, slot: u32) {
        if slot < SLOTS {
            self.0[slot as usize / 64] |= 1 << (slot % 64);
        }
    }

    /// Whether a slot is in it.
    pub fn contains(&self, slot: u32) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Whether every slot of this is in `other`.
    pub fn is_within(&self, other: &SlotSet) -> bool {
        self.0.iter().zip(other.0).all(|(a, b)| a & !b == 0)
    }

    /// All of both.
    pub fn union(&self, other: &SlotSet) -> SlotSet {
        SlotSet(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// Those that are not in `other`.
    pub fn without(&self, other: &SlotSet) -> SlotSet {
        SlotSet(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..SLOTS).filter(|slot| self.contains(*slot))
    }

    /// The highest `count` of them, or all.
    pub fn highest(&self, count: u32) -> SlotSet {
        let skip = self.len().saturating_sub(count) as usize;
        self.iter().skip(skip).collect()
    }

    /// First and last of each unbroken row, in ascending order.
    pub fn rows(&self) -> Vec<(u32, u32)> {
        let mut rows: Vec<(u32, u32)> = Vec::new();
        for slot in self.iter() {
            match rows.last_mut() {
                Some((_, last)) if *last + 1 == slot => *last = slot,
                _ => rows.push((slot, slot)),
            }
        }
        rows
    }

    /// What [`SlotSet::rows`] gave; `None` when a row is upside down or beyond the last slot.
    pub fn from_rows(rows: impl IntoIterator<Item = (u32, u32)>) -> Option<Self> {
        let mut all = SlotSet::default();
        for (first, last) in rows {
            if first > last || last >= SLOTS {
                return None;
            }
            (first..=last).for_each(|slot| all.insert(slot));
        }
        Some(all)
    }

    /// Reads what a person writes: `12`, `12-40`, `0-3,7`.
    pub fn parse(text: &str) -> Option<Self> {
        let row = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        };
        SlotSet::from_rows(text.split(',').map(row).collect::<Option<Vec<_>>>()?)
    }
}

impl FromIterator<u32> for SlotSet {
    fn from_iter<T: IntoIterator<Item = u32>>(slots: T) -> Self {
        let mut all = SlotSet::default();
        slots.into_iter().for_each(|slot| all.insert(slot));
        all
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.rows().into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}
impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slots {self}")
    }
}

/// Which shard owns each slot, as of an epoch.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotMap {
    epoch: u64,
    owners: Box<[u32; SLOTS as usize]>,
}

impl SlotMap {
    /// The map of a new cluster, epoch 1: contiguous rows of equal length.
    pub fn even(shards: u32) -> Self {
        let owner = |slot: usize| shard_of_slot(slot as u32, shards).0;
        SlotMap { epoch: 1, owners: Box::new(std::array::from_fn(owner)) }
    }

    /// Each move makes an epoch; the first is 1.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The shard of a slot.
    pub fn of_slot(&self, slot: u32) -> ShardId {
        ShardId(self.owners[(slot % SLOTS) as usize])
    }

    /// The shard of a run.
    pub fn of_run(&self, run: RunId) -> ShardId {
        self.of_slot(run.slot())
    }

    /// The shard of a key-value key.
    pub fn of_key(&self, key: &[u8]) -> ShardId {
        self.of_slot(slot_of_key(key))
    }

    /// The slots of a shard.
    pub fn slots_of(&self, shard: ShardId) -> SlotSet {
        (0..SLOTS).filter(|slot| self.of_slot(*slot) == shard).collect()
    }

    /// The next map, in which `to` owns `slots`.
    pub fn moved(&self, slots: &SlotSet, to: ShardId) -> SlotMap {
        let mut next = SlotMap { epoch: self.epoch + 1, owners: self.owners.clone() };
        slots.iter().for_each(|slot| next.owners[slot as usize] = to.0);
        next
    }

    /// First slot, last slot and owner of each unbroken row, in ascending order.
    pub fn rows(&self) -> Vec<(u32, u32, ShardId)> {
        let mut rows: Vec<(u32, u32, ShardId)> = Vec::new();
        for slot in 0..SLOTS {
            let owner = self.of_slot(slot);
            match rows.last_mut() {
                Some((_, last, same)) if *same == owner => *last = slot,
                _ => rows.push((slot, slot, owner)),
            }
        }
        rows
    }

    /// What [`SlotMap::rows`] gave; `None` unless every slot has exactly one owner.
    pub fn from_rows(epoch: u64, rows: impl IntoIterator<Item = (u32, u32, ShardId)>) -> Option<Self> {
        let (mut owners, mut next) = (Box::new([0; SLOTS as usize]), 0);
        for (first, last, owner) in rows {
            if first != next || last < first || last >= SLOTS {
                return None;
            }
            owners[first as usize..=last as usize].fill(owner.0);
            next = last + 1;
        }
        (next == SLOTS && epoch > 0).then_some(SlotMap { epoch, owners })
    }
}

impl fmt::Debug for SlotMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}:", self.epoch)?;
        self.rows().into_iter().try_for_each(|(first, last, owner)| write!(f, " {first}-{last}={owner}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_map_is_even_and_every_move_makes_the_next() {
        let map = SlotMap::even(4);
        assert_eq!(map.epoch(), 1);
        assert_eq!(map.rows().len(), 4);
        assert!((0..4).all(|shard| map.slots_of(ShardId(shard)).len() == SLOTS / 4));
        let some = SlotSet::parse("10-19").expect("slots");
        let next = map.moved(&some, ShardId(3));
        assert_eq!((next.epoch(), next.of_slot(10), next.of_slot(20)), (2, ShardId(3), ShardId(0)));
        assert_eq!(next.slots_of(ShardId(0)), map.slots_of(ShardId(0)).without(&some));
        assert_eq!(next.slots_of(ShardId(3)), map.slots_of(ShardId(3)).union(&some));
        // A number of shards that does not divide the slots leaves none without an owner.
        assert_eq!(
            SlotMap::even(7).rows().iter().map(|(first, last, _)| last - first + 1).sum::<u32>(),
            SLOTS
        );
    }

    #[test]
    fn maps_survive_the_wire_and_broken_ones_are_refused() {
        let map = SlotMap::even(3).moved(&SlotSet::parse("0,5-7,1023").expect("slots"), ShardId(1));
        assert_eq!(SlotMap::from_rows(map.epoch(), map.rows()), Some(map.clone()));
        for broken in [vec![(0, 1022, ShardId(0))], vec![(1, 1023, ShardId(0))], vec![(0, 1024, ShardId(0))]]
        {
            assert_eq!(SlotMap::from_rows(1, broken), None);
        }
        assert_eq!(SlotMap::from_rows(0, map.rows()), None);
    }

    #[test]
    fn sets_read_as_they_are_written() {
        let some = SlotSet::parse("0-3,7,1023").expect("slots");
        assert_eq!((some.len(), some.to_string().as_str()), (6, "0-3,7,1023"));
        assert_eq!(SlotSet::from_rows(some.rows()), Some(some));
        assert_eq!(some.highest(2).to_string(), "7,1023");
        assert_eq!(some.highest(99), some);
        for wrong in ["", "x", "3-1", "1024", "1-", "-1"] {
            assert_eq!(SlotSet::parse(wrong), None, "{wrong}");
        }
    }
}
