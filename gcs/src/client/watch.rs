//! Watching keys: every change once, in order, whichever heads come and go.

use super::route::{Manner, Said, asking};
use super::{ATTEMPT, Client};
use crate::error::Error;
use bytes::Bytes;
use mobula_proto as proto;
use std::time::Duration;

/// A question waits at a head for this long; then it is asked anew.
const WAIT: Duration = Duration::from_secs(2);

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// The next changes, in order.
    Changes(Vec<proto::KvChange>),
    /// Changes were forgotten before this watcher saw them: this is all there is as of the list's
    /// revision, in place of whatever was known. The changes after it follow.
    Listed(proto::KvList),
}

/// A watch on the keys below a prefix, in one shard. It keeps nothing at the heads: dropping it is
/// the end of it.
pub struct Watcher {
    client: Client,
    shard: u32,
    prefix: Bytes,
    next: u64,
}

enum Answer {
    Changes(proto::KvChanges),
    Compacted,
}

impl Client {
    /// Watches the keys of one shard that start with `prefix`, from revision `from` on (1 for all
    /// there ever were; the revision of a [`Client::list`] and one for what follows it).
    pub fn watch_keys(&self, prefix: &[u8], shard: u32, from: u64) -> Watcher {
        let prefix = Bytes::copy_from_slice(prefix);
        Watcher { client: self.clone(), shard, prefix, next: from.max(1) }
    }

    async fn ask_changes(&self, request: proto::KvWatchRequest, deadline: Duration) -> Result<Answer, Error> {
        use proto::kv_watch_reply::Result as R;
        let ask = asking!(kv_watch, request,
            Some(R::Changes(changes)) => Said::Answer(Answer::Changes(changes)),
            Some(R::Compacted(_)) => Said::Answer(Answer::Compacted),
            // Another head may be further.
            Some(R::Behind(_)) => Said::NotLeader(proto::NotLeader::default()),
            Some(R::Busy(_)) => Said::NotLeader(proto::NotLeader::default()),
            Some(R::Refused(why)) => Said::Refused(why),
        );
        self.ask(None, Manner { deadline, attempt: WAIT + ATTEMPT, changes: false }, ask).await
    }
}

impl Watcher {
    /// The revision that is waited for.
    pub fn next_revision(&self) -> u64 {
        self.next
    }

    /// What comes next; no changes when nothing has happened for `deadline`. To go on after an error
    /// or after this future was dropped, call it again: nothing is skipped.
    ///
    /// # Errors
    /// No head answered within `deadline`, or the watch can never succeed.
    pub async fn next(&mut self, deadline: Duration) -> Result<Told, Error> {
        let until = tokio::time::Instant::now() + deadline;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let request = proto::KvWatchRequest {
                cluster: self.client.cluster(),
                shard: self.shard,
                prefix: self.prefix.clone(),
                from_revision: self.next,
                wait_ms: left.min(WAIT).as_millis() as u32,
            };
            match self.client.ask_changes(request, left + ATTEMPT).await? {
                Answer::Changes(found) => {
                    self.next = self.next.max(found.next);
                    if !found.changes.is_empty() || left.is_zero() {
                        return Ok(Told::Changes(found.changes));
                    }
                }
                Answer::Compacted => {
                    let list = self.client.list(&self.prefix, self.shard, left + ATTEMPT).await?;
                    self.next = list.revision + 1;
                    return Ok(Told::Listed(list));
                }
            }
        }
    }
}
