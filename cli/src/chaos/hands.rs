//! Doing faults to the processes of a cluster, and undoing them. A governor keeps a run recoverable: most heads stay, at
//! most half of the nodes are out, the driver's node lives, and nobody has two things wrong with its network at once.

use crate::chaos::fault::{Fault, Outcome, Whom};
use crate::chaos::probe;
use crate::chaos::work::{Shared, until};
use crate::cluster::LocalCluster;
use crate::commands::fault_switch;
use crate::demo::monitor::Monitor;
use crate::process::Process;
use mobula_chaos::Kind;
use mobula_chaos::dice::Dice;
use mobula_chaos::scenario::{Planned, Role};
use mobula_gcs::Client;
use mobula_net::faults::{Cut, Weather};
use mobula_net::tcp::TcpNet;
use mobula_proto::StatusReply;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A node that is slow runs for the first time and stands still for the second, by turns.
const SLOW: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(45));
/// Threads that want every processor, for each that there is.
const PRESSURE: usize = 2;
/// How long a shard that is electing is waited for.
const ELECTS: Duration = Duration::from_secs(3);
/// How long a hand-over may take.
const MOVES: Duration = Duration::from_secs(5);

/// How a fault is undone.
pub enum Healing {
    /// Started again.
    Restart(Vec<Whom>),
    /// Continued.
    Continue(Whom, Vec<Process>),
    /// Fair weather again.
    Weather(Vec<Whom>),
    /// What goes on by itself stops.
    Stop(Option<Whom>, Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>),
}

/// A fault that was done: what it was, and, if it lasts, for how long and how it is undone.
pub struct Landed {
    /// The fault.
    pub fault: Fault,
    /// Its end.
    pub healing: Option<(Duration, Healing)>,
}

/// The hands.
pub struct Hands<'a> {
    cluster: &'a LocalCluster,
    monitor: &'a Monitor,
    shared: Arc<Shared>,
    heads: usize,
    nodes: usize,
    shards: u32,
    seed: u64,
    began: Instant,
    /// Who is gone, stands still, or is cut off.
    out: BTreeSet<Whom>,
    /// Who has something wrong with its network.
    weather: BTreeSet<Whom>,
}

/// A fault that cannot be done now, and why.
type Not = String;
/// Who leads each shard, with the term.
type Leaders = Vec<Option<(usize, u64)>>;
/// Shards that a head leads, with the terms.
type Led = Vec<(u32, u64)>;

fn led_by(leaders: &Leaders, head: usize) -> Led {
    let led = (0..).zip(leaders).filter_map(|(shard, leader)| Some((shard, (*leader)?)));
    led.filter(|(_, (leader, _))| *leader == head).map(|(shard, (_, term))| (shard, term)).collect()
}

impl<'a> Hands<'a> {
    /// Of a cluster of so many heads, nodes and shards.
    pub fn new(
        cluster: &'a LocalCluster,
        monitor: &'a Monitor,
        shared: Arc<Shared>,
        (heads, nodes, shards): (usize, usize, u32),
        (seed, began): (u64, Instant),
    ) -> Self {
        let (out, weather) = (BTreeSet::new(), BTreeSet::new());
        Hands { cluster, monitor, shared, heads, nodes, shards, seed, began, out, weather }
    }

    /// Does a fault, if that can be.
    pub fn strike(&mut self, planned: &Planned) -> Landed {
        let dice = &mut Dice::new(self.seed, &format!("fault {}", planned.draw));
        match self.land(planned, dice) {
            Ok(mut landed) => {
                landed.fault.at_s = self.began.elapsed().as_secs_f64();
                if let Some((lasts, _)) = &mut landed.healing {
                    *lasts = planned.lasts().unwrap_or(*lasts);
                }
                landed
            }
            Err(why) => {
                let fault = Fault::skipped(planned.kind, self.began.elapsed(), why);
                Landed { fault, healing: None }
            }
        }
    }

    fn land(&mut self, planned: &Planned, dice: &mut Dice) -> Result<Landed, Not> {
        match planned.kind {
            Kind::Crash => self.crash(planned, dice),
            Kind::Pause => {
                let node = self.node(planned, dice)?;
                Ok(self.pause(Kind::Pause, Whom::Node(node), Led::new(), dice))
            }
            Kind::HeadCrash => self.crash_head(planned, dice),
            Kind::HeadPause => {
                let (head, led) = self.head(planned, dice)?;
                Ok(self.pause(Kind::HeadPause, Whom::Head(head), led, dice))
            }
            Kind::HeadCut => {
                let (head, led) = self.head(planned, dice)?;
                Ok(self.cut_off(Kind::HeadCut, Whom::Head(head), led, dice))
            }
            Kind::NodeCut => {
                let node = self.node(planned, dice)?;
                Ok(self.cut_off(Kind::NodeCut, Whom::Node(node), Led::new(), dice))
            }
            Kind::CutHeads => self.cut_heads(planned, dice),
            Kind::CutNodes => self.cut_nodes(dice),
            Kind::Delay => self.delay(planned, dice),
            Kind::Requests => self.requests(dice),
            Kind::LeaderChange => self.leader_change(planned, dice),
            Kind::Copies => self.copies(planned, dice),
            Kind::KillWorker => self.kill_worker(planned, dice),
            Kind::SlowNode => self.slow_node(planned, dice),
            Kind::CpuPressure => Ok(self.cpu_pressure(dice)),
            other => Err(format!("processes have no fault \"{other}\"")),
        }
    }

    /// Undoes a fault.
    ///
    /// # Errors
    /// It cannot be undone: the run has no more to say.
    pub fn heal(&mut self, healing: Healing) -> Result<(), String> {
        match healing {
            Healing::Restart(all) => {
                for whom in all {
                    match whom {
                        Whom::Head(number) => self.cluster.restart_head(number)?,
                        Whom::Node(number) => self.cluster.restart_node(number)?,
                    }
                    self.out.remove(&whom);
                }
            }
            Healing::Continue(whom, processes) => {
                processes.iter().for_each(|process| process.signal(Signal::CONT));
                self.out.remove(&whom);
            }
            Healing::Weather(all) => {
                for whom in all {
                    self.weather.remove(&whom);
                    self.out.remove(&whom);
                    self.order(whom, &Weather::default())?;
                }
            }
            Healing::Stop(whom, stop, threads) => {
                stop.store(true, Ordering::SeqCst);
                // A panic there was printed there.
                threads.into_iter().for_each(|thread| drop(thread.join()));
                whom.into_iter().for_each(|whom| _ = self.out.remove(&whom));
            }
        }
        Ok(())
    }

    fn done(&self, kind: Kind, whom: Vec<Whom>, text: String) -> Fault {
        let life = |whom: &Whom| match whom {
            Whom::Node(number) => self.cluster.node(*number).and_then(|ready| ready.incarnation),
            Whom::Head(_) => None,
        };
        let lives = whom.iter().filter_map(life).collect();
        Fault { whom, text, lives, ..Fault::begun(kind, self.began.elapsed()) }
    }

    /// Something has begun that may end what runs on a node.
    fn is_lethal(&self) {
        self.shared.lethal.fetch_add(1, Ordering::SeqCst);
    }

    /// Who leads each shard, with the term, as the heads that answer say.
    fn leaders(&self) -> Leaders {
        let addresses = self.cluster.head_addresses();
        let seen = self.monitor.look();
        let leader = |shard: u32| {
            let claims = |status: &StatusReply| {
                let own = status.shards.iter().find(|s| s.shard == shard)?;
                (own.leader == status.head && status.head != 0).then_some(own.term)
            };
            let all = seen.iter().filter_map(|(address, status)| Some((address, claims(status)?)));
            let (address, term) = all.max_by_key(|(_, term)| *term)?;
            Some((1 + addresses.iter().position(|head| head == address)?, term))
        };
        (0..self.shards).map(leader).collect()
    }

    /// Who leads a shard, with the term, and who leads each then; waited for while it is electing.
    fn leader_of(&self, shard: usize) -> Result<((usize, u64), Leaders), Not> {
        let mut found = None;
        let lacks = until(ELECTS, || {
            let leaders = self.leaders();
            found = leaders.get(shard).copied().flatten().map(|leader| (leader, leaders));
            found.is_none().then(|| format!("shard {shard} has had no leader for {ELECTS:?}"))
        });
        found.ok_or_else(|| lacks.unwrap_or_default())
    }

    /// The head that is to be struck, if one may be, and what it leads, with the terms.
    fn head(&self, planned: &Planned, dice: &mut Dice) -> Result<(usize, Led), Not> {
        let out = self.out.iter().filter(|whom| matches!(whom, Whom::Head(_))).count();
        if out >= (self.heads - 1) / 2 {
            return Err(format!("{out} of {} heads are out: a majority stays", self.heads));
        }
        let drawn = 1 + dice.below(self.heads as u64) as usize;
        let shard = planned.shard.unwrap_or(dice.below(u64::from(self.shards)) as usize);
        let (head, leaders) = match (planned.target, planned.machine) {
            (Some(Role::Holder), _) => return Err("no head holds objects".into()),
            (Some(role), _) => {
                let ((leader, _), leaders) = self.leader_of(shard)?;
                let head = match role {
                    Role::Leader => leader,
                    _ => dice.pick(&self.well_heads_but(leader)).ok_or("no head follows")?,
                };
                (head, leaders)
            }
            (None, machine) => (machine.map_or(drawn, |machine| machine + 1), self.leaders()),
        };
        match self.is_well(Whom::Head(head)) {
            true => Ok((head, led_by(&leaders, head))),
            false => Err(format!("head {head} has enough to bear")),
        }
    }

    fn is_well(&self, whom: Whom) -> bool {
        !self.out.contains(&whom) && !self.weather.contains(&whom)
    }

    fn well_heads_but(&self, leader: usize) -> Vec<usize> {
        (1..=self.heads).filter(|head| *head != leader && self.is_well(Whom::Head(*head))).collect()
    }

    /// All heads, and the nodes from `first` on, with which nothing is wrong.
    fn well(&self, first: usize) -> Vec<Whom> {
        let all = (1..=self.heads).map(Whom::Head).chain((first..=self.nodes).map(Whom::Node));
        all.filter(|whom| self.is_well(*whom)).collect()
    }

    /// The node that is to be struck, if one may be: not the driver's.
    fn node(&self, planned: &Planned, dice: &mut Dice) -> Result<usize, Not> {
        let out = self.out.iter().filter(|whom| matches!(whom, Whom::Node(_))).count();
        let most = (self.nodes - 1).div_ceil(2);
        if out >= most {
            return Err(format!(
                "{out} of {} nodes without the driver are out: more may not be",
                self.nodes - 1
            ));
        }
        let well: Vec<usize> = (2..=self.nodes).filter(|node| self.is_well(Whom::Node(*node))).collect();
        let drawn = dice.pick(&well).ok_or("every node without the driver has enough to bear")?;
        let node = match (planned.target, planned.machine) {
            (Some(Role::Holder), _) => self.holder(&well).unwrap_or(drawn),
            (Some(_), _) => return Err("no node leads or follows".into()),
            (None, machine) => machine.map_or(drawn, |machine| machine + 1),
        };
        match (node, well.contains(&node)) {
            (1, _) => Err("the driver's node is left alone".into()),
            (_, true) => Ok(node),
            _ => Err(format!("node {node} has enough to bear")),
        }
    }

    /// Which of these nodes has most bytes of objects.
    fn holder(&self, among: &[usize]) -> Option<usize> {
        let bytes = |node: &usize| {
            let address = self.cluster.node(*node)?.peer_address?;
            let metrics = probe::metrics(&address).ok()?;
            Some(mobula_chaos::probe::of(&metrics, "object_store_used_bytes") as u64)
        };
        among.iter().copied().max_by_key(|node| bytes(node).unwrap_or(0))
    }

    fn crash(&mut self, planned: &Planned, dice: &mut Dice) -> Result<Landed, Not> {
        let node = self.node(planned, dice)?;
        let whom = Whom::Node(node);
        let fault =
            self.done(Kind::Crash, vec![whom], format!("node {node} killed with its workers and objects"));
        self.cluster.kill_node(node);
        self.goes_out(whom);
        Ok(Landed { fault, healing: Some((dice.ms(100, 3_000), Healing::Restart(vec![whom]))) })
    }

    fn crash_head(&mut self, planned: &Planned, dice: &mut Dice) -> Result<Landed, Not> {
        let (head, led) = self.head(planned, dice)?;
        let whom = Whom::Head(head);
        let text = format!("head {head} killed, which led {} of {} shards", led.len(), self.shards);
        let fault = Fault { led, ..self.done(Kind::HeadCrash, vec![whom], text) };
        self.cluster.kill_head(head);
        self.out.insert(whom);
        Ok(Landed { fault, healing: Some((dice.ms(50, 2_000), Healing::Restart(vec![whom]))) })
    }

    /// Nobody hears of it now. What runs on a node may be taken for dead; on a head nothing runs.
    fn goes_out(&mut self, whom: Whom) {
        self.out.insert(whom);
        if matches!(whom, Whom::Node(_)) {
            self.is_lethal();
        }
    }

    /// All that a daemon consists of.
    fn processes(&self, whom: Whom) -> Vec<Process> {
        let daemon = match whom {
            Whom::Head(number) => self.cluster.head_process(number),
            Whom::Node(number) => self.cluster.node_process(number),
        };
        std::iter::once(daemon).chain(daemon.children()).collect()
    }

    fn pause(&mut self, kind: Kind, whom: Whom, led: Led, dice: &mut Dice) -> Landed {
        let fault = Fault { led, ..self.done(kind, vec![whom], format!("{whom} stopped")) };
        let processes = self.processes(whom);
        processes.iter().for_each(|process| process.signal(Signal::STOP));
        self.goes_out(whom);
        let lasts = if dice.permille(300) { dice.ms(50, 900) } else { dice.ms(1_000, 6_000) };
        Landed { fault, healing: Some((lasts, Healing::Continue(whom, processes))) }
    }

    fn order(&self, whom: Whom, weather: &Weather) -> Result<(), String> {
        let dir = match whom {
            Whom::Head(number) => self.cluster.head_dir(number),
            Whom::Node(number) => self.cluster.node_dir(number),
        };
        fault_switch::order(&dir.fault_switch(), weather, None)
    }

    /// Orders weather for all of them, or for none.
    fn bring(&mut self, fault: Fault, all: &[(Whom, Weather)], lasts: Duration) -> Landed {
        let mut done = Vec::new();
        for (whom, weather) in all {
            done.push(*whom);
            if let Err(why) = self.order(*whom, weather) {
                // It may have heard and not answered.
                let fault = Fault { outcome: Outcome::Indeterminate, text: why, ..fault };
                self.weather.extend(done.iter().copied());
                return Landed { fault, healing: Some((Duration::ZERO, Healing::Weather(done))) };
            }
        }
        self.weather.extend(done.iter().copied());
        Landed { fault, healing: Some((lasts, Healing::Weather(done))) }
    }

    fn cut_off(&mut self, kind: Kind, whom: Whom, led: Led, dice: &mut Dice) -> Landed {
        let cut = dice.pick(&[Cut::Both, Cut::Both, Cut::Inbound, Cut::Outbound]).unwrap_or(Cut::Both);
        let fault = Fault { led, ..self.done(kind, vec![whom], format!("{whom} cut off: {cut}")) };
        self.goes_out(whom);
        let lasts = dice.ms(500, 6_000);
        self.bring(fault, &[(whom, Weather::of(cut))], lasts)
    }

    /// A node does not reach some heads.
    fn cut_heads(&mut self, planned: &Planned, dice: &mut Dice) -> Result<Landed, Not> {
        let whom = Whom::Node(self.node(planned, dice)?);
        let mut only = self.cluster.head_addresses();
        while only.len() > 1 && dice.permille(500) {
            only.remove(dice.below(only.len() as u64) as usize);
        }
        let text = format!("{whom} does not reach {} of {} heads", only.len(), self.heads);
        let fault = self.done(Kind::CutHeads, vec![whom], text);
        self.is_lethal();
        let lasts = dice.ms(500, 6_000);
        Ok(self.bring(fault, &[(whom, Weather { only, ..Weather::of(Cut::Both) })], lasts))
    }

    /// Two nodes do not reach each other, whoever dialed whom.
    fn cut_nodes(&mut self, dice: &mut Dice) -> Result<Landed, Not> {
        let mut well: Vec<usize> = (1..=self.nodes).filter(|node| self.is_well(Whom::Node(*node))).collect();
        let one = dice.pick(&well);
        well.retain(|node| Some(*node) != one);
        let (Some(one), Some(other)) = (one, dice.pick(&well)) else {
            return Err("all nodes but one have enough to bear".into());
        };
        let towards = |node: usize| {
            let address = self.cluster.node(node).and_then(|ready| ready.peer_address);
            let only = vec![address.ok_or_else(|| format!("node {node} is not up"))?];
            Ok::<_, Not>(Weather { only, ..Weather::of(Cut::Both) })
        };
        let all = [(Whom::Node(one), towards(other)?), (Whom::Node(other), towards(one)?)];
        let text = format!("nodes {one} and {other} do not reach each other");
        let fault = self.done(Kind::CutNodes, vec![Whom::Node(one), Whom::Node(other)], text);
        self.is_lethal();
        let lasts = dice.ms(500, 6_000);
        Ok(self.bring(fault, &all, lasts))
    }

    fn anybody(&self, planned: &Planned, dice: &mut Dice) -> Result<Whom, Not> {
        match planned.machine.map(|machine| Whom::Node(machine + 1)) {
            Some(whom) if self.is_well(whom) => Ok(whom),
            Some(whom) => Err(format!("{whom} has enough to bear")),
            None => dice.pick(&self.well(1)).ok_or_else(|| "everybody has enough to bear".into()),
        }
    }

    fn delay(&mut self, planned: &Planned, dice: &mut Dice) -> Result<Landed, Not> {
        let whom = self.anybody(planned, dice)?;
        let most = if whom == Whom::Node(1) { 50 } else { 300 };
        let delay = Duration::from_millis(dice.log_uniform(2, most));
        // The driver's node must not pass for dead.
        let slow = dice.permille(300) && whom != Whom::Node(1);
        let rate = if slow { dice.log_uniform(200_000, 20_000_000) } else { 0 };
        let text = match rate {
            0 => format!("what {whom} sends and hears is {} ms late", delay.as_millis()),
            rate => {
                format!("what {whom} sends and hears is {} ms late, {} kB/s", delay.as_millis(), rate / 1000)
            }
        };
        let fault = self.done(Kind::Delay, vec![whom], text);
        let lasts = dice.ms(500, 5_000);
        Ok(self.bring(fault, &[(whom, Weather { delay, rate, ..Weather::default() })], lasts))
    }

    fn requests(&mut self, dice: &mut Dice) -> Result<Landed, Not> {
        // Not the driver's: a third of its heartbeats lost, and it may pass for dead.
        let well = self.well(2);
        if well.is_empty() {
            return Err("everybody has enough to bear".into());
        }
        let calls = [0; 3].map(|_: u32| dice.below(120) as u32);
        let all: Vec<(Whom, Weather)> =
            well.iter().map(|whom| (*whom, Weather { calls, ..Weather::default() })).collect();
        let [request, answer, in_flight] = calls;
        let text = format!(
            "of 1000 calls {request} do not arrive, {answer} are not answered, {in_flight} fail while they go on"
        );
        let fault = self.done(Kind::Requests, well, text);
        let lasts = dice.ms(500, 6_000);
        Ok(self.bring(fault, &all, lasts))
    }

    fn leader_change(&mut self, planned: &Planned, dice: &mut Dice) -> Result<Landed, Not> {
        let shard = planned.shard.unwrap_or(dice.below(u64::from(self.shards)) as usize);
        let ((leader, term), _) = self.leader_of(shard)?;
        let next = dice.pick(&self.well_heads_but(leader)).ok_or("no other head may lead")?;
        let text = format!("shard {shard} goes from head {leader} to head {next}");
        let mut fault = self.done(Kind::LeaderChange, vec![Whom::Head(leader)], text);
        fault.led = vec![(shard as u32, term)];
        if let Err(why) = self.move_leader(shard as u32, next) {
            fault.outcome = Outcome::Indeterminate;
            fault.text = why;
        }
        Ok(Landed { fault, healing: None })
    }

    fn move_leader(&self, shard: u32, head: usize) -> Result<(), String> {
        let addresses = self.cluster.head_addresses();
        let seen = self.monitor.look();
        let id =
            seen.iter().find(|(address, _)| *address == addresses[head - 1]).map(|(_, status)| status.head);
        let id = id.ok_or_else(|| format!("head {head} does not answer"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| e.to_string())?;
        runtime.block_on(async {
            let client = Client::new(Arc::new(TcpNet), addresses, self.seed);
            client.connect(MOVES).await.map_err(|e| e.to_string())?;
            client.move_leader(shard, id, MOVES).await.map_err(|e| e.to_string())
        })
    }

    /// The node with most objects and a shard's leader at once.
    fn copies(&mut self, planned: &Planned, dice: &mut Dice) -> Result<Landed, Not> {
        let holder = Planned { target: Some(Role::Holder), machine: None, ..planned.clone() };
        let leader = Planned { target: Some(Role::Leader), machine: None, ..planned.clone() };
        let (node, (head, led)) = (self.node(&holder, dice)?, self.head(&leader, dice)?);
        let all = vec![Whom::Node(node), Whom::Head(head)];
        let text =
            format!("node {node}, which holds most objects, and head {head}, which leads, killed at once");
        let fault = Fault { led, ..self.done(Kind::Copies, all.clone(), text) };
        self.cluster.kill_node(node);
        self.cluster.kill_head(head);
        all.iter().for_each(|whom| self.goes_out(*whom));
        Ok(Landed { fault, healing: Some((dice.ms(200, 2_000), Healing::Restart(all))) })
    }

    fn kill_worker(&mut self, planned: &Planned, dice: &mut Dice) -> Result<Landed, Not> {
        let drawn = 1 + dice.below(self.nodes as u64) as usize;
        let node = planned.machine.map_or(drawn, |machine| machine + 1);
        if self.out.contains(&Whom::Node(node)) {
            return Err(format!("node {node} is out"));
        }
        let workers = self.cluster.node_process(node).children();
        let worker = dice.pick(&workers).ok_or_else(|| format!("node {node} has no worker now"))?;
        let mut fault =
            self.done(Kind::KillWorker, vec![Whom::Node(node)], format!("a worker of node {node} killed"));
        // The node itself lives.
        fault.lives.clear();
        worker.signal(Signal::KILL);
        self.is_lethal();
        Ok(Landed { fault, healing: None })
    }

    fn slow_node(&mut self, planned: &Planned, dice: &mut Dice) -> Result<Landed, Not> {
        let node = self.node(planned, dice)?;
        let whom = Whom::Node(node);
        let text = format!("node {node} runs a tenth of the time");
        let fault = self.done(Kind::SlowNode, vec![whom], text);
        let (stop, daemon) = (Arc::new(AtomicBool::new(false)), self.cluster.node_process(node));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                // Workers come and go.
                let all: Vec<Process> = std::iter::once(daemon).chain(daemon.children()).collect();
                all.iter().for_each(|process| process.signal(Signal::STOP));
                std::thread::sleep(SLOW.1);
                all.iter().for_each(|process| process.signal(Signal::CONT));
                std::thread::sleep(SLOW.0);
            }
        });
        self.goes_out(whom);
        Ok(Landed {
            fault,
            healing: Some((dice.ms(1_000, 6_000), Healing::Stop(Some(whom), stop, vec![thread]))),
        })
    }

    fn cpu_pressure(&mut self, dice: &mut Dice) -> Landed {
        let many = PRESSURE * std::thread::available_parallelism().map_or(1, usize::from);
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |told: Arc<AtomicBool>| {
            std::thread::spawn(move || {
                while !told.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..many).map(|_| spin(stop.clone())).collect();
        let fault = self.done(Kind::CpuPressure, Vec::new(), format!("{many} threads want every processor"));
        Landed { fault, healing: Some((dice.ms(500, 4_000), Healing::Stop(None, stop, threads))) }
    }
}
