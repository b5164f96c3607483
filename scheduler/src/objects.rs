//! What this node knows of each object, and who waits for it.

use crate::copies::PUT_COPIES;
use crate::core::Core;
use crate::hedge::may_be_hedged;
use crate::recovery::Timer;
use crate::refs::{Home, Refs};
use crate::stream::About;
use crate::types::{ClientId, Clients, Effect, FetchError, Ready, Value};
use mobula_base::{Incarnation, JobId, ObjectId, TaskId, mutant};
use mobula_proto::{Failure, FailureKind, Output, SmallPut, StreamItem, object_bytes, stream_item};
use std::time::Duration;
use thin_vec::ThinVec;

/// Transfers under way at once.
pub const FETCHES_MAX: usize = 8;
/// How long a failed transfer or an unhelpful answer waits before the shard is asked again.
pub const RELOCATE_AFTER: Duration = Duration::from_millis(40);

/// What is known of an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// Nothing; nobody has been asked.
    Unknown,
    /// The home shard is being asked.
    Locating,
    /// Its task is kept by this node and has not finished.
    Pending,
    /// Other nodes hold it.
    Elsewhere { holders: Vec<Incarnation>, output: Output },
    /// This node holds it.
    Here(Value),
    /// It will never exist.
    Failed(Box<Failure>),
}

impl State {
    /// What is told to those who wait, if there is anything to tell.
    fn ready(&self) -> Option<Ready> {
        match self {
            State::Here(value) => Some(Ready::Here(value.clone())),
            State::Elsewhere { output, .. } => Some(Ready::Elsewhere(*output)),
            State::Failed(failure) => Some(Ready::Failed((**failure).clone())),
            State::Unknown | State::Locating | State::Pending => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Object {
    pub job: JobId,
    pub state: State,
    /// Kept tasks that take it as argument and wait until it exists.
    pub tasks_waiting: ThinVec<TaskId>,
    /// Runs of this node that need its bytes.
    pub runs_waiting: ThinVec<TaskId>,
    /// Clients that want to know that it exists.
    pub subscribers: Clients,
    /// Clients that want its bytes.
    pub getters: Clients,
    /// Bring a copy here although nobody asked.
    pub replica: bool,
    pub refs: Refs,
}

impl Object {
    fn wanted_here(&self) -> bool {
        self.replica || !self.runs_waiting.is_empty() || !self.getters.is_empty()
    }
    pub fn is_wanted(&self) -> bool {
        self.wanted_here() || !self.tasks_waiting.is_empty() || !self.subscribers.is_empty()
    }
    /// It is to be here, and nobody on this node needs it.
    pub fn is_only_copied(&self) -> bool {
        let nobody = self.runs_waiting.is_empty() && self.tasks_waiting.is_empty();
        self.replica && nobody && self.getters.is_empty() && self.subscribers.is_empty()
    }
}

/// How a value is put.
pub(crate) struct Putting {
    pub by_driver: bool,
    /// Objects whose references lie inside.
    pub contains: Vec<ObjectId>,
    /// On so many nodes it shall be; 0: nobody said.
    pub replicas: u32,
}

impl Core {
    pub(crate) fn object(&mut self, id: ObjectId, job: JobId) -> &mut Object {
        self.objects.get_or_insert_with(id, || Object {
            job,
            state: State::Unknown,
            tasks_waiting: ThinVec::new(),
            runs_waiting: ThinVec::new(),
            subscribers: Clients::new(),
            getters: Clients::new(),
            replica: false,
            refs: Refs::default(),
        })
    }

    /// Notes what is known now. Bytes that are here stay: runs may be counting on them.
    pub(crate) fn make_known(&mut self, id: ObjectId, job: JobId, state: State) {
        let object = self.object(id, job);
        if !matches!(object.state, State::Here(_)) {
            object.state = state;
        }
    }

    pub(crate) fn is_known(&self, id: ObjectId) -> bool {
        self.objects.get(&id).is_some_and(|o| !matches!(o.state, State::Unknown | State::Locating))
    }

    /// The value, if this node holds it: for transfers to other nodes.
    pub fn value_of(&self, id: ObjectId) -> Option<&Value> {
        match &self.objects.get(&id)?.state {
            State::Here(value) => Some(value),
            State::Unknown
            | State::Locating
            | State::Pending
            | State::Elsewhere { .. }
            | State::Failed(_) => None,
        }
    }

    /// Everything this node holds whose home is `shard`: its re-report after a leader change (R9).
    pub fn held(&self, shard: mobula_base::ShardId) -> Vec<ObjectId> {
        let mut held: Vec<ObjectId> = self
            .objects
            .iter()
            .filter(|(id, object)| self.shard_of(id.task) == shard && matches!(object.state, State::Here(_)))
            .map(|(id, _)| *id)
            .collect();
        held.sort_unstable();
        if mutant!("W5") {
            held.pop();
        }
        held
    }

    /// Tells `client` when the object exists, at once if it does.
    pub(crate) fn subscribe(&mut self, client: ClientId, id: ObjectId, job: JobId) {
        let object = self.object(id, job);
        match object.state.ready() {
            Some(ready) => self.effects.push(Effect::Ready { client, object: id, ready }),
            None => {
                object.subscribers.push(client);
                self.locate_if_unknown(id);
            }
        }
    }

    pub(crate) fn get(&mut self, client: ClientId, job: JobId, objects: Vec<ObjectId>, want_value: bool) {
        if self.jobs_ended.contains(&job) {
            for object in objects {
                let failure = Failure::new(FailureKind::FailureUnknownObject, "its job has ended");
                self.effects.push(Effect::Ready { client, object, ready: Ready::Failed(failure) });
            }
            return;
        }
        for id in objects {
            if want_value {
                match self.object(id, job).state.clone() {
                    State::Here(value) => {
                        self.effects.push(Effect::Ready { client, object: id, ready: Ready::Here(value) });
                    }
                    State::Failed(failure) => {
                        self.effects.push(Effect::Ready {
                            client,
                            object: id,
                            ready: Ready::Failed(*failure),
                        });
                    }
                    State::Unknown | State::Locating | State::Pending | State::Elsewhere { .. } => {
                        self.object(id, job).getters.push(client);
                        self.want_here(id);
                    }
                }
            } else {
                self.subscribe(client, id, job);
            }
        }
    }

    /// Moves towards having the bytes here.
    pub(crate) fn want_here(&mut self, id: ObjectId) {
        match self.objects.get(&id).map(|o| &o.state) {
            Some(State::Elsewhere { .. }) => {
                if !self.fetching.contains(&id) && !self.fetch_queue.contains(&id) {
                    self.fetch_queue.push_back(id);
                }
            }
            Some(State::Unknown) => self.locate_if_unknown(id),
            Some(State::Locating | State::Pending | State::Here(_) | State::Failed(_)) | None => {}
        }
    }

    pub(crate) fn start_fetches(&mut self) {
        while self.fetching.len() < self.bends.fetches.unwrap_or(FETCHES_MAX) {
            let Some(id) = self.fetch_queue.pop_front() else { return };
            let Some(object) = self.objects.get(&id) else { continue };
            if let State::Elsewhere { holders, output } = &object.state {
                // Spread readers of one object over its holders.
                let pick = (self.config.incarnation.0 as usize) % holders.len().max(1);
                if let Some(from) = holders.get(pick) {
                    let effect = Effect::Fetch { object: id, job: object.job, from: *from, output: *output };
                    self.effects.push(effect);
                    self.fetching.insert(id);
                }
            }
        }
    }

    pub(crate) fn fetched(&mut self, id: ObjectId, value: Value) {
        self.fetching.remove(&id);
        let Some(object) = self.objects.get_mut(&id) else {
            // Nobody wants it by now.
            self.effects.push(Effect::Discard { object: id });
            return;
        };
        if matches!(object.state, State::Here(_) | State::Failed(_)) {
            return;
        }
        let before = std::mem::replace(&mut object.state, State::Here(value));
        if let (State::Elsewhere { holders, .. }, false) = (before, object.replica) {
            object.refs.brought_from = holders.first().copied();
        }
        object.replica = false;
        self.effects.push(Effect::Held { object: id });
        self.announce(id);
    }

    pub(crate) fn fetch_failed(&mut self, id: ObjectId, from: Incarnation, why: FetchError) {
        self.fetching.remove(&id);
        let Some(object) = self.objects.get_mut(&id) else { return };
        if !mutant!("W11") {
            self.to_tidy.push_back(id);
        }
        match why {
            FetchError::StoreFull(text) => {
                let failure = Failure::new(FailureKind::FailureStoreFull, text);
                self.fail_waiting_here(id, &failure);
            }
            FetchError::Unreachable | FetchError::NotFound | FetchError::Corrupt => {
                if let State::Elsewhere { holders, .. } = &mut object.state {
                    holders.retain(|h| *h != from);
                    if holders.is_empty() {
                        object.state = State::Unknown;
                        if !mutant!("W3") {
                            self.set_timer(RELOCATE_AFTER, Timer::Relocate(id));
                        }
                    } else {
                        self.want_here(id);
                    }
                }
            }
        }
    }

    /// The bytes that lay here are no good any more: whoever wants them is brought others.
    pub(crate) fn copy_lost(&mut self, id: ObjectId) {
        if matches!(
            self.objects.get(&id).map(|object| &object.state),
            Some(State::Here(Value::Shared { .. }))
        ) {
            self.idle.remove(&id);
            if let Some(object) = self.objects.get_mut(&id).filter(|_| self.copies.has(id)) {
                object.replica = true;
            }
            self.forget_place(id);
            self.end_whoever_put(id);
        }
    }

    /// What a task has put is made again only by its next attempt. Should the one that runs here wait for whoever
    /// needs it, both would wait for ever: it ends.
    fn end_whoever_put(&mut self, id: ObjectId) {
        let is_put = id.is_put() && id.element().is_none();
        let run = self.runs.get(&id.task).filter(|_| is_put && !mutant!("W28"));
        let Some(worker) = run.and_then(|run| run.given) else { return };
        if self.workers.get(&worker).is_some_and(|w| w.queue.front() == Some(&id.task)) {
            self.effects.push(Effect::Kill { worker });
        }
    }

    /// An earlier life of this node has left a copy. Nobody here has a use for it yet: its home is asked.
    pub(crate) fn attached(&mut self, id: ObjectId, job: JobId, value: Value) {
        if self.jobs_ended.contains(&job) {
            return self.effects.push(Effect::Discard { object: id });
        }
        let object = self.object(id, job);
        if matches!(object.state, State::Here(_) | State::Failed(_)) {
            return;
        }
        object.state = State::Here(value);
        object.refs.left = true;
        self.effects.push(Effect::Held { object: id });
        self.announce(id);
    }

    /// The object exists (or failed): tells everyone who waited.
    pub(crate) fn announce(&mut self, id: ObjectId) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        let Some(ready) = object.state.ready() else { return };
        if self.to_tidy.back() != Some(&id) {
            self.to_tidy.push_back(id);
        }
        let subscribers = std::mem::take(&mut object.subscribers);
        for client in subscribers.iter().copied() {
            self.effects.push(Effect::Ready { client, object: id, ready: ready.clone() });
        }
        let tasks = std::mem::take(&mut object.tasks_waiting);
        let here = !matches!(ready, Ready::Elsewhere(_));
        // Of what will never exist there is no second copy; and a small value may have come with a task.
        if object.replica && here {
            object.replica = false;
            if let Ready::Here(_) = ready {
                self.effects.push(Effect::Held { object: id });
            }
        }
        let (runs, getters) = if here {
            (std::mem::take(&mut object.runs_waiting), std::mem::take(&mut object.getters))
        } else {
            (ThinVec::new(), Clients::new())
        };
        let wanted_here = object.wanted_here();
        if wanted_here {
            self.want_here(id);
        }
        // Who submitted it and waits for its value is told once.
        for client in getters.into_iter().filter(|client| !subscribers.contains(client)) {
            self.effects.push(Effect::Ready { client, object: id, ready: ready.clone() });
        }
        match ready {
            Ready::Failed(failure) => {
                let failure = crate::submit::dependency_failed(id, &failure);
                self.to_fail.extend(tasks.into_iter().chain(runs).map(|task| (task, failure.clone())));
            }
            Ready::Here(_) | Ready::Elsewhere(_) => {
                for task in tasks {
                    self.dep_ready(task);
                }
                for task in runs {
                    self.arg_here(task);
                }
            }
        }
    }

    fn fail_waiting_here(&mut self, id: ObjectId, failure: &Failure) {
        let waits = self.copy_has_no_room(id);
        let Some(object) = self.objects.get_mut(&id) else { return };
        object.replica &= waits;
        let getters = std::mem::take(&mut object.getters);
        for client in getters {
            self.effects.push(Effect::Ready { client, object: id, ready: Ready::Failed(failure.clone()) });
        }
        for task in std::mem::take(&mut self.objects.get_mut(&id).expect("just seen").runs_waiting) {
            self.fail_run(task, failure.clone());
        }
    }

    /// Asks the home shard, unless that is under way or unnecessary.
    pub(crate) fn locate_if_unknown(&mut self, id: ObjectId) {
        if let Some(object) = self.objects.get_mut(&id)
            && object.state == State::Unknown
        {
            object.state = State::Locating;
            let shard = self.shard_of(id.task);
            self.to_locate.entry(shard).or_default().insert(id);
        }
    }

    /// The object's whereabouts are no longer known; asks again if anybody wants it.
    pub(crate) fn forget_place(&mut self, id: ObjectId) {
        if let Some(object) = self.objects.get_mut(&id) {
            object.state = State::Unknown;
            if object.is_wanted() {
                self.locate_if_unknown(id);
            } else {
                self.to_tidy.push_back(id);
            }
        }
    }

    pub(crate) fn put(&mut self, client: ClientId, id: ObjectId, job: JobId, value: Value, putting: Putting) {
        let Putting { by_driver, contains, replicas } = putting;
        if self.jobs_ended.contains(&job) {
            return;
        }
        self.refer(client, id, job);
        let object = self.object(id, job);
        object.state = State::Here(value.clone());
        object.refs.origin = true;
        // What lies inside is to be on record also where references are not counted (R4).
        let has_refs = !contains.is_empty() && (self.counts(job) || !mutant!("W51"));
        let contains = if self.counts(job) { contains } else { Vec::new() };
        if by_driver {
            self.keep_put_safe(id, job, value, contains, replicas);
        } else {
            self.put_in_task(client, id, job, contains);
            if self.runs.get(&id.task).is_some_and(|run| may_be_hedged(&run.spec)) {
                self.breaks_its_word(id.task);
            }
            if replicas > 0 {
                let output = value.output(self.config.crc);
                match has_refs {
                    false => self.begin_copies(id, job, replicas, output),
                    true => self.begin_copies_later(id, job, replicas, output),
                }
            }
            self.item_put(client, id, &value, has_refs);
        }
        self.announce(id);
    }

    /// The task that a worker runs has put a value: the task makes it again should it be lost. Its
    /// done-record names what the value contains, and comes after the hold and the edges (R6).
    fn put_in_task(&mut self, worker: ClientId, id: ObjectId, job: JobId, contains: Vec<ObjectId>) {
        self.effects.push(Effect::Held { object: id });
        if !self.counts(job) {
            return;
        }
        let hold = self.name(id, job, None, false, true);
        self.running_waits_for(worker, hold);
        for inner in contains.iter().copied() {
            let edge = self.name(inner, job, Some(id.task.output(0)), true, false);
            self.running_waits_for(worker, edge);
        }
        if let Some(run) = self.runs.get_mut(&id.task) {
            run.contains.extend(contains);
        }
        if let Some(kept) = self.kept.get_mut(&id.task) {
            kept.shared = true;
        }
    }

    /// A driver's `put` has no task behind it: its record is in the store, small values with it; large
    /// ones get a second copy (R6, default k = 2), or as many as it was put with.
    fn keep_put_safe(
        &mut self,
        id: ObjectId,
        job: JobId,
        value: Value,
        contains: Vec<ObjectId>,
        replicas: u32,
    ) {
        let simple = contains.is_empty();
        if !simple {
            let edges = contains.iter().map(|inner| self.name(*inner, job, Some(id), true, false)).collect();
            self.put_edges.insert(id, edges);
        }
        let output = value.output(self.config.crc);
        let mut put = SmallPut { object: object_bytes(id), job: job.0, ..Default::default() };
        put.contains = contains.into_iter().map(object_bytes).collect();
        let bytes = match &value {
            Value::Inline(value) => {
                put.value = value.clone();
                value.len() + 40
            }
            Value::Shared { .. } => {
                (put.large, put.output) = (true, Some(output));
                60
            }
        };
        let large = put.large;
        if !large || self.counts(job) {
            let item = StreamItem { item: Some(stream_item::Item::Put(put)) };
            let ticket = self.streams.push(item, bytes, About::Put(id));
            let refs = &mut self.object(id, job).refs;
            (refs.home, refs.put) = (Home::Held, (simple && !large).then(|| Box::new(ticket)));
        }
        if large {
            self.effects.push(Effect::Held { object: id });
            let want = if replicas > 0 { replicas } else { PUT_COPIES };
            self.begin_copies(id, job, want, output);
        }
    }
}
