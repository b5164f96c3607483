//! G5, R16, V2, V3: *when faults stop, everything that was asked for is answered within a bound.*

use super::Found;
use crate::core::world::World;
use std::time::Duration;

/// Everything is answered so long after the last fault; or, where few nodes are left for much work, answers
/// go on coming.
pub const BOUND: Duration = Duration::from_secs(90);
/// Answers may be so far apart then.
const PAUSE: Duration = Duration::from_secs(45);
/// Everything is answered so long after the last fault, whatever is left.
const LAST: Duration = Duration::from_secs(1500);

/// Watches the clock.
#[derive(Default)]
pub struct Liveness {
    pub(super) found: Found,
    /// Fewest gets that were open, and since when that is so.
    open: Option<(usize, Duration)>,
}

impl World {
    /// Objects when the time is up.
    pub fn judge_liveness(&mut self) {
        let since = self.now().since(mobula_base::Instant::default());
        let (count, past) = (self.driver.wanted.len(), since.saturating_sub(self.options.faults_end));
        let least = self.judges.liveness.open.get_or_insert((count, since));
        if count < least.0 {
            *least = (count, since);
        }
        let goes_on = since < least.1 + PAUSE && past < LAST;
        if past < BOUND || goes_on || self.driver.is_content() {
            return;
        }
        let open: Vec<String> = self.driver.wanted.iter().take(3).map(|object| self.why(*object)).collect();
        let lives = self.machines.iter().filter_map(|machine| machine.life.as_deref());
        let busy = lives.map(|life| &life.core).filter(|core| core.census().kept.iter().any(|(_, n)| *n > 0));
        let busy: Vec<String> =
            busy.map(|core| format!("{:?}, {:?}", core.census(), core.why_waiting(4))).collect();
        let lives = self.machines.iter().filter_map(|machine| machine.life.as_deref());
        let runs = lives.flat_map(|life| life.clients.values()).filter_map(|client| client.run.as_ref());
        let waits: Vec<String> = runs
            .filter_map(|run| run.waits_for())
            .map(|(task, object)| format!("{task} waits for {}", self.why(object)))
            .collect();
        let lives = self.machines.iter().filter_map(|machine| machine.life.as_deref());
        let stores: Vec<String> = lives
            .filter(|life| life.store.waiting() > 0)
            .map(|life| {
                let (n, store) = (life.incarnation, &life.store);
                format!(
                    "{n}: {} wait for room, {:?} used, {:?}",
                    store.waiting(),
                    store.usage(),
                    store.count()
                )
            })
            .collect();
        let text = format!(
            "{count} gets have no answer {past:?} after the last fault: {}; stores: {stores:?}; at work: {}; {}",
            open.join("; "),
            busy.join("; "),
            waits.join("; ")
        );
        self.judges.liveness.found.get_or_insert(text);
    }

    /// What is known of an object that nobody answers for.
    pub(super) fn why(&self, object: mobula_base::ObjectId) -> String {
        let home = object.task.run.shard(self.shards.len() as u32).0 as usize;
        let shard = &self.shards[home];
        let record = shard.state.tasks.get(object.task).ok().flatten();
        let standing = record.map(|record| record.standing);
        let settled = shard.holdings.settled(shard.members.live.keys(), shard.members.last_death);
        format!("{object}: shard {home} (settled: {settled}) has {standing:?}")
    }
}
