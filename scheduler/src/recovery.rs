//! Locate, compare-and-set on the attempt, dead nodes (R7, R10).
//!
//! Whoever needs an object asks its home shard. When the answer is *lost*, it proposes the next
//! attempt in its own stream; the shard grants it to one proposer, who then keeps the task. The
//! arguments of that task are awaited like those of any other, so the walk down the lineage is
//! iterative, parallel, and stops at the first thing that still exists.

use crate::core::{Core, Early, Kept, KeptState, Record};
use crate::execute::Run;
use crate::objects::{RELOCATE_AFTER, State};
use crate::placement::Member;
use crate::stream::About;
use crate::types::{ClientId, Effect, Value};
use mobula_base::ids::ELEMENTS_MAX;
use mobula_base::{Incarnation, JobId, ObjectId, ShardId, TaskId, mutant};
use mobula_proto::{
    ClusterView, ItemOutcome, Located, StreamAck, StreamItem, TaskState, TaskView, item_outcome, located,
    object_id,
};
use std::collections::BTreeSet;
use std::time::Duration;
use thin_vec::ThinVec;

/// Objects in one question to a shard at most.
const LOCATE_MAX: usize = 1024;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Ask for the object again.
    Relocate(ObjectId),
    /// See whether the tasks of a class can be placed by now.
    Infeasible(usize),
    /// The attempt was told to stop and has had its grace.
    Kill(TaskId, u32),
    /// The attempt has had its time at this worker.
    TimeOut(TaskId, u32, ClientId),
    /// Ask whether edges of the task's earlier record have ended.
    Early(TaskId),
    /// A node has given the task back.
    PlaceAgain(TaskId),
    /// There was no room for a copy.
    CopyAgain(ObjectId),
    /// The task has waited long enough for the node that has its arguments.
    Patience(usize, Incarnation, TaskId),
    /// Tasks of other nodes have waited inside for a while.
    TellWaiting,
    /// Pure tasks may have been away for too long.
    Stragglers,
}

impl Core {
    pub(crate) fn set_timer(&mut self, after: Duration, timer: Timer) {
        self.next_timer += 1;
        self.timers.insert((self.now + after, self.next_timer), timer);
    }

    pub(crate) fn fire_timers(&mut self) {
        while let Some((&(at, n), &timer)) = self.timers.iter().next() {
            if at > self.now {
                return;
            }
            self.timers.remove(&(at, n));
            match timer {
                Timer::Relocate(object) => {
                    if self.objects.get(&object).is_some_and(|o| o.state == State::Unknown) {
                        self.forget_place(object);
                    }
                }
                Timer::Infeasible(class) => self.infeasible(class),
                Timer::Kill(task, attempt) => self.kill(task, attempt),
                Timer::TimeOut(task, attempt, worker) => self.time_out(task, attempt, worker),
                Timer::Early(task) => self.ask_whether_early(task),
                Timer::PlaceAgain(task) => self.place_again(task),
                Timer::CopyAgain(object) => self.copy_again(object),
                Timer::Patience(class, node, task) => self.lose_patience(class, node, task),
                Timer::TellWaiting => self.tell_of_waiting(),
                Timer::Stragglers => self.look_for_stragglers(),
            }
        }
    }

    pub(crate) fn flush_locates(&mut self) {
        for (shard, mut objects) in std::mem::take(&mut self.to_locate) {
            while !objects.is_empty() {
                let batch: Vec<ObjectId> =
                    objects.iter().take(self.bends.locates.unwrap_or(LOCATE_MAX)).copied().collect();
                objects.retain(|o| !batch.contains(o));
                self.effects.push(Effect::Locate { shard, objects: batch });
            }
        }
    }

    /// The home shard answered (or could not): each object is known, recovered, or asked again.
    pub(crate) fn located(&mut self, asked: Vec<ObjectId>, answers: Vec<Located>) {
        let mut open: BTreeSet<ObjectId> = asked.into_iter().collect();
        for answer in answers {
            let Ok(id) = object_id(&answer.object) else { continue };
            if self.objects.get(&id).is_none_or(|o| o.state != State::Locating) {
                open.remove(&id);
                continue;
            }
            answer.answer.iter().for_each(|said| self.somebody_knows(id, said));
            if self.located_one(id, answer.answer) {
                open.remove(&id);
            }
        }
        for id in open {
            if self.objects.get(&id).is_some_and(|o| o.state == State::Locating) {
                self.forget_place(id);
            }
        }
    }

    /// Takes one answer; false when the object must be asked for again at once.
    fn located_one(&mut self, id: ObjectId, answer: Option<located::Answer>) -> bool {
        match answer {
            Some(located::Answer::Here(here)) => {
                let me = self.config.incarnation;
                let holders: Vec<Incarnation> =
                    here.holders.iter().map(|h| Incarnation(h.incarnation)).filter(|h| *h != me).collect();
                if holders.is_empty() {
                    // Said to be here, but it is not: says so, and asks again when the news has settled.
                    self.effects.push(Effect::Discard { object: id });
                    self.set_object_state(id, State::Unknown);
                    self.set_timer(RELOCATE_AFTER, Timer::Relocate(id));
                } else {
                    // Nothing records the size of a put; its transfer tells.
                    let output = here.output.unwrap_or_default();
                    self.set_object_state(id, State::Elsewhere { holders, output });
                    self.announce(id);
                }
                true
            }
            Some(located::Answer::Lost(attempt)) => {
                if !self.gives_up_copy(id) {
                    self.recover(id, attempt);
                }
                true
            }
            Some(located::Answer::Failed(failure)) => {
                self.set_object_state(id, State::Failed(failure.into()));
                self.announce(id);
                true
            }
            Some(located::Answer::Value(value)) => {
                self.set_object_state(id, State::Here(Value::Inline(value)));
                self.announce(id);
                true
            }
            Some(located::Answer::Unknown(_)) => {
                let so_long = self.nobody_knows(id);
                self.copy_is_unknown(id, so_long)
            }
            // Moved: by the time it is asked for again, the map that says where is known or will be.
            Some(located::Answer::Making(_) | located::Answer::Moved(_)) | None => false,
        }
    }

    pub(crate) fn set_object_state(&mut self, id: ObjectId, state: State) {
        if let Some(object) = self.objects.get_mut(&id) {
            object.state = state;
        }
    }

    /// An object is lost: proposes that its task runs again, once however many objects need it.
    fn recover(&mut self, id: ObjectId, attempt: u32) {
        let task = id.task;
        self.set_object_state(id, State::Pending);
        if let Some(kept) = self.kept.get(&task) {
            // This node is at it already. What has finished is recorded soon; a put of a task that
            // runs is reported by its node soon; then the shard knows more. The rest is announced.
            if matches!(kept.state, KeptState::Finishing | KeptState::Undurable(_))
                || id.is_put() && id.element().is_none()
            {
                self.set_object_state(id, State::Unknown);
                self.set_timer(RELOCATE_AFTER, Timer::Relocate(id));
            } else {
                self.recovering.entry(task).or_default().push(id);
            }
            return;
        }
        let waiting = self.recovering.entry(task).or_default();
        waiting.push(id);
        if waiting.len() == 1 {
            self.propose_next(task, attempt, false);
        }
    }

    pub(crate) fn acked(&mut self, shard: ShardId, ack: StreamAck, moved: Vec<StreamItem>) {
        let revision = ack.revision;
        for (about, outcome) in self.streams.acknowledge(shard, ack, moved) {
            self.item_acked(about, revision, outcome);
        }
        self.recheck = true;
    }

    fn item_acked(&mut self, about: About, revision: u64, outcome: Option<ItemOutcome>) {
        match (about, outcome.and_then(|o| o.outcome)) {
            (About::Submit(task), None) => {
                self.counts_anew(task);
                self.submit_committed(task, revision);
            }
            (About::Submit(task), Some(outcome)) => self.submit_answered(task, revision, outcome),
            (About::Done(task), outcome) => {
                if let Some(item_outcome::Outcome::DivergedDone(view)) = &outcome {
                    self.diverged(task, view);
                }
                match outcome {
                    Some(item_outcome::Outcome::Refused(view))
                        if self.still_ours(task, &view) && !mutant!("W4") =>
                    {
                        self.done_refused(task);
                    }
                    Some(item_outcome::Outcome::Refused(view)) if self.is_spent(task, &view) => {
                        self.propose_next(task, view.attempt, false);
                    }
                    outcome @ (Some(_) | None) => {
                        self.end_is_answered(task);
                        if self.kept.get(&task).is_some_and(|k| k.state == KeptState::Finishing) {
                            self.forget_kept(task);
                            self.to_tidy.push_back(task.output(0));
                            if let Some(item_outcome::Outcome::Refused(view)) = &outcome {
                                self.made_by_another(task, view);
                            }
                        }
                    }
                }
            }
            (About::Next(task), Some(item_outcome::Outcome::Granted(view))) => self.granted(task, view),
            (About::Next(task), Some(item_outcome::Outcome::Refused(view))) => self.refused(task, view),
            (About::Release(id), outcome) => {
                self.released(id, matches!(outcome, Some(item_outcome::Outcome::Kept(true))));
            }
            (About::Next(_) | About::Put(_) | About::Name(_) | About::Unname(_), _) => {}
        }
    }

    /// Whether the shard still has this node down as keeper of this attempt.
    fn still_ours(&self, task: TaskId, view: &TaskView) -> bool {
        let finishing = self.kept.get(&task).filter(|k| k.state == KeptState::Finishing);
        finishing.is_some_and(|k| k.attempt == view.attempt)
            && view.state == TaskState::TaskPending as i32
            && view.keeper == self.config.incarnation.0
    }

    /// Whether the attempt whose end was refused is the one that the task, submitted again since, would begin: it has
    /// begun, and the next one is to be asked for.
    fn is_spent(&self, task: TaskId, view: &TaskView) -> bool {
        let again = self.kept.get(&task).filter(|kept| kept.state == KeptState::AwaitCommit);
        again.is_some_and(|kept| kept.done.is_some() && kept.attempt == view.attempt)
            && view.state == TaskState::TaskPending as i32
            && view.keeper == self.config.incarnation.0
            && !mutant!("W40")
    }

    /// The executor was fenced before its done-record was applied, so nothing is recorded and
    /// others are told that this node is making it. If the value survives here, say so; else run it
    /// again.
    fn done_refused(&mut self, task: TaskId) {
        let Some(kept) = self.kept.get(&task) else { return };
        let attempt = kept.attempt;
        let me = self.config.incarnation;
        match self.objects.get(&task.output(0)).map(|o| o.state.clone()) {
            Some(State::Here(value)) => {
                let inline = matches!(value, Value::Inline(_));
                self.send_done(task, attempt, me, Ok((value.output(self.config.crc), inline)));
            }
            Some(State::Failed(failure)) => self.send_done(task, attempt, me, Err(*failure)),
            Some(State::Unknown | State::Locating | State::Pending | State::Elsewhere { .. }) | None => {
                self.propose_next(task, attempt, false);
            }
        }
    }

    /// What failed here may have been made by the attempt that counts (a replayed parent had submitted the task
    /// elsewhere, and was faster): then it is looked for where it is.
    fn made_by_another(&mut self, task: TaskId, view: &TaskView) {
        let id = task.output(0);
        let failed = self.objects.get(&id).is_some_and(|o| matches!(o.state, State::Failed(_)));
        if failed && view.state == TaskState::TaskDone as i32 && !mutant!("W20") {
            self.forget_place(id);
            for element in (0..ELEMENTS_MAX).map(|n| task.element(n)) {
                if self.objects.get(&element).is_some_and(|o| matches!(o.state, State::Failed(_))) {
                    self.forget_place(element);
                }
            }
        }
    }

    /// A re-execution made other bytes than were recorded (G3): said aloud; the first record stands.
    fn diverged(&mut self, task: TaskId, view: &TaskView) {
        let job = self.objects.get(&task.output(0)).map(|o| o.job).unwrap_or_default();
        let text =
            format!("task {task} made other bytes than at attempt {}: it is not deterministic", view.attempt);
        self.notice(job, "diverged", text, Some(task), 0);
    }

    fn granted(&mut self, task: TaskId, view: TaskView) {
        let Some(spec) = view.spec else { return };
        let job = JobId(spec.job);
        if self.jobs_ended.contains(&job) {
            return;
        }
        let recorded = view.outputs.first().copied();
        let (client, names) = match self.kept.remove(&task) {
            Some(old) => {
                if let Record::Waits(waits) = old.record
                    && !mutant!("W10")
                {
                    // A replayed parent submitted it again meanwhile: its record is there.
                    self.streams.give_up(waits.ticket);
                    self.awaiting_edges.remove(&task);
                    self.recheck = true;
                    // It would have told of the hold.
                    if self.counts(job) && !mutant!("R8e") {
                        self.name(task.output(0), job, None, false, true);
                    }
                }
                (old.client, old.names)
            }
            None => (None, self.hold_for(&spec).into()),
        };
        self.object(task.output(0), job);
        if !matches!(self.objects[&task.output(0)].state, State::Here(_)) {
            self.set_object_state(task.output(0), State::Pending);
        }
        let kept = Kept {
            spec: spec.into(),
            attempt: view.attempt,
            client,
            state: KeptState::AwaitDeps(0),
            result: None,
            failure: None,
            recorded,
            contains: ThinVec::new(),
            names,
            record: Record::Sent,
            done: None,
            shared: true,
            early: Early::No,
            waited: false,
        };
        self.kept.insert(task, kept);
        if self.hedges.shunned(task).is_some() {
            // Nothing was lost.
            if !self.has_ended_beside(task) {
                self.await_deps(task);
            }
            return;
        }
        if self.rebuilding.insert(task) {
            self.notice(job, "rebuild-start", format!("attempt {}", view.attempt), Some(task), 0);
        }
        self.look_for_puts(task);
        self.await_deps(task);
    }

    /// What a task that runs again has put is there before it ends, and it may wait for somebody here who needs
    /// that: the home is asked.
    fn look_for_puts(&mut self, task: TaskId) {
        let lost = self.recovering.get(&task).into_iter().flatten().copied();
        let is_put = |id: &ObjectId| id.is_put() && id.element().is_none();
        let puts: Vec<ObjectId> = lost.filter(|id| is_put(id) && !mutant!("W16")).collect();
        for id in puts {
            if self.objects.get(&id).is_some_and(|object| object.state == State::Pending) {
                self.forget_place(id);
            }
        }
    }

    /// Somebody else was faster, or there is nothing to grant.
    fn refused(&mut self, task: TaskId, view: TaskView) {
        if self.is_begun_anew(task) {
            return self.refused_before_it_began(task);
        }
        let mut waiting = self.elements_awaited(task);
        if view.state == TaskState::TaskFailed as i32 {
            self.ends_rebuild(task, "it failed for good", 0);
        }
        self.drop_kept(task);
        waiting.extend(self.recovering.remove(&task).unwrap_or_default());
        waiting.push(task.output(0));
        let failure = (view.state == TaskState::TaskFailed as i32).then_some(view.failure).flatten();
        waiting.sort_unstable();
        waiting.dedup();
        self.to_tidy.extend(&waiting);
        for id in waiting {
            match &failure {
                Some(failure) => {
                    if let Some(job) = self.objects.get(&id).map(|o| o.job) {
                        self.make_known(id, job, State::Failed(failure.clone().into()));
                        self.announce(id);
                    }
                }
                None => {
                    if self.objects.get(&id).is_some_and(|o| o.state == State::Pending) && !mutant!("W7") {
                        self.forget_place(id);
                    }
                }
            }
        }
    }

    /// Whether what is kept was submitted after its next attempt had been asked for: what waits for a grant says so.
    fn is_begun_anew(&self, task: TaskId) -> bool {
        self.kept.get(&task).is_some_and(|kept| kept.state != KeptState::AwaitAttempt) && !mutant!("W47")
    }

    /// There was nothing to grant, and a replayed parent has submitted the task since: that goes on, and only what
    /// earlier attempts put is looked for.
    #[cold]
    fn refused_before_it_began(&mut self, task: TaskId) {
        let is_put = |id: &ObjectId| id.is_put() && id.element().is_none();
        let waiting = self.recovering.remove(&task).unwrap_or_default();
        let (puts, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_put);
        if !rest.is_empty() {
            self.recovering.insert(task, rest);
        }
        for id in puts {
            if self.objects.get(&id).is_some_and(|object| object.state == State::Pending) {
                self.forget_place(id);
            }
        }
    }

    /// What this node makes again is made, or not any more for it to make; `bytes` of it.
    pub(crate) fn ends_rebuild(&mut self, task: TaskId, why: &str, bytes: u64) {
        // Mostly nothing is made again, and this is asked for each task that ends.
        if !self.rebuilding.is_empty()
            && self.rebuilding.remove(&task)
            && let Some(job) = self.kept.get(&task).map(|kept| JobId(kept.spec.job))
        {
            self.notice(job, "rebuild-done", why.into(), Some(task), bytes);
        }
    }

    /// The membership changed: takes note of who is there, and of who is dead.
    pub(crate) fn view(&mut self, view: ClusterView) {
        if let Some(map) = view.slots.as_ref().filter(|map| map.epoch > self.slots_epoch())
            && let Ok(map) = map.read()
        {
            self.streams.learn(map);
        }
        let before: Vec<Incarnation> = self.members.keys().copied().collect();
        let mut alive = BTreeSet::new();
        for node in &view.nodes {
            if node.alive {
                let incarnation = Incarnation(node.incarnation);
                alive.insert(incarnation);
                let total = node.total();
                let labels = node.labels.iter().map(|l| (l.key.clone(), l.value.clone())).collect();
                let (name, open) = (node.name.clone(), total.clone());
                self.members.insert(incarnation, Member { name, total, open, labels });
            }
        }
        let dead: Vec<Incarnation> = self.members.keys().filter(|n| !alive.contains(n)).copied().collect();
        for node in dead {
            self.node_dead(node);
        }
        if !self.members.keys().eq(&before) {
            self.see_to_all_copies();
        }
        self.groups_seen(&view);
        for job in view.jobs {
            let id = JobId(job.job);
            if job.ended {
                if self.jobs_seen.contains(&id) {
                    self.job_ended(id);
                }
            } else {
                let counted = job.start.as_ref().is_some_and(|start| start.counted);
                self.limit_reuse(id, job.start.as_ref().map_or(0, |start| start.tasks_per_worker));
                self.budget_hedges(id, job.start.as_ref().map_or(0, |start| start.hedge_permille));
                self.job_started(id, counted);
            }
        }
    }

    /// Workers start while the job's first tasks are on their way.
    pub(crate) fn job_started(&mut self, job: JobId, counted: bool) {
        if !self.jobs_ended.contains(&job) && self.jobs_seen.insert(job) {
            if counted {
                self.counted.insert(job);
            }
            for _ in 0..self.config.workers {
                self.start_worker(job);
            }
        }
    }

    /// The death of a node is committed: nothing it held or ran counts any more (R10).
    fn node_dead(&mut self, node: Incarnation) {
        let Some(member) = self.members.remove(&node) else { return };
        self.unknowns.bereft = true;
        self.placed.remove(&node);
        self.forget_beside(node);
        self.waiting.forget(node);
        self.placed_scarce.retain(|(at, _), _| *at != node);
        self.release_held(node);
        let jobs: Vec<JobId> = self.jobs_seen.difference(&self.jobs_ended).copied().collect();
        for job in jobs {
            self.notice(job, "node-dead", member.name.clone(), None, node.0);
        }
        let ran = self.kept.sorted_keys(|k| k.state == KeptState::Placed(node));
        for task in ran {
            let attempt = self.kept[&task].attempt;
            self.propose_next(task, attempt, true);
        }
        let undurable = self.kept.sorted_keys(|k| k.state == KeptState::Undurable(node) && !mutant!("W6"));
        for task in undurable {
            let kept = &self.kept[&task];
            let (attempt, failed) = (kept.attempt, kept.result.is_none() && kept.failure.is_none());
            self.propose_next(task, attempt, failed);
        }
        let held = self
            .objects
            .sorted_keys(|o| matches!(&o.state, State::Elsewhere { holders, .. } if holders.contains(&node)));
        for id in held {
            self.holder_gone(id, node);
        }
        let assigned = |r: &Run| r.keeper.node == node || r.others.iter().any(|other| other.node == node);
        for task in self.runs.sorted_keys(assigned) {
            let Some(run) = self.runs.get_mut(&task) else { continue };
            run.others.retain(|other| other.node != node);
            if run.keeper.node != node {
                continue;
            }
            if run.others.is_empty() {
                run.orphan = true;
                self.heed_taken(task, crate::items::ALL_TAKEN);
                self.forget_run(task);
            } else {
                run.keeper = run.others.remove(0);
            }
        }
    }

    fn holder_gone(&mut self, id: ObjectId, node: Incarnation) {
        let Some(object) = self.objects.get_mut(&id) else { return };
        if let State::Elsewhere { holders, .. } = &mut object.state {
            holders.retain(|h| *h != node);
            if holders.is_empty() && !self.fetching.contains(&id) {
                self.forget_place(id);
            }
        }
    }

    pub(crate) fn client_gone(&mut self, client: ClientId) {
        for kept in self.kept.values_mut() {
            if kept.client == Some(client) {
                kept.client = None;
            }
        }
        self.forget_client_refs(client);
        self.forget_watches(client);
        self.forget_consumer(client);
    }

    /// A job ended: everything of it goes.
    pub(crate) fn job_ended(&mut self, job: JobId) {
        if !self.jobs_ended.insert(job) {
            return;
        }
        for task in self.kept.sorted_keys(|k| k.spec.job == job.0) {
            self.drop_kept(task);
        }
        for task in self.runs.sorted_keys(|r| r.spec.job == job.0) {
            self.take_run(task);
        }
        let objects = &self.objects;
        let is_of_it = |id: &ObjectId| objects.get(id).is_none_or(|object| object.job == job);
        self.recovering.retain(|_, lost| !lost.iter().any(is_of_it) || mutant!("W43"));
        self.copies.forget_job(job);
        self.forget_hedges(job);
        self.forget_streams(job);
        self.counted.remove(&job);
        self.reuse.remove(&job);
        for id in self.objects.sorted_keys(|object| object.job == job) {
            self.objects.remove(&id);
            self.idle.remove(&id);
            self.spare.remove(&id);
        }
        let workers: Vec<ClientId> =
            self.workers.iter().filter(|(_, w)| w.job == job).map(|(id, _)| *id).collect();
        for worker in workers {
            self.worker_gone(worker);
        }
        self.starting.remove(&job);
        self.effects.push(Effect::FreeJob(job));
    }
}
