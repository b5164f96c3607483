//! What is next in a move of slots from one shard to another (R12).
//!
//! 1. The plan is an entry of shard 0: which slots, and the epoch of the map it will make.
//! 2. The shard they go to notes that they are on their way (`Await`): it refuses them until they are here.
//! 3. The shard that has them lets them go (`Release`): what lies in them does not change from here on.
//! 4. The first of the two takes their content in, piece by piece (`Copy`); the last piece makes it the
//!    owner.
//! 5. Shard 0 makes the new map (`Switch`); whoever was told `moved` waits for it.
//! 6. The other forgets its copy (`Forget`), and the plan ends (`End`).
//!
//! Every head has a replica of every shard, so whoever leads a shard sees in its own replicas what the
//! others have come to. What is applied is committed and never undone, so a step that is seen to be due
//! is due for good, however old the sight; and each command changes something only in its place. So a
//! move may be interrupted anywhere, and whoever leads next goes on. The doing is in [`driver`].

pub mod driver;
#[cfg(test)]
mod tests;

use crate::core::slot_table::Side;

/// What a head sees of a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Epoch of the map that holds.
    pub map: u64,
    /// Epoch of the map that the plan makes; 0: no plan.
    pub plan: u64,
    /// The shard that has the slots.
    pub from: Side,
    /// The shard they go to.
    pub to: Side,
}

/// What is next, and whose leader does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: no slots move, or too little is seen.
    Rest,
    /// Where they go to: refuse them until they are here.
    Await,
    /// Where they are: let them go.
    Release,
    /// Where they go to: take the next piece in.
    Copy,
    /// Shard 0: make the new map.
    Switch,
    /// Where they were: forget the copy.
    Forget,
    /// Shard 0: the plan is done.
    End,
}

/// The next step of the move that is seen.
pub fn next_step(seen: &Seen) -> Step {
    if seen.plan == 0 {
        Step::Rest
    } else if seen.map >= seen.plan {
        // One who sees the map before the release that led to it sees that shard late.
        match (seen.from.epoch < seen.plan, seen.from.leaving) {
            (true, _) => Step::Rest,
            (false, true) => Step::Forget,
            (false, false) => Step::End,
        }
    } else if seen.to.epoch < seen.plan {
        Step::Await
    } else if seen.from.epoch < seen.plan {
        Step::Release
    } else if seen.to.coming {
        Step::Copy
    } else {
        Step::Switch
    }
}

/// What a move waits for, for people.
pub fn say(step: Step) -> &'static str {
    match step {
        Step::Rest => "",
        Step::Await => "the shard they go to is told",
        Step::Release => "the shard that has them lets them go",
        Step::Copy => "their content is copied",
        Step::Switch => "the new map is made",
        Step::Forget => "the old copy is taken apart",
        Step::End => "its end is noted",
    }
}
