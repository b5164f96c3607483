//! G8, V4: *when all is answered, nothing is kept, nothing runs, every CPU is free, no record waits; when the
//! job has ended, no object is left.*

use super::{Found, liveness};
use crate::core::program::JOB;
use crate::core::world::World;
use mobula_base::{Instant, ShardId};
use mobula_proto::{JobEnd, call};

/// How far the end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Gets are open.
    #[default]
    Answers,
    /// The job is being ended.
    Ending,
}

/// Looks at what is left.
#[derive(Default)]
pub struct Leak {
    pub(super) found: Found,
    stage: Stage,
}

impl World {
    /// A look at the end; true when all is over.
    pub fn judge_end(&mut self) -> bool {
        if self.driver.lost {
            return true;
        }
        self.judge_liveness();
        let late = self.now().since(Instant::default()) >= self.options.faults_end + liveness::BOUND * 2;
        match self.judges.leak.stage {
            Stage::Answers => {
                if !self.driver.is_content() {
                    return false;
                }
                let left = self.left();
                if left.is_none() {
                    self.judges.leak.stage = Stage::Ending;
                    let epoch = self.machines[0].epoch;
                    self.call(0, epoch, call::Op::JobEnd(JobEnd { job: JOB.0, succeeded: true }));
                } else if late {
                    self.judges.leak.found = left;
                }
                false
            }
            Stage::Ending => {
                let left = self.objects_left();
                if left.is_some() && late {
                    self.judges.leak.found = left.clone();
                }
                self.driver.ended && left.is_none()
            }
        }
    }

    /// What is still kept, runs or waits, if anything.
    fn left(&self) -> Option<String> {
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(life) = machine.life.as_deref() else {
                return Some(format!("machine {number} is not up"));
            };
            let census = life.core.census();
            let busy = |counts: &[(&'static str, u64)]| counts.iter().any(|(_, count)| *count > 0);
            let free = census.cpu_milli.0 == census.cpu_milli.1;
            if busy(&census.kept) || busy(&census.runs) || census.unacknowledged > 0 || !free {
                return Some(format!("machine {number} ({}) still has {census:?}", life.incarnation));
            }
        }
        None
    }

    /// What is still in a store after the job's end, if anything.
    fn objects_left(&self) -> Option<String> {
        for (number, machine) in self.machines.iter().enumerate() {
            let life = machine.life.as_deref()?;
            let held: usize =
                (0..self.shards.len() as u32).map(|shard| life.core.held(ShardId(shard)).len()).sum();
            let bytes = life.store.usage().0;
            if held > 0 || bytes > 0 {
                return Some(format!("machine {number} still has {held} objects, {bytes} bytes"));
            }
        }
        None
    }
}
