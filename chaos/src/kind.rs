//! Faults by their names.

use serde::{Deserialize, Serialize};

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A machine's processes are gone; it comes back with nothing.
    Crash,
    /// A machine stands still, mostly for longer than any timeout, and goes on.
    Pause,
    /// Two groups of nodes do not hear each other, or one does not hear the other, or some pairs do not.
    CutNodes,
    /// A node and some heads do not hear each other.
    CutHeads,
    /// Messages of a place take long.
    Delay,
    /// Requests to the control store are lost, unanswered, fail while they go on, come twice.
    Requests,
    /// A shard changes its leader; the old one may not know for a while.
    LeaderChange,
    /// A head is gone: its shards elect others.
    HeadCrash,
    /// All nodes that hold some object, and the leader of its shard.
    Copies,
    /// A worker dies at a drawn point.
    KillWorker,
    /// Everything on a machine takes many times longer.
    SlowNode,
    /// The log of a shard takes many times longer.
    SlowLog,
    /// A node's store has no room.
    StoreFull,
    /// A shard takes only so many entries at once.
    SmallQueue,
    /// Transfers break off.
    Transfers,
    /// The machine that keeps a task which runs on another, or that other.
    Keeper,
    /// A machine's disk takes no files.
    DiskRefuses,
    /// The file of a value that left memory is damaged.
    Rot,
    /// Something at the moment when a node does this or that (see `ambush`).
    Ambush,
    /// A head stands still for a while, mostly for longer than its peers' patience.
    HeadPause,
    /// A head says nothing, hears nothing, or both, and no connection ends.
    HeadCut,
    /// A node says nothing, hears nothing, or both, and no connection ends.
    NodeCut,
    /// Other programs want every processor.
    CpuPressure,
}

/// Where a scenario runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The simulation of the pure cores.
    Core,
    /// Processes of this machine.
    Real,
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Layer::Core => "core",
            Layer::Real => "real",
        })
    }
}

impl Kind {
    /// Those that a seed of the core layer draws from.
    pub const ALL: &[Kind] = &[
        Kind::Crash,
        Kind::Pause,
        Kind::CutNodes,
        Kind::CutHeads,
        Kind::Delay,
        Kind::Requests,
        Kind::LeaderChange,
        Kind::HeadCrash,
        Kind::Copies,
        Kind::KillWorker,
        Kind::SlowNode,
        Kind::SlowLog,
        Kind::StoreFull,
        Kind::SmallQueue,
        Kind::Transfers,
        Kind::Keeper,
        Kind::DiskRefuses,
        Kind::Rot,
        Kind::Ambush,
    ];

    /// Those of real processes.
    pub const REAL: &[Kind] = &[
        Kind::Crash,
        Kind::Pause,
        Kind::CutNodes,
        Kind::CutHeads,
        Kind::Delay,
        Kind::Requests,
        Kind::LeaderChange,
        Kind::HeadCrash,
        Kind::Copies,
        Kind::KillWorker,
        Kind::SlowNode,
        Kind::HeadPause,
        Kind::HeadCut,
        Kind::NodeCut,
        Kind::CpuPressure,
    ];

    /// Whether it can be had there.
    pub fn is_of(self, layer: Layer) -> bool {
        match layer {
            Layer::Core => Kind::ALL.contains(&self),
            Layer::Real => Kind::REAL.contains(&self),
        }
    }

    /// Whether it strikes a head, rather than a node.
    pub fn is_of_heads(self) -> bool {
        matches!(self, Kind::LeaderChange | Kind::HeadCrash | Kind::HeadPause | Kind::HeadCut)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its name in files, from the one place where that is said.
        self.serialize(f)
    }
}
