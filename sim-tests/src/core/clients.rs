//! What drivers and workers say to their daemon becomes events, as in `node::clients`.

use super::life::{DRIVER, Life, Said, Written};
use super::node::shared;
use super::program::{Content, JOB};
use super::room::kept;
use super::world::World;
use mobula_base::{ObjectId, TaskId};
use mobula_objstore::Reader;
use mobula_proto::{Failure, FailureKind, JobEnd, call, peer_msg};
use mobula_scheduler::{ClientId, Element, Event, TaskOutcome, Value};

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
            // What lies in a file is read back.
            Said::Get { object, want_value: true } if life.look(client, object) => {}
            Said::Get { object, want_value } => {
                events.push(Event::Get { client, job: JOB, objects: vec![object], want_value });
            }
            Said::Create { object, len } => {
                life.ask_room(client, object, len);
            }
            Said::Seal { object, content } => {
                let (contains, replicas) = (content.refs.clone(), self.options.replicas_of(object));
                let Some(life) = self.life(machine, epoch) else { return };
                if let Some(room) = life.seal_put(client, object, content) {
                    events.push(put(client, object, room, contains, replicas));
                }
            }
            Said::Put { object, content } => {
                let value = Value::Inline(content.encode());
                events.push(put(client, object, value, content.refs, self.options.replicas_of(object)));
            }
            Said::Finished { task, attempt, value, contains, ran_ns, elements } => {
                let value = value.and_then(|written| life.seal_result(client, task, written));
                life.store.task_ended(client, task);
                if value.is_ok() && life.missed.contains(&task.output(0)) {
                    life.made_anew.push(task.output(0));
                }
                let element = |content: Content| Element {
                    value: Value::Inline(content.encode()),
                    contains: content.refs,
                };
                let elements = elements.into_iter().map(element).collect();
                let (node, counts) = (life.incarnation.0, life.core.has_given(client, task, attempt));
                self.judges.behind.finished((node, client), task, counts && value.is_ok());
                let outcome = TaskOutcome { task, attempt, value, contains, ran_ns, elements };
                events.push(Event::Finished { worker: client, outcomes: vec![outcome] });
            }
            Said::Blocked(returned) => {
                let returned = life.returned(client, returned);
                events.push(Event::Blocked { worker: client, returned });
            }
            Said::Stalled(returned) => {
                let returned = life.returned(client, returned);
                events.push(Event::Stalled { worker: client, returned });
            }
            Said::ArgsTaken(task) => life.store.args_taken(client, task),
            Said::NotBegun(task) => {
                life.store.task_ended(client, task);
                events.push(Event::NotGiven { worker: client, tasks: vec![task] });
            }
            Said::Cancel(task, recursive) => {
                events.push(Event::Cancel { from: None, tasks: vec![task], recursive });
            }
            Said::Take { task, first, over } => {
                let upto = first + u32::from(!over);
                events.push(Event::Take { client, job: JOB, task, first, upto, over });
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

fn put(client: ClientId, object: ObjectId, value: Value, contains: Vec<ObjectId>, replicas: u32) -> Event {
    Event::Put { client, object, job: JOB, value, by_driver: client == DRIVER, contains, replicas }
}

impl Life {
    /// What a worker gives back, and what it was to be given.
    fn returned(&mut self, client: ClientId, mut returned: Vec<TaskId>) -> Vec<TaskId> {
        returned.iter().for_each(|task| self.store.task_ended(client, *task));
        returned.extend(self.not_given(client));
        returned
    }

    /// Seals a put. One that an earlier attempt of the task made is put again: its client refers to it.
    fn seal_put(&mut self, client: ClientId, object: ObjectId, content: Content) -> Option<Value> {
        let crc = content.crc();
        let value = match self.store.seal(object, crc, client) {
            Ok(place) => {
                self.memory.insert(place.offset, content);
                shared(place)
            }
            Err(_) => kept(self.store.seal_again(object, crc, client)?),
        };
        self.fresh.push(object);
        Some(value)
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
            (Err(_), Some(found)) if found.output().1 == crc => Ok(kept(found)),
            (Err(_), Some(_)) => Err(Failure::new(
                FailureKind::FailureDiverged,
                "the task made other bytes than before: it is not deterministic",
            )),
            (Err(error), None) => Err(Failure::new(FailureKind::FailureStoreFull, error.to_string())),
        }
    }

    /// Whether the core goes by what the store has of an object.
    pub(super) fn is_used(&self, object: ObjectId) -> bool {
        match (self.core.keeps(object), self.store.get(object)) {
            (Some(Value::Shared { len, crc, .. }), Some(kept)) => kept.output() == (*len, *crc),
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
