//! The core simulation: the production cores of many nodes and of the control store, wired by a queue of
//! events in virtual time. No runtime, no socket, no thread: thousands of simulated seconds per second.
//!
//! What is real: every node's [`mobula_scheduler::Core`] and object table, every shard's tables
//! ([`mobula_gcs::core::ShardState`]), what leaders decide on holdings, heartbeats and silence. What is
//! simulated: the replicated log (in order, with leaders that fall), the network, workers and programs, and
//! the shells between, which follow `node` and `gcs::server`.
//!
//! Read it in this order:
//!
//! - [`queue`], [`trace`], [`sometimes`] — time, what happened, what was reached.
//! - Of `mobula_chaos`: [`dice`]; [`style`], [`program`], [`script`], random programs and the interpreter that knows
//!   their answers.
//! - [`options`] — what a seed decides before it begins.
//! - [`world`] — all there is, and the loop over its events.
//! - [`life`], [`node`], [`clients`], [`room`] — a node: its cores and the shell around them; [`worker`], [`exec`], [`flows`], [`driver`]
//!   — what runs the programs.
//! - [`net`], [`peers`], [`calls`] — messages between nodes, and to the control store.
//! - [`shard`], [`server`], [`duties`], [`references`], [`snapshots`] — the control store.
//! - [`faults`], [`ambush`] — what goes wrong. [`judge`] — what must hold all the same, a file each.
//! - [`scenario`] — a run as a file; [`shrink`] — a failing one made small; [`explain`], [`report`] — what led to it.
//! - [`command`], [`tools`] — the command line.

pub mod ambush;
pub mod calls;
pub mod clients;
pub mod command;
pub mod driver;
pub mod duties;
pub mod exec;
pub mod explain;
pub mod faults;
pub mod flows;
pub mod judge;
pub mod life;
pub mod net;
pub mod node;
pub mod options;
pub mod peers;
pub mod queue;
pub mod references;
pub mod report;
pub mod room;
pub mod scenario;
pub mod server;
pub mod shard;
pub mod shrink;
pub mod snapshots;
pub mod sometimes;
pub mod tools;
pub mod trace;
pub mod worker;
pub mod world;

pub use mobula_chaos::mix::mix;
pub use mobula_chaos::{dice, program, script, style};

use judge::{Class, Objection};
use options::{Options, Profile};
use scenario::Planned;
use sometimes::Sometimes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use trace::Line;
use world::World;

/// A run does at least so much, or it is none.
pub const TASKS_MIN: u64 = 200;
/// So many faults land at least, unless the profile has none.
pub const FAULTS_MIN: u64 = 5;
/// It lasts so long at least, in simulated time.
pub const LASTS_MIN: Duration = Duration::from_secs(60);

/// How one run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which.
    pub seed: u64,
    /// What it was drawn as.
    pub profile: Profile,
    /// Hash of all that happened.
    pub hash: u64,
    /// How much happened.
    pub events: u64,
    /// Simulated time.
    pub lasted: Duration,
    /// Tasks that ran.
    pub tasks: u64,
    /// Executions, and those that no loss explains.
    pub runs: (u64, u64),
    /// Values compared with the interpreter's.
    pub gets: u64,
    /// Faults that landed, by kind.
    pub faults: Vec<(String, u64)>,
    /// Deaths declared.
    pub deaths: u64,
    /// What was reached.
    pub sometimes: Sometimes,
    /// The first objection, if any.
    pub objection: Option<Objection>,
    /// The faults that landed, each as it would be planned.
    pub planned: Vec<Planned>,
    /// Steps of the driver.
    pub steps: usize,
    /// All that happened, if asked for.
    pub lines: Option<Vec<Line>>,
}

impl Outcome {
    /// The exit code: 0 pass, 1 safety, 2 coverage missed, 3 liveness, 5 harness.
    pub fn code(&self) -> u8 {
        match self.objection.as_ref().map(|objection| objection.class) {
            None => 0,
            Some(Class::Safety) => 1,
            Some(Class::Coverage) => 2,
            Some(Class::Liveness) => 3,
            Some(Class::Harness) => 5,
        }
    }

    /// Faults in all.
    pub fn landed(&self) -> u64 {
        self.faults.iter().map(|(_, landed)| landed).sum()
    }

    /// The command that runs it again.
    pub fn replay(&self) -> String {
        format!("mobula sim run --layer core --seed {}", self.seed)
    }
}

/// Runs a seed. A panic of the product is an objection like any other.
pub fn run(seed: u64, profile: Option<Profile>, with_lines: bool) -> Outcome {
    run_options(Options::draw(seed, profile), with_lines)
}

/// Runs what is drawn, or planned.
pub fn run_options(options: Options, with_lines: bool) -> Outcome {
    let (seed, drawn) = (options.seed, options.profile);
    let is_planned = options.plan.is_some();
    let mut world = World::new(options, with_lines);
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = format!("panicked at {:?}: {}", world.now(), text.unwrap_or_default());
        Objection { judge: "panic", rule: "-", class: Class::Safety, text }
    });
    let lasted = world.now().since(mobula_base::Instant::default());
    let mut outcome = Outcome {
        seed,
        profile: drawn,
        hash: world.trace.hash(),
        events: world.trace.events(),
        lasted,
        tasks: world.judges.redo.tasks(),
        runs: world.judges.redo.excess(),
        gets: world.judges.value.gets,
        faults: world.faults.landed.iter().map(|(kind, landed)| (format!("{kind:?}"), *landed)).collect(),
        deaths: world.judges.fenced.deaths,
        sometimes: world.sometimes.clone(),
        objection: panicked.or_else(|| world.judges.verdict()),
        planned: world.faults.log.clone(),
        steps: world.driver.steps(),
        lines: world.trace.lines().map(<[Line]>::to_vec),
    };
    // What a person planned is as much as was meant.
    if !is_planned {
        outcome.objection = outcome.objection.clone().or_else(|| too_little(&outcome, &world));
    }
    outcome
}

/// A run that did too little proves nothing.
fn too_little(outcome: &Outcome, world: &World) -> Option<Objection> {
    let enough_faults = outcome.profile == Profile::Calm || outcome.landed() >= FAULTS_MIN;
    let text = match () {
        () if world.driver.lost => "the driver's node was declared dead".to_owned(),
        () if outcome.lasted < LASTS_MIN => format!("it lasted {:?}", outcome.lasted),
        () if outcome.tasks < TASKS_MIN => format!("{} tasks ran", outcome.tasks),
        () if !enough_faults => format!("{} faults landed", outcome.landed()),
        () => return None,
    };
    Some(Objection { judge: "coverage", rule: "-", class: Class::Coverage, text })
}
