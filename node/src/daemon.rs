//! A node's life: join, run the loop, and, when the cluster has declared it dead, join anew.

use crate::config::{Error, NodeConfig, Parts, Ready};
use crate::control::{self, Control, Copied, Heard};
use crate::groups::ASKS_MAX;
use crate::http;
use crate::input::{HeldReply, INBOX_MAX, Inbox, Input};
use crate::links::{self, Links, UNACKNOWLEDGED_MAX};
use crate::local::{LocalListener, UnixLocal};
use crate::memory::{self, LinuxMemory, Memory};
use crate::packages::Packages;
use crate::peers::Peers;
use crate::room::Waiting;
use crate::spawn::{ProcessSpawner, Spawner};
use crate::spill;
use mobula_base::disk::{Disk, RealDisk};
use mobula_base::resources::milli;
use mobula_base::{Incarnation, Instant, JobId, ObjectId, Resources, ShardId};
use mobula_gcs::Client;
use mobula_net::Net;
use mobula_net::frame::Outbox;
use mobula_net::written::Written;
use mobula_objstore::depot::{self, File};
use mobula_objstore::{Depot, Region};
use mobula_proto::{
    DaemonMsg, JobStart, Label, NamedResource, NodeJoin, PeerMsg, StreamBatch, Welcome, peer_msg,
};
use mobula_scheduler::{ClientId, Config, Core, Effect, Event};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Inputs taken in one turn of the loop.
const TURN_MAX: usize = 2048;
/// How long a starting node looks for a head.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// Pause before a node that was declared dead joins again.
const REJOIN_AFTER: Duration = Duration::from_millis(200);

/// Runs a node on this machine until `shutdown`.
///
/// Must be awaited on a thread that lives as long as the process (see
/// [`ProcessSpawner`]).
///
/// # Errors
/// It cannot listen, has no memory, or the cluster does not take it.
pub async fn run(
    config: NodeConfig,
    net: Arc<dyn Net>,
    on_ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let io = |what: String| move |source| Error::Io { what, source };
    let region = Region::shared(config.store_bytes)
        .map_err(io(format!("cannot get {} bytes of shared memory", config.store_bytes)))?;
    let local = UnixLocal::bind(&config.socket, region.clone())
        .map_err(io(format!("cannot listen at {}", config.socket.display())))?;
    let spawner = Box::new(ProcessSpawner { socket: config.socket.clone() });
    let spill: Option<Arc<dyn Disk>> = match &config.spill_dir {
        None => None,
        Some(dir) => {
            let disk = RealDisk::new(dir);
            let failed = io(format!("cannot use {} for objects that leave memory", dir.display()));
            Some(Arc::new(disk.map_err(failed)?))
        }
    };
    let packages = match &config.packages_dir {
        None => None,
        Some(dir) => {
            let failed = io(format!("cannot use {} for executables and files of jobs", dir.display()));
            Some(Packages::open(dir).map_err(failed)?)
        }
    };
    let memory: Option<Arc<dyn Memory>> = Some(Arc::new(LinuxMemory::new()));
    let parts = Parts { net, local: Box::new(local), spawner, region, spill, packages, memory };
    run_with(config, parts, on_ready, shutdown).await
}

/// Runs a node on any parts until `shutdown`.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    config: NodeConfig,
    mut parts: Parts,
    on_ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    tokio::pin!(shutdown);
    let client = Client::new(parts.net.clone(), config.heads.clone(), config.seed);
    tokio::select! {
        biased;
        () = &mut shutdown => return Ok(()),
        connected = client.connect(CONNECT_DEADLINE) => connected?,
    }
    let mut on_ready = Some(on_ready);
    let mut address = config.listen.clone();
    loop {
        let listener = parts.net.listen(&address).await.map_err(|source| Error::Io {
            what: format!("cannot listen at {address}; choose another --listen address"),
            source,
        })?;
        // The next life answers at the same address.
        address = listener.address();
        let join = node_join(&config, &address);
        let incarnation = tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            joined = control::join(&client, join) => joined?,
        };
        if let Some(tell) = on_ready.take() {
            tell(Ready { incarnation: incarnation.0, address: address.clone() });
        }
        let found = match &parts.spill {
            None => Vec::new(),
            Some(disk) => spill::scan(disk.clone()).await.map_err(|error| Error::Io {
                what: "cannot look at the files of objects that left memory".into(),
                source: std::io::Error::other(error),
            })?,
        };
        let mut life = Life::new(&config, &parts, client.clone(), incarnation, found);
        let incoming = tokio::spawn(http::serve(life.peers.clone(), config.pages.clone(), listener));
        let end = life.run(&mut *parts.local, &mut *parts.spawner, shutdown.as_mut()).await;
        incoming.abort();
        let _ = incoming.await;
        life.stop();
        match end {
            End::Shutdown => {
                control::leave(&client, incarnation).await;
                return Ok(());
            }
            End::Fenced => {
                tracing::warn!(%incarnation, "the cluster declared this node dead: it joins again with nothing");
                tokio::time::sleep(REJOIN_AFTER).await;
            }
        }
    }
}

fn node_join(config: &NodeConfig, address: &str) -> NodeJoin {
    NodeJoin {
        follows_slots: true,
        name: config.name.clone(),
        address: address.to_owned(),
        cpu_milli: config.workers.saturating_mul(1000),
        resources: config
            .resources
            .iter()
            .map(|(name, amount)| NamedResource { name: name.clone(), milli: milli(*amount) })
            .collect(),
        store_bytes: config.store_bytes,
        labels: config
            .labels
            .iter()
            .map(|(key, value)| Label { key: key.clone(), value: value.clone() })
            .collect(),
    }
}

/// Why a life ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Shutdown,
    Fenced,
}

/// One driver or worker.
pub(crate) struct Link {
    pub outbox: Written<DaemonMsg>,
    pub job: JobId,
    /// A driver's job ends with its link; a worker has the token of its start.
    pub token: Option<u64>,
    /// A worker's process.
    pub pid: Option<u32>,
    /// Tasks of this turn that were elided, and of which it has not been told.
    pub elided: u64,
}

/// One incarnation of the node: all of its state, and what the loop needs to perform effects.
pub(crate) struct Life {
    pub core: Core,
    pub store: Depot,
    pub region: Region,
    pub spill_disk: Option<Arc<dyn Disk>>,
    pub packages: Option<Arc<Packages>>,
    /// Measures what workers have.
    pub memory: Option<Arc<dyn Memory>>,
    /// The part of all memory that may be in use.
    pub memory_full: f64,
    /// Who waits for the store.
    pub waiting: Waiting,
    /// What the store wants done, kept for its memory.
    pub deeds: Vec<depot::Effect>,
    /// What an earlier life has left on the disk, until it is known which jobs go on.
    pub found: Option<Vec<(ObjectId, File)>>,
    /// Of that, what was taken up and has not been compared with what is on record.
    pub attached: BTreeSet<ObjectId>,
    /// Whoever wants to report what is held, meanwhile.
    pub early_reports: Vec<(ShardId, HeldReply)>,
    pub incarnation: Incarnation,
    pub inbox: Inbox,
    pub control: Control,
    pub links: Arc<Links>,
    pub peers: Arc<Peers>,
    pub open: BTreeMap<ClientId, Link>,
    pub jobs: BTreeMap<JobId, JobStart>,
    pub streams: Vec<mpsc::UnboundedSender<StreamBatch>>,
    pub holdings: Vec<mpsc::UnboundedSender<Copied>>,
    /// Copies that were promised and asked for and are not here, as their homes have been told.
    pub missed: BTreeSet<ObjectId>,
    pub next_transfer: u64,
    /// What was sealed in this turn.
    pub fresh: Vec<ObjectId>,
    /// What tasks made in this turn, of that which was missed.
    pub made_anew: Vec<ObjectId>,
    pub outgoing: BTreeMap<Incarnation, Outbox<PeerMsg>>,
    pub addresses: BTreeMap<Incarnation, String>,
    /// Messages for nodes that the view does not name yet.
    pub early: BTreeMap<Incarnation, Vec<peer_msg::Msg>>,
    pub view_version: u64,
    /// The same, once all that follows from it is done.
    acted: watch::Sender<u64>,
    /// Whether some link has not been told of tasks that were elided.
    pub has_elided: bool,
    /// Whether a death has been learnt of in this turn.
    pub has_buried: bool,
    pub spawned: BTreeMap<u64, (JobId, JoinHandle<()>)>,
    pub next_token: u64,
    /// Requests for placement groups that may be under way.
    pub group_asks: Arc<Semaphore>,
    pub shards: u32,
    pub fenced: bool,
    receiver: Option<mpsc::Receiver<Input>>,
    /// Long-running tasks of this life; they end with it.
    pub tasks: JoinSet<()>,
    next_client: ClientId,
    started: tokio::time::Instant,
}

impl Life {
    fn new(
        config: &NodeConfig,
        parts: &Parts,
        client: Client,
        incarnation: Incarnation,
        found: Vec<(ObjectId, File)>,
    ) -> Self {
        let (inbox, receiver) = mpsc::channel(INBOX_MAX);
        let (shards, cluster) = (client.shards(), client.cluster());
        let heard = Heard::default();
        let (acted, watched) = watch::channel(0);
        let control = Control {
            client: client.clone(),
            inbox: inbox.clone(),
            incarnation,
            heard,
            late: config.late,
            claims_told: Arc::new(Notify::new()),
            acted: watched,
        };
        let welcome = Welcome {
            job: 0,
            incarnation: incarnation.0,
            arena_bytes: parts.region.len(),
            cluster,
            shards,
            heads: client.heads(),
            streams: true,
        };
        let links = Arc::new(Links {
            inbox: inbox.clone(),
            control: control.clone(),
            welcome,
            unacknowledged: std::sync::atomic::AtomicU64::new(0),
            level: std::sync::atomic::AtomicU32::new(0),
            packages: parts.packages.clone(),
            drained: tokio::sync::Notify::new(),
        });
        let named = config.resources.iter().map(|(name, amount)| (name.clone(), milli(*amount)));
        let resources = Resources::new(u64::from(config.workers) * 1000, named);
        let core = Core::new(Config {
            incarnation,
            shards,
            name: config.name.clone(),
            resources,
            labels: config.labels.iter().cloned().collect(),
            workers: config.workers,
            linger: config.linger,
            crc: crc32fast::hash,
        });
        let mut store = Depot::new(parts.region.len(), parts.spill.is_some());
        found.iter().for_each(|(_, file)| store.skip_number(file.number));
        let mut life = Life {
            core,
            store,
            region: parts.region.clone(),
            spill_disk: parts.spill.clone(),
            packages: parts.packages.clone(),
            memory: parts.memory.clone(),
            memory_full: config.memory_full,
            waiting: Waiting::default(),
            deeds: Vec::new(),
            found: (!found.is_empty()).then_some(found),
            attached: BTreeSet::new(),
            early_reports: Vec::new(),
            incarnation,
            peers: Peers::new(
                parts.net.clone(),
                inbox.clone(),
                control.clone(),
                cluster,
                parts.packages.clone(),
            ),
            inbox,
            control,
            links,
            open: BTreeMap::new(),
            jobs: BTreeMap::new(),
            streams: Vec::new(),
            holdings: Vec::new(),
            missed: BTreeSet::new(),
            next_transfer: 0,
            fresh: Vec::new(),
            made_anew: Vec::new(),
            outgoing: BTreeMap::new(),
            addresses: BTreeMap::new(),
            early: BTreeMap::new(),
            view_version: 0,
            acted,
            has_elided: false,
            has_buried: false,
            spawned: BTreeMap::new(),
            next_token: 1,
            group_asks: Arc::new(Semaphore::new(ASKS_MAX)),
            shards,
            fenced: false,
            receiver: Some(receiver),
            tasks: JoinSet::new(),
            next_client: 1,
            started: tokio::time::Instant::now(),
        };
        life.start_tasks();
        life
    }

    fn start_tasks(&mut self) {
        for shard in (0..self.shards).map(ShardId) {
            let (sender, batches) = mpsc::unbounded_channel();
            self.streams.push(sender);
            self.tasks.spawn(self.control.clone().run_stream(shard, batches));
            let (sender, held) = mpsc::unbounded_channel();
            self.holdings.push(sender);
            self.tasks.spawn(self.control.clone().run_holdings(shard, held));
        }
        self.tasks.spawn(self.control.clone().run_heartbeats());
        self.tasks.spawn(self.control.clone().run_watch());
        if self.memory.is_some() {
            self.tasks.spawn(memory::run(self.inbox.clone()));
        }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant(self.started.elapsed().as_nanos() as u64)
    }

    async fn run(
        &mut self,
        local: &mut dyn LocalListener,
        spawner: &mut dyn Spawner,
        mut shutdown: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> End {
        let mut receiver = self.receiver.take().expect("a life runs once");
        let mut inputs = Vec::with_capacity(TURN_MAX);
        let mut events: Vec<Event> = Vec::new();
        let mut effects: Vec<Effect> = Vec::new();
        loop {
            let deadline = self.core.deadline().map(|at| self.started + Duration::from_nanos(at.0));
            tokio::select! {
                biased;
                () = &mut shutdown => return End::Shutdown,
                accepted = local.accept() => {
                    match accepted {
                        Ok(stream) => self.accept(stream),
                        // Out of descriptors, say: let what is open go on.
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept a driver or worker");
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    continue;
                }
                n = receiver.recv_many(&mut inputs, TURN_MAX) => if n == 0 { return End::Shutdown },
                () = sleep_until(deadline) => {}
            }
            for input in inputs.drain(..) {
                self.input(input, &mut events);
            }
            if self.fenced {
                return End::Fenced;
            }
            loop {
                let now = self.now();
                self.core.step(events.drain(..), now, &mut effects);
                for effect in effects.drain(..) {
                    self.perform(effect, spawner);
                }
                self.discard_strays();
                self.tell_elided();
                self.turn_store(&mut events);
                // What is not in the store after all is news for the core; mostly there is none.
                if events.is_empty() {
                    break;
                }
            }
            let told = std::mem::take(&mut self.has_buried);
            self.acted.send_if_modified(|acted| {
                *acted = self.view_version;
                // Only deaths are waited for.
                told
            });
            // Finished tasks are forgotten, so that a long life does not remember each.
            while self.tasks.try_join_next().is_some() {}
            let waiting = self.core.unacknowledged();
            self.links.unacknowledged.store(waiting, Ordering::Relaxed);
            if waiting <= UNACKNOWLEDGED_MAX {
                self.links.drained.notify_waiters();
            }
        }
    }

    fn accept(&mut self, stream: mobula_net::Stream) {
        let client = self.next_client;
        self.next_client += 1;
        self.tasks.spawn(links::serve(self.links.clone(), client, stream));
    }

    /// Ends everything of this life: links close, workers die.
    fn stop(&mut self) {
        for link in self.open.values() {
            link.outbox.close();
        }
        for outbox in self.outgoing.values() {
            outbox.close();
        }
        for (_, (_, worker)) in std::mem::take(&mut self.spawned) {
            worker.abort();
        }
        for job in std::mem::take(&mut self.jobs).into_keys() {
            self.forget_packages(job);
        }
        self.tasks.abort_all();
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
