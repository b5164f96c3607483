//! What a node says to the control store, as `node::control` does: every request is idempotent and repeated
//! until it is answered or the life ends. Each may be lost, unanswered, doubled, or fail while it goes on.

use super::life::Input;
use super::net::{Fate, Place};
use super::program::label_of;
use super::shard::Key;
use super::world::{What, World};
use bytes::Bytes;
use mobula_base::{ObjectId, ShardId};
use mobula_gcs::core::pack::{pack, unpack};
use mobula_proto::item_outcome::Outcome;
use mobula_proto::{
    Call, CallReply, ClusterView, HeartbeatRequest, HoldingRequest, Located, StreamAck, StreamBatch,
    StreamItem, call, call_reply, object_bytes, object_id,
};
use mobula_scheduler::Event;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// Pause after a request that could not be made.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// How often a node says that it lives.
const HEARTBEAT_EVERY: Duration = Duration::from_millis(200);
/// How often holdings are reported, and new leaders noticed.
const HOLDING_EVERY: Duration = Duration::from_millis(100);

/// What proves that the driver's node lives is repeated soon.
const PROOF_PATIENCE: Duration = Duration::from_millis(100);

/// How often idle copies are asked about. A node does it with every report.
pub(super) const IDLE_EVERY: Duration = Duration::from_secs(1);

/// A request.
#[derive(Clone)]
pub enum Ask {
    /// The next batch of a stream.
    Stream(Rc<StreamBatch>),
    /// Where are these?
    Locate { asker: u64, objects: Vec<Bytes> },
    /// Copies.
    Holding(Box<HoldingRequest>),
    /// It lives.
    Beat(HeartbeatRequest),
    /// Something of a session.
    Call(Box<Call>),
    /// A process is gone, says its kernel.
    Suspect(u64),
}

/// An answer.
#[derive(Clone)]
pub enum Answer {
    /// To a batch.
    Stream(StreamAck),
    /// The speaker was declared dead, or another speaks for it.
    Fenced,
    /// To a question.
    Located(Vec<Located>),
    /// A report was taken, in this term; of the idle copies these may go.
    Accepted { term: u64, drop: Vec<Bytes> },
    /// A new term: everything is to be reported to it.
    ReportInFull(u64),
    /// To a heartbeat: a view, if it is news.
    View(Option<Rc<ClusterView>>),
    /// To a call.
    Called(CallReply),
    /// Nothing that matters.
    Noted,
}

impl World {
    /// Makes a request of the leader of a shard, as far as this machine knows who that is.
    pub fn ask(&mut self, machine: usize, epoch: u64, shard: usize, key: Key, ask: Ask) {
        let now = self.now();
        let head = self.machines[machine].leads[shard];
        let (here, there) = (Self::place(machine), Place::Head(head));
        // The driver's node must not be taken for dead: whatever proves that it lives arrives.
        let proof = machine == 0 && matches!(key, Key::Beat(_) | Key::Holding { .. });
        let fate = if proof { Fate::Well } else { self.net.fate(now) };
        let takes = self.net.latency(here, there, now);
        let patience = if proof { PROOF_PATIENCE } else { self.net.patience() };
        if fate == Fate::RequestLost || !self.net.reaches(here, there, now) {
            return self.queue.after(patience, What::Failed { machine, epoch, key });
        }
        if fate == Fate::InFlight {
            self.sometimes.hit("request in flight when the caller gave up");
            let early = takes / 2;
            self.queue.after(early, What::Failed { machine, epoch, key });
        }
        if fate == Fate::Twice {
            let late = self.net.latency(there, here, now) + self.net.lateness();
            self.queue.after(takes + late, What::Arrive { machine, epoch, head, key, ask: ask.clone() });
        }
        // Whether the answer is lost is drawn when it is given.
        self.queue.after(takes, What::Arrive { machine, epoch, head, key, ask });
    }

    /// An answer sets out.
    pub fn answer(&mut self, machine: usize, epoch: u64, head: usize, key: Key, answer: Answer) {
        let now = self.now();
        let (here, there) = (Place::Head(head), Self::place(machine));
        let proof = machine == 0 && matches!(key, Key::Beat(_) | Key::Holding { .. });
        if (!proof && self.net.fate(now) == Fate::ResponseLost) || !self.net.reaches(here, there, now) {
            let patience = if proof { PROOF_PATIENCE } else { self.net.patience() };
            return self.queue.after(patience, What::Failed { machine, epoch, key });
        }
        let takes = self.net.latency(here, there, now);
        self.queue.after(takes, What::Answered { machine, epoch, key, answer });
    }

    /// A request came to nothing, and its caller hears of it.
    pub fn refuse(&mut self, machine: usize, epoch: u64, key: Key) {
        let takes = self.net.latency(Place::Head(0), Self::place(machine), self.now());
        self.queue.after(takes, What::Failed { machine, epoch, key });
    }

    /// Whether this machine still waits for the answer to a request.
    fn waits_for(&mut self, machine: usize, epoch: u64, key: Key) -> bool {
        if !self.is_epoch(machine, epoch) {
            return false;
        }
        let m = &self.machines[machine];
        let life = m.life.as_deref();
        match key {
            Key::Call(tries) => m.call_tries == tries && !m.calls.is_empty(),
            Key::Stream { shard, tries } => life.is_some_and(|life| {
                life.streams[shard].tries == tries && life.streams[shard].batch.is_some()
            }),
            Key::Locate(id) => life.is_some_and(|life| life.locates.contains_key(&id)),
            Key::Holding { shard, tries } => life.is_some_and(|life| {
                life.reporters[shard].tries == tries && life.reporters[shard].asked.is_some()
            }),
            Key::Beat(number) => life.is_some_and(|life| life.beats == number),
            Key::Suspect => false,
        }
    }

    /// An answer comes.
    pub fn answered(&mut self, machine: usize, epoch: u64, key: Key, answer: Answer) {
        if !self.waits_for(machine, epoch, key) {
            return;
        }
        match (key, answer) {
            (_, Answer::Fenced) => self.input(machine, epoch, Input::Fenced),
            (Key::Stream { shard, .. }, Answer::Stream(ack)) => self.acked(machine, epoch, shard, ack),
            (Key::Locate(id), Answer::Located(answers)) => {
                let Some(life) = self.life(machine, epoch) else { return };
                let asked = life.locates.remove(&id).unwrap_or_default();
                self.input(machine, epoch, Input::Core(Event::Located { asked, answers }));
            }
            (Key::Holding { shard, .. }, Answer::Accepted { term, drop }) => {
                if !drop.is_empty() {
                    let objects = drop.iter().filter_map(|id| object_id(id).ok()).collect();
                    self.input(machine, epoch, Input::Core(Event::Freed { objects }));
                }
                self.accepted(machine, epoch, shard, term);
            }
            (Key::Holding { shard, .. }, Answer::ReportInFull(term)) => {
                let Some(life) = self.life(machine, epoch) else { return };
                let deaths = life.reporters[shard].asked.as_ref().and_then(|asked| asked.deaths).unwrap_or(0);
                // Until the loop has looked, nothing else is asked.
                life.reporters[shard].tries += 1;
                let input = Input::ReportAll { shard: ShardId(shard as u32), term, deaths };
                self.input(machine, epoch, input);
            }
            (Key::Beat(_), Answer::View(view)) => {
                if let Some(view) = view {
                    self.input(machine, epoch, Input::View(view));
                }
                self.queue.after(HEARTBEAT_EVERY, What::Beat { machine, epoch });
            }
            (Key::Call(_), Answer::Called(reply)) => self.called(machine, epoch, &reply),
            (key, _) => self.failed(machine, epoch, key),
        }
    }

    /// A request failed: it is made again, of whoever leads by now.
    pub fn failed(&mut self, machine: usize, epoch: u64, key: Key) {
        if !self.waits_for(machine, epoch, key) {
            return;
        }
        for shard in 0..self.shards.len() {
            if let Some(leader) = self.shards[shard].leader {
                self.machines[machine].leads[shard] = leader;
            }
        }
        let again = self.dice.ms(5, 50).min(RETRY_AFTER);
        match key {
            Key::Stream { shard, .. } => self.queue.after(again, What::Repeat { machine, epoch, shard }),
            Key::Locate(id) => self.queue.after(again, What::Locate { machine, epoch, id }),
            Key::Holding { shard, .. } => {
                let Some(life) = self.life(machine, epoch) else { return };
                life.reporters[shard].asked = None;
                life.reporters[shard].open = true;
                self.poke_reporter(machine, epoch, shard, HOLDING_EVERY);
            }
            Key::Beat(_) => self.queue.after(HEARTBEAT_EVERY, What::Beat { machine, epoch }),
            Key::Call(_) => self.queue.after(again, What::CallAgain { machine, epoch }),
            Key::Suspect => {}
        }
    }

    // ------------------------------------------------------------ streams (R12)

    /// Sends the next batch of a stream, until it is acknowledged.
    pub fn send_batch(&mut self, machine: usize, epoch: u64, shard: ShardId, batch: StreamBatch) {
        let shard = shard.0 as usize;
        self.judges.stream.sent(&batch, shard);
        let Some(life) = self.life(machine, epoch) else { return };
        debug_assert!(life.streams[shard].batch.is_none(), "one batch is in flight at a time");
        life.streams[shard].batch = Some(Rc::new(pack(batch)));
        self.repeat(machine, epoch, shard);
    }

    /// Sends a batch (again).
    pub fn repeat(&mut self, machine: usize, epoch: u64, shard: usize) {
        let Some(life) = self.life(machine, epoch) else { return };
        let Some(batch) = life.streams[shard].batch.clone() else { return };
        life.streams[shard].tries += 1;
        let key = Key::Stream { shard, tries: life.streams[shard].tries };
        self.ask(machine, epoch, shard, key, Ask::Stream(batch));
    }

    fn acked(&mut self, machine: usize, epoch: u64, shard: usize, ack: StreamAck) {
        let Some(life) = self.life(machine, epoch) else { return };
        let Some(batch) = life.streams[shard].batch.take() else { return };
        let moved = moved_items(&batch, &ack);
        let shard = ShardId(shard as u32);
        self.input(machine, epoch, Input::Core(Event::Acked { shard, ack, moved }));
    }

    // ------------------------------------------------------------ questions

    /// Asks a home shard about objects, once; what stays open is asked again by the core.
    pub fn locate(&mut self, machine: usize, epoch: u64, shard: ShardId, objects: Vec<ObjectId>) {
        let Some(life) = self.life(machine, epoch) else { return };
        life.next_locate += 1;
        let (id, asker) = (life.next_locate, life.incarnation.0);
        let asked = objects.iter().map(|object| object_bytes(*object)).collect();
        life.locates.insert(id, objects);
        self.ask(machine, epoch, shard.0 as usize, Key::Locate(id), Ask::Locate { asker, objects: asked });
    }

    /// A question failed: the core is told that there is no answer.
    pub fn locate_again(&mut self, machine: usize, epoch: u64, id: u64) {
        let Some(life) = self.life(machine, epoch) else { return };
        let Some(asked) = life.locates.remove(&id) else { return };
        self.input(machine, epoch, Input::Core(Event::Located { asked, answers: Vec::new() }));
    }

    // ------------------------------------------------------------ holdings (R9)

    /// A report is due.
    pub fn poke_reporter(&mut self, machine: usize, epoch: u64, shard: usize, within: Duration) {
        let wait = Duration::from_nanos(self.dice.below(within.as_nanos() as u64 + 1));
        let Some(life) = self.life(machine, epoch) else { return };
        if !std::mem::replace(&mut life.reporters[shard].scheduled, true) || within.is_zero() {
            self.queue.after(wait, What::Report { machine, epoch, shard });
        }
    }

    /// Reports to all shards are due.
    pub fn poke_reporters(&mut self, machine: usize, epoch: u64, within: Duration) {
        for shard in 0..self.shards.len() {
            self.poke_reporter(machine, epoch, shard, within);
        }
    }

    /// Looks whether there is something to report. The node itself looks every 100 ms; here it looks when
    /// there is something to be seen.
    pub fn report(&mut self, machine: usize, epoch: u64, shard: usize) {
        let (now, term) = (self.now(), self.shards[shard].term);
        let Some(life) = self.life(machine, epoch) else { return };
        let idle = life.core.has_idle();
        let reporter = &mut life.reporters[shard];
        reporter.scheduled = false;
        if reporter.asked.is_some() || reporter.asking {
            return;
        }
        let told = reporter.term == term && reporter.told >= life.acted && !reporter.open;
        if told
            && reporter.waiting.is_empty()
            && reporter.held.is_empty()
            && (!idle || reporter.idle_from > now)
        {
            if idle {
                reporter.scheduled = true;
                let at = reporter.idle_from;
                self.queue.at(at, What::Report { machine, epoch, shard });
            }
            return;
        }
        reporter.asking = true;
        reporter.deaths = life.acted;
        let held = std::mem::take(&mut reporter.held);
        reporter.waiting.extend(held);
        self.input(machine, epoch, Input::Idle { shard: ShardId(shard as u32) });
    }

    /// The loop has said which copies nobody has a use for.
    pub fn report_changes(&mut self, machine: usize, epoch: u64, shard: ShardId, idle: &[ObjectId]) {
        let Some(life) = self.life(machine, epoch) else { return };
        let incarnation = life.incarnation.0;
        let reporter = &mut life.reporters[shard.0 as usize];
        reporter.asking = false;
        let list = |is_here: bool| {
            let of = reporter.waiting.iter().filter(|(_, here)| **here == is_here);
            of.map(|(object, _)| object_bytes(*object)).collect()
        };
        let request = HoldingRequest {
            shard: shard.0,
            incarnation,
            term: reporter.term,
            add: list(true),
            remove: list(false),
            deaths: Some(reporter.deaths),
            idle: idle.iter().map(|object| object_bytes(*object)).collect(),
            ..HoldingRequest::default()
        };
        self.send_report(machine, epoch, shard.0 as usize, request);
    }

    fn send_report(&mut self, machine: usize, epoch: u64, shard: usize, request: HoldingRequest) {
        let Some(life) = self.life(machine, epoch) else { return };
        let reporter = &mut life.reporters[shard];
        reporter.tries += 1;
        let request = HoldingRequest { number: reporter.tries, ..request };
        reporter.asked = Some(request.clone());
        let key = Key::Holding { shard, tries: reporter.tries };
        self.ask(machine, epoch, shard, key, Ask::Holding(Box::new(request)));
    }

    /// The loop has said what there is: all goes to the new leader.
    #[allow(clippy::too_many_arguments)]
    pub fn report_all(
        &mut self,
        machine: usize,
        epoch: u64,
        shard: ShardId,
        term: u64,
        deaths: u64,
        map: u64,
        all: &[ObjectId],
    ) {
        let Some(life) = self.life(machine, epoch) else { return };
        let request = HoldingRequest {
            shard: shard.0,
            incarnation: life.incarnation.0,
            term,
            full: true,
            map,
            add: all.iter().map(|object| object_bytes(*object)).collect(),
            deaths: Some(deaths),
            ..HoldingRequest::default()
        };
        self.send_report(machine, epoch, shard.0 as usize, request);
    }

    fn accepted(&mut self, machine: usize, epoch: u64, shard: usize, term: u64) {
        let Some(life) = self.life(machine, epoch) else { return };
        let reporter = &mut life.reporters[shard];
        let Some(asked) = reporter.asked.take() else { return };
        // What is gone is told all the same: done-records may promise it.
        reporter.waiting.retain(|_, is_here| asked.full && !*is_here);
        reporter.told = reporter.told.max(asked.deaths.unwrap_or(0));
        reporter.open = false;
        if asked.full {
            reporter.term = term;
        }
        let more = !reporter.held.is_empty() || !reporter.waiting.is_empty() || reporter.told < life.acted;
        let idle = life.core.has_idle();
        if more || term != self.shards[shard].term {
            self.poke_reporter(machine, epoch, shard, HOLDING_EVERY);
        } else if idle {
            self.poke_reporter(machine, epoch, shard, IDLE_EVERY);
        }
    }

    /// Copies that nobody has a use for are asked about.
    pub fn ask_about_idle(&mut self, machine: usize, epoch: u64) {
        for shard in 0..self.shards.len() {
            let Some(life) = self.life(machine, epoch) else { return };
            let reporter = &life.reporters[shard];
            if life.core.has_idle() && !reporter.scheduled && !reporter.asking && reporter.asked.is_none() {
                self.poke_reporter(machine, epoch, shard, IDLE_EVERY);
            }
        }
    }

    // ------------------------------------------------------------ heartbeats

    /// Says that this node lives.
    pub fn beat(&mut self, machine: usize, epoch: u64) {
        let Some(life) = self.life(machine, epoch) else { return };
        let (cpu_milli_free, queued) = life.core.load();
        life.beats += 1;
        let (key, incarnation) = (Key::Beat(life.beats), life.incarnation.0);
        let request = HeartbeatRequest {
            incarnation,
            cpu_milli_free: cpu_milli_free as u32,
            queued,
            store_bytes_used: life.store.usage().0,
            follows_slots: true,
            ..HeartbeatRequest::default()
        };
        self.ask(machine, epoch, 0, key, Ask::Beat(request));
    }

    // ------------------------------------------------------------ sessions

    /// A daemon starts, or starts another life: it joins.
    pub fn start(&mut self, machine: usize, epoch: u64) {
        if !self.is_epoch(machine, epoch) || self.machines[machine].life.is_some() {
            return;
        }
        self.note("starts", machine as u64, epoch, 0, String::new);
        let join = mobula_proto::NodeJoin {
            name: format!("node-{machine}"),
            address: machine.to_string(),
            cpu_milli: self.options.cpus[machine] as u32 * 1000,
            store_bytes: self.options.store_of(machine),
            follows_slots: true,
            labels: vec![mobula_proto::Label { key: "zone".into(), value: label_of(machine).into() }],
            ..Default::default()
        };
        let m = &mut self.machines[machine];
        m.calls.clear();
        if m.session.is_none() {
            m.calls.push_back(call::Op::Open(mobula_proto::OpenSession {}));
        }
        m.calls.push_back(call::Op::NodeJoin(join));
        self.call_again(machine, epoch);
    }

    /// Makes a call, after those before it.
    pub fn call(&mut self, machine: usize, epoch: u64, op: call::Op) {
        let m = &mut self.machines[machine];
        m.calls.push_back(op);
        if m.calls.len() == 1 {
            self.call_again(machine, epoch);
        }
    }

    /// Makes the first call (again), under its number.
    pub fn call_again(&mut self, machine: usize, epoch: u64) {
        if !self.is_epoch(machine, epoch) {
            return;
        }
        let m = &mut self.machines[machine];
        let Some(op) = m.calls.front().cloned() else { return };
        m.call_tries += 1;
        let (session, seq) = match &op {
            call::Op::Open(_) => (0, 0),
            _ => (m.session.unwrap_or(0), m.next_call),
        };
        let key = Key::Call(m.call_tries);
        self.ask(machine, epoch, 0, key, Ask::Call(Box::new(Call { session, seq, op: Some(op) })));
    }

    fn called(&mut self, machine: usize, epoch: u64, reply: &CallReply) {
        let m = &mut self.machines[machine];
        let Some(op) = m.calls.pop_front() else { return };
        if !matches!(op, call::Op::Open(_)) {
            m.next_call += 1;
        }
        match &reply.reply {
            Some(call_reply::Reply::Session(session)) => (m.session, m.next_call) = (Some(*session), 1),
            Some(call_reply::Reply::Incarnation(incarnation)) => self.joined(machine, epoch, *incarnation),
            Some(call_reply::Reply::Revision(_)) => match op {
                call::Op::JobStart(_) => self.job_started(machine, epoch),
                call::Op::JobEnd(_) => self.driver.ended = true,
                _ => {}
            },
            // Forgotten: another one is opened, and what was asked is asked anew.
            Some(call_reply::Reply::SessionExpired(_)) => {
                m.session = None;
                m.calls.push_front(op);
                m.calls.push_front(call::Op::Open(mobula_proto::OpenSession {}));
            }
            other => self.judges.harness(format!("a call was answered {other:?}")),
        }
        self.call_again(machine, epoch);
    }

    fn joined(&mut self, machine: usize, epoch: u64, incarnation: u64) {
        let cpus = self.options.cpus[machine];
        let files = &self.machines[machine].disk.files;
        let found = files.iter().map(|(id, (file, ..))| (id.object, *file)).collect();
        let life = super::life::Life::new(machine, incarnation, &self.options, found);
        self.machines[machine].life = Some(Box::new(life));
        self.note("joins", machine as u64, incarnation, 0, String::new);
        self.judges.cpu.has(incarnation, cpus);
        if self.judges.fenced.joins(machine, incarnation) {
            self.sometimes.hit("node back after its death");
        }
        let wait = self.dice.ms(0, 200);
        self.queue.after(wait, What::Beat { machine, epoch });
        self.poke_reporters(machine, epoch, HOLDING_EVERY);
        let view = self.view.clone();
        self.view_comes(machine, epoch, view);
        if machine == 0 {
            self.driver_connects(epoch, incarnation);
        }
    }
}

/// The items of a batch that were answered `moved`, in order.
fn moved_items(batch: &StreamBatch, ack: &StreamAck) -> Vec<StreamItem> {
    let moved = |outcome: &mobula_proto::ItemOutcome| {
        matches!(outcome.outcome, Some(Outcome::Moved(_))).then_some(outcome.seq)
    };
    let moved: BTreeSet<u64> = ack.outcomes.iter().filter_map(moved).collect();
    if moved.is_empty() {
        return Vec::new();
    }
    unpack(batch).into_iter().filter(|(seq, _)| moved.contains(seq)).map(|(_, item)| item).collect()
}
