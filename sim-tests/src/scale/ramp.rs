//! How soon a large cluster is busy: 80,000 tasks for as many CPUs on 360 nodes.
//!
//! A user of Ray waited 30 minutes for less than half of it, in 222 rounds of leases (ray#61004). A round is what
//! a scheduler cannot do without when it decides again after each answer: a message there, and one back. What
//! computing the places costs the driver's node comes on top, and grows with tasks times nodes.

use super::driver::{Driver, Strand, plain};
use super::shape::Shape;
use super::worker::SMALL;
use super::world::World;
use std::time::Duration;

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    /// All of them.
    pub nodes: usize,
    /// Of these, where tasks were submitted.
    pub drivers: usize,
    /// All CPUs.
    pub cpus: u64,
    /// How long it took until 95 % of them had something to do, if they ever had.
    pub busy_after: Option<Duration>,
    /// The same in rounds: a message from one node to another, and one back.
    pub rounds: Option<f64>,
    /// How many were busy in the end.
    pub busy: u64,
}

/// Tasks that last, submitted all at once by so many drivers on nodes of their own.
pub fn ramp(nodes: usize, cpus: u32, tasks: u64, drivers: usize) -> Ramp {
    let minutes = (Duration::from_secs(600), Duration::from_secs(1200));
    let mut world = World::new(Shape { nodes, cpus, task: minutes, ..Shape::default() });
    let start = world.now();
    let each = tasks / drivers as u64;
    for driver in 0..drivers {
        let make = Box::new(|task, _| plain(task, SMALL));
        let strand = Strand::new(driver as u64, each, each, make);
        world.drive(driver * nodes / drivers, Driver::new(vec![strand]));
    }
    world.run_until(start + Duration::from_secs(1));
    let cpus = world.shape.cpus_in_all();
    let round = 2 * world.shape.latency;
    let busy_after = world.tally.first_with(start, cpus * 95 / 100).map(|at| at - start);
    let rounds = busy_after.map(|after| after.as_secs_f64() / round.as_secs_f64());
    Ramp {
        nodes,
        drivers,
        cpus,
        busy_after,
        rounds,
        busy: world.tally.running.last().map_or(0, |(_, now)| *now),
    }
}
