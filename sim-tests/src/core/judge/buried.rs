//! What is left when all has settled. R10, G8: *the dead hold nothing.* R4: *no record waits for an end that nobody
//! will bring: who answers for it keeps it, or is dead.* G8: *no record is left of a job that is over.*

use crate::core::world::World;
use mobula_base::TaskId;

impl World {
    /// What one of the dead still holds in some shard, if anything.
    pub(super) fn held_by_the_dead(&self) -> Option<String> {
        for (number, shard) in self.shards.iter().enumerate() {
            let state = &shard.state;
            let dead = |who: &u64| self.judges.fenced.is_fenced(number, *who);
            for (run, record) in state.tasks.hot() {
                if let Some(who) = record.explicit_holders().find(dead) {
                    return Some(format!(
                        "shard {number}: {who} is dead, and holds something of run {run:?}"
                    ));
                }
            }
            for (object, put) in &state.puts {
                if let Some(who) = put.needed.holders().find(dead) {
                    return Some(format!("shard {number}: {who} is dead, and holds {object}"));
                }
            }
        }
        None
    }

    /// A record without an end, although nobody keeps a task any more.
    pub(super) fn waits_in_vain(&self) -> Option<String> {
        for (number, shard) in self.shards.iter().enumerate() {
            for (run, record) in shard.state.tasks.hot() {
                for place in record.present().iter().filter(|place| !record.has_ended(*place)) {
                    let Some(standing) = record.standing(place) else { continue };
                    let task = TaskId { run, place };
                    let (attempt, keeper) = (standing.attempt, standing.keeper);
                    // What was given up may stay for who needs it, or since it must not run twice; it waits for nothing.
                    let may_stay =
                        || record.needed_of(place).next().is_some() || self.oracle.tasks[&task].retries == 0;
                    let given_up = keeper == 0 && (!self.options.counts || may_stay());
                    if !given_up && !self.judges.fenced.is_dead_somewhere(keeper) {
                        let why = self.why_it_stays(task);
                        return Some(format!(
                            "shard {number} waits for the end of attempt {attempt} of {task}, and {keeper} keeps nothing: {why}"
                        ));
                    }
                }
            }
        }
        None
    }

    /// What shards still know of jobs that are over.
    pub(super) fn records_left(&self) -> Option<String> {
        let left = |(number, shard): (usize, &crate::core::shard::Shard)| {
            let (tasks, puts) = (shard.state.tasks.len(), shard.state.puts.len());
            let (hot, rest) = (shard.state.tasks.hot().count(), shard.state.counting.leftover());
            (tasks > 0 || puts + hot + rest > 0).then(|| {
                format!(
                    "shard {number} still has {tasks} records, {hot} runs, {puts} puts and {rest} notes on them, of a job \
                     that is over"
                )
            })
        };
        self.shards.iter().enumerate().find_map(left)
    }
}
