//! Tasks beside all groups that have not begun where a group has taken their room.

use crate::core::{Core, KeptState};
use crate::recovery::Timer;
use mobula_base::{Incarnation, TaskId};
use mobula_proto::{Failure, FailureKind};
use std::time::Duration;

/// How long a task waits that a node has given back.
pub const PLACE_AGAIN_AFTER: Duration = Duration::from_millis(50);

impl Core {
    /// Runs that have not begun here and never would, since what they need is kept for placement groups by now, go
    /// back to whoever keeps them: there may be room elsewhere.
    pub(crate) fn hand_back(&mut self) {
        if self.groups.known.is_empty() || self.me.open == self.me.total {
            return;
        }
        for index in 0..self.classes.len() {
            let class = &self.classes[index];
            if class.group.is_some() || self.me.open.fits(&class.demand) {
                continue;
            }
            let queues = &mut self.classes[index];
            let back: Vec<TaskId> = queues.runs_urgent.drain(..).chain(queues.runs.drain(..)).collect();
            for task in back {
                if self.runs.get(&task).is_some_and(|run| run.given.is_none() && run.missing == 0) {
                    let message = "what it needs is kept for placement groups";
                    self.fail_run(task, Failure::new(FailureKind::FailureNoRoom, message));
                }
            }
        }
    }

    /// A node has given back a task that had not begun: it goes somewhere else, as the same attempt. That it waits
    /// a little keeps nodes that know of different groups from passing it to and fro.
    pub(crate) fn given_back(&mut self, task: TaskId, node: Incarnation) {
        if node != self.config.incarnation {
            self.unplace(task, node);
        }
        self.set_kept_state(task, KeptState::Queued);
        self.set_timer(PLACE_AGAIN_AFTER, Timer::PlaceAgain(task));
    }

    pub(crate) fn place_again(&mut self, task: TaskId) {
        if self.kept.get(&task).is_some_and(|kept| kept.state == KeptState::Queued)
            && !self.end_cancelled(task)
        {
            self.queue(task);
        }
    }
}
