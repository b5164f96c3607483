//! Requests that change something or report, each in terms of `Client::ask`.

use super::route::{Ask, EMPTY, Said, asking, manner};
use super::slots::{MAX_REDIRECTS, astray};
use super::{Caller, Client};
use crate::error::Error;
use bytes::Bytes;
use mobula_proto as proto;
use prost::Message;
use proto::call_reply::Reply as Called;
use proto::command::Op as CommandOp;
use proto::reply::Reply as Answer;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A session that was not used for this long is not trusted to be remembered.
const IDLE: Duration = Duration::from_secs(60);

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
        let op = CommandOp::Stream(crate::core::pack::pack(batch));
        proto::Command::from(op).encode_to_vec().into()
    }

    /// The items of a batch that were answered `moved`, in order, read back from its bytes: they are to be
    /// sent to the shard that has their slots now. And the epoch of the map that says which.
    pub fn moved_items(command: &Bytes, ack: &proto::StreamAck) -> (Vec<proto::StreamItem>, u64) {
        let moved = |outcome: &proto::ItemOutcome| match outcome.outcome {
            Some(proto::item_outcome::Outcome::Moved(epoch)) => Some((outcome.seq, epoch)),
            _ => None,
        };
        let moved: BTreeMap<u64, u64> = ack.outcomes.iter().filter_map(moved).collect();
        let Some(newest) = moved.values().max().copied() else { return (Vec::new(), 0) };
        let batch = match proto::Command::decode(command.clone()).ok().and_then(|command| command.op) {
            Some(CommandOp::Stream(batch)) => batch,
            _ => return (Vec::new(), newest),
        };
        let items = crate::core::pack::unpack(&batch).into_iter();
        (items.filter(|(seq, _)| moved.contains_key(seq)).map(|(_, item)| item).collect(), newest)
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

    /// Executes `op` once, on `shard` or, if its key's slot has moved, where that is now. Calls to one
    /// shard are executed one after the other.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn call(
        &self,
        op: proto::call::Op,
        shard: u32,
        deadline: Duration,
    ) -> Result<proto::CallReply, Error> {
        let (until, mut shard) = (Instant::now() + deadline, shard);
        for _ in 0..=MAX_REDIRECTS {
            let reply = self.call_at(op.clone(), shard, until.saturating_duration_since(Instant::now()));
            let reply = reply.await?;
            let Some(Called::Moved(epoch)) = reply.reply else { return Ok(reply) };
            // Answered, so not done under this number, now or later: the next one is a new request.
            self.follow_slots(epoch, until.saturating_duration_since(Instant::now())).await?;
            shard = self.home(&op).unwrap_or(shard);
        }
        Err(astray())
    }

    /// The shard of the key that a request is about.
    fn home(&self, op: &proto::call::Op) -> Option<u32> {
        let key = match op {
            proto::call::Op::KvPut(put) => &put.key,
            proto::call::Op::KvDelete(delete) => &delete.key,
            _ => return None,
        };
        Some(self.slots().of_key(key).0)
    }

    /// One call under one number: sent to one shard until that answers, so that a repetition finds the
    /// first answer whatever has moved meanwhile.
    async fn call_at(
        &self,
        op: proto::call::Op,
        shard: u32,
        deadline: Duration,
    ) -> Result<proto::CallReply, Error> {
        let until = Instant::now() + deadline;
        let caller = self.caller(shard);
        let mut caller = caller.lock().await;
        // A session that was idle may have been closed; nothing is under way in it, so a new one
        // takes its place before that can become a doubt.
        if caller.session == 0 || caller.unsure || caller.used.is_none_or(|used| used.elapsed() > IDLE) {
            *caller = Caller { session: self.open_session(shard, deadline).await?, ..Caller::default() };
        }
        caller.seq += 1;
        // Stays so if this future is dropped before the answer.
        caller.unsure = true;
        let call = proto::Call { session: caller.session, seq: caller.seq, op: Some(op) };
        let reply = self.send_call(shard, call, until.saturating_duration_since(Instant::now())).await?;
        if let Some(Called::SessionExpired(_)) = reply.reply {
            return Err(Error::OutcomeUnknown("the session was closed, too many others were in use".into()));
        }
        caller.used = Some(Instant::now());
        caller.unsure = false;
        Ok(reply)
    }

    /// A repetition opens a second session, which nobody uses: that does no harm.
    async fn open_session(&self, shard: u32, deadline: Duration) -> Result<u64, Error> {
        let op = Some(proto::call::Op::Open(proto::OpenSession {}));
        let opened = self.send_call(shard, proto::Call { op, ..Default::default() }, deadline).await;
        match opened {
            Ok(proto::CallReply { reply: Some(Called::Session(session)) }) => Ok(session),
            Ok(_) => Err(EMPTY),
            // Nothing of the caller's has happened yet.
            Err(Error::OutcomeUnknown(last)) => Err(Error::Unreachable { heads: self.heads(), last }),
            Err(error) => Err(error),
        }
    }

    async fn send_call(
        &self,
        shard: u32,
        call: proto::Call,
        deadline: Duration,
    ) -> Result<proto::CallReply, Error> {
        let command = proto::Command::from(CommandOp::Call(call));
        match self.propose(shard, &command, deadline).await?.reply {
            Some(Answer::Call(reply)) => Ok(reply),
            _ => Err(Error::Protocol("a call was answered with something else")),
        }
    }

    fn caller(&self, shard: u32) -> Arc<tokio::sync::Mutex<Caller>> {
        let mut callers = self.callers.lock().expect("nothing panics under this lock");
        callers.entry(shard).or_default().clone()
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
        Ok(self.report(report, deadline).await?.0)
    }

    /// As [`Client::holding`], with those of the idle copies that nobody needs.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn report(
        &self,
        report: proto::HoldingRequest,
        deadline: Duration,
    ) -> Result<(proto::holding_reply::Result, Vec<Bytes>), Error> {
        use proto::holding_reply::Result as R;
        let shard = report.shard;
        let request = proto::HoldingRequest { cluster: self.cluster(), ..report };
        let send = move |mut store: super::Store| {
            let request = request.clone();
            let asked: super::route::Attempt<_> = Box::pin(async move {
                let reply = store.holding(request).await?.into_inner();
                Ok(match reply.result {
                    Some(R::NotLeader(to)) => Said::NotLeader(to),
                    Some(R::Refused(why)) => Said::Refused(why),
                    Some(other) => Said::Answer((other, reply.drop)),
                    None => Said::Later("an answer without content".into()),
                })
            });
            asked
        };
        let ask = Ask { method: "holding", send: Box::new(send) };
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
        let answer = self.ask(Some(0), manner(deadline, false), ask).await?;
        if let R::View(view) = &answer {
            self.learn_slots(Some(view));
        }
        Ok(answer)
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
        let key = Bytes::copy_from_slice(key);
        let put = proto::KvPut { key, value, only_if_absent, ..Default::default() };
        match self.write(put.key.clone(), proto::call::Op::KvPut(put), deadline).await? {
            Called::Revision(_) => Ok(true),
            Called::AlreadyThere(_) => Ok(false),
            _ => Err(EMPTY),
        }
    }

    /// Stores a value under a key if its last change is `expected`, 0 for a key that is absent.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kv_cas(
        &self,
        key: &[u8],
        expected: u64,
        value: Bytes,
        deadline: Duration,
    ) -> Result<Cas, Error> {
        let key = Bytes::copy_from_slice(key);
        let put = proto::KvPut { key, value, expected_revision: Some(expected), ..Default::default() };
        Cas::from(self.write(put.key.clone(), proto::call::Op::KvPut(put), deadline).await?)
    }

    /// Deletes a key, with `expected` only if that is its last change. Revision 0: it was absent.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kv_delete(
        &self,
        key: &[u8],
        expected: Option<u64>,
        deadline: Duration,
    ) -> Result<Cas, Error> {
        let delete = proto::KvDelete { key: Bytes::copy_from_slice(key), expected_revision: expected };
        Cas::from(self.write(delete.key.clone(), proto::call::Op::KvDelete(delete), deadline).await?)
    }

    async fn write(&self, key: Bytes, op: proto::call::Op, deadline: Duration) -> Result<Called, Error> {
        let shard = self.slots().of_key(&key).0;
        match self.call(op, shard, deadline).await?.reply {
            Some(Called::Failure(failure)) => Err(Error::Refused(failure.message)),
            Some(other) => Ok(other),
            None => Err(EMPTY),
        }
    }
}

/// What became of a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cas {
    /// Done, by the change of this revision.
    Done(u64),
    /// Not done: the key's last change is this one, 0 for a key that is absent.
    Conflict(u64),
}

impl Cas {
    fn from(reply: Called) -> Result<Self, Error> {
        match reply {
            Called::Revision(revision) => Ok(Cas::Done(revision)),
            Called::KvConflict(revision) => Ok(Cas::Conflict(revision)),
            _ => Err(EMPTY),
        }
    }
}
