//! Raft's messages between heads: postcard inside gRPC, each under its deadline.

use super::failover::Standing;
use super::types::{Entry, Snapshot, SnapshotMeta, Types, Vote};
use crate::cold::{self, Manifest};
use crate::level::Level;
use crate::log::record::{pack, unpack};
use crate::snapshot::{self, Parcel};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use mobula_base::disk::Disk;
use mobula_base::mutant;
use mobula_net::grpc::{self, Channel};
use mobula_net::pipe::{self, Pipe};
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, EntryPayload, OptionalSend};
use proto::raft_client::RaftClient;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes of a snapshot per message.
const SNAPSHOT_CHUNK: usize = 4 << 20;
/// Entries may take this long to be acknowledged, where a heartbeat may not: they are synced first.
const APPEND_DEADLINE: Duration = Duration::from_millis(500);
/// Followers hear of a commit with the entries that come next; in a message of its own only when none
/// come within this. Under load that is every second message saved.
const COMMIT_GRACE: Duration = Duration::from_millis(4);
/// One chunk of a snapshot must arrive and be acknowledged within this.
const CHUNK_DEADLINE: Duration = Duration::from_secs(10);

/// Part of a snapshot on its way to a follower.
#[derive(Serialize, Deserialize)]
pub struct SnapshotPart {
    /// The leader's vote.
    pub vote: Vote,
    /// What the snapshot covers.
    pub meta: SnapshotMeta,
    /// The files of cold runs that the snapshot needs, under the sender's numbers.
    #[serde(with = "packed")]
    pub cold: Manifest,
    /// 0: part of the dump; n: of the n-th of those files.
    pub file: u32,
    /// Where this part starts, in bytes.
    pub offset: u64,
    /// Whether it is the last of its file, or of the dump.
    pub ends_file: bool,
    /// The bytes.
    pub data: Bytes,
}

/// A protobuf message inside a postcard one.
mod packed {
    use bytes::Bytes;
    use prost::Message;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<M: Message, S: Serializer>(message: &M, to: S) -> Result<S::Ok, S::Error> {
        Bytes::from(message.encode_to_vec()).serialize(to)
    }

    pub fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(from: D) -> Result<M, D::Error> {
        M::decode(Bytes::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// Appends of all shards to one head.
type Appends = Pipe<proto::RaftMessage, Result<proto::RaftMessage, String>>;

/// A connection to one head.
#[derive(Clone)]
struct Connection {
    number: u64,
    client: RaftClient<Channel>,
    appends: Appends,
}

/// Connections to the other heads, shared by all shards. A connection that missed a deadline is
/// dropped and dialled anew: it may be half open.
#[derive(Clone)]
pub struct Peers {
    net: SharedNet,
    cluster: u64,
    level: Arc<Level>,
    open: Arc<Mutex<BTreeMap<String, Connection>>>,
}

impl Peers {
    /// No connections yet.
    pub fn new(net: SharedNet, cluster: u64, level: Arc<Level>) -> Self {
        Peers { net, cluster, level, open: Arc::default() }
    }

    /// A message for a replica of `shard`, at the level that is written now.
    fn message(&self, shard: u32) -> proto::RaftMessage {
        proto::RaftMessage { cluster: self.cluster, shard, level: self.level.writes(), ..Default::default() }
    }

    fn connection(&self, address: &str) -> Result<Connection, tonic::transport::Error> {
        let mut open = self.open.lock().expect("nothing panics under this lock");
        let number = match open.get(address) {
            Some(known) if known.appends.is_open() => return Ok(known.clone()),
            Some(ended) => ended.number + 1,
            None => 0,
        };
        let fresh = self.connect(address, number)?;
        open.insert(address.to_owned(), fresh.clone());
        Ok(fresh)
    }

    fn connect(&self, address: &str, number: u64) -> Result<Connection, tonic::transport::Error> {
        let client = RaftClient::new(grpc::channel(self.net.clone(), address)?)
            .max_decoding_message_size(grpc::MESSAGE_MAX)
            .max_encoding_message_size(grpc::MESSAGE_MAX);
        Ok(Connection { number, appends: appends(client.clone()), client })
    }

    /// Replaces connection `number` to `address`, unless someone else has.
    fn renew(&self, address: &str, number: u64) {
        let Ok(fresh) = self.connect(address, number + 1) else { return };
        let mut open = self.open.lock().expect("nothing panics under this lock");
        if let Some(entry) = open.get_mut(address).filter(|entry| entry.number == number) {
            *entry = fresh;
        }
    }
}

fn appends(mut client: RaftClient<Channel>) -> Appends {
    let tagged = |(tag, message)| proto::TaggedRaft { tag, message: Some(message), refused: String::new() };
    let message =
        move |many: pipe::Many<_>| proto::RaftMany { messages: many.into_iter().map(tagged).collect() };
    let untagged = |answer: proto::TaggedRaft| (answer.tag, answer.message.ok_or(answer.refused));
    let answers = move |many: proto::RaftMany| many.messages.into_iter().map(untagged).collect();
    Pipe::open(
        |message| message.payload.len() + message.commands.iter().map(Bytes::len).sum::<usize>(),
        move |messages| async move {
            let replies = client.append(messages.map(message)).await?.into_inner();
            Ok(replies.map(move |many| many.map(answers)).boxed())
        },
    )
}

/// Drops requests without entries that are followed within [`COMMIT_GRACE`] by another, which says all
/// that they say and more.
fn without_mere_commits<S>(requests: S) -> impl Stream<Item = AppendEntriesRequest<Types>> + OptionalSend
where
    S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
{
    // An ended stream is looked at again after its last request.
    futures::stream::unfold(requests.fuse(), |mut requests| async {
        let mut request = requests.next().await?;
        while request.entries.is_empty() {
            match tokio::time::timeout(COMMIT_GRACE, requests.next()).await {
                Ok(Some(later)) => request = later,
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, requests))
    })
}

/// Takes the commands out of the entries of an append, in their order.
fn take_commands(rpc: &mut AppendEntriesRequest<Types>) -> Vec<Bytes> {
    let command = |entry: &mut Entry| match &mut entry.payload {
        EntryPayload::Normal(proposal) => Some(std::mem::take(&mut proposal.0)),
        EntryPayload::Blank | EntryPayload::Membership(_) => None,
    };
    rpc.entries.iter_mut().filter_map(command).collect()
}

/// Puts commands back into the entries of an append; whether they were as many as are needed.
pub fn give_commands(rpc: &mut AppendEntriesRequest<Types>, commands: Vec<Bytes>) -> bool {
    let mut commands = commands.into_iter();
    for entry in &mut rpc.entries {
        if let EntryPayload::Normal(proposal) = &mut entry.payload {
            match commands.next() {
                Some(command) => proposal.0 = command,
                None => return false,
            }
        }
    }
    commands.next().is_none()
}

impl Peers {
    /// How a shard's replica at `address` stands; `None` if it does not say so in time.
    pub async fn standing(&self, address: &str, shard: u32, within: Duration) -> Option<Standing> {
        let mut client = self.connection(address).ok()?.client;
        let message = self.message(shard);
        let reply = tokio::time::timeout(within, client.standing(message)).await.ok()?.ok()?;
        unpack(&reply.into_inner().payload).ok()
    }

    /// Has a shard's replica at `address` stand for election; it may not.
    pub async fn nominate(
        &self,
        address: &str,
        shard: u32,
        request: &TransferLeaderRequest<Types>,
        within: Duration,
    ) {
        let Ok(connection) = self.connection(address) else { return };
        let message = proto::RaftMessage { payload: pack(request), ..self.message(shard) };
        // Whoever asks looks at who leads, not at the answer.
        let mut client = connection.client;
        tokio::time::timeout(within, client.transfer(message)).await.ok();
    }
}

/// Makes connections for one shard.
pub struct Dialer {
    /// All connections of the head.
    pub peers: Peers,
    /// The shard.
    pub shard: u32,
    /// Where the files of snapshots are.
    pub disk: Arc<dyn Disk>,
}

impl RaftNetworkFactory<Types> for Dialer {
    type Network = Link;
    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        let (peers, disk) = (self.peers.clone(), self.disk.clone());
        Link { peers, disk, shard: self.shard, to: target, address: node.addr.clone() }
    }
}

/// From one shard's replica here to its replica at another head.
pub struct Link {
    peers: Peers,
    disk: Arc<dyn Disk>,
    shard: u32,
    to: u64,
    address: String,
}

#[derive(Clone, Copy)]
enum Call {
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
        let connection = self.peers.connection(&self.address).map_err(|e| unreachable(e.to_string()))?;
        let mut client = connection.client;
        let message = self.message(message, Vec::new());
        let sent = async {
            match call {
                Call::Vote => client.vote(message).await,
                Call::PreVote => client.pre_vote(message).await,
                Call::Snapshot => client.snapshot(message).await,
                Call::Transfer => client.transfer(message).await,
            }
        };
        let patience = if mutant!("M17") { within * 100_000 } else { within };
        match tokio::time::timeout(patience, sent).await {
            Ok(Ok(reply)) => unpack(&reply.into_inner().payload)
                .map_err(|error| RPCError::Network(NetworkError::from_string(error))),
            Ok(Err(status)) => Err(unreachable(status.to_string())),
            Err(_) => {
                self.peers.renew(&self.address, connection.number);
                Err(unreachable(format!("no answer from {} within {within:?}", self.address)))
            }
        }
    }

    fn message(&self, message: &impl Serialize, commands: Vec<Bytes>) -> proto::RaftMessage {
        let (payload, to) = (pack(message), self.to);
        proto::RaftMessage { payload, to, commands, ..self.peers.message(self.shard) }
    }

    /// As [`Link::call`], over the stream that all shards share.
    async fn append(
        &self,
        mut rpc: AppendEntriesRequest<Types>,
        within: Duration,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let unreachable = |why: String| RPCError::Unreachable(Unreachable::from_string(why));
        let connection = self.peers.connection(&self.address).map_err(|e| unreachable(e.to_string()))?;
        let commands = take_commands(&mut rpc);
        match tokio::time::timeout(within, connection.appends.ask(self.message(&rpc, commands))).await {
            Ok(Ok(Ok(reply))) => {
                unpack(&reply.payload).map_err(|error| RPCError::Network(NetworkError::from_string(error)))
            }
            Ok(Ok(Err(refused))) => Err(unreachable(refused)),
            Ok(Err(status)) => Err(unreachable(status.to_string())),
            Err(_) => {
                self.peers.renew(&self.address, connection.number);
                Err(unreachable(format!("no answer from {} within {within:?}", self.address)))
            }
        }
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Parcel;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let within =
            if rpc.entries.is_empty() { option.soft_ttl() } else { option.soft_ttl().max(APPEND_DEADLINE) };
        self.append(rpc, within).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        openraft::network::stream_append_sequential(self, without_mere_commits(input).boxed(), option)
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
        let send = self.send_snapshot(vote, snapshot);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send => sent,
        }
    }
}

impl Link {
    /// Sends the dump, then the files, part by part; the follower's answer to the last one.
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let (meta, parcel) = (snapshot.meta, snapshot.snapshot);
        let lens = std::iter::once(parcel.dump.len() as u64).chain(parcel.cold.files.iter().map(|f| f.len));
        for (file, len) in (0u32..).zip(lens) {
            let mut offset = 0;
            loop {
                let end = (offset + SNAPSHOT_CHUNK as u64).min(len);
                let data = self.snapshot_bytes(&parcel, file, offset, end).await?;
                let (ends_file, cold) = (end == len, parcel.cold.clone());
                let part = SnapshotPart { vote, meta: meta.clone(), cold, file, offset, ends_file, data };
                let reply: Option<SnapshotResponse<Types>> =
                    self.call(Call::Snapshot, &part, CHUNK_DEADLINE).await.map_err(StreamingError::from)?;
                if let Some(reply) = reply {
                    return Ok(reply);
                }
                if ends_file {
                    break;
                }
                offset = end;
            }
        }
        let why = "the follower lost earlier parts of the snapshot".to_owned();
        Err(StreamingError::Unreachable(Unreachable::from_string(why)))
    }

    async fn snapshot_bytes(
        &self,
        parcel: &Parcel,
        file: u32,
        offset: u64,
        end: u64,
    ) -> Result<Bytes, StreamingError<Types>> {
        let Some(named) = (file as usize).checked_sub(1).map(|at| &parcel.cold.files[at]) else {
            return Ok(parcel.dump.slice(offset as usize..end as usize));
        };
        let (path, len) = (cold::path(self.shard, named.number), (end - offset) as usize);
        let read = move |disk: &dyn Disk| {
            let bytes = disk.open(&path, false)?.read_at(offset, len)?;
            let short = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("{path} is too short"));
            if bytes.len() == len { Ok(Bytes::from(bytes)) } else { Err(short()) }
        };
        // A file that a newer snapshot no longer needs may be gone: openraft then sends the newer one.
        let unreadable = |error: io::Error| {
            StreamingError::Unreachable(Unreachable::from_string(format!("snapshot cannot be read: {error}")))
        };
        snapshot::on_disk(self.disk.clone(), read).await.map_err(unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::testing::log_id;

    fn request(entries: u64, committed: u64) -> AppendEntriesRequest<Types> {
        let entry = |n| Entry { log_id: id(n), payload: EntryPayload::Blank };
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            entries: (0..entries).map(entry).collect(),
            leader_commit: Some(id(committed)),
        }
    }

    fn id(index: u64) -> super::super::types::LogId {
        log_id::<Types>(1, 1, index)
    }

    /// Sends each request so many ms after the one before it; what goes out.
    async fn sent(requests: Vec<(u64, AppendEntriesRequest<Types>)>) -> Vec<(usize, u64)> {
        let timed = futures::stream::iter(requests).then(|(after, request)| async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            request
        });
        let said = |request: AppendEntriesRequest<Types>| {
            (request.entries.len(), request.leader_commit.map_or(0, |id| id.index))
        };
        without_mere_commits(timed.boxed()).map(said).collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_travels_with_the_entries_that_follow_at_once() {
        let all = vec![(0, request(1, 4)), (1, request(0, 5)), (1, request(0, 6)), (1, request(2, 6))];
        assert_eq!(sent(all).await, [(1, 4), (2, 6)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_nothing_follows_travels_alone() {
        let all = vec![(0, request(1, 4)), (1, request(0, 5)), (50, request(0, 6))];
        assert_eq!(sent(all).await, [(1, 4), (0, 5), (0, 6)], "the last one too, when the stream ends");
    }
}
