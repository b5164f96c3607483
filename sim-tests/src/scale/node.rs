//! The shell around one core: what comes in is stepped, effects are performed.

use super::JOB;
use super::driver::Driver;
use super::shape::Shape;
use super::worker::Worker;
use super::world::{What, World};
use mobula_base::{Incarnation, Instant, ObjectId, Resources};
use mobula_scheduler::{ClientId, Config, Core, Effect, Event, LINGER, Ready, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// A message between a client and its daemon takes this long.
pub const LINK: Duration = Duration::from_micros(30);
/// What comes within this time is one turn of the daemon.
pub(super) const TURN: Duration = Duration::from_micros(20);
/// A worker process starts this fast.
const SPAWN: Duration = Duration::from_millis(20);
/// The driver's link.
pub const DRIVER: ClientId = 1;

/// A node.
pub struct Node {
    /// What decides.
    pub core: Core,
    pub(super) up: bool,
    pub(super) driver: Option<Driver>,
    pub(super) workers: BTreeMap<ClientId, Worker>,
    next_client: ClientId,
    inbox: Vec<Event>,
    turning: bool,
    tick: Option<Instant>,
}

impl Node {
    /// One that has just joined.
    pub fn new(number: usize, shape: &Shape) -> Self {
        let config = Config {
            incarnation: Incarnation(number as u64 + 1),
            shards: shape.shards,
            name: String::new(),
            resources: Resources::cpus_milli(u64::from(shape.cpus) * 1000),
            labels: BTreeMap::new(),
            workers: shape.cpus,
            linger: LINGER,
            crc: |bytes| bytes.len() as u32,
        };
        Node {
            core: Core::new(config),
            up: true,
            driver: None,
            workers: BTreeMap::new(),
            next_client: 10,
            inbox: Vec::new(),
            turning: false,
            tick: None,
        }
    }
}

impl World {
    /// Something comes to a node; if it is dead, to nobody.
    pub(super) fn comes(&mut self, node: usize, event: Event) {
        let n = &mut self.nodes[node];
        if !n.up {
            return;
        }
        n.inbox.push(event);
        if !std::mem::replace(&mut n.turning, true) {
            self.queue.after(TURN, What::Turn { node });
        }
    }

    /// A node looks at all that has come, and steps its core.
    pub(super) fn turn(&mut self, node: usize) {
        let now = self.queue.now();
        let n = &mut self.nodes[node];
        let ticks = n.tick.is_some_and(|at| at <= now);
        if !n.up || !(n.turning || ticks) {
            return;
        }
        n.turning = false;
        if ticks {
            n.tick = None;
        }
        let mut effects = Vec::new();
        n.core.step(std::mem::take(&mut n.inbox), now, &mut effects);
        if let Some(deadline) = n.core.deadline()
            && n.tick.is_none_or(|at| at > deadline)
        {
            n.tick = Some(deadline);
            self.queue.at(deadline, What::Turn { node });
        }
        for effect in effects {
            self.perform(node, effect);
        }
    }

    fn perform(&mut self, node: usize, effect: Effect) {
        let from = Incarnation(node as u64 + 1);
        match effect {
            Effect::Run { worker, spec, attempt, .. } => {
                self.queue.after(LINK, What::Given { node, worker, spec, attempt });
            }
            Effect::Spawn { job } => {
                let n = &mut self.nodes[node];
                let worker = n.next_client;
                n.next_client += 1;
                n.workers.insert(worker, Worker::default());
                self.queue.after(SPAWN, What::Comes { node, event: Event::WorkerUp { worker, job } });
            }
            Effect::Assign { to, assign } => self.tell(to, Event::Assigned { from, assign }),
            Effect::Result { to, result } => self.tell(to, Event::PeerResult { from, result }),
            Effect::NewItems { to, news } => self.tell(to, Event::NewItems { from, news }),
            Effect::TellTaken { to, task, taken } => self.tell(to, Event::PeerTaken { from, task, taken }),
            // No program here has streams.
            Effect::ItemsTaken { .. } | Effect::ItemsMade { .. } => {}
            Effect::Waiting { to, tasks } => self.tell(to, Event::PeerWaiting { from, tasks }),
            Effect::TakeBack { to, task, attempt } => {
                self.tell(to, Event::TakenBack { from, task, attempt });
            }
            Effect::Durable { to, task, attempt } => {
                self.tell(to, Event::PeerDurable { from, task, attempt });
            }
            Effect::Cancel { to, tasks, recursive } => {
                self.tell(to, Event::Cancel { from: Some(from), tasks, recursive });
            }
            Effect::Freed { to, objects } => self.tell(to, Event::Freed { objects }),
            Effect::Replicate { to, object, job, output, want, at } => {
                self.tell(to, Event::Replicate { object, job, holder: from, output, want, at });
            }
            Effect::Send { shard, batch } => {
                self.tally.with_shards += 1;
                self.tally.items += batch.items.len() as u64;
                let shard = shard.0 as usize;
                self.queue.after(self.wire.latency(), What::Reaches { shard, node, batch });
            }
            Effect::Fetch { object, from, output, .. } => self.fetch(node, object, from, output),
            Effect::Ready { client: DRIVER, object, ready } => self.driver_told(node, object, &ready),
            Effect::Notice { notice, .. } if notice.kind == "hedge" => self.tally.hedges += 1,
            Effect::Locate { .. } | Effect::Kill { .. } | Effect::Retire { .. } | Effect::Stop { .. } => {
                panic!("nothing is lost, cancelled or in vain here: {effect:?}")
            }
            // Workers ask for nothing, copies take no room, and what is only reported nobody asks about.
            Effect::Ready { .. }
            | Effect::Committed { .. }
            | Effect::Held { .. }
            | Effect::Discard { .. }
            | Effect::TellClaims
            | Effect::Group { .. }
            | Effect::Notice { .. }
            | Effect::FreeJob(_) => {}
        }
    }

    fn tell(&mut self, to: Incarnation, event: Event) {
        self.tally.between_nodes += 1;
        let node = to.0 as usize - 1;
        self.queue.after(self.wire.latency(), What::Comes { node, event });
    }

    fn fetch(&mut self, node: usize, object: ObjectId, from: Incarnation, output: mobula_proto::Output) {
        let now = self.queue.now();
        let arrives = self.wire.bulk(now, from.0 as usize - 1, node, output.size);
        self.tally.transfers += 1;
        self.tally.transferred += output.size;
        let value = Value::Shared { offset: 0, len: output.size, crc: output.crc };
        self.queue.at(arrives, What::Comes { node, event: Event::Fetched { object, value } });
    }

    fn driver_told(&mut self, node: usize, object: ObjectId, ready: &Ready) {
        assert!(!matches!(ready, Ready::Failed(_)), "{object:?}: {ready:?}");
        let Some(more) = self.nodes[node].driver.as_mut().and_then(|driver| driver.ended(object)) else {
            return;
        };
        self.tally.ended += 1;
        self.tally.ends.push(self.queue.now());
        self.submit(node, more, LINK + LINK);
    }

    /// A driver's submissions reach its node after so long.
    pub(super) fn submit(&mut self, node: usize, specs: Vec<mobula_proto::TaskSpec>, after: Duration) {
        if specs.is_empty() {
            return;
        }
        self.tally.submitted += specs.len() as u64;
        let event = Event::Submit { client: DRIVER, specs };
        self.queue.after(after, What::Comes { node, event });
    }

    /// A worker has a task more.
    pub(super) fn given(&mut self, node: usize, worker: ClientId, task: (super::world::Spec, u32)) {
        if !self.nodes[node].up {
            return;
        }
        let queue = &mut self.nodes[node].workers.get_mut(&worker).expect("it was started").queue;
        queue.push_back(task);
        if queue.len() == 1 {
            self.begin(node, worker);
        }
    }

    fn begin(&mut self, node: usize, worker: ClientId) {
        let Some(takes) = self.nodes[node].workers[&worker].takes(&self.shape, node) else { return };
        self.tally.runs(self.queue.now(), 1);
        self.queue.after(takes, What::Ends { node, worker });
    }

    /// A worker has done a task, and goes on with the next.
    pub(super) fn ends(&mut self, node: usize, worker: ClientId) {
        if !self.nodes[node].up {
            return;
        }
        let at = self.nodes[node].workers.get_mut(&worker).expect("it was started");
        let outcomes = at.end(&self.shape, node).into_iter().collect();
        self.tally.runs(self.queue.now(), -1);
        self.queue.after(LINK, What::Comes { node, event: Event::Finished { worker, outcomes } });
        self.begin(node, worker);
    }

    /// How many workers of a node run something.
    pub(super) fn running_on(&self, node: usize) -> usize {
        self.nodes[node].workers.values().filter(|worker| !worker.queue.is_empty()).count()
    }

    /// The job begins on every node: workers start.
    pub(super) fn start_job(&mut self) {
        for node in 0..self.nodes.len() {
            self.comes(node, Event::JobStarted { job: JOB, counted: true });
            self.comes(node, Event::HedgeBudget { job: JOB, permille: self.shape.hedge_permille });
        }
    }
}
