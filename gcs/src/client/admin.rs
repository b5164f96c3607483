//! What operators ask, and keeping the list of heads up to date while they come and go.

use super::Client;
use crate::backup::archive::Writer;
use crate::error::Error;
use crate::membership::driver;
use mobula_net::grpc::Channel;
use mobula_proto as proto;
use proto::admin_client::AdminClient;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Response, Status};

/// One head must answer a question within this.
const ATTEMPT: Duration = Duration::from_secs(3);
/// The next piece of a backup must come within this: a snapshot may have to be made first.
const PART_DEADLINE: Duration = Duration::from_secs(90);
/// Pause between rounds, and before a head that is busy is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// The list of heads is refreshed after trouble, and otherwise this often.
pub(super) const REFRESH: Duration = Duration::from_secs(10);

/// What an answer means to whoever asks.
enum Meant<T> {
    Answer(T),
    Elsewhere(String),
    Later(String),
    Refused(String),
}

impl Client {
    /// Learns who the heads are from one that has just answered; those that were named at first stay
    /// known, in case all others go.
    pub(super) async fn refresh(&self, address: String) {
        if let Ok(status) = self.status_of(&address).await {
            self.learn(status.heads);
        }
    }

    /// Takes over a list of the members.
    pub(super) fn learn(&self, members: Vec<String>) {
        if members.is_empty() {
            return;
        }
        let mut state = self.state();
        let mut heads = members;
        heads.extend(state.named.clone());
        let mut seen = std::collections::BTreeSet::new();
        heads.retain(|head| seen.insert(head.clone()));
        state.channels.retain(|address, _| seen.contains(address));
        state.heads = heads;
        state.refreshed = Some(Instant::now());
    }

    async fn ask_admin<R, T, F>(
        &self,
        deadline: Duration,
        ask: impl Fn(AdminClient<Channel>) -> F,
        mean: impl Fn(R) -> Meant<T>,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let until = Instant::now() + deadline;
        let mut last = "nothing was asked".to_owned();
        let mut next: Option<String> = None;
        let mut round = self.heads();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Unreachable { heads: self.heads(), last });
            }
            let Some(address) = next.take().or_else(|| round.pop()) else {
                tokio::time::sleep(PAUSE.min(left)).await;
                round = self.heads();
                continue;
            };
            let Some(client) = driver::ask(&self.net, &address) else {
                last = format!("{address} is no address");
                continue;
            };
            match tokio::time::timeout(left.min(ATTEMPT), ask(client)).await {
                Ok(Ok(reply)) => match mean(reply.into_inner()) {
                    Meant::Answer(answer) => return Ok(answer),
                    Meant::Refused(why) => return Err(Error::Refused(why)),
                    Meant::Elsewhere(leader) => {
                        last = format!("{address} does not lead");
                        if leader.is_empty() || leader == address {
                            tokio::time::sleep(PAUSE.min(left)).await;
                        } else {
                            next = Some(leader);
                        }
                    }
                    Meant::Later(why) => {
                        last = format!("{address}: {why}");
                        tokio::time::sleep(PAUSE.min(left)).await;
                    }
                },
                Ok(Err(status)) => last = format!("{address}: {}", status.message()),
                Err(_) => last = format!("{address}: no answer within {ATTEMPT:?}"),
            }
        }
    }

    /// Who the heads are, and the change that is under way.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn heads_table(&self, deadline: Duration) -> Result<proto::HeadsReply, Error> {
        let request = proto::HeadsRequest { cluster: self.cluster(), fresh: true };
        let ask = |mut client: AdminClient<Channel>| async move { client.heads(request).await };
        let mean = |reply: proto::HeadsReply| match (&reply.elsewhere, reply.refused.as_str()) {
            (Some(to), _) => Meant::Elsewhere(to.leader.clone()),
            (None, "") => Meant::Answer(reply),
            (None, why) => Meant::Refused(why.to_owned()),
        };
        self.ask_admin(deadline, ask, mean).await
    }

    /// Asks for a change of the heads; `cluster` is filled in. The same request may be sent again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn change_heads(
        &self,
        request: proto::ChangeHeadsRequest,
        deadline: Duration,
    ) -> Result<proto::ChangeHeadsReply, Error> {
        let request = proto::ChangeHeadsRequest { cluster: self.cluster(), ..request };
        let ask = |mut client: AdminClient<Channel>| {
            let request = request.clone();
            async move { client.change_heads(request).await }
        };
        let mean = |reply: proto::ChangeHeadsReply| match (
            &reply.elsewhere,
            reply.refused.as_str(),
            reply.busy.as_str(),
        ) {
            (Some(to), ..) => Meant::Elsewhere(to.leader.clone()),
            (None, "", "") => Meant::Answer(reply),
            (None, "", busy) => Meant::Later(busy.to_owned()),
            (None, why, _) => Meant::Refused(why.to_owned()),
        };
        self.ask_admin(deadline, ask, mean).await
    }

    /// How one head sees the shards.
    ///
    /// # Errors
    /// It does not answer, or belongs to another cluster.
    pub async fn shards_of(&self, address: &str) -> Result<proto::ShardsReply, Error> {
        let unreachable = |last: String| Error::Unreachable { heads: vec![address.to_owned()], last };
        let request = proto::ShardsRequest { cluster: self.cluster() };
        let mut client =
            driver::ask(&self.net, address).ok_or_else(|| unreachable("it is no address".into()))?;
        match tokio::time::timeout(ATTEMPT, client.shards(request)).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                if reply.refused.is_empty() { Ok(reply) } else { Err(Error::Refused(reply.refused)) }
            }
            Ok(Err(status)) => Err(unreachable(status.message().to_owned())),
            Err(_) => Err(unreachable(format!("no answer within {ATTEMPT:?}"))),
        }
    }

    /// Events after number `above`, from whichever head answers; none if there are none for `wait`.
    ///
    /// # Errors
    /// No head answers.
    pub async fn events(
        &self,
        above: u64,
        wait: Duration,
        deadline: Duration,
    ) -> Result<proto::EventsReply, Error> {
        let wait_ms = wait.min(ATTEMPT / 2).as_millis() as u32;
        let request = proto::EventsRequest { cluster: self.cluster(), above, wait_ms };
        let ask = |mut client: AdminClient<Channel>| async move { client.events(request).await };
        let mean = |reply: proto::EventsReply| match (reply.refused.as_str(), reply.busy.as_str()) {
            ("", "") => Meant::Answer(reply),
            ("", busy) => Meant::Later(busy.to_owned()),
            (why, _) => Meant::Refused(why.to_owned()),
        };
        self.ask_admin(deadline, ask, mean).await
    }

    /// Which shard owns which slots, and the move that is under way.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn slot_table(&self, deadline: Duration) -> Result<proto::SlotsReply, Error> {
        let request = proto::SlotsRequest { cluster: self.cluster(), fresh: true };
        let ask = |mut client: AdminClient<Channel>| async move { client.slots(request).await };
        let mean = |reply: proto::SlotsReply| match (&reply.elsewhere, reply.refused.as_str()) {
            (Some(to), _) => Meant::Elsewhere(to.leader.clone()),
            (None, "") => Meant::Answer(reply),
            (None, why) => Meant::Refused(why.to_owned()),
        };
        self.ask_admin(deadline, ask, mean).await
    }

    /// Asks for a move of slots. The same request may be sent again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn move_slots(
        &self,
        start: proto::StartSlotPlan,
        deadline: Duration,
    ) -> Result<proto::MoveSlotsReply, Error> {
        let request = proto::MoveSlotsRequest { cluster: self.cluster(), r#move: Some(start) };
        let ask = |mut client: AdminClient<Channel>| {
            let request = request.clone();
            async move { client.move_slots(request).await }
        };
        let mean = |reply: proto::MoveSlotsReply| match (
            &reply.elsewhere,
            reply.refused.as_str(),
            reply.busy.as_str(),
        ) {
            (Some(to), ..) => Meant::Elsewhere(to.leader.clone()),
            (None, "", "") => Meant::Answer(reply),
            (None, "", busy) => Meant::Later(busy.to_owned()),
            (None, why, _) => Meant::Refused(why.to_owned()),
        };
        self.ask_admin(deadline, ask, mean).await
    }

    /// Has `head` lead `shard`; returns once it does.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn move_leader(&self, shard: u32, head: u64, deadline: Duration) -> Result<(), Error> {
        let request = proto::MoveLeaderRequest { cluster: self.cluster(), shard, head };
        let ask = |mut client: AdminClient<Channel>| async move { client.move_leader(request).await };
        let mean = |reply: proto::MoveLeaderReply| match reply {
            proto::MoveLeaderReply { leads: true, .. } => Meant::Answer(()),
            proto::MoveLeaderReply { elsewhere: Some(to), .. } => Meant::Elsewhere(to.leader),
            proto::MoveLeaderReply { refused, .. } if !refused.is_empty() => Meant::Refused(refused),
            proto::MoveLeaderReply { busy, .. } => Meant::Later(busy),
        };
        self.ask_admin(deadline, ask, mean).await
    }

    /// Has every replica of `shard` digest its state at one entry, which is returned.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn checkpoint(&self, shard: u32, id: u64, deadline: Duration) -> Result<u64, Error> {
        let op = proto::command::Op::Checkpoint(proto::Checkpoint { id });
        let reply = self.propose(shard, &proto::Command::from(op), deadline).await?;
        match reply.reply {
            Some(proto::reply::Reply::Revision(index)) => Ok(index),
            _ => Err(Error::Protocol("a checkpoint was answered with something else")),
        }
    }

    /// Index and digest of checkpoint `id` at the head at `address`, once it has them.
    ///
    /// # Errors
    /// It does not answer in time, or has not got so far.
    pub async fn digest_of(
        &self,
        address: &str,
        shard: u32,
        id: u64,
        deadline: Duration,
    ) -> Result<(u64, u64), Error> {
        let unreachable = |last: String| Error::Unreachable { heads: vec![address.to_owned()], last };
        let request = proto::DigestRequest { cluster: self.cluster(), shard, id };
        let until = Instant::now() + deadline;
        loop {
            let mut client =
                driver::ask(&self.net, address).ok_or_else(|| unreachable("it is no address".into()))?;
            let why = match tokio::time::timeout(ATTEMPT, client.digest(request)).await {
                Ok(Ok(reply)) => match reply.into_inner() {
                    proto::DigestReply { found: true, index, digest, .. } => return Ok((index, digest)),
                    proto::DigestReply { refused, .. } if !refused.is_empty() => {
                        return Err(Error::Refused(refused));
                    }
                    _ => "it has not applied the entry yet".to_owned(),
                },
                Ok(Err(status)) => status.message().to_owned(),
                Err(_) => format!("no answer within {ATTEMPT:?}"),
            };
            if Instant::now() >= until {
                return Err(unreachable(why));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes what `shard` holds into an archive, from its leader.
    ///
    /// # Errors
    /// No leader answered in time, it went away in the middle, or the archive cannot be written.
    pub async fn dump<W: std::io::Write>(
        &self,
        shard: u32,
        deadline: Duration,
        to: &mut Writer<W>,
    ) -> Result<(), Error> {
        let request = proto::DumpRequest { cluster: self.cluster(), shard };
        let until = Instant::now() + deadline;
        let (mut next, mut round) = (None, self.heads());
        let mut last = "nothing was asked".to_owned();
        loop {
            let Some(address) = next.take().or_else(|| round.pop()) else {
                if Instant::now() >= until {
                    return Err(Error::Unreachable { heads: self.heads(), last });
                }
                tokio::time::sleep(PAUSE).await;
                round = self.heads();
                continue;
            };
            let Some(mut client) = driver::ask(&self.net, &address) else { continue };
            let cut = |why: &str| Error::Unreachable {
                heads: vec![address.clone()],
                last: format!("shard {shard}: {why}; take the backup again"),
            };
            let mut parts = match tokio::time::timeout(ATTEMPT, client.dump(request)).await {
                Ok(Ok(parts)) => parts.into_inner(),
                Ok(Err(status)) => {
                    last = format!("{address}: {}", status.message());
                    continue;
                }
                Err(_) => {
                    last = format!("{address}: no answer within {ATTEMPT:?}");
                    continue;
                }
            };
            let mut begun = false;
            loop {
                let part = tokio::time::timeout(PART_DEADLINE, parts.message()).await;
                let part = part.map_err(|_| cut("the leader fell silent"))?;
                let part = part.map_err(|status| cut(status.message()))?;
                let part = part.ok_or_else(|| cut("it was cut short"))?;
                if let Some(to) = part.elsewhere {
                    last = format!("{address} does not lead");
                    next = Some(to.leader).filter(|leader| !leader.is_empty());
                    break;
                }
                if !part.refused.is_empty() && !begun {
                    last = format!("{address}: {}", part.refused);
                    break;
                }
                if !part.refused.is_empty() {
                    return Err(cut(&part.refused));
                }
                let written = match &part.head {
                    Some(head) => to.shard(head),
                    None => to.data(&part.data),
                };
                written.map_err(|error| Error::storage("the backup", error))?;
                begun = true;
                if part.last {
                    return Ok(());
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
