//! One of ten nodes is ten times as slow as the others: its last tasks are all that anybody waits for, and are begun
//! elsewhere, too, if they are pure and their job may hedge (decision 29).

use super::driver::{Driver, Strand, plain, pure};
use super::shape::Shape;
use super::worker::SMALL;
use super::world::World;
use std::time::Duration;

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stragglers {
    /// When the last task had ended.
    pub took: Duration,
    /// How long before that 99 of 100 had.
    pub tail: Duration,
    /// Attempts that began beside another.
    pub hedges: u64,
    /// How many tasks ended.
    pub ended: u64,
}

const TASKS: u64 = 2_000;

/// 2,000 tasks of a tenth of a second on ten nodes of four CPUs, of which node 5 is ten times as slow; so many of a
/// thousand may be hedged.
pub fn stragglers(hedge_permille: u32) -> Stragglers {
    let task = (Duration::from_millis(90), Duration::from_millis(110));
    let mut world =
        World::new(Shape { nodes: 10, slow: Some((5, 10)), hedge_permille, task, ..Shape::default() });
    let begin = world.now();
    let make = Box::new(|task, _| pure(plain(task, SMALL)));
    world.drive(0, Driver::new(vec![Strand::new(0, TASKS, TASKS, make)]));
    world.run_until_ended(TASKS);
    let ends = &world.tally.ends;
    let (most, last) = (ends[(TASKS * 99 / 100) as usize - 1], ends[TASKS as usize - 1]);
    Stragglers {
        took: last.since(begin),
        tail: last.since(most),
        hedges: world.tally.hedges,
        ended: world.tally.ended,
    }
}
