//! What a seed decides before it begins: the cluster, the program, and which faults may come.

use super::dice::Dice;
use super::program::Style;
use super::scenario::{Kind, Planned};
use super::script::Plan;
use mobula_base::ObjectId;
use mobula_base::ids::hash64;
use mobula_scheduler::Bends;
use std::collections::BTreeSet;
use std::time::Duration;

/// How a run is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A random subset of faults.
    Swarm,
    /// One kind of fault alone.
    Single,
    /// Crashes only.
    Lite,
    /// No faults: what fails then fails for no reason.
    Calm,
}

/// A run, spelled out.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// How the faults were drawn.
    pub profile: Profile,
    /// Machines; the first is the driver's.
    pub nodes: usize,
    /// CPUs of each.
    pub cpus: Vec<u64>,
    /// Heads of the control store.
    pub heads: usize,
    /// Shards.
    pub shards: usize,
    /// Bytes of a node's store; the driver's has room for all.
    pub store_bytes: u64,
    /// Sizes of the nodes' cores that are not the usual ones.
    pub bends: Bends,
    /// Values that find no room in memory leave it for files, each of which takes so many microseconds.
    pub disk_us: Option<(u64, u64)>,
    /// Bytes of runs that a shard keeps in memory.
    pub hot_bytes: usize,
    /// An entry commits after so many microseconds.
    pub commit_us: (u64, u64),
    /// A message takes so many microseconds.
    pub latency_us: (u64, u64),
    /// A node takes events together that came in so many microseconds.
    pub turn_us: u64,
    /// Top-level tasks per second, and how many come at once.
    pub rate: (u64, u64),
    /// What the driver no longer names it drops, so many times in a thousand.
    pub drop_permille: u64,
    /// What is put with a number of copies, in a thousand.
    pub replicas_permille: u64,
    /// References are counted.
    pub counts: bool,
    /// Whoever leads a shard next has started from a snapshot, so many times in a thousand.
    pub snapshot_permille: u64,
    /// The driver dies so long after its connection, and its job with it, instead of waiting for all that it made.
    pub driver_dies: Option<Duration>,
    /// How long records linger that nobody waits for; without, each life has another (see `linger`).
    pub linger: Option<Duration>,
    /// Kinds of faults with their weights.
    pub faults: Vec<(Kind, u64)>,
    /// Pause between faults, in milliseconds.
    pub pause_ms: (u64, u64),
    /// Faults begin after this.
    pub warm_up: Duration,
    /// No more faults and no more tasks after this.
    pub faults_end: Duration,
    /// The programs.
    pub style: Style,
    /// Steps of the driver that are left out.
    pub without: BTreeSet<usize>,
    /// The faults, if they are not to be drawn.
    pub plan: Option<Vec<Planned>>,
}

impl Options {
    /// Bytes of a machine's store: a program whose put finds no room cannot go on as written. Where there is a disk,
    /// it waits.
    pub fn store_of(&self, machine: usize) -> u64 {
        if machine == 0 && self.disk_us.is_none() { AMPLE } else { self.store_bytes }
    }

    /// What its driver's script is drawn from.
    pub fn script(&self) -> Plan<'_> {
        Plan {
            seed: self.seed,
            style: &self.style,
            rate: self.rate,
            drop_permille: self.drop_permille,
            end: self.driver_dies.unwrap_or(self.faults_end),
            dies: self.driver_dies.is_some(),
            without: &self.without,
        }
    }

    /// On how many nodes a put shall be; 0: as is usual. The same in each attempt.
    pub fn replicas_of(&self, object: ObjectId) -> u32 {
        if self.replicas_permille == 0 {
            return 0;
        }
        let dice = &mut Dice::new(hash64(&[&object.to_bytes()]), "replicas");
        if dice.permille(self.replicas_permille) { dice.from_to(1, 4) as u32 } else { 0 }
    }

    /// Draws a run.
    pub fn draw(seed: u64, profile: Option<Profile>) -> Self {
        let dice = &mut Dice::new(seed, "options");
        let drawn = match dice.below(100) {
            0..75 => Profile::Swarm,
            75..87 => Profile::Single,
            87..95 => Profile::Lite,
            _ => Profile::Calm,
        };
        let profile = profile.unwrap_or(drawn);
        // Few nodes are hit again and again.
        let nodes = if dice.permille(300) { dice.from_to(2, 3) } else { dice.from_to(3, 10) } as usize;
        let mut cpus: Vec<u64> = (0..nodes).map(|_| dice.from_to(1, 4)).collect();
        let disk_us = dice.permille(500).then(|| dice.pick(&[(50, 500), (1_000, 20_000)])).flatten();
        let store_bytes = match disk_us {
            Some(_) => dice.pick(&[6 << 20, 12 << 20, 40 << 20]).unwrap_or(AMPLE),
            None if dice.permille(100) => 16 << 20,
            None => AMPLE,
        };
        // Whatever happens to the others, the driver's node can run everything.
        cpus[0] = cpus[0].max(2);
        let driver_dies = dice.permille(120).then(|| dice.ms(50_000, 61_000));
        let mut style = Style::draw(dice);
        style.parts_permille = parts(seed);
        style.streams_permille = streams(seed);
        (style.pure_permille, style.hedge_permille) = pure(seed);
        if driver_dies.is_some() {
            // What has not run by then never will.
            style.work_us = style.work_us.min(WORK_BEFORE_DEATH_US);
        }
        Options {
            seed,
            profile,
            nodes,
            cpus,
            heads: 3,
            shards: dice.pick(&[1, 2, 4, 4, 8]).unwrap_or(4),
            bends: bends(dice),
            store_bytes,
            disk_us,
            hot_bytes: if dice.permille(80) { 1 << 20 } else { 8 << 20 },
            commit_us: dice.pick(&[(300, 2_000), (1_000, 8_000), (5_000, 60_000)]).unwrap_or((300, 2_000)),
            latency_us: dice.pick(&[(50, 300), (200, 2_000), (1_000, 15_000)]).unwrap_or((50, 300)),
            turn_us: dice.pick(&[20, 100, 1_000]).unwrap_or(100),
            rate: dice.pick(&[(12, 1), (16, 8), (20, 30)]).unwrap_or((16, 8)),
            drop_permille: dice.pick(&[0, 500, 950]).unwrap_or(0),
            // Copies that may not go fill a small store for good where they have no files to go to.
            replicas_permille: if disk_us.is_some() || store_bytes == AMPLE { replicas(seed) } else { 0 },
            counts: !dice.permille(100),
            snapshot_permille: dice.pick(&[0, 100, 500]).unwrap_or(0),
            driver_dies,
            linger: dice
                .pick(&[None, None, Some(0), Some(300), Some(1_500)])
                .flatten()
                .map(Duration::from_millis),
            faults: faults(dice, profile),
            pause_ms: pause_ms(dice, profile),
            warm_up: Duration::from_millis(dice.from_to(1_000, 3_000)),
            faults_end: Duration::from_secs(dice.from_to(61, 66)),
            style,
            without: BTreeSet::new(),
            plan: None,
        }
        .or_haunted()
    }

    /// Some seeds are all about what runs again: parents with many children that nobody may need any more, on few
    /// machines that die at the worst moments. Drawn from a stream of their own.
    fn or_haunted(mut self) -> Self {
        let dice = &mut Dice::new(self.seed, "haunted");
        if self.profile != Profile::Swarm || !dice.permille(HAUNTED_PERMILLE) {
            return self;
        }
        self.nodes = dice.from_to(3, 5) as usize;
        self.cpus.resize(self.nodes, 2);
        self.style.haunt(dice);
        let others = dice.pick(Kind::ALL).map(|kind| (kind, 15));
        let deaths = [(Kind::Crash, 15), (Kind::Keeper, 20), (Kind::Copies, 15), (Kind::KillWorker, 5)];
        self.faults = deaths.into_iter().chain([(Kind::Ambush, 50)]).chain(others).collect();
        self.pause_ms = dice.pick(&[(50, 500), (200, 1_500), (500, 4_000)]).unwrap_or((200, 1_500));
        self
    }
}

/// Swarms of a thousand that are haunted.
const HAUNTED_PERMILLE: u64 = 150;

/// Draws how much is put with a number of copies: of a stream of its own, so that what is like before is as before.
fn replicas(seed: u64) -> u64 {
    Dice::new(seed, "replicas").pick(&[0, 0, 0, 200, 1000]).unwrap_or(0)
}

/// Draws how many tasks return several objects: of a stream of its own, too.
fn parts(seed: u64) -> u64 {
    Dice::new(seed, "parts").pick(&[0, 0, 0, 100, 600]).unwrap_or(0)
}

/// Draws how many tasks return a stream: of dice of its own, too.
fn streams(seed: u64) -> u64 {
    Dice::new(seed, "streams").pick(&[0, 0, 0, 150, 500]).unwrap_or(0)
}

/// Draws how many tasks say that they are pure, and how many of them may be hedged: of dice of its own, too.
fn pure(seed: u64) -> (u64, u32) {
    let dice = &mut Dice::new(seed, "pure");
    match dice.pick(&[0, 0, 300, 1000]).unwrap_or(0) {
        0 => (0, 0),
        pure => (pure, dice.pick(&[0, 50, 300, 1000]).unwrap_or(300)),
    }
}

/// How long tasks run at most whose driver dies.
const WORK_BEFORE_DEATH_US: (u64, u64) = (2_000, 80_000);

/// A store that nothing fills.
pub const AMPLE: u64 = 64 << 30;

/// Draws sizes of the cores: mostly the usual ones.
fn bends(dice: &mut Dice) -> Bends {
    let mut few = |of: &[usize]| if dice.permille(250) { dice.pick(of) } else { None };
    Bends {
        batch_items: few(&[1, 2, 3, 7]),
        fetches: few(&[1, 2]),
        locates: few(&[1, 3]),
        idle: few(&[16, 64]),
    }
}

/// Draws the pause between faults. One kind alone often finds nothing to strike: then it tries again soon.
fn pause_ms(dice: &mut Dice, profile: Profile) -> (u64, u64) {
    // Now and then the next one comes before anybody has got over the last.
    let pauses = [(20, 600), (300, 3_000), (300, 3_000), (1_000, 6_000), (2_000, 9_000)];
    let drawn = dice.pick(&pauses).unwrap_or((1_000, 6_000));
    if profile == Profile::Single { (300, 2_000) } else { drawn }
}

/// Draws which faults there are: the others stay away, so that each has room.
fn faults(dice: &mut Dice, profile: Profile) -> Vec<(Kind, u64)> {
    let weight = |dice: &mut Dice| dice.log_uniform(1, 100);
    match profile {
        Profile::Calm => Vec::new(),
        Profile::Lite => vec![(Kind::Crash, 3), (Kind::KillWorker, 3), (Kind::LeaderChange, 2)],
        // Some cannot land every time.
        Profile::Single => {
            dice.pick(Kind::ALL).map(|kind| (kind, 20)).into_iter().chain(Some((Kind::Crash, 1))).collect()
        }
        Profile::Swarm => {
            // Few kinds come together as often as many do.
            let most = if dice.permille(500) { 4 } else { Kind::ALL.len() as u64 };
            let many = dice.from_to(2, most);
            let mut kinds = Kind::ALL.to_vec();
            while kinds.len() as u64 > many {
                kinds.remove(dice.below(kinds.len() as u64) as usize);
            }
            kinds.into_iter().map(|kind| (kind, weight(dice))).collect()
        }
    }
}
