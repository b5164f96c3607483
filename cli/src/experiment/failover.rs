//! A leader is taken away again and again; its clients' longest wait is measured each time.
//!
//! A cycle: wait until every head is caught up and leaders are spread; pick a head; write to every
//! shard it leads, one write in flight each; a quiet window; the strike; a window after every shard
//! has acknowledged again; the victim comes back and catches up; what was acknowledged is read back.

use super::ghost::Ghost;
use super::lanes::Lanes;
use super::look::{self, Seen};
use super::report::{Gathered, Report, Strike};
use super::told::{Lines, Told};
use super::{harness, progress_bar, start, strike};
use crate::args::{ExperimentArgs, How};
use crate::cluster::{Heads, LocalCluster};
use crate::disk_probe::DiskProbe;
use crate::exit::Failure;
use crate::{output, say};
use mobula_base::random::Random;
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After a head has come back, nothing is struck for this long.
const SETTLE: Duration = Duration::from_millis(400);
/// How long writes are watched before a strike, and after the stall.
const WINDOW: Duration = Duration::from_millis(250);
/// Writes of each client before anything is measured.
const WARM_UP: usize = 10;
/// How long anything may take before the experiment gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at the lanes.
const PAUSE: Duration = Duration::from_millis(1);
/// Syncs of the disk alone that are timed before each strike.
const SYNCS: usize = 50;
/// Strikes without `--kills`.
const KILLS: usize = 20;

struct Experiment<'a> {
    args: &'a ExperimentArgs,
    cluster: &'a LocalCluster,
    client: Client,
    lanes: Lanes,
    addresses: Vec<String>,
    random: Random,
    probe: Arc<DiskProbe>,
    gathered: Gathered,
}

/// Runs it.
pub fn run(args: &ExperimentArgs) -> Result<Told, Failure> {
    if args.heads < 3 {
        return Err(Failure::usage("a cluster of one head ends with it; use --heads 3 or more"));
    }
    let special = Heads {
        rebalance_ms: Some(args.rebalance_ms),
        with_switches: args.how == How::Drop,
        ..Heads::default()
    };
    let cluster = start(args, (0, 1, 64), &special)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| harness(format!("cannot make a runtime: {e}")))?;
    let report = runtime.block_on(measure(args, &cluster)).map_err(harness)?;
    let mut lines = Lines::default();
    report.print(&mut lines);
    if args.keep {
        say!(lines, "data and logs: {}", cluster.dir().display());
    }
    let figure = report.targets.first().map(|target| {
        let ms = output::millis;
        (format!("{}: {}", target.figure, ms(target.measured)), format!("≤ {}", ms(target.at_most)))
    });
    let told = Told::of(report.code(), lines, &report, figure.unwrap_or_default());
    Ok(Told { svg: report.svg(), ..told })
}

async fn measure(args: &ExperimentArgs, cluster: &LocalCluster) -> Result<Report, String> {
    let addresses = cluster.head_addresses();
    let client = Client::new(Arc::new(TcpNet), addresses.clone(), args.seed);
    client.connect(PATIENCE).await.map_err(|e| e.to_string())?;
    let lanes = Lanes::start(&addresses, args.shards);
    let random = Random::new(args.seed).fork("victims");
    let gathered = Gathered::default();
    let probe = Arc::new(DiskProbe::open(cluster.dir())?);
    let mut experiment = Experiment { args, cluster, client, lanes, addresses, random, probe, gathered };
    let kills = args.kills.unwrap_or(KILLS);
    let bar = progress_bar(kills);
    let mut strikes: Vec<Strike> = Vec::new();
    for number in 0..kills {
        let strike =
            experiment.cycle(number as u64).await.map_err(|e| format!("strike {}: {e}", number + 1))?;
        bar.set_message(format!("stall {}", output::millis(strike.stall.as_secs_f64() * 1e3)));
        bar.inc(1);
        strikes.push(strike);
    }
    bar.finish_and_clear();
    experiment.finish(&strikes).await
}

impl Experiment<'_> {
    async fn cycle(&mut self, number: u64) -> Result<Strike, String> {
        let started = Instant::now();
        let (heads, how) = (self.addresses.len(), self.args.how);
        look::settled(&self.client, &self.addresses, true, PATIENCE).await?;
        // What a head does to its disk right after it started is over then: all heads share one here.
        tokio::time::sleep(SETTLE).await;
        self.measure_the_disk().await?;
        let ready = look::settled(&self.client, &self.addresses, true, PATIENCE).await?;
        let leaders = look::leaders(&ready).ok_or("the heads disagree")?;
        let victim = self.pick(&leaders, heads);
        let shards: Vec<u32> = (0..).zip(&leaders).filter(|(_, l)| l.0 == victim).map(|(s, _)| s).collect();
        let ghost = match how {
            How::Stop | How::Drop => {
                Some(Ghost::meet(&self.client, &self.addresses[victim - 1], shards[0], number).await?)
            }
            How::Kill | How::Transfer => None,
        };
        self.lanes.activate(&shards);
        self.wait_for_writes(&shards, WARM_UP, Instant::now()).await?;
        let quiet_from = Instant::now();
        tokio::time::sleep(WINDOW).await;
        let before = look::look(&self.client, &self.addresses, &[]).await;
        let terms_before = terms(&before, &shards);
        self.gathered.unplanned_elections +=
            terms_before - shards.iter().map(|s| leaders[*s as usize].1).sum::<u64>();
        let quiet = self.lanes.longest_gap(&shards, quiet_from, Instant::now());

        let struck = self.strike(victim, &shards, &before).await?;
        self.wait_for_writes(&shards, 1, struck).await?;
        tokio::time::sleep(WINDOW).await;
        let until = Instant::now();
        let stall = self.lanes.longest_gap(&shards, struck, until);
        let gone: &[usize] = if how == How::Transfer { &[] } else { &[victim] };
        let after = look::look(&self.client, &self.addresses, gone).await;
        let victim_id = before.iter().find(|s| s.number == victim).map_or(0, |s| s.status.head);
        let noticed = self.alarms(&after, victim_id, struck);
        let elections = terms(&after, &shards).saturating_sub(terms_before);

        let asked = match ghost {
            Some(ghost) => Some(ghost.ask(&self.client).await?),
            None => None,
        };
        strike::give_back(self.cluster, victim, how)?;
        look::settled(&self.client, &self.addresses, false, PATIENCE).await?;
        let back = self.lanes.longest_gap(&shards, until, Instant::now());
        if let Some(asked) = asked {
            asked.judge(&self.client, &mut self.gathered.ghosts).await?;
        }
        self.pause().await?;
        self.gathered.lost.extend(self.lanes.lost(&self.client, &shards).await?);
        let cycle = started.elapsed();
        Ok(Strike { shards: shards.len(), stall, quiet, back, noticed, elections, cycle })
    }

    /// Times what every write waits for, while nothing else is written.
    async fn measure_the_disk(&mut self) -> Result<(), String> {
        let probe = self.probe.clone();
        let times = tokio::task::spawn_blocking(move || probe.syncs(SYNCS)).await;
        self.gathered.disk.extend(times.map_err(|e| e.to_string())??);
        Ok(())
    }

    /// Some head that leads something.
    fn pick(&mut self, leaders: &[(usize, u64)], heads: usize) -> usize {
        let leading: Vec<usize> = (1..=heads).filter(|head| leaders.iter().any(|l| l.0 == *head)).collect();
        leading[self.random.below(leading.len() as u64) as usize]
    }

    async fn strike(&self, victim: usize, shards: &[u32], seen: &[Seen]) -> Result<Instant, String> {
        if self.args.how != How::Transfer {
            return strike::strike(self.cluster, victim, self.args.how);
        }
        let heir = seen.iter().find(|s| s.number != victim).ok_or("there is no other head")?.status.head;
        let at = Instant::now();
        for shard in shards {
            let moved = self.client.move_leader(*shard, heir, PATIENCE).await;
            moved.map_err(|e| format!("shard {shard} does not move to head {heir}: {e}"))?;
        }
        Ok(at)
    }

    async fn wait_for_writes(&self, shards: &[u32], count: usize, since: Instant) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        while !self.lanes.have_written(shards, count, since) {
            if let Some(casualty) = self.cluster.first_casualty() {
                return Err(casualty);
            }
            if Instant::now() >= until {
                return Err(format!("shards {shards:?} acknowledged no {count} writes within {PATIENCE:?}"));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Waits until no write is under way.
    async fn pause(&self) -> Result<(), String> {
        self.lanes.activate(&[]);
        let until = Instant::now() + PATIENCE;
        while !self.lanes.are_idle() {
            if Instant::now() >= until {
                return Err(format!("a write is still under way after {PATIENCE:?}"));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// When the first survivor knew that the victim was dead. Any other alarm since is a false one.
    fn alarms(&mut self, seen: &[Seen], victim: u64, struck: Instant) -> Option<Duration> {
        let since = struck.elapsed();
        let alarms = seen.iter().flat_map(|s| &s.status.alarms);
        let (mut noticed, is_kill) = (None, self.args.how == How::Kill);
        for alarm in alarms {
            // Asked a moment ago, so a little less is true: at most the time that looking takes.
            let Some(after) = since.checked_sub(Duration::from_micros(alarm.age_us)) else { continue };
            if is_kill && alarm.head == victim {
                noticed = Some(noticed.map_or(after, |earlier: Duration| earlier.min(after)));
            } else {
                self.gathered.false_alarms += 1;
            }
        }
        noticed
    }

    /// Reads everything back once more, and puts the report together.
    async fn finish(mut self, strikes: &[Strike]) -> Result<Report, String> {
        look::settled(&self.client, &self.addresses, true, PATIENCE).await?;
        let all: Vec<u32> = (0..self.args.shards).collect();
        self.gathered.lost.extend(self.lanes.lost(&self.client, &all).await?);
        (self.gathered.acknowledged, self.gathered.failed) = self.lanes.totals();
        self.lanes.stop();
        Ok(Report::new(self.args.how, self.args.heads, self.args.shards, strikes, self.gathered))
    }
}

/// The newest terms of these shards, summed.
fn terms(seen: &[Seen], shards: &[u32]) -> u64 {
    let newest = |shard: &u32| {
        let of = |s: &Seen| s.status.shards.get(*shard as usize).map_or(0, |s| s.term);
        seen.iter().map(of).max().unwrap_or(0)
    };
    shards.iter().map(newest).sum()
}
