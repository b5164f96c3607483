//! `mobula bench`: this machine's figures, measured on a cluster of its own.
//!
//! - [`gcs`] — what the control store does.
//! - [`micro`] — the table of what tasks, objects and lineage records cost.
//! - [`transfer`] — bandwidth between two nodes.
//! - [`table`] — how figures are printed.

pub mod gcs;
pub mod micro;
pub mod table;
pub mod transfer;

use crate::args::BenchArgs;
use crate::cluster::{LocalCluster, Shape};
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::{limits, signals};
use mobula::{Client, ConnectOptions};
use std::fs;
use table::Figures;

/// Worker processes of each node.
const WORKERS: u32 = 2;

/// Runs one of the benchmarks.
pub fn run(settings: &Settings, args: &BenchArgs) -> Outcome {
    let measure: fn(&BenchArgs) -> Result<Figures, Failure> = match args.name.as_str() {
        "gcs" => gcs::run,
        "memory" => gcs::run_memory,
        "micro" => micro::run,
        "transfer" => transfer::run,
        other => {
            return Err(Failure::usage(format!(
                "there is no benchmark \"{other}\"; there are gcs, memory, micro and transfer"
            )));
        }
    };
    if args.tasks == Some(0) {
        return Err(Failure::usage("a benchmark of no task measures nothing; use --tasks 1 or more"));
    }
    if !args.only.is_empty() && args.name != "micro" {
        return Err(Failure::usage("--only chooses rows of `bench micro`"));
    }
    limits::raise_open_files()?;
    signals::leave_in_order();
    let figures = measure(args)?;
    figures.print(settings.output);
    settings.output.data(&figures);
    if let Some(path) = &args.report {
        let text = serde_json::to_vec_pretty(&figures).expect("figures have only text keys");
        fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(exit::OK)
}

/// A cluster to measure on: the demo's control store, and as many nodes as needed.
fn cluster(nodes: usize, store_mb: u64) -> Result<LocalCluster, Failure> {
    let cluster = LocalCluster::prepare(false)?;
    cluster.start(Shape { heads: 3, nodes, shards: 4, workers: WORKERS, store_mb })?;
    Ok(cluster)
}

/// A driver on node 1.
fn driver(cluster: &LocalCluster) -> Result<Client, Failure> {
    let socket = cluster.node(1).and_then(|n| n.socket).ok_or("node 1 has no socket for drivers")?;
    let options =
        ConnectOptions { socket, job_name: "bench".into(), args: Vec::new(), ..ConnectOptions::default() };
    Ok(Client::connect(options)?)
}
