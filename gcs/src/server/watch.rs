//! Watches on keys: a question that waits for the next change.
//!
//! Any replica answers from what it has applied: that is committed for good, so an answer holds
//! whoever leads. One that has not come as far as the question says so, and is not waited for.

use super::Service;
use crate::core::watch::Since;
use crate::hook::Plant;
use mobula_proto as proto;
use proto::kv_watch_reply::Result as Watched;
use std::time::Duration;
use tokio::time::Instant;

/// No question is parked longer than this.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// A replica that is behind the question waits at most this long to catch up.
const MAX_BEHIND: Duration = Duration::from_millis(200);
/// One answer carries about this many bytes of keys and values.
const ANSWER_BYTES: usize = 1 << 20;

impl Service {
    pub(super) async fn kv_watched(&self, request: proto::KvWatchRequest) -> Watched {
        let group = match self.shard(request.cluster, request.shard) {
            Ok((_, group)) => group,
            Err(why) if self.starting() => return Watched::Busy(why),
            Err(why) => return Watched::Refused(why),
        };
        let asked = Instant::now();
        let until = asked + Duration::from_millis(request.wait_ms.into()).min(MAX_WAIT);
        let mut applied = group.replica.applied();
        loop {
            // Seen before looking, so that no change is missed.
            applied.borrow_and_update();
            let since = group.replica.with(|state| {
                let ask = |from| state.kv.history().since(from, &request.prefix, ANSWER_BYTES);
                match ask(request.from_revision) {
                    Since::Changes(changes, _)
                        if self.0.hook.has(Plant::WatchTwice) && !changes.is_empty() =>
                    {
                        ask(request.from_revision.saturating_sub(1))
                    }
                    since => since,
                }
            });
            let until = match since {
                Since::Compacted(oldest) => return Watched::Compacted(oldest),
                Since::Changes(changes, next) if !changes.is_empty() || Instant::now() >= until => {
                    return Watched::Changes(proto::KvChanges { changes, next });
                }
                Since::Changes(..) => until,
                Since::Behind(last) if Instant::now() >= until.min(asked + MAX_BEHIND) => {
                    return Watched::Behind(last);
                }
                Since::Behind(_) => until.min(asked + MAX_BEHIND),
            };
            // Whatever ends the wait: the next look decides. An error is the end of this head.
            if let Ok(Err(_)) = tokio::time::timeout_at(until, applied.changed()).await {
                return Watched::Busy("this head is shutting down".into());
            }
        }
    }
}
