//! What waits for something that nobody knows, and that nobody needs.
//!
//! A node dies before the record of what it was to make has come. A task that was to use it, and whose own record has
//! come, waits on another node. Should anybody need either, then their parent too, which submits both again. If nobody
//! does, nothing ever makes what is missing, and the task would wait until its job ends (decision 18). So its keeper
//! gives it up: the record goes, or stands without a keeper for whoever still needs it and takes it over. So, too, a task
//! that has begun where it is kept and waits inside. One that waits inside on another node is not given up yet.

use crate::core::{Core, KeptState, Record};
use crate::elements::returned;
use crate::execute::Run;
use crate::objects::State;
use crate::submit::arg_objects;
use crate::types::Effect;
use mobula_base::{Instant, JobId, ObjectId, TaskId, mutant};
use mobula_proto::{NextAttempt, located, task_bytes};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A task is given up when what it waits for has been unknown for so long: a record may be on its way.
pub const ABANDON_AFTER: Duration = Duration::from_secs(10);
/// Answers further apart than this do not say that it was unknown in between.
const LAPSE: Duration = Duration::from_secs(5);

/// Objects that homes did not know when they were asked.
#[derive(Debug, Default)]
pub(crate) struct Unknowns {
    /// When that was said first, and last.
    said: BTreeMap<ObjectId, (Instant, Instant)>,
    /// When those that were not said again were last taken out.
    swept: Instant,
    /// A node has died: before, a record can only be late.
    pub bereft: bool,
}

impl Unknowns {
    /// A home does not know of `id`; for how long that has been so.
    fn say(&mut self, id: ObjectId, now: Instant) -> Duration {
        if now.since(self.swept) >= LAPSE {
            self.said.retain(|_, (_, last)| now.since(*last) < LAPSE);
            self.swept = now;
        }
        let (first, last) = self.said.entry(id).or_insert((now, now));
        if now.since(*last) >= LAPSE {
            *first = now;
        }
        *last = now;
        now.since(*first)
    }
}

impl Core {
    /// A home knows nothing of an object that is needed here; for how long that has been so.
    #[cold]
    pub(crate) fn nobody_knows(&mut self, id: ObjectId) -> Duration {
        let so_long = self.unknowns.say(id, self.now);
        self.end_vain_readers(id);
        if !self.unknowns.bereft {
            return so_long;
        }
        // Those that wait for others of these are looked at before these.
        for task in self.waits_for(id).into_iter().rev() {
            let returned = self.kept.get(&task).map(|kept| returned(task, &kept.spec));
            returned.into_iter().flatten().for_each(|id| self.end_vain_readers(id));
            if so_long >= ABANDON_AFTER && !mutant!("W23") {
                self.abandon(task, id);
            }
        }
        if so_long >= ABANDON_AFTER && !mutant!("W46") {
            self.give_up_readers(id);
        }
        so_long
    }

    /// What is kept here, runs here and waits inside for `id` is given up as what has not begun is: a value that was
    /// put can be read elsewhere before the records of what lies inside have come.
    fn give_up_readers(&mut self, id: ObjectId) {
        for (worker, task) in self.blocked_readers(id) {
            let me = self.config.incarnation;
            // Others that have asked for it know more.
            let for_me =
                |run: &&Run| run.given == Some(worker) && run.keeper.node == me && run.others.is_empty();
            if self.runs.get(&task).filter(for_me).is_some() && self.abandon(task, id) {
                self.drop_run(task);
                self.effects.push(Effect::Kill { worker });
            }
        }
    }

    /// It is known after all.
    pub(crate) fn somebody_knows(&mut self, id: ObjectId, answer: &located::Answer) {
        if !matches!(answer, located::Answer::Unknown(_)) {
            self.unknowns.said.remove(&id);
        }
    }

    /// The tasks kept here that cannot begin before `id` is there, each after one that it waits for.
    fn waits_for(&self, id: ObjectId) -> Vec<TaskId> {
        let (mut tasks, mut seen, mut missing) =
            (Vec::<TaskId>::new(), BTreeSet::new(), VecDeque::from([id]));
        while let Some(id) = missing.pop_front() {
            let line = self.objects.get(&id).map_or(&[][..], |object| &object.tasks_waiting);
            let waits = |task: &&TaskId| {
                self.kept.get(task).is_some_and(|kept| matches!(kept.state, KeptState::AwaitDeps(_)))
            };
            for task in line.iter().filter(waits).filter(|task| seen.insert(**task)) {
                tasks.push(*task);
                missing.extend(returned(*task, &self.kept[task].spec));
            }
        }
        tasks
    }

    /// Gives a task up if nobody here needs it; whether it did.
    fn abandon(&mut self, task: TaskId, missing: ObjectId) -> bool {
        let output = task.output(0);
        let needed = self.is_return_needed(task);
        let Some(kept) = self.kept.get(&task).filter(|kept| matches!(kept.record, Record::Sent)) else {
            return false;
        };
        if needed || self.recovering.contains_key(&task) {
            return false;
        }
        let (job, from) = (JobId(kept.spec.job), kept.attempt);
        let next = NextAttempt { task: task_bytes(task), from, abandoned: true, ..NextAttempt::default() };
        self.send_next(task, next);
        self.notice(job, "abandoned", format!("nobody knows {missing}, or needs it"), Some(task), 0);
        self.waited_for.extend(arg_objects(&self.kept[&task].spec));
        for id in self.elements_awaited(task).into_iter().chain([output]) {
            self.set_object_state(id, State::Unknown);
            self.to_tidy.push_back(id);
        }
        self.drop_kept(task);
        true
    }
}
