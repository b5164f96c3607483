//! What drivers and workers say to their daemon becomes events, as in `node::clients`.

use super::life::{DRIVER, Life, Said, Told, Written};
use super::node::{LINK, shared};
use super::program::{Content, JOB};
use super::world::{What, World};
use mobula_base::{ObjectId, TaskId};
use mobula_objstore::table::Place;
use mobula_objstore::{Reader, StoreError};
use mobula_proto::{Failure, FailureKind, JobEnd, call, peer_msg};
use mobula_scheduler::{ClientId, Event, TaskOutcome, Value};

impl World {
    pub(super) fn said(
        &mut self,
        machine: usize,
        epoch: u64,
        client: ClientId,
        said: Said,
        events: &mut Vec<Event>,
    ) {
        let Some(life) = self.life(machine, epoch) else { return };
        match said {
            Said::Submit(spec) => events.push(Event::Submit { client, specs: vec![*spec] }),
            Said::Get { object, want_value } => {
                events.push(Event::Get { client, job: JOB, objects: vec![object], want_value });
            }
            Said::Create { object, len } => {
                life.rooms.push((client, object, len));
                self.make_room(machine, epoch);
            }
            Said::Seal { object, content } => {
                let contains = content.refs.clone();
                if let Some(room) = life.seal_put(client, object, content) {
                    events.push(put(client, object, shared(room), contains));
                }
            }
            Said::Put { object, content } => {
                let value = Value::Inline(content.encode());
                events.push(put(client, object, value, content.refs));
            }
            Said::Finished { task, attempt, value, contains, ran_ns } => {
                let value = value.and_then(|written| life.seal_result(client, task, written));
                life.store.task_ended(client, task);
                if value.is_ok() && life.missed.contains(&task.output(0)) {
                    life.made_anew.push(task.output(0));
                }
                let outcome = TaskOutcome { task, attempt, value, contains, ran_ns };
                events.push(Event::Finished { worker: client, outcomes: vec![outcome] });
            }
            Said::Blocked(returned) => {
                returned.iter().for_each(|task| life.store.task_ended(client, *task));
                events.push(Event::Blocked { worker: client, returned });
            }
            Said::NotBegun(task) => {
                life.store.task_ended(client, task);
                events.push(Event::NotGiven { worker: client, tasks: vec![task] });
            }
            Said::Cancel(task, recursive) => {
                events.push(Event::Cancel { from: None, tasks: vec![task], recursive });
            }
            Said::Unblocked => events.push(Event::Unblocked { worker: client }),
            Said::Held(objects) => events.push(Event::Held { client, job: JOB, objects }),
            Said::Dropped(objects) => events.push(Event::Dropped { client, objects }),
            Said::Unpin(objects) => {
                objects.into_iter().for_each(|object| life.store.unpin(object, Reader::Link(client)));
            }
            Said::EndJob => {
                self.judges.cause.job_over = true;
                let Some(life) = self.life(machine, epoch) else { return };
                let peers: Vec<u64> = life.outgoing.keys().copied().collect();
                for to in peers {
                    let to = mobula_base::Incarnation(to);
                    self.tell_peer(machine, epoch, to, peer_msg::Msg::JobEnded(JOB.0));
                }
                self.call(machine, epoch, call::Op::JobEnd(JobEnd { job: JOB.0, succeeded: true }));
                events.push(Event::JobEnded(JOB));
            }
        }
    }
}

impl World {
    /// Answers who asked for room, but for those who wait for others to have written.
    pub(super) fn make_room(&mut self, machine: usize, epoch: u64) {
        let Some(life) = self.life(machine, epoch) else { return };
        let mut made = Vec::new();
        for (client, object, len) in std::mem::take(&mut life.rooms) {
            if !life.clients.contains_key(&client) && client != DRIVER {
                continue;
            }
            match life.create(client, object, len) {
                Some(room) => made.push((client, Told::Created { object, room })),
                None => life.rooms.push((client, object, len)),
            }
        }
        for (client, told) in made {
            self.queue.after(LINK, What::ToClient { machine, epoch, client, told });
        }
    }
}

fn put(client: ClientId, object: ObjectId, value: Value, contains: Vec<ObjectId>) -> Event {
    Event::Put { client, object, job: JOB, value, by_driver: client == DRIVER, contains }
}

impl Life {
    /// Makes room for a value. One that is here already stays while its task runs, so that it can be
    /// reported as what the task made.
    /// `None` while another process writes it.
    fn create(
        &mut self,
        client: ClientId,
        object: ObjectId,
        len: u64,
    ) -> Option<Result<Option<u32>, Failure>> {
        Some(match self.store.create(object, len, JOB, client) {
            Ok(_) => Ok(None),
            Err(StoreError::Exists(there)) => {
                self.store.pin(object, Reader::Task(client, object.task));
                Ok(Some(there.crc))
            }
            Err(StoreError::Busy) => return None,
            Err(error) => Err(Failure::new(FailureKind::FailureStoreFull, error.to_string())),
        })
    }

    /// Seals a put. One that an earlier attempt of the task made is put again: its client refers to it.
    fn seal_put(&mut self, client: ClientId, object: ObjectId, content: Content) -> Option<Place> {
        let crc = content.crc();
        let sealed = self.store.seal(object, crc, client).ok();
        if let Some(room) = sealed {
            self.memory.insert(room.offset, content);
        }
        let room = sealed.or_else(|| self.store.seal_again(object, crc, client))?;
        self.fresh.push(object);
        Some(room)
    }

    /// Seals a result; one that an earlier attempt or a transfer sealed here must be the same (G3).
    fn seal_result(&mut self, worker: ClientId, task: TaskId, written: Written) -> Result<Value, Failure> {
        let content = match written {
            Written::Inline(content) => return Ok(Value::Inline(content.encode())),
            Written::Shared(content) => content,
        };
        let (object, crc) = (task.output(0), content.crc());
        let sealed = self.store.seal(object, crc, worker);
        let again = sealed.is_err().then(|| self.store.seal_again(object, crc, worker)).flatten();
        match (sealed, again.or_else(|| self.store.get(object))) {
            (Ok(room), _) => {
                self.memory.insert(room.offset, content);
                self.fresh.push(object);
                Ok(shared(room))
            }
            (Err(_), Some(room)) if room.crc == crc => Ok(shared(room)),
            (Err(_), Some(_)) => Err(Failure::new(
                FailureKind::FailureDiverged,
                "the task made other bytes than before: it is not deterministic",
            )),
            (Err(error), None) => Err(Failure::new(FailureKind::FailureStoreFull, error.to_string())),
        }
    }

    /// Somebody is told where a value lies.
    pub(super) fn lend(&mut self, object: ObjectId, reader: Reader, value: &Value) {
        if let Value::Shared { .. } = value {
            let is_here = self.store.pin(object, reader);
            debug_assert!(is_here, "{object} is told to {reader:?} and is not here");
        }
    }

    /// Whether the core goes by what the store has of an object.
    pub(super) fn is_used(&self, object: ObjectId) -> bool {
        match (self.core.keeps(object), self.store.get(object)) {
            (Some(Value::Shared { offset, .. }), Some(room)) => *offset == room.offset,
            (Some(Value::Inline(_)) | None, _) | (_, None) => false,
        }
    }

    /// What was sealed in this turn and is for nobody goes.
    pub(super) fn discard_strays(&mut self) {
        for object in std::mem::take(&mut self.fresh) {
            if !self.is_used(object) {
                self.store.discard(object);
            }
        }
    }
}
