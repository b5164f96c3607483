//! The control store alone, on a simulated network and on simulated disks, under a swarm of faults.
//!
//! Read it in this order: [`draw`] (what a seed draws), [`world`] (heads and disks), [`clients`]
//! (the work, and its history), [`faults`] and [`wire`] (what goes wrong), [`docket`] (who watches),
//! [`planted`] (bugs that must be found), and this file: the phases of a run. Faults; then all heals
//! and the same clients must be served; then everything that was acknowledged is looked for.

mod clients;
pub mod docket;
pub mod draw;
mod faults;
pub mod planted;
pub mod wire;
mod world;

use crate::clock;
use crate::judge::linear::{self, Found};
use crate::judge::{self, Verdict, durable, once, watch};
use crate::{replicas, trace};
use clients::History;
use draw::Draw;
use faults::Faults;
use planted::Bug;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use turmoil::Sim;
use world::World;

/// A run that has not ended after so much simulated time hangs.
const LIMIT: Duration = Duration::from_secs(180);
/// Faults begin after this.
const BOOT: Duration = Duration::from_secs(4);
/// So long after the last fault the clients must be served again.
const RECOVERS_WITHIN: Duration = Duration::from_secs(20);
/// Everybody works on for this long after that.
const SERVES: Duration = Duration::from_secs(2);
/// After the end of work the replicas agree within this.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// Pause between looks at digests.
const DIGESTS: Duration = Duration::from_millis(500);
/// The patience of the final audit.
const AUDIT: Duration = Duration::from_secs(20);

/// What a run came to.
pub struct Outcome {
    /// Whether all held.
    pub verdict: Verdict,
    /// Fingerprint of the trace.
    pub fingerprint: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// One line of figures.
    pub figures: String,
}

/// Runs one seed, with a bug planted or none.
pub fn run(seed: u64, plant: Option<&str>) -> Result<Outcome, String> {
    let bug = match plant {
        None => None,
        Some(name) => Some(planted::BUGS.iter().find(|bug| bug.0 == name).ok_or_else(|| {
            let names: Vec<&str> = planted::BUGS.iter().map(|bug| bug.0).collect();
            format!("no bug is called {name}: {}", names.join(", "))
        })?),
    };
    let mut draw = draw::draw(seed, bug.and_then(|bug| bug.2));
    // A planted bug is looked for in the simplest run.
    draw.moves &= bug.is_none() && draw.shards > 1;
    trace::note_at(Duration::ZERO, format!("{draw:?}"));
    Ok(run_drawn(seed, draw, bug.map(|bug| bug.1)))
}

fn run_drawn(seed: u64, draw: Draw, bug: Option<Bug>) -> Outcome {
    let mut sim = simulation(seed, LIMIT);
    let world = World::new(seed, draw, bug);
    world.build(&mut sim);
    let hosts = add_clients(&mut sim, &world);
    let audit: Rc<RefCell<Option<Verdict>>> = Rc::default();
    add_audit(&mut sim, &world, audit.clone());
    let mut faults = Faults::new(world.clone(), hosts, BOOT);
    let verdict = step_through(&mut sim, &world, &mut faults, &audit);
    let verdict = match verdict {
        Verdict::Pass => look_back(&world),
        other => other,
    };
    let history = world.history.borrow();
    let figures = format!(
        "{} heads, {} shards, {} answered, {} unknown, {} moves, {} applied, {:?}",
        world.draw.heads,
        world.draw.shards,
        history.answered,
        history.unknown,
        history.moves,
        world.docket.judges().applied,
        faults.landed
    );
    Outcome { verdict, fingerprint: trace::fingerprint(), simulated: sim.elapsed(), figures }
}

fn simulation(seed: u64, limit: Duration) -> Sim<'static> {
    clock::freeze();
    turmoil::Builder::new()
        .rng_seed(seed)
        .epoch(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .simulation_duration(limit)
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(4))
        .tcp_capacity(65_536)
        .build()
}

/// Adds everybody who works; the names of their hosts.
fn add_clients(sim: &mut Sim<'_>, world: &World) -> Vec<String> {
    let mut hosts = Vec::new();
    for n in 1..=world.draw.clients {
        let host = format!("client-{n}");
        let (world, client) = (world.clone(), world.client(&host));
        world.working.set(world.working.get() + 1);
        sim.client(host.as_str(), async move {
            client.connect(LIMIT).await?;
            clients::operate(world.clone(), n, client).await;
            world.working.set(world.working.get() - 1);
            Ok(())
        });
        hosts.push(host);
    }
    let (streaming, client) = (world.clone(), world.client("node"));
    world.working.set(world.working.get() + 1);
    sim.client("node", async move {
        client.connect(LIMIT).await?;
        clients::stream(streaming.clone(), client).await;
        streaming.working.set(streaming.working.get() - 1);
        Ok(())
    });
    hosts.push("node".into());
    if world.draw.moves {
        let (world, client) = (world.clone(), world.client("mover"));
        sim.client("mover", async move {
            client.connect(LIMIT).await?;
            clients::move_slots(world, client).await;
            Ok(())
        });
        hosts.push("mover".into());
    }
    let watches = (0..world.draw.shards).flat_map(|shard| [(shard, "", 1), (shard, "k1", 0)]);
    for (number, (shard, prefix, from)) in watches.enumerate() {
        let host = format!("watcher-{number}");
        let (world, client) = (world.clone(), world.client(&host));
        sim.client(host.as_str(), async move {
            client.connect(LIMIT).await?;
            clients::watch(world, shard, prefix, from, client).await;
            Ok(())
        });
        hosts.push(host);
    }
    hosts
}

/// The last client: once the others are done, what was acknowledged must be there.
fn add_audit(sim: &mut Sim<'_>, world: &World, result: Rc<RefCell<Option<Verdict>>>) {
    let (world, client) = (world.clone(), world.client("audit"));
    sim.client("audit", async move {
        client.connect(LIMIT).await?;
        // Operations may be under way until their patience ends.
        while !world.is_over() || world.working.get() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let verdict = audit(&world, &client).await;
        trace::note(format!("audit: {verdict:?}"));
        *result.borrow_mut() = Some(verdict);
        Ok(())
    });
}

async fn audit(world: &World, client: &mobula_gcs::Client) -> Verdict {
    // A move that has begun ends, also without anybody who waits for it.
    loop {
        match client.slot_table(AUDIT).await {
            Ok(slots) if slots.plan.is_none() => break,
            Ok(_) => tokio::time::sleep(DIGESTS).await,
            Err(error) => return Verdict::Liveness(format!("nobody says who owns which slots: {error}")),
        }
    }
    for shard in 0..world.draw.shards {
        let list = match client.list(b"", shard, AUDIT).await {
            Ok(list) => list,
            Err(error) => return Verdict::Liveness(format!("shard {shard} cannot be listed: {error}")),
        };
        if let Err(what) = durable::judge(&world.docket.judges().truth, shard, &list) {
            return Verdict::Safety(format!("durable: {what}"));
        }
    }
    let records = world.history.borrow().records.clone();
    judge::audit(client, &records).await
}

/// Steps through the phases.
fn step_through(
    sim: &mut Sim<'_>,
    world: &World,
    faults: &mut Faults,
    audit: &RefCell<Option<Verdict>>,
) -> Verdict {
    let (mut digests, mut calm_since, mut served_since) = (BOOT, None, None);
    let mut answered = 0;
    loop {
        let ended = match clock::step(sim) {
            Ok(ended) => ended,
            Err(error) if error.to_string().contains("Ran for duration") => {
                return Verdict::Liveness(format!("hangs: {error}"));
            }
            Err(error) => return Verdict::Harness(error.to_string()),
        };
        let now = sim.elapsed();
        let due = now >= digests;
        if due {
            digests = now + DIGESTS;
        }
        for head in world.look(now, due) {
            faults.ended(sim, head);
        }
        if let Some(found) = world.docket.judges().found() {
            return found;
        }
        let calm = now >= BOOT + world.draw.faulty;
        faults.step(sim, calm);
        if calm && faults.over() && calm_since.is_none() {
            calm_since = Some(now);
            answered = world.history.borrow().answered;
            trace::note_at(now, "all is healed");
        }
        if let Some(since) = calm_since.filter(|_| served_since.is_none()) {
            // Every client more than once, on average.
            if world.history.borrow().answered >= answered + 3 * world.draw.clients && led(world) {
                served_since = Some(now);
                trace::note_at(now, "all are served");
            } else if now > since + RECOVERS_WITHIN {
                return Verdict::Liveness(format!(
                    "{RECOVERS_WITHIN:?} after the last fault {} operations were answered; not running: {:?}",
                    world.history.borrow().answered - answered,
                    world.refused.borrow()
                ));
            }
        }
        if served_since.is_some_and(|since| now > since + SERVES) {
            world.end();
        }
        if ended {
            let verdict = audit.borrow().clone();
            let verdict =
                verdict.unwrap_or_else(|| Verdict::Harness("the audit ended without a word".into()));
            return if verdict == Verdict::Pass { settle(sim, world, faults) } else { verdict };
        }
    }
}

/// Whether every shard has a leader.
fn led(world: &World) -> bool {
    let heads = world.heads.borrow();
    let mut led: Vec<u32> = heads.values().flat_map(|head| head.offices()).map(|(shard, _)| shard).collect();
    led.sort_unstable();
    led.dedup();
    led.len() == world.draw.shards as usize
}

/// All replicas that can run do, and agree.
fn settle(sim: &mut Sim<'_>, world: &World, faults: &Faults) -> Verdict {
    let until = sim.elapsed() + SETTLES_WITHIN;
    let expected = world.draw.heads as usize - usize::from(faults.rotten().is_some());
    while sim.elapsed() < until {
        if world.heads.borrow().len() >= expected && world.settled() {
            return Verdict::Pass;
        }
        if let Err(error) = clock::step(sim) {
            return Verdict::Harness(error.to_string());
        }
    }
    replicas::disagreement(&world.heads.borrow(), world.draw.shards, &world.refused.borrow())
}

/// The judges of what clients were told.
fn look_back(world: &World) -> Verdict {
    let judges = world.docket.judges();
    let history: &History = &world.history.borrow();
    if let Err(what) = once::judge(&judges.truth, &history.writes) {
        return Verdict::Safety(format!("once: {what}"));
    }
    for watched in &history.watched {
        if let Err(what) = watch::judge(&judges.truth, watched) {
            return Verdict::Safety(format!("watch: {what}"));
        }
    }
    let mut unknown = None;
    for (key, ops) in &history.ops {
        match linear::judge(ops) {
            Found::Yes => {}
            Found::No(n) => {
                let what = format!("no order explains operation {n} of {key}, {:?}", ops[n]);
                return Verdict::Safety(format!("linear: {what}"));
            }
            Found::Unknown => unknown = Some(format!("linear: too many possibilities for {key}")),
        }
    }
    unknown.map_or(Verdict::Pass, Verdict::Unknown)
}
