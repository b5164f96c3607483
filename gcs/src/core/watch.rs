//! The latest changes of a shard's keys, for those who watch them.
//!
//! The history is replicated state: every replica keeps the same changes and forgets the same ones,
//! so a watch goes on at any of them from the revision where it stopped.

use bytes::Bytes;
use mobula_proto as proto;
use prost::Message;
use std::collections::VecDeque;
use std::sync::Arc;

/// Changes that are kept at most.
pub const MAX_CHANGES: usize = 10_000;
/// Bytes of keys and values in the kept changes at most, unless a single one is larger.
pub const MAX_CHANGE_BYTES: usize = 4 << 20;

/// The latest changes, oldest first, with consecutive revisions.
#[derive(Clone, Default)]
pub struct History {
    changes: VecDeque<Arc<proto::KvChange>>,
    bytes: usize,
    /// Revision of the last change ever, 0 for none.
    last: u64,
}

/// What a history can say about a revision and what followed.
#[derive(Debug, PartialEq)]
pub enum Since {
    /// The changes below the prefix, in order; the next ones have this revision or a later one.
    Changes(Vec<proto::KvChange>, u64),
    /// Forgotten; this is the oldest revision that is kept, or would be.
    Compacted(u64),
    /// This replica has not come that far; its last revision.
    Behind(u64),
}

/// The history as snapshots hold it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct HistoryDump {
    #[prost(uint64, tag = "1")]
    pub last: u64,
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<proto::KvChange>,
}

impl History {
    /// Revision of the last change, 0 for none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The oldest revision that is kept, or the next one when none is.
    pub fn oldest(&self) -> u64 {
        self.changes.front().map_or(self.last + 1, |change| change.revision)
    }

    /// Notes a change, a deletion when there is no value; its revision.
    pub(super) fn add(&mut self, key: Bytes, value: Option<Bytes>) -> u64 {
        self.last += 1;
        let deleted = value.is_none();
        let change = proto::KvChange { key, value: value.unwrap_or_default(), revision: self.last, deleted };
        self.push(change);
        self.last
    }

    fn push(&mut self, change: proto::KvChange) {
        self.bytes += size(&change);
        self.changes.push_back(Arc::new(change));
        while self.changes.len() > MAX_CHANGES || (self.bytes > MAX_CHANGE_BYTES && self.changes.len() > 1) {
            let Some(oldest) = self.changes.pop_front() else { return };
            self.bytes -= size(&oldest);
        }
    }

    /// The changes of keys that start with `prefix`, from revision `from` on, about `max_bytes` of
    /// them, and at least one if there is any.
    pub fn since(&self, from: u64, prefix: &[u8], max_bytes: usize) -> Since {
        let from = from.max(1);
        if from > self.last + 1 {
            return Since::Behind(self.last);
        }
        let oldest = self.oldest();
        if from < oldest {
            return Since::Compacted(oldest);
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        for change in self.changes.iter().skip((from - oldest) as usize) {
            if !change.key.starts_with(prefix) {
                continue;
            }
            if bytes >= max_bytes && !found.is_empty() {
                return Since::Changes(found, change.revision);
            }
            bytes += size(change);
            found.push((**change).clone());
        }
        Since::Changes(found, self.last + 1)
    }

    /// Forgets all changes, and leaves a gap above `revision` and all that there were: so nobody who
    /// watches takes what follows for the next change.
    pub(super) fn begin_anew(&mut self, revision: u64) {
        *self = History { last: self.last.max(revision) + 1, ..History::default() };
    }

    pub(super) fn dump(&self) -> HistoryDump {
        let changes = self.changes.iter().map(|change| (**change).clone()).collect();
        HistoryDump { last: self.last, changes }
    }

    pub(super) fn restored(dump: HistoryDump) -> Self {
        let mut history = History { last: dump.last, ..History::default() };
        for change in dump.changes {
            let (key, value) = (Bytes::copy_from_slice(&change.key), Bytes::copy_from_slice(&change.value));
            history.push(proto::KvChange { key, value, ..change });
        }
        history
    }
}

fn size(change: &proto::KvChange) -> usize {
    change.key.len() + change.value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(changes: u64, value: usize) -> History {
        let mut history = History::default();
        for n in 0..changes {
            let key = Bytes::from(format!("{}/{n}", if n % 2 == 0 { "even" } else { "odd" }));
            history.add(key, (n % 3 != 0).then(|| Bytes::from(vec![1; value])));
        }
        history
    }

    #[test]
    fn every_change_once_in_order_in_pieces_of_any_size() {
        let history = history(100, 10);
        for max_bytes in [0, 1, 40, 1 << 20] {
            for (prefix, first, expected) in [("odd", 2, 50), ("", 1, 100), ("none", 0, 0)] {
                let (mut from, mut seen) = (1, Vec::new());
                while from <= history.last() {
                    let Since::Changes(changes, next) = history.since(from, prefix.as_bytes(), max_bytes)
                    else {
                        panic!("all is kept");
                    };
                    assert!(next > from, "it goes on");
                    seen.extend(changes.into_iter().map(|change| change.revision));
                    from = next;
                }
                assert_eq!(seen.len(), expected);
                assert_eq!(seen.first().copied().unwrap_or(0), first);
                assert!(seen.is_sorted_by(|a, b| a < b));
            }
        }
    }

    #[test]
    fn bounded_and_what_is_forgotten_is_said() {
        for history in [history(MAX_CHANGES as u64 + 5, 0), history(100, MAX_CHANGE_BYTES / 10)] {
            let oldest = history.oldest();
            assert!(history.changes.len() <= MAX_CHANGES && history.bytes <= MAX_CHANGE_BYTES);
            assert!(oldest > 1, "something had to go");
            assert_eq!(history.since(oldest - 1, b"", 1), Since::Compacted(oldest));
            assert!(matches!(history.since(oldest, b"", 1), Since::Changes(..)));
            let last = history.last();
            assert_eq!(history.since(last + 1, b"", 1), Since::Changes(Vec::new(), last + 1));
            assert_eq!(history.since(last + 2, b"", 1), Since::Behind(last));
        }
    }

    #[test]
    fn a_dump_holds_all_of_it() {
        for history in [History::default(), history(100, MAX_CHANGE_BYTES / 10)] {
            let copy = History::restored(history.dump());
            assert_eq!(copy.dump(), history.dump());
            assert_eq!((copy.bytes, copy.oldest()), (history.bytes, history.oldest()));
        }
    }
}
