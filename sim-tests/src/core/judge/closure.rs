//! R6, S11, S12: *what the driver refers to, and what lies inside of that, has a record or is on its way to
//! one: nothing that is referred to is pruned.* Looked at every three seconds.

use super::Found;
use crate::core::program::Expected;
use crate::core::world::World;
use mobula_base::{ObjectId, RunId, TaskId};
use mobula_gcs::core::ShardState;
use mobula_gcs::core::run::{Run, State};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
        let (looked, found) = self.follow_references();
        self.judges.closure.looked += looked;
        self.judges.closure.found = found;
    }

    fn follow_references(&self) -> (u64, Found) {
        let mut records = Records::of(self);
        let mut open: Vec<ObjectId> = self.driver.held().collect();
        let mut seen: BTreeSet<ObjectId> = open.iter().copied().collect();
        let mut looked = 0;
        while let Some(object) = open.pop() {
            looked += 1;
            let refs = match self.oracle.objects.get(&object) {
                Some(Expected::Value(content)) => &content.refs[..],
                Some(Expected::Failure) | None => &[],
            };
            let Some(made) = records.stands(object, !refs.is_empty()) else {
                let text = format!("at {:?} {object} is referred to, and its record is gone", self.now());
                return (looked, Some(text));
            };
            open.extend(refs.iter().copied().filter(|inner| made && seen.insert(*inner)));
        }
        (looked, None)
    }
}

/// What the shards have recorded, while nothing changes: a run in the cold store is read once, however many of its
/// records are asked for.
pub(super) struct Records<'a> {
    world: &'a World,
    runs: BTreeMap<RunId, Option<Arc<Run>>>,
}

impl<'a> Records<'a> {
    pub(super) fn of(world: &'a World) -> Self {
        Records { world, runs: BTreeMap::new() }
    }

    /// Nothing when what an object comes from is gone; else whether it was made, if `asks` for that.
    pub(super) fn stands(&mut self, object: ObjectId, asks: bool) -> Option<bool> {
        let state = self.home(object.task.run);
        if state.puts.contains_key(&object) {
            return Some(true);
        }
        let place = object.task.place;
        match self.run(object.task.run).filter(|run| run.present().contains(place)) {
            Some(run) => {
                Some(asks && matches!(run.standing(place).map(|s| s.state), Some(State::Done { .. })))
            }
            // It has never had one: it waits in its node's stream.
            None if !self.world.judges.order.was_committed(object.task) => Some(false),
            None => self.comes_again(object.task).then_some(false),
        }
    }

    /// Whether what submitted a task is on its way to doing so again. Its value may have been read before its
    /// end was recorded, and what it submitted gone with the node that ran it.
    fn comes_again(&mut self, task: TaskId) -> bool {
        let parent = self.world.oracle.tasks.iter().find(|(_, known)| known.children.contains(&task));
        let Some((&parent, _)) = parent else { return false };
        match self.run(parent.run).and_then(|run| run.standing(parent.place)) {
            Some(standing) => standing.state == State::Pending,
            None => !self.world.judges.order.was_committed(parent) || self.comes_again(parent),
        }
    }

    fn home(&self, run: RunId) -> &'a ShardState {
        let world = self.world;
        &world.shards[run.shard(world.shards.len() as u32).0 as usize].state
    }

    fn run(&mut self, run: RunId) -> Option<Arc<Run>> {
        let tasks = &self.home(run).tasks;
        let read = || tasks.run(run).expect("a simulated disk is read");
        self.runs.entry(run).or_insert_with(read).clone()
    }
}
