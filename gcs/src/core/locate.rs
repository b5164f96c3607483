//! Where an object is, who makes it, or that it is lost: what a leader says, from its tables and what
//! nodes reported to it. Pure.
//!
//! "Here" is proven by the fetch, "lost" by the compare-and-set that follows (R13). "Lost" is only said
//! once the shard is settled (R9).

use super::ShardState;
use super::cluster::Cluster;
use super::holdings::{Holdings, Made};
use super::puts::Stored;
use super::run::{Run, State};
use bytes::Bytes;
use mobula_base::{ObjectId, mutant};
use mobula_proto as proto;
use proto::located::Answer;
use std::collections::{BTreeMap, BTreeSet};

/// Who lives and who does not, as a replica of shard 0 has it.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// Version of the view this was made of.
    pub version: u64,
    /// Addresses of the live.
    pub live: BTreeMap<u64, String>,
    /// Everyone that is gone.
    pub dead: BTreeSet<u64>,
    /// Version of the view since which the latest death is known; 0 for none.
    pub last_death: u64,
}

impl Members {
    /// The members as of now.
    pub fn of(cluster: &Cluster) -> Self {
        let address = |join: &proto::NodeJoin| join.address.clone();
        let named =
            |m: &super::cluster::Member| (m.incarnation, m.join.as_ref().map_or_else(String::new, address));
        Members {
            version: cluster.version,
            live: cluster.live().map(named).collect(),
            dead: cluster.dead.clone(),
            last_death: cluster.deaths.back().map_or(0, |death| death.index),
        }
    }
}

/// What an answer is made of.
pub struct Facts<'a> {
    /// The tables of the shard.
    pub state: &'a ShardState,
    /// What was reported to its leader.
    pub holdings: &'a Holdings,
    /// Who lives, as far as the leader knows.
    pub members: &'a Members,
    /// Whether all of them have reported (R9).
    pub settled: bool,
    /// Who asks.
    pub asker: u64,
}

impl<'a> Facts<'a> {
    /// As things stand at a leader.
    pub fn new(state: &'a ShardState, holdings: &'a Holdings, members: &'a Members, asker: u64) -> Self {
        let settled = holdings.settled(members.live.keys(), members.last_death);
        Facts { state, holdings, members, settled, asker }
    }

    /// Answers of all `objects`, in their order.
    pub fn answers(&self, objects: &[Bytes]) -> Vec<proto::Located> {
        let locate = |id: &Bytes| {
            let answer = ObjectId::from_bytes(id).map_or(Answer::Unknown(true), |id| self.answer(id));
            proto::Located { object: id.clone(), answer: Some(answer) }
        };
        objects.iter().map(locate).collect()
    }

    fn gone(&self, node: u64) -> bool {
        node == 0 || self.members.dead.contains(&node) || self.state.is_fenced(node)
    }

    fn here(&self, nodes: impl Iterator<Item = u64>, output: Option<proto::Output>) -> Option<Answer> {
        let nodes: BTreeSet<u64> = nodes.filter(|node| !self.gone(*node)).collect();
        if nodes.is_empty() {
            return None;
        }
        let holder = |incarnation: u64| proto::Holder {
            incarnation,
            address: self.members.live.get(&incarnation).cloned().unwrap_or_default(),
        };
        Some(Answer::Here(proto::Here { holders: nodes.into_iter().map(holder).collect(), output }))
    }

    /// Lost, as far as anyone can say yet.
    fn lost(&self, attempt: u32) -> Answer {
        if self.settled || mutant!("R9a") { Answer::Lost(attempt) } else { Answer::Making(0) }
    }

    /// There is no copy of a large put that anybody knows, and no task to make it again.
    fn lost_put(&self, object: ObjectId) -> Answer {
        if !self.settled {
            return Answer::Making(0);
        }
        let message = format!(
            "every node that had a copy of {object} is gone, and a put cannot be made again: put it again, or \
             keep more copies of it"
        );
        Answer::Failed(proto::Failure::new(proto::FailureKind::FailureObjectLost, message))
    }

    /// Who holds what a task has put: whoever put it does from then on, and reports its copy a little later.
    fn holders_of(&self, object: ObjectId) -> Vec<u64> {
        let holders = |run: &Run| {
            let slots = run.needed_of(object.task.place);
            let of_slot = slots.filter(|(slot, _)| *slot == object.slot);
            of_slot.flat_map(|(_, needed)| needed.holders()).collect()
        };
        self.state.tasks.look(object.task.run, holders).ok().flatten().unwrap_or_default()
    }

    /// Where one object is.
    pub fn answer(&self, object: ObjectId) -> Answer {
        if let Some(epoch) = self.state.slots.moved(object.task.run.slot()) {
            return Answer::Moved(epoch);
        }
        let copies = self.holdings.holders(object);
        let put = self.state.puts.get(&object);
        match put.map(|put| (put, &put.stored)) {
            Some((_, Stored::Small(value))) => return Answer::Value(value.clone()),
            Some((put, Stored::Large(output))) => {
                // Who put it has it from the record on, whether it still refers to it or not, and reports its
                // copy a little later.
                let by = Some(put.by).filter(|_| !mutant!("R9d"));
                let holders = put.needed.holders().chain(by);
                let holders = holders.filter(|node| !self.holdings.is_gone(object, *node, Made::default()));
                return self.here(copies.chain(holders), *output).unwrap_or_else(|| self.lost_put(object));
            }
            // It is named already, and known to nobody else.
            Some((_, Stored::Coming)) | None => {}
        }
        let (record, made) = match self.state.tasks.get(object.task) {
            Ok(Some(record)) => {
                let made = Made { revision: record.revision, attempt: record.standing.attempt };
                (record.standing, made)
            }
            Ok(None) => return self.here(copies, None).unwrap_or(Answer::Unknown(true)),
            // Nothing is known: neither that it is there nor that it is lost.
            Err(error) => {
                tracing::error!(%error, "cold lineage cannot be read");
                return Answer::Making(0);
            }
        };
        match &record.state {
            // What it had put before it failed is there as long as somebody has it; whoever ran it does, whether
            // it still refers to it or not, and reports its copy a little later.
            State::Failed { executor, failure } if object.is_put() => {
                let by = Some(*executor).filter(|_| !mutant!("R9f"));
                let holders = self.holders_of(object).into_iter().chain(by);
                // An element of what it returns in parts is made when it ends well: there may be copies of an earlier
                // attempt's, and nobody has one by having a reference.
                let has_put = object.element().is_none();
                let holders = holders.filter(|node| has_put && !self.holdings.is_gone(object, *node, made));
                let here = self.here(copies.chain(holders), None);
                here.unwrap_or_else(|| match self.settled {
                    true => Answer::Failed((**failure).clone()),
                    false => Answer::Making(0),
                })
            }
            State::Failed { failure, .. } => Answer::Failed((**failure).clone()),
            State::Done { executor, outputs, holders, .. } => {
                // A done-record describes what was returned. What the task put lies with its executor,
                // too; other holders of a `put` are soft state only.
                let promised: &[u64] = if object.is_put() { &[] } else { holders };
                let promised = promised.iter().copied().chain(Some(*executor));
                let promised = promised.filter(|node| !self.holdings.is_gone(object, *node, made));
                let output = outputs.get(object.slot as usize).copied();
                if !object.is_put() && output.is_none() {
                    let message = format!("task {} has {} return values", object.task, outputs.len());
                    return Answer::Failed(proto::Failure::new(
                        proto::FailureKind::FailureUnknownObject,
                        message,
                    ));
                }
                self.here(promised.chain(copies), output).unwrap_or_else(|| self.lost(record.attempt))
            }
            State::Pending => {
                if let Some(here) = object.is_put().then(|| self.here(copies, None)).flatten() {
                    return here;
                }
                if self.gone(record.keeper) {
                    self.lost(record.attempt)
                } else if record.keeper == self.asker {
                    Answer::Lost(record.attempt)
                } else {
                    Answer::Making(record.keeper)
                }
            }
        }
    }
}

/// Whether nothing can be done with any of these answers yet: whoever asked had better wait.
pub fn all_wait(answers: &[proto::Located]) -> bool {
    let waits =
        |located: &proto::Located| matches!(located.answer, Some(Answer::Making(_) | Answer::Unknown(_)));
    !answers.is_empty() && answers.iter().all(waits)
}
