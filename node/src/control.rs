//! Everything a node says to the control store: its streams, questions, holdings, heartbeats.
//!
//! Each concern is its own task, so that a slow shard delays nothing else. Every call is
//! idempotent and repeated until it is answered or the node's life ends.

use crate::input::{Inbox, Input};
use mobula_base::{Incarnation, ObjectId, ShardId};
use mobula_gcs::Client;
use mobula_proto::{
    HoldingRequest, JobEnd, JobStart, Located, NodeJoin, StreamBatch, call, call_reply, heartbeat_reply,
    holding_reply, located, object_bytes, object_id, reply,
};
use mobula_scheduler::Event;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

/// Deadline of one try of a stream batch; it is repeated unchanged.
const BATCH_DEADLINE: Duration = Duration::from_secs(10);
/// How long a question may be parked at the store.
const PARK: Duration = Duration::from_millis(1000);
/// How often a node says that it lives.
const HEARTBEAT_EVERY: Duration = Duration::from_millis(200);
/// How often holdings are reported, and new leaders noticed.
const HOLDING_EVERY: Duration = Duration::from_millis(100);
/// Changes in one report of holdings; the others go with the next.
const REPORTED_MAX: usize = 16 * 1024;
/// Pause after a question that could not be asked.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Deadline of an operation a person waits for.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// A node's side of the control store.
#[derive(Clone)]
pub struct Control {
    /// The client.
    pub client: Client,
    /// The daemon's loop.
    pub inbox: Inbox,
    /// This life.
    pub incarnation: Incarnation,
    /// When the control store last took it for alive.
    pub heard: Heard,
    /// Acknowledgements of records count so much later.
    pub late: Duration,
    /// Version of the newest view that the daemon's loop has acted on.
    pub acted: watch::Receiver<u64>,
    /// Rung when something has been reserved for a placement group: the next heartbeat says so, at once.
    pub claims_told: Arc<Notify>,
}

/// A copy that this node has got, or has no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It is here.
    Held(ObjectId),
    /// It is not here, whatever was said before.
    Gone(ObjectId),
}

/// When the leader of shard 0 last answered a heartbeat; at first, when the life began.
#[derive(Clone)]
pub struct Heard(Arc<Mutex<Instant>>);

impl Default for Heard {
    fn default() -> Self {
        Heard(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Heard {
    fn note(&self) {
        *self.0.lock().expect("nothing panics under this lock") = Instant::now();
    }

    /// How long ago that was.
    pub fn age(&self) -> Duration {
        self.0.lock().expect("nothing panics under this lock").elapsed()
    }
}

/// Commits the start of a job.
///
/// # Errors
/// The control store cannot be reached or refuses.
pub async fn start_job(client: &Client, start: JobStart) -> Result<(), String> {
    let answer = client.call(call::Op::JobStart(start), 0, CALL_DEADLINE).await.map_err(|e| e.to_string())?;
    match answer.reply {
        Some(call_reply::Reply::Revision(_)) => Ok(()),
        Some(call_reply::Reply::Failure(failure)) => Err(failure.message),
        other => Err(format!("the control store answered {other:?}")),
    }
}

/// Commits the end of a job; gives up only with the node.
pub async fn end_job(client: &Client, job: u64, succeeded: bool) {
    loop {
        if client.call(call::Op::JobEnd(JobEnd { job, succeeded }), 0, CALL_DEADLINE).await.is_ok() {
            return;
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// Joins: gets this life's number.
///
/// # Errors
/// The control store cannot be reached or refuses.
pub async fn join(client: &Client, join: NodeJoin) -> Result<Incarnation, crate::config::Error> {
    let answer = client.call(call::Op::NodeJoin(join), 0, CALL_DEADLINE).await?;
    match answer.reply {
        Some(call_reply::Reply::Incarnation(n)) => Ok(Incarnation(n)),
        Some(call_reply::Reply::Failure(failure)) => Err(crate::config::Error::Refused(failure.message)),
        other => Err(crate::config::Error::Refused(format!("{other:?}"))),
    }
}

impl Control {
    async fn say(&self, input: Input) {
        let _ = self.inbox.send(input).await;
    }

    /// Sends the batches of one stream, one after the other, each until it is acknowledged (R12).
    pub async fn run_stream(self, shard: ShardId, mut batches: mpsc::UnboundedReceiver<StreamBatch>) {
        while let Some(batch) = batches.recv().await {
            let command = Client::stream_command(batch);
            loop {
                let answer = self.client.propose_encoded(shard.0, command.clone(), BATCH_DEADLINE).await;
                match answer.ok().and_then(|r| r.reply) {
                    Some(reply::Reply::Stream(ack)) => {
                        // The map that says where they belong comes with the views.
                        let (moved, _) = Client::moved_items(&command, &ack);
                        if !self.late.is_zero() {
                            tokio::time::sleep(self.late).await;
                        }
                        self.say(Input::Core(Event::Acked { shard, ack, moved })).await;
                        break;
                    }
                    // A gap can only mean that the shard knows more of this life than it does.
                    Some(reply::Reply::Fenced(_) | reply::Reply::ExpectedSeq(_)) => {
                        self.say(Input::Fenced).await;
                        return;
                    }
                    Some(
                        reply::Reply::Call(_)
                        | reply::Reply::Revision(_)
                        | reply::Reply::Batch(_)
                        | reply::Reply::Heads(_)
                        | reply::Reply::Slots(_)
                        | reply::Reply::Unnames(_),
                    )
                    | None => {
                        tokio::time::sleep(RETRY_AFTER).await;
                    }
                }
            }
        }
    }

    /// Asks a home shard about objects, once; what stays open is asked again by the core.
    pub async fn locate(self, shard: ShardId, objects: Vec<ObjectId>) {
        let asked = objects.iter().map(|o| object_bytes(*o)).collect();
        let answer = self.client.locate(shard.0, self.incarnation.0, asked, PARK, CALL_DEADLINE).await;
        let answers = match answer {
            Ok(list) => {
                self.follow(&list.answers).await;
                list.answers
            }
            Err(_) => {
                tokio::time::sleep(RETRY_AFTER).await;
                Vec::new()
            }
        };
        self.say(Input::Core(Event::Located { asked: objects, answers })).await;
    }

    /// Some of the objects are elsewhere: they are asked for again once it is known where.
    async fn follow(&self, answers: &[Located]) {
        let epoch = |located: &Located| match located.answer {
            Some(located::Answer::Moved(epoch)) => Some(epoch),
            _ => None,
        };
        let Some(epoch) = answers.iter().filter_map(epoch).max() else { return };
        match self.client.follow_slots(epoch, PARK).await {
            Ok(Some(view)) => self.say(Input::View(view)).await,
            // This node's watch has brought it, or will.
            Ok(None) | Err(_) => tokio::time::sleep(RETRY_AFTER).await,
        }
    }

    /// Reports copies to one shard; tells a new leader everything (R9).
    pub async fn run_holdings(self, shard: ShardId, mut changes: mpsc::UnboundedReceiver<Copied>) {
        let (mut term, mut number, mut acted) = (0, 0, self.acted.clone());
        // Whether each is here, as it stands now.
        let mut waiting: BTreeMap<ObjectId, bool> = BTreeMap::new();
        loop {
            // A death is confirmed at once: shards wait for it before they call anything lost (R9).
            if let Ok(Err(_)) = tokio::time::timeout(HOLDING_EVERY, acted.changed()).await {
                return;
            }
            // Before what is held is looked at: whatever was done for a death shows in it.
            let deaths = *acted.borrow();
            while let Ok(change) = changes.try_recv() {
                match change {
                    Copied::Held(object) => waiting.insert(object, true),
                    Copied::Gone(object) => waiting.insert(object, false),
                };
            }
            if changes.is_closed() {
                return;
            }
            let (reply, idle) = oneshot::channel();
            self.say(Input::Idle { shard, reply }).await;
            let Ok(idle) = idle.await else { return };
            let report = self.changes(shard, term, &waiting);
            let report = HoldingRequest { idle: idle.into_iter().map(object_bytes).collect(), ..report };
            let told: Vec<ObjectId> = waiting.keys().take(REPORTED_MAX).copied().collect();
            match self.report(deaths, &mut number, report).await {
                Some(holding_reply::Result::AcceptedTerm(_)) => {
                    for object in told {
                        waiting.remove(&object);
                    }
                }
                Some(holding_reply::Result::ReportInFull(new)) => {
                    let (reply, all) = oneshot::channel();
                    self.say(Input::Held { shard, reply }).await;
                    let Ok((map, all)) = all.await else { return };
                    let full = self.in_full(shard, new, map, &all);
                    let answer = self.report(deaths, &mut number, full).await;
                    if let Some(holding_reply::Result::AcceptedTerm(_)) = answer {
                        term = new;
                        // What is gone is told all the same: done-records may promise it.
                        waiting.retain(|_, is_here| !*is_here);
                    }
                }
                Some(holding_reply::Result::Fenced(_)) => {
                    self.say(Input::Fenced).await;
                    return;
                }
                // By an older map: the views bring the newer one, and then all is reported again.
                Some(holding_reply::Result::Moved(_)) => {}
                Some(holding_reply::Result::NotLeader(_) | holding_reply::Result::Refused(_)) | None => {}
            }
        }
    }

    /// Sends a report; what nobody needs of the idle copies may go.
    async fn report(
        &self,
        deaths: u64,
        number: &mut u64,
        report: HoldingRequest,
    ) -> Option<holding_reply::Result> {
        *number += 1;
        let report = HoldingRequest { deaths: Some(deaths), number: *number, ..report };
        let (answer, drop) = self.client.report(report, CALL_DEADLINE).await.ok()?;
        if !drop.is_empty() {
            let objects = drop.iter().filter_map(|id| object_id(id).ok()).collect();
            self.say(Input::Core(Event::Freed { objects })).await;
        }
        Some(answer)
    }

    /// A report of what has changed.
    fn changes(&self, shard: ShardId, term: u64, waiting: &BTreeMap<ObjectId, bool>) -> HoldingRequest {
        let now = waiting.iter().take(REPORTED_MAX);
        let (here, gone): (Vec<_>, Vec<_>) = now.partition(|(_, is_here)| **is_here);
        let bytes = |list: Vec<(&ObjectId, &bool)>| list.into_iter().map(|(o, _)| object_bytes(*o)).collect();
        HoldingRequest {
            shard: shard.0,
            incarnation: self.incarnation.0,
            term,
            add: bytes(here),
            remove: bytes(gone),
            ..HoldingRequest::default()
        }
    }

    /// A report of all there is, by the slot map of an epoch.
    fn in_full(&self, shard: ShardId, term: u64, map: u64, all: &[ObjectId]) -> HoldingRequest {
        HoldingRequest {
            shard: shard.0,
            incarnation: self.incarnation.0,
            term,
            full: true,
            map,
            add: all.iter().map(|o| object_bytes(*o)).collect(),
            ..HoldingRequest::default()
        }
    }

    /// Says that this node lives, and how busy it is.
    pub async fn run_heartbeats(self) {
        loop {
            let (reply, load) = oneshot::channel();
            self.say(Input::Load { reply }).await;
            let Ok(load) = load.await else { return };
            let request = mobula_proto::HeartbeatRequest {
                incarnation: self.incarnation.0,
                cpu_milli_free: load.cpu_milli_free as u32,
                queued: load.queued,
                store_bytes_used: load.store_bytes_used,
                follows_slots: true,
                claims: Some(load.claims),
                ..Default::default()
            };
            let answer = self.client.heartbeat(request, HEARTBEAT_EVERY * 5).await;
            match answer {
                Ok(heartbeat_reply::Result::Fenced(_)) => {
                    self.say(Input::Fenced).await;
                    return;
                }
                // A watch may be parked at a head that is cut off; this view comes from the leader.
                Ok(heartbeat_reply::Result::View(view)) => {
                    self.heard.note();
                    self.say(Input::View(view)).await;
                }
                Ok(heartbeat_reply::Result::NotLeader(_) | heartbeat_reply::Result::Refused(_)) | Err(_) => {}
            }
            // Either it is time, or there is something to say.
            let _ = tokio::time::timeout(HEARTBEAT_EVERY, self.claims_told.notified()).await;
        }
    }

    /// Follows the membership and the jobs.
    pub async fn run_watch(self) {
        let mut version = 0;
        loop {
            match self.client.watch(version, PARK, CALL_DEADLINE).await {
                Ok(view) if view.version > version => {
                    version = view.version;
                    let gone = view.nodes.iter().any(|n| n.incarnation == self.incarnation.0 && !n.alive);
                    self.say(Input::View(view)).await;
                    if gone {
                        self.say(Input::Fenced).await;
                    }
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(RETRY_AFTER).await,
            }
        }
    }

    /// Passes on the kernel's proof that a node is gone.
    pub async fn suspect(&self, suspect: Incarnation, evidence: String) {
        let _ = self.client.suspect(suspect.0, self.incarnation.0, &evidence, CALL_DEADLINE).await;
    }
}

/// Says goodbye, so that nobody has to find out. A node that cannot is declared dead later.
pub async fn leave(client: &Client, incarnation: Incarnation) {
    let leave = mobula_proto::NodeLeave { incarnation: incarnation.0 };
    let _ = client.call(call::Op::NodeLeave(leave), 0, Duration::from_secs(1)).await;
}
