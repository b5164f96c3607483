//! Whom to ask: the known leader, whoever an answer points to, then everyone else, at once. When a
//! leader is gone or silent, the others are asked who follows it, and answer as soon as somebody
//! does. Only after a whole round without success is there a pause.

use super::admin::REFRESH;
use super::{Client, Store};
use crate::error::Error;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mobula_net::seam::BoxFuture;
use mobula_proto as proto;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// First pause after a round in which no head helped.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// So often there is no pause when a leader was named: it may have been deposed again. After that
/// heads contradict each other, and need time.
const NAMED_ROUNDS: u32 = 16;
/// A head is asked to wait this long for a leader that it can name.
const LEADER_WAIT: Duration = Duration::from_millis(250);
/// And so much longer for the answer.
const LEADER_GRACE: Duration = Duration::from_millis(250);
/// A leader that has not answered for this long may have been replaced: the others are asked.
const SILENCE: Duration = Duration::from_millis(300);
/// Pauses double up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// After trouble the list of heads is refreshed no more often than this.
const AFTER_TROUBLE: Duration = Duration::from_millis(200);

/// What one head said.
pub(super) enum Said<T> {
    /// The answer.
    Answer(T),
    /// Ask another head.
    NotLeader(proto::NotLeader),
    /// Ask the same head again, later.
    Later(String),
    /// Never ask this again.
    Refused(String),
}

/// One attempt at a request, on its way.
pub(super) type Attempt<T> = BoxFuture<'static, Result<Said<T>, Status>>;

/// A request that can be sent again and again.
pub(super) struct Ask<T> {
    /// The method, as the store calls it.
    pub method: &'static str,
    /// Sends it once.
    pub send: Box<dyn Fn(Store) -> Attempt<T> + Send + Sync>,
}

/// How patient a request is and what its failure means.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// All attempts together.
    pub deadline: Duration,
    /// One attempt at one head.
    pub attempt: Duration,
    /// It changes something, so that silence means "unknown" rather than "no".
    pub changes: bool,
}

/// The usual manner: one second per attempt.
pub(super) fn manner(deadline: Duration, changes: bool) -> Manner {
    Manner { deadline, attempt: super::ATTEMPT, changes }
}

/// What an empty answer is called.
pub(super) const EMPTY: Error = Error::Protocol("an answer without content");

/// A request to `$method` of the store, made of `$request`; its result goes through the arms.
macro_rules! asking {
    ($method:ident, $request:expr, $($arm:pat => $said:expr),+ $(,)?) => {{
        let request = $request;
        $crate::client::route::Ask {
            method: stringify!($method),
            send: Box::new(move |mut store: $crate::client::Store| {
                let request = request.clone();
                Box::pin(async move {
                    let reply = store.$method(request).await?.into_inner();
                    Ok(match reply.result {
                        $($arm => $said,)+
                        None => Said::Later("an answer without content".into()),
                    })
                })
            }),
        }
    }};
}
pub(super) use asking;

impl Client {
    /// Asks until some head answers; `shard` is whose leader is wanted, `None` for any head.
    pub(super) async fn ask<T>(&self, shard: Option<u32>, manner: Manner, ask: Ask<T>) -> Result<T, Error> {
        let until = Instant::now() + manner.deadline;
        let mut next = shard.and_then(|shard| self.state().leaders.get(&shard).cloned());
        let (mut tried, mut pause): (Vec<String>, _) = (Vec::new(), FIRST_PAUSE);
        let (mut last, mut sent) = ("nothing was asked".to_owned(), false);
        let (mut troubled, mut again) = (false, false);
        // Heads that could not be asked in this round: their successors are wanted.
        let (mut failed, mut named): (Vec<String>, _) = (Vec::new(), 0);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(if sent && manner.changes {
                    Error::OutcomeUnknown(last)
                } else {
                    Error::Unreachable { heads: self.heads(), last }
                });
            }
            let heads = self.heads();
            let Some(target) = next.take().or_else(|| heads.into_iter().find(|head| !tried.contains(head)))
            else {
                next = self.named(shard, &failed, left).await;
                tried.clear();
                failed.clear();
                named += 1;
                if next.is_none() || named > NAMED_ROUNDS {
                    pause = self.rest(pause, until.saturating_duration_since(Instant::now())).await;
                }
                continue;
            };
            tried.push(target.clone());
            let (number, store) = match self.store(&target) {
                Ok(found) => found,
                Err(error) => {
                    last = format!("{target}: {error}");
                    continue;
                }
            };
            self.count_try(ask.method, std::mem::replace(&mut again, true));
            let answer = tokio::time::timeout(left.min(manner.attempt), (ask.send)(store));
            let answer = tokio::select! {
                biased;
                answer = answer => answer,
                successor = self.replaced(shard, &target), if manner.attempt == super::ATTEMPT => {
                    last = format!("{target}: no answer, and {successor} leads now");
                    (sent, troubled) = (true, true);
                    self.hang_up(&target, number);
                    self.forget(shard, &target);
                    next = Some(successor);
                    continue;
                }
            };
            match answer {
                Ok(Ok(Said::Answer(answer))) => {
                    if shard.is_some() {
                        // Only a leader's word counts: a head that was removed has an old list.
                        self.refresh_if_due(&target, troubled);
                    }
                    if let Some(shard) = shard {
                        self.state().leaders.insert(shard, target);
                    }
                    return Ok(answer);
                }
                Ok(Ok(Said::Refused(why))) => return Err(Error::Refused(why)),
                Ok(Ok(Said::NotLeader(to))) => {
                    last = format!("{target} does not lead");
                    // One that has just lost its office says so of requests whose entries may yet be
                    // committed by its successor.
                    (sent, troubled) = (true, true);
                    self.forget(shard, &target);
                    // The round's end asks for whoever was asked a moment ago and may lead by now.
                    next = Some(to.address).filter(|to| !to.is_empty() && !tried.contains(to));
                }
                Ok(Ok(Said::Later(why))) => {
                    last = format!("{target}: {why}");
                    sent = true;
                    pause = self.rest(pause, left).await;
                    next = Some(target);
                }
                Ok(Err(status)) => {
                    troubled = true;
                    last = format!("{target}: {}", status.message());
                    sent = true;
                    self.hang_up(&target, number);
                    self.forget(shard, &target);
                    failed.push(target);
                    next = self.named(shard, &failed, left).await;
                }
                Err(_) => {
                    troubled = true;
                    last = format!("{target}: no answer within {:?}", manner.attempt);
                    sent = true;
                    self.hang_up(&target, number);
                    self.forget(shard, &target);
                    failed.push(target);
                }
            }
        }
    }

    /// Heads come and go. What a request cost on the way to its answer says when to look.
    fn refresh_if_due(&self, answered: &str, troubled: bool) {
        {
            let mut state = self.state();
            let age = state.refreshed.map(|at| at.elapsed());
            if age.is_some_and(|age| age < if troubled { AFTER_TROUBLE } else { REFRESH }) {
                return;
            }
            state.refreshed = Some(Instant::now());
        }
        let (client, answered) = (self.clone(), answered.to_owned());
        tokio::spawn(async move { client.refresh(answered).await });
    }

    /// A leader other than those that failed, named by any other head.
    async fn named(&self, shard: Option<u32>, failed: &[String], left: Duration) -> Option<String> {
        self.find_leader(shard?, failed, LEADER_WAIT.min(left)).await
    }

    /// Returns when `target`, which is silent, has a successor.
    async fn replaced(&self, shard: Option<u32>, target: &String) -> String {
        let Some(shard) = shard else { return std::future::pending().await };
        loop {
            tokio::time::sleep(SILENCE).await;
            if let Some(successor) = self.find_leader(shard, std::slice::from_ref(target), LEADER_WAIT).await
            {
                return successor;
            }
        }
    }

    /// Asks all heads but `except` at once who leads, unless it is one of those; the first answer.
    async fn find_leader(&self, shard: u32, except: &[String], wait: Duration) -> Option<String> {
        let others = self.heads().into_iter().filter(|head| !except.contains(head));
        let mut asked: FuturesUnordered<_> =
            others.map(|head| self.leader_by(head, shard, except, wait)).collect();
        while let Some(answer) = asked.next().await {
            if answer.is_some() {
                return answer;
            }
        }
        None
    }

    async fn leader_by(&self, head: String, shard: u32, except: &[String], wait: Duration) -> Option<String> {
        let (number, mut store) = self.store(&head).ok()?;
        let request = proto::LeaderRequest {
            cluster: self.cluster(),
            shard,
            except: except.to_vec(),
            wait_ms: wait.as_millis() as u32,
        };
        match tokio::time::timeout(wait + LEADER_GRACE, store.leader(request)).await {
            Ok(Ok(reply)) => {
                let leader = reply.into_inner().leader?.address;
                (!leader.is_empty() && !except.contains(&leader)).then_some(leader)
            }
            Ok(Err(_)) | Err(_) => {
                self.hang_up(&head, number);
                None
            }
        }
    }

    /// Pauses with jitter; how long to pause next time.
    async fn rest(&self, pause: Duration, left: Duration) -> Duration {
        let ns = pause.as_nanos() as u64;
        let jitter = Duration::from_nanos(self.state().random.below(ns / 2));
        tokio::time::sleep((pause / 2 + jitter).max(Duration::from_millis(1)).min(left)).await;
        (pause * 2).min(LONGEST_PAUSE)
    }

    fn forget(&self, shard: Option<u32>, target: &str) {
        let Some(shard) = shard else { return };
        let mut state = self.state();
        if state.leaders.get(&shard).is_some_and(|leader| leader == target) {
            state.leaders.remove(&shard);
        }
    }
}
