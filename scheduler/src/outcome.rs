//! What a keeper does with a result; done-records (R3, R4).

use crate::cancel::wants_retry;
use crate::core::{Core, KeptState};
use crate::elements;
use crate::elide::Later;
use crate::objects::State;
use crate::stream::{About, Content, PlainDone, Ticket};
use crate::submit::arg_objects;
use crate::types::{Effect, Value};
use mobula_base::{Incarnation, JobId, ObjectId, TaskId, mutant};
use mobula_proto::{
    Done, Failure, FailureKind, NextAttempt, Output, PeerResult, StreamItem, object_bytes, object_id,
    stream_item, task_bytes, task_id,
};
use thin_vec::ThinVec;

/// How an attempt of a kept task ended.
#[derive(Debug)]
pub(crate) struct End {
    pub task: TaskId,
    pub attempt: u32,
    pub executor: Incarnation,
    /// Everything that it submitted is committed or elided.
    pub durable: bool,
    /// Objects whose references lie inside what it made; they have their edges.
    pub contains: Vec<ObjectId>,
    /// What it returned in parts, and where that is.
    pub elements: ThinVec<State>,
}

/// Whether an attempt has not begun where it was, and is to go elsewhere.
fn is_given_back(failure: Option<&Failure>) -> bool {
    failure.is_some_and(|failure| failure.kind() == FailureKind::FailureNoRoom)
}

impl Core {
    pub(crate) fn peer_result(&mut self, from: Incarnation, result: PeerResult) {
        let Ok(task) = task_id(&result.task) else { return };
        let result = match self.hedges.are_wanted() {
            true => self.heed_hedges(from, task, result),
            false => Some(result),
        };
        let Some(result) = result else { return };
        let Some(kept) = self.kept.get(&task).filter(|k| k.attempt == result.attempt) else { return };
        if kept.state != KeptState::Placed(from) {
            return;
        }
        if is_given_back(result.failure.as_ref()) {
            return self.given_back(task, from);
        }
        let mismatch = elements::mismatch(&kept.spec, result.elements.len());
        let (function, job) = (kept.spec.function, JobId(kept.spec.job));
        self.observe(function, result.ran_ns.max(1));
        self.object(task.output(0), job).refs.copy_at = Some(from);
        let contains = result.contains.iter().filter_map(|id| object_id(id).ok()).collect();
        let (attempt, elements) = (result.attempt, elements::at_executor(from, result.elements));
        let end = End { task, attempt, executor: from, durable: result.durable, contains, elements };
        match (result.failure.or(mismatch), result.has_inline, result.output) {
            (Some(failure), _, _) => self.result(end, Err(failure)),
            (None, true, _) => self.result(end, Ok(Value::Inline(result.inline))),
            (None, false, Some(output)) => self.result_elsewhere(end, output),
            (None, false, None) => {}
        }
    }

    pub(crate) fn peer_durable(&mut self, from: Incarnation, task: TaskId, attempt: u32) {
        if self.kept.get(&task).is_some_and(|k| k.state == KeptState::Undurable(from)) {
            self.durable(task, attempt);
        }
    }

    /// An attempt of a kept task ended with a value in this node's memory, or without one.
    pub(crate) fn result(&mut self, end: End, value: Result<Value, Failure>) {
        let (task, attempt, executor) = (end.task, end.attempt, end.executor);
        let Some(kept) = self.kept.get(&task) else { return };
        if kept.attempt != attempt || kept.state != KeptState::Placed(executor) {
            return;
        }
        if is_given_back(value.as_ref().err()) {
            return self.given_back(task, executor);
        }
        let value = if self.consumers.is_empty() { value } else { self.verdict(task, value) };
        let goes_on = matches!(&value, Err(failure) if wants_retry(&kept.spec, failure));
        let job = JobId(kept.spec.job);
        if executor != self.config.incarnation {
            self.unplace(task, executor);
        }
        match value {
            Err(failure) if failure.kind() == FailureKind::FailureWorkerDied => self.failed_in(end, None),
            Err(failure) if goes_on => self.failed_in(end, Some(failure)),
            Err(failure) => self.conclude(end, Err(failure)),
            Ok(value) => {
                // It was cancelled too late.
                self.cancelled.remove(&task);
                let output = value.output(self.config.crc);
                if let Err(diverged) = self.compare(task, output) {
                    if executor == self.config.incarnation && matches!(value, Value::Shared { .. }) {
                        self.effects.push(Effect::Discard { object: task.output(0) });
                    }
                    return self.conclude(end, Err(diverged));
                }
                if executor == self.config.incarnation {
                    self.has_made(task.output(0), &value);
                }
                self.object(task.output(0), job).state = State::Here(value.clone());
                self.conclude(end, Ok((output, matches!(value, Value::Inline(_)))));
            }
        }
    }

    fn result_elsewhere(&mut self, end: End, output: Output) {
        let Some(kept) = self.kept.get(&end.task) else { return };
        let job = JobId(kept.spec.job);
        self.cancelled.remove(&end.task);
        self.unplace(end.task, end.executor);
        if let Err(diverged) = self.compare(end.task, output) {
            return self.conclude(end, Err(diverged));
        }
        let state = State::Elsewhere { holders: vec![end.executor], output };
        self.make_known(end.task.output(0), job, state);
        self.conclude(end, Ok((output, false)));
    }

    /// An id denotes one value (G3): what a further attempt made must be what is recorded, unless the job
    /// accepts what differs.
    fn compare(&self, task: TaskId, output: Output) -> Result<(), Failure> {
        let Some(kept) = self.kept.get(&task) else { return Ok(()) };
        match kept.recorded {
            Some(recorded) if recorded != output && !kept.spec.accept_divergence => Err(Failure::new(
                FailureKind::FailureDiverged,
                format!(
                    "attempt {} of task {task} made other bytes (checksum {:08x}, {} bytes) than are recorded \
                     ({:08x}, {} bytes): the task is not deterministic. Make it so, or let the job accept divergence",
                    kept.attempt, output.crc, output.size, recorded.crc, recorded.size
                ),
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// The value may be used at once; the done-record waits until everything the task submitted is
    /// committed (R4).
    pub(crate) fn conclude(&mut self, end: End, result: Result<(Output, bool), Failure>) {
        let End { task, attempt, executor, durable, contains, elements } = end;
        let Some(kept) = self.kept.get_mut(&task) else { return };
        let job = JobId(kept.spec.job);
        let bytes = result.as_ref().map(|(output, _)| output.size).unwrap_or(0);
        kept.result = result.as_ref().ok().copied();
        kept.contains = contains.into();
        kept.failure = result.as_ref().err().cloned().map(Box::new);
        let is_split = elements::count(&kept.spec) > 0;
        let failure = if is_split { result.as_ref().err().cloned() } else { None };
        if let Err(failure) = &result {
            self.make_known(task.output(0), job, State::Failed(failure.clone().into()));
        }
        if !durable {
            self.set_kept_state(task, KeptState::Undurable(executor));
        } else {
            self.send_done(task, attempt, executor, result);
        }
        if self.hedges.are_wanted() {
            self.take_back(task);
        }
        self.ends_rebuild(task, "", bytes);
        if is_split {
            self.end_elements(task, executor, elements, failure.as_ref());
        }
        self.announce(task.output(0));
        // Objects the task put are made again too; their home knows where.
        for object in self.recovering.remove(&task).unwrap_or_default() {
            let pending = self.objects.get(&object).is_some_and(|o| o.state == State::Pending);
            if pending && object != task.output(0) {
                self.forget_place(object);
            }
            self.to_tidy.push_back(object);
        }
    }

    pub(crate) fn send_done(
        &mut self,
        task: TaskId,
        attempt: u32,
        executor: Incarnation,
        result: Result<(Output, bool), Failure>,
    ) {
        let later = self.done_record(task, attempt, executor, result);
        let ticket = self.push_behind(task, later);
        if let Some(kept) = self.kept.get_mut(&task) {
            (kept.done, kept.state) = (ticket, KeptState::Finishing);
        }
        self.to_tidy.push_back(task.output(0));
    }

    fn done_record(
        &self,
        task: TaskId,
        attempt: u32,
        executor: Incarnation,
        result: Result<(Output, bool), Failure>,
    ) -> Later {
        let about = About::Done(task);
        let me = self.config.incarnation;
        let contains = self.kept.get(&task).map_or(&[][..], |kept| &kept.contains);
        let holder = |inline: bool| if inline && executor != me { me } else { Incarnation(0) };
        match result {
            Ok((output, inline)) if contains.is_empty() => {
                let done = PlainDone { attempt, executor, output, holder: holder(inline) };
                Later { item: Content::Done(done), bytes: PlainDone::BYTES, about }
            }
            result => {
                let contains = contains.iter().copied().map(object_bytes).collect();
                let mut done = Done {
                    task: task_bytes(task),
                    attempt,
                    executor: executor.0,
                    contains,
                    ..Done::default()
                };
                match result {
                    Ok((output, inline)) => {
                        done.outputs = vec![output];
                        done.holders = Some(holder(inline).0).filter(|node| *node != 0).into_iter().collect();
                    }
                    Err(failure) => done.failure = Some(failure),
                }
                let item = StreamItem { item: Some(stream_item::Item::Done(done)) };
                let bytes = prost::Message::encoded_len(&item);
                Later { item: item.into(), bytes, about }
            }
        }
    }

    /// Everything the task submitted is committed: its done-record may go.
    pub(crate) fn durable(&mut self, task: TaskId, attempt: u32) {
        let Some(kept) = self.kept.get(&task).filter(|k| k.attempt == attempt) else { return };
        let KeptState::Undurable(executor) = kept.state else { return };
        match (kept.result, kept.failure.as_deref()) {
            (None, Some(failure)) if wants_retry(&kept.spec, failure) => {
                self.propose_next(task, attempt, true)
            }
            (Some(result), _) => self.send_done(task, attempt, executor, Ok(result)),
            (None, Some(failure)) => self.send_done(task, attempt, executor, Err(failure.clone())),
            (None, None) => self.propose_next(task, attempt, true),
        }
    }

    /// A worker died in an attempt, or it ended with a failure after which the task runs again. What it had put
    /// by then may contain references: the next attempt is proposed once their edges are there, so that they end
    /// with the record should no attempt follow.
    fn failed_in(&mut self, end: End, failure: Option<Failure>) {
        let End { task, attempt, executor, durable, contains, .. } = end;
        let Some(kept) = self.kept.get_mut(&task) else { return };
        kept.result = None;
        kept.failure = failure.map(Box::new);
        kept.contains = contains.into();
        if durable || kept.contains.is_empty() {
            self.propose_next(task, attempt, true);
        } else {
            self.set_kept_state(task, KeptState::Undurable(executor));
        }
    }

    /// Ends a kept task that never ran.
    pub(crate) fn fail_kept(&mut self, task: TaskId, failure: Failure) {
        let Some(kept) = self.kept.get(&task) else { return };
        if matches!(kept.state, KeptState::Finishing | KeptState::Placed(_) | KeptState::Undurable(_)) {
            return;
        }
        let (attempt, executor) = (kept.attempt, self.config.incarnation);
        if matches!(kept.state, KeptState::AwaitDeps(_)) {
            // It waits for its arguments no longer. Many may end at once that wait for one and the same.
            self.waited_for.extend(arg_objects(&kept.spec));
        }
        let (contains, elements) = (Vec::new(), ThinVec::new());
        let end = End { task, attempt, executor, durable: true, contains, elements };
        self.conclude(end, Err(failure));
    }

    /// Says to a task's shard what is to become of its attempts, behind its record.
    pub(crate) fn send_next(&mut self, task: TaskId, next: NextAttempt) -> Option<Ticket> {
        let item = StreamItem { item: Some(stream_item::Item::Next(next)) };
        let bytes = prost::Message::encoded_len(&item);
        self.push_behind(task, Later { item: item.into(), bytes, about: About::Next(task) })
    }

    /// Proposes the next attempt: it starts only once that is granted (R7).
    pub(crate) fn propose_next(&mut self, task: TaskId, from: u32, failed: bool) {
        let put = self.kept.get(&task).filter(|_| failed).map_or(&[][..], |kept| &kept.contains);
        let contains = put.iter().copied().map(object_bytes).collect();
        let failure =
            self.kept.get(&task).filter(|_| failed).and_then(|kept| kept.failure.as_deref().cloned());
        let state = self.kept.get(&task).map(|kept| kept.state);
        let at = if let Some(KeptState::Placed(n) | KeptState::Undurable(n)) = state { n.0 } else { 0 };
        let task_id = task_bytes(task);
        let next =
            NextAttempt { task: task_id, from, failed, contains, failure, executor: at, abandoned: false };
        if let Some(ticket) = self.send_next(task, next) {
            self.streams.hurry_for(ticket.shard, ticket.number);
        }
        self.set_kept_state(task, KeptState::AwaitAttempt);
        if mutant!("R7a")
            && let Some(kept) = self.kept.get_mut(&task)
        {
            kept.attempt = from + 1;
            self.await_deps(task);
        }
    }
}
