//! The shell around a core: what it wants is done, or on its way.

use super::world::{DRIVER, JOB, Worker, World};
use mobula_base::{Incarnation, ObjectId, ShardId};
use mobula_gcs::core::pack::pack;
use mobula_proto::command::Op;
use mobula_proto::{FailureKind, StreamBatch, TaskSpec, reply};
use mobula_scheduler::{Effect, Event, Ready};
use std::sync::Arc;

impl World {
    /// Something comes to a node; if it is dead, to nobody.
    pub(super) fn event(&mut self, node: u64, event: Event) {
        let mut events = vec![event];
        while !events.is_empty() {
            let mut effects = Vec::new();
            let Some(at) = self.nodes.get_mut(&node).filter(|at| !at.is_dead) else { return };
            at.core.step(std::mem::take(&mut events), self.now, &mut effects);
            for effect in effects {
                self.perform(node, effect, &mut events);
            }
        }
    }

    fn perform(&mut self, node: u64, effect: Effect, events: &mut Vec<Event>) {
        let from = Incarnation(node);
        match effect {
            Effect::Run { worker, spec, attempt, .. } => self.runs(node, worker, spec, attempt),
            Effect::Spawn { job } => {
                let at = self.nodes.get_mut(&node).expect("it lives");
                at.next_client += 1;
                at.workers.insert(at.next_client, Worker::default());
                events.push(Event::WorkerUp { worker: at.next_client, job });
            }
            Effect::Kill { worker } | Effect::Retire { worker } => {
                self.nodes.get_mut(&node).expect("it lives").workers.remove(&worker);
                events.push(Event::WorkerGone { worker });
            }
            Effect::Send { shard, batch } => events.extend(self.batch(shard, batch)),
            Effect::Assign { to, assign } => self.tell(node, to, Event::Assigned { from, assign }),
            Effect::Result { to, result } => self.tell(node, to, Event::PeerResult { from, result }),
            Effect::NewItems { to, news } => self.tell(node, to, Event::NewItems { from, news }),
            Effect::TellTaken { to, task, taken } => {
                self.tell(node, to, Event::PeerTaken { from, task, taken })
            }
            // No program here has streams.
            Effect::ItemsTaken { .. } | Effect::ItemsMade { .. } => {}
            Effect::Waiting { to, tasks } => self.tell(node, to, Event::PeerWaiting { from, tasks }),
            Effect::TakeBack { to, task, attempt } => {
                self.tell(node, to, Event::TakenBack { from, task, attempt });
            }
            Effect::Durable { to, task, attempt } => {
                self.tell(node, to, Event::PeerDurable { from, task, attempt });
            }
            Effect::Cancel { to, tasks, recursive } => {
                self.tell(node, to, Event::Cancel { from: Some(from), tasks, recursive });
            }
            Effect::Freed { to, objects } => self.tell(node, to, Event::Freed { objects }),
            Effect::Ready { client: DRIVER, object, ready } => self.told(object, &ready),
            Effect::FreeJob(JOB) => self.nodes.get_mut(&node).expect("it lives").workers.clear(),
            Effect::Locate { .. } | Effect::Fetch { .. } | Effect::Replicate { .. } => {
                panic!("tasks here take nothing, and make nothing large: {effect:?}")
            }
            // Workers here end what they run by themselves; heartbeats come anyway.
            Effect::Stop { .. }
            | Effect::TellClaims
            | Effect::Group { .. }
            | Effect::Ready { .. }
            | Effect::Committed { .. }
            | Effect::Held { .. }
            | Effect::Discard { .. }
            | Effect::Notice { .. }
            | Effect::FreeJob(_) => {}
        }
    }

    /// A batch of a stream is committed at once: what goes wrong there is the business of `crate::core`.
    fn batch(&mut self, shard: ShardId, batch: StreamBatch) -> Option<Event> {
        match self.apply(Op::Stream(pack(batch))) {
            Some(reply::Reply::Stream(ack)) => Some(Event::Acked { shard, ack, moved: Vec::new() }),
            Some(reply::Reply::Fenced(_)) => None,
            other => panic!("streams here have no gaps: {other:?}"),
        }
    }

    fn tell(&mut self, from: u64, to: Incarnation, event: Event) {
        self.messages.entry((from, to.0)).or_default().push_back(event);
    }

    fn runs(&mut self, node: u64, worker: u64, spec: Arc<TaskSpec>, attempt: u32) {
        self.check_run(node, &spec);
        let at = self.nodes.get_mut(&node).expect("it lives");
        at.workers.get_mut(&worker).expect("it was started").queue.push_back((spec, attempt));
    }

    fn told(&mut self, object: ObjectId, ready: &Ready) {
        let Some(task) = self.tasks.get_mut(&object.task) else { return };
        let first = task.ended.is_none();
        task.ended = Some(!matches!(ready, Ready::Failed(_)));
        let group = task.spec.placement().and_then(|placement| placement.group);
        match ready {
            Ready::Failed(failure) => {
                let expected = [
                    FailureKind::FailureGroupRemoved,
                    FailureKind::FailureInfeasible,
                    FailureKind::FailureBadArguments,
                    // Its worker or node died too often.
                    FailureKind::FailureWorkerDied,
                ];
                assert!(expected.contains(&failure.kind()), "{failure:?}");
                let in_group = group.is_some() || failure.kind() == FailureKind::FailureWorkerDied;
                assert!(in_group, "a task beside all groups ended so: {failure:?}");
                self.tally.refused += u64::from(first);
            }
            Ready::Here(_) | Ready::Elsewhere(_) if group.is_some() => {
                self.tally.in_groups += u64::from(first);
            }
            Ready::Here(_) | Ready::Elsewhere(_) => self.tally.beside += u64::from(first),
        }
    }
}
