//! What drivers and workers say becomes events, in the order in which they said it.

use crate::daemon::Life;
use crate::input::{kept, shared};
use bytes::Bytes;
use mobula_base::ids::ELEMENTS_MAX;
use mobula_base::{ObjectId, TaskId};
use mobula_objstore::Reader;
use mobula_proto::{
    Cancel, ClientMsg, Failure, FailureKind, Flush, Seal, Shared, Take, TaskResult, TaskSpec, client_msg,
    object_id, task_id, value as wire_value,
};
use mobula_scheduler::{ClientId, Element, Elements, Event, TaskOutcome, Value};

/// Neighbours of one kind travel as one event; their order against others stays.
struct Run<'a> {
    client: ClientId,
    specs: Vec<TaskSpec>,
    outcomes: Vec<TaskOutcome>,
    events: &'a mut Vec<Event>,
}

impl Run<'_> {
    fn submit(&mut self, spec: TaskSpec) {
        if !self.outcomes.is_empty() {
            self.end();
        }
        self.specs.push(spec);
    }

    fn finished(&mut self, outcome: TaskOutcome) {
        if !self.specs.is_empty() {
            self.end();
        }
        self.outcomes.push(outcome);
    }

    fn push(&mut self, event: Event) {
        self.end();
        self.events.push(event);
    }

    fn end(&mut self) {
        if !self.specs.is_empty() {
            let specs = std::mem::take(&mut self.specs);
            self.events.push(Event::Submit { client: self.client, specs });
        }
        if !self.outcomes.is_empty() {
            let outcomes = std::mem::take(&mut self.outcomes);
            self.events.push(Event::Finished { worker: self.client, outcomes });
        }
    }
}

fn objects(list: &[Bytes]) -> Vec<ObjectId> {
    list.iter().filter_map(|id| object_id(id).ok()).collect()
}

impl Life {
    pub(crate) fn client_msgs(&mut self, client: ClientId, msgs: Vec<ClientMsg>, events: &mut Vec<Event>) {
        let Some(link) = self.open.get(&client) else { return };
        let (job, is_driver) = (link.job, link.token.is_none());
        let mut run = Run { client, specs: Vec::new(), outcomes: Vec::new(), events };
        for msg in msgs.into_iter().filter_map(|m| m.msg) {
            match msg {
                client_msg::Msg::Submit(spec) => run.submit(TaskSpec { job: job.0, ..spec }),
                client_msg::Msg::Finished(result) => {
                    if let Some(outcome) = self.outcome(client, result) {
                        run.finished(outcome);
                    }
                }
                client_msg::Msg::Get(get) => {
                    let (mut objects, want_value) = (objects(&get.objects), get.want_value);
                    if want_value {
                        objects.retain(|object| !self.look(client, job, *object));
                    }
                    run.push(Event::Get { client, job, objects, want_value });
                }
                client_msg::Msg::Create(create) => {
                    if let Ok(object) = object_id(&create.object) {
                        self.ask_room(client, job, object, create.size);
                    }
                }
                client_msg::Msg::Seal(seal) => {
                    if let Some((object, value)) = self.seal_put(client, &seal) {
                        run.push(Event::Put {
                            client,
                            object,
                            job,
                            value,
                            by_driver: is_driver,
                            contains: objects(&seal.contains),
                            replicas: seal.replicas,
                        });
                    }
                }
                client_msg::Msg::PutInline(put) => {
                    if let Ok(object) = object_id(&put.object) {
                        run.push(Event::Put {
                            client,
                            object,
                            job,
                            value: Value::Inline(put.value),
                            by_driver: is_driver,
                            contains: objects(&put.contains),
                            replicas: put.replicas,
                        });
                    }
                }
                client_msg::Msg::Held(held) => {
                    run.push(Event::Held { client, job, objects: objects(&held.objects) });
                }
                client_msg::Msg::Dropped(dropped) => {
                    run.push(Event::Dropped { client, objects: objects(&dropped.objects) });
                }
                client_msg::Msg::Take(Take { task, first, upto, over }) => {
                    if let Ok(task) = task_id(&task) {
                        run.push(Event::Take { client, job, task, first, upto, over });
                    }
                }
                client_msg::Msg::Unpin(unpin) => {
                    for object in objects(&unpin.objects) {
                        self.store.unpin(object, Reader::Link(client));
                    }
                    if let Ok(task) = task_id(&unpin.args_of) {
                        self.store.args_taken(client, task);
                    }
                }
                client_msg::Msg::Blocked(blocked) => {
                    let mut returned: Vec<_> =
                        blocked.returned.iter().filter_map(|t| task_id(t).ok()).collect();
                    for task in &returned {
                        self.store.task_ended(client, *task);
                    }
                    returned.extend(self.not_given(client));
                    run.push(match blocked.for_room {
                        true => Event::Stalled { worker: client, returned },
                        false => Event::Blocked { worker: client, returned },
                    });
                }
                client_msg::Msg::NotBegun(not) => {
                    if let Ok(task) = task_id(&not.task) {
                        self.store.task_ended(client, task);
                        run.push(Event::NotGiven { worker: client, tasks: vec![task] });
                    }
                }
                client_msg::Msg::Unblocked(_) => run.push(Event::Unblocked { worker: client }),
                client_msg::Msg::Cancel(Cancel { tasks, recursive }) => {
                    let tasks = tasks.iter().filter_map(|id| task_id(id).ok()).collect();
                    run.push(Event::Cancel { from: None, tasks, recursive });
                }
                client_msg::Msg::Group(asked) => {
                    if let Some(event) = self.group_asked(client, job, asked) {
                        run.push(event);
                    }
                }
                client_msg::Msg::Flush(Flush {}) => run.push(Event::Flush),
                client_msg::Msg::EndJob(end) => {
                    let outbox = self.open.get(&client).map(|link| link.outbox.clone());
                    self.end_job(job, end.succeeded, outbox);
                    run.push(Event::JobEnded(job));
                }
                client_msg::Msg::Hello(_) => {}
            }
        }
        run.end();
    }

    /// Seals a put. One that an earlier attempt of the task made is put again: its client refers to it.
    fn seal_put(&mut self, client: ClientId, seal: &Seal) -> Option<(ObjectId, Value)> {
        let object = object_id(&seal.object).ok()?;
        let value = match self.store.seal(object, seal.crc, client) {
            Ok(place) => shared(place),
            Err(_) => kept(self.store.seal_again(object, seal.crc, client)?),
        };
        self.fresh.push(object);
        Some((object, value))
    }

    fn outcome(&mut self, worker: ClientId, result: TaskResult) -> Option<TaskOutcome> {
        let task = task_id(&result.task).ok()?;
        let value = match result.value.and_then(|v| v.value) {
            Some(wire_value::Value::Inline(bytes)) => Ok(Value::Inline(bytes)),
            Some(wire_value::Value::Shared(Shared { crc, .. })) => {
                self.seal_result(task.output(0), crc, worker)
            }
            Some(wire_value::Value::Failure(failure)) => Err(failure),
            Some(wire_value::Value::Elsewhere(_)) | None => {
                Err(Failure::new(FailureKind::FailureUserError, "the worker reported no value"))
            }
        };
        let (value, elements) = match result.elements.is_empty() {
            true => (value, Elements::new()),
            false => self.elements(task, value, result.elements, worker),
        };
        self.store.task_ended(worker, task);
        if value.is_ok() && self.missed.contains(&task.output(0)) {
            self.made_anew.push(task.output(0));
        }
        let contains = objects(&result.contains);
        Some(TaskOutcome { task, attempt: result.attempt, value, ran_ns: result.ran_ns, contains, elements })
    }

    /// Takes what a task returns in parts. What a task that failed on the way had placed is sealed, too: nobody counts
    /// with it, so it is discarded at the end of the turn.
    fn elements(
        &mut self,
        task: TaskId,
        value: Result<Value, Failure>,
        told: Vec<mobula_proto::Element>,
        worker: ClientId,
    ) -> (Result<Value, Failure>, Elements) {
        let mut elements = Elements::new();
        let mut value = value;
        for (id, told) in (0..ELEMENTS_MAX).map(|n| task.element(n)).zip(told) {
            match self.element(id, told, worker) {
                Ok(element) => elements.push(element),
                Err(failure) => value = value.and(Err(failure)),
            }
            if self.missed.contains(&id) {
                self.made_anew.push(id);
            }
        }
        (value, elements)
    }

    /// Takes one of several objects that a task returns.
    fn element(
        &mut self,
        object: ObjectId,
        element: mobula_proto::Element,
        worker: ClientId,
    ) -> Result<Element, Failure> {
        let value = match element.value.and_then(|v| v.value) {
            Some(wire_value::Value::Inline(bytes)) => Value::Inline(bytes),
            Some(wire_value::Value::Shared(Shared { crc, .. })) => self.seal_result(object, crc, worker)?,
            Some(wire_value::Value::Failure(failure)) => return Err(failure),
            Some(wire_value::Value::Elsewhere(_)) | None => {
                let message = "the worker reported no value of one of several that it was to return";
                return Err(Failure::new(FailureKind::FailureUserError, message));
            }
        };
        Ok(Element { value, contains: objects(&element.contains) })
    }

    /// Seals a result; one that an earlier attempt or a transfer sealed here must be the same (G3).
    fn seal_result(&mut self, object: ObjectId, crc: u32, worker: ClientId) -> Result<Value, Failure> {
        let sealed = self.store.seal(object, crc, worker);
        let again = sealed.is_err().then(|| self.store.seal_again(object, crc, worker)).flatten();
        match (sealed, again.or_else(|| self.store.get(object))) {
            (Ok(place), _) => {
                self.fresh.push(object);
                Ok(shared(place))
            }
            (Err(_), Some(found)) if found.output().1 == crc => Ok(kept(found)),
            (Err(_), Some(_)) => Err(Failure::new(
                FailureKind::FailureDiverged,
                "the task made other bytes than before: it is not deterministic",
            )),
            (Err(error), None) => Err(Failure::new(FailureKind::FailureStoreFull, error.to_string())),
        }
    }
}
