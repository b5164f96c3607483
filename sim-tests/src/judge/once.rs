//! Once: *a request that was acknowledged took effect exactly once, at the revision it was told; one
//! whose outcome is unknown at most once.* Every value is written by one request, so the history of
//! changes shows it.

use super::watch::Truth;
use std::collections::BTreeMap;

/// A write as its client knows it.
#[derive(Clone, Debug)]
pub struct Write {
    /// The shard of its key; not known where slots move.
    pub shard: Option<u32>,
    /// What it wrote; no other request did.
    pub value: Vec<u8>,
    /// The revision that was acknowledged.
    pub acknowledged: u64,
}

/// Compares the acknowledged with all changes there ever were.
pub fn judge(truth: &Truth, writes: &[Write]) -> Result<(), String> {
    let mut seen: BTreeMap<&[u8], (u32, u64)> = BTreeMap::new();
    for ((shard, revision), change) in &truth.changes {
        if !change.deleted
            && let Some(first) = seen.insert(&change.value, (*shard, *revision))
        {
            return Err(format!(
                "one request took effect twice, at (shard, revision) {first:?} and at {revision}"
            ));
        }
    }
    for write in writes {
        let found = seen.get(&write.value[..]).copied();
        let is_it = |(shard, revision): (u32, u64)| {
            revision == write.acknowledged && write.shard.is_none_or(|expected| expected == shard)
        };
        if !found.is_some_and(is_it) {
            return Err(format!(
                "a write was acknowledged at revision {} of shard {:?} and took effect at {found:?}",
                write.acknowledged, write.shard
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::KvChange;

    #[test]
    fn twice_and_elsewhere_are_seen() {
        let change = |value: &'static str| KvChange { value: value.into(), ..Default::default() };
        let truth = |changes: &[(u64, &'static str)]| Truth {
            changes: changes.iter().map(|(revision, value)| ((0, *revision), change(value))).collect(),
            ..Truth::default()
        };
        let write = Write { shard: Some(0), value: b"a".to_vec(), acknowledged: 1 };
        assert!(judge(&truth(&[(1, "a"), (2, "b")]), std::slice::from_ref(&write)).is_ok());
        assert!(judge(&truth(&[(1, "a"), (2, "a")]), &[]).is_err());
        assert!(judge(&truth(&[(2, "a")]), std::slice::from_ref(&write)).is_err());
        assert!(judge(&truth(&[]), &[write]).is_err());
    }
}
