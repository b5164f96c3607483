//! A dead leader is replaced at once (R15).
//!
//! Each head keeps a probe connection to each other head. When it ends *and* dialling again is
//! refused, the kernel at the other end has said that the process is gone; nothing less counts,
//! since a false alarm would cost a healthy leader its office. Then every survivor hands the dead
//! head's leaderships on: they tell each other how long their logs are, and the one with the longest
//! stands for election, as if its leader had handed its office over. Safe, as no read uses the lease.
//!
//! A dying process may still accept for a moment, so only a byte that it wrote itself shows life.

use super::group::Group;
use super::network::Peers;
use super::types::{LogId, Types, Vote};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mobula_net::front::First;
use mobula_net::seam::{SharedNet, Stream};
use mobula_proto as proto;
use openraft::RaftMetrics;
use openraft::errors::Fatal;
use openraft::raft::TransferLeaderRequest;
use openraft::vote::RaftLeaderId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// What a prober says first: no HTTP/2 connection starts like this.
const PROBE: First = *b"MPRB";
/// What shows life.
const ALIVE: u8 = b'!';
/// A probe must be answered within this.
const ANSWER: Duration = Duration::from_millis(200);
/// A quiet probe connection is asked for a sign of life this often; one that misses it is dialled
/// anew, which by itself proves nothing.
const QUESTION: Duration = Duration::from_secs(1);
/// Longest pause between dials.
const PAUSE: Duration = Duration::from_millis(20);
/// First pause after a connection has ended: the other end may be dying, not dead.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// A survivor must say within this how it stands.
const STANDING: Duration = Duration::from_millis(50);
/// The first election among survivors may take this long before they look again.
const FIRST_ROUND: Duration = Duration::from_millis(15);
/// And later ones, each twice as long as the one before, up to this: a disk may be slow, and an
/// election that is begun anew has no winner.
const LONGEST_ROUND: Duration = Duration::from_millis(240);
/// Rounds until plain elections take over.
const ROUNDS: u32 = 8;

/// The heads that were proven dead, how often, and when last.
#[derive(Clone, Default)]
pub struct Alarms(Arc<Mutex<BTreeMap<u64, (u64, Instant)>>>);

impl Alarms {
    fn raise(&self, head: u64) {
        let mut known = self.0.lock().expect("nothing panics under this lock");
        let count = known.get(&head).map_or(0, |(count, _)| *count);
        known.insert(head, (count + 1, Instant::now()));
    }

    /// When `head` was last proven dead.
    pub fn last(&self, head: u64) -> Option<Instant> {
        self.0.lock().expect("nothing panics under this lock").get(&head).map(|(_, at)| *at)
    }

    /// For a status report.
    pub fn list(&self) -> Vec<proto::HeadAlarm> {
        let known = self.0.lock().expect("nothing panics under this lock");
        let alarm = |(head, (count, at)): (&u64, &(u64, Instant))| proto::HeadAlarm {
            head: *head,
            count: *count,
            age_us: at.elapsed().as_micros() as u64,
        };
        known.iter().map(alarm).collect()
    }
}

/// Watches other heads.
#[derive(Clone)]
pub struct Watcher {
    /// The network.
    pub net: SharedNet,
    /// This head.
    pub me: u64,
    /// The shards whose leaderships it may hand on.
    pub groups: Arc<Vec<Arc<Group>>>,
    /// Connections to the other heads.
    pub peers: Peers,
    /// Where deaths are noted.
    pub alarms: Alarms,
}

impl Watcher {
    /// Watches the head `dead` at `address`; hands on its leaderships when it is proven dead. Never ends.
    pub async fn watch(self, address: String, dead: u64) {
        let (mut was_alive, mut pause) = (false, PAUSE);
        loop {
            match tokio::time::timeout(ANSWER, self.net.dial(&address)).await {
                Ok(Ok(stream)) => {
                    if hold(stream).await {
                        (was_alive, pause) = (true, FIRST_PAUSE);
                        continue;
                    }
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    if std::mem::take(&mut was_alive) {
                        tracing::info!(
                            head = dead,
                            address,
                            "head is dead: its connection ended and dialling is refused"
                        );
                        self.alarms.raise(dead);
                        for group in self.groups.iter() {
                            let (watcher, group) = (self.clone(), group.clone());
                            tokio::spawn(async move { watcher.hand_on(&group, dead).await });
                        }
                    }
                }
                // Silence proves nothing; the next end of a connection must be seen anew.
                Ok(Err(_)) | Err(_) => was_alive = false,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
    }
}

/// Whether the other head showed life before the connection ended.
async fn hold(mut stream: Stream) -> bool {
    let mut byte = [0];
    let hello = async {
        stream.write_all(&PROBE).await?;
        stream.read_exact(&mut byte).await
    };
    if !matches!(tokio::time::timeout(ANSWER, hello).await, Ok(Ok(_))) || byte != [ALIVE] {
        return false;
    }
    // Ends with the other process, or with the path to it. The questions are for a machine that lost
    // power: it will not say goodbye, and once it is back it knows nothing of this connection.
    let mut unanswered = false;
    loop {
        match tokio::time::timeout(QUESTION, stream.read(&mut byte)).await {
            Ok(Ok(1..)) => unanswered = false,
            Ok(Ok(_) | Err(_)) => return true,
            Err(_) if unanswered => return true,
            Err(_) => {
                unanswered = true;
                if !matches!(tokio::time::timeout(ANSWER, stream.write_all(&PROBE)).await, Ok(Ok(()))) {
                    return true;
                }
            }
        }
    }
}

/// Whom a replica follows, and how long its log is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Standing {
    /// The vote it has given, or the leader it follows.
    pub vote: Vote,
    /// The end of its log.
    pub last: Option<LogId>,
}

/// How the replica of `group` here stands.
///
/// # Errors
/// It has stopped.
pub async fn standing(group: &Group) -> Result<Standing, Fatal<Types>> {
    let of = |state: &openraft::RaftState<Types>| Standing {
        vote: *state.vote_ref(),
        last: state.log_ids.last().cloned(),
    };
    group.raft.with_raft_state(of).await
}

/// A survivor that could lead.
#[derive(Debug)]
struct Candidate {
    head: u64,
    address: String,
    standing: Standing,
}

/// The candidate that all survivors agree on as long as they know the same: the longest log, and
/// among equals a place that depends on the shard, so that not all shards go to one head.
fn best(candidates: &[Candidate], shard: u32) -> Option<&Candidate> {
    let longest = candidates.iter().map(|c| &c.standing.last).max()?;
    let mut equal: Vec<&Candidate> = candidates.iter().filter(|c| &c.standing.last == longest).collect();
    equal.sort_by_key(|c| c.head);
    Some(equal[shard as usize % equal.len()])
}

impl Watcher {
    /// Gives the shard a leader other than `dead`, if that is who this replica follows.
    async fn hand_on(&self, group: &Group, dead: u64) {
        let mut pause = FIRST_ROUND;
        for round in 0..ROUNDS {
            let Ok(mine) = standing(group).await else { return };
            let is_followed = |vote: &Vote| *vote.leader_id().node_id() == dead;
            // Later on a vote may have been given without a leader coming of it.
            if round == 0 && !is_followed(&mine.vote) {
                return;
            }
            let candidates = self.candidates(group, dead, mine).await;
            match best(&candidates, group.shard) {
                Some(best) if best.head == self.me => {
                    let Standing { vote, last } = best.standing.clone();
                    // Ignored if the vote has changed since; refused while the log is not flushed.
                    group
                        .raft
                        .handle_transfer_leader(TransferLeaderRequest::new(vote, self.me, last))
                        .await
                        .ok();
                }
                // It has the same proof or will have it in a moment: this only saves that moment.
                Some(best) if round == 0 && is_followed(&best.standing.vote) => {
                    let Standing { vote, last } = best.standing.clone();
                    let request = TransferLeaderRequest::new(vote, best.head, last);
                    self.peers.nominate(&best.address, group.shard, &request, STANDING).await;
                }
                _ => {}
            }
            let has_successor =
                |metrics: &RaftMetrics<Types>| metrics.current_leader.is_some_and(|led| led != dead);
            if group.raft.wait(Some(pause)).metrics(has_successor, "a successor").await.is_ok() {
                return;
            }
            pause = (pause * 2).min(LONGEST_ROUND);
        }
    }

    /// The survivors and how they stand, as soon as a majority of all voters has said so.
    async fn candidates(&self, group: &Group, dead: u64, mine: Standing) -> Vec<Candidate> {
        let voters = group.voters();
        let majority = voters.len() / 2 + 1;
        let mut asked: FuturesUnordered<_> = voters
            .into_iter()
            .filter(|voter| voter.head != dead && voter.head != self.me)
            .map(|voter| async move {
                let standing = self.peers.standing(&voter.address, group.shard, STANDING).await?;
                Some(Candidate { head: voter.head, address: voter.address, standing })
            })
            .collect();
        let mut candidates = vec![Candidate { head: self.me, address: String::new(), standing: mine }];
        while candidates.len() < majority
            && let Some(answer) = asked.next().await
        {
            candidates.extend(answer);
        }
        candidates
    }
}

/// Whether a connection that begins so is a prober's.
pub fn is_probe(first: First) -> bool {
    first == PROBE
}

/// Shows life on a probe connection, at its start and whenever it is asked, until it ends.
pub async fn answer_probes(mut stream: Stream) {
    let mut question = PROBE;
    while stream.read_exact(&mut question).await.is_ok() && stream.write_all(&[ALIVE]).await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::vote::RaftVote;

    fn candidate(head: u64, last: Option<u64>) -> Candidate {
        let vote = Vote::from_leader_id(openraft::alias::LeaderIdOf::<Types>::new(3, 9), true);
        let last = last.map(|index| LogId::new(vote.leader_id().to_committed(), index));
        Candidate { head, address: String::new(), standing: Standing { vote, last } }
    }

    #[test]
    fn the_longest_log_wins_and_equals_are_spread_by_shard() {
        let behind = [candidate(1, Some(4)), candidate(2, Some(5)), candidate(3, None)];
        let equal = [candidate(3, Some(5)), candidate(1, Some(5)), candidate(2, Some(4))];
        let head = |candidates: &[Candidate], shard| best(candidates, shard).map(|c| c.head);
        assert_eq!([0, 1, 2].map(|shard| head(&behind, shard)), [Some(2); 3]);
        assert_eq!([0, 1, 2].map(|shard| head(&equal, shard)), [Some(1), Some(3), Some(1)]);
        assert_eq!(head(&[], 0), None);
    }
}
