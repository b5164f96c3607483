//! Faults as they land and heal, and the governor that keeps a run recoverable: heads that are down
//! or whose disks are hurt are a minority, but for cuts of all power and for catastrophes, in which
//! the cluster must wait or refuse. One fault of the links at a time, since some exclude each other.

use super::draw::Kind;
use super::wire::Odds;
use super::world::{World, head_name};
use crate::trace;
use mobula_base::random::Random;
use mobula_base::sim_disk::Image;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use turmoil::Sim;

/// Latency of links that nothing is wrong with.
const LATENCY: Duration = Duration::from_millis(4);
/// A head that ended by itself is started again after this.
const RESTART: Duration = Duration::from_secs(1);

/// What heals a fault.
enum Cure {
    /// Start these again.
    Start(Vec<u64>),
    /// Put the disks back as they were, and start them.
    Restore(Vec<(u64, Image)>),
    /// Put the disk back if the head refused to run on it.
    RestoreIfRefused(u64, Image),
    Release(Vec<(String, String)>),
    Repair(Vec<(String, String)>),
    RepairOneWay(Vec<(String, String)>),
    Latency(Vec<(String, String)>),
    Moods,
    Space(u64),
    Syncs(u64),
}

struct Trouble {
    heals: Duration,
    cure: Cure,
}

/// All faults of a run.
pub struct Faults {
    world: World,
    random: Random,
    hosts: Vec<String>,
    open: Vec<Trouble>,
    due: Duration,
    /// Heads that are down, or whose disks are hurt.
    out: BTreeSet<u64>,
    /// Heads whose process is not there.
    down: BTreeSet<u64>,
    /// Heads to start again, and when.
    starts: Vec<(Duration, u64)>,
    links_busy: bool,
    /// The one head whose files may have rotted for good.
    rotten: Option<u64>,
    /// What has landed.
    pub landed: BTreeMap<Kind, u64>,
}

impl Faults {
    /// None yet; `hosts` are the clients.
    pub fn new(world: World, hosts: Vec<String>, first: Duration) -> Self {
        let random = Random::new(world.seed).fork("faults");
        Faults {
            world,
            random,
            hosts,
            open: Vec::new(),
            due: first,
            out: BTreeSet::new(),
            down: BTreeSet::new(),
            starts: Vec::new(),
            links_busy: false,
            rotten: None,
            landed: BTreeMap::new(),
        }
    }

    /// The head that may stay away for ever.
    pub fn rotten(&self) -> Option<u64> {
        self.rotten
    }

    /// Whether nothing is broken any more.
    pub fn over(&self) -> bool {
        self.open.is_empty() && self.starts.is_empty()
    }

    /// Lets due faults land, unless it is `calm`, and heals what is due.
    pub fn step(&mut self, sim: &mut Sim<'_>, calm: bool) {
        let now = sim.elapsed();
        let (healed, open) = std::mem::take(&mut self.open).into_iter().partition(|t| calm || t.heals <= now);
        self.open = open;
        let healed: Vec<Trouble> = healed;
        for trouble in healed {
            self.heal(sim, trouble.cure);
        }
        let (starts, later) = std::mem::take(&mut self.starts).into_iter().partition(|(at, _)| *at <= now);
        self.starts = later;
        let starts: Vec<(Duration, u64)> = starts;
        starts.into_iter().for_each(|(_, head)| self.start(sim, head));
        if !calm && now >= self.due {
            let kind = self.pick();
            self.due = now + Duration::from_millis(50 + self.random.below(self.world.draw.calm_ms));
            let heals = now + Duration::from_millis(100 + self.random.below(self.world.draw.fault_ms));
            if let Some(cure) = self.land(sim, kind) {
                *self.landed.entry(kind).or_default() += 1;
                self.open.push(Trouble { heals, cure });
            }
        }
    }

    /// A head had to stop: its process ends, and is started again when its disk is well.
    pub fn ended(&mut self, sim: &mut Sim<'_>, head: u64) {
        trace::note_at(sim.elapsed(), format!("head-{head} has stopped"));
        self.stop(sim, head);
        self.world.docket.judges().guess.ended(head);
        let hurt =
            |trouble: &Trouble| matches!(trouble.cure, Cure::Space(of) | Cure::Syncs(of) if of == head);
        if !self.open.iter().any(hurt) {
            self.starts.push((sim.elapsed() + RESTART, head));
        }
    }

    fn pick(&mut self) -> Kind {
        let faults = &self.world.draw.faults;
        let mut at = self.random.below(faults.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in faults {
            if at < *weight {
                return *kind;
            }
            at -= weight;
        }
        faults[0].0
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
    fn victim(&mut self) -> Option<u64> {
        let heads = self.world.draw.heads;
        if self.out.len() as u64 >= (heads - 1) / 2 {
            return None;
        }
        let well: Vec<u64> = (1..=heads).filter(|n| self.is_well(*n)).collect();
        let at = self.random.below(well.len().max(1) as u64) as usize;
        well.get(at).copied()
    }

    fn is_well(&self, head: u64) -> bool {
        !self.out.contains(&head) && !self.down.contains(&head) && self.rotten != Some(head)
    }

    /// Any head, down or not: for faults of links.
    fn anyone(&mut self) -> u64 {
        1 + self.random.below(self.world.draw.heads)
    }

    fn links(&self, head: u64, clients: bool) -> Vec<(String, String)> {
        let heads = (1..=self.world.draw.heads).filter(|other| *other != head).map(head_name);
        let clients = self.hosts.iter().filter(|_| clients).cloned();
        heads.chain(clients).map(|other| (head_name(head), other)).collect()
    }

    fn land(&mut self, sim: &mut Sim<'_>, kind: Kind) -> Option<Cure> {
        let cure = match kind {
            Kind::Kill | Kind::PowerLoss | Kind::PowerLossAll => self.land_on_processes(sim, kind)?,
            Kind::Full | Kind::FailSync | Kind::Rot | Kind::Emptied | Kind::Swapped => {
                self.land_on_disks(sim, kind)?
            }
            Kind::Rpc => {
                let odd = |random: &mut Random| [0, 0, 3, 30][random.below(4) as usize];
                let random = &mut self.random;
                let odds = Odds { request: odd(random), response: odd(random), in_flight: odd(random) };
                trace::note_at(sim.elapsed(), format!("{odds:?}"));
                self.world.moods.borrow().values().for_each(|mood| mood.set(odds));
                Cure::Moods
            }
            _ if self.links_busy => return None,
            _ => {
                self.links_busy = true;
                self.land_on_links(sim, kind)
            }
        };
        trace::note_at(sim.elapsed(), format!("fault {kind:?}, out {:?}", self.out));
        Some(cure)
    }

    fn land_on_processes(&mut self, sim: &mut Sim<'_>, kind: Kind) -> Option<Cure> {
        let heads: Vec<u64> = if kind == Kind::PowerLossAll {
            if !self.out.is_empty() {
                return None;
            }
            (1..=self.world.draw.heads).filter(|n| !self.down.contains(n)).collect()
        } else {
            vec![self.victim()?]
        };
        for head in &heads {
            self.out.insert(*head);
            self.stop(sim, *head);
            if kind != Kind::Kill {
                self.world.disks[head].power_cut();
            }
        }
        Some(Cure::Start(heads))
    }

    fn land_on_disks(&mut self, sim: &mut Sim<'_>, kind: Kind) -> Option<Cure> {
        let disks = self.world.disks.clone();
        let docket = self.world.docket.clone();
        let images = |heads: &[u64]| heads.iter().map(|n| (*n, disks[n].image())).collect::<Vec<_>>();
        match kind {
            Kind::Full | Kind::FailSync => {
                let head = self.victim()?;
                self.out.insert(head);
                trace::note_at(sim.elapsed(), format!("disk of head-{head}"));
                if kind == Kind::Full {
                    disks[&head].set_full(true);
                    return Some(Cure::Space(head));
                }
                disks[&head].set_fail_sync(true);
                Some(Cure::Syncs(head))
            }
            Kind::Rot => {
                // One head of a run: its peers are the repair, and must stay whole.
                let head = self.victim().filter(|_| self.rotten.is_none())?;
                self.out.insert(head);
                self.rotten = Some(head);
                self.stop(sim, head);
                let image = disks[&head].image();
                let files: Vec<(String, u64)> =
                    disks[&head].files().into_iter().filter(|f| f.1 > 0).collect();
                let (file, len) = &files[self.random.below(files.len() as u64) as usize];
                let byte = self.random.below(*len);
                disks[&head].flip_bit(file, byte);
                trace::note_at(sim.elapsed(), format!("head-{head}: byte {byte} of {len} of {file}"));
                self.start(sim, head);
                Some(Cure::RestoreIfRefused(head, image))
            }
            Kind::Emptied => {
                let mut heads = vec![self.victim()?];
                if self.world.draw.catastrophe && self.out.is_empty() {
                    // A majority, or as many as are there.
                    heads = (1..=self.world.draw.heads).filter(|n| self.is_well(*n)).skip(1).collect();
                }
                let images = images(&heads);
                for head in heads {
                    self.out.insert(head);
                    self.stop(sim, head);
                    disks[&head].load(Image::default());
                    docket.judges().guess.bar(head, "empty");
                    self.start(sim, head);
                }
                Some(Cure::Restore(images))
            }
            _ => {
                let first = self.victim()?;
                // The second is out, too: with three heads that is a majority, which then must wait.
                let others: Vec<u64> =
                    (1..=self.world.draw.heads).filter(|n| *n != first && self.is_well(*n)).collect();
                let second = *others.get(self.random.below(others.len().max(1) as u64) as usize)?;
                for head in [first, second] {
                    self.out.insert(head);
                    self.stop(sim, head);
                }
                let images = images(&[first, second]);
                for (to, (_, image)) in [second, first].into_iter().zip(images.clone()) {
                    disks[&to].load(image);
                    docket.judges().guess.bar(to, "another head's");
                    self.start(sim, to);
                }
                Some(Cure::Restore(images))
            }
        }
    }

    fn land_on_links(&mut self, sim: &mut Sim<'_>, kind: Kind) -> Cure {
        let head = self.anyone();
        trace::note_at(sim.elapsed(), format!("links of head-{head}"));
        match kind {
            Kind::Pause | Kind::Swizzle => {
                let mut links = self.links(head, true);
                if kind == Kind::Swizzle {
                    let other = self.anyone();
                    links.extend(self.links(other, true));
                    // A part of them, in any order: a heal goes the other way.
                    links.retain(|_| self.random.below(3) > 0);
                    for at in (1..links.len()).rev() {
                        links.swap(at, self.random.below(at as u64 + 1) as usize);
                    }
                    // A link has two names.
                    let mut seen = BTreeSet::new();
                    links.retain(|(a, b)| seen.insert((a.min(b).clone(), a.max(b).clone())));
                }
                links.iter().for_each(|(a, b)| sim.hold(a.as_str(), b.as_str()));
                Cure::Release(links)
            }
            Kind::OneWay => {
                let mut links = self.links(head, false);
                if self.random.below(2) == 0 {
                    links.iter_mut().for_each(|(a, b)| std::mem::swap(a, b));
                }
                links.iter().for_each(|(a, b)| sim.partition_oneway(a.as_str(), b.as_str()));
                Cure::RepairOneWay(links)
            }
            Kind::Delay => {
                let links = self.links(head, true);
                let latency = Duration::from_millis(20 + self.random.below(400));
                links.iter().for_each(|(a, b)| sim.set_link_latency(a.as_str(), b.as_str(), latency));
                Cure::Latency(links)
            }
            Kind::Partial => {
                let mut links = self.links(head, false);
                links.truncate(1);
                links.iter().for_each(|(a, b)| sim.partition(a.as_str(), b.as_str()));
                Cure::Repair(links)
            }
            _ => {
                let links = self.links(head, kind == Kind::Vanish);
                links.iter().for_each(|(a, b)| sim.partition(a.as_str(), b.as_str()));
                Cure::Repair(links)
            }
        }
    }

    fn heal(&mut self, sim: &mut Sim<'_>, cure: Cure) {
        trace::note_at(sim.elapsed(), "healed");
        match cure {
            Cure::Start(heads) => heads.into_iter().for_each(|head| self.well(sim, head)),
            Cure::Restore(images) => {
                images.into_iter().for_each(|(head, image)| self.restore(sim, head, image))
            }
            Cure::RestoreIfRefused(head, image) => {
                if self.world.refused.borrow().contains_key(&head) {
                    self.restore(sim, head, image);
                    self.rotten = None;
                } else {
                    self.well(sim, head);
                }
            }
            Cure::Release(links) => {
                links.iter().rev().for_each(|(a, b)| sim.release(a.as_str(), b.as_str()));
                self.links_busy = false;
            }
            Cure::Repair(links) => {
                links.iter().for_each(|(a, b)| sim.repair(a.as_str(), b.as_str()));
                self.links_busy = false;
            }
            Cure::RepairOneWay(links) => {
                links.iter().for_each(|(a, b)| sim.repair_oneway(a.as_str(), b.as_str()));
                self.links_busy = false;
            }
            Cure::Latency(links) => {
                links.iter().for_each(|(a, b)| sim.set_link_latency(a.as_str(), b.as_str(), LATENCY));
                self.links_busy = false;
            }
            Cure::Moods => {
                self.world.moods.borrow().values().for_each(|mood| mood.set(Odds::default()));
            }
            Cure::Space(head) => {
                self.world.disks[&head].set_full(false);
                self.well(sim, head);
            }
            Cure::Syncs(head) => {
                let disk = &self.world.disks[&head];
                disk.set_fail_sync(false);
                self.well(sim, head);
            }
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

    fn restore(&mut self, sim: &mut Sim<'_>, head: u64, image: Image) {
        self.stop(sim, head);
        self.world.disks[&head].load(image);
        self.world.docket.judges().guess.allow(head);
        self.well(sim, head);
    }
}
