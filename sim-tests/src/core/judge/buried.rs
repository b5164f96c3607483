//! R10, G8: *when all has settled, the dead hold nothing: neither an object nor a record.*

use crate::core::world::World;

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

    /// What shards still know of jobs that are over.
    pub(super) fn records_left(&self) -> Option<String> {
        let left = |(number, shard): (usize, &crate::core::shard::Shard)| {
            let (tasks, puts) = (shard.state.tasks.len(), shard.state.puts.len());
            let hot = shard.state.tasks.hot().count();
            (tasks > 0 || puts > 0 || hot > 0).then(|| {
                format!("shard {number} still has {tasks} records, {hot} runs and {puts} puts of a job that is over")
            })
        };
        self.shards.iter().enumerate().find_map(left)
    }
}
