//! The control store: requests reach heads, entries commit, leaders answer, come and go.

use super::calls::{Answer, Ask};
use super::net::Place;
use super::shard::{Caller, Deposed, Entry, Key, Parked};
use super::world::{What, World};
use bytes::Bytes;
use mobula_base::{Instant, ObjectId, TaskId};
use mobula_gcs::core::locate::{Facts, Members, all_wait};
use mobula_gcs::core::pack::unpack;
use mobula_proto::command::Op;
use mobula_proto::holding_reply::Result as Held;
use mobula_proto::located::Answer as Where;
use mobula_proto::stream_item::Item;
use mobula_proto::{Command, reply};
use std::rc::Rc;
use std::time::Duration;

/// How long a question may be parked at the store.
const PARK: Duration = Duration::from_millis(1000);

impl World {
    /// The control store comes into being: each shard has a leader.
    pub fn form(&mut self) {
        let heads = self.heads.len();
        for shard in 0..self.shards.len() {
            self.shards[shard].leader = Some(shard % heads);
            for machine in &mut self.machines {
                machine.leads[shard] = shard % heads;
            }
        }
        let shards = self.shards.len() as u32;
        let init = mobula_proto::InitCluster { cluster: 1, shards, slots: mobula_base::ids::SLOTS };
        self.propose(0, Rc::new(Command::from(Op::Init(init))), Caller::Nobody);
        self.raise_level();
        self.queue.after(Duration::from_millis(100), What::Detect);
        self.queue.after(Duration::from_millis(1_000), What::Forget);
    }

    fn time(&self) -> Duration {
        self.now().since(Instant::default())
    }

    /// A request reaches a head.
    pub fn arrive(&mut self, machine: usize, epoch: u64, head: usize, key: Key, ask: Ask) {
        if !self.heads[head] {
            return self.refuse(machine, epoch, key);
        }
        let shard = match (&key, &ask) {
            (Key::Stream { shard, .. } | Key::Holding { shard, .. }, _) => *shard,
            (_, Ask::Locate { objects, .. }) => self.home_of(objects),
            _ => 0,
        };
        if self.shards[shard].leader != Some(head) {
            return self.ask_the_deposed(machine, epoch, head, key, shard, &ask);
        }
        let caller = Caller::Machine { machine, epoch, key };
        match ask {
            Ask::Stream(batch) => {
                let command = Rc::new(Command::from(Op::Stream((*batch).clone())));
                self.propose(shard, command, caller);
            }
            Ask::Call(call) => self.propose(0, Rc::new(Command::from(Op::Call(*call))), caller),
            Ask::Locate { asker, objects } => {
                let until = self.now() + PARK;
                let parked = Parked { machine, epoch, key, asker, objects, until };
                if let Some(parked) = self.look_up(shard, parked) {
                    self.shards[shard].parked.push(parked);
                    self.queue.at(until, What::ParkEnds { shard });
                }
            }
            Ask::Holding(report) => {
                let answer = self.hear_report(shard, &report);
                self.answer(machine, epoch, head, key, answer);
            }
            Ask::Beat(beat) => {
                let answer = self.hear_beat(machine, epoch, &beat);
                self.answer(machine, epoch, head, key, answer);
            }
            Ask::Suspect(suspect) => self.suspected(head, suspect),
        }
    }

    fn home_of(&self, objects: &[Bytes]) -> usize {
        let first = objects.first().and_then(|id| mobula_base::ObjectId::from_bytes(id));
        first.map_or(0, |id| id.task.run.shard(self.shards.len() as u32).0 as usize)
    }

    // ------------------------------------------------------------ the log

    /// Appends to the log of a shard's leader.
    pub fn propose(&mut self, shard: usize, command: Rc<Command>, caller: Caller) {
        let now = self.now();
        let (low, high) = self.options.commit_us;
        let mut takes = self.dice.us(low, high);
        let s = &mut self.shards[shard];
        if s.log.len() >= s.queue_max
            && let Caller::Machine { machine, epoch, key } = caller
        {
            return self.refuse(machine, epoch, key);
        }
        if s.slow.0 > now {
            takes *= s.slow.1 as u32;
        }
        let commits = s.log.back().map_or(now + takes, |last| last.commits.max(now + takes));
        s.log.push_back(Entry { command, caller, commits });
        let term = s.term;
        self.queue.at(commits, What::Commit { shard, term });
    }

    /// An entry may have committed: all that have are applied.
    pub fn commit(&mut self, shard: usize, term: u64) {
        let now = self.now();
        loop {
            let s = &mut self.shards[shard];
            if s.term != term || s.leader.is_none() {
                return;
            }
            if s.log.front().is_none_or(|entry| entry.commits > now) {
                return;
            }
            let Some(entry) = s.log.pop_front() else { return };
            self.apply(shard, &entry);
        }
    }

    fn apply(&mut self, shard: usize, entry: &Entry) {
        let s = &mut self.shards[shard];
        s.index += 1;
        let index = s.index;
        self.judges.before_apply(shard, &self.shards[shard].state, &entry.command);
        let reply = self.shards[shard].state.apply(index, &entry.command);
        if let Some(why) = self.shards[shard].state.broken() {
            let why = why.to_owned();
            self.judges.harness(format!("shard {shard} broke: {why}"));
        }
        let digest = super::mix(index, prost::Message::encoded_len(&reply) as u64);
        let term = self.shards[shard].term;
        self.note("applies", 1000 + shard as u64, term, digest, || describe(&entry.command));
        self.judges.applied(shard, index, &entry.command, &reply, &mut self.sometimes);
        if let (Some(Op::Stream(batch)), Some(reply::Reply::Stream(ack))) = (&entry.command.op, &reply.reply)
        {
            self.judge_references(batch, ack);
        }
        if let Caller::Ends { from, round } = entry.caller
            && let Some(reply::Reply::Unnames(ack)) = &reply.reply
        {
            let takes = self.dice.us(100, 3_000);
            let again = Some(ack.again.clone());
            self.queue.after(takes, What::EndsTold { from, round, to: shard, again });
        }
        if let Caller::Machine { machine, epoch, key } = entry.caller
            && let Some(head) = self.shards[shard].leader
        {
            match reply.reply {
                Some(reply::Reply::Stream(ack)) => {
                    self.answer(machine, epoch, head, key, Answer::Stream(ack))
                }
                Some(reply::Reply::Fenced(_) | reply::Reply::ExpectedSeq(_)) => {
                    self.answer(machine, epoch, head, key, Answer::Fenced);
                }
                Some(reply::Reply::Call(reply)) => {
                    self.answer(machine, epoch, head, key, Answer::Called(reply));
                }
                _ => self.refuse(machine, epoch, key),
            }
        }
        if shard == 0 && self.shards[0].state.cluster.version != self.view.version {
            self.view_changes();
        }
        if let Some(op) = &entry.command.op {
            self.reference_entry_applied(shard, op);
        }
        self.look_after_references(shard);
        if let Some(Op::Fence(fence)) = &entry.command.op {
            self.shards[shard].fencing.remove(&fence.incarnation);
            self.fence(shard);
        }
        self.wake_soon(shard);
    }

    /// Shard 0 has changed: nodes and the other leaders hear of it by and by.
    fn view_changes(&mut self) {
        let view = Rc::new(self.shards[0].state.cluster.view());
        let members = Rc::new(Members::of(&self.shards[0].state.cluster));
        self.judges.members(&members);
        self.view = view.clone();
        for shard in 0..self.shards.len() {
            let takes = if shard == 0 { Duration::ZERO } else { self.dice.us(100, 15_000) };
            self.queue.after(takes, What::RootSeen { shard, members: members.clone() });
        }
        let now = self.now();
        for machine in 0..self.machines.len() {
            let epoch = self.machines[machine].epoch;
            // A watch may be parked at any head that the node reaches.
            let head = self.dice.below(self.heads.len() as u64) as usize;
            let reached = self.heads[head] && self.net.reaches(Place::Head(head), Self::place(machine), now);
            if reached && self.machines[machine].life.is_some() {
                let lag = self.dice.us(0, 10_000);
                let takes = lag + self.net.latency(Place::Head(head), Self::place(machine), now);
                self.queue.after(takes, What::ViewComes { machine, epoch, view: view.clone() });
            }
        }
    }

    // ------------------------------------------------------------ soft state

    fn hear_report(&mut self, shard: usize, report: &mobula_proto::HoldingRequest) -> Answer {
        let now = self.time();
        let s = &mut self.shards[shard];
        if s.state.is_fenced(report.incarnation) || s.members.dead.contains(&report.incarnation) {
            return Answer::Fenced;
        }
        let answer = s.holdings.hear(report, s.term, &s.state, now);
        self.note("reports", 1000 + shard as u64, report.incarnation, report.add.len() as u64, || {
            format!("{answer:?}")
        });
        match answer {
            Held::AcceptedTerm(term) => {
                self.judges.lost.reported(shard, &self.shards[shard], report);
                self.judges.settled.reported(shard, term, report);
                self.wake_soon(shard);
                let drop = self.shards[shard].state.to_drop(&report.idle);
                self.judge_drops(shard, report.incarnation, &drop);
                Answer::Accepted { term, drop }
            }
            Held::ReportInFull(term) => Answer::ReportInFull(term),
            Held::Fenced(_) => Answer::Fenced,
            Held::Moved(_) | Held::NotLeader(_) | Held::Refused(_) => Answer::Noted,
        }
    }

    fn hear_beat(&mut self, machine: usize, epoch: u64, beat: &mobula_proto::HeartbeatRequest) -> Answer {
        let now = self.time();
        let members = &self.shards[0].members;
        if members.dead.contains(&beat.incarnation) {
            return Answer::Fenced;
        }
        if members.live.contains_key(&beat.incarnation) {
            self.beats.hear(beat, now);
        }
        let known = self.life(machine, epoch).map_or(0, |life| life.view_version);
        Answer::View((self.view.version > known).then(|| self.view.clone()))
    }

    /// Looks objects up at the leader; gives the question back when it had better wait.
    fn look_up(&mut self, shard: usize, parked: Parked) -> Option<Parked> {
        let now = self.now();
        let s = &mut self.shards[shard];
        s.holdings.enter(s.term, s.state.slots.adopted());
        let facts = Facts::new(&s.state, &s.holdings, &s.members, parked.asker);
        let answers = facts.answers(&parked.objects);
        if now < parked.until && all_wait(&answers) {
            return Some(parked);
        }
        if now < parked.until && parked.until.since(now) < PARK {
            self.sometimes.hit("parked question answered early");
        }
        for located in &answers {
            self.judges.lost.of_put(shard, located, &self.shards[shard], &self.machines);
            let Some(Where::Lost(attempt)) = located.answer else { continue };
            self.sometimes.hit("lost said");
            self.judges.settled.said(shard, located, &self.shards[shard], &self.machines);
            self.judges.lost.said(shard, located, attempt, &self.shards[shard], &self.machines);
        }
        let head = self.shards[shard].leader?;
        let Parked { machine, epoch, key, .. } = parked;
        self.answer(machine, epoch, head, key, Answer::Located(answers));
        None
    }

    /// Questions at a shard are to be looked at again, once for all that happens now.
    pub fn wake_soon(&mut self, shard: usize) {
        let s = &mut self.shards[shard];
        if !s.parked.is_empty() && !std::mem::replace(&mut s.waking, true) {
            self.queue.after(Duration::from_micros(200), What::Wake { shard });
        }
    }

    /// Looks at the parked questions again.
    pub fn wake(&mut self, shard: usize) {
        self.shards[shard].waking = false;
        if self.shards[shard].leader.is_none() {
            return;
        }
        for parked in std::mem::take(&mut self.shards[shard].parked) {
            if let Some(parked) = self.look_up(shard, parked) {
                self.shards[shard].parked.push(parked);
            }
        }
    }

    /// Some question's time is up.
    pub fn park_ends(&mut self, shard: usize) {
        let now = self.now();
        if self.shards[shard].parked.iter().any(|parked| parked.until <= now) {
            self.wake(shard);
        }
    }

    /// Somebody asks a head that no longer leads. Until it knows, it answers from what it had.
    fn ask_the_deposed(
        &mut self,
        machine: usize,
        epoch: u64,
        head: usize,
        key: Key,
        shard: usize,
        ask: &Ask,
    ) {
        let (now, time) = (self.now(), self.time());
        // The driver's node must not be taken for dead: it finds the next leader at once.
        let proof = machine == 0 && matches!(ask, Ask::Beat(_) | Ask::Holding(_));
        let old = self.shards[shard].deposed.as_mut();
        let unaware = old.filter(|old| old.head == head && old.until > now && !proof);
        let Some(old) = unaware else { return self.refuse(machine, epoch, key) };
        let answer = match ask {
            Ask::Locate { asker, objects } => {
                let facts = Facts::new(&old.state, &old.holdings, &old.members, *asker);
                Some(Answer::Located(facts.answers(objects)))
            }
            Ask::Holding(report) => match old.holdings.hear(report, old.term, &old.state, time) {
                Held::AcceptedTerm(term) => {
                    Some(Answer::Accepted { term, drop: old.state.to_drop(&report.idle) })
                }
                Held::ReportInFull(term) => Some(Answer::ReportInFull(term)),
                _ => None,
            },
            // Proposed there, it never commits: its outcome stays unknown.
            Ask::Stream(_) | Ask::Call(_) | Ask::Beat(_) | Ask::Suspect(_) => None,
        };
        match answer {
            Some(answer) => {
                self.sometimes.hit("answer of a deposed leader");
                self.answer(machine, epoch, head, key, answer);
            }
            None => {
                let patience = self.net.patience();
                self.queue.after(patience, What::Failed { machine, epoch, key });
            }
        }
    }

    // ------------------------------------------------------------ leaders

    /// The leadership of a shard ends; `unaware`: its leader does not know for so long. Some of what was
    /// proposed commits all the same, in its order, and nobody is told.
    pub fn leader_falls(&mut self, shard: usize, unaware: Option<Duration>) {
        let now = self.now();
        let s = &mut self.shards[shard];
        let Some(head) = s.leader.take() else { return };
        if let Some(for_so_long) = unaware {
            s.deposed = Some(Deposed {
                head,
                state: s.state.clone(),
                holdings: s.holdings.clone(),
                members: s.members.clone(),
                term: s.term,
                until: now + for_so_long,
            });
        }
        s.term += 1 + self.dice.below(3);
        s.holdings = mobula_gcs::core::holdings::Holdings::default();
        s.fencing.clear();
        (s.sweeping, s.delivery) = (false, None);
        let survive = self.dice.below(s.log.len() as u64 + 1) as usize;
        let (term, lost) = (s.term, s.log.split_off(survive));
        let parked = std::mem::take(&mut s.parked);
        let mut callers: Vec<Caller> = lost.iter().map(|entry| entry.caller).collect();
        if !lost.is_empty() {
            self.sometimes.hit("batch lost with its leader");
        }
        for entry in &mut s.log {
            callers.push(std::mem::replace(&mut entry.caller, Caller::Nobody));
            self.sometimes.hit("batch survives its leader unanswered");
        }
        callers.extend(parked.iter().map(|p| Caller::Machine {
            machine: p.machine,
            epoch: p.epoch,
            key: p.key,
        }));
        for caller in callers {
            let patience = self.net.patience() / 4;
            match caller {
                Caller::Machine { machine, epoch, key } => {
                    self.queue.after(patience, What::Failed { machine, epoch, key });
                }
                Caller::Ends { from, round } => {
                    self.queue.after(patience, What::EndsTold { from, round, to: shard, again: None });
                }
                Caller::Nobody => {}
            }
        }
        self.may_start_from_snapshot(shard);
        self.note("leaderless", 1000 + shard as u64, term, survive as u64, || format!("head {head}"));
        let running: Vec<usize> =
            (0..self.heads.len()).filter(|other| self.heads[*other] && *other != head).collect();
        let next = self.dice.pick(&running).unwrap_or(head);
        let takes = self.dice.log_uniform(8, 600);
        self.queue.after(Duration::from_millis(takes), What::Elected { shard, term, head: next });
    }

    /// A leader is elected.
    pub fn elected(&mut self, shard: usize, term: u64, head: usize) {
        let now = self.now();
        if self.shards[shard].term != term || self.shards[shard].leader.is_some() {
            return;
        }
        if !self.heads[head] {
            let running: Vec<usize> = (0..self.heads.len()).filter(|other| self.heads[*other]).collect();
            let again = self.dice.pick(&running).unwrap_or(head);
            self.shards[shard].term += 1;
            let term = self.shards[shard].term;
            return self.queue.after(Duration::from_millis(200), What::Elected { shard, term, head: again });
        }
        let takes = self.dice.us(300, 5_000);
        let s = &mut self.shards[shard];
        s.leader = Some(head);
        s.index += 1; // the leader's own first entry
        for entry in &mut s.log {
            entry.commits = now + takes;
        }
        s.holdings.enter(term, s.state.slots.adopted());
        self.note("leads", 1000 + shard as u64, term, head as u64, String::new);
        self.queue.after(takes, What::Commit { shard, term });
        if shard == 0 {
            self.beats = Default::default();
        }
        let members = Rc::new(Members::of(&self.shards[0].state.cluster));
        let lag = self.dice.us(0, 10_000);
        self.queue.after(lag, What::RootSeen { shard, members });
        for machine in 0..self.machines.len() {
            let epoch = self.machines[machine].epoch;
            self.poke_reporter(machine, epoch, shard, Duration::from_millis(100));
        }
        self.watch_soon(shard);
        self.look_after_references(shard);
    }
}

fn describe(command: &Command) -> String {
    match &command.op {
        Some(Op::Stream(batch)) => {
            let items: Vec<String> = unpack(batch).iter().map(|(_, item)| describe_item(item)).collect();
            format!("inc-{} from {}: {}", batch.incarnation, batch.first_seq, items.join(", "))
        }
        Some(other) => format!("{other:?}").chars().take(100).collect(),
        None => String::new(),
    }
}

fn describe_item(item: &mobula_proto::StreamItem) -> String {
    let task = |bytes: &[u8]| TaskId::from_bytes(bytes).map_or_else(String::new, |id| id.to_string());
    let object = |bytes: &[u8]| ObjectId::from_bytes(bytes).map_or_else(String::new, |id| id.to_string());
    match &item.item {
        Some(Item::Submit(spec)) => format!("submit {}", task(&spec.id)),
        Some(Item::Done(done)) => format!("done {} attempt {}", task(&done.task), done.attempt),
        Some(Item::Next(next)) if next.abandoned => format!("gives up {}", task(&next.task)),
        Some(Item::Next(next)) => format!("next {} from {}", task(&next.task), next.from),
        Some(Item::Put(put)) => format!("put {}", object(&put.object)),
        Some(Item::Name(name)) => {
            format!("name {} by {} hold {}", object(&name.object), object(&name.by), name.hold)
        }
        Some(Item::Unname(name)) => format!("unname {} by {}", object(&name.object), object(&name.by)),
        Some(Item::Release(release)) => format!("release {}", object(&release.object)),
        Some(Item::Run(_) | Item::RunDone(_) | Item::RunRelease(_)) | None => String::new(),
    }
}
