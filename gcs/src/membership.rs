//! What the leader of a shard does next so that its members become those of the table (R18).
//!
//! A pure function of what is wanted and what is seen, asked again after every step: so a change may
//! be interrupted and repeated anywhere, and whoever leads next goes on. The doing is in
//! [`driver`]; the table in [`crate::core::heads`].

pub mod driver;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

/// What a leader sees of its shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// This head.
    pub me: u64,
    /// Sets of voters: two while a change is under way.
    pub configs: Vec<BTreeSet<u64>>,
    /// All members, learners included, and their addresses.
    pub nodes: BTreeMap<u64, String>,
    /// Heads that have answered lately, this one included.
    pub answering: BTreeSet<u64>,
    /// Heads whose log is (nearly) as long as this one's, this one included.
    pub caught_up: BTreeSet<u64>,
}

/// What is next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the members are those that are wanted.
    Settled,
    /// Nothing can be done before this.
    Wait(String),
    /// Send the log to these, without a vote.
    Learn(BTreeMap<u64, String>),
    /// Make these the voters, through a joint configuration; or finish one.
    Vote(BTreeSet<u64>),
    /// Let another head lead first: this one is on its way out.
    HandOver(u64),
    /// Send no log to these any more.
    Forget(BTreeSet<u64>),
}

/// The next step towards `wanted`.
pub fn next_step(wanted: &BTreeMap<u64, String>, seen: &Seen) -> Step {
    let Some(last) = seen.configs.last() else { return Step::Wait("the shard has no members yet".into()) };
    if seen.configs.len() > 1 {
        // Whatever is wanted by now: what has begun is finished first.
        return Step::Vote(last.clone());
    }
    let target: BTreeSet<u64> = wanted.keys().copied().collect();
    if target.is_empty() || *last == target {
        let strays: BTreeSet<u64> = seen.nodes.keys().filter(|head| !last.contains(head)).copied().collect();
        return if strays.is_empty() || target.is_empty() { Step::Settled } else { Step::Forget(strays) };
    }
    let new: Vec<u64> = target.difference(last).copied().collect();
    let unknown: BTreeMap<u64, String> = new
        .iter()
        .filter(|head| !seen.nodes.contains_key(head))
        .map(|head| (*head, wanted[head].clone()))
        .collect();
    if !unknown.is_empty() {
        return Step::Learn(unknown);
    }
    for head in new {
        if !seen.answering.contains(&head) {
            return Step::Wait(format!(
                "head {head} at {} does not answer: start it with `mobula start --head --join` and the \
                 address of a member",
                wanted[&head]
            ));
        }
        if !seen.caught_up.contains(&head) {
            return Step::Wait(format!("head {head} at {} is catching up", wanted[&head]));
        }
    }
    let reachable = target.intersection(&seen.answering).count();
    if reachable <= target.len() / 2 {
        return Step::Wait(format!(
            "only {reachable} of the {} heads that would remain answer: start one of them again first",
            target.len()
        ));
    }
    if !target.contains(&seen.me) {
        let fit = |head: &&u64| {
            target.contains(head) && seen.answering.contains(head) && seen.caught_up.contains(head)
        };
        if let Some(heir) = last.iter().find(fit) {
            return Step::HandOver(*heir);
        }
    }
    Step::Vote(target)
}
