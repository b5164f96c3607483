//! Throughput grows as the cluster does, and a task costs as many messages in a large one as in a small one.
//!
//! Every node has a driver, as in the scaling figure of Ray's paper: one driver's node is a bottleneck by
//! design, because it keeps all the tasks that are submitted there.

use super::driver::{Driver, Strand, plain, spread};
use super::shape::Shape;
use super::worker::SMALL;
use super::world::World;
use std::time::Duration;

/// One size of cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Nodes.
    pub nodes: usize,
    /// Shards.
    pub shards: u32,
    /// Tasks that ended in a second.
    pub tasks_per_s: f64,
    /// Messages that a task took, on the average.
    pub messages: f64,
    /// Records and the like in them.
    pub items: f64,
}

/// Tasks of each driver on a growing cluster.
const TASKS: u64 = 40;
/// One task in so many goes wherever there is least to do; the others stay where there is room, which is at home.
const SPREAD_EVERY: u64 = 8;

/// Drivers that keep their own node busy, and send some of their tasks all over the cluster.
pub fn with_nodes(nodes: usize, shards: u32) -> Point {
    let mut world = World::new(Shape { nodes, shards, ..Shape::default() });
    let start = world.now();
    for node in 0..nodes {
        let make = |task, index| match index % SPREAD_EVERY {
            0 => spread(plain(task, SMALL)),
            _ => plain(task, SMALL),
        };
        // As many as a node takes: one that runs and one that waits for each CPU.
        let window = 2 * u64::from(world.shape.cpus);
        world.drive(node, Driver::new(vec![Strand::new(node as u64, TASKS, window, Box::new(make))]));
    }
    world.run_out();
    let (from, to) = (start + Duration::from_millis(20), start + Duration::from_millis(80));
    point(&world, nodes as u64 * TASKS, world.tally.ended_within(from, to) as f64 / (to - from).as_secs_f64())
}

/// Nodes that have nothing to wait for but the control store: each task begins once its record is committed.
const DEMAND: usize = 32;
/// Threads of each driver: their tasks are of different runs, and so of different shards.
const STRANDS: u64 = 4;

/// So many shards, which take a thousand items a second each, and more to do than they can take.
pub fn with_shards(shards: u32) -> Point {
    let slow = Shape {
        nodes: DEMAND,
        shards,
        item: Duration::from_millis(1),
        task: (Duration::from_millis(1), Duration::from_millis(2)),
        ..Shape::default()
    };
    let mut world = World::new(slow);
    let start = world.now();
    for node in 0..DEMAND {
        let make = |task, _| mobula_proto::TaskSpec { commit_first: true, ..plain(task, SMALL) };
        let strand = |number| Strand::new(node as u64 * STRANDS + number, u64::MAX, 4, Box::new(make));
        world.drive(node, Driver::new((0..STRANDS).map(strand).collect()));
    }
    let (from, to) = (start + Duration::from_millis(1_000), start + Duration::from_millis(3_000));
    world.run_until(to);
    let ended = world.tally.ended;
    point(&world, ended, world.tally.ended_within(from, to) as f64 / (to - from).as_secs_f64())
}

fn point(world: &World, tasks: u64, tasks_per_s: f64) -> Point {
    assert_eq!(world.tally.ended, tasks);
    Point {
        nodes: world.shape.nodes,
        shards: world.shape.shards,
        tasks_per_s,
        messages: world.tally.messages() as f64 / tasks as f64,
        items: world.tally.items as f64 / tasks as f64,
    }
}
