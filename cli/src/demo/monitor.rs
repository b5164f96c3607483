//! An observer of the control store, on a thread of its own.
//!
//! All through the job it writes keys to every shard and remembers what was acknowledged, for the
//! audit. After a head was killed it times two things from outside: when another head shows that
//! the loss was noticed, and when each shard that the victim led accepts a write.

use bytes::Bytes;
use mobula_gcs::Client;
use mobula_net::tcp::TcpNet;
use mobula_proto::{KvPut, NodeView, StatusReply, call, call_reply};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Pause between two writes to one shard.
const WRITE_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two looks at the surviving heads.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// How long a write is tried, and a failover watched.
const PATIENCE: Duration = Duration::from_secs(30);

/// A write that the control store acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its key.
    pub key: Bytes,
    /// The log index at which it took effect.
    pub revision: u64,
}

/// What the observer saw.
#[derive(Debug)]
pub enum Event {
    /// A write was acknowledged.
    Written(Written),
    /// A surviving head showed that it knows of the loss.
    HeadNoticed {
        /// The fault's number.
        fault: usize,
        /// When.
        at: Instant,
    },
    /// Another head leads a shard that the victim led.
    ShardMoved {
        /// The fault's number.
        fault: usize,
        /// The shard.
        shard: u32,
    },
    /// A shard that the victim led accepted a write.
    ShardServes {
        /// The fault's number.
        fault: usize,
        /// The shard.
        shard: u32,
        /// When.
        at: Instant,
    },
    /// A node was declared dead.
    NodeDead {
        /// Its incarnation.
        incarnation: u64,
        /// When.
        at: Instant,
    },
}

/// What a head led when it was killed.
#[derive(Debug, Clone)]
pub struct LostHead {
    /// The fault's number.
    pub fault: usize,
    /// Its id in the cluster.
    pub head: u64,
    /// Its address.
    pub address: String,
    /// Shards it led, with the term in which it did.
    pub led: Vec<(u32, u64)>,
}

enum Order {
    /// What every head says now.
    Look(Sender<Vec<(String, StatusReply)>>),
    Watch(LostHead),
    Stop,
}

/// The observer.
pub struct Monitor {
    orders: UnboundedSender<Order>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts observing the cluster of `heads`.
    pub fn start(heads: Vec<String>) -> Monitor {
        let (orders, inbox) = unbounded_channel();
        let (sender, events) = channel();
        let thread = std::thread::Builder::new()
            .name("monitor".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.expect("a runtime needs a few file descriptors");
                runtime.block_on(observe(heads, inbox, sender));
            })
            .expect("a thread for the observer");
        Monitor { orders, events, thread: Some(thread) }
    }

    /// What has been seen since the last call.
    pub fn events(&self) -> Vec<Event> {
        self.events.try_iter().collect()
    }

    /// What every head that answers says now.
    pub fn look(&self) -> Vec<(String, StatusReply)> {
        let (reply, answer) = channel();
        // A monitor that is gone has nothing to say.
        let _ = self.orders.send(Order::Look(reply));
        answer.recv().unwrap_or_default()
    }

    /// The nodes as the newest view has them.
    pub fn nodes(&self) -> Vec<NodeView> {
        let views = self.look().into_iter().filter_map(|(_, status)| status.view);
        views.max_by_key(|v| v.version).map_or_else(Vec::new, |v| v.nodes)
    }

    /// Times the failover from a head that was just killed.
    pub fn watch(&self, lost: LostHead) {
        let _ = self.orders.send(Order::Watch(lost));
    }

    /// Stops writing, waits for what is under way, and gives the last events.
    pub fn stop(mut self) -> Vec<Event> {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
        self.events()
    }
}

async fn observe(heads: Vec<String>, mut orders: UnboundedReceiver<Order>, events: Sender<Event>) {
    let client = Client::new(Arc::new(TcpNet), heads.clone(), 1);
    // A client of its own: requests of one client to one shard wait for each other, and a probe
    // must not stand behind an ordinary write.
    let prober = Client::new(Arc::new(TcpNet), heads.clone(), 2);
    if client.connect(PATIENCE).await.is_err() || prober.connect(PATIENCE).await.is_err() {
        return;
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut writers = tokio::task::JoinSet::new();
    let mut watchers = tokio::task::JoinSet::new();
    for shard in 0..client.shards() {
        // Also acquaints the prober with the leader: it is to time a failover, not a first contact.
        writers.spawn(write_all_along(
            client.clone(),
            prober.clone(),
            shard,
            stopped.clone(),
            events.clone(),
        ));
    }
    watchers.spawn(watch_nodes(client.clone(), stopped.clone(), events.clone()));
    while let Some(order) = orders.recv().await {
        match order {
            Order::Look(reply) => {
                let mut seen = Vec::new();
                for head in &heads {
                    if let Ok(status) = client.status_of(head).await {
                        seen.push((head.clone(), status));
                    }
                }
                let _ = reply.send(seen);
            }
            Order::Watch(lost) => {
                for (shard, _) in &lost.led {
                    watchers.spawn(probe(prober.clone(), lost.fault, *shard, events.clone()));
                }
                let survivors = heads.iter().filter(|h| **h != lost.address).cloned().collect();
                watchers.spawn(watch_leaders(client.clone(), lost, survivors, events.clone()));
            }
            Order::Stop => break,
        }
    }
    let _ = stop.send(true);
    while writers.join_next().await.is_some() {}
    while watchers.join_next().await.is_some() {}
}

/// Writes to one shard until told to stop; every acknowledgement is an event.
async fn write_all_along(
    client: Client,
    prober: Client,
    shard: u32,
    mut stopped: tokio::sync::watch::Receiver<bool>,
    events: Sender<Event>,
) {
    let _ = put(&prober, &key(&client, shard, "acquaintance")).await;
    for number in 0u64.. {
        let key = key(&client, shard, &format!("audit-{number}"));
        // Without an acknowledgement nothing was promised.
        if let Some(revision) = put(&client, &key).await {
            let _ = events.send(Event::Written(Written { key, revision }));
        }
        if tokio::time::timeout(WRITE_PAUSE, stopped.wait_for(|s| *s)).await.is_ok() {
            return;
        }
    }
}

/// Writes once to a shard whose leader was killed.
async fn probe(prober: Client, fault: usize, shard: u32, events: Sender<Event>) {
    let key = key(&prober, shard, &format!("fault-{fault}"));
    if let Some(revision) = put(&prober, &key).await {
        let _ = events.send(Event::ShardServes { fault, shard, at: Instant::now() });
        let _ = events.send(Event::Written(Written { key, revision }));
    }
}

/// Looks at the survivors until each shard that the victim led has another leader.
async fn watch_leaders(client: Client, lost: LostHead, survivors: Vec<String>, events: Sender<Event>) {
    let until = Instant::now() + PATIENCE;
    let mut open = lost.led;
    let mut is_noticed = false;
    while !open.is_empty() && Instant::now() < until {
        for address in &survivors {
            let Ok(status) = client.status_of(address).await else { continue };
            let at = Instant::now();
            let state = |shard: u32| status.shards.iter().find(|s| s.shard == shard);
            // A new term, or a leader forgotten: both happen only after the loss was noticed.
            let shows = |(shard, term): &(u32, u64)| {
                state(*shard).is_some_and(|s| s.term > *term || s.leader != lost.head)
            };
            if !is_noticed && open.iter().any(shows) {
                is_noticed = true;
                let _ = events.send(Event::HeadNoticed { fault: lost.fault, at });
            }
            open.retain(|(shard, term)| {
                let is_moved =
                    state(*shard).is_some_and(|s| s.term > *term && s.leader != 0 && s.leader != lost.head);
                if is_moved {
                    let _ = events.send(Event::ShardMoved { fault: lost.fault, shard: *shard });
                }
                !is_moved
            });
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Follows the membership; every death is an event.
async fn watch_nodes(client: Client, mut stopped: tokio::sync::watch::Receiver<bool>, events: Sender<Event>) {
    let mut version = 0;
    let mut dead = std::collections::BTreeSet::new();
    loop {
        let view = tokio::select! {
            biased;
            _ = stopped.wait_for(|s| *s) => return,
            view = client.watch(version, Duration::from_secs(5), PATIENCE) => view,
        };
        let Ok(view) = view else { continue };
        let at = Instant::now();
        version = version.max(view.version);
        for node in view.nodes.iter().filter(|n| !n.alive) {
            if dead.insert(node.incarnation) {
                let _ = events.send(Event::NodeDead { incarnation: node.incarnation, at });
            }
        }
    }
}

/// Writes a key; the revision that was acknowledged, if it was.
async fn put(client: &Client, key: &Bytes) -> Option<u64> {
    let shard = client.slots().of_key(key).0;
    let op = call::Op::KvPut(KvPut {
        key: key.clone(),
        value: key.clone(),
        only_if_absent: false,
        ..Default::default()
    });
    match client.call(op, shard, PATIENCE).await.ok()?.reply? {
        call_reply::Reply::Revision(revision) => Some(revision),
        _ => None,
    }
}

/// A key that belongs to `shard`: the first of a row of names that hashes to it.
fn key(client: &Client, shard: u32, name: &str) -> Bytes {
    let map = client.slots();
    (0u32..)
        .map(|salt| format!("demo/{name}/{shard}/{salt}"))
        .find(|key| map.of_key(key.as_bytes()).0 == shard)
        .expect("every shard owns slots, so some name hashes to it")
        .into()
}
