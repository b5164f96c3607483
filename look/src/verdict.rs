//! Is this cluster well? A pure judgement of what the heads said.

use mobula_proto::{ClusterView, StatusReply};
use serde::Serialize;
use std::fmt;

/// What one head said, or why it said nothing.
pub struct Observed {
    /// Where it was asked.
    pub address: String,
    /// What came back.
    pub reply: Result<StatusReply, String>,
    /// It wants the cluster's token; whether one was shown.
    pub wants_token: Option<bool>,
}

/// In a word. The order is that of the exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Everything is up.
    Healthy,
    /// Something is missing; every request is still served.
    Degraded,
    /// Some requests are not served.
    Unavailable,
}

/// The verdict of `mobula status`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// In a word.
    pub health: Health,
    /// What is wrong.
    pub problems: Vec<String>,
    /// What to do about it.
    pub advice: Vec<String>,
    /// How many more heads may fail before something is unavailable.
    pub heads_may_fail: usize,
}

impl Verdict {
    fn add(&mut self, health: Health, problem: String, advice: &str) {
        self.health = self.health.max(health);
        self.problems.push(problem);
        if !self.advice.iter().any(|a| a == advice) {
            self.advice.push(advice.to_owned());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.health {
            Health::Healthy => return f.write_str("healthy"),
            Health::Degraded => f.write_str("degraded, still available: ")?,
            Health::Unavailable => f.write_str("unavailable: ")?,
        }
        write!(f, "{}; {}", self.problems.join("; "), self.advice.join("; "))
    }
}

/// The newest view of the cluster that any head gave; of equal ones that of the leader of shard 0,
/// which alone knows the loads of the nodes.
pub fn newest_view(observed: &[Observed]) -> Option<&ClusterView> {
    let leads = |r: &StatusReply| r.shards.iter().any(|s| s.shard == 0 && s.leader == r.head);
    observed
        .iter()
        .filter_map(|o| o.reply.as_ref().ok())
        .filter_map(|r| Some((r.view.as_ref()?, leads(r))))
        .max_by_key(|(view, leads)| (view.version, *leads))
        .map(|(view, _)| view)
}

/// Judges what was observed of the heads of one cluster.
pub fn judge(observed: &[Observed]) -> Verdict {
    let mut verdict =
        Verdict { health: Health::Healthy, problems: Vec::new(), advice: Vec::new(), heads_may_fail: 0 };
    let up: Vec<&StatusReply> = observed.iter().filter_map(|o| o.reply.as_ref().ok()).collect();
    let down: Vec<&str> = observed.iter().filter(|o| o.reply.is_err()).map(|o| o.address.as_str()).collect();
    let stranger = observed.iter().find_map(|o| Some((o.address.as_str(), o.wants_token?)));
    if let Some((address, shown)) = stranger.filter(|_| up.is_empty()) {
        let problem = match shown {
            false => format!("the cluster at {address} needs its token"),
            true => {
                format!("the cluster at {address} needs its token, and the one that was given is another")
            }
        };
        verdict.add(Health::Unavailable, problem, "give it with --token-file or MOBULA_TOKEN");
        return verdict;
    }
    if up.is_empty() {
        verdict.add(
            Health::Unavailable,
            format!("no head answers at {}", down.join(", ")),
            "start one with `mobula start --head`, or name a running one with --address",
        );
        return verdict;
    }
    judge_clusters(&up, &mut verdict);
    let majority = observed.len() / 2 + 1;
    let shards = newest_view(observed).map_or(0, |v| v.shards);
    if shards == 0 {
        verdict.add(
            Health::Unavailable,
            "the cluster is not formed yet".into(),
            "start all heads of the --join list, then ask again",
        );
        return verdict;
    }
    if !down.is_empty() {
        verdict.add(
            Health::Degraded,
            format!("{} of {} heads do not answer ({})", down.len(), observed.len(), down.join(", ")),
            "restart them with the options and data directories they had",
        );
    }
    let mut replicas_least = up.len();
    for shard in 0..shards {
        replicas_least = replicas_least.min(judge_shard(shard, &up, observed.len(), majority, &mut verdict));
    }
    if newest_view(observed).is_some_and(|v| v.nodes.iter().all(|n| !n.alive)) {
        verdict.add(
            Health::Degraded,
            "no node can run tasks".into(),
            "start one with `mobula start --join` and the addresses of the heads",
        );
    }
    verdict.heads_may_fail = replicas_least.saturating_sub(majority);
    verdict
}

/// Heads of different clusters must not be taken for one.
fn judge_clusters(up: &[&StatusReply], verdict: &mut Verdict) {
    let mut clusters: Vec<u64> = up.iter().map(|r| r.cluster).filter(|c| *c != 0).collect();
    clusters.sort_unstable();
    clusters.dedup();
    if clusters.len() > 1 {
        let names: Vec<String> = clusters.iter().map(|c| format!("{c:016x}")).collect();
        verdict.add(
            Health::Unavailable,
            format!("the heads belong to {} different clusters ({})", clusters.len(), names.join(", ")),
            "give --address the heads of one cluster",
        );
    }
}

/// Judges one shard; how many of its replicas work.
fn judge_shard(
    shard: u32,
    up: &[&StatusReply],
    heads: usize,
    majority: usize,
    verdict: &mut Verdict,
) -> usize {
    let replicas: Vec<_> = up.iter().filter_map(|r| r.shards.iter().find(|s| s.shard == shard)).collect();
    for stopped in replicas.iter().filter(|s| !s.stopped.is_empty()) {
        verdict.add(
            Health::Degraded,
            format!("a replica of shard {shard} has stopped: {}", stopped.stopped),
            "look at that head's log",
        );
    }
    let working: Vec<_> = replicas.into_iter().filter(|s| s.stopped.is_empty()).collect();
    if working.len() < majority {
        verdict.add(
            Health::Unavailable,
            format!("shard {shard} has {} of {heads} replicas, a majority is {majority}", working.len()),
            "restart heads until a majority is up; nothing acknowledged is lost",
        );
    } else if leader(shard, up).is_none() {
        verdict.add(
            Health::Unavailable,
            format!("shard {shard} has no leader at the moment"),
            "it elects one by itself: ask again in a second",
        );
    }
    working.len()
}

/// The head that leads a shard: the one named in the newest term, if it answers.
pub fn leader(shard: u32, up: &[&StatusReply]) -> Option<u64> {
    let newest = up
        .iter()
        .filter_map(|r| r.shards.iter().find(|s| s.shard == shard))
        .max_by_key(|s| (s.term, s.leader))?;
    (newest.leader != 0 && up.iter().any(|r| r.head == newest.leader)).then_some(newest.leader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::{NodeView, ShardStatus};

    fn head(number: u64, leaders: &[u64]) -> Observed {
        let shards = (0..).zip(leaders).map(|(shard, leader)| ShardStatus {
            shard,
            term: 3,
            leader: *leader,
            ..Default::default()
        });
        let view = ClusterView {
            version: 9,
            nodes: vec![NodeView { incarnation: 1, alive: true, ..Default::default() }],
            shards: leaders.len() as u32,
            ..Default::default()
        };
        let reply = StatusReply {
            head: number,
            cluster: 5,
            shards: shards.collect(),
            view: Some(view),
            ..Default::default()
        };
        Observed { address: format!("h{number}:1"), reply: Ok(reply), wants_token: None }
    }

    fn silent(number: u64) -> Observed {
        Observed { address: format!("h{number}:1"), reply: Err("refused".into()), wants_token: None }
    }

    fn check(observed: &[Observed], health: Health, says: &str, heads_may_fail: usize) {
        let verdict = judge(observed);
        assert_eq!(verdict.health, health, "{verdict}");
        assert!(verdict.to_string().contains(says), "{verdict}");
        assert_eq!(verdict.heads_may_fail, heads_may_fail, "{verdict}");
    }

    #[test]
    fn all_up_is_healthy() {
        check(&[head(1, &[1, 2]), head(2, &[1, 2]), head(3, &[1, 2])], Health::Healthy, "healthy", 1);
        check(&[head(1, &[1])], Health::Healthy, "healthy", 0);
    }

    #[test]
    fn a_minority_down_is_degraded_and_a_majority_unavailable() {
        check(&[head(1, &[1, 2]), head(2, &[1, 2]), silent(3)], Health::Degraded, "h3:1", 0);
        check(&[head(1, &[1, 2]), silent(2), silent(3)], Health::Unavailable, "1 of 3 replicas", 0);
        check(&[silent(1)], Health::Unavailable, "mobula start --head", 0);
    }

    #[test]
    fn a_stranger_is_told_to_show_the_token() {
        let shut = |shown| Observed { wants_token: Some(shown), ..silent(2) };
        check(
            &[silent(1), shut(false)],
            Health::Unavailable,
            "h2:1 needs its token; give it with --token-file",
            0,
        );
        check(&[shut(true)], Health::Unavailable, "the one that was given is another", 0);
    }

    #[test]
    fn a_shard_without_a_living_leader_is_unavailable() {
        check(
            &[head(1, &[1, 3]), head(2, &[1, 3]), silent(3)],
            Health::Unavailable,
            "shard 1 has no leader",
            0,
        );
    }

    #[test]
    fn a_stopped_replica_counts_as_missing() {
        let mut broken = head(3, &[1, 2]);
        broken.reply.as_mut().expect("it answers").shards[1].stopped = "disk full".into();
        check(&[head(1, &[1, 2]), head(2, &[1, 2]), broken], Health::Degraded, "disk full", 0);
    }

    #[test]
    fn an_unformed_or_mixed_cluster_is_said_to_be_one() {
        let unformed =
            Observed { address: "h1:1".into(), reply: Ok(StatusReply::default()), wants_token: None };
        check(&[unformed], Health::Unavailable, "not formed", 0);
        let mut other = head(2, &[1]);
        other.reply.as_mut().expect("it answers").cluster = 6;
        let verdict = judge(&[head(1, &[1]), other, head(3, &[1])]);
        assert!(verdict.to_string().contains("different clusters"), "{verdict}");
    }

    #[test]
    fn without_a_node_nothing_can_run() {
        let mut alone = head(1, &[1]);
        alone.reply.as_mut().expect("it answers").view.as_mut().expect("a view").nodes[0].alive = false;
        check(&[alone], Health::Degraded, "no node", 0);
    }
}
