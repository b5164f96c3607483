//! R6, S11, S12: *what the driver refers to, and what lies inside of that, has a record or is on its way to
//! one: nothing that is referred to is pruned.* Looked at every other second.

use super::Found;
use crate::core::program::Expected;
use crate::core::world::World;
use mobula_base::ObjectId;
use mobula_gcs::core::run::State;
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
        if !self.options.counts || self.judges.closure.found.is_some() {
            return;
        }
        let mut open: Vec<ObjectId> = self.driver.held().collect();
        let mut seen: BTreeSet<ObjectId> = open.iter().copied().collect();
        while let Some(object) = open.pop() {
            self.judges.closure.looked += 1;
            let Some(done) = self.stands(object) else {
                let text = format!("at {:?} {object} is referred to, and its record is gone", self.now());
                self.judges.closure.found = Some(text);
                return;
            };
            if let (true, Some(Expected::Value(content))) = (done, self.oracle.objects.get(&object)) {
                open.extend(content.refs.iter().copied().filter(|inner| seen.insert(*inner)));
            }
        }
    }

    /// Whether what an object comes from is there (and then, whether it has been made); or gone.
    fn stands(&self, object: ObjectId) -> Option<bool> {
        let home = object.task.run.shard(self.shards.len() as u32).0 as usize;
        let state = &self.shards[home].state;
        if state.puts.contains_key(&object) {
            return Some(true);
        }
        match state.tasks.get(object.task) {
            Ok(Some(record)) => Some(matches!(record.standing.state, State::Done { .. })),
            // It has never had one: it waits in its node's stream.
            Ok(None) if !self.judges.order.was_committed(object.task) => Some(false),
            Ok(None) | Err(_) => None,
        }
    }
}
