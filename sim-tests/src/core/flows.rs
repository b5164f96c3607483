//! Streams in simulated workers: a task that returns one makes an item after the other, and whoever submitted it takes
//! them (`worker::streamed` and `worker::stream`; decision 27).

use super::life::{Said, Seen};
use super::program::INLINE_MAX;
use super::worker::{Run, Waits};
use super::world::World;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{Failure, FailureKind};
use mobula_scheduler::ClientId;

impl Run {
    /// An item was put.
    pub(super) fn made_item(&mut self, item: ObjectId) {
        self.made += 1;
        self.untaken.push_back(item);
    }

    /// What somebody else holds by now, with so many items taken.
    fn let_go_of_taken(&mut self, taken: u32) -> Vec<ObjectId> {
        let keeps = self.made.saturating_sub(taken) as usize;
        let many = self.untaken.len().saturating_sub(keeps);
        self.untaken.drain(..many).collect()
    }

    fn makes_no_more(&self) -> bool {
        self.made == self.body.items || self.failure.is_some()
    }

    /// So many items must be taken before the next is made, or the task ends; and if it has to wait for that, so many.
    fn turn(&self) -> (u32, u32) {
        if self.makes_no_more() {
            return (self.made, self.made);
        }
        let at_once = (self.made + 1).saturating_sub(self.body.window);
        (at_once, at_once.max(self.made.saturating_sub(self.body.window / 2)))
    }
}

impl World {
    /// A task has done what it does before its value: makes its items, if it returns a stream. Whether it can end.
    pub(super) fn flows(&mut self, machine: usize, epoch: u64, client: ClientId) -> bool {
        loop {
            let Some(life) = self.life(machine, epoch) else { return false };
            let Some(worker) = life.clients.get_mut(&client) else { return false };
            let Some(run) = worker.run.as_mut() else { return false };
            if run.body.window == 0 {
                return true;
            }
            let taken = worker.taken.get(&run.task).copied().unwrap_or(0);
            let (gone, turn) = (run.let_go_of_taken(taken), run.turn());
            let ends = run.makes_no_more();
            if taken < turn.0 {
                run.waits = Some(Waits::Taken(turn.1));
            }
            let (object, waits) = (run.task.item(run.made), run.waits.is_some());
            if !gone.is_empty() {
                self.say(machine, epoch, client, Said::Dropped(gone));
            }
            if waits {
                self.sometimes.hit("stream waited to be taken");
                self.block(machine, epoch, client);
                return false;
            }
            if ends {
                return true;
            }
            let Some(run) = self.run_of(machine, epoch, client) else { return false };
            let content = run.items().swap_remove(run.made as usize);
            if content.len > INLINE_MAX {
                run.waits = Some(Waits::Room(object));
                self.say(machine, epoch, client, Said::Create { object, len: content.len });
                return false;
            }
            run.made_item(object);
            self.say(machine, epoch, client, Said::Put { object, content });
        }
    }

    /// Whether a task that makes a stream may make more, or end.
    pub(super) fn may_make(&mut self, machine: usize, epoch: u64, client: ClientId, enough: u32) -> bool {
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get_mut(&client)) else {
            return false;
        };
        let Some(run) = worker.run.as_mut() else { return false };
        if worker.taken.get(&run.task).copied().unwrap_or(0) < enough {
            return false;
        }
        run.waits = None;
        self.unblock(machine, epoch, client);
        true
    }

    /// Whether a task that wants the next item of a stream has it, or knows that there is none.
    pub(super) fn may_take(&mut self, machine: usize, epoch: u64, client: ClientId, task: TaskId) -> bool {
        let mark = task.output(0);
        let Some(run) = self.run_of(machine, epoch, client) else { return false };
        let Some(flow) = run.locals.flow_from(task) else { return false };
        let (is_made, is_over) = (flow.made > flow.taken, flow.taken == flow.items);
        let seen = run.seen.get(&mark).cloned();
        match seen {
            _ if is_made => self.take_item(machine, epoch, client, task),
            Some(Seen::Here(value)) => {
                let content = self.read(machine, &value);
                self.judge_read(machine, epoch, client, mark, &content);
                if !is_over {
                    self.sometimes.hit("item taken when its task had ended");
                    self.take_item(machine, epoch, client, task);
                }
            }
            Some(Seen::Failed(failure)) => self.got_no_item(machine, epoch, client, mark, &failure),
            Some(Seen::Elsewhere(_)) => {
                run.seen.remove(&mark);
                self.say(machine, epoch, client, Said::Get { object: mark, want_value: true });
                self.block(machine, epoch, client);
                return false;
            }
            None => {
                self.block(machine, epoch, client);
                return false;
            }
        }
        if let Some(run) = self.run_of(machine, epoch, client) {
            run.waits = None;
        }
        self.unblock(machine, epoch, client);
        true
    }

    fn take_item(&mut self, machine: usize, epoch: u64, client: ClientId, task: TaskId) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let Some((item, first)) = run.locals.take_item(task) else { return };
        // It is told of it without asking.
        run.asked.insert(item);
        self.sometimes.hit("item taken");
        self.say(machine, epoch, client, Said::Take { task, first, over: false });
    }

    fn got_no_item(
        &mut self,
        machine: usize,
        epoch: u64,
        client: ClientId,
        mark: ObjectId,
        failure: &Failure,
    ) {
        let now = self.now();
        self.judges.failed(&self.oracle, mark, failure, now, &mut self.sometimes);
        let text = format!("it needed an item of {mark}, of which there is none");
        if let Some(run) = self.run_of(machine, epoch, client) {
            run.failure = Some(Failure::new(FailureKind::FailureUserError, text));
        }
    }
}
