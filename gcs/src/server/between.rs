//! Raft's messages, as they arrive from other heads.

use super::Service;
use crate::log::record::{pack, unpack};
use crate::raft::group::Group;
use crate::raft::network::SnapshotPart;
use crate::raft::types::{Snapshot, SnapshotMeta, Vote};
use bytes::BytesMut;
use mobula_proto as proto;
use openraft::raft::SnapshotResponse;
use proto::raft_server::Raft;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::{Arc, Mutex};
use tonic::{Request, Response, Status};

type Answer = Result<Response<proto::RaftMessage>, Status>;

/// The snapshot that is arriving for one shard; a new one replaces it.
#[derive(Default)]
pub struct Incoming(Mutex<Option<Partial>>);

struct Partial {
    vote: Vote,
    meta: SnapshotMeta,
    data: BytesMut,
}

impl Incoming {
    /// Adds a part; whether it fitted.
    fn add(&self, part: &SnapshotPart) -> bool {
        let mut slot = self.0.lock().expect("nothing panics under this lock");
        if part.offset == 0 {
            *slot = Some(Partial { vote: part.vote, meta: part.meta.clone(), data: BytesMut::new() });
        }
        let Some(partial) = slot.as_mut() else { return false };
        let fits = partial.vote == part.vote
            && partial.meta == part.meta
            && partial.data.len() as u64 == part.offset;
        if fits {
            partial.data.extend_from_slice(&part.data);
        }
        fits
    }

    fn take(&self) -> Option<Partial> {
        self.0.lock().expect("nothing panics under this lock").take()
    }
}

impl Service {
    fn group_of(&self, message: &proto::RaftMessage) -> Result<&Arc<Group>, Status> {
        self.shard(message.cluster, message.shard).map(|(_, group)| group).map_err(Status::unavailable)
    }
}

fn read<T: DeserializeOwned>(message: &proto::RaftMessage) -> Result<T, Status> {
    unpack(&message.payload).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn answer(value: &impl Serialize) -> Answer {
    Ok(Response::new(proto::RaftMessage { payload: pack(value), ..Default::default() }))
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl Raft for Service {
    async fn append(&self, request: Request<proto::RaftMessage>) -> Answer {
        let message = request.into_inner();
        let group = self.group_of(&message)?;
        answer(&group.raft.append_entries(read(&message)?).await.map_err(stopped)?)
    }

    async fn vote(&self, request: Request<proto::RaftMessage>) -> Answer {
        let message = request.into_inner();
        let group = self.group_of(&message)?;
        answer(&group.raft.vote(read(&message)?).await.map_err(stopped)?)
    }

    async fn pre_vote(&self, request: Request<proto::RaftMessage>) -> Answer {
        let message = request.into_inner();
        let group = self.group_of(&message)?;
        answer(&group.raft.pre_vote(read(&message)?).await.map_err(stopped)?)
    }

    async fn snapshot(&self, request: Request<proto::RaftMessage>) -> Answer {
        let message = request.into_inner();
        let group = self.group_of(&message)?;
        let (running, _) = self.shard(message.cluster, message.shard).map_err(Status::unavailable)?;
        let incoming = &running.incoming[message.shard as usize];
        let part: SnapshotPart = read(&message)?;
        if !incoming.add(&part) {
            return Err(Status::aborted("this part of the snapshot does not follow what is here"));
        }
        let whole = if part.last { incoming.take() } else { None };
        let Some(whole) = whole else {
            return answer(&None::<SnapshotResponse<crate::raft::types::Types>>);
        };
        let snapshot = Snapshot { meta: whole.meta, snapshot: whole.data.freeze() };
        answer(&Some(group.raft.install_full_snapshot(whole.vote, snapshot).await.map_err(stopped)?))
    }

    async fn transfer(&self, request: Request<proto::RaftMessage>) -> Answer {
        let message = request.into_inner();
        let group = self.group_of(&message)?;
        answer(&group.raft.handle_transfer_leader(read(&message)?).await.map_err(stopped)?)
    }

    async fn probe(
        &self,
        _request: Request<proto::ProbeRequest>,
    ) -> Result<Response<proto::ProbeReply>, Status> {
        let site = &self.0;
        let running = site.running.get();
        let (mut initialized, mut join) = (false, site.founders.clone());
        if let Some(running) = running {
            let heads: Vec<String> = running.root().heads().into_iter().map(|head| head.address).collect();
            initialized = running.groups.iter().any(|group| !group.heads().is_empty());
            if !heads.is_empty() {
                join = heads;
            }
        }
        Ok(Response::new(proto::ProbeReply {
            head: site.head,
            cluster: running.map_or(0, |running| running.identity.cluster),
            initialized,
            join,
            identity: site.offer,
            shards: site.shards,
        }))
    }
}
