//! Who on this node refers to an object, and what its home is told of that (R6, R8; decision 14).
//!
//! A node *holds* an object at its home while one of its clients refers to it or a task that it keeps and
//! has not seen through names it. What it submits or what a driver of it puts it holds by the record
//! itself; else a `Name` says so, and a `Release` ends it. Whatever nobody here has a use for is
//! *tidied*: elided with its task (see [`crate::elide`]), released, kept as an idle copy, or forgotten.

use crate::core::{Core, KeptState, Record};
use crate::objects::{Object, State};
use crate::stream::{About, Ticket};
use crate::submit::named_objects;
use crate::types::{ClientId, Clients, Effect, Value};
use mobula_base::{Incarnation, JobId, ObjectId, ShardId, TaskId, mutant};
use mobula_proto::{Name, Release, StreamItem, TaskSpec, Unname, object_bytes, stream_item};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Idle copies that a shard is asked about at once.
pub const IDLE_MAX: usize = 1024;
/// Idle copies that are looked at for one question.
const IDLE_LOOK_MAX: usize = 8 * IDLE_MAX;
/// Bytes of an item about a reference, about.
const ITEM_BYTES: usize = 80;

/// What the home of an object has been told of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Home {
    /// Nothing, or that this node no longer holds it.
    #[default]
    Nothing,
    /// That this node holds it.
    Held,
    /// That it no longer does; the answer is awaited.
    Releasing,
}

/// Who has a use for an object, and who may know of it.
#[derive(Debug, Default)]
pub(crate) struct Refs {
    /// Clients whose programs refer to it.
    clients: Clients,
    /// Kept tasks that name it.
    named: u32,
    /// Runs of this node that use its value.
    used: u32,
    pub home: Home,
    /// It came into being on this node.
    pub origin: bool,
    /// A reference to it has left this node.
    pub left: bool,
    /// Another node that has a copy, as this one knows.
    pub copy_at: Option<Incarnation>,
    /// This node made it for another one, and no references lie inside.
    pub plain: bool,
    /// The record of a driver's put, while it may wait in its stream.
    pub put: Option<Box<Ticket>>,
    /// The node that it was brought from, and that has it as far as is known; of what was brought as a second
    /// copy on purpose, nobody.
    pub brought_from: Option<Incarnation>,
}

impl Refs {
    /// How many refer to it: clients' programs, kept tasks that name it, runs that use its value.
    pub fn counts(&self) -> (u32, u32, u32) {
        (self.clients.len() as u32, self.named, self.used)
    }

    /// Whether a task that is kept here names it, or one that runs here uses it.
    pub fn serves_tasks(&self) -> bool {
        self.named > 0 || self.used > 0
    }

    /// Whether this node must hold it.
    pub fn is_referred(&self) -> bool {
        !self.clients.is_empty() || self.named > 0
    }
}

/// References that a client dropped, and that count until what it took out of values is held.
#[derive(Debug)]
pub(crate) struct HeldBack {
    client: ClientId,
    objects: Vec<ObjectId>,
    pending: BTreeMap<ShardId, u64>,
}

impl Core {
    /// Whether references of a job are counted; else its objects stay until it ends.
    pub(crate) fn counts(&self, job: JobId) -> bool {
        self.counted.contains(&job)
    }

    /// A client refers to an object.
    pub(crate) fn refer(&mut self, client: ClientId, id: ObjectId, job: JobId) {
        for back in self.held_back.iter_mut().filter(|back| back.client == client) {
            back.objects.retain(|other| *other != id);
        }
        let refs = &mut self.object(id, job).refs;
        if !refs.clients.contains(&client) {
            refs.clients.push(client);
        }
        self.idle.remove(&id);
    }

    /// A client took references out of values: this node holds them, and nothing that the client drops
    /// from now on is released before that is acknowledged, nor is the task durable that runs in it.
    pub(crate) fn client_held(&mut self, client: ClientId, job: JobId, objects: Vec<ObjectId>) {
        if self.jobs_ended.contains(&job) {
            return;
        }
        for id in objects {
            self.refer(client, id, job);
            if self.counts(job) && self.objects[&id].refs.home != Home::Held {
                let ticket = self.name(id, job, None, false, true);
                let last = self.gates.entry(client).or_default().entry(ticket.shard).or_default();
                *last = ticket.number.max(*last);
                self.running_waits_for(client, ticket);
            }
        }
    }

    /// The task that a worker runs is not durable before what has this ticket.
    pub(crate) fn running_waits_for(&mut self, worker: ClientId, ticket: Ticket) {
        let running = self.workers.get(&worker).and_then(|w| w.queue.front()).copied();
        if let Some(run) = running.and_then(|task| self.runs.get_mut(&task)) {
            run.waits_for(ticket.shard, ticket.number);
        }
    }

    /// A client dropped its last references to these.
    pub(crate) fn client_dropped(&mut self, client: ClientId, objects: Vec<ObjectId>) {
        let streams = &self.streams;
        if let Some(gate) = self.gates.get_mut(&client) {
            gate.retain(|shard, number| !streams.are_committed(*shard, *number));
            if !gate.is_empty() && !mutant!("R8b") {
                let pending = gate.clone();
                return self.held_back.push(HeldBack { client, objects, pending });
            }
            self.gates.remove(&client);
        }
        for id in objects {
            self.unrefer(client, id);
        }
    }

    /// Some items were acknowledged: which dropped references count now?
    pub(crate) fn check_held_back(&mut self) {
        let streams = &self.streams;
        let open = |back: &HeldBack| {
            let mut pending = back.pending.iter();
            pending.any(|(shard, number)| !streams.are_committed(*shard, *number))
        };
        let (waiting, ready) = std::mem::take(&mut self.held_back).into_iter().partition(open);
        self.held_back = waiting;
        let ready: Vec<HeldBack> = ready;
        for back in ready {
            for id in back.objects {
                self.unrefer(back.client, id);
            }
        }
    }

    /// Some items were acknowledged: which puts have all their edges now?
    pub(crate) fn check_put_edges(&mut self) {
        let (streams, to_tidy) = (&self.streams, &mut self.to_tidy);
        self.put_edges.retain(|id, edges| {
            edges.retain(|ticket| !streams.is_committed(*ticket));
            if edges.is_empty() {
                to_tidy.push_back(*id);
            }
            !edges.is_empty()
        });
    }

    fn unrefer(&mut self, client: ClientId, id: ObjectId) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        object.refs.clients.retain(|other| *other != client);
        object.subscribers.retain(|other| *other != client);
        object.getters.retain(|other| *other != client);
        self.to_tidy.push_back(id);
    }

    /// A client is gone, and all its references with it. What it took out of values may lie inside what its
    /// earlier tasks made: what that was taken out of stays until it is held, as if the client had dropped it.
    pub(crate) fn forget_client_refs(&mut self, client: ClientId) {
        if mutant!("R8d") {
            self.gates.remove(&client);
            self.held_back.retain(|back| back.client != client);
        }
        let mut objects = self.objects.sorted_keys(|object| object.refs.clients.contains(&client));
        for id in &objects {
            if let Some(object) = self.objects.get_mut(id) {
                object.subscribers.retain(|other| *other != client);
                object.getters.retain(|other| *other != client);
            }
        }
        let back = self.held_back.iter().filter(|back| back.client == client);
        let waits: BTreeSet<ObjectId> = back.flat_map(|back| back.objects.iter().copied()).collect();
        objects.retain(|id| !waits.contains(id));
        self.client_dropped(client, objects);
        self.gates.remove(&client);
    }

    /// Tells the home of `id` of an edge from `by`, of a hold of this node, or of both.
    pub(crate) fn name(
        &mut self,
        id: ObjectId,
        job: JobId,
        by: Option<ObjectId>,
        contains: bool,
        hold: bool,
    ) -> Ticket {
        let refs = &mut self.object(id, job).refs;
        if hold {
            refs.home = Home::Held;
        }
        // Who reads the record or the value that it lies in is told of it.
        refs.left |= contains;
        let by = by.map(object_bytes).unwrap_or_default();
        let name = Name { object: object_bytes(id), by, contains, hold, job: job.0 };
        let item = StreamItem { item: Some(stream_item::Item::Name(name)) };
        let ticket = self.streams.push(item, ITEM_BYTES, About::Name(id));
        // Records and dropped references wait for it.
        self.streams.hurry_for(ticket.shard, ticket.number);
        ticket
    }

    /// A kept task names objects, each once: this node holds them, and they have an edge from the task.
    /// With each the ticket of its edge, if that was all it was sent for.
    pub(crate) fn name_for(&mut self, task: TaskId, spec: &TaskSpec) -> (Vec<Named>, Vec<Ticket>) {
        let job = JobId(spec.job);
        let (mut names, mut before) = (Vec::new(), Vec::new());
        for id in named_objects(spec) {
            let hold = self.begin_naming(id, job);
            let mut edge = None;
            if self.counts(job) {
                let ticket = self.name(id, job, Some(task.output(0)), false, hold);
                edge = (!hold).then_some(ticket);
                if !self.streams.is_in_order(id.task.run.slot(), task.run.slot()) {
                    before.push(ticket);
                }
            }
            names.push(Named { id, edge });
        }
        (names, before)
    }

    /// As [`Core::name_for`], for a task whose record has its edges.
    pub(crate) fn hold_for(&mut self, spec: &TaskSpec) -> Vec<Named> {
        let job = JobId(spec.job);
        let mut names = Vec::new();
        for id in named_objects(spec) {
            if self.begin_naming(id, job) && self.counts(job) {
                self.name(id, job, None, false, true);
            }
            names.push(Named { id, edge: None });
        }
        names
    }

    /// Whether a hold has to be told of.
    fn begin_naming(&mut self, id: ObjectId, job: JobId) -> bool {
        self.idle.remove(&id);
        let refs = &mut self.object(id, job).refs;
        refs.named += 1;
        refs.home != Home::Held
    }

    /// Takes a task out of what this node keeps, with its claims on what it names.
    pub(crate) fn forget_kept(&mut self, task: TaskId) {
        let Some(kept) = self.kept.get_mut(&task) else { return };
        let streamed = (crate::items::window(&kept.spec) > 0).then_some(kept.state);
        let (record, names) =
            (std::mem::replace(&mut kept.record, Record::Sent), std::mem::take(&mut kept.names));
        self.kept.discard(&task);
        self.cancelled.remove(&task);
        if let Some(state) = streamed {
            self.let_go_of_stream(task, state);
        }
        if let Record::Waits(waits) = record {
            // It was never sent, and will not be.
            self.streams.give_up(waits.ticket);
            self.awaiting_edges.remove(&task);
            self.recheck = true;
            self.unname(task, &names);
        }
        for Named { id, .. } in names {
            if let Some(object) = self.objects.get_mut(&id) {
                object.refs.named = object.refs.named.saturating_sub(1);
                self.to_tidy.push_back(id);
            }
        }
    }

    /// The record of a task will not come: its edges go, those that wait unsent.
    pub(crate) fn unname(&mut self, task: TaskId, names: &[Named]) {
        for Named { id, edge } in names {
            let counted = self.objects.get(id).is_some_and(|object| self.counted.contains(&object.job));
            if !counted || edge.is_some_and(|ticket| self.streams.withdraw(ticket)) {
                continue;
            }
            let unname = Unname { object: object_bytes(*id), by: object_bytes(task.output(0)) };
            let item = StreamItem { item: Some(stream_item::Item::Unname(unname)) };
            self.streams.push(item, ITEM_BYTES, About::Unname(*id));
        }
    }

    /// A run of this node uses the values of its arguments, or no longer does.
    pub(crate) fn use_args(&mut self, spec: &TaskSpec, begins: bool) {
        for id in crate::submit::arg_objects(spec) {
            let Some(object) = self.objects.get_mut(&id) else { continue };
            let used = &mut object.refs.used;
            if begins {
                *used += 1;
            } else {
                *used = used.saturating_sub(1);
                self.to_tidy.push_back(id);
            }
        }
    }

    /// Looks at all objects that somebody may have lost interest in.
    pub(crate) fn tidy_all(&mut self) {
        while let Some(id) = self.to_tidy.pop_front() {
            self.tidy(id);
        }
    }

    fn tidy(&mut self, id: ObjectId) {
        let Some(object) = self.objects.get(&id) else { return };
        if object.is_wanted() || object.refs.is_referred() || object.refs.used > 0 {
            return;
        }
        // What is being made again is looked at when that has ended.
        let is_awaited = self.recovering.get(&id.task).is_some_and(|awaited| awaited.contains(&id));
        if !self.counts(object.job) || is_awaited {
            return;
        }
        if let Some(kept) = self.kept.get(&id.task).filter(|_| !id.is_put()) {
            // What has not ended runs to its end, and is elided, or released once its end is recorded: a
            // replayed parent that submits it again until then finds it here.
            if kept.state == KeptState::Finishing {
                self.elide(id.task);
            }
            return;
        }
        match self.objects[&id].refs.home {
            // It ends its edges: they come first.
            Home::Held if self.put_edges.contains_key(&id) && !mutant!("R6c") => {}
            Home::Held => self.release(id),
            Home::Releasing => {}
            Home::Nothing => self.keep_idle_or_forget(id),
        }
    }

    /// This node holds it no longer.
    fn release(&mut self, id: ObjectId) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        let refs = &mut object.refs;
        if let Some(ticket) = refs.put.take().filter(|_| !refs.left)
            && self.streams.withdraw(*ticket)
        {
            self.recheck = true;
            return self.forget(id);
        }
        let takes_room = !matches!(object.state, State::Here(Value::Inline(_)));
        refs.home = Home::Releasing;
        // Nobody else can have a use for it.
        let private = refs.origin && !refs.left && refs.copy_at.is_none() && !self.copies.has(id);
        // From here on its record may go: whoever submits it again sends a new one.
        refs.origin = mutant!("W12");
        if private {
            self.discard(id);
        }
        let release = Release { object: object_bytes(id) };
        let item = StreamItem { item: Some(stream_item::Item::Release(release)) };
        let ticket = self.streams.push(item, ITEM_BYTES, About::Release(id));
        if takes_room {
            self.streams.hurry_for(ticket.shard, ticket.number);
        }
    }

    /// The home has taken note that this node no longer holds an object. `kept`: others need copies.
    pub(crate) fn released(&mut self, id: ObjectId, kept: bool) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        if object.refs.home != Home::Releasing {
            return;
        }
        object.refs.home = Home::Nothing;
        if kept {
            return self.to_tidy.push_back(id);
        }
        let mut others: Vec<Incarnation> =
            object.refs.copy_at.into_iter().chain(self.copies.places(id)).collect();
        others.retain(|node| *node != self.config.incarnation);
        if let State::Elsewhere { holders, .. } = &object.state {
            others.extend(holders);
        }
        others.sort_unstable();
        others.dedup();
        for node in others {
            self.freed_at.entry(node).or_default().push(id);
        }
        self.free(id);
    }

    /// Nobody needs these any more, unless somebody here does by now.
    pub(crate) fn freed(&mut self, objects: Vec<ObjectId>) {
        for id in objects {
            self.free(id);
        }
    }

    fn free(&mut self, id: ObjectId) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        object.replica = false;
        // Its task may make it yet: an element, for nobody.
        let is_made = object.state == State::Pending && id.element().is_none();
        let needed = object.is_wanted()
            || object.refs.is_referred()
            || object.refs.used > 0
            || object.refs.home != Home::Nothing
            || is_made;
        if !needed {
            self.forget(id);
        }
    }

    fn keep_idle_or_forget(&mut self, id: ObjectId) {
        let object = &self.objects[&id];
        match &object.state {
            State::Here(_) if object.refs.origin && !object.refs.left => self.forget(id),
            State::Here(_) => {
                if object.refs.brought_from.is_some() && !id.is_put() {
                    self.spare.insert(id);
                }
                self.idle.insert(id);
            }
            State::Pending if id.is_put() && self.kept.contains_key(&id.task) => {}
            State::Unknown
            | State::Locating
            | State::Pending
            | State::Elsewhere { .. }
            | State::Failed(_) => self.forget(id),
        }
    }

    /// Forgets an object, and its value with it.
    pub(crate) fn forget(&mut self, id: ObjectId) {
        self.discard(id);
        self.objects.discard(&id);
        self.idle.remove(&id);
        self.spare.remove(&id);
        self.copies.forget(id);
    }

    pub(crate) fn discard(&mut self, id: ObjectId) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        if let State::Here(value) = &object.state {
            if matches!(value, Value::Shared { .. }) {
                self.effects.push(Effect::Discard { object: id });
            }
            object.state = State::Unknown;
        }
    }

    /// Whether there are copies on this node that nobody here has a use for.
    pub fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Copies on this node that nobody here has a use for and whose home is `shard`; one after the other.
    pub fn idle(&mut self, shard: ShardId) -> Vec<ObjectId> {
        let after = self.idle_asked.get(&shard).map_or(Bound::Unbounded, |last| Bound::Excluded(*last));
        let look: Vec<ObjectId> =
            self.idle.range((after, Bound::Unbounded)).take(IDLE_LOOK_MAX).copied().collect();
        let ours = look.iter().filter(|id| self.shard_of(id.task) == shard);
        let most = self.bends.idle.unwrap_or(IDLE_MAX);
        let found: Vec<ObjectId> = ours.take(most).copied().collect();
        let last = if found.len() == most { found.last() } else { look.last() };
        match last.copied().filter(|_| look.len() == IDLE_LOOK_MAX || found.len() == most) {
            Some(last) => drop(self.idle_asked.insert(shard, last)),
            None => drop(self.idle_asked.remove(&shard)),
        }
        found
    }

    /// Copies of which there are others, for which nobody on this node has a use, and which can be made again:
    /// they are forgotten here, and their memory may be used. What was put stays: nothing makes it again
    /// should the other copy be gone by now.
    pub fn take_spare(&mut self) -> BTreeSet<ObjectId> {
        let mut spare = std::mem::take(&mut self.spare);
        spare.retain(|id| {
            // Somebody here may have come to use it since.
            let is_used =
                |object: &&Object| object.is_wanted() || object.refs.is_referred() || object.refs.used > 0;
            let object = self.objects.get(id).filter(|object| !is_used(object) || mutant!("W25"));
            let from = object.and_then(|object| object.refs.brought_from);
            self.idle.contains(id) && from.is_some_and(|node| self.members.contains_key(&node))
        });
        for id in &spare {
            self.objects.remove(id);
            self.idle.remove(id);
        }
        spare
    }

    pub(crate) fn flush_freed(&mut self) {
        for (to, objects) in std::mem::take(&mut self.freed_at) {
            if self.members.contains_key(&to) {
                self.effects.push(Effect::Freed { to, objects });
            }
        }
    }
}

/// An object that a kept task names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    pub id: ObjectId,
    /// The ticket of its edge, which may still be withdrawn.
    pub edge: Option<Ticket>,
}
