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
use mobula_proto::{TaskSpec, arg, object_id};

impl Core {
    /// A worker was given `task`: also what waits for that alone, and what waits for that, as far as its line goes.
    pub(crate) fn follow(&mut self, worker: ClientId, task: TaskId) {
        let mut made = task;
        while let Some(next) = self.follower(worker, made) {
            self.give_ahead(worker, next, made.output(0));
            made = next;
        }
    }

    /// The task that can stand behind `made` in the line of a worker.
    fn follower(&self, worker: ClientId, made: TaskId) -> Option<TaskId> {
        let id = made.output(0);
        let object = self.objects.get(&id).filter(|object| object.state == State::Pending)?;
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
        let lease = w.lease.as_ref().filter(|lease| lease.with_cpu && w.takes())?;
        let class = &self.classes[lease.class];
        let alike = run.given == Some(worker)
            && run.spec.job == kept.spec.job
            && class.placement.is_none()
            && kept.spec.placement().is_none()
            && class.demand == kept.spec.demand();
        let has_room = w.queue.len() < self.depth(kept.spec.function) as usize;
        let is_free = !self.runs.contains_key(&next) && !self.strays.contains(&next);
        let has_rest = objects_of(&kept.spec).all(|(_, arg)| arg == id || self.value_of(arg).is_some());
        (alike && has_room && is_free && has_rest && !self.cancelled.contains(&next)).then_some(next)
    }

    fn give_ahead(&mut self, worker: ClientId, next: TaskId, argument: ObjectId) {
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
        let made = objects_of(&spec).find(|(_, id)| *id == argument).map(|(at, _)| at as u32);
        let args = spec.args.iter().map(|arg| self.value_ahead(arg, argument)).collect();
        self.effects.push(Effect::Run { worker, spec, attempt, args, made, devices });
    }

    fn value_ahead(&self, arg: &mobula_proto::Arg, argument: ObjectId) -> Value {
        let nothing = || Value::Inline(bytes::Bytes::new());
        match &arg.arg {
            Some(arg::Arg::Value(bytes)) => Value::Inline(bytes.clone()),
            Some(arg::Arg::Object(bytes)) => {
                let id = object_id(bytes).ok().filter(|id| *id != argument);
                id.and_then(|id| self.value_of(id)).cloned().unwrap_or_else(nothing)
            }
            None => nothing(),
        }
    }

    /// An attempt does not count any more, whatever its worker makes: what stands behind it would be made of that.
    pub(crate) fn call_back(&mut self, task: TaskId) {
        let waiting = self.objects.get(&task.output(0)).map(|o| o.runs_waiting.clone()).unwrap_or_default();
        for next in waiting {
            if let Some(run) = self.runs.get_mut(&next).filter(|run| run.missing > 0 && !mutant!("W24"))
                && run.given.take().is_some()
            {
                self.strays.insert(next);
                self.call_back(next);
            }
        }
    }
}

/// The objects among the arguments, with their places.
fn objects_of(spec: &TaskSpec) -> impl Iterator<Item = (usize, ObjectId)> {
    spec.args.iter().enumerate().filter_map(|(at, arg)| match &arg.arg {
        Some(arg::Arg::Object(bytes)) => Some((at, object_id(bytes).ok()?)),
        Some(arg::Arg::Value(_)) | None => None,
    })
}
