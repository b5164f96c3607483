//! Who leads: for clients whose leader is gone or silent, parked until there is another.

use super::Service;
use mobula_proto as proto;
use openraft::async_runtime::WatchReceiver;
use std::time::Duration;
use tokio::time::Instant;

/// No question is parked longer than this.
const MAX_WAIT: Duration = Duration::from_secs(1);

impl Service {
    /// The leader of a shard as this replica sees it, unless it is one of those excepted.
    pub(super) async fn led(&self, request: proto::LeaderRequest) -> proto::LeaderReply {
        // A head that cannot say is like one that does not know.
        let Ok((_, group)) = self.shard(request.cluster, request.shard) else {
            return proto::LeaderReply::default();
        };
        let until = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(MAX_WAIT);
        let mut changes = group.raft.metrics();
        loop {
            let leader = group.leadership().leader.filter(|to| !request.except.contains(&to.address));
            if leader.is_some() {
                return proto::LeaderReply { leader: Some(super::not_leader(leader)) };
            }
            // Either the time is up or this replica has ended.
            if !matches!(tokio::time::timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                return proto::LeaderReply::default();
            }
        }
    }
}
