//! What goes wrong, when, and the governor that keeps a run recoverable: the driver's machine lives, and so
//! do half of the others, and most heads.

use super::FAULTS_MIN;
use super::ambush::Ambush;
use super::dice::Dice;
use super::net::Place;
use super::options::Options;
use super::program::JOB;
use super::scenario::{Kind, Planned};
use super::worker::Doom;
use super::world::{What, World};
use mobula_base::{Instant, JobId, ObjectId, TaskId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How something heals.
#[derive(Clone, Debug)]
pub enum Healing {
    /// A machine's daemon starts again.
    Restart(usize),
    /// A head starts again.
    Head(usize),
    /// There is room again.
    Room { machine: usize, epoch: u64, ballast: ObjectId },
    /// A shard's queue is long again.
    Queue(usize),
}

/// The creator of what fills a store up, and the ticket by which it asks.
const BALLAST: u64 = u64::MAX - 1;

/// Faults of a run.
pub struct Faults {
    /// When, and which.
    order: Dice,
    /// What the one that strikes now is like: a stream for each, so that others may be left out.
    pub(super) dice: Dice,
    /// How many were drawn.
    drawn: u64,
    /// What is planned, in the order of time, if it is.
    plan: Option<VecDeque<Planned>>,
    /// The planned one that strikes now.
    pub(super) wish: Planned,
    /// What waits for its moment.
    pub(super) ambush: Option<Box<Ambush>>,
    /// What landed.
    pub log: Vec<Planned>,
    kinds: Vec<(Kind, u64)>,
    pause_ms: (u64, u64),
    /// Transfers break off until then.
    transfers: Instant,
    ballast: u32,
    /// How many landed, by kind.
    pub landed: BTreeMap<Kind, u64>,
    /// The driver's machine is left alone until then: one short trouble after the other would be its death.
    spared: Instant,
    /// Machines that are down or were struck and may be declared dead.
    down: BTreeSet<usize>,
}

impl Faults {
    /// As drawn.
    pub fn new(options: &Options) -> Self {
        Faults {
            order: Dice::new(options.seed, "faults"),
            dice: Dice::new(options.seed, "fault"),
            drawn: 0,
            plan: options.plan.clone().map(|mut plan| {
                plan.sort_by_key(Planned::at);
                plan.into()
            }),
            wish: Planned::of(Duration::ZERO, Kind::Crash, 0),
            ambush: None,
            log: Vec::new(),
            kinds: options.faults.clone(),
            pause_ms: options.pause_ms,
            transfers: Instant::default(),
            ballast: 0,
            landed: BTreeMap::new(),
            spared: Instant::default(),
            down: BTreeSet::new(),
        }
    }

    /// Whether a transfer breaks off now.
    pub fn breaks_transfer(&self, dice: &mut Dice) -> bool {
        self.transfers > Instant::default() && dice.permille(300)
    }

    fn draw(&mut self) -> Option<Kind> {
        let total: u64 = self.kinds.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.order.below(total);
        self.kinds.iter().find_map(|(kind, weight)| {
            let here = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            here.then_some(*kind)
        })
    }
}

/// The driver's machine is heard from again before the next trouble.
const SPARED_FOR: Duration = Duration::from_secs(3);

/// Faults are at least so far apart.
const SOON: Duration = Duration::from_millis(20);

impl World {
    /// When a fault may come.
    pub fn plan_strikes(&mut self) {
        match &self.faults.plan {
            Some(plan) => {
                let times: Vec<Duration> = plan.iter().map(Planned::at).collect();
                times.into_iter().for_each(|at| self.queue.after(at, What::Strike));
            }
            None if self.options.faults.is_empty() => {}
            None => self.queue.after(self.options.warm_up, What::Strike),
        }
    }

    /// The next planned fault strikes; or one is drawn, and one that cannot land now gives way to another.
    pub fn strike(&mut self) {
        if self.quiet {
            return;
        }
        if let Some(plan) = &mut self.faults.plan {
            if let Some(planned) = plan.pop_front() {
                self.strike_with(planned);
            }
            return;
        }
        let at = Duration::from_nanos(self.now().0);
        let before: u64 = self.faults.landed.values().sum();
        for _ in 0..8 {
            let Some(kind) = self.faults.draw() else { break };
            self.faults.drawn += 1;
            if self.strike_with(Planned::of(at, kind, self.faults.drawn)) {
                break;
            }
        }
        let landed: u64 = self.faults.landed.values().sum();
        let missing = FAULTS_MIN.saturating_sub(landed) as u32;
        if landed == before && missing > 0 && at > self.options.faults_end / 2 {
            // What was drawn finds no target in this run; this always does.
            self.faults.drawn += 1;
            self.strike_with(Planned::of(at, Kind::Delay, self.faults.drawn));
        }
        let (low, high) = self.faults.pause_ms;
        let wait = self.faults.order.ms(low, high);
        // A run that has seen few does not wait long for the rest.
        let left = self.options.faults_end.saturating_sub(at) / (missing + 1);
        let wait = if missing == 0 { wait } else { wait.min(left) };
        self.queue.after(wait.max(SOON), What::Strike);
    }

    fn strike_with(&mut self, planned: Planned) -> bool {
        let kind = planned.kind;
        self.faults.dice = Dice::new(self.options.seed, &format!("fault {}", planned.draw));
        self.faults.wish = planned.clone();
        if kind == Kind::Ambush {
            self.lie_in_wait(planned);
            return true;
        }
        let Some(what) = self.land(kind) else { return false };
        self.has_landed(planned, kind, &what);
        true
    }

    pub(super) fn has_landed(&mut self, planned: Planned, kind: Kind, what: &str) {
        self.faults.log.push(planned);
        *self.faults.landed.entry(kind).or_default() += 1;
        self.note("fault", 0, 0, kind as u64, || format!("{kind:?}: {what}"));
    }

    /// A machine: the one that is wished for, or any.
    fn any_machine(&mut self) -> usize {
        let drawn = self.faults.dice.below(self.machines.len() as u64) as usize;
        self.faults.wish.machine.unwrap_or(drawn)
    }

    /// A shard: the one that is wished for, or any.
    pub(super) fn any_shard(&mut self) -> usize {
        let drawn = self.faults.dice.below(self.shards.len() as u64) as usize;
        self.faults.wish.shard.unwrap_or(drawn)
    }

    fn land(&mut self, kind: Kind) -> Option<String> {
        match kind {
            Kind::Crash => {
                let machine = self.victim()?;
                self.crash(machine);
                Some(format!("machine {machine}"))
            }
            Kind::Pause => self.pause(),
            Kind::CutNodes => self.cut_nodes(),
            Kind::CutHeads => self.cut_heads(),
            Kind::Delay => {
                let (places, until) = (self.places(), self.until(500, 5_000));
                let place = self.faults.dice.pick(&places)?;
                let by = self.faults.dice.ms(5, 400);
                self.net.slow_down(place, until, by);
                Some(format!("{place:?} by {by:?}"))
            }
            Kind::Requests => {
                let until = self.until(500, 6_000);
                let permille = [0; 4].map(|_: u64| self.faults.dice.below(120));
                self.net.bad_requests(until, permille);
                Some(format!("{permille:?}"))
            }
            Kind::LeaderChange => {
                let shard = self.any_shard();
                self.shards[shard].leader?;
                let unaware = self.faults.dice.permille(500).then(|| self.faults.dice.ms(50, 3_000));
                self.leader_falls(shard, unaware);
                Some(format!("shard {shard}, unaware for {unaware:?}"))
            }
            Kind::HeadCrash => self.crash_head(),
            Kind::Copies => self.copies_and_leader(),
            Kind::KillWorker => self.kill_worker(),
            Kind::SlowNode => {
                let machine = self.any_machine();
                let times = self.faults.dice.from_to(3, 30);
                self.machines[machine].slow = (self.until(500, 8_000), times);
                Some(format!("machine {machine}, {times} times"))
            }
            Kind::SlowLog => {
                let shard = self.any_shard();
                let times = self.faults.dice.from_to(5, 60);
                self.shards[shard].slow = (self.until(500, 5_000), times);
                Some(format!("shard {shard}, {times} times"))
            }
            Kind::StoreFull => self.fill_store(),
            Kind::SmallQueue => {
                let shard = self.any_shard();
                self.shards[shard].queue_max = self.faults.dice.from_to(1, 2) as usize;
                let until = self.until(500, 5_000);
                self.queue.at(until, What::Heal(Healing::Queue(shard)));
                Some(format!("shard {shard}"))
            }
            Kind::Transfers => {
                self.faults.transfers = self.until(500, 8_000);
                Some("break off".into())
            }
            Kind::Keeper => self.keeper(),
            Kind::DiskRefuses => self.refuse_files(),
            Kind::Rot => self.damage_file(),
            // It lands when it is sprung.
            Kind::Ambush => None,
            // Of real processes: no scenario of this layer has them.
            Kind::HeadPause | Kind::HeadCut | Kind::NodeCut | Kind::CpuPressure => None,
        }
    }

    fn until(&mut self, low_ms: u64, high_ms: u64) -> Instant {
        let drawn = self.faults.dice.ms(low_ms, high_ms);
        self.now() + self.faults.wish.lasts().unwrap_or(drawn)
    }

    fn places(&self) -> Vec<Place> {
        (0..self.machines.len()).map(Place::Node).chain((0..self.heads.len()).map(Place::Head)).collect()
    }

    /// A machine that may go down: not the driver's, and at most half of the others are down at once.
    pub(super) fn victim(&mut self) -> Option<usize> {
        let now = self.now();
        let machines = &self.machines;
        self.faults.down.retain(|machine| {
            let m = &machines[*machine];
            m.life.is_none() || m.paused > now
        });
        if self.faults.down.len() >= machines.len() / 2 {
            return None;
        }
        let fit: Vec<usize> = (1..machines.len())
            .filter(|m| machines[*m].life.is_some() && machines[*m].paused <= now)
            .collect();
        let wish = self.faults.wish.machine;
        let fit: Vec<usize> = fit.into_iter().filter(|m| wish.is_none_or(|wish| wish == *m)).collect();
        let machine = self.faults.dice.pick(&fit)?;
        self.faults.down.insert(machine);
        Some(machine)
    }

    pub(super) fn crash(&mut self, machine: usize) {
        self.life_ends(machine);
        self.machines[machine].session = None;
        self.machines[machine].next_call = 1;
        self.machines[machine].paused = Instant::default();
        if self.faults.dice.permille(300) && !self.machines[machine].disk.files.is_empty() {
            self.sometimes.hit("disk lost with its machine");
            self.machines[machine].disk.files.clear();
        }
        let back = self.faults.dice.log_uniform(30, 8_000);
        self.queue.after(Duration::from_millis(back), What::Heal(Healing::Restart(machine)));
    }

    fn pause(&mut self) -> Option<String> {
        // The driver's machine stands still for a moment only: it must not be taken for dead.
        if self.faults.dice.permille(150) {
            let until = self.until(20, 500);
            self.spares_the_driver(until)?;
            self.machines[0].paused = until;
            return Some(format!("machine 0 until {until:?}"));
        }
        self.pause_machine()
    }

    pub(super) fn pause_machine(&mut self) -> Option<String> {
        let machine = self.victim()?;
        let long = self.faults.dice.permille(700);
        let until = if long { self.until(1_600, 9_000) } else { self.until(20, 1_500) };
        self.machines[machine].paused = until;
        Some(format!("machine {machine} until {until:?}"))
    }

    /// The driver's machine may be struck until then, and not again for a while; nothing if it was a moment ago.
    fn spares_the_driver(&mut self, until: Instant) -> Option<()> {
        let may = self.faults.spared <= self.now();
        if may {
            self.faults.spared = until + SPARED_FOR;
        }
        may.then_some(())
    }

    fn cut_nodes(&mut self) -> Option<String> {
        let until = self.until(300, 8_000);
        let all = self.machines.len();
        let one_way = self.faults.dice.permille(400);
        let partial = self.faults.dice.permille(300);
        let left: BTreeSet<usize> = (0..all).filter(|_| self.faults.dice.permille(400)).collect();
        let mut pairs = 0;
        for a in left.iter().copied() {
            for b in (0..all).filter(|b| !left.contains(b)) {
                if partial && self.faults.dice.permille(500) {
                    continue;
                }
                self.net.cut(Place::Node(a), Place::Node(b), until);
                if !one_way {
                    self.net.cut(Place::Node(b), Place::Node(a), until);
                }
                pairs += 1;
            }
        }
        (pairs > 0).then(|| format!("{pairs} pairs, one way: {one_way}, until {until:?}"))
    }

    fn cut_heads(&mut self) -> Option<String> {
        let machine = self.any_machine();
        let machine = if machine == 0 { 0 } else { self.victim()? };
        // See `pause`.
        let until = if machine == 0 { self.until(50, 700) } else { self.until(300, 6_000) };
        if machine == 0 {
            self.spares_the_driver(until)?;
        }
        let one_way = self.faults.dice.below(3);
        let heads: Vec<usize> = (0..self.heads.len()).filter(|_| self.faults.dice.permille(600)).collect();
        for head in &heads {
            if one_way != 1 {
                self.net.cut(Place::Node(machine), Place::Head(*head), until);
            }
            if one_way != 2 {
                self.net.cut(Place::Head(*head), Place::Node(machine), until);
            }
        }
        (!heads.is_empty()).then(|| format!("machine {machine} and heads {heads:?} until {until:?}"))
    }

    fn crash_head(&mut self) -> Option<String> {
        if self.heads.iter().filter(|up| !**up).count() * 2 + 1 >= self.heads.len() {
            return None;
        }
        let head = self.faults.dice.below(self.heads.len() as u64) as usize;
        self.heads[head] = false;
        for shard in 0..self.shards.len() {
            if self.shards[shard].leader == Some(head) {
                self.leader_falls(shard, None);
            }
            if self.shards[shard].deposed.as_ref().is_some_and(|old| old.head == head) {
                self.shards[shard].deposed = None;
            }
        }
        let back = self.faults.dice.ms(200, 6_000);
        self.queue.after(back, What::Heal(Healing::Head(head)));
        Some(format!("head {head}"))
    }

    /// Every copy of a large object beyond the driver's machine goes, and the leader of its shard.
    fn copies_and_leader(&mut self) -> Option<String> {
        let mut held: BTreeMap<ObjectId, Vec<usize>> = BTreeMap::new();
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(life) = machine.life.as_deref() else { continue };
            for shard in 0..self.shards.len() as u32 {
                for object in life.core.held(mobula_base::ShardId(shard)) {
                    held.entry(object).or_default().push(number);
                }
            }
        }
        let lonely = |(object, on): (ObjectId, Vec<usize>)| {
            (!on.contains(&0) && on.len() <= 3).then_some((object, on))
        };
        let fit: Vec<(ObjectId, Vec<usize>)> = held.into_iter().filter_map(lonely).collect();
        let at = self.faults.dice.below(fit.len() as u64) as usize;
        let (object, on) = fit.get(at)?.clone();
        if self.faults.down.len() + on.len() >= self.machines.len() {
            return None;
        }
        for machine in &on {
            self.faults.down.insert(*machine);
            self.crash(*machine);
        }
        let shard = object.task.run.shard(self.shards.len() as u32).0 as usize;
        self.leader_falls(shard, None);
        self.sometimes.hit("copies and leader lost together");
        Some(format!("{object} on machines {on:?}"))
    }

    /// A task runs on one machine, and who submitted it waits on another: either goes. What is left of the two goes
    /// on without the other.
    fn keeper(&mut self) -> Option<String> {
        let mut runs: BTreeMap<TaskId, (usize, TaskId)> = BTreeMap::new();
        for (number, machine) in self.machines.iter().enumerate() {
            let clients = machine.life.iter().flat_map(|life| life.clients.values());
            let here = clients.filter_map(|client| client.run.as_ref());
            runs.extend(here.map(|run| (run.task, (number, run.parent))));
        }
        let pairs = runs.values().filter_map(|(child, parent)| Some((runs.get(parent)?.0, *child)));
        let apart: Vec<(usize, usize)> = pairs.filter(|(keeper, runner)| keeper != runner).collect();
        let (keeper, runner) = self.faults.dice.pick(&apart)?;
        let wish = if self.faults.dice.permille(700) { keeper } else { runner };
        self.faults.wish.machine = Some(self.faults.wish.machine.unwrap_or(wish));
        let machine = self.victim()?;
        self.crash(machine);
        Some(format!("machine {machine}; {keeper} keeps what runs on {runner}"))
    }

    fn kill_worker(&mut self) -> Option<String> {
        let doom = self.faults.dice.pick(&[
            Doom::BeforeStart,
            Doom::MidRun,
            Doom::BeforeReport,
            Doom::AfterReport,
        ])?;
        let mut fit = Vec::new();
        for (number, machine) in self.machines.iter().enumerate() {
            let Some(life) = machine.life.as_deref() else { continue };
            let workers =
                life.clients.iter().filter(|(id, c)| **id != super::life::DRIVER && c.doom.is_none());
            // One that is at work dies soon.
            let busy = workers.filter(|(_, c)| c.run.is_some() || !c.queue.is_empty());
            fit.extend(busy.map(|(id, _)| (number, *id)));
        }
        let (machine, client) = self.faults.dice.pick(&fit)?;
        self.machines[machine].life.as_mut()?.clients.get_mut(&client)?.doom = Some(doom);
        Some(format!("machine {machine}, client {client}, {doom:?}"))
    }

    fn fill_store(&mut self) -> Option<String> {
        // A program whose put finds no room cannot go on as written: the driver's node has room.
        let machine = self.faults.dice.from_to(1, self.machines.len() as u64 - 1) as usize;
        let until = self.until(300, 3_000);
        let slack = self.faults.dice.below(300_000);
        self.faults.ballast += 1;
        let ballast = TaskId::root(JobId(u64::MAX)).output(self.faults.ballast);
        let epoch = self.machines[machine].epoch;
        let life = self.machines[machine].life.as_mut()?;
        let (used, all) = life.store.usage();
        life.store.want_room(BALLAST, ballast, (all - used).saturating_sub(slack), JobId(u64::MAX), BALLAST);
        let mut events = Vec::new();
        self.turn_store(machine, epoch, &mut events);
        for event in events {
            self.input(machine, epoch, super::life::Input::Core(event));
        }
        let life = self.machines[machine].life.as_mut()?;
        // It does not wait in line.
        life.store.cancel(&BTreeSet::from([BALLAST]));
        self.judges.cause.store_full |= self.options.disk_us.is_none();
        self.queue.at(until, What::Heal(Healing::Room { machine, epoch, ballast }));
        Some(format!("machine {machine} until {until:?}"))
    }

    fn refuse_files(&mut self) -> Option<String> {
        self.options.disk_us?;
        let (machine, until) = (self.any_machine(), self.until(500, 8_000));
        self.machines[machine].disk.refuses = until;
        Some(format!("machine {machine} until {until:?}"))
    }

    /// Of what the driver has put in a job that began before its cluster counted references there is no record:
    /// nobody could tell that it is lost. Its copies are left alone.
    fn damage_file(&mut self) -> Option<String> {
        let bare = |id: ObjectId| !self.options.counts && id.is_put() && id.task == TaskId::root(JOB);
        let disks = self.machines.iter().enumerate();
        let files = disks.flat_map(|(n, machine)| machine.disk.files.keys().map(move |id| (n, *id)));
        let files: Vec<_> = files.filter(|(_, id)| !bare(id.object)).collect();
        let (machine, id) = self.faults.dice.pick(&files)?;
        let (.., whole) = self.machines[machine].disk.files.get_mut(&id)?;
        *whole = false;
        self.judges.cause.damaged(id.object);
        Some(format!("machine {machine}: {}", id.object))
    }

    /// Something heals.
    pub fn heal(&mut self, healing: Healing) {
        match healing {
            Healing::Restart(machine) => {
                let m = &mut self.machines[machine];
                if !m.up {
                    m.up = true;
                    m.epoch += 1;
                    let epoch = m.epoch;
                    self.queue.after(Duration::from_millis(5), What::Start { machine, epoch });
                }
            }
            Healing::Head(head) => self.heads[head] = true,
            Healing::Room { machine, epoch, ballast } => {
                if let Some(life) = self.life(machine, epoch) {
                    life.store.abort(ballast, BALLAST);
                    self.input(machine, epoch, super::life::Input::Core(mobula_scheduler::Event::Tick));
                }
            }
            Healing::Queue(shard) => self.shards[shard].queue_max = usize::MAX,
        }
    }

    /// All heals. What is paused goes on when its time comes; what is down comes back as planned.
    pub fn heal_all(&mut self) {
        self.net.heal();
        self.faults.transfers = Instant::default();
        for head in 0..self.heads.len() {
            self.heads[head] = true;
        }
        for shard in &mut self.shards {
            shard.slow.0 = Instant::default();
            shard.queue_max = usize::MAX;
        }
        for machine in &mut self.machines {
            machine.slow = (Instant::default(), 1);
            machine.disk.refuses = Instant::default();
            if let Some(life) = &mut machine.life {
                life.clients.values_mut().for_each(|client| client.doom = None);
            }
        }
    }
}
