//! The leader that was stopped, replaced, and continues: what it answers then.
//!
//! Connections to it are opened while it leads. While it is stopped, its successor commits a newer
//! value; then the old leader is sent a write and a fresh read over the old connections. Once it
//! continues, it must not acknowledge the write unless a majority holds it, and the read must not
//! give the older value.

use bytes::Bytes;
use mobula_gcs::Client;
use mobula_net::grpc::{self, Channel};
use mobula_net::tcp::TcpNet;
use mobula_proto as proto;
use prost::Message;
use proto::control_store_client::ControlStoreClient;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// For the requests to reach the socket of a process that does not run.
const ON_THE_WAY: Duration = Duration::from_millis(20);

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    /// How often it was tried.
    pub tried: usize,
    /// Writes that the old leader acknowledged, and that are there.
    pub writes_kept: usize,
    /// Fresh reads that it answered with the newer value.
    pub reads_fresh: usize,
    /// What must never happen.
    pub violations: Vec<String>,
}

/// Connections to a leader that is about to be stopped.
pub struct Ghost {
    store: ControlStoreClient<Channel>,
    cluster: u64,
    shard: u32,
    session: u64,
    key: Bytes,
    written: Bytes,
    number: u64,
}

/// What was sent to it while it was stopped.
pub struct Asked {
    ghost: Ghost,
    write: JoinHandle<Result<tonic::Response<proto::ProposeReply>, tonic::Status>>,
    read: JoinHandle<Result<tonic::Response<proto::ReadReply>, tonic::Status>>,
}

impl Ghost {
    /// Connects to the leader of `shard` at `address`, and has an old value written.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn meet(client: &Client, address: &str, shard: u32, number: u64) -> Result<Ghost, String> {
        let channel = grpc::channel(Arc::new(TcpNet), address).map_err(|e| e.to_string())?;
        let mut store = ControlStoreClient::new(channel);
        // Connects.
        store.status(proto::StatusRequest {}).await.map_err(|e| format!("{address} does not answer: {e}"))?;
        let name = |what: &str| {
            let names = (0u64..).map(|salt| format!("ghost/{what}/{number}/{salt}"));
            let mut fitting = names.filter(|name| client.slots().of_key(name.as_bytes()).0 == shard);
            Bytes::from(fitting.next().expect("every shard owns slots, so some name hashes to it"))
        };
        let (key, written) = (name("read"), name("write"));
        let put = client.kv_put(&key, "old".into(), false, PATIENCE).await;
        put.map_err(|e| format!("the old value cannot be written: {e}"))?;
        let session = open_session(client, shard).await?;
        Ok(Ghost { store, cluster: client.cluster(), shard, session, key, written, number })
    }

    /// Once it has a successor: has the newer value committed there, then asks the old leader.
    ///
    /// # Errors
    /// The successor does not serve.
    pub async fn ask(self, client: &Client) -> Result<Asked, String> {
        let put = client.kv_put(&self.key, "new".into(), false, PATIENCE).await;
        put.map_err(|e| format!("the newer value cannot be written: {e}"))?;
        let put = proto::KvPut {
            key: self.written.clone(),
            value: "ghost".into(),
            only_if_absent: false,
            ..Default::default()
        };
        let call = proto::Call { session: self.session, seq: 1, op: Some(proto::call::Op::KvPut(put)) };
        let command = proto::Command::from(proto::command::Op::Call(call)).encode_to_vec().into();
        let propose = proto::ProposeRequest { cluster: self.cluster, shard: self.shard, command };
        let what = Some(proto::read_request::What::Key(self.key.clone()));
        let look = proto::ReadRequest { cluster: self.cluster, shard: self.shard, what, map: 0 };
        let (mut writer, mut reader) = (self.store.clone(), self.store.clone());
        let write = tokio::spawn(async move { writer.propose(propose).await });
        let read = tokio::spawn(async move { reader.read(look).await });
        tokio::time::sleep(ON_THE_WAY).await;
        Ok(Asked { ghost: self, write, read })
    }
}

/// A session of the store: only what is asked in one is executed.
async fn open_session(client: &Client, shard: u32) -> Result<u64, String> {
    let op = Some(proto::call::Op::Open(proto::OpenSession {}));
    let call = proto::Call { op, ..Default::default() };
    let command = proto::Command::from(proto::command::Op::Call(call));
    let reply = client.propose(shard, &command, PATIENCE).await;
    match reply.map_err(|e| format!("no session can be opened: {e}"))?.reply {
        Some(proto::reply::Reply::Call(proto::CallReply {
            reply: Some(proto::call_reply::Reply::Session(session)),
        })) => Ok(session),
        other => Err(format!("the opening of a session was answered with {other:?}")),
    }
}

impl Asked {
    /// Once it continues: judges its answers.
    ///
    /// # Errors
    /// The cluster cannot be asked what is true.
    pub async fn judge(self, client: &Client, outcome: &mut Outcome) -> Result<(), String> {
        let Asked { ghost, write, read } = self;
        outcome.tried += 1;
        let acknowledged = match tokio::time::timeout(PATIENCE, write).await {
            Ok(Ok(Ok(reply))) => {
                matches!(reply.into_inner().result, Some(proto::propose_reply::Result::Reply(_)))
            }
            // Without an answer nothing was promised.
            _ => false,
        };
        let answered = match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(Ok(reply))) => match reply.into_inner().result {
                Some(proto::read_reply::Result::Kv(list)) => Some(list.entries),
                _ => None,
            },
            _ => None,
        };
        let there = client.read_kv(&ghost.written, PATIENCE).await.map_err(|e| e.to_string())?;
        match (acknowledged, there) {
            (true, None) => outcome.violations.push(format!(
                "strike {}: the stopped leader acknowledged a write that no majority holds",
                ghost.number
            )),
            (true, Some(_)) => outcome.writes_kept += 1,
            (false, _) => {}
        }
        match answered.as_deref() {
            Some([entry]) if entry.value == "new" => outcome.reads_fresh += 1,
            Some(entries) => {
                let value = entries.first().map(|e| String::from_utf8_lossy(&e.value).into_owned());
                outcome.violations.push(format!(
                    "strike {}: the stopped leader answered a fresh read with {value:?} after \"new\" was committed",
                    ghost.number
                ));
            }
            None => {}
        }
        Ok(())
    }
}
