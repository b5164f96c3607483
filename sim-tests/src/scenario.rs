//! A seed's faults, and the loop that lets them land while the job runs.

use crate::clock;
use crate::cluster::{HEADS, Reach, SHARDS, head_name, node_name, simulation};
use crate::job::Round;
use crate::judge::{self, Verdict};
use crate::net::SimNet;
use crate::trace;
use mobula_base::random::Random;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use turmoil::Sim;

/// A run that has not ended after so much simulated time hangs.
const LIMIT: Duration = Duration::from_secs(180);
/// The job starts rounds until the last fault has healed and this many are done.
const ROUNDS_MIN: u64 = 6;

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The head that leads this shard loses power, unsynced writes included.
    CrashLeader { shard: u32 },
    /// A node process dies.
    CrashNode { node: u64 },
    /// The head that leads this shard is cut off from the other heads, and goes on alone.
    CutLeader { shard: u32 },
}

/// A fault and when it comes and heals.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    at: Duration,
    heals: Duration,
    fault: Fault,
}

/// The faults of a seed: each kind once, one after the other, in a drawn order at drawn moments.
pub fn plan(seed: u64) -> Vec<Planned> {
    let mut random = Random::new(seed).fork("faults");
    let mut faults = vec![
        Fault::CrashLeader { shard: random.below(u64::from(SHARDS)) as u32 },
        Fault::CrashNode { node: 2 + random.below(2) },
        Fault::CutLeader { shard: random.below(u64::from(SHARDS)) as u32 },
    ];
    let mut at = Duration::from_millis(4000);
    let mut planned = Vec::new();
    while !faults.is_empty() {
        let fault = faults.remove(random.below(faults.len() as u64) as usize);
        at += Duration::from_millis(300 + random.below(2000));
        let heals = at + Duration::from_millis(1500 + random.below(3000));
        planned.push(Planned { at, heals, fault });
        // Heads fail one at a time: a majority must be there. A node may be down beside one.
        at = if matches!(fault, Fault::CrashNode { .. }) { at } else { heals + Duration::from_millis(2500) };
    }
    planned
}

/// What a run came to.
pub struct Outcome {
    /// Whether all held.
    pub verdict: Verdict,
    /// Fingerprint of the trace.
    pub fingerprint: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Rounds of the job that were run and checked.
    pub rounds: u64,
    /// Lineage records that were acknowledged and read back.
    pub acknowledged: usize,
}

#[derive(Default)]
struct Progress {
    rounds: u64,
    acknowledged: usize,
    faults_over: bool,
    verdict: Option<Verdict>,
}

/// Runs one seed.
pub fn run(seed: u64, faults: bool) -> Outcome {
    let mut sim = simulation(seed, LIMIT);
    let reach = Reach::default();
    reach.build(&mut sim, seed);
    let progress = Rc::new(RefCell::new(Progress { faults_over: !faults, ..Progress::default() }));
    let driver = drive(reach.clone(), progress.clone(), seed);
    sim.client("driver", async move {
        driver.await;
        Ok(())
    });
    let plan = if faults { plan(seed) } else { Vec::new() };
    let verdict = step_through(&mut sim, &reach, &progress, plan);
    let simulated = sim.elapsed();
    let verdict = match verdict {
        Verdict::Pass => judge::replicas_agree(&reach),
        other => other,
    };
    let progress = progress.borrow();
    Outcome {
        verdict,
        fingerprint: trace::fingerprint(),
        simulated,
        rounds: progress.rounds,
        acknowledged: progress.acknowledged,
    }
}

/// The driver: one round after the other, each checked against the interpreter.
async fn drive(reach: Reach, progress: Rc<RefCell<Progress>>, seed: u64) {
    let verdict = match rounds(&reach, &progress, seed).await {
        Ok(verdict) | Err(verdict) => verdict,
    };
    trace::note(format!("driver: {verdict:?}"));
    progress.borrow_mut().verdict = Some(verdict);
}

async fn rounds(reach: &Reach, progress: &RefCell<Progress>, seed: u64) -> Result<Verdict, Verdict> {
    let harness = |e: mobula::Error| Verdict::Harness(format!("the driver cannot connect: {e}"));
    let door = loop {
        if let Some(door) = reach.door.borrow().clone() {
            break door;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let client = door.driver(Random::new(seed).fork("job").next_u64()).await.map_err(harness)?;
    trace::note("the driver is connected");
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while number < ROUNDS_MIN || !progress.borrow().faults_over {
        let round = Round::new(seed, number);
        let got =
            round.run(&client).await.map_err(|e| Verdict::Safety(format!("round {number} failed: {e}")))?;
        if got != round.answer() {
            return Err(Verdict::Safety(format!("round {number} came to {got:x}, not {:x}", round.answer())));
        }
        acknowledged.extend(client.take_committed());
        number += 1;
        trace::note(format!("round {number} is right; {} records acknowledged", acknowledged.len()));
        progress.borrow_mut().rounds = number;
    }
    while client.committed() < client.submitted() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    acknowledged.extend(client.take_committed());
    progress.borrow_mut().acknowledged = acknowledged.len();
    let net = Arc::new(SimNet { host: "driver".into() });
    let store = mobula_gcs::Client::new(net, client.heads(), seed);
    store.connect(Duration::from_secs(30)).await.map_err(|e| Verdict::Liveness(e.to_string()))?;
    let verdict = judge::audit(&store, &acknowledged).await;
    client.end_async(true).await.map_err(|e| Verdict::Liveness(format!("the job cannot end: {e}")))?;
    // Replicas catch up before they are compared.
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(verdict)
}

/// Steps the simulation, lets the faults land, notes every change of leaders.
fn step_through(
    sim: &mut Sim<'_>,
    reach: &Reach,
    progress: &RefCell<Progress>,
    plan: Vec<Planned>,
) -> Verdict {
    let mut open: Vec<Landed> = Vec::new();
    let mut waiting = plan.into_iter().peekable();
    let mut leaders = Vec::new();
    loop {
        match clock::step(sim) {
            Ok(true) => {
                let verdict = progress.borrow().verdict.clone();
                return verdict
                    .unwrap_or_else(|| Verdict::Harness("the driver ended without a verdict".into()));
            }
            Ok(false) => {}
            Err(error) => {
                let text = error.to_string();
                let late = text.contains("Ran for duration");
                return if late {
                    Verdict::Liveness(format!("hangs: {text}"))
                } else {
                    Verdict::Harness(text)
                };
            }
        }
        let now = sim.elapsed();
        if now.as_millis().is_multiple_of(5) {
            let current = reach.leaders();
            if current != leaders {
                trace::note_at(now, format!("leaders {current:?}"));
                leaders = current;
            }
        }
        while let Some(next) = waiting.next_if(|p| p.at <= now) {
            open.extend(land(sim, reach, next));
        }
        open.retain(|landed| !landed.heal_if_due(sim, reach));
        if waiting.peek().is_none() && open.is_empty() {
            progress.borrow_mut().faults_over = true;
        }
    }
}

/// A fault that has landed and must be healed.
struct Landed {
    heals: Duration,
    what: Healing,
}

enum Healing {
    Head(u64),
    Node(u64),
    Cut(u64),
}

fn land(sim: &mut Sim<'_>, reach: &Reach, planned: Planned) -> Option<Landed> {
    let what = match planned.fault {
        Fault::CrashLeader { shard } => {
            let head = reach.leader(shard)?;
            sim.crash(head_name(head));
            reach.heads.borrow_mut().remove(&head);
            reach.disks.borrow()[&head].power_cut();
            Healing::Head(head)
        }
        Fault::CrashNode { node } => {
            sim.crash(node_name(node));
            Healing::Node(node)
        }
        Fault::CutLeader { shard } => {
            let head = reach.leader(shard)?;
            for other in (1..=HEADS).filter(|o| *o != head) {
                sim.partition(head_name(head), head_name(other));
            }
            Healing::Cut(head)
        }
    };
    trace::note_at(sim.elapsed(), format!("fault {:?}", planned.fault));
    Some(Landed { heals: planned.heals, what })
}

impl Landed {
    fn heal_if_due(&self, sim: &mut Sim<'_>, _reach: &Reach) -> bool {
        if sim.elapsed() < self.heals {
            return false;
        }
        match self.what {
            Healing::Head(head) => sim.bounce(head_name(head)),
            Healing::Node(node) => sim.bounce(node_name(node)),
            Healing::Cut(head) => {
                for other in (1..=HEADS).filter(|o| *o != head) {
                    sim.repair(head_name(head), head_name(other));
                }
            }
        }
        trace::note_at(sim.elapsed(), "healed");
        true
    }
}
