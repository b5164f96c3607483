//! What comes in becomes events; what the core decides is done. No policy.

use crate::control::Copied;
use crate::daemon::{Life, Link};
use crate::input::{Counts, Input, Load, kept, shared};
use crate::packages::runtime::Prepared;
use crate::packages::travel::Holder;
use crate::peers::msg;
use crate::room::TRANSFER;
use crate::spawn::{SpawnOrder, Spawner};
use crate::transfer::{self, Held, Lent, Order};
use mobula_base::{Incarnation, JobId, ObjectId};
use mobula_net::BoxFuture;
use mobula_net::frame::Outbox;
use mobula_net::written::Written;
use mobula_objstore::Reader;
use mobula_objstore::depot::Kept;
use mobula_proto::{
    Cancel, Claims, ClusterView, Committed, DaemonMsg, Failure, FailureKind, Freed, Hello, ItemsMade,
    ItemsTaken, JobStart, Made, NamedResource, Notice, Output, PeerMsg, RunTask, Shared, Stop, Waiting, arg,
    daemon_msg, object_bytes, object_id, peer_msg, task_bytes, task_id, terse, value as wire_value,
};
use mobula_scheduler::{ClientId, Effect, Event, FetchError, Ready, Value};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Copies that were asked for in vain and are remembered, so that their home is told when they are made
/// after all. One that is forgotten is made again once too often.
const MISSED_MAX: usize = 10_000;
/// Tasks that are explained at once.
const EXPLAINED_MAX: usize = 100;

impl Life {
    // ------------------------------------------------------------ in

    pub(crate) fn input(&mut self, input: Input, events: &mut Vec<Event>) {
        match input {
            Input::Core(event) => events.push(event),
            Input::DriverUp { client, job, start, outbox } => {
                let (counted, tasks, permille) =
                    (start.counted, start.tasks_per_worker, start.hedge_permille);
                self.jobs.insert(job, start);
                self.open.insert(client, Link { outbox, job, token: None, pid: None, elided: 0 });
                events.push(Event::WorkerReuse { job, tasks });
                events.push(Event::HedgeBudget { job, permille });
                events.push(Event::JobStarted { job, counted });
            }
            Input::WorkerHello { client, hello, outbox, taken } => {
                let _ = taken.send(self.worker_hello(client, &hello, outbox, events));
            }
            Input::FromClient { client, msgs } => self.client_msgs(client, msgs, events),
            Input::ClientClosed { client } => self.client_closed(client, events),
            Input::WorkerEnded { token, how } => self.worker_ended(token, &how, events),
            // It may have been on its way here when its death was announced (R10).
            Input::FromPeer { from, .. } if self.peers.is_dead(from) => {}
            Input::FromPeer { from, msgs } => {
                for PeerMsg { msg } in msgs {
                    self.peer_msg(from, msg, events);
                }
            }
            Input::View(view) => self.view(view, events),
            Input::Lookup { object, want, reply } => {
                let lent = self.lookup(object, want, events);
                if let Err(Some(lent)) = reply.send(lent) {
                    self.store.unpin(object, Reader::Transfer(lent.transfer));
                }
            }
            Input::Served { object, transfer } => self.store.unpin(object, Reader::Transfer(transfer)),
            Input::Reserve { object, len, job, reply } => self.reserve(object, len, job, reply),
            Input::Filled { object, crc } => {
                events.push(match self.store.seal(object, crc, TRANSFER) {
                    Ok(place) => {
                        self.fresh.push(object);
                        Event::Fetched { object, value: shared(place) }
                    }
                    // Its job ended meanwhile.
                    Err(_) => Event::FetchFailed { object, from: Incarnation(0), why: FetchError::NotFound },
                });
            }
            Input::Abandoned { object } => self.store.abort(object, TRANSFER),
            Input::SpillWritten { object, outcome } => {
                if let Err(error) = &outcome {
                    tracing::error!(%object, %error, "an object cannot leave memory");
                }
                self.store.written(object, outcome.map_err(drop));
            }
            Input::SpillRead { object, outcome } => {
                if let Err(error) = &outcome {
                    tracing::error!(%object, %error, "an object cannot be read back");
                }
                self.store.read(object, outcome.map_err(drop));
            }
            Input::SpillDamaged { object, file } => self.store.damaged(file, object),
            Input::SpillAgain => self.store.try_disk_again(),
            // What an earlier life has left is part of it.
            Input::Held { shard, reply } if self.found.is_some() => self.early_reports.push((shard, reply)),
            Input::Held { shard, reply } => {
                let _ = reply.send((self.core.slots_epoch(), self.core.held(shard)));
            }
            Input::Idle { shard, reply } => {
                let _ = reply.send(self.core.idle(shard));
            }
            Input::Load { reply } => {
                let (cpu_milli_free, queued) = self.core.load();
                let store_bytes_used = self.store.usage().0;
                let named = self.core.free_resources().named.iter();
                let free = named.map(|(name, milli)| NamedResource { name: name.clone(), milli: *milli });
                let claims = Claims { claims: self.core.claims(), free: free.collect() };
                let _ = reply.send(Load { cpu_milli_free, queued, store_bytes_used, claims });
            }
            Input::Explain { prefix, reply } => {
                let _ = reply.send(self.core.explain(prefix, EXPLAINED_MAX));
            }
            Input::Look { prefix, asked, reply } => {
                let _ = reply.send(self.show(prefix, &asked));
            }
            Input::MeasureMemory => self.measure_memory(events),
            Input::Count { reply } => {
                let _ = reply.send(self.counts());
            }
            Input::Fenced => self.fenced = true,
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            core: self.core.census(),
            objects: self.store.count(),
            store_bytes: self.store.usage(),
            spilled: self.store.spilled(),
            waiting_for_room: self.store.waiting(),
            drivers: self.open.values().filter(|link| link.token.is_none()).count() as u64,
        }
    }

    fn lookup(&mut self, object: ObjectId, want: Output, events: &mut Vec<Event>) -> Option<Lent> {
        self.next_transfer += 1;
        let transfer = self.next_transfer;
        self.check_attached(object, want, events);
        let lent = self.core.value_of(object).and_then(|value| match value {
            Value::Inline(bytes) => {
                let crc = crc32fast::hash(bytes);
                Some(Lent { object, transfer, bytes: Held::Inline(bytes.clone()), crc })
            }
            Value::Shared { crc, .. } => {
                let bytes = match self.store.lend(object, Reader::Transfer(transfer))? {
                    Kept::Memory(place) => Held::Shared(self.region.clone(), place.offset, place.len),
                    Kept::File(file) => Held::File(self.spill_disk.clone()?, file),
                };
                Some(Lent { object, transfer, bytes, crc: *crc })
            }
        });
        // One that is not told yet is here, and will be.
        if lent.is_none() && self.core.keeps(object).is_none() {
            self.missed(object);
        }
        lent
    }

    /// What an earlier life has left may be of an attempt that never was recorded, and another one has made
    /// something else since: then it is no copy.
    fn check_attached(&mut self, object: ObjectId, want: Output, events: &mut Vec<Event>) {
        if want.size == 0 || !self.attached.remove(&object) {
            return;
        }
        if self.store.get(object).is_some_and(|kept| kept.output() != (want.size, want.crc)) {
            tracing::warn!(%object, "what an earlier life left is not what is on record: it is dropped");
            self.store.discard(object);
            self.tell_gone(object);
            events.push(Event::CopyLost { object });
        }
    }

    /// A copy was asked for that is not here: its home is told, so that nobody is sent here again.
    fn missed(&mut self, object: ObjectId) {
        if self.missed.len() == MISSED_MAX {
            self.missed.pop_first();
        }
        self.missed.insert(object);
        self.tell_home(Copied::Gone(object));
    }

    /// A value was made here, of which its home was told that it is not here: its done-record is not enough.
    fn made_after_all(&mut self, object: ObjectId) {
        if self.core.value_of(object).is_some() && self.missed.remove(&object) {
            self.tell_home(Copied::Held(object));
        }
    }

    pub(crate) fn tell_gone(&self, object: ObjectId) {
        self.tell_home(Copied::Gone(object));
    }

    fn tell_home(&self, change: Copied) {
        let (Copied::Held(object) | Copied::Gone(object)) = change;
        let shard = self.core.shard_of(object.task);
        let _ = self.holdings[shard.0 as usize].send(change);
    }

    /// Whether this worker was started by this life and is the job's build.
    fn worker_hello(
        &mut self,
        client: ClientId,
        hello: &Hello,
        outbox: Written<DaemonMsg>,
        events: &mut Vec<Event>,
    ) -> bool {
        let Some((job, _)) = self.spawned.get(&hello.worker_token) else { return false };
        let job = *job;
        let Some(start) = self.jobs.get(&job) else { return false };
        // What was brought by its content was verified before it was started.
        if start.program.is_none() && start.executable_hash != hello.executable_hash {
            let message = format!(
                "the worker binary {} has hash {:016x}, the driver's build has {:016x}: put the same build there",
                start.executable, hello.executable_hash, start.executable_hash
            );
            let failure = Failure::new(FailureKind::FailureWorkerMismatch, message);
            events.push(Event::SpawnFailed { job, failure, fatal: true });
            return false;
        }
        let mut welcome = self.links.welcome.clone();
        welcome.job = job.0;
        outbox.push(&DaemonMsg { msg: Some(daemon_msg::Msg::Welcome(welcome)) });
        self.open.insert(
            client,
            Link { outbox, job, token: Some(hello.worker_token), pid: Some(hello.pid), elided: 0 },
        );
        events.push(Event::WorkerUp { worker: client, job });
        true
    }

    fn worker_ended(&mut self, token: u64, how: &str, events: &mut Vec<Event>) {
        let Some((job, _)) = self.spawned.remove(&token) else { return };
        if self.open.values().any(|l| l.token == Some(token)) {
            // Its link tells the core.
            return;
        }
        let message = format!("a worker did not come up: {how}");
        let failure = Failure::new(FailureKind::FailureWorkerMismatch, message);
        events.push(Event::SpawnFailed { job, failure, fatal: false });
    }

    fn client_closed(&mut self, client: ClientId, events: &mut Vec<Event>) {
        self.store.creator_gone(client);
        self.forget_asker(client);
        let Some(link) = self.open.remove(&client) else { return };
        match link.token {
            Some(token) => {
                if let Some((_, worker)) = self.spawned.remove(&token) {
                    worker.abort();
                }
                events.push(Event::WorkerGone { worker: client });
            }
            None => {
                events.push(Event::ClientGone { client });
                // A driver that vanished takes its job along; a second end changes nothing.
                self.end_job(link.job, false, None);
                events.push(Event::JobEnded(link.job));
            }
        }
    }

    pub(crate) fn end_job(&mut self, job: JobId, succeeded: bool, tell: Option<Written<DaemonMsg>>) {
        for outbox in self.outgoing.values() {
            outbox.push(msg(peer_msg::Msg::JobEnded(job.0)));
        }
        let client = self.control.client.clone();
        self.tasks.spawn(async move {
            crate::control::end_job(&client, job.0, succeeded).await;
            if let Some(outbox) = tell {
                outbox.push(&DaemonMsg { msg: Some(daemon_msg::Msg::JobEnded(true)) });
            }
        });
    }

    fn peer_msg(&mut self, from: Incarnation, msg: Option<peer_msg::Msg>, events: &mut Vec<Event>) {
        match msg {
            Some(peer_msg::Msg::Assign(assign)) => events.push(Event::Assigned { from, assign }),
            Some(peer_msg::Msg::Result(result)) => events.push(Event::PeerResult { from, result }),
            Some(peer_msg::Msg::Durable(d)) => {
                if let Ok(task) = task_id(&d.task) {
                    events.push(Event::PeerDurable { from, task, attempt: d.attempt });
                }
            }
            Some(peer_msg::Msg::TakeBack(back)) => {
                if let Ok(task) = task_id(&back.task) {
                    events.push(Event::TakenBack { from, task, attempt: back.attempt });
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
            Some(peer_msg::Msg::Notice(notice)) => self.notice_drivers(None, &notice),
            Some(peer_msg::Msg::JobEnded(job)) => events.push(Event::JobEnded(JobId(job))),
            Some(peer_msg::Msg::Freed(freed)) => {
                let objects = freed.objects.iter().filter_map(|o| object_id(o).ok()).collect();
                events.push(Event::Freed { objects });
            }
            Some(peer_msg::Msg::Cancel(Cancel { tasks, recursive })) => {
                let tasks = tasks.iter().filter_map(|id| task_id(id).ok()).collect();
                events.push(Event::Cancel { from: Some(from), tasks, recursive });
            }
            Some(peer_msg::Msg::Hello(_)) | None => {}
        }
    }

    fn view(&mut self, view: ClusterView, events: &mut Vec<Event>) {
        if view.version <= self.view_version {
            return;
        }
        self.view_version = view.version;
        self.links.level.fetch_max(view.level, Ordering::Relaxed);
        for node in &view.nodes {
            let incarnation = Incarnation(node.incarnation);
            if node.alive {
                self.addresses.insert(incarnation, node.address.clone());
            } else if self.addresses.remove(&incarnation).is_some() {
                self.has_buried |= self.peers.bury(incarnation);
                if let Some(outbox) = self.outgoing.remove(&incarnation) {
                    outbox.close();
                }
            } else {
                self.has_buried |= self.peers.bury(incarnation);
            }
        }
        for job in &view.jobs {
            if let (false, Some(start)) = (job.ended, &job.start) {
                self.jobs.entry(JobId(job.job)).or_insert_with(|| start.clone());
            }
        }
        for (to, messages) in std::mem::take(&mut self.early) {
            for message in messages {
                self.tell_peer(to, message);
            }
        }
        let knows_me = view.nodes.iter().any(|node| node.alive && node.incarnation == self.incarnation.0);
        events.push(Event::View(view));
        // As new as this life, so every job is in it of which an earlier one can have left something.
        if knows_me {
            self.attach_found(events);
        }
    }

    /// Takes up what an earlier life has left of jobs that go on, and removes the rest.
    fn attach_found(&mut self, events: &mut Vec<Event>) {
        for (object, file) in self.found.take().into_iter().flatten() {
            if self.jobs.contains_key(&file.job) && self.store.attach(object, file) {
                self.attached.insert(object);
                let value = kept(Kept::File(file));
                events.push(Event::Attached { object, job: file.job, value });
            } else {
                self.remove_file(file.id(object));
            }
        }
        for (shard, reply) in std::mem::take(&mut self.early_reports) {
            let again = self.inbox.clone();
            // After what was just taken up.
            self.tasks.spawn(async move { drop(again.send(Input::Held { shard, reply }).await) });
        }
    }

    // ------------------------------------------------------------ out

    pub(crate) fn perform(&mut self, effect: Effect, spawner: &mut dyn Spawner) {
        match effect {
            Effect::Run { worker, spec, attempt, args, made: None, devices }
                if args.is_empty()
                    && devices.is_empty()
                    && spec.args.is_empty()
                    && !self.waits_for_args(worker) =>
            {
                if let Some(link) = self.open.get(&worker) {
                    let len = terse::plain_run_len(&spec, attempt);
                    link.outbox.push_raw(len, |out| terse::write_plain_run(&spec, attempt, out));
                }
            }
            Effect::Run { worker, spec, attempt, args, made, devices } => {
                let object = |place: u32| match &spec.args.get(place as usize)?.arg {
                    Some(arg::Arg::Object(object)) => Some(Made { place, object: object.clone() }),
                    Some(arg::Arg::Value(_)) | None => None,
                };
                let made = made.and_then(object);
                let spec = Some(Arc::unwrap_or_clone(spec));
                let order = RunTask { spec, attempt, args: Vec::new(), devices, made };
                self.give(worker, order, args);
            }
            Effect::Stop { worker, task, attempt } => {
                let stop = Stop { task: task_bytes(task), attempt };
                self.tell_of(worker, task, daemon_msg::Msg::Stop(stop));
            }
            Effect::Kill { worker } => self.kill_worker(worker),
            // It ends when it reads the end of its link.
            Effect::Retire { worker } => {
                self.open.get(&worker).into_iter().for_each(|link| link.outbox.close());
            }
            Effect::Cancel { to, tasks, recursive } => {
                let tasks = tasks.into_iter().map(task_bytes).collect();
                self.tell_peer(to, peer_msg::Msg::Cancel(Cancel { tasks, recursive }));
            }
            Effect::Discard { object } => self.discard(object),
            Effect::Freed { to, objects } => {
                let objects = objects.into_iter().map(object_bytes).collect();
                self.tell_peer(to, peer_msg::Msg::Freed(Freed { objects }));
            }
            Effect::Spawn { job } => self.spawn_worker(job, spawner),
            Effect::Assign { to, assign } => self.tell_peer(to, peer_msg::Msg::Assign(assign)),
            Effect::Result { to, result } => self.tell_peer(to, peer_msg::Msg::Result(result)),
            Effect::NewItems { to, news } => self.tell_peer(to, peer_msg::Msg::NewItems(news)),
            Effect::TellTaken { to, task, taken } => {
                self.tell_peer(
                    to,
                    peer_msg::Msg::ItemsTaken(ItemsTaken { task: task_bytes(task), items: taken }),
                );
            }
            Effect::ItemsTaken { worker, task, taken } => {
                let taken = ItemsTaken { task: task_bytes(task), items: taken };
                self.tell_of(worker, task, daemon_msg::Msg::ItemsTaken(taken));
            }
            Effect::ItemsMade { client, task, made } => {
                let made = ItemsMade { task: task_bytes(task), items: made };
                self.tell(client, daemon_msg::Msg::ItemsMade(made));
            }
            Effect::Waiting { to, tasks } => self.tell_peer(to, peer_msg::Msg::Waiting(Waiting { tasks })),
            Effect::Durable { to, task, attempt } => {
                let durable = mobula_proto::Durable { task: task_bytes(task), attempt };
                self.tell_peer(to, peer_msg::Msg::Durable(durable));
            }
            Effect::TakeBack { to, task, attempt } => {
                let back = mobula_proto::TakeBack { task: task_bytes(task), attempt };
                self.tell_peer(to, peer_msg::Msg::TakeBack(back));
            }
            Effect::Send { shard, batch } => {
                let _ = self.streams[shard.0 as usize].send(batch);
            }
            Effect::Locate { shard, objects } => {
                self.tasks.spawn(self.control.clone().locate(shard, objects));
            }
            Effect::Fetch { object, job, from, output } => {
                let address = self.addresses.get(&from).cloned();
                let order = Order { object, job, from, address, output };
                self.tasks.spawn(transfer::fetch(self.peers.clone(), self.region.clone(), order));
            }
            Effect::Ready { client, object, ready } => {
                if !self.open.contains_key(&client) {
                    return;
                }
                let value = match ready {
                    Ready::Here(value) => self.lend(object, client, value),
                    Ready::Elsewhere(output) => {
                        mobula_proto::Value { value: Some(wire_value::Value::Elsewhere(output)) }
                    }
                    Ready::Failed(failure) => {
                        mobula_proto::Value { value: Some(wire_value::Value::Failure(failure)) }
                    }
                };
                self.tell_ready(client, object, value);
            }
            Effect::Committed { client, revision: 0, .. } => {
                self.open.get_mut(&client).into_iter().for_each(|link| link.elided += 1);
                self.has_elided = true;
            }
            Effect::Committed { client, task, revision } => {
                let committed = Committed { task: task_bytes(task), revision, elided: 0 };
                self.tell(client, daemon_msg::Msg::Committed(committed));
            }
            Effect::Held { object } => self.tell_home(Copied::Held(object)),
            Effect::Replicate { to, object, job, output, want, at } => {
                let replica = mobula_proto::Replica {
                    object: object_bytes(object),
                    holder: self.incarnation.0,
                    output: Some(output),
                    job: job.0,
                    copies: want,
                    at: at.into_iter().map(|node| node.0).collect(),
                };
                self.tell_peer(to, peer_msg::Msg::Replica(replica));
            }
            Effect::TellClaims => self.control.claims_told.notify_one(),
            Effect::Group { client, state } => self.tell(client, daemon_msg::Msg::Group(state)),
            Effect::Notice { job, notice } => self.notice(job, notice),
            Effect::FreeJob(job) => self.free_job(job),
        }
    }

    fn discard(&mut self, object: ObjectId) {
        // It may have been made again in the same turn.
        if self.is_used(object) {
            return;
        }
        let was_here = self.store.discard(object);
        if self.core.value_of(object).is_none() {
            if was_here { self.tell_home(Copied::Gone(object)) } else { self.missed(object) }
        }
    }

    /// Whether the core goes by what the store has of an object.
    fn is_used(&self, object: ObjectId) -> bool {
        match (self.core.keeps(object), self.store.get(object)) {
            (Some(Value::Shared { len, crc, .. }), Some(kept)) => kept.output() == (*len, *crc),
            (Some(Value::Inline(_)) | None, _) | (_, None) => false,
        }
    }

    /// What was sealed in this turn and is for nobody (of an attempt that counts no more, say) goes.
    pub(crate) fn discard_strays(&mut self) {
        std::mem::take(&mut self.made_anew).into_iter().for_each(|object| self.made_after_all(object));
        for object in std::mem::take(&mut self.fresh) {
            if !self.is_used(object) {
                self.store.discard(object);
            }
        }
    }

    /// Tells clients how many of their tasks have come and gone in this turn before their records were sent (R4).
    pub(crate) fn tell_elided(&mut self) {
        if !std::mem::take(&mut self.has_elided) {
            return;
        }
        for link in self.open.values_mut().filter(|link| link.elided > 0) {
            let elided = std::mem::take(&mut link.elided);
            let committed = Committed { elided, ..Committed::default() };
            link.outbox.push(&DaemonMsg { msg: Some(daemon_msg::Msg::Committed(committed)) });
        }
    }

    pub(crate) fn tell(&self, client: ClientId, msg: daemon_msg::Msg) {
        if let Some(link) = self.open.get(&client) {
            link.outbox.push(&DaemonMsg { msg: Some(msg) });
        }
    }

    fn tell_peer(&mut self, to: Incarnation, message: peer_msg::Msg) {
        let Some(address) = self.addresses.get(&to).cloned() else {
            // The view that names it has not come yet, or it is dead; the view will tell.
            if !self.peers.is_dead(to) {
                self.early.entry(to).or_default().push(message);
            }
            return;
        };
        let (peers, tasks) = (&self.peers, &mut self.tasks);
        let outbox = self.outgoing.entry(to).or_insert_with(|| {
            let outbox = Outbox::default();
            tasks.spawn(peers.clone().run_outgoing(to, address, outbox.clone()));
            outbox
        });
        outbox.push(msg(message));
    }

    fn spawn_worker(&mut self, job: JobId, spawner: &mut dyn Spawner) {
        let Some(start) = self.jobs.get(&job) else { return };
        let token = self.next_token;
        self.next_token += 1;
        let env = start.runtime.as_ref().map(|runtime| runtime.env.clone()).unwrap_or_default();
        let order = SpawnOrder { prepared: self.prepare(start.clone()), env, job: job.0, token };
        let worker = spawner.spawn(order);
        let inbox = self.inbox.clone();
        let watch = tokio::spawn(async move {
            let how = worker.await;
            let _ = inbox.send(Input::WorkerEnded { token, how }).await;
        });
        self.spawned.insert(token, (job, watch));
    }

    /// Brings what a worker is started with.
    fn prepare(&self, start: JobStart) -> BoxFuture<'static, Result<Prepared, String>> {
        let node = Incarnation(start.incarnation);
        let address = self.addresses.get(&node).cloned();
        let holder = Holder { peers: self.peers.clone(), node, address };
        let packages = self.packages.clone();
        Box::pin(async move {
            match packages {
                Some(packages) => packages.prepare(&start, &holder).await,
                None => Ok(Prepared { executable: start.executable.into(), directory: None }),
            }
        })
    }

    /// What a job's workers needed is needed no more.
    pub(crate) fn forget_packages(&self, job: JobId) {
        self.packages.iter().for_each(|packages| packages.let_go(job));
    }

    /// Its link closes when it is gone, and says so to the core.
    fn kill_worker(&mut self, worker: ClientId) {
        let token = self.open.get(&worker).and_then(|link| link.token);
        if let Some((_, process)) = token.and_then(|token| self.spawned.remove(&token)) {
            tracing::warn!(
                worker,
                "a worker is killed: its task has not stopped in time, takes too much memory, or is for nobody any more"
            );
            process.abort();
        }
    }

    fn notice(&mut self, job: JobId, notice: Notice) {
        let home = self.jobs.get(&job).map(|j| Incarnation(j.incarnation));
        match home {
            Some(home) if home != self.incarnation => {
                // The driver's own node sees deaths itself.
                if notice.kind != "node-dead" {
                    self.tell_peer(home, peer_msg::Msg::Notice(notice));
                }
            }
            Some(_) | None => self.notice_drivers(Some(job), &notice),
        }
    }

    fn notice_drivers(&self, job: Option<JobId>, notice: &Notice) {
        for link in self.open.values().filter(|l| l.token.is_none() && job.is_none_or(|j| j == l.job)) {
            link.outbox.push(&DaemonMsg { msg: Some(daemon_msg::Msg::Notice(notice.clone())) });
        }
    }

    fn free_job(&mut self, job: JobId) {
        if self.jobs.remove(&job).is_some() {
            self.forget_packages(job);
        }
        for link in self.open.values().filter(|l| l.job == job && l.token.is_some()) {
            link.outbox.close();
        }
        let tokens: Vec<u64> = self.spawned.iter().filter(|(_, (j, _))| *j == job).map(|(t, _)| *t).collect();
        for token in tokens {
            if let Some((_, worker)) = self.spawned.remove(&token) {
                worker.abort();
            }
        }
        self.store.free_job(job);
    }
}

pub(crate) fn wire(value: Value) -> mobula_proto::Value {
    let value = match value {
        Value::Inline(bytes) => wire_value::Value::Inline(bytes),
        Value::Shared { offset, len, crc } => wire_value::Value::Shared(Shared { offset, len, crc }),
    };
    mobula_proto::Value { value: Some(value) }
}
