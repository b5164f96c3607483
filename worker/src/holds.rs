//! What this program refers to, and how its node daemon hears of it.
//!
//! The daemon takes a program to refer to everything that it submits or puts, and to what it says it has
//! taken out of values ([`Held`]), until it says that it has dropped its last reference ([`Dropped`]).
//! Only the order on the link makes that right: a reference is dropped after the submission that names
//! it, and taken out of a value before that value is dropped. So what is said about a reference is
//! queued under the lock under which references are counted.
//!
//! A place in shared memory that the daemon has told stays as it is until it is told back ([`Unpin`]).

use crate::client::{Client, Slot, State};
use crate::reference::ObjectRef;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{
    ClientMsg, Dropped, Held, Output, Unpin, Value, client_msg, object_bytes, value as wire_value,
};

/// Objects that one message lists; a longer list goes on in the next.
const LISTED_MAX: usize = 4096;

/// A value is being looked at: its place in shared memory stays as it is.
pub(crate) struct Viewing<'a>(&'a Client, ObjectId);

impl Drop for Viewing<'_> {
    fn drop(&mut self) {
        let Viewing(client, id) = *self;
        let mut state = client.state();
        state.views -= 1;
        if let Some(slot) = state.slots.get_mut(&id) {
            slot.looks = slot.looks.saturating_sub(1);
            if slot.recalled {
                client.give_back(id, slot);
            }
        }
        if state.views == 0 && state.job_ended {
            client.unpin_all(&mut state);
        }
    }
}

impl Client {
    /// From before the value is asked for: else its place might be given back as soon as it is told, and asked
    /// for again, for ever.
    pub(crate) fn viewing(&self, id: ObjectId) -> Viewing<'_> {
        let mut state = self.state();
        state.views += 1;
        if let Some(slot) = state.slots.get_mut(&id) {
            slot.looks += 1;
        }
        drop(state);
        Viewing(self, id)
    }

    /// The daemon needs the memory: what nobody looks at is told back now, the rest once nobody does. Whoever
    /// wants it again asks for it.
    pub(crate) fn give_back(&self, id: ObjectId, slot: &mut Slot) {
        slot.recalled = slot.looks > 0;
        if slot.recalled || slot.pins == 0 {
            return;
        }
        if let Some(Value { value: Some(wire_value::Value::Shared(s)) }) = &slot.ready {
            let output = Output { crc: s.crc, size: s.len };
            slot.ready = Some(Value { value: Some(wire_value::Value::Elsewhere(output)) });
        }
        self.unpin(id, std::mem::take(&mut slot.pins));
    }

    /// This program's first reference to what it submits or puts by `msg`; without one, to what fails
    /// before the daemon hears of it.
    pub(crate) fn own(&self, id: ObjectId, ready: Option<Value>, msg: Option<client_msg::Msg>) {
        let mut state = self.state();
        let slot = state.slots.entry(id).or_default();
        // A task that runs again in this process submits what it submitted before.
        slot.refs += 1;
        // The daemon tells of what is submitted by itself.
        slot.asked |= matches!(&msg, Some(client_msg::Msg::Submit(_)));
        slot.told |= msg.is_some();
        if ready.is_some() {
            slot.ready = ready;
        }
        let Some(msg) = msg else { return };
        // A drop may come later than it happened: so a run of submissions, each dropped at once, costs
        // one list at its end. Not past a second submission of the same: that one holds it anew.
        let may_overtake = matches!(&msg, client_msg::Msg::Submit(spec) if !spec.replay);
        self.shell.outbox.push_before(&ClientMsg { msg: Some(msg) }, |last| {
            may_overtake && matches!(last.msg, Some(client_msg::Msg::Dropped(_)))
        });
    }

    /// This program's first references to what a task returns that it submits by `msg`: to its value, or to its elements.
    pub(crate) fn own_returned(
        &self,
        task: TaskId,
        elements: u32,
        ready: Option<Value>,
        msg: Option<client_msg::Msg>,
    ) {
        if elements == 0 {
            return self.own(task.output(0), ready, msg);
        }
        let mut state = self.state();
        for id in (0..elements).map(|n| task.element(n)) {
            let slot = state.slots.entry(id).or_default();
            slot.refs += 1;
            slot.asked |= msg.is_some();
            slot.told |= msg.is_some();
            slot.ready = ready.clone().or(slot.ready.take());
        }
        if let Some(msg) = msg {
            self.shell.outbox.push(&ClientMsg { msg: Some(msg) });
        }
    }

    /// Takes a reference out of a value.
    pub(crate) fn take_up(&self, id: ObjectId) {
        let mut state = self.state();
        let slot = state.slots.entry(id).or_default();
        slot.refs += 1;
        if !std::mem::replace(&mut slot.told, true) {
            let object = object_bytes(id);
            self.shell.outbox.merge(|last| match last.and_then(|last| last.msg.as_mut()) {
                Some(client_msg::Msg::Held(held)) if held.objects.len() < LISTED_MAX => {
                    held.objects.push(object);
                    None
                }
                _ => Some(ClientMsg { msg: Some(client_msg::Msg::Held(Held { objects: vec![object] })) }),
            });
        }
    }

    /// Takes up those of `ids` that this program does not refer to: references that were decoded where
    /// no client was known.
    pub(crate) fn take_up_strangers(&self, ids: &[ObjectId]) -> Vec<ObjectRef<()>> {
        let strangers: Vec<ObjectId> = {
            let state = self.state();
            ids.iter().filter(|id| !state.slots.contains_key(id)).copied().collect()
        };
        let take = |id: ObjectId| {
            self.take_up(id);
            ObjectRef::new(id, Some(self.clone()))
        };
        strangers.into_iter().map(take).collect()
    }

    /// One reference less.
    pub(crate) fn forget(&self, id: ObjectId) {
        let mut state = self.state();
        let Some(slot) = state.slots.get_mut(&id) else { return };
        slot.refs -= 1;
        if slot.refs > 0 {
            return;
        }
        let slot = state.slots.remove(&id).expect("just seen");
        self.unpin(id, slot.pins);
        if slot.told {
            let object = object_bytes(id);
            self.shell.outbox.merge(|last| match last.and_then(|last| last.msg.as_mut()) {
                Some(client_msg::Msg::Dropped(dropped)) if dropped.objects.len() < LISTED_MAX => {
                    dropped.objects.push(object);
                    None
                }
                _ => {
                    Some(ClientMsg { msg: Some(client_msg::Msg::Dropped(Dropped { objects: vec![object] })) })
                }
            });
        }
    }

    /// Tells places back, told `times` times. Called under the lock of the state.
    pub(crate) fn unpin(&self, id: ObjectId, times: u32) {
        if times > 0 {
            let objects = vec![object_bytes(id); times as usize];
            self.send(client_msg::Msg::Unpin(Unpin { objects, ..Unpin::default() }));
        }
    }

    /// The job has ended: nothing in shared memory is looked at any more.
    pub(crate) fn unpin_all(&self, state: &mut State) {
        for (id, slot) in &mut state.slots {
            let Slot { pins, .. } = slot;
            self.unpin(*id, std::mem::take(pins));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, IntoArg};
    use crate::reference::ObjectRef;
    use crate::task::Task;
    use bytes::BytesMut;
    use mobula_net::frame::Decoder;
    use mobula_net::written::Written;
    use mobula_objstore::Region;
    use mobula_proto::{DaemonMsg, ObjectReady, Shared, ToClient, ToDaemon, Welcome, daemon_msg, value};

    fn client() -> Client {
        let welcome = Welcome { job: 1, arena_bytes: 4096, ..Welcome::default() };
        Client::new(welcome, Region::heap(4096), Written::default())
    }

    /// What has been said since the last look: `S` a submission, `P` a put, `H`, `D`, `U` with how many.
    fn said(client: &Client) -> String {
        let mut said = Vec::new();
        let frames = client.shell.outbox.try_take(&mut BytesMut::new());
        let mut decoder = Decoder::default();
        frames.iter().for_each(|frame| decoder.buffer().extend_from_slice(frame));
        while let Some(frame) = decoder.next_message::<ToDaemon>().expect("a frame") {
            for ClientMsg { msg } in frame.msgs {
                said.push(match msg {
                    Some(client_msg::Msg::Submit(_)) => "S".to_owned(),
                    Some(client_msg::Msg::PutInline(put)) => format!("P{}", put.contains.len()),
                    Some(client_msg::Msg::Held(held)) => format!("H{}", held.objects.len()),
                    Some(client_msg::Msg::Dropped(dropped)) => format!("D{}", dropped.objects.len()),
                    Some(client_msg::Msg::Unpin(unpin)) => format!("U{}", unpin.objects.len()),
                    other => format!("{other:?}"),
                });
            }
        }
        said.join(" ")
    }

    fn task(arguments: impl FnOnce(&mut Args)) -> Task<u64> {
        let mut args = Args::default();
        arguments(&mut args);
        Task::new("test", args)
    }

    fn slots(client: &Client) -> usize {
        client.state().slots.len()
    }

    /// As if the daemon had said that `id` lies in shared memory.
    fn ready(reference: &ObjectRef<u64>) -> DaemonMsg {
        let shared = Shared { offset: 0, len: 1, crc: 0 };
        let ready = ObjectReady {
            object: object_bytes(reference.id()),
            value: Some(Value { value: Some(value::Value::Shared(shared)) }),
        };
        DaemonMsg { msg: Some(daemon_msg::Msg::Ready(ready)) }
    }

    #[test]
    fn a_run_of_tasks_dropped_at_once_is_one_list() {
        let client = client();
        for _ in 0..5000 {
            drop(client.submit(task(|_| {})));
        }
        let said = said(&client);
        assert_eq!(said.matches('S').count(), 5000);
        assert_eq!(said.matches('D').count(), 2, "{said}");
        assert!(said.ends_with("D904"), "{said}");
        assert_eq!(slots(&client), 0);
    }

    #[test]
    fn an_argument_is_dropped_after_the_submission_that_names_it() {
        let client = client();
        let first = client.submit(task(|_| {}));
        let nested = client.put(&vec![client.submit(task(|_| {}))]).expect("put");
        assert_eq!(said(&client), "S S P1 D1");
        // Given away and dropped before the task is submitted.
        let second = task(|args| {
            IntoArg::<u64>::into_arg(first, args);
            IntoArg::<Vec<ObjectRef<Vec<ObjectRef<u64>>>>>::into_arg(vec![nested], args);
        });
        assert_eq!(said(&client), "", "the task refers to them");
        let second = client.submit(second);
        assert_eq!(said(&client), "S D2");
        drop(second);
        assert_eq!(said(&client), "D1");
        assert_eq!(slots(&client), 0);
    }

    #[test]
    fn a_second_submission_of_the_same_is_not_overtaken_by_the_first_ones_drop() {
        let client = client();
        let again = |replay| {
            let context = crate::context::Context::new(client.job(), Default::default(), 1, replay);
            client.for_task(context, crate::options::JobOptions::default())
        };
        drop(again(false).submit(task(|_| {})));
        let second = again(true).submit(task(|_| {}));
        assert_eq!(said(&client), "S D1 S");
        let third = again(true).submit(task(|_| {}));
        assert_eq!(second.id(), third.id());
        drop(second);
        assert_eq!(said(&client), "S", "still referred to");
        drop(third);
        assert_eq!(said(&client), "D1");
    }

    #[test]
    fn what_is_taken_out_of_a_value_is_held_before_the_value_is_dropped() {
        let client = client();
        let inner = client.submit(task(|_| {}));
        let id = inner.id();
        let outer = client.put(&vec![inner.clone(), inner]).expect("put");
        assert_eq!(said(&client), "S P1 D1");
        let taken = [(); 3].map(|()| {
            client.take_up(id);
            ObjectRef::<u64>::new(id, Some(client.clone()))
        });
        drop(outer);
        assert_eq!(said(&client), "H1 D1", "once, and first");
        drop(taken);
        assert_eq!(said(&client), "D1");
        assert_eq!(slots(&client), 0);
    }

    #[test]
    fn every_place_that_was_told_is_told_back_once() {
        let client = client();
        let (one, two) = (client.submit(task(|_| {})), client.submit(task(|_| {})));
        client.receive(ToClient { msgs: vec![ready(&one), ready(&one), ready(&two)] });
        let late = ready(&two);
        assert_eq!(said(&client), "S S");
        drop(one);
        assert_eq!(said(&client), "U2 D1");
        drop(two);
        assert_eq!(said(&client), "U1 D1");
        client.receive(ToClient { msgs: vec![late] });
        assert_eq!(said(&client), "U1", "nobody wants it any more");
    }

    #[test]
    fn at_the_end_of_the_job_places_are_told_back_when_nobody_looks() {
        let client = client();
        let one = client.submit(task(|_| {}));
        client.receive(ToClient { msgs: vec![ready(&one)] });
        let view = client.viewing(one.id());
        client.receive(ToClient { msgs: vec![DaemonMsg { msg: Some(daemon_msg::Msg::JobEnded(true)) }] });
        assert_eq!(said(&client), "S");
        drop(view);
        assert_eq!(said(&client), "U1");
        drop(one);
        assert_eq!(said(&client), "D1");
    }

    #[test]
    fn what_is_recalled_is_given_back_once_nobody_looks_and_asked_for_again() {
        let client = client();
        let (one, two) = (client.submit(task(|_| {})), client.submit(task(|_| {})));
        client.receive(ToClient { msgs: vec![ready(&one), ready(&one), ready(&two)] });
        let look = client.viewing(one.id());
        let objects = [&one, &two].map(|reference| object_bytes(reference.id())).to_vec();
        let recall = DaemonMsg { msg: Some(daemon_msg::Msg::Recall(mobula_proto::Recall { objects })) };
        client.receive(ToClient { msgs: vec![recall.clone()] });
        assert_eq!(said(&client), "S S U1", "the other one is looked at");
        drop(look);
        assert_eq!(said(&client), "U2");
        client.receive(ToClient { msgs: vec![recall] });
        assert_eq!(said(&client), "", "given back already");
        assert!(one.is_ready() && two.is_ready(), "it exists all the same");
        let again = one.get_timeout(std::time::Duration::ZERO);
        assert!(matches!(again, Err(crate::error::Error::Timeout(_))));
        assert!(said(&client).starts_with("Some(Get("));
        // Told and recalled at once: whoever waits for it sees it all the same.
        let look = client.viewing(one.id());
        let objects = vec![object_bytes(one.id())];
        let recall = DaemonMsg { msg: Some(daemon_msg::Msg::Recall(mobula_proto::Recall { objects })) };
        client.receive(ToClient { msgs: vec![ready(&one), recall] });
        assert!(client.get_bytes(one.id(), None).is_ok());
        assert_eq!(said(&client), "");
        drop(look);
        assert_eq!(said(&client), "U1");
        drop(one);
        assert_eq!(said(&client), "D1");
    }

    #[test]
    fn of_what_a_task_returns_in_parts_each_is_dropped_by_itself() {
        let client = client();
        let two = |broken: bool| {
            let args = Args { error: broken.then(|| "no".to_owned()), ..Args::default() };
            client.submit_split(Task::<(u64, u64)>::new("test", args))
        };
        let (one, other) = two(false);
        assert_eq!(
            (one.id().element(), other.id().element(), said(&client)),
            (Some(0), Some(1), "S".to_owned())
        );
        assert!(one.get_timeout(std::time::Duration::ZERO).is_err());
        assert_eq!(said(&client), "", "it is told without being asked");
        client.receive(ToClient { msgs: vec![ready(&one)] });
        assert!(one.is_ready() && !other.is_ready());
        drop(one);
        assert_eq!((said(&client), slots(&client)), ("U1 D1".to_owned(), 1));
        drop(other);
        assert_eq!((said(&client), slots(&client)), ("D1".to_owned(), 0));
        let (one, other) = two(true);
        assert!(one.get().is_err() && other.get().is_err());
        drop((one, other));
        assert_eq!((said(&client), slots(&client)), (String::new(), 0));
    }

    #[test]
    fn what_never_left_the_program_is_not_told() {
        let client = client();
        let broken = client.submit(task(|args| args.error = Some("no".to_owned())));
        assert!(broken.get().is_err());
        drop(broken);
        assert_eq!(said(&client), "");
        assert_eq!(slots(&client), 0);
    }
}
