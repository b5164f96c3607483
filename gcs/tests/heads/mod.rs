//! Heads on real files and real TCP, for tests of what heads do to each other.

// Each test program uses some of it.
#![allow(dead_code)]

use mobula_base::disk::RealDisk;
use mobula_gcs::raft::timing::RaftTiming;
use mobula_gcs::{Client, Error, Formats, Head, HeadConfig, Parts};
use mobula_net::tcp::TcpNet;
use mobula_proto as proto;
use proto::holding_reply::Result as Held;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Nothing here may take longer.
pub const LONG: Duration = Duration::from_secs(30);
/// Shards of every cluster here.
pub const SHARDS: u32 = 3;
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Where the data directories are: each is called after its head's address.
pub struct Place {
    pub dir: PathBuf,
    /// Whether heads that have lost their disks rejoin by themselves.
    pub repair: bool,
}

impl Place {
    pub fn new(name: &str) -> Self {
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("mobula-{name}-{}-{unique}", std::process::id()));
        Place { dir, repair: true }
    }

    /// The real disk and network of the head in directory `name`.
    pub fn parts(&self, name: &str) -> Parts {
        let disk = RealDisk::new(self.dir.join(name)).expect("temporary directory");
        Parts::new(Arc::new(TcpNet), Arc::new(disk))
    }

    /// How a head here is to run: it makes many snapshots and keeps few entries.
    pub fn config(&self, address: &str, join: &[String]) -> HeadConfig {
        let timing = RaftTiming {
            snapshot_entries: 100,
            snapshot_bytes: 0,
            keep_entries: 10,
            rebalance_ms: 300,
            ..RaftTiming::default()
        };
        let seed = COUNTER.fetch_add(1, Ordering::Relaxed);
        let (address, join) = (address.to_owned(), join.to_vec());
        let repair = self.repair;
        HeadConfig { address, join, shards: SHARDS, seed, timing, repair, ..HeadConfig::default() }
    }

    pub async fn start_with(&self, config: HeadConfig) -> Result<Head, Error> {
        let started = async {
            loop {
                match Head::start(config.clone(), self.parts(&config.address)).await {
                    // The attempt before is only now letting its listener or directory go.
                    Err(Error::Listen { .. } | Error::InUse) => tokio::task::yield_now().await,
                    started => return started,
                }
            }
        };
        tokio::time::timeout(LONG, started).await.expect("in time")
    }

    pub async fn start(&self, address: &str, join: &[String]) -> Result<Head, Error> {
        self.start_with(self.config(address, join)).await
    }

    /// The head of a program that reads other formats than this one.
    pub async fn start_as(&self, address: &str, join: &[String], formats: Formats) -> Result<Head, Error> {
        self.start_with(HeadConfig { formats, ..self.config(address, join) }).await
    }

    pub async fn form(&self, all: &[String]) -> Vec<Head> {
        let heads = futures::future::join_all(all.iter().map(|address| self.start(address, all))).await;
        heads.into_iter().map(|head| head.expect("starts")).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// Free addresses, sorted; below the range that outgoing connections take theirs from.
pub fn addresses(count: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < count {
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id()) * 67;
        let address = format!("127.0.0.1:{}", 10_000 + unique % 20_000);
        if std::net::TcpListener::bind(&address).is_ok() {
            all.push(address);
        }
    }
    all.sort();
    all
}

pub async fn client(heads: &[String]) -> Client {
    let client = Client::new(Arc::new(TcpNet), heads.to_vec(), 99);
    client.connect(LONG).await.expect("connects");
    client
}

/// A node's life begins, as the control store sees it.
pub async fn join(client: &Client, name: &str) -> u64 {
    let join = proto::NodeJoin { address: format!("{name}:1"), ..Default::default() };
    let reply = client.call(proto::call::Op::NodeJoin(join), 0, LONG).await.expect("joined");
    let Some(proto::call_reply::Reply::Incarnation(incarnation)) = reply.reply else { panic!("{reply:?}") };
    incarnation
}

/// Reports that a node holds nothing and has acted on the deaths of a view (`None`: it does not say);
/// whether that was taken.
pub async fn report(client: &Client, shard: u32, incarnation: u64, deaths: Option<u64>) -> bool {
    let report = proto::HoldingRequest { shard, incarnation, deaths, ..Default::default() };
    match client.holding(report.clone(), LONG).await {
        Ok(Held::ReportInFull(term)) => {
            let full = client.holding(proto::HoldingRequest { term, full: true, ..report }, LONG).await;
            matches!(full, Ok(Held::AcceptedTerm(_)))
        }
        _ => false,
    }
}

/// Waits for what must come.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let come = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, come).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

pub fn change(request: u64, add: &str, remove: u64) -> proto::ChangeHeadsRequest {
    proto::ChangeHeadsRequest { request, add: add.to_owned(), remove, ..Default::default() }
}

/// Asks again and again, as the command line does, until the change is done; the new head's id.
pub async fn until_done(client: &Client, request: proto::ChangeHeadsRequest) -> u64 {
    let mut waiting = Vec::new();
    let done = async {
        loop {
            let reply = client.change_heads(request.clone(), LONG).await.expect("accepted");
            if reply.finished {
                return reply.head;
            }
            waiting = client.heads_table(LONG).await.expect("told").waiting;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let done = tokio::time::timeout(LONG, done).await;
    done.unwrap_or_else(|_| panic!("not done in time; waits for {waiting:?}"))
}

/// Waits until all replicas of all shards are the same.
pub async fn agree(heads: &[&Head]) {
    until("replicas converge", || {
        (0..SHARDS).all(|shard| {
            let all: Vec<_> = heads.iter().map(|head| head.digest(shard)).collect();
            all.windows(2).all(|pair| pair[0] == pair[1])
        })
    })
    .await;
}
