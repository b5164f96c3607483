//! Linearizable: *per key, the clients' operations can be put into one order that a register with
//! compare-and-set obeys and in which each lies between its call and its answer.* An operation whose
//! outcome is unknown lies anywhere after its call, or nowhere.
//!
//! Just-in-time search: go through calls and answers in time; keep every state the register may be
//! in together with the open operations that are done in it; at an answer, keep those in which that
//! operation can be done. Operations that are never answered need not be done, so of two states that
//! differ only in those, the one in which fewer are done is kept.

use std::collections::{BTreeMap, BTreeSet};

/// Steps between two answers before the search gives up.
const MAX_STEPS: usize = 200_000;

/// The value of a key: a write's number, 0 for absent.
pub type Value = u64;

/// What an operation asked, and was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Read this.
    Get(Value),
    /// Wrote this.
    Put(Value),
    /// Wrote the second in place of the first.
    Cas(Value, Value),
    /// Found something other than this.
    Conflict(Value),
    /// Deleted something.
    Delete,
    /// Found nothing to delete.
    DeleteNothing,
    /// A delete that may have happened.
    MayDelete,
}

/// One operation on one key.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// When it was called: any rising number.
    pub called: u64,
    /// When it was answered; never, for an unknown outcome.
    pub answered: Option<u64>,
    /// What it did.
    pub act: Act,
}

/// What came of the search.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// There is such an order.
    Yes,
    /// There is none: no operation order explains the answer of this one.
    No(usize),
    /// Too many possibilities.
    Unknown,
}

fn step(state: Value, act: Act) -> Option<Value> {
    match act {
        Act::Get(value) => (state == value).then_some(state),
        Act::Put(value) => Some(value),
        Act::Cas(from, to) => (state == from).then_some(to),
        Act::Conflict(expected) => (state != expected).then_some(state),
        Act::Delete => (state != 0).then_some(0),
        Act::DeleteNothing => (state == 0).then_some(0),
        Act::MayDelete => Some(0),
    }
}

/// The open operations that are done in a state: those that will be answered, and those that never
/// will be.
#[derive(Clone, Default, PartialEq)]
struct Done {
    known: BTreeSet<usize>,
    unknown: BTreeSet<usize>,
}

impl Done {
    fn has(&self, n: usize) -> bool {
        self.known.contains(&n) || self.unknown.contains(&n)
    }

    /// Whether whatever can follow `other` can follow this: what is answered later must be done by
    /// then, so only those that never are can be left for later.
    fn covers(&self, other: &Done) -> bool {
        self.known == other.known && self.unknown.is_subset(&other.unknown)
    }
}

/// What the register may be, and with what done.
type States = BTreeMap<Value, Vec<Done>>;

/// Adds a possibility unless one that covers it is there; whether it was added.
fn add(states: &mut States, value: Value, done: Done) -> bool {
    let all = states.entry(value).or_default();
    if all.iter().any(|other| other.covers(&done)) {
        return false;
    }
    all.retain(|other| !done.covers(other));
    all.push(done);
    true
}

/// Searches for an order of the operations of one key.
pub fn judge(ops: &[Op]) -> Found {
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (n, op) in ops.iter().enumerate() {
        events.push((op.called, false, n));
        events.extend(op.answered.map(|at| (at, true, n)));
    }
    events.sort_unstable();
    let mut states = States::from([(0, vec![Done::default()])]);
    let mut open = BTreeSet::new();
    for (_, answers, n) in events {
        if !answers {
            open.insert(n);
            continue;
        }
        let Some(reached) = reach(&states, &open, ops, n) else { return Found::Unknown };
        open.remove(&n);
        states = reached;
        if states.is_empty() {
            return Found::No(n);
        }
    }
    Found::Yes
}

/// Everything that doing open operations can lead to in which `answered` is done; it is taken out of
/// the sets.
fn reach(states: &States, open: &BTreeSet<usize>, ops: &[Op], answered: usize) -> Option<States> {
    let (mut seen, mut reached) = (States::new(), States::new());
    let mut todo: Vec<(Value, Done)> = Vec::new();
    for (value, all) in states {
        todo.extend(all.iter().map(|done| (*value, done.clone())));
        seen.insert(*value, all.clone());
    }
    let mut steps = 0;
    while let Some((value, mut done)) = todo.pop() {
        if done.known.remove(&answered) {
            add(&mut reached, value, done);
            continue;
        }
        for n in open.iter().filter(|n| !done.has(**n)) {
            let Some(next) = step(value, ops[*n].act) else { continue };
            let mut with = done.clone();
            let set = if ops[*n].answered.is_some() { &mut with.known } else { &mut with.unknown };
            set.insert(*n);
            steps += 1;
            if add(&mut seen, next, with.clone()) {
                todo.push((next, with));
            }
        }
        if steps > MAX_STEPS {
            return None;
        }
    }
    Some(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(called: u64, answered: u64, act: Act) -> Op {
        Op { called, answered: (answered > 0).then_some(answered), act }
    }

    #[test]
    fn legal_histories_pass() {
        let sequential = [
            op(1, 2, Act::Get(0)),
            op(3, 4, Act::Put(1)),
            op(5, 6, Act::Cas(1, 2)),
            op(7, 8, Act::Conflict(1)),
            op(9, 10, Act::Delete),
            op(11, 12, Act::DeleteNothing),
        ];
        assert_eq!(judge(&sequential), Found::Yes);
        let concurrent =
            [op(1, 10, Act::Put(1)), op(2, 9, Act::Put(2)), op(3, 4, Act::Get(2)), op(5, 6, Act::Get(1))];
        assert_eq!(judge(&concurrent), Found::Yes);
        // An unknown write shows late, or never.
        assert_eq!(judge(&[op(1, 0, Act::Put(1)), op(2, 3, Act::Get(0)), op(4, 5, Act::Get(1))]), Found::Yes);
        assert_eq!(judge(&[op(1, 0, Act::Put(1)), op(2, 3, Act::Get(0))]), Found::Yes);
    }

    #[test]
    fn illegal_histories_do_not() {
        // A stale read.
        assert_eq!(judge(&[op(1, 2, Act::Put(1)), op(3, 4, Act::Get(0))]), Found::No(1));
        // There and gone again.
        let flicker = [op(1, 0, Act::Put(1)), op(2, 3, Act::Get(1)), op(4, 5, Act::Get(0))];
        assert_eq!(judge(&flicker), Found::No(2));
        // Two compare-and-sets from one value.
        let twice = [op(1, 2, Act::Put(1)), op(3, 6, Act::Cas(1, 2)), op(4, 5, Act::Cas(1, 3))];
        assert!(matches!(judge(&twice), Found::No(_)));
        // A value from before its write was called.
        assert_eq!(judge(&[op(1, 2, Act::Get(1)), op(3, 4, Act::Put(1))]), Found::No(0));
    }

    #[test]
    fn many_unknown_outcomes_do_not_blow_up() {
        let mut ops = Vec::new();
        for n in 0..400 {
            let at = n * 10 + 1;
            ops.push(op(at, if n % 10 == 0 { 0 } else { at + 3 }, Act::Put(n + 1)));
            ops.push(op(at + 4, at + 5, Act::Get(if n % 10 == 0 { n } else { n + 1 })));
        }
        assert_eq!(judge(&ops), Found::Yes);
    }
}
