//! What a keeper does with a result; done-records (R3, R4).

use crate::core::{Core, KeptState};
use crate::objects::State;
use crate::stream::About;
use crate::types::Value;
use mobula_base::{Incarnation, JobId, TaskId, mutant};
use mobula_proto::{
    Done, Failure, FailureKind, NextAttempt, Output, PeerResult, StreamItem, stream_item, task_bytes, task_id,
};

impl Core {
    pub(crate) fn peer_result(&mut self, from: Incarnation, result: PeerResult) {
        let Ok(task) = task_id(&result.task) else { return };
        let Some(kept) = self.kept.get(&task).filter(|k| k.attempt == result.attempt) else { return };
        if kept.state != KeptState::Placed(from) {
            return;
        }
        let function = kept.spec.function;
        self.observe(function, result.ran_ns.max(1));
        let (durable, attempt) = (result.durable, result.attempt);
        match (result.failure, result.has_inline, result.output) {
            (Some(failure), _, _) => self.result(task, attempt, from, Err(failure), durable),
            (None, true, _) => self.result(task, attempt, from, Ok(Value::Inline(result.inline)), durable),
            (None, false, Some(output)) => self.result_elsewhere(task, from, output, durable),
            (None, false, None) => {}
        }
    }

    pub(crate) fn peer_durable(&mut self, from: Incarnation, task: TaskId, attempt: u32) {
        if self.kept.get(&task).is_some_and(|k| k.state == KeptState::Undurable(from)) {
            self.durable(task, attempt);
        }
    }

    /// An attempt of a kept task ended with a value in this node's memory, or without one.
    pub(crate) fn result(
        &mut self,
        task: TaskId,
        attempt: u32,
        executor: Incarnation,
        value: Result<Value, Failure>,
        durable: bool,
    ) {
        let Some(kept) = self.kept.get(&task) else { return };
        if kept.attempt != attempt || kept.state != KeptState::Placed(executor) {
            return;
        }
        let job = JobId(kept.spec.job);
        if executor != self.config.incarnation {
            self.unplace(executor);
        }
        match value {
            Err(failure) if failure.kind() == FailureKind::FailureWorkerDied => {
                self.propose_next(task, attempt, true);
            }
            Err(failure) => self.conclude(task, executor, Err(failure), durable),
            Ok(value) => {
                self.object(task.output(0), job).state = State::Here(value.clone());
                let output = value.output(self.config.crc);
                self.conclude(task, executor, Ok((output, matches!(value, Value::Inline(_)))), durable);
            }
        }
    }

    fn result_elsewhere(&mut self, task: TaskId, executor: Incarnation, output: Output, durable: bool) {
        let Some(kept) = self.kept.get(&task) else { return };
        let job = JobId(kept.spec.job);
        self.unplace(executor);
        self.make_known(task.output(0), job, State::Elsewhere { holders: vec![executor], output });
        self.conclude(task, executor, Ok((output, false)), durable);
    }

    /// The value may be used at once; the done-record waits until everything the task submitted is
    /// committed (R4).
    fn conclude(
        &mut self,
        task: TaskId,
        executor: Incarnation,
        result: Result<(Output, bool), Failure>,
        durable: bool,
    ) {
        let Some(kept) = self.kept.get_mut(&task) else { return };
        let (job, attempt) = (JobId(kept.spec.job), kept.attempt);
        let bytes = result.as_ref().map(|(output, _)| output.size).unwrap_or(0);
        kept.result = result.as_ref().ok().copied();
        if let Err(failure) = &result {
            self.make_known(task.output(0), job, State::Failed(failure.clone()));
        }
        if result.is_ok() && !durable {
            self.set_kept_state(task, KeptState::Undurable(executor));
        } else {
            self.send_done(task, attempt, executor, result);
        }
        if self.rebuilding.remove(&task) {
            self.notice(job, "rebuild-done", String::new(), Some(task), bytes);
        }
        self.announce(task.output(0));
        // Objects the task put are made again too; their home knows where.
        for object in self.recovering.remove(&task).unwrap_or_default() {
            let pending = self.objects.get(&object).is_some_and(|o| o.state == State::Pending);
            if pending && object != task.output(0) {
                self.forget_place(object);
            }
        }
    }

    pub(crate) fn send_done(
        &mut self,
        task: TaskId,
        attempt: u32,
        executor: Incarnation,
        result: Result<(Output, bool), Failure>,
    ) {
        let me = self.config.incarnation;
        let mut done = Done { task: task_bytes(task), attempt, executor: executor.0, ..Done::default() };
        match result {
            Ok((output, inline)) => {
                done.outputs = vec![output];
                if inline && executor != me {
                    done.holders = vec![me.0];
                }
            }
            Err(failure) => done.failure = Some(failure),
        }
        let item = StreamItem { item: Some(stream_item::Item::Done(done)) };
        let bytes = prost::Message::encoded_len(&item);
        self.streams.push(item, bytes, About::Done(task));
        self.set_kept_state(task, KeptState::Finishing);
    }

    /// Everything the task submitted is committed: its done-record may go.
    pub(crate) fn durable(&mut self, task: TaskId, attempt: u32) {
        let Some(kept) = self.kept.get(&task).filter(|k| k.attempt == attempt) else { return };
        let KeptState::Undurable(executor) = kept.state else { return };
        let Some(result) = kept.result else { return };
        self.send_done(task, attempt, executor, Ok(result));
    }

    /// Ends a kept task that never ran.
    pub(crate) fn fail_kept(&mut self, task: TaskId, failure: Failure) {
        let Some(kept) = self.kept.get(&task) else { return };
        if matches!(kept.state, KeptState::Finishing | KeptState::Placed(_) | KeptState::Undurable(_)) {
            return;
        }
        let me = self.config.incarnation;
        self.conclude(task, me, Err(failure), true);
    }

    /// Proposes the next attempt: it starts only once that is granted (R7).
    pub(crate) fn propose_next(&mut self, task: TaskId, from: u32, failed: bool) {
        let next = NextAttempt { task: task_bytes(task), from, failed };
        let item = StreamItem { item: Some(stream_item::Item::Next(next)) };
        self.streams.push(item, 40, About::Next(task));
        self.set_kept_state(task, KeptState::AwaitAttempt);
        if mutant!("R7a")
            && let Some(kept) = self.kept.get_mut(&task)
        {
            kept.attempt = from + 1;
            self.await_deps(task);
        }
    }
}
