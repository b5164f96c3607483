//! Looking at the cluster: watch (any head), read (fresh, leader), status (any head, any time).

use super::{Running, Service, Site, not_leader};
use crate::core::ShardState;
use crate::raft::group::NotDone;
use mobula_base::TaskId;
use mobula_proto as proto;
use proto::read_reply::Result as Read;
use proto::read_request::What;
use proto::watch_reply::Result as Watched;
use std::time::Duration;
use tokio::time::Instant;

/// Events in one answer.
const EVENTS_AT_ONCE: usize = 512;
/// No watch is parked longer than this.
const MAX_WAIT: Duration = Duration::from_secs(10);

impl Running {
    /// The cluster as the local replica of shard 0 has it.
    pub fn view(&self) -> proto::ClusterView {
        let mut view = self.root().replica.with(|state| state.cluster.view());
        let heads = self.root().heads();
        view.heads = heads
            .into_iter()
            .map(|head| proto::HeadView { head: head.head, address: head.address })
            .collect();
        view.cluster = self.identity.cluster;
        view.shards = self.identity.shards;
        let map = self.root().replica.with(|state| state.cluster.slots_table.map(self.identity.shards));
        view.slots = Some(proto::slot_map(&map));
        view
    }
}

impl Service {
    pub(super) async fn watched(&self, request: proto::WatchRequest) -> Watched {
        let running = match self.running(request.cluster) {
            Ok(running) => running,
            Err(why) => return Watched::Refused(why),
        };
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(MAX_WAIT);
        let mut applied = running.root().replica.applied();
        loop {
            applied.borrow_and_update();
            let version = running.members().version;
            if version > request.above || Instant::now() >= deadline {
                return Watched::View(running.view());
            }
            // Either the deadline or the end of this head.
            if !matches!(tokio::time::timeout_at(deadline, applied.changed()).await, Ok(Ok(()))) {
                return Watched::View(running.view());
            }
        }
    }

    /// From the local replica, so that any head answers, whoever else is gone.
    pub(super) async fn events_reply(&self, request: proto::EventsRequest) -> proto::EventsReply {
        let running = match self.running(request.cluster) {
            Ok(running) => running,
            Err(busy) if self.starting() => return proto::EventsReply { busy, ..Default::default() },
            Err(refused) => return proto::EventsReply { refused, ..Default::default() },
        };
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(MAX_WAIT);
        let mut applied = running.root().replica.applied();
        loop {
            applied.borrow_and_update();
            let reply = running.root().replica.with(|state| {
                let events = &state.cluster.events;
                let (first, last) = (events.first(), events.last());
                let events = events.after(request.above, EVENTS_AT_ONCE);
                proto::EventsReply { events, first, last, ..Default::default() }
            });
            // The end of the wait may be the end of this head.
            if !reply.events.is_empty()
                || !matches!(tokio::time::timeout_at(deadline, applied.changed()).await, Ok(Ok(())))
            {
                return reply;
            }
        }
    }

    pub(super) async fn read_fresh(&self, request: proto::ReadRequest) -> Read {
        let group = match self.shard(request.cluster, request.shard) {
            Ok((_, group)) => group,
            Err(why) if self.starting() => return Read::Busy(why),
            Err(why) => return Read::Refused(why),
        };
        match group.read_index().await {
            Ok(()) => {}
            Err(NotDone::NotLeader(leader)) => return Read::NotLeader(not_leader(leader)),
            Err(NotDone::Busy(why) | NotDone::Unknown(why)) => return Read::Busy(why),
        }
        group.replica.with(|state| look(state, request.what, request.map))
    }
}

fn look(state: &ShardState, what: Option<What>, map: u64) -> Read {
    let entry = |key: &bytes::Bytes, kv: &crate::core::kv::KvValue| proto::KvEntry {
        key: key.clone(),
        value: kv.value.clone(),
        revision: kv.revision,
    };
    match what {
        Some(What::Key(key)) => {
            if let Some(epoch) = state.slots.moved_key(&key) {
                return Read::Moved(epoch);
            }
            let entries = state.kv.get(&key).map(|kv| entry(&key, kv)).into_iter().collect();
            Read::Kv(proto::KvList { entries, revision: state.kv.history().last() })
        }
        // One who lists shard after shard by one map misses nothing: each still has what the map says.
        Some(What::Prefix(_)) if map > 0 && state.slots.epoch() > map => Read::Moved(state.slots.epoch()),
        Some(What::Prefix(prefix)) => {
            let ours = state.kv.below(&prefix).filter(|(key, _)| state.slots.moved_key(key).is_none());
            let entries = ours.map(|(key, kv)| entry(key, kv)).collect();
            Read::Kv(proto::KvList { entries, revision: state.kv.history().last() })
        }
        Some(What::Tasks(ids)) => {
            let moved = |id: &bytes::Bytes| state.slots.moved(TaskId::from_bytes(id)?.run.slot());
            if let Some(epoch) = ids.tasks.iter().find_map(moved) {
                return Read::Moved(epoch);
            }
            let view = |id: &bytes::Bytes| {
                let unknown = proto::TaskView { task: id.clone(), ..Default::default() };
                TaskId::from_bytes(id).map_or(Ok(unknown), |id| state.view_of(id, ids.with_spec))
            };
            match ids.tasks.iter().map(view).collect() {
                Ok(tasks) => Read::Tasks(proto::TaskViews { tasks }),
                Err(error) => Read::Busy(format!("lineage on this head's disk cannot be read: {error}")),
            }
        }
        None => Read::Refused("the read asks for nothing".into()),
    }
}

impl Site {
    /// How this head is.
    pub fn status(&self) -> proto::StatusReply {
        let Some(running) = self.running.get() else {
            return proto::StatusReply {
                head: self.head,
                heads: self.founders.clone(),
                resident_bytes: resident_bytes(),
                ..Default::default()
            };
        };
        let stopped = running.log.stopped();
        let shard = |group: &std::sync::Arc<crate::raft::group::Group>| {
            let leadership = group.leadership();
            let progress = group.progress();
            proto::ShardStatus {
                shard: group.shard,
                term: leadership.term,
                leader: leadership.leader.map_or(0, |leader| leader.head),
                last_log: progress.last_log,
                applied: progress.applied,
                tasks: group.replica.with(|state| state.tasks.len()),
                stopped: stopped.clone().or(progress.stopped).unwrap_or_default(),
            }
        };
        let mut view = running.view();
        running.liveness.beats().add_loads(&mut view);
        proto::StatusReply {
            head: running.identity.head,
            cluster: running.identity.cluster,
            shards: running.groups.iter().map(shard).collect(),
            view: Some(view),
            heads: match running.root().heads() {
                heads if heads.is_empty() => self.founders.clone(),
                heads => heads.into_iter().map(|head| head.address).collect(),
            },
            syncs: running.log.syncs(),
            resident_bytes: resident_bytes(),
            alarms: running.alarms.list(),
        }
    }
}

/// Memory of this process, 0 where the kernel does not say.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|pages| pages.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 4096
}
