//! R9: *lost is said only by a leader to whom every live member has reported in full in its term, each after it had
//! acted on every death; and of nothing that lies in the memory of a member that has told all.*

use super::{Found, object as objects_to};
use crate::core::shard::Shard;
use crate::core::world::Machine;
use mobula_base::ObjectId;
use mobula_gcs::core::run::State;
use mobula_proto::{HoldingRequest, Located};
use mobula_scheduler::Value;
use std::collections::BTreeMap;

/// Knows who has reported to whom.
#[derive(Default)]
pub struct Settled {
    pub(super) found: Found,
    /// By shard: the term, and up to which death each has acted that has reported in full.
    reported: BTreeMap<usize, (u64, BTreeMap<u64, u64>)>,
}

impl Settled {
    /// A report was taken in a term.
    pub fn reported(&mut self, shard: usize, term: u64, report: &HoldingRequest) {
        let known = self.reported.entry(shard).or_default();
        if known.0 != term {
            *known = (term, BTreeMap::new());
        }
        let deaths = report.deaths.unwrap_or(0);
        match known.1.get_mut(&report.incarnation) {
            Some(acted) => *acted = deaths.max(*acted),
            None if report.full => _ = known.1.insert(report.incarnation, deaths),
            None => {}
        }
    }

    /// A leader says that an object is lost.
    pub fn said(&mut self, number: usize, located: &Located, shard: &Shard, machines: &[Machine]) {
        // Of a task that has not ended it means that its keeper is dead: that is in the log.
        let Some(object) = ObjectId::from_bytes(&located.object) else { return };
        let Ok(Some(record)) = shard.state.tasks.get(object.task) else { return };
        if !matches!(record.standing.state, State::Done { .. }) {
            return;
        }
        let reported = self.reported.get(&number).filter(|(term, _)| *term == shard.term);
        let last_death = shard.members.last_death;
        for node in shard.members.live.keys() {
            let acted = reported.and_then(|(_, by)| by.get(node)).copied();
            if acted.is_none_or(|acted| acted < last_death) {
                objects_to(&mut self.found, || {
                    format!(
                        "shard {number} says lost in term {}, and {node} has reported {acted:?}, not {last_death}",
                        shard.term
                    )
                });
            }
        }
        for life in machines.iter().filter_map(|machine| machine.life.as_deref()) {
            let (who, reporter) = (life.incarnation.0, &life.reporters[number]);
            let counts = shard.members.live.contains_key(&who) && !shard.state.is_fenced(who);
            let news = reporter.held.contains_key(&object) || reporter.waiting.contains_key(&object);
            let has_told_all = reporter.term == shard.term && reporter.asked.is_none() && !news;
            let is_here = matches!(life.core.value_of(object), Some(Value::Shared { .. }));
            if counts && has_told_all && is_here {
                objects_to(&mut self.found, || {
                    format!(
                        "shard {number} says that {object} is lost, but {who}, which has told all, has it"
                    )
                });
            }
        }
    }
}
