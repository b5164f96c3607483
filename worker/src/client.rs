//! The client of a node daemon: submit, put, get, wait.
//!
//! All state is behind one lock that is never held while waiting for the network. Messages to the
//! daemon go through an outbox whose writer sends whatever has queued up; messages from it come
//! in through `Client::receive`. Who pumps them (threads or async tasks) is [`crate::link`]'s
//! business.

use crate::args::ArgBytes;
use crate::context::{Context, try_current};
use crate::error::Error;
use crate::reference::ObjectRef;
use crate::task::Task;
use crate::value;
use mobula_base::{JobId, ObjectId, TaskId};
use mobula_net::frame::Outbox;
use mobula_objstore::Region;
use mobula_proto::{
    ClientMsg, Create, DaemonMsg, EndJob, Failure, FailureKind, GetObjects, INLINE_MAX, PutInline, RunTask,
    Seal, Shared, ToClient, Value, Welcome, client_msg, daemon_msg, object_bytes, object_id, task_bytes,
    task_id, value as wire_value,
};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How a driver connects.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The node daemon's Unix socket.
    pub socket: PathBuf,
    /// What the job is called in lists.
    pub job_name: String,
    /// The program's arguments, for lists.
    pub args: Vec<String>,
    /// How long to wait for the daemon.
    pub connect_timeout: Duration,
}

impl Default for ConnectOptions {
    /// The socket in `$MOBULA_SOCKET`, else `~/.mobula/node.sock`.
    fn default() -> Self {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let socket =
            std::env::var_os("MOBULA_SOCKET").map_or_else(|| home.join(".mobula/node.sock"), PathBuf::from);
        let mut args = std::env::args();
        let job_name = args.next().unwrap_or_default();
        ConnectOptions { socket, job_name, args: args.collect(), connect_timeout: Duration::from_secs(10) }
    }
}

/// Something the cluster did that a person may want to see.
#[derive(Debug, Clone)]
pub struct Notice {
    /// `node-dead`, `rebuild-start`, `rebuild-done`, `diverged`.
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

#[derive(Default)]
struct Slot {
    refs: u32,
    ready: Option<Value>,
    asked: bool,
}

#[derive(Default)]
struct State {
    slots: HashMap<ObjectId, Slot>,
    /// Where to write, `None` when it is there already.
    created: HashMap<ObjectId, Result<Option<u64>, Failure>>,
    committed: Vec<(TaskId, u64)>,
    notices: VecDeque<Notice>,
    tasks: VecDeque<RunTask>,
    blocked: bool,
    job_ended: bool,
    closed: Option<String>,
    sleepers: usize,
}

impl State {
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

/// Arguments passed by value may come to so many bytes: they travel inside the lineage record.
const SPEC_BYTES_MAX: usize = 16 << 20;
/// Notices kept for [`Client::take_notices`] at most; the oldest go first.
const NOTICES_MAX: usize = 10_000;

pub(crate) struct Shell {
    state: Mutex<State>,
    woken: Condvar,
    woken_async: tokio::sync::Notify,
    pub(crate) outbox: Outbox<ClientMsg>,
    region: Region,
    welcome: Welcome,
    submitted: AtomicU64,
    committed: AtomicU64,
}

/// A connection to a node daemon, acting for one driver or one running task. Clones share it.
#[derive(Clone)]
pub struct Client {
    shell: Arc<Shell>,
    context: Arc<Context>,
}

impl Client {
    /// Connects this driver to a node daemon and starts a job.
    ///
    /// # Errors
    /// Nothing answers, or the daemon refuses.
    pub fn connect(options: ConnectOptions) -> Result<Client, Error> {
        crate::link::connect_driver(&options)
    }

    pub(crate) fn new(welcome: Welcome, region: Region, outbox: Outbox<ClientMsg>) -> Self {
        let job = JobId(welcome.job);
        let shell = Shell {
            state: Mutex::new(State::default()),
            woken: Condvar::new(),
            woken_async: tokio::sync::Notify::new(),
            outbox,
            region,
            welcome,
            submitted: AtomicU64::new(0),
            committed: AtomicU64::new(0),
        };
        Client { shell: Arc::new(shell), context: Context::new(job, TaskId::root(job), false) }
    }

    /// The same connection, acting for a running task.
    pub(crate) fn for_task(&self, context: Arc<Context>) -> Client {
        Client { shell: self.shell.clone(), context }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shell.state.lock().expect("never poisoned: nothing panics under this lock")
    }

    fn send(&self, msg: client_msg::Msg) {
        self.shell.outbox.push(ClientMsg { msg: Some(msg) });
    }

    /// Submits a task; never blocks. An argument that could not be encoded fails the reference.
    pub fn submit<T>(&self, task: Task<T>) -> ObjectRef<T> {
        let mut spec = task.spec;
        let id = self.context.next_task();
        let object = id.output(0);
        let mut slot = Slot { refs: 1, ready: None, asked: true };
        if let Some(error) = task.error {
            slot.ready = Some(failed(Failure::new(FailureKind::FailureBadArguments, error)));
            self.state().slots.insert(object, slot);
            return ObjectRef::new(object, Some(self.clone()));
        }
        let bytes = prost::Message::encoded_len(&spec);
        if bytes > SPEC_BYTES_MAX {
            let message = format!(
                "the arguments come to {bytes} bytes, at most {SPEC_BYTES_MAX} travel by value: `put` the large ones and \
                 pass references"
            );
            slot.ready = Some(failed(Failure::new(FailureKind::FailureBadArguments, message)));
            self.state().slots.insert(object, slot);
            return ObjectRef::new(object, Some(self.clone()));
        }
        spec.id = task_bytes(id);
        spec.job = self.context.job.0;
        spec.parent = task_bytes(self.context.task);
        spec.replay = self.context.replay;
        spec.digest = spec.compute_digest();
        self.state().slots.insert(object, slot);
        self.shell.submitted.fetch_add(1, Ordering::Relaxed);
        self.send(client_msg::Msg::Submit(spec));
        ObjectRef::new(object, Some(self.clone()))
    }

    /// Stores a value; small ones in the control store, large ones in shared memory and on a
    /// second node.
    ///
    /// # Errors
    /// The value cannot be encoded, or the store is full.
    pub fn put<T: Serialize>(&self, value: &T) -> Result<ObjectRef<T>, Error> {
        let bytes = value::encode(value).map_err(Error::Value)?;
        let object = self.context.next_put();
        if bytes.len() <= INLINE_MAX {
            let put = PutInline { object: object_bytes(object), value: bytes.into(), contains: Vec::new() };
            self.send(client_msg::Msg::PutInline(put));
        } else {
            self.ask_create(object, bytes.len() as u64);
            // `None`: an earlier attempt put it, and this node still has it.
            if let Some(offset) = self.wait_created(object)? {
                let crc = self.fill(offset, &bytes).crc;
                self.send(client_msg::Msg::Seal(Seal {
                    object: object_bytes(object),
                    crc,
                    contains: Vec::new(),
                }));
            }
        }
        self.remember(object);
        Ok(ObjectRef::new(object, Some(self.clone())))
    }

    pub(crate) fn ask_create(&self, object: ObjectId, size: u64) {
        self.send(client_msg::Msg::Create(Create { object: object_bytes(object), size }));
    }

    /// Writes at `offset` and says what is there; sealing is the caller's message.
    pub(crate) fn fill(&self, offset: u64, bytes: &[u8]) -> Shared {
        self.shell.region.write(offset, bytes);
        Shared { offset, len: bytes.len() as u64, crc: crc32fast::hash(bytes) }
    }

    pub(crate) fn wait_created(&self, object: ObjectId) -> Result<Option<u64>, Error> {
        self.wait_sync(None, |state| state.created.remove(&object))?.map_err(Error::from)
    }

    pub(crate) async fn wait_created_async(&self, object: ObjectId) -> Result<Option<u64>, Error> {
        self.wait_async(|state| state.created.remove(&object)).await?.map_err(Error::from)
    }

    /// Waits until `count` of `refs` exist or failed, or `timeout` passes: which are ready.
    pub fn wait<T>(&self, refs: &[ObjectRef<T>], count: usize, timeout: Duration) -> Vec<bool> {
        let ids: Vec<ObjectId> = refs.iter().map(ObjectRef::id).collect();
        self.ask(&ids, false);
        let ready = |state: &mut State| {
            let flags: Vec<bool> =
                ids.iter().map(|id| state.slots.get(id).is_some_and(|s| s.ready.is_some())).collect();
            (flags.iter().filter(|f| **f).count() >= count.min(ids.len())).then_some(flags)
        };
        match self.blocking(|| self.wait_sync(Some(timeout), ready)) {
            Ok(flags) => flags,
            Err(_) => ids.iter().map(|id| self.is_ready(*id)).collect(),
        }
    }

    /// Lineage records acknowledged as durable since the last call, with their revisions.
    pub fn take_committed(&self) -> Vec<(TaskId, u64)> {
        std::mem::take(&mut self.state().committed)
    }

    /// Tasks submitted by this process.
    pub fn submitted(&self) -> u64 {
        self.shell.submitted.load(Ordering::Relaxed)
    }

    /// Of these, how many lineage records are durable.
    pub fn committed(&self) -> u64 {
        self.shell.committed.load(Ordering::Relaxed)
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

    // ------------------------------------------------------------ references

    pub(crate) fn remember(&self, id: ObjectId) {
        self.state().slots.entry(id).or_default().refs += 1;
    }

    pub(crate) fn forget(&self, id: ObjectId) {
        let mut state = self.state();
        if let Some(slot) = state.slots.get_mut(&id) {
            slot.refs -= 1;
            if slot.refs == 0 {
                state.slots.remove(&id);
            }
        }
    }

    pub(crate) fn is_ready(&self, id: ObjectId) -> bool {
        self.state().slots.get(&id).is_some_and(|s| s.ready.is_some())
    }

    /// Asks the daemon about objects that it does not tell of by itself.
    fn ask(&self, ids: &[ObjectId], want_value: bool) {
        let mut state = self.state();
        let mut objects = Vec::new();
        for id in ids {
            let slot = state.slots.entry(*id).or_default();
            let elsewhere =
                matches!(&slot.ready, Some(Value { value: Some(wire_value::Value::Elsewhere(_)) }));
            if (slot.ready.is_none() && !slot.asked) || (want_value && elsewhere) {
                slot.asked = true;
                objects.push(object_bytes(*id));
            }
        }
        drop(state);
        if !objects.is_empty() {
            self.send(client_msg::Msg::Get(GetObjects { objects, want_value }));
        }
    }

    /// The bytes, if they are in this node's memory; asks for them when they are elsewhere.
    fn bytes_now(&self, state: &mut State, id: ObjectId) -> Option<Result<ArgBytes, Error>> {
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
        self.block();
        let result = self.wait_async(|state| self.bytes_now(state, id)).await;
        self.unblock();
        result?
    }

    // ------------------------------------------------------------ waiting

    /// Waits inside a task: gives back the CPU and what was queued behind it (R16).
    fn blocking<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.block();
        let result = wait();
        self.unblock();
        result
    }

    fn block(&self) {
        if try_current().is_none() {
            return;
        }
        let mut state = self.state();
        state.blocked = true;
        let returned = state.tasks.drain(..).filter_map(|t| t.spec.map(|s| s.id)).collect();
        drop(state);
        self.send(client_msg::Msg::Blocked(mobula_proto::Blocked { returned }));
    }

    fn unblock(&self) {
        if try_current().is_some() {
            self.state().blocked = false;
            self.send(client_msg::Msg::Unblocked(mobula_proto::Unblocked {}));
        }
    }

    fn wait_sync<R>(
        &self,
        timeout: Option<Duration>,
        mut ready: impl FnMut(&mut State) -> Option<R>,
    ) -> Result<R, Error> {
        let deadline = timeout.map(|t| Instant::now() + t);
        let mut state = self.state();
        loop {
            if let Some(result) = ready(&mut state) {
                return Ok(result);
            }
            if let Some(why) = &state.closed {
                return Err(Error::Disconnected(why.clone()));
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

    async fn wait_async<R>(&self, mut ready: impl FnMut(&mut State) -> Option<R>) -> Result<R, Error> {
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

    // ------------------------------------------------------------ the pump's side

    /// The next task to run; `None` when the link closed.
    pub(crate) fn next_task(&self) -> Option<RunTask> {
        self.wait_sync(None, |state| state.tasks.pop_front()).ok()
    }

    pub(crate) async fn next_task_async(&self) -> Option<RunTask> {
        self.wait_async(|state| state.tasks.pop_front()).await.ok()
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
        let sleepers = state.sleepers;
        if !bounced.is_empty() {
            // Under the lock: the task's own `Unblocked` must not overtake it.
            self.send(client_msg::Msg::Blocked(mobula_proto::Blocked { returned: bounced }));
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
                // A reference that was dropped meanwhile has no slot: nobody wants the value.
                if let Ok(id) = object_id(&ready.object)
                    && let Some(slot) = state.slots.get_mut(&id)
                {
                    slot.ready = ready.value;
                }
            }
            daemon_msg::Msg::Run(run) => {
                if state.blocked {
                    bounced.extend(run.spec.map(|s| s.id));
                } else {
                    state.tasks.push_back(run);
                }
            }
            daemon_msg::Msg::Created(created) => {
                if let Ok(id) = object_id(&created.object) {
                    let offset = (!created.exists).then_some(created.offset);
                    state.created.insert(id, created.failure.map_or(Ok(offset), Err));
                }
            }
            daemon_msg::Msg::Committed(committed) => {
                if let Ok(id) = task_id(&committed.task) {
                    self.shell.committed.fetch_add(1, Ordering::Relaxed);
                    state.committed.push((id, committed.revision));
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
            }
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

pub(crate) fn failed(failure: Failure) -> Value {
    Value { value: Some(wire_value::Value::Failure(failure)) }
}
