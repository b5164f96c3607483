//! R6, S11, S12: *what the driver refers to, and what lies inside of that, has a record or is on its way to
//! one: nothing that is referred to is pruned.* Looked at every three seconds.

use super::Found;
use crate::core::program::Expected;
use crate::core::world::World;
use mobula_base::{ObjectId, TaskId};
use mobula_gcs::core::run::{Run, State};
use std::collections::BTreeSet;

/// Looks at what is referred to.
#[derive(Default)]
pub struct Closure {
    pub(super) found: Found,
    /// How many objects were looked at.
    pub looked: u64,
}

impl World {
    /// Follows every reference of the driver.
    pub fn judge_closure(&mut self) {
        if !self.options.counts || self.driver.lost || self.judges.closure.found.is_some() {
            return;
        }
        let mut open: Vec<ObjectId> = self.driver.held().collect();
        let mut seen: BTreeSet<ObjectId> = open.iter().copied().collect();
        while let Some(object) = open.pop() {
            self.judges.closure.looked += 1;
            let refs = match self.oracle.objects.get(&object) {
                Some(Expected::Value(content)) => &content.refs[..],
                Some(Expected::Failure) | None => &[],
            };
            let Some(made) = self.stands(object, !refs.is_empty()) else {
                let text = format!("at {:?} {object} is referred to, and its record is gone", self.now());
                self.judges.closure.found = Some(text);
                return;
            };
            open.extend(refs.iter().copied().filter(|inner| made && seen.insert(*inner)));
        }
    }

    /// Nothing when what an object comes from is gone; else whether it was made, if `asks` for that.
    pub(super) fn stands(&self, object: ObjectId, asks: bool) -> Option<bool> {
        let home = object.task.run.shard(self.shards.len() as u32).0 as usize;
        let state = &self.shards[home].state;
        if state.puts.contains_key(&object) {
            return Some(true);
        }
        let place = object.task.place;
        let made = |run: &Run| matches!(run.standing(place).map(|s| s.state), Some(State::Done { .. }));
        let look = |run: &Run| run.present().contains(place).then(|| asks && made(run));
        match state.tasks.look(object.task.run, look) {
            Ok(Some(Some(made))) => Some(made),
            // It has never had one: it waits in its node's stream.
            Ok(_) if !self.judges.order.was_committed(object.task) => Some(false),
            Ok(_) => self.comes_again(object.task).then_some(false),
            Err(_) => None,
        }
    }

    /// Whether what submitted a task is on its way to doing so again. Its value may have been read before its
    /// end was recorded, and what it submitted gone with the node that ran it.
    fn comes_again(&self, task: TaskId) -> bool {
        let parent = self.oracle.tasks.iter().find(|(_, known)| known.children.contains(&task));
        let Some((parent, _)) = parent else { return false };
        let home = parent.run.shard(self.shards.len() as u32).0 as usize;
        match self.shards[home].state.tasks.get(*parent) {
            Ok(Some(record)) => record.standing.state == State::Pending,
            Ok(None) => !self.judges.order.was_committed(*parent) || self.comes_again(*parent),
            Err(_) => false,
        }
    }
}
