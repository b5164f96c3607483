//! What the store of a node decides is done: answers to whoever asked for room or for values, files that
//! are written, read and removed. No policy.

use crate::daemon::Life;
use crate::input::{Input, shared};
use crate::perform::wire;
use crate::spill;
use mobula_base::{JobId, ObjectId, TaskId};
use mobula_objstore::depot::{Effect as Deed, Kept, Ticket};
use mobula_objstore::spill_file::FileId;
use mobula_objstore::table::{Creator, Place};
use mobula_objstore::{Reader, StoreError};
use mobula_proto::{
    Created, Failure, FailureKind, Output, Recall, RunTask, Shared, arg, daemon_msg, object_bytes, object_id,
    task_id, terse, value as wire_value,
};
use mobula_scheduler::{ClientId, Event, TaskOutcome, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::discriminant;
use std::time::Duration;
use tokio::sync::oneshot;

/// Pause before a disk that took no file is tried again.
const DISK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Who asked the store for something, and waits.
pub(crate) enum Asked {
    /// A client wants room for an object.
    Room { client: ClientId, object: ObjectId },
    /// A transfer does.
    Transfer { object: ObjectId, reply: oneshot::Sender<Result<u64, StoreError>> },
    /// A client wants to look at an object.
    Look { client: ClientId, job: JobId, object: ObjectId },
    /// The first of what is to be given to a worker.
    Run { worker: ClientId },
}

/// A task that is to be given to a worker once its arguments are in memory.
pub(crate) struct Order {
    task: TaskId,
    /// Without its arguments.
    run: RunTask,
    args: Vec<Value>,
    /// Those of its arguments that lie in shared memory, in their order.
    objects: Vec<ObjectId>,
    /// What its worker is to hear of it right after: of each kind the last.
    behind: Vec<daemon_msg::Msg>,
}

/// What waits for the store.
#[derive(Default)]
pub(crate) struct Waiting {
    next: Ticket,
    asked: BTreeMap<Ticket, Asked>,
    /// What each worker is to be given, in this order, and by which ticket the first waits.
    orders: BTreeMap<ClientId, (Ticket, VecDeque<Order>)>,
}

impl Waiting {
    fn ask(&mut self, asked: Asked) -> Ticket {
        self.next += 1;
        self.asked.insert(self.next, asked);
        self.next
    }
}

impl Life {
    /// A client asks for room for a value.
    pub(crate) fn ask_room(&mut self, client: ClientId, job: JobId, object: ObjectId, len: u64) {
        let ticket = self.waiting.ask(Asked::Room { client, object });
        self.store.want_room(ticket, object, len, job, client);
    }

    /// A transfer asks for room.
    pub(crate) fn reserve(
        &mut self,
        object: ObjectId,
        len: u64,
        job: JobId,
        reply: oneshot::Sender<Result<u64, StoreError>>,
    ) {
        if !self.jobs.contains_key(&job) {
            let _ = reply.send(Err(StoreError::JobEnded));
            return;
        }
        let ticket = self.waiting.ask(Asked::Transfer { object, reply });
        self.store.want_room(ticket, object, len, job, TRANSFER);
    }

    /// A client wants to look at what lies in a file alone: it is read back. False if that is not so.
    pub(crate) fn look(&mut self, client: ClientId, job: JobId, object: ObjectId) -> bool {
        let counts = matches!(self.core.value_of(object), Some(Value::Shared { .. }));
        if !counts || !matches!(self.store.get(object), Some(Kept::File(_))) {
            return false;
        }
        let ticket = self.waiting.ask(Asked::Look { client, job, object });
        self.store.want_here(ticket, Reader::Link(client), vec![object]);
        true
    }

    /// The core gives a task to a worker: it gets it once its arguments are in memory, and after whatever it
    /// was given before.
    pub(crate) fn give(&mut self, worker: ClientId, mut run: RunTask, args: Vec<Value>) {
        let Some(spec) = &mut run.spec else { return };
        let Ok(task) = task_id(&spec.id) else { return };
        if !self.open.contains_key(&worker) {
            return;
        }
        let mut objects = Vec::new();
        for (argument, value) in spec.args.iter().zip(&args) {
            if let (Some(arg::Arg::Object(bytes)), Value::Shared { .. }) = (&argument.arg, value) {
                objects.extend(object_id(bytes).ok());
            }
        }
        // The arguments travel resolved; the record's own copy of them stays here.
        spec.args = Vec::new();
        let order = Order { task, run, args, objects, behind: Vec::new() };
        match self.waiting.orders.get_mut(&worker) {
            Some((_, orders)) => orders.push_back(order),
            None if order.objects.is_empty() => self.give_now(worker, order, &[]),
            None => self.wait_for_args(worker, VecDeque::from([order])),
        }
    }

    /// A worker hears something of a task that it was given: behind the task, should that still wait.
    pub(crate) fn tell_of(&mut self, worker: ClientId, task: TaskId, msg: daemon_msg::Msg) {
        let waiting = self.waiting.orders.get_mut(&worker);
        match waiting.and_then(|(_, orders)| orders.iter_mut().find(|order| order.task == task)) {
            Some(order) => {
                order.behind.retain(|other| discriminant(other) != discriminant(&msg));
                order.behind.push(msg);
            }
            None => self.tell(worker, msg),
        }
    }

    /// Whether what a worker is given waits behind something whose arguments are brought into memory.
    pub(crate) fn waits_for_args(&self, worker: ClientId) -> bool {
        self.waiting.orders.contains_key(&worker)
    }

    fn wait_for_args(&mut self, worker: ClientId, orders: VecDeque<Order>) {
        let Some(Order { task, objects, .. }) = orders.front() else { return };
        let (reader, objects) = (Reader::Task(worker, *task), objects.clone());
        let ticket = self.waiting.ask(Asked::Run { worker });
        self.waiting.orders.insert(worker, (ticket, orders));
        self.store.want_here(ticket, reader, objects);
    }

    fn give_now(&self, worker: ClientId, order: Order, places: &[Place]) {
        let Order { run, args, behind, .. } = order;
        let mut places = places.iter();
        let resolve = |value: Value| match value {
            Value::Shared { .. } => places.next().map_or(value, |place| shared(*place)),
            Value::Inline(_) => value,
        };
        let args = args.into_iter().map(resolve).map(wire).collect();
        self.tell(worker, daemon_msg::Msg::Run(RunTask { args, ..run }));
        behind.into_iter().for_each(|msg| self.tell(worker, msg));
    }

    /// What a worker was to be given and has not got: it is taken back.
    pub(crate) fn not_given(&mut self, worker: ClientId) -> Vec<TaskId> {
        let Some((ticket, orders)) = self.waiting.orders.remove(&worker) else { return Vec::new() };
        self.waiting.asked.remove(&ticket);
        self.store.cancel(&BTreeSet::from([ticket]));
        orders.into_iter().map(|order| order.task).collect()
    }

    /// Takes the first that a worker was to be given out of the line; the rest goes on by [`Life::go_on`].
    fn next_order(&mut self, worker: ClientId) -> Option<Order> {
        self.waiting.orders.get_mut(&worker)?.1.pop_front()
    }

    /// Goes on with what a worker is to be given.
    fn go_on(&mut self, worker: ClientId) {
        let Some((_, mut orders)) = self.waiting.orders.remove(&worker) else { return };
        while orders.front().is_some_and(|order| order.objects.is_empty()) {
            if let Some(order) = orders.pop_front() {
                self.give_now(worker, order, &[]);
            }
        }
        if !orders.is_empty() {
            self.wait_for_args(worker, orders);
        }
    }

    /// A link is gone: nobody answers it any more.
    pub(crate) fn forget_asker(&mut self, gone: ClientId) {
        self.waiting.orders.remove(&gone);
        self.waiting.asked.retain(|_, asked| match asked {
            Asked::Room { client, .. } | Asked::Look { client, .. } | Asked::Run { worker: client } => {
                *client != gone
            }
            Asked::Transfer { .. } => true,
        });
    }

    /// Lets the store decide, and does what it says.
    pub(crate) fn turn_store(&mut self, events: &mut Vec<Event>) {
        if self.store.is_tight() {
            for object in self.core.take_spare() {
                self.store.discard(object);
                self.tell_gone(object);
            }
        }
        let mut deeds = std::mem::take(&mut self.deeds);
        // What is done may ask the store for more, which it may have at once.
        loop {
            self.store.turn(&mut deeds);
            if deeds.is_empty() {
                break;
            }
            for deed in deeds.drain(..) {
                self.do_deed(deed, events);
            }
        }
        self.deeds = deeds;
    }

    fn do_deed(&mut self, deed: Deed, events: &mut Vec<Event>) {
        match deed {
            Deed::Waits { ticket } => {
                if let Some(Asked::Room { client, object }) = self.waiting.asked.get(&ticket) {
                    let waits = Created { object: object_bytes(*object), waits: true, ..Created::default() };
                    self.tell(*client, daemon_msg::Msg::Created(waits));
                }
            }
            Deed::Room { ticket, room } => self.room(ticket, room),
            Deed::Here { ticket, places } => self.here(ticket, &places),
            Deed::Missing { ticket, object } => self.missing(ticket, object, events),
            Deed::Refused { ticket, error } => self.refused(ticket, &error, events),
            Deed::Write { object, file, offset } => {
                let Some(disk) = self.spill_disk.clone() else { return };
                let (region, inbox) = (self.region.clone(), self.inbox.clone());
                self.tasks.spawn(async move {
                    let outcome = spill::write(disk, &region, object, file, offset).await;
                    let _ = inbox.send(Input::SpillWritten { object, outcome }).await;
                });
            }
            Deed::Read { object, file, offset } => {
                let Some(disk) = self.spill_disk.clone() else { return };
                let (region, inbox) = (self.region.clone(), self.inbox.clone());
                self.tasks.spawn(async move {
                    let outcome = spill::read(disk, &region, object, file, offset).await;
                    let _ = inbox.send(Input::SpillRead { object, outcome }).await;
                });
            }
            Deed::Remove { file } => self.remove_file(file),
            Deed::Lost { object } => {
                tracing::error!(%object, "the only copy of an object here is damaged: it is made again or brought");
                self.tell_gone(object);
                events.push(Event::CopyLost { object });
            }
            Deed::Recall { link, objects } => {
                let objects = objects.into_iter().map(object_bytes).collect();
                self.tell(link, daemon_msg::Msg::Recall(Recall { objects }));
            }
            Deed::Pause => {
                let inbox = self.inbox.clone();
                self.tasks.spawn(async move {
                    tokio::time::sleep(DISK_AGAIN_AFTER).await;
                    let _ = inbox.send(Input::SpillAgain).await;
                });
            }
        }
    }

    /// Nobody waits for it.
    pub(crate) fn remove_file(&mut self, file: FileId) {
        if let Some(disk) = self.spill_disk.clone() {
            self.tasks.spawn(async move {
                if let Err(error) = spill::remove(disk, file).await {
                    tracing::warn!(%error, file = file.name(), "cannot remove the file of an object");
                }
            });
        }
    }

    fn room(&mut self, ticket: Ticket, room: Result<u64, StoreError>) {
        match self.waiting.asked.remove(&ticket) {
            Some(Asked::Room { client, object }) => {
                let mut created = Created { object: object_bytes(object), ..Created::default() };
                match room {
                    Ok(offset) => created.offset = offset,
                    Err(StoreError::Exists(place)) => {
                        created.exists = true;
                        created.there = Some(Shared { offset: place.offset, len: place.len, crc: place.crc });
                    }
                    Err(error) => created.failure = Some(store_full(&error)),
                }
                self.tell(client, daemon_msg::Msg::Created(created));
            }
            Some(Asked::Transfer { object, reply }) => {
                // One that has ended while it waited does not give its room back.
                if let Err(Ok(_)) = reply.send(room) {
                    self.store.abort(object, TRANSFER);
                }
            }
            Some(Asked::Look { .. } | Asked::Run { .. }) | None => {}
        }
    }

    fn here(&mut self, ticket: Ticket, places: &[Place]) {
        match self.waiting.asked.remove(&ticket) {
            Some(Asked::Look { client, object, .. }) => {
                if let Some(place) = places.first() {
                    self.tell_ready(client, object, wire(shared(*place)));
                }
            }
            Some(Asked::Run { worker }) => {
                if let Some(order) = self.next_order(worker) {
                    self.give_now(worker, order, places);
                    self.go_on(worker);
                }
            }
            Some(Asked::Room { .. } | Asked::Transfer { .. }) | None => {}
        }
    }

    /// An object that somebody waits for is not here any more: it is brought as if it never had been.
    fn missing(&mut self, ticket: Ticket, object: ObjectId, events: &mut Vec<Event>) {
        events.push(Event::CopyLost { object });
        match self.waiting.asked.remove(&ticket) {
            Some(Asked::Look { client, job, object }) => {
                events.push(Event::Get { client, job, objects: vec![object], want_value: true });
            }
            Some(Asked::Run { worker }) => {
                if let Some(order) = self.next_order(worker) {
                    events.push(Event::NotGiven { worker, tasks: vec![order.task] });
                    self.go_on(worker);
                }
            }
            Some(Asked::Room { .. } | Asked::Transfer { .. }) | None => {}
        }
    }

    fn refused(&mut self, ticket: Ticket, error: &StoreError, events: &mut Vec<Event>) {
        match self.waiting.asked.remove(&ticket) {
            Some(Asked::Look { client, object, .. }) => {
                let failure = wire_value::Value::Failure(store_full(error));
                self.tell_ready(client, object, mobula_proto::Value { value: Some(failure) });
            }
            Some(Asked::Run { worker }) => {
                if let Some(order) = self.next_order(worker) {
                    let message = format!("the arguments of the task have no room in shared memory: {error}");
                    let value = Err(Failure::new(FailureKind::FailureStoreFull, message));
                    let (task, attempt) = (order.task, order.run.attempt);
                    let outcome = TaskOutcome {
                        elements: Default::default(),
                        task,
                        attempt,
                        value,
                        contains: Vec::new(),
                        ran_ns: 0,
                    };
                    events.push(Event::Finished { worker, outcomes: vec![outcome] });
                    self.go_on(worker);
                }
            }
            Some(Asked::Room { .. } | Asked::Transfer { .. }) | None => {}
        }
    }

    pub(crate) fn tell_ready(&self, client: ClientId, object: ObjectId, value: mobula_proto::Value) {
        if let Some(link) = self.open.get(&client) {
            link.outbox.push_raw(terse::ready_len(&value), |out| terse::write_ready(object, &value, out));
        }
    }

    /// What a client is told of a value that is here: where it lies in memory, or, if it lies in a file,
    /// that it exists.
    pub(crate) fn lend(&mut self, object: ObjectId, client: ClientId, value: Value) -> mobula_proto::Value {
        let Value::Shared { len, crc, .. } = value else { return wire(value) };
        match self.store.lend(object, Reader::Link(client)) {
            Some(Kept::Memory(place)) => wire(shared(place)),
            Some(Kept::File(_)) | None => {
                let output = Output { crc, size: len };
                mobula_proto::Value { value: Some(wire_value::Value::Elsewhere(output)) }
            }
        }
    }
}

/// The creator of transfers in the store: no link has this number.
pub(crate) const TRANSFER: Creator = 0;

fn store_full(error: &StoreError) -> Failure {
    Failure::new(FailureKind::FailureStoreFull, error.to_string())
}
