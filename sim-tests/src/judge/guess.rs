//! No guessing: *a head whose data directory is missing or another head's does not come up, and one
//! whose disk failed a sync ends.* A damaged one may refuse or repair; if it serves, the other judges
//! see what it says.

use std::collections::BTreeMap;
use std::time::Duration;

/// A head that knows of a failed sync has this long to end.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Heads that are under suspicion, and why.
#[derive(Default)]
pub struct Guess {
    barred: BTreeMap<u64, &'static str>,
    failed: BTreeMap<u64, Duration>,
}

impl Guess {
    /// `head` may not come up from now on.
    pub fn bar(&mut self, head: u64, why: &'static str) {
        self.barred.insert(head, why);
    }

    /// What was wrong with the directory of `head` has been undone.
    pub fn allow(&mut self, head: u64) {
        self.barred.remove(&head);
    }

    /// A sync of `head` failed.
    pub fn sync_failed(&mut self, head: u64, now: Duration) {
        self.failed.entry(head).or_insert(now);
    }

    /// `head` has ended.
    pub fn ended(&mut self, head: u64) {
        self.failed.remove(&head);
    }

    /// `head` serves.
    pub fn serves(&self, head: u64, now: Duration) -> Result<(), String> {
        if let Some(why) = self.barred.get(&head) {
            return Err(format!("head {head} serves, though its data directory is {why}"));
        }
        match self.failed.get(&head) {
            Some(at) if now > *at + ENDS_WITHIN => {
                Err(format!("a sync of head {head} failed at {:.3} s, and it goes on", at.as_secs_f64()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_barred_or_failed_must_not_serve() {
        let mut judge = Guess::default();
        let second = Duration::from_secs;
        judge.bar(1, "empty");
        assert!(judge.serves(1, second(1)).is_err() && judge.serves(2, second(1)).is_ok());
        judge.allow(1);
        assert!(judge.serves(1, second(1)).is_ok());
        judge.sync_failed(2, second(1));
        assert!(judge.serves(2, second(2)).is_ok() && judge.serves(2, second(4)).is_err());
        judge.ended(2);
        assert!(judge.serves(2, second(4)).is_ok());
    }
}
