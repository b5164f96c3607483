//! R6: *what nothing makes again is on as many nodes as it should be once all has settled: what a driver has put on
//! two, what was put with a number of copies on so many.* Where stores are small, copies may have to wait for room.

use crate::core::options::AMPLE;
use crate::core::program::JOB;
use crate::core::world::World;
use mobula_base::{ObjectId, TaskId};
use mobula_scheduler::Value;

impl World {
    /// A put that the driver refers to, and that is on fewer nodes than it should be, if any.
    pub(super) fn too_few_copies(&self) -> Option<String> {
        let ample = (0..self.machines.len()).all(|machine| self.options.store_of(machine) == AMPLE);
        if !ample || !self.options.counts {
            return None;
        }
        self.driver.made.iter().find_map(|object| {
            let (want, there) = (self.copies_wanted(*object)?, self.copies_of(*object));
            (0 < there && there < want)
                .then(|| format!("{object} is on {there} nodes, and should be on {want}"))
        })
    }

    fn copies_wanted(&self, object: ObjectId) -> Option<usize> {
        let usual = if object.task == TaskId::root(JOB) { 2 } else { 0 };
        let want = match self.options.replicas_of(object) {
            0 => usual,
            replicas => replicas as usize,
        };
        (object.is_put() && want > 0).then(|| want.min(self.machines.len()))
    }

    fn copies_of(&self, object: ObjectId) -> usize {
        let lives = self.machines.iter().filter_map(|machine| machine.life.as_deref());
        lives.filter(|life| matches!(life.core.value_of(object), Some(Value::Shared { .. }))).count()
    }
}
