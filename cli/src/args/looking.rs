//! What commands take that look at a cluster and change nothing.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// Only of these kinds, separated by commas: election, transfer, node, job, head, slot, node-died, ...
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    pub kind: Vec<String>,
    /// Only what is younger (90s, 10m, 2h, 1d), or came after the event of this number
    #[arg(long, value_name = "AGE|NUMBER")]
    pub since: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// The id of a task, or its first digits; of an object; the name or incarnation of a node [default: every task that
    /// a node keeps or runs]
    #[arg(value_name = "TASK|OBJECT|NODE")]
    pub subject: Option<String>,
}

/// What there are lists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Nodes,
    Jobs,
    Workers,
    Tasks,
    Objects,
}

#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Of what
    #[arg(value_enum)]
    pub kind: Kind,
    /// Only rows whose column says this: COLUMN=VALUE or COLUMN!=VALUE; may be repeated
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<mobula_look::filter::Filter>,
    /// Tasks or objects of each node, at most [default: 1000; with a filter as many as a node tells, 10000]
    #[arg(long)]
    pub limit: Option<u32>,
    /// Only tasks, or objects of tasks, whose ids begin so
    #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
    pub prefix: String,
    /// Every column
    #[arg(long)]
    pub detail: bool,
    /// Print the list again every second, until interrupted
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// Of what
    #[arg(value_enum)]
    pub kind: Kind,
    /// Its id or name, or the beginning of the id if no other begins so
    pub id: String,
}

#[derive(Debug, Clone, Args)]
pub struct SummaryArgs {
    /// Of what
    #[arg(value_enum)]
    pub kind: Kind,
    /// Print it again every second, until interrupted
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, Clone, Args)]
pub struct MemoryArgs {
    /// Objects that are listed, the largest first
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
}

#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// The name of a node, its address, or that of a head [default: all of them]
    pub name: Option<String>,
    /// Lines of each, the last ones; 0 for all that it keeps
    #[arg(long, default_value_t = 100, value_name = "LINES")]
    pub tail: u32,
    /// Go on with what is logged from now on, until interrupted
    #[arg(long)]
    pub follow: bool,
}

#[derive(Debug, Clone, Args)]
pub struct LineageArgs {
    /// The id of an object: see `mobula list objects`
    pub object: String,
    /// Print it for Graphviz
    #[arg(long, conflicts_with = "svg")]
    pub dot: bool,
    /// Draw it
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct TimelineArgs {
    /// Only what ended within this time before now: 10s, 5m [default: all that the nodes remember]
    #[arg(long, value_name = "AGE")]
    pub since: Option<String>,
    /// Write it as Chrome's trace viewer and Perfetto read it
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
