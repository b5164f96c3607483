//! What a head remembers of the others' disks, so that one that has gone back in time is noticed.
//!
//! A directory that was restored from an older copy has no damage in it: its own checksums cannot
//! tell. But whoever led while it was written has been told what was durable there. A head asks the
//! others for that before it takes part. What is compared is the vote, then the last entry: entries may go when a later leader,
//! whose vote is then stored, has others; under one vote nothing that was acknowledged goes.
//!
//! Memory only: when all who led have been restarted since, nobody knows.

use crate::error::Error;
use crate::log::record::{pack, unpack};
use crate::raft::types::LogId;
use crate::server::Running;
use futures::future::join_all;
use mobula_net::grpc;
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use proto::raft_client::RaftClient;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Pause between looks at what was acknowledged.
const TICK: Duration = Duration::from_millis(50);
/// A head that is asked must answer within this.
const QUESTION: Duration = Duration::from_millis(500);

/// How far a replica was durable, as its leader was told; or how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Term of the vote that was stored with it.
    pub term: u64,
    /// The last entry.
    pub last: Option<LogId>,
}

impl Durable {
    /// Whether a disk that is at `self` cannot be the one that was at `told`.
    pub fn is_before(&self, told: &Durable) -> bool {
        self.term < told.term || (self.term == told.term && self.last < told.last)
    }

    fn later(self, other: Durable) -> Durable {
        if self.is_before(&other) { other } else { self }
    }
}

/// What was acknowledged to this head, by shard and follower.
#[derive(Default)]
pub struct Memory(Mutex<BTreeMap<(u32, u64), Durable>>);

impl Memory {
    /// A follower has acknowledged entries up to `last`, sent by the leader of `term`.
    pub fn note(&self, shard: u32, head: u64, term: u64, last: LogId) {
        let mut known = self.0.lock().expect("nothing panics under this lock");
        let now = Durable { term, last: Some(last) };
        known.entry((shard, head)).and_modify(|before| *before = before.later(now)).or_insert(now);
    }

    /// What `head` has acknowledged.
    pub fn of(&self, head: u64) -> Vec<proto::Recalled> {
        let known = self.0.lock().expect("nothing panics under this lock");
        let of_head = known.iter().filter(|((_, follower), _)| *follower == head);
        let recalled = |((shard, _), told): (&(u32, u64), &Durable)| proto::Recalled {
            shard: *shard,
            term: told.term,
            last: told.last.as_ref().map(pack).unwrap_or_default(),
        };
        of_head.map(recalled).collect()
    }
}

/// Looks again and again at what the followers of the shards that this head leads have acknowledged. What
/// comes between the last look and the end of an office is not remembered. Never ends.
pub async fn listen(running: Arc<Running>) {
    loop {
        tokio::time::sleep(TICK).await;
        for group in running.groups.iter() {
            for (head, term, last) in group.acknowledged() {
                running.memory.note(group.shard, head, term, last);
            }
        }
    }
}

/// Asks the other heads how far this one's disk was, and compares.
///
/// # Errors
/// [`Error::WentBack`]: one of them remembers more than there is.
pub async fn check(
    net: &SharedNet,
    cluster: u64,
    head: u64,
    others: BTreeSet<String>,
    here: &BTreeMap<u32, Durable>,
) -> Result<(), Error> {
    let asked = others.into_iter().map(|address| async move {
        let mut client = RaftClient::new(grpc::channel(net.clone(), &address).ok()?);
        let reply = tokio::time::timeout(QUESTION, client.recall(proto::RecallRequest { cluster, head }));
        Some((address, reply.await.ok()?.ok()?.into_inner()))
    });
    for (by, reply) in join_all(asked).await.into_iter().flatten() {
        compare(&by, &reply.shards, here)?;
    }
    Ok(())
}

/// Whether what `by` remembers is still here.
///
/// # Errors
/// [`Error::WentBack`].
pub fn compare(by: &str, told: &[proto::Recalled], here: &BTreeMap<u32, Durable>) -> Result<(), Error> {
    for recalled in told {
        let last = match recalled.last.is_empty() {
            true => None,
            false => Some(unpack(&recalled.last).map_err(|_| Error::Protocol("what was acknowledged"))?),
        };
        let told = Durable { term: recalled.term, last };
        let now = here.get(&recalled.shard).copied().unwrap_or(Durable { term: 0, last: None });
        if now.is_before(&told) {
            let at = |durable: &Durable| (durable.term, durable.last.map_or(0, |id| id.index));
            let (shard, by) = (recalled.shard, by.to_owned());
            return Err(Error::WentBack { shard, by, told: at(&told), here: at(&now) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Vote;

    fn at(vote: u64, term: u64, index: u64) -> Durable {
        Durable { term: vote, last: Some(LogId { leader_id: *Vote::new(term, 1).leader_id(), index }) }
    }

    #[test]
    fn only_a_disk_that_went_back_is_before_what_it_was() {
        assert!(at(3, 3, 9).is_before(&at(3, 3, 10)), "an entry is missing");
        assert!(at(2, 2, 10).is_before(&at(3, 2, 10)), "the vote is older");
        assert!(Durable { term: 0, last: None }.is_before(&at(1, 1, 1)));
        assert!(!at(3, 3, 10).is_before(&at(3, 3, 10)));
        assert!(!at(3, 3, 11).is_before(&at(3, 3, 10)));
        assert!(!at(4, 3, 7).is_before(&at(3, 3, 10)), "a later leader may have taken entries back");
        assert!(!at(4, 4, 8).is_before(&at(3, 3, 10)), "and put others in their place");
    }

    #[test]
    fn a_leader_remembers_the_furthest_of_each_follower() {
        let memory = Memory::default();
        let last = |durable: Durable| durable.last.expect("given");
        memory.note(0, 2, 3, last(at(3, 3, 10)));
        memory.note(0, 2, 3, last(at(3, 3, 8)));
        memory.note(1, 2, 3, last(at(3, 3, 5)));
        memory.note(0, 3, 3, last(at(3, 3, 99)));
        let told = memory.of(2);
        assert_eq!(told.len(), 2);
        let here = BTreeMap::from([(0, at(3, 3, 10)), (1, at(3, 3, 5))]);
        compare("h:1", &told, &here).expect("all is there");
        let error = compare("h:1", &told, &BTreeMap::from([(0, at(3, 3, 10))])).expect_err("shard 1 is gone");
        assert!(matches!(error, Error::WentBack { shard: 1, .. }), "{error}");
    }
}
