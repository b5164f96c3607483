//! How long records linger on a simulated node.

use std::time::Duration;

/// As in production, hardly, and not at all.
const LINGERS: [Duration; 4] =
    [mobula_scheduler::LINGER, Duration::ZERO, Duration::from_millis(20), Duration::from_millis(2)];

/// Of the life with this number: each machine has all of them in turn.
pub fn of(life: u64) -> Duration {
    LINGERS[life as usize % LINGERS.len()]
}
