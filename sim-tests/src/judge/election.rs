//! Election safety: whoever leads was elected by a majority, and no head's vote goes back.
//!
//! openraft orders elections by (term, candidate), so a later candidate may win in the same term; the
//! pair is what Raft's paper calls a term. So: *a head grants its vote to rising pairs only, whatever
//! crash lies between, and a leader of a pair has been granted the votes of a majority, itself
//! included.* Two leaders of one pair are one head.

use std::collections::{BTreeMap, BTreeSet};

/// What was granted.
#[derive(Default)]
pub struct Election {
    highest: BTreeMap<(u64, u32), (u64, u64)>,
    voters: BTreeMap<(u32, u64, u64), BTreeSet<u64>>,
}

impl Election {
    /// `head` granted its vote.
    pub fn granted(&mut self, head: u64, shard: u32, term: u64, candidate: u64) -> Result<(), String> {
        self.voters.entry((shard, term, candidate)).or_default().insert(head);
        let highest = self.highest.entry((head, shard)).or_default();
        if (term, candidate) < *highest {
            return Err(format!(
                "head {head} voted in shard {shard} for {candidate} in term {term}, after it had voted for {} in \
                 term {}",
                highest.1, highest.0
            ));
        }
        *highest = (term, candidate);
        Ok(())
    }

    /// `head` is seen to lead in a cluster of `heads`.
    pub fn leads(&mut self, head: u64, shard: u32, term: u64, heads: u64) -> Result<(), String> {
        let voters = self.voters.entry((shard, term, head)).or_default();
        voters.insert(head);
        if (voters.len() as u64) <= heads / 2 {
            return Err(format!(
                "head {head} leads shard {shard} in term {term} by the votes of {voters:?} only"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_that_goes_back_and_a_leader_of_a_minority_are_seen() {
        let mut judge = Election::default();
        assert!(judge.granted(2, 0, 3, 1).is_ok() && judge.leads(1, 0, 3, 3).is_ok());
        assert!(judge.granted(2, 0, 3, 3).is_ok(), "a later candidate of the same term");
        assert!(judge.granted(2, 0, 3, 1).is_err());
        assert!(judge.leads(1, 0, 4, 3).is_err());
    }
}
