//! What a shard says to the record of a task that is submitted: that it is new, or was there before (R2).
//!
//! A replayed parent submits again what its earlier attempt had submitted. What is known is not run again; what this
//! node has made already has ended; what ended here, and whose end is on its way, is waited for; and a record that came
//! while edges of an earlier one of that name had yet to end waits for that (R6).

use crate::core::{Core, Early, Kept, KeptState};
use crate::elements;
use crate::elide::Later;
use crate::execute::{Asker, UndurableRun};
use crate::objects::State;
use crate::outcome::End;
use crate::recovery::Timer;
use crate::stream::About;
use crate::submit::spec_bytes;
use crate::types::{Effect, Value};
use mobula_base::{JobId, ObjectId, TaskId, mutant};
use mobula_proto::{Failure, FailureKind, TaskState, TaskView, item_outcome};
use std::time::Duration;
use thin_vec::ThinVec;

/// How long a task that came early waits before its shard is asked again.
const EARLY_AGAIN: Duration = Duration::from_millis(10);

impl Core {
    pub(crate) fn submit_committed(&mut self, task: TaskId, revision: u64) {
        let Some(kept) = self.kept.get(&task) else { return };
        if let Some(client) = kept.client.filter(|_| kept.early == Early::No) {
            self.effects.push(Effect::Committed { client, task, revision });
        }
        if kept.state == KeptState::AwaitCommit && !self.is_made_already(task) {
            self.await_deps(task);
        }
    }

    /// The record is new: it counts from 1, whatever an earlier one of that name had come to.
    pub(crate) fn counts_anew(&mut self, task: TaskId) {
        let kept = self.kept.get_mut(&task).filter(|kept| kept.state == KeptState::AwaitCommit);
        if let Some(kept) = kept.filter(|_| !mutant!("R7f")) {
            kept.attempt = 1;
        }
    }

    /// The record is there, but edges of an earlier one of that name have yet to end elsewhere, and what was told
    /// meanwhile goes with them: the task waits, so that nothing is told of what it makes.
    fn came_early(&mut self, task: TaskId, revision: u64) {
        let Some(kept) = self.kept.get_mut(&task) else { return };
        if kept.state != KeptState::AwaitCommit {
            return self.submit_committed(task, revision);
        }
        let was = std::mem::replace(&mut kept.early, Early::Waits);
        if let Some(client) = kept.client.filter(|_| was == Early::No) {
            self.effects.push(Effect::Committed { client, task, revision });
        }
        self.set_timer(EARLY_AGAIN, Timer::Early(task));
    }

    pub(crate) fn ask_whether_early(&mut self, task: TaskId) {
        let waits = |kept: &&Kept| kept.early == Early::Waits && kept.state == KeptState::AwaitCommit;
        let Some(kept) = self.kept.get(&task).filter(waits) else { return };
        let (spec, bytes) = (kept.spec.clone(), spec_bytes(&kept.spec));
        let ticket = self.streams.push(spec, bytes, About::Submit(task));
        self.streams.hurry_for(ticket.shard, ticket.number);
    }

    /// They have ended, and may have taken along what this record names: that is told anew, and the record behind
    /// it where it would not come later anyway, so that its end cannot come before.
    fn early_no_more(&mut self, task: TaskId, revision: u64) {
        let Some(kept) = self.kept.get_mut(&task) else { return };
        kept.early = Early::Over;
        let (spec, job) = (kept.spec.clone(), JobId(kept.spec.job));
        let names: Vec<ObjectId> = kept.names.iter().map(|named| named.id).collect();
        let mut before = Vec::new();
        for id in names {
            let edge = self.name(id, job, Some(task.output(0)), false, false);
            if !self.streams.is_in_order(id.task.run.slot(), task.run.slot()) {
                before.push(edge);
            }
        }
        if before.is_empty() {
            return self.submit_committed(task, revision);
        }
        let bytes = spec_bytes(&spec);
        let later = Later { item: spec.into(), bytes, about: About::Submit(task) };
        let (record, ticket) = self.send_record(task, later, before);
        self.streams.hurry_for(ticket.shard, ticket.number);
        if let Some(kept) = self.kept.get_mut(&task) {
            kept.record = record;
        }
    }

    /// The record of a replayed task is new, but the value lies here, made here before its first record could
    /// be committed: then it has ended. One that contains references, or came from elsewhere and may, is made
    /// again: edges and records of what lies inside may never have come. So are several returns: where they lie is
    /// not known here.
    fn is_made_already(&mut self, task: TaskId) -> bool {
        let id = task.output(0);
        let Some(State::Here(value)) = self.objects.get(&id).map(|o| o.state.clone()) else { return false };
        let in_parts = |kept: &Kept| elements::count(&kept.spec) > 0 && !mutant!("W49");
        if !self.objects[&id].refs.plain || self.kept.get(&task).is_some_and(in_parts) {
            self.discard(id);
            self.set_object_state(id, State::Pending);
            return false;
        }
        let Some(attempt) = self.kept.get(&task).map(|kept| kept.attempt) else { return false };
        let executor = self.config.incarnation;
        // What its run submitted may still be on its way (R4).
        let untold = |run: &&mut UndurableRun| run.task == task && run.report.is_none() && !mutant!("W14");
        let run = self.undurable.iter_mut().find(untold);
        let durable = run.is_none();
        if let Some(run) = run {
            run.askers.push(Asker { node: executor, attempt });
        }
        let result = (value.output(self.config.crc), matches!(value, Value::Inline(_)));
        let (contains, elements) = (Vec::new(), ThinVec::new());
        self.conclude(End { task, attempt, executor, durable, contains, elements }, Ok(result));
        true
    }

    pub(crate) fn submit_answered(&mut self, task: TaskId, revision: u64, outcome: item_outcome::Outcome) {
        let job = self.kept.get(&task).map(|k| JobId(k.spec.job));
        match outcome {
            item_outcome::Outcome::Known(view) => self.already_known(task, view),
            item_outcome::Outcome::Early(_) => {
                self.counts_anew(task);
                self.came_early(task, revision);
            }
            item_outcome::Outcome::Failed(failure) => self.fail_submitted(task, job, failure),
            item_outcome::Outcome::Diverged(view) => {
                let message = format!(
                    "task {task} was submitted before with another function or other arguments (digest {:016x}); \
                     the first stands. A task that submits others must do so deterministically",
                    view.digest
                );
                self.fail_submitted(task, job, Failure::new(FailureKind::FailureDiverged, message));
            }
            item_outcome::Outcome::Granted(_)
            | item_outcome::Outcome::Refused(_)
            | item_outcome::Outcome::DivergedDone(_)
            | item_outcome::Outcome::Moved(_)
            | item_outcome::Outcome::Kept(_) => {}
        }
    }

    fn fail_submitted(&mut self, task: TaskId, job: Option<JobId>, failure: Failure) {
        let elements = self.elements_awaited(task);
        self.drop_kept(task);
        let id = task.output(0);
        for other in self.recovering.remove(&task).unwrap_or_default() {
            self.forget_place(other);
        }
        for id in elements.into_iter().filter(|_| job.is_some()) {
            self.set_object_state(id, State::Failed(failure.clone().into()));
            self.announce(id);
        }
        if let Some(job) = job {
            self.make_known(id, job, State::Failed(failure.into()));
            self.announce(id);
        }
    }

    /// The shard had this record already: a replayed parent submitted again what its earlier
    /// attempt had submitted. Nothing runs twice: the object is looked up instead.
    fn already_known(&mut self, task: TaskId, view: TaskView) {
        let Some(kept) = self.kept.get(&task) else { return };
        let pending = view.state == TaskState::TaskPending as i32;
        if pending && view.keeper == self.config.incarnation.0 && view.attempt == kept.attempt {
            let waits = kept.early == Early::Waits && kept.state == KeptState::AwaitCommit;
            match (view.early, waits) {
                (false, false) if kept.done.is_some() && !mutant!("R7g") => self.has_ended(task),
                (true, _) => self.came_early(task, view.revision),
                (false, true) => self.early_no_more(task, view.revision),
                (false, false) => self.submit_committed(task, view.revision),
            }
            return;
        }
        if kept.state != KeptState::AwaitCommit {
            return;
        }
        if pending && view.keeper_fenced {
            self.propose_next(task, view.attempt, false);
            return;
        }
        let elements = self.elements_awaited(task);
        self.drop_kept(task);
        elements.into_iter().for_each(|id| self.forget_place(id));
        let here = self.objects.get(&task.output(0)).is_some_and(|o| matches!(o.state, State::Here(_)));
        if !here {
            self.forget_place(task.output(0));
        }
        for id in self.recovering.remove(&task).unwrap_or_default() {
            self.forget_place(id);
        }
    }

    /// The attempt that the shard has down for this node ended here before the task was submitted again, and its
    /// end is on its way behind what was asked: that is waited for, as if nobody had submitted it.
    fn has_ended(&mut self, task: TaskId) {
        if self.kept[&task].state != KeptState::AwaitCommit {
            return;
        }
        self.set_kept_state(task, KeptState::Finishing);
        self.elements_awaited(task).into_iter().for_each(|id| self.forget_place(id));
        let output = task.output(0);
        if !self.objects.get(&output).is_some_and(|o| matches!(o.state, State::Here(_))) {
            self.forget_place(output);
        }
    }

    /// Whoever submitted the task again meanwhile does not wait for this end any more.
    pub(crate) fn end_is_answered(&mut self, task: TaskId) {
        if let Some(kept) = self.kept.get_mut(&task).filter(|kept| kept.state == KeptState::AwaitCommit) {
            kept.done = None;
        }
    }
}
