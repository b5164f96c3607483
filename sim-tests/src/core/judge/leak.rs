//! G8, V4: *when all is answered, nothing is kept, nothing runs, every CPU is free, no record waits; when nothing
//! is referred to any more, no record and no object is left, unless a node has died: what it had named may then
//! stay until the job ends, which is counted; when the job has ended, no object is left.*

use super::{Found, liveness};
use crate::core::life::{DRIVER, Said};
use crate::core::world::World;
use mobula_base::{Instant, ShardId};
use std::time::Duration;

/// What goes goes within this.
const SETTLES: Duration = Duration::from_secs(20);

/// How far the end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Gets are open.
    #[default]
    Answers,
    /// All references are dropped.
    Dropped,
    /// The job is being ended.
    Ending,
}

/// Looks at what is left.
#[derive(Default)]
pub struct Leak {
    pub(super) found: Found,
    stage: Stage,
    /// When the driver dropped its last references.
    dropped: Duration,
    /// Records or objects stayed until the job ended.
    pub stayed: bool,
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
                    self.judges.leak.stage = Stage::Dropped;
                    self.judges.leak.dropped = self.now().since(Instant::default());
                    self.driver_drops_all();
                } else if late {
                    self.judges.leak.found = left;
                }
                false
            }
            Stage::Dropped => {
                let left = self.references_left().filter(|_| self.options.counts);
                let patient = self.now().since(Instant::default()) >= self.judges.leak.dropped + SETTLES;
                let excused = left.is_some() && patient && self.judges.fenced.deaths > 0;
                self.judges.leak.stayed |= excused;
                if left.is_none() || excused {
                    self.judges.leak.stage = Stage::Ending;
                    let epoch = self.machines[0].epoch;
                    self.say(0, epoch, DRIVER, Said::EndJob);
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

    /// What is left of objects and records when nobody refers to anything.
    fn references_left(&self) -> Option<String> {
        // Nested tasks without retries go only with their job: a replayed parent must not run them again.
        let stays = self.oracle.tasks.iter().any(|(task, known)| {
            known.retries == 0 && self.oracle.tasks.values().any(|parent| parent.children.contains(task))
        });
        for (number, shard) in self.shards.iter().enumerate().filter(|_| !stays) {
            let (records, puts) = (shard.state.tasks.len(), shard.state.puts.len());
            if records > 0 || puts > 0 {
                let all = || {
                    let hot = shard.state.tasks.hot();
                    hot.flat_map(|(run, record)| {
                        record.present().iter().map(move |p| (run, record, p)).collect::<Vec<_>>()
                    })
                };
                let fenced = &shard.state.fenced;
                // What no other record is behind, if there is such a one.
                let root = all().find(|(_, run, place)| {
                    let need = run.need(*place, 0, fenced);
                    !need.contained && !need.named
                });
                let which = root.or_else(|| all().next()).and_then(|(run, record, place)| {
                    let standing = record.standing(place).map(|standing| (standing.attempt, standing.state));
                    let need = record.need(place, 0, &shard.state.fenced);
                    let task = mobula_base::TaskId { run, place };
                    let retries = self.oracle.tasks.get(&task).map(|known| known.retries);
                    let of = |id: &mobula_base::ObjectId| *id == task.output(0);
                    let inside = self.oracle.objects.iter().filter(|(_, expected)| {
                        matches!(expected, crate::core::program::Expected::Value(c) if c.refs.iter().any(of))
                    });
                    let inside: Vec<_> = inside
                        .map(|(id, _)| {
                            (*id, self.oracle.objects.get(&id.task.output(0)), self.why(id.task.output(0)))
                        })
                        .collect();
                    Some(format!(
                        "{task} (retries {retries:?}): {need:?}, {standing:?}; it lies in {inside:?}"
                    ))
                });
                return Some(format!("shard {number} still has {records} records, {puts} puts: {which:?}"));
            }
        }
        for (number, machine) in self.machines.iter().enumerate() {
            let life = machine.life.as_deref()?;
            let (objects, idle) = life.core.census().objects;
            if objects > 0 && !stays {
                return Some(format!(
                    "machine {number} still knows {objects} objects, {idle} of them idle: {:?}",
                    life.core.why_known(3)
                ));
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
