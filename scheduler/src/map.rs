//! Maps by ids. Owned, never iterated where order could show.

use mobula_base::ids::RUN_LEN;
use mobula_base::{IdMap, ObjectId, RunId, TaskId};
use std::cell::Cell;
use std::hash::Hash;
use std::ops::Index;

/// Entries of a [`RunMap`] that are allocated together.
const CHUNK: usize = 256;
/// Stands for no run's places.
const NO_RUN: u32 = u32::MAX;

/// What a [`RunMap`] is keyed by.
pub(crate) trait Key: Copy + Ord + Hash {
    /// The run and the place in it that the key stands for, if it is one of those that a run has many of.
    fn place(self) -> Option<(RunId, usize)>;
}

impl Key for TaskId {
    fn place(self) -> Option<(RunId, usize)> {
        (u64::from(self.place) < RUN_LEN).then_some((self.run, usize::from(self.place)))
    }
}

impl Key for ObjectId {
    fn place(self) -> Option<(RunId, usize)> {
        (self.slot == 0).then(|| self.task.place()).flatten()
    }
}

/// A map by tasks, or by what they return. What was submitted together is looked up together, again and
/// again: its entries lie side by side, where a hash map would have a miss of the cache for each. Puts and
/// further return values are in a hash map.
///
/// Invariant: every place of `runs` names the entry that has its key, and no other entry has a value.
pub(crate) struct RunMap<K, V> {
    runs: IdMap<RunId, u32>,
    places: Vec<Places>,
    free_places: Vec<u32>,
    /// The run that was looked up last, and which places it has: mostly it is the next one, too.
    last: Cell<(RunId, u32)>,
    chunks: Vec<Vec<Option<(K, V)>>>,
    free: Vec<u32>,
    others: IdMap<K, V>,
}

/// Entries of a run's places: numbers from 1; 0 is none.
#[derive(Default)]
struct Places {
    at: Vec<u32>,
    taken: u32,
}

impl<K, V> Default for RunMap<K, V> {
    fn default() -> Self {
        RunMap {
            runs: IdMap::default(),
            places: Vec::new(),
            free_places: Vec::new(),
            last: Cell::new((RunId::default(), NO_RUN)),
            chunks: Vec::new(),
            free: Vec::new(),
            others: IdMap::default(),
        }
    }
}

impl<K: Key, V> RunMap<K, V> {
    /// Which places are a run's.
    #[inline]
    fn run(&self, run: RunId) -> Option<usize> {
        let (last, number) = self.last.get();
        if last == run && number != NO_RUN {
            return Some(number as usize);
        }
        self.run_anew(run)
    }

    #[inline(never)]
    fn run_anew(&self, run: RunId) -> Option<usize> {
        let number = *self.runs.get(&run)?;
        self.last.set((run, number));
        Some(number as usize)
    }

    /// Where the entry of a place is.
    #[inline]
    fn at(&self, run: RunId, place: usize) -> Option<usize> {
        let number = *self.places[self.run(run)?].at.get(place)?;
        (number as usize).checked_sub(1)
    }

    /// The value of a key.
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        let Some((run, place)) = key.place() else { return self.others.get(key) };
        let at = self.at(run, place)?;
        self.chunks[at / CHUNK][at % CHUNK].as_ref().map(|(_, value)| value)
    }

    /// The value of a key, to be changed.
    #[inline]
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let Some((run, place)) = key.place() else { return self.others.get_mut(key) };
        let at = self.at(run, place)?;
        self.chunks[at / CHUNK][at % CHUNK].as_mut().map(|(_, value)| value)
    }

    /// Whether there is one.
    #[inline]
    pub fn contains_key(&self, key: &K) -> bool {
        match key.place() {
            Some((run, place)) => self.at(run, place).is_some(),
            None => self.others.contains_key(key),
        }
    }

    /// The value of a key, made when there is none.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let Some((run, place)) = key.place() else { return self.others.entry(key).or_insert_with(make) };
        let at = match self.at(run, place) {
            Some(at) => at,
            None => self.add(run, place, (key, make())),
        };
        let entry = self.chunks[at / CHUNK][at % CHUNK].as_mut();
        &mut entry.expect("a place names an entry with a value").1
    }

    /// Sets the value of a key; the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Some((run, place)) = key.place() else { return self.others.insert(key, value) };
        if let Some(at) = self.at(run, place) {
            return self.chunks[at / CHUNK][at % CHUNK].replace((key, value)).map(|(_, old)| old);
        }
        self.add(run, place, (key, value));
        None
    }

    fn add(&mut self, run: RunId, place: usize, entry: (K, V)) -> usize {
        let at = match self.free.pop() {
            Some(at) => {
                let at = at as usize;
                self.chunks[at / CHUNK][at % CHUNK] = Some(entry);
                at
            }
            None => {
                if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
                    self.chunks.push(Vec::with_capacity(CHUNK));
                }
                let number = self.chunks.len() - 1;
                let chunk = &mut self.chunks[number];
                chunk.push(Some(entry));
                number * CHUNK + chunk.len() - 1
            }
        };
        let number = self.run(run).unwrap_or_else(|| self.add_run(run));
        let places = &mut self.places[number];
        if places.at.len() <= place {
            places.at.resize(place + 1, 0);
        }
        places.at[place] = at as u32 + 1;
        places.taken += 1;
        at
    }

    fn add_run(&mut self, run: RunId) -> usize {
        let number = self.free_places.pop().unwrap_or_else(|| {
            self.places.push(Places::default());
            self.places.len() as u32 - 1
        });
        self.runs.insert(run, number);
        number as usize
    }

    fn remove_run(&mut self, run: RunId) {
        let Some(number) = self.runs.remove(&run) else { return };
        self.last.set((run, NO_RUN));
        self.places[number as usize] = Places::default();
        self.free_places.push(number);
        if self.runs.is_empty() {
            // Nothing is left: the memory goes back.
            (self.places, self.free_places) = (Vec::new(), Vec::new());
            (self.chunks, self.free) = (Vec::new(), Vec::new());
        }
    }

    /// Empties the entry of a place.
    fn vacate<R>(
        &mut self,
        run: RunId,
        place: usize,
        empty: impl FnOnce(&mut Option<(K, V)>) -> R,
    ) -> Option<R> {
        let number = self.run(run)?;
        let places = &mut self.places[number];
        let at = (std::mem::take(places.at.get_mut(place)?) as usize).checked_sub(1)?;
        places.taken -= 1;
        let is_last = places.taken == 0;
        let emptied = empty(&mut self.chunks[at / CHUNK][at % CHUNK]);
        self.free.push(at as u32);
        if is_last {
            self.remove_run(run);
        }
        Some(emptied)
    }

    /// Takes the value of a key out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let Some((run, place)) = key.place() else { return self.others.remove(key) };
        self.vacate(run, place, Option::take).flatten().map(|(_, value)| value)
    }

    /// Drops the value of a key where it lies, without moving it out; whether there was one.
    pub fn discard(&mut self, key: &K) -> bool {
        let Some((run, place)) = key.place() else { return self.others.remove(key).is_some() };
        self.vacate(run, place, |entry| *entry = None).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        // All but the last are full.
        let entries = self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len());
        entries - self.free.len() + self.others.len()
    }

    /// All, in no order that may show.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flatten().flatten().map(|(key, value)| (key, value)).chain(&self.others)
    }

    /// All keys, as [`RunMap::iter`].
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, as [`RunMap::iter`].
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// All values, to be changed, as [`RunMap::iter`].
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.chunks.iter_mut().flatten().flatten().map(|(_, value)| value).chain(self.others.values_mut())
    }

    /// The keys that pass `keep`, sorted: the only way to walk one whose order could show.
    pub fn sorted_keys(&self, keep: impl Fn(&V) -> bool) -> Vec<K> {
        let mut keys: Vec<K> = self.iter().filter(|(_, value)| keep(value)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys
    }
}

impl<K: Key, V> Index<&K> for RunMap<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Few runs, places near both ends and beyond, return values and puts.
    fn key() -> impl Strategy<Value = ObjectId> {
        let place = prop_oneof![0u16..4, 509u16..514, Just(u16::MAX)];
        (0u128..3, place, prop_oneof![4 => Just(0u32), 1 => 1u32..3])
            .prop_map(|(run, place, slot)| ObjectId { task: TaskId { run: RunId(run), place }, slot })
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((key(), any::<u8>(), 0..5u8), 1..400)) {
            let (mut map, mut model) = (RunMap::default(), BTreeMap::new());
            for (key, value, step) in steps {
                match step {
                    0 => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    1 => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    4 => prop_assert_eq!(map.discard(&key), model.remove(&key).is_some()),
                    2 => prop_assert_eq!(
                        map.get_or_insert_with(key, || value),
                        model.entry(key).or_insert(value)
                    ),
                    _ => {
                        if let Some(value) = map.get_mut(&key) {
                            *value = value.wrapping_add(1);
                        }
                        if let Some(value) = model.get_mut(&key) {
                            *value = value.wrapping_add(1);
                        }
                    }
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(map.contains_key(&key), model.contains_key(&key));
                prop_assert_eq!(map.len(), model.len());
            }
            prop_assert_eq!(map.sorted_keys(|_| true), model.keys().copied().collect::<Vec<_>>());
            let all: BTreeMap<ObjectId, u8> = map.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(&all, &model);
            for key in model.keys() {
                map.remove(key);
            }
            prop_assert!(map.chunks.is_empty() && map.free.is_empty(), "memory goes back");
        }
    }
}
