//! Watch order: *a watch delivers each change below its prefix once, in order, none before its start
//! and none left out, across failover; where changes were forgotten it is told so, with a list that
//! is what they had come to.*

use bytes::Bytes;
use mobula_base::SlotSet;
use mobula_base::slots::slot_of_key;
use mobula_gcs::client::watch::Told;
use mobula_proto as proto;
use std::collections::BTreeMap;

/// All changes there ever were, as the replicas applied them: by shard and revision.
#[derive(Default)]
pub struct Truth {
    /// The changes.
    pub changes: BTreeMap<(u32, u64), proto::KvChange>,
    /// Keys that came or went without a change. Each takes a revision, and leaves a gap before it: who
    /// watches must be given a list.
    jumps: BTreeMap<(u32, u64), Jump>,
}

/// Slots came to a shard, or left it.
#[derive(Default)]
pub struct Jump {
    /// What was in them.
    pub arrived: Vec<proto::KvEntry>,
    /// Those that left.
    pub left: SlotSet,
}

/// Keys, with their values and revisions.
pub type Keys = BTreeMap<Bytes, (Bytes, u64)>;

impl Truth {
    /// Notes a change that a replica applied.
    pub fn add(&mut self, shard: u32, change: proto::KvChange) -> Result<(), String> {
        let revision = change.revision;
        match self.changes.insert((shard, revision), change) {
            Some(_) => Err(format!("two changes of shard {shard} have revision {revision}")),
            None if revision > 1
                && !self.changes.contains_key(&(shard, revision - 1))
                && !self.jumps.contains_key(&(shard, revision - 1)) =>
            {
                Err(format!("revision {revision} of shard {shard} came before {}", revision - 1))
            }
            None => Ok(()),
        }
    }

    /// Revision of the last change or jump of a shard, 0 for none.
    pub fn last(&self, shard: u32) -> u64 {
        let all = (shard, 0)..=(shard, u64::MAX);
        let change = self.changes.range(all.clone()).next_back().map(|((_, revision), _)| *revision);
        let jump = self.jumps.range(all).next_back().map(|((_, revision), _)| *revision);
        change.max(jump).unwrap_or(0)
    }

    /// Keys came or went; revisions go on above `revision` and all that there were.
    pub fn jump(&mut self, shard: u32, revision: u64, jump: Jump) {
        self.jumps.insert((shard, self.last(shard).max(revision) + 1), jump);
    }

    /// What the changes and jumps of a shard come to, up to a revision, below a prefix.
    pub fn keys(&self, shard: u32, prefix: &[u8], upto: u64) -> Keys {
        let mut keys = Keys::new();
        let mut from = 0;
        let until = |to: u64| (shard, to.saturating_add(1));
        for ((_, at), jump) in self.jumps.range((shard, 0)..until(upto)) {
            self.change(&mut keys, shard, from, *at);
            keys.retain(|key, _| !jump.left.contains(slot_of_key(key)));
            let entry = |entry: &proto::KvEntry| (entry.key.clone(), (entry.value.clone(), entry.revision));
            keys.extend(jump.arrived.iter().map(entry));
            from = *at;
        }
        self.change(&mut keys, shard, from, upto.saturating_add(1));
        keys.retain(|key, _| key.starts_with(prefix));
        keys
    }

    /// Applies the changes of a shard from a revision to before another one.
    fn change(&self, keys: &mut Keys, shard: u32, from: u64, to: u64) {
        for change in self.below(shard, b"", from, to) {
            if change.deleted {
                keys.remove(&change.key);
            } else {
                keys.insert(change.key.clone(), (change.value.clone(), change.revision));
            }
        }
    }

    /// Whether a shard jumped at a revision from one to before another.
    fn jumped(&self, shard: u32, from: u64, to: u64) -> bool {
        self.jumps.range((shard, from)..(shard, to.max(from))).next().is_some()
    }

    fn below<'a>(
        &'a self,
        shard: u32,
        prefix: &'a [u8],
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = &'a proto::KvChange> {
        let range = self.changes.range((shard, from)..(shard, to.max(from)));
        range.map(|(_, change)| change).filter(move |change| change.key.starts_with(prefix))
    }
}

/// One watch and what it was told.
pub struct Watched {
    /// The shard.
    pub shard: u32,
    /// The prefix.
    pub prefix: Vec<u8>,
    /// The revision it began with.
    pub from: u64,
    /// The revision it would have gone on with.
    pub next: u64,
    /// What it was told.
    pub told: Vec<Told>,
}

/// Compares a watch with the truth.
pub fn judge(truth: &Truth, watched: &Watched) -> Result<(), String> {
    let (shard, prefix) = (watched.shard, &watched.prefix[..]);
    let mut next = watched.from;
    for told in &watched.told {
        match told {
            Told::Changes(changes) => {
                let Some(last) = changes.last() else { continue };
                let expected: Vec<_> = truth.below(shard, prefix, next, last.revision + 1).collect();
                let jumped = truth.jumped(shard, next, last.revision + 1);
                if jumped || !changes.iter().eq(expected.iter().copied()) {
                    let seen: Vec<u64> = changes.iter().map(|change| change.revision).collect();
                    let wanted: Vec<u64> = expected.iter().map(|change| change.revision).collect();
                    return Err(format!(
                        "a watch of shard {shard} that waited for {next} was told {seen:?} and not {wanted:?}"
                    ));
                }
                next = last.revision + 1;
            }
            Told::Listed(list) => {
                let state = truth.keys(shard, prefix, list.revision);
                let entry = |e: &proto::KvEntry| (e.key.clone(), (e.value.clone(), e.revision));
                if list.revision + 1 < next || !list.entries.iter().map(entry).eq(state) {
                    return Err(format!(
                        "a watch of shard {shard} that waited for {next} was given a wrong list at {}",
                        list.revision
                    ));
                }
                next = list.revision + 1;
            }
        }
    }
    if truth.jumped(shard, next, watched.next) {
        return Err(format!(
            "a watch of shard {shard} went past a move of slots after {next} without a word"
        ));
    }
    if let Some(missed) = truth.below(shard, prefix, next, watched.next).next() {
        return Err(format!(
            "a watch of shard {shard} went past revision {} without a word",
            missed.revision
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64) -> proto::KvChange {
        proto::KvChange { key: "k".into(), revision, ..Default::default() }
    }

    #[test]
    fn a_move_of_slots_must_be_listed_and_changes_what_is_there() {
        let mut truth = Truth::default();
        truth.add(0, change(1)).expect("first");
        let entry = proto::KvEntry { key: "far".into(), value: "v".into(), revision: 40 };
        truth.jump(0, 50, Jump { arrived: vec![entry], left: SlotSet::default() });
        assert_eq!((truth.last(0), truth.keys(0, b"", 51).len(), truth.keys(0, b"", 50).len()), (51, 2, 1));
        truth.add(0, change(52)).expect("the next");
        assert!(truth.add(0, change(54)).is_err());
        let watched = |told, next| Watched { shard: 0, prefix: b"".to_vec(), from: 1, next, told };
        let told = vec![Told::Changes(vec![change(1)]), Told::Changes(vec![change(52)])];
        assert!(judge(&truth, &watched(told, 53)).is_err(), "it was not told of what came");
        assert!(judge(&truth, &watched(vec![Told::Changes(vec![change(1)])], 52)).is_err());
        let left = [slot_of_key(b"k")].into_iter().collect();
        truth.jump(0, 0, Jump { arrived: Vec::new(), left });
        let keys = truth.keys(0, b"", 60);
        assert_eq!(keys.keys().collect::<Vec<_>>(), [&Bytes::from("far")]);
    }

    #[test]
    fn twice_skipped_early_and_wrong_lists_are_seen() {
        let mut truth = Truth::default();
        for revision in 1..6 {
            truth.add(0, change(revision)).expect("in order");
        }
        assert!(truth.add(0, change(5)).is_err() && truth.add(0, change(7)).is_err());
        let watched = |told: &[&[u64]], next| Watched {
            shard: 0,
            prefix: b"k".to_vec(),
            from: 2,
            next,
            told: told.iter().map(|told| Told::Changes(told.iter().map(|n| change(*n)).collect())).collect(),
        };
        assert_eq!(judge(&truth, &watched(&[&[2, 3], &[4, 5]], 6)), Ok(()));
        for (told, next) in [
            (&[&[2, 3][..], &[3, 4]][..], 5),
            (&[&[2, 3], &[5]], 6),
            (&[&[1, 2]], 3),
            (&[&[2, 3]], 6),
            (&[&[3, 2]], 4),
        ] {
            assert!(judge(&truth, &watched(told, next)).is_err(), "{told:?}");
        }
        let empty = proto::KvList { entries: Vec::new(), revision: 5 };
        let listed = Watched { told: vec![Told::Listed(empty)], ..watched(&[], 6) };
        assert!(judge(&truth, &listed).is_err());
    }
}
