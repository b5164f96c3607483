//! What a head answers. Every outcome a caller must act on travels inside the reply; a gRPC error
//! only ever means that the head could not be asked.
//!
//! Read it in this order: this file (what handlers share, and `Propose`), `stream` (many proposals over
//! one connection), [`soft`] (who holds what), [`silence`] (who does not say),
//! `locate`, [`liveness`] (heartbeats), `views` (the cluster, read, status), `watch` (changes of keys),
//! `between` (Raft's messages), [`admin`] and `slots` (what operators ask), `dump` (backups), [`http`] (everything on
//! one port, behind the token), [`health`] (whether this head is of use).

pub mod admin;
mod between;
mod dump;
pub mod health;
pub mod http;
mod leader;
pub mod liveness;
mod locate;
pub mod silence;
mod slots;
pub mod soft;
mod stream;
mod views;
mod watch;

pub use views::resident_bytes;

use crate::core::locate::Members;
use crate::hook::SharedHook;
use crate::identity::Identity;
use crate::level::{Formats, Level};
use crate::log::LogWriter;
use crate::membership::driver::Notes;
use crate::metrics::Meters;
use crate::raft::failover::Alarms;
use crate::raft::group::{Group, Leader, NotDone};
use crate::raft::network::Peers;
use crate::recall::Memory;
pub use between::Incoming;
use liveness::Liveness;
use mobula_base::disk::Disk;
use mobula_net::http::Pages;
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use prost::Message;
use proto::control_store_server::ControlStore;
use proto::propose_reply::Result as Proposed;
use soft::Soft;
use std::sync::{Arc, Mutex, OnceLock};
use tonic::{Request, Response, Status};

/// What a head knows from its start on.
pub struct Site {
    /// The address other heads and clients use for this head.
    pub advertise: String,
    /// Addresses of all founding heads, sorted.
    pub founders: Vec<String>,
    /// Number of shards it is configured with.
    pub shards: u32,
    /// This head's tentative id.
    pub head: u64,
    /// Offered to the others until the cluster has an identity.
    pub offer: u64,
    /// The network.
    pub net: SharedNet,
    /// The data directory.
    pub disk: Arc<dyn Disk>,
    /// Set once this head knows its cluster.
    pub running: OnceLock<Arc<Running>>,
    /// Who watches.
    pub hook: SharedHook,
    /// What is counted for operators.
    pub meters: Meters,
    /// What this program reads.
    pub formats: Formats,
    /// Whether it asks to be taken back.
    pub repair: bool,
    /// What its port answers beside.
    pub pages: Pages,
}

/// What a head has once it is part of a cluster.
pub struct Running {
    /// Which cluster and head this is.
    pub identity: Identity,
    /// One per shard.
    pub groups: Arc<Vec<Arc<Group>>>,
    /// Soft state, one per shard.
    pub soft: Vec<Soft>,
    /// Soft state of shard 0's leader.
    pub liveness: Liveness,
    /// On shard 0's leader: what was said of members that do not report.
    bench: silence::Bench,
    /// The log of all shards.
    pub log: LogWriter,
    /// What may be written.
    pub level: Arc<Level>,
    /// What the other heads have acknowledged to this one.
    pub memory: Memory,
    /// Connections to the other heads.
    pub peers: Peers,
    /// Heads that were proven dead.
    pub alarms: Alarms,
    /// How changes of the heads go on.
    pub notes: Notes,
    incoming: Vec<Incoming>,
    members: Mutex<Arc<Members>>,
}

impl Running {
    /// Nothing is known yet beyond what the groups hold.
    pub fn new(
        identity: Identity,
        groups: Vec<Arc<Group>>,
        log: LogWriter,
        incoming: Vec<Incoming>,
        peers: Peers,
        level: Arc<Level>,
    ) -> Self {
        Running {
            identity,
            soft: groups.iter().map(|_| Soft::default()).collect(),
            liveness: Liveness::default(),
            bench: silence::Bench::default(),
            notes: Notes::default(),
            incoming,
            groups: Arc::new(groups),
            log,
            level,
            memory: Memory::default(),
            peers,
            alarms: Alarms::default(),
            members: Mutex::default(),
        }
    }

    /// Shard 0.
    pub fn root(&self) -> &Group {
        &self.groups[0]
    }

    /// Who lives and who does not.
    pub fn members(&self) -> Arc<Members> {
        let mut known = self.members.lock().expect("nothing panics under this lock");
        let fresh = self
            .root()
            .replica
            .with(|state| (state.cluster.version != known.version).then(|| Members::of(&state.cluster)));
        if let Some(fresh) = fresh {
            *known = Arc::new(fresh);
        }
        known.clone()
    }
}

/// Answers calls for a head.
#[derive(Clone)]
pub struct Service(pub Arc<Site>);

/// Who to ask instead.
pub(crate) fn not_leader(leader: Option<Leader>) -> proto::NotLeader {
    match leader {
        Some(leader) => proto::NotLeader { known: true, head: leader.head, address: leader.address },
        None => proto::NotLeader::default(),
    }
}

impl Service {
    /// The running head, for a caller that believes to talk to `cluster` (0: does not care).
    fn running(&self, cluster: u64) -> Result<&Arc<Running>, String> {
        let Some(running) = self.0.running.get() else {
            return Err("this head is still starting".into());
        };
        let ours = running.identity.cluster;
        if cluster != 0 && cluster != ours {
            return Err(format!("this head belongs to cluster {ours:016x}, not to {cluster:016x}"));
        }
        Ok(running)
    }

    fn shard(&self, cluster: u64, shard: u32) -> Result<(&Arc<Running>, &Arc<Group>), String> {
        let running = self.running(cluster)?;
        let group = running.groups.get(shard as usize);
        let missing = || format!("no shard {shard}: this cluster has {}", running.groups.len());
        Ok((running, group.ok_or_else(missing)?))
    }

    /// Whether a refusal passes by itself.
    fn starting(&self) -> bool {
        self.0.running.get().is_none()
    }

    async fn proposed(&self, request: proto::ProposeRequest) -> Proposed {
        let (shard, since) = (request.shard, tokio::time::Instant::now());
        let result = self.propose_here(request).await;
        self.0.meters.proposed(shard, &result, since.elapsed());
        result
    }

    async fn propose_here(&self, request: proto::ProposeRequest) -> Proposed {
        let group = match self.shard(request.cluster, request.shard) {
            Ok((_, group)) => group,
            Err(why) if self.starting() => return Proposed::Busy(why),
            Err(why) => return Proposed::Refused(why),
        };
        match group.propose(request.command).await {
            Ok(answer) => match proto::Reply::decode(answer) {
                Ok(reply) if reply.reply.is_some() => Proposed::Reply(reply),
                _ => Proposed::Refused("the command is malformed".into()),
            },
            Err(NotDone::NotLeader(leader)) => Proposed::NotLeader(not_leader(leader)),
            Err(NotDone::Busy(why)) => Proposed::Busy(why),
            Err(NotDone::Unknown(why)) => Proposed::Unknown(why),
        }
    }
}

#[tonic::async_trait]
impl ControlStore for Service {
    async fn propose(
        &self,
        request: Request<proto::ProposeRequest>,
    ) -> Result<Response<proto::ProposeReply>, Status> {
        let result = Some(self.proposed(request.into_inner()).await);
        Ok(Response::new(proto::ProposeReply { result }))
    }

    type ProposeStreamStream = stream::Replies;

    async fn propose_stream(
        &self,
        request: Request<tonic::Streaming<proto::ProposeMany>>,
    ) -> Result<Response<Self::ProposeStreamStream>, Status> {
        Ok(Response::new(stream::serve(self.clone(), request.into_inner())))
    }

    async fn locate(
        &self,
        request: Request<proto::LocateRequest>,
    ) -> Result<Response<proto::LocateReply>, Status> {
        let result = Some(self.located(request.into_inner()).await);
        Ok(Response::new(proto::LocateReply { result }))
    }

    async fn holding(
        &self,
        request: Request<proto::HoldingRequest>,
    ) -> Result<Response<proto::HoldingReply>, Status> {
        let report = request.into_inner();
        let result = self.held(&report);
        let drop = self.to_drop(&report, &result);
        Ok(Response::new(proto::HoldingReply { result: Some(result), drop }))
    }

    async fn heartbeat(
        &self,
        request: Request<proto::HeartbeatRequest>,
    ) -> Result<Response<proto::HeartbeatReply>, Status> {
        let result = Some(self.beaten(&request.into_inner()));
        Ok(Response::new(proto::HeartbeatReply { result }))
    }

    async fn suspect(
        &self,
        request: Request<proto::SuspectRequest>,
    ) -> Result<Response<proto::SuspectReply>, Status> {
        let result = Some(self.suspected(request.into_inner()).await);
        Ok(Response::new(proto::SuspectReply { result }))
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<proto::WatchReply>, Status> {
        let result = Some(self.watched(request.into_inner()).await);
        Ok(Response::new(proto::WatchReply { result }))
    }

    async fn read(&self, request: Request<proto::ReadRequest>) -> Result<Response<proto::ReadReply>, Status> {
        let result = Some(self.read_fresh(request.into_inner()).await);
        Ok(Response::new(proto::ReadReply { result }))
    }

    async fn kv_watch(
        &self,
        request: Request<proto::KvWatchRequest>,
    ) -> Result<Response<proto::KvWatchReply>, Status> {
        let result = Some(self.kv_watched(request.into_inner()).await);
        Ok(Response::new(proto::KvWatchReply { result }))
    }

    async fn leader(
        &self,
        request: Request<proto::LeaderRequest>,
    ) -> Result<Response<proto::LeaderReply>, Status> {
        Ok(Response::new(self.led(request.into_inner()).await))
    }

    async fn status(
        &self,
        _request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusReply>, Status> {
        Ok(Response::new(self.0.status()))
    }
}
