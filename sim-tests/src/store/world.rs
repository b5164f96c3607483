//! The heads as simulated hosts, their disks, and what everything in a run shares.

use super::clients::History;
use super::docket::{Docket, HeadHook};
use super::draw::Draw;
use super::planted::{Bug, LyingDisk};
use super::wire::{Mood, MoodyNet};
use crate::net::SimNet;
use crate::{replicas, trace};
use mobula_base::disk::Disk;
use mobula_base::random::Random;
use mobula_base::sim_disk::SimDisk;
use mobula_gcs::{Client, Head, HeadConfig, Parts};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use turmoil::Sim;

/// What is shared.
#[derive(Clone)]
pub struct World {
    /// Decides everything.
    pub seed: u64,
    /// What it drew.
    pub draw: Rc<Draw>,
    /// The bug that is planted.
    pub bug: Option<Bug>,
    /// The judges.
    pub docket: Docket,
    /// What clients did.
    pub history: Rc<RefCell<History>>,
    /// Heads that run.
    pub heads: Rc<RefCell<BTreeMap<u64, Head>>>,
    /// Why heads did not start.
    pub refused: Rc<RefCell<BTreeMap<u64, String>>>,
    /// The disks: they outlive their hosts.
    pub disks: Rc<BTreeMap<u64, SimDisk>>,
    /// The moods of all that dial, by host.
    pub moods: Rc<RefCell<BTreeMap<String, Mood>>>,
    lives: Rc<Cell<u64>>,
    /// Failed syncs of each disk before the present life of its head.
    failed_before: Rc<RefCell<BTreeMap<u64, u64>>>,
    over: Rc<Cell<bool>>,
    /// Clients that still work.
    pub working: Rc<Cell<usize>>,
}

/// The name of a head's host.
pub fn head_name(n: u64) -> String {
    format!("head-{n}")
}

type HostResult = Result<(), Box<dyn std::error::Error>>;

impl World {
    /// A cluster that has not started.
    pub fn new(seed: u64, draw: Draw, bug: Option<Bug>) -> Self {
        let disk = |n: u64| (n, SimDisk::new(Random::new(seed).fork(&format!("disk {n}")).next_u64()));
        World {
            seed,
            disks: Rc::new((1..=draw.heads).map(disk).collect()),
            draw: Rc::new(draw),
            bug,
            docket: Docket::default(),
            history: Rc::default(),
            heads: Rc::default(),
            refused: Rc::default(),
            moods: Rc::default(),
            lives: Rc::default(),
            failed_before: Rc::default(),
            over: Rc::default(),
            working: Rc::default(),
        }
    }

    /// Adds the heads.
    pub fn build(&self, sim: &mut Sim<'_>) {
        for n in 1..=self.draw.heads {
            let world = self.clone();
            sim.host(head_name(n), move || world.clone().run_head(n));
        }
    }

    /// Addresses of all heads.
    pub fn addresses(&self) -> Vec<String> {
        (1..=self.draw.heads).map(|n| format!("{}:6380", head_name(n))).collect()
    }

    /// A client on a host of its own.
    pub fn client(&self, host: &str) -> Client {
        let seed = Random::new(self.seed).fork(host).next_u64();
        Client::new(Arc::new(self.net(host)), self.addresses(), seed)
    }

    fn net(&self, host: &str) -> MoodyNet {
        let mood = || Mood::new(Random::new(self.seed).fork(&format!("mood {host}")).next_u64());
        let mood = self.moods.borrow_mut().entry(host.to_owned()).or_insert_with(mood).clone();
        MoodyNet { net: SimNet { host: host.to_owned() }, mood }
    }

    /// Whether clients are to stop.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Tells clients to stop.
    pub fn end(&self) {
        self.over.set(true);
    }

    async fn run_head(self, n: u64) -> HostResult {
        self.lives.set(self.lives.get() + 1);
        let seed = Random::new(self.seed).fork(&format!("life {}", self.lives.get())).next_u64();
        let config = HeadConfig {
            address: "0.0.0.0:6380".into(),
            advertise: format!("{}:6380", head_name(n)),
            join: self.addresses(),
            shards: self.draw.shards,
            seed,
            timing: self.draw.timing.clone(),
            // Nodes are not this simulation's concern.
            node_silence_ms: 3_600_000,
            report_silence_ms: 3_600_000,
            // What is wrong with a disk must be seen.
            repair: false,
            ..HeadConfig::default()
        };
        let disk: Arc<dyn Disk> = match self.bug.and_then(Bug::of_the_disk) {
            Some(lie) => Arc::new(LyingDisk { disk: self.disks[&n].clone(), lie }),
            None => Arc::new(self.disks[&n].clone()),
        };
        let plant = self.bug.and_then(|bug| bug.of_head(n));
        let hook = Arc::new(HeadHook { head: n, docket: self.docket.clone(), plant });
        let parts = Parts { hook, ..Parts::new(Arc::new(self.net(&head_name(n))), disk) };
        self.failed_before.borrow_mut().insert(n, self.disks[&n].failed_syncs());
        self.docket.judges().commit.starts(n);
        self.docket.judges().guess.ended(n);
        mobula_gcs::in_scope(seed, async move {
            match Head::start(config, parts).await {
                Ok(head) => {
                    trace::note(format!("head-{n} is up"));
                    self.heads.borrow_mut().insert(n, head);
                }
                Err(error) => {
                    trace::note(format!("head-{n} refuses: {error}"));
                    self.refused.borrow_mut().insert(n, error.to_string());
                }
            }
            std::future::pending::<HostResult>().await
        })
        .await
    }

    /// Looks at every head that runs: who leads, and every now and then at digests. Heads that had to
    /// stop; the process of one that has ends.
    pub fn look(&self, now: Duration, digests: bool) -> Vec<u64> {
        let sync_failed = |n: u64| self.disks[&n].failed_syncs() > self.failed_before.borrow()[&n];
        let size = (self.draw.heads, self.draw.shards);
        let judges = &mut *self.docket.judges();
        replicas::look(&self.heads.borrow(), judges, size, sync_failed, now, digests)
    }

    /// Whether all that run agree, with every shard led.
    pub fn settled(&self) -> bool {
        replicas::settled(&self.heads.borrow(), self.draw.shards)
    }
}
