//! The state of one node, and `step`, which only dispatches.

use crate::abandon::Unknowns;
use crate::bend::Bends;
use crate::cancel::Stop;
use crate::copies::Seen;
use crate::elide::Later;
use crate::execute::Run;
use crate::groups::Groups;
use crate::hedge::Hedges;
use crate::items::Consumer;
use crate::map::RunMap;
use crate::memory::Watched;
use crate::objects::{Object, Putting};
use crate::placement::{Class, Member};
use crate::recovery::Timer;
use crate::refs::{HeldBack, Named};
use crate::reserve::Ledger;
use crate::stream::Ticket;
use crate::streams::Streams;
use crate::trace::Trace;
use crate::types::{ClientId, Effect, Event};
use crate::waiting::Waiting;
use crate::workers::Worker;
use mobula_base::devices::Devices;
use mobula_base::resources::GPU;
use mobula_base::{IdMap, Incarnation, Instant, JobId, ObjectId, Resources, ShardId, TaskId, mutant};
use mobula_proto::TaskSpec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use thin_vec::ThinVec;

/// How long records linger, unless somebody says otherwise.
pub const LINGER: Duration = Duration::from_millis(100);

/// What a node is.
#[derive(Clone, Debug)]
pub struct Config {
    /// This life of this node.
    pub incarnation: Incarnation,
    /// Shards of the control store.
    pub shards: u32,
    /// What people call it.
    pub name: String,
    /// What it offers.
    pub resources: Resources,
    /// What it is, for tasks that choose by that.
    pub labels: BTreeMap<String, String>,
    /// Worker processes per job, not counting those that wait inside a task.
    pub workers: u32,
    /// How long a record lingers that nobody waits for: a task that comes and goes meanwhile is elided (R4).
    pub linger: Duration,
    /// CRC-32, handed in so that this crate computes no checksums of its own.
    pub crc: fn(&[u8]) -> u32,
}

/// A task that this node keeps (R4): it was submitted here, or its attempt was granted here.
#[derive(Debug)]
pub(crate) struct Kept {
    pub spec: Arc<TaskSpec>,
    pub attempt: u32,
    pub client: Option<ClientId>,
    pub state: KeptState,
    /// What it came to and whether that is inline, once it has finished.
    pub result: Option<(mobula_proto::Output, bool)>,
    /// Why it failed for good, until that is recorded.
    pub failure: Option<Box<mobula_proto::Failure>>,
    /// What an earlier attempt came to, as recorded (G3).
    pub recorded: Option<mobula_proto::Output>,
    /// Objects whose references lie inside what it made.
    pub contains: ThinVec<ObjectId>,
    /// Objects that it names, each once.
    pub names: ThinVec<Named>,
    pub record: Record,
    /// Its done-record, once that is queued; of a task that was submitted again since, until that is answered.
    pub done: Option<Ticket>,
    /// Others may know of it: it was given to another node, has put something, or returns several objects.
    pub shared: bool,
    pub early: Early,
    /// It has waited long enough for the node that has its arguments.
    pub waited: bool,
}

/// Whether a record came while edges of an earlier one of that name had yet to end (R6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Early {
    /// It did not, as far as is known.
    No,
    /// They have not ended yet.
    Waits,
    /// They have by now.
    Over,
}

/// Where the lineage record of a kept task is.
#[derive(Debug)]
pub(crate) enum Record {
    /// Its edges come first (R6).
    Waits(Box<Waits>),
    /// In its stream.
    Queued(Ticket),
    /// On its way, or committed.
    Sent,
}

/// A record that waits for its edges.
#[derive(Debug)]
pub(crate) struct Waits {
    /// The record's.
    pub ticket: Ticket,
    pub edges: Vec<Ticket>,
    /// What follows from it, the record in front.
    pub then: Vec<Later>,
}

/// Where a kept task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeptState {
    /// Its record must be committed first (no retries, or a replay).
    AwaitCommit,
    /// Its next attempt must be granted first (R7).
    AwaitAttempt,
    /// So many arguments do not exist yet.
    AwaitDeps(u32),
    /// Ready for a node.
    Queued,
    /// Given to a node.
    Placed(Incarnation),
    /// Finished there, but what it submitted is not all committed (R4).
    Undurable(Incarnation),
    /// Its done-record is on its way.
    Finishing,
}

/// The deciding part of a node daemon.
///
/// Invariants, asserted by `check_invariants` in debug builds:
/// 1. `free`, what is reserved and unused, and what leases hold are together what the node offers.
/// 2. A run that is given to a worker stands in that worker's queue, once. What else stands there is of
///    attempts that do not count any more.
/// 3. `placed[n]` counts the kept tasks placed on n, and the attempts there that run beside one that counts.
pub struct Core {
    pub(crate) config: Config,
    pub(crate) now: Instant,
    pub(crate) objects: RunMap<ObjectId, Object>,
    pub(crate) kept: RunMap<TaskId, Kept>,
    pub(crate) runs: RunMap<TaskId, Run>,
    /// Runs that may take so long only.
    pub(crate) timed: u64,
    pub(crate) classes: Vec<Class>,
    pub(crate) workers: BTreeMap<ClientId, Worker>,
    /// Tasks of which a worker has an attempt that does not count any more.
    pub(crate) strays: BTreeSet<TaskId>,
    pub(crate) starting: BTreeMap<JobId, u32>,
    pub(crate) broken_jobs: BTreeMap<JobId, mobula_proto::Failure>,
    pub(crate) spawn_failures: BTreeMap<JobId, u32>,
    pub(crate) free: Resources,
    /// What is reserved for bundles of placement groups.
    pub(crate) ledger: Ledger,
    pub(crate) groups: Groups,
    pub(crate) devices: Devices,
    pub(crate) streams: Streams,
    pub(crate) me: Member,
    pub(crate) members: BTreeMap<Incarnation, Member>,
    pub(crate) placed: BTreeMap<Incarnation, u32>,
    /// Of these, by class: of classes that demand something named.
    pub(crate) placed_scarce: BTreeMap<(Incarnation, usize), u32>,
    pub(crate) placed_functions: IdMap<u64, u64>,
    pub(crate) undurable: Vec<crate::execute::UndurableRun>,
    pub(crate) to_locate: BTreeMap<ShardId, BTreeSet<ObjectId>>,
    pub(crate) recovering: BTreeMap<TaskId, Vec<ObjectId>>,
    pub(crate) rebuilding: BTreeSet<TaskId>,
    pub(crate) fetch_queue: VecDeque<ObjectId>,
    pub(crate) fetching: BTreeSet<ObjectId>,
    /// Kept tasks that were cancelled and have not ended.
    pub(crate) cancelled: BTreeSet<TaskId>,
    /// Attempts that workers have and that were told to stop.
    pub(crate) stopping: BTreeMap<TaskId, Stop>,
    pub(crate) timers: BTreeMap<(Instant, u64), Timer>,
    pub(crate) next_timer: u64,
    /// The node that was given the last task that is to be spread.
    pub(crate) last_spread: Incarnation,
    pub(crate) jobs_seen: BTreeSet<JobId>,
    pub(crate) jobs_ended: BTreeSet<JobId>,
    /// Runs whose arguments are not all here.
    pub(crate) arriving: BTreeSet<TaskId>,
    pub(crate) blocked_runs: u32,
    pub(crate) waiting: Waiting,
    /// Tasks that a worker of a job is given at most.
    pub(crate) reuse: BTreeMap<JobId, u32>,
    /// Kept tasks and runs whose argument failed: ended one after the other, however long the chain.
    pub(crate) to_fail: VecDeque<(TaskId, mobula_proto::Failure)>,
    /// Jobs whose references are counted.
    pub(crate) counted: BTreeSet<JobId>,
    /// Arguments of kept tasks that ended before all had come: these are still in their lines.
    pub(crate) waited_for: BTreeSet<ObjectId>,
    pub(crate) unknowns: Unknowns,
    /// Objects that somebody may have lost interest in.
    pub(crate) to_tidy: VecDeque<ObjectId>,
    /// Copies that nobody on this node has a use for, and which was asked about last, by shard.
    pub(crate) idle: BTreeSet<ObjectId>,
    /// Of these, what was brought from another node and can be made again, and some that were.
    pub(crate) spare: BTreeSet<ObjectId>,
    pub(crate) idle_asked: BTreeMap<ShardId, ObjectId>,
    /// Last tickets of what each client took out of values.
    pub(crate) gates: BTreeMap<ClientId, BTreeMap<ShardId, u64>>,
    pub(crate) held_back: Vec<HeldBack>,
    /// Edges from puts of drivers that may be on their way: a put is not released before them.
    pub(crate) put_edges: BTreeMap<ObjectId, Vec<Ticket>>,
    /// Kept tasks whose records wait for edges.
    pub(crate) awaiting_edges: BTreeSet<TaskId>,
    /// What other nodes may drop.
    pub(crate) freed_at: BTreeMap<Incarnation, Vec<ObjectId>>,
    /// Something was acknowledged or withdrawn: whoever waits for it looks again.
    pub(crate) recheck: bool,
    pub(crate) copies: Seen,
    /// Streams that clients of this node take from.
    pub(crate) consumers: BTreeMap<TaskId, Consumer>,
    /// Runs that have made items which are not told.
    pub(crate) untold: BTreeSet<TaskId>,
    pub(crate) hedges: Hedges,
    pub(crate) memory: Watched,
    pub(crate) trace: Trace,
    pub(crate) bends: Bends,
    pub(crate) effects: Vec<Effect>,
}

impl Core {
    /// A node that has just joined.
    pub fn new(config: Config) -> Self {
        let (name, total, labels) = (config.name.clone(), config.resources.clone(), config.labels.clone());
        Core {
            me: Member { name, open: total.clone(), total, labels },
            ledger: Ledger::default(),
            groups: Groups::default(),
            free: config.resources.clone(),
            devices: Devices::new(config.resources.of(GPU) / 1000),
            streams: Streams::new(config.shards),
            last_spread: config.incarnation,
            config,
            now: Instant::default(),
            objects: RunMap::default(),
            kept: RunMap::default(),
            runs: RunMap::default(),
            timed: 0,
            classes: Vec::new(),
            workers: BTreeMap::new(),
            strays: BTreeSet::new(),
            starting: BTreeMap::new(),
            broken_jobs: BTreeMap::new(),
            spawn_failures: BTreeMap::new(),
            members: BTreeMap::new(),
            placed: BTreeMap::new(),
            placed_scarce: BTreeMap::new(),
            placed_functions: IdMap::default(),
            undurable: Vec::new(),
            to_locate: BTreeMap::new(),
            recovering: BTreeMap::new(),
            rebuilding: BTreeSet::new(),
            fetch_queue: VecDeque::new(),
            fetching: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            stopping: BTreeMap::new(),
            timers: BTreeMap::new(),
            next_timer: 0,
            jobs_seen: BTreeSet::new(),
            jobs_ended: BTreeSet::new(),
            arriving: BTreeSet::new(),
            blocked_runs: 0,
            waiting: Waiting::default(),
            reuse: BTreeMap::new(),
            to_fail: VecDeque::new(),
            counted: BTreeSet::new(),
            waited_for: BTreeSet::new(),
            unknowns: Unknowns::default(),
            to_tidy: VecDeque::new(),
            idle: BTreeSet::new(),
            spare: BTreeSet::new(),
            idle_asked: BTreeMap::new(),
            gates: BTreeMap::new(),
            held_back: Vec::new(),
            put_edges: BTreeMap::new(),
            awaiting_edges: BTreeSet::new(),
            freed_at: BTreeMap::new(),
            recheck: false,
            copies: Seen::default(),
            consumers: BTreeMap::new(),
            untold: BTreeSet::new(),
            hedges: Hedges::default(),
            memory: Watched::default(),
            trace: Trace::default(),
            bends: Bends::default(),
            effects: Vec::new(),
        }
    }

    /// Takes events, in order, and says what should happen. `now` must never go backwards.
    /// Placement and dispatch run once for the whole batch.
    pub fn step(&mut self, events: impl IntoIterator<Item = Event>, now: Instant, out: &mut Vec<Effect>) {
        assert!(self.now <= now, "time went backwards: {:?} then {now:?}", self.now);
        self.now = now;
        self.streams.linger(now + self.config.linger);
        for event in events {
            self.handle(event);
            self.fail_dependents();
            self.tidy_all();
        }
        self.fire_timers();
        self.fail_dependents();
        self.grant_claims();
        self.place_queued();
        self.dispatch();
        self.hand_back();
        self.tell_of_less_waiting();
        self.fail_dependents();
        self.look_again();
        self.tell_items();
        self.start_fetches();
        self.flush_locates();
        self.flush_streams();
        self.flush_freed();
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
        if out.is_empty() {
            std::mem::swap(out, &mut self.effects);
        } else {
            out.append(&mut self.effects);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Submit { client, specs } => {
                for spec in specs {
                    self.submit(client, spec);
                }
            }
            Event::Get { client, job, objects, want_value } => self.get(client, job, objects, want_value),
            Event::Put { client, object, job, value, by_driver, contains, replicas } => {
                self.put(client, object, job, value, Putting { by_driver, contains, replicas });
            }
            Event::Held { client, job, objects } => self.client_held(client, job, objects),
            Event::Take { client, job, task, first, upto, over } => {
                self.take_items(client, job, task, (first, upto), over);
            }
            Event::NewItems { from, news } => self.peer_items(from, news),
            Event::PeerTaken { from, task, taken } => self.peer_taken(from, task, taken),
            Event::Dropped { client, objects } => self.client_dropped(client, objects),
            Event::Freed { objects } => self.freed(objects),
            Event::ClientGone { client } => self.client_gone(client),
            Event::WorkerUp { worker, job } => self.worker_up(worker, job),
            Event::WorkerGone { worker } => self.worker_gone(worker),
            Event::SpawnFailed { job, failure, fatal } => self.spawn_failed(job, failure, fatal),
            Event::Finished { worker, outcomes } => self.finished(worker, outcomes),
            Event::Blocked { worker, returned } => self.blocked(worker, returned),
            Event::Stalled { worker, returned } => self.stalled(worker, returned),
            Event::NotGiven { worker, tasks } => self.not_given(worker, tasks),
            Event::Unblocked { worker } => self.unblocked(worker),
            Event::CopyLost { object } => self.copy_lost(object),
            Event::Attached { object, job, value } => self.attached(object, job, value),
            Event::Cancel { from, tasks, recursive } => self.cancel(tasks, recursive, from),
            Event::Assigned { from, assign } => self.assigned(from, assign),
            Event::PeerResult { from, result } => self.peer_result(from, result),
            Event::PeerDurable { from, task, attempt } => self.peer_durable(from, task, attempt),
            Event::TakenBack { from, task, attempt } => self.taken_back(from, task, attempt),
            Event::PeerWaiting { from, tasks } => self.peer_waiting(from, tasks),
            Event::Replicate { object, job, holder, output, want, at } => {
                self.replicate(object, job, holder, output, (want, at));
            }
            Event::Acked { shard, ack, moved } => self.acked(shard, ack, moved),
            Event::Located { asked, answers } => self.located(asked, answers),
            Event::Fetched { object, value } => self.fetched(object, value),
            Event::FetchFailed { object, from, why } => self.fetch_failed(object, from, why),
            Event::View(view) => self.view(view),
            Event::JobStarted { job, counted } => self.job_started(job, counted),
            Event::WorkerReuse { job, tasks } => self.limit_reuse(job, tasks),
            Event::HedgeBudget { job, permille } => self.budget_hedges(job, permille),
            Event::JobEnded(job) => self.job_ended(job),
            Event::WatchGroup { client, group } => self.watch_group(client, group),
            Event::Memory(measured) => self.memory_measured(measured),
            Event::Flush => self.streams.hurry(),
            Event::Tick => {}
        }
    }

    /// When `Event::Tick` will next have something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        timer.into_iter().chain(self.streams.due()).min()
    }

    /// Lineage records that are not yet acknowledged: the shell stops reading submissions when
    /// there are too many.
    pub fn unacknowledged(&self) -> u64 {
        self.streams.pending()
    }

    /// What this node tells the others: free CPU and how much waits.
    pub fn load(&self) -> (u64, u32) {
        let held = |c: &Class| c.held.values().map(VecDeque::len).sum::<usize>();
        let queued: usize = self.classes.iter().map(|c| c.waiting.len() + c.urgent.len() + held(c)).sum();
        (self.free.cpu_milli, (queued + self.runs.len()) as u32)
    }

    /// What is free of what this node offers.
    pub fn free_resources(&self) -> &Resources {
        &self.free
    }

    /// The shard that has a task, as far as this node knows.
    pub fn shard_of(&self, task: TaskId) -> ShardId {
        self.streams.map().of_run(task.run)
    }

    /// Epoch of the slot map that this goes by.
    pub fn slots_epoch(&self) -> u64 {
        self.streams.map().epoch()
    }

    fn fail_dependents(&mut self) {
        while let Some((task, failure)) = self.to_fail.pop_front() {
            self.fail_kept(task, failure.clone());
            // A run that has its arguments is with a worker, or soon: what failed was another attempt's.
            if self.runs.get(&task).is_some_and(|run| run.missing > 0) {
                self.fail_waiting_run(task, failure);
            }
        }
        self.leave_lines();
    }

    /// Takes those that have ended out of the lines of what they waited for: once for each object, however many
    /// have ended, and before anything else could stand there by the same name.
    fn leave_lines(&mut self) {
        let (objects, kept) = (&mut self.objects, &self.kept);
        let waits =
            |task: &TaskId| kept.get(task).is_some_and(|k| matches!(k.state, KeptState::AwaitDeps(_)));
        for id in std::mem::take(&mut self.waited_for) {
            if let Some(object) = objects.get_mut(&id).filter(|_| !mutant!("W17")) {
                object.tasks_waiting.retain(waits);
            }
        }
    }

    fn flush_streams(&mut self) {
        for (shard, batch) in self.streams.next_batches(self.config.incarnation, self.now) {
            self.effects.push(Effect::Send { shard, batch });
            self.batch_left(shard);
        }
    }

    /// Tickets count as acknowledged that did not before: so may what waits for them.
    fn look_again(&mut self) {
        self.tidy_all();
        while std::mem::take(&mut self.recheck) {
            self.check_edges();
            self.check_undurable();
            self.check_held_back();
            self.check_put_edges();
            self.check_taken();
            self.tidy_all();
        }
    }

    /// Panics when an invariant does not hold.
    pub fn check_invariants(&self) {
        let (mut held, mut devices) = self.ledger.sum(self.free.clone(), self.devices.clone());
        for lease in self.workers.values().filter_map(|worker| worker.lease.as_ref()) {
            let demand = &self.classes[lease.class].demand;
            held.give(demand);
            held.cpu_milli -= if lease.with_cpu { 0 } else { demand.cpu_milli };
            devices.give(&lease.devices, demand.of(GPU));
        }
        let no_cpu = |w: &&Worker| w.lease.as_ref().is_some_and(|lease| !lease.with_cpu);
        let mut no_cpu = self.workers.values().filter(no_cpu);
        assert!(no_cpu.all(|w| w.queue.len() <= 1) || mutant!("W32"), "a task would begin without a CPU");
        let given = |task: &TaskId| self.runs.get(task).is_some_and(|run| run.given.is_some());
        assert!(self.stopping.keys().all(given), "what is told to stop is with a worker");
        assert!(self.cancelled.iter().all(|task| self.kept.contains_key(task)), "cancelled and not kept");
        let queued = self.workers.iter().flat_map(|(id, w)| w.queue.iter().map(move |task| (id, task)));
        let counts = queued.filter(|(id, task)| self.runs.get(*task).is_some_and(|r| r.given == Some(**id)));
        let given = self.runs.values().filter(|run| run.given.is_some()).count();
        assert_eq!(counts.count(), given, "a run is with no worker, or twice with one");
        for (hold, demand, free) in self.ledger.reservations() {
            let mut sum = free.clone();
            for lease in
                self.workers.values().filter_map(|w| w.lease.as_ref()).filter(|l| l.from == Some(*hold))
            {
                let demand = &self.classes[lease.class].demand;
                sum.give(demand);
                sum.cpu_milli -= if lease.with_cpu { 0 } else { demand.cpu_milli };
            }
            assert_eq!(sum, *demand, "what is reserved for {hold:?} leaked or was taken twice");
        }
        assert_eq!(held, self.config.resources, "resources leaked or were taken twice");
        assert_eq!(devices.free_milli(), held.of(GPU), "devices leaked or were taken twice");
        let placed = self.kept.len() + self.hedges.running_beside();
        assert!(self.kept.len() < 64 || self.placed.values().all(|n| *n as usize <= placed));
    }
}
