//! The command line. Its contract is `docs/cli.md`.

mod looking;

pub use looking::*;

use crate::chaos::args::ChaosCommand;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// A distributed runtime for tasks and immutable objects whose head nodes may die.
#[derive(Debug, Parser)]
#[command(name = "mobula", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Addresses of heads, host:port, separated by commas
    #[arg(long, global = true, env = "MOBULA_ADDRESS", value_delimiter = ',', value_name = "LIST")]
    pub address: Vec<String>,
    /// Directory of this machine's daemon [default: ~/.mobula]
    #[arg(long, global = true, env = "MOBULA_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Configuration file [default: mobula.toml, if there is one]
    #[arg(long, global = true, env = "MOBULA_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// File with the cluster token; the token itself may stand in MOBULA_TOKEN
    #[arg(long, global = true, env = "MOBULA_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Encrypt every connection, with ca.pem, cert.pem and key.pem of this directory
    #[arg(long, global = true, env = "MOBULA_TLS_DIR", value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Print data as JSON on standard output, everything else on standard error
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a real job while a head and a node are killed, and check its answer
    Demo(DemoArgs),
    /// Start this machine's daemon: a head (--head), a node, or both
    Start(StartArgs),
    /// Stop the daemon that was started from this data directory
    Stop,
    /// Say whether the cluster is healthy, and what to do if not
    Status,
    /// See and change who the heads are
    #[command(subcommand)]
    Head(HeadCommand),
    /// See how the shards stand, and move their leaders
    #[command(subcommand)]
    Shard(ShardCommand),
    /// Back up the control store, look at a backup, make a new cluster of it
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// What happened to the cluster: elections, deaths, changes of heads and nodes, jobs
    Events(EventsArgs),
    /// Why a task waits or was lost, where an object is, what became of a node
    Explain(ExplainArgs),
    /// Nodes, jobs, workers, tasks or objects, a row each
    List(ListArgs),
    /// All that is known of one node, job, worker, task or object
    Get(GetArgs),
    /// How many nodes, jobs, workers, tasks or objects there are of each kind
    Summary(SummaryArgs),
    /// Who refers to which objects, and what memory they take
    Memory(MemoryArgs),
    /// The cluster on one screen, as it changes
    Top,
    /// What heads and nodes have logged
    Logs(LogsArgs),
    /// What an object was made of, and where that stands
    Lineage(LineageArgs),
    /// What ran where, and when
    Timeline(TimelineArgs),
    /// Check whether this machine, and its way to the heads, are fit for a head
    Doctor,
    /// Run a development cluster that ends with its terminal
    Up(UpArgs),
    /// Run a program, or an example, on the cluster of this machine's node
    Run(RunArgs),
    /// Run simulated clusters (executes mobula-sim)
    Sim(PassedArgs),
    /// Repeat a measured experiment: `list` names them
    Experiment(ExperimentArgs),
    /// Hurt a cluster on purpose, and judge what comes of it
    #[command(subcommand)]
    Chaos(ChaosCommand),
    /// Measure this machine: `gcs`, `memory`, `micro` or `transfer`
    Bench(BenchArgs),
    /// Make a cluster token
    Token(TokenArgs),
    /// Make certificates for a cluster
    Tls(TlsArgs),
    /// Show what is configured, and where each value comes from
    Config(ConfigArgs),
    /// One daemon in the foreground; what `start` starts
    #[command(hide = true)]
    Daemon(DaemonArgs),
    /// The demo's single-threaded reference run
    #[command(hide = true)]
    Reference(ReferenceArgs),
    /// A process of the bare transport that `bench micro` compares with
    #[command(hide = true)]
    Bare(BareArgs),
    /// Removes a directory once the process at the other end of standard input has ended
    #[command(hide = true)]
    Janitor {
        /// The directory
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Any directory with text files [default: the Rust sources in cargo's cache]
    #[arg(long, value_name = "DIR")]
    pub input: Option<PathBuf>,
    /// Decides who is killed and when
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Heads of the control store; odd
    #[arg(long, default_value_t = 3)]
    pub heads: usize,
    /// Node daemons; the driver is attached to node 1
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Shards of the control store
    #[arg(long, default_value_t = 4)]
    pub shards: u32,
    /// Worker processes on each node
    #[arg(long, default_value_t = 2)]
    pub workers: u32,
    /// Kill nobody
    #[arg(long)]
    pub no_kill: bool,
    /// Kill a process at a progress of the job: head:1@42% or node:2@60%; may be repeated
    #[arg(long, value_name = "KILL")]
    pub kill: Vec<String>,
    /// Leave data and logs behind
    #[arg(long)]
    pub keep: bool,
    /// Write the recovery report as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub member: MemberArgs,
}

#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub what: TokenCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Print a fresh token, or write it to a file that only its owner can read
    New {
        /// The file; one that exists is left alone
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Args)]
pub struct TlsArgs {
    #[command(subcommand)]
    pub what: TlsCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub enum TlsCommand {
    /// Write ca.pem, cert.pem and key.pem, for every machine of a cluster
    New {
        /// The directory; files that exist are left alone
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Names and addresses of all machines, separated by commas
        #[arg(long, value_delimiter = ',', value_name = "LIST", required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub what: ConfigCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting
    Show(ShowArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// Say where each value comes from
    #[arg(long)]
    pub origin: bool,
    #[command(flatten)]
    pub member: MemberArgs,
}

/// What a daemon is to be; shared by `start` and `daemon`. What is not given here may be given in
/// the configuration file.
#[derive(Debug, Clone, Default, Args)]
pub struct MemberArgs {
    /// Run a head: a replica of the control store
    #[arg(long, env = "MOBULA_HEAD")]
    pub head: bool,
    /// Addresses of all heads, separated by commas; the same list for every head
    #[arg(long, env = "MOBULA_JOIN", value_delimiter = ',', value_name = "LIST")]
    pub join: Vec<String>,
    /// Address to listen at: of the head, or of a node for other nodes
    #[arg(long, env = "MOBULA_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Address that others reach this head at, if it is not the one it listens at
    #[arg(long, env = "MOBULA_ADVERTISE", value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// Shards of the control store, fixed when the cluster is formed [default: 4]
    #[arg(long, env = "MOBULA_SHARDS")]
    pub shards: Option<u32>,
    /// CPUs to offer, one worker process each [default: all]; 0: a head only
    #[arg(long, env = "MOBULA_CPUS")]
    pub cpus: Option<u32>,
    /// What people call it [default: the host's name]
    #[arg(long, env = "MOBULA_NAME")]
    pub name: Option<String>,
    /// GPUs to offer, numbered from 0; 0: none [default: as many as NVIDIA's driver knows, if there is one]
    #[arg(long, env = "MOBULA_GPUS", value_name = "N")]
    pub gpus: Option<u32>,
    /// Memory to offer to tasks that ask for some, MB [default: all but the store's]
    #[arg(long, env = "MOBULA_MEMORY_MB", value_name = "MB")]
    pub memory_mb: Option<u64>,
    /// Of all memory so many percent may be in use before workers end, the task that began last first; 100: any
    /// [default: 95]
    #[arg(long, env = "MOBULA_MEMORY_FULL", value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub memory_full: Option<u8>,
    /// A named resource to offer, NAME=AMOUNT; may be repeated
    #[arg(long, env = "MOBULA_RESOURCE", value_delimiter = ',', value_name = "NAME=AMOUNT")]
    pub resource: Vec<String>,
    /// A label for tasks that choose their node by it, KEY=VALUE; may be repeated
    #[arg(long, env = "MOBULA_LABEL", value_delimiter = ',', value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Shared memory for objects, MB [default: 512]
    #[arg(long, env = "MOBULA_STORE_MB", value_name = "MB")]
    pub store_mb: Option<u64>,
    /// How long the lineage of a task that nobody waits for stays on its node: of what comes and goes meanwhile
    /// the control store never hears. 0: not at all [default: 100]
    #[arg(long, env = "MOBULA_LINGER_MS", value_name = "MS")]
    pub linger_ms: Option<u64>,
    /// Listen beyond this machine without a cluster token
    #[arg(long, env = "MOBULA_INSECURE")]
    pub insecure: bool,
    /// A head whose disk was damaged or emptied stays out until an operator replaces it
    #[arg(long, env = "MOBULA_NO_REPAIR")]
    pub no_repair: bool,
    /// How the daemon logs: text or json
    #[arg(long, env = "MOBULA_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct DaemonArgs {
    #[command(flatten)]
    pub member: MemberArgs,
    /// End at once when this process, which must be the parent, ends
    #[arg(long, value_name = "PID")]
    pub die_with_parent: Option<u32>,
    /// Leave the terminal's session
    #[arg(long)]
    pub own_session: bool,
    /// Move leaderships back to where they belong once things have been stable this long; 0: never
    #[arg(long, value_name = "MS")]
    pub rebalance_ms: Option<u64>,
    /// What the control store answers to this node's records counts only so much later, for experiments
    #[arg(long, hide = true, value_name = "MS", default_value_t = 0)]
    pub late_ms: u64,
    /// Listen here for orders to make this daemon's network go wrong, for experiments and chaos
    #[arg(long, hide = true, value_name = "SOCKET")]
    pub fault_switch: Option<PathBuf>,
}

/// `mobula head`.
#[derive(Debug, Clone, Subcommand)]
pub enum HeadCommand {
    /// All members, what they lead, and the change that is under way
    List,
    /// Make the head at ADDRESS a member; it may be started before or after
    Add {
        /// Where it listens, host:port
        address: String,
        /// Give up watching after so many seconds; the change goes on
        #[arg(long, default_value_t = 120, value_name = "SECONDS")]
        wait: u64,
    },
    /// Remove a member; of a head that is being added: give that up
    Remove {
        /// Its id
        head: u64,
        /// Give up watching after so many seconds; the change goes on
        #[arg(long, default_value_t = 120, value_name = "SECONDS")]
        wait: u64,
    },
    /// Put the head at NEW in the place of OLD, in one step; NEW may be the address of OLD
    Replace {
        /// Id of the member that goes, dead or alive
        old: u64,
        /// Address of the one that comes
        new: String,
        /// Give up watching after so many seconds; the change goes on
        #[arg(long, default_value_t = 120, value_name = "SECONDS")]
        wait: u64,
    },
    /// A majority of the disks is gone: make a new cluster of what is left, in two steps
    #[command(subcommand)]
    Recover(RecoverCommand),
    /// Move all leaders away from a member, and keep them away
    Drain {
        /// Its id
        head: u64,
        /// Let it lead again
        #[arg(long)]
        undo: bool,
        /// Give up watching after so many seconds
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        wait: u64,
    },
}

/// `mobula head recover`: when a majority of the disks is gone.
#[derive(Debug, Clone, Subcommand)]
pub enum RecoverCommand {
    /// Say what is left, what may be lost, and write a plan; changes nothing
    Plan {
        /// Data directories of heads that are left, all stopped [default: --data-dir]
        dirs: Vec<PathBuf>,
        /// Address of the new cluster's head [default: that of the head that is chosen]
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
        /// Where to write the plan
        #[arg(long, value_name = "FILE", default_value = "mobula-recover.json")]
        out: PathBuf,
    },
    /// Make a new cluster of one head, as planned
    Apply {
        /// The plan
        plan: PathBuf,
    },
}

/// `mobula snapshot`.
#[derive(Debug, Clone, Subcommand)]
pub enum SnapshotCommand {
    /// Write a backup of all shards: whole, or not at all
    Save {
        /// A file, or a directory that is there
        to: PathBuf,
    },
    /// Check every byte of a backup, and say what is in it
    Inspect {
        /// The backup
        file: PathBuf,
    },
    /// Make the data directory of a new cluster's first head
    Restore {
        /// The backup
        file: PathBuf,
        /// Address that the head will have [default: 127.0.0.1:6380]
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
    },
}

/// `mobula shard`.
#[derive(Debug, Clone, Subcommand)]
pub enum ShardCommand {
    /// Leader, term and the progress of every replica
    List,
    /// Compare the states of all replicas at one entry of each shard
    Verify,
    /// Move slots, with all that lies in them, from one shard to another; waits until it is done
    MoveSlots(MoveSlotsArgs),
    /// Have a head lead a shard
    MoveLeader {
        /// The shard
        shard: u32,
        /// Id of the head
        head: u64,
    },
}

/// `mobula shard move-slots`.
#[derive(Debug, Clone, Args)]
pub struct MoveSlotsArgs {
    /// The shard that owns them
    #[arg(long, value_name = "SHARD")]
    pub from: u32,
    /// The shard that is to own them
    #[arg(long, value_name = "SHARD")]
    pub to: u32,
    /// Which: rows of slots, such as 12-40,77
    #[arg(long, value_name = "SLOTS", conflicts_with = "count", required_unless_present = "count")]
    pub slots: Option<String>,
    /// How many: the highest that the shard owns
    #[arg(long, value_name = "N")]
    pub count: Option<u32>,
    /// Give up waiting after so many seconds; the move goes on
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub wait: u64,
}

/// `mobula events`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Heads of the control store; odd
    #[arg(long, default_value_t = 3)]
    pub heads: usize,
    /// Node daemons
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Worker processes on each node
    #[arg(long, default_value_t = 2)]
    pub workers: u32,
    /// Shards of the control store
    #[arg(long, default_value_t = 4)]
    pub shards: u32,
    /// Shared memory for objects on each node, MB
    #[arg(long, default_value_t = 512, value_name = "MB")]
    pub store_mb: u64,
    /// A label of node I, I:KEY=VALUE, or of every node, KEY=VALUE; may be repeated
    #[arg(long, value_delimiter = ',', value_name = "[I:]KEY=VALUE")]
    pub label: Vec<String>,
    /// Leave data and logs behind
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Give the run a name under which it survives its driver (not there yet)
    #[arg(long, value_name = "NAME")]
    pub durable: Option<String>,
    /// Do not wait for the end (not there yet)
    #[arg(long)]
    pub detach: bool,
    /// A program, or example:NAME
    pub program: OsString,
    /// Its arguments, after --
    #[arg(last = true)]
    pub args: Vec<OsString>,
}

#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// gcs: the control store; memory: what it keeps per task; micro: the table of what tasks, objects and
    /// lineage cost; transfer: bandwidth between nodes
    pub name: String,
    /// Tasks of micro's long sequence [default: 1000000], or of memory [default: 100000]
    #[arg(long, value_name = "N")]
    pub tasks: Option<u64>,
    /// Only these rows of micro, separated by commas: start, in-flight, floor, sync, async, threads, held,
    /// chain, fan-in, wait, put, put-1mb, growth, put-1gb, transfer
    #[arg(long, value_delimiter = ',', value_name = "ROWS")]
    pub only: Vec<String>,
    /// Seconds for each figure (gcs)
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct BareArgs {
    /// Which of the processes
    #[arg(long)]
    pub role: BareRole,
    /// Where the daemon listens
    #[arg(long, value_name = "SOCKET")]
    pub socket: PathBuf,
    /// As for a daemon
    #[arg(long, value_name = "PID")]
    pub die_with_parent: Option<u32>,
}

/// A process of the bare transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BareRole {
    /// Between driver and worker
    Daemon,
    /// Answers
    Worker,
}

#[derive(Debug, Clone, Args)]
pub struct ExperimentArgs {
    /// One of those that `list` names, all, or list
    pub name: String,
    /// How often heads are struck, or rounds of each case [default: failover and crashes 20, head-kills 219, recovery
    /// and owner-death 3; complaints 10]
    #[arg(long, value_name = "N")]
    pub kills: Option<usize>,
    /// How often each figure is measured, for its confidence interval, where nothing is struck
    #[arg(long, value_name = "N")]
    pub repeats: Option<usize>,
    /// Small sizes and few repeats: whether it works, not how fast
    #[arg(long)]
    pub quick: bool,
    /// failover: what happens to the leader
    #[arg(long, value_enum, default_value_t = How::Kill)]
    pub how: How,
    /// Heads of the control store; odd
    #[arg(long, default_value_t = 3)]
    pub heads: usize,
    /// Shards of the control store
    #[arg(long, default_value_t = 4)]
    pub shards: u32,
    /// Heads move leaderships back after this time, so that the next strike need not wait for long
    #[arg(long, default_value_t = 200, value_name = "MS")]
    pub rebalance_ms: u64,
    /// Decides who is struck, and how long uneven tasks are
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Leave data and logs behind
    #[arg(long)]
    pub keep: bool,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write the rows as CSV
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write the drawing as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// all: write JSON, CSV and SVG of each into this directory
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// How a leader is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum How {
    /// SIGKILL; it is restarted
    Kill,
    /// SIGSTOP, later SIGCONT
    Stop,
    /// Its network falls silent for a while
    Drop,
    /// It is asked to hand its leaderships on
    Transfer,
}

/// Arguments handed to another program, or refused whole.
#[derive(Debug, Clone, Args)]
#[command(disable_help_flag = true)]
pub struct PassedArgs {
    /// Handed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

#[derive(Debug, Clone, Args)]
pub struct ReferenceArgs {
    /// The list of input files that the demo made, as JSON
    #[arg(long, value_name = "FILE")]
    pub list: PathBuf,
    /// As for a daemon
    #[arg(long, value_name = "PID")]
    pub die_with_parent: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_and_passed_arguments_do_not_mix() {
        let cli = Cli::try_parse_from(["mobula", "sim", "run", "--seed", "7", "--json"]).expect("passed on");
        let Command::Sim(passed) = cli.command else { panic!("sim") };
        assert_eq!(passed.args, ["run", "--seed", "7", "--json"]);
        let cli =
            Cli::try_parse_from(["mobula", "start", "--head", "--join", "a:1,b:2", "--json"]).expect("good");
        assert!(cli.global.json);
        let Command::Start(start) = cli.command else { panic!("start") };
        assert_eq!(start.member.join, ["a:1", "b:2"]);
        assert!(Cli::try_parse_from(["mobula", "demo", "--fast"]).is_err());
    }
}
