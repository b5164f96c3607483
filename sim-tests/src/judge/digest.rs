//! Equal logs, equal tables: *two replicas that have applied the same index have the same digest.*

use std::collections::BTreeMap;

/// Digests by shard and index.
#[derive(Default)]
pub struct Digest(BTreeMap<(u32, u64), (u64, u64)>);

impl Digest {
    /// `head` says that its tables of `shard` at `index` hash to `digest`.
    pub fn says(&mut self, head: u64, shard: u32, index: u64, digest: u64) -> Result<(), String> {
        match self.0.insert((shard, index), (head, digest)) {
            Some((other, first)) if first != digest => Err(format!(
                "heads {other} and {head} differ in shard {shard} at index {index}: {first:016x}, {digest:016x}"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_seen() {
        let mut judge = Digest::default();
        assert!(judge.says(1, 0, 9, 5).is_ok() && judge.says(2, 0, 9, 5).is_ok());
        assert!(judge.says(3, 0, 9, 6).is_err());
    }
}
