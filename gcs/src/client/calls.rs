//! The requests, each in terms of `Client::ask`.

use super::route::{Ask, Manner, Said};
use super::{ATTEMPT, Caller, Client};
use crate::error::Error;
use bytes::Bytes;
use mobula_base::ids::shard_of_key;
use mobula_proto as proto;
use prost::Message;
use proto::call_reply::Reply as Called;
use proto::control_store_client::ControlStoreClient;
use proto::command::Op as CommandOp;
use proto::reply::Reply as Answer;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

/// What an empty answer is called.
const EMPTY: Error = Error::Protocol("an answer without content");

/// A request to `$method` of the store, made of `$request`; its result goes through the arms.
macro_rules! asking {
    ($method:ident, $request:expr, $($arm:pat => $said:expr),+ $(,)?) => {{
        let request = $request;
        let ask: Ask<'static, _> = Box::new(move |mut store: ControlStoreClient<Channel>| {
            let request = request.clone();
            Box::pin(async move {
                let reply = store.$method(request).await?.into_inner();
                Ok(match reply.result {
                    $($arm => $said,)+
                    None => Said::Later("an answer without content".into()),
                })
            })
        });
        ask
    }};
}

impl Client {
    fn manner(deadline: Duration, changes: bool) -> Manner {
        Manner { deadline, attempt: ATTEMPT, changes }
    }

    /// Commits a command on `shard`. The same bytes are sent until somebody answers, so the
    /// command must carry its own identity.
    ///
    /// # Errors
    /// See [`Error`]; the outcome may be unknown.
    pub async fn propose(
        &self,
        shard: u32,
        command: &proto::Command,
        deadline: Duration,
    ) -> Result<proto::Reply, Error> {
        use proto::propose_reply::Result as R;
        let command = Bytes::from(command.encode_to_vec());
        let request = proto::ProposeRequest { cluster: self.cluster(), shard, command };
        let ask = asking!(propose, request,
            Some(R::Reply(reply)) => Said::Answer(reply),
            Some(R::NotLeader(to)) => Said::NotLeader(to),
            Some(R::Busy(why) | R::Unknown(why)) => Said::Later(why),
            Some(R::Refused(why)) => Said::Refused(why),
        );
        // A head answers within its own deadline of 5 s; give up a little earlier and ask again.
        let manner = Manner { deadline, attempt: ATTEMPT * 2, changes: true };
        self.ask(Some(shard), manner, ask).await
    }

    /// Sends one batch of a node's stream.
    ///
    /// # Errors
    /// See [`Error`]; after an unknown outcome the same batch must be sent again.
    pub async fn stream(
        &self,
        shard: u32,
        batch: proto::StreamBatch,
        deadline: Duration,
    ) -> Result<proto::Reply, Error> {
        self.propose(shard, &proto::Command { op: Some(CommandOp::Stream(batch)) }, deadline).await
    }

    /// Executes `op` on `shard` once. Calls to one shard are executed one after the other.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn call(
        &self,
        op: proto::call::Op,
        shard: u32,
        deadline: Duration,
    ) -> Result<proto::CallReply, Error> {
        let caller = self.caller(shard);
        let mut caller = caller.lock().await;
        if caller.unsure {
            *caller = self.new_caller();
        }
        caller.seq += 1;
        // Stays so if this future is dropped before the answer.
        caller.unsure = true;
        let call = proto::Call { session: caller.session, seq: caller.seq, op: Some(op) };
        let command = proto::Command { op: Some(CommandOp::Call(call)) };
        let Some(Answer::Call(reply)) = self.propose(shard, &command, deadline).await?.reply else {
            return Err(Error::Protocol("a call was answered with something else"));
        };
        if let Some(Called::SessionExpired(_)) = reply.reply {
            return Err(Error::OutcomeUnknown("the session was closed, too many others were in use".into()));
        }
        caller.unsure = false;
        Ok(reply)
    }

    fn caller(&self, shard: u32) -> Arc<tokio::sync::Mutex<Caller>> {
        let mut callers = self.callers.lock().expect("nothing panics under this lock");
        let new = || Arc::new(tokio::sync::Mutex::new(self.new_caller()));
        callers.entry(shard).or_insert_with(new).clone()
    }

    fn new_caller(&self) -> Caller {
        Caller { session: self.state().random.next_u64().max(1), seq: 0, unsure: false }
    }

    /// Where objects are; parks up to `wait` (at most 2 s) for the first that is settled.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn locate(
        &self,
        shard: u32,
        asker: u64,
        objects: Vec<Bytes>,
        wait: Duration,
        deadline: Duration,
    ) -> Result<proto::LocatedList, Error> {
        use proto::locate_reply::Result as R;
        let wait_ms = wait.as_millis().min(u128::from(u32::MAX)) as u32;
        let request = proto::LocateRequest { cluster: self.cluster(), shard, asker, objects, wait_ms };
        let ask = asking!(locate, request,
            Some(R::Located(list)) => Said::Answer(list),
            Some(R::NotLeader(to)) => Said::NotLeader(to),
            Some(R::Refused(why)) => Said::Refused(why),
        );
        self.ask(Some(shard), Manner { deadline, attempt: wait + ATTEMPT, changes: false }, ask).await
    }

    /// Reports what copies a node holds. `cluster` is filled in. The answer is accepted, a demand
    /// for a full report, or fenced.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn holding(
        &self,
        report: proto::HoldingRequest,
        deadline: Duration,
    ) -> Result<proto::holding_reply::Result, Error> {
        use proto::holding_reply::Result as R;
        let shard = report.shard;
        let request = proto::HoldingRequest { cluster: self.cluster(), ..report };
        let ask = asking!(holding, request,
            Some(R::NotLeader(to)) => Said::NotLeader(to),
            Some(R::Refused(why)) => Said::Refused(why),
            Some(other) => Said::Answer(other),
        );
        self.ask(Some(shard), Self::manner(deadline, false), ask).await
    }

    /// Says that a node lives. `cluster` is filled in. The answer is a view or fenced.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn heartbeat(
        &self,
        beat: proto::HeartbeatRequest,
        deadline: Duration,
    ) -> Result<proto::heartbeat_reply::Result, Error> {
        use proto::heartbeat_reply::Result as R;
        let request = proto::HeartbeatRequest { cluster: self.cluster(), ..beat };
        let ask = asking!(heartbeat, request,
            Some(R::NotLeader(to)) => Said::NotLeader(to),
            Some(R::Refused(why)) => Said::Refused(why),
            Some(other) => Said::Answer(other),
        );
        self.ask(Some(0), Self::manner(deadline, false), ask).await
    }

    /// Asks the leader to look at a node that does not answer `by`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn suspect(
        &self,
        suspect: u64,
        by: u64,
        evidence: &str,
        deadline: Duration,
    ) -> Result<(), Error> {
        use proto::suspect_reply::Result as R;
        let request =
            proto::SuspectRequest { cluster: self.cluster(), suspect, by, evidence: evidence.to_owned() };
        let ask = asking!(suspect, request,
            Some(R::Noted(_)) => Said::Answer(()),
            Some(R::NotLeader(to)) => Said::NotLeader(to),
            Some(R::Refused(why)) => Said::Refused(why),
        );
        self.ask(Some(0), Self::manner(deadline, false), ask).await
    }

    /// The cluster's view from any head; parks up to `wait` for a version above `above`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn watch(
        &self,
        above: u64,
        wait: Duration,
        deadline: Duration,
    ) -> Result<proto::ClusterView, Error> {
        use proto::watch_reply::Result as R;
        let wait_ms = wait.as_millis().min(u128::from(u32::MAX)) as u32;
        let request = proto::WatchRequest { cluster: self.cluster(), above, wait_ms };
        let ask = asking!(watch, request,
            Some(R::View(view)) => Said::Answer(view),
            Some(R::Refused(why)) => Said::Refused(why),
        );
        self.ask(None, Manner { deadline, attempt: wait + ATTEMPT, changes: false }, ask).await
    }

    async fn read(
        &self,
        shard: u32,
        what: proto::read_request::What,
        deadline: Duration,
    ) -> Result<proto::read_reply::Result, Error> {
        use proto::read_reply::Result as R;
        let request = proto::ReadRequest { cluster: self.cluster(), shard, what: Some(what) };
        let ask = asking!(read, request,
            Some(R::NotLeader(to)) => Said::NotLeader(to),
            Some(R::Busy(why)) => Said::Later(why),
            Some(R::Refused(why)) => Said::Refused(why),
            Some(other) => Said::Answer(other),
        );
        self.ask(Some(shard), Self::manner(deadline, false), ask).await
    }

    /// The value of a key, as fresh as the call.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_kv(&self, key: &[u8], deadline: Duration) -> Result<Option<proto::KvEntry>, Error> {
        let shard = shard_of_key(key, self.shards()).0;
        let what = proto::read_request::What::Key(Bytes::copy_from_slice(key));
        match self.read(shard, what, deadline).await? {
            proto::read_reply::Result::Kv(list) => Ok(list.entries.into_iter().next()),
            _ => Err(EMPTY),
        }
    }

    /// All entries of one shard whose key starts with `prefix`, as fresh as the call.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_prefix(
        &self,
        prefix: &[u8],
        shard: u32,
        deadline: Duration,
    ) -> Result<Vec<proto::KvEntry>, Error> {
        let what = proto::read_request::What::Prefix(Bytes::copy_from_slice(prefix));
        match self.read(shard, what, deadline).await? {
            proto::read_reply::Result::Kv(list) => Ok(list.entries),
            _ => Err(EMPTY),
        }
    }

    /// How things stand with tasks of one shard, in the order of `tasks`, as fresh as the call.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_tasks(
        &self,
        shard: u32,
        tasks: Vec<Bytes>,
        with_spec: bool,
        deadline: Duration,
    ) -> Result<Vec<proto::TaskView>, Error> {
        let what = proto::read_request::What::Tasks(proto::TaskIds { tasks, with_spec });
        match self.read(shard, what, deadline).await? {
            proto::read_reply::Result::Tasks(views) => Ok(views.tasks),
            _ => Err(EMPTY),
        }
    }

    /// Stores a value under a key; false when it was to be the first and was not.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kv_put(
        &self,
        key: &[u8],
        value: Bytes,
        only_if_absent: bool,
        deadline: Duration,
    ) -> Result<bool, Error> {
        let shard = shard_of_key(key, self.shards()).0;
        let put = proto::KvPut { key: Bytes::copy_from_slice(key), value, only_if_absent };
        match self.call(proto::call::Op::KvPut(put), shard, deadline).await?.reply {
            Some(Called::Revision(_)) => Ok(true),
            Some(Called::AlreadyThere(_)) => Ok(false),
            Some(Called::Failure(failure)) => Err(Error::Refused(failure.message)),
            _ => Err(EMPTY),
        }
    }
}
