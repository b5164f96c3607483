//! All there is, and the loop over its events.

use super::driver::Driver;
use super::node::{Node, TURN};
use super::shape::Shape;
use super::shard::Shard;
use super::tally::Tally;
use super::wire::Wire;
use crate::core::queue::Queue;
use mobula_base::{Instant, ShardId};
use mobula_proto::{ClusterView, NodeView, StreamBatch, TaskSpec};
use mobula_scheduler::{ClientId, Event};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A specification, shared with the core.
pub type Spec = Arc<TaskSpec>;

/// A node that falls silent is known to be dead after this: longer than the control store takes.
const DETECTED_AFTER: Duration = Duration::from_millis(2_000);

/// What happens.
pub(super) enum What {
    /// Something comes to a node.
    Comes { node: usize, event: Event },
    /// A node's daemon takes its turn.
    Turn { node: usize },
    /// A worker has a task more.
    Given { node: usize, worker: ClientId, spec: Spec, attempt: u32 },
    /// A worker's running task ends.
    Ends { node: usize, worker: ClientId },
    /// A batch reaches a shard.
    Reaches { shard: usize, node: usize, batch: StreamBatch },
    /// The death of nodes is committed.
    Declared,
    /// A node hears who is there.
    Seen { node: usize, view: Rc<ClusterView> },
}

/// A cluster.
pub struct World {
    /// How large, how fast.
    pub shape: Shape,
    /// What was counted.
    pub tally: Tally,
    pub(super) queue: Queue<What>,
    pub(super) nodes: Vec<Node>,
    pub(super) wire: Wire,
    shards: Vec<Shard>,
}

impl World {
    /// A cluster whose nodes know each other and whose workers are up.
    pub fn new(shape: Shape) -> Self {
        let mut world = World {
            tally: Tally::default(),
            queue: Queue::default(),
            nodes: (0..shape.nodes).map(|number| Node::new(number, &shape)).collect(),
            wire: Wire::new(shape.latency, shape.link_bytes_per_s),
            shards: (0..shape.shards).map(|number| Shard::new(number, &shape)).collect(),
            shape,
        };
        world.view();
        world.start_job();
        world.run_until(Instant::from_millis(100));
        world
    }

    /// Virtual time.
    pub fn now(&self) -> Instant {
        self.queue.now()
    }

    /// Every node hears who is there.
    fn view(&mut self) {
        let one = |(number, node): (usize, &Node)| NodeView {
            incarnation: number as u64 + 1,
            cpu_milli: self.shape.cpus * 1000,
            alive: node.up,
            ..NodeView::default()
        };
        let nodes: Vec<NodeView> = self.nodes.iter().enumerate().map(one).collect();
        let view = ClusterView { version: 1, nodes, ..ClusterView::default() };
        // One after the other, as answers to watches are: a thousand views at once would fill the memory.
        let view = Rc::new(view);
        for node in 0..self.nodes.len() {
            let after = self.wire.latency() + 2 * TURN * node as u32;
            self.queue.after(after, What::Seen { node, view: view.clone() });
        }
    }

    /// A driver on a node begins.
    pub fn drive(&mut self, node: usize, mut driver: Driver) {
        let specs = driver.begin();
        self.nodes[node].driver = Some(driver);
        self.submit(node, specs, Duration::ZERO);
    }

    /// Nodes vanish at once with all they run; that is known some time later.
    pub fn lose(&mut self, nodes: &[usize]) {
        for node in nodes {
            let running = self.running_on(*node) as i64;
            self.nodes[*node].up = false;
            self.tally.runs(self.queue.now(), -running);
        }
        self.queue.after(DETECTED_AFTER, What::Declared);
    }

    /// Lets things happen until then.
    pub fn run_until(&mut self, until: Instant) {
        while self.queue.next_at().is_some_and(|at| at <= until) {
            self.happen();
        }
    }

    /// Lets things happen until drivers have been told of so many ends; panics when nothing more happens.
    pub fn run_until_ended(&mut self, tasks: u64) {
        while self.tally.ended < tasks {
            assert!(self.happen(), "stuck with {} of {tasks} tasks ended", self.tally.ended);
        }
    }

    /// Lets things happen until nothing more does.
    pub fn run_out(&mut self) {
        while self.happen() {}
    }

    fn happen(&mut self) -> bool {
        let Some(what) = self.queue.pop() else { return false };
        match what {
            What::Comes { node, event } => self.comes(node, event),
            What::Turn { node } => self.turn(node),
            What::Given { node, worker, spec, attempt } => self.given(node, worker, (spec, attempt)),
            What::Ends { node, worker } => self.ends(node, worker),
            What::Reaches { shard, node, batch } => self.reaches(shard, node, batch),
            What::Declared => self.declared(),
            What::Seen { node, view } => self.comes(node, Event::View(ClusterView::clone(&view))),
        }
        true
    }

    fn reaches(&mut self, shard: usize, node: usize, batch: StreamBatch) {
        let now = self.queue.now();
        let Some((done, ack)) = self.shards[shard].serve(now, batch) else { return };
        self.tally.with_shards += 1;
        let event = Event::Acked { shard: ShardId(shard as u32), ack, moved: Vec::new() };
        self.queue.at(done + self.wire.latency(), What::Comes { node, event });
    }

    /// Every shard has fenced the dead before anyone acts on it (R10).
    fn declared(&mut self) {
        for node in (0..self.nodes.len()).filter(|node| !self.nodes[*node].up) {
            self.shards.iter_mut().for_each(|shard| shard.fence(node as u64 + 1));
        }
        self.view();
    }
}
