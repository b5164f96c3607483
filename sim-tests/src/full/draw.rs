//! What a seed draws: the cluster, its program, and which faults it will see. Swarm testing: each seed
//! leaves most kinds of faults out, so that rare combinations get a whole run to themselves.

use mobula_gcs::RaftTiming;
use mobula_sim_tests::core::dice::Dice;
use mobula_sim_tests::core::options::{Options, Profile};
use std::time::Duration;

/// A kind of fault (`docs/simulation.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A head's process dies; its disk keeps what was written.
    HeadKill,
    /// A head loses power: what was not synced is gone or torn.
    HeadPower,
    /// All heads lose power.
    AllPower,
    /// A head says and hears nothing for a while, and then all of it at once.
    HeadPause,
    /// A head is cut off from the other heads, both ways or one.
    HeadCut,
    /// A head is cut off from everybody.
    HeadVanish,
    /// Two heads do not reach each other, and both reach the rest.
    HeadPair,
    /// A node's process dies, and comes back at the same address.
    NodeKill,
    /// A node says and hears nothing for a while, mostly beyond its death, and then all of it at once.
    NodePause,
    /// A node is cut off from everybody, both ways or one.
    NodeCut,
    /// A node is cut off from the heads, or from some of them.
    NodeHeads,
    /// Two nodes do not reach each other.
    NodePair,
    /// A worker dies: before a task, in it, before its report, after.
    KillWorker,
    /// Links of several hosts are held one after the other and let go in another order.
    Swizzle,
    /// The messages of a host take long.
    Delay,
    /// Calls go wrong, method by method.
    Calls,
    /// Connections swallow what is said or break.
    Wires,
    /// A head's disk has no room for a while.
    Full,
    /// A head's disk fails its syncs.
    FailSync,
    /// A head's disk takes long.
    SlowDisk,
}

/// Tasks compute for at most so long, in microseconds.
const WORK_US_MAX: u64 = 300_000;

/// All kinds.
pub const KINDS: [Kind; 20] = [
    Kind::HeadKill,
    Kind::HeadPower,
    Kind::AllPower,
    Kind::HeadPause,
    Kind::HeadCut,
    Kind::HeadVanish,
    Kind::HeadPair,
    Kind::NodeKill,
    Kind::NodePause,
    Kind::NodeCut,
    Kind::NodeHeads,
    Kind::NodePair,
    Kind::KillWorker,
    Kind::Swizzle,
    Kind::Delay,
    Kind::Calls,
    Kind::Wires,
    Kind::Full,
    Kind::FailSync,
    Kind::SlowDisk,
];

/// What a seed runs.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Decides everything.
    pub seed: u64,
    /// How the faults are drawn.
    pub profile: Profile,
    /// Heads.
    pub heads: u64,
    /// Nodes; the first is the driver's.
    pub nodes: u64,
    /// CPUs of each node.
    pub cpus: Vec<u32>,
    /// Shards.
    pub shards: u32,
    /// Patience of the consensus.
    pub timing: RaftTiming,
    /// The program, as the core layer draws it.
    pub program: Options,
    /// Kinds of faults and how often each, relative to the others.
    pub faults: Vec<(Kind, u64)>,
    /// Pause between faults, in ms.
    pub pause_ms: (u64, u64),
    /// How long a fault lasts, in ms.
    pub lasts_ms: (u64, u64),
    /// The driver connects at once, before the cluster writes its newest formats.
    pub early: bool,
    /// Faults begin after this.
    pub warm_up: Duration,
    /// No more faults and no more tasks after this.
    pub faults_end: Duration,
}

impl Draw {
    /// Draws for a seed; `profile` is another one than its own.
    pub fn new(seed: u64, profile: Option<Profile>) -> Self {
        let dice = &mut Dice::new(seed, "full");
        let mut program = Options::draw(seed, profile);
        program.rate = dice.pick(&[(5, 1), (8, 8), (12, 20), (20, 20)]).unwrap_or((8, 8));
        program.without.clear();
        // The wire is what costs time here.
        program.style.large_permille = program.style.large_permille.min(250);
        // The rest is for the core layer, since its time costs less; so is what runs long.
        program.style = program.style.plain();
        program.driver_dies = None;
        program.style.work_us.1 = program.style.work_us.1.min(WORK_US_MAX);
        program.style.work_us.0 = program.style.work_us.0.min(WORK_US_MAX / 30);
        let nodes = dice.from_to(3, 5);
        let mut cpus: Vec<u32> = (0..nodes).map(|_| dice.from_to(1, 4) as u32).collect();
        // Whatever happens to the others, the driver's node can run everything.
        cpus[0] = cpus[0].max(2);
        let profile = program.profile;
        Draw {
            seed,
            profile,
            heads: if dice.permille(150) { 5 } else { 3 },
            nodes,
            cpus,
            shards: dice.pick(&[1, 2, 4]).unwrap_or(4),
            timing: timing(dice),
            faults: faults(dice, profile),
            pause_ms: dice.pick(&[(200, 2_500), (800, 5_000), (2_000, 8_000)]).unwrap_or((800, 5_000)),
            // Many short ones, or few long ones.
            lasts_ms: dice.pick(&[(20, 1_200), (300, 4_000), (1_500, 9_000)]).unwrap_or((300, 4_000)),
            // Not together with faults yet: see `full 52` in docs/bugs.md.
            early: dice.permille(500) && profile == Profile::Calm,
            warm_up: Duration::from_millis(4_000),
            faults_end: program.faults_end,
            program,
        }
    }
}

fn timing(dice: &mut Dice) -> RaftTiming {
    RaftTiming {
        snapshot_entries: dice.pick(&[60, 300, 300, 2_000]).unwrap_or(300),
        snapshot_bytes: 0,
        keep_entries: dice.pick(&[0, 20, 50]).unwrap_or(50),
        ..RaftTiming::default()
    }
}

/// Draws which faults there are.
fn faults(dice: &mut Dice, profile: Profile) -> Vec<(Kind, u64)> {
    match profile {
        Profile::Calm => Vec::new(),
        Profile::Lite => vec![(Kind::HeadKill, 3), (Kind::NodeKill, 3), (Kind::KillWorker, 2)],
        Profile::Single => dice.pick(&KINDS).map(|kind| (kind, 1)).into_iter().collect(),
        Profile::Swarm => {
            let many = dice.from_to(2, 9);
            let mut kinds = KINDS.to_vec();
            while kinds.len() as u64 > many {
                kinds.remove(dice.below(kinds.len() as u64) as usize);
            }
            kinds.into_iter().map(|kind| (kind, dice.log_uniform(1, 64))).collect()
        }
    }
}
