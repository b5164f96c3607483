//! What a look at all heads that run shows: for both simulations that have heads.

use crate::judge::Verdict;
use crate::store::docket::Judges;
use mobula_gcs::Head;
use std::collections::BTreeMap;
use std::time::Duration;

/// The heads that run.
pub type Heads = BTreeMap<u64, Head>;

/// Shows the judges who leads, of `members` heads, and, if `digests`, what each has applied. Heads that had
/// to stop.
pub fn look(
    heads: &Heads,
    judges: &mut Judges,
    (members, shards): (u64, u32),
    sync_failed: impl Fn(u64) -> bool,
    now: Duration,
    digests: bool,
) -> Vec<u64> {
    let mut stopped = Vec::new();
    for (n, head) in heads {
        for (shard, term) in head.offices() {
            let finding = judges.election.leads(*n, shard, term, members);
            judges.file("election", finding);
        }
        if head.stopped().is_some() {
            stopped.push(*n);
            continue;
        }
        if sync_failed(*n) {
            judges.guess.sync_failed(*n, now);
        }
        let finding = judges.guess.serves(*n, now);
        judges.file("no-guess", finding);
        for shard in (0..shards).filter(|_| digests) {
            let (index, digest) = head.digest(shard);
            let finding = judges.digest.says(*n, shard, index, digest);
            judges.file("digest", finding);
        }
    }
    stopped
}

/// Whether all that run agree, with every shard led.
pub fn settled(heads: &Heads, shards: u32) -> bool {
    let led: usize = heads.values().map(|head| head.offices().len()).sum();
    let mut all = heads.values().map(|head| says(head, shards));
    let Some(first) = all.next() else { return false };
    led == shards as usize && all.all(|other| other == first)
}

/// That they do not agree, in words.
pub fn disagreement(heads: &Heads, shards: u32, refused: &BTreeMap<u64, String>) -> Verdict {
    let said: Vec<_> = heads.iter().map(|(n, head)| (*n, says(head, shards))).collect();
    Verdict::Liveness(format!("replicas do not agree: {said:x?}; not running: {refused:?}"))
}

fn says(head: &Head, shards: u32) -> Vec<(u64, u64)> {
    (0..shards).map(|shard| head.digest(shard)).collect()
}
