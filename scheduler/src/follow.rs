//! A task behind the one that makes its argument, in one worker's line.
//!
//! The worker has the value the moment it has made it: a chain of short tasks runs without a word of its node between
//! them. Only what would run here next anyway is given ahead: the one task that waits for nothing but that value, of
//! a function that is known to be short ([`crate::placement::DEPTH_MAX`]), with the same demand. The worker gives it
//! back if it has no such value, and what comes of an attempt that does not count is not taken further.

use crate::core::{Core, KeptState};
use crate::objects::State;
use crate::types::{ClientId, Effect, Value};
use mobula_base::{ObjectId, TaskId, mutant};
use mobula_proto::{Arg, arg, object_bytes};

impl Core {
    /// A worker was given `task`: also what waits for that alone, and what waits for that, as far as its line goes.
    pub(crate) fn follow(&mut self, worker: ClientId, task: TaskId) {
        let mut made = task;
        while let Some((next, args)) = self.follower(worker, made) {
            self.give_ahead(worker, next, made.output(0), args);
            made = next;
        }
    }

    /// The task that can stand behind `made` in the line of a worker, and its other arguments.
    fn follower(&self, worker: ClientId, made: TaskId) -> Option<(TaskId, Vec<Value>)> {
        let id = made.output(0);
        let object = self.objects.get(&id).filter(|object| matches!(object.state, State::Pending))?;
        // Of several, others run at the same time.
        if !object.runs_waiting.is_empty() {
            return None;
        }
        let [next] = object.tasks_waiting[..] else { return None };
        let kept = self.kept.get(&next)?;
        let is_first = kept.attempt == 1 && kept.spec.max_retries > 0 && !kept.shared;
        if kept.state != KeptState::AwaitDeps(1) || !is_first || !self.kept.contains_key(&made) {
            return None;
        }
        let (w, run) = (self.workers.get(&worker)?, self.runs.get(&made)?);
        let lease =
            w.lease.as_ref().filter(|lease| lease.with_cpu && w.takes() && !self.is_barred(lease.class))?;
        let class = &self.classes[lease.class];
        let alike = run.given == Some(worker)
            && run.spec.job == kept.spec.job
            && class.placement.is_none()
            && kept.spec.placement().is_none()
            && class.demand == kept.spec.demand();
        let has_room = w.queue.len() < self.depth(kept.spec.function) as usize;
        let is_free = !self.runs.contains_key(&next) && !self.strays.contains(&next);
        if !(alike && has_room && is_free) || self.cancelled.contains(&next) {
            return None;
        }
        Some((next, self.arg_values(&kept.spec, Some(id))?))
    }

    fn give_ahead(&mut self, worker: ClientId, next: TaskId, argument: ObjectId, args: Vec<Value>) {
        if let Some(object) = self.objects.get_mut(&argument) {
            object.tasks_waiting.clear();
        }
        let Some(kept) = self.kept.get_mut(&next) else { return };
        kept.state = KeptState::Placed(self.config.incarnation);
        let (spec, attempt) = (kept.spec.clone(), kept.attempt);
        self.start_run(spec.clone(), attempt, self.config.incarnation);
        let Some(run) = self.runs.get_mut(&next) else { return };
        run.given = Some(worker);
        let Some(w) = self.workers.get_mut(&worker) else { return };
        w.push(next);
        let devices = w.lease.as_ref().map(|lease| lease.devices.clone()).unwrap_or_default();
        let is_it =
            |arg: &Arg| matches!(&arg.arg, Some(arg::Arg::Object(id)) if *id == object_bytes(argument));
        let made = spec.args.iter().position(is_it).map(|at| at as u32);
        self.effects.push(Effect::Run { worker, spec, attempt, args, made, devices });
    }

    /// An attempt does not count any more, whatever its worker makes: what stands behind it would be made of that.
    pub(crate) fn call_back(&mut self, task: TaskId) {
        let mut tasks = vec![task];
        while let Some(task) = tasks.pop() {
            let Some(object) = self.objects.get(&task.output(0)) else { continue };
            for next in &object.runs_waiting {
                if let Some(run) = self.runs.get_mut(next).filter(|run| run.missing > 0 && !mutant!("W24"))
                    && run.given.take().is_some()
                {
                    self.strays.insert(*next);
                    tasks.push(*next);
                }
            }
        }
    }
}
