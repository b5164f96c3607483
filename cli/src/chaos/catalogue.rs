//! Every fault, in words.

use crate::exit::{self, Outcome};
use crate::output::Output;
use crate::say;
use mobula_chaos::Kind;
use mobula_chaos::scenario::Layer;
use serde::Serialize;

#[derive(Serialize)]
struct Entry {
    fault: String,
    layers: Vec<Layer>,
    /// What undoes it.
    heals: &'static str,
    what: &'static str,
}

/// What a fault does, and what undoes it.
fn words(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Crash => {
            ("a node's daemon, its workers and its objects are gone (SIGKILL)", "it is started again")
        }
        Kind::Pause => ("a node's daemon and workers stand still (SIGSTOP)", "SIGCONT"),
        Kind::CutNodes => ("two nodes do not reach each other", "they do again"),
        Kind::CutHeads => ("a node does not reach some of the heads", "it does again"),
        Kind::Delay => ("what a daemon sends and hears is late, and perhaps slow", "it is not any more"),
        Kind::Requests => {
            ("of all calls some are lost, unanswered, or fail while they go on", "none any more")
        }
        Kind::LeaderChange => ("a shard is handed to another head", "it stays there"),
        Kind::HeadCrash => ("a head's daemon is gone (SIGKILL)", "it is started again"),
        Kind::Copies => {
            ("the node with most objects and a shard's leader are gone at once", "both are started again")
        }
        Kind::KillWorker => ("a worker process is gone (SIGKILL)", "its node starts another"),
        Kind::SlowNode => ("a node runs a tenth of the time", "it runs all the time"),
        Kind::HeadPause => ("a head's daemon stands still (SIGSTOP)", "SIGCONT"),
        Kind::HeadCut => ("a head says nothing, hears nothing, or both; no connection ends", "it does again"),
        Kind::NodeCut => ("a node says nothing, hears nothing, or both; no connection ends", "it does again"),
        Kind::CpuPressure => ("other threads want every processor of the machine", "they end"),
        Kind::SlowLog => ("a shard's log takes many times longer", "it does not"),
        Kind::StoreFull => ("a node's store has no room", "there is room"),
        Kind::SmallQueue => ("a shard takes one or two entries at once", "as many as before"),
        Kind::Transfers => ("transfers break off", "they do not"),
        Kind::Keeper => {
            ("the machine that keeps a task which runs on another, or that other", "it is started again")
        }
        Kind::DiskRefuses => ("a machine's disk takes no files", "it does"),
        Kind::Rot => ("the file of a value that left memory is damaged", "the value is made again"),
        Kind::Ambush => ("something at the moment when a node does this or that", "as the other fault"),
    }
}

/// Prints all.
pub fn list(output: Output) -> Outcome {
    let mut all = Kind::ALL.to_vec();
    all.extend(Kind::REAL.iter().filter(|kind| !Kind::ALL.contains(kind)));
    let entry = |kind: &Kind| {
        let (what, heals) = words(*kind);
        let layers = [Layer::Core, Layer::Real].into_iter().filter(|layer| kind.is_of(*layer)).collect();
        Entry { fault: kind.to_string(), layers, heals, what }
    };
    let entries: Vec<Entry> = all.iter().map(entry).collect();
    for entry in &entries {
        let layers: Vec<String> = entry.layers.iter().map(Layer::to_string).collect();
        say!(output, "{:<14} {:<10} {}; then {}", entry.fault, layers.join(","), entry.what, entry.heals);
    }
    say!(
        output,
        "`real`: on processes, without root. `core`: in the simulator (`mobula sim run --scenario FILE`)."
    );
    output.data(&entries);
    Ok(exit::OK)
}
