//! Heads and nodes as simulated hosts. The disks stand outside: they outlive their hosts.

use crate::clock;
use crate::local::{SimSpawner, door};
use crate::net::SimNet;
use crate::trace;
use mobula_base::random::Random;
use mobula_base::sim_disk::SimDisk;
use mobula_gcs::{Head, HeadConfig, Parts as HeadParts, RaftTiming};
use mobula_node::{NodeConfig, Parts};
use mobula_objstore::Region;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use turmoil::Sim;

/// Heads of a simulated cluster.
pub const HEADS: u64 = 3;
/// Nodes of a simulated cluster; the driver lives on the first.
pub const NODES: u64 = 3;
/// Shards of the control store.
pub const SHARDS: u32 = 4;
/// Memory of a simulated node's store, bytes: what a whole run makes, as objects stay until their
/// job ends.
const STORE_BYTES: u64 = 256 << 20;

/// What the scenario can reach from outside the hosts.
#[derive(Clone, Default)]
pub struct Reach {
    /// The running heads.
    pub heads: Rc<RefCell<BTreeMap<u64, Arc<Head>>>>,
    /// Their disks.
    pub disks: Rc<RefCell<BTreeMap<u64, SimDisk>>>,
    /// The door of the first node, for the driver.
    pub door: Rc<RefCell<Option<crate::local::Door>>>,
    /// Each start of a host draws another stream.
    starts: Rc<RefCell<u64>>,
}

/// The name, which is the address, of a head.
pub fn head_name(n: u64) -> String {
    format!("head-{n}")
}

/// The name of a node.
pub fn node_name(n: u64) -> String {
    format!("node-{n}")
}

fn head_addresses() -> Vec<String> {
    (1..=HEADS).map(|n| format!("{}:6380", head_name(n))).collect()
}

impl Reach {
    fn next_seed(&self, seed: u64, name: &str) -> u64 {
        let mut starts = self.starts.borrow_mut();
        *starts += 1;
        Random::new(seed).fork(&format!("{name} start {starts}")).next_u64()
    }

    /// Who leads a shard, by the highest term that a running head has seen.
    pub fn leader(&self, shard: u32) -> Option<u64> {
        let heads = self.heads.borrow();
        let views =
            heads.values().flat_map(|h| h.status().shards).filter(|s| s.shard == shard && s.leader != 0);
        views.max_by_key(|s| s.term).map(|s| s.leader)
    }

    /// Leaders of all shards, to be noted when they change.
    pub fn leaders(&self) -> Vec<Option<u64>> {
        (0..SHARDS).map(|s| self.leader(s)).collect()
    }

    /// Adds all hosts to a simulation.
    pub fn build(&self, sim: &mut Sim<'_>, seed: u64) {
        for n in 1..=HEADS {
            self.disks
                .borrow_mut()
                .insert(n, SimDisk::new(Random::new(seed).fork(&format!("disk {n}")).next_u64()));
            let reach = self.clone();
            sim.host(head_name(n), move || run_head(reach.clone(), n, seed));
        }
        for n in 1..=NODES {
            let reach = self.clone();
            sim.host(node_name(n), move || run_node(reach.clone(), n, seed));
        }
    }
}

type HostResult = Result<(), Box<dyn std::error::Error>>;

async fn run_head(reach: Reach, n: u64, seed: u64) -> HostResult {
    let seed = reach.next_seed(seed, &head_name(n));
    let disk = reach.disks.borrow()[&n].clone();
    let config = HeadConfig {
        address: "0.0.0.0:6380".into(),
        advertise: format!("{}:6380", head_name(n)),
        join: head_addresses(),
        shards: SHARDS,
        seed,
        timing: RaftTiming { snapshot_entries: 300, keep_entries: 50, ..RaftTiming::default() },
        // What is wrong with a disk must be seen.
        repair: false,
        ..HeadConfig::default()
    };
    let parts = HeadParts::new(Arc::new(SimNet { host: head_name(n) }), Arc::new(disk));
    mobula_gcs::in_scope(seed, async move {
        trace::note(format!("head-{n} starts"));
        let head = Head::start(config, parts).await.map_err(|e| format!("head-{n}: {e}"))?;
        trace::note(format!("head-{n} is up"));
        reach.heads.borrow_mut().insert(n, Arc::new(head));
        std::future::pending::<HostResult>().await
    })
    .await
}

async fn run_node(reach: Reach, n: u64, seed: u64) -> HostResult {
    let seed = reach.next_seed(seed, &node_name(n));
    let region = Region::heap(STORE_BYTES);
    let (door, local) = door(region.clone());
    let config = NodeConfig {
        name: node_name(n),
        heads: head_addresses(),
        listen: "0.0.0.0:7000".into(),
        socket: "unused".into(),
        workers: 2,
        resources: vec![],
        store_bytes: STORE_BYTES,
        seed,
    };
    let parts = Parts {
        net: Arc::new(SimNet { host: node_name(n) }),
        local: Box::new(local),
        spawner: Box::new(SimSpawner(door.clone())),
        region,
    };
    let ready = move |ready: mobula_node::Ready| {
        trace::note(format!("node-{n} joined as {}", ready.incarnation));
        if n == 1 {
            *reach.door.borrow_mut() = Some(door);
        }
    };
    mobula_node::run_with(config, parts, ready, std::future::pending()).await?;
    Ok(())
}

/// A simulation with the settings that every scenario shares.
pub fn simulation(seed: u64, limit: Duration) -> Sim<'static> {
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
