//! Committed is for good: *the entry at an index never changes once any replica has applied it, and
//! each life of a replica applies the indexes in order, without a gap.*

use mobula_base::ids::hash64;
use mobula_gcs::hook::EntryId;
use std::collections::BTreeMap;

/// What was applied, by anyone.
#[derive(Default)]
pub struct Commit {
    entries: BTreeMap<(u32, u64), (EntryId, u64)>,
    /// How far the present life of each replica is.
    reached: BTreeMap<(u64, u32), u64>,
}

impl Commit {
    /// A new life of `head` begins.
    pub fn starts(&mut self, head: u64) {
        self.reached.retain(|(of, _), _| *of != head);
    }

    /// Whether this is the first replica to apply the entry.
    pub fn applied(&mut self, head: u64, shard: u32, entry: EntryId, command: &[u8]) -> Result<bool, String> {
        let now = (entry, hash64(&[command]));
        if let Some(before) = self.reached.insert((head, shard), entry.index)
            && before + 1 != entry.index
        {
            return Err(format!("head {head} applied {} after {before} in shard {shard}", entry.index));
        }
        match self.entries.get(&(shard, entry.index)) {
            Some(known) if *known != now => Err(format!(
                "entry {} of shard {shard} was {:?} and is {entry:?} at head {head}",
                entry.index, known.0
            )),
            Some(_) => Ok(false),
            None => {
                self.entries.insert((shard, entry.index), now);
                Ok(true)
            }
        }
    }

    /// A replica took a snapshot that ends with `entry`.
    pub fn installed(&mut self, head: u64, shard: u32, entry: EntryId) -> Result<(), String> {
        self.reached.insert((head, shard), entry.index);
        match self.entries.get(&(shard, entry.index)) {
            Some((known, _)) if *known != entry => Err(format!(
                "head {head} took a snapshot of shard {shard} that ends with {entry:?}; what was applied is {known:?}"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_entry_and_a_gap_are_seen() {
        let mut judge = Commit::default();
        let entry = |term, index| EntryId { term, leader: 1, index };
        assert_eq!(judge.applied(1, 0, entry(1, 1), b"a"), Ok(true));
        assert_eq!(judge.applied(2, 0, entry(1, 1), b"a"), Ok(false));
        assert!(judge.applied(3, 0, entry(1, 1), b"b").is_err());
        assert!(judge.installed(3, 0, entry(2, 1)).is_err());
        assert!(judge.applied(1, 0, entry(1, 3), b"c").is_err());
        judge.starts(1);
        assert_eq!(judge.applied(1, 0, entry(1, 1), b"a"), Ok(false), "a replay");
    }
}
