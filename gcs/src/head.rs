//! A head: one process's replicas of all shards, its log, its server.

use crate::bootstrap;
use crate::config::{HeadConfig, Parts};
use crate::duties;
use crate::error::Error;
use crate::hook::Plant;
use crate::identity::{Identity, Lock};
use crate::level::{self, Level};
use crate::log::store::ShardLog;
use crate::log::{LogIdentity, LogWriter, ShardIndex, segments};
use crate::membership::driver;
use crate::metrics::{self, Meters};
use crate::raft::group::Group;
use crate::raft::machine::Machine;
use crate::raft::network::{Dialer, Peers};
use crate::raft::types::{LogId, Raft, SnapshotMeta};
use crate::recall::{self, Durable};
use crate::server::http::serve;
use crate::server::silence;
use crate::server::{Incoming, Running, Site};
use crate::{cold, damage, groups, moves, scrub, snapshot, sweep, witness};
use mobula_base::disk::Disk;
use mobula_base::random::Random;
use mobula_net::seam::Listener;
use mobula_proto as proto;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// How often a running head looks whether it had to stop.
const STOPPED_TICK: Duration = Duration::from_millis(200);
/// Where it listened, a head that begins again must be able to within this.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// A running head. Shut it down with [`Head::shutdown`]; dropping it only ends its tasks.
pub struct Head {
    site: Arc<Site>,
    running: Arc<Running>,
    tasks: Vec<JoinHandle<()>>,
    _lock: Option<Lock>,
}

impl Head {
    /// Starts a head and returns once it knows its cluster: for a fresh head that is when the first
    /// head has heard from all. Must be called inside [`crate::in_scope`].
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(config: HeadConfig, parts: Parts) -> Result<Head, Error> {
        let listener = parts.net.listen(&config.address).await;
        let listener =
            listener.map_err(|source| Error::Listen { address: config.address.clone(), source })?;
        Head::start_on(config, parts, listener).await
    }

    /// As [`Head::start`], on a listener that is already bound.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start_on(
        config: HeadConfig,
        parts: Parts,
        listener: Box<dyn Listener>,
    ) -> Result<Head, Error> {
        let lock = Lock::take(&*parts.disk)?;
        let (disk, peers) = (parts.disk.clone(), !config.join.is_empty());
        let repair = config.repair && peers;
        let offer = Random::new(config.seed).fork("rejoin").next_u64();
        match repair {
            true => damage::begin_again(&*disk, offer)?,
            false => damage::refuse_condemned(&*disk)?,
        }
        let address = listener.address();
        let error = match Head::begin(&config, &parts, listener).await {
            Ok(head) => return Ok(head.holding(lock)),
            Err(error) => error,
        };
        // Alone there is nobody to rejoin: the files stay where they are, for repair by hand.
        if !error.condemns() || !peers {
            return Err(error);
        }
        tracing::error!(%error, "this replica is damaged");
        damage::condemn(&*disk, &error).map_err(|error| Error::storage(damage::MARK, error))?;
        if !repair {
            return Err(damage::refuse_condemned(&*disk).err().unwrap_or(error));
        }
        damage::begin_again(&*disk, offer)?;
        let listener = listen_again(&parts, &config.address, &address).await?;
        Head::begin(&config, &parts, listener).await.map(|head| head.holding(lock))
    }

    fn holding(mut self, lock: Lock) -> Self {
        self._lock = Some(lock);
        self
    }

    async fn begin(config: &HeadConfig, parts: &Parts, listener: Box<dyn Listener>) -> Result<Head, Error> {
        let advertise = match config.advertise.as_str() {
            "" => listener.address(),
            given => given.to_owned(),
        };
        let known = Identity::load(&*parts.disk)?;
        if let Some(known) = &known {
            config.formats.check(known.level, &known.program)?;
        }
        let site = Arc::new(site(config, parts, advertise, known.as_ref())?);
        let mut tasks = Tasks(vec![tokio::spawn(serve(site.clone(), listener))]);
        let identity = match known {
            Some(identity) => {
                bootstrap::check_strangers(&site, &identity, &config.join).await?;
                identity
            }
            None => {
                if !parts.disk.list("log").map_err(|error| Error::storage("log", error))?.is_empty() {
                    let detail = "it is missing, though there is a log".to_owned();
                    return Err(Error::Corrupt { file: "identity".into(), offset: 0, detail });
                }
                let identity = bootstrap::agree(&site, &*parts.disk).await?;
                identity.save(&*parts.disk)?;
                identity
            }
        };
        let running = Arc::new(run(config, parts, &site, identity).await?);
        // Set once, here.
        site.running.set(running.clone()).ok();
        start_duties(config, &site, &running, &parts.disk, &mut tasks.0);
        Ok(Head { site, running, tasks: std::mem::take(&mut tasks.0), _lock: None })
    }

    /// The address others use for this head.
    pub fn address(&self) -> &str {
        &self.site.advertise
    }

    /// Identity of the cluster.
    pub fn cluster_id(&self) -> u64 {
        self.running.identity.cluster
    }

    /// This head's id, from 1.
    pub fn head_id(&self) -> u64 {
        self.running.identity.head
    }

    /// How this head is.
    pub fn status(&self) -> proto::StatusReply {
        self.site.status()
    }

    /// A hash of everything that this head's replica of `shard` has applied, and up to which
    /// index; for comparing replicas.
    pub fn digest(&self, shard: u32) -> (u64, u64) {
        let replica = &self.running.groups[shard as usize].replica;
        let index = *replica.applied().borrow();
        (index, replica.with(|state| state.digest()))
    }

    /// The level of formats that this head writes.
    pub fn writes(&self) -> u32 {
        self.running.level.writes()
    }

    /// Whether this head was removed from its cluster, as far as it knows.
    pub fn was_removed(&self) -> bool {
        self.running.notes.removed.get().is_some()
    }

    /// Terms of the shards that this head leads, or believes to lead: nothing is done on the strength
    /// of it.
    pub fn offices(&self) -> Vec<(u32, u64)> {
        self.running.groups.iter().filter_map(|group| Some((group.shard, group.office()?))).collect()
    }

    /// Why a replica of this head had to stop, if one did.
    pub fn stopped(&self) -> Option<(u32, String)> {
        self.running.groups.iter().find_map(|group| {
            let why = self.running.log.stopped().or_else(|| group.progress().stopped)?;
            Some((group.shard, why))
        })
    }

    /// Runs until `until` ends, then shuts down.
    ///
    /// # Errors
    /// A replica had to stop: nothing acknowledged is lost, but this head no longer helps.
    pub async fn run_until_shutdown(self, until: impl Future<Output = ()>) -> Result<(), Error> {
        let stopped = async {
            loop {
                tokio::time::sleep(STOPPED_TICK).await;
                if self.was_removed() {
                    let Identity { head, cluster, .. } = self.running.identity;
                    return Error::Removed { head, cluster };
                }
                if let Some((shard, detail)) = self.stopped() {
                    return Error::Stopped { shard, detail };
                }
            }
        };
        let result = tokio::select! {
            biased;
            () = until => Ok(()),
            error = stopped => Err(error),
        };
        self.shutdown().await;
        result
    }

    /// Stops answering, then stops every replica, then closes the log.
    pub async fn shutdown(mut self) {
        self.abort();
        for task in std::mem::take(&mut self.tasks) {
            // It was cancelled; waiting makes sure that its connections are closed.
            task.await.ok();
        }
        for group in self.running.groups.iter() {
            group.raft.shutdown().await.ok();
        }
        self.running.log.close().await;
    }

    fn abort(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Tasks that end with the attempt to start.
struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Checks the settings.
fn site(
    config: &HeadConfig,
    parts: &Parts,
    advertise: String,
    known: Option<&Identity>,
) -> Result<Site, Error> {
    if config.shards == 0 {
        return Err(Error::Config("0 shards: use at least 1".into()));
    }
    let mut founders = config.join.clone();
    if let Some(known) = known {
        if known.shards != config.shards {
            let (theirs, ours) = (known.shards, config.shards);
            return Err(Error::ShardMismatch { peer: "this data directory".into(), theirs, ours });
        }
        let ours = |address: &&String| known.founders.contains(address) || **address == advertise;
        if let Some(stranger) = config.join.first().filter(|_| !config.join.iter().any(|a| ours(&a))) {
            return Err(bootstrap::foreign(known, stranger));
        }
        founders.clone_from(&known.founders);
        let owner = known.founders.get((known.head as usize).wrapping_sub(1));
        if owner.is_some_and(|owner| *owner != advertise) && !parts.hook.has(Plant::TakeAnyDisk) {
            return Err(Error::Config(format!(
                "this data directory is that of head {} at {}, and this head is {advertise}: two heads with one \
                 directory's votes could elect two leaders; give each head its own directory back",
                known.head,
                owner.map_or("", String::as_str)
            )));
        }
    } else if founders.is_empty() {
        founders.push(advertise.clone());
    }
    founders.sort();
    founders.dedup();
    // A list without this head is that of a cluster it is to join.
    let place = founders.iter().position(|address| *address == advertise);
    if known.is_none() && place.is_some() && founders.len().is_multiple_of(2) {
        return Err(Error::EvenHeads(founders.len()));
    }
    Ok(Site {
        offer: Random::new(config.seed).fork(&advertise).next_u64(),
        advertise,
        founders,
        shards: config.shards,
        head: known.map_or(place.map_or(0, |place| place as u64 + 1), |known| known.head),
        net: parts.net.clone(),
        disk: parts.disk.clone(),
        running: OnceLock::new(),
        hook: parts.hook.clone(),
        meters: Meters::default(),
        formats: config.formats.clone(),
        repair: config.repair,
        pages: config.pages.clone(),
    })
}

/// Listens where an attempt to start did that is only now letting go.
async fn listen_again(parts: &Parts, wanted: &str, had: &str) -> Result<Box<dyn Listener>, Error> {
    // A port that was chosen by the system must be the same again.
    let address = if wanted.ends_with(":0") { had } else { wanted };
    let until = tokio::time::Instant::now() + LISTEN_AGAIN;
    loop {
        match parts.net.listen(address).await {
            Ok(listener) => return Ok(listener),
            Err(_) if tokio::time::Instant::now() < until => tokio::time::sleep(STOPPED_TICK).await,
            Err(source) => return Err(Error::Listen { address: address.to_owned(), source }),
        }
    }
}

/// Opens the files, asks the others whether they are all that they were, and starts every shard.
async fn run(
    config: &HeadConfig,
    parts: &Parts,
    site: &Site,
    mut identity: Identity,
) -> Result<Running, Error> {
    let disk = parts.disk.clone();
    let trusts = parts.hook.has(Plant::TrustDisk);
    if identity.begun && !trusts && segments::list(&*disk)?.is_empty() {
        let detail = "there is none, though this head has begun one".to_owned();
        return Err(Error::Corrupt { file: segments::DIR.into(), offset: 0, detail });
    }
    snapshot::prepare(&*disk)?;
    // Before any replica runs on the strength of them.
    let newest = (0..identity.shards).map(|shard| snapshot::newest(&*disk, shard));
    let newest: Vec<Option<SnapshotMeta>> = newest.collect::<Result<_, _>>()?;
    let stores = cold::open(&disk, identity.shards).map_err(|error| Error::storage(cold::DIR, error))?;
    let whose = LogIdentity { cluster: identity.cluster, head: identity.head };
    let (log, mut found) = LogWriter::open(disk.clone(), whose)?;
    if !trusts && let Err(error) = is_all_there(config, parts, site, &identity, &newest, &found).await {
        log.close().await;
        return Err(error);
    }
    if !identity.begun {
        identity.begun = true;
        identity.save(&*disk)?;
    }
    let level = Arc::new(Level::new(config.formats.clone(), disk.clone(), identity.clone()));
    let peers = Peers::new(parts.net.clone(), identity.cluster, level.clone());
    let turns = Arc::new(Semaphore::new(1));
    let mut groups = Vec::new();
    for (shard, store) in (0..identity.shards).zip(&stores) {
        let (timing, level) = (config.timing.clone(), level.clone());
        let (machine, replica) = Machine::new(shard, disk.clone(), store.clone(), timing, level);
        let machine = machine.watched(parts.hook.clone()).taking_turns(turns.clone());
        let machine = machine.measured(site.meters.snapshot_seconds());
        let entries =
            ShardLog::new(shard, found.remove(&shard).unwrap_or_default(), disk.clone(), log.clone());
        let entries = entries.watched(parts.hook.clone());
        let dialer = Dialer { peers: peers.clone(), shard, disk: disk.clone() };
        let raft = Raft::new(identity.head, config.timing.config()?, dialer, entries, machine).await;
        let raft = raft.map_err(|error| why_not(&*disk, shard, error.to_string()))?;
        let patience = config.timing.election();
        let group = Group::new(shard, raft, replica, patience, log.clone(), &parts.hook);
        groups.push(Arc::new(group));
    }
    let incoming = stores.into_iter().map(|store| Incoming::new(disk.clone(), store)).collect();
    Ok(Running::new(identity, groups, log, incoming, peers, level))
}

/// Why a replica did not start: cold files that are missing or damaged are found only then.
fn why_not(disk: &dyn Disk, shard: u32, detail: String) -> Error {
    match snapshot::verify(disk, shard) {
        Err(error @ Error::Corrupt { .. }) => error,
        Err(error) if scrub::is_gone(&error) => {
            Error::Corrupt { file: cold::DIR.into(), offset: 0, detail: error.to_string() }
        }
        _ => Error::Stopped { shard, detail },
    }
}

/// Whether the disk is at least where it was: nothing is missing between snapshots and log, nor what
/// the other heads have been told of.
async fn is_all_there(
    config: &HeadConfig,
    parts: &Parts,
    site: &Site,
    identity: &Identity,
    newest: &[Option<SnapshotMeta>],
    found: &BTreeMap<u32, ShardIndex>,
) -> Result<(), Error> {
    let mut others: BTreeSet<String> = site.founders.iter().chain(&config.join).cloned().collect();
    let mut here = BTreeMap::new();
    for (shard, index) in found {
        let newest = newest.get(*shard as usize).and_then(Option::as_ref);
        let covered = newest.and_then(|meta| meta.last_log_id);
        if index.purged > covered {
            let at = |id: Option<LogId>| id.map_or(0, |id| id.index);
            let (begins, covers) = (at(index.purged), at(covered));
            let detail = format!(
                "the log of shard {shard} begins after entry {begins}, its snapshot ends at {covers}"
            );
            return Err(Error::Corrupt { file: snapshot::DIR.into(), offset: 0, detail });
        }
        let term = index.vote.as_ref().map_or(0, |vote| vote.leader_id.term);
        here.insert(*shard, Durable { term, last: index.last.max(covered) });
        let named = newest.into_iter().flat_map(|meta| meta.last_membership.nodes());
        others.extend(named.map(|(_, node)| node.addr.clone()).chain(index.members()));
    }
    others.remove(&site.advertise);
    recall::check(&parts.net, identity.cluster, identity.head, others, &here).await
}

fn start_duties(
    config: &HeadConfig,
    site: &Arc<Site>,
    running: &Arc<Running>,
    disk: &Arc<dyn Disk>,
    tasks: &mut Vec<JoinHandle<()>>,
) {
    let (me, cluster) = (running.identity.head, running.identity.cluster);
    if me == 1 {
        tasks.push(tokio::spawn(bootstrap::initialize(site.clone(), cluster, running.groups.clone())));
    }
    tasks.push(tokio::spawn(driver::follow(site.clone(), running.clone())));
    tasks.push(tokio::spawn(recall::listen(running.clone())));
    tasks.push(tokio::spawn(level::keep(site.clone(), running.clone())));
    tasks.push(tokio::spawn(driver::notice_removal(site.clone(), running.clone())));
    tasks.push(tokio::spawn(driver::conclude(running.clone(), site.net.clone())));
    tasks.push(tokio::spawn(moves::driver::drive(running.clone())));
    tasks.push(tokio::spawn(groups::driver::drive(running.clone())));
    for shard in 0..running.identity.shards {
        tasks.push(tokio::spawn(driver::reconcile(running.clone(), site.net.clone(), shard)));
        tasks.push(tokio::spawn(witness::watch(running.clone(), site.net.clone(), shard)));
        tasks.push(tokio::spawn(duties::wake(running.clone(), site.net.clone(), shard)));
    }
    tasks.push(tokio::spawn(metrics::observe(site.clone(), running.clone())));
    let silence = Duration::from_millis(config.node_silence_ms);
    tasks.push(tokio::spawn(duties::watch_nodes(site.clone(), running.clone(), silence)));
    for shard in 0..running.identity.shards {
        tasks.push(tokio::spawn(sweep::sweep(running.clone(), shard)));
        tasks.push(tokio::spawn(sweep::deliver(running.clone(), site.net.clone(), shard)));
        tasks.push(tokio::spawn(duties::fence(running.clone(), shard)));
        let after = Duration::from_millis(config.report_silence_ms);
        tasks.push(tokio::spawn(silence::watch(site.clone(), running.clone(), shard, after)));
        let after = Duration::from_millis(config.forget_after_ms);
        tasks.push(tokio::spawn(duties::forget(running.clone(), shard, after)));
    }
    if config.timing.rebalance_ms > 0 {
        let stable_for = Duration::from_millis(config.timing.rebalance_ms);
        tasks.push(tokio::spawn(duties::spread(running.clone(), site.net.clone(), stable_for)));
    }
    tasks.push(tokio::spawn(duties::recycle(running.clone(), config.timing.keep_entries)));
    tasks.push(tokio::spawn(scrub::forever(running.clone(), disk.clone(), config.join.is_empty())));
}
