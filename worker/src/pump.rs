//! What the node daemon says: values, room, tasks to run, acknowledgements; and the end of the link.

use crate::args::ArgBytes;
use crate::client::{Client, Notice, State, failed, told_to_stop};
use mobula_proto::{
    Committed, DaemonMsg, Failure, FailureKind, ItemsTaken, NotBegun, RunTask, Stop, TaskResult, ToClient,
    Value, client_msg, daemon_msg, object_id, task_id, value as wire_value,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// Notices kept for [`Client::take_notices`] at most; the oldest go first.
const NOTICES_MAX: usize = 10_000;
/// Acknowledgements kept for [`Client::take_committed`] at most; the oldest go first.
const COMMITTED_MAX: usize = 1_000_000;

/// Tasks that this process has given back because it had not made what they need.
static NOT_BEGUN: AtomicU64 = AtomicU64::new(0);

/// Tasks that this worker has given back, since what they need was to be made here before and was not: for tests.
#[doc(hidden)]
pub fn not_begun() -> u64 {
    NOT_BEGUN.load(Ordering::Relaxed)
}

impl State {
    /// The next task, if there is one, is the one that runs.
    fn begin(&mut self) -> Option<RunTask> {
        let next = self.tasks.pop_front()?;
        self.running = next.spec.as_ref().map(|spec| (spec.id.clone(), next.attempt));
        self.stopped = false;
        Some(next)
    }

    /// An attempt is to stop: what runs hears of it, what waits is given back as a result.
    fn stop(&mut self, stop: Stop) -> Option<TaskResult> {
        if self.running.as_ref().is_some_and(|(task, attempt)| *task == stop.task && *attempt == stop.attempt)
        {
            self.stopped = true;
            return None;
        }
        let is_meant = |run: &RunTask| {
            run.attempt == stop.attempt && run.spec.as_ref().is_some_and(|spec| spec.id == stop.task)
        };
        let at = self.tasks.iter().position(is_meant)?;
        self.tasks.remove(at);
        let value = Some(failed(told_to_stop()));
        Some(TaskResult { task: stop.task, attempt: stop.attempt, value, ..TaskResult::default() })
    }

    /// So many items are taken of a stream that runs here, or stands in line. Of others nobody would ask.
    fn note_taken(&mut self, told: &ItemsTaken) {
        let runs = self.running.as_ref().is_some_and(|(task, _)| *task == told.task);
        let waits = |run: &RunTask| run.spec.as_ref().is_some_and(|spec| spec.id == told.task);
        if let (Ok(task), true) = (task_id(&told.task), runs || self.tasks.iter().any(waits)) {
            let taken = self.taken.entry(task).or_default();
            *taken = told.items.max(*taken);
        }
    }

    /// The shared memory is no longer ours: what lay there may be another job's by now.
    fn forget_shared(&mut self) {
        for slot in self.slots.values_mut() {
            if matches!(&slot.ready, Some(Value { value: Some(wire_value::Value::Shared(_)) })) {
                slot.ready = Some(failed(Failure::new(
                    FailureKind::FailureUnknownObject,
                    "the job ended or its node daemon is gone, and with it the memory that held the value",
                )));
            }
        }
    }
}

impl Client {
    /// The next task to run; `None` when the link closed.
    pub(crate) fn next_task(&self) -> Option<RunTask> {
        self.wait_sync(None, State::begin).ok()
    }

    pub(crate) async fn next_task_async(&self) -> Option<RunTask> {
        self.wait_async(State::begin).await.ok()
    }

    pub(crate) fn arg_bytes(&self, value: Value) -> ArgBytes {
        match value.value {
            Some(wire_value::Value::Inline(bytes)) => ArgBytes::Inline(bytes),
            Some(wire_value::Value::Shared(s)) => {
                ArgBytes::Shared(self.shell.region.clone(), s.offset, s.len)
            }
            Some(wire_value::Value::Failure(_) | wire_value::Value::Elsewhere(_)) | None => {
                ArgBytes::Inline(bytes::Bytes::new())
            }
        }
    }

    /// What this task needs was to be made here before, and was not.
    pub(crate) fn not_begun(&self, run: RunTask) {
        NOT_BEGUN.fetch_add(1, Ordering::Relaxed);
        let task = run.spec.map(|spec| spec.id).unwrap_or_default();
        self.send(client_msg::Msg::NotBegun(NotBegun { task }));
    }

    pub(crate) fn send_result(&self, result: mobula_proto::TaskResult) {
        self.send(client_msg::Msg::Finished(result));
    }

    /// Takes a frame from the daemon.
    pub(crate) fn receive(&self, frame: ToClient) {
        let mut bounced = Vec::new();
        let mut state = self.state();
        for DaemonMsg { msg } in frame.msgs {
            if let Some(msg) = msg {
                self.receive_one(&mut state, msg, &mut bounced);
            }
        }
        let (sleepers, for_room) = (state.sleepers, state.for_room);
        if !bounced.is_empty() {
            // Under the lock: the task's own `Unblocked` must not overtake it.
            self.send(client_msg::Msg::Blocked(mobula_proto::Blocked { returned: bounced, for_room }));
        }
        drop(state);
        if sleepers > 0 {
            self.shell.woken.notify_all();
        }
        self.shell.woken_async.notify_waiters();
    }

    fn receive_one(&self, state: &mut State, msg: daemon_msg::Msg, bounced: &mut Vec<bytes::Bytes>) {
        match msg {
            daemon_msg::Msg::Ready(ready) => {
                let Ok(id) = object_id(&ready.object) else { return };
                let place = matches!(&ready.value, Some(Value { value: Some(wire_value::Value::Shared(_)) }));
                match state.slots.get_mut(&id) {
                    Some(slot) => {
                        slot.pins += u32::from(place);
                        slot.ready = ready.value;
                    }
                    // A reference that was dropped meanwhile has no slot: nobody wants the value.
                    None => self.unpin(id, u32::from(place)),
                }
            }
            daemon_msg::Msg::Run(run) => {
                if state.blocked {
                    bounced.extend(run.spec.map(|s| s.id));
                } else {
                    state.tasks.push_back(run);
                }
            }
            daemon_msg::Msg::Stop(stop) => {
                if let Some(result) = state.stop(stop) {
                    self.send_result(result);
                }
            }
            daemon_msg::Msg::ItemsMade(made) => {
                if let Some(known) = task_id(&made.task).ok().and_then(|id| state.items.get_mut(&id)) {
                    *known = made.items.max(*known);
                }
            }
            daemon_msg::Msg::ItemsTaken(taken) => state.note_taken(&taken),
            daemon_msg::Msg::Created(created) => {
                if let Ok(id) = object_id(&created.object) {
                    state.created.insert(id, created);
                }
            }
            daemon_msg::Msg::Committed(Committed { elided, .. }) if elided > 0 => {
                self.shell.committed.fetch_add(elided, Ordering::Relaxed);
            }
            daemon_msg::Msg::Committed(committed) => {
                if let Ok(id) = task_id(&committed.task) {
                    self.shell.committed.fetch_add(1, Ordering::Relaxed);
                    if state.committed.len() == COMMITTED_MAX {
                        state.committed.pop_front();
                    }
                    state.committed.push_back((id, committed.revision));
                }
            }
            daemon_msg::Msg::Notice(n) => {
                if state.notices.len() == NOTICES_MAX {
                    state.notices.pop_front();
                }
                let task = task_id(&n.task).ok();
                let notice =
                    Notice { kind: n.kind, text: n.text, task, bytes: n.bytes, incarnation: n.incarnation };
                state.notices.push_back(notice);
            }
            daemon_msg::Msg::JobEnded(_) => {
                state.job_ended = true;
                state.forget_shared();
                if state.views == 0 {
                    self.unpin_all(state);
                }
            }
            daemon_msg::Msg::Recall(recall) => {
                for id in recall.objects.iter().filter_map(|id| object_id(id).ok()) {
                    if let Some(slot) = state.slots.get_mut(&id) {
                        self.give_back(id, slot);
                    }
                }
            }
            daemon_msg::Msg::GroupAnswer(answer) => drop(state.group_answers.insert(answer.ask, answer)),
            daemon_msg::Msg::Group(told) => drop(state.groups.insert(told.group, told)),
            daemon_msg::Msg::Refused(failure) => state.closed = Some(failure.message),
            daemon_msg::Msg::Welcome(_) => {}
        }
    }

    /// The link ended: everyone who waits is told.
    pub(crate) fn close(&self, why: &str) {
        let mut state = self.state();
        state.closed.get_or_insert_with(|| why.to_owned());
        state.forget_shared();
        drop(state);
        self.shell.outbox.close();
        self.shell.woken.notify_all();
        self.shell.woken_async.notify_waiters();
    }
}
