//! The shell around a node's core, as `node` has it: what comes in becomes events, effects are performed.

use super::calls::IDLE_EVERY;
use super::judge::Judges;
use super::life::{DRIVER, Given, Input, Seen, Told};
use super::program::{Content, GARBAGE, JOB};
use super::room::Asked;
use super::world::{What, World};
use mobula_base::{Incarnation, JobId, ObjectId};
use mobula_objstore::Reader;
use mobula_objstore::depot::Kept;
use mobula_objstore::table::Place as Room;
use mobula_proto::{
    ClusterView, Output, PeerMsg, TaskSpec, arg, object_bytes, object_id, peer_msg, task_bytes, task_id,
};
use mobula_scheduler::{ClientId, Effect, Event, FetchError, Ready, Value};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A message between a client and its daemon takes this long.
pub const LINK: Duration = Duration::from_micros(30);
/// A node that was declared dead joins again after this.
const REJOIN_AFTER: Duration = Duration::from_millis(200);

pub(super) fn shared(room: Room) -> Value {
    Value::Shared { offset: room.offset, len: room.len, crc: room.crc }
}

impl World {
    /// Something comes into a daemon's inbox.
    pub fn input(&mut self, machine: usize, epoch: u64, input: Input) {
        let turn = self.options.turn_us;
        let Some(life) = self.life(machine, epoch) else { return };
        life.inbox.push(input);
        if !std::mem::replace(&mut life.turning, true) {
            let takes = Duration::from_micros(self.dice.below(turn));
            let takes = self.slowed(machine, takes);
            self.queue.after(takes, What::Turn { machine, epoch });
        }
    }

    /// A daemon looks at all that has come, and steps its core.
    pub fn turn(&mut self, machine: usize, epoch: u64) {
        let now = self.now();
        let Some(life) = self.life(machine, epoch) else { return };
        // A tick comes when nothing else did.
        let ticks = life.tick.is_some_and(|at| at <= now);
        if ticks {
            life.tick = None;
        }
        if !life.turning && !ticks {
            return;
        }
        life.turning = false;
        let inputs = std::mem::take(&mut life.inbox);
        let count = inputs.len() as u64;
        let mut events = std::mem::take(&mut life.events);
        let incarnation = life.incarnation.0;
        for input in inputs {
            self.take(machine, epoch, input, &mut events);
        }
        self.note("turn", machine as u64, incarnation, count, String::new);
        let Some(life) = self.life(machine, epoch) else { return };
        if life.fenced {
            return self.rejoin(machine);
        }
        // What is not in the store after all is news for the core; mostly there is none.
        loop {
            self.step(machine, epoch, &mut events);
            if events.is_empty() {
                break;
            }
        }
        let Some(life) = self.life(machine, epoch) else { return };
        life.events = events;
        life.forget_freed();
        let waiting = life.core.urgent_waiting();
        self.judges.outrank.stepped(incarnation, waiting);
        let Some(life) = self.life(machine, epoch) else { return };
        life.acted = life.view_version;
        if std::mem::take(&mut life.has_buried) {
            self.poke_reporters(machine, epoch, Duration::ZERO);
        }
        self.schedule_tick(machine, epoch);
        self.ask_about_idle(machine, epoch);
    }

    /// The core takes events, and what it decides is done; what the store has to say of that are events again.
    fn step(&mut self, machine: usize, epoch: u64, events: &mut Vec<Event>) {
        let now = self.now();
        let Some(life) = self.life(machine, epoch) else { return events.clear() };
        let incarnation = life.incarnation.0;
        let mut effects = Vec::new();
        if self.trace.wants_details() {
            for event in events.iter() {
                self.trace.detail(now, machine as u64, incarnation, super::explain::event_text(event));
            }
        }
        let Some(life) = self.life(machine, epoch) else { return };
        life.core.step(events.drain(..), now, &mut effects);
        for effect in effects {
            if self.trace.wants_details() {
                self.trace.detail(now, machine as u64, incarnation, super::explain::effect_text(&effect));
            }
            self.perform(machine, epoch, effect);
        }
        self.made_after_all(machine, epoch);
        let Some(life) = self.life(machine, epoch) else { return };
        life.discard_strays();
        self.turn_store(machine, epoch, events);
    }

    fn schedule_tick(&mut self, machine: usize, epoch: u64) {
        let Some(life) = self.life(machine, epoch) else { return };
        let Some(deadline) = life.core.deadline() else { return };
        if life.tick.is_none_or(|at| at > deadline) {
            life.tick = Some(deadline);
            self.queue.at(deadline, What::Turn { machine, epoch });
        }
    }

    /// This life is over: everything of it goes, and the daemon joins again with nothing.
    fn rejoin(&mut self, machine: usize) {
        let incarnation = self.machines[machine].life.as_ref().map_or(0, |life| life.incarnation.0);
        self.note("rejoins", machine as u64, incarnation, 0, String::new);
        self.sometimes.hit("node fenced while it ran");
        self.life_ends(machine);
        self.machines[machine].up = true;
        let epoch = self.machines[machine].epoch;
        self.queue.after(REJOIN_AFTER, What::Start { machine, epoch });
    }

    /// Everything of a machine's life goes.
    pub fn life_ends(&mut self, machine: usize) {
        let m = &mut self.machines[machine];
        m.epoch += 1;
        m.up = false;
        m.calls.clear();
        if let Some(life) = m.life.take() {
            self.judges.life_ended(&life, &self.shards);
            if machine == 0 {
                self.driver.link_lost();
            }
        }
    }

    fn take(&mut self, machine: usize, epoch: u64, input: Input, events: &mut Vec<Event>) {
        let now = self.now();
        let Some(life) = self.life(machine, epoch) else { return };
        match input {
            Input::Core(event) => events.push(event),
            Input::Said { client, said } => self.said(machine, epoch, client, said, events),
            Input::Hello { worker } => events.push(Event::WorkerUp { worker, job: JOB }),
            Input::Closed { client } => {
                life.store.creator_gone(client);
                life.forget_asker(client);
                events.push(match client {
                    DRIVER => Event::ClientGone { client },
                    worker => Event::WorkerGone { worker },
                });
            }
            Input::DriverUp => {
                life.has_job = true;
                // So that workers are given back in short jobs, too.
                events.push(Event::WorkerReuse { job: JOB, tasks: self.options.style.reuse });
                events.push(Event::HedgeBudget { job: JOB, permille: self.options.style.hedge_permille });
                events.push(Event::JobStarted { job: JOB, counted: self.options.counts });
            }
            Input::FromPeer { from, msgs } => {
                // It may have been on its way here when its death was announced (R10).
                if life.dead.contains(&from.0) {
                    return self.sometimes.hit("frame from the dead");
                }
                let node = life.incarnation.0;
                for PeerMsg { msg } in msgs {
                    if let Some(peer_msg::Msg::Result(result)) = &msg
                        && let Ok(task) = task_id(&result.task)
                    {
                        let Judges { hedges, .. } = &mut self.judges;
                        hedges.came_back(&self.oracle, node, from.0, task, &mut self.sometimes);
                    }
                    peer_msg(from, msg, events);
                }
            }
            Input::View(view) => self.take_view(machine, epoch, &view, events),
            Input::Arrived { object, from, content, takes, breaks } => {
                if !life.has_job {
                    let why = FetchError::Unreachable;
                    return events.push(Event::FetchFailed { object, from, why });
                }
                let len = content.len;
                life.reserve(object, Asked::Transfer { object, from, content, takes, breaks }, len);
            }
            Input::Filled { object, from, offset, content, breaks } => {
                events.push(self.filled(machine, object, from, (offset, content), breaks));
            }
            Input::FileWritten { object, outcome } => life.store.written(object, outcome),
            Input::FileRead { object, outcome } => life.store.read(object, outcome),
            Input::FileDamaged { object, file } => life.store.damaged(file, object),
            Input::DiskAgain => life.store.try_disk_again(),
            Input::Idle { shard } => {
                let reporter = &mut life.reporters[shard.0 as usize];
                let due = reporter.idle_from <= now;
                reporter.idle_from = if due { now + IDLE_EVERY } else { reporter.idle_from };
                let idle = if due { life.core.idle(shard) } else { Vec::new() };
                self.report_changes(machine, epoch, shard, &idle);
            }
            Input::Served { object, transfer } => life.store.unpin(object, Reader::Transfer(transfer)),
            // What an earlier life has left is part of it.
            Input::ReportAll { shard, term, deaths } if life.found.is_some() => {
                life.early_reports.push((shard, term, deaths));
            }
            Input::ReportAll { shard, term, deaths } => {
                let (map, all) = (life.core.slots_epoch(), life.core.held(shard));
                self.report_all(machine, epoch, shard, term, deaths, map, &all);
            }
            Input::Fenced => life.fenced = true,
        }
    }

    fn take_view(&mut self, machine: usize, epoch: u64, view: &Rc<ClusterView>, events: &mut Vec<Event>) {
        let Some(life) = self.life(machine, epoch) else { return };
        if view.version <= life.view_version {
            return;
        }
        life.view_version = view.version;
        let life_number = life.incarnation.0;
        for node in &view.nodes {
            if node.alive {
                life.addresses.insert(node.incarnation, node.address.parse().unwrap_or(usize::MAX));
            } else {
                life.addresses.remove(&node.incarnation);
                life.has_buried |= life.dead.insert(node.incarnation);
                life.outgoing.remove(&node.incarnation);
            }
        }
        life.has_job |= view.jobs.iter().any(|job| !job.ended && job.job == JOB.0);
        if life.dead.contains(&life.incarnation.0) {
            life.fenced = true;
        }
        let early = std::mem::take(&mut life.early);
        for (to, messages) in early {
            for message in messages {
                self.tell_peer(machine, epoch, Incarnation(to), message);
            }
        }
        events.push(Event::View((**view).clone()));
        // As new as this life, so every job is in it of which an earlier one can have left something.
        if view.nodes.iter().any(|node| node.alive && node.incarnation == life_number) {
            self.attach_found(machine, epoch, events);
        }
    }

    fn perform(&mut self, machine: usize, epoch: u64, effect: Effect) {
        self.is_watched(machine, &effect);
        match effect {
            Effect::Run { worker, spec, attempt, args, made, devices: _ } => {
                let mut spec = Arc::unwrap_or_clone(spec);
                let (node, now) =
                    (self.life(machine, epoch).map_or(0, |life| life.incarnation.0), self.now());
                self.judges.once.given(&spec, attempt);
                self.judges.limits.given(&spec, node, now);
                let object = |at: u32| match &spec.args.get(at as usize)?.arg {
                    Some(arg::Arg::Object(id)) => Some((at as usize, object_id(id).ok()?)),
                    Some(arg::Arg::Value(_)) | None => None,
                };
                let made = made.into_iter().filter_map(object).collect();
                let objects = shared_args(&spec, &args);
                let Ok(task) = task_id(&spec.id) else { return };
                // The program's own argument travels; the core's copy has the rest.
                spec.args.truncate(1);
                let given = Given { spec: Box::new(spec), attempt, args, made };
                self.give(machine, epoch, worker, task, given, objects);
            }
            Effect::Stop { worker, task, attempt } => {
                let (node, now) =
                    (self.life(machine, epoch).map_or(0, |life| life.incarnation.0), self.now());
                self.judges.stopped(&self.oracle, task, node, now);
                self.tell_of(machine, epoch, worker, task, Told::Stop { task, attempt });
            }
            Effect::Retire { worker } => {
                self.sometimes.hit("worker retired");
                self.worker_dies(machine, epoch, worker);
            }
            Effect::Kill { worker } => {
                self.sometimes.hit("worker killed for a task that is not to go on");
                self.worker_dies(machine, epoch, worker);
            }
            Effect::Cancel { to, tasks, recursive } => {
                let tasks = tasks.into_iter().map(task_bytes).collect();
                self.tell_peer(
                    machine,
                    epoch,
                    to,
                    peer_msg::Msg::Cancel(mobula_proto::Cancel { tasks, recursive }),
                );
            }
            Effect::Discard { object } => self.discard(machine, epoch, object),
            Effect::Freed { to, objects } => {
                self.sometimes.hit("copies freed elsewhere");
                let objects = objects.into_iter().map(object_bytes).collect();
                self.tell_peer(machine, epoch, to, peer_msg::Msg::Freed(mobula_proto::Freed { objects }));
            }
            Effect::Spawn { job: _ } => {
                let takes = self.dice.ms(3, 40);
                let takes = self.slowed(machine, takes);
                self.queue.after(takes, What::WorkerUp { machine, epoch });
            }
            Effect::Assign { to, assign } => {
                if let Some(task) = assign.spec.as_ref().and_then(|spec| task_id(&spec.id).ok()) {
                    self.judges.cause.assigned(task, to.0);
                    self.sometimes.hit("spilled over");
                }
                self.tell_peer(machine, epoch, to, peer_msg::Msg::Assign(assign));
            }
            Effect::Result { to, result } => {
                self.judge_leaves(&result);
                self.tell_peer(machine, epoch, to, peer_msg::Msg::Result(result))
            }
            Effect::NewItems { to, news } => {
                self.judge_items_leave(&news);
                self.tell_peer(machine, epoch, to, peer_msg::Msg::NewItems(news));
            }
            Effect::TellTaken { to, task, taken } => {
                let taken = mobula_proto::ItemsTaken { task: task_bytes(task), items: taken };
                self.tell_peer(machine, epoch, to, peer_msg::Msg::ItemsTaken(taken));
            }
            Effect::ItemsTaken { worker, task, taken: items } => {
                self.tell_of(machine, epoch, worker, task, Told::Taken { task, items });
            }
            Effect::ItemsMade { client, task, made: items } => {
                let told = Told::Made { task, items };
                self.queue.after(LINK, What::ToClient { machine, epoch, client, told });
            }
            Effect::Waiting { to, tasks } => {
                let waiting = mobula_proto::Waiting { tasks };
                self.tell_peer(machine, epoch, to, peer_msg::Msg::Waiting(waiting));
            }
            Effect::Durable { to, task, attempt } => {
                let durable = mobula_proto::Durable { task: task_bytes(task), attempt };
                self.tell_peer(machine, epoch, to, peer_msg::Msg::Durable(durable));
            }
            Effect::TakeBack { to, task, attempt } => {
                let back = mobula_proto::TakeBack { task: task_bytes(task), attempt };
                self.tell_peer(machine, epoch, to, peer_msg::Msg::TakeBack(back));
            }
            Effect::Send { shard, batch } => self.send_batch(machine, epoch, shard, batch),
            Effect::Locate { shard, objects } => self.locate(machine, epoch, shard, objects),
            Effect::Fetch { object, from, output, .. } => self.fetch(machine, epoch, object, from, output),
            Effect::Ready { client, object, ready } => {
                let Some(life) = self.life(machine, epoch) else { return };
                if !life.clients.contains_key(&client) {
                    return;
                }
                let value = match ready {
                    Ready::Here(value) => life.lend(object, client, value),
                    Ready::Elsewhere(output) => Seen::Elsewhere(output),
                    Ready::Failed(failure) => Seen::Failed(failure),
                };
                let told = Told::Ready { object, value };
                self.queue.after(LINK, What::ToClient { machine, epoch, client, told });
            }
            Effect::Committed { task, revision: 0, .. } => {
                self.sometimes.hit("task elided");
                self.judges.order.elided(task);
            }
            Effect::Committed { .. } => {}
            Effect::Held { object } => self.tell_home(machine, epoch, object, true),
            Effect::Replicate { to, object, job, output, want, at } => {
                if want > 0 && self.judges.cause.has_dead() {
                    self.sometimes.hit("copies made up for");
                }
                let holder = self.life(machine, epoch).map_or(0, |life| life.incarnation.0);
                let (object, output) = (object_bytes(object), Some(output));
                let replica = mobula_proto::Replica {
                    object,
                    holder,
                    output,
                    job: job.0,
                    copies: want,
                    at: at.into_iter().map(|node| node.0).collect(),
                };
                self.tell_peer(machine, epoch, to, peer_msg::Msg::Replica(replica));
            }
            Effect::Notice { job: _, notice } => match &notice.kind[..] {
                "rebuild-start" => self.judges.redo.rebuilds(task_id(&notice.task).ok(), &mut self.sometimes),
                "hedge" => {
                    let node = self.life(machine, epoch).map_or(0, |life| life.incarnation.0);
                    if let Ok(task) = task_id(&notice.task) {
                        let permille = self.options.style.hedge_permille;
                        self.judges.ended.hedged(task);
                        self.judges.hedges.hedged(&self.oracle, node, notice.bytes, task, permille);
                        self.sometimes.hit("task hedged");
                    }
                }
                "diverged" => {
                    let task = task_id(&notice.task).ok();
                    match task.is_some_and(|task| self.oracle.may_differ(task)) {
                        true => self.sometimes.hit("divergence told"),
                        false => self.judges.diverged(&notice.text),
                    }
                }
                _ => {}
            },
            // There are no placement groups here: see `crate::groups`.
            Effect::TellClaims | Effect::Group { .. } => {}
            Effect::FreeJob(job) => self.free_job(machine, epoch, job),
        }
    }

    /// A node tells another what a task came to.
    fn judge_leaves(&mut self, result: &mobula_proto::PeerResult) {
        let Ok(task) = task_id(&result.task) else { return };
        if result.failure.is_none() {
            let Judges { edges, order, .. } = &mut self.judges;
            edges.leaves(&self.oracle, order, task, |object| object.item().is_none());
        }
    }

    /// Items leave the node where they were made.
    fn judge_items_leave(&mut self, news: &mobula_proto::NewItems) {
        let Ok(task) = task_id(&news.task) else { return };
        let Judges { edges, order, .. } = &mut self.judges;
        let told = news.first..news.first + news.items.len() as u32;
        edges.leaves(&self.oracle, order, task, |object| object.item().is_some_and(|n| told.contains(&n)));
    }

    fn free_job(&mut self, machine: usize, epoch: u64, job: JobId) {
        let Some(life) = self.life(machine, epoch) else { return };
        life.has_job = false;
        life.store.free_job(job);
        let workers: Vec<ClientId> =
            life.clients.keys().copied().filter(|client| *client != DRIVER).collect();
        for client in workers {
            if let Some(life) = self.life(machine, epoch) {
                life.clients.remove(&client);
            }
            let closed = What::Input { machine, epoch, input: Input::Closed { client } };
            self.queue.after(LINK, closed);
        }
    }

    /// Asks a holder for an object's bytes.
    fn fetch(&mut self, machine: usize, epoch: u64, object: ObjectId, from: Incarnation, want: Output) {
        let now = self.now();
        let Some(life) = self.life(machine, epoch) else { return };
        let holder = life.addresses.get(&from.0).copied();
        let (here, there) = (Self::place(machine), holder.map(Self::place));
        let reached = there.is_some_and(|there| self.net.joined(here, there, now));
        match holder.filter(|_| reached) {
            Some(to) => {
                let takes = self.net.latency(here, Self::place(to), now) * 2;
                self.queue.after(takes, What::Fetch { machine, epoch, from: (to, from.0), object, want });
            }
            None => {
                let why = FetchError::Unreachable;
                let input = Input::Core(Event::FetchFailed { object, from, why });
                // Nobody answers at an address that is not known; what is cut off does not say so.
                let takes = if holder.is_some() { Duration::from_secs(2) } else { Duration::ZERO };
                self.queue.after(takes, What::Input { machine, epoch, input });
            }
        }
    }

    /// The holder answers a fetch: it takes as long as there are bytes, and may break off.
    pub fn fetched(
        &mut self,
        machine: usize,
        epoch: u64,
        from: (usize, u64),
        object: ObjectId,
        want: Output,
    ) {
        let (to, incarnation) = from;
        let now = self.now();
        let back = self.net.latency(Self::place(to), Self::place(machine), now);
        let there = self.machines[to].epoch;
        let is_there = self.life(to, there).is_some_and(|life| life.incarnation.0 == incarnation);
        let from = Incarnation(incarnation);
        let failed = |why| Input::Core(Event::FetchFailed { object, from, why });
        // What breaks off on the way is noticed after a while.
        let breaks = self.faults.breaks_transfer(&mut self.dice)
            || !self.net.joined(Self::place(machine), Self::place(to), now);
        let input = if !is_there {
            // The process is gone, or another one listens there: the hello is turned away.
            self.sometimes.hit("fetch from the dead");
            failed(FetchError::Unreachable)
        } else {
            match self.look_up_bytes(to, there, object, want) {
                None => {
                    self.sometimes.hit("fetch of nothing");
                    failed(FetchError::NotFound)
                }
                Some(Lent { content, large: false, .. }) if !breaks => {
                    Input::Core(Event::Fetched { object, value: Value::Inline(content.encode()) })
                }
                Some(Lent { large: false, .. }) => {
                    self.sometimes.hit("fetch repeated");
                    failed(FetchError::Unreachable)
                }
                Some(Lent { content, transfer, .. }) => {
                    let takes = self.slowed(to, Duration::from_nanos(content.len * 10));
                    let served = Input::Served { object, transfer };
                    self.queue.after(back + takes, What::Input { machine: to, epoch: there, input: served });
                    let takes = if breaks { takes / 2 } else { takes };
                    Input::Arrived { object, from, content, takes, breaks }
                }
            }
        };
        self.queue.after(back, What::Input { machine, epoch, input });
    }

    /// The bytes that another node asks for, pinned while they travel.
    fn look_up_bytes(&mut self, machine: usize, epoch: u64, object: ObjectId, want: Output) -> Option<Lent> {
        self.check_attached(machine, epoch, object, want);
        let life = self.life(machine, epoch)?;
        life.next_transfer += 1;
        let transfer = life.next_transfer;
        let value = life.core.value_of(object).cloned();
        let lent = match value {
            Some(Value::Inline(bytes)) => Content::decode(&bytes).map(|content| (content, false)),
            Some(Value::Shared { .. }) => match life.store.lend(object, Reader::Transfer(transfer)) {
                Some(Kept::Memory(place)) => {
                    Some((life.memory.get(&place.offset).cloned().unwrap_or(GARBAGE), true))
                }
                Some(Kept::File(file)) => {
                    let stored = self.machines[machine].disk.files.get(&file.id(object));
                    let whole = stored.filter(|(_, _, whole)| *whole).map(|(_, content, _)| content.clone());
                    if whole.is_none() {
                        self.input(machine, epoch, Input::FileDamaged { object, file });
                        return None;
                    }
                    self.sometimes.hit("value sent from its file");
                    whole.map(|content| (content, true))
                }
                None => None,
            },
            None => None,
        };
        // One that is not told yet is here, and will be.
        let life = self.life(machine, epoch)?;
        if lent.is_none() && life.core.keeps(object).is_none() {
            self.missed(machine, epoch, object);
        }
        lent.map(|(content, large)| Lent { content, large, transfer })
    }

    /// A copy was asked for that is not here: its home is told.
    fn missed(&mut self, machine: usize, epoch: u64, object: ObjectId) {
        let Some(life) = self.life(machine, epoch) else { return };
        life.missed.insert(object);
        self.tell_home(machine, epoch, object, false);
    }

    /// Values were made here, of which their homes were told that they are not here: their done-records are not
    /// enough.
    fn made_after_all(&mut self, machine: usize, epoch: u64) {
        let Some(life) = self.life(machine, epoch) else { return };
        for object in std::mem::take(&mut life.made_anew) {
            let Some(life) = self.life(machine, epoch) else { return };
            if life.core.value_of(object).is_some() && life.missed.remove(&object) {
                self.tell_home(machine, epoch, object, true);
            }
        }
    }

    /// A copy has come, or gone.
    pub(super) fn tell_home(&mut self, machine: usize, epoch: u64, object: ObjectId, is_here: bool) {
        let Some(life) = self.life(machine, epoch) else { return };
        let shard = life.core.shard_of(object.task).0 as usize;
        life.reporters[shard].held.insert(object, is_here);
        self.poke_reporter(machine, epoch, shard, Duration::from_millis(100));
    }

    fn discard(&mut self, machine: usize, epoch: u64, object: ObjectId) {
        let Some(life) = self.life(machine, epoch) else { return };
        // It may have been made again in the same turn.
        if life.is_used(object) {
            return;
        }
        let was_here = life.store.discard(object);
        if life.core.value_of(object).is_none() {
            match was_here {
                true => self.tell_home(machine, epoch, object, false),
                false => self.missed(machine, epoch, object),
            }
        }
    }

    /// A view comes to a node, from a head.
    pub fn view_comes(&mut self, machine: usize, epoch: u64, view: Rc<ClusterView>) {
        self.input(machine, epoch, Input::View(view));
    }
}

/// What another node is sent.
struct Lent {
    content: Content,
    large: bool,
    transfer: u64,
}

/// Those arguments of a task that lie in shared memory, in their order.
fn shared_args(spec: &TaskSpec, values: &[Value]) -> Vec<ObjectId> {
    let args = spec.args.iter().zip(values).filter(|(_, value)| matches!(value, Value::Shared { .. }));
    let object = |argument: &mobula_proto::Arg| match &argument.arg {
        Some(arg::Arg::Object(id)) => object_id(id).ok(),
        Some(arg::Arg::Value(_)) | None => None,
    };
    args.filter_map(|(argument, _)| object(argument)).collect()
}

fn peer_msg(from: Incarnation, msg: Option<peer_msg::Msg>, events: &mut Vec<Event>) {
    match msg {
        Some(peer_msg::Msg::Assign(assign)) => events.push(Event::Assigned { from, assign }),
        Some(peer_msg::Msg::Result(result)) => events.push(Event::PeerResult { from, result }),
        Some(peer_msg::Msg::TakeBack(back)) => {
            if let Ok(task) = task_id(&back.task) {
                events.push(Event::TakenBack { from, task, attempt: back.attempt });
            }
        }
        Some(peer_msg::Msg::Durable(d)) => {
            if let Ok(task) = task_id(&d.task) {
                events.push(Event::PeerDurable { from, task, attempt: d.attempt });
            }
        }
        Some(peer_msg::Msg::NewItems(news)) => events.push(Event::NewItems { from, news }),
        Some(peer_msg::Msg::ItemsTaken(told)) => {
            if let Ok(task) = task_id(&told.task) {
                events.push(Event::PeerTaken { from, task, taken: told.items });
            }
        }
        Some(peer_msg::Msg::Waiting(w)) => events.push(Event::PeerWaiting { from, tasks: w.tasks }),
        Some(peer_msg::Msg::Replica(r)) => {
            if let (Ok(object), Some(output)) = (object_id(&r.object), r.output) {
                let (job, holder) = (JobId(r.job), Incarnation(r.holder));
                let (want, at) = (r.copies, r.at.into_iter().map(Incarnation).collect());
                events.push(Event::Replicate { object, job, holder, output, want, at });
            }
        }
        Some(peer_msg::Msg::JobEnded(job)) => events.push(Event::JobEnded(JobId(job))),
        Some(peer_msg::Msg::Freed(freed)) => {
            let objects = freed.objects.iter().filter_map(|id| object_id(id).ok()).collect();
            events.push(Event::Freed { objects });
        }
        Some(peer_msg::Msg::Cancel(cancel)) => {
            let tasks = cancel.tasks.iter().filter_map(|id| task_id(id).ok()).collect();
            events.push(Event::Cancel { from: Some(from), tasks, recursive: cancel.recursive });
        }
        Some(peer_msg::Msg::Notice(_) | peer_msg::Msg::Hello(_)) | None => {}
    }
}
