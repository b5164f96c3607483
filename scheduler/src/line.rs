//! A queue in which everything keeps its place: what is taken out of the middle leaves a gap.

use std::collections::VecDeque;

/// Invariant: the first entry is no gap.
#[derive(Debug)]
pub(crate) struct Line<T> {
    entries: VecDeque<Option<T>>,
    /// Place of the first entry; they are counted from 1.
    first: u64,
    len: usize,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Line { entries: VecDeque::new(), first: 1, len: 0 }
    }
}

impl<T> Line<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The place of the first.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The place that the next one will have. No two ever have the same.
    pub fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Adds one at the end; its place.
    pub fn push(&mut self, entry: T) -> u64 {
        self.entries.push_back(Some(entry));
        self.len += 1;
        self.next() - 1
    }

    /// The first one.
    pub fn front(&self) -> Option<&T> {
        self.entries.front()?.as_ref()
    }

    /// Takes the first one.
    pub fn pop(&mut self) -> Option<T> {
        let entry = self.entries.front_mut()?.take();
        self.skip();
        entry
    }

    /// What is at a place.
    pub fn get(&self, place: u64) -> Option<&T> {
        self.entries.get(place.checked_sub(self.first)? as usize)?.as_ref()
    }

    /// Takes what is at a place.
    pub fn take(&mut self, place: u64) -> Option<T> {
        let entry = self.entries.get_mut(place.checked_sub(self.first)? as usize)?.take()?;
        self.skip();
        Some(entry)
    }

    /// One was taken.
    fn skip(&mut self) {
        self.len -= 1;
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
            self.first += 1;
        }
    }

    /// Takes all that `goes`, in order.
    pub fn take_all(&mut self, goes: impl Fn(&T) -> bool) -> Vec<T> {
        let places = self.first..self.next();
        places
            .filter_map(|place| if self.get(place).is_some_and(&goes) { self.take(place) } else { None })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_from_the_middle_moves_nothing() {
        let mut line = Line::default();
        let places = ['a', 'b', 'c', 'd'].map(|entry| line.push(entry));
        assert_eq!((line.take(places[1]), line.take(places[1]), line.len()), (Some('b'), None, 3));
        assert_eq!((line.pop(), line.front(), line.get(places[0])), (Some('a'), Some(&'c'), None));
        assert_eq!((line.get(places[3]), line.get(places[3] + 1)), (Some(&'d'), None));
        assert_eq!(line.take_all(|entry| *entry == 'd'), ['d']);
        assert_eq!((line.take(places[2]), line.pop(), line.len()), (Some('c'), None, 0));
        assert_eq!(line.push('e'), places[3] + 1, "a place is never given twice");
    }
}
