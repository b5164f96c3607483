//! Raft's messages between heads: postcard inside gRPC, each under its deadline.

use super::types::{Snapshot, SnapshotMeta, Types, Vote};
use crate::log::record::{pack, unpack};
use bytes::Bytes;
use mobula_net::grpc;
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend};
use proto::raft_client::RaftClient;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tonic::transport::Channel;

/// Bytes of a dump per message.
const SNAPSHOT_CHUNK: usize = 4 << 20;
/// One chunk of a snapshot must arrive and be acknowledged within this.
const CHUNK_DEADLINE: Duration = Duration::from_secs(10);

/// Part of a snapshot on its way to a follower.
#[derive(Serialize, Deserialize)]
pub struct SnapshotPart {
    /// The leader's vote.
    pub vote: Vote,
    /// What the snapshot covers.
    pub meta: SnapshotMeta,
    /// Where this part starts, in bytes.
    pub offset: u64,
    /// Whether it is the last.
    pub last: bool,
    /// The bytes.
    pub data: Bytes,
}

/// Connections to the other heads, shared by all shards. A connection that missed a deadline is
/// dropped and dialled anew: it may be half open.
#[derive(Clone)]
pub struct Peers {
    net: SharedNet,
    cluster: u64,
    open: Arc<Mutex<BTreeMap<String, (u64, Channel)>>>,
}

impl Peers {
    /// No connections yet.
    pub fn new(net: SharedNet, cluster: u64) -> Self {
        Peers { net, cluster, open: Arc::default() }
    }

    fn channel(&self, address: &str) -> Result<(u64, Channel), tonic::transport::Error> {
        let mut open = self.open.lock().expect("nothing panics under this lock");
        if let Some((number, Some(channel))) = open.get(address).map(|(n, c)| (*n, Some(c.clone()))) {
            return Ok((number, channel));
        }
        let channel = grpc::channel(self.net.clone(), address)?;
        open.insert(address.to_owned(), (0, channel.clone()));
        Ok((0, channel))
    }

    /// Replaces connection `number` to `address`, unless someone else has.
    fn renew(&self, address: &str, number: u64) {
        let Ok(fresh) = grpc::channel(self.net.clone(), address) else { return };
        let mut open = self.open.lock().expect("nothing panics under this lock");
        if let Some(entry) = open.get_mut(address).filter(|entry| entry.0 == number) {
            *entry = (number + 1, fresh);
        }
    }
}

/// Makes connections for one shard.
pub struct Dialer {
    /// All connections of the head.
    pub peers: Peers,
    /// The shard.
    pub shard: u32,
}

impl RaftNetworkFactory<Types> for Dialer {
    type Network = Link;
    async fn new_client(&mut self, _target: u64, node: &BasicNode) -> Link {
        Link { peers: self.peers.clone(), shard: self.shard, address: node.addr.clone() }
    }
}

/// From one shard's replica here to its replica at another head.
pub struct Link {
    peers: Peers,
    shard: u32,
    address: String,
}

#[derive(Clone, Copy)]
enum Call {
    Append,
    Vote,
    PreVote,
    Snapshot,
    Transfer,
}

impl Link {
    async fn call<T: DeserializeOwned>(
        &self,
        call: Call,
        message: &impl Serialize,
        within: Duration,
    ) -> Result<T, RPCError<Types>> {
        let unreachable = |why: String| RPCError::Unreachable(Unreachable::from_string(why));
        let (number, channel) = self.peers.channel(&self.address).map_err(|e| unreachable(e.to_string()))?;
        let mut client = RaftClient::new(channel)
            .max_decoding_message_size(grpc::MESSAGE_MAX)
            .max_encoding_message_size(grpc::MESSAGE_MAX);
        let message =
            proto::RaftMessage { cluster: self.peers.cluster, shard: self.shard, payload: pack(message) };
        let sent = async {
            match call {
                Call::Append => client.append(message).await,
                Call::Vote => client.vote(message).await,
                Call::PreVote => client.pre_vote(message).await,
                Call::Snapshot => client.snapshot(message).await,
                Call::Transfer => client.transfer(message).await,
            }
        };
        match tokio::time::timeout(within, sent).await {
            Ok(Ok(reply)) => unpack(&reply.into_inner().payload)
                .map_err(|error| RPCError::Network(NetworkError::from_string(error))),
            Ok(Err(status)) => Err(unreachable(status.to_string())),
            Err(_) => {
                self.peers.renew(&self.address, number);
                Err(unreachable(format!("no answer from {} within {within:?}", self.address)))
            }
        }
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.call(Call::Append, &rpc, option.soft_ttl()).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(Call::Vote, &rpc, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(Call::PreVote, &rpc, option.soft_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.call(Call::Transfer, &rpc, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let send = async {
            let (meta, dump) = (snapshot.meta, snapshot.snapshot);
            let mut offset = 0;
            loop {
                let end = (offset + SNAPSHOT_CHUNK).min(dump.len());
                let last = end == dump.len();
                let data = dump.slice(offset..end);
                let part = SnapshotPart { vote, meta: meta.clone(), offset: offset as u64, last, data };
                let reply: Option<SnapshotResponse<Types>> =
                    self.call(Call::Snapshot, &part, CHUNK_DEADLINE).await.map_err(StreamingError::from)?;
                match reply {
                    Some(reply) => return Ok(reply),
                    None if last => {
                        let why = "the follower lost earlier parts of the snapshot".to_owned();
                        return Err(StreamingError::Unreachable(Unreachable::from_string(why)));
                    }
                    None => offset = end,
                }
            }
        };
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send => sent,
        }
    }
}
