//! The steps of a task that runs in a simulated worker.

use super::life::{Said, Seen};
use super::program::{self, INLINE_MAX, JOB, Op, Submission, picked, picked_all};
use super::worker::{Doom, Waits, same};
use super::world::{What, World};
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{Failure, FailureKind, task_id};
use mobula_scheduler::ClientId;
use std::time::Duration;

impl World {
    /// A worker has computed for a while.
    pub fn worked(&mut self, machine: usize, epoch: u64, client: ClientId, run: u64) {
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get(&client)) else {
            return;
        };
        if worker.runs == run && worker.run.is_some() {
            self.go_on(machine, epoch, client);
        }
    }

    /// Goes on with a task until it computes, waits or ends.
    pub(super) fn go_on(&mut self, machine: usize, epoch: u64, client: ClientId) {
        loop {
            if !self.may_go_on(machine, epoch, client) {
                return;
            }
            let Some(run) = self.run_of(machine, epoch, client) else { return };
            let Some(op) = run.body.ops.get(run.next).cloned().filter(|_| run.failure.is_none()) else {
                if self.flows(machine, epoch, client) {
                    self.end_run(machine, epoch, client);
                }
                return;
            };
            run.next += 1;
            match op {
                Op::Work(ns) => {
                    let ns = run.takes(ns);
                    run.ran_ns += ns;
                    return self.compute(machine, epoch, client, ns);
                }
                Op::Submit { seed, args, nested } => {
                    self.submit(machine, epoch, client, seed, &args, &nested)
                }
                Op::Put { seed, len, refs } => self.put(machine, epoch, client, seed, len, &refs),
                Op::Whim(seed) => self.submit_on_a_whim(machine, epoch, client, seed),
                Op::Get(pick) => run.waits = picked(&run.locals.all, pick).map(Waits::Value),
                Op::Wait(pick) => run.waits = picked(&run.locals.all, pick).map(Waits::Existence),
                Op::Take(pick) => {
                    run.waits = run.locals.flow_of(pick).map(|flow| Waits::Item(flow.task));
                }
                Op::Drop(pick) => self.forget(machine, epoch, client, pick),
                Op::Cancel(pick, recursive) => self.cancel(machine, epoch, client, pick, recursive),
            }
        }
    }

    fn compute(&mut self, machine: usize, epoch: u64, client: ClientId, ns: u64) {
        let Some(worker) = self.life(machine, epoch).and_then(|life| life.clients.get(&client)) else {
            return;
        };
        let (number, doomed) = (worker.runs, worker.doom == Some(Doom::MidRun));
        let takes = self.slowed(machine, Duration::from_nanos(ns));
        if doomed {
            self.sometimes.hit("worker died in mid-run");
            return self.worker_dies(machine, epoch, client);
        }
        self.queue.after(takes, What::Worked { machine, epoch, client, run: number });
    }

    fn submit(
        &mut self,
        machine: usize,
        epoch: u64,
        client: ClientId,
        seed: u64,
        args: &[u64],
        nested: &[u64],
    ) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let id = TaskId::new(JOB, run.task, 0, run.children);
        run.children += 1;
        let (args, nested) = (picked_all(&run.locals.all, args), picked_all(&run.locals.all, nested));
        let given = [&args[..], &nested[..]].concat();
        let (parent, attempt, replay) = (run.task, run.attempt, run.replay);
        let child = Submission { id, parent, seed, depth: run.depth - 1, args, nested };
        let outputs = child.outputs(&self.options.style);
        let stream = child.stream(&self.options.style);
        if let Some(who) = self.who(machine, epoch, client).filter(|_| stream.is_some()) {
            self.judges.one.takes(who, id);
        }
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        if let Some(items) = stream {
            run.locals.flow(id, items, &given);
            run.asked.insert(id.output(0));
        }
        for output in outputs {
            run.locals.child(output, &given);
            run.asked.insert(output);
        }
        let spec = child.spec(&self.options.style, replay);
        let node = self.life(machine, epoch).map_or(0, |life| life.incarnation.0);
        self.judges.order.submitted(parent, attempt, id, node);
        self.say(machine, epoch, client, Said::Submit(Box::new(spec)));
    }

    /// Submits what is another task each time, and waits until it has ended.
    fn submit_on_a_whim(&mut self, machine: usize, epoch: u64, client: ClientId, seed: u64) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let id = TaskId::new(JOB, run.task, 0, run.children);
        run.children += 1;
        let (parent, attempt, replay) = (run.task, run.attempt, run.replay);
        let seed = super::mix(seed, run.mood);
        let (args, nested) = (Vec::new(), Vec::new());
        let child = Submission { id, parent, seed, depth: program::WHIM, args, nested };
        run.whims.push(id.output(0));
        run.asked.insert(id.output(0));
        run.waits = Some(Waits::Existence(id.output(0)));
        let spec = child.spec(&self.options.style, replay);
        let node = self.life(machine, epoch).map_or(0, |life| life.incarnation.0);
        self.judges.order.submitted(parent, attempt, id, node);
        self.say(machine, epoch, client, Said::Submit(Box::new(spec)));
    }

    fn put(&mut self, machine: usize, epoch: u64, client: ClientId, seed: u64, len: u64, refs: &[u64]) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let object = run.task.output(FIRST_PUT_SLOT + run.puts);
        run.puts += 1;
        let content = program::put_content(seed, len, run.locals.for_value(refs));
        if len <= INLINE_MAX {
            run.locals.put(object);
            self.say(machine, epoch, client, Said::Put { object, content });
        } else {
            run.waits = Some(Waits::Room(object));
            self.say(machine, epoch, client, Said::Create { object, len });
        }
    }

    /// A task lets go of a reference: it looks no longer at the value either.
    fn forget(&mut self, machine: usize, epoch: u64, client: ClientId, pick: u64) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let Some(object) = run.locals.forget(pick) else { return };
        let times = run.pins.remove(&object).unwrap_or(0);
        run.seen.remove(&object);
        // Should it come to it again, it asks again.
        run.asked.remove(&object);
        self.sometimes.hit("reference dropped inside a task");
        self.say(machine, epoch, client, Said::Unpin(vec![object; times]));
        self.say(machine, epoch, client, Said::Dropped(vec![object]));
    }

    /// A task cancels what it has submitted.
    fn cancel(&mut self, machine: usize, epoch: u64, client: ClientId, pick: u64, recursive: bool) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let Some(child) = run.locals.child_of(pick).map(|child| child.task) else { return };
        self.judges.cause.cancelled(child, recursive);
        self.sometimes.hit("task cancelled by its parent");
        self.say(machine, epoch, client, Said::Cancel(child, recursive));
    }

    /// Whether a task that waits has what it waits for; asks, and gives its CPU back, if not (R16).
    fn may_go_on(&mut self, machine: usize, epoch: u64, client: ClientId) -> bool {
        let Some(run) = self.run_of(machine, epoch, client) else { return false };
        let Some(waits) = run.waits else { return true };
        let (object, want_value) = match waits {
            Waits::Room(_) => return false,
            Waits::Item(task) => return self.may_take(machine, epoch, client, task),
            Waits::Taken(items) => return self.may_make(machine, epoch, client, items),
            Waits::Value(object) => (object, true),
            Waits::Existence(object) => (object, false),
        };
        match run.seen.get(&object).cloned() {
            Some(Seen::Elsewhere(_)) if want_value => {
                run.seen.remove(&object);
                self.say(machine, epoch, client, Said::Get { object, want_value });
            }
            Some(seen) => {
                run.waits = None;
                self.unblock(machine, epoch, client);
                if want_value {
                    self.got(machine, epoch, client, object, &seen);
                }
                return true;
            }
            None => {
                if run.asked.insert(object) {
                    self.say(machine, epoch, client, Said::Get { object, want_value });
                }
            }
        }
        self.block(machine, epoch, client);
        false
    }

    /// What a task or the driver reads must be what the program makes.
    pub(super) fn judge_read(
        &mut self,
        machine: usize,
        epoch: u64,
        client: ClientId,
        object: ObjectId,
        content: &program::Content,
    ) {
        let now = self.now();
        let Some(who) = self.who(machine, epoch, client) else { return };
        self.judges.value.got(&self.oracle, object, content, now);
        self.judges.one.read(&self.oracle, who, object, content, now, &mut self.sometimes);
    }

    /// A client for the judges: each run of a worker is another.
    pub(super) fn who(
        &mut self,
        machine: usize,
        epoch: u64,
        client: ClientId,
    ) -> Option<super::judge::one::Who> {
        let life = self.life(machine, epoch)?;
        let run = life.clients.get(&client).map_or(0, |client| client.runs);
        Some((life.incarnation.0, client, run))
    }

    /// A task got a value: it takes the references out of it.
    fn got(&mut self, machine: usize, epoch: u64, client: ClientId, object: ObjectId, seen: &Seen) {
        let now = self.now();
        match seen {
            Seen::Here(value) => {
                let content = self.read(machine, value);
                self.judge_read(machine, epoch, client, object, &content);
                let Some(run) = self.run_of(machine, epoch, client) else { return };
                run.inputs.push(content.hash);
                let fresh = run.locals.take(Some(object), &content.refs);
                if !fresh.is_empty() {
                    self.sometimes.hit("reference taken out of a value");
                    self.say(machine, epoch, client, Said::Held(fresh));
                }
            }
            Seen::Failed(failure) => {
                self.judges.failed(&self.oracle, object, failure, now, &mut self.sometimes);
                // Without the words of that failure: this one is not for trying again.
                let text = format!("it needed {object}, of which there is none");
                if let Some(run) = self.run_of(machine, epoch, client) {
                    run.failure = Some(Failure::new(FailureKind::FailureUserError, text));
                }
            }
            Seen::Elsewhere(_) => {}
        }
    }

    pub(super) fn block(&mut self, machine: usize, epoch: u64, client: ClientId) {
        let Some(life) = self.life(machine, epoch) else { return };
        let incarnation = life.incarnation.0;
        let Some(worker) = life.clients.get_mut(&client) else { return };
        let Some(run) = worker.run.as_mut().filter(|run| !run.blocked) else { return };
        run.blocked = true;
        let cpu_milli = run.cpu_milli;
        let first = !std::mem::replace(&mut run.was_blocked, true);
        let returned = worker.queue.drain(..).filter_map(|given| task_id(&given.spec.id).ok()).collect();
        if first {
            self.judges.cpu.stopped(incarnation, cpu_milli);
        }
        self.sometimes.hit("worker waited inside a task");
        self.say(machine, epoch, client, Said::Blocked(returned));
    }

    pub(super) fn unblock(&mut self, machine: usize, epoch: u64, client: ClientId) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        if std::mem::take(&mut run.blocked) {
            self.say(machine, epoch, client, Said::Unblocked);
        }
    }

    /// The daemon has made room (or there is none, or it is there already).
    pub(super) fn created(
        &mut self,
        machine: usize,
        epoch: u64,
        client: ClientId,
        object: ObjectId,
        room: Result<Option<u32>, Failure>,
    ) {
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        if run.waits != Some(Waits::Room(object)) {
            return;
        }
        run.waits = None;
        if std::mem::take(&mut run.stalled) {
            self.say(machine, epoch, client, Said::Unblocked);
        }
        if !object.is_put() {
            return self.report_value(machine, epoch, client, room);
        }
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        let op = run.next.checked_sub(1).and_then(|last| run.body.ops.get(last)).cloned();
        let content = match (object.item(), op) {
            (Some(n), _) => run.items().swap_remove(n as usize),
            (None, Some(Op::Put { seed, len, refs })) => {
                program::put_content(seed, len, run.locals.for_value(&refs))
            }
            (None, _) => return,
        };
        let content = self.that_stands(machine, object, &room, content);
        let Some(run) = self.run_of(machine, epoch, client) else { return };
        match same(room, &content) {
            Ok(()) => {
                match object.item() {
                    Some(_) => run.made_item(object),
                    None => run.locals.put(object),
                }
                self.say(machine, epoch, client, Said::Seal { object, content });
            }
            Err(failure) => {
                run.failure = Some(failure);
                self.sometimes.hit("store full");
            }
        }
        self.go_on(machine, epoch, client);
    }
}
