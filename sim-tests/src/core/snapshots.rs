//! A replica that leads next may have started from a snapshot: it must have all that was applied.

use super::world::World;

impl World {
    /// A shard's state is written to a snapshot and read back, sometimes, when its leadership ends.
    pub fn may_start_from_snapshot(&mut self, shard: usize) {
        if !self.dice.permille(self.options.snapshot_permille) {
            return;
        }
        let level = self.shards[0].state.cluster.level().0;
        let state = &mut self.shards[shard].state;
        let before = state.digest();
        let (dump, files) = (state.snapshot(level), state.manifest());
        let restored = state.restore(dump.into(), &files);
        let after = state.digest();
        match restored {
            Err(error) => self.judges.harness(format!("shard {shard} does not read its snapshot: {error}")),
            Ok(()) if before != after => {
                let text =
                    format!("shard {shard} is another after a snapshot: {before:016x}, then {after:016x}");
                self.judges.snapshot(text);
            }
            Ok(()) => self.sometimes.hit("leader started from a snapshot"),
        }
    }
}
