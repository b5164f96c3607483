//! What a seed draws: the cluster, its workload, and which faults it will see. Swarm testing: each
//! seed leaves most kinds of faults out, so that rare combinations get a whole run to themselves.

use mobula_base::random::Random;
use mobula_gcs::RaftTiming;
use std::time::Duration;

/// A kind of fault (`docs/simulation.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A head's process dies; its disk keeps what was written.
    Kill,
    /// A head loses power: what was not synced is gone or torn.
    PowerLoss,
    /// All heads lose power.
    PowerLossAll,
    /// A head says and hears nothing for longer than any timeout, and then all of it at once.
    Pause,
    /// A head is cut off from the other heads.
    Isolate,
    /// A head can be heard and does not hear, or the other way.
    OneWay,
    /// Two heads do not reach each other, and both reach the rest.
    Partial,
    /// A head is cut off from everybody, clients too.
    Vanish,
    /// Several heads' links are held one after the other and let go in another order.
    Swizzle,
    /// The messages of a head take long.
    Delay,
    /// Requests or answers of RPCs are swallowed, or their callers told of an error.
    Rpc,
    /// A disk has no room for a while.
    Full,
    /// A disk fails its syncs.
    FailSync,
    /// A bit of a file of a head that is down flips.
    Rot,
    /// A head comes up with an empty disk.
    Emptied,
    /// Two heads come up with each other's disks.
    Swapped,
}

/// All kinds.
pub const KINDS: [Kind; 16] = [
    Kind::Kill,
    Kind::PowerLoss,
    Kind::PowerLossAll,
    Kind::Pause,
    Kind::Isolate,
    Kind::OneWay,
    Kind::Partial,
    Kind::Vanish,
    Kind::Swizzle,
    Kind::Delay,
    Kind::Rpc,
    Kind::Full,
    Kind::FailSync,
    Kind::Rot,
    Kind::Emptied,
    Kind::Swapped,
];

/// What a seed runs.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Number of heads.
    pub heads: u64,
    /// Number of shards.
    pub shards: u32,
    /// Clients that read and write keys.
    pub clients: u64,
    /// Keys they share.
    pub keys: u64,
    /// Longest pause of a client between operations, in ms.
    pub think_ms: u64,
    /// Bytes that a value is filled up to: large ones make the history of changes forget.
    pub value_bytes: usize,
    /// Patience of the consensus.
    pub timing: RaftTiming,
    /// Kinds of faults and how often each, relative to the others.
    pub faults: Vec<(Kind, u64)>,
    /// Longest time between faults, in ms.
    pub calm_ms: u64,
    /// Longest fault, in ms.
    pub fault_ms: u64,
    /// How long there are faults.
    pub faulty: Duration,
    /// More disks than a minority may be emptied at once: the cluster must refuse, not guess.
    pub catastrophe: bool,
    /// Whether slots move between the shards.
    pub moves: bool,
}

/// Draws for a seed; `extra` is a kind that is sure to come.
pub fn draw(seed: u64, extra: Option<Kind>) -> Draw {
    let mut random = Random::new(seed).fork("store");
    let catastrophe = random.below(20) == 0;
    let single = random.below(10) == 0;
    let count = if single { 1 } else { 1 + random.below(7) };
    let mut faults: Vec<(Kind, u64)> = Vec::new();
    while (faults.len() as u64) < count {
        let kind = KINDS[random.below(KINDS.len() as u64) as usize];
        // Weights from 1 to 64, small ones as likely as large ones.
        let weight = 1 << random.below(7);
        if faults.iter().all(|(known, _)| *known != kind) {
            faults.push((kind, weight));
        }
    }
    if let Some(extra) = extra {
        faults.retain(|(kind, _)| *kind != extra);
        faults.push((extra, 64));
    }
    if catastrophe {
        faults.push((Kind::Emptied, 8));
    }
    let snapshot_entries = [20, 60, 200, 20_000][random.below(4) as usize];
    let slow = random.below(2) == 0;
    let timing = RaftTiming {
        heartbeat_ms: if slow { 100 } else { 50 },
        election_min_ms: if slow { 500 } else { 250 },
        election_max_ms: if slow { 1000 } else { 500 },
        snapshot_entries,
        snapshot_bytes: 0,
        keep_entries: [0, 5, 50][random.below(3) as usize],
        ..RaftTiming::default()
    };
    Draw {
        heads: if random.below(4) == 0 { 5 } else { 3 },
        shards: 1 + random.below(3) as u32,
        clients: 2 + random.below(3),
        keys: 3 + random.below(10),
        think_ms: [5, 40, 200][random.below(3) as usize],
        value_bytes: if random.below(6) == 0 { 120_000 } else { 16 },
        timing,
        faults,
        calm_ms: [200, 1500, 4000][random.below(3) as usize],
        fault_ms: [400, 2000, 6000][random.below(3) as usize],
        faulty: Duration::from_secs(20),
        catastrophe,
        // The last that is drawn: seeds from before slots moved draw all else as they did.
        moves: random.below(2) == 0,
    }
}
