//! Tasks go to their data: figure 8a of Ray's paper, with a link of 1 Gb/s between two nodes.

use super::JOB;
use super::driver::{Driver, Strand, on, plain, spread, taking};
use super::shape::Shape;
use super::worker::{LARGE, SMALL};
use super::world::World;
use mobula_base::TaskId;
use mobula_base::ids::hash64;
use std::time::Duration;

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Locality {
    /// Bytes of each input.
    pub bytes: u64,
    /// How long all tasks took together.
    pub took: Duration,
    /// Inputs that were brought from the other node.
    pub transfers: u64,
}

/// Tasks, and inputs.
pub const TASKS: u64 = 1_000;

/// So many tasks with one random input each, on two nodes that have half of the inputs each. Unaware: they are
/// placed wherever there is least to do.
pub fn locality(bytes: u64, aware: bool) -> Locality {
    let mut world = World::new(Shape { nodes: 2, large_bytes: bytes, ..Shape::default() });
    let inputs = Box::new(|task, index| on(plain(task, LARGE), index as usize % 2));
    world.drive(0, Driver::new(vec![Strand::new(0, TASKS, TASKS, inputs)]));
    world.run_until_ended(TASKS);
    let start = world.now();
    let make = Box::new(move |task, index: u64| {
        let input = hash64(&[b"input", &index.to_le_bytes()]) % TASKS;
        let input = TaskId::new(JOB, TaskId::root(JOB), 0, input).output(0);
        let spec = taking(plain(task, SMALL), input);
        if aware { spec } else { spread(spec) }
    });
    world.drive(0, Driver::new(vec![Strand::new(1, TASKS, TASKS, make)]));
    world.run_until_ended(2 * TASKS);
    Locality { bytes, took: world.now() - start, transfers: world.tally.transfers }
}
