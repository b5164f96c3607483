//! R6, R8: *what a task refers to while it runs stays: it has a record, or is on its way to one.* Looked at every
//! three seconds, and for what a task returns when it ends. Of tasks that count: the attempt is the current one,
//! its node is not fenced anywhere. A task whose parent was replayed submits again what may be gone meanwhile.

use super::Found;
use crate::core::world::World;
use mobula_base::{ObjectId, TaskId};
use mobula_gcs::core::run::{Run, State};

/// Looks at what tasks refer to.
#[derive(Default)]
pub struct Running {
    pub(super) found: Found,
}

impl World {
    /// Looks at all tasks that run.
    pub fn judge_running(&mut self) {
        if !self.options.counts || self.judges.running.found.is_some() {
            return;
        }
        let mut gone = None;
        for machine in &self.machines {
            let Some(life) = machine.life.as_deref() else { continue };
            let who = life.incarnation.0;
            if self.judges.fenced.is_dead_somewhere(who) {
                continue;
            }
            let runs = life.clients.values().filter_map(|client| client.run.as_ref());
            for run in runs.filter(|run| !run.replay && self.is_current(run.task, run.attempt)) {
                let lost = run.locals.all.iter().find(|object| self.stands(**object, false).is_none());
                gone = gone.or(lost.map(|object| (*object, run.task, who)));
            }
        }
        if let Some((object, task, node)) = gone {
            self.has_gone(object, task, node);
        }
    }

    /// A task that ends on a node returns references.
    pub fn judge_returned(
        &mut self,
        task: TaskId,
        attempt: u32,
        replay: bool,
        node: u64,
        inside: &[ObjectId],
    ) {
        let counts = self.options.counts && !replay && self.is_current(task, attempt);
        if !counts || self.judges.fenced.is_dead_somewhere(node) {
            return;
        }
        if let Some(object) = inside.iter().find(|object| self.stands(**object, false).is_none()) {
            self.has_gone(*object, task, node);
        }
    }

    fn has_gone(&mut self, object: ObjectId, task: TaskId, node: u64) {
        let text = format!("at {:?} {task} on {node} refers to {object}, whose record is gone", self.now());
        self.judges.running.found.get_or_insert(text);
    }

    /// Whether an attempt is the one that counts.
    fn is_current(&self, task: TaskId, attempt: u32) -> bool {
        let home = task.run.shard(self.shards.len() as u32).0 as usize;
        let standing = |run: &Run| run.standing(task.place);
        let standing = self.shards[home].state.tasks.look(task.run, standing).ok().flatten().flatten();
        standing.is_some_and(|known| known.attempt == attempt && known.state == State::Pending)
    }
}
