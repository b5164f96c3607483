//! Faults as they land and heal, and the governor that keeps a run recoverable: heads that are down or
//! whose disks are hurt are a minority, but for a cut of all power; the driver's node lives and hears the
//! heads; at most half of the other nodes are out. A link has one thing wrong with it at a time.

use super::draw::Kind;
use super::links::{Links, Wrong};
use super::state;
use super::wire::METHODS;
use super::world::{HOME, World, head_name, node_name};
use crate::store::wire::Odds;
use crate::trace;
use mobula_sim_tests::core::dice::Dice;
use mobula_sim_tests::core::worker::Doom;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use turmoil::Sim;

/// What ended by itself is started again after this.
const RESTART: Duration = Duration::from_secs(1);
/// Silence beyond this means death to a node.
const DEATH: Duration = Duration::from_millis(1_500);

/// What heals a fault.
enum Cure {
    Heads(Vec<u64>),
    Node(u64),
    Links(Wrong, Option<Out>),
    Calls,
    Wires,
    Space(u64),
    Syncs(u64),
    Lag(u64),
}

/// Who cannot be counted on while a fault of links lasts.
#[derive(Clone, Copy)]
enum Out {
    Head(u64),
    Node(u64),
}

struct Trouble {
    heals: Duration,
    cure: Cure,
}

/// All faults of a run.
pub struct Faults {
    world: World,
    dice: Dice,
    links: Links,
    open: Vec<Trouble>,
    due: Duration,
    /// Heads that are down, cut off, or whose disks are hurt.
    out: BTreeSet<u64>,
    /// Nodes that are down, paused or cut off.
    nodes_out: BTreeSet<u64>,
    /// Heads whose process is not there.
    down: BTreeSet<u64>,
    /// Hosts to start again, and when: a head's number, or none and a node's.
    starts: Vec<(Duration, Option<u64>, u64)>,
    /// What has landed.
    pub landed: BTreeMap<Kind, u64>,
}

impl Faults {
    /// None yet.
    pub fn new(world: World) -> Self {
        Faults {
            dice: Dice::new(world.draw.seed, "faults of the full layer"),
            due: world.draw.warm_up,
            world,
            links: Links::default(),
            open: Vec::new(),
            out: BTreeSet::new(),
            nodes_out: BTreeSet::new(),
            down: BTreeSet::new(),
            starts: Vec::new(),
            landed: BTreeMap::new(),
        }
    }

    /// Whether nothing is broken any more.
    pub fn over(&self) -> bool {
        self.open.is_empty() && self.starts.is_empty()
    }

    /// How many landed.
    pub fn count(&self) -> u64 {
        self.landed.values().sum()
    }

    /// Lets due faults land, unless it is `calm`, and heals what is due.
    pub fn step(&mut self, sim: &mut Sim<'_>, calm: bool) {
        let now = sim.elapsed();
        let is_due = |trouble: &Trouble| calm || trouble.heals <= now;
        if self.open.iter().any(is_due) {
            let (healed, open): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.open).into_iter().partition(is_due);
            self.open = open;
            healed.into_iter().for_each(|trouble| self.heal(sim, trouble.cure));
        }
        if self.starts.iter().any(|(at, ..)| *at <= now) {
            let (starts, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.starts).into_iter().partition(|(at, ..)| *at <= now);
            self.starts = later;
            for (_, head, node) in starts {
                match head {
                    Some(head) => self.start(sim, head),
                    None => {
                        sim.crash(node_name(node));
                        sim.bounce(node_name(node));
                    }
                }
            }
        }
        if !calm && now >= self.due {
            self.due = now
                + Duration::from_millis(
                    self.dice.from_to(self.world.draw.pause_ms.0, self.world.draw.pause_ms.1),
                );
            let Some(kind) = self.pick() else { return };
            let lasts = self.dice.log_uniform(self.world.draw.lasts_ms.0, self.world.draw.lasts_ms.1);
            let heals = now + Duration::from_millis(lasts);
            if let Some(cure) = self.land(sim, kind) {
                self.landed_one(sim, kind, heals - now);
                self.open.extend(cure.map(|cure| Trouble { heals, cure }));
            }
        }
    }

    fn landed_one(&mut self, sim: &Sim<'_>, kind: Kind, lasts: Duration) {
        *self.landed.entry(kind).or_default() += 1;
        trace::note_at(
            sim.elapsed(),
            format!("fault {kind:?} for {lasts:?}, out {:?} {:?}", self.out, self.nodes_out),
        );
        let point = match kind {
            Kind::HeadKill => Some("head crashed"),
            Kind::HeadPower | Kind::AllPower => Some("head lost power"),
            Kind::HeadPause | Kind::HeadCut | Kind::HeadVanish => Some("head cut off"),
            Kind::NodeKill => Some("node crashed"),
            Kind::NodePause if lasts > DEATH => Some("node paused beyond its death"),
            Kind::NodePause => Some("node paused"),
            Kind::NodeCut | Kind::NodeHeads => Some("node cut off"),
            Kind::Wires => Some("messages between nodes lost"),
            _ => None,
        };
        state::with(|state| {
            // Whatever keeps a node from the heads may end its life.
            state.cause.death();
            if let Some(point) = point {
                state.sometimes.hit(point);
            }
        });
    }

    /// A head had to stop, or a node gave up: started again later.
    pub fn ended(&mut self, sim: &mut Sim<'_>, heads: Vec<u64>) {
        let at = sim.elapsed() + RESTART;
        for head in heads {
            trace::note_at(sim.elapsed(), format!("head-{head} has stopped"));
            state::hit("head stopped by its disk");
            self.stop(sim, head);
            self.world.docket.judges().guess.ended(head);
            let hurt = |t: &Trouble| matches!(t.cure, Cure::Space(of) | Cure::Syncs(of) if of == head);
            if !self.open.iter().any(hurt) {
                self.starts.push((at, Some(head), head));
            }
        }
        let nodes = std::mem::take(&mut *self.world.ended.borrow_mut());
        self.starts.extend(nodes.into_iter().map(|node| (at, None, node)));
    }

    /// Heads that would not start: nothing is wrong any more, so they are tried again.
    pub fn retry_refused(&mut self, sim: &mut Sim<'_>) {
        let mut refused: Vec<u64> = self.world.refused.borrow().keys().copied().collect();
        refused.retain(|head| !self.out.contains(head));
        for head in refused {
            self.stop(sim, head);
            self.starts.push((sim.elapsed() + RESTART, Some(head), head));
        }
    }

    fn pick(&mut self) -> Option<Kind> {
        let faults = &self.world.draw.faults;
        let mut at = self.dice.below(faults.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in faults {
            if at < *weight {
                return Some(*kind);
            }
            at -= weight;
        }
        None
    }

    fn stop(&mut self, sim: &mut Sim<'_>, head: u64) {
        if self.down.insert(head) {
            sim.crash(head_name(head));
            self.world.heads.borrow_mut().remove(&head);
            self.world.refused.borrow_mut().remove(&head);
        }
    }

    fn start(&mut self, sim: &mut Sim<'_>, head: u64) {
        if self.down.remove(&head) {
            sim.bounce(head_name(head));
        }
    }

    /// A head that nothing is wrong with, if one more may fail.
    fn head(&mut self) -> Option<u64> {
        let heads = self.world.draw.heads;
        if self.out.len() as u64 >= (heads - 1) / 2 {
            return None;
        }
        let well: Vec<u64> =
            (1..=heads).filter(|n| !self.out.contains(n) && !self.down.contains(n)).collect();
        // A leader, mostly: it is there that things are under way.
        let leaders: Vec<u64> =
            self.world.leaders().into_iter().flatten().filter(|n| well.contains(n)).collect();
        if self.dice.permille(600) {
            self.dice.pick(&leaders).or(self.dice.pick(&well))
        } else {
            self.dice.pick(&well)
        }
    }

    /// A node other than the driver's that nothing is wrong with, if one more may fail.
    fn node(&mut self) -> Option<u64> {
        let nodes = self.world.draw.nodes;
        if self.nodes_out.len() as u64 >= (nodes - 1).div_ceil(2) {
            return None;
        }
        let well: Vec<u64> = (HOME + 1..=nodes).filter(|n| !self.nodes_out.contains(n)).collect();
        self.dice.pick(&well)
    }

    fn heads_but(&self, head: u64) -> Vec<String> {
        (1..=self.world.draw.heads).filter(|n| *n != head).map(head_name).collect()
    }

    fn nodes_but(&self, node: u64) -> Vec<String> {
        (1..=self.world.draw.nodes).filter(|n| *n != node).map(node_name).collect()
    }

    /// Lands a fault; what heals it, if that takes anything. Nothing if it finds nothing to strike.
    fn land(&mut self, sim: &mut Sim<'_>, kind: Kind) -> Option<Option<Cure>> {
        match kind {
            Kind::HeadKill | Kind::HeadPower => {
                let head = self.head()?;
                self.crash_heads(sim, &[head], kind != Kind::HeadKill);
                Some(Some(Cure::Heads(vec![head])))
            }
            Kind::AllPower => {
                if !self.out.is_empty() {
                    return None;
                }
                let heads: Vec<u64> =
                    (1..=self.world.draw.heads).filter(|n| !self.down.contains(n)).collect();
                self.crash_heads(sim, &heads, true);
                Some(Some(Cure::Heads(heads)))
            }
            Kind::NodeKill => {
                let node = self.node()?;
                self.nodes_out.insert(node);
                sim.crash(node_name(node));
                Some(Some(Cure::Node(node)))
            }
            Kind::KillWorker => {
                let workers: Vec<u64> = state::with(|state| state.workers.keys().copied().collect());
                let victim = self.dice.pick(&workers)?;
                let doom = self.dice.pick(&Doom::ALL)?;
                let worker = state::with(|state| state.workers[&victim].clone());
                // At a point of its own code, or wherever it is, waiting or idle.
                if self.dice.permille(200) {
                    state::hit(Doom::MidRun.point());
                    worker.kill();
                } else {
                    worker.doom(doom);
                }
                Some(None)
            }
            Kind::Calls | Kind::Wires => Some(Some(self.bend(sim, kind))),
            Kind::Full | Kind::FailSync | Kind::SlowDisk => {
                let head = self.head()?;
                let disk = &self.world.disks[&head];
                trace::note_at(sim.elapsed(), format!("disk of head-{head}"));
                if kind == Kind::SlowDisk {
                    disk.set_lag(Duration::from_millis(self.dice.log_uniform(5, 700)));
                    return Some(Some(Cure::Lag(head)));
                }
                self.out.insert(head);
                if kind == Kind::Full {
                    disk.set_full(true);
                    return Some(Some(Cure::Space(head)));
                }
                disk.set_fail_sync(true);
                Some(Some(Cure::Syncs(head)))
            }
            _ => self.land_on_links(sim, kind).map(Some),
        }
    }

    fn crash_heads(&mut self, sim: &mut Sim<'_>, heads: &[u64], power: bool) {
        for head in heads {
            self.out.insert(*head);
            self.stop(sim, *head);
            if power {
                self.world.disks[head].power_cut();
            }
        }
    }

    fn bend(&mut self, sim: &Sim<'_>, kind: Kind) -> Cure {
        let odd = |dice: &mut Dice, of: &[u64]| dice.pick(of).unwrap_or(0);
        if kind == Kind::Wires {
            let of = [0, 0, 2, 20];
            let dice = &mut self.dice;
            let odds = Odds { request: odd(dice, &of), response: odd(dice, &of), in_flight: odd(dice, &of) };
            trace::note_at(sim.elapsed(), format!("{odds:?}"));
            self.world.wires.set_connections(odds);
            return Cure::Wires;
        }
        let of = [0, 30, 150, 400];
        let mut all = BTreeMap::new();
        for method in METHODS {
            if self.dice.permille(400) {
                let dice = &mut self.dice;
                let odds =
                    Odds { request: odd(dice, &of), response: odd(dice, &of), in_flight: odd(dice, &of) };
                all.insert(method, odds);
            }
        }
        self.world.wires.set_calls(all);
        Cure::Calls
    }

    fn land_on_links(&mut self, sim: &mut Sim<'_>, kind: Kind) -> Option<Cure> {
        let one_way = self.dice.permille(350);
        let how = |dice: &mut Dice| match one_way {
            true => Wrong::one_way(dice.permille(500)),
            false => Wrong::cut(),
        };
        let (mut wrong, host, others, out) = match kind {
            Kind::HeadPause | Kind::HeadVanish | Kind::HeadCut => {
                let head = self.head()?;
                let mut others = self.heads_but(head);
                if kind != Kind::HeadCut {
                    others.extend(self.nodes_but(0));
                }
                let wrong = match kind {
                    Kind::HeadPause => Wrong::held(),
                    Kind::HeadCut => how(&mut self.dice),
                    _ => Wrong::cut(),
                };
                (wrong, head_name(head), others, Some(Out::Head(head)))
            }
            Kind::HeadPair => {
                let head = self.dice.from_to(1, self.world.draw.heads);
                let others = self.heads_but(head);
                (
                    how(&mut self.dice),
                    head_name(head),
                    vec![others[self.dice.below(others.len() as u64) as usize].clone()],
                    None,
                )
            }
            Kind::NodePause | Kind::NodeCut | Kind::NodeHeads => {
                let node = self.node()?;
                let mut others = self.heads_but(0);
                match kind {
                    Kind::NodeHeads if self.dice.permille(500) => {
                        others.truncate(self.dice.from_to(1, 2) as usize)
                    }
                    Kind::NodeHeads => {}
                    _ => others.extend(self.nodes_but(node)),
                }
                let wrong = if kind == Kind::NodePause { Wrong::held() } else { how(&mut self.dice) };
                (wrong, node_name(node), others, Some(Out::Node(node)))
            }
            Kind::NodePair => {
                let node = self.dice.from_to(1, self.world.draw.nodes);
                let others = self.nodes_but(node);
                (
                    how(&mut self.dice),
                    node_name(node),
                    vec![others[self.dice.below(others.len() as u64) as usize].clone()],
                    None,
                )
            }
            Kind::Delay => {
                let is_head = self.dice.permille(500);
                let n =
                    self.dice.from_to(1, if is_head { self.world.draw.heads } else { self.world.draw.nodes });
                let host = if is_head { head_name(n) } else { node_name(n) };
                let others = self.everybody_but(&host);
                (Wrong::late(Duration::from_millis(self.dice.log_uniform(10, 300))), host, others, None)
            }
            _ => {
                let node = self.node()?;
                let mut others = self.everybody_but(&node_name(node));
                for at in (1..others.len()).rev() {
                    others.swap(at, self.dice.below(at as u64 + 1) as usize);
                }
                others.retain(|_| self.dice.permille(600));
                (Wrong::held(), node_name(node), others, Some(Out::Node(node)))
            }
        };
        if !self.links.land(sim, &mut wrong, &host, &others) {
            return None;
        }
        trace::note_at(sim.elapsed(), format!("links of {host}: {wrong:?}"));
        match out {
            Some(Out::Head(head)) => _ = self.out.insert(head),
            Some(Out::Node(node)) => _ = self.nodes_out.insert(node),
            None => {}
        }
        Some(Cure::Links(wrong, out))
    }

    fn everybody_but(&self, host: &str) -> Vec<String> {
        let all = self.heads_but(0).into_iter().chain(self.nodes_but(0));
        all.filter(|other| other != host).collect()
    }

    fn heal(&mut self, sim: &mut Sim<'_>, cure: Cure) {
        trace::note_at(sim.elapsed(), "healed");
        match cure {
            Cure::Heads(heads) => heads.into_iter().for_each(|head| self.well(sim, head)),
            Cure::Node(node) => {
                self.nodes_out.remove(&node);
                sim.bounce(node_name(node));
            }
            Cure::Links(wrong, out) => {
                self.links.heal(sim, &wrong);
                match out {
                    Some(Out::Head(head)) => _ = self.out.remove(&head),
                    Some(Out::Node(node)) => _ = self.nodes_out.remove(&node),
                    None => {}
                }
            }
            Cure::Calls => self.world.wires.set_calls(BTreeMap::new()),
            Cure::Wires => self.world.wires.set_connections(Odds::default()),
            Cure::Space(head) => {
                self.world.disks[&head].set_full(false);
                self.well(sim, head);
            }
            Cure::Syncs(head) => {
                self.world.disks[&head].set_fail_sync(false);
                self.well(sim, head);
            }
            Cure::Lag(head) => self.world.disks[&head].set_lag(Duration::ZERO),
        }
    }

    /// Nothing is wrong with the head any more; it starts if it is down.
    fn well(&mut self, sim: &mut Sim<'_>, head: u64) {
        self.out.remove(&head);
        // Its disk may have failed while it started.
        if self.world.refused.borrow().contains_key(&head) {
            self.stop(sim, head);
        }
        self.start(sim, head);
    }
}
