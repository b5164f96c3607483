//! R9: *no answer says lost while a live node has reported a copy, or the done-record names one that has it.*

use super::{Found, object as objects_to};
use crate::core::life::Life;
use crate::core::shard::Shard;
use crate::core::world::Machine;
use mobula_base::ObjectId;
use mobula_gcs::core::holdings::Made;
use mobula_gcs::core::run::State;
use mobula_proto::located::Answer;
use mobula_proto::{FailureKind, HoldingRequest, Located};
use std::collections::{BTreeMap, BTreeSet};

/// Remembers what was reported to the leaders that are.
#[derive(Default)]
pub struct Lost {
    pub(super) found: Found,
    reported: BTreeMap<usize, (u64, BTreeMap<u64, BTreeSet<ObjectId>>)>,
    /// What was made as a value that is recorded as done, and is with that node no more as that said.
    gone: BTreeSet<(ObjectId, u64, u64, u32)>,
}

impl Lost {
    /// A report was taken in a term.
    pub fn reported(&mut self, number: usize, shard: &Shard, report: &HoldingRequest) {
        let term = shard.term;
        for object in report.remove.iter().filter_map(|id| ObjectId::from_bytes(id)) {
            let Ok(Some(record)) = shard.state.tasks.get(object.task) else { continue };
            if matches!(record.standing.state, State::Done { .. }) {
                self.gone.insert((object, report.incarnation, record.revision, record.standing.attempt));
            }
        }
        let known = self.reported.entry(number).or_default();
        if known.0 != term {
            *known = (term, BTreeMap::new());
        }
        let held = known.1.entry(report.incarnation).or_default();
        if report.full {
            held.clear();
        }
        for object in report.remove.iter().filter_map(|id| ObjectId::from_bytes(id)) {
            held.remove(&object);
        }
        held.extend(report.add.iter().filter_map(|id| ObjectId::from_bytes(id)));
    }

    /// A leader says that a put of a driver is lost: whoever put it has it, until it says otherwise.
    pub fn of_put(&mut self, number: usize, located: &Located, shard: &Shard, machines: &[Machine]) {
        let Some(Answer::Failed(failure)) = &located.answer else { return };
        let Some(object) = ObjectId::from_bytes(&located.object) else { return };
        let Some(put) = shard.state.puts.get(&object) else { return };
        if failure.kind() != FailureKind::FailureObjectLost {
            return;
        }
        let mut lives = machines.iter().filter_map(|machine| machine.life.as_deref());
        let told_gone = |node| shard.holdings.is_gone(object, node, Made::default());
        let has_it = |life: &&Life| {
            let who = life.incarnation.0;
            who == put.by && life.core.value_of(object).is_some() && !told_gone(who)
        };
        if let Some(life) = lives.find(has_it) {
            let who = life.incarnation;
            objects_to(&mut self.found, || {
                format!("shard {number} says that {object} is lost, but {who}, which put it, has it")
            });
        }
    }

    /// A leader says that an object is lost.
    pub fn said(
        &mut self,
        number: usize,
        located: &Located,
        attempt: u32,
        shard: &Shard,
        machines: &[Machine],
    ) {
        let Some(object) = ObjectId::from_bytes(&located.object) else { return };
        let Ok(Some(record)) = shard.state.tasks.get(object.task) else { return };
        let State::Done { executor, holders, .. } = &record.standing.state else { return };
        let reported = self.reported.get(&number).filter(|(term, _)| *term == shard.term);
        for machine in machines {
            let Some(life) = machine.life.as_deref() else { continue };
            let who = life.incarnation.0;
            let counts = shard.members.live.contains_key(&who) && !shard.state.is_fenced(who);
            let told = reported.and_then(|(_, by)| by.get(&who)).is_some_and(|held| held.contains(&object));
            // Who has said that it has it no more may be given it since, as an argument of something that runs there.
            let promised = !object.is_put()
                && (*executor == who || holders.contains(&who))
                && !self.gone.contains(&(object, who, record.revision, record.standing.attempt));
            if counts && (told || promised) && life.core.value_of(object).is_some() {
                objects_to(&mut self.found, || {
                    format!("shard {number} says that {object} is lost (attempt {attempt}), but {who} has it")
                });
            }
        }
    }
}
