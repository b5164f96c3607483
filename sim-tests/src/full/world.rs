//! Heads and nodes as simulated hosts. The disks stand outside: they outlive their hosts.

use super::draw::Draw;
use super::driver;
use super::hook::{HeadHook, Nodes};
use super::local::{SimSpawner, door};
use super::wire::Wires;
use super::{Shared, state};
use crate::store::docket::Docket;
use crate::{replicas, trace};
use mobula_base::random::Random;
use mobula_base::sim_disk::SimDisk;
use mobula_gcs::{Head, HeadConfig, Parts as HeadParts};
use mobula_node::{NodeConfig, Parts};
use mobula_objstore::Region;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use turmoil::Sim;

/// Memory of a simulated node's store, bytes: only what is used is ever touched.
const STORE_BYTES: u64 = 512 << 20;
/// The driver's node. It lives through every run: a job that is not detached dies with its driver.
pub const HOME: u64 = 1;

/// What faults and judges can reach from outside the hosts.
#[derive(Clone)]
pub struct World {
    /// What the seed drew.
    pub draw: Rc<Draw>,
    /// The running heads.
    pub heads: Rc<RefCell<BTreeMap<u64, Head>>>,
    /// Why heads did not start.
    pub refused: Rc<RefCell<BTreeMap<u64, String>>>,
    /// Nodes that gave up.
    pub ended: Rc<RefCell<BTreeSet<u64>>>,
    /// The heads' disks.
    pub disks: Rc<BTreeMap<u64, SimDisk>>,
    /// Failed syncs of each disk before the present life of its head.
    failed_before: Rc<RefCell<BTreeMap<u64, u64>>>,
    /// The judges of the log.
    pub docket: Docket,
    /// Lives of nodes.
    pub nodes: Nodes,
    /// The network's moods.
    pub wires: Wires,
    /// How far the driver is.
    pub shared: Rc<Shared>,
    /// Each start of a host draws another stream.
    starts: Rc<Cell<u64>>,
}

/// The name, which is the address, of a head.
pub fn head_name(n: u64) -> String {
    format!("head-{n}")
}

/// The name of a node.
pub fn node_name(n: u64) -> String {
    format!("node-{n}")
}

type HostResult = Result<(), Box<dyn std::error::Error>>;

impl World {
    /// A cluster that has not started.
    pub fn new(draw: Draw) -> Self {
        let disk = |n: u64| (n, SimDisk::new(Random::new(draw.seed).fork(&format!("disk {n}")).next_u64()));
        World {
            disks: Rc::new((1..=draw.heads).map(disk).collect()),
            wires: Wires::new(draw.seed),
            draw: Rc::new(draw),
            heads: Rc::default(),
            refused: Rc::default(),
            ended: Rc::default(),
            failed_before: Rc::default(),
            docket: Docket::default(),
            nodes: Nodes::default(),
            shared: Rc::default(),
            starts: Rc::default(),
        }
    }

    /// Adds all hosts to a simulation.
    pub fn build(&self, sim: &mut Sim<'_>) {
        for n in 1..=self.draw.heads {
            let world = self.clone();
            sim.host(head_name(n), move || world.clone().run_head(n));
        }
        for n in 1..=self.draw.nodes {
            let world = self.clone();
            sim.host(node_name(n), move || world.clone().run_node(n));
        }
    }

    /// Addresses of all heads.
    pub fn addresses(&self) -> Vec<String> {
        (1..=self.draw.heads).map(|n| format!("{}:6380", head_name(n))).collect()
    }

    fn next_start(&self, name: &str) -> (u64, u64) {
        self.starts.set(self.starts.get() + 1);
        let start = self.starts.get();
        (start, Random::new(self.draw.seed).fork(&format!("{name} start {start}")).next_u64())
    }

    async fn run_head(self, n: u64) -> HostResult {
        let name = head_name(n);
        let (_, seed) = self.next_start(&name);
        let config = HeadConfig {
            address: "0.0.0.0:6380".into(),
            advertise: format!("{name}:6380"),
            join: self.addresses(),
            shards: self.draw.shards,
            seed,
            timing: self.draw.timing.clone(),
            // What is wrong with a disk must be seen.
            repair: false,
            ..HeadConfig::default()
        };
        let hook = HeadHook { head: n, docket: self.docket.clone(), nodes: self.nodes.clone() };
        let (net, disk) = (Arc::new(self.wires.net(&name)), Arc::new(self.disks[&n].clone()));
        let parts = HeadParts { hook: Arc::new(hook), ..HeadParts::new(net, disk) };
        self.failed_before.borrow_mut().insert(n, self.disks[&n].failed_syncs());
        self.docket.judges().commit.starts(n);
        self.docket.judges().guess.ended(n);
        mobula_gcs::in_scope(seed, async move {
            trace::note(format!("{name} starts"));
            match Head::start(config, parts).await {
                Ok(head) => {
                    trace::note(format!("{name} is up"));
                    self.heads.borrow_mut().insert(n, head);
                }
                Err(error) => {
                    trace::note(format!("{name} refuses: {error}"));
                    self.refused.borrow_mut().insert(n, error.to_string());
                }
            }
            std::future::pending::<HostResult>().await
        })
        .await
    }

    async fn run_node(self, n: u64) -> HostResult {
        let name = node_name(n);
        let (life, seed) = self.next_start(&name);
        let cpus = self.draw.cpus[n as usize - 1];
        state::with(|state| state.judges.cpu.has(life, u64::from(cpus)));
        let region = Region::heap(STORE_BYTES);
        let (door, local) = door(region.clone());
        let config = NodeConfig {
            name: name.clone(),
            heads: self.addresses(),
            listen: "0.0.0.0:7000".into(),
            socket: "unused".into(),
            workers: cpus,
            resources: vec![],
            labels: Vec::new(),
            store_bytes: STORE_BYTES,
            linger: mobula_sim_tests::linger::of(life),
            late: std::time::Duration::ZERO,
            spill_dir: None,
            packages_dir: None,
            memory_full: 1.0,
            pages: Default::default(),
            seed,
        };
        let parts = Parts {
            net: Arc::new(self.wires.net(&name)),
            local: Box::new(local),
            spawner: Box::new(SimSpawner { door: door.clone(), node: life }),
            region,
            // As if its machine kept no files from one life to the next.
            spill: Some(Arc::new(SimDisk::new(seed))),
            packages: None,
            memory: None,
        };
        let (ended, named) = (self.ended.clone(), name.clone());
        let ready = move |ready: mobula_node::Ready| {
            trace::note(format!("{named} joined as {}", ready.incarnation));
            if n == HOME {
                tokio::task::spawn_local(driver::drive(self.clone(), door));
            }
        };
        if let Err(error) = mobula_node::run_with(config, parts, ready, std::future::pending()).await {
            // No head answered it for long. Whoever runs it starts it again.
            trace::note(format!("{name} ends: {error}"));
            ended.borrow_mut().insert(n);
        }
        std::future::pending().await
    }

    /// Looks at every head that runs: who leads, what it has applied. Heads that had to stop.
    pub fn look(&self, now: std::time::Duration, digests: bool) -> Vec<u64> {
        let sync_failed = |n: u64| self.disks[&n].failed_syncs() > self.failed_before.borrow()[&n];
        let size = (self.draw.heads, self.draw.shards);
        let judges = &mut *self.docket.judges();
        replicas::look(&self.heads.borrow(), judges, size, sync_failed, now, digests)
    }

    /// Whether all heads write the newest formats.
    pub fn is_of_newest_level(&self) -> bool {
        let heads = self.heads.borrow();
        heads.len() as u64 == self.draw.heads
            && heads.values().all(|head| head.writes() >= mobula_proto::LEVEL_REFERENCES)
    }

    /// Who leads each shard, by what the running heads believe of themselves.
    pub fn leaders(&self) -> Vec<Option<u64>> {
        let heads = self.heads.borrow();
        let offices = |n: &u64, head: &Head| {
            head.offices().into_iter().map(|(shard, term)| (shard, term, *n)).collect::<Vec<_>>()
        };
        let all: Vec<_> = heads.iter().flat_map(|(n, head)| offices(n, head)).collect();
        let of = |shard| all.iter().filter(|(s, ..)| *s == shard).max_by_key(|(_, term, _)| *term);
        (0..self.draw.shards).map(|shard| of(shard).map(|(.., n)| *n)).collect()
    }

    /// Records that are left, by what leaders have; in words.
    pub fn records(&self) -> Vec<String> {
        let heads = self.heads.borrow();
        let mut records = Vec::new();
        for (shard, leader) in self.leaders().into_iter().enumerate() {
            if let Some(head) = leader.and_then(|leader| heads.get(&leader)) {
                let shards = head.status().shards;
                let left = shards.iter().find(|s| s.shard == shard as u32).map_or(0, |s| s.tasks);
                if left > 0 {
                    records.push(format!(
                        "{left} records in shard {shard} (formats of level {})",
                        head.writes()
                    ));
                }
            }
        }
        records
    }

    /// Whether all replicas that run agree, with every shard led.
    pub fn settled(&self) -> bool {
        replicas::settled(&self.heads.borrow(), self.draw.shards)
    }
}
