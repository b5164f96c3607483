//! What can be asked of `mobula chaos`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `mobula chaos`.
#[derive(Debug, Clone, Subcommand)]
pub enum ChaosCommand {
    /// Every fault: what it does, and what it takes
    Faults,
    /// Run a scenario on a cluster of its own: a built-in one, or a file
    Run(ChaosRunArgs),
    /// Run many scenarios one after the other: smoke, nightly, or a file
    Suite(ChaosSuiteArgs),
    /// Do one thing to a daemon of this machine that runs already; undone when its time is over
    Inject(InjectArgs),
    /// Undo what `inject` has left behind
    Heal {
        /// Everything that is on record, whoever injected it
        #[arg(long, required = true)]
        all: bool,
    },
}

/// Where reports go.
#[derive(Debug, Clone, Default, Args)]
pub struct ChaosReports {
    /// Write what was found as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write the verdicts as JUnit has them
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write a page with time lines
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Leave data and logs behind
    #[arg(long)]
    pub keep: bool,
}

/// `mobula chaos run`.
#[derive(Debug, Clone, Args)]
pub struct ChaosRunArgs {
    /// The name of a built-in scenario (`list` prints them), or a file
    pub scenario: String,
    /// Another seed than the scenario's
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Another workload: programs, objects, tasks or writes
    #[arg(long, value_name = "WORKLOAD")]
    pub workload: Option<String>,
    /// Another end of faults and new work, such as 30s
    #[arg(long, value_name = "TIME")]
    pub ends: Option<String>,
    /// So many times, each with the next seed
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub repeat: u64,
    /// Print what would be done when, and start nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub reports: ChaosReports,
}

/// `mobula chaos suite`.
#[derive(Debug, Clone, Args)]
pub struct ChaosSuiteArgs {
    /// smoke, nightly, or a file
    pub suite: String,
    /// Another seed of the first run than the suite's; each further run has the next
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Another budget: no run begins after this
    #[arg(long, value_name = "TIME")]
    pub budget: Option<String>,
    #[command(flatten)]
    pub reports: ChaosReports,
}

/// `mobula chaos inject`.
#[derive(Debug, Clone, Args)]
pub struct InjectArgs {
    /// What: kill, stop, cut, delay, requests, or kill-worker
    pub fault: String,
    /// Data directory of the daemon [default: --data-dir]
    #[arg(long, value_name = "DIR")]
    pub daemon: Option<PathBuf>,
    /// Undone after this: at most 10m
    #[arg(long = "for", default_value = "5s", value_name = "TIME")]
    pub lasts: String,
    /// cut: both, inbound or outbound
    #[arg(long, default_value = "both", value_name = "WAY")]
    pub way: String,
    /// delay: how late everything is
    #[arg(long, default_value = "100ms", value_name = "TIME")]
    pub by: String,
    /// requests: of a thousand calls so many are lost, so many unanswered, and so many fail while they go on
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub permille: u32,
    /// cut, delay, requests: only connections and calls to these addresses
    #[arg(long, value_delimiter = ',', value_name = "ADDRESSES")]
    pub only: Vec<String>,
}
