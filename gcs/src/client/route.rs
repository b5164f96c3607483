//! Whom to ask: the known leader, whoever an answer points to, then everyone else, at once. Only
//! after a whole round without success is there a pause.

use super::admin::REFRESH;
use super::{Client, Store};
use crate::error::Error;
use mobula_net::seam::BoxFuture;
use mobula_proto as proto;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// First pause after a round in which no head helped.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// So often the pause does not grow while some head answers that it does not lead: an election is
/// under way and will be over in a moment.
const ELECTION_ROUNDS: u32 = 16;
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

/// A request that can be sent again and again.
pub(super) type Ask<'a, T> =
    Box<dyn Fn(Store) -> BoxFuture<'static, Result<Said<T>, Status>> + Send + Sync + 'a>;

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
        let ask: $crate::client::route::Ask<'static, _> = Box::new(move |mut store: $crate::client::Store| {
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
pub(super) use asking;

impl Client {
    /// Asks until some head answers; `shard` is whose leader is wanted, `None` for any head.
    pub(super) async fn ask<T>(
        &self,
        shard: Option<u32>,
        manner: Manner,
        ask: Ask<'_, T>,
    ) -> Result<T, Error> {
        let until = Instant::now() + manner.deadline;
        let mut next = shard.and_then(|shard| self.state().leaders.get(&shard).cloned());
        let (mut tried, mut pause): (Vec<String>, _) = (Vec::new(), FIRST_PAUSE);
        let (mut last, mut sent) = ("nothing was asked".to_owned(), false);
        let (mut elections, mut answered) = (0, false);
        let mut hint = None;
        let mut troubled = false;
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
                tried.clear();
                let longer = self.rest(pause, left).await;
                if !std::mem::take(&mut answered) || elections >= ELECTION_ROUNDS {
                    pause = longer;
                }
                elections += 1;
                next = hint.take();
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
            match tokio::time::timeout(left.min(manner.attempt), ask(store)).await {
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
                    sent = true;
                    (answered, troubled) = (true, true);
                    self.forget(shard, &target);
                    // Someone who was asked a moment ago may lead by now: first in the next round.
                    hint = Some(to.address).filter(|to| !to.is_empty());
                    next = hint.take_if(|to| !tried.contains(to));
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
                }
                Err(_) => {
                    troubled = true;
                    last = format!("{target}: no answer within {:?}", manner.attempt);
                    sent = true;
                    self.hang_up(&target, number);
                    self.forget(shard, &target);
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
