//! Losing two of thirty nodes costs what they ran, and the others not a moment.
//!
//! A user of Ray lost 60 of 900 CPUs and saw all the others stop, with thousands of tasks waiting (ray#48996).

use super::driver::{Driver, Strand, plain};
use super::shape::Shape;
use super::worker::SMALL;
use super::world::World;
use std::time::Duration;

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// CPUs of the survivors.
    pub surviving: u64,
    /// How many tasks ran just before.
    pub before: u64,
    /// The fewest that ran at any moment from the loss on, while tasks waited.
    pub fewest: u64,
    /// How many ended.
    pub ended: u64,
}

const TASKS: u64 = 6_000;

/// 30 nodes of 30 CPUs lose two, with thousands of tasks waiting.
pub fn loss() -> Loss {
    let seconds = (Duration::from_secs(1), Duration::from_secs(3));
    let mut world = World::new(Shape { nodes: 30, cpus: 30, task: seconds, ..Shape::default() });
    let make = Box::new(|task, _| plain(task, SMALL));
    world.drive(0, Driver::new(vec![Strand::new(0, TASKS, TASKS, make)]));
    let at = world.now() + Duration::from_secs(3);
    world.run_until(at);
    let before = world.tally.fewest(at, at);
    world.lose(&[10, 20]);
    // Two seconds until the deaths are known, and as long again after.
    let until = at + Duration::from_secs(5);
    world.run_until(until);
    let waiting = TASKS - world.tally.ended;
    let surviving = 28 * u64::from(world.shape.cpus);
    assert!(waiting > 2 * surviving, "there was not enough to do: {waiting} tasks");
    let fewest = world.tally.fewest(at, until);
    world.run_until_ended(TASKS);
    Loss { surviving, before, fewest, ended: world.tally.ended }
}
