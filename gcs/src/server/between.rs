//! Raft's messages, as they arrive from other heads.

use super::Service;
use crate::cold::{self, FileStore, Manifest};
use crate::core::silence::{Accusation, Verdict};
use crate::log::record::{pack, unpack};
use crate::raft::failover;
use crate::raft::group::Group;
use crate::raft::network::{SnapshotPart, give_commands};
use crate::raft::types::{Snapshot, SnapshotMeta, Types, Vote};
use crate::snapshot::{self, Parcel};
use bytes::BytesMut;
use futures::StreamExt;
use mobula_base::disk::Disk;
use mobula_net::pipe;
use mobula_proto as proto;
use openraft::raft::{SnapshotResponse, TransferLeaderRequest, VoteRequest};
use proto::raft_server::Raft;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::sync::Arc;
use tonic::{Request, Response, Status};

type Answer = Result<Response<proto::RaftMessage>, Status>;

/// Where the snapshot of one shard arrives; a new one replaces it.
pub struct Incoming {
    disk: Arc<dyn Disk>,
    store: Arc<FileStore>,
    partial: tokio::sync::Mutex<Option<Partial>>,
}

/// A snapshot of which some parts have come.
struct Partial {
    vote: Vote,
    meta: SnapshotMeta,
    dump: BytesMut,
    cold: Manifest,
    /// The sender's number of each file, and ours.
    numbers: Vec<u64>,
    /// What the next part must be: of which file, from where on.
    next: (u32, u64),
}

impl Incoming {
    /// Nothing has come yet.
    pub fn new(disk: Arc<dyn Disk>, store: Arc<FileStore>) -> Self {
        Incoming { disk, store, partial: tokio::sync::Mutex::default() }
    }

    /// Adds a part; the whole snapshot with the last one. `Err(None)`: it does not fit.
    async fn add(
        &self,
        shard: u32,
        part: SnapshotPart,
    ) -> Result<Option<(Vote, Snapshot)>, Option<io::Error>> {
        let mut slot = self.partial.lock().await;
        if (part.file, part.offset) == (0, 0) {
            self.store.expect_nothing();
            *slot = Some(Partial {
                vote: part.vote,
                meta: part.meta.clone(),
                dump: BytesMut::new(),
                numbers: part.cold.files.iter().map(|_| self.store.expect_file()).collect(),
                cold: part.cold.clone(),
                next: (0, 0),
            });
        }
        let Some(partial) = slot.as_mut() else { return Err(None) };
        let fits = partial.vote == part.vote
            && partial.meta == part.meta
            && partial.next == (part.file, part.offset);
        if !fits {
            return Err(None);
        }
        partial.next = match part.ends_file {
            true => (part.file + 1, 0),
            false => (part.file, part.offset + part.data.len() as u64),
        };
        match part.file {
            0 => partial.dump.extend_from_slice(&part.data),
            file => {
                let number = partial.numbers.get(file as usize - 1).copied().ok_or(None)?;
                let (offset, data, ends) = (part.offset, part.data, part.ends_file);
                let write = move |disk: &dyn Disk| {
                    let mut file = disk.open(&cold::path(shard, number), true)?;
                    file.write_at(offset, &data)?;
                    if ends { file.sync() } else { Ok(()) }
                };
                snapshot::on_disk(self.disk.clone(), write).await.map_err(Some)?;
            }
        }
        if partial.next != (partial.numbers.len() as u32 + 1, 0) {
            return Ok(None);
        }
        snapshot::on_disk(self.disk.clone(), |disk| disk.sync_dir(cold::DIR)).await.map_err(Some)?;
        let Some(mut whole) = slot.take() else { return Ok(None) };
        for (file, number) in whole.cold.files.iter_mut().zip(whole.numbers) {
            file.number = number;
        }
        let snapshot = Parcel { dump: whole.dump.freeze(), cold: whole.cold };
        Ok(Some((whole.vote, Snapshot { meta: whole.meta, snapshot })))
    }
}

impl Service {
    fn group_of(&self, message: &proto::RaftMessage) -> Result<&Arc<Group>, Status> {
        let (running, group) = self.shard(message.cluster, message.shard).map_err(Status::unavailable)?;
        let me = running.identity.head;
        if message.to != 0 && message.to != me {
            return Err(Status::unavailable(format!("this is head {me}, not head {}", message.to)));
        }
        // What it brings may be written to the disk, so what may be there is noted first.
        if message.level > running.level.writes() {
            running.level.reach(message.level, "").map_err(stopped)?;
        }
        Ok(group)
    }
}

impl Service {
    async fn appended(&self, mut message: proto::RaftMessage) -> Result<proto::RaftMessage, Status> {
        let group = self.group_of(&message)?;
        let mut rpc = read(&message)?;
        if !give_commands(&mut rpc, std::mem::take(&mut message.commands)) {
            return Err(Status::invalid_argument("entries and commands do not match"));
        }
        group.grounds.hear();
        let answer = group.raft.append_entries(rpc).await.map_err(stopped)?;
        Ok(proto::RaftMessage { payload: pack(&answer), ..Default::default() })
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
    type AppendStream = pipe::Replies<proto::RaftMany>;

    async fn append(
        &self,
        request: Request<tonic::Streaming<proto::RaftMany>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let untagged = |asked: proto::TaggedRaft| (asked.tag, asked.message.unwrap_or_default());
        let many = move |many: proto::RaftMany| many.messages.into_iter().map(untagged).collect();
        let service = self.clone();
        let answer = move |message| {
            let service = service.clone();
            async move { service.appended(message).await }
        };
        let tagged = |(tag, answer): (u64, Result<proto::RaftMessage, Status>)| match answer {
            Ok(message) => proto::TaggedRaft { tag, message: Some(message), refused: String::new() },
            Err(status) => proto::TaggedRaft { tag, message: None, refused: status.message().to_owned() },
        };
        let requests = request.into_inner().map(move |message| message.map(many)).boxed();
        let wrap =
            move |many: pipe::Many<_>| proto::RaftMany { messages: many.into_iter().map(tagged).collect() };
        Ok(Response::new(pipe::serve(requests, answer, wrap)))
    }

    async fn vote(&self, request: Request<proto::RaftMessage>) -> Answer {
        let message = request.into_inner();
        let group = self.group_of(&message)?;
        let request: VoteRequest<Types> = read(&message)?;
        let (term, candidate) = (request.vote.leader_id.term, request.vote.leader_id.node_id);
        let response = group.raft.vote(request).await.map_err(stopped)?;
        if response.vote_granted {
            self.0.hook.granted(group.shard, term, candidate);
        }
        answer(&response)
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
        let whole = match incoming.add(message.shard, read(&message)?).await {
            Ok(Some(whole)) => whole,
            Ok(None) => return answer(&None::<SnapshotResponse<crate::raft::types::Types>>),
            Err(None) => {
                return Err(Status::aborted("this part of the snapshot does not follow what is here"));
            }
            Err(Some(error)) => {
                return Err(Status::unavailable(format!("the snapshot cannot be written here: {error}")));
            }
        };
        answer(&Some(group.raft.install_full_snapshot(whole.0, whole.1).await.map_err(stopped)?))
    }

    async fn transfer(&self, request: Request<proto::RaftMessage>) -> Answer {
        let message = request.into_inner();
        let group = self.group_of(&message)?;
        let request: TransferLeaderRequest<Types> = read(&message)?;
        // A leader that hands over says to whom; a survivor that nominates addresses nobody.
        let by_survivor = message.to == 0;
        group.grounds.ask(request.from_leader().leader_id.term, by_survivor);
        answer(&group.raft.handle_transfer_leader(request).await.map_err(stopped)?)
    }

    async fn standing(&self, request: Request<proto::RaftMessage>) -> Answer {
        let group = self.group_of(&request.into_inner())?;
        answer(&failover::standing(group).await.map_err(stopped)?)
    }

    async fn recall(
        &self,
        request: Request<proto::RecallRequest>,
    ) -> Result<Response<proto::RecallReply>, Status> {
        let request = request.into_inner();
        // A head that is still starting has led nothing, and remembers nothing.
        let shards = match self.running(request.cluster) {
            Ok(running) => running.memory.of(request.head),
            Err(_) => Vec::new(),
        };
        Ok(Response::new(proto::RecallReply { shards }))
    }

    async fn accuse(
        &self,
        request: Request<proto::AccuseRequest>,
    ) -> Result<Response<proto::AccuseReply>, Status> {
        let proto::AccuseRequest { cluster, shard, member, by, has_heir } = request.into_inner();
        let running = self.running(cluster).map_err(Status::unavailable)?;
        let verdict = running.accused(Accusation { shard, member, by, has_heir }).await;
        Ok(Response::new(proto::AccuseReply { hand_over: verdict == Verdict::HandOver }))
    }

    async fn probe(
        &self,
        _request: Request<proto::ProbeRequest>,
    ) -> Result<Response<proto::ProbeReply>, Status> {
        let site = &self.0;
        let running = site.running.get();
        let (mut initialized, mut join) = (false, site.founders.clone());
        let (mut level, mut program) = (0, String::new());
        if let Some(running) = running {
            let heads: Vec<String> = running.root().heads().into_iter().map(|head| head.address).collect();
            (level, program) = running.root().replica.with(|state| state.cluster.level());
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
            oldest: site.formats.oldest,
            newest: site.formats.newest,
            level,
            program,
        }))
    }
}
