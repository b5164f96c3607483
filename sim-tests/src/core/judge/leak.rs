//! G8, V4: *when all is answered, nothing is kept, nothing runs, every CPU is free, no record waits; when nothing
//! is referred to any more, no record and no object is left, unless a node has died: what it had named may then
//! stay until the job ends, which is counted; when the job has ended, neither an object nor a record is left.*

use super::{Found, liveness};
use crate::core::life::{DRIVER, Said};
use crate::core::world::World;
use mobula_base::{Instant, ShardId, TaskId};
use mobula_gcs::core::run::Run;
use std::collections::BTreeSet;
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
    /// Everything was answered then.
    answered: Duration,
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
        let now = self.now().since(Instant::default());
        if !self.driver.is_content() {
            self.judges.leak.answered = now;
        }
        let settled = (self.options.faults_end + liveness::BOUND).max(self.judges.leak.answered);
        let late = now >= settled + liveness::BOUND;
        match self.judges.leak.stage {
            Stage::Answers => {
                if !self.driver.is_content() {
                    return false;
                }
                let left = self.left().or_else(|| self.held_by_the_dead()).or_else(|| self.waits_in_vain());
                let left = left.or_else(|| self.too_few_copies());
                if self.driver.gone {
                    self.judges.leak.stage = Stage::Ending;
                } else if left.is_none() {
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
                let left = self.left().or_else(|| self.objects_left()).or_else(|| self.records_left());
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
                let why = life.core.why_waiting(4);
                return Some(format!(
                    "machine {number} ({}) still has {why:?} of {census:?}",
                    life.incarnation
                ));
            }
            let running = life.clients.values().find_map(|client| client.run.as_ref());
            if let Some(run) = running {
                return Some(format!(
                    "machine {number} ({}) has no task, and a worker there still runs attempt {} of {}: it waits for {:?}",
                    life.incarnation,
                    run.attempt,
                    run.task,
                    run.waits_for()
                ));
            }
            if let Some(what) = life.core.leftover() {
                return Some(format!(
                    "machine {number} ({}) has no task, and still knows {what}",
                    life.incarnation
                ));
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
                let why = shard.state.tasks.hot().find_map(|(run, record)| {
                    record.present().iter().next().map(|place| self.why_it_stays(TaskId { run, place }))
                });
                return Some(format!("shard {number} still has {records} records, {puts} puts: {why:?}"));
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

    /// From one record along the edges to what keeps it: the end says why all of them stay.
    pub(super) fn why_it_stays(&self, first: TaskId) -> String {
        let (mut chain, mut next) = (Vec::new(), Some(first.output(0)));
        let mut seen = BTreeSet::new();
        while let Some(id) = next.take().filter(|id| seen.insert(*id)) {
            let task = id.task;
            let state = &self.shards[task.run.shard(self.shards.len() as u32).0 as usize].state;
            if let Some(put) = state.puts.get(&id) {
                next = put.needed.edges().next().map(|(by, _)| by);
                chain.push(format!("{id} ({:?})", put.needed));
                continue;
            }
            let look = |run: &Run| {
                let needed: Vec<_> = run.needed_of(task.place).map(|(slot, n)| (slot, n.clone())).collect();
                (run.need(task.place, 0, &state.fenced), run.standing(task.place), needed)
            };
            let Ok(Some((need, standing, needed))) = state.tasks.look(task.run, look) else {
                chain.push(format!("{id}, of which nothing is there"));
                break;
            };
            let mut of =
                needed.iter().flat_map(|(slot, n)| n.edges().map(move |(by, edge)| (*slot, by, edge)));
            let edge = of.find(|(_, by, _)| by.task != task);
            next = edge.map(|(_, by, _)| by);
            chain.push(format!("{id} ({need:?}, {standing:?}, {edge:?})"));
        }
        let around = next.map_or("", |_| " and so on in a ring");
        format!("{}{around}", chain.join(", which is needed by "))
    }

    /// What is still in a store after the job's end, if anything.
    fn objects_left(&self) -> Option<String> {
        for (number, machine) in self.machines.iter().enumerate() {
            let life = machine.life.as_deref()?;
            let held: usize =
                (0..self.shards.len() as u32).map(|shard| life.core.held(ShardId(shard)).len()).sum();
            let (bytes, files) = (life.store.usage().0, machine.disk.files.len());
            if held > 0 || bytes > 0 || files > 0 {
                return Some(format!(
                    "machine {number} still has {held} objects, {bytes} bytes, {files} files"
                ));
            }
        }
        None
    }
}
