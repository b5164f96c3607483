//! The key-value table of one shard: functions, named things, environments.
//!
//! Every change gets a revision of its own, counted from 1 without gaps. A log index would not do:
//! commands that waited together share an entry, and a compare-and-set must tell them apart.

use super::watch::History;
use bytes::Bytes;
use mobula_base::SlotSet;
use mobula_base::slots::slot_of_key;
use mobula_proto as proto;
use proto::call_reply::Reply as Called;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A value and the change that wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct KvValue {
    /// The bytes.
    pub value: Bytes,
    /// The change.
    pub revision: u64,
}

/// All keys of a shard and their latest changes.
#[derive(Clone, Default)]
pub struct Kv {
    entries: BTreeMap<Bytes, KvValue>,
    history: History,
}

impl Kv {
    /// The value of `key`.
    pub fn get(&self, key: &Bytes) -> Option<&KvValue> {
        self.entries.get(key)
    }

    /// All keys that start with `prefix`, in order.
    pub fn below(&self, prefix: &Bytes) -> impl Iterator<Item = (&Bytes, &KvValue)> {
        self.entries.range(prefix.clone()..).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// All keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &KvValue)> {
        self.entries.iter()
    }

    /// How many keys there are.
    pub fn count(&self) -> u64 {
        self.entries.len() as u64
    }

    /// What has changed.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Writes, if the request's condition holds.
    pub fn put(&mut self, put: &proto::KvPut) -> Called {
        if put.only_if_absent && self.entries.contains_key(&put.key) {
            return Called::AlreadyThere(true);
        }
        if let Err(conflict) = self.expect(&put.key, put.expected_revision) {
            return conflict;
        }
        // Copied, so that a small value does not keep its whole log entry in memory.
        let (key, value) = (Bytes::copy_from_slice(&put.key), Bytes::copy_from_slice(&put.value));
        let revision = self.history.add(key.clone(), Some(value.clone()));
        self.entries.insert(key, KvValue { value, revision });
        Called::Revision(revision)
    }

    /// Deletes, if the request's condition holds; revision 0 says that there was nothing.
    pub fn delete(&mut self, delete: &proto::KvDelete) -> Called {
        if let Err(conflict) = self.expect(&delete.key, delete.expected_revision) {
            return conflict;
        }
        match self.entries.remove_entry(&delete.key) {
            Some((key, _)) => Called::Revision(self.history.add(key, None)),
            None => Called::Revision(0),
        }
    }

    fn expect(&self, key: &Bytes, expected: Option<u64>) -> Result<(), Called> {
        let Some(expected) = expected else { return Ok(()) };
        let found = self.entries.get(key).map_or(0, |entry| entry.revision);
        if found == expected { Ok(()) } else { Err(Called::KvConflict(found)) }
    }

    /// All keys after `key`, in order.
    pub(super) fn after(&self, key: &[u8]) -> impl Iterator<Item = (&Bytes, &KvValue)> {
        let bound = if key.is_empty() { Bound::Unbounded } else { Bound::Excluded(key) };
        self.entries.range::<[u8], _>((bound, Bound::Unbounded))
    }

    /// Takes in a key of a slot that comes here, with the change that wrote it.
    pub(super) fn bring(&mut self, moved: &proto::MovedKey) {
        // Copied: see `put`.
        let (key, value) = (Bytes::copy_from_slice(&moved.key), Bytes::copy_from_slice(&moved.value));
        self.entries.insert(key, KvValue { value, revision: moved.revision });
    }

    /// Forgets the keys of slots that have left.
    pub(super) fn drop_slots(&mut self, slots: &SlotSet) {
        self.entries.retain(|key, _| !slots.contains(slot_of_key(key)));
    }

    /// Keys have come or gone that nobody wrote or deleted: whoever watches must look anew. Revisions go
    /// on above `revision` and all that there were.
    pub(super) fn begin_anew(&mut self, revision: u64) {
        self.history.begin_anew(revision);
    }

    /// What a snapshot held.
    pub(super) fn restored(entries: Vec<proto::KvEntry>, history: History) -> Self {
        let own = |entry: proto::KvEntry| {
            let (key, value) = (Bytes::copy_from_slice(&entry.key), Bytes::copy_from_slice(&entry.value));
            (key, KvValue { value, revision: entry.revision })
        };
        Kv { entries: entries.into_iter().map(own).collect(), history }
    }
}
