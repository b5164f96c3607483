//! `mobula experiment`: measured claims, each repeated on a cluster of its own.
//!
//! Faults:
//! - [`failover`] — a leader is taken away again and again; what its clients see of it.
//! - [`crashes`] — all heads are killed at once.
//! - [`head_kills`] — tasks in flight while heads are killed and restarted.
//! - [`recovery`] — a node is killed with what it holds: how long until that exists again; [`chains`] — what is lost.
//! - [`owner_death`] — everything in which Ray loses objects.
//! - [`reconstruction`] — chains of tasks go on while nodes are killed; [`steps`] — what was executed where.
//! - [`complaints`] — what users of others complained about, played here.
//!
//! Costs:
//! - [`stash`] — what a task's latency owes to the control store.
//! - [`flushing`] — memory of heads against tasks that ended.
//! - [`locality`] — tasks go where their argument is, or do not.
//! - [`store`] — `put` and `get` against size.
//! - [`scaling`] — tasks in a second against nodes.
//! - [`simulation`] — rollouts of uneven length, with a barrier and without.
//! - [`allreduce`] — a ring of tasks beside a ring of sockets, [`ring`].
//!
//! What they share:
//! - [`found`], [`told`] — rows and figures, and what is told of them; [`all`] — one after the other.
//! - [`naps`] — tasks that sleep.
//! - [`lanes`] — clients with one write in flight each, which remember what was acknowledged.
//! - [`strike`] — taking a head away and giving it back; [`look`] — what heads say of themselves.
//! - [`ghost`] — what a leader does that was stopped, replaced, and continues.
//! - [`report`], [`stats`], [`svg`], [`bars`], [`plot`] — figures as text, JSON and drawings.

pub mod all;
pub mod allreduce;
pub mod bars;
pub mod chains;
pub mod complaints;
pub mod crashes;
pub mod failover;
pub mod flushing;
pub mod found;
pub mod ghost;
pub mod head_kills;
pub mod lanes;
pub mod locality;
pub mod look;
pub mod naps;
pub mod owner_death;
pub mod plot;
pub mod reconstruction;
pub mod recovery;
pub mod report;
pub mod ring;
pub mod scaling;
pub mod simulation;
pub mod stash;
pub mod stats;
pub mod steps;
pub mod store;
pub mod strike;
pub mod svg;
pub mod told;

use crate::args::ExperimentArgs;
use crate::cluster::{Heads, LocalCluster, Shape};
use crate::config::Settings;
use crate::demo::plan::cluster_size;
use crate::exit::{self, Failure, Outcome};
use crate::{limits, say, signals};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use told::Told;

/// One of them.
struct Experiment {
    name: &'static str,
    /// What it shows.
    what: &'static str,
    run: fn(&ExperimentArgs) -> Result<Told, Failure>,
}

const fn experiment(
    name: &'static str,
    what: &'static str,
    run: fn(&ExperimentArgs) -> Result<Told, Failure>,
) -> Experiment {
    Experiment { name, what, run }
}

/// All there are.
const EXPERIMENTS: [Experiment; 14] = [
    experiment(
        "failover",
        "a shard's leader is killed, stopped, cut off or asked to go: how long its clients stall",
        failover::run,
    ),
    experiment(
        "crashes",
        "all heads are killed at once, under load: nothing acknowledged may be missing",
        crashes::run,
    ),
    experiment(
        "head-kills",
        "a job of short tasks runs while heads are killed and restarted: it must not notice",
        head_kills::run,
    ),
    experiment(
        "recovery",
        "a node is killed with what it holds: time until that exists again against the shortest possible, what ran again",
        recovery::run,
    ),
    experiment(
        "owner-death",
        "every case without actors in which Ray loses an object with its owner: it must be there",
        owner_death::run,
    ),
    experiment(
        "reconstruction",
        "nodes are killed under chains of tasks: what each node that lives gets done, what ran again",
        reconstruction::run,
    ),
    experiment(
        "complaints",
        "what users of others complained about: head and worker kills, lost nodes, idle workers",
        complaints::run,
    ),
    experiment(
        "stash",
        "a task's latency with a control store that answers late, by durability mode",
        stash::run,
    ),
    experiment("flushing", "memory of a head against tasks that ended: it must not grow", flushing::run),
    experiment(
        "locality",
        "a task's latency against the size of its argument, where that is and where it is not",
        locality::run,
    ),
    experiment("store", "put and get against size, beside memcpy", store::run),
    experiment("scaling", "tasks in a second against nodes: a straight line", scaling::run),
    experiment("simulation", "rollouts of uneven length, with a barrier and without", simulation::run),
    experiment("allreduce", "a ring of tasks beside the same ring of sockets", allreduce::run),
];

/// Runs one of the experiments, or all.
pub fn run(settings: &Settings, args: &ExperimentArgs) -> Outcome {
    if args.name == "list" {
        for Experiment { name, what, .. } in &EXPERIMENTS {
            say!(settings.output, "{name:<15} {what}");
        }
        settings.output.data(&EXPERIMENTS.each_ref().map(|experiment| experiment.name));
        return Ok(exit::OK);
    }
    let chosen = EXPERIMENTS.iter().find(|experiment| experiment.name == args.name);
    if chosen.is_none() && args.name != "all" {
        let names: Vec<&str> = EXPERIMENTS.iter().map(|experiment| experiment.name).collect();
        return Err(Failure::usage(format!(
            "`mobula experiment {}` is not there yet: there are {}, all and list",
            args.name,
            names.join(", ")
        )));
    }
    if args.kills == Some(0) || args.repeats == Some(0) {
        return Err(Failure::usage(
            "an experiment without a strike or a round shows nothing; use --kills and --repeats of 1 or more",
        ));
    }
    cluster_size(args.heads, 1, args.shards, 1).map_err(Failure::usage)?;
    limits::raise_open_files()?;
    signals::leave_in_order();
    let Some(experiment) = chosen else { return all::run(settings, args) };
    let told = (experiment.run)(args)?;
    told.print(settings.output);
    settings.output.data(&told.data);
    told.write(args)?;
    Ok(told.code)
}

fn harness(message: String) -> Failure {
    Failure { code: exit::HARNESS, message }
}

/// A cluster of the experiment's own: so many nodes of so many CPUs, each with so much memory for objects.
fn start(
    args: &ExperimentArgs,
    (nodes, workers, store_mb): (usize, u32, u64),
    special: &Heads,
) -> Result<LocalCluster, Failure> {
    let cluster = LocalCluster::prepare(args.keep).map_err(harness)?;
    let shape = Shape { heads: args.heads, nodes, shards: args.shards, workers, store_mb };
    cluster.start_with(shape, special).map_err(harness)?;
    Ok(cluster)
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar(length: usize) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("  [{bar:32}] {pos:>4}/{len:<4} {elapsed} {msg}");
    let style = style.expect("the template is fixed").progress_chars("=> ");
    ProgressBar::with_draw_target(Some(length as u64), target).with_style(style)
}

/// How often each case is measured: as was asked, or as often as is usual.
fn repeats(args: &ExperimentArgs, usual: usize) -> usize {
    args.repeats.unwrap_or(if args.quick { usual.min(2) } else { usual })
}
