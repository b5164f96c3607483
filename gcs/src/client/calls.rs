//! Requests that change something or report, each in terms of `Client::ask`.

use super::route::{EMPTY, Said, asking, manner};
use super::{Caller, Client};
use crate::error::Error;
use bytes::Bytes;
use mobula_base::ids::shard_of_key;
use mobula_proto as proto;
use prost::Message;
use proto::call_reply::Reply as Called;
use proto::command::Op as CommandOp;
use proto::reply::Reply as Answer;
use std::sync::Arc;
use std::time::Duration;

impl Client {
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
        self.propose_encoded(shard, command.encode_to_vec().into(), deadline).await
    }

    /// As [`Client::propose`], for a command that is encoded already.
    ///
    /// # Errors
    /// See [`Client::propose`].
    pub async fn propose_encoded(
        &self,
        shard: u32,
        command: Bytes,
        deadline: Duration,
    ) -> Result<proto::Reply, Error> {
        use proto::propose_reply::Result as R;
        let request = proto::ProposeRequest { cluster: self.cluster(), shard, command };
        let ask = asking!(propose, request,
            Some(R::Reply(reply)) => Said::Answer(reply),
            Some(R::NotLeader(to)) => Said::NotLeader(to),
            Some(R::Busy(why) | R::Unknown(why)) => Said::Later(why),
            Some(R::Refused(why)) => Said::Refused(why),
        );
        self.ask(Some(shard), manner(deadline, true), ask).await
    }

    /// Encodes one batch of a node's stream, neighbours packed into runs: the bytes for
    /// [`Client::propose_encoded`], to be sent until they are acknowledged (R12).
    pub fn stream_command(batch: proto::StreamBatch) -> Bytes {
        let op = Some(CommandOp::Stream(crate::core::pack::pack(batch)));
        proto::Command { op }.encode_to_vec().into()
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
        self.propose_encoded(shard, Client::stream_command(batch), deadline).await
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
        self.ask(Some(shard), manner(deadline, false), ask).await
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
        self.ask(Some(0), manner(deadline, false), ask).await
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
        self.ask(Some(0), manner(deadline, false), ask).await
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
