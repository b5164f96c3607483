//! What a demo run is asked to do, checked before anything starts.

use mobula_base::random::Random;
use std::fmt;
use std::str::FromStr;

/// Which process a kill hits. Numbers start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// A head of the control store.
    Head(usize),
    /// A node daemon.
    Node(usize),
    /// Some head that leads shards when the moment comes; the seed decides which.
    LeadingHead,
    /// Some node that holds objects and has no driver; the seed decides which.
    HoldingNode,
}

/// One kill and its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Who.
    pub victim: Victim,
    /// At which progress of the job, in percent.
    pub at_percent: u32,
}

/// A run of the demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Decides the victims and the seeded corpus.
    pub seed: u64,
    /// Replicas of the control store.
    pub heads: usize,
    /// Node daemons.
    pub nodes: usize,
    /// Shards of the control store.
    pub shards: u32,
    /// Worker processes on each node.
    pub workers: u32,
    /// The kills, by moment.
    pub kills: Vec<Kill>,
    /// The two default kills: the exit code then asks for their effects too.
    pub is_default_kills: bool,
}

/// No more processes than a laptop takes.
const PROCESSES_MAX: usize = 64;

impl Plan {
    /// Checks what was asked for. `kills` empty and `no_kill` false gives the default kills.
    ///
    /// # Errors
    /// What cannot work, with what to change.
    #[allow(clippy::too_many_arguments)] // one for each option of the command
    pub fn new(
        seed: u64,
        heads: usize,
        nodes: usize,
        shards: u32,
        workers: u32,
        kills: &[Kill],
        no_kill: bool,
    ) -> Result<Plan, String> {
        cluster_size(heads, nodes, shards, workers)?;
        if no_kill && !kills.is_empty() {
            return Err("--no-kill and --kill contradict each other; give one of them".into());
        }
        let is_default_kills = kills.is_empty() && !no_kill;
        let mut kills = if is_default_kills { default_kills(seed) } else { kills.to_vec() };
        for (at, kill) in kills.iter().enumerate() {
            check_kill(kill, heads, nodes)?;
            if kills[..at].iter().any(|earlier| earlier.victim == kill.victim) {
                return Err(format!(
                    "{} cannot be killed twice: nobody restarts it; remove one --kill",
                    kill.victim
                ));
            }
        }
        let hits_head = |k: &&Kill| matches!(k.victim, Victim::Head(_) | Victim::LeadingHead);
        let heads_hit = kills.iter().filter(hits_head).count();
        if heads_hit > (heads - 1) / 2 {
            return Err(format!(
                "cannot kill {heads_hit} of {heads} heads: a majority must survive; use --heads {} or fewer \
                 head kills",
                2 * heads_hit + 1
            ));
        }
        kills.sort_by_key(|k| k.at_percent);
        Ok(Plan { seed, heads, nodes, shards, workers, kills, is_default_kills })
    }
}

/// Checks the size of a development cluster.
///
/// # Errors
/// What cannot work, with what to change.
pub fn cluster_size(heads: usize, nodes: usize, shards: u32, workers: u32) -> Result<(), String> {
    if heads == 0 {
        return Err("a cluster needs a head; use --heads 1, 3 or 5".into());
    }
    if heads.is_multiple_of(2) {
        return Err(format!(
            "{heads} heads survive no more failures than {}; use an odd number, such as --heads {}",
            heads - 1,
            heads + 1
        ));
    }
    if nodes == 0 {
        return Err("a cluster without a node runs no task; use --nodes 1 or more".into());
    }
    if shards == 0 {
        return Err("a control store needs a shard; use --shards 1 or more".into());
    }
    if shards > mobula_base::ids::SLOTS {
        return Err(format!(
            "{shards} shards are too many; use --shards {} or fewer",
            mobula_base::ids::SLOTS
        ));
    }
    if workers == 0 {
        return Err("a node without workers runs no task; use --workers 1 or more".into());
    }
    let processes = heads + nodes * (1 + workers as usize);
    if processes > PROCESSES_MAX {
        return Err(format!(
            "{processes} processes are more than {PROCESSES_MAX}; use fewer nodes or workers"
        ));
    }
    Ok(())
}

/// One head at about 40 %, one node at about 60 %.
fn default_kills(seed: u64) -> Vec<Kill> {
    let mut random = Random::new(seed).fork("moments");
    vec![
        Kill { victim: Victim::LeadingHead, at_percent: 37 + random.below(7) as u32 },
        Kill { victim: Victim::HoldingNode, at_percent: 57 + random.below(7) as u32 },
    ]
}

fn check_kill(kill: &Kill, heads: usize, nodes: usize) -> Result<(), String> {
    match kill.victim {
        Victim::Head(_) | Victim::LeadingHead if heads == 1 => {
            Err("--heads 1 cannot survive the loss of its only head; use --heads 3, or --no-kill".into())
        }
        Victim::Head(i) if i == 0 || i > heads => {
            Err(format!("there is no head {i}: heads are numbered 1 to {heads}"))
        }
        Victim::Node(i) if i == 0 || i > nodes => {
            Err(format!("there is no node {i}: nodes are numbered 1 to {nodes}"))
        }
        Victim::Node(1) => {
            Err("cannot kill node 1: the driver is attached to it; choose node 2 or above".into())
        }
        Victim::HoldingNode if nodes == 1 => {
            Err("--nodes 1 leaves no node to kill: the driver is attached to it; use --nodes 2 or more, or \
                 --no-kill"
                .into())
        }
        _ => Ok(()),
    }
}

impl FromStr for Kill {
    type Err = String;

    /// Reads `head:1@42%` or `node:2@60%`.
    fn from_str(text: &str) -> Result<Kill, String> {
        let wrong = || format!("\"{text}\" is no kill; write head:NUMBER@PERCENT% or node:NUMBER@PERCENT%");
        let (victim, moment) = text.split_once('@').ok_or_else(wrong)?;
        let (kind, number) = victim.split_once(':').ok_or_else(wrong)?;
        let number: usize = number.parse().map_err(|_| wrong())?;
        let percent = moment.strip_suffix('%').ok_or_else(wrong)?;
        let at_percent: u32 = percent.parse().map_err(|_| wrong())?;
        if at_percent >= 100 {
            return Err(format!("\"{text}\": at {at_percent} % the job is over; use 0 to 99"));
        }
        let victim = match kind {
            "head" => Victim::Head(number),
            "node" => Victim::Node(number),
            _ => return Err(wrong()),
        };
        Ok(Kill { victim, at_percent })
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Victim::Head(i) => write!(f, "head {i}"),
            Victim::Node(i) => write!(f, "node {i}"),
            Victim::LeadingHead => f.write_str("a head that leads shards"),
            Victim::HoldingNode => f.write_str("a node that holds objects"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(heads: usize, nodes: usize, kills: &[&str]) -> Result<Plan, String> {
        let kills: Vec<Kill> = kills.iter().map(|k| k.parse().expect("a kill")).collect();
        Plan::new(1, heads, nodes, 4, 2, &kills, kills.is_empty())
    }

    #[test]
    fn kills_are_read_and_sorted_by_moment() {
        let plan = plan(3, 3, &["node:2@60%", "head:1@42%"]).expect("a good plan");
        assert_eq!(
            plan.kills,
            [
                Kill { victim: Victim::Head(1), at_percent: 42 },
                Kill { victim: Victim::Node(2), at_percent: 60 }
            ]
        );
        assert!(!plan.is_default_kills);
        for wrong in
            ["head:1", "head@4%", "tail:1@4%", "head:x@4%", "head:1@x%", "head:1@42", "head:1@100%", ""]
        {
            assert!(wrong.parse::<Kill>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_do() {
        for (got, expected) in [
            (plan(1, 3, &["head:1@40%"]), "only head"),
            (plan(2, 3, &[]), "odd number"),
            (plan(0, 3, &[]), "--heads 1"),
            (plan(3, 0, &[]), "--nodes 1"),
            (plan(3, 3, &["head:4@40%"]), "numbered 1 to 3"),
            (plan(3, 3, &["head:0@40%"]), "numbered 1 to 3"),
            (plan(3, 3, &["node:4@40%"]), "numbered 1 to 3"),
            (plan(3, 3, &["node:1@40%"]), "the driver"),
            (plan(3, 3, &["head:1@10%", "head:2@50%"]), "a majority must survive"),
            (plan(3, 3, &["node:2@40%", "node:2@60%"]), "twice"),
            (plan(61, 3, &[]), "processes"),
            (Plan::new(1, 3, 3, 0, 2, &[], false), "--shards 1"),
            (Plan::new(1, 3, 3, 4, 0, &[], false), "--workers 1"),
            (Plan::new(1, 3, 1, 4, 2, &[], false), "--nodes 2"),
            (Plan::new(1, 1, 3, 4, 2, &[], false), "--no-kill"),
        ] {
            let error = got.expect_err(expected);
            assert!(error.contains(expected), "{error:?} says {expected:?}");
        }
        plan(1, 1, &[]).expect("a cluster of one without kills is fine");
        plan(5, 3, &["head:1@10%", "head:2@50%"]).expect("two of five heads may go");
    }

    #[test]
    fn default_kills_follow_the_seed_and_stay_near_their_moments() {
        let default = |seed| Plan::new(seed, 3, 3, 4, 2, &[], false).expect("the default plan");
        assert_eq!(default(7), default(7));
        for seed in 0..50 {
            let kills = default(seed).kills;
            assert_eq!(kills[0].victim, Victim::LeadingHead);
            assert!((35..45).contains(&kills[0].at_percent) && (55..65).contains(&kills[1].at_percent));
        }
    }
}
