//! What the store of a node decides is done, as in `node::room`: answers to whoever asked for room or for values,
//! files that are written, read and removed on a simulated disk.

use super::life::{Given, Input, Life, Seen, TRANSFER, Told};
use super::node::{LINK, shared};
use super::program::{Content, JOB};
use super::world::{What, World};
use mobula_base::{Incarnation, ObjectId, TaskId};
use mobula_objstore::depot::{Effect as Deed, File, Kept, Ticket};
use mobula_objstore::spill_file::FileId;
use mobula_objstore::table::Place;
use mobula_objstore::{Reader, StoreError};
use mobula_proto::{Failure, FailureKind, Output};
use mobula_scheduler::{ClientId, Event, FetchError, TaskOutcome, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::discriminant;
use std::time::Duration;

/// Pause before a disk that took no file is tried again.
const DISK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Who asked the store for something, and waits.
pub enum Asked {
    /// A client wants room for an object.
    Room { client: ClientId, object: ObjectId },
    /// A transfer does; its bytes are on their way.
    Transfer { object: ObjectId, from: Incarnation, content: Content, takes: Duration, breaks: bool },
    /// A client wants to look at an object.
    Look { client: ClientId, object: ObjectId },
    /// The first of what is to be given to a worker.
    Run { worker: ClientId },
}

/// A task that is to be given to a worker once its arguments are in memory.
pub struct Order {
    task: TaskId,
    given: Given,
    /// Those of its arguments that lie in shared memory, in their order.
    objects: Vec<ObjectId>,
    /// What its worker is to hear of it right after: of each kind the last.
    behind: Vec<Told>,
}

/// What waits for the store.
#[derive(Default)]
pub struct Waiting {
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

/// A disk for objects that left memory. It outlives the processes of its machine, mostly.
#[derive(Default)]
pub struct Disk {
    /// What is in each file, and whether it is as it was written.
    pub files: BTreeMap<FileId, (File, Content, bool)>,
    /// It takes no files until then.
    pub refuses: mobula_base::Instant,
}

/// What the store has of an object as a value of the core.
pub fn kept(kept: Kept) -> Value {
    let (len, crc) = kept.output();
    match kept {
        Kept::Memory(place) => shared(place),
        Kept::File(_) => Value::Shared { offset: 0, len, crc },
    }
}

fn store_full(error: &StoreError) -> Failure {
    Failure::new(FailureKind::FailureStoreFull, error.to_string())
}

impl Life {
    /// A client asks for room for a value.
    pub fn ask_room(&mut self, client: ClientId, object: ObjectId, len: u64) {
        let ticket = self.waiting.ask(Asked::Room { client, object });
        self.store.want_room(ticket, object, len, JOB, client);
    }

    /// A transfer asks for room.
    pub fn reserve(&mut self, object: ObjectId, asked: Asked, len: u64) {
        let ticket = self.waiting.ask(asked);
        self.store.want_room(ticket, object, len, JOB, TRANSFER);
    }

    /// A client wants to look at what lies in a file alone: it is read back. False if that is not so.
    pub fn look(&mut self, client: ClientId, object: ObjectId) -> bool {
        let counts = matches!(self.core.value_of(object), Some(Value::Shared { .. }));
        if !counts || !matches!(self.store.get(object), Some(Kept::File(_))) {
            return false;
        }
        let ticket = self.waiting.ask(Asked::Look { client, object });
        self.store.want_here(ticket, Reader::Link(client), vec![object]);
        true
    }

    fn wait_for_args(&mut self, worker: ClientId, orders: VecDeque<Order>) {
        let Some(Order { task, objects, .. }) = orders.front() else { return };
        let (reader, objects) = (Reader::Task(worker, *task), objects.clone());
        let ticket = self.waiting.ask(Asked::Run { worker });
        self.waiting.orders.insert(worker, (ticket, orders));
        self.store.want_here(ticket, reader, objects);
    }

    /// What a worker was to be given and has not got: it is taken back.
    pub fn not_given(&mut self, worker: ClientId) -> Vec<TaskId> {
        let Some((ticket, orders)) = self.waiting.orders.remove(&worker) else { return Vec::new() };
        self.waiting.asked.remove(&ticket);
        self.store.cancel(&BTreeSet::from([ticket]));
        orders.into_iter().map(|order| order.task).collect()
    }

    /// What a worker is to be told next.
    pub fn first_order(&self, worker: ClientId) -> Option<TaskId> {
        self.waiting.orders.get(&worker)?.1.front().map(|order| order.task)
    }

    fn next_order(&mut self, worker: ClientId) -> Option<Order> {
        self.waiting.orders.get_mut(&worker)?.1.pop_front()
    }

    /// A link is gone: nobody answers it any more.
    pub fn forget_asker(&mut self, gone: ClientId) {
        self.waiting.orders.remove(&gone);
        self.waiting.asked.retain(|_, asked| match asked {
            Asked::Room { client, .. } | Asked::Look { client, .. } | Asked::Run { worker: client } => {
                *client != gone
            }
            Asked::Transfer { .. } => true,
        });
    }

    /// Somebody is told where a value lies; what lies in a file is told to exist.
    pub fn lend(&mut self, object: ObjectId, client: ClientId, value: Value) -> Seen {
        let Value::Shared { len, crc, .. } = value else { return Seen::Here(value) };
        match self.store.lend(object, Reader::Link(client)) {
            Some(Kept::Memory(place)) => Seen::Here(shared(place)),
            Some(Kept::File(_)) | None => Seen::Elsewhere(Output { crc, size: len }),
        }
    }
}

impl World {
    /// The core gives a task to a worker: it gets it once its arguments are in memory, and after whatever it
    /// was given before.
    pub(super) fn give(
        &mut self,
        machine: usize,
        epoch: u64,
        worker: ClientId,
        task: TaskId,
        given: Given,
        objects: Vec<ObjectId>,
    ) {
        let Some(life) = self.life(machine, epoch) else { return };
        let order = Order { task, given, objects, behind: Vec::new() };
        // One that has gone, of which the daemon does not know yet, is told in vain.
        let is_gone = !life.clients.contains_key(&worker);
        match life.waiting.orders.get_mut(&worker) {
            Some((_, orders)) => orders.push_back(order),
            None if order.objects.is_empty() || is_gone => self.give_now(machine, epoch, worker, order, &[]),
            None => life.wait_for_args(worker, VecDeque::from([order])),
        }
    }

    fn give_now(&mut self, machine: usize, epoch: u64, worker: ClientId, order: Order, places: &[Place]) {
        let mut given = order.given;
        let mut places = places.iter();
        for value in given.args.iter_mut().filter(|value| matches!(value, Value::Shared { .. })) {
            if let Some(place) = places.next() {
                *value = shared(*place);
            }
        }
        for told in std::iter::once(Told::Run(given)).chain(order.behind) {
            self.queue.after(LINK, What::ToClient { machine, epoch, client: worker, told });
        }
    }

    /// A worker hears something of a task that it was given: behind the task, should that still wait.
    pub(super) fn tell_of(&mut self, machine: usize, epoch: u64, client: ClientId, task: TaskId, told: Told) {
        let Some(life) = self.life(machine, epoch) else { return };
        let waiting = life.waiting.orders.get_mut(&client);
        if let Some(order) =
            waiting.and_then(|(_, orders)| orders.iter_mut().find(|order| order.task == task))
        {
            order.behind.retain(|other| discriminant(other) != discriminant(&told));
            order.behind.push(told);
            return self.sometimes.hit("worker told of what waited for its arguments");
        }
        self.queue.after(LINK, What::ToClient { machine, epoch, client, told });
    }

    /// Goes on with what a worker is to be given.
    fn give_on(&mut self, machine: usize, epoch: u64, worker: ClientId) {
        let Some(life) = self.life(machine, epoch) else { return };
        let Some((_, mut orders)) = life.waiting.orders.remove(&worker) else { return };
        while orders.front().is_some_and(|order| order.objects.is_empty()) {
            if let Some(order) = orders.pop_front() {
                self.give_now(machine, epoch, worker, order, &[]);
            }
        }
        if let (false, Some(life)) = (orders.is_empty(), self.life(machine, epoch)) {
            life.wait_for_args(worker, orders);
        }
    }

    /// Lets the store decide, and does what it says.
    pub(super) fn turn_store(&mut self, machine: usize, epoch: u64, events: &mut Vec<Event>) {
        let Some(life) = self.life(machine, epoch) else { return };
        if life.store.is_tight() {
            for object in life.core.take_spare() {
                self.sometimes.hit("spare copy dropped for room");
                let Some(life) = self.life(machine, epoch) else { return };
                life.store.discard(object);
                self.tell_home(machine, epoch, object, false);
            }
        }
        // What is done may ask the store for more, which it may have at once.
        loop {
            let mut deeds = Vec::new();
            let Some(life) = self.life(machine, epoch) else { return };
            life.store.turn(&mut deeds);
            if deeds.is_empty() {
                break;
            }
            for deed in deeds {
                self.do_deed(machine, epoch, deed, events);
            }
        }
    }

    fn do_deed(&mut self, machine: usize, epoch: u64, deed: Deed, events: &mut Vec<Event>) {
        match deed {
            Deed::Waits { ticket } => {
                self.sometimes.hit("waited for room");
                let Some(life) = self.life(machine, epoch) else { return };
                if let Some(Asked::Room { client, object }) = life.waiting.asked.get(&ticket) {
                    let (client, told) = (*client, Told::RoomWaits(*object));
                    self.queue.after(LINK, What::ToClient { machine, epoch, client, told });
                }
            }
            Deed::Room { ticket, room } => self.room(machine, epoch, ticket, room, events),
            Deed::Here { ticket, places } => self.here(machine, epoch, ticket, &places),
            Deed::Missing { ticket, object } => self.is_missing(machine, epoch, ticket, object, events),
            Deed::Refused { ticket, error } => self.refused(machine, epoch, ticket, &error, events),
            Deed::Write { object, file, offset } => self.write(machine, epoch, object, file, offset),
            Deed::Read { object, file, offset } => {
                let takes = self.disk_takes(machine, file.len);
                self.queue.after(takes, What::FileRead { machine, epoch, object, file, offset });
            }
            Deed::Remove { file } => drop(self.machines[machine].disk.files.remove(&file)),
            Deed::Lost { object } => {
                self.sometimes.hit("file of a value was damaged");
                self.tell_home(machine, epoch, object, false);
                events.push(Event::CopyLost { object });
            }
            Deed::Recall { link, objects } => {
                let told = Told::Recall(objects);
                self.queue.after(LINK, What::ToClient { machine, epoch, client: link, told });
            }
            Deed::Pause => {
                self.queue.after(DISK_AGAIN_AFTER, What::Input { machine, epoch, input: Input::DiskAgain });
            }
        }
    }

    fn disk_takes(&mut self, machine: usize, bytes: u64) -> Duration {
        let (low, high) = self.options.disk_us.unwrap_or((100, 1_000));
        let takes = self.dice.us(low, high) + Duration::from_nanos(bytes * 2);
        self.slowed(machine, takes)
    }

    fn write(&mut self, machine: usize, epoch: u64, object: ObjectId, file: File, offset: u64) {
        let takes = self.disk_takes(machine, file.len);
        let Some(life) = self.life(machine, epoch) else { return };
        let Some(content) = life.memory.get(&offset).cloned() else {
            return self.judges.harness(format!("{object} is written from {offset}, where nothing is"));
        };
        self.queue.after(takes, What::FileWritten { machine, epoch, object, file, content });
    }

    /// A file is durable, unless the disk does not take it.
    pub(super) fn file_written(
        &mut self,
        machine: usize,
        epoch: u64,
        object: ObjectId,
        file: File,
        content: Content,
    ) {
        if self.life(machine, epoch).is_none() {
            return;
        }
        let now = self.now();
        let disk = &mut self.machines[machine].disk;
        // Some things shrink: nothing but the count of bytes depends on it.
        let packed = file.number.is_multiple_of(2).then_some(file.len / 2);
        let outcome = if disk.refuses > now { Err(()) } else { Ok(packed) };
        if outcome.is_ok() {
            let file = File { packed, ..file };
            disk.files.insert(file.id(object), (file, content, true));
            self.sometimes.hit("value left memory for a file");
        } else {
            self.sometimes.hit("disk took no file");
        }
        self.input(machine, epoch, Input::FileWritten { object, outcome });
    }

    /// A file was read, unless it is damaged.
    pub(super) fn file_read(
        &mut self,
        machine: usize,
        epoch: u64,
        object: ObjectId,
        file: File,
        offset: u64,
    ) {
        let stored = self.machines[machine].disk.files.get(&file.id(object));
        let content = stored.filter(|(_, _, whole)| *whole).map(|(_, content, _)| content.clone());
        let Some(life) = self.life(machine, epoch) else { return };
        let outcome = content.map(|content| drop(life.memory.insert(offset, content))).ok_or(());
        if outcome.is_ok() {
            self.sometimes.hit("value came back from its file");
        }
        self.input(machine, epoch, Input::FileRead { object, outcome });
    }

    fn asked(&mut self, machine: usize, epoch: u64, ticket: Ticket) -> Option<Asked> {
        self.life(machine, epoch)?.waiting.asked.remove(&ticket)
    }

    fn room(
        &mut self,
        machine: usize,
        epoch: u64,
        ticket: Ticket,
        room: Result<u64, StoreError>,
        events: &mut Vec<Event>,
    ) {
        if matches!(
            room,
            Err(StoreError::TooLarge { .. } | StoreError::Crowded { .. } | StoreError::Full { .. })
        ) {
            self.judges.cause.store_full = true;
        }
        match self.asked(machine, epoch, ticket) {
            Some(Asked::Room { client, object }) => {
                let room = match room {
                    Ok(_) => Ok(None),
                    Err(StoreError::Exists(place)) => Ok(Some(place.crc)),
                    Err(error) => Err(store_full(&error)),
                };
                let told = Told::Created { object, room };
                self.queue.after(LINK, What::ToClient { machine, epoch, client, told });
            }
            Some(Asked::Transfer { object, from, content, takes, breaks }) => {
                let failed = |why| Event::FetchFailed { object, from, why };
                match room {
                    Ok(offset) => {
                        let input = Input::Filled { object, from, offset, content, breaks };
                        self.queue.after(takes, What::Input { machine, epoch, input });
                    }
                    Err(StoreError::Exists(place)) => {
                        events.push(Event::Fetched { object, value: shared(place) });
                    }
                    Err(StoreError::Busy | StoreError::JobEnded) => {
                        events.push(failed(FetchError::Unreachable))
                    }
                    Err(error) => {
                        self.sometimes.hit("store full");
                        events.push(failed(FetchError::StoreFull(error.to_string())));
                    }
                }
            }
            Some(Asked::Look { .. } | Asked::Run { .. }) | None => {}
        }
    }

    fn here(&mut self, machine: usize, epoch: u64, ticket: Ticket, places: &[Place]) {
        match self.asked(machine, epoch, ticket) {
            Some(Asked::Look { client, object }) => {
                if let Some(place) = places.first() {
                    let told = Told::Ready { object, value: Seen::Here(shared(*place)) };
                    self.queue.after(LINK, What::ToClient { machine, epoch, client, told });
                }
            }
            Some(Asked::Run { worker }) => {
                let order = self.life(machine, epoch).and_then(|life| life.next_order(worker));
                if let Some(order) = order {
                    self.give_now(machine, epoch, worker, order, places);
                    self.give_on(machine, epoch, worker);
                }
            }
            Some(Asked::Room { .. } | Asked::Transfer { .. }) | None => {}
        }
    }

    /// An object that somebody waits for is not here any more: it is brought as if it never had been.
    fn is_missing(
        &mut self,
        machine: usize,
        epoch: u64,
        ticket: Ticket,
        object: ObjectId,
        events: &mut Vec<Event>,
    ) {
        self.sometimes.hit("value had gone when it was to be read back");
        events.push(Event::CopyLost { object });
        match self.asked(machine, epoch, ticket) {
            Some(Asked::Look { client, object }) => {
                events.push(Event::Get { client, job: JOB, objects: vec![object], want_value: true });
            }
            Some(Asked::Run { worker }) => {
                let order = self.life(machine, epoch).and_then(|life| life.next_order(worker));
                if let Some(order) = order {
                    events.push(Event::NotGiven { worker, tasks: vec![order.task] });
                    self.give_on(machine, epoch, worker);
                }
            }
            Some(Asked::Room { .. } | Asked::Transfer { .. }) | None => {}
        }
    }

    fn refused(
        &mut self,
        machine: usize,
        epoch: u64,
        ticket: Ticket,
        error: &StoreError,
        events: &mut Vec<Event>,
    ) {
        self.judges.cause.store_full = true;
        match self.asked(machine, epoch, ticket) {
            Some(Asked::Look { client, object }) => {
                let told = Told::Ready { object, value: Seen::Failed(store_full(error)) };
                self.queue.after(LINK, What::ToClient { machine, epoch, client, told });
            }
            Some(Asked::Run { worker }) => {
                let order = self.life(machine, epoch).and_then(|life| life.next_order(worker));
                if let Some(order) = order {
                    let message = format!("the arguments of the task have no room in shared memory: {error}");
                    let value = Err(Failure::new(FailureKind::FailureStoreFull, message));
                    let (task, attempt) = (order.task, order.given.attempt);
                    let outcome = TaskOutcome {
                        elements: Default::default(),
                        task,
                        attempt,
                        value,
                        contains: Vec::new(),
                        ran_ns: 0,
                    };
                    self.judges.ended.finished(
                        task,
                        attempt,
                        self.machines[machine].life.as_ref().map_or(0, |l| l.incarnation.0),
                    );
                    events.push(Event::Finished { worker, outcomes: vec![outcome] });
                    self.give_on(machine, epoch, worker);
                }
            }
            Some(Asked::Room { .. } | Asked::Transfer { .. }) | None => {}
        }
    }

    /// A transfer has filled its room, or broke off.
    pub(super) fn filled(
        &mut self,
        machine: usize,
        object: ObjectId,
        from: Incarnation,
        filled: (u64, Content),
        breaks: bool,
    ) -> Event {
        let why = if breaks { FetchError::Unreachable } else { FetchError::NotFound };
        let failed = Event::FetchFailed { object, from, why };
        let Some(life) = self.machines[machine].life.as_deref_mut() else { return failed };
        if breaks {
            life.store.abort(object, TRANSFER);
            self.sometimes.hit("fetch repeated");
            return failed;
        }
        let (offset, content) = filled;
        let crc = content.crc();
        let Ok(place) = life.store.seal(object, crc, TRANSFER) else { return failed };
        life.memory.insert(offset, content);
        life.fresh.push(object);
        Event::Fetched { object, value: shared(place) }
    }

    /// Takes up what an earlier life has left of a job that goes on, and removes the rest.
    pub(super) fn attach_found(&mut self, machine: usize, epoch: u64, events: &mut Vec<Event>) {
        let Some(life) = self.life(machine, epoch) else { return };
        let mut gone = Vec::new();
        let found = life.found.take();
        let early = std::mem::take(&mut life.early_reports);
        for (object, file) in found.into_iter().flatten() {
            if life.has_job && life.store.attach(object, file) {
                life.attached.insert(object);
                events.push(Event::Attached { object, job: file.job, value: kept(Kept::File(file)) });
            } else {
                gone.push(file.id(object));
            }
        }
        if !events.is_empty() {
            self.sometimes.hit("copy of an earlier life taken up");
        }
        for file in gone {
            self.machines[machine].disk.files.remove(&file);
        }
        for (shard, term, deaths) in early {
            self.input(machine, epoch, Input::ReportAll { shard, term, deaths });
        }
    }

    /// What an earlier life has left may be of an attempt that never was recorded: then it is no copy.
    pub(super) fn check_attached(&mut self, machine: usize, epoch: u64, object: ObjectId, want: Output) {
        let Some(life) = self.life(machine, epoch) else { return };
        if want.size == 0 || !life.attached.remove(&object) {
            return;
        }
        if life.store.get(object).is_some_and(|kept| kept.output() != (want.size, want.crc)) {
            life.store.discard(object);
            self.sometimes.hit("copy of an earlier life was another value");
            self.tell_home(machine, epoch, object, false);
            self.input(machine, epoch, Input::Core(Event::CopyLost { object }));
        }
    }
}
