//! The whole stack: production daemons, SDK, consensus and RPCs on a simulated network, disks and clock, with
//! the random programs of the core layer and a swarm of faults.
//!
//! Read it in this order:
//!
//! - [`draw`] — what a seed decides before it begins.
//! - [`world`] — heads and nodes as simulated hosts; [`local`] — the worker link, and workers that die.
//! - [`content`], [`work`] — values and tasks of the programs, through the SDK; [`driver`] — the job.
//! - [`faults`], [`links`], [`wire`] — what goes wrong.
//! - [`state`], [`hook`], [`cause`], [`probe`] — who judges, and what they see.
//! - [`about`] — what the log says of one task.
//! - [`sweep`] — many seeds, a process each.
//! - this file: the phases of a run.

pub mod about;
pub mod cause;
pub mod command;
pub mod content;
pub mod draw;
pub mod driver;
pub mod faults;
pub mod hook;
pub mod links;
pub mod local;
pub mod probe;
pub mod state;
pub mod sweep;
pub mod wire;
pub mod work;
pub mod world;

use crate::judge::Verdict;
use crate::{clock, replicas, trace};
use draw::Draw;
use driver::BOUND;
use faults::Faults;
use mobula_sim_tests::core::driver::Driver;
use mobula_sim_tests::core::judge::Class;
use mobula_sim_tests::core::options::Profile;
use mobula_sim_tests::core::program::Oracle;
use mobula_sim_tests::core::script::Step;
use mobula_sim_tests::core::{FAULTS_MIN, LASTS_MIN, TASKS_MIN};
use state::State;
use std::cell::{Cell, RefCell};
use std::time::Duration;
use turmoil::Sim;
use world::World;

/// One step of the simulation: nothing is told apart that happens within it.
const TICK: Duration = Duration::from_millis(2);
/// Pause between looks at the heads.
const LOOK: Duration = Duration::from_millis(20);
/// Pause between looks at the heads' tables.
const DIGESTS: Duration = Duration::from_millis(500);
/// Heads that would not start are tried again so often once all is calm.
const RETRY: Duration = Duration::from_secs(2);
/// A run that goes on for longer after its last fault hangs.
const HANGS: Duration = BOUND.saturating_mul(4);
/// After the end of work the replicas agree within this.
const AGREE: Duration = Duration::from_secs(30);

/// How far the driver is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It is not connected.
    #[default]
    Connects,
    /// It takes its steps.
    Steps,
    /// It waits for the end of the faults.
    Faults,
    /// It waits for all values.
    Answers,
    /// It waits until no node does anything.
    Settles,
    /// It has dropped all references.
    Dropped,
    /// It ends the job.
    Ends,
    /// It has nothing left to do.
    Over,
}

/// What the driver and the loop tell each other.
#[derive(Default)]
pub struct Shared {
    /// What the driver is to do when.
    pub script: RefCell<Vec<(Duration, Step)>>,
    /// How far it is.
    pub phase: Cell<Phase>,
    /// No fault is left.
    pub calm: Cell<bool>,
    /// Values that the driver got.
    pub values: Cell<u64>,
    /// Failures that it was told.
    pub failures: Cell<u64>,
    /// Acknowledged records that were looked for.
    pub audited: Cell<u64>,
    /// Records or objects stayed until the job ended.
    pub stayed: Cell<bool>,
    verdict: RefCell<Option<Verdict>>,
}

impl Shared {
    /// The driver is done.
    pub fn end(&self, verdict: Verdict) {
        self.verdict.borrow_mut().get_or_insert(verdict);
    }
}

/// What a run came to.
pub struct Outcome {
    /// Which.
    pub seed: u64,
    /// How its faults were drawn.
    pub profile: Profile,
    /// Whether all held.
    pub verdict: Verdict,
    /// Fingerprint of the trace.
    pub fingerprint: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Tasks that ran, and how often in all.
    pub tasks: (u64, u64),
    /// Values and failures that the driver was told.
    pub answers: (u64, u64),
    /// Acknowledged records that were looked for.
    pub audited: u64,
    /// Faults that landed, by kind.
    pub faults: Vec<(String, u64)>,
    /// Deaths of nodes.
    pub deaths: u64,
    /// Records or objects stayed until the job ended.
    pub stayed: bool,
    /// Points that were reached.
    pub points: Vec<(&'static str, u64)>,
}

/// Runs a seed, with faults as it draws them or as `profile` says.
pub fn run(seed: u64, profile: Option<Profile>) -> Outcome {
    run_drawn(Draw::new(seed, profile))
}

fn run_drawn(draw: Draw) -> Outcome {
    trace::note_at(Duration::ZERO, format!("{draw:?}"));
    let (seed, profile) = (draw.seed, draw.profile);
    let mut oracle = Oracle::default();
    let script = Driver::new(&draw.program, &mut oracle).into_script();
    state::set(State::new(draw.program.style.clone(), oracle));
    let mut sim = simulation(&draw);
    let world = World::new(draw);
    world.shared.script.replace(script);
    world.build(&mut sim);
    let mut faults = Faults::new(world.clone());
    let verdict = step_through(&mut sim, &world, &mut faults);
    let shared = &world.shared;
    let (tasks, points) = state::with(|state| {
        let runs = state.executions.values().map(|times| u64::from(*times)).sum();
        ((state.executions.len() as u64, runs), state.sometimes.reached().collect())
    });
    let mut outcome = Outcome {
        seed,
        profile,
        verdict,
        fingerprint: trace::fingerprint(),
        simulated: sim.elapsed(),
        tasks,
        answers: (shared.values.get(), shared.failures.get()),
        audited: shared.audited.get(),
        faults: faults.landed.iter().map(|(kind, landed)| (format!("{kind:?}"), *landed)).collect(),
        deaths: world.nodes.deaths(),
        stayed: shared.stayed.get(),
        points,
    };
    if outcome.verdict == Verdict::Pass {
        outcome.verdict = too_little(&outcome, faults.count());
    }
    outcome
}

fn simulation(draw: &Draw) -> Sim<'static> {
    clock::freeze();
    turmoil::Builder::new()
        .rng_seed(draw.seed)
        .epoch(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .simulation_duration(draw.faults_end + HANGS * 2)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(links::LATENCY)
        .tcp_capacity(65_536)
        .build()
}

/// A run that did too little proves nothing.
fn too_little(outcome: &Outcome, landed: u64) -> Verdict {
    let enough_faults = outcome.profile == Profile::Calm || landed >= FAULTS_MIN;
    match () {
        () if outcome.simulated < LASTS_MIN => Verdict::Unknown(format!("it lasted {:?}", outcome.simulated)),
        () if outcome.tasks.0 < TASKS_MIN => Verdict::Unknown(format!("{} tasks ran", outcome.tasks.0)),
        () if !enough_faults => Verdict::Unknown(format!("{landed} faults landed")),
        () => Verdict::Pass,
    }
}

/// Steps through the phases.
fn step_through(sim: &mut Sim<'_>, world: &World, faults: &mut Faults) -> Verdict {
    let end = world.draw.faults_end;
    let (mut look, mut digests, mut retry) = (Duration::ZERO, Duration::ZERO, end);
    let mut leaders = Vec::new();
    loop {
        if let Err(error) = clock::step(sim) {
            return Verdict::Harness(error.to_string());
        }
        let now = sim.elapsed();
        let calm = now >= end;
        faults.step(sim, calm);
        if calm && faults.over() && !world.shared.calm.get() {
            trace::note_at(now, "all is healed");
            world.shared.calm.set(true);
        }
        if calm && now >= retry {
            faults.retry_refused(sim);
            retry = now + RETRY;
        }
        if now < look {
            continue;
        }
        look = now + LOOK;
        let due = now >= digests;
        if due {
            digests = now + DIGESTS;
        }
        let stopped = world.look(now, due);
        faults.ended(sim, stopped);
        let current = world.leaders();
        if current != leaders {
            trace::note_at(now, format!("leaders {current:?}"));
            let fell = |(before, after): (&Option<u64>, &Option<u64>)| after.is_some() && before != after;
            if leaders.iter().zip(&current).any(fell) {
                state::hit("leader changed");
            }
            leaders = current;
        }
        if let Some(found) = found(world) {
            return found;
        }
        if world.shared.verdict.borrow().is_some() {
            break;
        }
        if now > end + HANGS {
            return Verdict::Liveness(format!("the driver hangs: {:?}", world.shared.phase.get()));
        }
    }
    match world.shared.verdict.borrow().clone() {
        Some(Verdict::Pass) => agree(sim, world),
        other => other.unwrap_or(Verdict::Pass),
    }
}

/// The first objection of any judge that watches.
fn found(world: &World) -> Option<Verdict> {
    if let Some(found) = world.docket.judges().found() {
        return Some(found);
    }
    state::with(|state| {
        if let Some(text) = state.torn.clone() {
            return Some(Verdict::Safety(format!("value: {text}")));
        }
        if let Some(text) = state.cause.found.clone() {
            return Some(Verdict::Safety(format!("typed-cause: {text}")));
        }
        let objection = state.judges.verdict()?;
        let text = format!("{}: {}", objection.judge, objection.text);
        Some(match objection.class {
            Class::Safety => Verdict::Safety(text),
            Class::Liveness => Verdict::Liveness(text),
            Class::Coverage => Verdict::Unknown(text),
            Class::Harness => Verdict::Harness(text),
        })
    })
}

/// All replicas that can run do, and agree.
fn agree(sim: &mut Sim<'_>, world: &World) -> Verdict {
    let until = sim.elapsed() + AGREE;
    while sim.elapsed() < until {
        if world.heads.borrow().len() as u64 == world.draw.heads && world.settled() {
            return Verdict::Pass;
        }
        if let Err(error) = clock::step(sim) {
            return Verdict::Harness(error.to_string());
        }
    }
    replicas::disagreement(&world.heads.borrow(), world.draw.shards, &world.refused.borrow())
}
