//! The client of a node daemon: submit, put, get, wait.
//!
//! All state is behind one lock that is never held while waiting for the network. Messages to the
//! daemon go through an outbox whose writer sends whatever has queued up; messages from it come
//! in through `Client::receive` (see `pump`). Who pumps them (threads or async tasks) is [`crate::link`]'s
//! business.

use crate::args::ArgBytes;
use crate::context::{Context, try_current};
use crate::error::Error;
use crate::link::Line;
use crate::options::{ConnectOptions, Durability, JobOptions, OnDivergence};
use crate::reference::ObjectRef;
use crate::task::Task;
use crate::value::Encoded;
use bytes::Bytes;
use mobula_base::{IdMap, JobId, ObjectId, TaskId};
use mobula_net::written::Written;
use mobula_objstore::Region;
use mobula_proto::{
    ClientMsg, Created, EndJob, Failure, FailureKind, Flush, GetObjects, GroupAnswer, GroupState, PutInline,
    RunTask, Seal, TaskSpec, Value, Welcome, client_msg, object_bytes, task_bytes, value as wire_value,
};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// Something the cluster did that a person may want to see.
#[derive(Debug, Clone)]
pub struct Notice {
    /// `node-dead`, `rebuild-start`, `rebuild-done`, `diverged`, `hedge`.
    pub kind: String,
    /// More, for people.
    pub text: String,
    /// The task it is about.
    pub task: Option<TaskId>,
    /// Bytes made again.
    pub bytes: u64,
    /// The node it is about, or that says it.
    pub incarnation: u64,
}

/// What this program knows of an object that it refers to.
#[derive(Default)]
pub(crate) struct Slot {
    pub refs: u32,
    pub ready: Option<Value>,
    pub asked: bool,
    /// The daemon knows that this program refers to it.
    pub told: bool,
    /// How often the daemon has told a place in shared memory.
    pub pins: u32,
    /// How many look at that place just now, or wait to be told one.
    pub looks: u32,
    /// The daemon would like to have the place back.
    pub recalled: bool,
}

#[derive(Default)]
pub(crate) struct State {
    pub slots: IdMap<ObjectId, Slot>,
    /// Answers to those who wait for room in shared memory.
    pub created: IdMap<ObjectId, Created>,
    pub committed: VecDeque<(TaskId, u64)>,
    pub notices: VecDeque<Notice>,
    pub tasks: VecDeque<RunTask>,
    pub blocked: bool,
    /// How many items there are, or were, of streams that this program takes from.
    pub items: IdMap<TaskId, u32>,
    /// How many items are taken of streams that are made, or to be made, here.
    pub taken: IdMap<TaskId, u32>,
    /// It waits for room in shared memory.
    pub for_room: bool,
    /// The task that runs in this worker, and its attempt.
    pub running: Option<(bytes::Bytes, u32)>,
    /// It has been told to stop.
    pub stopped: bool,
    pub job_ended: bool,
    pub closed: Option<String>,
    /// Answers to those who wait for a placement group to be made or removed.
    pub group_answers: BTreeMap<u64, GroupAnswer>,
    /// Placement groups that are watched, as they stand by the last word of the daemon.
    pub groups: BTreeMap<u64, GroupState>,
    pub sleepers: usize,
    /// Threads and tasks that look at values just now.
    pub views: u32,
}

/// Arguments passed by value may come to so many bytes: they travel inside the lineage record.
const SPEC_BYTES_MAX: usize = 16 << 20;
/// Values of so many bytes that a driver has put stay with it, for as long as it refers to them.
const KEPT_MAX: usize = 4 << 10;
pub(crate) struct Shell {
    state: Mutex<State>,
    pub(crate) woken: Condvar,
    pub(crate) woken_async: tokio::sync::Notify,
    pub(crate) outbox: Written<ClientMsg>,
    /// Where its messages go out, if that is a socket of this process.
    pub(crate) line: OnceLock<Arc<Mutex<Line>>>,
    pub(crate) region: Region,
    welcome: Welcome,
    submitted: AtomicU64,
    pub(crate) committed: AtomicU64,
    pub(crate) group_asks: AtomicU64,
}

/// A connection to a node daemon, acting for one driver or one running task. Clones share it.
#[derive(Clone)]
pub struct Client {
    pub(crate) shell: Arc<Shell>,
    pub(crate) context: Arc<Context>,
    pub(crate) options: JobOptions,
}

impl Client {
    /// Connects this driver to a node daemon and starts a job.
    ///
    /// # Errors
    /// Nothing answers, or the daemon refuses.
    pub fn connect(options: ConnectOptions) -> Result<Client, Error> {
        crate::link::connect_driver(&options)
    }

    pub(crate) fn new(welcome: Welcome, region: Region, outbox: Written<ClientMsg>) -> Self {
        let job = JobId(welcome.job);
        let shell = Shell {
            state: Mutex::new(State::default()),
            woken: Condvar::new(),
            woken_async: tokio::sync::Notify::new(),
            outbox,
            line: OnceLock::new(),
            region,
            welcome,
            submitted: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            group_asks: AtomicU64::new(0),
        };
        Client {
            shell: Arc::new(shell),
            context: Context::new(job, TaskId::root(job), 0, false),
            options: JobOptions::default(),
        }
    }

    /// The same client; what it submits from here on is of a job with this option.
    #[must_use]
    pub fn with_divergence(mut self, on_divergence: OnDivergence) -> Client {
        self.options.on_divergence = on_divergence;
        self
    }

    /// The same client; what it submits from here on is of a job with this option.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Client {
        self.options.durability = durability;
        self
    }

    /// The same connection, acting for a running task.
    pub(crate) fn for_task(&self, context: Arc<Context>, options: JobOptions) -> Client {
        Client { shell: self.shell.clone(), context, options }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.shell.state.lock().expect("never poisoned: nothing panics under this lock")
    }

    pub(crate) fn send(&self, msg: client_msg::Msg) {
        self.shell.outbox.push(&ClientMsg { msg: Some(msg) });
    }

    /// Submits a task; never blocks. An argument that could not be encoded fails the reference.
    pub fn submit<T>(&self, task: Task<T>) -> ObjectRef<T> {
        ObjectRef::new(self.hand_in(task).output(0), Some(self.clone()))
    }

    /// Submits a task. This program refers to what it returns, in one or in several parts: whoever calls makes the
    /// references.
    pub(crate) fn hand_in<T>(&self, task: Task<T>) -> TaskId {
        let Task { mut spec, error, named, .. } = task;
        let id = self.context.next_task();
        let (elements, window) =
            spec.options.as_deref().map_or((0, 0), |options| (options.elements, options.window));
        if window > 0 {
            // Before the daemon can say how many there are.
            self.state().items.insert(id, 0);
        }
        if let Some(error) = error.or_else(|| too_large(&spec)) {
            let failure = Failure::new(FailureKind::FailureBadArguments, error);
            self.own_returned(id, elements, Some(failed(failure)), None);
            return id;
        }
        spec.id = task_bytes(id);
        spec.job = self.context.job.0;
        spec.parent = task_bytes(self.context.task);
        spec.replay = self.context.replay;
        self.options.note(&mut spec);
        spec.digest = spec.compute_digest();
        self.own_returned(id, elements, None, Some(client_msg::Msg::Submit(spec)));
        self.shell.submitted.fetch_add(1, Ordering::Relaxed);
        // Only now that the submission names them.
        drop(named);
        id
    }

    /// Stores a value; small ones in the control store, large ones in shared memory and on a
    /// second node ([`Client::put_with`] says on how many). It is kept for as long as somebody refers to it.
    ///
    /// # Errors
    /// The value cannot be encoded, the store is full, or an earlier attempt of the task has put another.
    pub fn put<T: Serialize>(&self, value: &T) -> Result<ObjectRef<T>, Error> {
        self.put_with(value).store()
    }

    /// The reference to a value that was put: its bytes travel, or lie in shared memory with this checksum.
    pub(crate) fn made<T>(
        &self,
        id: ObjectId,
        encoded: Encoded,
        placed: Option<u32>,
        replicas: u32,
    ) -> ObjectRef<T> {
        let (object, contains) = (object_bytes(id), encoded.contains());
        let Some(crc) = placed else {
            let value = Bytes::from(encoded.bytes);
            // A driver that put it may want it back, and has it here. Of a task an earlier attempt may have put
            // something else, and that stands.
            let is_driver = self.context.attempt == 0;
            let inline =
                (is_driver && value.len() <= KEPT_MAX).then(|| wire_value::Value::Inline(value.clone()));
            let msg = client_msg::Msg::PutInline(PutInline { object, value, contains, replicas });
            self.own(id, inline.map(|inline| Value { value: Some(inline) }), Some(msg));
            return ObjectRef::new(id, Some(self.clone()));
        };
        self.own(id, None, Some(client_msg::Msg::Seal(Seal { object, crc, contains, replicas })));
        ObjectRef::new(id, Some(self.clone()))
    }

    /// Waits for room, and while there is none gives back what was queued behind the task: it may be what
    /// takes the room.
    pub(crate) fn wait_created(&self, object: ObjectId) -> Result<Created, Error> {
        let answer = |state: &mut State| state.created.remove(&object);
        let created = self.wait_sync(None, answer)?;
        if !created.waits {
            return Ok(created);
        }
        self.block(true);
        let result = self.wait_sync(None, answer);
        self.unblock();
        result
    }

    /// As [`Client::wait_created`], without blocking the thread.
    pub(crate) async fn wait_created_async(&self, object: ObjectId) -> Result<Created, Error> {
        let answer = |state: &mut State| state.created.remove(&object);
        let created = self.wait_async(answer).await?;
        if !created.waits {
            return Ok(created);
        }
        self.block(true);
        let result = self.wait_async(answer).await;
        self.unblock();
        result
    }

    /// Waits until `count` of `refs` exist or failed, or `timeout` passes: which are ready.
    pub fn wait<T>(&self, refs: &[ObjectRef<T>], count: usize, timeout: Duration) -> Vec<bool> {
        let ids: Vec<ObjectId> = refs.iter().map(ObjectRef::id).collect();
        let ready = |state: &mut State| {
            let flags: Vec<bool> =
                ids.iter().map(|id| state.slots.get(id).is_some_and(|s| s.ready.is_some())).collect();
            let enough = flags.iter().filter(|f| **f).count() >= count.min(ids.len());
            (enough || state.stopped).then_some(flags)
        };
        // Mostly some are known to be ready, when a program takes one after the other.
        if let Some(flags) = ready(&mut self.state()) {
            return flags;
        }
        let _taken = self.take_up_strangers(&ids);
        self.ask(&ids, false);
        match self.blocking(|| self.wait_sync(Some(timeout), ready)) {
            Ok(flags) => flags,
            Err(_) => ids.iter().map(|id| self.is_ready(*id)).collect(),
        }
    }

    /// Lineage records acknowledged as durable since the last call, with their revisions; the latest
    /// million. Records that were elided, since nobody could need them, are not among them.
    pub fn take_committed(&self) -> Vec<(TaskId, u64)> {
        self.state().committed.drain(..).collect()
    }

    /// Tasks submitted by this process.
    pub fn submitted(&self) -> u64 {
        self.shell.submitted.load(Ordering::Relaxed)
    }

    /// Of these, how many lineage records are durable.
    pub fn committed(&self) -> u64 {
        self.shell.committed.load(Ordering::Relaxed)
    }

    /// Waits until the lineage of all that this process has submitted is durable, or elided since nobody can need
    /// it any more; also of what other threads submit meanwhile. Without it that comes to pass a moment later.
    ///
    /// # Errors
    /// `timeout` passed first, or the connection ended.
    pub fn wait_durable(&self, timeout: Duration) -> Result<(), Error> {
        self.send(client_msg::Msg::Flush(Flush {}));
        self.wait_sync(Some(timeout), |_| (self.committed() >= self.submitted()).then_some(()))
    }

    /// What happened since the last call.
    pub fn take_notices(&self) -> Vec<Notice> {
        self.state().notices.drain(..).collect()
    }

    /// The heads of the cluster.
    pub fn heads(&self) -> Vec<String> {
        self.shell.welcome.heads.clone()
    }

    /// The cluster's id.
    pub fn cluster(&self) -> u64 {
        self.shell.welcome.cluster
    }

    /// How many shards the control store has.
    pub fn shards(&self) -> u32 {
        self.shell.welcome.shards
    }

    /// Whether the node knows tasks that return streams.
    pub(crate) fn knows_streams(&self) -> bool {
        self.shell.welcome.streams
    }

    /// This job.
    pub fn job(&self) -> JobId {
        self.context.job
    }

    /// The incarnation of the node daemon this process is attached to.
    pub fn node(&self) -> u64 {
        self.shell.welcome.incarnation
    }

    /// Ends the job and waits until that is committed; its objects are freed.
    ///
    /// # Errors
    /// The connection ended first.
    pub fn end(&self, succeeded: bool) -> Result<(), Error> {
        self.send(client_msg::Msg::EndJob(EndJob { succeeded }));
        self.wait_sync(Some(Duration::from_secs(30)), |state| state.job_ended.then_some(()))
    }

    /// As [`Client::end`], without blocking the thread.
    ///
    /// # Errors
    /// As [`Client::end`].
    pub async fn end_async(&self, succeeded: bool) -> Result<(), Error> {
        self.send(client_msg::Msg::EndJob(EndJob { succeeded }));
        self.wait_async(|state| state.job_ended.then_some(())).await
    }

    // ------------------------------------------------------------ values

    pub(crate) fn is_ready(&self, id: ObjectId) -> bool {
        self.state().slots.get(&id).is_some_and(|s| s.ready.is_some())
    }

    /// Asks the daemon about objects that it does not tell of by itself.
    pub(crate) fn ask(&self, ids: &[ObjectId], want_value: bool) {
        let mut state = self.state();
        let mut objects = Vec::new();
        for id in ids {
            let Some(slot) = state.slots.get_mut(id) else { continue };
            let elsewhere =
                matches!(&slot.ready, Some(Value { value: Some(wire_value::Value::Elsewhere(_)) }));
            if (slot.ready.is_none() && !slot.asked) || (want_value && elsewhere) {
                slot.asked = true;
                // Asked for once: `bytes_now` would do so again.
                slot.ready = None;
                objects.push(object_bytes(*id));
            }
        }
        drop(state);
        if !objects.is_empty() {
            self.send(client_msg::Msg::Get(GetObjects { objects, want_value }));
        }
    }

    /// The bytes, if they are in this node's memory, or why they will not come; asks for them when they are
    /// elsewhere. A task that is to stop waits no longer.
    fn bytes_now(&self, state: &mut State, id: ObjectId) -> Option<Result<ArgBytes, Error>> {
        self.bytes_here(state, id).or_else(|| state.stopped.then(|| Err(told_to_stop().into())))
    }

    pub(crate) fn bytes_here(&self, state: &mut State, id: ObjectId) -> Option<Result<ArgBytes, Error>> {
        let slot = state.slots.get_mut(&id)?;
        match slot.ready.as_ref()?.value.as_ref()? {
            wire_value::Value::Inline(bytes) => Some(Ok(ArgBytes::Inline(bytes.clone()))),
            wire_value::Value::Shared(s) => {
                Some(Ok(ArgBytes::Shared(self.shell.region.clone(), s.offset, s.len)))
            }
            wire_value::Value::Failure(failure) => Some(Err(failure.clone().into())),
            wire_value::Value::Elsewhere(_) => {
                slot.ready = None;
                slot.asked = true;
                let get = GetObjects { objects: vec![object_bytes(id)], want_value: true };
                self.send(client_msg::Msg::Get(get));
                None
            }
        }
    }

    /// Called while the object is being looked at ([`Client::viewing`]): what comes stays.
    pub(crate) fn get_bytes(&self, id: ObjectId, timeout: Option<Duration>) -> Result<ArgBytes, Error> {
        self.ask(&[id], true);
        if let Some(now) = self.bytes_now(&mut self.state(), id) {
            return now;
        }
        self.blocking(|| self.wait_sync(timeout, |state| self.bytes_now(state, id)))?
    }

    pub(crate) async fn get_bytes_async(&self, id: ObjectId) -> Result<ArgBytes, Error> {
        self.ask(&[id], true);
        if let Some(now) = self.bytes_now(&mut self.state(), id) {
            return now;
        }
        self.block(false);
        let result = self.wait_async(|state| self.bytes_now(state, id)).await;
        self.unblock();
        result?
    }

    // ------------------------------------------------------------ waiting

    /// Waits inside a task: gives back the CPU and what was queued behind it (R16).
    pub(crate) fn blocking<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.block(false);
        let result = wait();
        self.unblock();
        result
    }

    /// It waits inside a task: what was queued behind that goes to others.
    pub(crate) fn block(&self, for_room: bool) {
        if try_current().is_none() {
            return;
        }
        let mut state = self.state();
        (state.blocked, state.for_room) = (true, for_room);
        let returned = state.tasks.drain(..).filter_map(|t| t.spec.map(|s| s.id)).collect();
        drop(state);
        self.send(client_msg::Msg::Blocked(mobula_proto::Blocked { returned, for_room }));
    }

    pub(crate) fn unblock(&self) {
        if try_current().is_some() {
            self.state().blocked = false;
            self.send(client_msg::Msg::Unblocked(mobula_proto::Unblocked {}));
        }
    }

    /// Returns once all that was said is with the kernel, which delivers it whatever becomes of this process.
    pub(crate) fn write_out(&self) {
        if let Some(line) = self.shell.line.get() {
            let _ = line
                .lock()
                .expect("never poisoned: nothing panics under this lock")
                .flush(&self.shell.outbox);
        }
    }

    /// Writes by itself what waits to be written: whoever is about to sleep saves a switch to another thread.
    fn flush_line(&self) {
        if let Some(mut line) = self.shell.line.get().and_then(|line| line.try_lock().ok()) {
            let _ = line.flush(&self.shell.outbox);
        }
    }

    pub(crate) fn wait_sync<R>(
        &self,
        timeout: Option<Duration>,
        mut ready: impl FnMut(&mut State) -> Option<R>,
    ) -> Result<R, Error> {
        let deadline = timeout.map(|t| Instant::now() + t);
        let mut state = self.state();
        let mut flushed = false;
        loop {
            if let Some(result) = ready(&mut state) {
                return Ok(result);
            }
            if let Some(why) = &state.closed {
                return Err(Error::Disconnected(why.clone()));
            }
            if !std::mem::replace(&mut flushed, true) {
                drop(state);
                self.flush_line();
                state = self.state();
                continue;
            }
            state.sleepers += 1;
            let left =
                deadline.map_or(Duration::from_secs(3600), |d| d.saturating_duration_since(Instant::now()));
            state = self.shell.woken.wait_timeout(state, left).expect("never poisoned").0;
            state.sleepers -= 1;
            if let (Some(deadline), Some(timeout)) = (deadline, timeout)
                && Instant::now() >= deadline
            {
                return ready(&mut state).ok_or(Error::Timeout(timeout));
            }
        }
    }

    pub(crate) async fn wait_async<R>(
        &self,
        mut ready: impl FnMut(&mut State) -> Option<R>,
    ) -> Result<R, Error> {
        loop {
            let woken = self.shell.woken_async.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            {
                let mut state = self.state();
                if let Some(result) = ready(&mut state) {
                    return Ok(result);
                }
                if let Some(why) = &state.closed {
                    return Err(Error::Disconnected(why.clone()));
                }
            }
            woken.await;
        }
    }
}

/// What a task that is to stop gets instead of what it waits for, and ends with.
pub(crate) fn told_to_stop() -> Failure {
    Failure::new(
        FailureKind::FailureCancelled,
        "the task was told to stop: it was cancelled, or ran too long",
    )
}

/// Why a submission is too large, if it is.
fn too_large(spec: &TaskSpec) -> Option<String> {
    let bytes = prost::Message::encoded_len(spec);
    (bytes > SPEC_BYTES_MAX).then(|| {
        format!(
            "the arguments come to {bytes} bytes, at most {SPEC_BYTES_MAX} travel by value: `put` the large ones and pass \
             references"
        )
    })
}

pub(crate) fn failed(failure: Failure) -> Value {
    Value { value: Some(wire_value::Value::Failure(failure)) }
}
