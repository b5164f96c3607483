//! When the record of a kept task is sent, and when it never is (R4).
//!
//! A record waits for its edges that lie in other shards (R6). What follows from it waits behind it. A task
//! that has come and gone on this node before its record was sent is *elided*: nobody will ask for it.

use crate::core::{Core, KeptState, Record, Waits};
use crate::stream::{About, Content, Ticket};
use crate::submit::named_objects;
use crate::types::Effect;
use mobula_base::{ShardId, TaskId, mutant};

/// An item about a task whose record has not been queued.
#[derive(Debug)]
pub(crate) struct Later {
    pub item: Content,
    pub bytes: usize,
    pub about: About,
}

impl Core {
    /// Queues the record of a task, or makes it wait for edges.
    pub(crate) fn send_record(&mut self, task: TaskId, later: Later, edges: Vec<Ticket>) -> (Record, Ticket) {
        let open = edges.into_iter().filter(|edge| !self.streams.is_committed(*edge));
        let edges: Vec<Ticket> = open.collect();
        if edges.is_empty() || mutant!("R6a") {
            let ticket = self.streams.push(later.item, later.bytes, later.about);
            return (Record::Queued(ticket), ticket);
        }
        let ticket = self.streams.reserve(task.run.slot());
        self.awaiting_edges.insert(task);
        (Record::Waits(Box::new(Waits { ticket, edges, then: vec![later] })), ticket)
    }

    /// Queues an item about a task behind its record.
    pub(crate) fn push_behind(&mut self, task: TaskId, later: Later) -> Option<Ticket> {
        if let Some(kept) = self.kept.get_mut(&task)
            && let Record::Waits(waits) = &mut kept.record
        {
            waits.then.push(later);
            return None;
        }
        Some(self.streams.push(later.item, later.bytes, later.about))
    }

    /// Some edges were acknowledged: which records can be sent now?
    pub(crate) fn check_edges(&mut self) {
        let waiting: Vec<TaskId> = self.awaiting_edges.iter().copied().collect();
        for task in waiting {
            let Some(kept) = self.kept.get_mut(&task) else { continue };
            let Record::Waits(waits) = &mut kept.record else { continue };
            waits.edges.retain(|edge| !self.streams.is_committed(*edge));
            if !waits.edges.is_empty() {
                continue;
            }
            let (ticket, then) = (waits.ticket, std::mem::take(&mut waits.then));
            kept.record = Record::Sent;
            self.awaiting_edges.remove(&task);
            let mut items = then.into_iter();
            if let Some(record) = items.next() {
                self.streams.push_reserved(record.item, record.bytes, record.about, ticket);
            }
            for Later { item, bytes, about } in items {
                self.streams.push(item, bytes, about);
            }
            self.record_left(task);
            self.to_tidy.push_back(task.output(0));
        }
    }

    /// A batch is on its way: what the records in it name is known elsewhere.
    pub(crate) fn batch_left(&mut self, shard: ShardId) {
        let tasks: Vec<TaskId> = self
            .streams
            .in_flight(shard)
            .filter_map(|about| match about {
                About::Submit(task) => Some(task),
                _ => None,
            })
            .collect();
        for task in tasks {
            self.record_left(task);
        }
    }

    fn record_left(&mut self, task: TaskId) {
        let Some(kept) = self.kept.get_mut(&task) else { return };
        kept.record = Record::Sent;
        if kept.names.is_empty() {
            return;
        }
        for id in named_objects(&kept.spec) {
            if let Some(object) = self.objects.get_mut(&id) {
                object.refs.left = true;
            }
        }
    }

    /// Takes back the record of a task that has ended, whose value nobody refers to, if nobody else can
    /// know of it; whether it did.
    pub(crate) fn elide(&mut self, task: TaskId) -> bool {
        let Some(kept) = self.kept.get(&task) else { return false };
        let Some(object) = self.objects.get(&task.output(0)) else { return false };
        let client = kept.client;
        let private =
            object.refs.origin && (!object.refs.left || mutant!("R4c")) && object.refs.copy_at.is_none();
        let simple = kept.attempt == 1 && !kept.shared && kept.contains.is_empty();
        if kept.state != KeptState::Finishing || !private || !simple {
            return false;
        }
        match (&kept.record, kept.done) {
            (Record::Waits(_), None) => {}
            (Record::Queued(record), Some(done))
                if self.streams.is_queued(*record) && self.streams.is_queued(done) =>
            {
                self.streams.withdraw(*record);
                self.streams.withdraw(done);
                let names = kept.names.clone();
                self.unname(task, &names);
            }
            _ => return false,
        }
        if let Some(client) = client {
            self.effects.push(Effect::Committed { client, task, revision: 0 });
        }
        self.recheck = true;
        self.forget_kept(task);
        self.forget(task.output(0));
        true
    }
}
