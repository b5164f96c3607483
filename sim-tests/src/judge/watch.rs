//! Watch order: *a watch delivers each change below its prefix once, in order, none before its start
//! and none left out, across failover; where changes were forgotten it is told so, with a list that
//! is what they had come to.*

use mobula_gcs::client::watch::Told;
use mobula_proto as proto;
use std::collections::BTreeMap;

/// All changes there ever were, as the replicas applied them: by shard and revision.
#[derive(Default)]
pub struct Truth {
    /// The changes.
    pub changes: BTreeMap<(u32, u64), proto::KvChange>,
}

impl Truth {
    /// Notes a change that a replica applied.
    pub fn add(&mut self, shard: u32, change: proto::KvChange) -> Result<(), String> {
        let revision = change.revision;
        match self.changes.insert((shard, revision), change) {
            Some(_) => Err(format!("two changes of shard {shard} have revision {revision}")),
            None if revision > 1 && !self.changes.contains_key(&(shard, revision - 1)) => {
                Err(format!("revision {revision} of shard {shard} came before {}", revision - 1))
            }
            None => Ok(()),
        }
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
                if !changes.iter().eq(expected.iter().copied()) {
                    let seen: Vec<u64> = changes.iter().map(|change| change.revision).collect();
                    let wanted: Vec<u64> = expected.iter().map(|change| change.revision).collect();
                    return Err(format!(
                        "a watch of shard {shard} that waited for {next} was told {seen:?} and not {wanted:?}"
                    ));
                }
                next = last.revision + 1;
            }
            Told::Listed(list) => {
                let mut state = BTreeMap::new();
                for change in truth.below(shard, prefix, 1, list.revision + 1) {
                    if change.deleted {
                        state.remove(&change.key);
                    } else {
                        state.insert(change.key.clone(), (change.value.clone(), change.revision));
                    }
                }
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
